"""AlpacaEval 2's length-controlled win rate: what a model would win if its answers were as long as the baseline's.

Dubois et al. 2024, arXiv 2404.04475; alpaca_eval 0.6.6, metrics/glm_winrate.py. The model of one judged pair is

    P(model ≻ baseline) = sigmoid(w₁ tanh((len₁ − len₂)/sd) + w₂ difficulty + w₃)

with len₁ the baseline's characters, len₂ the model's, and the difficulty of each instruction fixed in advance. Beside
the model's rows stand 1610 rows of two gamed baselines with weight 0.1 each and no w₃. The fit minimises

    ‖w‖₁ + C Σ ωᵢ [log(1 + e^zᵢ) − pᵢ zᵢ],    zᵢ = wᵀxᵢ

with C from ten values by five folds. The score is the mean of sigmoid(w₂ difficulty + w₃).

Differs from theirs: the fit is converged (liblinear stops up to 0.05 points away), all folds and values of C are solved
at once, and the standard error is that of the score, where theirs is the spread of the fitted values.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

Floats: TypeAlias = NDArray[np.float64]

CANDIDATES_C: Floats = np.logspace(-4, 4, 10)
FOLDS = 5
GAMED_WEIGHT = 0.2 / 2
"""Theirs: a regularisation of 0.2, shared by two gamed baselines."""
TOLERANCE = 1e-6
MAX_STEPS = 100


@dataclass(frozen=True, slots=True)
class Gamed:
    """What is fixed in advance: the difficulty of each instruction, and the gamed baselines' rows.

    `difficulty` [instructions]; `features` [rows, 3] = tanh of the standardised length difference, difficulty, 0;
    `preferences` [rows] in [0, 1].
    """

    difficulty: Floats
    features: Floats
    preferences: Floats


@dataclass(frozen=True, slots=True)
class LengthControlled:
    """A fitted model. `weights` [3] are those of length, difficulty and model; `score` is in [0, 1].

    `influence` [rows] is each judged row's pull on the score: the score moves by influence / rows when the row is
    counted once more. `keys` say which instruction each row is.
    """

    weights: Floats
    c: float
    score: float
    se: float
    published_se: float
    influence: Floats
    keys: tuple[Hashable, ...]

    @property
    def linearised(self) -> Floats:
        """[rows] values whose mean is the score and whose sd/√rows is its standard error.

        The score plus each row's influence, less the mean influence: the penalty and the gamed rows leave one of up to
        some thousandths.
        """
        values: Floats = self.score + self.influence - self.influence.mean()
        return values


def length_feature(baseline_chars: Floats, model_chars: Floats) -> Floats:
    """tanh((baseline − model) / sd) of each row, the sd over all rows with n − 1; 0 where all differences are equal.

    A row without a length (NaN) has none, and counts for no other's, as in pandas.
    """
    difference = baseline_chars - model_chars
    known = difference[np.isfinite(difference)]
    spread = float(known.std(ddof=1)) if known.size > 1 else 0.0
    return np.tanh(difference / spread) if spread > 0 else difference * 0.0


def length_controlled(
    preferences: Floats, length: Floats, difficulty: Floats, gamed: Gamed, keys: Sequence[Hashable]
) -> LengthControlled:
    """Fit one model's rows, [rows] each: the preference for it in [0, 1] or NaN, `length_feature`, and the difficulty.

    Rows without a preference or a length take no part in the fit and do in the score, as in the official code. Raises
    ValueError where no row has both.
    """
    judged = np.isfinite(preferences) & np.isfinite(length)
    if not judged.any():
        raise ValueError("no row has a preference")
    ours = np.column_stack([length, difficulty, np.ones_like(length)])
    features = np.concatenate([gamed.features, ours[judged]])
    labels = np.concatenate([gamed.preferences, preferences[judged]])
    omega = np.concatenate([np.full(len(gamed.features), GAMED_WEIGHT), np.ones(int(judged.sum()))])
    c, start = choose_c(features, labels, omega)
    weights = fit(features, labels, omega[None], np.array([c]), start[None])[0]
    fitted = sigmoid(ours[:, 1:] @ weights[1:])
    score = float(fitted.mean())

    expected = sigmoid(features @ weights)
    active = weights != 0
    curved = features[:, active] * (omega * expected * (1 - expected))[:, None]
    slope = fitted * (1 - fitted)
    gradient = np.array([0.0, float((slope * difficulty).mean()), float(slope.mean())])[active]
    pull = np.linalg.solve(curved.T @ features[:, active], gradient) if active.any() else gradient
    influence = fitted - score
    residual = preferences[judged] - sigmoid(ours[judged] @ weights)
    influence[judged] += len(ours) * (ours[judged][:, active] @ pull) * residual
    rows = len(ours)
    spread = float(fitted.std(ddof=1)) / rows**0.5 if rows > 1 else 0.0
    se = float(np.sqrt(influence @ influence)) / rows
    return LengthControlled(weights, c, score, se, spread, influence, tuple(keys))


def lc_difference(a: LengthControlled, b: LengthControlled) -> tuple[float, float]:
    """The score of `a` minus that of `b`, and its standard error; rows on the same instruction are paired."""
    pull = dict(zip(a.keys, a.influence / len(a.keys), strict=True))
    for key, value in zip(b.keys, b.influence / len(b.keys), strict=True):
        pull[key] = pull.get(key, 0.0) - value
    moved = np.array(list(pull.values()))
    return a.score - b.score, float(np.sqrt(moved @ moved))


def bootstrap(
    preferences: Floats,
    length: Floats,
    difficulty: Floats,
    gamed: Gamed,
    fitted: LengthControlled,
    *,
    resamples: int = 1000,
    seed: int = 0,
) -> Floats:
    """The score of resampled instructions, refitted: [resamples]. C, the lengths' sd and the gamed rows stay."""
    ours = np.column_stack([length, difficulty, np.ones_like(length)])
    judged = np.isfinite(preferences) & np.isfinite(length)
    rng = np.random.default_rng(seed)
    rows = len(ours)
    counts = rng.multinomial(rows, np.full(rows, 1 / rows), size=resamples).astype(np.float64)
    features = np.concatenate([gamed.features, ours[judged]])
    labels = np.concatenate([gamed.preferences, preferences[judged]])
    scores = np.empty(resamples)
    for begin in range(0, resamples, 100):
        part = counts[begin : begin + 100]
        omega = np.concatenate([np.full((len(part), len(gamed.features)), GAMED_WEIGHT), part[:, judged]], axis=1)
        start = np.broadcast_to(fitted.weights, (len(part), 3))
        weights = fit(features, labels, omega, np.full(len(part), fitted.c), start, tolerance=1e-4)
        scores[begin : begin + 100] = (part * sigmoid(weights[:, 1:] @ ours[:, 1:].T)).sum(axis=1) / rows
    return scores


