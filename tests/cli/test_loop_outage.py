"""A judge that goes away in the middle of a loop: nothing partial is trained on or decided, and nothing asked twice."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.cli.conftest import Call, Called
from tests.cli.endpoint import Endpoint, Outage, endpoint
from tests.cli.loops import LIMIT, Loop, result
from tests.conftest import light

from rlhf_bench.harness.engines.openai import OpenAIEngine
from rlhf_bench.harness.engines.pace import Limits
from rlhf_bench.harness.store import Store

LIMITS = Limits(attempt_s=1.0, deadline_s=1.5, connect_s=1.0, backoff_s=0.01, backoff_cap_s=0.05)
"""Those of a run, in a hundredth of the time."""
AGAIN = {"refuse": "transport: no connection", "503": "server: HTTP 503", "hang": "transport: no whole reply"}


@pytest.fixture(autouse=True)
def quick() -> Iterator[None]:
    with light():
        yield


@pytest.fixture
def judge() -> Iterator[Endpoint]:
    with endpoint() as found:
        yield found


@pytest.fixture
def iterate(
    call: Call, home: Path, talker: Path, mirror: Path, judge: Endpoint, monkeypatch: pytest.MonkeyPatch
) -> Loop:
    """A loop of which `judge` is reward and judge."""
    monkeypatch.setenv("RLHF_BENCH_DATA", str(mirror))
    monkeypatch.setitem(OpenAIEngine.__init__.__kwdefaults__, "limits", LIMITS)
    spec = f"openai:stub@{judge.url}"
    return Loop(call, home, monkeypatch, talker, spec, spec)


def made(loop: Loop, name: str) -> set[str]:
    """What the stages of the one iteration left, by how the names begin."""
    return {path.name.partition("-")[0] for path in (loop.work(name) / "iteration-1").iterdir()}


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
    iterate: Loop, judge: Endpoint, home: Path
) -> None:
    expected = result(iterate("whole"))
    questions, judge.answered = judge.answered, type(judge.answered)()
    assert set(questions.values()) == {1} and len(questions) > 2 * LIMIT
    scored = len(questions) - 2 * LIMIT  # the reward's; the judge's are on champion and candidate
    outages: tuple[Outage, ...] = ("refuse", "hang")  # 503 is for the next tests
    for how in outages:
        judge.fail(how, after=2)
        refused(iterate(how), AGAIN[how])
        assert made(iterate, how) == {"answers", "begun"}
        undecided(home, how)
        judge.mend()
        judge.fail(how, after=scored - 2 + LIMIT + 2)
        refused(iterate(how), AGAIN[how])
        assert "candidate" in made(iterate, how) and "verdict" not in made(iterate, how)
        undecided(home, how)
        judge.mend()
        assert result(iterate(how)) == expected, how
        assert judge.answered == questions, how
        judge.answered.clear()


def test_an_outage_that_ends_within_the_loops_patience_is_waited_for(iterate: Loop, judge: Endpoint) -> None:
    judge.fail("503", after=2, times=20)  # more than one start of the stage tries
    done = iterate("patient", "patience_s=60")
    assert done.code == 0 and "waiting (the judge openai:stub@" in done.err
    questions = dict(judge.answered)
    judge.answered.clear()
    assert result(done) == result(iterate("whole")) and judge.answered == questions
    assert set(questions.values()) == {1}


def test_a_partial_loop_trains_on_what_was_said_but_not_on_nothing(iterate: Loop, judge: Endpoint) -> None:
    judge.fail("503", after=0)
    refused(iterate("partial", "partial=true"), "server: HTTP 503")
    assert made(iterate, "partial") == {"answers", "begun"}
    judge.mend()
    judge.fail("503", after=3)
    (first,) = result(iterate("partial", "partial=true"))
    (path,) = (iterate.work("partial") / "iteration-1").glob("rewards-*")
    rewards = [value for line in path.read_text().splitlines() for value in json.loads(line)["rewards"]]
    assert None in rewards and first["pairs"] > 0
    assert first["verdict"]["outcome"] == "inconclusive" and sum(judge.answered.values()) == 3
    judge.mend()
    (later,) = result(iterate("partial", "partial=true"))
    assert later["pairs"] == first["pairs"], "what was trained on stays"
    assert set(judge.answered.values()) == {1} and sum(judge.answered.values()) == 3 + 2 * LIMIT
