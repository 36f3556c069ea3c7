"""The Ladder: a published best that many submissions climb without fitting the items that it is measured on.

Blum & Hardt 2015, arXiv 1502.04585, the parameter-free form. With s_t the scores of submission t, h those of the one
that holds the best, p what is published, and means to the nearest 1/n,

    mean(s_t) > p + sd(s_t − h)/√n  ─►  t holds, p = mean(s_t)
    otherwise                           all stays, and nothing else is said of t

So who submits learns of t no more than whether it moved, and cannot add up what many chance gains told. It is no test:
a step above a best that is no worse is 16% likely by chance; a verdict is the gate's.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from rlhf_bench.harness.stats.intervals import NO_SPREAD, Floats, by_cluster, mean_se


class Step(NamedTuple):
    """What is published after a submission, None before the first that has a score; `holder` is that one's number."""

    published: float | None
    holder: int | None
    moved: bool


def ladder(submissions: Iterable[Floats], clusters: Sequence[str] | None = None) -> list[Step]:
    """One step for each submission, in the order in which they came: [items] scores of the same items, higher better.

    An ungraded item is NaN and speaks against a move: it counts 0 for the submission, and for the holder 1 where its
    spread is taken; the published mean is over what was graded. With `clusters` (a name for each item) the error is
    that of the clusters' sums. Raises ValueError where submissions are not of the same number of items.
    """
    steps: list[Step] = []
    published: float | None = None
    holder: int | None = None
    held = np.empty(0)
    for number, scores in enumerate(submissions):
        if number and scores.shape != held.shape:
            raise ValueError(f"submission {number} has {scores.size} items where the first had {held.size}")
        held = scores if number == 0 else held
        moved = bool(np.isfinite(scores).any()) and (published is None or _beats(scores, held, published, clusters))
        if moved:
            published, holder, held = _rounded(np.nanmean(scores), scores.size), number, scores
        steps.append(Step(published, holder, moved))
    return steps


def _beats(scores: Floats, held: Floats, published: float, clusters: Sequence[str] | None) -> bool:
    low = np.nan_to_num(scores, nan=0.0)
    _, se = mean_se(*by_cluster(low - np.nan_to_num(held, nan=1.0), clusters))
    return _rounded(low.mean(), low.size) > published + se + NO_SPREAD


def _rounded(mean: np.floating, items: int) -> float:
    return round(float(mean) * items) / items
