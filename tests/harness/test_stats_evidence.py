"""Bounds and p-values that decide a check: they agree with each other, and err as often as they say."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from rlhf_bench.harness.stats import Evidence, binary_evidence, continuous_evidence, mcnemar_midp, sign_flip_p

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
def test_swapping_the_runs_swaps_the_bounds(d: list[float], alpha: float) -> None:
    one = continuous_evidence(d, threshold=-0.1, alpha=alpha, resamples=500)
    other = continuous_evidence(-np.array(d), threshold=0.1, alpha=alpha, resamples=500)
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
    assert found.high == -found.low
    assert found.p_above == pytest.approx(0.95**n)
    assert (found.p_above < 0.05) == (n >= 59)


def test_a_single_difference_among_equal_answers_is_no_certainty_either() -> None:
    d = np.zeros(100)
    d[17] = -0.01
    found = continuous_evidence(d, threshold=-0.02, alpha=0.05)
    assert found.low < -0.03
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


def test_non_inferiority_by_bootstrap_errs_about_one_time_in_twenty() -> None:
    rng = np.random.default_rng(11)
    margin, wrong, repeats = 0.1, 0, 800
    for _ in range(repeats):  # skewed differences with a mean of exactly -margin
        d = rng.choice([0.15, 0.0, -0.9], size=80, p=[0.4, 0.4222222222222222, 0.17777777777777778])
        wrong += continuous_evidence(d, threshold=-margin, alpha=0.05, resamples=400).p_above < 0.05
    assert 0.03 <= wrong / repeats <= 0.075


def test_superiority_by_sign_flips_errs_about_one_time_in_twenty() -> None:
    rng = np.random.default_rng(12)
    repeats = 800
    wrong = sum(
        continuous_evidence(rng.choice([-0.5, 0.0, 0.5], size=60), threshold=0.0, alpha=0.05, resamples=400).p_above
        < 0.05
        for _ in range(repeats)
    )
    assert 0.03 <= wrong / repeats <= 0.07
