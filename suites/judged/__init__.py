"""Scores from files that other tools wrote: no model, no judge, no key.

    files ─► rows with their place ─► one Scored for each model, with the official figures beside the true intervals

A benchmark is one module with `score(files, choice)`, and one line in `SCORERS`.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import TypeAlias

from rlhf_bench.harness.errors import UnknownName, UserError
from rlhf_bench.harness.stats import Interval

SCORERS: Mapping[str, str] = MappingProxyType(
    {
        "alpaca_eval": "rlhf_bench.suites.judged.alpaca_eval",
        "arena_hard": "rlhf_bench.suites.judged.arena_hard",
        "mt_bench": "rlhf_bench.suites.judged.mt_bench",
        "humaneval": "rlhf_bench.suites.judged.code",
        "mbpp": "rlhf_bench.suites.judged.code",
        "gsm8k": "rlhf_bench.suites.judged.lm_eval",
        "mmlu": "rlhf_bench.suites.judged.lm_eval",
        "arc_challenge": "rlhf_bench.suites.judged.lm_eval",
        "truthfulqa_mc1": "rlhf_bench.suites.judged.lm_eval",
        "truthfulqa_mc2": "rlhf_bench.suites.judged.lm_eval",
        "lm_eval": "rlhf_bench.suites.judged.lm_eval",
    }
)
"""By benchmark, the module whose `score` reads its files."""
JUDGED = ("alpaca_eval", "arena_hard", "mt_bench")
"""Those whose rows are a judge's verdicts."""

MUCH_UNGRADED = 0.02
"""A greater share than this without a verdict is said with the score."""


@dataclass(frozen=True, slots=True)
class Metric:
    """A figure in its benchmark's own unit; bounds at 95% and standard error where there are any."""

    value: float | None
    low: float | None = None
    high: float | None = None
    se: float | None = None

    @classmethod
    def of(cls, found: Interval, scale: float = 1.0) -> Metric:
        """An interval of the harness, times `scale`."""
        return cls(*(None if x is None else scale * x for x in (found.mean, found.low, found.high, found.se)))


@dataclass(frozen=True, slots=True)
class Scored:
    """What the files say of one model. `graded` and `ungraded` count verdicts; `notes` are for people."""

    benchmark: str
    model: str
    metrics: Mapping[str, Metric]
    graded: int
    ungraded: int
    judge: str = ""
    baseline: str = ""
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Choice:
    """What of the files is scored, and how where there are two ways. None takes what there is, if it is one.

    `official_row_order` (AlpacaEval) joins by the row's place as the official code does; `version` (Arena-Hard) is
    "v0.1" or "v2.0"; `answers` (Arena-Hard) are the answer files of the models and the baseline, for style control.
    """

    model: str | None = None
    judge: str | None = None
    baseline: str | None = None
    version: str | None = None
    official_row_order: bool = False
    answers: tuple[Path, ...] = field(default=())
    benchmark: str = ""
    """The one that is scored: set by `score`."""


Scorer: TypeAlias = Callable[[Sequence[Path], Choice], list[Scored]]


def scorer(benchmark: str) -> Scorer:
    """What scores files of this benchmark. Raises UnknownName."""
    if benchmark not in SCORERS:
        raise UnknownName("benchmark with files to score", benchmark, SCORERS)
    found: Scorer = importlib.import_module(SCORERS[benchmark]).score
    return found


def score(benchmark: str, files: Sequence[Path], choice: Choice) -> list[Scored]:
    """One Scored for each model in the files, in their order. Raises UserError for what cannot be scored truly."""
    found = scorer(benchmark)(files, replace(choice, benchmark=benchmark))
    if choice.model is not None:
        known = [each.model for each in found]
        found = [each for each in found if each.model == choice.model]
        if not found:
            raise UnknownName("model in these files", choice.model, known)
    if not found:
        raise UserError(f"no row to score in {', '.join(map(str, files))}")
    return found


def one_of(what: str, found: Sequence[str], wanted: str | None, option: str = "") -> str:
    """The one that is wanted, or the only one there is. Raises UserError where several are mixed, UnknownName."""
    names = sorted(set(found))
    if wanted is not None:
        if wanted not in names:
            raise UnknownName(f"{what} in these files", wanted, names)
        return wanted
    if len(names) > 1:
        hint = f"pick one with {option or f'--{what}'}"
        raise UserError(f"these files mix {len(names)} {what}s ({', '.join(names)}): {hint}")
    return names[0] if names else ""


def said_ungraded(graded: int, ungraded: int) -> tuple[str, ...]:
    """A note where more than `MUCH_UNGRADED` has no verdict."""
    total = graded + ungraded
    if not total or ungraded / total <= MUCH_UNGRADED:
        return ()
    return (f"{ungraded} of {total} verdicts are missing ({100 * ungraded / total:.1f}%): the score leaves them out",)
