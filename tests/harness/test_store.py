"""The store's contract, on SQLite and, where RLHF_BENCH_TEST_POSTGRES gives a URL, on PostgreSQL."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
import threading
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import create_engine, make_url, text

from rlhf_bench.harness.codec import digest, sample_digest
from rlhf_bench.harness.errors import CorruptRow, Fault, LostRace, UnknownName, UserError
from rlhf_bench.harness.store import Run, Store, default_store_url
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

POSTGRES = os.environ.get("RLHF_BENCH_TEST_POSTGRES")
KEYS = [digest(number) for number in range(2000)]
ANSWER = Completion("s", 0, "forty-two", "stop", 3)


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """The URL of an empty database: a file, or a schema that is dropped afterwards."""
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path}/store.db"
        return
    if not POSTGRES:
        pytest.skip("RLHF_BENCH_TEST_POSTGRES is not set to the URL of a PostgreSQL database")
    schema = f"test_{uuid4().hex}"
    server = create_engine(POSTGRES, isolation_level="AUTOCOMMIT")
    with server.connect() as connection:
        connection.execute(text(f"create schema {schema}"))
        own = make_url(POSTGRES).update_query_dict({"options": f"-csearch_path={schema}"})
        yield own.render_as_string(hide_password=False)
        connection.execute(text(f"drop schema {schema} cascade"))
    server.dispose()


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
    third = store.set_champion("a", expect_generation=2, verdict_id=None, reason="rolled back")
    assert store.history() == [first, second, third]
    assert store.champion() == third
    assert [champion.generation for champion in store.history()] == [1, 2, 3]
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
    numbers = [store.save_verdict(VERDICT), store.save_verdict(VERDICT)]
    assert numbers[0] != numbers[1]
    assert [stored.id for stored in store.verdicts()] == numbers
    assert store.verdict(numbers[1]).verdict == VERDICT
    with pytest.raises(UnknownName):
        store.verdict(99)


# Several processes


def child(work: str, url: str, name: str) -> subprocess.Popen[bytes]:
    script = Path(__file__).with_name("store_process.py")
    return subprocess.Popen([sys.executable, str(script), work, url, name], stdout=subprocess.PIPE)


def test_killed_writers_lose_nothing_that_was_acknowledged(url: str) -> None:
    writers = [child("write_and_acknowledge", url, f"writer-{number}") for number in range(4)]
    acknowledged: list[str] = []
    for writer in writers[:2]:
        assert writer.stdout is not None
        acknowledged += [writer.stdout.readline().decode().strip() for _ in range(40)]
        writer.kill()
    for writer in writers:
        acknowledged += writer.communicate(timeout=60)[0].decode().split()
    assert [writer.returncode for writer in writers[2:]] == [0, 0]
    whole = [key for key in acknowledged if len(key) == 64]  # the pipe's last line may have been cut by the kill
    assert len(whole) >= 2 * 480 + 80
    with Store(url) as store:
        found = store.completions(whole)
        assert set(found) == set(whole)
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
    racers = {name: child("compete_for_ten_generations", url, name) for name in names}
    wins = [
        (int(line), name)
        for name, racer in racers.items()
        for line in racer.communicate(timeout=60)[0].decode().split()
    ]
    assert [racer.returncode for racer in racers.values()] == [0] * 4
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