def choose_c(features: Floats, labels: Floats, omega: Floats) -> tuple[float, Floats]:
    """The C of `CANDIDATES_C` with the least mean held-out loss, and a start for the fit with it.

    The folds are scikit-learn's GroupKFold over groups of equal size, ties broken as a stable sort breaks them.
    """
    fold = (len(labels) - 1 - np.arange(len(labels))) % FOLDS
    held_out = fold[None, :] == np.arange(FOLDS)[:, None]
    training = np.where(held_out, 0.0, omega)
    start = np.zeros((FOLDS, features.shape[1]))
    losses = []
    paths = []
    for c in CANDIDATES_C:
        start = fit(features, labels, training, np.full(FOLDS, c), start, tolerance=1e-4)
        loss = omega * (softplus(start @ features.T) - labels * (start @ features.T))
        losses.append(float(((loss * held_out).sum(axis=1) / held_out.sum(axis=1)).mean()))
        paths.append(start.mean(axis=0))
    best = int(np.argmin(losses))
    return float(CANDIDATES_C[best]), paths[best]


def fit(
    features: Floats, labels: Floats, omega: Floats, c: Floats, start: Floats, *, tolerance: float = TOLERANCE
) -> Floats:
    """Minimise ‖w‖₁ + c Σ ω loss for many problems at once by proximal Newton steps, until one is below `tolerance`.

    `features` [rows, k] and `labels` [rows] are shared; `omega` [problems, rows], `c` [problems], `start` and the
    result [problems, k]. The error left is of the order of the last step squared.
    """
    size = features.shape[1]
    upper = np.triu_indices(size)
    products = features[:, upper[0]] * features[:, upper[1]]
    weights = start.copy()
    todo = np.arange(len(weights))
    for _ in range(MAX_STEPS):
        now, at = omega[todo], weights[todo]
        expected = sigmoid(at @ features.T)
        gradient = c[todo, None] * ((now * (expected - labels)) @ features)
        hessian = np.empty((len(todo), size, size))
        hessian[:, upper[0], upper[1]] = c[todo, None] * ((now * expected * (1 - expected)) @ products)
        hessian[:, upper[1], upper[0]] = hessian[:, upper[0], upper[1]]
        hessian[:, np.arange(size), np.arange(size)] += 1e-12  # a column without rows stays at zero
        step = _lasso(hessian, gradient, at) - at
        far = np.abs(step).max(axis=1)
        for one in np.flatnonzero(far > 1):
            step[one] *= _descent(features, labels, c[todo[one]] * now[one], at[one], step[one])
        weights[todo] = at + step
        todo = todo[far > tolerance]
        if not len(todo):
            break
    return weights


