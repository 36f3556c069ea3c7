"""Comparisons pair by what was asked; nothing that is missing is dropped in silence."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import ttest_rel
from statsmodels.stats.multitest import multipletests

from rlhf_bench.harness.compare import (
    Contrast,
    Measure,
    Pairs,
    by_stratum,
    changed,
    compare,
    contrast,
    flips,
    macro_average,
    pair,
)
from rlhf_bench.harness.errors import UserError
from rlhf_bench.harness.stats import estimate, mcnemar_midp, sign_flip_p, tango_interval
from rlhf_bench.harness.types import Comparison, Completion, FinishReason, Record, Request, Sample, Score

Value = float | None
pairs_of_bits = st.lists(st.tuples(st.integers(0, 1), st.integers(0, 1)), min_size=1, max_size=40)
pairs_of_scores = st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), min_size=1, max_size=25)


def record(
    name: str,
    value: Value,
    *,
    digest: str = "",
    cluster: str = "",
    stratum: str = "",
    also: Mapping[str, float] | None = None,
) -> Record:
    tags = {tag: label for tag, label in (("cluster", cluster), ("stratum", stratum)) if label}
    sample = Sample(name, (Request(name, f"ask {name}"),), "yes", tags)
    return Record("b", digest or f"digest of {name}", sample, (), Score(name, value, also=also or {}))


def run(values: Sequence[Value]) -> list[Record]:
    return [record(f"s{i:03}", value) for i, value in enumerate(values)]


def binary(candidate: Sequence[Record], champion: Sequence[Record], level: float = 0.95) -> Comparison:
    return compare(candidate, champion, benchmark="b", metric="m", kind="binary", level=level)


def continuous(candidate: Sequence[Record], champion: Sequence[Record], level: float = 0.95) -> Comparison:
    return compare(candidate, champion, benchmark="b", metric="m", kind="continuous", level=level)


@given(pairs_of_bits)
def test_binary_scores_are_compared_by_mid_p_and_tango(rows: list[tuple[int, int]]) -> None:
    found = binary(run([a for a, _ in rows]), run([b for _, b in rows]))
    gained, lost = sum(a > b for a, b in rows), sum(a < b for a, b in rows)
    assert (found.gained, found.lost, found.paired) == (gained, lost, len(rows))
    assert (found.low, found.high) == tango_interval(gained, lost, len(rows))
    assert found.p == mcnemar_midp(gained, lost)
    assert found.difference == pytest.approx(found.candidate - found.champion)
    assert found.low <= found.difference <= found.high


def test_continuous_scores_are_compared_by_paired_t_and_sign_flips() -> None:
    rng = np.random.default_rng(0)
    ours, theirs = rng.random(30), rng.random(30)
    found = continuous(run(list(ours)), run(list(theirs)))
    expected = ttest_rel(ours, theirs).confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high))
    assert found.p == sign_flip_p(ours - theirs)
    assert found.method == "paired t, 30 items, sign flips"


@pytest.mark.parametrize("kind", ["binary", "continuous"])
def test_tagged_clusters_widen_the_interval(kind: str) -> None:
    ours, theirs = [1.0, 1.0, 1.0, 0.0, 0.0, 0.0] * 6, [0.0, 0.0, 0.0, 1.0, 0.0, 0.0] * 6
    alone = compare(run(ours), run(theirs), benchmark="b", metric="m", kind=kind)  # type: ignore[arg-type]
    tagged = [[record(f"s{i}", v, cluster=f"c{i // 3}") for i, v in enumerate(some)] for some in (ours, theirs)]
    grouped = compare(*tagged, benchmark="b", metric="m", kind=kind)  # type: ignore[arg-type]
    assert grouped.difference == alone.difference
    assert grouped.high - grouped.low > alone.high - alone.low
    assert "12 clusters" in grouped.method


@given(pairs_of_scores, st.randoms(use_true_random=False))
def test_the_order_of_records_does_not_matter(rows: list[tuple[float, float]], shuffler: random.Random) -> None:
    ours, theirs = run([a for a, _ in rows]), run([b for _, b in rows])
    expected = continuous(ours, theirs)
    shuffler.shuffle(ours)
    shuffler.shuffle(theirs)
    assert continuous(ours, theirs) == expected


@given(pairs_of_scores)
def test_swapping_the_runs_negates_the_difference(rows: list[tuple[float, float]]) -> None:
    ours, theirs = run([a for a, _ in rows]), run([b for _, b in rows])
    one, other = continuous(ours, theirs), continuous(theirs, ours)
    assert (-other.difference, -other.high, -other.low) == pytest.approx((one.difference, one.low, one.high), abs=1e-12)
    assert (other.gained, other.lost) == (one.lost, one.gained)


@given(pairs_of_bits, st.data())
def test_one_more_success_never_lowers_the_difference_or_its_bounds(
    rows: list[tuple[int, int]], data: st.DataObject
) -> None:
    ours, theirs = [a for a, _ in rows], [b for _, b in rows]
    at = data.draw(st.sampled_from(range(len(rows))))
    before = binary(run(ours), run(theirs))
    after = binary(run([*ours[:at], 1, *ours[at + 1 :]]), run(theirs))
    assert after.difference >= before.difference
    assert after.low >= before.low - 1e-12 and after.high >= before.high - 1e-12
    assert after.p <= before.p + 1e-12


@settings(max_examples=50, deadline=None)
@given(pairs_of_scores, st.floats(0.5, 0.98))
def test_a_higher_level_gives_a_wider_interval(rows: list[tuple[float, float]], level: float) -> None:
    ours, theirs = run([a for a, _ in rows]), run([b for _, b in rows])
    narrow, wide = continuous(ours, theirs, level), continuous(ours, theirs, level + 0.01)
    assert wide.low <= narrow.low + 1e-12
    assert wide.high >= narrow.high - 1e-12
    assert -1 <= narrow.low <= narrow.difference + 1e-12 and narrow.difference - 1e-12 <= narrow.high <= 1


def test_samples_pair_by_what_was_asked_and_not_by_name_or_place() -> None:
    ours = [record("x", 1.0, digest="q1"), record("y", 0.0, digest="q2")]
    theirs = [record("x", 0.0, digest="q2"), record("y", 1.0, digest="q1")]
    found = binary(ours, theirs)
    assert (found.paired, found.gained, found.lost) == (2, 0, 0)


def test_what_is_ungraded_on_either_side_is_counted() -> None:
    found = binary(run([1.0, None, 1.0, None, math.nan]), run([1.0, 1.0, None, None, 0.0]))
    assert (found.paired, found.ungraded) == (1, 4)
    assert found.candidate == found.champion == 1.0


def test_what_only_one_run_has_is_named() -> None:
    ours, theirs = run([1.0] * 4), run([1.0] * 3)
    assert binary(ours, theirs).unpaired == ("s003",)
    assert binary(theirs, ours).unpaired == ("s003",)


def test_a_question_asked_twice_is_paired_by_the_order_of_its_ids() -> None:
    ours = [record("b", 1.0, digest="q"), record("a", 0.0, digest="q"), record("c", 1.0, digest="q")]
    theirs = [record("a", 0.0, digest="q"), record("b", 1.0, digest="q")]
    found = binary(ours, theirs)
    assert (found.paired, found.gained, found.lost, found.unpaired) == (2, 0, 0, ("c",))


def test_another_metric_is_read_beside_the_benchmarks_own() -> None:
    ours = [record("a", 1.0, also={"strict": 0.0}), record("b", 1.0)]
    theirs = [record("a", 0.0, also={"strict": 1.0}), record("b", 1.0, also={"strict": 1.0})]
    found = compare(ours, theirs, benchmark="b", metric="strict", kind="binary")
    assert (found.difference, found.paired, found.ungraded) == (-1.0, 1, 1)


def test_other_benchmarks_of_a_run_are_left_alone() -> None:
    other = Record("other", "q", Sample("z", (Request("z", "?"),), ""), (), Score("z", 0.0))
    assert binary([*run([1.0]), other], run([1.0])).paired == 1


@pytest.mark.parametrize(
    ("ours", "theirs", "says"),
    [
        ([], [], "'b': no sample was asked alike in both runs (0 in all)"),
        ([1.0], [], "'b': no sample was asked alike in both runs (1 in all)"),
        ([None, 1.0], [1.0, None], "'b': not one of 2 samples is graded in both runs"),
        ([7.0], [1.0], "'b': m of sample 's000' is 7, not from 0 to 1"),
        ([0.5], [1.0], "'b' calls itself binary but has a score of 0.5"),
    ],
)
def test_what_does_not_compare_is_refused_in_one_line(ours: list[Value], theirs: list[Value], says: str) -> None:
    with pytest.raises(UserError) as caught:
        binary(run(ours), run(theirs))
    assert str(caught.value).startswith(says)
    assert "\n" not in str(caught.value)


def test_identical_scores_are_no_proof_of_equality() -> None:
    found = continuous(run([0.4] * 20), run([0.4] * 20))
    assert found.difference == 0 and found.p == 1
    assert found.low == pytest.approx(-(1 - 0.025 ** (1 / 20))) and found.high == -found.low


def test_a_single_pair_bounds_nothing_tightly() -> None:
    found = continuous(run([0.9]), run([0.1]))
    assert (found.low, found.high) == (-1.0, 1.0)


def test_flips_come_worst_first() -> None:
    ours, theirs = run([0.5, 0.2, 1.0, 0.0, None]), run([0.5, 1.0, 0.0, 0.1, 1.0])
    found = flips(ours, theirs, benchmark="b", metric="m")
    assert [(mine.sample.id, other.sample.id) for mine, other in found] == [
        ("s001",) * 2,
        ("s003",) * 2,
        ("s002",) * 2,
    ]
    assert [mine.score.value for mine, _ in found] == [0.2, 0.0, 1.0]
    assert changed(pair(ours, theirs, benchmark="b", metric="m"), "lower") == found[::-1]


def squares(records: Sequence[Record], scores: Sequence[float]) -> Sequence[float]:
    """A figure: the square of the mean, linearised."""
    mean = sum(scores) / len(scores)
    return [mean**2 + 2 * mean * (score - mean) for score in scores]


def test_a_figure_is_compared_by_its_linearised_values() -> None:
    rng = np.random.default_rng(3)
    theirs = rng.random(60)
    ours = np.clip(theirs + rng.normal(0.1, 0.1, 60), 0, 1)
    found = compare(run(list(ours)), run(list(theirs)), benchmark="b", metric="m2", kind="binary", figure=squares)
    a, b = (np.array(squares([], list(values))) for values in (ours, theirs))
    expected = ttest_rel(a, b).confidence_interval(0.95)
    assert (found.candidate, found.champion) == pytest.approx((ours.mean() ** 2, theirs.mean() ** 2))
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high))
    assert found.p == sign_flip_p(a - b)
    assert (found.gained, found.lost) == ((ours > theirs).sum(), (ours < theirs).sum())
    assert found.method == "paired t, 60 items, sign flips, linearised"


@given(st.lists(st.lists(st.floats(0, 1), min_size=2, max_size=8), min_size=2, max_size=6))
def test_the_macro_average_has_the_mean_and_the_error_of_fixed_strata(strata: list[list[float]]) -> None:
    values = [value for some in strata for value in some]
    labels = [f"x{number}" for number, some in enumerate(strata) for _ in some]
    records = [record(str(i), value, stratum=labels[i]) for i, value in enumerate(values)]
    found = np.array(macro_average(records, values))
    expected = estimate(values, kind="continuous", strata=labels)
    assert found.mean() == pytest.approx(expected.mean)
    assert found.std(ddof=1) / len(values) ** 0.5 == pytest.approx(expected.se, abs=1e-9)


def test_the_interval_of_a_figure_ends_where_its_scale_does() -> None:
    ours, theirs = run([1.0] * 19 + [0.9]), run([0.0] * 10 + [0.1] * 10)
    found = compare(ours, theirs, benchmark="b", metric="m2", kind="binary", figure=squares)
    assert found.difference > 0.98 and found.high == 1.0


def test_a_stratum_of_one_sample_has_no_spread_and_so_no_macro_average() -> None:
    records = [record("a", 1.0, stratum="x"), record("b", 1.0, stratum="x"), record("c", 1.0, stratum="y")]
    with pytest.raises(UserError, match="stratum 'y' has one graded sample"):
        macro_average(records, [1.0, 1.0, 1.0])


def test_a_figure_is_given_the_pairs_that_both_runs_graded() -> None:
    seen: list[list[str]] = []

    def counts(records: Sequence[Record], scores: Sequence[float]) -> Sequence[float]:
        seen.append([each.sample.id for each in records])
        return scores

    found = compare(
        run([1.0, None, 0.5]), run([1.0, 1.0, 0.0]), benchmark="b", metric="m", kind="binary", figure=counts
    )
    assert seen == [["s000", "s002"]] * 2
    assert (found.paired, found.ungraded) == (2, 1)


def seen_as(ours: Sequence[Value], theirs: Sequence[Value], kind: str, direction: str = "higher") -> Contrast:
    pairs = pair(run(ours), run(theirs), benchmark="b", metric="m")
    return contrast(pairs, Measure("b", "m", kind, direction))  # type: ignore[arg-type]


@settings(max_examples=40, deadline=None)
@given(st.one_of(pairs_of_bits, pairs_of_scores))
def test_where_lower_is_better_only_what_is_better_turns_round(rows: list[tuple[float, float]]) -> None:
    ours, theirs = [a for a, _ in rows], [b for _, b in rows]
    kind = "binary" if {*ours, *theirs} <= {0, 1} else "continuous"
    one, other = seen_as(ours, theirs, kind), seen_as(ours, theirs, kind, "lower")
    a, b = one.comparison, other.comparison
    assert (b.difference, b.low, b.high) == (a.difference, a.low, a.high)
    assert (b.gained, b.lost, b.p, other.p_worse) == (a.lost, a.gained, one.p_worse, a.p)
    assert other.shown == {"better": "worse", "worse": "better", "neither": "neither"}[one.shown]


@settings(max_examples=60, deadline=None)
@given(st.one_of(pairs_of_bits, pairs_of_scores), st.floats(0, 1))
def test_better_is_said_only_where_interval_and_p_both_show_it(rows: list[tuple[float, float]], shift: float) -> None:
    ours, theirs = [max(a, float(shift > 0.5)) for a, _ in rows], [b for _, b in rows]
    found = seen_as(ours, theirs, "binary" if {*ours, *theirs} <= {0, 1} else "continuous")
    better = found.comparison.low > 0 and 2 * found.comparison.p <= 0.05
    worse = found.comparison.high < 0 and 2 * found.p_worse <= 0.05
    assert found.shown == ("better" if better else "worse" if worse else "neither")


def test_a_shown_gain_and_a_shown_loss_are_told_apart() -> None:
    up, down = [1.0] * 12 + [0.0] * 20, [0.0] * 32
    assert [seen_as(a, b, "binary").shown for a, b in ((up, down), (down, up), (up, up))] == [
        "better",
        "worse",
        "neither",
    ]


def in_strata(gains: Sequence[int], size: int = 30) -> Pairs:
    """Strata of binary pairs, in the n-th of which so many are gained."""
    labels = [f"subject {number}" for number in range(len(gains)) for _ in range(size)]
    won = [float(place < gain) for gain in gains for place in range(size)]
    ours, theirs = (
        [record(f"s{i:04}", values[i], stratum=label) for i, label in enumerate(labels)]
        for values in (won, [0.0] * len(won))
    )
    return pair(ours, theirs, benchmark="b", metric="m")


def test_strata_are_marked_by_holm_over_all_of_them() -> None:
    pairs = in_strata([5, 6, 8, 16, 0, 1])
    found = by_stratum(pairs, Measure("b", "m", "binary"))
    assert list(found) == [f"subject {number}" for number in range(6)]
    known = [each for each in found.values() if each is not None]
    expected = multipletests([each.p_two_sided for each in known], method="holm")[1]
    assert [each.adjusted for each in known] == pytest.approx(list(expected))
    assert [each.shown for each in known] == ["neither", "neither", "better", "better", "neither", "neither"]
    assert seen_as([1.0] * 6 + [0.0] * 24, [0.0] * 30, "binary").shown == "better"


def test_a_stratum_is_compared_as_if_it_were_alone() -> None:
    found = by_stratum(in_strata([3, 12]), Measure("b", "m", "binary"))["subject 1"]
    assert found is not None
    assert found.comparison == seen_as([1.0] * 12 + [0.0] * 18, [0.0] * 30, "binary").comparison


def test_a_stratum_that_no_run_graded_is_there_and_empty() -> None:
    ours = [record("a", 1.0, stratum="x"), record("b", None, stratum="y"), record("c", 1.0)]
    theirs = [record("a", 0.0, stratum="x"), record("b", 1.0, stratum="y"), record("c", 0.0)]
    found = by_stratum(pair(ours, theirs, benchmark="b", metric="m"), Measure("b", "m", "binary"))
    assert found["y"] is None and found["x"] is not None and found["x"].comparison.paired == 1
    assert set(found) == {"x", "y"}
    assert by_stratum(pair(ours[2:], theirs[2:], benchmark="b", metric="m"), Measure("b", "m", "binary")) == {}


def lengths(chars: Sequence[float]) -> list[Record]:
    return [record(f"s{i:03}", 0.5, also={"length_chars": each}) for i, each in enumerate(chars)]


def test_a_metric_off_the_scale_is_compared_on_its_own() -> None:
    rng = np.random.default_rng(0)
    theirs = rng.integers(100, 900, 40).astype(float)
    ours = theirs + rng.integers(-50, 90, 40)
    pairs = pair(lengths(list(ours)), lengths(list(theirs)), benchmark="b", metric="m").reading("length_chars")
    found = contrast(pairs, Measure("b", "length_chars", pairs.kind)).comparison
    expected = ttest_rel(ours, theirs).confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high))
    assert found.kind == "continuous"


def test_a_metric_off_the_scale_that_differs_everywhere_alike_bounds_nothing() -> None:
    pairs = pair(lengths([150.0] * 5), lengths([100.0] * 5), benchmark="b", metric="m").reading("length_chars")
    with pytest.raises(UserError, match="length_chars differs by 50 on each of 5 pairs, which bounds nothing"):
        contrast(pairs, Measure("b", "length_chars", "continuous"))


def test_what_one_side_has_no_value_of_is_ungraded_in_that_metric() -> None:
    ours = [record("a", 1.0, also={"strict": 1.0}), record("b", 1.0)]
    theirs = [record("a", 0.0, also={"strict": 0.0}), record("b", 0.0, also={"strict": 0.0})]
    pairs = pair(ours, theirs, benchmark="b", metric="m").reading("strict")
    found = contrast(pairs, Measure("b", "strict", pairs.kind)).comparison
    assert (found.kind, found.paired, found.ungraded, found.difference) == ("binary", 1, 1, 1.0)


def test_answers_that_were_cut_are_counted_on_both_sides() -> None:
    def cut(reasons: Sequence[FinishReason]) -> list[Record]:
        return [
            Record(
                each.benchmark, each.digest, each.sample, (Completion(each.sample.id, 0, "", reason, 1),), each.score
            )
            for each, reason in zip(run([1.0] * 3), reasons, strict=True)
        ]

    pairs = pair(cut(["length", "stop", "length"]), cut(["stop", "stop", "length"]), benchmark="b", metric="m")
    assert contrast(pairs, Measure("b", "m", "binary")).cut == (2, 1)
