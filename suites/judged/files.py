"""Reads JSON lists, JSON lines and CSV, gzipped or not; what is wrong is said with its file, row and field."""

from __future__ import annotations

import csv
import gzip
import io
import json
import math
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlhf_bench.harness.errors import UserError

LIMIT_BYTES = 1 << 29
"""Of one file, decompressed."""
SHOWN = 60


@dataclass(frozen=True, slots=True)
class Row:
    """One row and where it stands; its readers raise UserError that names file, row and field."""

    path: Path
    number: int
    fields: Mapping[str, Any]

    def text(self, name: str, *other: str) -> str:
        """The first of these fields that the row has: a string that is not empty, or a number as text."""
        key = next((one for one in (name, *other) if self.fields.get(one) is not None), name)
        value = self.fields.get(key)
        if isinstance(value, int) and not isinstance(value, bool):
            return str(value)
        if not isinstance(value, str) or not value.strip():
            raise self.wrong(key, "should be text")
        return value

    def number_in(self, name: str, low: float, high: float, *, also: float | None = None) -> float | None:
        """A finite number in [low, high], or `also`; None where the field is null, empty or not there."""
        value = self.fields.get(name)
        if value is None or value == "":
            return None
        try:
            number = math.nan if isinstance(value, bool | list | dict) else float(value)
        except (ValueError, OverflowError):
            number = math.nan
        if not low <= number <= high and number != also:
            none = "null" if also is None else f"{also:g}, or null"
            raise self.wrong(name, f"should be a number from {low:g} to {high:g}, or {none}")
        return number

    def wrong(self, name: str, should: str) -> UserError:
        """The error for this field."""
        if name not in self.fields:
            return UserError(f"{self.path}, row {self.number}: no field '{name}': it {should}")
        shown = repr(self.fields[name])
        shown = shown if len(shown) <= SHOWN else f"{shown[:SHOWN]}…"
        return UserError(f"{self.path}, row {self.number}: field '{name}' is {shown}: it {should}")


def read(path: Path) -> Iterator[Row]:
    """The rows of a file, numbered from 1. Raises UserError if it cannot be read or is none of the three forms."""
    text = _text(path)
    start = text.lstrip("\ufeff \t\r\n")
    if path.name.removesuffix(".gz").endswith(".csv"):
        rows: Iterator[tuple[int, Any]] = _csv(path, text)
    elif start.startswith("["):
        found = _parsed(path, start)
        rows = enumerate(found, 1) if isinstance(found, list) else iter([(1, found)])
    else:
        lines = (line for line in start.split("\n") if line.strip())
        rows = ((number, _parsed(path, line, number)) for number, line in enumerate(lines, 1))
    for number, fields in rows:
        if not isinstance(fields, dict):
            raise UserError(f"{path}, row {number}: a {type(fields).__name__}, where an object with fields should be")
        yield Row(path, number, fields)


def _text(path: Path) -> str:
    try:
        with path.open("rb") as plain:
            zipped = plain.read(2) == b"\x1f\x8b"
            plain.seek(0)
            content = (gzip.GzipFile(fileobj=plain) if zipped else plain).read(LIMIT_BYTES + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}") from error
    if len(content) > LIMIT_BYTES:
        raise UserError(f"{path} is larger than {LIMIT_BYTES >> 20} MiB: no judgments are")
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text: byte {error.start} does not decode") from error


def _parsed(path: Path, text: str, row: int | None = None) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        where = f", row {row}" if row else ""
        raise UserError(f"{path}{where} is not JSON: {str(error) or 'nested too deep'}") from error


def _csv(path: Path, text: str) -> Iterator[tuple[int, Any]]:
    lines = csv.DictReader(io.StringIO(text.removeprefix("\ufeff"), newline=""), strict=True)
    try:
        for number, fields in enumerate(lines, 1):
            if None in fields or None in fields.values():
                raise UserError(f"{path}, row {number}: not as many cells as the header names")
            yield number, fields
    except csv.Error as error:
        raise UserError(f"{path} is not CSV: {error}") from error
