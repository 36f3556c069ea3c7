"""The internal forms to the layouts that others read; the readers here give the same back.

| what | formats, the default first |
|---|---|
| preferences | preference (turns), plain (text), implicit (whole conversations), hh-rlhf, sharegpt |
| conversations | messages, sharegpt, prompt-completion, alpaca |
| prompts | prompt, rlhflow (context_messages) |
| ranked answers | rlhflow |
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeAlias

from rlhf_bench.harness.errors import Fault, UnknownName, UserError
from rlhf_bench.harness.types import Conversation, Message, Preference, Sample
from rlhf_bench.trainers.data.formats import Ranked
from rlhf_bench.trainers.data.sources import no_bars

Writable: TypeAlias = Preference | Conversation | Ranked | Sample
Columns: TypeAlias = dict[str, Any]
SUFFIXES = (".jsonl", ".json", ".csv", ".parquet")
_MARK = re.compile(r"\n\n(Human|Assistant):")


def write(rows: Sequence[Writable], path: Path, form: str | None = None) -> None:
    """Write rows of one kind to a .jsonl, .json, .csv (also .gz) or .parquet file, or a folder of `datasets`.

    Raises UserError where the format cannot hold a row, UnknownName for a format, Fault where the disk fails: a file
    is there whole or as it was, a folder must not be there before.
    """
    if not rows:
        raise UserError(f"there is nothing to write to {path}")
    known = WRITERS[_kind(rows[0])]
    name = next(iter(known)) if form is None else form
    if name not in known:
        raise UnknownName(f"format to write {_kind(rows[0])}", name, known)
    columns = []
    for number, row in enumerate(rows, start=1):
        try:
            columns.append(known[name](row))
        except UserError as error:
            raise UserError(f"row {number} cannot be written as {name}: {error}") from None
    write_rows(columns, path)


def write_rows(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Write rows of columns as they are, by the path's suffix. Raises as `write`."""
    suffix = Path(path.stem if path.suffix == ".gz" else path.name).suffix
    names = list(dict.fromkeys(name for row in rows for name in row))
    if suffix == "" and path.suffix != ".gz":
        _folder([{name: row.get(name) for name in names} for row in rows], path)
        return
    if suffix not in SUFFIXES or (suffix == ".parquet" and path.suffix == ".gz"):
        raise UserError(f"cannot write {path}: its suffix must be one of {', '.join(SUFFIXES)}, or none for a folder")
    with _draft(path) as draft, _fitting(path):
        if suffix == ".parquet":
            _parquet([{name: row.get(name) for name in names} for row in rows], draft)
            return
        with gzip.open(draft, "wb") if path.suffix == ".gz" else draft.open("wb") as file:
            text = io.TextIOWrapper(file, encoding="utf-8", newline="")
            if suffix == ".csv":
                _csv(rows, names, text)
            else:
                _json(rows, text, listed=suffix == ".json")
            text.flush()
            text.detach()  # the file is closed below


def _kind(row: Writable) -> str:
    kinds = {Preference: "preferences", Ranked: "ranked answers", Sample: "prompts"}
    return next((name for cls, name in kinds.items() if isinstance(row, cls)), "conversations")


def _turns(said: Sequence[Message]) -> list[Columns]:
    return [{"role": turn.role, "content": turn.content} for turn in said]


def _about(pair: Preference) -> Columns:
    return {"margin": pair.margin, **({"tags": dict(pair.tags)} if pair.tags else {})}


def _preference(pair: Preference) -> Columns:
    sides = {name: _turns([Message("assistant", text)]) for name, text in _sides(pair)}
    return {"prompt": _turns(pair.prompt), **sides, **_about(pair)}


def _plain(pair: Preference) -> Columns:
    if len(pair.prompt) != 1:
        raise UserError(f"its prompt has {len(pair.prompt)} turns, and plain text holds one")
    return {"prompt": pair.prompt[0].content, **dict(_sides(pair)), **_about(pair)}


def _implicit(pair: Preference) -> Columns:
    whole = {name: _turns((*pair.prompt, Message("assistant", text))) for name, text in _sides(pair)}
    return {**whole, **_about(pair)}


def _hh(pair: Preference) -> Columns:
    return {name: _hh_text((*pair.prompt, Message("assistant", text))) for name, text in _sides(pair)} | _about(pair)


def _hh_text(said: Conversation) -> str:
    if said[0].role == "system":
        raise UserError("it has a system turn")
    if any(_MARK.search(f"{turn.content}\n\n") for turn in said):
        raise UserError("a turn holds '\\n\\nHuman:' or '\\n\\nAssistant:'")
    return "".join(f"\n\n{'Human' if turn.role == 'user' else 'Assistant'}: {turn.content}" for turn in said)


def _sharegpt_pair(pair: Preference) -> Columns:
    sides = {name: _spoken(Message("assistant", text)) for name, text in _sides(pair)}
    return {"conversations": [_spoken(turn) for turn in pair.prompt], **sides, **_about(pair)}


