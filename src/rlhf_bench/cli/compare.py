"""`rlhf-bench compare`: the same samples, two runs or more."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rlhf_bench.cli import lookup, options, show
from rlhf_bench.harness.errors import UserError

if TYPE_CHECKING:
    from rlhf_bench.cli.compared import Compared, Row, Source
    from rlhf_bench.harness.compare import Contrast
    from rlhf_bench.harness.store import Run, Store

COLUMNS = (
    "benchmark", "metric", "stratum", "base run", "run", "base", "new", "difference", "low", "high", "p", "shown",
    "gained", "lost", "paired", "ungraded", "cut base", "cut new", "unpaired", "unpaired ids",
)  # fmt: skip


def compare(
    runs: Annotated[
        list[str],
        typer.Argument(
            metavar="RUN",
            help="Runs: id, latest~1, champion, a model's alias; or another tool's result file. The first is the base.",
        ),
    ],
    to: Annotated[
        str | None, typer.Option("--to", help="The run to compare with.", show_default="the first one named")
    ] = None,
    benchmark: Annotated[str | None, typer.Option("--benchmark", "-b", help="Only this benchmark.")] = None,
    metric: Annotated[
        list[str] | None,
        typer.Option("--metric", "-m", help="Also this metric, such as lc_win_rate; `all` of them; repeatable."),
    ] = None,
    lower: Annotated[
        list[str] | None,
        typer.Option("--lower-is-better", metavar="METRIC", help="Less of this metric is better; repeatable."),
    ] = None,
    by_stratum: Annotated[
        bool, typer.Option("--by-stratum", help="Also each part: MMLU's subjects, MT-Bench's categories.")
    ] = False,
    flips: Annotated[
        int, typer.Option(min=0, help="Also the N samples that lost most and the N that gained most.")
    ] = 0,
    json: options.Json = False,
    markdown: Annotated[
        bool, typer.Option("--markdown", help="For a pull request: a table, and flips folded.")
    ] = False,
    csv: Annotated[bool, typer.Option("--csv", help="As CSV, a line for each row and run.")] = False,
) -> None:
    """Compare runs with a base, sample by sample.

    Shows the difference, its interval, whether it is shown to be better (▲) or worse (▼), and how many samples were
    gained or lost; p is one-sided for "better than the base". Runs that were asked or judged otherwise are refused.
    """
    from rlhf_bench.cli.compared import Choice, compared

    if json + markdown + csv > 1:
        raise UserError("one of --json, --markdown, --csv")
    choice = Choice(benchmark, tuple(metric or ()), tuple(lower or ()), by_stratum, flips)
    with ExitStack() as stack:
        base, others = _sources(runs, to, stack)
        found = compared(base, others, choice)
    if json:
        show.as_json(as_json(found))
    elif markdown:
        from rlhf_bench.cli.pull_request import as_markdown

        print(as_markdown(found))
    elif csv:
        show.comma_separated(COLUMNS, _long(found))
    else:
        from rlhf_bench.cli.side_by_side import print_compared, print_flips

        print_compared(found)
        print_flips(found)


def as_json(found: Compared) -> dict[str, Any]:
    """All of it for other programs: by benchmark a list with a cell for each run, null where there is none."""
    from rlhf_bench.cli.side_by_side import legend

    rows: dict[str, Any] = {"comparisons": {}, "metrics": {}, "strata": {}}
    for row in found.rows:
        cells = [None if cell is None else _plain(row, cell) for cell in row.cells]
        if row.stratum:
            rows["strata"].setdefault(row.benchmark, {})[row.stratum] = cells
        elif row.own:
            rows["comparisons"][row.benchmark] = cells
        else:
            rows["metrics"].setdefault(row.benchmark, {})[row.metric] = cells
    return {
        "base": found.base.id,
        "runs": [run.id for run in found.runs],
        "models": {run.id: run.model for run in (found.base, *found.runs)},
        **rows,
        "notes": found.notes,
        "legend": list(legend(found)),
        "flips": found.flips,
    }


def _plain(row: Row, cell: Contrast) -> dict[str, Any]:
    from rlhf_bench.cli.side_by_side import shown
    from rlhf_bench.harness.codec import plain

    ours, theirs = cell.cut
    return {
        **plain(cell.comparison),
        "p_worse": cell.p_worse,
        "p_adjusted": cell.adjusted,
        "shown": shown(row, cell),
        "direction": cell.direction,
        "cut": {"base": theirs, "new": ours},
    }


def _long(found: Compared) -> list[tuple[object, ...]]:
    return [
        _line(row, found.base.id, run.id, cell)
        for row in found.rows
        for run, cell in zip(found.runs, row.cells, strict=True)
        if cell is not None
    ]


def _line(row: Row, base: str, run: str, cell: Contrast) -> tuple[object, ...]:
    from rlhf_bench.cli.compared import some
    from rlhf_bench.cli.side_by_side import shown

    c, (ours, theirs) = cell.comparison, cell.cut
    return (
        c.benchmark, c.metric, row.stratum, base, run, c.champion, c.candidate, c.difference, c.low, c.high, c.p,
        shown(row, cell), c.gained, c.lost, c.paired, c.ungraded, theirs, ours, len(c.unpaired), some(c.unpaired),
    )  # fmt: skip


def _sources(names: Sequence[str], to: str | None, stack: ExitStack) -> tuple[Source, list[Source]]:
    """The base and the runs to compare with it. Raises UserError where these are none, or one is there twice."""
    wanted = list(names) if to is None else [to, *names]
    if len(wanted) < 2:
        raise UserError(f"'{names[0]}' alone compares with nothing: rlhf-bench compare BASE RUN..., or --to BASE")
    places = _Places(stack)
    base = places.find(wanted[0], None)
    found: dict[str, tuple[str, Source]] = {base.run.id: (wanted[0], base)}
    for name in wanted[1:]:
        each = places.find(name, base.run)
        if to is not None and each.run.id == base.run.id:
            continue
        if each.run.id in found:
            before, _ = found[each.run.id]
            raise UserError(f"'{before}' and '{name}' are the same run, {each.run.id}: name each once")
        found[each.run.id] = name, each
    others = [each for run, (_, each) in found.items() if run != base.run.id]
    if not others:
        raise UserError(f"'{to}' is the base, and nothing is left to compare with it: name another run")
    return base, others


@dataclass(slots=True)
class _Places:
    """Where runs are found: the store, and for result files a store that is gone with `stack`. Each opened once."""

    stack: ExitStack
    kept: Store | None = None
    loose: Store | None = None

    def find(self, name: str, like: Run | None) -> Source:
        from rlhf_bench.cli import files
        from rlhf_bench.cli.compared import Source
        from rlhf_bench.harness.store import Store

        if files.is_file(name):
            if self.loose is None:
                folder = self.stack.enter_context(TemporaryDirectory())
                self.loose = self.stack.enter_context(Store(f"sqlite:///{folder}/files.db"))
            return Source(self.loose, self.loose.run(files.load(name, self.loose)))
        self.kept = self.kept or self.stack.enter_context(lookup.open_store())
        return Source(self.kept, lookup.find_run(self.kept, name, like=like))
