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

from rlhf_bench.harness.compare import compare, flips
from rlhf_bench.harness.errors import UserError
from rlhf_bench.harness.stats import mcnemar_midp, sign_flip_p, tango_interval
from rlhf_bench.harness.types import Comparison, Record, Request, Sample, Score

Value = float | None
pairs_of_bits = st.lists(st.tuples(st.integers(0, 1), st.integers(0, 1)), min_size=1, max_size=40)
pairs_of_scores = st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), min_size=1, max_size=25)


def record(
    name: str, value: Value, *, digest: str = "", cluster: str = "", also: Mapping[str, float] | None = None
) -> Record:
    sample = Sample(name, (Request(name, f"ask {name}"),), "yes", {"cluster": cluster} if cluster else {})
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
    changed = flips(ours, theirs, benchmark="b", metric="m")
    assert [(mine.sample.id, other.sample.id) for mine, other in changed] == [
        ("s001",) * 2,
        ("s003",) * 2,
        ("s002",) * 2,
    ]
    assert [mine.score.value for mine, _ in changed] == [0.2, 0.0, 1.0]
