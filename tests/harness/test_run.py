"""What an evaluation promises: nothing asked twice, nothing invented, the same records after any interruption.

The engines, benchmarks and the judge here are small but whole implementations of the one-method edges. Run as a script
(`python test_run.py KILL URL AFTER`), this file evaluates and kills itself with SIGKILL in the middle.
"""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar

import pytest

from rlhf_bench.harness.codec import digest, request_key, sample_digest
from rlhf_bench.harness.errors import Fault, UserError
from rlhf_bench.harness.judges import Judge
from rlhf_bench.harness.progress import Advance
from rlhf_bench.harness.run import evaluate
from rlhf_bench.harness.store import Store
from rlhf_bench.harness.types import (
    Battle,
    Benchmark,
    Completion,
    EvalProtocol,
    Graded,
    Message,
    Report,
    Request,
    Sample,
    Sampling,
    Score,
    Suite,
)

PROTOCOL = EvalProtocol("plain", shots={"sums": 0}, seed=7)
N = 12


class Calculator:
    """Answers "a + b": rightly, but for multiples of 5; prefers the continuation that is right."""

    name = "calculator"
    checkpoint = "c" * 64
    manifest: ClassVar = {"kind": "calculator"}

    def __init__(
        self, weights: str = "w1", fails: frozenset[str] = frozenset(), stop: Callable[[int], None] | None = None
    ):
        self.identity = digest(["calculator", weights])
        self.fails = fails
        self.stop = stop
        self.asked: list[Request] = []
        self.calls = 0

    def generate(self, requests: Sequence[Request]) -> Iterator[Completion]:
        self.calls += 1
        for request in reversed(requests):
            if self.stop:
                self.stop(len(self.asked))
            self.asked.append(request)
            yield self._answer(request)

    def _answer(self, request: Request) -> Completion:
        if request.sample_id in self.fails:
            return Completion(request.sample_id, request.index, "", "error", 0, why="out of memory")
        question = request.prompt if isinstance(request.prompt, str) else request.prompt[-1].content
        a, b = (int(word) for word in question.split() if word.isdigit())
        total = str(a + b + (a % 5 == 0))
        if request.continuation is None:
            return Completion(request.sample_id, request.index, total, "stop", len(total))
        right = request.continuation == total
        return Completion(request.sample_id, request.index, "", "stop", 1, -0.5 if right else -2.25, right)


class LongerWins:
    """Prefers the longer of two answers; counts the battles that it was paid for."""

    name = "longer-wins"
    identity = digest("longer-wins")

    def __init__(self, stop: Callable[[int], None] | None = None, silent_on: frozenset[str] = frozenset()):
        self.stop = stop
        self.silent_on = silent_on
        self.judged: list[str] = []

    def prefer(self, battles: Sequence[Battle]) -> Iterator[Score]:
        for battle in battles:
            if self.stop:
                self.stop(len(self.judged))
            self.judged.append(battle.sample_id)
            if battle.sample_id in self.silent_on:
                yield Score(battle.sample_id, None, "no verdict in the reply")
            else:
                yield Score(battle.sample_id, 1 / (1 + len(battle.baseline) / len(battle.answer)))


def load_sums(protocol: EvalProtocol) -> list[Sample]:
    return [
        Sample(f"sums/{a}", (Request(f"sums/{a}", f"{a} + {a} =", Sampling(8, seed=protocol.seed)),), str(2 * a))
        for a in range(N)
    ]


def load_choices(protocol: EvalProtocol) -> list[Sample]:
    """The choices of a question are two requests; two questions each are about one passage."""
    return [
        Sample(
            f"choices/{a}",
            tuple(Request(f"choices/{a}", f"{a} + 1 =", continuation=str(a + i), index=i) for i in (1, 2)),
            str(a + 1),
            {"cluster": f"passage {a // 2}"},
        )
        for a in range(N)
    ]


def load_duels(protocol: EvalProtocol) -> list[Sample]:
    def prompt(a: int) -> tuple[Message, ...]:
        return (Message("user", f"What is {a} + 990 ?"),)

    return [
        Sample(
            f"duels/{a}", (Request(f"duels/{a}", prompt(a), Sampling(8)),), "999", row={"baseline": "x" * (1 + a % 3)}
        )
        for a in range(N)
    ]


