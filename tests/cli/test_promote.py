from pathlib import Path

from tests.cli.conftest import Call, Line

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


def test_force_needs_a_reason_and_is_marked(call: Call, line: Line, store: Store) -> None:
    assert call("promote", "worse", "--force").code == 2
    found = call("promote", "worse", "--force", "--reason", "a rollback", "--json").json
    assert found["reason"] == "forced: a rollback"
    assert found["verdict_id"] is None
    assert champion_of(store) == (line.worse.checkpoint, 2)


def test_a_first_champion_is_set_only_where_there_is_none(call: Call, line: Line) -> None:
    done = call("promote", "--first", "better")
    assert done.code == 2
    assert "rlhf-bench gate" in done.one_line
