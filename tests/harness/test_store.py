"""The store's contract, on SQLite and on PostgreSQL."""

from __future__ import annotations

import json
import os
import sqlite3
import threading
import time
import zlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import Connection, Engine, Table, create_engine, inspect, text
from tests.harness.store_process import compete_for_ten_generations, decide_once, write_and_acknowledge
from tests.harness.worker import Worker

from rlhf_bench.harness.codec import digest, sample_digest
from rlhf_bench.harness.errors import CorruptRow, Fault, LostRace, UnknownName, UserError
from rlhf_bench.harness.store import Champion, Decision, Run, Store, default_store_url, migrations, tables
from rlhf_bench.harness.store.database import insert
from rlhf_bench.harness.types import (
    Check,
    Checkpoint,
    Completion,
    Estimate,
    Message,
    Record,
    Report,
    Request,
    Sample,
    Sampling,
    Score,
    Verdict,
)

KEYS = [digest(number) for number in range(2000)]
ANSWER = Completion("s", 0, "forty-two", "stop", 3)


@pytest.fixture
def store(url: str) -> Iterator[Store]:
    with Store(url) as opened:
        yield opened


def run(name: str = "a1b2c3d4e5", **changes: object) -> Run:
    fields = {"model": "m", "checkpoint": "c" * 64, "suite": "s", "protocol": "p", "judge": None, "key": digest(name)}
    return Run(id=name, **{**fields, **changes})  # type: ignore[arg-type]


def record(number: int, benchmark: str = "sums", value: float | None = 1.0) -> Record:
    name = f"{benchmark}/{number}"
    prompt = (Message("system", "Be brief.\x00"), Message("user", f"What is {number} + {number}? \N{SNOWMAN}"))
    sample = Sample(name, (Request(name, prompt, Sampling(stop=("\n",))),), str(2 * number), {"stratum": "x"}, {"n": 1})
    completion = Completion(name, 0, str(2 * number), "stop", 2, logprob=-0.1 * number, greedy=True)
    return Record(benchmark, sample_digest(sample), sample, (completion,), Score(name, value, also={"length": 0.1}))


REPORT = Report(
    run_id="a1b2c3d4e5",
    model="m",
    checkpoint="c" * 64,
    suite="s",
    protocol="p",
    judge=None,
    estimates=(
        Estimate("sums", "accuracy", 0.1 + 0.2, 0.1, 0.5, 1 / 3, 40, 1, method="wilson"),
        Estimate("code", "pass@1", None, None, None, None, 0, 20, why="20 of 20 ungraded (20 × no sandbox)"),
    ),
    manifest={"seed": 1234, "nested": {"list": [1, 2.5, None, "ü"]}},
)
VERDICT = Verdict(
    outcome="inconclusive",
    checks=(Check("sums", "target", "accuracy", 0.01, -0.02, 0.04, 0.0, 0.2, "undecided", reason="400 more"),),
    reasons=("400 more samples would decide",),
    candidate="a" * 64,
    champion="b" * 64,
    policy="demo",
    alpha=0.05,
    runs={"candidate": "r1", "champion": "r2"},
)


# Answers, by content


def test_what_was_saved_is_found_by_its_key_and_nothing_else_is(store: Store) -> None:
    store.save_completions({KEYS[0]: ANSWER})
    store.save_scores({KEYS[1]: Score("s", 0.25, "why", {"f1": 0.5})})
    store.save_rewards({KEYS[2]: -1.5})
    assert store.completions(KEYS) == {KEYS[0]: ANSWER}
    assert store.scores(KEYS) == {KEYS[1]: Score("s", 0.25, "why", {"f1": 0.5})}
    assert store.rewards(KEYS) == {KEYS[2]: -1.5}


def test_the_first_answer_under_a_key_stays(store: Store) -> None:
    store.save_completions({KEYS[0]: ANSWER})
    store.save_completions({KEYS[0]: Completion("s", 0, "another", "stop", 1), KEYS[1]: ANSWER})
    assert store.completions(KEYS[:2]) == {KEYS[0]: ANSWER, KEYS[1]: ANSWER}


