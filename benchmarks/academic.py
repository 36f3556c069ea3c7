"""Our engine against lm-eval's own hf engine: the same requests, weights, dtype and machine, in one run.

Every case asks both engines the same requests (tests/suites hold that they are those of lm-eval's evaluator), one after
the other in each round, and compares every answer: log-likelihoods and greedy flags, or texts, and the grades that they
lead to. What is timed is answering; models are loaded before. Results are kept in benchmarks/results/ case by case, so
a run that was stopped goes on.

    python benchmarks/academic.py                  # all cases: at least 200 documents of every task, over an hour
    python benchmarks/academic.py mmlu arc-fixed   # some cases
    python benchmarks/academic.py scaling          # our wall time against questions and against shots, as a picture
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as the command line does
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import torch
from rich.console import Console
from rich.table import Table

from rlhf_bench.harness.checkpoint import checkpoint_digest
from rlhf_bench.harness.engines.hf import HFEngine
from rlhf_bench.harness.engines.tree import plan
from rlhf_bench.harness.types import Checkpoint, Completion, EvalProtocol, Request, Sample
from rlhf_bench.harness.weights import fetch_smollm2
from rlhf_bench.suites import benchmark, protocol

RESULTS = Path(__file__).parent / "results"
PAPER = protocol("paper")
RANDOM = replace(PAPER, name="paper, lm-eval's random examples", fixed_shots=False)
SUBJECTS = (
    "abstract_algebra",
    "anatomy",
    "astronomy",
    "business_ethics",
    "clinical_knowledge",
    "econometrics",
    "high_school_geography",
    "world_religions",
)
WITHIN = 1e-3


@dataclass(frozen=True)
class Case:
    """`docs` of each of these benchmarks (of each stratum in `strata`), asked together, in pieces of `piece` documents.

    `batch` is the peer's batch size. `max_tokens` cuts answers for both, where the task's own limit would take hours.
    """

    benchmarks: tuple[str, ...]
    protocol: EvalProtocol
    docs: int
    target: float | None = None
    strata: tuple[str, ...] = ()
    batch: int = 8
    piece: int | None = None
    max_tokens: int | None = None


CASES = {
    "mmlu": Case(("mmlu",), PAPER, 50, 6.0, SUBJECTS),
    "truthfulqa": Case(("truthfulqa_mc1", "truthfulqa_mc2"), PAPER, 200, 8.0, piece=25),
    "arc-random": Case(("arc_challenge",), RANDOM, 40, 3.3),
    "arc-fixed": Case(("arc_challenge",), PAPER, 40, 15.0),
    "arc-0-shot": Case(("arc_challenge",), protocol("lm-eval"), 200),
    "gsm8k": Case(("gsm8k",), PAPER, 200, 2.5, batch=4, piece=50),
    "mbpp": Case(("mbpp",), PAPER, 200, batch=8, piece=50, max_tokens=96),
    "humaneval": Case(("humaneval",), PAPER, 164, batch=8, piece=41, max_tokens=96),
}


@dataclass(frozen=True)
class Both:
    """The two engines on the same weights, in fp32."""

    ours: HFEngine
    peer: Any

    @classmethod
    def load(cls, batch: int) -> Both:
        from lm_eval.models.huggingface import HFLM

        path = fetch_smollm2()
        checkpoint = Checkpoint(str(path), checkpoint_digest(path))
        ours = HFEngine(checkpoint, name="smollm2-135m-instruct", dtype="float32")
        list(ours.generate([Request("warm", "The sea", continuation=" is wide")]))
        device = "cuda" if torch.cuda.is_available() else "cpu"
        return cls(ours, HFLM(pretrained=str(path), dtype="float32", device=device, batch_size=batch))

    def ask_ours(self, requests: Sequence[Request]) -> tuple[list[Completion], float]:
        """The answers in order, and the seconds that they took."""
        start = time.perf_counter()
        found = {(answer.sample_id, answer.index): answer for answer in self.ours.generate(requests)}
        seconds = time.perf_counter() - start
        return [found[request.sample_id, request.index] for request in requests], seconds

    def ask_peer(self, requests: Sequence[Request]) -> tuple[list[Completion], float]:
        """The same from lm-eval."""
        scored = [request for request in requests if request.continuation is not None]
        free = [request for request in requests if request.continuation is None]
        start = time.perf_counter()
        likelihoods = self.peer.loglikelihood(_instances(scored), disable_tqdm=True) if scored else []
        texts = self.peer.generate_until(_instances(free), disable_tqdm=True) if free else []
        seconds = time.perf_counter() - start
        answers = {
            **{
                id(request): Completion(request.sample_id, request.index, "", "stop", 0, logprob, bool(greedy))
                for request, (logprob, greedy) in zip(scored, likelihoods, strict=True)
            },
            **{
                id(request): Completion(request.sample_id, request.index, text, "stop", 0)
                for request, text in zip(free, texts, strict=True)
            },
        }
        return [answers[id(request)] for request in requests], seconds


def _instances(requests: Sequence[Request]) -> list[Any]:
    from lm_eval.api.instance import Instance

    found = []
    for request in requests:
        if request.continuation is not None:
            found.append(Instance("loglikelihood", {}, (request.prompt, request.continuation), 0))
        else:
            sampling = request.sampling
            settings = {"until": list(sampling.stop), "max_gen_toks": sampling.max_tokens, "do_sample": False}
            found.append(Instance("generate_until", {}, (request.prompt, settings), 0))
    return found


def samples_of(case: Case) -> list[list[Sample]]:
    """The samples of each benchmark."""
    found = []
    for name in case.benchmarks:
        loaded = benchmark(name).load(case.protocol)
        if case.strata:
            picked = [[s for s in loaded if s.tags.get("stratum") == stratum][: case.docs] for stratum in case.strata]
            found.append([sample for stratum in picked for sample in stratum])
        else:
            found.append(list(loaded[: case.docs]))
    return [[_cut(sample, case.max_tokens) for sample in samples] for samples in found]


def _cut(sample: Sample, max_tokens: int | None) -> Sample:
    if max_tokens is None:
        return sample
    shorter = [replace(each, sampling=replace(each.sampling, max_tokens=max_tokens)) for each in sample.requests]
    return replace(sample, requests=tuple(shorter))


def run(name: str, case: Case) -> dict[str, Any]:
    """One case: both engines, every answer compared."""
    loaded = samples_of(case)
    both = Both.load(case.batch)
    piece = case.piece or max(map(len, loaded))
    rows = []
    for start in range(0, max(map(len, loaded)), piece):
        kept = RESULTS / f"{name}.{start}.json"
        if kept.exists():
            rows.append(json.loads(kept.read_text()))
            continue
        row = compare(both, case, [samples[start : start + piece] for samples in loaded])
        if start + piece < max(map(len, loaded)):
            kept.write_text(json.dumps(row))
        rows.append(row)
        print(f"{name}: documents {start} to {start + piece}: {row}", flush=True)
    result = {"case": name, "protocol": case.protocol.name, "target": case.target, "peer_batch": case.batch}
    for key in rows[0]:
        values = [row[key] for row in rows]
        result[key] = max(values) if key.startswith("largest") else sum(values)
    result["ratio"] = result["peer_s"] / result["ours_s"]
    (RESULTS / f"{name}.json").write_text(json.dumps(result | {"machine": machine()}, indent=1) + "\n")
    for kept in RESULTS.glob(f"{name}.[0-9]*.json"):
        kept.unlink()
    return result


def compare(both: Both, case: Case, loaded: Sequence[Sequence[Sample]]) -> dict[str, Any]:
    """Seconds of both engines for these samples, and how many answers and grades agree."""
    requests = [request for samples in loaded for sample in samples for request in sample.requests]
    ours, ours_s = both.ask_ours(requests)
    peer, peer_s = both.ask_peer(requests)
    away = [abs((a.logprob or 0) - (b.logprob or 0)) for a, b in zip(ours, peer, strict=True) if a.logprob is not None]
    jobs = [both.ours._coder.job(request) for request in requests]
    tokens = [job.tokens for job in jobs]  # type: ignore[union-attr]
    grades = [
        [
            score.also | {"": score.value}
            for name, samples in zip(case.benchmarks, loaded, strict=True)
            for score in benchmark(name).grade(_answered(samples, requests, answers), None)
        ]
        for answers in (ours, peer)
    ]
    return {
        "documents": sum(map(len, loaded)),
        "requests": len(requests),
        "prompt_tokens": sum(map(len, tokens)),
        "distinct_tokens": len(plan(tokens).tokens),
        "generated_tokens": sum(a.tokens for a in ours if a.logprob is None),
        "peer_s": peer_s,
        "ours_s": ours_s,
        "answers_equal": sum(
            abs(a.logprob - b.logprob) <= WITHIN and a.greedy == b.greedy  # type: ignore[operator]
            if a.logprob is not None
            else a.text == b.text
            for a, b in zip(ours, peer, strict=True)
        ),
        "grades_equal": sum(
            all(abs((a[key] or 0) - (b[key] or 0)) <= WITHIN for key in a) for a, b in zip(*grades, strict=True)
        ),
        "largest_difference": max(away, default=0.0),
    }


def _answered(
    samples: Sequence[Sample], requests: Sequence[Request], answers: Sequence[Completion]
) -> list[tuple[Sample, tuple[Completion, ...]]]:
    by_request = dict(zip(requests, answers, strict=True))
    return [(sample, tuple(by_request[request] for request in sample.requests)) for sample in samples]


def machine() -> dict[str, Any]:
    """What the figures were measured on."""
    left, right = torch.randn(512, 576), torch.randn(576, 1536)
    for _ in range(20):
        left @ right
    start = time.perf_counter()
    for _ in range(200):
        left @ right
    seconds = time.perf_counter() - start
    return {
        "processors": os.cpu_count(),
        "architecture": platform.machine(),
        "torch": torch.__version__,
        "matmul_gflops": round(200 * 2 * 512 * 576 * 1536 / seconds / 1e9),
        "load": round(os.getloadavg()[0], 2),
        "date": time.strftime("%Y-%m-%d"),
    }


def table(rows: Sequence[dict[str, Any]]) -> Table:
    """The table that the README quotes."""
    shown = Table(title="lm-eval's hf engine and ours, fp32, the same requests")
    for column in ("case", "documents", "tokens asked", "distinct", "lm-eval s", "ours s", "ratio", "target"):
        shown.add_column(column, justify="left" if column == "case" else "right")
    for column in ("answers equal", "grades equal", "largest Δ logprob"):
        shown.add_column(column, justify="right")
    for row in rows:
        asked = row["prompt_tokens"] + row["generated_tokens"]
        shown.add_row(
            row["case"],
            str(row["documents"]),
            f"{asked:,}",
            f"{row['distinct_tokens'] + row['generated_tokens']:,}",
            f"{row['peer_s']:.0f}",
            f"{row['ours_s']:.1f}",
            f"{row['ratio']:.1f}x",
            f"{row['target']}x" if row["target"] else "",
            f"{row['answers_equal']}/{row['requests']}",
            f"{row['grades_equal']}/{row['documents']}",
            f"{row['largest_difference']:.1e}" if row["largest_difference"] else "",
        )
    return shown


def markdown(rows: Sequence[dict[str, Any]]) -> str:
    """The same for docs/benchmarks.md."""
    lines = [
        "| case | documents | tokens asked | distinct | lm-eval s | ours s | ratio | target "
        "| answers equal | grades equal | largest Δ logprob |",
        "|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for row in rows:
        asked, distinct = (row[key] + row["generated_tokens"] for key in ("prompt_tokens", "distinct_tokens"))
        away = f"{row['largest_difference']:.1e}" if row["largest_difference"] else "texts"
        lines.append(
            f"| {row['case']} | {row['documents']} | {asked:,} | {distinct:,} | {row['peer_s']:.0f} |"
            f" {row['ours_s']:.1f} | **{row['ratio']:.1f}x** | {row['target'] or ''} |"
            f" {row['answers_equal']}/{row['requests']} | {row['grades_equal']}/{row['documents']} | {away} |"
        )
    return "\n".join(lines)


def scaling() -> dict[str, Any]:
    """Our seconds against the number of questions (ARC, 25 fixed shots) and of shots (32 questions)."""
    both = Both.load(1)
    found: dict[str, Any] = {"machine": machine(), "questions": [], "shots": []}
    for key, points in (("questions", (8, 16, 32, 64, 128)), ("shots", (0, 5, 10, 15, 20, 25))):
        for point in points:
            shots, docs = (25, point) if key == "questions" else (point, 32)
            asked = replace(PAPER, shots={**PAPER.shots, "arc_challenge": shots})
            samples = benchmark("arc_challenge").load(asked)[:docs]
            requests = [request for sample in samples for request in sample.requests]
            jobs = [both.ours._coder.job(request) for request in requests]
            tokens = [job.tokens for job in jobs]  # type: ignore[union-attr]
            seconds = min(both.ask_ours(requests)[1] for _ in range(2))
            row = {
                key: point,
                "seconds": seconds,
                "tokens": sum(map(len, tokens)),
                "distinct": len(plan(tokens).tokens),
            }
            print(row, flush=True)
            found[key].append(row)
    (RESULTS / "scaling.json").write_text(json.dumps(found, indent=1) + "\n")
    return found


def draw(found: dict[str, Any]) -> None:
    """The two curves beside what they would be if cost grew with the tokens asked, from the same first point."""
    import matplotlib

    matplotlib.use("svg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(10, 3.6), layout="constrained")
    for axis, key, title in zip(axes, ("questions", "shots"), ("25 fixed shots", "32 questions"), strict=True):
        rows = found[key]
        each = [row[key] for row in rows]
        rate = rows[0]["seconds"] / rows[0]["distinct"]
        axis.plot(each, [row["seconds"] for row in rows], "o-", label="measured")
        axis.plot(each, [row["distinct"] * rate for row in rows], "--", label="if by distinct tokens")
        axis.plot(each, [row["tokens"] * rate for row in rows], ":", label="if by all tokens")
        axis.set(title=f"ARC-Challenge, {title}", xlabel=key, ylabel="seconds", yscale="log")
        axis.legend()
    figure.savefig(Path(__file__).parent.parent / "docs" / "scaling.svg", metadata={"Date": None})


def main() -> None:
    """Runs the named cases, or prints what is kept of them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", nargs="*", help=", ".join([*CASES, "scaling"]))
    parser.add_argument("--markdown", action="store_true", help="print what is kept and measure nothing")
    parser.add_argument("--again", action="store_true", help="measure again what is kept")
    given = parser.parse_args()
    RESULTS.mkdir(exist_ok=True)
    if given.markdown:
        kept = [RESULTS / f"{name}.json" for name in given.cases or CASES]
        print(markdown([json.loads(each.read_text()) for each in kept if each.exists()]))
        return
    rows = []
    for name in given.cases or [*CASES, "scaling"]:
        if name == "scaling":
            draw(scaling())
            continue
        kept = RESULTS / f"{name}.json"
        found = kept.exists() and not given.again
        rows.append(json.loads(kept.read_text()) if found else run(name, CASES[name]))
        Console(width=160).print(table(rows[-1:]))
    if len(rows) > 1:
        Console(width=160).print(table(rows))


if __name__ == "__main__":
    main()
