"""What a bounded scale still allows: the likeliest distribution with a given mean, and how a sample lies in it.

Among the distributions on [lowest, highest] with that mean it is the one under which the sample is likeliest (empirical
likelihood, Owen 2001 ch. 2). The end of the scale may get weight although no value was seen there, so losses that are
too rare to have been seen are not ruled out. For scores of 0 and 1 it is the binomial, for differences of -1, 0 and 1
Tango's (1998) restricted maximum; `score_z` is then Wilson's and Tango's statistic, and for others the like of them.
"""

from __future__ import annotations

import math
from typing import NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray
from scipy import optimize, special

Floats: TypeAlias = NDArray[np.float64]
NO_SPREAD = 1e-12
"""Residuals up to this size are rounding, not spread."""
_WIDTH = 20.0
"""Of the window in which the distribution of a sum is computed, in standard deviations."""

_ROUNDING = 1e-13
"""Of the transform: no p-value is smaller."""


class Null(NamedTuple):
    """A distribution on some points, with this mean."""

    points: Floats
    weights: Floats
    mean: float

    @property
    def variance(self) -> float:
        """The variance of one draw."""
        return float(self.weights @ (self.points - self.mean) ** 2)


def nearest(values: Floats, mean: float, lowest: float, highest: float) -> Null:
    """The likeliest distribution with this mean, given `values`. `mean` lies strictly inside the scale.

    Values may lie beyond the scale, as those of unequal clusters do; the farthest is then its end.
    """
    if float(values.mean()) < mean:
        mirrored = nearest(-values, -mean, -highest, -lowest)
        return Null(-mirrored.points, mirrored.weights, mean)
    residuals = values - mean
    end = min(lowest - mean, float(residuals.min()))
    steepest = -1.0 / end
    if end < residuals.min() - NO_SPREAD:
        weights = 1.0 / (values.size * (1.0 + steepest * residuals))
        if float(weights @ residuals) >= 0.0:
            points = np.append(values, lowest)
            rest = max(0.0, 1.0 - float(weights.sum()))  # rounding may leave less than none
            return Null(points, np.append(weights, rest), mean)

    def pull(slope: float) -> float:
        return float((residuals / (1.0 + slope * residuals)).sum())

    slope, last = 0.0, steepest * (1.0 - 1e-12)
    if pull(last) >= 0.0:
        slope = last
    elif pull(0.0) > 0.0:
        slope = optimize.brentq(pull, 0.0, last, xtol=1e-14)
    weights = 1.0 / (1.0 + slope * residuals)
    return Null(values, weights / weights.sum(), mean)


def around(sums: Floats, sizes: Floats, mean: float) -> Floats:
    """One value for each cluster, whose mean is `mean` just where that of all items is: of equal clusters the means."""
    typical = float(sizes.mean())
    return mean + (sums - mean * sizes) / typical


def score_z(values: Floats, mean: float, lowest: float, highest: float) -> float:
    """(sample mean - `mean`) over the standard error that the null hypothesis says: the score statistic."""
    excess = float(values.mean()) - mean
    if abs(excess) <= NO_SPREAD:
        return 0.0
    return excess * math.sqrt(values.size / nearest(values, mean, lowest, highest).variance)


def score_low(sums: Floats, sizes: Floats, tail: float, lowest: float, highest: float) -> float:
    """The lower bound at 1 - `tail` for the mean of the clusters' items: where the score statistic falls to z."""
    mean, z = float(sums.sum() / sizes.sum()), -float(special.ndtri(tail))

    def beyond(null: float) -> float:
        return score_z(around(sums, sizes, null), null, lowest, highest) - z

    start = lowest + 1e-9 * (highest - lowest)
    if mean <= start or beyond(start) <= 0.0:
        return lowest
    return float(optimize.brentq(beyond, start, mean, xtol=1e-12))


def exact_p(values: Floats, mean: float, lowest: float, highest: float) -> float:
    """P(the sum of as many draws from `nearest` ≥ the sum of `values`): one-sided p for "the mean is above `mean`".

    The exact tail of an estimated null distribution (Storer & Kim 1990), by fast Fourier transform on a grid that holds
    halves, thirds and tenths; values between two of its points are shared between them, so that the mean stays. n zeros
    against a loss of δ give (1 - δ)^n, as they must.
    """
    null, count = nearest(values, mean, lowest, highest), values.size
    spread = math.sqrt(null.variance * count)
    grid = _grid(spread)
    size = 1 << math.ceil(math.log2(_WIDTH * spread * grid + 4 * grid))
    at = null.points * grid
    below = np.floor(at + 1e-6)
    share = np.maximum(at - below, 0.0)
    share[share < 2e-6] = 0.0
    slots: NDArray[np.int64] = below.astype(np.int64)
    one = np.bincount(slots % size, null.weights * (1 - share), size)
    one += np.bincount((slots + 1) % size, null.weights * share, size)
    total = np.fft.irfft(_power(np.fft.rfft(one), count), size)
    first = round(count * mean * grid) - size // 2  # the window's first sum
    whole, part = divmod(float(values.sum()) * grid + 1e-5 - first, 1.0)
    reached = int(min(max(whole, 0.0), size - 1.0))
    tail = np.roll(total, -(first % size))[reached:]
    missed = part * tail[0] if part > 2e-5 else 0.0
    return float(min(max(tail.sum() - missed, _ROUNDING), 1.0))


def _grid(spread: float) -> int:
    """Points for each unit of the scale, some hundreds for the standard deviation of the sum."""
    return next((60 * 2**k for k in range(5) if 60 * 2**k * spread > 200), 1920)


def _power(values: NDArray[np.complex128], count: int) -> NDArray[np.complex128]:
    """values ** count, where that is not nothing."""
    powers = np.zeros_like(values)
    there = np.abs(values) > math.exp(-50 / count)
    powers[there] = values[there] ** count
    return powers
