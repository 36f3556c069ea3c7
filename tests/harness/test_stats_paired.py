"""Paired tests against scipy, brute force, exact enumeration and the reference's golden numbers."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import optimize, special, stats
from statsmodels.stats.contingency_tables import mcnemar

from rlhf_bench.harness.stats import (
    bootstrap_t,
    mcnemar_midp,
    mean_interval,
    sign_flip_p,
    tango_exact_p,
    tango_interval,
    tango_low,
    tango_z,
)

Z95 = float(stats.norm.ppf(0.95))


@st.composite
def tables(draw: st.DrawFn) -> tuple[int, int, int]:
    """(gained, lost, n)"""
    n = draw(st.integers(1, 300))
    gained = draw(st.integers(0, n))
    return gained, draw(st.integers(0, n - gained)), n


def all_tables(n: int, most: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    gained, lost = np.meshgrid(np.arange(most + 1), np.arange(most + 1), indexing="ij")
    inside = gained + lost <= n
    return gained[inside], lost[inside]


def probability(gained: NDArray[np.int64], lost: NDArray[np.int64], n: int, p_gain: float, p_loss: float) -> NDArray:
    same = n - gained - lost
    choose = special.gammaln(n + 1) - sum(special.gammaln(x + 1) for x in (gained, lost, same))
    logs = special.xlogy(gained, p_gain) + special.xlogy(lost, p_loss) + special.xlogy(same, 1 - p_gain - p_loss)
    return np.exp(choose + logs)


@given(tables())
def test_mid_p_is_the_exact_p_less_half_the_observed_probability(table: tuple[int, int, int]) -> None:
    gained, lost, _ = table
    m = gained + lost
    exact = float(stats.binom.sf(gained - 1, m, 0.5))
    assert mcnemar_midp(gained, lost) == pytest.approx(exact - stats.binom.pmf(gained, m, 0.5) / 2, abs=1e-12)
    assert mcnemar_midp(gained, lost) + mcnemar_midp(lost, gained) == pytest.approx(1)


def test_the_exact_part_of_mid_p_is_mcnemars_of_statsmodels() -> None:
    two_sided = mcnemar([[30, 4], [13, 40]], exact=True).pvalue
    assert 2 * (mcnemar_midp(13, 4) + stats.binom.pmf(13, 17, 0.5) / 2) == pytest.approx(two_sided)


@pytest.mark.parametrize(
    ("n", "discordance", "by_midp"), [(80, 0.15, 0.045), (164, 0.10, 0.049), (500, 0.12, 0.049), (1319, 0.12, 0.049)]
)
def test_mid_p_errs_as_often_as_the_reference_table_says(n: int, discordance: float, by_midp: float) -> None:
    rate = 0.0
    for m, share in enumerate(stats.binom.pmf(np.arange(n + 1), n, discordance)):
        if share > 1e-9:
            rejected = [g for g in range(m + 1) if mcnemar_midp(g, m - g) < 0.05]
            rate += share * stats.binom.pmf(rejected, m, 0.5).sum()
    assert rate == pytest.approx(by_midp, abs=1.5e-3)  # the table is a simulation of 200,000


@pytest.mark.parametrize(("gained", "lost", "n", "difference"), [(9, 3, 50, -0.1), (0, 7, 30, -0.05), (5, 5, 12, 0.2)])
def test_tangos_statistic_is_the_score_test_at_the_restricted_maximum(
    gained: int, lost: int, n: int, difference: float
) -> None:
    def minus_log_likelihood(q: float) -> float:
        same = n - gained - lost
        return -float(
            special.xlogy(gained, q + difference) + special.xlogy(lost, q) + special.xlogy(same, 1 - 2 * q - difference)
        )

    bounds = (max(0.0, -difference), (1 - difference) / 2)
    q = optimize.minimize_scalar(minus_log_likelihood, bounds=bounds, method="bounded", options={"xatol": 1e-12}).x
    expected = (gained - lost - n * difference) / np.sqrt(n * (2 * q + difference * (1 - difference)))
    assert tango_z(gained, lost, n, difference) == pytest.approx(expected, rel=1e-5)


def test_tango_against_no_difference_is_mcnemars_statistic() -> None:
    assert tango_z(9, 3, 50, 0.0) == pytest.approx(6 / np.sqrt(12))
    assert tango_z(0, 0, 50, 0.0) == 0


@pytest.mark.parametrize(
    ("n", "margin", "discordance", "size", "power", "most"),
    [
        (164, 0.05, 0.10, 0.044, 0.60, 60),
        (1172, 0.02, 0.08, 0.049, 0.77, 130),
        (14042, 0.01, 0.10, 0.050, 0.98, 950),
    ],
)
def test_size_and_power_of_tango_are_the_reference_tables(
    n: int, margin: float, discordance: float, size: float, power: float, most: int
) -> None:
    gained, lost = all_tables(n, most)
    safe = tango_z(gained, lost, n, -margin) > Z95
    for difference, expected in ((-margin, size), (0.0, power)):
        shares = probability(gained, lost, n, (discordance + difference) / 2, (discordance - difference) / 2)
        assert shares.sum() == pytest.approx(1, abs=1e-3)
        assert shares[safe].sum() == pytest.approx(expected, abs=6e-3)


@pytest.mark.parametrize("n", [40, 80, 164])
@pytest.mark.parametrize("margin", [0.02, 0.05, 0.1])
def test_tango_wrongly_calls_safe_at_most_six_times_in_a_hundred_whatever_the_discordance(
    n: int, margin: float
) -> None:
    gained, lost = all_tables(n, n)
    safe = tango_z(gained, lost, n, -margin) > Z95
    worst = max(probability(gained, lost, n, p, p + margin)[safe].sum() for p in np.linspace(0, 0.45, 10))
    assert 0.03 < worst <= 0.061


@pytest.mark.parametrize(("gained", "lost", "n", "difference"), [(2, 3, 12, -0.1), (0, 0, 15, -0.2), (6, 1, 20, 0.1)])
def test_tangos_exact_tail_is_the_sum_over_all_tables(gained: int, lost: int, n: int, difference: float) -> None:
    def minus_log_likelihood(q: float) -> float:
        same = n - gained - lost
        return -float(
            special.xlogy(gained, q + difference) + special.xlogy(lost, q) + special.xlogy(same, 1 - 2 * q - difference)
        )

    bounds = (max(0.0, -difference), (1 - difference) / 2)
    q = optimize.minimize_scalar(minus_log_likelihood, bounds=bounds, method="bounded", options={"xatol": 1e-12}).x
    b, c = all_tables(n, n)
    far = tango_z(b, c, n, difference) >= tango_z(gained, lost, n, difference) - 1e-9
    expected = probability(b, c, n, max(q + difference, 0.0), q)[far].sum()
    assert tango_exact_p(gained, lost, n, difference) == pytest.approx(expected, rel=1e-4)


def test_tangos_exact_tail_of_nothing_lost_is_the_binomials() -> None:
    assert tango_exact_p(0, 0, 30, -0.1) == pytest.approx(0.9**30)
    assert tango_exact_p(600, 650, 14042, -0.01) == pytest.approx(
        stats.norm.sf(tango_z(600, 650, 14042, -0.01)), rel=0.05
    )


@pytest.mark.parametrize("n", [20, 40])
def test_with_its_exact_tail_tango_errs_at_most_as_often_as_it_says(n: int) -> None:
    gained, lost = all_tables(n, n)
    for margin, alpha in ((0.0743, 0.05), (0.0647, 0.05), (0.1227, 0.0167), (0.034, 0.05)):
        near = np.flatnonzero(tango_z(gained, lost, n, -margin) > stats.norm.ppf(1 - alpha))
        exact = [tango_exact_p(int(gained[i]), int(lost[i]), n, -margin) for i in near]
        safe = near[np.array(exact) < alpha]
        for p in (0.0, 0.003, 0.02, 0.1, 0.3):
            assert probability(gained, lost, n, p, p + margin)[safe].sum() <= alpha * 1.04


@pytest.mark.parametrize("n", [20, 80])
def test_tangos_interval_covers_at_its_level(n: int) -> None:
    gained, lost = all_tables(n, n)
    low, high = tango_low(gained, lost, n, 0.025), -tango_low(lost, gained, n, 0.025)
    for p_gain, p_loss in ((0.05, 0.05), (0.1, 0.2), (0.3, 0.3), (0.02, 0.3)):
        covers = (low <= p_gain - p_loss) & (p_gain - p_loss <= high)
        assert 0.93 < probability(gained, lost, n, p_gain, p_loss)[covers].sum() < 0.99


@given(tables(), st.floats(0.5, 0.98))
def test_tangos_interval_is_symmetric_holds_the_difference_and_widens(
    table: tuple[int, int, int], level: float
) -> None:
    gained, lost, n = table
    low, high = tango_interval(gained, lost, n, level)
    swapped = tango_interval(lost, gained, n, level)
    wide = tango_interval(gained, lost, n, level + 0.01)
    assert (-swapped[1], -swapped[0]) == pytest.approx((low, high), abs=1e-12)
    assert -1 <= low <= (gained - lost) / n <= high <= 1
    assert wide[0] <= low + 1e-12 and wide[1] >= high - 1e-12


@given(tables())
def test_one_more_success_never_lowers_tangos_bound(table: tuple[int, int, int]) -> None:
    gained, lost, n = table
    low = tango_low(gained, lost, n, 0.05)
    if lost:
        assert tango_low(gained, lost - 1, n, 0.05) >= low - 1e-12
    if gained + lost < n:
        assert tango_low(gained + 1, lost, n, 0.05) >= low - 1e-12


@given(tables(), st.floats(-0.9, 0.9), st.floats(0.01, 0.2))
def test_tangos_bound_and_statistic_decide_alike(table: tuple[int, int, int], threshold: float, alpha: float) -> None:
    low = float(tango_low(*table, alpha))
    if abs(low - threshold) > 1e-9:
        assert (low > threshold) == (tango_z(*table, threshold) > stats.norm.ppf(1 - alpha))


@pytest.mark.parametrize("n", [1, 5, 20, 164, 14042])
def test_nothing_changed_is_not_certainty(n: int) -> None:
    assert tango_low(0, 0, n, 0.05) == pytest.approx(-(Z95**2) / (n + Z95**2))
    assert tango_interval(0, n, n)[0] == pytest.approx(-1)


def test_the_paired_interval_is_scipys() -> None:
    rng = np.random.default_rng(3)
    ours, theirs = rng.random(25), rng.random(25)
    expected = stats.ttest_rel(ours, theirs).confidence_interval(0.95)
    found = mean_interval(ours - theirs, np.ones(25))
    assert found.method.startswith("t, ") and found[1:3] == pytest.approx((expected.low, expected.high))


def test_sign_flips_agree_with_all_sign_patterns() -> None:
    d = np.array([0.5, -0.25, 0.5, 0.75, -0.5, 0.25, 0.0, 1.0, 0.5, -0.25])
    sums = [np.dot(signs, d) for signs in itertools.product((1, -1), repeat=len(d))]
    assert sign_flip_p(d) == pytest.approx(np.mean(np.array(sums) >= d.sum() - 1e-9), abs=0.012)


def test_sign_flips_turn_whole_clusters() -> None:
    d, clusters = [0.2, 0.3, 0.1, 0.4, 0.2, 0.1], ["a", "a", "a", "b", "b", "b"]
    assert sign_flip_p(d, clusters) == pytest.approx(1 / 4, abs=0.015)
    assert sign_flip_p(d) == pytest.approx(1 / 64, abs=0.005)


def test_sign_flips_find_nothing_where_nothing_changed() -> None:
    assert sign_flip_p(np.zeros(30)) == 1.0


def test_no_p_value_of_sign_flips_is_zero() -> None:
    assert sign_flip_p(np.ones(200), flips=99) == 0.01


def test_bootstrap_t_draws_from_all_resamples_alike() -> None:
    sums, sizes = np.array([0.9, -0.2, 0.4]), np.array([2.0, 1.0, 1.0])
    mean = sums.sum() / sizes.sum()

    def t(picks: tuple[int, ...]) -> float:
        s, n = sums[list(picks)], sizes[list(picks)]
        shifted = s.sum() / n.sum()
        spread = ((s - shifted * n) ** 2).sum()
        return float("nan") if spread < 1e-12 else (shifted - mean) / (np.sqrt(1.5 * spread) / n.sum())

    expected = np.array([t(picks) for picks in itertools.product(range(3), repeat=3)])
    found = bootstrap_t(sums, sizes, resamples=27_000)
    assert np.isnan(found).mean() == pytest.approx(3 / 27, abs=0.01)
    for value in np.unique(np.round(expected[~np.isnan(expected)], 6)):
        share = np.mean(np.abs(expected - value) < 1e-5)
        assert np.mean(np.abs(found - value) < 1e-5) == pytest.approx(share, abs=0.015)


def test_bootstrap_t_does_not_hang_on_how_the_items_are_stored() -> None:
    d = np.random.default_rng(0).normal(size=37)
    assert np.array_equal(bootstrap_t(d, np.ones(37), seed=4), bootstrap_t(d, np.ones(37), seed=4), equal_nan=True)
    assert np.allclose(bootstrap_t(-d, np.ones(37), seed=4), -bootstrap_t(d, np.ones(37), seed=4))
    assert not np.allclose(bootstrap_t(d, np.ones(37), seed=4), bootstrap_t(d, np.ones(37), seed=5))
    unequal = bootstrap_t(d * 2, np.full(37, 2.0), seed=4)
    assert np.allclose(unequal, bootstrap_t(d, np.ones(37), seed=4))
