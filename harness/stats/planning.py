"""Before and after: what a number of samples can show, how many a question needs, and what several at once cost."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from scipy import special

from rlhf_bench.harness.stats.evidence import binary_evidence
from rlhf_bench.harness.stats.paired import tango_z
from rlhf_bench.harness.types import Kind

Counts: TypeAlias = NDArray[np.int64]

_SURE = 30.0
"""Standard errors beyond which a chance is 0 or 1, and scipy's noncentral t no longer exact."""
_FEW = 50.0
"""With fewer changed pairs expected, the chance of a binary claim is by enumeration."""


def holm(p_values: Sequence[float]) -> tuple[float, ...]:
    """Holm's (1979) adjusted p-values, in the order given: those below alpha keep the family-wise error below alpha."""
    adjusted = [1.0] * len(p_values)
    highest = 0.0
    for rank, i in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[i]))
        adjusted[i] = highest
    return tuple(adjusted)


def alpha_share(alpha: float, planned: int | None, place: int) -> float:
    """What the decision at `place` (from 1) may take of the error that all on the same samples share.

    alpha/planned where so many are planned, else 6·alpha/(π²·place²), whose sum over all places is alpha.
    """
    return alpha / planned if planned else 6 * alpha / (math.pi * place) ** 2


def detectable(se: float, alpha: float = 0.05, power: float = 0.8) -> float:
    """The distance from its threshold that a one-sided test at `alpha` sees with this power, the MDE.

    (z_{1-alpha} + z_power) · se, with the standard error of the paired difference.
    """
    return float(special.ndtri(1 - alpha) + special.ndtri(power)) * se


def samples_needed(sd: float, distance: float, alpha: float = 0.05, power: float = 0.8) -> float:
    """Paired samples with which a one-sided test at `alpha` sees a true `distance` from its threshold with this power.

    `sd` is that of one pair's difference; for binary scores about √(share of pairs that change). Rounded up; infinite
    where the distance is 0. n = ((z_{1-alpha} + z_power) · sd / distance)².
    """
    if distance == 0:
        return math.inf
    found = float(((special.ndtri(1 - alpha) + special.ndtri(power)) * sd / distance) ** 2)
    return math.ceil(found) if math.isfinite(found) else math.inf


def samples_to_decide(
    low: float, high: float, n: int, distance: float, alpha: float = 0.05, power: float = 0.8
) -> float:
    """`samples_needed`, with the sd read off one-sided bounds at 1 - alpha that n pairs gave."""
    return samples_needed(_sd_of(low, high, n, alpha), distance, alpha, power)


def repeats_to_decide(
    low: float,
    high: float,
    n: int,
    distance: float,
    alpha: float = 0.05,
    power: float = 0.8,
    *,
    within: float = 1.0,
    repeats: int = 1,
) -> float:
    """How many answers to each of n items, which are all there are, would see `distance`; infinite where none would.

    The bounds are those that `repeats` answers to each gave. `within` is the share of their variance that is the chance
    of sampling an answer, which more answers average out; what is left is how the items themselves differ. With
    `within` 1, where nothing is known of it, the number is the fewest that could do.
    """
    needed = samples_needed(1.0, distance, alpha, power)  # pairs, were their variance 1
    if needed == math.inf:
        return math.inf
    variance = _sd_of(low, high, n, alpha) ** 2
    left = n / needed - (1 - within) * variance
    if within * variance == 0:
        return 1 if left >= 0 else math.inf
    return max(1, math.ceil(repeats * within * variance / left)) if left > 0 else math.inf


def chance_to_show(
    difference: float, threshold: float, n: float, sd: float, alpha: float, *, kind: Kind, exact: bool = True
) -> float:
    """The power of the gate's test: how likely n pairs with this true `difference` show it to be above `threshold`.

    `sd` is that of one pair's difference: for binary pairs √q, q the share of pairs that change either way. Binary is
    Tango's score test, above 0 mid-p too: where fewer than `_FEW` pairs are expected to change (n·q), the outcomes that
    `binary_evidence` would show are counted; else the chance is by the delta method around the expected counts, within
    0.02 of that. Not `exact`, outcomes are counted by Tango's and mid-p alone, which is fast and for a few pairs too
    high by a step. For continuous scores it is the t-test's, by the noncentral t. Where the difference is above, it
    rises with n, but for the steps that a few counts make.
    """
    if kind == "binary":
        q = min(1.0, max(sd**2, abs(difference)))
        if n * q < _FEW:
            return _counted(difference, threshold, max(1, round(n)), q, alpha, exact)
        return _by_delta(difference, threshold, n, q, alpha)
    if sd == 0:
        return float(difference > threshold)
    shift = math.sqrt(n) * (difference - threshold) / sd
    if n < 2 or abs(shift) > _SURE:
        return float(shift > 0 and n >= 2)
    return float(1 - special.nctdtr(n - 1, shift, special.stdtrit(n - 1, 1 - alpha)))


