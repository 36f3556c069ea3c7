"""What a judge's reply says: pure functions from a completion to a verdict, or to the reason why there is none.

Each regex and each choice between matches is that of the benchmark's own code.
"""

from __future__ import annotations

import ast
import json
import math
import random
import re
from collections.abc import Callable, Mapping
from textwrap import shorten
from typing import Literal, TypeVar

from rlhf_bench.harness.types import Completion

T = TypeVar("T")
LEAST_MASS = 0.5
"""Below this probability on the two names together, their ratio is no preference."""

_ARENA = (re.compile(r"\[\[([AB<>=]+)\]\]"), re.compile(r"\[([AB<>=]+)\]"))
_RATING = (re.compile(r"\[\[(\d+\.?\d*)\]\]"), re.compile(r"\[(\d+\.?\d*)\]"))


class Unreadable(Exception):
    """A reply without a verdict; `again`, whether another reply may have one."""

    def __init__(self, why: str, again: bool) -> None:
        super().__init__(why)
        self.again = again


def rating(text: str) -> float | None:
    """MT-Bench, single answer: the first [[number]], else the first [number] (FastChat, llm_judge/common.py)."""
    found = next((match for pattern in _RATING if (match := pattern.search(text))), None)
    return None if found is None else float(found[1])


def pair_winner(text: str) -> Literal["A", "B", "tie"] | None:
    """MT-Bench, pairwise: [[A]] before [[B]] before [[C]], wherever they stand (FastChat, llm_judge/common.py)."""
    if "[[A]]" in text:
        return "A"
    if "[[B]]" in text:
        return "B"
    return "tie" if "[[C]]" in text else None


def arena_verdict(text: str, *, unanimous: bool = False) -> str | None:
    """Arena-Hard: the label of the last [[A>>B]], else of the last [A>>B], read in capitals (arena-hard-auto v2).

    `unanimous` is v0.1's rule: only [[...]], as written, and none where two different labels stand in the reply.
    """
    if unanimous:
        different: set[str] = set(_ARENA[0].findall(text))
        return different.pop() if len(different) == 1 else None
    return next((labels[-1] for pattern in _ARENA if (labels := pattern.findall(text.upper()))), None)


def reader(parse: Callable[[str], T | None]) -> Callable[[Completion], T]:
    """Reads the text of a completion with `parse`, and tells a refusal and a cut from a reply without a verdict."""

    def read(completion: Completion) -> T:
        if completion.why == "refused":
            raise Unreadable("the judge refused", again=False)
        value = parse(completion.text)
        if value is not None:
            return value
        if completion.finish_reason == "length":
            raise Unreadable(f"the judge's reply is cut at {completion.tokens} tokens, before a verdict", again=False)
        raise Unreadable(f"no verdict in the judge's reply '{shorten(completion.text, 80)}'", again=True)

    return read


def first_preferred(logprobs: Mapping[str, float], first: str, second: str, least: float) -> tuple[float, float]:
    """P(`first`) among the two names, and the mass on both: AlpacaEval's logprob_parser; a missing name has 0.

    Raises Unreadable where the mass is below `least` or there is none, which the published code takes as it is.
    """
    one, two = (math.exp(logprobs[name]) if name in logprobs else 0.0 for name in (first, second))
    mass = one + two
    if mass < least or mass == 0.0:
        raise Unreadable(f"the judge gives '{first}' and '{second}' a probability of {mass:.3g} together", again=True)
    return one / mass, mass


def ranking(text: str, key: str = "ordered_models", first: str = "m") -> tuple[float, float] | None:
    """P(`first`), 1 or 0, and the mass 1, from a ranking in JSON; None unless `first` has rank 1 or 2.

    AlpacaEval's json_parser, then its ranking_parser: the object may stand in a ```json fence, the ranking under `key`
    may be text itself, and the first entry that names `first` counts.
    """
    try:
        if fenced := re.search(r"```json(.*?)```", text, re.DOTALL):
            text = fenced[1]
        said = json.loads(text)
        (entries,) = [each[key] for each in (said if isinstance(said, list) else [said])]
        if isinstance(entries, str):
            entries = ast.literal_eval(entries)
        rank = next(each["rank"] for each in entries if each["model"] == first)
    except (ValueError, TypeError, KeyError, StopIteration, SyntaxError, RecursionError, MemoryError):
        return None
    return (float(rank == 1), 1.0) if rank in (1, 2) else None


def is_switched(instruction: str, seed: int = 0) -> bool:
    """Whether AlpacaEval shows the second output first: RandomSwitchTwoColumnsProcessor, seeded by the instruction."""
    return random.Random(f"is_switched_outputs{instruction}{seed}").choices([False, True], k=1)[0]