def grade_sums(answered: Sequence[Graded], judge: Any) -> Iterator[Score]:
    for sample, (completion,) in answered:
        yield Score(sample.id, float(completion.text == sample.reference), also={"length": float(len(completion.text))})


def grade_choices(answered: Sequence[Graded], judge: Any) -> Iterator[Score]:
    for sample, (first, second) in reversed(answered):
        assert first.logprob is not None and second.logprob is not None
        right = float(first.logprob > second.logprob)
        yield Score(sample.id, right, also={"greedy": float(bool(first.greedy))})


def grade_duels(answered: Sequence[Graded], judge: Judge) -> Iterator[Score]:
    return judge.prefer(
        [Battle(s.id, s.prompt, c.text, s.row["baseline"]) for s, (c,) in answered if not isinstance(s.prompt, str)]
    )


SUMS = Benchmark("sums", "1", "exact", "binary", N, "", load_sums, grade_sums)
CHOICES = Benchmark("choices", "1", "acc", "binary", N, "", load_choices, grade_choices)
DUELS = Benchmark("duels", "1", "win_rate", "continuous", N, "", load_duels, grade_duels, judged=True)
SUITE = Suite("three", (SUMS, CHOICES, DUELS))
REQUESTS = 4 * N


def run(store: Store, engine: Calculator, judge: LongerWins | None = None, suite: Suite = SUITE, **more: Any) -> Report:
    return evaluate(suite, engine, protocol=PROTOCOL, store=store, judge=judge or LongerWins(), **more)


def without_dates(report: Report) -> Report:
    return replace(report, manifest={key: value for key, value in report.manifest.items() if key != "created"})


def mean(report: Report, metric: str) -> float | None:
    (found,) = [estimate.mean for estimate in report.estimates if estimate.metric == metric]
    return found


# What it finds


def test_every_sample_becomes_a_record_and_every_metric_an_estimate(store: Store) -> None:
    engine, judge = Calculator(), LongerWins()
    report = run(store, engine, judge)
    records = store.records(report.run_id)
    assert [record.sample for record in records] == [s for b in SUITE.benchmarks for s in b.load(PROTOCOL)]
    assert all(record.digest == sample_digest(record.sample) for record in records)
    assert all(record.score.sample_id == record.sample.id for record in records)
    for record in records:
        assert [c.index for c in record.completions] == [r.index for r in record.sample.requests]
    assert [(e.benchmark, e.metric) for e in report.estimates] == [
        ("sums", "exact"), ("sums", "length"), ("choices", "acc"), ("choices", "greedy"), ("duels", "win_rate"),
    ]  # fmt: skip
    assert mean(report, "exact") == (N - 3) / N  # 0, 5 and 10 are answered wrongly
    assert mean(report, "length") == sum(len(r.completions[0].text) for r in records if r.benchmark == "sums") / N
    assert {estimate.graded for estimate in report.estimates} == {N}
    assert engine.calls == 1, "the requests of all benchmarks go to the engine in one call"
    assert sorted(judge.judged) == sorted(s.id for s in load_duels(PROTOCOL))


def test_clusters_widen_the_interval(store: Store) -> None:
    alone = replace(CHOICES, name="alone", load=lambda p: [replace(s, tags={}) for s in load_choices(p)])
    report = run(store, Calculator(), suite=Suite("two", (CHOICES, alone)))
    clustered, single = (e for e in report.estimates if e.metric == "acc")
    assert "6 clusters" in clustered.method and "clusters" not in single.method
    assert clustered.mean == single.mean


