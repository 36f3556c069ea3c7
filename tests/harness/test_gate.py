"""The gate promotes only what is shown, rejects only what is shown, and says what is missing for either."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from rlhf_bench.harness.errors import UnknownName, UserError
from rlhf_bench.harness.gate import RunData, gate, require_comparable
from rlhf_bench.harness.policy import Guard, Policy, Target
from rlhf_bench.harness.stats import mcnemar_midp, tango_exact_p, tango_interval, tango_z
from rlhf_bench.harness.store import Run, Store
from rlhf_bench.harness.types import Check, Record, Report, Request, Sample, Score

Values = Sequence[float | None]
FACTS = {
    "chat": {"version": "1", "metric": "win_rate", "kind": "continuous"},
    "sums": {"version": "1", "metric": "accuracy", "kind": "binary"},
    "code": {"version": "1", "metric": "accuracy", "kind": "binary"},
}
MANIFEST: dict[str, Any] = {
    "protocol_digest": "p1",
    "protocol": {"shots": {"sums": 8}, "seed": 1},
    "judge_identity": "j1",
    "engine": {"dtype": "float32"},
}


def target(benchmark: str = "sums", **more: Any) -> Target:
    return Target(benchmark=benchmark, metric=FACTS[benchmark]["metric"], **more)


def guard(benchmark: str = "code", margin: float = 0.1) -> Guard:
    return Guard(benchmark=benchmark, metric=FACTS[benchmark]["metric"], margin=margin)


def policy(**more: Any) -> Policy:
    rules: dict[str, Any] = {"name": "p", "targets": (target(),), "guards": (guard(),), "against_anchor": False}
    return Policy(**rules | more)


def run(name: str, **scores: Values) -> RunData:
    records = {
        benchmark: [
            Record(
                benchmark, f"{benchmark} {i}", Sample(f"s{i}", (Request(f"s{i}", f"{i}?"),), ""), (), Score(f"s{i}", v)
            )
            for i, v in enumerate(values)
        ]
        for benchmark, values in scores.items()
    }
    return RunData(f"run-{name}", name, MANIFEST | {"benchmarks": {b: FACTS[b] for b in scores}}, records)


def pairs(gained: int = 0, lost: int = 0, both: int = 0, neither: int = 0) -> tuple[list[float], list[float]]:
    """Binary scores of candidate and champion."""
    return (
        [1.0] * gained + [0.0] * lost + [1.0] * both + [0.0] * neither,
        [0.0] * gained + [1.0] * lost + [1.0] * both + [0.0] * neither,
    )


def runs(**benchmarks: tuple[Values, Values]) -> tuple[RunData, RunData]:
    return (
        run("new", **{name: values[0] for name, values in benchmarks.items()}),
        run("old", **{name: values[1] for name, values in benchmarks.items()}),
    )


BETTER = pairs(gained=30, lost=8, both=60)
SAFE = pairs(gained=4, lost=4, both=150)
WORSE = pairs(gained=2, lost=60, both=100)
UNCLEAR = pairs(gained=4, lost=5, both=20)


def test_a_shown_gain_with_nothing_lost_is_promoted() -> None:
    verdict = gate(policy(), *runs(sums=BETTER, code=SAFE))
    assert verdict.outcome == "promote"
    assert [(check.role, check.outcome) for check in verdict.checks] == [("target", "pass"), ("guard", "pass")]
    assert (verdict.candidate, verdict.champion, verdict.policy) == ("new", "old", policy().digest)
    assert verdict.runs == {"candidate": "run-new", "champion": "run-old"}
    low, high = tango_interval(30, 8, 98, 0.90)
    both = f"{100 * tango_interval(4, 4, 158, 0.90)[1]:.1f}"
    assert verdict.reasons == (
        f"sums: gained 22.4 points on 98 pairs (90% interval +{100 * low:.1f} to +{100 * high:.1f}, p < 0.001), better",
        f"code: no difference on 158 pairs (90% interval −{both} to +{both}), margin 10: shown to be safe",
    )


def test_a_shown_loss_beyond_the_margin_is_rejected_whatever_was_gained() -> None:
    verdict = gate(policy(), *runs(sums=BETTER, code=WORSE))
    assert verdict.outcome == "reject"
    assert verdict.reasons == (verdict.checks[1].reason,)
    assert "code: lost 35.8 points" in verdict.reasons[0]
    assert verdict.reasons[0].endswith("margin 10: shown to lose more")


def test_a_target_that_is_shown_to_be_missed_is_rejected_as_futile() -> None:
    verdict = gate(policy(), *runs(sums=pairs(lost=20, both=50), code=SAFE))
    assert verdict.outcome == "reject"
    assert verdict.reasons[0].endswith("shown to be worse")
    hopeless = gate(policy(targets=(target(min_effect=0.2),)), *runs(sums=SAFE, code=SAFE))
    assert hopeless.outcome == "reject"
    assert hopeless.reasons[0].endswith("shown not to gain 20 points")


@pytest.mark.parametrize(("sums", "code"), [(UNCLEAR, SAFE), (BETTER, UNCLEAR), (UNCLEAR, UNCLEAR)])
def test_what_is_not_shown_keeps_the_champion_and_says_how_much_is_missing(sums: Any, code: Any) -> None:
    verdict = gate(policy(), *runs(sums=sums, code=code))
    assert verdict.outcome == "inconclusive"
    assert all("more samples would decide" in reason for reason in verdict.reasons)
    undecided = [check for check in verdict.checks if check.outcome == "undecided"]
    assert verdict.reasons == tuple(check.reason for check in undecided)


def test_so_many_more_samples_do_decide_four_times_in_five() -> None:
    rng = np.random.default_rng(5)
    first = gate(policy(), *runs(sums=BETTER, code=pairs(gained=4, lost=4, both=32)))
    more = int(first.reasons[0].rpartition("about ")[2].split()[0])
    decided = 0
    for _ in range(200):
        d = rng.choice([1, -1, 0], p=[0.1, 0.1, 0.8], size=40 + more)
        decided += float(tango_z((d > 0).sum(), (d < 0).sum(), d.size, -0.1)) > stats.norm.ppf(0.95)
    assert 0.7 < decided / 200 < 0.9


@settings(max_examples=60, deadline=None)
@given(
    st.tuples(*[st.integers(0, 30)] * 3),
    st.tuples(*[st.integers(0, 30)] * 3),
    st.sampled_from([0.05, 0.1, 0.3]),
    st.sampled_from([0.05, 0.1]),
)
def test_the_outcome_is_that_of_the_written_rules(
    sums: tuple[int, int, int], code: tuple[int, int, int], margin: float, alpha: float
) -> None:
    rules = policy(alpha=alpha, guards=(guard(margin=margin),))
    z = stats.norm.ppf(1 - alpha)
    (b, c, m), (gained, lost, same) = sums, code
    n = gained + lost + same + 1
    better = mcnemar_midp(b, c) < alpha
    futile = mcnemar_midp(c, b) < alpha
    safe = float(tango_z(gained, lost, n, -margin)) > z and tango_exact_p(gained, lost, n, -margin) < alpha
    harmed = float(tango_z(gained, lost, n, -margin)) < -z and tango_exact_p(lost, gained, n, margin) < alpha
    verdict = gate(rules, *runs(sums=pairs(b, c, m, 1), code=pairs(gained, lost, same, 1)))
    expected = "reject" if harmed or futile else "promote" if better and safe else "inconclusive"
    assert verdict.outcome == expected
    assert_bounds_and_outcomes_agree(verdict.checks, alpha)


def assert_bounds_and_outcomes_agree(checks: Sequence[Check], alpha: float) -> None:
    for check in checks:
        assert check.low is not None and check.high is not None and check.p is not None
        threshold = check.margin if check.role == "target" else -check.margin
        assert (check.outcome == "pass") == (check.low > threshold) == (check.p < alpha)
        assert (check.outcome == "fail") == (check.high < threshold)


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from([-0.15, 0.0, 0.1, 0.3]), st.sampled_from([0.0, 0.05]))
def test_continuous_bounds_and_outcomes_agree_too(seed: int, gain: float, min_effect: float) -> None:
    rng = np.random.default_rng(seed)
    old = rng.uniform(0.2, 0.6, 40)
    new = np.clip(old + rng.normal(gain, 0.15, 40), 0, 1)
    rules = policy(targets=(target("chat", min_effect=min_effect),))
    verdict = gate(rules, *runs(chat=(new.tolist(), old.tolist()), code=SAFE))
    assert_bounds_and_outcomes_agree(verdict.checks, 0.05)


def test_a_guard_holds_against_the_anchor_too() -> None:
    candidate, champion = runs(sums=BETTER, code=SAFE)
    anchor = run("first", sums=BETTER[1], code=[1.0] * len(SAFE[0]))
    eroded = run("new", sums=BETTER[0], code=[0.0] * 40 + [1.0] * (len(SAFE[0]) - 40))
    worn = run("old", sums=BETTER[1], code=[0.0] * 38 + [1.0] * (len(SAFE[0]) - 38))
    rules = policy(against_anchor=True)
    assert gate(rules, candidate, champion, anchor).outcome == "promote"
    verdict = gate(rules, eroded, worn, anchor)
    assert verdict.outcome == "reject"
    assert [(check.against, check.outcome) for check in verdict.checks] == [
        ("champion", "pass"),
        ("champion", "pass"),
        ("anchor", "fail"),
    ]
    assert verdict.reasons[0].startswith("code against the anchor: lost")
    assert verdict.runs["anchor"] == "run-first"


def test_the_first_champion_is_its_own_anchor() -> None:
    candidate, champion = runs(sums=BETTER, code=SAFE)
    verdict = gate(policy(against_anchor=True), candidate, champion, champion)
    assert {check.against for check in verdict.checks} == {"champion"}


def test_an_anchor_that_is_wanted_must_be_given() -> None:
    with pytest.raises(UserError, match="holds its guards against an anchor too, and none was given"):
        gate(policy(against_anchor=True), *runs(sums=BETTER, code=SAFE))


def test_one_of_several_targets_is_enough_only_after_holm() -> None:
    rules = policy(
        require="any", targets=(target("sums"), target("code")), guards=(guard("sums", 0.2), guard("code", 0.2))
    )
    strong = gate(rules, *runs(sums=BETTER, code=SAFE))
    assert strong.outcome == "promote"
    weak = pairs(gained=11, lost=4, both=80)
    assert 0.025 < mcnemar_midp(11, 4) < 0.05
    verdict = gate(rules, *runs(sums=weak, code=SAFE))
    assert verdict.outcome == "inconclusive"
    assert verdict.checks[0].p == pytest.approx(2 * mcnemar_midp(11, 4))
    assert verdict.checks[0].low == 0.0
    assert gate(policy(targets=(target("sums"),)), *runs(sums=weak, code=SAFE)).outcome == "promote"


def test_all_targets_must_improve_where_all_are_required() -> None:
    rules = policy(targets=(target("sums"), target("chat")))
    level = [0.5] * 60
    verdict = gate(rules, *runs(sums=BETTER, chat=(level, level), code=SAFE))
    assert verdict.outcome == "inconclusive"
    assert verdict.reasons[0].startswith("chat: no difference on 60 pairs")


def test_two_guards_are_accused_together_only_after_holm() -> None:
    rules = policy(targets=(target("chat"),), guards=(guard("sums", 0.05), guard("code", 0.05)))
    level = ([0.7, 0.6] * 30, [0.5] * 60)
    suspect = pairs(gained=1, lost=12, both=87)
    p = float(stats.norm.cdf(tango_z(1, 12, 100, -0.05)))
    assert 0.025 < p < 0.05
    assert gate(rules, *runs(chat=level, sums=suspect, code=SAFE)).outcome == "inconclusive"
    alone = policy(targets=(target("chat"),), guards=(guard("sums", 0.05),))
    assert gate(alone, *runs(chat=level, sums=suspect, code=SAFE)).outcome == "reject"


def test_ungraded_pairs_count_at_their_worst() -> None:
    rules = policy(max_ungraded=0.1)
    candidate, champion = runs(sums=BETTER, code=SAFE)
    verdict = gate(rules, candidate, champion)
    new = SAFE[0]
    gaps = run("new", sums=BETTER[0], code=[*new[:-12], *[None] * 12])
    holey = gate(rules, gaps, champion)
    assert verdict.outcome == "promote" and holey.outcome == "inconclusive"
    assert "12 ungraded counted at their worst" in holey.reasons[0]
    assert "grade the 12 ungraded first" in holey.reasons[0]
    assert holey.checks[1].difference == 0.0
    assert holey.checks[1].low is not None and verdict.checks[1].low is not None
    assert holey.checks[1].low < verdict.checks[1].low - 0.05
    assert holey.checks[1].high is not None and verdict.checks[1].high is not None
    assert holey.checks[1].high >= verdict.checks[1].high
    few = run("new", sums=BETTER[0], code=[*new[:-1], None])
    assert gate(rules, few, champion).outcome == "promote"


def test_ungraded_pairs_cannot_prove_a_loss_either() -> None:
    rules = policy(max_ungraded=0.2)
    new, old = pairs(lost=28, both=72)
    assert gate(rules, *runs(sums=BETTER, code=(new[14:], old[14:]))).checks[1].outcome == "fail"
    verdict = gate(rules, *runs(sums=BETTER, code=([*[None] * 14, *new[14:]], old)))
    assert verdict.checks[1].outcome == "undecided"


def test_too_many_ungraded_pairs_decide_nothing() -> None:
    new, old = SAFE
    verdict = gate(policy(), *runs(sums=BETTER, code=([*new[:-8], *[None] * 8], old)))
    assert verdict.outcome == "inconclusive"
    assert verdict.reasons == ("code: 8 of 158 pairs are ungraded, more than the 2% allowed",)
    assert (verdict.checks[1].low, verdict.checks[1].p) == (None, None)
    nothing = gate(policy(), *runs(sums=([None] * 30, [1.0] * 30), code=SAFE))
    assert nothing.outcome == "inconclusive"
    assert nothing.checks[0].difference is None


def test_a_benchmark_that_a_run_lacks_is_never_a_pass() -> None:
    candidate = run("new", sums=BETTER[0])
    champion = run("old", sums=BETTER[1], code=SAFE[1])
    verdict = gate(policy(), candidate, champion)
    assert verdict.outcome == "inconclusive"
    assert verdict.reasons == ("code: run run-new does not have code, and nothing is shown without it",)


def test_the_candidate_is_not_its_own_rival() -> None:
    candidate, _ = runs(sums=BETTER, code=SAFE)
    with pytest.raises(UserError, match="the candidate is the champion"):
        gate(policy(), candidate, replace(candidate, run_id="another run of it"))


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"judge_identity": "j2"}, "the judge is j1 in the one and j2 in the other"),
        ({"protocol": {"shots": {"sums": 5}, "seed": 1}}, "the protocol's shots is {'sums': 8} in the one and"),
        ({"protocol_digest": "p2"}, "the protocol is p1 in the one and p2 in the other"),
        ({"engine": {"dtype": "bfloat16"}}, "the engine's dtype is float32 in the one and bfloat16 in the other"),
        (
            {"benchmarks": FACTS | {"sums": FACTS["sums"] | {"version": "2"}}},
            "the version of 'sums' is 1 in the one and 2 in the other",
        ),
    ],
)
def test_runs_made_differently_do_not_compare(changed: dict[str, Any], says: str) -> None:
    candidate, champion = runs(sums=BETTER, code=SAFE)
    other = replace(champion, manifest=champion.manifest | changed)
    with pytest.raises(UserError) as caught:
        gate(policy(), candidate, other)
    assert str(caught.value).startswith(f"runs run-new and run-old do not compare: {says}")
    require_comparable(candidate, champion, FACTS)


def test_runs_on_different_samples_do_not_compare() -> None:
    candidate = run("new", sums=BETTER[0], code=SAFE[0][:100])
    champion = run("old", sums=BETTER[1], code=SAFE[1])
    with pytest.raises(UserError, match="'code': 58 samples are in only one of the runs run-new and run-old"):
        gate(policy(), candidate, champion)


def test_what_no_run_has_is_named_with_the_nearest() -> None:
    typo = Policy(
        name="p",
        targets=(Target(benchmark="sum", metric="accuracy"),),
        guards=(Guard(benchmark="code", metric="acuracy", margin=0.1),),
        against_anchor=False,
    )
    with pytest.raises(UnknownName, match=r"no benchmark in these runs named 'sum'. Did you mean 'sums'?"):
        gate(typo, *runs(sums=BETTER, code=SAFE))
    with pytest.raises(UnknownName, match=r"no metric of 'code' named 'acuracy'. Did you mean 'accuracy'?"):
        gate(typo.model_copy(update={"targets": (target(),)}), *runs(sums=BETTER, code=SAFE))


def test_a_manifest_that_does_not_say_how_the_run_was_made_compares_with_nothing() -> None:
    with pytest.raises(UserError, match="run old does not say its protocol_digest"):
        RunData("old", "digest", {"judge_identity": None, "benchmarks": {}}, {})


def test_another_metric_of_a_benchmark_can_be_guarded() -> None:
    candidate, champion = runs(sums=BETTER, code=SAFE)
    for data, value in ((candidate, 0.0), (champion, 1.0)):
        assert isinstance(data.records, dict)
        data.records["code"] = [
            replace(r, score=replace(r.score, also={"strict": value})) for r in data.records["code"]
        ]
    strict = policy(guards=(Guard(benchmark="code", metric="strict", margin=0.1),))
    verdict = gate(strict, candidate, champion)
    assert verdict.outcome == "reject"
    assert verdict.checks[1].difference == -1.0
    assert gate(policy(), candidate, champion).outcome == "promote"


def test_swapping_the_runs_swaps_the_evidence() -> None:
    candidate, champion = runs(sums=BETTER, code=SAFE)
    one, other = gate(policy(), candidate, champion), gate(policy(), champion, candidate)
    for mine, theirs in zip(one.checks[1:], other.checks[1:], strict=True):
        assert mine.difference == -theirs.difference  # type: ignore[operator]
    assert one.outcome == "promote" and other.outcome == "reject"


def test_the_order_of_records_does_not_matter() -> None:
    rng = np.random.default_rng(2)
    chat = (rng.random(50).tolist(), rng.random(50).tolist())
    rules = policy(targets=(target("chat"),))
    candidate, champion = runs(chat=chat, code=SAFE)
    backwards = replace(candidate, records={name: list(reversed(r)) for name, r in candidate.records.items()})
    assert gate(rules, candidate, champion) == gate(rules, backwards, champion)


def test_a_finished_run_is_read_from_the_store_and_an_unfinished_one_is_not(store: Store) -> None:
    data = run("new", sums=[1.0, 0.0], code=[1.0])
    store.start_run(Run("run-new", "m", "new", "s", "p", None, "k", data.manifest))
    with pytest.raises(UserError):
        RunData.load(store, "run-new")
    for records in data.records.values():
        store.save_records("run-new", records)
    store.finish_run("run-new", Report("run-new", "m", "new", "s", "p", None, (), data.manifest))
    assert RunData.load(store, "run-new") == data


def test_a_full_gate_of_eighteen_thousand_pairs_takes_at_most_two_seconds_of_processor() -> None:
    rng = np.random.default_rng(0)
    sums, code = (rng.integers(0, 2, (2, n)).astype(float).tolist() for n in (14042, 2553))
    chat = rng.random((2, 1405)).tolist()
    rules = policy(targets=(target("chat"),), guards=(guard("sums"), guard("code")))
    candidate, champion = runs(chat=chat, sums=sums, code=code)
    start = time.process_time()
    gate(rules, candidate, champion)
    assert time.process_time() - start < 2
