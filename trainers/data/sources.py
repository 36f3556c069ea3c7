"""Rows as they lie in files, folders and on the hub, each with the place that a message can name.

Nothing here runs code that comes with data: no pickle, no loading scripts, and media are never decoded.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import re
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, TypeAlias

from rlhf_bench.harness.errors import MissingData, UserError
from rlhf_bench.harness.files import user_path
from rlhf_bench.trainers.data.turns import BadRow

Row: TypeAlias = Mapping[str, Any]
Raw: TypeAlias = "tuple[str, Row | BadRow]"
"""Where a row is ("a.jsonl row 3"), and its columns that are not null, or why it has none."""

HUB = "hf:"
STRUCTURED = ("responses", "rewards", "finish_reasons", "completions", "history", "tags", "margin", "label", "labels")
"""The columns whose cells in a CSV file are JSON; turns are too, where a cell is a list of them."""
SCORES = ("score", "rating")
TABULAR = ("parquet", "json", "csv", "arrow", "cache")
"""The builders of `datasets` that read rows of text. The rest decode media or unpack archives."""
_BATCH = 1000
_HUB_NAME = re.compile(r"(?P<name>[\w.-]+(/[\w.-]+)?)(/(?P<config>[\w.-]+))?(:(?P<split>[\w.-]+))?")


def raw_rows(source: str | Path) -> Iterator[Raw]:
    """The rows of a file, a folder or, with `hf:org/name[/config][:split]`, a data set of the hub.

    A file is .jsonl, .json, .csv, .tsv (each also gzipped) or .parquet; a folder is what `save_to_disk` wrote, or holds
    data files; `folder:split` names its split, "train" otherwise. Raises MissingData, or UserError where there are no
    rows to read.
    """
    name = str(source)
    found = _hub(name.removeprefix(HUB), name) if name.startswith(HUB) else _local(name)
    for number, row in enumerate(found, start=1):
        where = f"{name} row {number}"
        if isinstance(row, Mapping):
            yield where, {key: value for key, value in row.items() if value is not None}
        elif isinstance(row, BadRow):
            yield where, row
        else:
            yield where, BadRow("no object", "it is not an object with named fields")


def _local(name: str) -> Iterator[Any]:
    if not name:
        raise UserError("the data's name is empty: give a file, a folder of `datasets`, or hf:org/name")
    path = user_path(name)
    folder, colon, split = name.rpartition(":")
    if not path.exists() and colon and user_path(folder).is_dir():
        return _folder(user_path(folder), split, name)
    if path.is_dir():
        return _folder(path, "", name)
    if not path.is_file():
        raise MissingData(
            f"no file {path}: give a .jsonl, .json, .csv or .parquet file, a folder of `datasets`, or hf:org/name"
        )
    return _file(path)


def _file(path: Path) -> Iterator[Any]:
    try:
        with path.open("rb") as file:
            head = file.read(4)
            file.seek(0)
            if head == b"PAR1":
                yield from _parquet(file)
                return
            packed = head[:2] == b"\x1f\x8b"
            kind = Path(path.stem if packed and path.suffix == ".gz" else path.name).suffix
            with gzip.open(file) if packed else file as unpacked:
                yield from (
                    _csv(unpacked, "\t" if kind == ".tsv" else ",") if kind in (".csv", ".tsv") else _json(unpacked)
                )
    except UnicodeDecodeError:
        raise UserError(f"{path} is not UTF-8 text: save it as UTF-8") from None
    except (OSError, EOFError, zlib.error, ValueError, csv.Error, RecursionError) as error:
        said = getattr(error, "strerror", None) or str(error).partition("\n")[0]
        raise UserError(f"{path} cannot be read ({said}): give .jsonl, .json, .csv or .parquet") from None


def _parquet(file: IO[bytes]) -> Iterator[Any]:
    import pyarrow.parquet  # type: ignore[import-untyped]

    for batch in pyarrow.parquet.ParquetFile(file).iter_batches(batch_size=_BATCH):
        yield from batch.to_pylist()


def _json(file: Any) -> Iterator[Any]:
    """The rows of a JSON list, of JSON lines, or of LMFlow's object around a list. A broken line is a BadRow."""
    decoded = (line.decode("utf-8-sig" if number == 0 else "utf-8") for number, line in enumerate(file))
    lines = (line for line in decoded if line.strip())
    first = next(lines, "")
    row = _line(first) if first and not first.lstrip().startswith("[") else None
    if row is not None and not isinstance(row, BadRow) and not _wraps(row):
        yield row
        yield from map(_line, lines)
    elif first:
        whole = json.loads("".join((first, *lines)))
        found = whole["instances"] if _wraps(whole) else whole
        if not isinstance(found, list):
            raise ValueError("it holds one JSON value, not rows")
        yield from found


