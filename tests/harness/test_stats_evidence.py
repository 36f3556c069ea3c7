"""Bounds and p-values that decide a check: they agree with each other, and err as often as they say."""

from __future__ import annotations

import math
from collections.abc import Callable
from random import Random

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import stats

from rlhf_bench.harness.stats import (
    Evidence,
    binary_evidence,
    bootstrap_t,
    continuous_evidence,
    mcnemar_midp,
    sign_flip_p,
    tango_z,
)

Sampler = Callable[[np.random.Generator, int], NDArray[np.float64]]
differences = st.lists(st.sampled_from([-1.0, -0.5, -0.2, 0.0, 0.0, 0.3, 0.5, 1.0]), min_size=1, max_size=40)
thresholds = st.sampled_from([-0.3, -0.1, -0.05, 0.0, 0.02, 0.1])
alphas = st.sampled_from([0.01, 0.05, 0.1, 0.25])


def assert_agrees(evidence: Evidence, threshold: float, alpha: float) -> None:
    if evidence.p_above < alpha:
        assert evidence.low > threshold
    if evidence.p_below < alpha:
        assert evidence.high < threshold
    assert not (evidence.p_above < alpha and evidence.p_below < alpha)


@given(st.integers(0, 60), st.integers(0, 60), st.integers(0, 200), thresholds, alphas)
def test_binary_bound_and_p_never_contradict(gained: int, lost: int, same: int, threshold: float, alpha: float) -> None:
    n = gained + lost + same + 1
    assert_agrees(binary_evidence(gained, lost, n, threshold=threshold, alpha=alpha), threshold, alpha)


