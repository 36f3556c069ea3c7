"""What a reward or preference model is worth on pairs that it has not seen: accuracy, calibration, and length.

Paper: section 2.1 and its figure on length: the correlation of reward and length, answer by answer of one prompt, has a
mean of 0.06 for its reward model and 0.19 for UltraRM-13B. Lengths are in characters, as in its penalty (eq. 9).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from rlhf_bench.harness.judges import Judge
from rlhf_bench.harness.progress import Track, silent
from rlhf_bench.harness.stats.intervals import Interval, by_cluster, estimate, mean_interval
from rlhf_bench.harness.types import Battle, Conversation, Preference, Score

BINS = 10
LEAST_ANSWERS = 3
"""Answers of one prompt below which a correlation is only a sign."""


@dataclass(frozen=True, slots=True)
class Bin:
    """Pairs whose more probable answer has a probability in [low, high): its mean, and how often it was the chosen."""

    low: float
    high: float
    pairs: int
    confidence: float
    accuracy: float


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Figures over the pairs that were judged; `ungraded` were not (too long), and `why` says why the first was not.

    `accuracy`: how often the chosen answer is preferred; a tie is wrong, and `ties` counts them. `calibration_error` is
    the mean distance of confidence and accuracy over the bins, by pairs, where confidence is the probability that the
    model gives the answer that it prefers (σ of the margin, for a reward model); a tie is half right there.
    `prefers_longer` is how often the model prefers the longer answer where lengths differ, `chosen_longer` how often
    the data do. `length_correlation` is None without rewards, or prompts that have three answers.
    """

    pairs: int
    prompts: int
    ungraded: int
    why: str
    ties: int
    accuracy: Interval
    calibration_error: float | None
    bins: tuple[Bin, ...]
    prefers_longer: Interval | None
    chosen_longer: Interval | None
    length_correlation: Interval | None


def evaluate_pairs(judge: Judge, preferences: Sequence[Preference], track: Track = silent) -> Evaluation:
    """Hold `judge` against pairs whose better answer is known. Intervals take the pairs of a prompt as one cluster."""
    battles = [Battle(str(n), pair.prompt, pair.chosen, pair.rejected) for n, pair in enumerate(preferences)]
    scores: dict[str, Score] = {}
    with track(f"judge {judge.name}", len(battles)) as advance:
        for score in judge.prefer(battles):
            scores[score.sample_id] = score
            advance(1)
    told = [(pair, scores[str(n)]) for n, pair in enumerate(preferences)]
    why = next((score.why for _, score in told if score.value is None), "")
    graded = [(pair, score.value) for pair, score in told if score.value is not None]
    numbers = {prompt: str(n) for n, prompt in enumerate(dict.fromkeys(pair.prompt for pair, _ in graded))}
    clusters = [numbers[pair.prompt] for pair, _ in graded]
    p = np.array([value for _, value in graded], dtype=np.float64)
    bins = reliability(p)
    uneven = [place for place, (pair, _) in enumerate(graded) if len(pair.chosen) != len(pair.rejected)]
    longer = np.array([len(graded[place][0].chosen) > len(graded[place][0].rejected) for place in uneven])
    among = [clusters[place] for place in uneven]
    return Evaluation(
        pairs=len(graded),
        prompts=len(numbers),
        ungraded=len(told) - len(graded),
        why=why,
        ties=int((p == 0.5).sum()),
        accuracy=estimate((p > 0.5).astype(np.float64), kind="binary", clusters=clusters),
        calibration_error=sum(b.pairs * abs(b.accuracy - b.confidence) for b in bins) / p.size if p.size else None,
        bins=bins,
        prefers_longer=_share(np.where(longer, p[uneven], 1 - p[uneven]) > 0.5, among) if uneven else None,
        chosen_longer=_share(longer, among) if uneven else None,
        length_correlation=length_correlation(_rewards(told)),
    )


def reliability(p: ArrayLike) -> tuple[Bin, ...]:
    """Ten bins of equal width over the confidence max(p, 1 − p), from ½ to 1, without empty ones; p is P(right)."""
    chances = np.asarray(p, dtype=np.float64)
    confidence = np.maximum(chances, 1 - chances)
    right = np.where(chances == 0.5, 0.5, chances > 0.5)
    edges = np.linspace(0.5, 1.0, BINS + 1)
    at = np.clip(np.searchsorted(edges, confidence, side="right") - 1, 0, BINS - 1)
    return tuple(
        Bin(
            float(edges[number]),
            float(edges[number + 1]),
            int((at == number).sum()),
            float(confidence[at == number].mean()),
            float(right[at == number].mean()),
        )
        for number in np.unique(at)
    )


def length_correlation(rewards: Mapping[Conversation, Mapping[str, float]]) -> Interval | None:
    """Mean over prompts of Pearson's correlation of reward and length in characters, of each answer to the prompt.

    None where no prompt has three answers that differ in both.
    """
    found = []
    for answers in rewards.values():
        values = np.array(list(answers.values()))
        lengths = np.array([len(answer) for answer in answers], dtype=np.float64)
        if len(answers) >= LEAST_ANSWERS and values.std() > 0 and lengths.std() > 0:
            found.append(float(np.corrcoef(values, lengths)[0, 1]))
    return mean_interval(*by_cluster(np.array(found), None)) if found else None


def _rewards(told: Sequence[tuple[Preference, Score]]) -> dict[Conversation, dict[str, float]]:
    """By prompt the reward of each of its answers, where the judge says rewards."""
    found: dict[Conversation, dict[str, float]] = {}
    for pair, score in told:
        if "reward" in score.also:
            both = {pair.chosen: score.also["reward"], pair.rejected: score.also["baseline_reward"]}
            found.setdefault(pair.prompt, {}).update(both)
    return found


def _share(hits: NDArray[np.bool_], clusters: Sequence[str]) -> Interval:
    return estimate(hits.astype(np.float64), kind="binary", clusters=clusters)