def _line(line: str) -> Any:
    try:
        return json.loads(line)
    except (ValueError, RecursionError) as error:
        return BadRow("no JSON", f"it is not JSON: {error}")


def _wraps(value: Any) -> bool:
    """Whether it is RLHFlow's older form, {"type": "text_only", "instances": [...]}."""
    return isinstance(value, dict) and set(value) == {"type", "instances"}


def _csv(file: Any, delimiter: str) -> Iterator[Any]:
    csv.field_size_limit(1 << 30)
    with io.TextIOWrapper(file, encoding="utf-8-sig", newline="") as text:
        reader = csv.DictReader(text, delimiter=delimiter, strict=True)
        columns = list(reader.fieldnames or ())
        if twice := [name for name in columns if columns.count(name) > 1]:
            raise ValueError(f"column {twice[0]!r} is there twice")
        for row in reader:
            if None in row or None in row.values():
                yield BadRow("cells that do not fit", f"it has another number of cells than the {len(row)} columns")
            else:
                yield {column: _cell(column, cell) for column, cell in row.items() if cell}


def _cell(column: str, cell: str) -> Any:
    """A number or a list where the column holds such, turns where the cell is a list of them, else text."""
    holds_json = column in STRUCTURED or any(name in column for name in SCORES)
    if not holds_json and not cell.startswith(("[{", "{")):
        return cell
    try:
        found = json.loads(cell.lower() if cell in ("True", "False") else cell)
    except (ValueError, RecursionError):
        return cell
    return found if holds_json or _spoken(found) else cell


def _spoken(value: Any) -> bool:
    listed = value if isinstance(value, list) else [value]
    return all(isinstance(each, dict) and ("role" in each or "from" in each) for each in listed)


def _folder(path: Path, split: str, name: str) -> Iterator[Any]:
    import datasets

    saved = (path / "state.json").is_file() or (path / "dataset_dict.json").is_file()
    with _quiet(name):
        if not saved:
            return _loaded(str(path.resolve()), None, split)
        found = datasets.load_from_disk(str(path))
        return _rows_of(_split(found, split, name) if isinstance(found, dict) else found)


def _hub(rest: str, name: str) -> Iterator[Any]:
    found = _HUB_NAME.fullmatch(rest)
    if found is None:
        raise UserError(f"'{name}': write it as hf:org/name, hf:org/name:split or hf:org/name/config:split")
    with _quiet(name):
        return _loaded(found["name"], found["config"], found["split"] or "")


def _loaded(path: str, config: str | None, split: str) -> Iterator[Any]:
    """The rows of a split of a data set of files, on the hub or in a folder; nothing of it is run."""
    import datasets

    builder = datasets.load_dataset_builder(path, config)
    kind = type(builder).__module__.rpartition(".")[2]
    if kind not in TABULAR:
        raise UserError(f"{path} is read by the '{kind}' builder: give a data set of parquet, JSON or CSV files")
    builder.download_and_prepare()
    return _rows_of(_split(builder.as_dataset(), split, path))


def _split(splits: Mapping[str, Any], split: str, name: str) -> Any:
    if not split and len(splits) == 1:
        return next(iter(splits.values()))
    if (split or "train") not in splits:
        raise UserError(f"{name} has the splits {', '.join(splits)}: name one, as in {name.partition(':')[0]}:SPLIT")
    return splits[split or "train"]


def _rows_of(dataset: Any) -> Iterator[Any]:
    for table in dataset.with_format("arrow").iter(batch_size=_BATCH):
        yield from table.to_pylist()


@contextmanager
def _quiet(name: str) -> Iterator[None]:
    """The faults of `datasets` as one line, and no progress bars."""
    import datasets

    try:
        with no_bars():
            yield
    except UserError:
        raise
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        said = " ".join(str(error).split())[:200]
        raise MissingData(f"{name} cannot be loaded ({said}): give its name on the hub, or a local file") from None


@contextmanager
def no_bars() -> Iterator[None]:
    """`datasets` without its own progress bars; they are put back after."""
    from datasets.utils.logging import disable_progress_bar, enable_progress_bar, is_progress_bar_enabled

    shown = is_progress_bar_enabled()
    disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            enable_progress_bar()
