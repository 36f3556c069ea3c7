"""Ranked and labelled answers to pairs: every pair that the data say something about, as the paper takes them."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Mapping, Sequence

from rlhf_bench.harness.types import Conversation, Preference
from rlhf_bench.trainers.data.formats import Labelled, Ranked


def ranked_pairs(ranked: Ranked) -> tuple[list[Preference], Mapping[str, int]]:
    """Each pair of answers with unequal rewards, the better one chosen, and what was left out, by reason.

    `margin` is the difference of the rewards. Answers without a reward, empty ones and those that failed take no part;
    one that was cut at its limit may be rejected, never chosen. As in the paper (appendix B.1): all pairs of a prompt.
    """
    pairs, left_out = [], Counter[str]()
    answers = []
    for text, reward, reason in zip(ranked.responses, ranked.rewards, ranked.finish_reasons, strict=True):
        if reward is None or reason == "error" or not text.strip():
            left_out["answers that are empty or without a reward"] += 1
        else:
            answers.append((reward, text, reason))
    for one, other in itertools.combinations(answers, 2):
        (worse, rejected, _), (better, chosen, reason) = sorted((one, other), key=lambda answer: answer[0])
        if worse == better:
            left_out["pairs with equal scores"] += 1
        elif chosen == rejected:
            left_out["pairs of identical answers"] += 1
        elif not math.isfinite(better - worse):
            left_out["pairs whose scores differ by more than a number holds"] += 1
        elif reason == "length":
            left_out["pairs whose better answer was cut"] += 1
        else:
            pairs.append(Preference(ranked.prompt, chosen, rejected, better - worse))
    return pairs, left_out


def labelled_pairs(answers: Sequence[tuple[int, Labelled]]) -> tuple[list[tuple[int, Preference]], Mapping[str, int]]:
    """Each good answer with each bad one to the same prompt, and what found no partner.

    A pair has the number of its good answer. The margin is 1: a label says which is better, not by how much.
    """
    by_prompt: dict[Conversation, dict[bool, dict[str, int]]] = {}
    for number, each in answers:
        by_prompt.setdefault(each.prompt, {True: {}, False: {}})[each.good].setdefault(each.answer, number)
    pairs = [
        (number, Preference(prompt, chosen, rejected))
        for prompt, sides in by_prompt.items()
        for chosen, number in sides[True].items()
        for rejected in sides[False]
        if chosen != rejected
    ]
    alone = sum(bool(sides[True]) != bool(sides[False]) for sides in by_prompt.values())
    return pairs, {"prompts with good or bad answers only": alone} if alone else {}
