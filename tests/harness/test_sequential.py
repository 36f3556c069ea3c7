"""A run that may stop early: fewer samples, the same verdict, and nothing that a later gate could not see again."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
from tests.harness.decide_process import stop_and_decide
from tests.harness.worker import CONTEXT, Worker

from rlhf_bench.harness.claims import RunData
from rlhf_bench.harness.decide import decide, level_of
from rlhf_bench.harness.errors import LostRace, UserError
from rlhf_bench.harness.policy import Guard, Halves, Ledger, Part, Policy, Target
from rlhf_bench.harness.run import evaluate
from rlhf_bench.harness.sequential import Stopping
from rlhf_bench.harness.stats.sequential import Design
from rlhf_bench.harness.store import Store
from rlhf_bench.harness.types import (
    Benchmark,
    Completion,
    EvalProtocol,
    Graded,
    Report,
    Request,
    Sample,
    Score,
    Suite,
)

POLICY = Policy(
    name="p",
    targets=(Target(benchmark="chat", metric="right"),),
    guards=(Guard(benchmark="sums", metric="right", margin=0.15),),
    against_anchor=False,
    ledger="none",  # type: ignore[arg-type]
)
OPEN = POLICY.model_copy(update={"ledger": Ledger()})


class Able:
    """Answers right with a chance of its own for each benchmark; counts what it was asked."""

    def __init__(self, name: str, chat: float, sums: float) -> None:
        self.manifest = {"engine": "able"}
        self.name = self.checkpoint = self.identity = name
        self.chances = {"chat": chat, "sums": sums}
        self.asked = 0

    def generate(self, requests: Sequence[Request]) -> Iterator[Completion]:
        for request in requests:
            self.asked += 1
            benchmark = request.sample_id.partition("/")[0]
            right = random.Random(f"{self.name} {request.sample_id}").random() < self.chances[benchmark]
            yield Completion(request.sample_id, request.index, "right" if right else "wrong", "stop", 1)


def benchmark(name: str, size: int, clusters: int = 0) -> Benchmark:
    def load(protocol: EvalProtocol) -> list[Sample]:
        names = [f"{name}/{i}" for i in range(size)]
        tags = [{"cluster": f"c{i % clusters}"} if clusters else {} for i in range(size)]
        return [Sample(n, (Request(n, f"question {n}"),), "right", t) for n, t in zip(names, tags, strict=True)]

    def grade(answered: Sequence[Graded], judge: Any) -> Iterator[Score]:
        for sample, completions in answered:
            yield Score(sample.id, float(completions[0].text == "right"))

    return Benchmark(name, "1", "right", "binary", size, "", load, grade)


SUITE = Suite("two", (benchmark("chat", 400), benchmark("sums", 300)))


def measure(store: Store, engine: Able, until: Stopping | None = None, suite: Suite = SUITE) -> Report:
    return evaluate(suite, engine, protocol=EvalProtocol("p"), store=store, until=until)


def data(store: Store, report: Report) -> RunData:
    return RunData.load(store, report.run_id)


@pytest.fixture
def champion(store: Store) -> RunData:
    return data(store, measure(store, Able("old", 0.5, 0.8)))


def stopped(store: Store, champion: RunData, engine: Able, **more: Any) -> tuple[Report, Stopping]:
    until = Stopping(more.pop("policy", POLICY), champion, None, Design(**more))
    return measure(store, engine, until), until


def test_a_clear_gain_is_seen_with_a_fraction_of_the_samples_and_promoted(store: Store, champion: RunData) -> None:
    engine = Able("new", 0.9, 0.85)
    report, until = stopped(store, champion, engine)
    verdict = decide(store, POLICY, data(store, report), champion).verdict
    assert verdict.outcome == "promote"
    assert engine.asked < 0.5 * 700
    assert report.manifest["sequential"]["asked"] == {n: [d, t] for n, (_, d, t) in until.went.items()}
    assert engine.asked == sum(done for _, done, _ in until.went.values())
    whole = decide(store, POLICY, data(store, measure(store, Able("new", 0.9, 0.85))), champion).verdict
    assert whole.outcome == "promote"


def test_a_clear_loss_ends_the_whole_run_and_is_rejected(store: Store, champion: RunData) -> None:
    engine = Able("new", 0.5, 0.2)
    report, until = stopped(store, champion, engine)
    assert decide(store, POLICY, data(store, report), champion).verdict.outcome == "reject"
    assert until.why == "reject"
    assert engine.asked <= 0.25 * 700


def test_what_is_not_likely_to_be_decided_is_given_up(store: Store, champion: RunData) -> None:
    engine = Able("new", 0.49, 0.8)
    report, until = stopped(store, champion, engine, futility=0.3)
    assert until.why.startswith("futile: chat")
    assert engine.asked < 700
    assert decide(store, POLICY, data(store, report), champion).verdict.outcome == "inconclusive"


def test_a_benchmark_that_is_decided_is_asked_no_further_while_another_goes_on(store: Store, champion: RunData) -> None:
    _, until = stopped(store, champion, Able("new", 0.58, 0.97), futility=0)
    assert until.went["sums"][1] < 300
    assert until.went["chat"][1] > until.went["sums"][1]


def test_the_order_is_registered_before_anything_is_asked(store: Store, champion: RunData) -> None:
    first, second = (stopped(store, champion, Able("new", 0.9, 0.85))[0] for _ in range(2))
    assert first.run_id == second.run_id
    asked = [record.sample.id for record in store.records(first.run_id, "chat")]
    assert asked != sorted(asked, key=lambda name: int(name.partition("/")[2]))
    assert len(asked) > 30


@pytest.mark.slow  # 300 runs
def test_it_errs_no_more_often_than_its_alpha(store: Store, champion: RunData) -> None:
    small = Suite("small", (benchmark("chat", 160), benchmark("sums", 40)))
    guards = (Guard(benchmark="sums", metric="right", margin=0.9),)
    rules = POLICY.model_copy(update={"alpha": 0.1, "guards": guards})
    promoted = 0
    for seed in range(150):
        old = data(store, measure(store, Able(f"old {seed}", 0.5, 1.0), suite=small))
        until = Stopping(rules, old, None, Design(alpha=0.1, futility=0, least=20))
        report = measure(store, Able(f"new {seed}", 0.5, 1.0), until, small)
        promoted += decide(store, rules, data(store, report), old).verdict.outcome == "promote"
    assert promoted / 150 < 0.1 + 3 * (0.1 * 0.9 / 150) ** 0.5


@pytest.mark.parametrize(("chat", "outcome"), [(0.9, "promote"), (0.2, "reject")])
def test_an_e_process_may_be_looked_at_all_the_time(store: Store, champion: RunData, chat: float, outcome: str) -> None:
    engine = Able("new", chat, 0.98)
    report, _ = stopped(store, champion, engine, kind="e_process")
    assert decide(store, POLICY, data(store, report), champion).verdict.outcome == outcome
    assert engine.asked < 0.6 * 700


def test_clusters_are_never_parted(store: Store) -> None:
    suite = Suite("clustered", (benchmark("chat", 400, clusters=100), benchmark("sums", 100)))
    old = data(store, measure(store, Able("old", 0.5, 0.8), suite=suite))
    until = Stopping(POLICY, old)
    report = measure(store, Able("new", 0.95, 0.95), until, suite)
    seen: dict[str, int] = {}
    for record in store.records(report.run_id, "chat"):
        seen[record.sample.tags["cluster"]] = seen.get(record.sample.tags["cluster"], 0) + 1
    assert set(seen.values()) == {4}
    assert len(seen) < 100


def test_a_pool_is_stopped_as_one(store: Store) -> None:
    pool = (Part(benchmark="chat", metric="right"), Part(benchmark="sums", metric="right"))
    rules = POLICY.model_copy(
        update={
            "targets": (Target(name="both", pool=pool),),
            "guards": (Guard(benchmark="sums", metric="right", margin=0.2),),
        }
    )
    old = data(store, measure(store, Able("old", 0.5, 0.8)))
    engine = Able("new", 0.9, 0.95)
    report, _ = stopped(store, old, engine, policy=rules)
    verdict = decide(store, rules, data(store, report), old).verdict
    assert verdict.outcome == "promote"
    assert engine.asked < 700


def test_a_stopped_run_says_nothing_about_another_question(store: Store, champion: RunData) -> None:
    report, _ = stopped(store, champion, Able("new", 0.9, 0.85))
    run = data(store, report)
    stricter = POLICY.model_copy(update={"name": "other"})
    with pytest.raises(UserError, match="stopped early for another policy"):
        decide(store, stricter, run, champion)
    other = data(store, measure(store, Able("third", 0.6, 0.8)))
    with pytest.raises(UserError, match="or against another run"):
        decide(store, POLICY, run, other)
    with pytest.raises(UserError, match="so nothing can be held against it"):
        decide(store, POLICY, other, run)


def test_halves_and_stopping_exclude_each_other(champion: RunData) -> None:
    with pytest.raises(UserError, match="leave out --sequential, or `halves`"):
        Stopping(POLICY.model_copy(update={"halves": Halves(salt="s")}), champion)


def test_a_champion_that_was_stopped_early_is_refused_before_anything_is_asked(store: Store, champion: RunData) -> None:
    report, _ = stopped(store, champion, Able("new", 0.9, 0.85))
    with pytest.raises(UserError, match="so nothing can be held against it"):
        Stopping(POLICY, data(store, report))


def begun(store: Store, champion: RunData, name: str, policy: Policy = OPEN) -> Report:
    """A run that is stopped at the level that the ledger leaves it."""
    level = lambda run_id: level_of(store, policy, run_id, champion)  # noqa: E731
    return measure(store, Able(name, 0.9, 0.85), Stopping(policy, champion, level=level))


def test_a_run_that_is_made_again_is_the_same_run_and_the_same_decision(store: Store, champion: RunData) -> None:
    first = begun(store, champion, "new")
    verdict = decide(store, OPEN, data(store, first), champion)
    again = begun(store, champion, "new")
    assert again.run_id == first.run_id
    assert again.manifest["sequential"] == first.manifest["sequential"]
    assert decide(store, OPEN, data(store, again), champion) == verdict
    assert len(store.verdicts()) == 1


def test_a_level_that_another_took_meanwhile_decides_nothing_and_the_same_run_goes_on(
    store: Store, champion: RunData
) -> None:
    first, second = (begun(store, champion, name) for name in ("one", "two"))
    had = second.manifest["sequential"]["plan"]["alpha"]
    assert had == first.manifest["sequential"]["plan"]["alpha"]
    assert decide(store, OPEN, data(store, first), champion).verdict.alpha == had
    with pytest.raises(
        LostRace, match=r"stopped early at a level of 0\.0304, .*; 0\.007599 is left: .* nothing was spent"
    ):
        decide(store, OPEN, data(store, second), champion)
    assert len(store.verdicts()) == 1
    after = begun(store, champion, "two")
    assert after.run_id == second.run_id
    asked = [sum(done for done, _ in each.manifest["sequential"]["asked"].values()) for each in (second, after)]
    assert asked[0] <= asked[1] < 700
    verdict = decide(store, OPEN, data(store, after), champion).verdict
    assert (verdict.decision, verdict.outcome) == (2, "promote")
    assert verdict.spent == verdict.alpha == pytest.approx(had / 4)
    assert max(check.level for check in verdict.checks) < verdict.alpha


def test_a_run_of_all_samples_is_decided_at_what_is_left(store: Store, champion: RunData) -> None:
    first = begun(store, champion, "one")
    whole = measure(store, Able("two", 0.9, 0.85), Stopping(OPEN, champion, plan=Design(fractions=(1.0,))))
    decide(store, OPEN, data(store, first), champion)
    assert decide(store, OPEN, data(store, whole), champion).verdict.alpha == pytest.approx(
        0.05 * 6 / 3.14159265**2 / 4
    )


def test_a_stopped_run_whose_alpha_is_gone_is_told_so(store: Store, champion: RunData) -> None:
    once = OPEN.model_copy(update={"ledger": Ledger(planned=1)})
    first, second = (begun(store, champion, name, once) for name in ("one", "two"))
    decide(store, once, data(store, first), champion)
    verdict = decide(store, once, data(store, second), champion).verdict
    assert (verdict.outcome, verdict.spent) == ("inconclusive", 0.0)
    assert "is spent on these samples" in verdict.reasons[0]
    with pytest.raises(UserError, match="so that no run can be decided"):
        begun(store, champion, "three", once)


def test_of_two_processes_that_begin_at_one_place_of_the_ledger_each_decides_at_a_level_of_its_own(url: str) -> None:
    with Store(url) as store:
        champion = measure(store, Able("old", 0.5, 0.8)).run_id
    barrier = CONTEXT.Barrier(2)
    workers = [Worker(stop_and_decide, url, champion, name, barrier) for name in ("one", "two")]
    (one, first), (two, second) = (worker.hear() for worker in workers)
    assert first[0] == second[0]
    assert {one.decision, two.decision} == {1, 2}
    assert one.outcome == two.outcome == "promote"
    assert sorted(each.spent / 0.05 for each in (one, two)) == pytest.approx([0.1520, 0.6079], abs=1e-4)
    assert [verdict.alpha for verdict in (one, two)] == [first[-1], second[-1]]
    assert sorted(map(len, (first, second))) == [1, 2]
