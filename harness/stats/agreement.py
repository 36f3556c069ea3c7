"""How far two raters agree, what drives one of them, and what many of its judgments add to a few of the other's."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import special

from rlhf_bench.harness.stats.intervals import NO_SPREAD, Floats, Interval

STEPS = 50
SETTLED = 1e-10


class Combined(NamedTuple):
    """A mean by PPI++; `ratio` is its variance divided by that of the gold judgments alone."""

    mean: float
    low: float
    high: float
    se: float
    weight: float
    rho: float
    ratio: float


def kappa(first: NDArray[np.int64], second: NDArray[np.int64], level: float = 0.95) -> Interval:
    """Cohen's κ of two raters' labels (≥ 0), with the large-sample interval of Fleiss, Cohen & Everitt 1969.

    No value where both always say the same one thing: there is nothing that chance could not explain.
    """
    n, labels = first.size, int(max(first.max(initial=0), second.max(initial=0))) + 1
    if n == 0:
        return Interval(None, None, None, None, "no items")
    counts = np.zeros((labels, labels), dtype=np.int64)
    np.add.at(counts, (first, second), 1)
    chance = int(counts.sum(1) @ counts.sum(0))
    if chance == n * n:
        return Interval(None, None, None, None, "both raters always say the same one thing")
    value, by_chance = (n * int(np.trace(counts)) - chance) / (n * n - chance), chance / (n * n)
    shares = counts / n
    rows, columns = shares.sum(1), shares.sum(0)
    apart = shares * (columns[:, None] + rows[None, :]) ** 2
    spread = float(np.diag(shares) @ (1 - (rows + columns) * (1 - value)) ** 2)
    spread += (1 - value) ** 2 * float(apart.sum() - np.trace(apart)) - (value - by_chance * (1 - value)) ** 2
    se = math.sqrt(max(spread, 0.0) / n) / (1 - by_chance)
    if se <= NO_SPREAD:
        return Interval(value, None, None, None, f"no interval: {n} items without spread")
    half = float(special.ndtri((1 + level) / 2)) * se
    return Interval(value, max(value - half, -1.0), min(value + half, 1.0), se, f"asymptotic, {n} items")


def bootstrap_mean(values: Floats, *, level: float = 0.95, rounds: int = 2000, seed: int = 0) -> tuple[float, float]:
    """The percentile interval of the mean of items drawn again. `values` may not be empty."""
    drawn = np.random.default_rng(seed).integers(0, values.size, (rounds, values.size))
    low, high = np.quantile(values[drawn].mean(1), [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def fractional_logit(shares: Floats, features: Floats, level: float = 0.95) -> list[Interval] | None:
    """Coefficients of a logistic regression of `shares` in [0, 1] on the columns of `features`, with an intercept last.

    Intervals are by the sandwich (Papke & Wooldridge 1996), since a share is no coin toss. None where the fit does not
    settle: too few items, or features that tell all apart.
    """
    x = np.column_stack([features, np.ones(len(shares))])
    found = np.zeros(x.shape[1])
    for _ in range(STEPS):
        expected = special.expit(x @ found)
        curvature = (x * (expected * (1 - expected))[:, None]).T @ x
        try:
            step = np.linalg.solve(curvature, x.T @ (shares - expected))
        except np.linalg.LinAlgError:
            return None
        found += step
        if not np.isfinite(found).all() or np.abs(found).max() > 30:
            return None
        if np.abs(step).max() < SETTLED:
            break
    else:
        return None
    inverse = np.linalg.inv(curvature)
    scores = x * (shares - expected)[:, None]
    errors = np.sqrt(np.diag(inverse @ (scores.T @ scores) @ inverse))
    z = float(special.ndtri((1 + level) / 2))
    return [
        Interval(float(b), float(b - z * se), float(b + z * se), float(se), f"sandwich, {len(shares)} items")
        for b, se in zip(found, errors, strict=True)
    ]


def prediction_powered(gold: Floats, judged: Floats, further: Floats, level: float = 0.95) -> Combined:
    """The mean of gold judgments, helped by a judge's: PPI++ (Angelopoulos, Duchi & Zrnic 2023, arXiv:2311.01453).

    `gold` and `judged` are of the same n items, a random sample; `further` are the judge's verdicts on N other items
    without gold. θ = λ·mean(further) + mean(gold − λ·judged), with the λ in [0, 1] of the least variance. Raises
    ValueError for fewer than two items of either kind.
    """
    n, extra = gold.size, further.size
    if n < 2 or extra < 2 or judged.size != n:
        raise ValueError("two items with gold and two without are the least")
    together = np.cov(gold, judged)
    moved = float(together[1, 1])
    weight = 0.0 if moved == 0 else float(np.clip(together[0, 1] / ((1 + n / extra) * moved), 0, 1))
    rho = float(together[0, 1] / math.sqrt(together[0, 0] * moved)) if together[0, 0] * moved > 0 else 0.0
    rest = gold - weight * judged
    mean = weight * float(further.mean()) + float(rest.mean())
    variance = weight**2 * float(further.var(ddof=1)) / extra + float(rest.var(ddof=1)) / n
    alone = float(gold.var(ddof=1)) / n
    se = math.sqrt(variance)
    half = float(special.stdtrit(n - 1, (1 + level) / 2)) * se
    return Combined(mean, mean - half, mean + half, se, weight, rho, variance / alone if alone else 1.0)
