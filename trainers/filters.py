"""The paper's filters of preference pairs: pure functions that give what is kept, and the count of the rest by reason.

Paper: "RLHF Workflow: From Reward Modeling to Online RLHF" (arXiv 2405.07863), section 2.1 and appendix B.1: pairs of
equal score are dropped, of SHP those with a score ratio above 2 are kept and at most 5 of a prompt, and pairs with a
small margin go where there are absolute scores; together "roughly 10%". The margin's threshold is not given, nor which
5 pairs are kept: here the caller gives the first, and the second are the first in the order of the data. All pairs of a
prompt are kept otherwise (`data.pairs.ranked_pairs` makes them).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, TypeAlias

from pydantic import Field

from rlhf_bench.harness.config import Config
from rlhf_bench.harness.types import Conversation, Preference

Kept: TypeAlias = tuple[list[Preference], Mapping[str, int]]
Count: TypeAlias = Callable[[str], int]
"""The number of tokens of a text: `token_count(tokenizer)`."""


class Filters(Config):
    """Which filters `apply` uses. The defaults change nothing but what nothing can be learned from.

    `score_ratio` is SHP's (paper: 2), `per_prompt` the most pairs of one prompt (paper: 5 of SHP), `min_margin` in the
    unit of the scores (a pair without scores has margin 1). Lengths are in tokens of the text, without the template.
    """

    equal_scores: bool = True
    duplicates: bool = True
    score_ratio: float | None = Field(None, ge=1)
    per_prompt: int | None = Field(None, ge=1)
    min_margin: float = Field(0.0, ge=0)
    max_prompt_tokens: int | None = Field(None, ge=1)
    max_answer_tokens: int | None = Field(None, ge=1)
    max_tokens: int | None = Field(None, ge=1)

    @property
    def limits(self) -> tuple[int | None, int | None, int | None]:
        """Those in tokens: of the prompt, of either answer, of both together."""
        return self.max_prompt_tokens, self.max_answer_tokens, self.max_tokens

    def without_limits(self) -> Filters:
        """The filters that count no tokens."""
        return self.model_copy(update=dict.fromkeys(("max_prompt_tokens", "max_answer_tokens", "max_tokens")))


SHP = Filters(score_ratio=2.0, per_prompt=5)
"""What the paper says of SHP."""


def token_count(tokenizer: Any) -> Count:
    """Counts by this tokenizer, without the tokens that it would add."""
    return lambda text: len(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])


def apply(filters: Filters, pairs: Sequence[Preference], count: Count) -> Kept:
    """The filters one after the other, in the order of `Filters`, with `per_prompt` last: it takes what is left."""
    limits = filters.limits
    steps: Sequence[tuple[bool, Callable[[Sequence[Preference]], Kept]]] = (
        (filters.equal_scores, drop_equal_scores),
        (filters.duplicates, drop_duplicates),
        (filters.score_ratio is not None, partial(drop_low_ratio, above=filters.score_ratio or 1.0)),
        (filters.min_margin > 0, partial(drop_small_margin, least=filters.min_margin)),
        (any(limit is not None for limit in limits), lambda left: drop_long(left, count, *limits)),
        (filters.per_prompt is not None, partial(drop_beyond, most=filters.per_prompt or 1)),
    )
    kept, dropped = list(pairs), Counter[str]()
    for asked, step in steps:
        if asked:
            kept, gone = step(kept)
            dropped.update(gone)
    return kept, dropped


def drop_equal_scores(pairs: Sequence[Preference]) -> Kept:
    """Without the pairs whose margin is 0, or below: their scorer found neither answer better, or the rejected one."""
    unequal, equal = _keep(pairs, lambda pair: pair.margin != 0, "pairs with equal scores")
    kept, wrong = _keep(unequal, lambda pair: pair.margin > 0, "pairs whose rejected answer has the higher score")
    return kept, {**equal, **wrong}


def drop_small_margin(pairs: Sequence[Preference], least: float) -> Kept:
    """Without the pairs whose margin is below `least`, in the unit of their scores."""
    return _keep(pairs, lambda pair: pair.margin >= least, "pairs whose margin is below min_margin")


def drop_low_ratio(pairs: Sequence[Preference], above: float) -> Kept:
    """Without the pairs of SHP whose scores' ratio (tag "score_ratio") is not above; pairs without one are kept."""
    return _keep(
        pairs, lambda pair: float(pair.tags.get("score_ratio", "inf")) > above, "pairs whose score ratio is too low"
    )


def drop_beyond(pairs: Sequence[Preference], most: int) -> Kept:
    """At most so many pairs of one prompt, the first in order."""
    seen: Counter[Conversation] = Counter()

    def within(pair: Preference) -> bool:
        seen[pair.prompt] += 1
        return seen[pair.prompt] <= most

    return _keep(pairs, within, "pairs beyond per_prompt")


def drop_duplicates(pairs: Sequence[Preference]) -> Kept:
    """Each pair once, and none that is also there the other way round: one of the two labels is wrong."""
    both = {_key(pair) for pair in pairs} & {(pair.prompt, pair.rejected, pair.chosen) for pair in pairs}
    consistent, contradictions = _keep(pairs, lambda pair: _key(pair) not in both, "pairs that are ranked both ways")
    seen: set[tuple[Conversation, str, str]] = set()

    def first(pair: Preference) -> bool:
        known = _key(pair) in seen
        seen.add(_key(pair))
        return not known

    kept, duplicates = _keep(consistent, first, "pairs that are there twice")
    return kept, {**contradictions, **duplicates}


def drop_long(
    pairs: Sequence[Preference],
    count: Count,
    prompt: int | None = None,
    answer: int | None = None,
    total: int | None = None,
) -> Kept:
    """Without the pairs that exceed a limit, in tokens: of the prompt, of either answer, or of both together."""
    kept, dropped = [], Counter[str]()
    for pair in pairs:
        said = sum(count(turn.content) for turn in pair.prompt)
        longest = max(count(pair.chosen), count(pair.rejected))
        if prompt is not None and said > prompt:
            dropped["pairs with a prompt that is too long"] += 1
        elif answer is not None and longest > answer:
            dropped["pairs with an answer that is too long"] += 1
        elif total is not None and said + longest > total:
            dropped["pairs that are too long"] += 1
        else:
            kept.append(pair)
    return kept, dropped


def _key(pair: Preference) -> tuple[Conversation, str, str]:
    return pair.prompt, pair.chosen, pair.rejected


def _keep(pairs: Sequence[Preference], wanted: Callable[[Preference], bool], reason: str) -> Kept:
    kept = [pair for pair in pairs if wanted(pair)]
    gone = len(pairs) - len(kept)
    return kept, {reason: gone} if gone else {}
