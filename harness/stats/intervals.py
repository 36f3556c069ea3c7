"""The interval of one mean: of a score in [0, 1], or of a difference in [-1, 1]."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy import special

from rlhf_bench.harness.stats.restricted import NO_SPREAD as NO_SPREAD
from rlhf_bench.harness.stats.restricted import Floats as Floats
from rlhf_bench.harness.stats.restricted import score_low
from rlhf_bench.harness.types import Kind

LOPSIDED = 0.1
"""Skewness over √n from which on the t interval covers too rarely."""
FEW = 0.5
"""Sum of squared residuals, in squares of the way to the scale's end, below which something rare may be unseen."""


class Interval(NamedTuple):
    """A mean with its two-sided interval; `low`, `high` and `se` are None where the data cannot give them."""

    mean: float | None
    low: float | None
    high: float | None
    se: float | None
    method: str


def estimate(
    values: ArrayLike,
    *,
    kind: Kind,
    clusters: Sequence[str] | None = None,
    level: float = 0.95,
    strata: Sequence[str] | None = None,
) -> Interval:
    """The mean score of graded items, with its interval at `level`.

    Binary items without clusters: Wilson, or Clopper-Pearson below 40 items. Otherwise the mean ± t_{G-1} · SE over the
    G clusters (each item its own where `clusters` is None), cut at 0 and 1. Items that all score alike have SE 0 and
    still say little about the next one: their interval is `bounded_low`'s, for all-0 or all-1 the same as
    Clopper-Pearson's. With `strata` (a label for each item) the mean is the plain mean of the strata's (macro average).
    Fewer than two clusters, in all or in a stratum, give no interval. ValueError: binary items other than 0 and 1, or
    values that are not finite.
    """
    scores = np.asarray(values, dtype=np.float64)
    if not np.isfinite(scores).all():
        raise ValueError("a score is not finite: leave ungraded items out")
    if kind == "binary" and not np.isin(scores, (0.0, 1.0)).all():
        raise ValueError("a binary score is neither 0 nor 1")
    if scores.size < 2:
        return Interval(float(scores[0]) if scores.size else None, None, None, None, "no interval: fewer than 2 items")
    if strata is not None:
        return _macro_average(scores, clusters, strata, level)
    sums, sizes = by_cluster(scores, clusters)
    if kind == "binary" and sums.size == scores.size:
        return _proportion(int(scores.sum()), scores.size, level)
    return mean_interval(sums, sizes, level=level, lowest=0.0, highest=1.0)


def wilson(successes: int, n: int, level: float = 0.95) -> tuple[float, float]:
    """Wilson's score interval for a proportion; (0, 1) where n is 0."""
    if n == 0:
        return 0.0, 1.0
    z = special.ndtri((1 + level) / 2)
    centre = (successes + z * z / 2) / (n + z * z)
    half = z * math.sqrt(successes * (n - successes) / n + z * z / 4) / (n + z * z)
    return (0.0 if successes == 0 else float(centre - half)), (1.0 if successes == n else float(centre + half))


def clopper_pearson(successes: int, n: int, level: float = 0.95) -> tuple[float, float]:
    """The exact interval for a proportion: never covers less often than `level`; (0, 1) where n is 0."""
    tail = (1 - level) / 2
    low = 0.0 if successes == 0 else float(special.betaincinv(successes, n - successes + 1, tail))
    high = 1.0 if successes == n else float(special.betaincinv(successes + 1, n - successes, 1 - tail))
    return low, high


def mean_interval(
    sums: Floats, sizes: Floats, *, level: float = 0.95, lowest: float = -1.0, highest: float = 1.0
) -> Interval:
    """The mean over clusters with these sums and sizes, ± t_{G-1} · SE, cut at the ends of the scale.

    Scores that lie lopsided, or hardly differ, get the score interval instead (`restricted`): for them t covers as
    little as half as often as it says. Without spread (also: one cluster) the bounds are `bounded_low`'s. Where a value
    lies off the scale it is t, or none without spread.
    """
    mean, se = mean_se(sums, sizes)
    count = sums.size
    what = f"{count} clusters" if (sizes != 1).any() else f"{count} items"
    means = sums / sizes
    on_scale = bool((means >= lowest).all() and (means <= highest).all())
    if se == 0.0:
        if count < 2 or not on_scale:
            return Interval(mean, None, None, None, f"no interval: {what} without spread")
        tail = (1 - level) / 2
        low, high = bounded_low(means, tail, lowest), -bounded_low(-means, tail, -highest)
        return Interval(mean, low, high, 0.0, f"bounded, {what} without spread")
    if on_scale and _t_errs(sums, sizes, max(mean - lowest, highest - mean)):
        tail = (1 - level) / 2
        low = score_low(sums, sizes, tail, lowest, highest)
        return Interval(mean, low, -score_low(-sums, sizes, tail, -highest, -lowest), se, f"score, {what}")
    half = float(special.stdtrit(count - 1, (1 + level) / 2)) * se
    low, high = mean - half, mean + half
    if on_scale:
        low, high = max(low, lowest), min(high, highest)
    return Interval(mean, low, high, se, f"t, {what}")


