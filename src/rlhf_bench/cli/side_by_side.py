"""A comparison as tables on the terminal, and the words that explain it in every form."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from rlhf_bench.cli import show
from rlhf_bench.cli.compared import off_scale

if TYPE_CHECKING:
    from rlhf_bench.cli.compared import Compared, Row
    from rlhf_bench.harness.compare import Contrast
    from rlhf_bench.harness.store import Run
    from rlhf_bench.harness.types import Prompt, Record

MARKS = {"better": "▲", "worse": "▼", "higher": "↑", "lower": "↓", "neither": "·"}
AXIS = range(9, 16)
"""So many cells an interval is drawn with, or it is not drawn."""
WIDE = 13
"""With so many both ends of the axis can be named."""
GAP = 2
"""Columns between two columns, and beside the outer ones."""
LABEL = 34


def print_compared(found: Compared, title: str = "") -> None:
    """The rows, what their signs mean, and what is to be said beside them."""
    if len(found.runs) == 1:
        _print_two(found, title or f"{named(found.runs[0])} against {named(found.base)}")
    else:
        _print_iterations(found)
    for line in (*legend(found), *(f"note: {note}" for note in found.notes)):
        show.say(line)


def print_flips(found: Compared) -> None:
    """The samples that changed, the greatest loss first, with both answers and why they got what they got."""
    for run, by_benchmark in zip(found.runs, found.flips, strict=False):
        for pairs in by_benchmark.values():
            for new, old in pairs:
                show.say(f"\n══ {change(new, old)} by {run.id}")
                show.say(f"asked:     {indented(asked(old.sample.prompt))}")
                if old.sample.reference:
                    show.say(f"reference: {indented(old.sample.reference)}")
                show.say(f"base:      {indented(answered(old))}")
                show.say(f"new:       {indented(answered(new))}")


def legend(found: Compared) -> Iterator[str]:
    """What the signs mean."""
    yield "▲ better, ▼ worse: shown at 95%, by interval and p-value; · neither"
    yield "p: one-sided, for better; flips: samples scored higher and lower; ungr.: not graded in both runs"
    if any(any(cell.cut) for row in found.rows for cell in row.cells if cell is not None):
        yield "cut: samples with an answer cut at its length limit, the base's → the run's"
    most = max(found.strata.values(), default=0)
    if most:
        yield f"strata: marked by Holm; else about {most / 20:.2g} of {most} that did not change would be marked"
    if not all(row.valued for row in found.rows):
        yield "↑ higher, ↓ lower: shown likewise, of a metric that is neither good nor bad by itself"
    falling = [row.metric for row in found.rows if row.first and row.first.direction == "lower"]
    if falling:
        yield f"lower is better: {', '.join(dict.fromkeys(falling))}"


def named(run: Run) -> str:
    """A run for people."""
    return f"{run.model} ({run.id})"


def shown(row: Row, cell: Contrast) -> str:
    """What a cell shows: better, worse or neither; higher or lower where nobody said that either is better."""
    return cell.shown if row.valued else {"better": "higher", "worse": "lower"}.get(cell.shown, cell.shown)


def label(row: Row) -> str:
    """What a row is called: the benchmark, or below it the further metric or the stratum."""
    return f"  {row.stratum}" if row.stratum else row.benchmark if row.own else f"  {row.metric}"


def number(value: float, cell: Contrast, *, signed: bool = False) -> str:
    """Three decimals, one where the metric is not on a scale from 0 to 1."""
    if not off_scale(cell):
        return show.number(value, signed=signed)
    return f"{value:+.1f}" if signed else f"{value:.1f}"


def interval(cell: Contrast) -> str:
    """The difference's interval."""
    low, high = (number(end, cell, signed=True) for end in (cell.comparison.low, cell.comparison.high))
    return f"[{low}, {high}]"


def cut(cell: Contrast) -> str:
    """Answers that were cut, the base's and the run's."""
    ours, theirs = cell.cut
    return f"{theirs}→{ours}"


def change(new: Record, old: Record) -> str:
    """What became of a sample: `lost maths/3: 1.000 → 0.000`."""
    before, after = old.score.value or 0.0, new.score.value or 0.0
    what = "gained" if after > before else "lost"
    return f"{what} {old.sample.id}: {show.number(before)} → {show.number(after)}"


def asked(prompt: Prompt) -> str:
    """The last turn of a conversation; of a text the end, after any worked examples."""
    return prompt.strip().split("\n\n")[-1] if isinstance(prompt, str) else prompt[-1].content


