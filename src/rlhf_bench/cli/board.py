"""`rlhf-bench leaderboard`: the store's checkpoints, ranked as far as their intervals allow."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from rlhf_bench.cli import options, show, tables, wiring
from rlhf_bench.harness.errors import UnknownName

if TYPE_CHECKING:
    from rlhf_bench.harness.store import Store
    from rlhf_bench.leaderboards.published import Published
    from rlhf_bench.leaderboards.ranking import Row


def leaderboard(
    benchmark: Annotated[
        str | None,
        typer.Argument(help="Only this one; else all that were run.", autocompletion=options.suites),
    ] = None,
    beside: Annotated[
        list[str] | None,
        typer.Option("--with", help="published (the paper's Tables 2 and 3), table-2, table-3, table-4 or v2."),
    ] = None,
    json: options.Json = False,
) -> None:
    """Rank the checkpoints of this store. Checkpoints whose intervals overlap share a rank.

    Rows under other conditions (judge, shots, samples, …) and published rows stand below, unranked, and say why.
    """
    from rlhf_bench.leaderboards.published import published
    from rlhf_bench.leaderboards.ranking import board

    names = _table_names(beside or [])
    with wiring.open_store() as store:
        measured = _measured(store)
    printed = [row for name in names for row in published(name).rows]
    benchmarks = list(dict.fromkeys(row.benchmark for row in measured))
    if benchmark is not None:
        known = {*benchmarks, *(row.benchmark for row in printed)}
        if benchmark not in known:
            raise UnknownName("benchmark in this store", benchmark, known, f"`rlhf-bench run -s {benchmark}` adds it.")
        benchmarks = [benchmark]
    boards = {
        name: board(
            [row for row in measured if row.benchmark == name], [row for row in printed if row.benchmark == name]
        )
        for name in benchmarks
    }
    if json:
        show.as_json({"boards": boards, "published": [published(name) for name in names]})
        return
    for name, rows in boards.items():
        _print_board(name, rows)
    if not boards:
        show.say("no finished run in this store: `rlhf-bench run` adds one")
    if benchmark is None:
        for name in names:
            _print_published(published(name))


def _print_board(name: str, rows: tuple[Row, ...]) -> None:
    from rlhf_bench.leaderboards.ranking import PUBLISHED

    columns = ("rank", "model", "score", "95% interval", "parents", "source", "not comparable because")
    cells = [
        (
            row.rank if row.rank is not None else "–",
            row.model,
            show.number(row.mean),
            show.interval(row.low, row.high),
            " ← ".join(row.lineage),
            row.source,
            "; ".join(row.marks),
        )
        for row in rows
    ]
    used = [place for place in range(len(columns)) if any(cell[place] != "" for cell in cells)]
    show.table(
        f"{name} ({rows[0].metric})",
        [columns[place] for place in used],
        [[cell[place] for place in used] for cell in cells],
        right=("rank", "score"),
        whole=("95% interval", "source"),
    )
    conditions = next((row.conditions for row in rows if row.rank is not None), {})
    if any(PUBLISHED in row.marks for row in rows):
        show.say("published: prompts and harness may differ from ours, so no rank")
    if conditions:
        show.say("ranked: " + ", ".join(f"{key} {value}" for key, value in conditions.items()))


def _print_published(found: Published) -> None:
    by_column = zip(*found.values.values(), strict=True)
    decimals = [max(len(str(v).partition(".")[2]) for v in values if v is not None) for values in by_column]
    rows = [
        (model, *("–" if v is None else f"{v:.{d}f}" for v, d in zip(values, decimals, strict=True)))
        for model, values in found.values.items()
    ]
    show.table(f"{found.title}, as printed", ("model", *found.columns), rows, right=found.columns)
    show.say(f"source: {found.source}")
    for note in found.notes:
        show.say(f"note: {note}")


def _table_names(beside: list[str]) -> list[str]:
    from rlhf_bench.leaderboards.published import PAPER_TABLES, table_names

    known = table_names()
    for name in beside:
        if name not in ("published", *known):
            raise UnknownName("published table", name, ("published", *known))
    chosen = [each for name in beside for each in (PAPER_TABLES if name == "published" else (name,))]
    return list(dict.fromkeys(chosen))


def _measured(store: Store) -> list[Row]:
    """A row for each benchmark of each finished run, in the benchmark's own metric; of equal runs the last."""
    from rlhf_bench.leaderboards.measured import rows

    names = {each.digest: (aliases or (tables.short(each.digest),))[0] for each, aliases in store.checkpoints()}
    found: dict[tuple[object, ...], Row] = {}
    for run in store.runs():
        if run.report is None:
            continue
        checkpoint = store.checkpoint(run.checkpoint)
        parents = wiring.lineage(store, checkpoint)[1:] if checkpoint else []
        chain = tuple(names[each.digest] for each in parents)
        for row in rows(run.report, names.get(run.checkpoint, run.model), chain):
            found.setdefault((row.checkpoint, row.benchmark, *row.conditions.items()), row)
    return list(found.values())
