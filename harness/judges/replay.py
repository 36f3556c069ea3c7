"""Judges without a model: judgments from a file, and rules for tests and dry runs."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlhf_bench.harness.codec import digest
from rlhf_bench.harness.errors import UnknownName, UserError
from rlhf_bench.harness.files import json_rows
from rlhf_bench.harness.judges.llm import instruction_of
from rlhf_bench.harness.judges.readers import is_switched
from rlhf_bench.harness.types import Battle, Score

RULES = ("longer", "first", "tie", "fail")


class ReplayJudge:
    """The preferences of alpaca_eval annotations, joined by instruction and both outputs, whichever is output_1.

    Rows are objects with instruction, output_1, output_2 and preference (1: the first is better, 2: the second; null:
    ungraded). Raises UserError for a row that is none, and for two rows that disagree about the same pair.
    """

    def __init__(self, name: str, rows: Iterable[Mapping[str, Any]]) -> None:
        self.name = name
        self._known: dict[str, float | None] = {}
        for number, row in enumerate(rows, 1):
            first, second, preference = _checked(name, number, row)
            key = _key(row["instruction"], second, first)
            value = None if preference is None else preference - 1.0
            if self._known.setdefault(key, value) != value:
                raise UserError(f"{name}: row {number} has another preference than an earlier row for the same outputs")
        self.identity = digest(["replay", self._known])

    def prefer(self, battles: Sequence[Battle]) -> Iterator[Score]:
        """The file's preference of each battle; none where the file has none."""
        for battle in battles:
            asked = instruction_of(battle.prompt)
            here, there = _key(asked, battle.answer, battle.baseline), _key(asked, battle.baseline, battle.answer)
            if here not in self._known and there not in self._known:
                yield Score(battle.sample_id, None, f"{self.name} has no judgment of these two outputs")
                continue
            value = self._known[here] if here in self._known else _swapped(self._known[there])
            yield Score(battle.sample_id, value, "" if value is not None else f"{self.name} has no preference here")


def replay(path: Path) -> ReplayJudge:
    """The judge `replay:FILE` of an annotations.json, or a jsonl of the same rows, gzipped or not. Raises UserError."""
    return ReplayJudge(f"replay:{path.name}", json_rows(path, "annotations"))


@dataclass(frozen=True)
class ScriptedJudge:
    """`scripted:longer` prefers the longer answer, `scripted:first` the one that AlpacaEval's order shows first,
    `scripted:tie` neither; `scripted:fail` has no verdict."""

    name: str

    @property
    def identity(self) -> str:
        """A digest of the rule."""
        return digest(["judge", self.name])

    def prefer(self, battles: Sequence[Battle]) -> Iterator[Score]:
        """One score for each battle, in order."""
        for battle in battles:
            if self.name == "scripted:fail":
                yield Score(battle.sample_id, None, "scripted:fail has no verdict")
            else:
                yield Score(battle.sample_id, self._preference(battle))

    def _preference(self, battle: Battle) -> float:
        if self.name == "scripted:longer":
            difference = len(battle.answer) - len(battle.baseline)
            return 0.5 if difference == 0 else float(difference > 0)
        return float(is_switched(instruction_of(battle.prompt))) if self.name == "scripted:first" else 0.5


def scripted_judge(name: str) -> ScriptedJudge:
    """The judge `scripted:NAME`. Raises UnknownName."""
    if name not in RULES:
        raise UnknownName("scripted judge", name, RULES)
    return ScriptedJudge(f"scripted:{name}")


def _checked(name: str, number: int, row: Any) -> tuple[str, str, float | None]:
    where = f"{name}: row {number}"
    if not isinstance(row, Mapping):
        raise UserError(f"{where} is not an object")
    for field in ("instruction", "output_1", "output_2"):
        if not isinstance(row.get(field), str):
            raise UserError(f"{where} has no text in '{field}'")
    preference = row.get("preference")
    if preference is None or preference != preference:
        return row["output_1"], row["output_2"], None
    if isinstance(preference, bool) or not isinstance(preference, int | float) or not math.isfinite(preference):
        raise UserError(f"{where}: preference is {preference!r}, not a number from 1 to 2")
    preference = 1.5 if preference == 0 else float(preference)  # alpaca_eval writes a draw as 0, too
    if not 1.0 <= preference <= 2.0:
        raise UserError(f"{where}: preference is {preference!r}, not a number from 1 to 2")
    return row["output_1"], row["output_2"], preference


def _key(instruction: str, answer: str, baseline: str) -> str:
    return digest([instruction, answer, baseline])


def _swapped(value: float | None) -> float | None:
    return None if value is None else 1.0 - value
