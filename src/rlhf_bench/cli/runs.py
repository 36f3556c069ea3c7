"""`rlhf-bench runs`: what was run, what each sample got, and going on with a run that was stopped."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING, Annotated

import typer

from rlhf_bench.cli import options, show, wiring
from rlhf_bench.cli.run import print_run
from rlhf_bench.harness.errors import UnknownName

if TYPE_CHECKING:
    from rlhf_bench.harness.types import Prompt, Record

app = typer.Typer(help="List runs, show one with its samples, go on with one that was stopped.")
RunName = Annotated[str, typer.Argument(help="Run id or its beginning, latest, latest~1, champion or a model's alias.")]


@app.callback(invoke_without_command=True)
def _runs(context: typer.Context, json: options.Json = False) -> None:
    if context.invoked_subcommand is None:
        listing(json)


@app.command("list")
def listing(json: options.Json = False) -> None:
    """All runs, the last started first."""
    with wiring.open_store() as store:
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
    json: options.Json = False,
) -> None:
    """A run's scores, and the prompts, answers and grades behind them."""
    with wiring.open_store() as store:
        found = wiring.find_run(store, run)
        report = store.report(found.id)
        names = list(dict.fromkeys(each.benchmark for each in report.estimates))
        if benchmark is not None and benchmark not in names:
            raise UnknownName(f"benchmark in run {found.id}", benchmark, names)
        names = [benchmark] if benchmark else names
        chosen = [each for name in names for each in store.records(found.id, name)[:samples]] if samples else []
        if json:
            show.as_json({"run": found, "report": report, "samples": chosen})
            return
        print_run(store, report)
    for record in chosen:
        print_record(record)


@app.command()
def resume(run: RunName = "latest", json: options.Json = False) -> None:
    """Go on with a run from its last finished sample, with the settings that it was started with."""
    with wiring.open_store() as store:
        found = store.run(run)
        report = wiring.measure_again(found, store, show.bars())
        if json:
            show.as_json(report)
        else:
            print_run(store, report)


def print_record(record: Record) -> None:
    """One sample: what was asked, what is right, what was answered, and the grade."""
    grade = "ungraded" if record.score.value is None else show.number(record.score.value)
    show.say(
        f"\n── {record.benchmark} {record.sample.id}: {grade}{f' ({record.score.why})' if record.score.why else ''}"
    )
    show.say(f"asked:     {_indented(_asked(record.sample.prompt))}")
    if record.sample.reference:
        show.say(f"reference: {_indented(record.sample.reference)}")
    for each in record.completions:
        scored = "" if each.logprob is None else f" [log-likelihood {each.logprob:.2f}]"
        cut = " [cut off]" if each.finish_reason == "length" else ""
        show.say(f"answered:  {_indented(each.text)}{scored}{cut}")


def _asked(prompt: Prompt) -> str:
    """The last turn of a conversation; of a text the end, after any worked examples."""
    return prompt.strip().split("\n\n")[-1] if isinstance(prompt, str) else prompt[-1].content


def _indented(text: str) -> str:
    return textwrap.indent(text.strip(), " " * 11).strip()
