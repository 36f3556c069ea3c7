"""Holm against statsmodels, and sample sizes against the reference's table."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from statsmodels.stats.multitest import multipletests

from rlhf_bench.harness.stats import holm, samples_needed, samples_to_decide


@settings(max_examples=20, deadline=None)
@given(st.lists(st.floats(0, 1, allow_subnormal=False), min_size=1, max_size=12))
def test_holm_agrees_with_statsmodels(p_values: list[float]) -> None:
    assert holm(p_values) == pytest.approx(multipletests(p_values, method="holm")[1])


def test_holm_of_nothing_is_nothing() -> None:
    assert holm([]) == ()


@pytest.mark.parametrize(
    ("n", "discordance", "margin_points"),
    [(14042, 0.10, 0.66), (1319, 0.12, 2.4), (1172, 0.08, 2.1), (817, 0.10, 2.8), (500, 0.12, 3.9), (164, 0.10, 6.1)],
)
def test_sample_sizes_are_those_of_the_reference_table(n: int, discordance: float, margin_points: float) -> None:
    needed = samples_needed(math.sqrt(discordance), margin_points / 100)
    assert needed == pytest.approx(n, rel=0.05)


def test_a_planned_test_has_its_power() -> None:
    n = int(samples_needed(0.5, 0.1, alpha=0.05, power=0.8))
    means = np.random.default_rng(0).normal(0.1, 0.5 / math.sqrt(n), 40_000)
    assert np.mean(means > 1.6449 * 0.5 / math.sqrt(n)) == pytest.approx(0.8, abs=0.01)


def test_no_number_of_samples_shows_a_distance_of_nothing() -> None:
    assert samples_needed(0.5, 0.0) == math.inf


def test_the_spread_is_read_off_the_bounds() -> None:
    half = 1.6448536 * 0.4 / math.sqrt(100)
    assert samples_to_decide(-half, half, 100, 0.05) == samples_needed(0.4, 0.05)
