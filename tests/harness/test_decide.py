"""Decisions on the same samples share one alpha; what is asked twice is decided once; halves say yes or no."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlhf_bench.harness.codec import sample_digest
from rlhf_bench.harness.decide import decide, judge, next_level, split
from rlhf_bench.harness.errors import UserError
from rlhf_bench.harness.gate import RunData
from rlhf_bench.harness.policy import Guard, Halves, Ledger, Policy, Target
from rlhf_bench.harness.store import Run, Store
from rlhf_bench.harness.types import Record, Request, Sample, Score

OPEN = Policy(
    name="p",
    targets=(Target(benchmark="sums", metric="accuracy"),),
    guards=(Guard(benchmark="code", metric="accuracy", margin=0.1),),
    against_anchor=False,
)


def policy(**more: Any) -> Policy:
    return Policy.model_validate(OPEN.model_dump() | more)


def run(name: str, items: str = "items", **scores: Sequence[float | None]) -> RunData:
    records = {}
    for benchmark, values in scores.items():
        samples = [Sample(f"{i}", (Request(f"{i}", f"{benchmark} {i}"),), "") for i in range(len(values))]
        records[benchmark] = [
            Record(benchmark, sample_digest(sample), sample, (), Score(sample.id, value))
            for sample, value in zip(samples, values, strict=True)
        ]
    facts = {b: {"version": "1", "metric": "accuracy", "kind": "binary", "digest": f"{items} {b}"} for b in scores}
    manifest = {"protocol_digest": "p", "judge_identity": None, "benchmarks": facts}
    return RunData(f"run-{name}", name, manifest, records)


def scores(right: int, wrong: int = 0) -> list[float]:
    return [1.0] * right + [0.0] * wrong


OLD = run("old", sums=scores(40, 60), code=scores(100, 100))
BETTER = run("better", sums=scores(75, 25), code=scores(100, 100))
ALIKE = run("alike", sums=scores(41, 59), code=scores(100, 100))


@given(st.floats(0.001, 0.25), st.lists(st.sampled_from(["open", 1, 3, 20]), max_size=40))
def test_however_the_ledger_is_kept_no_more_than_alpha_is_spent(alpha: float, ledgers: list[Any]) -> None:
    spent: list[float] = []
    for each in ledgers:
        ledger = Ledger() if each == "open" else Ledger(planned=each)
        place, level = next_level(policy(alpha=alpha, ledger=ledger), spent)
        assert place == 1 + sum(share > 0 for share in spent)
        assert 0 <= level <= alpha
        spent.append(level)
    assert sum(spent) <= alpha * (1 + 1e-9)


def test_the_two_ledgers_give_the_shares_they_are_known_for() -> None:
    assert next_level(policy(ledger=Ledger(planned=4)), [0.0125]) == (2, 0.0125)
    place, level = next_level(OPEN, [0.05 * 6 / math.pi**2])
    assert (place, level) == (2, pytest.approx(0.05 * 6 / (math.pi**2 * 4)))
    assert next_level(policy(ledger="none"), [0.05] * 7) == (8, 0.05)


def test_each_new_candidate_on_these_samples_gets_less(store: Store) -> None:
    first = decide(store, OPEN, ALIKE, OLD).verdict
    second = decide(store, OPEN, BETTER, OLD).verdict
    assert (first.decision, second.decision) == (1, 2)
    assert first.spent == first.alpha == pytest.approx(0.0304, abs=1e-4)
    assert second.spent == second.alpha == pytest.approx(0.0076, abs=1e-4)
    assert {check.level for check in second.checks} == {second.alpha}
    assert first.items == {"sums": "items sums", "code": "items code"}


def test_the_same_question_is_decided_and_paid_once(store: Store) -> None:
    first, again = (decide(store, OPEN, BETTER, OLD) for _ in range(2))
    assert first == again
    assert [each.spent for each in store.decisions(first.verdict.items)] == [first.verdict.spent]


def test_grading_what_was_missing_is_no_new_decision(store: Store) -> None:
    missing = run("better", sums=[None] * 10 + scores(65, 25), code=scores(100, 100))
    before = decide(store, OPEN, missing, OLD)
    after = decide(store, OPEN, BETTER, OLD)
    assert (before.verdict.outcome, after.verdict.outcome) == ("inconclusive", "promote")
    assert after.verdict.alpha == before.verdict.alpha
    assert sum(each.spent for each in store.decisions(after.verdict.items)) == before.verdict.spent


def test_fresh_samples_begin_anew(store: Store) -> None:
    decide(store, OPEN, ALIKE, OLD)
    fresh = [run(name, "fresh", sums=scores(n, 100 - n), code=scores(100)) for name, n in (("new", 80), ("old", 40))]
    assert decide(store, OPEN, *fresh).verdict.decision == 1


def test_what_shares_one_benchmark_shares_the_alpha(store: Store) -> None:
    decide(store, OPEN, ALIKE, OLD)
    other = policy(name="other", guards=[{"benchmark": "more", "metric": "accuracy", "margin": 0.1}])
    runs = [run(name, sums=scores(n, 100 - n), more=scores(100)) for name, n in (("new", 80), ("old", 40))]
    assert decide(store, other, *runs).verdict.decision == 2


def test_once_alpha_is_spent_nothing_is_promoted(store: Store) -> None:
    once = policy(ledger=Ledger(planned=1))
    decide(store, once, ALIKE, OLD)
    verdict = decide(store, once, BETTER, OLD).verdict
    assert (verdict.outcome, verdict.spent, verdict.decision) == ("inconclusive", 0.0, 0)
    assert "is spent on these samples" in verdict.reasons[0]


def test_a_verdict_knows_the_generation_that_it_was_reached_in(store: Store) -> None:
    from rlhf_bench.harness.types import Checkpoint

    assert decide(store, OPEN, BETTER, OLD).verdict.generation == 0
    store.register(Checkpoint("/nowhere", "old"))
    store.set_champion("old", expect_generation=0, verdict_id=None, reason="first")
    assert decide(store, OPEN, ALIKE, OLD).verdict.generation == 1


HALVED = policy(halves=Halves(salt="a"))


def test_halves_part_every_sample_the_same_way_in_every_run() -> None:
    first, second = (split(BETTER, Halves(salt="a"), confirm) for confirm in (False, True))
    other = split(OLD, Halves(salt="a"), False)
    for name in ("sums", "code"):
        digests = [{record.digest for record in run.records[name]} for run in (first, second, other, BETTER)]
        assert digests[0] | digests[1] == digests[3] and not digests[0] & digests[1]
        assert digests[0] == digests[2]
    assert 0.35 < len(first.records["code"]) / 200 < 0.65
    salted = split(BETTER, Halves(salt="b"), False)
    assert {r.digest for r in salted.records["code"]} != {r.digest for r in first.records["code"]}


def test_a_candidate_that_fails_on_the_open_half_spends_nothing(store: Store) -> None:
    verdict = decide(store, HALVED, ALIKE, OLD).verdict
    assert (verdict.outcome, verdict.spent) == ("inconclusive", 0.0)
    assert decide(store, HALVED, BETTER, OLD).verdict.decision == 1


def test_the_half_that_confirms_says_yes_or_no_and_nothing_else(store: Store) -> None:
    verdict = decide(store, HALVED, BETTER, OLD).verdict
    assert verdict.outcome == "promote"
    assert verdict.reasons[-1] == f"the other half of the samples confirms it (at {verdict.alpha:.4g})"
    open_half = split(BETTER, Halves(salt="a"), False)
    assert {check.pairs for check in verdict.checks} == {len(open_half.records[name]) for name in ("sums", "code")}


def test_what_was_overfitted_to_the_open_half_is_not_confirmed(store: Store) -> None:
    shown = {record.digest for record in split(OLD, Halves(salt="a"), False).records["sums"]}
    lucky = [1.0 if record.digest in shown else record.score.value for record in OLD.records["sums"]]
    fitted = run("fitted", sums=lucky, code=scores(100, 100))
    verdict = decide(store, HALVED, fitted, OLD).verdict
    assert all(check.outcome == "pass" for check in verdict.checks)
    assert verdict.outcome == "inconclusive"
    assert verdict.reasons[-1].startswith("the other half of the samples does not confirm it")


def test_twenty_null_candidates_are_promoted_no_more_often_than_alpha_says() -> None:
    rng = np.random.default_rng(3)
    rules = policy(ledger=Ledger(planned=20), alpha=0.2)
    promoted = 0
    for _ in range(60):
        spent: list[float] = []
        old = run("old", sums=(rng.random(120) < 0.5).astype(float).tolist(), code=scores(100, 100))
        for number in range(20):
            new = run(f"{number}", sums=(rng.random(120) < 0.5).astype(float).tolist(), code=scores(100, 100))
            _, level = next_level(rules, spent)
            verdict, _ = judge(rules, new, old, None, alpha=level)
            spent.append(level)
            if verdict.outcome == "promote":
                promoted += 1
                break
    assert promoted / 60 < 0.2 + 3 * math.sqrt(0.2 * 0.8 / 60)


def test_halves_part_questions_whatever_seed_or_repeat_they_were_asked_with() -> None:
    def seeded(seed: int, times: int) -> RunData:
        from rlhf_bench.harness.types import Sampling

        samples = [
            Sample(f"{i}#{k}", (Request(f"{i}#{k}", f"q {i}", Sampling(seed=seed + k)),), "", {"cluster": f"c{i}"})
            for i in range(60)
            for k in range(times)
        ]
        records = [Record("sums", sample_digest(each), each, (), Score(each.id, 1.0)) for each in samples]
        return RunData("r", "c", OLD.manifest, {"sums": records})

    halves = Halves(salt="s")
    first, second = (
        {record.sample.prompt for record in split(run_, halves, False).records["sums"]}
        for run_ in (seeded(0, 1), seeded(7, 4))
    )
    assert first == second
    assert 10 < len(first) < 50


def stored(store: Store, name: str, right: int, limit: int = 100) -> RunData:
    """A run that the store holds the records of, of the first `limit` questions."""
    from rlhf_bench.harness.types import EvalProtocol, Report

    made = run(name, f"{limit}", sums=scores(right, 100 - right)[:limit], code=scores(limit))
    store.start_run(Run(made.run_id, name, name, "s", EvalProtocol("p").name, None, made.run_id, made.manifest))
    for records in made.records.values():
        store.save_records(made.run_id, records)
    store.finish_run(made.run_id, Report(made.run_id, name, name, "s", "p", None, (), made.manifest))
    return made


def test_fewer_of_the_same_samples_are_no_fresh_ones(store: Store) -> None:
    decide(store, OPEN, stored(store, "a", 41), stored(store, "b", 40))
    again = decide(store, OPEN, stored(store, "c", 80, 90), stored(store, "d", 40, 90))
    assert again.verdict.decision == 2


def test_a_benchmark_by_another_name_has_the_same_questions(store: Store) -> None:
    first = decide(store, OPEN, ALIKE, OLD).verdict
    renamed = {f"other {name}": digest for name, digest in first.items.items()}
    assert len(store.decisions(renamed)) == 1


def test_the_anchor_is_named_and_another_one_is_another_question(store: Store) -> None:
    anchored = policy(against_anchor=True)
    first = decide(store, anchored, BETTER, OLD, OLD).verdict
    assert first.runs["anchor"] == OLD.run_id
    other = decide(store, anchored, BETTER, OLD, ALIKE).verdict
    assert (other.runs["anchor"], other.decision) == (ALIKE.run_id, 2)


@pytest.mark.parametrize("name", ["halves", "spent"])
def test_a_verdict_that_spent_nothing_stands_whoever_is_champion_by_now(store: Store, name: str) -> None:
    from rlhf_bench.harness.types import Checkpoint

    for each in ("old", "next"):
        store.register(Checkpoint(f"/{each}", each))
    store.set_champion("old", expect_generation=0, verdict_id=None, reason="first")
    rules = HALVED if name == "halves" else policy(ledger=Ledger(planned=1))
    if name == "spent":
        decide(store, rules, BETTER, OLD)
    first = decide(store, rules, ALIKE, OLD)
    assert first.verdict.spent == 0.0
    assert decide(store, rules, ALIKE, OLD) == first
    store.set_champion("next", expect_generation=1, verdict_id=None, reason="moved")
    assert decide(store, rules, ALIKE, OLD) == first
    store.set_champion("old", expect_generation=2, verdict_id=None, reason="back")
    assert decide(store, rules, ALIKE, OLD) == first


def test_a_promotion_is_said_anew_for_a_later_generation_and_spends_nothing(store: Store) -> None:
    from rlhf_bench.harness.types import Checkpoint

    for each in ("old", "next"):
        store.register(Checkpoint(f"/{each}", each))
    store.set_champion("old", expect_generation=0, verdict_id=None, reason="first")
    first = decide(store, HALVED, BETTER, OLD)
    store.set_champion("next", expect_generation=1, verdict_id=None, reason="moved")
    assert decide(store, HALVED, BETTER, OLD) == first
    store.set_champion("old", expect_generation=2, verdict_id=None, reason="back")
    again, thrice = (decide(store, HALVED, BETTER, OLD) for _ in range(2))
    assert again == thrice and again.id != first.id
    assert (again.verdict.generation, again.verdict.spent, again.verdict.alpha) == (3, 0.0, first.verdict.alpha)


def test_what_was_graded_since_is_shown_though_it_decides_nothing_either(store: Store) -> None:
    missing, graded = (
        decide(store, OPEN, run("alike", sums=[None] * gone + scores(41 - gone, 59), code=scores(100, 100)), OLD)
        for gone in (2, 1)
    )
    assert missing.verdict.outcome == graded.verdict.outcome == "inconclusive"
    assert [each.verdict.checks[0].ungraded for each in (missing, graded)] == [2, 1]
    assert (graded.verdict.spent, graded.verdict.alpha) == (0.0, missing.verdict.alpha)


def test_a_half_without_samples_is_one_line(store: Store) -> None:
    few = [run(name, sums=[right], code=scores(100, 100)) for name, right in (("new", 1.0), ("old", 0.0))]
    with pytest.raises(UserError, match="one of them has none of the 1 of 'sums': ask more of it"):
        decide(store, HALVED, *few)
