"""Arena-Hard's style control: what a model would score if its answers were as long and as formatted as the baseline's.

Official: arena-hard-auto, utils_math.py at 561534a6 (v0.1) and show_result.py at 196f6b82 (v2.0). A logistic model of
the verdicts: a coefficient for each model, and one for each of four standardised differences (tokens, headers, lists,
bolds); the score is the win rate with the four at zero.
- v0.1: (model − baseline) / (model + baseline + 1); verdicts doubled, L2 with C = 1 on every coefficient, base 10.
- v2.0: tokens as (model − baseline) / (model + baseline); the others first per token; no penalty.
Differs: fits are converged (torch's 50 steps stop 0.06 to 0.5 points away) and the interval is clustered by prompt.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from rlhf_bench.suites.judged import Metric
from rlhf_bench.suites.judged.files import Row, read
from rlhf_bench.suites.judged.length_controlled import Floats, sigmoid

if TYPE_CHECKING:
    from rlhf_bench.suites.judged.arena_hard import Battle

REPLICATES = 100
Z = 1.959963984540054


class Style(NamedTuple):
    """The length of an answer in tokens, and what markdown it has."""

    tokens: float
    headers: float
    lists: float
    bolds: float


@dataclass(frozen=True, slots=True)
class Controlled:
    """A model's score with style controlled, in percent: with the true interval, and as officially computed."""

    score: Metric
    published: Metric


def style_of(files: Sequence[Path]) -> dict[str, dict[str, Style]]:
    """By model and prompt, from answer files with `conv_metadata` (v0.1) or `metadata`. Raises UserError without."""
    found: dict[str, dict[str, Style]] = {}
    for path in files:
        for row in read(path):
            name = "metadata" if "metadata" in row.fields else "conv_metadata"
            facts = row.fields.get(name)
            if not isinstance(facts, dict):
                raise row.wrong(name, "should hold token_len, header_count, list_count and bold_count")
            style = Style(
                *(_count(row, name, facts.get(k)) for k in ("token_len", "header_count", "list_count", "bold_count"))
            )
            found.setdefault(row.text("model", "model_id"), {})[row.text("uid", "question_id")] = style
    return found


def _count(row: Row, name: str, value: Any) -> float:
    """A count, or the sum of the counts of a mapping."""
    parts = list(value.values()) if isinstance(value, dict) else [value]
    if not all(isinstance(part, int | float) and 0 <= part < math.inf for part in parts):
        raise row.wrong(name, "should hold token_len, header_count, list_count and bold_count")
    return float(sum(parts))


def style_control(
    graded: Sequence[Battle], styles: Mapping[str, Mapping[str, Style]], *, penalised: bool, seed: int = 0
) -> dict[str, Controlled]:
    """By model; one baseline, one category. `penalised` is v0.1's fit. Raises KeyError where an answer is missing."""
    names = sorted({each.model for each in graded})
    pairs = sorted({(each.prompt, each.model) for each in graded})
    place = {pair: number for number, pair in enumerate(pairs)}
    baseline = graded[0].baseline
    cells = np.zeros((len(pairs), 3))
    for each in graded:
        cells[place[each.prompt, each.model], round(2 * (each.outcome or 0.0))] += each.weight
    ours = np.array([styles[model][prompt] for prompt, model in pairs])
    theirs = np.array([styles[baseline][prompt] for prompt, _ in pairs])
    scale = math.log(10) if penalised else 1.0
    one_hot = np.zeros((len(pairs), len(names)))
    one_hot[np.arange(len(pairs)), [names.index(model) for _, model in pairs]] = scale
    style = _standardised(_differences(ours, theirs, penalised), cells.sum(axis=1), 0 if penalised else 1)
    if penalised:
        features = np.column_stack([one_hot, np.full(len(pairs), -scale), style])
    else:
        features = np.column_stack([one_hot, style])
    copies, ridge = (2.0, 1.0) if penalised else (1.0, 0.0)

    total = round(float(cells.sum()))
    drawn = np.random.default_rng(seed).multinomial(total, cells.ravel() / cells.sum(), size=REPLICATES)
    counts = np.concatenate([cells[None], drawn.reshape(REPLICATES, *cells.shape)])
    wins = copies * (counts @ np.array([0.0, 0.5, 1.0]))
    weights = copies * counts.sum(axis=2)
    coefficients = fit_logistic(features, wins, weights, ridge)
    contrast = np.zeros((len(names), features.shape[1]))
    contrast[:, : len(names)] = scale * np.eye(len(names))
    if penalised:
        contrast[:, len(names)] = -scale
    logits = coefficients @ contrast.T
    clusters = np.unique([prompt for prompt, _ in pairs], return_inverse=True)[1]
    spread = _sandwich(features, wins[0], weights[0], ridge, coefficients[0], clusters)
    found = {}
    for number, name in enumerate(names):
        se = math.sqrt(float(contrast[number] @ spread @ contrast[number]))
        found[name] = _controlled(logits[:, number], se, penalised)
    return found