def _t_errs(sums: Floats, sizes: Floats, reach: float) -> bool:
    residuals = (sums - sums.sum() / sizes.sum() * sizes) / sizes.mean()
    squares = float(residuals @ residuals)
    return squares < FEW * reach**2 or abs(float((residuals**3).sum())) > LOPSIDED * squares**1.5


def by_cluster(values: Floats, clusters: Sequence[str] | None) -> tuple[Floats, Floats]:
    """The sum and the number of the values of each cluster, clusters in the order of their names."""
    if clusters is None:
        return values, np.ones_like(values)
    _, codes = np.unique(np.asarray(clusters, dtype=str), return_inverse=True)
    return np.bincount(codes, weights=values).astype(np.float64), np.bincount(codes).astype(np.float64)


def mean_se(sums: Floats, sizes: Floats) -> tuple[float, float]:
    """Mean and cluster standard error (Miller 2024, with the factor G/(G-1)); SE is 0 where there is no spread."""
    count, total = sums.size, float(sizes.sum())
    mean = float(sums.sum()) / total
    residuals = sums - mean * sizes
    if count < 2 or np.abs(residuals).max() <= NO_SPREAD:
        return mean, 0.0
    return mean, math.sqrt(count / (count - 1) * float(residuals @ residuals)) / total


def bounded_low(values: Floats, tail: float, lowest: float) -> float:
    """A lower bound at 1 - `tail` for the mean of a variable that is never below `lowest`; assumes nothing else.

    The mean is at least m - (m - lowest) · P(value < m), for any m; m is the median here, and the probability has its
    exact (Clopper-Pearson) upper bound. For equal values this is the rule of three: n zeros in a row bound the loss of
    the next item by 1 - tail^(1/n), about 3/n at 0.95, and not by 0.
    """
    middle = float(np.median(values))
    below = int((values < middle - NO_SPREAD).sum())
    return middle - (middle - lowest) * clopper_pearson(below, values.size, 1 - 2 * tail)[1]


def _proportion(successes: int, n: int, level: float) -> Interval:
    mean = successes / n
    se = math.sqrt(mean * (1 - mean) / (n - 1))
    if n < 40:
        return Interval(mean, *clopper_pearson(successes, n, level), se, "clopper-pearson")
    return Interval(mean, *wilson(successes, n, level), se, "wilson")


def _macro_average(scores: Floats, clusters: Sequence[str] | None, strata: Sequence[str], level: float) -> Interval:
    """Var = Σ w_s² SE_s², w_s = 1/S, with Satterthwaite's degrees of freedom."""
    labels = np.asarray(strata, dtype=str)
    names = np.asarray(clusters, dtype=str) if clusters is not None else np.arange(scores.size).astype(str)
    groups = [by_cluster(scores[labels == label], list(names[labels == label])) for label in np.unique(labels)]
    parts = [mean_se(sums, sizes) for sums, sizes in groups]
    count = len(parts)
    mean = sum(part for part, _ in parts) / count
    if min(sums.size for sums, _ in groups) < 2:
        return Interval(mean, None, None, None, "no interval: a stratum has fewer than 2 items")
    variances = np.array([(se / count) ** 2 for _, se in parts])
    se = math.sqrt(float(variances.sum()))
    if se == 0.0:
        tail = (1 - level) / 2 / count
        low = sum(bounded_low(sums / sizes, tail, 0.0) for sums, sizes in groups) / count
        high = -sum(bounded_low(-sums / sizes, tail, -1.0) for sums, sizes in groups) / count
        return Interval(mean, low, high, 0.0, f"bounded, {count} strata without spread")
    df = float(variances.sum() ** 2 / sum(v * v / (g.size - 1) for v, (g, _) in zip(variances, groups, strict=True)))
    half = float(special.stdtrit(df, (1 + level) / 2)) * se
    return Interval(mean, max(mean - half, 0.0), min(mean + half, 1.0), se, f"t, macro average of {count} strata")
