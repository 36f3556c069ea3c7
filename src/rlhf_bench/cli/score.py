"""`rlhf-bench score`: scores of files that other tools wrote, with no model, no judge and no key."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rlhf_bench.cli import options, show

if TYPE_CHECKING:
    from rlhf_bench.suites.judged import Scored

COUNTS = ("n_", "prompts")


def _benchmarks(incomplete: str) -> list[str]:
    from rlhf_bench.suites.judged import SCORERS

    return [name for name in SCORERS if name.startswith(incomplete)]


def score(
    benchmark: Annotated[
        str,
        typer.Argument(
            help="alpaca_eval, arena_hard, mt_bench, humaneval, mbpp, gsm8k, mmlu, … or lm_eval.",
            autocompletion=_benchmarks,
        ),
    ],
    files: Annotated[
        list[Path], typer.Argument(help="Judgments or samples, as JSON, JSON lines or CSV, gzipped or not.")
    ],
    model: Annotated[str | None, typer.Option("--model", help="Only this model.")] = None,
    judge: Annotated[str | None, typer.Option("--judge", help="Only this judge's verdicts.")] = None,
    baseline: Annotated[str | None, typer.Option("--baseline", help="Only comparisons with this baseline.")] = None,
    version: Annotated[
        str | None, typer.Option("--version", help="Arena-Hard: v0.1 or v2.0, where the file does not tell.")
    ] = None,
    answers: Annotated[
        list[Path] | None, typer.Option("--answers", help="Arena-Hard: answer files with metadata, for style control.")
    ] = None,
    official_row_order: Annotated[
        bool, typer.Option("--official-row-order", help="AlpacaEval: join rows by their place, as the official code.")
    ] = False,
    json: options.Json = False,
) -> None:
    """Score files that other tools wrote: true intervals, and the official figures beside them."""
    from rlhf_bench.harness.errors import UnknownName
    from rlhf_bench.suites.judged import Choice
    from rlhf_bench.suites.judged import score as score_files

    if version not in (None, "v0.1", "v2.0"):
        raise UnknownName("Arena-Hard version", version, ("v0.1", "v2.0"))
    choice = Choice(model, judge, baseline, version, official_row_order, tuple(answers or ()))
    found = score_files(benchmark, files, choice)
    if json:
        show.as_json(found)
    else:
        for each in found:
            _print(each)


def _print(found: Scored) -> None:
    """A model's figures, then who judged, and what there is to say."""
    rows = [
        (name, _figure(name, each.value), _interval(each.low, each.high), "" if each.se is None else f"{each.se:.3f}")
        for name, each in found.metrics.items()
    ]
    show.table(
        f"{found.benchmark}: {found.model}",
        ("metric", "value", "95% interval", "SE"),
        rows,
        right=("value", "SE"),
        whole=("95% interval",),
    )
    from rlhf_bench.suites.judged import JUDGED

    judged = f"judge {found.judge}" if found.judge else "judge not named in the file"
    against = f", against {found.baseline}" if found.baseline else ""
    by = f"{judged}{against}; " if found.benchmark in JUDGED else ""
    show.say(f"{by}{found.graded} graded, {found.ungraded} ungraded")
    for note in found.notes:
        show.say(f"note: {note}")


def _figure(name: str, value: float | None) -> str:
    return f"{value:.0f}" if value is not None and name.startswith(COUNTS) else show.number(value)


def _interval(low: float | None, high: float | None) -> str:
    return show.interval(low, high)
