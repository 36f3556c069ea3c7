"""Stop as soon as a claim is decided: looks at a growing sample that err no more often than one look at all of it.

A claim says that a difference lies above a threshold. A design says after which share of the items to look at it, and
at which nominal one-sided level each look decides it, either way; the items come in an order that was drawn before.

`obrien_fleming`: few looks at z_k = C/√t_k, t_k the share of the items. C is solved for by recursive numerical
integration (Armitage, McPherson & Rowe 1969; Jennison & Turnbull 2000, ch. 19), for any looks and any alpha. `earliest`
holds every level at no less than that share of alpha, so that a large difference is seen early, and C pays for it. A
bound at 1 - level is a repeated confidence bound. The futility rule is non-binding: going on in spite of it is allowed.
Early looks weigh one win and one loss more (`one_each_way`): what is rare may not have been seen yet.

`e_process`: a look after any item, and no end in sight. The capital of a bettor against "the mean is m",
K_t(m) = Π(1 + λ(y_i - m)), averaged over some λ: it ever exceeds 1/alpha with probability alpha at most (Ville 1939;
Waudby-Smith & Ramdas 2024). `anytime_evidence` holds whenever one looks, so every level is alpha.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike
from scipy import optimize, special

from rlhf_bench.harness.errors import UserError
from rlhf_bench.harness.stats.evidence import Evidence
from rlhf_bench.harness.stats.intervals import Floats

FEW = 200
"""Items below which a look before the last weighs one win and one loss more."""
_NODES, _NODE_WEIGHTS = np.polynomial.legendre.leggauss(16)
_STAKES = np.array([0.05, 0.1, 0.2, 0.4, 0.6])[:, None]
"""λ·m: the shares of the capital that are bet. At m = ½ these are λ = .1, .2, .4, .8 and 1.2."""


@dataclass(frozen=True, slots=True)
class Design:
    """When to look, and what decides. `alpha` is one-sided: the error of a whole claim in each direction.

    `fractions` of the items at which to look, the last one 1; no look before `least` items. `earliest`: no level is
    below that share of alpha (0: O'Brien and Fleming's own). `futility`: stop where the chance of a decision, either
    way, falls below this (0: never). An e-process needs only kind and alpha: it has neither looks nor futility.
    Raises UserError for values that are no design.
    """

    kind: Literal["obrien_fleming", "e_process"] = "obrien_fleming"
    alpha: float = 0.05
    fractions: tuple[float, ...] = (0.075, 0.2, 0.4, 0.7, 1.0)
    earliest: float = 0.15
    futility: float = 0.05
    least: int = 40

    def __post_init__(self) -> None:
        if self.kind not in ("obrien_fleming", "e_process"):
            raise UserError(f"design: kind '{self.kind}' should be 'obrien_fleming' or 'e_process'")
        if not 0 <= self.futility < 1:
            raise UserError(f"design: futility {self.futility:g} is a chance, so it should lie between 0 and 1")
        if self.least < 2:
            raise UserError(f"design: a look at {self.least} items shows nothing: 'least' should be 2 or more")
        levels(self.alpha, self.fractions, self.earliest)

    def looks(self, n: int) -> tuple[int, ...]:
        """After how many of `n` items to look, the last time after all; an e-process after each."""
        if self.kind == "e_process":
            return tuple(range(1, n + 1))
        counts = {math.ceil(fraction * n - 1e-9) for fraction in self.fractions[:-1]}
        return (*sorted(count for count in counts if self.least <= count < n), n)

    def levels(self, n: int) -> tuple[float, ...]:
        """The nominal one-sided level of each look at `n` items, with which all of them together err `alpha` times."""
        if self.kind == "e_process":
            return (self.alpha,) * n
        return levels(self.alpha, tuple(count / n for count in self.looks(n)), self.earliest)


@lru_cache(maxsize=256)
def levels(alpha: float, fractions: tuple[float, ...], earliest: float = 0.0) -> tuple[float, ...]:
    """The nominal one-sided levels of looks at these fractions of the information, which together err alpha times.

    z_k = C/√t_k, but never above the z of `earliest`·alpha. Five equal looks at alpha .05 give z = 3.92, 2.77, 2.26,
    1.96, 1.75. Raises UserError where the fractions do not rise to 1, or the early levels leave nothing for the last.
    """
    times = np.asarray(fractions, dtype=np.float64)
    if times.size == 0 or not (np.diff(times, prepend=0.0) > 0).all() or abs(times[-1] - 1) > 1e-9:
        raise UserError(f"design: the looks at {', '.join(f'{t:g}' for t in fractions)} should rise from above 0 to 1")
    if not 0 < alpha < 0.5:
        raise UserError(f"design: alpha {alpha:g} should lie between 0 and 0.5")
    if not 0 <= earliest < 1:
        raise UserError(f"design: earliest {earliest:g} is a share of alpha, so it should lie between 0 and 1")
    if times.size == 1:
        return (alpha,)
    cap = -float(special.ndtri(earliest * alpha))

    def bounds(c: float) -> Floats:
        early: Floats = np.minimum(c / np.sqrt(times[:-1]), cap)
        return np.append(early, c)

    def excess(c: float) -> float:
        return _error(bounds(c), times) - alpha

    lowest = -float(special.ndtri(alpha))
    if excess(9.0) > 0:
        raise UserError(
            f"design: {times.size - 1} early looks at {earliest:g} of alpha leave nothing for the last: "
            f"fewer looks, or a smaller 'earliest'"
        )
    found = optimize.brentq(excess, lowest - 0.01, 9.0, xtol=1e-9)
    return tuple(float(level) for level in special.ndtr(-bounds(found)))


def _error(bounds: Floats, times: Floats) -> float:
    """The chance that z exceeds its bound at any look, where there is no difference.

    The score B(t) = z·√t is a random walk. Carried from look to look is the density of those that have not crossed, at
    Gauss-Legendre nodes in panels no wider than twice the step before or after.
    """
    points, masses, before, crossed = np.zeros(1), np.ones(1), 0.0, 0.0
    for k, time in enumerate(times):
        sd, bound = math.sqrt(time - before), bounds[k] * math.sqrt(time)
        crossed += float(masses @ special.ndtr((points - bound) / sd))
        if k + 1 < times.size:
            panel = 2 * min(sd, math.sqrt(times[k + 1] - time))
            lowest = -7.5 * math.sqrt(time)
            edges = np.linspace(lowest, bound, math.ceil((bound - lowest) / panel) + 1)
            half = np.diff(edges)[:, None] / 2
            nodes = (edges[:-1, None] + half * (1 + _NODES)).ravel()
            density = np.exp(-(((nodes[:, None] - points) / sd) ** 2) / 2) @ masses / (sd * math.sqrt(2 * math.pi))
            points, masses, before = nodes, density * (half * _NODE_WEIGHTS).ravel(), time
    return crossed


def conditional_power(z: ArrayLike, fraction: ArrayLike, final: float, *, predictive: bool = True) -> Floats:
    """The chance that z ends above `final` if the difference goes on as it was up to `fraction`. Broadcasts.

    Under the current trend the score ends around z/√t with variance 1 - t; `predictive` also counts that the trend is
    only estimated (flat prior), which makes the variance (1 - t)/t. Early on that is far more cautious: of what it
    calls hopeless at 5%, fewer than one in twenty would have been decided. Jennison & Turnbull 2000, ch. 10.
    """
    time = np.asarray(fraction, dtype=np.float64)
    if not ((time > 0) & (time < 1)).all():
        raise ValueError("what may still come is only a question between no items and all of them")
    spread = np.sqrt((1 - time) / time if predictive else 1 - time)
    chance: Floats = special.ndtr((np.asarray(z, dtype=np.float64) / np.sqrt(time) - final) / spread)
    return chance


def chance_decided(
    p_above: ArrayLike, p_below: ArrayLike, fraction: ArrayLike, final_level: float, *, predictive: bool = True
) -> Floats:
    """The chance that the last look, at `final_level`, decides a claim either way, from its p-values so far."""
    final = -float(special.ndtri(final_level))
    above, below = (
        conditional_power(-special.ndtri(np.asarray(p, dtype=np.float64)), fraction, final, predictive=predictive)
        for p in (p_above, p_below)
    )
    return np.minimum(above + below, 1.0)


def one_each_way(
    differences: ArrayLike, clusters: Sequence[str] | None = None
) -> tuple[Floats, tuple[str, ...] | None]:
    """The differences with one win and one loss added, each a cluster of its own: what a look before the last weighs.

    Few items may hold none of the rare large differences, and then their spread says nothing about the error: without
    this, first looks at AlpacaEval erred up to several times too often (docs/early-stopping.md). From `FEW` items (or
    clusters) on nothing is added. Bonett & Price (2012) add the same to the discordant counts of paired proportions.
    """
    values = np.asarray(differences, dtype=np.float64)
    labels = None if clusters is None else tuple(clusters)
    if (values.size if labels is None else len(set(labels))) >= FEW:
        return values, labels
    return np.append(values, (1.0, -1.0)), None if labels is None else (*labels, "\0one win", "\0one loss")


def log_e_process(values: ArrayLike, mean: float) -> Floats:
    """ln E_t after each value in [0, 1], in their order, against "the mean is at most `mean`": shape [n].

    E_t is the mean over the stakes s of Π(1 + s·(y_i/m - 1)), that is λ = s/m. It falls with `mean`.
    """
    y = np.asarray(values, dtype=np.float64)
    if not 0 < mean < 1:
        raise ValueError("a mean to bet against lies between 0 and 1")
    capital = np.cumsum(np.log1p(_STAKES * (y / mean - 1)), axis=1)
    logs: Floats = special.logsumexp(capital, axis=0) - math.log(_STAKES.size)
    return logs


def anytime_evidence(differences: ArrayLike, *, threshold: float, alpha: float) -> Evidence:
    """From differences in [-1, 1] in the order in which they came, one for each item: valid at any time one looks.

    p = 1/max E over all items so far, and the bounds are the thresholds at which it would be alpha; so they only ever
    tighten. Where they cross, the items did not come in random order, and nothing is shown. UserError: a difference
    that is missing or off the scale, as those of a figure that is no mean can be.
    """
    y = (np.asarray(differences, dtype=np.float64) + 1) / 2
    if not ((y >= 0) & (y <= 1)).all():
        raise UserError(
            "an e-process bets on differences in [-1, 1], and one lies outside: use 'obrien_fleming' for this metric"
        )
    low, above = _bet(y, threshold, alpha)
    negated, below = _bet(1 - y, -threshold, alpha)
    if low > -negated:
        return Evidence(-1.0, 1.0, 1.0, 1.0)
    return Evidence(low, -negated, above, below)


def _bet(y: Floats, threshold: float, alpha: float) -> tuple[float, float]:
    """The lower bound at 1 - alpha and the p-value for "above the threshold", both on the scale of differences."""

    def p(difference: float) -> float:
        return math.exp(-max(0.0, float(log_e_process(y, (difference + 1) / 2).max(initial=0.0))))

    low, high = -1.0, 1.0
    for _ in range(53):
        middle = (low + high) / 2
        low, high = (middle, high) if p(middle) < alpha else (low, middle)
    return low, p(threshold)


DESIGN = Design()
"""The default. On ordered pairs of published AlpacaEval models the same verdict as the full run in 98.7% of those that
it decides, for 32% of the judge calls (docs/early-stopping.md)."""
