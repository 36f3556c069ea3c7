"""Before and after: how many samples a question needs, and what several questions at once cost."""

from __future__ import annotations

import math
from collections.abc import Sequence

from scipy import special


def holm(p_values: Sequence[float]) -> tuple[float, ...]:
    """Holm's (1979) adjusted p-values, in the order given: those below alpha keep the family-wise error below alpha."""
    adjusted = [1.0] * len(p_values)
    highest = 0.0
    for rank, i in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[i]))
        adjusted[i] = highest
    return tuple(adjusted)


def samples_needed(sd: float, distance: float, alpha: float = 0.05, power: float = 0.8) -> float:
    """Paired samples with which a one-sided test at `alpha` sees a true `distance` from its threshold with this power.

    `sd` is that of one pair's difference; for binary scores about √(share of pairs that change). Rounded up; infinite
    where the distance is 0. n = ((z_{1-alpha} + z_power) · sd / distance)².
    """
    if distance == 0:
        return math.inf
    return math.ceil(float(((special.ndtri(1 - alpha) + special.ndtri(power)) * sd / distance) ** 2))


def samples_to_decide(
    low: float, high: float, n: int, distance: float, alpha: float = 0.05, power: float = 0.8
) -> float:
    """`samples_needed`, with the sd read off one-sided bounds at 1 - alpha that n pairs gave."""
    sd = (high - low) / (2 * float(special.ndtri(1 - alpha))) * math.sqrt(n)
    return samples_needed(sd, distance, alpha, power)
