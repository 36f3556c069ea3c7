from pathlib import Path

import pytest

from rlhf_bench.harness.checkpoint import checkpoint_digest
from rlhf_bench.harness.errors import ChangedCheckpoint, LostRace, UserError
from rlhf_bench.harness.promote import latest_verdict, promote, promote_by_force, promote_first
from rlhf_bench.harness.store import Champion, Store
from rlhf_bench.harness.types import Checkpoint, Outcome, Verdict


def checkpoint(folder: Path, name: str) -> Checkpoint:
    path = folder / name
    path.mkdir()
    (path / "config.json").write_text(f'{{"name": "{name}"}}')
    (path / "model.safetensors").write_bytes(name.encode())
    (path / "tokenizer.json").write_text("{}")
    return Checkpoint(str(path), checkpoint_digest(path))


def verdict(candidate: Checkpoint, champion: Checkpoint, outcome: Outcome = "promote", run: str = "r1") -> Verdict:
    return Verdict(outcome, (), ("better", "safe"), candidate.digest, champion.digest, "p", 0.05, {"candidate": run})


@pytest.fixture
def pair(store: Store, tmp_path: Path) -> tuple[Checkpoint, Checkpoint]:
    """(champion, candidate), both registered."""
    found = checkpoint(tmp_path, "old"), checkpoint(tmp_path, "new")
    for each in found:
        store.register(each)
    promote_first(store, found[0])
    return found


def test_a_promotion_says_which_verdict_and_why(store: Store, pair: tuple[Checkpoint, Checkpoint]) -> None:
    moved = promote(store, store.save_verdict(verdict(pair[1], pair[0])))
    assert (moved.checkpoint, moved.generation, moved.verdict_id, moved.reason) == (pair[1].digest, 2, 1, "better")
    assert store.history() == [Champion(pair[0].digest, 1, None, store.history()[0].moved_at, "first champion"), moved]


def test_a_carried_out_verdict_is_not_carried_out_again(store: Store, pair: tuple[Checkpoint, Checkpoint]) -> None:
    number = store.save_verdict(verdict(pair[1], pair[0]))
    assert promote(store, number) == promote(store, number)
    assert len(store.history()) == 2


@pytest.mark.parametrize("outcome", ["reject", "inconclusive"])
def test_only_promote_promotes(store: Store, pair: tuple[Checkpoint, Checkpoint], outcome: Outcome) -> None:
    number = store.save_verdict(verdict(pair[1], pair[0], outcome))
    with pytest.raises(UserError, match=outcome):
        promote(store, number)
    assert len(store.history()) == 1


def test_a_verdict_against_another_champion_is_void(store: Store, pair: tuple[Checkpoint, Checkpoint]) -> None:
    number = store.save_verdict(verdict(pair[1], pair[1]))
    with pytest.raises(UserError, match="gate the candidate"):
        promote(store, number)
    assert len(store.history()) == 1


def test_changed_files_are_not_promoted(store: Store, pair: tuple[Checkpoint, Checkpoint]) -> None:
    number = store.save_verdict(verdict(pair[1], pair[0]))
    (Path(pair[1].path) / "model.safetensors").write_bytes(b"changed")
    with pytest.raises(ChangedCheckpoint):
        promote(store, number)
    assert len(store.history()) == 1


def test_of_two_promotions_at_once_one_wins(
    store: Store, pair: tuple[Checkpoint, Checkpoint], monkeypatch: pytest.MonkeyPatch
) -> None:
    number = store.save_verdict(verdict(pair[1], pair[0]))

    def meanwhile(checkpoint: Checkpoint) -> None:
        store.set_champion(pair[1].digest, expect_generation=1, verdict_id=None, reason="the other process")

    monkeypatch.setattr("rlhf_bench.harness.promote.verify", meanwhile)
    with pytest.raises(LostRace):
        promote(store, number)
    assert [each.reason for each in store.history()] == ["first champion", "the other process"]


def test_the_last_verdict_on_a_run_counts(store: Store, pair: tuple[Checkpoint, Checkpoint]) -> None:
    for outcome in ("inconclusive", "promote"):
        store.save_verdict(verdict(pair[1], pair[0], outcome))  # type: ignore[arg-type]
    assert latest_verdict(store, "r1") == 2
    with pytest.raises(UserError, match="rlhf-bench gate r2"):
        latest_verdict(store, "r2")


def test_a_second_first_champion_is_refused(store: Store, pair: tuple[Checkpoint, Checkpoint]) -> None:
    with pytest.raises(UserError, match="promote verdict"):
        promote_first(store, pair[1])


def test_an_unregistered_candidate_is_refused(store: Store, pair: tuple[Checkpoint, Checkpoint]) -> None:
    number = store.save_verdict(verdict(Checkpoint("/nowhere", "f" * 64), pair[0]))
    with pytest.raises(UserError, match="rlhf-bench models register"):
        promote(store, number)


@pytest.mark.parametrize("reason", ["", "  "])
def test_force_without_a_reason_is_refused(store: Store, pair: tuple[Checkpoint, Checkpoint], reason: str) -> None:
    with pytest.raises(UserError, match="--reason"):
        promote_by_force(store, pair[1].digest, reason)
    assert promote_by_force(store, pair[1].digest, "rollback").reason == "forced: rollback"
