"""Holm and power against statsmodels, sizes against the reference's table, and chances against the gate's own tests."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import special, stats
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.power import NormalIndPower, TTestPower

from rlhf_bench.harness.stats import (
    alpha_share,
    binary_evidence,
    chance_to_show,
    continuous_evidence,
    detectable,
    holm,
    repeats_to_decide,
    samples_needed,
    samples_to_decide,
    tango_z,
)
from rlhf_bench.harness.types import Kind

KINDS: tuple[Kind, ...] = ("binary", "continuous")
TABLE = [  # n, discordance, SE, MDE at 80%, margin so that seven guards pass together at 80%; in points
    (14042, 0.10, 0.27, 0.66, 0.94),
    (1319, 0.12, 0.95, 2.4, 3.4),
    (1172, 0.08, 0.83, 2.1, 2.9),
    (817, 0.10, 1.11, 2.8, 3.9),
    (500, 0.12, 1.55, 3.9, 5.5),
    (164, 0.10, 2.47, 6.1, 8.7),
    (664, 0.115, 1.32, 3.3, 4.6),
]
"""The reference's planning table."""


@settings(max_examples=20, deadline=None)
@given(st.lists(st.floats(0, 1, allow_subnormal=False), min_size=1, max_size=12))
def test_holm_agrees_with_statsmodels(p_values: list[float]) -> None:
    assert holm(p_values) == pytest.approx(multipletests(p_values, method="holm")[1])


def test_holm_of_nothing_is_nothing() -> None:
    assert holm([]) == ()


# The reference's table


@pytest.mark.parametrize(("n", "discordance", "se", "mde", "joint"), TABLE)
def test_errors_effects_and_sizes_are_those_of_the_reference_table(
    n: int, discordance: float, se: float, mde: float, joint: float
) -> None:
    error = math.sqrt(discordance / n)
    assert 100 * error == pytest.approx(se, abs=0.0051)
    assert 100 * detectable(error) == pytest.approx(mde, abs=0.05)
    assert 100 * detectable(error, power=0.97) == pytest.approx(joint, abs=0.06)
    assert samples_needed(math.sqrt(discordance), detectable(error)) == pytest.approx(n, abs=1)


@pytest.mark.parametrize(("n", "discordance", "margin", "power"), [(164, 0.10, 0.05, 0.60), (1172, 0.08, 0.02, 0.77)])
def test_the_power_of_a_guard_is_what_the_reference_measured(
    n: int, discordance: float, margin: float, power: float
) -> None:
    found = chance_to_show(0.0, -margin, n, math.sqrt(discordance), 0.05, kind="binary")
    assert found == pytest.approx(power, abs=0.015)


# Oracles


@settings(max_examples=40, deadline=None)
@given(
    n=st.integers(3, 3000),
    effect=st.floats(-0.3, 0.6),
    alpha=st.sampled_from([0.01, 0.0304, 0.05, 0.2]),
    sd=st.floats(0.05, 1),
)
def test_the_continuous_chance_is_the_t_tests_of_statsmodels(n: int, effect: float, alpha: float, sd: float) -> None:
    expected = TTestPower().power(effect, n, alpha, alternative="larger")
    found = chance_to_show(effect * sd - 0.02, -0.02, n, sd, alpha, kind="continuous")
    assert found == pytest.approx(float(expected), abs=1e-6)


@pytest.mark.parametrize("alpha", [0.05, 0.0304, 0.01])
@pytest.mark.parametrize("power", [0.5, 0.8, 0.97])
def test_the_detectable_effect_is_the_z_tests_of_statsmodels(alpha: float, power: float) -> None:
    effect = detectable(0.3 / math.sqrt(400), alpha, power) / 0.3
    assert NormalIndPower().power(effect, 400, alpha, ratio=0, alternative="larger") == pytest.approx(power, abs=1e-9)


def enumerated(n: int, q: float, difference: float, threshold: float, alpha: float) -> float:
    """The chance over every number of changed and of gained pairs, each held against the gate's own rule."""
    total = 0.0
    for changed in range(n + 1):
        often = stats.binom.pmf(changed, n, q)
        gained = np.arange(changed + 1)
        weights = often * stats.binom.pmf(gained, changed, (q + difference) / 2 / q)
        for b in gained[weights > 1e-9]:
            p = binary_evidence(int(b), int(changed - b), n, threshold=threshold, alpha=alpha).p_above
            total += float(weights[b]) * (p < alpha)
    return total


@pytest.mark.parametrize(("n", "q"), [(5, 0.2), (20, 0.04), (40, 0.12), (60, 0.1)])
@pytest.mark.parametrize(("difference", "threshold"), [(0.0, -0.15), (-0.03, -0.1), (0.04, 0.0)])
def test_the_chance_of_few_flips_is_that_of_every_outcome_enumerated(
    n: int, q: float, difference: float, threshold: float
) -> None:
    if abs(difference) > q:
        return
    found = chance_to_show(difference, threshold, n, math.sqrt(q), 0.0304, kind="binary")
    assert found == pytest.approx(enumerated(n, q, difference, threshold, 0.0304), abs=1e-5)


