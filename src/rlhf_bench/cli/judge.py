"""`rlhf-bench judge`: what a judge's verdicts are worth."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from rlhf_bench.cli import options, show

app = typer.Typer(help="Find out what a judge's verdicts are worth.", no_args_is_help=True)


@app.callback()
def _judge() -> None:
    """One command so far; the group keeps its name."""


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
