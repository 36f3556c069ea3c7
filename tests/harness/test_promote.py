"""Promote and rollback, on SQLite and on PostgreSQL, with other processes and kills at every point."""

from __future__ import annotations

import json
import os
import random
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from tests.harness.promote_process import (
    COMMITTED,
    ITEMS,
    POINTS,
    checkpoint,
    measured,
    passing,
    promote_and_die,
    promote_at_once,
    promote_in_turn,
    save_and_die,
)
from tests.harness.worker import CONTEXT, Worker

from rlhf_bench.harness import checkpoint as files
from rlhf_bench.harness import promote as moving
from rlhf_bench.harness.errors import ChangedCheckpoint, Fault, LostRace, MissingData, UnknownName, UserError
from rlhf_bench.harness.promote import latest_verdict, promote, promote_by_force, promote_first, rollback
from rlhf_bench.harness.store import Champion, Store
from rlhf_bench.harness.types import Checkpoint, Outcome


@pytest.fixture
def store(url: str, home: Path) -> Iterator[Store]:
    """The project's own store."""
    with Store(url) as opened:
        yield opened


@pytest.fixture
def home(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The project's folder; `url` is its own store's."""
    monkeypatch.setenv("RLHF_BENCH_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("RLHF_BENCH_STORE", url)
    return tmp_path / "home"


@dataclass(frozen=True)
class Pair:
    """The champion, of generation 1, and a candidate, both registered."""

    old: Checkpoint
    new: Checkpoint


@pytest.fixture
def pair(store: Store, tmp_path: Path) -> Pair:
    found = Pair(checkpoint(tmp_path, "old"), checkpoint(tmp_path, "new"))
    for each in (found.old, found.new):
        store.register(each)
    promote_first(store, found.old)
    return found


def said(home: Path) -> Any:
    """What champion.json says."""
    return json.loads((home / "champion.json").read_text())


def assert_sound(store: Store, home: Path) -> Champion:
    """No gap in the history, each move by its own verdict, ledger and pointer as they must be; the champion."""
    with store.line(write=True):
        pass  # a killed process's last transaction is decided
    champion = store.champion()
    history = store.history()
    assert champion is not None and champion == history[-1]
    assert [each.generation for each in history] == list(range(1, len(history) + 1))
    verdicts, ledger = store.verdicts(), store.decisions(ITEMS)
    by_number = {each.id: each.verdict for each in verdicts}
    for before, after in pairwise(history):
        assert after.how == "verdict" and after.verdict_id is not None
        verdict = by_number[after.verdict_id]
        assert (verdict.outcome, verdict.candidate) == ("promote", after.checkpoint)
        assert (verdict.champion, verdict.generation) == (before.checkpoint, before.generation)
    assert [(each.id, each.verdict.spent, each.verdict.decision) for each in verdicts] == [
        (each.number, each.spent, each.decision) for each in ledger
    ]
    assert (said(home)["generation"], said(home)["checkpoint"]) == (champion.generation, champion.checkpoint)
    return champion


# What moves the champion


def test_a_promotion_says_which_verdict_and_why(store: Store, pair: Pair) -> None:
    number = store.save_verdict(passing(store, pair.new, pair.old))
    moved = promote(store, number)
    assert moved == Champion(pair.new.digest, 2, number, moved.moved_at, "better", "verdict")
    first = Champion(pair.old.digest, 1, None, store.history()[0].moved_at, "first champion", "first")
    assert store.history() == [first, moved]


def test_a_carried_out_verdict_is_not_carried_out_again(store: Store, pair: Pair) -> None:
    number = store.save_verdict(passing(store, pair.new, pair.old))
    assert promote(store, number) == promote(store, number)
    assert len(store.history()) == 2


@pytest.mark.parametrize("outcome", ["reject", "inconclusive"])
def test_only_promote_promotes(store: Store, pair: Pair, outcome: Outcome) -> None:
    number = store.save_verdict(passing(store, pair.new, pair.old, outcome=outcome))
    refused(store, number, outcome)


def refused(store: Store, number: int, says: str, policy: str | None = None) -> None:
    """promote() refuses in one line that says this, and nobody moved."""
    before = store.history()
    with pytest.raises(UserError, match=says) as caught:
        promote(store, number, policy=policy)
    assert "\n" not in str(caught.value)
    assert store.history() == before


def test_a_verdict_against_another_champion_is_void(store: Store, pair: Pair) -> None:
    number = store.save_verdict(passing(store, pair.new, replace(pair.old, digest="e" * 64)))
    refused(store, number, "the champion is now")


def test_a_verdict_against_the_same_checkpoint_in_an_earlier_generation_is_void(store: Store, pair: Pair) -> None:
    number = store.save_verdict(passing(store, pair.new, pair.old))
    promote_by_force(store, pair.new.digest, "to see")
    rollback(store, 1, "it was worse")
    refused(store, number, "in its generation 1, and the champion's is now 3")


def test_a_verdict_outside_of_the_line_of_champions_is_void(store: Store, pair: Pair) -> None:
    refused(store, store.save_verdict(passing(store, pair.new, pair.old, generation=0)), "in no generation")


def test_a_policy_that_is_named_must_be_the_one_that_decided(store: Store, pair: Pair) -> None:
    number = store.save_verdict(passing(store, pair.new, pair.old))
    refused(store, number, "by the policy pppppppppppp, not by q", policy="q" * 64)
    assert promote(store, number, policy="p" * 64).generation == 2


@pytest.mark.parametrize("role", ["candidate", "champion"])
def test_a_run_whose_samples_are_others_now_voids_its_verdict(store: Store, pair: Pair, role: str) -> None:
    number = store.save_verdict(passing(store, pair.new, pair.old))
    run = store.verdict(number).verdict.runs[role]
    measured(store, pair.new if role == "candidate" else pair.old, ITEMS | {"chat": "f" * 64}, run)
    refused(store, number, f"run {run} now has other samples of 'chat'")


def test_the_anchors_samples_count_too(store: Store, pair: Pair) -> None:
    verdict = passing(store, pair.new, pair.old)
    anchor = measured(store, pair.old, {"chat": ITEMS["chat"]}, "anchor")
    number = store.save_verdict(replace(verdict, runs={**verdict.runs, "anchor": anchor}))
    refused(store, number, "run anchor now has other samples of 'maths'")


def test_a_run_of_another_checkpoint_voids_its_verdict(store: Store, pair: Pair) -> None:
    verdict = passing(store, pair.new, pair.old)
    other = measured(store, pair.old, name="other")
    number = store.save_verdict(replace(verdict, runs={**verdict.runs, "candidate": other}))
    refused(store, number, f"the candidate's run other is of {pair.old.digest[:12]}")


def test_a_run_that_is_not_here_voids_its_verdict(store: Store, pair: Pair) -> None:
    verdict = passing(store, pair.new, pair.old)
    number = store.save_verdict(replace(verdict, runs={**verdict.runs, "champion": "gone"}))
    refused(store, number, "run gone of verdict")


@pytest.mark.parametrize("changes", [{"items": {}}, {"runs": {}}, {"runs": {"candidate": "r1"}}])
def test_a_verdict_that_does_not_say_on_what_it_was_reached_is_void(
    store: Store, pair: Pair, changes: dict[str, Any]
) -> None:
    refused(store, store.save_verdict(passing(store, pair.new, pair.old, **changes)), "on which samples")


@pytest.mark.parametrize(
    "damage",
    ["update decisions set spent = 0", "update decisions set number = 2", "delete from decided_items", "all"],
)
def test_a_verdict_without_its_ledger_entry_is_void(store: Store, pair: Pair, damage: str) -> None:
    number = store.save_verdict(passing(store, pair.new, pair.old))
    both = ["delete from decided_items", "delete from decisions"]
    with store._engine.begin() as connection:
        for statement in both if damage == "all" else [damage]:
            connection.exec_driver_sql(statement)
    refused(store, number, "the ledger does not hold what verdict")


def test_a_verdict_that_is_not_there_names_those_that_are(store: Store, pair: Pair) -> None:
    with pytest.raises(UnknownName, match="no verdict named '7'"):
        promote(store, 7)


def test_without_a_champion_there_is_nothing_to_succeed(store: Store, tmp_path: Path) -> None:
    one, other = checkpoint(tmp_path, "one"), checkpoint(tmp_path, "other")
    refused(store, store.save_verdict(passing(store, one, other)), "promote --first")


def test_the_last_verdict_on_a_run_counts(store: Store, pair: Pair) -> None:
    verdict = passing(store, pair.new, pair.old, outcome="inconclusive")
    store.save_verdict(verdict)
    number = store.save_verdict(replace(verdict, outcome="promote"))
    assert latest_verdict(store, verdict.runs["candidate"]) == number
    with pytest.raises(UserError, match="rlhf-bench gate r2"):
        latest_verdict(store, "r2")


def test_a_second_first_champion_is_refused(store: Store, pair: Pair) -> None:
    with pytest.raises(UserError, match="promote verdict"):
        promote_first(store, pair.new)


def test_an_unregistered_candidate_is_refused(store: Store, pair: Pair) -> None:
    number = store.save_verdict(passing(store, Checkpoint("/nowhere", "f" * 64), pair.old))
    refused(store, number, "rlhf-bench models register")


# The candidate's files


def test_changed_files_are_not_promoted(store: Store, pair: Pair) -> None:
    number = store.save_verdict(passing(store, pair.new, pair.old))
    (Path(pair.new.path) / "model.safetensors").write_bytes(b"changed")
    with pytest.raises(ChangedCheckpoint):
        promote(store, number)
    (Path(pair.new.path) / "model.safetensors").rename(Path(pair.new.path).parent / "away")
    refused(store, number, "no weights")
    Path(pair.new.path).rename(Path(pair.new.path).with_name("away-too"))
    with pytest.raises(MissingData):
        promote(store, number)
    assert len(store.history()) == 1


def after_reading(monkeypatch: pytest.MonkeyPatch, do: Any) -> None:
    """Do this right after the files were read for the first time, before the transaction."""
    read: list[Checkpoint] = []

    def verify(each: Checkpoint) -> None:
        files.verify(each)
        read.append(each)
        if len(read) == 1:
            do(Path(each.path))

    monkeypatch.setattr(moving, "verify", verify)


def touch_in_place(path: Path) -> None:
    weights = path / "model.safetensors"
    before = weights.stat()
    weights.write_bytes(weights.read_bytes()[::-1])  # of the same size
    os.utime(weights, ns=(before.st_atime_ns, before.st_mtime_ns))  # with its old time


def replace_by_another(path: Path) -> None:
    (path / "draft").write_bytes(b"xen")
    (path / "draft").rename(path / "model.safetensors")


CHANGES = {
    "written in place, with its old time": touch_in_place,
    "replaced": replace_by_another,
    "one more": lambda path: (path / "chat_template.jinja").write_text("{{ messages }}"),
    "one less": lambda path: (path / "tokenizer.json").unlink(),
}


@pytest.mark.parametrize("settled_s", [2.0, -3600.0], ids=["files of this moment", "files at rest"])
@pytest.mark.parametrize("change", CHANGES)
def test_files_that_change_between_reading_and_commit_are_not_promoted(
    store: Store, pair: Pair, monkeypatch: pytest.MonkeyPatch, change: str, settled_s: float
) -> None:
    monkeypatch.setattr(moving, "SETTLED_S", settled_s)
    number = store.save_verdict(passing(store, pair.new, pair.old))
    after_reading(monkeypatch, CHANGES[change])
    with pytest.raises(ChangedCheckpoint, match="while it was read"):
        promote(store, number)
    assert len(store.history()) == 1


def test_files_too_fresh_for_their_stamps_to_tell_are_read_again_inside(
    store: Store, pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    number = store.save_verdict(passing(store, pair.new, pair.old))
    known = files.stamps(Path(pair.new.path))
    monkeypatch.setattr(moving, "stamps", lambda path: known)  # as if the change fell in the same tick of the clock
    after_reading(monkeypatch, touch_in_place)
    with pytest.raises(ChangedCheckpoint, match="was registered as"):
        promote(store, number)
    assert len(store.history()) == 1


def test_files_at_rest_are_read_once_and_fresh_ones_twice(
    store: Store, pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[str] = []
    monkeypatch.setattr(moving, "verify", lambda each: read.append(each.digest))
    promote(store, store.save_verdict(passing(store, pair.new, pair.old)))
    assert read == [pair.new.digest] * 2
    monkeypatch.setattr(moving, "SETTLED_S", -3600.0)
    promote(store, store.save_verdict(passing(store, pair.old, pair.new)))
    assert read == [pair.new.digest] * 2 + [pair.old.digest]


def test_others_write_while_the_files_are_read(
    store: Store, pair: Pair, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rlhf_bench.harness.store.database.BUSY_S", 0.5)
    monkeypatch.setattr(moving, "SETTLED_S", -3600.0)
    number = store.save_verdict(passing(store, pair.new, pair.old))

    def write(_: Path) -> None:
        with Store(url) as other:
            other.save_rewards({"k": 1.0})
            other.save_verdict(passing(other, pair.new, pair.old, policy="q" * 64))

    after_reading(monkeypatch, write)
    assert promote(store, number).generation == 2
    assert store.rewards(["k"]) == {"k": 1.0}


def test_a_checkpoint_that_is_registered_elsewhere_meanwhile_is_not_promoted(
    store: Store, pair: Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    number = store.save_verdict(passing(store, pair.new, pair.old))
    after_reading(monkeypatch, lambda path: store.register(replace(pair.new, path=str(tmp_path / "elsewhere"))))
    with pytest.raises(ChangedCheckpoint, match="another place"):
        promote(store, number)
    assert len(store.history()) == 1


def test_what_becomes_void_while_the_files_are_read_is_not_promoted(
    store: Store, pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    number = store.save_verdict(passing(store, pair.new, pair.old))
    run = store.verdict(number).verdict.runs["candidate"]
    after_reading(monkeypatch, lambda path: measured(store, pair.new, {"chat": "f" * 64}, run))
    refused(store, number, "now has other samples")


@pytest.mark.skipif(not Path("/proc/self/mem").exists(), reason="only Linux has a file that always fails to be read")
def test_files_that_the_disk_does_not_give_are_a_fault_and_nobody_moves(store: Store, pair: Pair) -> None:
    number = store.save_verdict(passing(store, pair.new, pair.old))
    (Path(pair.new.path) / "model.safetensors").unlink()
    (Path(pair.new.path) / "model.safetensors").symlink_to("/proc/self/mem")
    with pytest.raises(Fault, match="cannot read") as caught:
        promote(store, number)
    assert "\n" not in str(caught.value)
    assert len(store.history()) == 1


# By force, and back


@pytest.mark.parametrize("reason", ["", "  ", "\n"])
def test_force_without_a_reason_is_refused(store: Store, pair: Pair, reason: str) -> None:
    with pytest.raises(UserError, match="--reason"):
        promote_by_force(store, pair.new.digest, reason)
    assert len(store.history()) == 1


def test_force_is_marked_for_ever(store: Store, pair: Pair) -> None:
    forced = promote_by_force(store, pair.new.digest, "the judge\nwas down")
    assert (forced.how, forced.reason, forced.verdict_id) == ("forced", "forced: the judge was down", None)
    rollback(store, 1, "it was worse")
    assert store.history()[1] == forced
    with pytest.raises(UserError, match="is the champion already"):
        promote_by_force(store, pair.old.digest, "again")


def test_a_first_champion_by_force_is_marked_too(store: Store, tmp_path: Path) -> None:
    one = checkpoint(tmp_path, "one")
    store.register(one)
    assert promote_by_force(store, one.digest, "to begin").how == "forced"


@pytest.mark.parametrize("name", ["1", 1, "base", "digest", "beginning"])
def test_an_earlier_champion_comes_back_as_a_new_generation(store: Store, pair: Pair, name: int | str) -> None:
    store.register(pair.old, "base")
    promote(store, store.save_verdict(passing(store, pair.new, pair.old)))
    to = {"digest": pair.old.digest, "beginning": pair.old.digest[:9]}.get(str(name), name)
    back = rollback(store, to, "it answers\nin rhyme")
    assert (back.checkpoint, back.generation, back.how, back.verdict_id) == (pair.old.digest, 3, "rollback", None)
    assert back.reason == "rollback to generation 1: it answers in rhyme"
    assert store.champion() == back
    assert len(store.history()) == 3


def test_a_number_is_a_generation_before_it_is_a_name(store: Store, pair: Pair) -> None:
    promote(store, store.save_verdict(passing(store, pair.new, pair.old)))
    store.register(pair.new, "1")
    assert rollback(store, "1", "back").checkpoint == pair.old.digest


@pytest.mark.parametrize(
    ("to", "reason", "says"),
    [
        (1, " ", "--reason"),
        (3, "x", "'3' is no generation"),
        ("", "x", "'' is no generation"),
        ("nobody", "x", "rlhf-bench history"),
        ("never", "x", "never was champion"),
        (2, "x", "is the champion already, of generation 2"),
    ],
)
def test_a_rollback_that_cannot_be_is_one_line(
    store: Store, pair: Pair, tmp_path: Path, to: int | str, reason: str, says: str
) -> None:
    store.register(checkpoint(tmp_path, "third"), "never")
    promote(store, store.save_verdict(passing(store, pair.new, pair.old)))
    with pytest.raises(UserError, match=says) as caught:
        rollback(store, to, reason)
    assert "\n" not in str(caught.value)
    assert len(store.history()) == 2


def test_a_rollback_reads_the_files_and_needs_a_champion(store: Store, tmp_path: Path, pair: Pair) -> None:
    promote(store, store.save_verdict(passing(store, pair.new, pair.old)))
    (Path(pair.old.path) / "model.safetensors").write_bytes(b"changed")
    with pytest.raises(ChangedCheckpoint):
        rollback(store, 1, "back")
    with Store(f"sqlite:///{tmp_path}/empty.db") as empty, pytest.raises(UserError, match="no champion"):
        rollback(empty, 1, "back")


def test_what_was_decided_before_a_rollback_promotes_nobody_after_it(store: Store, pair: Pair, tmp_path: Path) -> None:
    third = checkpoint(tmp_path, "third")
    store.register(third)
    early = store.save_verdict(passing(store, third, pair.old))
    promote(store, store.save_verdict(passing(store, pair.new, pair.old)))
    rollback(store, 1, "back")
    refused(store, early, "gate the candidate")
    assert promote(store, store.save_verdict(passing(store, third, pair.old))).generation == 4


# champion.json


def test_the_pointer_says_what_the_store_says(store: Store, pair: Pair, home: Path) -> None:
    moved = promote(store, store.save_verdict(passing(store, pair.new, pair.old)))
    assert said(home) == {
        "checkpoint": pair.new.digest,
        "path": pair.new.path,
        "generation": 2,
        "verdict": moved.verdict_id,
        "how": "verdict",
        "moved_at": moved.moved_at,
    }


@pytest.mark.parametrize("damage", ["{}", "", "\xff", None])
def test_a_pointer_that_says_anything_else_is_mended_by_who_asks(
    store: Store, pair: Pair, home: Path, damage: str | None
) -> None:
    right = (home / "champion.json").read_text()
    if damage is None:
        (home / "champion.json").unlink()
    else:
        (home / "champion.json").write_bytes(damage.encode("latin-1"))
    store.champion()
    assert (home / "champion.json").read_text() == right


def test_the_pointer_follows_a_checkpoint_that_moves(store: Store, pair: Pair, home: Path) -> None:
    store.register(replace(pair.old, path="/elsewhere"))
    store.champion()
    assert said(home)["path"] == "/elsewhere"


def test_a_pointer_without_a_champion_goes(store: Store, home: Path) -> None:
    home.mkdir(exist_ok=True)
    (home / "champion.json").write_text("{}")
    assert store.champion() is None
    assert not (home / "champion.json").exists()


def test_a_store_of_another_place_has_no_pointer(store: Store, pair: Pair, home: Path, tmp_path: Path) -> None:
    before = (home / "champion.json").read_text()
    with Store(f"sqlite:///{tmp_path}/another.db") as other:
        other.register(pair.new)
        promote_first(other, pair.new)
    assert (home / "champion.json").read_text() == before


def test_one_who_saw_an_older_champion_never_writes_it_over_a_newer_one(store: Store, pair: Pair, home: Path) -> None:
    from rlhf_bench.harness.store.pointer import point

    older = (home / "champion.json").read_text()
    promote(store, store.save_verdict(passing(store, pair.new, pair.old)))
    newer = (home / "champion.json").read_text()
    point(home / "champion.json", older, lambda: newer)
    assert (home / "champion.json").read_text() == newer


def test_a_pointer_that_cannot_be_written_stops_nobody(
    store: Store, pair: Pair, home: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (home / "champion.json").unlink()
    (home / "champion.json").mkdir()
    assert promote(store, store.save_verdict(passing(store, pair.new, pair.old))).generation == 2
    assert "cannot write" in caplog.text
    (home / "champion.json").rmdir()
    store.champion()
    assert said(home)["generation"] == 2


# Several at once


def test_of_two_promotions_at_once_one_wins(store: Store, pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    number = store.save_verdict(passing(store, pair.new, pair.old))

    def meanwhile(_: Path) -> None:
        store.set_champion(pair.new.digest, expect_generation=1, verdict_id=None, reason="the other process")

    after_reading(monkeypatch, meanwhile)
    with pytest.raises(LostRace):
        promote(store, number)
    assert [each.reason for each in store.history()] == ["first champion", "the other process"]


def test_of_eight_promoters_with_a_verdict_each_exactly_one_wins(
    store: Store, pair: Pair, url: str, home: Path, tmp_path: Path
) -> None:
    candidates = [checkpoint(tmp_path, f"candidate-{number}") for number in range(8)]
    numbers = []
    for each in candidates:
        store.register(each)
        numbers.append(store.save_verdict(passing(store, each, pair.old)))
    barrier = CONTEXT.Barrier(8)
    workers = [Worker(promote_at_once, str(home), url, number, barrier) for number in numbers]
    answers = [worker.hear() for worker in workers]
    assert [worker.rest() for worker in workers] == [[]] * 8
    assert [worker.exit_code for worker in workers] == [0] * 8
    lost = [answer for answer in answers if answer != 2]
    assert len(lost) == 7
    for kind, line in lost:
        assert kind in ("LostRace", "UserError") and "\n" not in line
        assert "another process moved it" in line or "the champion is now" in line
    winner = assert_sound(store, home)
    assert winner.verdict_id == numbers[answers.index(2)]
    assert len(store.history()) == 2


def test_eight_who_carry_out_one_verdict_move_once_and_are_all_told_so(
    store: Store, pair: Pair, url: str, home: Path
) -> None:
    number = store.save_verdict(passing(store, pair.new, pair.old))
    barrier = CONTEXT.Barrier(8)
    workers = [Worker(promote_at_once, str(home), url, number, barrier) for _ in range(8)]
    assert [worker.rest() for worker in workers] == [[2]] * 8
    assert len(store.history()) == 2
    assert_sound(store, home)


def test_eight_threads_that_roll_back_move_once(store: Store, pair: Pair) -> None:
    promote(store, store.save_verdict(passing(store, pair.new, pair.old)))
    barrier, errors = threading.Barrier(8), []

    def back() -> None:
        barrier.wait(60)
        try:
            rollback(store, 1, "back")
        except (LostRace, UserError) as error:
            errors.append(error)

    threads = [threading.Thread(target=back) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(errors) == 7
    assert [each.how for each in store.history()] == ["first", "verdict", "rollback"]


# Killed


@pytest.mark.parametrize("point", POINTS)
def test_killed_anywhere_the_champion_is_the_old_or_the_new_one_and_the_same_command_ends_it(
    store: Store, pair: Pair, url: str, home: Path, point: str
) -> None:
    number = store.save_verdict(passing(store, pair.new, pair.old))
    worker = Worker(promote_and_die, str(home), url, number, point)
    assert worker.rest() == []
    assert worker.exit_code == -9
    if point == "after the commit":
        assert said(home)["generation"] == 1  # not written any more
    assert assert_sound(store, home).generation == (2 if point in COMMITTED else 1)
    assert promote(store, number).generation == 2
    assert assert_sound(store, home).verdict_id == number
    assert sorted(each.name for each in home.iterdir()) in (
        ["champion.json", "champion.json.lock"],
        ["champion.json"],
    )


def test_killed_between_a_verdict_and_its_ledger_entry_there_is_neither(
    store: Store, pair: Pair, url: str, home: Path
) -> None:
    verdict = passing(store, pair.new, pair.old)
    worker = Worker(save_and_die, str(home), url, verdict)
    assert worker.rest() == []
    assert worker.exit_code == -9
    assert_sound(store, home)
    assert store.verdicts() == []
    assert promote(store, store.save_verdict(verdict, expect_decisions=0)).generation == 2


def test_killed_at_any_moment_of_a_line_of_promotions_nothing_that_was_told_is_lost(
    store: Store, pair: Pair, url: str, home: Path
) -> None:
    moments = random.Random(0)
    told = 1
    for _ in range(8):
        worker = Worker(promote_in_turn, str(home), url, pair.old, pair.new)
        told = worker.hear()
        time.sleep(moments.uniform(0, 0.06))
        worker.kill()
        told = max([told, *worker.rest()])
        assert worker.exit_code == -9
        assert told <= assert_sound(store, home).generation <= told + 1
    assert told > 8


@pytest.mark.parametrize("outcome", ["reject", "inconclusive"])
def test_a_later_verdict_that_says_otherwise_voids_an_earlier_one(store: Store, pair: Pair, outcome: Outcome) -> None:
    verdict = passing(store, pair.new, pair.old)
    number = store.save_verdict(verdict)
    store.save_verdict(replace(verdict, outcome=outcome))
    refused(store, number, "was followed by verdict")


def test_only_the_first_champion_is_an_anchor(store: Store, pair: Pair) -> None:
    verdict = passing(store, pair.new, pair.old)
    number = store.save_verdict(replace(verdict, runs={**verdict.runs, "anchor": verdict.runs["candidate"]}))
    refused(store, number, "held its guards against another anchor")


def test_a_later_verdict_against_a_chosen_anchor_is_another_question(store: Store, pair: Pair) -> None:
    verdict = passing(store, pair.new, pair.old)
    runs = {**verdict.runs, "anchor": verdict.runs["champion"]}
    number = store.save_verdict(replace(verdict, runs=runs))
    chosen = {**runs, "anchor": verdict.runs["candidate"]}
    store.save_verdict(replace(verdict, runs=chosen, outcome="reject", decision=2))
    assert promote(store, number).generation == 2


def test_another_run_of_the_same_anchor_is_the_same_question(store: Store, pair: Pair) -> None:
    verdict = passing(store, pair.new, pair.old)
    number = store.save_verdict(replace(verdict, runs={**verdict.runs, "anchor": verdict.runs["champion"]}))
    later = {**verdict.runs, "anchor": measured(store, pair.old, name="another-run")}
    store.save_verdict(replace(verdict, runs=later, outcome="reject", decision=2))
    refused(store, number, "was followed by verdict")
