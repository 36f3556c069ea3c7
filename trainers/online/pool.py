"""What a loop may learn from: which of its prompts, its given pairs and its policy's answers, and in which iteration.

A control token that stands as text in a turn or an answer would be read as that token, which ends or begins a turn that
nobody wrote. A prompt with one is left out when the loop begins, an answer with one when pairs are made; a given pair
with one is refused, as `rlhf-bench train` refuses it. The filters of given pairs are the paper's (`trainers.filters`).
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from rlhf_bench.harness.errors import UserError
from rlhf_bench.harness.types import Conversation, Preference, Request, Sample
from rlhf_bench.trainers.data import BadRow, check_text
from rlhf_bench.trainers.data.template import control_in
from rlhf_bench.trainers.filters import Filters, apply, token_count
from rlhf_bench.trainers.online.config import LoopConfig
from rlhf_bench.trainers.online.scoring import Row
from rlhf_bench.trainers.preferences import conversation

T = TypeVar("T", Sample, Preference)
TWICE = "prompts that are there twice"
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
    seen: set[Conversation] = set()
    gone: dict[str, str] = {}
    for each in prompts:
        said = conversation(each)
        if said in seen:
            gone[each.id] = TWICE
        elif tokenizer is not None and any(control_in(tokenizer, turn.content) for turn in said):
            gone[each.id] = CONTROL_PROMPTS
        seen.add(said)
    return Sifted(frozenset(gone), Counter(gone.values()))


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


def batch(pool: Sequence[T], config: LoopConfig, number: int, attempt: int) -> Sequence[T]:
    """The prompts or pairs of an iteration, of which none is about a prompt of another's, in an order that seed fixes.

    Those of retries that ask fresh ones are taken from the end of it, so that a loop may get more iterations. Pairs of
    one prompt stay together; what of them an iteration has no room for, none gets. Raises UserError where there are
    too few for all of it.
    """
    size, fresh = config.prompts_per_iteration, [config.fresh(place) for place in range(len(config.retries))]
    of_prompts: dict[Conversation, list[T]] = {}
    for each in random.Random(config.seed).sample(list(pool), len(pool)):  # all: more iterations move no prompt
        of_prompts.setdefault(conversation(each) if isinstance(each, Sample) else each.prompt, []).append(each)
    groups = list(of_prompts.values())
    first, taken = _shares(groups, size, config.iterations)
    last, taken_again = _shares(groups[::-1], size, config.iterations * sum(fresh))
    if len(first) + len(last) < config.iterations * (1 + sum(fresh)) or taken + taken_again > len(groups):
        need = size * config.iterations * (1 + sum(fresh))
        where = f"'{config.preferences or config.prompts}' has {len(pool)}"
        where += f" ({len(groups)} different prompts; iterations share none)" if len(groups) < len(pool) else ""
        with_fresh = f", with {sum(fresh)} retries each that ask fresh ones," if any(fresh) else ""
        raise UserError(
            f"{config.iterations} iterations of {size} prompts{with_fresh} need {need}, {where}: lower "
            "prompts_per_iteration or iterations"
        )
    if attempt and fresh[attempt - 1]:
        return last[(number - 1) * sum(fresh) + sum(fresh[: attempt - 1])][::-1]
    return first[number - 1]


def _shares(groups: Sequence[Sequence[T]], size: int, count: int) -> tuple[list[list[T]], int]:
    """At most so many shares of this size, filled group by group, and how many groups they took."""
    shares: list[list[T]] = []
    share: list[T] = []
    taken = 0
    for group in groups:
        if len(shares) == count:
            break
        taken += 1
        share.extend(group[: size - len(share)])
        if len(share) == size:
            shares.append(share)
            share = []
    return shares, taken


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