def _spoken(turn: Message) -> Columns:
    return {"from": {"system": "system", "user": "human", "assistant": "gpt"}[turn.role], "value": turn.content}


def _sides(pair: Preference) -> tuple[tuple[str, str], tuple[str, str]]:
    return ("chosen", pair.chosen), ("rejected", pair.rejected)


def _completed(said: Conversation) -> Columns:
    return {"prompt": _turns(said[:-1]), "completion": _turns(said[-1:])}


def _alpaca(said: Conversation) -> Columns:
    system = said[0].content if said[0].role == "system" else ""
    spoken = said[1:] if said[0].role == "system" else said
    if said[0].role == "system" and not system.strip():
        raise UserError("its system turn is empty")
    texts = [turn.content for turn in spoken]
    earlier = [[texts[at], texts[at + 1]] for at in range(0, len(texts) - 2, 2)]
    return {
        "instruction": texts[-2],
        "input": "",
        "output": texts[-1],
        **({"system": system} if system else {}),
        **({"history": earlier} if earlier else {}),
    }


def _prompt(sample: Sample) -> Columns:
    return {"prompt": _turns(_said(sample)), **({"reference": sample.reference} if sample.reference else {})}


def _context(sample: Sample) -> Columns:
    return {"context_messages": _turns(_said(sample)), **({"reference": sample.reference} if sample.reference else {})}


def _said(sample: Sample) -> Sequence[Message]:
    return (Message("user", sample.prompt),) if isinstance(sample.prompt, str) else sample.prompt


def _rlhflow(ranked: Ranked) -> Columns:
    return {
        "prompt": _turns(ranked.prompt),
        "responses": list(ranked.responses),
        "rewards": list(ranked.rewards),
        "finish_reasons": list(ranked.finish_reasons),
    }


WRITERS: Mapping[str, Mapping[str, Callable[[Any], Columns]]] = {
    "preferences": {
        "preference": _preference,
        "plain": _plain,
        "implicit": _implicit,
        "hh-rlhf": _hh,
        "sharegpt": _sharegpt_pair,
    },
    "conversations": {
        "messages": lambda said: {"messages": _turns(said)},
        "sharegpt": lambda said: {"conversations": [_spoken(turn) for turn in said]},
        "prompt-completion": _completed,
        "alpaca": _alpaca,
    },
    "prompts": {"prompt": _prompt, "rlhflow": _context},
    "ranked answers": {"rlhflow": _rlhflow},
}
"""By kind and format, the columns of one row."""


def _json(rows: Sequence[Mapping[str, Any]], file: io.TextIOWrapper, *, listed: bool) -> None:
    lines = (json.dumps(row, ensure_ascii=False, allow_nan=False) for row in rows)
    if not listed:
        file.writelines(f"{line}\n" for line in lines)
        return
    for number, line in enumerate(lines):
        file.write(f"{',' if number else '['}\n{line}")
    file.write("\n]\n")


def _csv(rows: Sequence[Mapping[str, Any]], names: Sequence[str], file: io.TextIOWrapper) -> None:
    writer = csv.writer(file, quoting=csv.QUOTE_ALL, lineterminator="\n")
    writer.writerow(names)
    for row in rows:
        cells = (row.get(name) for name in names)
        writer.writerow(
            "" if cell is None else cell if isinstance(cell, str) else json.dumps(cell, ensure_ascii=False)
            for cell in cells
        )


def _flat(row: Mapping[str, Any]) -> Columns:
    """The row as columns of one type hold it: an object of any keys is JSON text."""
    return {
        name: json.dumps(value, ensure_ascii=False) if name == "tags" and value else value
        for name, value in row.items()
    }


def _parquet(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    import pyarrow  # type: ignore[import-untyped]
    import pyarrow.parquet  # type: ignore[import-untyped]

    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([_flat(row) for row in rows]), path)


def _folder(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    import datasets

    if path.exists():
        raise UserError(f"{path} is there already: choose another folder")
    draft = path.with_name(path.name + ".tmp")
    shutil.rmtree(draft, ignore_errors=True)
    try:
        with no_bars(), _fitting(path):
            datasets.Dataset.from_list([_flat(row) for row in rows]).save_to_disk(str(draft))
        draft.replace(path)
    except OSError as error:
        raise Fault(f"cannot write {path}: {error.strerror or error}") from error


@contextmanager
def _fitting(path: Path) -> Iterator[None]:
    """What the kind of file cannot hold is said in one line."""
    try:
        yield
    except (ValueError, TypeError) as error:
        said = " ".join(str(error).split())[:200]
        raise UserError(f"{path} cannot hold these rows ({said}): choose another suffix") from None


@contextmanager
def _draft(path: Path) -> Iterator[Path]:
    """A file beside `path` that takes its place once it is whole, and goes where it does not become so."""
    draft = path.with_name(path.name + ".tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield draft
        with draft.open("rb") as file:
            os.fsync(file.fileno())
        draft.replace(path)
    except OSError as error:
        raise Fault(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        with suppress(OSError):
            draft.unlink()