@settings(max_examples=150, deadline=None)
@given(differences, thresholds, alphas, st.booleans())
def test_continuous_bound_and_p_never_contradict(
    d: list[float], threshold: float, alpha: float, in_clusters: bool
) -> None:
    clusters = [str(i // 2) for i in range(len(d))] if in_clusters else None
    evidence = continuous_evidence(d, clusters, threshold=threshold, alpha=alpha, resamples=500)
    assert_agrees(evidence, threshold, alpha)
    if threshold != 0.0 and abs(evidence.low - threshold) > 1e-9:
        assert (evidence.low > threshold) == (evidence.p_above < alpha)
    assert -1 <= evidence.low <= np.mean(d) + 1e-9 or in_clusters
    assert evidence.low <= evidence.high


@settings(max_examples=60, deadline=None)
@given(differences, alphas)
@example([-0.5, 0.5, 0.5], 0.01)
def test_swapping_the_runs_swaps_the_bounds(d: list[float], alpha: float) -> None:
    one = continuous_evidence(d, threshold=-0.1, alpha=alpha, resamples=500)
    other = continuous_evidence(-np.array(d), threshold=0.1, alpha=alpha, resamples=500)
    assert (-other.high, -other.low) == pytest.approx((one.low, one.high), abs=1e-9)
    assert (other.p_below, other.p_above) == pytest.approx((one.p_above, one.p_below), abs=1e-9)


@settings(max_examples=60, deadline=None)
@given(differences, st.booleans(), thresholds, st.randoms(use_true_random=False))
def test_the_order_of_the_items_changes_nothing(
    d: list[float], in_clusters: bool, threshold: float, random: Random
) -> None:
    rows = [(value, str(i // 3)) for i, value in enumerate(d)]
    mixed = list(rows)
    random.shuffle(mixed)
    one, other = (
        continuous_evidence(
            [value for value, _ in some],
            [label for _, label in some] if in_clusters else None,
            threshold=threshold,
            alpha=0.05,
            resamples=500,
        )
        for some in (rows, mixed)
    )
    assert tuple(one) == pytest.approx(tuple(other), abs=1e-9)


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 10), st.sampled_from([-0.15, -0.05, 0.0, 0.03]))
def test_an_item_changed_in_the_candidates_favour_never_speaks_against_it(n: int, threshold: float) -> None:
    found = {
        (gained, lost): binary_evidence(gained, lost, n, threshold=threshold, alpha=0.05)
        for gained in range(n + 1)
        for lost in range(n + 1 - gained)
    }
    for (gained, lost), before in found.items():
        for better in ((gained + 1, lost), (gained, lost - 1), (gained + 1, lost - 1)):
            if better in found:
                after = found[better]
                assert after.low >= before.low - 1e-12 and after.high >= before.high - 1e-12
                # p-values above one half say nothing, and are no more than that
                assert min(after.p_above, 0.5) <= min(before.p_above, 0.5) + 1e-12
                assert min(after.p_below, 0.5) >= min(before.p_below, 0.5) - 1e-12


@given(st.integers(0, 60), st.integers(0, 60), st.integers(0, 200), thresholds)
def test_swapped_counts_swap_binary_evidence(gained: int, lost: int, same: int, threshold: float) -> None:
    n = gained + lost + same + 1
    one = binary_evidence(gained, lost, n, threshold=threshold, alpha=0.05)
    other = binary_evidence(lost, gained, n, threshold=-threshold, alpha=0.05)
    assert (-other.high, -other.low) == pytest.approx((one.low, one.high), abs=1e-12)
    assert (other.p_below, other.p_above) == pytest.approx((one.p_above, one.p_below), abs=1e-12)


def test_superiority_needs_the_exact_test_too() -> None:
    found = binary_evidence(13, 5, 60, threshold=0.0, alpha=0.05)
    assert stats.norm.sf(8 / np.sqrt(18)) < 0.05
    assert found.p_above == mcnemar_midp(13, 5) < 0.05
    d = np.random.default_rng(0).normal(0.1, 0.3, 60).clip(-1, 1)
    assert continuous_evidence(d, threshold=0.0, alpha=0.05).p_above == sign_flip_p(d)


def test_mid_p_is_the_stricter_of_the_two_so_that_it_decides() -> None:
    strictest = [
        mcnemar_midp(gained, m - gained) >= 0.05
        for m in range(1, 120)
        for gained in range(m + 1)
        if stats.norm.sf((2 * gained - m) / np.sqrt(m)) >= 0.05
    ]
    assert all(strictest)


@pytest.mark.parametrize("n", [1, 3, 40, 80, 805])
def test_equal_answers_show_no_more_than_the_rule_of_three(n: int) -> None:
    found = continuous_evidence(np.zeros(n), threshold=-0.05, alpha=0.05)
    assert found.low == pytest.approx(-(1 - 0.05 ** (1 / n)))
    assert found.high == pytest.approx(-found.low, abs=1e-9)
    assert found.p_above == pytest.approx(0.95**n)
    assert (found.p_above < 0.05) == (n >= 59)


def test_a_single_difference_among_equal_answers_is_no_certainty_either() -> None:
    d = np.zeros(100)
    d[17] = -0.01
    found = continuous_evidence(d, threshold=-0.02, alpha=0.05)
    assert found.low < -0.025
    assert found.p_above > 0.05


def test_a_constant_gain_is_shown() -> None:
    found = continuous_evidence(np.full(30, 0.5), threshold=0.0, alpha=0.05)
    assert 0.3 < found.low < 0.5 and found.p_above < 0.05


def test_many_even_differences_give_the_normal_bound() -> None:
    d = np.random.default_rng(1).normal(0.01, 0.2, 4000).clip(-1, 1)
    found = continuous_evidence(d, threshold=-0.02, alpha=0.05)
    se = d.std(ddof=1) / np.sqrt(d.size)
    assert found.low == pytest.approx(d.mean() - 1.645 * se, abs=0.05 * se)
    assert found.high == pytest.approx(d.mean() + 1.645 * se, abs=0.05 * se)


def error_rate(draw: Sampler, mean: float, n: int, alpha: float = 0.05, repeats: int = 200) -> float:
    """How often a difference whose mean is exactly the threshold is called above it."""
    rng = np.random.default_rng(n)
    wrong = 0
    for _ in range(repeats):
        wrong += continuous_evidence(draw(rng, n), threshold=mean, alpha=alpha, resamples=300).p_above < alpha
    return wrong / repeats


def rarely_all(share: float, spread: float) -> Sampler:
    """A total loss for this share of the items, almost nothing for the others."""
    return lambda rng, n: np.where(rng.random(n) < share, -1.0, rng.uniform(-spread, spread, n))


@pytest.mark.parametrize(("n", "share"), [(20, 0.1), (40, 0.05), (80, 0.02)])
@pytest.mark.parametrize("spread", [0.01, 0.2])
def test_rare_total_losses_are_not_called_safe_more_often_than_alpha(n: int, share: float, spread: float) -> None:
    assert error_rate(rarely_all(share, spread), -share, n) <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / 200)


def test_the_bootstrap_alone_would_call_rare_total_losses_safe() -> None:
    rng, wrong = np.random.default_rng(0), 0
    for _ in range(200):
        d = rarely_all(0.05, 0.01)(rng, 40)
        wrong += continuous_evidence(d, threshold=-0.05, alpha=0.05, resamples=300, bounded=False).p_above < 0.05
    assert wrong / 200 > 0.08


@pytest.mark.parametrize(("sd", "n"), [(0.3, 80), (0.2, 164), (0.3, 805), (0.1, 805)])
@pytest.mark.parametrize("alpha", [0.05, 0.0167])
def test_ordinary_differences_pay_nothing_for_that(sd: float, n: int, alpha: float) -> None:
    d = np.random.default_rng(n).normal(0.0, sd, n).clip(-1, 1)
    careful, plain = (
        continuous_evidence(d, threshold=-0.1, alpha=alpha, bounded=bounded).low for bounded in (True, False)
    )
    assert 1.0 <= (careful - d.mean()) / (plain - d.mean()) < 1.03


def test_a_figure_of_no_fixed_scale_is_neither_cut_nor_bounded_by_one() -> None:
    d = np.random.default_rng(3).normal(-4.0, 3.0, 60)
    found = continuous_evidence(d, threshold=0.0, alpha=0.05, bounded=False)
    half = 1.671 * d.std(ddof=1) / math.sqrt(60)
    assert found.low == pytest.approx(d.mean() - half, abs=0.15 * half) and found.low < -1
    assert found.high == pytest.approx(d.mean() + half, abs=0.15 * half) and found.high < -1
    assert found.p_below < 0.05 < found.p_above
    scaled = continuous_evidence(d / 10, threshold=0.0, alpha=0.05, bounded=False)
    assert (scaled.low * 10, scaled.high * 10) == pytest.approx((found.low, found.high))


def test_a_figure_without_spread_shows_nothing() -> None:
    found = continuous_evidence(np.full(50, 0.3), threshold=0.0, alpha=0.05, bounded=False)
    assert found == (-math.inf, math.inf, 1.0, 1.0)


@pytest.mark.parametrize("alpha", [1e-3, 1e-4])
def test_a_small_alpha_draws_as_many_resamples_as_it_needs(alpha: float) -> None:
    d = np.random.default_rng(5).normal(0.0, 0.3, 60)
    found = continuous_evidence(d, threshold=-0.5, alpha=alpha, resamples=200, bounded=False)
    t = bootstrap_t(np.sort(d), np.ones(60), resamples=math.ceil(10 / alpha))
    assert found.p_above < alpha
    assert found.low == pytest.approx(d.mean() - np.quantile(t, 1 - alpha) * d.std(ddof=1) / math.sqrt(60), abs=0.03)


@pytest.mark.parametrize("size", [2, 8])
def test_clusters_that_stand_or_fall_together_count_once(size: int) -> None:
    rng = np.random.default_rng(size)
    own = rng.normal(0.0, 0.3, 80).clip(-1, 1)
    labels = [str(i) for i in range(80) for _ in range(size)]
    alone = continuous_evidence(own, [str(i) for i in range(80)], threshold=-0.05, alpha=0.05)
    together = continuous_evidence(np.repeat(own, size), labels, threshold=-0.05, alpha=0.05)
    assert tuple(together) == pytest.approx(tuple(alone), abs=1e-9)


@pytest.mark.parametrize(("gained", "lost", "n", "threshold"), [(0, 0, 20, -0.1227), (0, 0, 40, -0.0647)])
def test_where_the_normal_tail_errs_the_exact_one_decides(gained: int, lost: int, n: int, threshold: float) -> None:
    assert stats.norm.sf(tango_z(gained, lost, n, threshold)) < 0.05
    assert binary_evidence(gained, lost, n, threshold=threshold, alpha=0.05).p_above >= 0.05


def test_non_inferiority_by_bootstrap_errs_about_one_time_in_twenty() -> None:
    rng = np.random.default_rng(11)
    margin, wrong, repeats = 0.1, 0, 300
    for _ in range(repeats):  # skewed differences with a mean of exactly -margin
        d = rng.choice([0.15, 0.0, -0.9], size=80, p=[0.4, 0.4222222222222222, 0.17777777777777778])
        wrong += continuous_evidence(d, threshold=-margin, alpha=0.05, resamples=400).p_above < 0.05
    assert 0.02 <= wrong / repeats <= 0.085


def test_superiority_by_sign_flips_errs_about_one_time_in_twenty() -> None:
    rng = np.random.default_rng(12)
    repeats = 300
    wrong = sum(
        continuous_evidence(rng.choice([-0.5, 0.0, 0.5], size=60), threshold=0.0, alpha=0.05, resamples=400).p_above
        < 0.05
        for _ in range(repeats)
    )
    assert 0.02 <= wrong / repeats <= 0.085


@given(st.integers(2, 600), st.sampled_from([0.0, 0.1, -0.05, 1 / 3]), st.sampled_from([0.0, -0.02, 0.05]))
@example(20, 0.0, 0.0)
@settings(max_examples=60, deadline=None)
def test_differences_that_are_all_alike_have_evidence_however_many(n: int, level: float, margin: float) -> None:
    found = continuous_evidence([level] * n, threshold=margin, alpha=0.05)
    assert found.low <= level <= found.high
    assert found.p_above >= 0.999 or level > margin
    assert found.p_below >= 0.999 or level < margin