@pytest.mark.parametrize(("n", "q"), [(240, 0.25), (500, 0.12), (900, 0.06), (1319, 0.12)])
@pytest.mark.parametrize("alpha", [0.05, 0.0167])
def test_the_chance_of_many_flips_is_near_that_of_every_outcome(n: int, q: float, alpha: float) -> None:
    """By Tango's test, and mid-p above 0."""
    se = math.sqrt(q / n)
    changed, gained = np.tril_indices(min(n, math.ceil(n * q + 8 * math.sqrt(n * q) + 8)) + 1)
    for k in (1.5, 2.5, 3.5):
        for difference, threshold in ((0.0, -k * se), (-se, -k * se), (k * se, 0.0), (k * se, 0.01)):
            p = special.ndtr(-tango_z(gained, changed - gained, n, threshold))
            if threshold == 0:
                p = np.maximum(p, stats.binom.sf(gained, changed, 0.5) + stats.binom.pmf(gained, changed, 0.5) / 2)
            weight = stats.binom.pmf(changed, n, q) * stats.binom.pmf(gained, changed, (q + difference) / 2 / q)
            found = chance_to_show(difference, threshold, n, math.sqrt(q), alpha, kind="binary")
            assert found == pytest.approx(float(weight[p < alpha].sum()), abs=0.02)


# The gate's own tests, simulated


@pytest.mark.parametrize(
    ("n", "q", "difference", "threshold"),
    [
        (164, 0.10, 0.0, -0.07),
        (1319, 0.12, 0.0, -0.0238),
        (817, 0.10, 0.03, 0.0),
    ],
)
def test_a_planned_binary_check_passes_the_gate_as_often_as_planned(
    n: int, q: float, difference: float, threshold: float
) -> None:
    repeats = 1000
    shares = (q + difference) / 2, (q - difference) / 2
    counts = np.random.default_rng(n).multinomial(n, [*shares, 1 - q], size=repeats)[:, :2]
    outcomes, times = np.unique(counts, axis=0, return_counts=True)
    passed = [binary_evidence(int(b), int(c), n, threshold=threshold, alpha=0.05).p_above < 0.05 for b, c in outcomes]
    planned = chance_to_show(difference, threshold, n, math.sqrt(q), 0.05, kind="binary")
    assert np.dot(passed, times) / repeats == pytest.approx(
        planned, abs=3.5 * math.sqrt(planned * (1 - planned) / repeats)
    )


def assert_passes_as_planned(n: int, difference: float, threshold: float, repeats: int) -> None:
    """Of so many gates on differences with the halves of a judge's verdicts."""
    rng = np.random.default_rng(n)
    values, shares = np.array([-1.0, -0.5, 0.0, 0.5, 1.0]), np.array([0.04, 0.1, 0.72, 0.1, 0.04])
    sd = math.sqrt(float(shares @ values**2))
    passed = 0
    for seed in range(repeats):
        d = rng.choice(values, p=shares, size=n) + difference
        found = continuous_evidence(d / 1.5, threshold=threshold / 1.5, alpha=0.05, resamples=400, seed=seed)
        passed += found.p_above < 0.05
    planned = chance_to_show(difference, threshold, n, sd, 0.05, kind="continuous")
    assert passed / repeats == pytest.approx(planned, abs=3.5 * math.sqrt(planned * (1 - planned) / repeats))


@pytest.mark.parametrize(("difference", "threshold"), [(0.0, -0.09), (0.08, 0.0)])
def test_a_planned_continuous_check_passes_the_gate_as_often_as_planned(difference: float, threshold: float) -> None:
    assert_passes_as_planned(80, difference, threshold, 120)


@pytest.mark.slow  # a thousand gates each, with resampling
@pytest.mark.parametrize(
    ("n", "difference", "threshold"), [(80, 0.0, -0.09), (80, 0.08, 0.0), (300, -0.01, -0.06), (300, 0.05, 0.0)]
)
def test_over_many_gates_too(n: int, difference: float, threshold: float) -> None:
    assert_passes_as_planned(n, difference, threshold, 1000)


# What must hold whatever the numbers


@settings(max_examples=100, deadline=None)
@given(
    kind=st.sampled_from(KINDS),
    n=st.integers(1100, 9000),
    more=st.integers(1, 3000),
    variance=st.floats(0.05, 0.5),
    distance=st.floats(0.005, 0.2),
    threshold=st.sampled_from([-0.1, -0.02, 0.0, 0.01]),
    alpha=st.sampled_from([0.01, 0.05]),
)
def test_more_samples_never_show_less_where_there_are_enough_to_leave_the_steps_of_small_counts(
    kind: Kind, n: int, more: int, variance: float, distance: float, threshold: float, alpha: float
) -> None:
    chances = [
        chance_to_show(threshold + distance, threshold, size, math.sqrt(variance), alpha, kind=kind)
        for size in (n, n + more)
    ]
    assert 0 <= chances[0] <= chances[1] + 1e-9 <= 1 + 1e-9


