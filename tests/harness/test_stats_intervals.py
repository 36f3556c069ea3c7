"""The interval of one mean, against statsmodels, exact enumeration and the defining formulas."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import statsmodels.api as sm
from hypothesis import assume, given
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.stats import binom
from statsmodels.stats.proportion import proportion_confint

from rlhf_bench.harness.stats import clopper_pearson, estimate, mean_interval, wilson

unit = st.floats(0, 1, allow_subnormal=False)
scores = st.lists(unit, min_size=2, max_size=40)


@pytest.mark.parametrize(("successes", "n"), [(0, 1), (0, 20), (3, 40), (20, 40), (160, 164), (164, 164), (7, 1319)])
@pytest.mark.parametrize("level", [0.8, 0.95, 0.99])
def test_proportions_agree_with_statsmodels(successes: int, n: int, level: float) -> None:
    assert wilson(successes, n, level) == pytest.approx(
        proportion_confint(successes, n, 1 - level, method="wilson"), abs=1e-12
    )
    assert clopper_pearson(successes, n, level) == pytest.approx(
        proportion_confint(successes, n, 1 - level, method="beta"), abs=1e-12
    )


@pytest.mark.parametrize(
    ("n", "p", "by_wilson", "by_clopper_pearson"),
    [
        (80, 0.9, 0.963, 0.977),
        (164, 0.9, 0.949, 0.964),
        (164, 0.97, 0.966, 0.982),
        (500, 0.97, 0.953, 0.965),
        (1319, 0.97, 0.948, 0.957),
    ],
)
def test_exact_coverage_is_that_of_the_reference_table(
    n: int, p: float, by_wilson: float, by_clopper_pearson: float
) -> None:
    weights = binom.pmf(np.arange(n + 1), n, p)
    for interval, expected in ((wilson, by_wilson), (clopper_pearson, by_clopper_pearson)):
        covered = [low <= p <= high for low, high in (interval(x, n) for x in range(n + 1))]
        assert weights[covered].sum() == pytest.approx(expected, abs=6e-4)


def test_binary_items_get_clopper_pearson_below_forty_and_wilson_from_there() -> None:
    few, many = [1.0] * 30 + [0.0] * 9, [1.0] * 30 + [0.0] * 10
    assert estimate(few, kind="binary")[1:3] == clopper_pearson(30, 39)
    assert estimate(many, kind="binary")[1:3] == wilson(30, 40)
    assert estimate(many, kind="binary").se == pytest.approx(np.std(many, ddof=1) / np.sqrt(40))


@given(st.lists(st.tuples(unit, st.integers(0, 6)), min_size=6, max_size=60))
def test_clustered_error_and_interval_agree_with_statsmodels(rows: list[tuple[float, int]]) -> None:
    values = np.array([value for value, _ in rows])
    groups = np.array([group for _, group in rows])
    assume(len(set(groups)) > 2 and len(set(groups)) < len(groups))
    found = estimate(values, kind="continuous", clusters=[str(g) for g in groups])
    assume(found.se is not None and found.se > 1e-6)
    fit = sm.OLS(values, np.ones(len(values))).fit(cov_type="cluster", cov_kwds={"groups": groups}, use_t=True)
    assert found.mean == pytest.approx(fit.params[0])
    assert found.se == pytest.approx(fit.bse[0])
    if found.method.startswith("t, "):
        low, high = fit.conf_int()[0]
        assert found[1:3] == pytest.approx((max(low, 0), min(high, 1)), abs=1e-9)


def test_a_lopsided_clustered_score_keeps_the_error_and_changes_the_interval() -> None:
    values, groups = np.array([0.0, 0.0, 0.0, 0.0, 0.0, 1.0]), ["a", "a", "a", "a", "b", "c"]
    found = estimate(values, kind="continuous", clusters=groups)
    fit = sm.OLS(values, np.ones(6)).fit(cov_type="cluster", cov_kwds={"groups": [0, 0, 0, 0, 1, 2]}, use_t=True)
    assert found.se == pytest.approx(fit.bse[0])
    assert found.method == "score, 3 clusters"


def test_clustered_error_is_millers_with_the_factor_for_few_clusters() -> None:
    values, groups = np.array([0.1, 0.4, 0.9, 0.3, 0.8, 0.2, 0.7]), np.array([0, 0, 1, 1, 1, 2, 3])
    centred, n = values - values.mean(), len(values)
    cross = sum(centred[i] * centred[j] for i in range(n) for j in range(n) if groups[i] == groups[j])
    se = estimate(values, kind="continuous", clusters=[str(g) for g in groups]).se
    assert se == pytest.approx(np.sqrt(4 / 3 * cross) / n)


def test_clusters_of_one_change_nothing() -> None:
    values = [1.0] * 33 + [0.0] * 17
    assert estimate(values, kind="binary", clusters=[f"c{i}" for i in range(50)]) == estimate(values, kind="binary")


@pytest.mark.parametrize("kind", ["binary", "continuous"])
def test_no_item_or_one_gives_no_interval(kind: str) -> None:
    assert estimate([], kind=kind)[:4] == (None, None, None, None)  # type: ignore[arg-type]
    assert estimate([1.0], kind=kind)[:4] == (1.0, None, None, None)  # type: ignore[arg-type]


def test_one_cluster_gives_a_mean_and_no_interval() -> None:
    found = estimate([0.0, 1.0, 1.0], kind="binary", clusters=["a", "a", "a"])
    assert found[:4] == (pytest.approx(2 / 3), None, None, None)


@pytest.mark.parametrize("value", [0.0, 1.0])
@pytest.mark.parametrize("n", [2, 20, 80])
def test_scores_that_are_all_alike_are_as_uncertain_as_clopper_pearson_says(value: float, n: int) -> None:
    found = estimate([value] * n, kind="continuous")
    assert found[1:3] == pytest.approx(clopper_pearson(int(value) * n, n))
    assert found.se == 0


def test_equal_scores_inside_the_scale_have_room_on_both_sides() -> None:
    found = estimate([0.3] * 20, kind="continuous")
    assert found.low is not None and found.high is not None
    assert 0 < found.low < 0.28 and 0.35 < found.high < 1


def test_a_macro_average_weighs_strata_alike() -> None:
    values, strata = [1.0, 1.0, 0.0, 1.0, 0.2, 0.4], ["a"] * 4 + ["b"] * 2
    found = estimate(values, kind="continuous", strata=strata)
    parts = [np.var(v, ddof=1) / len(v) for v in (values[:4], values[4:])]
    assert found.mean == pytest.approx((0.75 + 0.3) / 2)
    assert found.se == pytest.approx(np.sqrt(sum(parts) / 4))


def test_a_stratum_of_one_gives_no_interval() -> None:
    found = estimate([1.0, 0.0, 1.0], kind="binary", strata=["a", "a", "b"])
    assert found[:4] == (0.75, None, None, None)


Sampler = Callable[[np.random.Generator, int], NDArray[np.float64]]
SHAPES: dict[str, tuple[Sampler, float]] = {
    "judge, even": (lambda rng, n: rng.choice([0, 0.5, 1], n, p=[0.4, 0.2, 0.4]), 0.5),
    "judge, rarely wins": (lambda rng, n: rng.choice([0, 0.5, 1], n, p=[0.955, 0.03, 0.015]), 0.03),
    "beta, 0.1": (lambda rng, n: rng.beta(0.1, 0.9, n), 0.1),
    "tenths": (lambda rng, n: 1 - rng.binomial(9, 0.15, n) / 9, 0.85),
    "rare failures": (lambda rng, n: np.where(rng.random(n) < 0.05, 0, 0.8 + rng.uniform(-0.02, 0.02, n)), 0.76),
    "four answers each": (lambda rng, n: rng.binomial(4, rng.beta(0.95, 0.05, n)) / 4, 0.95),
}


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("n", [20, 80])
def test_a_mean_is_covered_as_often_as_it_says_whatever_its_shape(shape: str, n: int) -> None:
    draw, mean = SHAPES[shape]
    rng = np.random.default_rng(n)
    found = [estimate(draw(rng, n), kind="continuous")[1:3] for _ in range(400)]
    assert 0.92 < np.mean([low <= mean <= high for low, high in found if low is not None and high is not None]) <= 0.995


def test_even_scores_get_the_t_interval_and_lopsided_ones_the_score_interval() -> None:
    rng = np.random.default_rng(0)
    assert estimate(rng.random(80), kind="continuous").method == "t, 80 items"
    assert estimate(rng.beta(0.03, 0.97, 80), kind="continuous").method == "score, 80 items"
    assert estimate(0.5 + 0.001 * rng.random(80), kind="continuous").method == "score, 80 items"


@given(scores, st.floats(0.5, 0.98))
def test_an_interval_holds_its_mean_stays_on_the_scale_and_widens_with_the_level(
    values: list[float], level: float
) -> None:
    narrow, wide = (estimate(values, kind="continuous", level=at) for at in (level, level + 0.01))
    assert narrow.mean is not None and narrow.low is not None and narrow.high is not None
    assert wide.low is not None and wide.high is not None
    assert 0 <= wide.low <= narrow.low <= narrow.mean + 1e-12
    assert narrow.mean - 1e-12 <= narrow.high <= wide.high <= 1


@given(st.lists(st.tuples(unit, st.sampled_from("abcd")), min_size=2, max_size=30), st.randoms())
def test_the_order_of_items_does_not_matter(rows: list[tuple[float, str]], random: object) -> None:
    shuffled = list(rows)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    first, second = (
        estimate([v for v, _ in some], kind="continuous", clusters=[c for _, c in some]) for some in (rows, shuffled)
    )
    for a, b in zip(first[:4], second[:4], strict=True):
        assert (a is None) == (b is None)
        assert a is None or a == pytest.approx(b, abs=1e-9)


@pytest.mark.parametrize(("values", "kind"), [([0.0, 0.5], "binary"), ([0.0, float("nan")], "continuous")])
def test_what_is_no_score_is_refused(values: list[float], kind: str) -> None:
    with pytest.raises(ValueError, match="score"):
        estimate(values, kind=kind)  # type: ignore[arg-type]


def test_no_interval_is_invented_for_equal_values_off_the_scale() -> None:
    assert mean_interval(np.full(5, 7.0), np.ones(5), lowest=0.0, highest=1.0)[:4] == (7.0, None, None, None)