def answered(record: Record) -> str:
    """The grade and why, then what was answered."""
    grade = "ungraded" if record.score.value is None else show.number(record.score.value)
    lines = [f"{grade}{f' ({record.score.why})' if record.score.why else ''}"]
    for each in record.completions:
        scored = "" if each.logprob is None else f" [log-likelihood {each.logprob:.2f}]"
        ended = {"length": " [cut off]", "error": f" [failed: {each.why}]"}.get(each.finish_reason, "")
        said = each.text.strip("\n")
        lines.append(f"{said}{scored}{ended}")
    return "\n".join(lines)


def indented(text: str) -> str:
    """A text of several lines beside a label."""
    return textwrap.indent(text.strip(), " " * 11).strip()


def _print_two(found: Compared, title: str) -> None:
    """One run against the base, each difference drawn on one axis where there is room."""
    pairs = [(row, cell) for row in found.rows for cell in row.cells if cell is not None]
    cuts = any(any(cell.cut) for _, cell in pairs)
    rows = [
        [
            label(row),
            number(cell.comparison.champion, cell),
            number(cell.comparison.candidate, cell),
            f"{number(cell.comparison.difference, cell, signed=True)} {MARKS[shown(row, cell)]}",
            interval(cell),
            show.chance(cell.comparison.p),
            f"+{cell.comparison.gained} −{cell.comparison.lost}",
            str(cell.comparison.ungraded),
            *([cut(cell)] if cuts else []),
        ]
        for row, cell in pairs
    ]
    columns = ["benchmark", "base", "new", "diff.  ", "95% interval", "p", "flips", "ungr.", *(["cut"] if cuts else [])]
    whole = ["95% interval"]
    reach = max((max(-c.comparison.low, c.comparison.high) for _, c in pairs if not off_scale(c)), default=0.0)
    cells = _room(columns, rows)
    axis = f"−{reach:.2f} … +{reach:.2f}" if cells >= WIDE else f"±{reach:.2f}"
    if cells >= AXIS.start:
        columns.insert(5, axis)
        whole.append(axis)
        for line, (_, cell) in zip(rows, pairs, strict=True):
            line.insert(5, _drawn(cell, reach, cells))
    show.table(title, columns, rows, right=[c for c in columns[1:] if c not in whole], whole=whole)


def _drawn(cell: Contrast, reach: float, cells: int) -> str:
    found = cell.comparison
    return "" if off_scale(cell) else show.whisker(found.low, found.difference, found.high, reach, cells=cells)


def _room(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> int:
    """How many cells are left on the line for one more column, at most as many as are of use."""
    widths = [max(map(len, column)) for column in zip(columns, *rows, strict=True)]
    used = sum(min(width, LABEL) for width in widths) + GAP * (len(widths) + 1)
    return min(AXIS[-1], show.console().width - used - GAP)


def _print_iterations(found: Compared) -> None:
    """Several runs against one base: a column for each, as many side by side as the terminal is wide."""
    labels = [label(row) for row in found.rows]
    texts = [["–" if cell is None else _cell(row, cell) for cell in row.cells] for row in found.rows]
    bases = [number(row.first.comparison.champion, row.first) if row.first else "–" for row in found.rows]
    widest = max((len(line) for row in texts for text in row for line in text.splitlines()), default=1)
    left = show.console().width - min(max(map(len, labels), default=1), LABEL) - max(map(len, bases), default=1)
    per = max(1, (left - 3 * GAP) // (widest + GAP))
    for first in range(0, len(found.runs), per):
        some = found.runs[first : first + per]
        title = f"against {named(found.base)}" + (f", runs {first + 1} to {first + len(some)}" if first else "")
        names = [f"{textwrap.shorten(run.model, widest, placeholder='…')}\n{run.id}" for run in some]
        rows = [(name, base, *row[first : first + per]) for name, base, row in zip(labels, bases, texts, strict=True)]
        show.table(title, ("benchmark", "base", *names), rows, right=("base",))


def _cell(row: Row, cell: Contrast) -> str:
    found = cell.comparison
    return (
        f"{number(found.difference, cell, signed=True)} {MARKS[shown(row, cell)]} p {show.chance(found.p)}\n"
        f"{interval(cell)}\n"
        f"+{found.gained} −{found.lost} ungr. {found.ungraded}" + (f"\ncut {cut(cell)}" if any(cell.cut) else "")
    )
