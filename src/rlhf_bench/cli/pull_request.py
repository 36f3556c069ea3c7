"""A comparison as GitHub markdown, for a comment on a pull request: a table, and what changed in folded details.

Answers are a model's and may say anything, so every text stands as text: in tables its signs are entities, in details
it is escaped and inside <pre>, where GitHub reads no markdown, no mention and no reference.
"""

from __future__ import annotations

import html
import re
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from rlhf_bench.cli import show
from rlhf_bench.cli.side_by_side import (
    MARKS,
    answered,
    asked,
    change,
    cut,
    interval,
    label,
    legend,
    named,
    number,
    shown,
)

if TYPE_CHECKING:
    from rlhf_bench.cli.compared import Compared, Row
    from rlhf_bench.harness.compare import Contrast
    from rlhf_bench.harness.types import Record

MOST = 60_000
"""GitHub takes 65,536 characters in a comment."""
SHOWN = 1_500
"""So many characters of a text are shown."""
_SIGNS = re.compile(r"[\\`*\[\]<>|~#@&!]|(?<![^\W_])_|_(?![^\W_])")


def as_markdown(found: Compared) -> str:
    """The comment, at most `MOST` characters and what little the last sample adds."""
    title = f"**{text(named(found.base))}** and what came after" if len(found.runs) > 1 else ""
    title = title or f"**{text(named(found.runs[0]))}** against **{text(named(found.base))}**"
    lines = [title, "", *(_two(found.rows) if len(found.runs) == 1 else _several(found)), ""]
    lines += [f"<sub>{text(line)}</sub>  " for line in legend(found)]
    lines += ["", *(f"- note: {text(note)}" for note in found.notes)] if found.notes else []
    size = sum(map(len, lines))
    for run, by_benchmark in zip(found.runs, found.flips, strict=False):
        for benchmark, pairs in by_benchmark.items():
            if pairs:
                some = list(_details(benchmark, run.id, pairs, MOST - size))
                size += sum(map(len, some))
                lines += some
    return "\n".join(lines)


def text(value: object) -> str:
    """A text inside a line of markdown, where it is a text and nothing else."""
    return _SIGNS.sub(lambda sign: f"&#{ord(sign.group())};", " ".join(show.safe(value).split()))


def _two(rows: Sequence[Row]) -> Iterator[str]:
    cells = [(row, cell) for row in rows for cell in row.cells if cell is not None]
    cuts = any(any(cell.cut) for _, cell in cells)
    further = ["cut"] if cuts else []
    yield _line("benchmark", "base", "new", "diff.", "", "95% interval", "p", "flips", "ungr.", *further)
    yield "|---|--:|--:|--:|---|---|--:|--:|--:|" + "--:|" * cuts
    for row, cell in cells:
        c = cell.comparison
        yield _line(
            _label(row),
            number(c.champion, cell),
            number(c.candidate, cell),
            number(c.difference, cell, signed=True),
            MARKS[shown(row, cell)],
            interval(cell),
            show.chance(c.p),
            f"+{c.gained} −{c.lost}",
            c.ungraded,
            *([cut(cell)] if cuts else []),
        )


def _several(found: Compared) -> Iterator[str]:
    yield _line("benchmark", "base", *(text(named(run)) for run in found.runs))
    yield "|---|--:|" + "---|" * len(found.runs)
    for row in found.rows:
        base = number(row.first.comparison.champion, row.first) if row.first else "–"
        yield _line(_label(row), base, *("–" if cell is None else _cell(row, cell) for cell in row.cells))


def _cell(row: Row, cell: Contrast) -> str:
    c = cell.comparison
    more = f", cut {cut(cell)}" if any(cell.cut) else ""
    return (
        f"{number(c.difference, cell, signed=True)} {MARKS[shown(row, cell)]} {interval(cell)}, p {show.chance(c.p)}, "
        f"+{c.gained} −{c.lost}, ungr. {c.ungraded}{more}"
    )


def _label(row: Row) -> str:
    return f"↳ {text(label(row))}" if row.stratum or not row.own else text(label(row))


def _line(*cells: object) -> str:
    return "| " + " | ".join(map(str, cells)) + " |"


def _details(benchmark: str, run: str, pairs: Sequence[tuple[Record, Record]], room: int) -> Iterator[str]:
    """The samples that changed, folded; those for which there is no room are counted."""
    lost = sum(change(*both).startswith("lost") for both in pairs)
    yield ""
    yield f"<details><summary>{text(benchmark)}: {lost} lost and {len(pairs) - lost} gained by {text(run)}</summary>"
    for place, (new, old) in enumerate(pairs):
        block = _block(new, old)
        room -= len(block)
        if room < 0:
            yield f"\n{len(pairs) - place} more do not fit into a comment."
            break
        yield block
    yield "\n</details>"


def _block(new: Record, old: Record) -> str:
    parts = [("asked", asked(old.sample.prompt)), ("base", answered(old)), ("new", answered(new))]
    if old.sample.reference:
        parts.insert(1, ("reference", old.sample.reference))
    shown = "\n\n".join(f"{name}: {_short(said)}" for name, said in parts)
    return f"\n**{text(change(new, old))}**\n\n<pre>\n{html.escape(show.safe(shown))}\n</pre>"


def _short(said: str) -> str:
    said = said.strip()
    return said if len(said) <= SHOWN else f"{said[:SHOWN]}… ({len(said) - SHOWN} more characters)"
