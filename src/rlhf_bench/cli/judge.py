"""`rlhf-bench judge`: what a judge's verdicts are worth."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from rlhf_bench.cli import lookup, options, scorers, show

if TYPE_CHECKING:
    from rlhf_bench.harness.judges.evaluate import Evaluation

app = typer.Typer(help="Find out what a judge's verdicts are worth.", no_args_is_help=True)


@app.command()
def calibrate(
    files: Annotated[
        list[Path],
        typer.Argument(
            help="The judge's verdicts: annotations.json, or JSON lines or CSV with instruction (or id), preference "
            "and, where known, gold, preference_swapped, output_1, output_2, repeat."
        ),
    ],
    gold: Annotated[
        Path | None, typer.Option("--gold", help="Gold verdicts of the same form, joined by instruction and model.")
    ] = None,
    json: options.Json = False,
) -> None:
    """Hold a judge against human or gold verdicts: agreement, order, length, repeats, and whether it saves gold.

    A preference is in [1, 2]: 1 where output_1 is better, 2 where output_2 is, 1.5 where neither.
    """
    from rlhf_bench.harness.judges.calibrate import calibrate as calibration
    from rlhf_bench.suites.judged.calibration import judged_items

    found = calibration(judged_items(files, gold))
    if json:
        figures = {name: each._asdict() for name, each in found.figures.items()}
        show.as_json({"items": found.items, "gold": found.gold, "figures": figures, "notes": list(found.notes)})
        return
    rows = [
        (name, show.number(each.mean), show.interval(each.low, each.high), each.method)
        for name, each in found.figures.items()
    ]
    columns = ("figure", "value", "95% interval", "by")
    show.table(f"{found.items} pairs, {found.gold} with gold", columns, rows, right=("value",), whole=("95% interval",))
    for note in found.notes:
        show.say(f"note: {note}")


@app.command()
def reward(
    model: Annotated[str, typer.Argument(help="A reward model, pm:MODEL (a preference model) or scripted:RULE.")],
    data: Annotated[
        str, typer.Option("--data", "-d", help="Pairs that it was not trained on: file, folder or hf:org/name.")
    ],
    on_bad_row: Annotated[
        Literal["fail", "skip"], typer.Option(help="What a row that cannot be read does: skipped ones are counted.")
    ] = "fail",
    limit: Annotated[int | None, typer.Option("--limit", "-L", min=1, help="Only the first N pairs.")] = None,
    json: options.Json = False,
) -> None:
    """Hold a reward or preference model against pairs whose better answer is known: accuracy, calibration, length."""
    from rlhf_bench.harness.errors import UserError
    from rlhf_bench.harness.judges.evaluate import evaluate_pairs
    from rlhf_bench.harness.stats.intervals import Interval
    from rlhf_bench.trainers.data import read_preferences

    if model.partition(":")[0] in ("openai", "llm", "replay"):
        raise UserError(f"{model} is no reward model: hold its verdicts against gold with `rlhf-bench judge calibrate`")
    pairs = read_preferences(data, on_bad_row=on_bad_row)
    track = show.bars()
    with lookup.open_store() as store:
        found = evaluate_pairs(scorers.judge(model, store, track), pairs[:limit], track)
    if json:
        figures = {field.name: getattr(found, field.name) for field in fields(found)}
        named = {name: each._asdict() if isinstance(each, Interval) else each for name, each in figures.items()}
        show.as_json(named | {"skipped": dict(pairs.skipped)})
        return
    _show_evaluation(model, found)
    for reason, count in sorted(pairs.skipped.items()):
        show.say(f"note: {count} left out: {reason}")


def _show_evaluation(model: str, found: Evaluation) -> None:
    figures = {
        "accuracy": found.accuracy,
        "prefers the longer": found.prefers_longer,
        "the data prefer the longer": found.chosen_longer,
        "reward and length (r)": found.length_correlation,
    }
    rows = [
        (name, show.number(each.mean), show.interval(each.low, each.high), each.method)
        for name, each in figures.items()
        if each is not None
    ]
    title = f"{model}: {found.pairs} pairs of {found.prompts} prompts"
    columns = ("figure", "value", "95% interval", "by")
    show.table(title, columns, rows, right=("value",), whole=("95% interval",))
    bins = [
        (f"{each.low:.2f}–{each.high:.2f}", each.pairs, show.number(each.confidence), show.number(each.accuracy))
        for each in found.bins
    ]
    named = ("confident", "pairs", "on average", "right")
    show.table(f"calibration error {show.number(found.calibration_error)}", named, bins, right=named[1:])
    if found.ungraded:
        show.say(f"note: {found.ungraded} pairs were not judged: {found.why}")
    if found.ties:
        show.say(f"note: {found.ties} ties, which count as wrong")
