import json
from pathlib import Path

import pytest
from tests.cli.conftest import POLICY, Call, Line

from rlhf_bench.harness.store import Store


def champion_of(store: Store) -> tuple[str, int]:
    champion = store.champion()
    assert champion is not None
    return champion.checkpoint, champion.generation


def test_a_promote_verdict_moves_the_champion_once(call: Call, line: Line, policy: str, store: Store) -> None:
    call("gate", "better", "--policy", policy)
    assert call("promote", line.better.run_id).code == 0
    assert champion_of(store) == (line.better.checkpoint, 2)
    assert call("promote", "--verdict", "1").code == 0
    assert champion_of(store) == (line.better.checkpoint, 2)


def test_a_run_without_a_verdict_or_with_another_verdict_is_refused(
    call: Call, line: Line, policy: str, store: Store
) -> None:
    done = call("promote", line.worse.run_id)
    assert done.code == 2 and "rlhf-bench gate" in done.one_line
    call("gate", "worse", "--policy", policy)
    done = call("promote", "worse")
    assert done.code == 2 and "'reject'" in done.one_line
    assert champion_of(store) == (line.champion.checkpoint, 1)


def test_a_verdict_against_an_earlier_champion_is_refused(call: Call, line: Line, policy: str, store: Store) -> None:
    call("gate", "better", "--policy", policy)
    store.set_champion(line.alike.checkpoint, expect_generation=1, verdict_id=None, reason="meanwhile")
    done = call("promote", "better")
    assert done.code == 2 and "gate the candidate against it" in done.one_line
    assert champion_of(store) == (line.alike.checkpoint, 2)


def test_changed_weights_are_not_promoted(call: Call, line: Line, policy: str, store: Store, home: Path) -> None:
    call("gate", "better", "--policy", policy)
    (home / "weights" / "better" / "model.safetensors").write_bytes(b"other")
    assert call("promote", "better").code == 2
    assert champion_of(store) == (line.champion.checkpoint, 1)


def test_a_verdict_from_before_a_rollback_is_refused(call: Call, line: Line, policy: str, store: Store) -> None:
    call("gate", "better", "--policy", policy)
    call("promote", "worse", "--force", "--reason", "to see")
    assert call("rollback", "base", "--reason", "it was worse").code == 0
    done = call("promote", "better")
    assert done.code == 2 and "in its generation 1, and the champion's is now 3" in done.one_line
    call("gate", "better", "--policy", policy)
    assert call("promote", "better").code == 0
    assert champion_of(store) == (line.better.checkpoint, 4)


def test_only_a_verdict_of_the_policy_that_is_named_will_do(
    call: Call, line: Line, policy: str, store: Store, home: Path
) -> None:
    (home / "strict.yaml").write_text(POLICY.replace("margin: 0.1", "margin: 0.05"))
    call("gate", "better", "--policy", policy)
    done = call("promote", "better", "--policy", "strict.yaml")
    assert done.code == 2 and "gate the candidate by that policy" in done.one_line
    assert call("promote", "better", "--policy", policy).code == 0
    assert champion_of(store) == (line.better.checkpoint, 2)


@pytest.mark.parametrize("other", [["better", "--force", "--reason", "x"], ["--first", "better"]])
def test_a_policy_and_no_verdict_is_a_contradiction(call: Call, line: Line, policy: str, other: list[str]) -> None:
    done = call("promote", *other, "--policy", policy)
    assert done.code == 2 and "do without one" in done.one_line


def test_samples_that_changed_since_the_gate_void_the_verdict(
    call: Call, line: Line, policy: str, store: Store
) -> None:
    call("gate", "better", "--policy", policy)
    run = store.run(line.better.run_id)
    facts = {**run.manifest["benchmarks"], "chat": {**run.manifest["benchmarks"]["chat"], "digest": "other"}}
    store.start_run(type(run)(run.id, run.model, run.checkpoint, run.suite, run.protocol, run.judge, run.key,
                              {**run.manifest, "benchmarks": facts}))  # fmt: skip
    done = call("promote", "better")
    assert done.code == 2 and "now has other samples of 'chat'" in done.one_line
    assert champion_of(store) == (line.champion.checkpoint, 1)


def test_the_pointer_file_says_who_is_champion(call: Call, line: Line, policy: str, home: Path) -> None:
    pointer = home / "home" / "champion.json"
    call("gate", "better", "--policy", policy)
    call("promote", "better")
    said = json.loads(pointer.read_text())
    assert (said["checkpoint"], said["generation"], said["verdict"]) == (line.better.checkpoint, 2, 1)
    for command in (["history"], ["models"], ["models", "show", "champion"], ["doctor"], ["promote", "better"]):
        pointer.write_text("{}")
        assert call(*command).code == 0
        assert json.loads(pointer.read_text()) == said, command


def test_force_needs_a_reason_and_is_marked(call: Call, line: Line, store: Store) -> None:
    assert call("promote", "worse", "--force").code == 2
    found = call("promote", "worse", "--force", "--reason", "a rollback", "--json").json
    assert found["reason"] == "forced: a rollback"
    assert found["verdict_id"] is None
    assert found["how"] == "forced"
    assert champion_of(store) == (line.worse.checkpoint, 2)
    assert "worse ★ champion (forced)" in call("models").out
    assert "worse ★ champion (forced)" in call("models", "show", "worse").out


def test_a_first_champion_is_set_only_where_there_is_none(call: Call, line: Line) -> None:
    done = call("promote", "--first", "better")
    assert done.code == 2
    assert "rlhf-bench gate" in done.one_line


@pytest.mark.parametrize("number", ["0", "-1", "2147483648", "9" * 30])
def test_a_number_that_no_verdict_can_have_is_one_line(call: Call, line: Line, policy: str, number: str) -> None:
    assert call("gate", "worse", "--policy", policy).code == 1
    done = call("promote", "--verdict", number)
    assert done.code == 2
    assert done.one_line.startswith(f"error: no verdict named '{number}'. ")
