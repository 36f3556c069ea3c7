"""Two runs on the same items: tests and bounds for candidate minus champion."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import special

from rlhf_bench.harness.stats.intervals import Floats, by_cluster, mean_se

RESAMPLES = 10_000
_CHUNK = 1 << 18
"""Random numbers drawn at once: what bounds the memory, to a few megabytes whatever the number of items."""


def mcnemar_midp(gained: int, lost: int) -> float:
    """One-sided McNemar mid-p for "the candidate is better": P(X > gained) + P(X = gained)/2, X ~ Bin(gained+lost, ½).

    Fagerland, Lydersen & Laake 2013. One half where nothing changed.
    """
    changed = gained + lost
    return float(special.bdtrc(gained, changed, 0.5) + special.bdtrc(gained - 1, changed, 0.5)) / 2


def tango_z(gained: ArrayLike, lost: ArrayLike, n: ArrayLike, difference: ArrayLike) -> Floats:
    """Tango's (1998) score statistic against a true difference of `difference`, for `gained` and `lost` out of n pairs.

    Positive where the data lie above it. Arrays broadcast. q is the restricted maximum-likelihood P(lost).
    """
    b, c, size, d = np.broadcast_arrays(*(np.asarray(x, dtype=np.float64) for x in (gained, lost, n, difference)))
    q = _restricted(b, c, size, d)
    with np.errstate(divide="ignore", invalid="ignore"):
        variance = size * (2 * q + d * (1 - d))
        excess = b - c - size * d
        z = excess / np.sqrt(np.maximum(variance, 0.0))
    certain = np.where(np.abs(excess) < 1e-9, 0.0, np.copysign(np.inf, excess))
    return np.where(variance > 1e-12, z, certain)


def _restricted(b: Floats, c: Floats, size: Floats, d: Floats) -> Floats:
    """The likeliest P(lost) of gained b and lost c out of `size` pairs, were the true difference d."""
    linear = -b - c + (2 * size - b + c) * d
    constant = -c * d * (1 - d)
    root = np.sqrt(np.maximum(linear**2 - 8 * size * constant, 0.0))
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(linear > 0, -2 * constant / (root + linear), (root - linear) / (4 * size))


def tango_exact_p(gained: int, lost: int, n: int, difference: float) -> float:
    """One-sided p for "the difference is above `difference`": P(Tango's statistic ≥ the one observed), exactly.

    Under the restricted maximum-likelihood P(gained) and P(lost) (Storer & Kim 1990; Lloyd 2008 calls it the E
    p-value), over all numbers of losses within 8 standard deviations: for each the statistic rises with the gains, so
    those that reach the observed one have a binomial tail. The larger of this p and Tango's own errs at most 0.052
    times at a nominal 0.05 (enumerated from 20 to 164 pairs).
    """
    q = float(_restricted(*(np.asarray(x, dtype=np.float64) for x in (gained, lost, n, difference))))
    win, lose = min(max(q + difference, 0.0), 1.0), min(max(q, 0.0), 1.0)
    spread = 8 * math.sqrt(n * lose * (1 - lose)) + 8
    losses = np.arange(max(0, math.floor(n * lose - spread)), min(n, math.ceil(n * lose + spread)) + 1)
    observed = float(tango_z(gained, lost, n, difference)) - 1e-9
    below, least = np.full(losses.shape, -1), n - losses + 1  # gains that fall short, gains that reach
    while (least - below > 1).any():
        middle = (below + least) // 2
        reaches = tango_z(middle, losses, n, difference) >= observed
        below, least = np.where(reaches, below, middle), np.where(reaches, middle, least)
    others = n - losses
    tail = special.bdtrc(least - 1.0, others, min(win / (1 - lose), 1.0) if lose < 1 else 0.0)
    tail = np.where(least == 0, 1.0, np.where(least > others, 0.0, tail))
    return float(min((_binomial(losses, n, lose) * tail).sum(), 1.0))


def _binomial(count: NDArray[np.int64], n: int, p: float) -> Floats:
    """The probability of each count out of n."""
    ways = special.gammaln(n + 1.0) - special.gammaln(count + 1.0) - special.gammaln(n - count + 1.0)
    return np.exp(ways + special.xlogy(count, p) + special.xlog1py(n - count, -p))


def tango_low(gained: ArrayLike, lost: ArrayLike, n: ArrayLike, tail: float) -> Floats:
    """The lower bound at 1 - `tail` of the difference: where the score statistic falls to z, by bisection. Broadcasts.

    With nothing gained or lost it is -z²/(n + z²), not 0. Its true error at a nominal 0.05 is at most about 0.06 from
    40 pairs on, and up to 0.1 at 10 pairs (enumerated).
    """
    b, c, size = np.broadcast_arrays(*(np.asarray(x, dtype=np.float64) for x in (gained, lost, n)))
    z = float(special.ndtri(1 - tail))
    low, high = np.full(b.shape, -1.0), (b - c) / size
    for _ in range(54):
        middle = (low + high) / 2
        above = tango_z(b, c, size, middle) > z
        low, high = np.where(above, middle, low), np.where(above, high, middle)
    return low


def tango_interval(gained: int, lost: int, n: int, level: float = 0.95) -> tuple[float, float]:
    """Tango's two-sided score interval of the difference in proportions, for `gained` and `lost` out of n pairs."""
    low, negated = tango_low([gained, lost], [lost, gained], n, (1 - level) / 2)
    return float(low), float(-negated)


def sign_flip_p(
    differences: ArrayLike, clusters: Sequence[str] | None = None, *, flips: int = RESAMPLES, seed: int = 0
) -> float:
    """One-sided p for "the mean is above 0" when signs are flipped at random, whole clusters together.

    (1 + #{flipped sum ≥ observed}) / (flips + 1). Clusters whose sum is 0 change nothing and are left out.
    """
    sums, _ = by_cluster(np.asarray(differences, dtype=np.float64), clusters)
    sums = np.sort(sums[sums != 0.0])
    if sums.size == 0:
        return 1.0
    rng = np.random.default_rng(seed)
    width = math.ceil(sums.size / 8)
    tie = 1e-12 * float(np.abs(sums).sum())
    at_least = 0
    rows = max(1, _CHUNK // sums.size)
    for done in range(0, flips, rows):
        rows = min(rows, flips - done)
        packed = np.frombuffer(rng.bytes(rows * width), dtype=np.uint8).reshape(rows, width)
        flipped = np.unpackbits(packed, axis=1, count=sums.size).astype(np.float64)
        # observed - flipped sum = twice the sum over what was flipped
        at_least += int((flipped @ sums <= tie).sum())
    return (1 + at_least) / (flips + 1)


def bootstrap_t(sums: Floats, sizes: Floats, *, resamples: int = RESAMPLES, seed: int = 0) -> Floats:
    """t* = (mean* - mean) / SE* of resampled clusters: shape [resamples], NaN where a resample has no spread."""
    count = sums.size
    mean, se = mean_se(sums, sizes)
    if se == 0.0:
        return np.full(resamples, np.nan)
    residuals = sums - mean * sizes
    equal = bool((sizes == sizes[0]).all())
    rng = np.random.default_rng(seed)
    rows = min(resamples, max(1, _CHUNK // count))
    buffer = np.empty((rows, count))
    parts: list[Floats] = []
    for done in range(0, resamples, rows):
        rows = min(rows, resamples - done)
        picks = rng.integers(0, count, size=(rows, count), dtype=np.uint32).astype(np.intp)
        drawn = np.take(residuals, picks, mode="clip", out=buffer[:rows])
        weights = sizes[:1] if equal else sizes.take(picks)
        total = weights.sum(axis=-1) * (count if equal else 1)
        shift = drawn.sum(axis=1) / total
        squares = np.einsum("rc,rc->r", drawn, drawn)
        if equal:
            spread = squares - shift**2 * total * sizes[0]
        else:
            cross = np.einsum("rc,rc->r", drawn, weights)
            spread = squares - 2 * shift * cross + shift**2 * np.einsum("rc,rc->r", weights, weights)
        spread[spread <= 1e-10 * squares] = np.nan
        parts.append(shift * total / np.sqrt(count / (count - 1) * spread))
    return np.concatenate(parts)