def test_the_report_is_stored_as_it_was_returned_and_names_what_made_it(store: Store) -> None:
    settings = {"suite": "three", "model": "calculator", "limit": 5}
    report = run(store, Calculator(), limit=5, settings=settings, manifest_extra={"data": {"sums": "sha"}})
    assert store.report("latest") == report
    stored = store.run("latest")
    assert (stored.settings, stored.manifest, stored.status) == (settings, report.manifest, "complete")
    manifest = report.manifest
    assert manifest["judge"] == "longer-wins" == report.judge
    assert manifest["judge_identity"] == LongerWins.identity
    assert (manifest["engine_identity"], manifest["checkpoint"]) == (Calculator().identity, "c" * 64)
    assert manifest["engine"] == {"kind": "calculator"}
    assert manifest["protocol_digest"] == digest(PROTOCOL)
    assert (manifest["protocol"]["name"], manifest["limit"], manifest["seed"]) == ("plain", 5, 7)
    assert manifest["benchmarks"]["sums"] == {
        "version": "1",
        "metric": "exact",
        "kind": "binary",
        "samples": 5,
        "digest": digest([sample_digest(sample) for sample in load_sums(PROTOCOL)[:5]]),
    }
    assert manifest["data"] == {"sums": "sha"}
    assert {"rlhf_bench", "python", "platform", "created"} <= set(manifest)
    assert manifest["packages"]["numpy"]


def test_where_grading_runs_code_the_report_names_the_sandbox(store: Store) -> None:
    from rlhf_bench.harness.sandbox import level

    def load(protocol: EvalProtocol) -> list[Sample]:
        return [replace(sample, tags={"runs": "code"}) for sample in load_sums(protocol)]

    running = replace(SUMS, load=load)
    assert run(store, Calculator(), suite=Suite("runs", (running,))).manifest["sandbox"] == level().name
    assert run(store, Calculator(), suite=Suite("sums", (SUMS,))).manifest["sandbox"] is None


