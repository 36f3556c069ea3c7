"""`rlhf-bench leaderboard`: the store's checkpoints, ranked as far as their intervals allow."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING, Annotated

import typer

from rlhf_bench.cli import lookup, options, show, tables
from rlhf_bench.harness.errors import UnknownName, UserError

if TYPE_CHECKING:
    from rlhf_bench.harness.store import Store
    from rlhf_bench.harness.types import Sample
    from rlhf_bench.leaderboards.ladder import Climb
    from rlhf_bench.leaderboards.published import Published
    from rlhf_bench.leaderboards.ranking import Row


EMPTY = "no finished run in this store: `rlhf-bench run` adds one"


def leaderboard(
    benchmark: Annotated[
        str | None,
        typer.Argument(help="Only this one; else all that were run.", autocompletion=options.suites),
    ] = None,
    beside: Annotated[
        list[str] | None,
        typer.Option("--with", help="published (the paper's Tables 2 and 3), table-2, table-3, table-4 or v2."),
    ] = None,
    ladder: Annotated[
        bool,
        typer.Option(
            "--ladder", help="The published best, run by run: it moves only for a gain of more than a standard error."
        ),
    ] = False,
    json: options.Json = False,
) -> None:
    """Rank the checkpoints of this store. Checkpoints whose intervals overlap share a rank.

    Rows under other conditions (judge, shots, samples, …) and published rows stand below, unranked, and say why.
    With --ladder no run's own score is told, so that many iterations that climb by it do not fit the samples.
    """
    from rlhf_bench.leaderboards.published import published
    from rlhf_bench.leaderboards.ranking import board

    if ladder and beside:
        raise UserError("--ladder is about the runs of this store: leave out --with")
    names = _table_names(beside or [])
    with lookup.open_store() as store:
        if ladder:
            return _ladders(store, benchmark, json)
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
        show.say(EMPTY)
    if benchmark is None:
        for name in names:
            _print_published(published(name))


def _ladders(store: Store, benchmark: str | None, json: bool) -> None:
    """The Ladder of one benchmark, or of each that was run, over the runs that compare."""
    from rlhf_bench.leaderboards.ladder import candidates, climb
    from rlhf_bench.leaderboards.ranking import board

    measured = _measured(store)
    benchmarks = list(dict.fromkeys(row.benchmark for row in measured))
    if benchmark is not None:
        if benchmark not in benchmarks:
            raise UnknownName(
                "benchmark in this store", benchmark, benchmarks, f"`rlhf-bench run -s {benchmark}` adds it."
            )
        benchmarks = [benchmark]
    names, found, others = _names(store), [], {}
    for name in benchmarks:
        wanted = board([row for row in measured if row.benchmark == name])[0].conditions
        runs = candidates(store.runs(), name, wanted)
        known: dict[str, Sample] = {}
        submitted = ((run, names.get(run.checkpoint, run.model), store.records(run.id, name, known)) for run in runs)
        found.append(climb(name, submitted, wanted))
        others[name] = len(
            [run for run in store.runs() if run.report and name in run.manifest.get("benchmarks", {})]
        ) - len(runs)
    if json:
        show.as_json({"ladders": found, "under_other_conditions": others})
        return
    for each in found:
        _print_ladder(each, others[each.benchmark])
    if not found:
        return show.say(EMPTY)
    show.say("▲ moved: beats the published best by more than a standard error of the difference; of the rest")
    show.say("nothing is told, so that iterations cannot climb by it (Blum & Hardt 2015). `gate` is what tests.")


def _print_ladder(found: Climb, others: int) -> None:
    columns = ("step", "finished", "model", "run", "published best", "reached at step")
    rows = [
        (
            rung.step,
            rung.finished[:16].replace("T", " "),
            rung.model,
            rung.run,
            f"{show.number(rung.published)} {'▲' if rung.moved else ' '}",
            "–" if rung.moved_at is None else rung.moved_at,
        )
        for rung in found.rungs
    ]
    title = f"{found.benchmark} ({found.metric}): the Ladder over {found.samples} samples"
    show.table(title, columns, rows, right=("step", "published best", "reached at step"), whole=("finished", "run"))
    shared = ", ".join(f"{key} {value}" for key, value in found.conditions.items())
    for line in textwrap.wrap(f"all with {shared}", show.PLAIN_WIDTH):
        show.say(line)
    if others:
        show.say(f"note: {others} finished under other conditions, so they are not on it")


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

    names = _names(store)
    found: dict[tuple[object, ...], Row] = {}
    for run in store.runs():
        if run.report is None or "sequential" in run.report.manifest:
            continue  # what was stopped when it looked best is no score
        checkpoint = store.checkpoint(run.checkpoint)
        parents = lookup.lineage(store, checkpoint)[1:] if checkpoint else []
        chain = tuple(names[each.digest] for each in parents)
        for row in rows(run.report, names.get(run.checkpoint, run.model), chain):
            found.setdefault((row.checkpoint, row.benchmark, *row.conditions.items()), row)
    return list(found.values())


def _names(store: Store) -> dict[str, str]:
    """What each registered checkpoint is called."""
    return {each.digest: (aliases or (tables.short(each.digest),))[0] for each, aliases in store.checkpoints()}