def _controlled(logits: Floats, se: float, penalised: bool) -> Controlled:
    """`logits` [1 + replicates], the first on the data as they are."""
    point = float(logits[0])
    low, middle, high = (100 * _share(point + shift) for shift in (-Z * se, 0.0, Z * se))
    share = middle / 100
    true = Metric(middle, low, high, 100 * share * (1 - share) * se)
    bounds = (2.5, 97.5) if penalised else (5.0, 95.0)
    lower, median, upper = (100 * _share(float(np.percentile(logits[1:], part))) for part in (bounds[0], 50, bounds[1]))
    return Controlled(true, Metric(middle if penalised else median, lower, upper))


def _share(logit: float) -> float:
    return float(sigmoid(np.array([logit]))[0])


def _differences(ours: Floats, theirs: Floats, penalised: bool) -> Floats:
    if penalised:
        return (ours - theirs) / (ours + theirs + 1)
    found = np.empty_like(ours)
    length = ours[:, 0] + theirs[:, 0]
    found[:, 0] = (ours[:, 0] - theirs[:, 0]) / np.where(length > 0, length, 1.0)
    a, b = ours[:, 1:] / (ours[:, :1] + 1), theirs[:, 1:] / (theirs[:, :1] + 1)
    found[:, 1:] = (a - b) / (a + b + 1)
    return found


def _standardised(values: Floats, weights: Floats, ddof: int) -> Floats:
    """Mean 0 and sd 1 over verdicts; a column without spread becomes 0."""
    total = weights.sum()
    centred = values - weights @ values / total
    sd = np.sqrt(weights @ centred**2 / max(total - ddof, 1.0))
    flat = sd <= 1e-12
    found: Floats = np.where(flat, 0.0, centred / np.where(flat, 1.0, sd))
    return found


def fit_logistic(features: Floats, wins: Floats, weights: Floats, ridge: float) -> Floats:
    """Minimise ½ ridge ‖w‖² + Σ weights log(1 + e^z) − wins z for many problems at once, by Newton's method.

    `features` [rows, k]; `wins` and `weights` [problems, rows]; the result [problems, k]. Without a penalty a tiny one
    (1e-9) keeps what the data do not decide at zero.
    """
    size = features.shape[1]
    upper = np.triu_indices(size)
    products = features[:, upper[0]] * features[:, upper[1]]
    penalty = max(ridge, 1e-9)
    coefficients = np.zeros((len(wins), size))
    hessian = np.empty((len(wins), size, size))
    for _ in range(100):
        expected = sigmoid(coefficients @ features.T)
        gradient = (weights * expected - wins) @ features + penalty * coefficients
        hessian[:, upper[0], upper[1]] = (weights * expected * (1 - expected)) @ products
        hessian[:, upper[1], upper[0]] = hessian[:, upper[0], upper[1]]
        hessian[:, np.arange(size), np.arange(size)] += penalty
        step = np.linalg.solve(hessian, gradient[..., None])[..., 0]
        coefficients -= step * np.minimum(1.0, 2.0 / np.maximum(np.abs(step).max(axis=1, keepdims=True), 1e-300))
        if np.abs(step).max() < 1e-6:
            break
    return coefficients


def _sandwich(
    features: Floats, wins: Floats, weights: Floats, ridge: float, at: Floats, clusters: np.ndarray[Any, Any]
) -> Floats:
    """The covariance of the coefficients when whole clusters are drawn: H⁻¹ (Σ u uᵀ) H⁻¹ · G / (G − 1)."""
    expected = sigmoid(features @ at)
    hessian = (features * (weights * expected * (1 - expected))[:, None]).T @ features
    hessian += max(ridge, 1e-9) * np.eye(len(at))
    pulls = np.zeros((int(clusters.max()) + 1, len(at)))
    np.add.at(pulls, clusters, features * (wins - weights * expected)[:, None])
    inverse = np.linalg.inv(hessian)
    count = len(pulls)
    covariance: Floats = inverse @ (pulls.T @ pulls) @ inverse * (count / max(count - 1, 1))
    return covariance
