"""Does the difference lie above a threshold, or below it? One answer from bound and p-value together."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy import optimize, special

from rlhf_bench.harness.stats.intervals import Floats, by_cluster, mean_se
from rlhf_bench.harness.stats.paired import (
    RESAMPLES,
    bootstrap_t,
    mcnemar_midp,
    sign_flip_p,
    tango_exact_p,
    tango_low,
    tango_z,
)
from rlhf_bench.harness.stats.restricted import around, exact_p

MOST_RESAMPLES = 200_000
BEYOND = 10
"""So many resamples should lie beyond a bound: a small alpha asks for more of them, up to MOST_RESAMPLES."""
_TIE = 1e-9


class Evidence(NamedTuple):
    """One-sided bounds of a difference at 1 - alpha, and p-values for "above" and "below" the threshold.

    `p_above` < alpha only where `low` > threshold, and `p_below` < alpha only where `high` < threshold.
    """

    low: float
    high: float
    p_above: float
    p_below: float


def binary_evidence(gained: int, lost: int, n: int, *, threshold: float, alpha: float) -> Evidence:
    """From discordant counts: Tango's score test and bounds; at a threshold of 0 McNemar's mid-p must agree.

    At any other threshold the statistic's exact tail must agree: with few pairs, or hardly any gains, the normal one
    errs up to 0.07 times at a nominal 0.05.
    """
    z = float(tango_z(gained, lost, n, threshold))
    low, negated = tango_low([gained, lost], [lost, gained], n, alpha)
    above, below = float(special.ndtr(-z)), float(special.ndtr(z))
    if threshold == 0.0:
        above = _agreed(mcnemar_midp(gained, lost), above, alpha)
        below = _agreed(mcnemar_midp(lost, gained), below, alpha)
    else:
        above = max(above, tango_exact_p(gained, lost, n, threshold))
        below = max(below, tango_exact_p(lost, gained, n, -threshold))
    return Evidence(float(low), float(-negated), above, below)


def continuous_evidence(
    differences: ArrayLike,
    clusters: Sequence[str] | None = None,
    *,
    threshold: float,
    alpha: float,
    resamples: int = RESAMPLES,
    seed: int = 0,
    bounded: bool = True,
) -> Evidence:
    """From differences in [-1, 1]: the studentised cluster bootstrap and the exact tail of the likeliest null agree.

    The bootstrap knows only what was seen. Where something as rare as 3 in n loses everything and the rest hardly
    differs, a sample mostly shows none of it, and the bootstrap errs up to 80 times in 100. `restricted.exact_p`
    allows for what the scale allows: n differences of exactly 0 show a loss of at most 1 - alpha^(1/n), about 3/n.
    Where differences sum up to more than a few whole ones squared it asks for no more than the bootstrap does. Above a
    threshold of 0 the sign flips must agree too. A resample without spread says nothing about the error, so it counts
    against the bootstrap; where too many are like that it has no bound, and the exact tail decides alone.

    `bounded` False: values that are means only by linearisation, of no fixed scale. Then the bootstrap decides alone,
    and without it nothing is shown (bounds are infinite).

    `alpha` below 10/resamples raises their number. The order of the differences does not matter.
    """
    sums, sizes = by_cluster(np.asarray(differences, dtype=np.float64), clusters)
    sums, sizes, sign = _in_order(sums, sizes)
    draws = max(resamples, min(math.ceil(BEYOND / alpha), MOST_RESAMPLES))
    t = bootstrap_t(sums, sizes, resamples=draws if sign else draws // 2, seed=seed)
    if sign == 0:
        t = np.concatenate([t, -t])
    sums, t = (sums, t) if sign >= 0 else (-sums, -t)
    low, above = _from_below(sums, sizes, t, threshold, alpha, bounded)
    negated, below = _from_below(-sums, sizes, -t, -threshold, alpha, bounded)
    if threshold == 0.0:
        above = _agreed(sign_flip_p(sums, flips=draws, seed=seed), above, alpha)
    return Evidence(low, -negated, above, below)


def _in_order(sums: Floats, sizes: Floats) -> tuple[Floats, Floats, int]:
    """Clusters in an order of their own, so that resamples hang neither on how they came nor on who is the candidate.

    The sums are turned by the sign, which is 0 where the clusters look the same from both sides.
    """
    up, down = np.lexsort((sizes, sums)), np.lexsort((sizes, -sums))
    apart = np.flatnonzero((sums[up] != -sums[down]) | (sizes[up] != sizes[down]))
    if apart.size == 0:
        return sums[up], sizes[up], 0
    one, other = up[apart[0]], down[apart[0]]
    if (sums[one], sizes[one]) < (-sums[other], sizes[other]):
        return sums[up], sizes[up], 1
    return -sums[down], sizes[down], -1


def _from_below(
    sums: Floats, sizes: Floats, t: Floats, threshold: float, alpha: float, bounded: bool
) -> tuple[float, float]:
    """The lower bound at 1 - alpha and the p-value for "above the threshold", one the inverse of the other."""
    mean, se = mean_se(sums, sizes)
    beyond = math.ceil(alpha * (t.size + 1)) - 1
    t = np.sort(np.where(np.isnan(t), np.inf, t))
    if se > 0 and beyond > 0 and math.isfinite(t[-beyond]):
        low = mean - float(t[-beyond]) * se
        p = (1 + int((t >= (mean - threshold) / se - _TIE).sum())) / (t.size + 1)
    elif bounded:
        low, p = mean, 0.0  # the scale alone decides
    else:
        return -math.inf, 1.0
    return _held_to_scale(low, p, sums, sizes, threshold, alpha) if bounded else (low, p)


def _held_to_scale(
    low: float, p: float, sums: Floats, sizes: Floats, threshold: float, alpha: float
) -> tuple[float, float]:
    """The lower of this bound and that of `exact_p`, the larger of the p-values."""

    def exact(mean: float) -> float:
        return exact_p(around(sums, sizes, mean), mean, -1.0, 1.0)

    end, mean = 1.0 - 1e-9, float(sums.sum() / sizes.sum())
    threshold = min(max(threshold, -end), end)
    at_threshold = exact(threshold)
    step = max(mean - low, 1 / sums.size)
    above = low = max(low, -end)
    while exact(low) >= alpha:
        if low <= -end:
            return -1.0, max(p, at_threshold)
        above, low, step = low, max(low - step, -end), 2 * step
    if low < above:  # as normal quantiles p-values are almost a line

        def short(mean: float) -> float:
            return float(special.ndtri(min(exact(mean), end)) - special.ndtri(alpha))

        low = float(optimize.brentq(short, low, above, xtol=1e-8))
    if at_threshold >= alpha:
        low = min(low, threshold)
    elif p < alpha:
        low = max(low, math.nextafter(threshold, 1.0))
    return max(low, -1.0), max(p, at_threshold)


def _agreed(exact: float, by_bound: float, alpha: float) -> float:
    """The exact test's p-value; where the bound does not reach the threshold, the larger of the two."""
    return exact if by_bound < alpha else max(exact, by_bound)
