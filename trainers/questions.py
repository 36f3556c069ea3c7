"""Pairs as a preference model is asked about them: which of two answers is better, the one shown first or the other?"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from rlhf_bench.harness.types import Conversation, Preference


@dataclass(frozen=True, slots=True)
class Question:
    """Two answers to a prompt, and whether the first, A, is the better one."""

    prompt: Conversation
    a: str
    b: str
    a_is_better: bool


def questions(preferences: Sequence[Preference], seed: int) -> list[Question]:
    """One question a pair, in the same order; which answer is shown first is a fair coin that `seed` fixes."""
    coin = random.Random(seed)
    return [
        Question(pair.prompt, pair.chosen, pair.rejected, True)
        if coin.random() < 0.5
        else Question(pair.prompt, pair.rejected, pair.chosen, False)
        for pair in preferences
    ]