def test_engine_errors_and_ungraded_scores_are_not_kept(store: Store) -> None:
    store.save_completions({KEYS[0]: Completion("s", 0, "", "error", 0, why="out of memory")})
    store.save_scores({KEYS[0]: Score("s", None, "no verdict in the reply"), KEYS[1]: Score("s", 0.0)})
    assert store.completions(KEYS) == {}
    assert store.scores(KEYS) == {KEYS[1]: Score("s", 0.0)}


def test_thousands_of_keys_are_looked_up_at_once(store: Store) -> None:
    store.save_rewards({key: float(number) for number, key in enumerate(KEYS)})
    assert store.rewards(KEYS) == {key: float(number) for number, key in enumerate(KEYS)}


def test_a_value_that_json_cannot_say_is_a_fault_and_nothing_of_its_batch_is_stored(store: Store) -> None:
    with pytest.raises(Fault, match="cannot be stored"):
        store.save_rewards({KEYS[0]: 1.0, KEYS[1]: float("nan")})
    with pytest.raises(Fault, match="cannot be stored"):
        store.save_completions({KEYS[0]: Completion("s", 0, "\ud800", "stop", 1)})
    assert store.rewards(KEYS[:2]) == {} == store.completions(KEYS[:2])


finite = st.floats(allow_nan=False, allow_infinity=False)
words = st.text(st.characters(exclude_categories=["Cs"]))


@settings(deadline=None)
@given(
    text=words,
    logprob=st.none() | finite,
    value=finite,
    also=st.dictionaries(words, finite, max_size=3),
)
def test_every_answer_and_grade_comes_back_as_it_was(
    text: str, logprob: float | None, value: float, also: dict[str, float], tmp_path_factory: pytest.TempPathFactory
) -> None:
    completion = Completion("s", 3, text, "length", 7, logprob, greedy=False, why=text)
    score = Score(text, value, text, also)
    with Store(f"sqlite:///{tmp_path_factory.getbasetemp()}/roundtrip.db") as store:
        store.save_completions({digest(completion): completion})
        store.save_scores({digest(score): score})
        assert store.completions([digest(completion)]) == {digest(completion): completion}
        assert store.scores([digest(score)]) == {digest(score): score}


# Corruption (a row is damaged behind the store's back, in SQLite)


def damage(path: Path, table: str, column: str = "value", value: object = b"\x00 not a value") -> None:
    connection = sqlite3.connect(path)
    with connection:
        changed = connection.execute(f"update {table} set {column} = ?", [value]).rowcount
    connection.close()
    assert changed > 0


@pytest.mark.parametrize("value", [b"", b"\x00", b"not compressed", zlib.compress(b"[1"), zlib.compress(b"[1]")])
def test_a_row_that_does_not_read_back_is_no_answer_and_makes_room_for_a_new_one(tmp_path: Path, value: bytes) -> None:
    with Store(f"sqlite:///{tmp_path}/store.db") as store:
        store.save_completions({KEYS[0]: ANSWER})
        damage(tmp_path / "store.db", "completions", value=value)
        assert store.completions(KEYS[:1]) == {}
        assert store.dropped == 1
        store.save_completions({KEYS[0]: ANSWER})
        assert store.completions(KEYS[:1]) == {KEYS[0]: ANSWER}


