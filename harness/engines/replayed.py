"""Answers that are there already: the `model_outputs.json` of alpaca_eval, judged without the model that wrote them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rlhf_bench.harness.codec import digest
from rlhf_bench.harness.errors import UserError
from rlhf_bench.harness.files import json_rows
from rlhf_bench.harness.judges.llm import instruction_of
from rlhf_bench.harness.types import Completion, Request

PREFIX = "outputs:"


class ReplayedEngine:
    """Answers each request with the output of the row whose instruction it asks, as text, system prompts aside.

    Rows are objects with instruction and output, and generator where the model's name is known. An instruction that
    no row has is an error, which leaves its sample ungraded. Raises UserError for a row that is none, for an
    instruction with two outputs, and where the rows are of several generators.
    """

    def __init__(self, name: str, rows: Iterable[Any]) -> None:
        self._answers: dict[str, str] = {}
        generators: dict[str, None] = {}
        for number, row in enumerate(rows, 1):
            if not isinstance(row, Mapping) or not all(isinstance(row.get(x), str) for x in ("instruction", "output")):
                raise UserError(f"{name}: row {number} has no text in 'instruction' and 'output'")
            if self._answers.setdefault(row["instruction"], row["output"]) != row["output"]:
                raise UserError(f"{name}: row {number} has another output than an earlier row of its instruction")
            if row.get("generator") is not None:
                generators[str(row["generator"])] = None
        if len(generators) > 1:
            raise UserError(f"{name} mixes outputs of {', '.join(list(generators)[:4])}: give one model's")
        self._file = name
        self.name = f"{PREFIX}{next(iter(generators), name)}"
        self.identity = digest(["outputs", self._answers])

    @property
    def checkpoint(self) -> str:
        """Stands where other engines name their weights: the digest of all answers."""
        return self.identity

    @property
    def manifest(self) -> dict[str, str]:
        """What a report says about this engine."""
        return {"engine": "replayed", "file": self._file, "outputs": str(len(self._answers))}

    def generate(self, requests: Sequence[Request]) -> Iterator[Completion]:
        """One completion for each request, in order."""
        for request in requests:
            place = request.sample_id, request.index
            answer = None if request.continuation is not None else self._answers.get(_asked(request))
            if request.sampling.function:
                yield Completion(*place, "", "error", 0, why=f"{self._file} holds texts and calls no function")
            elif answer is None:
                yield Completion(*place, "", "error", 0, why=f"{self._file} has no output for this")
            else:
                yield Completion(*place, answer, "stop", len(answer.split()))


def replayed(path: Path) -> ReplayedEngine:
    """The engine `outputs:FILE`. Raises UserError."""
    return ReplayedEngine(path.name, json_rows(path, "outputs"))


def _asked(request: Request) -> str:
    if isinstance(request.prompt, str):
        return request.prompt
    return instruction_of(tuple(message for message in request.prompt if message.role != "system"))
