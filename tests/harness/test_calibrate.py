"""A judge held against gold: figures by hand, by an oracle, and on judges that are made to be biased."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlhf_bench.harness.judges.calibrate import Judged, calibrate
from rlhf_bench.harness.stats.agreement import bootstrap_mean, fractional_logit, kappa, prediction_powered

LABELS = st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2)), min_size=2, max_size=60)


@given(LABELS)
@settings(max_examples=60, deadline=None)
def test_kappa_and_its_error_are_those_of_statsmodels(pairs: list[tuple[int, int]]) -> None:
    oracle = pytest.importorskip("statsmodels.stats.inter_rater", reason="the oracle, statsmodels, is not installed")
    table = np.zeros((3, 3))
    for pair in pairs:
        table[pair] += 1
    first, second = np.array(pairs).T
    found = kappa(first, second)
    if found.mean is None:
        assert {pair[0] for pair in pairs} == {pair[1] for pair in pairs} and len(set(pairs)) == 1
        return
    with np.errstate(all="ignore"):
        theirs = oracle.cohens_kappa(table)
    assert found.mean == pytest.approx(theirs.kappa, abs=1e-9)
    assert (found.se or 0.0) == pytest.approx(np.sqrt(max(theirs.var_kappa, 0)), abs=1e-7)


def test_kappa_of_a_textbook_table() -> None:
    """20, 5, 10, 15 (two raters, yes and no): agreement .7, by chance .5, so κ is .4."""
    first = np.repeat([0, 0, 1, 1], [20, 5, 10, 15])
    second = np.repeat([0, 1, 0, 1], [20, 5, 10, 15])
    assert kappa(first, second).mean == pytest.approx(0.4)


def test_a_regression_on_shares_is_that_of_statsmodels() -> None:
    api = pytest.importorskip("statsmodels.api", reason="the oracle, statsmodels, is not installed")
    rng = np.random.default_rng(1)
    features = rng.normal(size=(200, 2))
    shares = 1 / (1 + np.exp(-(features @ [1.0, -0.5] + rng.normal(size=200))))
    theirs = api.GLM(shares, api.add_constant(features, prepend=False), family=api.families.Binomial()).fit(
        cov_type="HC0"
    )
    found = fractional_logit(shares, features)
    assert found is not None
    assert [each.mean for each in found] == pytest.approx(list(theirs.params), abs=1e-6)
    assert [each.se for each in found] == pytest.approx(list(theirs.bse), abs=1e-6)


def test_what_tells_all_items_apart_has_no_coefficient() -> None:
    side = np.repeat([0.0, 1.0], 20)
    assert fractional_logit(side, side[:, None]) is None


def test_a_combination_has_the_least_variance_of_all_weights() -> None:
    rng = np.random.default_rng(2)
    gold = rng.normal(size=100)
    judged, further = gold + 0.4 * rng.normal(size=100), rng.normal(size=400) * 1.1
    found = prediction_powered(gold, judged, further)

    def variance(weight: float) -> float:
        spread = np.cov(gold, judged)
        own = spread[0, 0] - 2 * weight * spread[0, 1] + weight**2 * spread[1, 1]
        return float(weight**2 * spread[1, 1] / 400 + own / 100)

    grid = np.linspace(0, 1, 1001)
    assert found.weight == pytest.approx(grid[np.argmin([variance(weight) for weight in grid])], abs=1e-3)
    assert found.ratio < 1


def test_an_interval_of_the_combination_covers_and_is_shorter() -> None:
    rng = np.random.default_rng(3)
    covered, ratios = 0, []
    for _ in range(400):
        truth = rng.normal(0.6, 1, size=600)
        judge = truth + 0.5 * rng.normal(size=600) + 0.3  # biased, and well correlated
        found = prediction_powered(truth[:120], judge[:120], judge[120:])
        covered += found.low <= 0.6 <= found.high
        ratios.append(found.ratio)
    assert 0.92 <= covered / 400 <= 0.98
    assert np.mean(ratios) == pytest.approx(1 - 0.8 * 0.8, abs=0.05)  # 1 - rho² N/(n+N)


def test_the_bootstrap_of_a_constant_is_that_constant() -> None:
    assert bootstrap_mean(np.ones(5)) == (1.0, 1.0)


def items(n: int, **columns: object) -> list[Judged]:
    listed = {name: list(values) for name, values in columns.items()}  # type: ignore[call-overload]
    return [Judged(str(i), **{name: values[i] for name, values in listed.items()}) for i in range(n)]


def test_a_judge_that_says_what_gold_says_agrees_wholly() -> None:
    found = calibrate(items(40, judge=[0.1, 0.9] * 20, golds=[(0.0,), (1.0,)] * 20)).figures
    assert found["agreement"].mean == found["kappa"].mean == 1.0
    assert found["agreement"].low is not None and found["agreement"].low < 0.95
    assert found["rho"].mean == pytest.approx(1.0)


def test_a_judge_that_takes_the_first_slot_is_seen() -> None:
    """It prefers output 1 where that is shown first, and output 2 where that is."""
    found = calibrate(items(30, judge=[0.0] * 30, swapped=[1.0] * 30)).figures
    assert found["swap_consistency"].mean == 0.0
    assert found["first_slot_bias"].mean == pytest.approx(0.5)
    turned = calibrate(items(30, judge=[1.0] * 30, swapped=[0.0] * 30, first=[2] * 30)).figures
    assert turned["first_slot_bias"].mean == pytest.approx(0.5)


def test_a_judge_that_takes_the_longer_one_is_seen_beside_gold() -> None:
    rng = np.random.default_rng(4)
    longer = rng.integers(-500, 500, 400).astype(float)
    gold = rng.integers(0, 2, 400).astype(float)
    judge = 1 / (1 + np.exp(-(2 * np.sign(longer) + gold - 0.5)))
    found = calibrate(items(400, judge=judge, golds=[(g,) for g in gold], longer=longer)).figures
    assert found["prefers_longer"].mean == pytest.approx(1.0, abs=0.01)
    gap, bias = found["prefers_longer_more_than_gold"], found["length_coefficient"]
    assert gap.low is not None and gap.low > 0.4
    assert bias.low is not None and bias.low > 1


def test_nulls_ties_and_repeats_are_counted() -> None:
    repeats = [(0.2, 0.4), (0.2, 0.8), (), (0.5, 0.5)]
    found = calibrate(items(4, judge=[0.2, 0.2, None, 0.5], repeats=repeats)).figures
    assert (found["null_rate"].mean, found["tie_rate"].mean) == (0.25, pytest.approx(1 / 3))
    assert found["repeat_variance"].mean == pytest.approx((0.02 + 0.18 + 0.0) / 3)
    assert found["repeat_consistency"].mean == pytest.approx(2 / 3)


def test_people_agree_with_each_other_as_often_as_counted() -> None:
    golds = [(1.0, 1.0, 1.0), (1.0, 1.0, 0.0)]
    found = calibrate(items(2, judge=[1.0, 1.0], golds=golds)).figures
    assert found["human_agreement"].mean == pytest.approx((3 + 0) / 6), "of 1, 1, 0 each meets a draw or its contrary"


@pytest.mark.parametrize(("noise", "pays"), [(0.2, True), (2.0, False)])
def test_the_combination_is_given_only_where_it_pays(noise: float, pays: bool) -> None:
    rng = np.random.default_rng(5)
    truth = rng.uniform(size=500)
    judge = np.clip(truth + noise * (rng.uniform(size=500) - 0.5), 0, 1)
    golds = [(value,) if i < 150 else () for i, value in enumerate(truth)]
    found = calibrate(items(500, judge=judge, golds=golds))
    assert ("combined_win_rate" in found.figures) is pays
    assert any(("the judge pays" if pays else "does not pay") in note for note in found.notes)
