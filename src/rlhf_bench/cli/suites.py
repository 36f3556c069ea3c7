"""`rlhf-bench suites`: which benchmarks there are, and their data."""

from __future__ import annotations

from typing import Annotated

import typer

from rlhf_bench.cli import lookup, options, show

app = typer.Typer(help="List suites, show one, fetch and verify their data.")


@app.callback(invoke_without_command=True)
def _suites(context: typer.Context, json: options.Json = False) -> None:
    if context.invoked_subcommand is None:
        listing(json)


@app.command("list")
def listing(json: options.Json = False) -> None:
    """All suites and their benchmarks."""
    from rlhf_bench.suites import SUITES

    if json:
        show.as_json({name: {"summary": each.summary, "benchmarks": each.benchmarks} for name, each in SUITES.items()})
        return
    rows = [(name, ", ".join(each.benchmarks), each.summary) for name, each in SUITES.items()]
    show.table("suites", ("suite", "benchmarks", "what it asks"), rows)


@app.command("show")
def show_suite(
    name: Annotated[str, typer.Argument(help="A suite or benchmark.", autocompletion=options.suites)],
    json: options.Json = False,
) -> None:
    """The benchmarks of a suite: version, metric, size, judge, data and where they come from."""
    from rlhf_bench.suites import data

    found = lookup.suite(name)
    pins = {each.name: [data.pin(need) for need in each.needs] for each in found.benchmarks}
    if json:
        benchmarks = [
            {
                "name": each.name,
                "version": each.version,
                "metric": each.metric,
                "kind": each.kind,
                "samples": each.size,
                "judged": each.judged,
                "summary": each.summary,
                "data": [
                    {"source": pin.source, "sha256": pin.sha256, "licence": pin.licence} for pin in pins[each.name]
                ],
            }
            for each in found.benchmarks
        ]
        show.as_json({"name": found.name, "summary": found.summary, "benchmarks": benchmarks})
        return
    columns = ("benchmark", "version", "metric", "samples", "judged", "what it asks")
    rows = [(b.name, b.version, b.metric, b.size, "yes" if b.judged else "", b.summary) for b in found.benchmarks]
    show.table(f"{found.name}: {found.summary}" if found.summary else found.name, columns, rows, right=("samples",))
    for benchmark in found.benchmarks:
        for pin in pins[benchmark.name]:
            show.say(f"{benchmark.name} data: {pin.source} ({pin.licence})")


@app.command()
def fetch(
    names: Annotated[
        list[str] | None,
        typer.Argument(help="Suites, benchmarks or files; else all.", autocompletion=options.suites),
    ] = None,
    json: options.Json = False,
) -> None:
    """Get and verify the pinned data: from RLHF_BENCH_DATA, the cache, the hub or the origin."""
    from rlhf_bench.suites import data

    wanted = lookup.data_names(names or [])
    paths = data.fetch(wanted, show.bars())
    if json:
        show.as_json([str(path) for path in paths])
        return
    for path in paths:
        show.say(f"verified {path}")
