"""`rlhf-bench runs`: what was run, what each sample got, and going on with a run that was stopped."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from rlhf_bench.cli import exports, files, lookup, measuring, options, show, signals, tables
from rlhf_bench.cli.run import print_run
from rlhf_bench.cli.side_by_side import asked, indented
from rlhf_bench.harness.errors import UnknownName, UserError

if TYPE_CHECKING:
    from rlhf_bench.harness.store import Store
    from rlhf_bench.harness.types import Estimate, Record, Report

app = typer.Typer(help="List runs, show one, go on with one that was stopped, write and read them as lm-eval's files.")
RunName = Annotated[str, typer.Argument(help="Run id or its beginning, latest, latest~1, champion or a model's alias.")]


@app.callback(invoke_without_command=True)
def _runs(context: typer.Context, json: options.Json = False) -> None:
    if context.invoked_subcommand is None:
        listing(json)


@app.command("list")
def listing(json: options.Json = False) -> None:
    """All runs, the last started first."""
    with lookup.open_store() as store:
        found = store.runs()
    if json:
        show.as_json(found)
        return
    columns = ("run", "model", "suite", "protocol", "judge", "status", "began")
    rows = [
        (r.id, r.model, r.suite, r.protocol, r.judge or "", r.status, r.created[:16].replace("T", " ")) for r in found
    ]
    show.table("runs", columns, rows)
    if not found:
        show.say("none yet: `rlhf-bench run` evaluates the built-in model on the packaged suite")


@app.command("show")
def show_run(
    run: RunName = "latest",
    samples: Annotated[int, typer.Option("--samples", "-n", min=0, help="Also print N samples of each benchmark.")] = 0,
    benchmark: Annotated[str | None, typer.Option("--benchmark", "-b", help="Only this benchmark.")] = None,
    by_stratum: Annotated[
        bool, typer.Option("--by-stratum", help="Also a score for each part: MMLU's subjects, a group's tasks.")
    ] = False,
    json: options.Json = False,
) -> None:
    """A run's scores, and the prompts, answers and grades behind them."""
    with lookup.open_store() as store:
        found = lookup.find_run(store, run)
        report = store.report(found.id)
        names = list(dict.fromkeys(each.benchmark for each in report.estimates))
        if benchmark is not None and benchmark not in names:
            raise UnknownName(f"benchmark in run {found.id}", benchmark, names)
        names = [benchmark] if benchmark else names
        chosen = [each for name in names for each in store.records(found.id, name)[:samples]] if samples else []
        strata = _strata(store, report, names) if by_stratum else {}
        if json:
            show.as_json({"run": found, "report": report, "samples": chosen, "strata": strata})
            return
        print_run(store, report)
    for name, parts in strata.items():
        tables.strata(name, parts)
    for record in chosen:
        print_record(record)


@app.command()
def resume(run: RunName = "latest", json: options.Json = False) -> None:
    """Go on with a run from its last finished sample, with the settings that it was started with."""
    with lookup.open_store() as store:
        found = store.run(run)
        report = measuring.measure_again(found, store, show.bars())
        if json:
            show.as_json(report)
        else:
            print_run(store, report)


@app.command()
def export(
    output: Annotated[Path, typer.Option("--output", "-o", help="The folder to write to.")],
    run: RunName = "latest",
    format_: Annotated[
        Literal["lm-eval", "alpaca-eval", "mt-bench"], typer.Option("--format", help="Whose files.")
    ] = "lm-eval",
    json: options.Json = False,
) -> None:
    """Write a run as lm-eval does (results_*.json, and a samples_*.jsonl for each task), or its chat answers.

    alpaca-eval: model_outputs.json and annotations.json; mt-bench: model_answer/MODEL.jsonl.
    """
    with lookup.open_store() as store:
        found = lookup.find_run(store, run)
        paths, left_out = exports.export(store, found, output, format_)
    if json:
        show.as_json({"files": [str(path) for path in paths], "left_out": left_out})
        return
    for path in paths:
        show.say(str(path))
    if left_out:
        show.say(f"note: {format_} has no place for {', '.join(left_out)}: left out")


@app.command("import")
def import_(
    paths: Annotated[
        list[str],
        typer.Argument(
            help="lm-eval's output folder, results_*.json or samples_*.jsonl; AlpacaEval's annotations (FILE or "
            "FILE:MODEL)."
        ),
    ],
    name: Annotated[
        str | None, typer.Option(help="What the model is called here; tells apart two that lm-eval calls the same.")
    ] = None,
    json: options.Json = False,
) -> None:
    """Read what lm-eval (with --log_samples) or AlpacaEval wrote as a finished run, to compare and to gate."""
    if name is not None and len(paths) > 1:
        raise UserError(f"--name is one name and there are {len(paths)} paths: import them one by one")
    with lookup.open_store() as store:
        reports = [files.read(path, store, name) for path in paths]
        if json:
            show.as_json(reports)
            return
        for report in reports:
            print_run(store, report)


def _strata(store: Store, report: Report, benchmarks: Iterable[str]) -> dict[str, list[tuple[str, Estimate]]]:
    """By benchmark the scores of its parts. Raises UserError where none of the benchmarks has parts."""
    from rlhf_bench.harness.estimates import strata_of
    from rlhf_bench.suites.imported import recorded

    facts = report.manifest["benchmarks"]
    found = {name: strata_of(recorded(name, facts[name]), store.records(report.run_id, name)) for name in benchmarks}
    if not any(found.values()):
        raise UserError(f"no sample of {', '.join(found)} in run {report.run_id} says which part of it it belongs to")
    return {name: parts for name, parts in found.items() if parts}


def print_record(record: Record) -> None:
    """One sample: what was asked, what is right, what was answered, and the grade."""
    grade = "ungraded" if record.score.value is None else show.number(record.score.value)
    show.say(
        f"\n── {record.benchmark} {record.sample.id}: {grade}{f' ({record.score.why})' if record.score.why else ''}"
    )
    show.say(f"asked:     {indented(asked(record.sample.prompt))}")
    if record.sample.reference:
        show.say(f"reference: {indented(record.sample.reference)}")
    for each in record.completions:
        scored = "" if each.logprob is None else f" [log-likelihood {each.logprob:.2f}]"
        cut = " [cut off]" if each.finish_reason == "length" else ""
        show.say(f"answered:  {indented(each.text)}{scored}{cut}")


app.command("signals")(signals.signals)
