"""Does the difference lie above a threshold, or below it? One answer from bound and p-value together."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy import special

from rlhf_bench.harness.stats.intervals import Floats, bounded_low, bounded_p, by_cluster, mean_se
from rlhf_bench.harness.stats.paired import RESAMPLES, bootstrap_t, mcnemar_midp, sign_flip_p, tango_low, tango_z


class Evidence(NamedTuple):
    """One-sided bounds of a difference at 1 - alpha, and p-values for "above" and "below" the threshold.

    `p_above` < alpha only where `low` > threshold, and `p_below` < alpha only where `high` < threshold.
    """

    low: float
    high: float
    p_above: float
    p_below: float


def binary_evidence(gained: int, lost: int, n: int, *, threshold: float, alpha: float) -> Evidence:
    """From discordant counts: Tango's score test and bounds; above a threshold of 0 McNemar's mid-p must agree."""
    z = float(tango_z(gained, lost, n, threshold))
    low, negated = tango_low([gained, lost], [lost, gained], n, alpha)
    above = float(special.ndtr(-z))
    if threshold == 0.0:
        above = _agreed(mcnemar_midp(gained, lost), above, alpha)
    return Evidence(float(low), float(-negated), above, float(special.ndtr(z)))


def continuous_evidence(
    differences: ArrayLike,
    clusters: Sequence[str] | None = None,
    *,
    threshold: float,
    alpha: float,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Evidence:
    """From differences in [-1, 1]: studentised cluster bootstrap; above a threshold of 0 the sign flips must agree.

    A resample without spread says nothing about the error, so it counts against every bound. Where too many are like
    that, most of all where the differences are all equal, the bootstrap has no bound, and `bounded_low` gives it: n
    differences of exactly 0 show a loss of at most 1 - alpha^(1/n) (about 3/n), which is what n items can show when
    the next one may lose everything. The tighter of the two bounds is taken.
    """
    values = np.asarray(differences, dtype=np.float64)
    sums, sizes = by_cluster(values, clusters)
    t = bootstrap_t(sums, sizes, resamples=resamples, seed=seed)
    low, above = _from_below(sums, sizes, t, threshold, alpha)
    negated, below = _from_below(-sums, sizes, -t, -threshold, alpha)
    if threshold == 0.0:
        above = _agreed(sign_flip_p(values, clusters, flips=resamples, seed=seed), above, alpha)
    return Evidence(low, -negated, above, below)


def _from_below(sums: Floats, sizes: Floats, t: Floats, threshold: float, alpha: float) -> tuple[float, float]:
    """The lower bound at 1 - alpha and the p-value for "above the threshold", one the inverse of the other."""
    mean, se = mean_se(sums, sizes)
    means = sums / sizes
    low, p = bounded_low(means, alpha, -1.0), bounded_p(means, threshold, -1.0)
    beyond = math.ceil(alpha * (t.size + 1)) - 1
    t = np.sort(np.where(np.isnan(t), np.inf, t))
    if se > 0 and beyond > 0:
        low = max(low, mean - float(t[-beyond]) * se)
        p = min(p, (1 + int((t >= (mean - threshold) / se).sum())) / (t.size + 1))
    return max(low, -1.0), p


def _agreed(exact: float, by_bound: float, alpha: float) -> float:
    """The exact test's p-value; where the bound does not reach the threshold, the larger of the two."""
    return exact if by_bound < alpha else max(exact, by_bound)