def test_no_flipped_bit_ever_becomes_another_answer(tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    with Store(f"sqlite:///{path}") as store:
        store.save_rewards({KEYS[0]: 1.25})
        connection = sqlite3.connect(path)
        (good,) = connection.execute("select value from rewards").fetchone()
        connection.close()
        for position in range(8 * len(good)):
            bad = bytearray(good)
            bad[position // 8] ^= 1 << position % 8
            damage(path, "rewards", value=bytes(bad))
            assert store.rewards(KEYS[:1]) in ({}, {KEYS[0]: 1.25}), position  # some bits of a stream mean nothing
            store.save_rewards({KEYS[0]: 1.25})


@pytest.mark.parametrize("table", ["records", "samples"])
@pytest.mark.parametrize("value", [b"\x00", zlib.compress(b"[1]")], ids=["not compressed", "another value"])
def test_a_corrupt_record_names_its_run_and_sample_and_saving_it_again_mends_it(
    tmp_path: Path, table: str, value: bytes
) -> None:
    with Store(f"sqlite:///{tmp_path}/store.db") as store:
        store.start_run(run())
        store.save_records("a1b2c3d4e5", [record(7)])
        damage(tmp_path / "store.db", table, value=value)
        with pytest.raises(CorruptRow, match=r"sums/7.*a1b2c3d4e5"):
            store.records("a1b2c3d4e5")
        store.save_records("a1b2c3d4e5", [record(7)])
        assert store.records("a1b2c3d4e5") == [record(7)]


def test_a_corrupt_verdict_or_report_is_never_given_out(tmp_path: Path) -> None:
    with Store(f"sqlite:///{tmp_path}/store.db") as store:
        number = store.save_verdict(VERDICT)
        store.start_run(run())
        store.finish_run("a1b2c3d4e5", REPORT)
        damage(tmp_path / "store.db", "verdicts")
        damage(tmp_path / "store.db", "runs", "report")
        with pytest.raises(CorruptRow, match=f"verdict {number}"):
            store.verdict(number)
        with pytest.raises(CorruptRow, match="report of run a1b2c3d4e5"):
            store.report("a1b2c3d4e5")


# Runs


def test_a_run_and_its_report_come_back_as_they_were(store: Store) -> None:
    started = run(judge="rm", settings={"limit": 20, "suite": "demo"}, manifest=REPORT.manifest, created="2026-01-01")
    store.start_run(started)
    assert store.run("a1b2c3d4e5") == started
    store.finish_run("a1b2c3d4e5", REPORT)
    finished = store.run("a1b2")
    assert (finished.status, finished.report) == ("complete", REPORT)
    assert finished.finished is not None
    store.finish_run("a1b2c3d4e5", REPORT)
    assert store.run("a1b2").finished == finished.finished
    assert store.report("a1b2") == REPORT


def test_a_run_that_is_started_again_keeps_its_date_and_its_report_and_is_the_latest(store: Store) -> None:
    for name in ("first", "second"):
        store.start_run(run(name, created=name))
        time.sleep(0.01)
    store.finish_run("first", REPORT)
    assert [found.id for found in store.runs()] == ["second", "first"]
    store.start_run(run("first", created="later", settings={"dtype": "float32"}))
    again = store.run("latest")
    assert (again.id, again.created, again.status, again.report) == ("first", "first", "complete", REPORT)
    assert again.settings == {"dtype": "float32"}
    assert store.run("latest~1").id == "second"


def test_a_run_that_is_not_there_is_one_line_that_helps(store: Store) -> None:
    with pytest.raises(UserError, match="0 runs"):
        store.run("latest")
    store.start_run(run("abc1111111"))
    store.start_run(run("abc2222222"))
    with pytest.raises(UserError, match="start of 2 runs"):
        store.run("abc")
    with pytest.raises(UnknownName, match="Did you mean 'abc1111111'"):
        store.run("abd1111111")
    with pytest.raises(UnknownName):
        store.run("")
    with pytest.raises(UserError, match="latest~2"):
        store.run("latest~2")
    with pytest.raises(UserError, match="rlhf-bench runs resume abc1111111"):
        store.report("abc1111111")
    with pytest.raises(UnknownName):
        store.finish_run("zzz", REPORT)
    with pytest.raises(UnknownName):
        store.save_records("zzz", [record(1)])


def test_records_come_back_in_their_order_and_one_saved_again_is_replaced_in_its_place(store: Store) -> None:
    store.start_run(run())
    store.save_records("a1b2c3d4e5", [record(number) for number in (3, 1, 2)])
    store.save_records("a1b2c3d4e5", [record(1, "code")])
    store.save_records("a1b2c3d4e5", [record(1, value=None)])
    assert store.records("a1b2") == [record(3), record(1, value=None), record(2), record(1, "code")]
    assert store.records("latest", "code") == [record(1, "code")]


def test_two_runs_hold_different_answers_to_one_stored_sample(store: Store) -> None:
    for name, value in (("one", 1.0), ("two", 0.0)):
        store.start_run(run(name))
        store.save_records(name, [record(5, value=value)])
    assert store.records("one") == [record(5, value=1.0)]
    assert store.records("two") == [record(5, value=0.0)]


def test_runs_that_are_read_with_the_same_known_samples_share_them(store: Store) -> None:
    for name, numbers in (("one", (5, 6)), ("two", (6, 7))):
        store.start_run(run(name))
        store.save_records(name, [record(number) for number in numbers])
    known: dict[str, Sample] = {}
    one, two = (store.records(name, known=known) for name in ("one", "two"))
    assert (one, two) == (store.records("one"), store.records("two"))
    assert one[1].sample is two[0].sample and len(known) == 3


# Checkpoints


def test_a_checkpoint_is_found_by_digest_prefix_and_alias(store: Store) -> None:
    base = Checkpoint("/base", "a" * 64)
    tuned = Checkpoint("/tuned", "ab" + "c" * 62, parent=base.digest, recipe={"beta": 0.1})
    store.register(base)
    store.register(base, "base")
    store.register(tuned, "tuned")
    store.register(tuned, "best")
    assert store.checkpoints() == [(base, ("base",)), (tuned, ("best", "tuned"))]
    assert store.aliases() == {"base": base.digest, "best": tuned.digest, "tuned": tuned.digest}
    assert store.alias("tuned") == tuned == store.checkpoint("abc") == store.checkpoint(tuned.digest)
    assert store.alias("other") is None is store.checkpoint("f")
    with pytest.raises(UserError, match="start of 2 checkpoints"):
        store.checkpoint("a")


def test_a_checkpoint_registered_again_takes_the_new_path_and_keeps_its_lineage(store: Store) -> None:
    store.register(Checkpoint("/old", "a" * 64, parent="b" * 64, recipe={"beta": 0.1}), "mine")
    store.register(Checkpoint("/new", "a" * 64))
    assert store.alias("mine") == Checkpoint("/new", "a" * 64, parent="b" * 64, recipe={"beta": 0.1})


def test_an_alias_moves(store: Store) -> None:
    store.register(Checkpoint("/one", "1" * 64), "mine")
    store.register(Checkpoint("/two", "2" * 64), "mine")
    assert store.aliases() == {"mine": "2" * 64}


# The champion


def register(store: Store, *names: str) -> None:
    for name in names:
        store.register(Checkpoint(f"/{name}", name))


def test_the_champion_moves_one_generation_at_a_time_and_all_are_remembered(store: Store) -> None:
    register(store, "a", "b")
    assert store.champion() is None
    assert store.history() == []
    first = store.set_champion("a", expect_generation=0, verdict_id=None, reason="start")
    number = store.save_verdict(VERDICT)
    second = store.set_champion("b", expect_generation=1, verdict_id=number, reason="better")
    third = store.set_champion("a", expect_generation=2, verdict_id=None, reason="rolled back", how="rollback")
    assert store.history() == [first, second, third]
    assert store.champion() == third
    assert [(champion.generation, champion.how) for champion in store.history()] == [
        (1, "first"),
        (2, "verdict"),
        (3, "rollback"),
    ]
    assert (second.checkpoint, second.verdict_id, second.reason) == ("b", number, "better")


@pytest.mark.parametrize("stale", [0, 2, 7])
def test_a_stale_generation_loses_and_changes_nothing(store: Store, stale: int) -> None:
    register(store, "a", "b")
    before = store.set_champion("a", expect_generation=0, verdict_id=None, reason="start")
    with pytest.raises(LostRace):
        store.set_champion("b", expect_generation=stale, verdict_id=None, reason="late")
    assert store.history() == [before]


def test_only_a_registered_checkpoint_and_a_stored_verdict_make_a_champion(store: Store) -> None:
    register(store, "a")
    with pytest.raises(UserError, match="not registered"):
        store.set_champion("unknown", expect_generation=0, verdict_id=None, reason="")
    with pytest.raises(UserError, match="no verdict 9"):
        store.set_champion("a", expect_generation=0, verdict_id=9, reason="")
    assert store.champion() is None


def test_of_eight_threads_exactly_one_wins_each_generation(url: str) -> None:
    names = [f"checkpoint-{number}" for number in range(8)]
    with Store(url) as store:
        register(store, *names)
    barrier = threading.Barrier(8)
    wins: list[tuple[int, str]] = []

    def compete(name: str) -> None:
        with Store(url) as mine:
            for generation in range(6):
                barrier.wait(timeout=60)
                try:
                    mine.set_champion(name, expect_generation=generation, verdict_id=None, reason="race")
                except LostRace:
                    continue
                wins.append((generation + 1, name))

    threads = [threading.Thread(target=compete, args=(name,)) for name in names]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with Store(url) as store:
        assert sorted(wins) == [(champion.generation, champion.checkpoint) for champion in store.history()]
    assert [generation for generation, _ in sorted(wins)] == [1, 2, 3, 4, 5, 6]


def test_verdicts_come_back_as_they_were_under_their_numbers(store: Store) -> None:
    verdicts = [VERDICT, replace(VERDICT, generation=3, items={"sums": "d1"}, decision=1, spent=0.1 + 0.2)]
    numbers = [store.save_verdict(verdict) for verdict in verdicts]
    assert numbers[0] < numbers[1]
    assert [stored.id for stored in store.verdicts()] == numbers
    assert [store.verdict(number).verdict for number in numbers] == verdicts
    with pytest.raises(UnknownName):
        store.verdict(99)


# The alpha ledger


def on(items: dict[str, str], spent: float = 0.01, name: str = "r1", **changes: object) -> Verdict:
    fields = {"items": items, "spent": spent, "runs": {"candidate": name, "champion": "r2"}, **changes}
    return replace(VERDICT, **fields)  # type: ignore[arg-type]


def test_a_decision_stands_in_the_ledger_with_what_it_spent_on_which_samples(store: Store) -> None:
    first = store.save_verdict(on({"sums": "d1", "code": "d2"}, 0.03, "r1", decision=1))
    second = store.save_verdict(on({"code": "d2"}, 0.0075, "r3", decision=2))
    both = [Decision(first, 0.03, {"sums": "d1", "code": "d2"}, 1), Decision(second, 0.0075, {"code": "d2"}, 2)]
    assert store.decisions({"code": "d2", "chat": "d9"}) == both
    assert store.decisions({"sums": "d1"}) == both[:1]


def test_other_samples_of_a_benchmark_begin_a_ledger_of_their_own(store: Store) -> None:
    store.save_verdict(on({"sums": "d1"}))
    assert store.decisions({"sums": "d2"}) == store.decisions({}) == []
    assert len(store.decisions({"by another name": "d1"})) == 1


def test_a_verdict_that_says_no_samples_has_no_place_in_the_ledger(store: Store) -> None:
    number = store.save_verdict(VERDICT)
    with store.line() as line:
        assert line.decision(number) is None


def test_the_same_verdict_again_keeps_its_number_and_spends_nothing(store: Store) -> None:
    verdict = on({"sums": "d1"}, 0.03)
    number = store.save_verdict(verdict, expect_decisions=0)
    assert store.save_verdict(replace(verdict, spent=0.01, alpha=0.01), expect_decisions=0) == number
    assert [each.spent for each in store.decisions({"sums": "d1"})] == [0.03]


@pytest.mark.parametrize(
    "changes",
    [
        {"outcome": "reject"},
        {"generation": 2},
        {"policy": "another"},
        {"runs": {"candidate": "r9", "champion": "r2"}},
        {"candidate": "e" * 64},
        {"items": {"sums": "d1", "code": "d2"}},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_a_verdict_about_anything_else_is_another_decision(store: Store, changes: dict[str, Any]) -> None:
    verdict = on({"sums": "d1"})
    assert store.save_verdict(verdict) != store.save_verdict(replace(verdict, **changes))
    assert len(store.decisions({"sums": "d1"})) == 2


@pytest.mark.parametrize("expected", [0, 2])
def test_a_verdict_that_counted_other_decisions_loses_and_leaves_nothing(store: Store, expected: int) -> None:
    store.save_verdict(on({"sums": "d1"}))
    with pytest.raises(LostRace, match="run this gate again"):
        store.save_verdict(on({"sums": "d1"}, name="r3"), expect_decisions=expected)
    assert len(store.verdicts()) == len(store.decisions({"sums": "d1"})) == 1


def test_a_verdict_is_never_stored_without_its_ledger_entry(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(engine: Engine, table: Table[Any]) -> Any:
        if table.name == "decided_items":
            raise Fault("the disk is full")
        return insert(engine, table)

    monkeypatch.setattr("rlhf_bench.harness.store.line.insert", fail)
    with pytest.raises(Fault):
        store.save_verdict(on({"sums": "d1"}))
    monkeypatch.undo()
    assert store.verdicts() == [] == store.decisions({"sums": "d1"})
    assert store.save_verdict(on({"sums": "d1"}), expect_decisions=0) >= 1


def test_eight_gates_at_once_never_spend_as_the_same_decision(url: str) -> None:
    Store(url).close()
    gates = [Worker(decide_once, url, on({"sums": "d1"}, name=f"run-{number}")) for number in range(8)]
    numbers = [number for gate in gates for number in gate.rest()]
    assert [gate.exit_code for gate in gates] == [0] * 8
    with Store(url) as store:
        ledger = store.decisions({"sums": "d1"})
        assert [each.decision for each in ledger] == [1, 2, 3, 4, 5, 6, 7, 8]
        assert [each.number for each in ledger] == sorted(numbers)
        assert sum(each.spent for each in ledger) <= 0.05
        assert [store.verdict(each.number).verdict.spent for each in ledger] == [each.spent for each in ledger]


some_items = st.dictionaries(st.sampled_from("abc"), st.sampled_from(["d1", "d2"]), max_size=3)


@given(decided=st.lists(some_items, max_size=6), asked=some_items)
@settings(deadline=None, max_examples=40)
def test_the_ledger_finds_exactly_the_decisions_that_share_samples(
    decided: list[dict[str, str]], asked: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> None:
    with Store(f"sqlite:///{tmp_path_factory.mktemp('ledger')}/store.db") as store:
        numbers = [store.save_verdict(on(items, name=f"r{place}")) for place, items in enumerate(decided)]
        shared = [n for n, items in zip(numbers, decided, strict=True) if set(asked.values()) & set(items.values())]
        assert [each.number for each in store.decisions(asked)] == shared


# Several processes


def test_killed_writers_lose_nothing_that_was_acknowledged(url: str) -> None:
    Store(url).close()
    batches = (100_000, 100_000, 60, 60)  # the first two are killed long before they are done
    writers = [Worker(write_and_acknowledge, url, f"writer-{i}", count) for i, count in enumerate(batches)]
    acknowledged: list[str] = []
    for writer in writers[:2]:
        for _ in range(5):
            acknowledged += writer.hear()
        writer.kill()
    for writer in writers:
        acknowledged += [key for keys in writer.rest() for key in keys]
    assert [writer.exit_code for writer in writers] == [-9, -9, 0, 0]
    assert len(acknowledged) >= 2 * 480 + 80
    with Store(url) as store:
        found = store.completions(acknowledged)
        assert set(found) == set(acknowledged)
        assert all(digest(completion) == key for key, completion in found.items())
        assert store.dropped == 0
        if url.startswith("sqlite"):
            with create_engine(url).connect() as connection:
                assert connection.execute(text("pragma integrity_check")).scalar() == "ok"
                connection.engine.dispose()


def test_of_four_processes_exactly_one_wins_each_generation(url: str) -> None:
    names = [f"process-{number}" for number in range(4)]
    with Store(url) as store:
        register(store, *names)
    racers = {name: Worker(compete_for_ten_generations, url, name) for name in names}
    wins = [(generation, name) for name, racer in racers.items() for generation in racer.rest()]
    assert [racer.exit_code for racer in racers.values()] == [0] * 4
    with Store(url) as store:
        assert sorted(wins) == [(champion.generation, champion.checkpoint) for champion in store.history()]
    assert [generation for generation, _ in sorted(wins)] == list(range(1, 11))


def test_many_can_make_the_same_new_store_at_once(url: str) -> None:
    failures: list[Exception] = []
    barrier = threading.Barrier(8)

    def begin(number: int) -> None:
        barrier.wait(timeout=60)
        try:
            with Store(url) as store:
                store.save_rewards({KEYS[number]: float(number)})
        except Exception as error:
            failures.append(error)

    threads = [threading.Thread(target=begin, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    with Store(url) as store:
        assert len(store.rewards(KEYS[:8])) == 8


def test_one_store_serves_many_threads(store: Store) -> None:
    def save(first: int) -> None:
        for number in range(first, first + 20):
            store.save_rewards({KEYS[number]: float(number)})
            assert store.rewards([KEYS[number]]) == {KEYS[number]: float(number)}

    threads = [threading.Thread(target=save, args=(20 * number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(store.rewards(KEYS[:160])) == 160


# Opening


@pytest.mark.parametrize("bad", ["", "nonsense", "mysql://u:secret@host/db", "sqlite+nothing:///x", "redis://x"])
def test_a_url_that_cannot_be_a_store_is_a_user_error_without_its_password(bad: str) -> None:
    with pytest.raises(UserError, match="sqlite:///") as caught:
        Store(bad)
    assert "secret" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_database_that_does_not_answer_is_a_fault_without_its_password() -> None:
    pytest.importorskip("psycopg", reason="psycopg (the postgres extra) is not installed")
    with pytest.raises(Fault) as caught:
        Store("postgresql://user:secret@127.0.0.1:1/name?connect_timeout=2")
    assert "secret" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_file_that_is_no_database_is_a_fault_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "store.db").write_text("this is a text file, and a long enough one to have a header\n" * 40)
    with pytest.raises(Fault, match="not a database") as caught:
        Store(f"sqlite:///{tmp_path}/store.db")
    assert "\n" not in str(caught.value)
    with pytest.raises(Fault, match="folder"):
        Store(f"sqlite:///{tmp_path}/store.db/inside/store.db")
    with pytest.raises(Fault, match="unable to open"):
        Store(f"sqlite:///{tmp_path}")


def test_a_full_disk_is_a_fault_and_what_was_stored_before_stays(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/store.db"
    with Store(url) as store:
        store.save_completions({KEYS[0]: ANSWER})
        with store._engine.connect() as connection:
            pages = connection.exec_driver_sql("pragma page_count").scalar_one()
        with store._engine.connect() as connection:
            connection.exec_driver_sql(f"pragma max_page_count = {pages}")
        noise = {key: Completion("s", 0, os.urandom(3000).hex(), "stop", 1) for key in KEYS[1:200]}
        with pytest.raises(Fault, match="full"):
            store.save_completions(noise)
        assert store.completions(KEYS) == {KEYS[0]: ANSWER}


def test_a_lock_that_is_held_too_long_is_a_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rlhf_bench.harness.store.database.BUSY_S", 0.1)
    with Store(f"sqlite:///{tmp_path}/store.db") as store:
        other = sqlite3.connect(tmp_path / "store.db", isolation_level=None)
        other.execute("begin immediate")
        assert store.completions(KEYS[:1]) == {}
        with pytest.raises(Fault, match="locked"):
            store.save_completions({KEYS[0]: ANSWER})
        other.execute("rollback")
        other.close()
        store.save_completions({KEYS[0]: ANSWER})
        assert store.completions(KEYS[:1]) == {KEYS[0]: ANSWER}


def test_a_store_of_a_newer_version_is_left_alone(url: str) -> None:
    with Store(url) as store, store._engine.begin() as connection:
        connection.execute(text("update meta set value = '999' where name = 'schema'"))
    with pytest.raises(UserError, match="newer rlhf-bench"):
        Store(url)


OLD = {
    "outcome": "promote", "checks": [], "reasons": ["better"], "candidate": "b", "champion": "a", "policy": "p",
    "alpha": 0.05, "runs": {"candidate": "r1", "champion": "r2"},
}  # fmt: skip


def make_schema_1(url: str) -> None:
    """A store as rlhf-bench 0.1.0 left it: a first champion, one by verdict 1, one by force, one by an unknown hand."""
    postgres = url.startswith("postgresql")
    script = Path(__file__).with_name("schema_1.sql").read_text()
    if postgres:
        script = script.replace("BLOB", "BYTEA").replace("verdicts ( id INTEGER", "verdicts ( id SERIAL")
    engine = create_engine(url)
    with engine.begin() as connection:
        for statement in script.split(";"):
            if statement.strip():
                connection.exec_driver_sql(statement)
        connection.execute(text("insert into meta values ('schema', '1')"))
        recipe = {"recipe": zlib.compress(b"{}")}
        for name in "abc":
            connection.execute(text(f"insert into checkpoints values ('{name}', '/{name}', null, :recipe, 0)"), recipe)
        value = {"value": zlib.compress(json.dumps(OLD).encode())}
        connection.execute(text("insert into verdicts (value, created) values (:value, '2026-11-01')"), value)
        for row in ("1, 'a', null, 'first'", "2, 'b', 1, 'better'", "3, 'c', null, 'forced: x'", "4, 'a', null, ''"):
            connection.execute(text(f"insert into champions values ({row}, '2026-11-0{row[0]}')"))
    engine.dispose()


def test_a_store_of_schema_1_opens_with_all_that_it_holds(url: str) -> None:
    make_schema_1(url)
    for _ in range(2):  # once to bring it up to date, once as it then is
        with Store(url) as store:
            assert store.verdict(1).verdict == Verdict(**OLD | {"checks": (), "reasons": ("better",)})  # type: ignore[arg-type]
            assert [(each.checkpoint, each.how) for each in store.history()] == [
                ("a", "first"),
                ("b", "verdict"),
                ("c", "forced"),
                ("a", "forced"),
            ]
            assert store.history()[1] == Champion("b", 2, 1, "2026-11-02", "better", "verdict")
            assert store.decisions({"sums": "d1"}) == []


def test_a_store_of_schema_1_works_on_as_a_new_one(url: str) -> None:
    make_schema_1(url)
    with Store(url) as store:
        number = store.save_verdict(on({"sums": "d1"}))
        assert number > 1
        assert store.save_verdict(on({"sums": "d1"})) == number
        assert [each.number for each in store.decisions({"sums": "d1"})] == [number]
        assert store.set_champion("b", expect_generation=4, verdict_id=number, reason="").how == "verdict"


def test_an_old_and_a_new_store_have_the_same_columns(url: str, tmp_path: Path) -> None:
    make_schema_1(url)
    with Store(url) as old:
        for table in tables.metadata.sorted_tables:
            found = {each["name"]: each["nullable"] for each in inspect(old._engine).get_columns(table.name)}
            assert found == {column.name: bool(column.nullable) for column in table.columns}, table.name


def test_a_migration_that_fails_leaves_the_store_as_it_was(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    make_schema_1(url)
    steps = dict(migrations._STEPS)

    def break_off(connection: Connection) -> None:
        steps[1](connection)
        raise Fault("the disk is full")

    monkeypatch.setattr(migrations, "_STEPS", {1: break_off})
    with pytest.raises(Fault, match="full"):
        Store(url)
    monkeypatch.undo()
    with Store(url) as store:
        assert [each.how for each in store.history()] == ["first", "verdict", "forced", "forced"]


def test_many_can_bring_the_same_old_store_up_to_date_at_once(url: str) -> None:
    make_schema_1(url)
    found: list[int] = []
    barrier = threading.Barrier(6)

    def begin() -> None:
        barrier.wait(timeout=60)
        with Store(url) as store:
            found.append(len(store.history()))

    threads = [threading.Thread(target=begin) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [4] * 6


def test_sqlite_runs_in_wal_with_foreign_keys_and_syncs_fully_only_for_the_champion(tmp_path: Path) -> None:
    from sqlalchemy import event

    with Store(f"sqlite:///{tmp_path}/store.db") as store:
        said: list[str] = []
        event.listen(store._engine, "before_cursor_execute", lambda c, cursor, statement, *rest: said.append(statement))
        with store._engine.connect() as connection:
            assert connection.exec_driver_sql("pragma journal_mode").scalar() == "wal"
            assert connection.exec_driver_sql("pragma foreign_keys").scalar() == 1
        said.clear()
        store.save_completions({KEYS[0]: ANSWER})
        assert said[:2] == ["PRAGMA synchronous = NORMAL", "BEGIN IMMEDIATE"]
        register(store, "a")
        said.clear()
        store.set_champion("a", expect_generation=0, verdict_id=None, reason="start")
        assert said[:2] == ["PRAGMA synchronous = FULL", "BEGIN IMMEDIATE"]


def test_the_default_store_is_in_the_home_and_both_can_be_moved(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("RLHF_BENCH_STORE", raising=False)
    monkeypatch.delenv("RLHF_BENCH_HOME", raising=False)
    assert default_store_url() == f"sqlite:///{tmp_path}/.rlhf-bench/store.db"
    Store(default_store_url()).close()
    assert (tmp_path / ".rlhf-bench" / "store.db").exists()
    monkeypatch.setenv("RLHF_BENCH_HOME", "/elsewhere")
    assert default_store_url() == "sqlite:////elsewhere/store.db"
    monkeypatch.setenv("RLHF_BENCH_STORE", "postgresql://host/name")
    assert default_store_url() == "postgresql://host/name"
