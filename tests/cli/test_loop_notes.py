"""What decides nothing ends no loop: probes that fail and notifications that do not arrive are a line each."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from tests.cli.conftest import Call, Called
from tests.cli.loops import Loop, result
from tests.conftest import light

from rlhf_bench.harness.engines.hf import HFEngine
from rlhf_bench.harness.files import only_one
from rlhf_bench.harness.types import Request
from rlhf_bench.trainers.online.probes import read_probes


@pytest.fixture(autouse=True)
def quick() -> Iterator[None]:
    with light():
        yield


@pytest.fixture
def iterate(call: Call, home: Path, talker: Path, monkeypatch: pytest.MonkeyPatch) -> Loop:
    return Loop(call, home, monkeypatch, talker)


def notes(done: Called) -> list[str]:
    return [line for line in done.err.splitlines() if line.startswith(("note: ", "notify: "))]


def test_probes_that_fail_and_an_owner_who_is_not_told_leave_the_loop_its_result_and_its_exit_code(
    iterate: Loop,
) -> None:
    expected = result(iterate("whole"))
    work = iterate.work("mine")
    work.mkdir(parents=True)
    (work / "probes").write_text("a file where the folder should be")
    done = iterate("mine", "probes=packaged", "notify.command=[sh, -c, exit 3]")
    assert result(done) == expected
    probes, told = notes(done)[:2], notes(done)[2:]
    assert [line.split(" failed ")[0] for line in probes] == [
        f"note: the probes of {name}" for name in (iterate.model, "small-1")
    ]
    assert all("cannot write" in line and "they decide nothing" in line for line in probes)
    assert told == [
        f"notify: the command 'sh' was not told of '{event}': exit status 3" for event in ("decided", "finished")
    ]
    (work / "probes").unlink()
    again = iterate("mine", "probes=packaged", json=False)
    assert again.code == 0 and notes(again) == [] and (work / "probes.html").exists()
    assert "side by side" in again.out


def test_a_model_that_breaks_at_the_probes_alone_is_a_line(iterate: Loop, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = {each.id for each in read_probes()}
    generate = HFEngine.generate

    def breaks(self: HFEngine, requests: Sequence[Request]) -> Any:
        if any(request.sample_id in asked for request in requests):
            raise RuntimeError("CUDA out of memory\nand more of it")
        return generate(self, requests)

    monkeypatch.setattr(HFEngine, "generate", breaks)
    done = iterate("mine", "probes=packaged", json=False)
    assert done.code == 0 and "INCONCLUSIVE" in done.out and "side by side" not in done.out
    assert [line.partition(" failed ")[2] for line in notes(done)] == [
        "(RuntimeError: CUDA out of memory and more of it): they decide nothing, so it goes on"
    ] * 2


def test_the_progress_of_each_stage_says_what_the_whole_run_still_takes(iterate: Loop) -> None:
    done = iterate("mine", "iterations=2")
    lines = [line for line in done.err.splitlines() if ", whole run: " in line]
    for number in (1, 2):
        for stage in ("answers", "rewards", "train dpo", "measure: answers", "measure: grades"):
            assert any(line.startswith(f"iteration {number} of 2: {stage}: ") for line in lines), (number, stage)
    assert all(re.search(r"whole run: (more than )?(\d+h)?(\d+m)?\d*s? left$", line) for line in lines)


def test_a_plan_that_fails_ends_no_loop(iterate: Loop, monkeypatch: pytest.MonkeyPatch) -> None:
    def breaks(*asked: Any, **named: Any) -> Any:
        raise ValueError("a template of somebody's")

    expected = result(iterate("whole"))
    monkeypatch.setattr("rlhf_bench.cli.online.loop_plan", breaks)
    assert result(iterate("mine")) == expected


def test_a_plan_needs_no_key_of_the_judge(
    iterate: Loop, call: Call, home: Path, mirror: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RLHF_BENCH_DATA", str(mirror))
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    asked = ("iterate", str(home / "loop.yaml"), "--set=judge=openai:gpt-4o-mini", "--json")
    done = call(*asked, "--plan")
    assert done.code == 0 and done.err == "" and done.json["plan"]["total"]["judge_calls"] == 2 * 4
    assert "needs a key" in call(*asked).one_line


def test_an_owner_is_not_told_that_a_loop_stopped_which_another_process_runs(iterate: Loop, home: Path) -> None:
    told = home / "told"
    with only_one(iterate.work("mine"), "running this loop"):
        done = iterate("mine", f"notify.command=[tee, -a, {told}]")
    assert done.code == 2 and "another process is running this loop" in done.one_line
    assert not told.exists()
    assert iterate("mine", f"notify.command=[tee, -a, {told}]", "dpo.learning_rate=1.0e-30").code == 4
    assert '"event": "stopped"' in told.read_text()


def test_a_judge_that_is_the_reward_is_told_by_the_benchmarks_that_it_judges(iterate: Loop) -> None:
    out = iterate("mine", json=False).out
    assert "note: scripted:longer judges demo-chat and is also the training reward: optimistic;" in out
    assert "what does not depend on it: demo-arithmetic\n" in out


def test_a_loop_that_stopped_is_shown_whatever_stage_it_was_to_end_with(iterate: Loop, call: Call, home: Path) -> None:
    assert iterate("mine", "iterations=2", "on_hold=stop").code == 0
    changes = ("--set=iterations=2", "--set=on_hold=stop")
    done = call("iterate", str(home / "loop.yaml"), *changes, "--until", "train")
    assert done.code == 0 and "lineage" in done.out and "ended after" not in done.out
