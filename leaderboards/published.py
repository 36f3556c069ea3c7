"""Numbers that others published, each with the table it stands in (published.json beside this module)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

from rlhf_bench.harness.errors import UnknownName
from rlhf_bench.leaderboards.ranking import Row

PAPER_TABLES = ("table-2", "table-3")


@dataclass(frozen=True, slots=True)
class Published:
    """One published table. `columns` are benchmark names; `values` stand as printed, in the unit of the source."""

    name: str
    title: str
    source: str
    columns: tuple[str, ...]
    values: Mapping[str, tuple[float | None, ...]]
    notes: tuple[str, ...]
    rows: tuple[Row, ...]


@cache
def published(table: str) -> Published:
    """The table of this name ("table-2", "table-3", "table-4" of the paper, "v2" of its authors' later README).

    Its `rows` hold one Row for each printed number, in our unit (a percentage becomes a share).
    Raises UnknownName.
    """
    tables = _tables()
    if table not in tables:
        raise UnknownName("published table", table, tables)
    raw = tables[table]
    columns = raw["columns"]
    return Published(
        name=table,
        title=raw["title"],
        source=raw["source"],
        columns=tuple(column["benchmark"] for column in columns),
        values={row["model"]: tuple(row["values"]) for row in raw["rows"]},
        notes=tuple(raw["notes"]),
        rows=tuple(
            Row(row["model"], column["benchmark"], column["metric"], round(value / column["scale"], 6), None, None,
                raw["source"], column["conditions"])
            for row in raw["rows"]
            for column, value in zip(columns, row["values"], strict=True)
            if value is not None
        ),
    )  # fmt: skip


def table_names() -> tuple[str, ...]:
    """The names that `published` knows."""
    return tuple(_tables())


@cache
def _tables() -> dict[str, Any]:
    text = (files("rlhf_bench.leaderboards") / "published.json").read_text(encoding="utf-8")
    tables: dict[str, Any] = json.loads(text)
    return tables