def _lasso(hessian: Floats, gradient: Floats, at: Floats) -> Floats:
    """argmin_u gᵀ(u − at) + ½ (u − at)ᵀ H (u − at) + ‖u‖₁ for each problem.

    Where the signs at hand stay, one linear system; else coordinate by coordinate.
    """
    signs = np.sign(at)
    rest = (signs == 0).any(axis=1)
    new = at.copy()
    if not rest.all():
        kept = ~rest
        new[kept] -= np.linalg.solve(hessian[kept], (gradient + signs)[kept][..., None])[..., 0]
        rest |= (np.sign(new) != signs).any(axis=1)
    if rest.any():
        new[rest] = _by_coordinates(hessian[rest], gradient[rest], at[rest])
    return new


def _by_coordinates(hessian: Floats, gradient: Floats, at: Floats) -> Floats:
    new = at.copy()
    for _ in range(200):
        before = new.copy()
        for j in range(at.shape[1]):
            curve = hessian[:, j, j]
            linear = gradient[:, j] + ((new - at) * hessian[:, j]).sum(axis=1) - curve * new[:, j]
            new[:, j] = -np.sign(linear) * np.maximum(np.abs(linear) - 1.0, 0.0) / curve
        if np.abs(new - before).max() < 1e-13:
            break
    return new


def _descent(features: Floats, labels: Floats, omega: Floats, at: Floats, step: Floats) -> float:
    """1, or the first of ½, ¼ … with which the step lessens the objective of one problem."""

    def objective(weights: Floats) -> float:
        z = features @ weights
        return float(np.abs(weights).sum() + omega @ (softplus(z) - labels * z))

    share, now = 1.0, objective(at)
    while share > 1e-9 and objective(at + share * step) > now:
        share /= 2
    return share


def sigmoid(z: Floats) -> Floats:
    """1 / (1 + e^−z)."""
    with np.errstate(over="ignore"):
        return 1.0 / (1.0 + np.exp(-z))


def softplus(z: Floats) -> Floats:
    """log(1 + e^z), without overflow."""
    return np.logaddexp(0.0, z)
