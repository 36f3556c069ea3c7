"""What a loop may learn from: of its prompts, its given pairs and the answers of its policy, those that it can read.

A control token that stands as text in a turn or an answer would be read as that token, which ends or begins a turn that
nobody wrote. A prompt with one is left out when the loop begins, an answer with one when pairs are made; a given pair
with one is refused, as `rlhf-bench train` refuses it. The filters of given pairs are the paper's (`trainers.filters`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from rlhf_bench.harness.errors import UserError
from rlhf_bench.harness.types import Preference, Request, Sample
from rlhf_bench.trainers.data import BadRow, check_text
from rlhf_bench.trainers.data.template import control_in
from rlhf_bench.trainers.filters import Filters, apply, token_count
from rlhf_bench.trainers.online.config import LoopConfig
from rlhf_bench.trainers.online.scoring import Row
from rlhf_bench.trainers.preferences import conversation

CONTROL_PROMPTS = "prompts that hold a control token as text"
CONTROL_ANSWERS = "answers that hold a control token as text"


def prompts_of(preferences: Sequence[Preference]) -> list[Sample]:
    """The prompts of pairs, each by the number of its pair."""
    return [Sample(str(i), (Request(str(i), pair.prompt),), "") for i, pair in enumerate(preferences)]


@dataclass(frozen=True, slots=True)
class Sifted:
    """What of a pool is left out: ids of prompts, or numbers of pairs, and how many by reason."""

    ids: frozenset[str]
    counts: Mapping[str, int]


def sift(
    config: LoopConfig, prompts: Sequence[Sample], preferences: Sequence[Preference], tokenizer: Any | None
) -> Sifted:
    """What is left out of the prompts, or of the pairs where the config gives them, whatever benchmarks ask.

    Where the policy's tokenizer is not known yet, nothing is read for its tokens. Raises UserError, naming it, for a
    given pair that holds a control token.
    """
    if config.preferences is None:
        return _sift_prompts(prompts, tokenizer)
    return _sift_pairs(preferences, config.filters, tokenizer)


def _sift_prompts(prompts: Sequence[Sample], tokenizer: Any | None) -> Sifted:
    ids: set[str] = set()
    if tokenizer is not None:
        ids = {each.id for each in prompts if any(control_in(tokenizer, turn.content) for turn in conversation(each))}
    return Sifted(frozenset(ids), {CONTROL_PROMPTS: len(ids)} if ids else {})


def _sift_pairs(pairs: Sequence[Preference], filters: Filters, tokenizer: Any | None) -> Sifted:
    own = [replace(pair) for pair in pairs]  # each an object of its own, to be known again
    if tokenizer is None:
        kept, counts = apply(filters.without_limits(), own, len)
    else:
        kept, counts = apply(filters, own, token_count(tokenizer))
    left = {id(pair) for pair in kept}
    for number, pair in enumerate(own):
        if id(pair) in left and tokenizer is not None:
            _check_pair(number, pair, tokenizer)
    return Sifted(frozenset(str(number) for number, pair in enumerate(own) if id(pair) not in left), counts)


def _check_pair(number: int, pair: Preference, tokenizer: Any) -> None:
    try:
        check_text(tokenizer, pair)
    except BadRow as fault:
        raise UserError(f"preference {number}: {fault}; mend it, or take it out") from None


def readable(rows: Sequence[Row], tokenizer: Any) -> tuple[list[Row], Mapping[str, int]]:
    """The rows with the answers that hold no control token as text, and how many others there were, by reason.

    A row is {prompt, responses, rewards, finish_reasons}; one whose prompt holds a control token goes whole.
    """
    kept: list[Row] = []
    gone: Counter[str] = Counter()
    for row in rows:
        if any(control_in(tokenizer, turn["content"]) for turn in row["prompt"]):
            gone[CONTROL_PROMPTS] += 1
            continue
        fit = [control_in(tokenizer, answer) is None for answer in row["responses"]]
        gone[CONTROL_ANSWERS] += fit.count(False)
        lists = ("responses", "rewards", "finish_reasons")
        kept.append({**row, **{name: [v for v, own in zip(row[name], fit, strict=True) if own] for name in lists}})
    return kept, {reason: count for reason, count in gone.items() if count}
