"""The lines of lm-eval's `samples_<task>_<time>.jsonl`, as samples with what was answered and how it was graded.

A document has a line for each filter. Lines are other people's: their length is bounded, nothing in them is run, and
what is no number is no score.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from rlhf_bench.harness.codec import plain
from rlhf_bench.harness.errors import UserError
from rlhf_bench.harness.types import Completion, Request, Sample
from rlhf_bench.suites.lm_eval_tasks import sampling

MAX_LINE_BYTES = 64 << 20
MAX_METRICS = 200


class _Row(BaseModel):
    """A line of a samples file; the metrics are its further keys. Early versions named no filter."""

    model_config = ConfigDict(extra="allow")

    doc_id: int
    doc: dict[str, Any]
    target: Any
    arguments: dict[str, dict[str, Any]] | list[list[Any]]
    resps: list[Any]
    filter: str = "none"
    metrics: list[str] | None = None


@dataclass
class Document:
    """One document of a task, with what its lines say under each filter."""

    sample: Sample
    completions: tuple[Completion, ...]
    metrics: dict[str, float | None] = field(default_factory=dict)
    filters: set[str] = field(default_factory=set)


def documents(
    file: Path, task: str, tags: Mapping[str, str], metrics: Sequence[str], primary: str, seed: Any
) -> dict[int, Document]:
    """The documents of a samples file by id, in its order, each with its `metrics` ("metric,filter") under all filters.

    Raises UserError, one line with the file and the line's number, for what is malformed, and where a document does not
    say `primary`.
    """
    found: dict[int, Document] = {}
    for number, line in enumerate(_lines(file), 1):
        row = _row(file, number, line)
        try:
            document = found.get(row.doc_id)
            if document is None:
                found[row.doc_id] = document = Document(*_asked(row, task, tags, seed))
            if row.filter in document.filters:
                raise ValueError(f"doc_id {row.doc_id} is there twice under the filter '{row.filter}'")
            document.filters.add(row.filter)
            document.metrics |= _values(row, metrics, primary)
        except (ValueError, TypeError) as error:
            raise UserError(f"{file}, line {number}: {error}") from error
    for identity, document in found.items():
        if primary not in document.metrics:
            raise UserError(f"{file}: doc_id {identity} has no line under the filter of {primary}")
    if not found:
        raise UserError(f"{file} is empty: nothing was asked")
    return found


def metrics_in(file: Path) -> list[str]:
    """The metrics, "metric,filter", that the lines of a samples file name or, in early versions, hold as numbers.

    What is a list or text in a line (the parts of a metric over a corpus) is no score of a document and left out.
    """
    found: dict[str, None] = {}
    for number, line in enumerate(_lines(file), 1):
        row = _row(file, number, line)
        extra = row.model_extra or {}
        named = row.metrics if row.metrics is not None else [k for k, v in extra.items() if isinstance(v, int | float)]
        for metric in named:
            if not isinstance(extra.get(metric), list | dict | str):
                found[f"{metric},{row.filter}"] = None
        if len(found) > MAX_METRICS:
            raise UserError(f"{file}, line {number}: more than {MAX_METRICS} metrics: that is no samples file")
    return list(found)


def json_value(text: bytes) -> Any:
    """JSON in which no number is infinite or NaN: such a one is null. Raises ValueError for anything else."""
    try:
        value = json.loads(text, parse_constant=lambda _: None, parse_float=_number)
        plain([[[[value]]]])  # what is nested too deeply to be stored is refused here
        if b"\\ud" in text.lower():
            json.dumps(value, ensure_ascii=False).encode()  # half of a surrogate pair is no text
    except RecursionError:
        raise ValueError("JSON nested too deeply") from None
    except UnicodeError:
        raise ValueError("text that is no Unicode") from None
    return value


def first_error(error: ValidationError) -> str:
    """The first thing that is wrong, and where."""
    found = error.errors()[0]
    where = f"{'.'.join(map(str, found['loc']))}: " if found["loc"] else ""
    said = found["msg"].partition(" or instance of ")[0]
    return f"{where}{said[0].lower()}{said[1:]}"


def _row(file: Path, number: int, line: bytes) -> _Row:
    try:
        return _Row.model_validate(json_value(line))
    except ValidationError as error:
        raise UserError(f"{file}, line {number}: {first_error(error)}") from error
    except ValueError as error:
        raise UserError(f"{file}, line {number}: {error}") from error


def _asked(row: _Row, task: str, tags: Mapping[str, str], seed: Any) -> tuple[Sample, tuple[Completion, ...]]:
    """What a document was asked and what was answered: a request for each choice, or for each repeat of an answer."""
    given = (
        [list(each.values()) for each in row.arguments.values()] if isinstance(row.arguments, dict) else row.arguments
    )
    if not given or len(given) != len(row.resps):
        raise ValueError(f"{len(given)} arguments and {len(row.resps)} responses")
    name = f"{task}/{row.doc_id}"
    requests: list[Request] = []
    completions: list[Completion] = []
    for arguments, responses in zip(given, row.resps, strict=True):
        for response in responses if isinstance(responses, list) else [responses]:
            index = len(requests)
            requests.append(_request(name, index, arguments, seed))
            completions.append(_completion(name, index, requests[-1].continuation, response))
    if not requests:
        raise ValueError("no response")
    return Sample(name, tuple(requests), str(row.target), tags, row.doc), tuple(completions)


def _request(name: str, index: int, arguments: Sequence[Any], seed: Any) -> Request:
    prompt, rest = arguments[0] if arguments else None, arguments[1] if len(arguments) > 1 else None
    if not isinstance(prompt, str) or not isinstance(rest, str | dict):
        raise ValueError("arguments that are neither a prompt and a choice nor a prompt and generation settings")
    if isinstance(rest, str):
        return Request(name, prompt, continuation=rest, index=index)
    asked = sampling(rest, index + (seed if isinstance(seed, int) else 0))
    if not all(isinstance(each, str) for each in asked.stop):
        raise ValueError("generation settings that stop at what is no text")
    return Request(name, prompt, asked, index=index)


def _completion(name: str, index: int, continuation: str | None, response: Any) -> Completion:
    if continuation is None:
        return Completion(name, index, str(response), "stop", 0)
    pair = response if isinstance(response, list) and len(response) == 2 else [response, "False"]
    logprob = _number(pair[0])
    if logprob is None:
        why = "a choice has no finite log-likelihood"
        return Completion(name, index, continuation, "error", 0, why=why)
    return Completion(name, index, continuation, "stop", 0, logprob=logprob, greedy=str(pair[1]) == "True")


def _values(row: _Row, metrics: Sequence[str], primary: str) -> dict[str, float | None]:
    """What a line says of the metrics under its filter. Raises ValueError without the one that counts."""
    extra = row.model_extra or {}
    found: dict[str, float | None] = {}
    for key in metrics:
        metric, _, filter_ = key.rpartition(",")
        if filter_ != row.filter or (metric not in extra and key != primary):
            continue
        if metric not in extra:
            raise ValueError(f"doc_id {row.doc_id} has no '{metric}'")
        value = extra[metric]
        if key == primary and isinstance(value, list | dict | str):
            raise ValueError(f"{metric} of doc_id {row.doc_id} is no number, so documents do not compare by it")
        number = _number(value) if isinstance(value, int | float) else None
        if key == primary and number is not None and not 0 <= number <= 1:
            raise ValueError(f"{metric} of doc_id {row.doc_id} is {number:g}, not from 0 to 1")
        found[key] = number
    return found


def _lines(file: Path) -> Iterable[bytes]:
    with file.open("rb") as opened:
        while line := opened.readline(MAX_LINE_BYTES + 1):
            if len(line) > MAX_LINE_BYTES:
                raise UserError(f"{file} has a line of more than {MAX_LINE_BYTES >> 20} MiB")
            if line.strip():
                yield line


def _number(value: Any) -> float | None:
    try:
        found = float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return found if math.isfinite(found) else None