def test_a_grade_of_code_holds_for_one_revision_of_the_sandbox(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    graded: list[str] = []

    def grade(answered: Sequence[Graded], judge: Any) -> Iterator[Score]:
        graded.extend(sample.id for sample, _ in answered)
        return grade_sums(answered, judge)

    def load(protocol: EvalProtocol) -> list[Sample]:
        return [replace(sample, tags={"runs": "code"}) for sample in load_sums(protocol)]

    suite = Suite("runs", (replace(SUMS, load=load, grade=grade),))
    for expected in (N, N):
        run(store, Calculator(), suite=suite)
        assert len(graded) == expected
    monkeypatch.setattr("rlhf_bench.harness.run.REVISION", "another")
    run(store, Calculator(), suite=suite)
    assert len(graded) == 2 * N


def test_the_limit_takes_the_first_samples_in_the_official_order(store: Store) -> None:
    report = run(store, Calculator(), limit=3)
    assert [r.sample.id for r in store.records(report.run_id, "sums")] == ["sums/0", "sums/1", "sums/2"]


def test_progress_counts_every_answer_and_every_grade(store: Store) -> None:
    counts: dict[str, tuple[int, list[int]]] = {}

    @contextmanager
    def track(label: str, total: int) -> Iterator[Advance]:
        steps: list[int] = []
        counts[label] = (total, steps)
        yield steps.append

    for _ in range(2):
        run(store, Calculator(fails=frozenset({"sums/3"})), track=track)
        assert {label: (total, sum(steps)) for label, (total, steps) in counts.items()} == {
            "answers": (REQUESTS, REQUESTS),
            "grades": (3 * N, 3 * N),
        }


# Nothing twice


def test_a_second_call_generates_nothing_judges_nothing_and_finds_the_same(store: Store) -> None:
    first = run(store, Calculator())
    before = store.records(first.run_id)
    engine, judge = Calculator(), LongerWins()
    second = run(store, engine, judge)
    assert (engine.asked, judge.judged) == ([], [])
    assert without_dates(second) == without_dates(first)
    assert store.records(second.run_id) == before
    assert len(store.runs()) == 1


def test_a_larger_limit_asks_only_for_what_is_new(store: Store) -> None:
    small = run(store, Calculator(), limit=5)
    engine, judge = Calculator(), LongerWins()
    large = run(store, engine, judge)
    assert len(engine.asked) == REQUESTS - 4 * 5
    assert len(judge.judged) == N - 5
    assert large.run_id != small.run_id


def test_other_weights_share_nothing(store: Store) -> None:
    first = run(store, Calculator("w1"))
    engine = Calculator("w2")
    second = run(store, engine)
    assert len(engine.asked) == REQUESTS
    assert second.run_id != first.run_id


def test_the_same_answer_of_other_weights_is_not_graded_again(store: Store) -> None:
    run(store, Calculator("w1"))
    judge = LongerWins()
    run(store, Calculator("w2"), judge)
    assert judge.judged == []


@pytest.mark.parametrize(
    "change",
    [
        {"protocol": replace(PROTOCOL, system_prompt="Think.")},
        {"judge": type("Other", (LongerWins,), {"identity": "other"})()},
        {"limit": 4},
        {"suite": Suite("three", (replace(SUMS, version="2"), CHOICES, DUELS))},
    ],
    ids=lambda change: next(iter(change)),
)
def test_what_decides_a_result_names_the_run(store: Store, change: dict[str, Any]) -> None:
    given: dict[str, Any] = {"suite": SUITE, "engine": Calculator(), "protocol": PROTOCOL, "judge": LongerWins()}
    assert evaluate(**given, store=store).run_id != evaluate(**{**given, **change}, store=store).run_id


def test_another_judge_grades_anew_and_other_benchmarks_are_not_touched_by_it(store: Store) -> None:
    run(store, Calculator())
    other = type("Other", (LongerWins,), {"identity": "other"})()
    engine = Calculator()
    run(store, engine, other)
    assert (engine.asked, len(other.judged)) == ([], N)
    judged = Suite("no duels", (SUMS, CHOICES))
    assert run(store, Calculator(), other, judged).run_id == run(store, Calculator(), LongerWins(), judged).run_id


def test_a_changed_row_of_a_sample_is_graded_anew(store: Store) -> None:
    run(store, Calculator())
    changed = replace(DUELS, load=lambda p: [replace(s, row={"baseline": "other"}) for s in load_duels(p)])
    engine, judge = Calculator(), LongerWins()
    run(store, engine, judge, Suite("three", (SUMS, CHOICES, changed)))
    assert (engine.asked, len(judge.judged)) == ([], N)


def test_a_corrupt_answer_is_made_again_and_nothing_else_is(tmp_path: Path) -> None:
    with Store(f"sqlite:///{tmp_path}/store.db") as store:
        first = run(store, Calculator())
        before = store.records(first.run_id)
        victim = load_sums(PROTOCOL)[3].requests[0]
        connection = sqlite3.connect(tmp_path / "store.db")
        with connection:
            connection.execute(
                "update completions set value = x'00' where key = ?", [request_key(Calculator().identity, victim)]
            )
        connection.close()
        engine = Calculator()
        second = run(store, engine)
        assert engine.asked == [victim]
        assert without_dates(second) == without_dates(first)
        assert store.records(first.run_id) == before


def test_a_limit_takes_of_each_stratum_in_turn(store: Store) -> None:
    samples = [
        Sample(f"s/{k}/{n}", (Request(f"s/{k}/{n}", f"{n} + {k} ="),), str(n + k), {"stratum": f"part {k}"})
        for k, size in enumerate([4, 1, 30])
        for n in range(size)
    ]
    strata = replace(SUMS, name="s", load=lambda _: samples)
    report = run(store, Calculator(), suite=Suite("s", (strata,)), limit=6)
    asked = [record.sample.id for record in store.records(report.run_id)]
    assert sorted(asked) == ["s/0/0", "s/0/1", "s/0/2", "s/1/0", "s/2/0", "s/2/1"]


# Interruptions


def after(count: int, act: Callable[[], None]) -> Callable[[int], None]:
    def stop(done: int) -> None:
        if done == count:
            act()

    return stop


def interrupt() -> None:
    raise KeyboardInterrupt


def uninterrupted(tmp_path: Path) -> tuple[Report, list[Any]]:
    with Store(f"sqlite:///{tmp_path}/whole.db") as store:
        report = run(store, Calculator())
        return without_dates(report), store.records(report.run_id)


def test_ctrl_c_keeps_every_finished_answer_and_grade(tmp_path: Path, store: Store) -> None:
    whole = uninterrupted(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        run(store, Calculator(stop=after(17, interrupt)))
    assert store.run("latest").status == "running"
    engine = Calculator()
    with pytest.raises(KeyboardInterrupt):
        run(store, engine, LongerWins(stop=after(5, interrupt)))
    assert len(engine.asked) == REQUESTS - 17
    engine, judge = Calculator(), LongerWins()
    report = run(store, engine, judge)
    assert (engine.asked, len(judge.judged)) == ([], N - 5)
    assert (without_dates(report), store.records(report.run_id)) == whole
    assert len(store.runs()) == 1


@pytest.mark.parametrize(("kill", "at"), [("engine", 17), ("judge", 5)])
def test_a_killed_run_resumes_to_the_same_records_without_a_second_answer(tmp_path: Path, kill: str, at: int) -> None:
    url = f"sqlite:///{tmp_path}/store.db"
    killed = subprocess.run([sys.executable, __file__, kill, url, str(at)], timeout=120)
    assert killed.returncode == -signal.SIGKILL
    with Store(url) as store:
        engine, judge = Calculator(), LongerWins()
        report = run(store, engine, judge)
        assert len(engine.asked) == (REQUESTS - at if kill == "engine" else 0)
        assert len(judge.judged) == (N if kill == "engine" else N - at)
        assert (without_dates(report), store.records(report.run_id)) == uninterrupted(tmp_path)


# What fails


def test_an_engine_error_is_ungraded_never_zero_and_asked_again(store: Store) -> None:
    fails = frozenset({"sums/1", "choices/2"})
    report = run(store, Calculator(fails=fails))
    exact = next(e for e in report.estimates if e.metric == "exact")
    assert (exact.mean, exact.graded, exact.ungraded) == ((N - 4) / (N - 1), N - 1, 1)
    assert exact.why == "1 of 12 ungraded (1 × no answer: out of memory)"
    failed = next(r for r in store.records(report.run_id) if r.sample.id == "sums/1")
    assert failed.score == Score("sums/1", None, "no answer: out of memory")
    assert failed.completions[0].finish_reason == "error"

    engine = Calculator()
    mended = run(store, engine)
    assert {request.sample_id for request in engine.asked} == fails
    assert (mended.run_id, mean(mended, "exact")) == (report.run_id, (N - 3) / N)
    assert all(r.score.value is not None for r in store.records(report.run_id))


def test_a_failed_choice_leaves_its_question_ungraded_and_its_other_choice_stored(store: Store) -> None:
    class HalfBlind(Calculator):
        def _answer(self, request: Request) -> Completion:
            if request.sample_id == "choices/2" and request.index == 1:
                return Completion(request.sample_id, 1, "", "error", 0, why="lost")
            return super()._answer(request)

    run(store, HalfBlind())
    engine = Calculator()
    run(store, engine)
    assert [(request.sample_id, request.index) for request in engine.asked] == [("choices/2", 1)]


def test_what_the_judge_could_not_say_is_asked_again_and_the_rest_is_not(store: Store) -> None:
    report = run(store, Calculator(), LongerWins(silent_on=frozenset({"duels/4"})))
    win_rate = report.estimates[-1]
    assert (win_rate.graded, win_rate.ungraded) == (N - 1, 1)
    assert "no verdict in the reply" in win_rate.why
    judge = LongerWins()
    run(store, Calculator(), judge)
    assert judge.judged == ["duels/4"]


def test_with_more_than_half_ungraded_there_is_no_mean(store: Store) -> None:
    fails = frozenset(f"sums/{number}" for number in range(7))
    exact = run(store, Calculator(fails=fails)).estimates[0]
    assert (exact.mean, exact.low, exact.high, exact.graded, exact.ungraded) == (None, None, None, 5, 7)
    assert "7 of 12 ungraded" in exact.why


def test_a_share_of_two_percent_is_shown_by_its_count_alone(store: Store) -> None:
    def load(protocol: EvalProtocol) -> list[Sample]:
        return [replace(s, id=f"s/{i}/{s.id}", requests=(replace(s.requests[0], sample_id=f"s/{i}/{s.id}"),))
                for i in range(5) for s in load_sums(protocol)]  # fmt: skip

    report = run(store, Calculator(fails=frozenset({"s/0/sums/1"})), suite=Suite("s", (replace(SUMS, load=load),)))
    assert (report.estimates[0].ungraded, report.estimates[0].why) == (1, "")


def test_a_judged_benchmark_without_a_judge_is_a_user_error_before_any_work(store: Store) -> None:
    engine = Calculator()
    with pytest.raises(UserError, match=r"'duels'.*--judge"):
        evaluate(SUITE, engine, protocol=PROTOCOL, store=store)
    assert (engine.asked, store.runs()) == ([], [])
    with pytest.raises(UserError, match="limit is 0"):
        run(store, engine, limit=0)


def test_a_grader_that_raises_is_a_fault_and_what_it_graded_before_is_kept(store: Store) -> None:
    def explode(done: int) -> None:
        if done == 4:
            raise ZeroDivisionError("division by zero")

    with pytest.raises(Fault, match="grading 'duels' broke off, 8 of 12 samples to go: ZeroDivisionError"):
        run(store, Calculator(), LongerWins(stop=explode))
    judge = LongerWins()
    report = run(store, Calculator(), judge)
    assert len(judge.judged) == N - 4
    assert store.run(report.run_id).status == "complete"


def test_an_edge_that_breaks_its_contract_is_a_fault_that_names_it(store: Store) -> None:
    class Lazy(Calculator):
        def generate(self, requests: Sequence[Request]) -> Iterator[Completion]:
            return super().generate(requests[1:])

    class Twice(Calculator):
        def generate(self, requests: Sequence[Request]) -> Iterator[Completion]:
            return super().generate([*requests, *requests])

    with pytest.raises(Fault, match="calculator left 1 requests"):
        run(store, Lazy())
    with pytest.raises(Fault, match=r"calculator answered .* twice"):
        run(store, Twice("w2"))
    half = replace(SUMS, version="2", grade=lambda answered, judge: grade_sums(answered[:5], judge))
    with pytest.raises(Fault, match="'sums' left 7 samples without a score, 'sums/5' first"):
        run(store, Calculator(), suite=Suite("s", (half,)))
    double = replace(SUMS, version="3", grade=lambda answered, judge: grade_sums([*answered, *answered], judge))
    with pytest.raises(Fault, match="'sums' graded 'sums/0'"):
        run(store, Calculator(), suite=Suite("s", (double,)))
    endless = replace(SUMS, version="4", grade=lambda a, judge: (Score(s.id, float("nan")) for s, _ in a))
    with pytest.raises(Fault, match="cannot be stored"):
        run(store, Calculator(), suite=Suite("s", (endless,)))


def test_a_sample_that_stands_twice_in_a_benchmark_is_one(store: Store) -> None:
    doubled = replace(SUMS, load=lambda p: [*load_sums(p), *load_sums(p)])
    engine = Calculator()
    report = run(store, engine, suite=Suite("s", (doubled,)))
    assert (len(engine.asked), report.estimates[0].graded) == (N, N)
    assert len(store.records(report.run_id)) == N


def test_two_different_samples_of_one_id_are_a_fault(store: Store) -> None:
    clash = replace(SUMS, load=lambda p: [*load_sums(p), replace(load_sums(p)[0], reference="7")])
    with pytest.raises(Fault, match="two different samples with the id 'sums/0'"):
        run(store, Calculator(), suite=Suite("s", (clash,)))
    stranger = replace(SUMS, load=lambda p: [replace(load_sums(p)[0], id="other")])
    with pytest.raises(Fault, match="sample 'other' needs requests of its own id"):
        run(store, Calculator(), suite=Suite("s", (stranger,)))


def test_benchmarks_whose_sample_ids_clash_are_kept_apart(store: Store) -> None:
    def load(protocol: EvalProtocol) -> list[Sample]:
        return [
            replace(s, requests=(replace(s.requests[0], prompt=f"1 + {i} ="),), reference=str(i + 1))
            for i, s in enumerate(load_sums(protocol))
        ]

    report = run(store, Calculator(), suite=Suite("s", (SUMS, replace(SUMS, name="plus one", load=load))))
    assert [e.mean for e in report.estimates if e.metric == "exact"] == [(N - 3) / N, 1.0]


if __name__ == "__main__":
    stop = after(int(sys.argv[3]), lambda: os.kill(os.getpid(), signal.SIGKILL))
    with Store(sys.argv[2]) as opened:
        if sys.argv[1] == "engine":
            run(opened, Calculator(stop=stop))
        else:
            run(opened, Calculator(), LongerWins(stop=stop))


def test_who_an_api_says_answered_is_in_the_report_also_when_resumed(store: Store) -> None:
    class Served(Calculator):
        def _answer(self, request: Request) -> Completion:
            return replace(super()._answer(request), served_by="calculator-2 fp_1")

    suite = Suite("sums", (SUMS,))
    assert run(store, Served(), suite=suite).manifest["served_by"] == ["calculator-2 fp_1"]
    assert run(store, Served(), suite=suite).manifest["served_by"] == ["calculator-2 fp_1"]


def second_turn(sample: Sample, completions: tuple[Completion, ...]) -> tuple[Request, ...]:
    """Adds 1 to the last answer, twice."""
    if len(completions) == 3:
        return ()
    return (Request(sample.id, f"{completions[-1].text} + 1 =", Sampling(8), index=len(completions)),)


def grade_turns(answered: Sequence[Graded], judge: Any) -> Iterator[Score]:
    for sample, completions in answered:
        yield Score(sample.id, float(completions[-1].text))


TURNS = replace(SUMS, name="turns", kind="continuous", grade=grade_turns, follow=second_turn)


def test_a_later_turn_sees_the_answers_before_it_and_all_are_recorded(store: Store) -> None:
    engine = Calculator()
    report = run(store, engine, suite=Suite("turns", (TURNS, CHOICES)))
    records = store.records(report.run_id, "turns")
    assert [record.completions[0].text for record in records] == [str(2 * a + (a % 5 == 0)) for a in range(N)]
    for record in records:
        said = [int(completion.text) for completion in record.completions]
        assert [b - a for a, b in pairwise(said)] == [1 + (said[0] % 5 == 0), 1 + (said[1] % 5 == 0)]
        assert record.score.value == said[-1]
        assert [completion.index for completion in record.completions] == [0, 1, 2]
    assert engine.calls == 3 and len(engine.asked) == 3 * N + 2 * N
    again = Calculator()
    assert without_dates(run(store, again, suite=Suite("turns", (TURNS, CHOICES)))) == without_dates(report)
    assert again.asked == []


def test_after_a_turn_that_failed_no_further_one_is_asked(store: Store) -> None:
    engine = Calculator(fails=frozenset({"sums/3"}))
    report = run(store, engine, suite=Suite("turns", (TURNS,)))
    failed = store.records(report.run_id)[3]
    assert len(failed.completions) == 1 and failed.score.value is None
    assert len(engine.asked) == 3 * N - 2


def test_a_later_turn_without_a_place_of_its_own_is_a_fault(store: Store) -> None:
    for wrong in (Request("sums/0", "1 + 1 ="), Request("other", "1 + 1 =", index=1)):
        broken = replace(TURNS, follow=lambda sample, completions, wrong=wrong: (wrong,))
        with pytest.raises(Fault, match="needs its id, and an index of its own"):
            run(store, Calculator(), suite=Suite("broken", (broken,)), limit=1)


def test_another_seed_asks_the_same_questions_and_a_smaller_limit_does_not(store: Store) -> None:
    whole, again, less = (
        evaluate(SUITE, Calculator(), protocol=protocol, store=store, judge=LongerWins(), limit=limit).manifest["items"]
        for protocol, limit in (
            (EvalProtocol("p"), None),
            (EvalProtocol("p", temperature=0.7, sampling_seed=3), None),
            (EvalProtocol("p"), 2),
        )
    )
    assert whole == again
    assert all(whole[name] != less[name] for name in whole)
