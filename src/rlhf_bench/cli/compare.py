"""`rlhf-bench compare`: the same samples, two runs or more."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from rlhf_bench.cli import options, show, tables, wiring
from rlhf_bench.harness.errors import UserError

if TYPE_CHECKING:
    from rlhf_bench.harness.store import Store
    from rlhf_bench.harness.types import Comparison, Record

COLUMNS = (
    "benchmark", "metric", "base run", "run", "base", "new", "difference", "low", "high", "p", "gained", "lost",
    "paired", "ungraded", "unpaired",
)  # fmt: skip


def compare(
    base: Annotated[str, typer.Argument(help="The run to compare with: id, latest~1, champion, or a model's alias.")],
    others: Annotated[list[str], typer.Argument(metavar="RUN...", help="The runs to compare.")],
    benchmark: Annotated[str | None, typer.Option("--benchmark", "-b", help="Only this benchmark.")] = None,
    flips: Annotated[int, typer.Option(min=0, help="Also print N samples that were gained and N that were lost.")] = 0,
    json: options.Json = False,
    markdown: Annotated[bool, typer.Option("--markdown", help="As a GitHub table.")] = False,
    csv: Annotated[bool, typer.Option("--csv", help="As CSV.")] = False,
) -> None:
    """Compare runs with a base, sample by sample.

    Shows the difference, its interval, and how many samples were gained or lost; p is one-sided for "better than
    the base". Runs that were asked or judged in another way are refused.
    """
    if json + markdown + csv > 1:
        raise UserError("one of --json, --markdown, --csv")
    with wiring.open_store() as store:
        first = wiring.find_run(store, base)
        runs = [first, *(wiring.find_run(store, each, like=first) for each in others)]
        rows = [wiring.compared(store, each.id, first.id, benchmark) for each in runs[1:]]
        found = _by_benchmark(rows)
        changed = [
            _flips(store, each.id, row, first.id, flips) for each, row in zip(runs[1:], rows, strict=True) if flips
        ]
    names = [each.id for each in runs]
    if json:
        show.as_json({"base": names[0], "runs": names[1:], "comparisons": found, "flips": changed})
    elif markdown:
        show.markdown(COLUMNS, _long(names, found))
    elif csv:
        show.comma_separated(COLUMNS, _long(names, found))
    elif len(runs) == 2:
        title = f"{runs[1].model} ({names[1]}) against {runs[0].model} ({names[0]})"
        tables.comparison(title, [row[0] for row in found.values()])
    else:
        title = f"against {runs[0].model} ({names[0]})"
        tables.iterations(title, [f"{each.model}\n{each.id}" for each in runs[1:]], found)
    if not (json or markdown or csv):
        for name, pairs in zip(names[1:], changed, strict=False):
            _print_flips(name, pairs)


def _long(names: Sequence[str], found: dict[str, list[Comparison]]) -> list[tuple[object, ...]]:
    return [
        (
            c.benchmark, c.metric, names[0], name, c.champion, c.candidate, c.difference, c.low, c.high, c.p, c.gained,
            c.lost, c.paired, c.ungraded, len(c.unpaired),
        )
        for row in found.values()
        for name, c in zip(names[1:], row, strict=True)
    ]  # fmt: skip


def _by_benchmark(rows: Sequence[Sequence[Comparison]]) -> dict[str, list[Comparison]]:
    """The benchmarks that all runs have, each with its comparisons in the order of the runs."""
    found: dict[str, list[Comparison]] = {}
    for row in rows:
        for each in row:
            found.setdefault(each.benchmark, []).append(each)
    return {name: row for name, row in found.items() if len(row) == len(rows)}


def _flips(
    store: Store, run: str, comparisons: Sequence[Comparison], base: str, count: int
) -> dict[str, list[tuple[Record, Record]]]:
    """For each benchmark up to `count` samples that were lost and as many that were gained: (run's, base's)."""
    from rlhf_bench.harness.compare import flips

    found = {}
    for each in comparisons:
        new, old = (store.records(name, each.benchmark) for name in (run, base))
        changed = flips(new, old, benchmark=each.benchmark, metric=each.metric)
        lost, gained = changed[: each.lost], changed[each.lost :]
        found[each.benchmark] = lost[:count] + gained[::-1][:count]
    return found


def _print_flips(run: str, found: dict[str, list[tuple[Record, Record]]]) -> None:
    from rlhf_bench.cli.runs import print_record

    for pairs in found.values():
        for new, old in pairs:
            gained = (new.score.value or 0.0) > (old.score.value or 0.0)
            show.say(f"\n══ {'gained' if gained else 'lost'} by {run}; the base first")
            print_record(old)
            print_record(new)
