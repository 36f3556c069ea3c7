"""What the command line's tests share: an own home, made-up runs, and a way to call a command."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from rlhf_bench.cli import main
from rlhf_bench.harness.codec import digest, plain, sample_digest
from rlhf_bench.harness.stats.sequential import Design
from rlhf_bench.harness.store import Run, Store, default_store_url
from rlhf_bench.harness.types import (
    Checkpoint,
    Completion,
    Estimate,
    EvalProtocol,
    Message,
    Record,
    Report,
    Request,
    Sample,
    Score,
)

N = 40
POLICY = """
name: test
alpha: 0.05
targets:
  - {benchmark: chat, metric: win_rate}
guards:
  - {benchmark: maths, metric: accuracy, margin: 0.1}
"""


@dataclass(frozen=True)
class Called:
    """What a command did."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)

    @property
    def one_line(self) -> str:
        """The only line on stderr."""
        (line,) = self.err.splitlines()
        return line


Call = Callable[..., Called]


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty home, cache and working directory; no setting of the caller's shell."""
    for name in ("RLHF_BENCH_STORE", "RLHF_BENCH_DATA", "RLHF_BENCH_DEBUG", "HF_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("RLHF_BENCH_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("RLHF_BENCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str]) -> Call:
    """Run a command line in this process, as the console script does."""

    def called(*args: str) -> Called:
        capsys.readouterr()
        code = main(list(args))
        captured = capsys.readouterr()
        return Called(code, captured.out, captured.err)

    return called


@pytest.fixture
def store(home: Path) -> Iterator[Store]:
    """The store that the commands use."""
    (home / "home").mkdir()
    with Store(default_store_url()) as opened:
        yield opened


@pytest.fixture
def policy(home: Path) -> str:
    """A policy about the benchmarks of the made-up runs."""
    path = home / "policy.yaml"
    path.write_text(POLICY)
    return str(path)


def checkpoint(folder: Path, name: str, parent: str | None = None) -> Checkpoint:
    """A folder with the files that a digest is taken over, small ones."""
    from rlhf_bench.harness.checkpoint import checkpoint_digest

    path = folder / name
    path.mkdir(parents=True)
    (path / "config.json").write_text(json.dumps({"name": name}))
    (path / "model.safetensors").write_bytes(name.encode())
    (path / "tokenizer.json").write_text("{}")
    return Checkpoint(str(path), checkpoint_digest(path), parent)


def records(benchmark: str, values: Sequence[float | None], text: str = "an answer") -> list[Record]:
    """Records of one benchmark with these scores; the same questions each time."""
    found = []
    for number, value in enumerate(values):
        name = f"{benchmark}/{number}"
        sample = Sample(
            name, (Request(name, (Message("user", f"question {number} [b]?[/b]"),)),), f"reference {number}"
        )
        answer = Completion(name, 0, f"{text} {number}", "stop", 3)
        score = Score(name, value, "" if value is not None else "no verdict")
        found.append(Record(benchmark, sample_digest(sample), sample, (answer,), score))
    return found


def finished(
    store: Store,
    model: str,
    digest_: str,
    chat: Sequence[float | None],
    maths: Sequence[float | None],
    *,
    judge: str = "J",
    shots: int = 0,
    text: str = "an answer",
) -> Report:
    """A finished run of two benchmarks, `chat` (continuous, judged) and `maths` (binary), in the store."""
    found = records("chat", chat, text) + records("maths", maths, text)
    protocol = EvalProtocol("paper", shots={"maths": shots})
    facts = {
        "chat": {"version": "1", "metric": "win_rate", "kind": "continuous", "samples": len(chat), "digest": "c"},
        "maths": {"version": "1", "metric": "accuracy", "kind": "binary", "samples": len(maths), "digest": "m"},
    }
    manifest = {
        "protocol": {"name": "paper", "shots": {"maths": shots}},
        "protocol_digest": digest(protocol),
        "judge_identity": digest(judge),
        "engine": {"dtype": "float32"},
        "benchmarks": facts,
        "judged": ["chat"],
    }
    run_id = digest([model, digest_, list(chat), list(maths), judge, shots])[:10]
    run = Run(run_id, model, digest_, "test", "paper", judge, digest(run_id), manifest)
    store.start_run(run)
    store.save_records(run_id, found)
    estimates = tuple(
        _estimate(name, facts[name]["metric"], values) for name, values in (("chat", chat), ("maths", maths))
    )
    report = Report(run_id, model, digest_, "test", "paper", judge, estimates, manifest)
    store.finish_run(run_id, report)
    return report


def stopped(
    store: Store, whole: Report, digest_: str = "", against: str = "another", policy: str = "another"
) -> Report:
    """A finished run that has the first 10 samples of each benchmark of this one, as if it had been stopped there."""
    names = list(whole.manifest["benchmarks"])
    design = {
        "policy": policy,
        "against": against,
        "plan": asdict(Design(alpha=0.03)),
        "looks": dict.fromkeys(names, 0),
        "asked": {name: [10, N] for name in names},
        "why": "promote",
    }
    manifest = {**whole.manifest, "sequential": plain(design)}
    kept = [each for name in names for each in store.records(whole.run_id, name)[:10]]
    checkpoint_ = digest_ or whole.checkpoint
    run_id = digest([whole.run_id, checkpoint_, against])[:10]
    run = Run(run_id, whole.model, checkpoint_, "test", "paper", whole.judge, digest(run_id), manifest)
    store.start_run(run)
    store.save_records(run_id, kept)
    report = replace(whole, run_id=run_id, checkpoint=checkpoint_, manifest=manifest)
    store.finish_run(run_id, report)
    return report


def _estimate(benchmark: str, metric: Any, values: Sequence[float | None]) -> Estimate:
    graded = [value for value in values if value is not None]
    mean = sum(graded) / len(graded)
    return Estimate(benchmark, metric, mean, mean - 0.1, mean + 0.1, 0.05, len(graded), len(values) - len(graded))


@dataclass(frozen=True)
class Line:
    """A champion with a finished run, and candidates that are better, worse and hard to tell from it."""

    champion: Report
    better: Report
    worse: Report
    alike: Report


@pytest.fixture
def line(store: Store, home: Path) -> Line:
    """Four checkpoints on disk and in the store, each with a finished run; the first is champion."""
    base = checkpoint(home / "weights", "base")
    others = [checkpoint(home / "weights", name, base.digest) for name in ("better", "worse", "alike")]
    for name, each in zip(("base", "better", "worse", "alike"), (base, *others), strict=True):
        store.register(each, alias=name)
    store.set_champion(base.digest, expect_generation=0, verdict_id=None, reason="first")
    half = [0.4 if i % 2 else 0.5 for i in range(N)]
    right = [float(i % 2) for i in range(N)]
    runs = {
        "base": (half, right),
        "better": ([value + 0.3 + 0.01 * (i % 3) for i, value in enumerate(half)], right),
        "worse": ([value + 0.3 for value in half], [0.0] * N),
        "alike": ([value + 0.1 * (-1) ** (i // 2) for i, value in enumerate(half)], right),
    }
    digests = {"base": base.digest} | {
        name: each.digest for name, each in zip(("better", "worse", "alike"), others, strict=True)
    }
    reports = {name: finished(store, name, digests[name], *scores) for name, scores in runs.items()}
    return Line(reports["base"], reports["better"], reports["worse"], reports["alike"])