def _counted(difference: float, threshold: float, n: int, q: float, alpha: float, exact: bool) -> float:
    """Over every number of changed pairs that is at all likely, the chance of enough gains among them."""
    spread = 5 * math.sqrt(n * q) + 5
    changed = np.arange(max(0, math.floor(n * q - spread)), min(n, math.ceil(n * q + spread)) + 1)
    least = _least_gained(changed, n, threshold, alpha, exact)
    up = (q + difference) / (2 * q) if q > 0 else 0.5
    ways = special.gammaln(n + 1.0) - special.gammaln(changed + 1.0) - special.gammaln(n - changed + 1.0)
    weight = np.exp(ways + special.xlogy(changed, q) + special.xlog1py(n - changed, -q))
    enough = np.where(least > 0, special.bdtrc(np.minimum(least, changed + 1) - 1.0, changed, up), 1.0)
    return min(1.0, float(weight @ np.where(least > changed, 0.0, enough)))


def _least_gained(changed: Counts, n: int, threshold: float, alpha: float, exact: bool) -> Counts:
    """The fewest gains that show the difference, for each number of changed pairs; one more than there are: none do."""
    gained = np.arange(changed[-1] + 1)
    lost = np.maximum(changed[:, None] - gained, 0)
    p = special.ndtr(-tango_z(gained, lost, n, threshold))
    if threshold == 0:
        at_least = np.where(gained > 0, special.bdtrc(np.maximum(gained - 1, 0), gained + lost, 0.5), 1.0)
        p = np.maximum(p, (special.bdtrc(gained, gained + lost, 0.5) + at_least) / 2)
    shown = (p < alpha) & (gained <= changed[:, None])
    least: Counts = np.where(shown.any(axis=1), shown.argmax(axis=1), changed + 1)
    if exact:
        for row, most in enumerate(changed):
            while least[row] <= most and not _shown(int(least[row]), int(most - least[row]), n, threshold, alpha):
                least[row] += 1
    return least


@lru_cache(maxsize=1 << 16)
def _shown(gained: int, lost: int, n: int, threshold: float, alpha: float) -> bool:
    return binary_evidence(gained, lost, n, threshold=threshold, alpha=alpha).p_above < alpha


def _by_delta(difference: float, threshold: float, n: float, q: float, alpha: float) -> float:
    gained, lost = (q + difference) / 2, (q - difference) / 2
    z = float(special.ndtri(1 - alpha))

    def excess(b: float, c: float) -> float:
        return b - c - threshold - z * math.sqrt(_null_variance(b, c, threshold) / n)

    step = 1e-6 * max(q, 1e-3)
    by_gained = (excess(gained + step, lost) - excess(gained, lost)) / step
    by_lost = (excess(gained, lost + step) - excess(gained, lost)) / step
    variance = by_gained**2 * gained + by_lost**2 * lost - (by_gained * gained + by_lost * lost) ** 2
    found = excess(gained, lost)
    return float(special.ndtr(found * math.sqrt(n / variance))) if variance > 0 else float(found > 0)


def _null_variance(gained: float, lost: float, threshold: float) -> float:
    """Tango's variance of one pair's difference, were it `threshold`: 2q̃ + D(1 - D), q̃ from shares of all pairs."""
    linear = -gained - lost + (2 - gained + lost) * threshold
    constant = -lost * threshold * (1 - threshold)
    root = math.sqrt(max(linear**2 - 8 * constant, 0.0))
    q = -2 * constant / (root + linear) if linear > 0 else (root - linear) / 4
    return max(2 * q + threshold * (1 - threshold), 0.0)


def _sd_of(low: float, high: float, n: int, alpha: float) -> float:
    return (high - low) / (2 * float(special.ndtri(1 - alpha))) * math.sqrt(n)
