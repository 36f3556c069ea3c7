"""The likeliest null distribution: against a general optimiser, enumeration, simulation, Wilson and Tango."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import optimize, stats

from rlhf_bench.harness.stats import tango_low, wilson
from rlhf_bench.harness.stats.restricted import around, exact_p, nearest, score_low, score_z

on_scale = st.lists(st.sampled_from([-1.0, -0.5, -0.1, 0.0, 0.0, 0.02, 0.3, 1.0]), min_size=1, max_size=30)
means = st.floats(-0.95, 0.95)


@given(on_scale, means)
def test_the_null_is_a_distribution_on_the_scale_with_the_mean_asked_for(values: list[float], mean: float) -> None:
    null = nearest(np.array(values), mean, -1.0, 1.0)
    assert (null.weights >= 0).all() and null.weights.sum() == pytest.approx(1)
    assert null.weights @ null.points == pytest.approx(mean, abs=1e-7)
    assert set(null.points) <= {*values, -1.0, 1.0}


@pytest.mark.parametrize(
    ("values", "mean"),
    [
        ([0.1, -0.3, 0.4, 0.0], -0.05),
        ([0.02, 0.01, -0.01, 0.0], -0.2),
        ([-1.0, 0.5, 0.5, 0.0], -0.4),
        ([0.3, -0.2], 0.1),
    ],
)
def test_no_other_distribution_with_that_mean_makes_the_sample_likelier(values: list[float], mean: float) -> None:
    points = np.array([*values, -1.0, 1.0])  # both ends may have weight

    def minus_log_likelihood(weights: NDArray[np.float64]) -> float:
        return -float(np.log(np.maximum(weights[: len(values)], 1e-12)).sum())

    best = optimize.minimize(
        minus_log_likelihood,
        np.full(points.size, 1 / points.size),
        bounds=[(0, 1)] * points.size,
        constraints=[
            {"type": "eq", "fun": lambda w: w.sum() - 1},
            {"type": "eq", "fun": lambda w: w @ points - mean},
        ],
        options={"ftol": 1e-14, "maxiter": 1000},
    )
    null = nearest(np.array(values), mean, -1.0, 1.0)
    assert -np.log(null.weights[: len(values)]).sum() == pytest.approx(best.fun, abs=1e-5)


@given(st.integers(0, 40), st.integers(1, 40), st.sampled_from([0.8, 0.95, 0.99]))
def test_of_zeros_and_ones_the_score_bounds_are_wilsons(ones: int, zeros: int, level: float) -> None:
    values = np.array([1.0] * ones + [0.0] * zeros)
    tail, alike = (1 - level) / 2, np.ones_like(values)
    low = score_low(values, alike, tail, 0.0, 1.0)
    high = -score_low(-values, alike, tail, -1.0, 0.0)
    assert (low, high) == pytest.approx(wilson(ones, ones + zeros, level), abs=1e-8)


@given(st.integers(0, 20), st.integers(0, 20), st.integers(0, 40), st.sampled_from([0.01, 0.05, 0.1]))
def test_of_gains_and_losses_the_score_bound_is_tangos(gained: int, lost: int, same: int, tail: float) -> None:
    n = gained + lost + same
    assume(n > 0)
    values = np.array([1.0] * gained + [-1.0] * lost + [0.0] * same)
    assert score_low(values, np.ones(n), tail, -1.0, 1.0) == pytest.approx(tango_low(gained, lost, n, tail), abs=1e-8)


@given(on_scale, means)
def test_the_score_is_the_same_from_both_sides(values: list[float], mean: float) -> None:
    d = np.array(values)
    assert score_z(d, mean, -1.0, 1.0) == pytest.approx(-score_z(-d, -mean, -1.0, 1.0))


@pytest.mark.parametrize(
    ("values", "mean"),
    [([0.5, -0.5, 0.0, 0.5], -0.1), ([0.1, 0.0, 0.05], -0.2), ([1.0, 0.25, -0.5, 0.0, 0.0], 0.3), ([-1.0, 1.0], -0.2)],
)
def test_the_exact_tail_is_that_of_all_possible_draws(values: list[float], mean: float) -> None:
    d = np.array(values)
    null = nearest(d, mean, -1.0, 1.0)
    expected = 0.0
    for picks in itertools.product(range(null.points.size), repeat=d.size):
        if null.points[list(picks)].sum() >= d.sum() - 1e-9:
            expected += float(np.prod(null.weights[list(picks)]))
    assert exact_p(d, mean, -1.0, 1.0) == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize(("lost", "n", "mean"), [(0, 40, -0.05), (1, 40, -0.1), (3, 805, -0.02), (120, 805, -0.18)])
def test_losses_alone_have_the_binomial_tail(lost: int, n: int, mean: float) -> None:
    d = np.array([-1.0] * lost + [0.0] * (n - lost))
    assert exact_p(d, mean, -1.0, 1.0) == pytest.approx(stats.binom.cdf(lost, n, -mean), rel=1e-9)


@pytest.mark.parametrize(("n", "sd"), [(30, 0.05), (60, 0.3), (200, 0.2)])
def test_the_exact_tail_of_uneven_differences_is_that_of_a_simulation(n: int, sd: float) -> None:
    rng = np.random.default_rng(n)
    d = rng.normal(0.0, sd, n).clip(-1, 1)
    mean = float(d.mean()) - 1.5 * sd / np.sqrt(n)
    null = nearest(d, mean, -1.0, 1.0)
    drawn = null.points[rng.choice(null.points.size, size=(10_000, n), p=null.weights)].sum(axis=1) >= d.sum()
    p = exact_p(d, mean, -1.0, 1.0)
    assert p == pytest.approx(drawn.mean(), abs=4 * np.sqrt(p * (1 - p) / 10_000))


@settings(max_examples=50)
@given(on_scale, st.floats(-0.9, 0.9), st.floats(0.005, 0.05))
def test_a_lower_null_is_never_harder_to_exceed(values: list[float], mean: float, step: float) -> None:
    d = np.array(values)
    nearer, farther = (min(exact_p(d, m, -1.0, 1.0), 0.5) for m in (mean, mean - step))
    assert farther <= nearer + 2e-3


def test_clusters_of_one_size_are_their_means() -> None:
    sums, sizes = np.array([0.4, -0.8, 2.0]), np.full(3, 4.0)
    assert around(sums, sizes, -0.3) == pytest.approx(sums / 4)
    uneven = np.array([1.0, 2.0, 5.0])
    overall = float(sums.sum() / uneven.sum())
    assert around(sums, uneven, overall).mean() == pytest.approx(overall)
    assert around(sums, uneven, overall - 0.1).mean() > overall - 0.1