@pytest.mark.parametrize("kind", KINDS)
def test_the_chance_rises_with_the_difference_and_is_alpha_at_the_threshold(kind: Kind) -> None:
    differences = np.linspace(-0.08, 0.06, 30)
    chances = [chance_to_show(d, -0.03, 1000, 0.35, 0.05, kind=kind) for d in differences]
    assert chances == sorted(chances)
    assert chance_to_show(-0.03, -0.03, 1000, 0.35, 0.05, kind=kind) == pytest.approx(0.05, abs=0.002)
    assert chances[0] < 0.001 and chances[-1] > 0.999


@given(st.floats(0.01, 2), st.integers(2, 10_000), st.sampled_from([0.5, 0.8, 0.95]))
def test_the_detectable_effect_shrinks_with_the_root_of_the_samples(sd: float, n: int, power: float) -> None:
    one, four = (detectable(sd / math.sqrt(size), power=power) for size in (n, 4 * n))
    assert one == pytest.approx(2 * four)


@given(st.floats(0.01, 0.2), st.integers(1, 50))
def test_all_decisions_together_spend_no_more_than_alpha(alpha: float, planned: int) -> None:
    assert sum(alpha_share(alpha, planned, place) for place in range(1, planned + 1)) == pytest.approx(alpha)
    spent = sum(alpha_share(alpha, None, place) for place in range(1, 2001))
    assert 0.999 * alpha < spent < alpha


def test_what_never_differs_is_shown_to_be_within_any_margin() -> None:
    assert chance_to_show(0.0, -0.01, 50, 0.0, 0.05, kind="continuous") == 1.0
    assert chance_to_show(-0.02, -0.01, 50, 0.0, 0.05, kind="continuous") == 0.0
    assert chance_to_show(0.0, -0.3, 50, 0.0, 0.05, kind="binary") == 1.0


def test_one_sample_shows_nothing() -> None:
    assert chance_to_show(1.0, 0.0, 1, 0.1, 0.05, kind="continuous") == 0.0


# How many would decide


def test_a_planned_test_has_its_power() -> None:
    n = int(samples_needed(0.5, 0.1, alpha=0.05, power=0.8))
    means = np.random.default_rng(0).normal(0.1, 0.5 / math.sqrt(n), 40_000)
    assert np.mean(means > 1.6449 * 0.5 / math.sqrt(n)) == pytest.approx(0.8, abs=0.01)


def test_no_number_of_samples_or_repeats_shows_a_distance_of_nothing() -> None:
    assert samples_needed(0.5, 0.0) == math.inf
    assert repeats_to_decide(-0.1, 0.1, 100, 0.0) == math.inf


def bounds(sd: float, n: int) -> tuple[float, float]:
    half = 1.6448536 * sd / math.sqrt(n)
    return -half, half


def test_the_spread_is_read_off_the_bounds() -> None:
    assert samples_to_decide(*bounds(0.4, 100), 100, 0.05) == samples_needed(0.4, 0.05)


def test_repeats_stand_for_samples_while_all_spread_is_the_chance_of_an_answer() -> None:
    needed = samples_to_decide(*bounds(0.4, 100), 100, 0.05)
    assert repeats_to_decide(*bounds(0.4, 100), 100, 0.05) == math.ceil(needed / 100) > 1
    assert repeats_to_decide(*bounds(0.4, 100), 100, 0.05, repeats=3) == pytest.approx(3 * needed / 100, abs=1)


def test_no_repeats_decide_where_the_items_themselves_differ_too_much() -> None:
    found = [repeats_to_decide(*bounds(0.4, 100), 100, 0.05, within=within) for within in (1.0, 0.9, 0.8, 0.5, 0.0)]
    assert found == sorted(found) and found[-1] == math.inf and found[1] < math.inf


@pytest.mark.parametrize("within", [0.3, 0.7, 1.0])
def test_so_many_repeats_give_the_error_that_the_distance_needs(within: float) -> None:
    n, sd, distance = 400, 0.5, 0.06
    repeats = repeats_to_decide(*bounds(sd, n), n, distance, within=within)
    errors = [math.sqrt(sd**2 * ((1 - within) + within / k) / n) for k in (repeats, max(repeats - 1, 1))]
    assert detectable(errors[0]) <= distance * 1.01
    assert repeats == 1 or detectable(errors[1]) > distance * 0.99


def test_one_answer_to_each_is_enough_where_the_samples_are() -> None:
    assert repeats_to_decide(*bounds(0.2, 1000), 1000, 0.1) == 1
    assert repeats_to_decide(*bounds(0.2, 1000), 1000, 0.1, within=0.0) == 1
