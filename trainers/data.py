"""Preference pairs and prompts from JSON files, with the row and the fault named.

A preference row has `prompt`, `chosen` and `rejected`; a prompt row has `prompt`, `messages`, `context_messages` or
`instruction`. Each is a string or a list of turns with `role` and `content`, as TRL and RLHFlow write them.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from rlhf_bench.harness.errors import MissingData, UserError
from rlhf_bench.harness.types import Conversation, Message, Preference, Request, Sample

ROLES = ("system", "user", "assistant")
PROMPT_KEYS = ("prompt", "messages", "context_messages", "instruction")


def read_preferences(path: Path) -> list[Preference]:
    """The pairs of a .jsonl or .json file (also .gz). Raises UserError for the first row that is not one."""
    pairs = []
    for where, row in _rows(path):
        prompt = _turns(row.get("prompt"), f"{where}: prompt")
        answers = [_answer(row.get(key), f"{where}: {key}") for key in ("chosen", "rejected")]
        margin = row.get("margin", 1.0)
        if not isinstance(margin, int | float):
            raise UserError(f"{where}: margin is {margin!r}, not a number")
        pairs.append(Preference(prompt, answers[0], answers[1], float(margin)))
    return pairs


def read_prompts(path: Path) -> list[Sample]:
    """The prompts of a .jsonl or .json file (also .gz), as samples numbered by row. Raises UserError as above."""
    samples = []
    for number, (where, row) in enumerate(_rows(path)):
        key = next((key for key in PROMPT_KEYS if key in row), None)
        if key is None:
            raise UserError(f"{where}: has none of {', '.join(PROMPT_KEYS)}")
        reference = row.get("output", "")
        request = Request(str(number), _turns(row[key], f"{where}: {key}"))
        samples.append(Sample(str(number), (request,), reference if isinstance(reference, str) else ""))
    return samples


def _rows(path: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    if not path.is_file():
        raise MissingData(f"no file {path}: give a .jsonl or .json file")
    try:
        raw = path.read_bytes()
        text = (gzip.decompress(raw) if path.suffix == ".gz" else raw).decode()
        lines = [line for line in text.splitlines() if line.strip()]
        rows = json.loads(text) if text.lstrip().startswith("[") else [json.loads(line) for line in lines]
    except (ValueError, OSError, EOFError) as error:
        raise UserError(f"{path} is not JSON or JSON lines: {error}") from None
    for number, row in enumerate(rows, start=1):
        if not isinstance(row, dict):
            raise UserError(f"{path} row {number}: not an object with named fields")
        yield f"{path} row {number}", row


def _turns(value: Any, where: str) -> Conversation:
    if isinstance(value, str) and value.strip():
        return (Message("user", value),)
    if isinstance(value, list) and value and all(_is_turn(turn) for turn in value):
        return tuple(Message(turn["role"], turn["content"]) for turn in value)
    raise UserError(f"{where} is {_short(value)}: give text, or turns with a role of {', '.join(ROLES)} and content")


def _answer(value: Any, where: str) -> str:
    if isinstance(value, list) and len(value) == 1 and _is_turn(value[0]):
        value = value[0]["content"]
    if isinstance(value, str) and value.strip():
        return value
    raise UserError(f"{where} is {_short(value)}: give text, or one assistant turn")


def _is_turn(value: Any) -> bool:
    return isinstance(value, dict) and value.get("role") in ROLES and isinstance(value.get("content"), str)


def _short(value: Any) -> str:
    text = "missing" if value is None else repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
