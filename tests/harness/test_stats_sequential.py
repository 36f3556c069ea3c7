"""Looks at a growing sample: published bounds, exact and simulated errors, and bets against brute force."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import stats

from rlhf_bench.harness.errors import UserError
from rlhf_bench.harness.stats import (
    DESIGN,
    Design,
    anytime_evidence,
    chance_decided,
    conditional_power,
    levels,
    one_each_way,
    tango_z,
)
from rlhf_bench.harness.stats.sequential import FEW, log_e_process

EQUAL = (0.2, 0.4, 0.6, 0.8, 1.0)
PLAIN = Design(fractions=EQUAL, earliest=0.0)


@st.composite
def fractions(draw: st.DrawFn) -> tuple[float, ...]:
    early = draw(st.lists(st.integers(1, 49), min_size=0, max_size=6, unique=True))
    return (*(each / 50 for each in sorted(early)), 1.0)


differences = st.lists(st.sampled_from([-1.0, -0.5, -0.1, 0.0, 0.2, 0.5, 1.0]), min_size=1, max_size=60)


def walks(times: tuple[float, ...], drift: float, count: int, seed: int = 0) -> NDArray[np.float64]:
    """z at each of these shares of the information, shape [count, looks], where z at the end has mean `drift`."""
    steps = np.diff(times, prepend=0.0)
    rng = np.random.default_rng(seed)
    score = np.cumsum(rng.normal(drift * steps, np.sqrt(steps), size=(count, len(times))), axis=1)
    walk: NDArray[np.float64] = score / np.sqrt(times)
    return walk


def shown_by_t(d: NDArray[np.float64], level: float) -> bool:
    return bool(d.mean() / d.std(ddof=1) * math.sqrt(d.size) > stats.t.isf(level, d.size - 1))


def z_of(each: tuple[float, ...]) -> NDArray[np.float64]:
    return np.asarray(stats.norm.isf(each))


def test_five_equal_looks_have_the_published_bounds() -> None:
    assert z_of(levels(0.05, EQUAL)).round(2).tolist() == [3.92, 2.77, 2.26, 1.96, 1.75]


@pytest.mark.parametrize(("looks", "two_sided", "constant"), [(2, 0.05, 1.977), (5, 0.05, 2.040), (10, 0.05, 2.087)])
def test_bounds_are_those_of_jennison_and_turnbulls_table(looks: int, two_sided: float, constant: float) -> None:
    """Their table 2.3 is two-sided; at .05 both tails of a group-sequential test hardly ever meet."""
    times = tuple((k + 1) / looks for k in range(looks))
    assert z_of(levels(two_sided / 2, times))[-1] == pytest.approx(constant, abs=1e-3)


@pytest.mark.parametrize("alpha", [0.05, 0.0167, 0.0038])
@pytest.mark.parametrize("earliest", [0.0, 0.15])
def test_all_looks_together_err_alpha_times_by_the_multivariate_normal(alpha: float, earliest: float) -> None:
    times = (0.1, 0.35, 1.0)
    covariance = np.sqrt(np.minimum.outer(times, times) / np.maximum.outer(times, times))
    stays = stats.multivariate_normal.cdf(
        z_of(levels(alpha, times, earliest)), cov=covariance, maxpts=10**7, abseps=1e-7, releps=1e-7
    )
    assert 1 - stays == pytest.approx(alpha, abs=2e-5)


def test_the_default_design_errs_alpha_times_by_simulation() -> None:
    for plan, n in ((DESIGN, 805), (DESIGN, 164), (PLAIN, 805)):
        times = tuple(look / n for look in plan.looks(n))
        crossed = (walks(times, 0.0, 400_000) > z_of(plan.levels(n))).any(axis=1).mean()
        assert crossed == pytest.approx(0.05, abs=0.0012)


@settings(max_examples=60, deadline=None)
@given(fractions(), st.sampled_from([0.05, 0.0167, 0.0038]), st.sampled_from([0.0, 0.05, 0.15]))
def test_levels_rise_to_at_most_alpha(times: tuple[float, ...], alpha: float, earliest: float) -> None:
    found = levels(alpha, times, earliest)
    assert len(found) == len(times)
    assert all(one <= other + 1e-15 for one, other in itertools.pairwise(found))
    assert found[-1] <= alpha * (1 + 1e-9)
    assert sum(found) >= alpha * (1 - 1e-9)
    assert found[0] >= earliest * alpha * (1 - 1e-9)


@settings(max_examples=30, deadline=None)
@given(fractions(), st.sampled_from([0.0, 0.1]))
def test_without_earliest_levels_the_score_has_one_bound(times: tuple[float, ...], earliest: float) -> None:
    score = z_of(levels(0.05, times, earliest)) * np.sqrt(times)
    cap = stats.norm.isf(0.05 * earliest) if earliest else np.inf
    assert score == pytest.approx(np.minimum(score[-1], cap * np.sqrt(times)), rel=1e-6)


def test_one_look_is_no_sequential_test() -> None:
    assert levels(0.03, (1.0,)) == (0.03,)
    assert DESIGN.looks(41) == (41,) and DESIGN.levels(41) == (0.05,)


def test_looks_are_counts_of_items_and_never_fewer_than_the_least() -> None:
    assert DESIGN.looks(805) == (61, 161, 322, 564, 805)
    assert DESIGN.looks(164) == (66, 115, 164)
    assert Design(fractions=EQUAL, least=2).looks(10) == (2, 4, 6, 8, 10)


@given(st.integers(1, 20_000))
def test_looks_rise_to_all_items_with_one_level_each(n: int) -> None:
    looks = DESIGN.looks(n)
    assert looks[-1] == n and len(DESIGN.levels(n)) == len(looks)
    assert all(one < other for one, other in itertools.pairwise(looks))
    assert all(look >= DESIGN.least for look in looks[:-1])


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"kind": "pocock"}, "kind 'pocock' should be"),
        ({"alpha": 0.5}, "alpha 0.5 should lie"),
        ({"alpha": 0.0}, "alpha 0 should lie"),
        ({"fractions": (0.5, 0.9)}, "looks at 0.5, 0.9 should rise from above 0 to 1"),
        ({"fractions": (0.5, 0.5, 1.0)}, "should rise"),
        ({"fractions": (0.0, 1.0)}, "should rise"),
        ({"fractions": ()}, "should rise"),
        ({"earliest": 1.0}, "share of alpha"),
        ({"earliest": 0.9, "fractions": (0.01, 0.1, 1.0)}, "leave nothing for the last"),
        ({"futility": 1.0}, "futility 1 is a chance"),
        ({"least": 1}, "should be 2 or more"),
    ],
)
def test_what_is_no_design_is_refused_in_one_line(change: dict[str, object], says: str) -> None:
    with pytest.raises(UserError, match=says) as refused:
        replace(DESIGN, **change)  # type: ignore[arg-type]
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("z", [-0.4, 0.8, 2.0])
def test_conditional_power_is_the_share_of_walks_that_end_above_the_bound(z: float) -> None:
    rng, fraction, final = np.random.default_rng(0), 0.4, 1.8
    for predictive in (False, True):
        spread = rng.normal(size=200_000) / math.sqrt(fraction) if predictive else 0.0
        drift = z / math.sqrt(fraction) + spread  # the trend, or what a flat prior leaves of it
        rest = rng.normal(drift * (1 - fraction), math.sqrt(1 - fraction), size=200_000)
        ends = (z * math.sqrt(fraction) + rest > final).mean()
        assert conditional_power(z, fraction, final, predictive=predictive) == pytest.approx(ends, abs=0.004)


def test_what_is_called_hopeless_is_hardly_ever_decided() -> None:
    final = z_of(DESIGN.levels(805))[-1]
    drifts = np.random.default_rng(1).uniform(-6, 6, size=400)
    times = (0.7, 1.0)
    seen = np.concatenate([walks(times, drift, 1000, seed) for seed, drift in enumerate(drifts)])
    p = stats.norm.sf(seen[:, 0])
    hopeless = chance_decided(p, 1 - p, 0.7, DESIGN.levels(805)[-1]) < 0.05
    assert hopeless.mean() > 0.05
    assert (np.abs(seen[hopeless, 1]) > final).mean() < 0.05


@given(st.floats(0, 1), st.floats(0.01, 0.99), st.floats(0.001, 0.1))
def test_the_chance_to_decide_is_symmetric_and_a_probability(p: float, fraction: float, level: float) -> None:
    one, other = chance_decided(p, 1 - p, fraction, level), chance_decided(1 - p, p, fraction, level)
    assert one == pytest.approx(other, abs=1e-12)
    assert 0 <= one <= 1


def test_certainty_is_a_chance_of_one_and_the_end_is_no_question() -> None:
    assert chance_decided(0.0, 1.0, 0.5, 0.04) == 1.0
    with pytest.raises(ValueError, match="no items and all"):
        conditional_power(1.0, 1.0, 1.8)


def test_early_looks_at_rare_large_differences_err_no_more_than_alpha_thanks_to_one_win_and_one_loss() -> None:
    """No true difference: most items gain next to nothing, three in a hundred lose almost everything."""
    rng = np.random.default_rng(3)
    n, repeats = 400, 1000
    plan = replace(DESIGN, fractions=(0.1, 0.25, 0.5, 1.0))
    wrong, bare = 0, 0
    for _ in range(repeats):
        d = np.where(rng.random(n) < 0.03, -0.9, 0.027 / 0.97) + rng.normal(0, 1e-3, n)
        early = [(d[:look], level) for look, level in zip(plan.looks(n), plan.levels(n), strict=True) if look < FEW]
        wrong += any(shown_by_t(one_each_way(seen)[0], level) for seen, level in early)
        bare += any(shown_by_t(seen, level) for seen, level in early)
    assert wrong / repeats < 0.03
    assert bare / repeats > 0.2


def test_looks_at_binary_guards_err_no_more_than_alpha() -> None:
    """True loss exactly the margin, both ways out, by the score statistic that decides binary guards."""
    n, margin, repeats = 1319, 0.035, 40_000
    gained, lost, seen = np.zeros(repeats), np.zeros(repeats), 0
    passed, failed = np.zeros(repeats, dtype=bool), np.zeros(repeats, dtype=bool)
    rng = np.random.default_rng(4)
    for look, bound in zip(DESIGN.looks(n), z_of(DESIGN.levels(n)), strict=True):
        more, new = look < FEW, rng.multinomial(look - seen, [0.0425, 0.0775, 0.88], size=repeats)
        gained, lost, seen = gained + new[:, 0], lost + new[:, 1], look
        z = tango_z(gained + more, lost + more, look + 2 * more, -margin)
        passed, failed = passed | (z > bound), failed | (z < -bound)
    assert 0.03 < passed.mean() <= 0.053
    assert 0.03 < failed.mean() <= 0.053


def test_one_win_and_one_loss_are_clusters_of_their_own() -> None:
    values, clusters = one_each_way([0.5, 0.2], ["a", "a"])
    assert values.tolist() == [0.5, 0.2, 1.0, -1.0]
    assert clusters is not None and len(set(clusters)) == 3
    assert one_each_way([0.5])[1] is None


def test_many_items_need_no_more() -> None:
    assert one_each_way(np.zeros(FEW))[0].size == FEW and one_each_way(np.zeros(FEW - 1))[0].size == FEW + 1
    repeats = [str(k // 4) for k in range(FEW)]
    assert len(one_each_way(np.zeros(FEW), repeats)[1] or ()) == FEW + 2


@given(st.lists(st.floats(0, 1), min_size=1, max_size=30), st.floats(0.05, 0.95))
def test_the_e_process_is_the_mean_of_the_products(values: list[float], mean: float) -> None:
    expected = []
    for t in range(1, len(values) + 1):
        products = [math.prod(1 + s / mean * (y - mean) for y in values[:t]) for s in (0.05, 0.1, 0.2, 0.4, 0.6)]
        expected.append(sum(products) / 5)
    assert np.exp(log_e_process(values, mean)) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize(("mean", "support"), [(0.5, (0.0, 0.5, 1.0)), (0.3, (0.0, 0.2, 1.0))])
def test_the_e_process_is_a_fair_game_by_enumeration(mean: float, support: tuple[float, ...]) -> None:
    """Where the mean is what it bets against, its expectation over all sequences of seven items is exactly 1."""
    low, middle, high = support
    share = 0.3
    up = (mean - low - share * (middle - low)) / (high - low)
    chances = {low: 1 - share - up, middle: share, high: up}
    total = sum(
        math.prod(chances[y] for y in path) * math.exp(log_e_process(path, mean)[-1])
        for path in itertools.product(support, repeat=7)
    )
    assert total == pytest.approx(1)


@settings(max_examples=50, deadline=None)
@given(differences, st.sampled_from([-0.2, -0.05, 0.0, 0.1]), st.sampled_from([0.01, 0.05, 0.2]))
def test_anytime_bound_and_p_never_contradict(d: list[float], threshold: float, alpha: float) -> None:
    found = anytime_evidence(d, threshold=threshold, alpha=alpha)
    if abs(found.low - threshold) > 1e-9 and abs(found.high - threshold) > 1e-9:
        assert (found.p_above < alpha) == (found.low > threshold)
        assert (found.p_below < alpha) == (found.high < threshold)
    assert found.low <= found.high


@settings(max_examples=25, deadline=None)
@given(differences, st.sampled_from([0.02, 0.05]))
def test_more_items_only_tighten_and_swapping_the_runs_swaps(d: list[float], alpha: float) -> None:
    before = anytime_evidence(d[:-1], threshold=-0.1, alpha=alpha)
    after = anytime_evidence(d, threshold=-0.1, alpha=alpha)
    swapped = anytime_evidence(-np.array(d), threshold=0.1, alpha=alpha)
    if after != (-1.0, 1.0, 1.0, 1.0):
        assert after.low >= before.low and after.high <= before.high
        assert after.p_above <= before.p_above and after.p_below <= before.p_below
    assert swapped == pytest.approx((-after.high, -after.low, after.p_below, after.p_above), abs=1e-12)


def test_peeking_after_every_item_errs_at_most_alpha_times() -> None:
    rng = np.random.default_rng(5)
    for mean, values, chances in ((0.5, [0.0, 0.5, 1.0], [0.4, 0.2, 0.4]), (0.45, [0.0, 0.5, 1.0], [0.25, 0.6, 0.15])):
        y = rng.choice(values, size=(1000, 500), p=chances)
        above = np.mean([log_e_process(row, mean).max() >= math.log(20) for row in y])
        below = np.mean([log_e_process(1 - row, 1 - mean).max() >= math.log(20) for row in y])
        assert 0.003 < above <= 0.05 and 0.003 < below <= 0.05


def test_peeking_with_a_test_for_one_look_errs_far_too_often() -> None:
    rng = np.random.default_rng(6)
    total = np.cumsum(rng.choice([-1.0, 1.0], size=(2000, 600)), axis=1)
    z = total[:, 29:] / np.sqrt(np.arange(30, 601))
    assert (z > 1.645).any(axis=1).mean() > 0.25


def test_a_clear_difference_is_seen_early_without_a_plan() -> None:
    d = np.random.default_rng(7).choice([-1.0, 0.0, 1.0], size=805, p=[0.25, 0.15, 0.6])
    found = [anytime_evidence(d[:n], threshold=0.0, alpha=0.05).p_above < 0.05 for n in (50, 200, 805)]
    assert found == sorted(found) and found[1]


def test_items_that_come_in_no_random_order_show_nothing() -> None:
    d = np.concatenate([np.ones(100), -np.ones(400)])
    assert anytime_evidence(d, threshold=0.0, alpha=0.05) == (-1.0, 1.0, 1.0, 1.0)
    assert anytime_evidence([], threshold=0.0, alpha=0.05) == (-1.0, 1.0, 1.0, 1.0)


@pytest.mark.parametrize("value", [1.2, -1.01, math.nan])
def test_an_e_process_refuses_what_is_off_its_scale(value: float) -> None:
    with pytest.raises(UserError, match="lies outside"):
        anytime_evidence([0.1, value], threshold=0.0, alpha=0.05)
    with pytest.raises(ValueError, match="between 0 and 1"):
        log_e_process([0.5], 0.0)


def test_an_e_process_may_look_after_any_item_at_the_full_level() -> None:
    plan = Design("e_process", alpha=0.02)
    assert plan.looks(3) == (1, 2, 3) and plan.levels(3) == (0.02,) * 3
