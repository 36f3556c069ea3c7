"""A judge that goes away in the middle of a loop: nothing partial is trained on or decided, and nothing asked twice."""

from __future__ import annotations

import gc
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from tests.cli.conftest import Call, Called
from tests.cli.endpoint import Endpoint, Outage, endpoint

from rlhf_bench.harness.engines.openai import OpenAIEngine
from rlhf_bench.harness.engines.pace import Limits
from rlhf_bench.harness.store import Store

CONFIG = """
name: small
model: {model}
reward: openai:stub@{url}
judge: openai:stub@{url}
prompts_per_iteration: 3
iterations: 1
answers: {{n: 4, temperatures: [1.2], max_tokens: 24}}
dpo: {{epochs: 1, batch_size: 2, micro_batch: 1, learning_rate: 1.0e-2, dtype: float32, max_length: 512}}
backend: torch
suite: demo-chat,demo-arithmetic
limit: 6
policy: policy.yaml
contaminated: keep
patience_s: 0
probes: null
"""
POLICY = """
name: chat
targets:
  - {benchmark: demo-chat, metric: win_rate}
guards:
  - {benchmark: demo-arithmetic, metric: exact_match, margin: 0.5}
"""
LIMITS = Limits(attempt_s=1.0, deadline_s=1.5, connect_s=1.0, backoff_s=0.01, backoff_cap_s=0.05)
"""Those of a run, in a hundredth of the time."""
AGAIN = {"refuse": "transport: no connection", "503": "server: HTTP 503", "hang": "transport: no whole reply"}
Iterate = Callable[..., Called]


@pytest.fixture(autouse=True)
def light() -> Iterator[None]:
    """One thread, and a short way for the collections of garbage that a loop asks for between its stages."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    gc.freeze()
    yield
    gc.unfreeze()
    torch.set_num_threads(threads)


@pytest.fixture
def judge() -> Iterator[Endpoint]:
    with endpoint() as found:
        yield found


@pytest.fixture
def iterate(
    call: Call, home: Path, talker: Path, mirror: Path, judge: Endpoint, monkeypatch: pytest.MonkeyPatch
) -> Iterate:
    """Runs the loop, of which `judge` is reward and judge, in a home of this name."""
    monkeypatch.setenv("RLHF_BENCH_DATA", str(mirror))
    monkeypatch.setitem(OpenAIEngine.__init__.__kwdefaults__, "limits", LIMITS)
    (home / "loop.yaml").write_text(CONFIG.format(model=talker, url=judge.url))
    (home / "policy.yaml").write_text(POLICY)

    def run(name: str, *changes: str) -> Called:
        monkeypatch.setenv("RLHF_BENCH_HOME", str(home / name))
        return call("iterate", "loop.yaml", "--json", *(f"--set={change}" for change in changes))

    return run


def made(home: Path, name: str) -> set[str]:
    """What the stages of the one iteration left, by how the names begin."""
    return {path.name.partition("-")[0] for path in (home / name / "loops" / "small" / "iteration-1").iterdir()}


def result(done: Called) -> Any:
    """What came of a loop; it says where its files lie, which differs."""
    assert done.code == 0, done.err
    (found,) = done.json["iterations"]
    reports = [found[name] for name in ("champion_report", "candidate_report")]
    kept = {name: found[name] for name in ("verdict", "verdict_id", "pairs", "dropped")}
    return kept | {"of": [(each["run_id"], each["estimates"]) for each in reports]}


def refused(done: Called, said: str) -> None:
    """It ended as a fault does, with one line that says what to do."""
    (line,) = [line for line in done.err.splitlines() if line.startswith("error: ")]
    assert done.code == 4 and done.err.endswith(f"{line}\n") and done.out == ""
    assert said in line and ("run it again" in line or "run the same to go on" in line)


def undecided(home: Path, name: str) -> None:
    """Nothing was decided, and the first policy is still champion."""
    with Store(f"sqlite:///{home}/{name}/store.db") as store:
        assert store.verdicts() == []
        assert [each.reason for each in store.history()] == ["start of loop small"]


def test_a_loop_whose_judge_goes_away_in_two_stages_ends_as_one_that_was_not_disturbed(
    iterate: Iterate, judge: Endpoint, home: Path
) -> None:
    expected = result(iterate("whole"))
    questions, judge.answered = judge.answered, type(judge.answered)()
    assert set(questions.values()) == {1} and len(questions) > 12
    scored = len(questions) - 12  # the reward's; then six questions on the champion, six on the candidate
    for how in get_args(Outage):
        judge.fail(how, after=2)
        refused(iterate(how), AGAIN[how])
        assert made(home, how) == {"answers", "begun"}
        undecided(home, how)
        judge.mend()
        judge.fail(how, after=scored - 2 + 6 + 3)
        refused(iterate(how), AGAIN[how])
        assert "candidate" in {each[:9] for each in made(home, how)} and "verdict" not in made(home, how)
        undecided(home, how)
        judge.mend()
        assert result(iterate(how)) == expected, how
        assert judge.answered == questions, how
        judge.answered.clear()


def test_an_outage_that_ends_within_the_loops_patience_is_waited_for(
    iterate: Iterate, judge: Endpoint, home: Path
) -> None:
    judge.fail("503", after=2, times=20)  # more than one start of the stage tries
    done = iterate("patient", "patience_s=60")
    assert done.code == 0 and "waiting (the judge openai:stub@" in done.err
    questions = dict(judge.answered)
    judge.answered.clear()
    assert result(done) == result(iterate("whole")) and judge.answered == questions
    assert set(questions.values()) == {1}


def test_a_partial_loop_trains_on_what_was_said_but_not_on_nothing(
    iterate: Iterate, judge: Endpoint, home: Path
) -> None:
    judge.fail("503", after=0)
    refused(iterate("partial", "partial=true"), "server: HTTP 503")
    assert made(home, "partial") == {"answers", "begun"}
    judge.mend()
    judge.fail("503", after=3)
    first = result(iterate("partial", "partial=true"))
    (path,) = (home / "partial" / "loops" / "small" / "iteration-1").glob("rewards-*")
    rewards = [value for line in path.read_text().splitlines() for value in json.loads(line)["rewards"]]
    assert None in rewards and first["pairs"] > 0
    assert first["verdict"]["outcome"] == "inconclusive" and sum(judge.answered.values()) == 3
    judge.mend()
    assert result(iterate("partial", "partial=true"))["pairs"] == first["pairs"], "what was trained on stays"
    assert set(judge.answered.values()) == {1} and sum(judge.answered.values()) == 3 + 12
