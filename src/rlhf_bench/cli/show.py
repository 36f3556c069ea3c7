"""What people see: tables on stdout, progress on stderr, JSON and nothing else where JSON was asked for."""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress

    from rlhf_bench.harness.progress import Advance, Track

PLAIN_WIDTH = 100
LOG_EVERY_S = 1.0
_CREDENTIALS = re.compile(r"(?<=://)\S*(?=@)")
_SECRET = re.compile(r"(?i)((?:password|passwd|secret|token|api_key)=)[^&\s'\"]+")
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


def complain(message: str) -> None:
    """One line on stderr, with no credentials in it."""
    print(safe(redact(" ".join(message.split()))), file=sys.stderr)


def redact(text: str) -> str:
    """`text` without the user and password of any URL in it, nor any password, token or key given as key=value."""
    return _SECRET.sub(r"\1***", _CREDENTIALS.sub("***", text))


def safe(text: object) -> str:
    """`text` with its control characters made visible: a model's answer cannot drive the terminal."""
    return _CONTROL.sub(lambda found: f"\\x{ord(found.group()):02x}", str(text))


def console() -> Console:
    """stdout, as wide as the terminal, or 100 columns where there is none."""
    from rich.console import Console

    wide = Console()
    return wide if wide.is_terminal else Console(width=max(wide.width, PLAIN_WIDTH))


def say(text: str) -> None:
    """A line of plain text on stdout: no markup is read in it."""
    from rich.text import Text

    console().print(Text(safe(text)), soft_wrap=True)


def as_json(value: Any) -> None:
    """`value` as JSON on stdout."""
    import json

    from rlhf_bench.harness.codec import plain

    print(json.dumps(plain(value), indent=2, ensure_ascii=False))


def table(
    title: str,
    columns: Sequence[str],
    rows: Iterable[Sequence[object]],
    *,
    right: Sequence[str] = (),
    whole: Sequence[str] = (),
) -> None:
    """A table on stdout. Cells are plain text; columns in `right` are aligned right, those in `whole` never broken."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    grid = Table(title=Text(safe(title), style="bold"), title_justify="left", box=SIMPLE_HEAD, collapse_padding=True)
    for column in columns:
        justify: Literal["left", "right"] = "right" if column in right else "left"
        grid.add_column(
            Text(safe(column)), justify=justify, overflow="fold", no_wrap=column in right or column in whole
        )
    for row in rows:
        grid.add_row(*(Text(safe(cell)) for cell in row))
    console().print(grid)


def markdown(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """The same table as GitHub markdown."""
    lines = [columns, ["---"] * len(columns), *rows]
    for line in lines:
        print("| " + " | ".join(safe(cell).replace("|", "\\|").replace("\n", " ") for cell in line) + " |")


def comma_separated(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """The same table as CSV."""
    import csv

    writer = csv.writer(sys.stdout, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows([safe(cell) for cell in row] for row in rows)


def number(value: float | None, *, signed: bool = False) -> str:
    """Three decimals; a dash where there is no number."""
    if value is None:
        return "–"
    return f"{value:+.3f}" if signed else f"{value:.3f}"


def interval(low: float | None, high: float | None, *, signed: bool = False) -> str:
    """`[0.296, 0.549]`, or nothing where there is no interval."""
    return "" if low is None or high is None else f"[{number(low, signed=signed)}, {number(high, signed=signed)}]"


def chance(p: float | None) -> str:
    """A p-value, no more exact than it is."""
    return "<0.001" if p is not None and p < 0.0005 else number(p)


def whisker(
    low: float, middle: float, high: float, reach: float, *, margin: float | None = None, cells: int = 25
) -> str:
    """An interval drawn on the axis −reach … +reach: `├──●──┤`, with zero as │ and −margin as ┊."""
    last = cells - 1

    def at(value: float) -> int:
        share = 0.5 if reach <= 0 else (value + reach) / (2 * reach)
        return min(last, max(0, round(share * last)))

    drawn = [" "] * cells
    drawn[at(0.0)] = "│"
    if margin:
        drawn[at(-margin)] = "┊"
    for cell in range(at(low), at(high) + 1):
        drawn[cell] = "┼" if drawn[cell] == "│" else "─"
    drawn[at(low)], drawn[at(high)], drawn[at(middle)] = "├", "┤", "●"
    return "".join(drawn)


def duration(seconds: float) -> str:
    """`7s`, `3m05s`, `2h10m`."""
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole}s"
    minutes, rest = divmod(whole, 60)
    return f"{minutes}m{rest:02d}s" if minutes < 60 else f"{minutes // 60}h{minutes % 60:02d}m"


def pace(per_s: float) -> str:
    """`12.3/s`, or `21.8s each` where one takes longer than some seconds."""
    return f"{per_s:.1f}/s" if per_s >= 0.5 else f"{1 / max(per_s, 1e-9):.1f}s each"


def bars(note: Callable[[], str] = str) -> Track:
    """Progress on stderr: live bars on a terminal, elsewhere a line each tenth so that logs stay readable.

    `note` gives what else is known, at the end of each bar or line.
    """
    from rich.console import Console

    stderr = Console(stderr=True)
    return _live(stderr, note) if stderr.is_terminal else _lines(note)


def _live(stderr: Console, note: Callable[[], str] = str) -> Track:
    shown: list[Progress] = []
    depth = 0

    @contextmanager
    def track(label: str, total: int) -> Iterator[Advance]:
        nonlocal depth
        if not shown:
            shown.append(_progress(stderr, note))
        progress = shown[0]
        if depth == 0:
            progress.start()
        depth += 1
        task = progress.add_task(safe(redact(label)), total=total)
        try:
            yield lambda count: progress.advance(task, count)
        finally:
            depth -= 1
            if depth == 0:
                progress.stop()
                shown.clear()

    return track


def _progress(stderr: Console, note: Callable[[], str]) -> Progress:
    from rich import progress as parts
    from rich.table import Column
    from rich.text import Text

    class Rate(parts.ProgressColumn):
        def render(self, task: parts.Task) -> str:
            speed = task.finished_speed or task.speed
            return pace(speed) if speed else ""

    class Note(parts.ProgressColumn):
        def render(self, task: parts.Task) -> Text:
            return Text(note())

    return parts.Progress(
        parts.TextColumn("{task.description}", markup=False),
        parts.BarColumn(bar_width=30),
        parts.MofNCompleteColumn(),
        Rate(),
        parts.TimeRemainingColumn(elapsed_when_finished=True),
        Note(table_column=Column(no_wrap=True)),
        console=stderr,
    )


def _lines(note: Callable[[], str]) -> Track:
    @contextmanager
    def track(label: str, total: int) -> Iterator[Advance]:
        started = seen = time.monotonic()
        done = shown = 0
        if total:
            _log(f"{label}: 0/{total}")

        def advance(count: int) -> None:
            nonlocal done, shown, seen
            done += count
            now = time.monotonic()
            tenth = done * 10 // max(total, 1) > shown * 10 // max(total, 1)
            if done >= total > shown or (tenth and now - seen >= LOG_EVERY_S):
                rate = (done - shown) / max(now - seen, 1e-9)
                left = f"{duration((total - done) / rate)} left" if done < total else f"took {duration(now - started)}"
                _log(", ".join(part for part in (f"{label}: {done}/{total}", pace(rate), left, note()) if part))
                shown, seen = done, now

        yield advance

    return track


def _log(line: str) -> None:
    print(safe(redact(line)), file=sys.stderr, flush=True)
