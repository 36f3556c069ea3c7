"""`rlhf-bench data filter`: the paper's filters of preference pairs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rlhf_bench.cli import lookup, options, show
from rlhf_bench.cli.data import Format, OnBadRow, Source, new_file
from rlhf_bench.harness.errors import UserError

if TYPE_CHECKING:
    from rlhf_bench.trainers.filters import Count, Filters


def filter_pairs(
    source: Source,
    out: Annotated[Path, typer.Argument(help="A new .jsonl, .json, .csv (.gz) or .parquet file, or a folder.")],
    min_margin: Annotated[float, typer.Option(min=0, help="The least margin, in the unit of the scores.")] = 0.0,
    score_ratio: Annotated[
        float | None, typer.Option(min=1, help="SHP: the ratio of scores that must be exceeded. The paper: 2.")
    ] = None,
    per_prompt: Annotated[
        int | None, typer.Option(min=1, help="The most pairs of a prompt, the first ones. The paper: 5 of SHP.")
    ] = None,
    max_prompt_tokens: Annotated[int | None, typer.Option(min=1, help="Of the prompt; needs --model.")] = None,
    max_answer_tokens: Annotated[int | None, typer.Option(min=1, help="Of either answer; needs --model.")] = None,
    max_tokens: Annotated[int | None, typer.Option(min=1, help="Of prompt and answer; needs --model.")] = None,
    model: Annotated[str | None, typer.Option("--model", "-m", help="Whose tokenizer counts.")] = None,
    form: Format = None,
    on_bad_row: OnBadRow = "fail",
    json: options.Json = False,
) -> None:
    """Write the preference pairs that can be learned from, and say how many were left out, by reason.

    Pairs of equal scores, pairs that are there twice and pairs that are ranked both ways always go.
    """
    from rlhf_bench.trainers.data import read_preferences, write
    from rlhf_bench.trainers.filters import Filters, apply

    new_file(out)
    filters = Filters(
        score_ratio=score_ratio,
        per_prompt=per_prompt,
        min_margin=min_margin,
        max_prompt_tokens=max_prompt_tokens,
        max_answer_tokens=max_answer_tokens,
        max_tokens=max_tokens,
    )
    count = _counter(filters, model)
    read = read_preferences(source, form=form, on_bad_row=on_bad_row)
    kept, dropped = apply(filters, read, count)
    left_out = {reason: number for reason, number in {**read.skipped, **dropped}.items() if number}
    if not kept:
        reasons = ", ".join(f"{number} {reason}" for reason, number in left_out.items())
        raise UserError(f"the filters leave none of the {len(read)} pairs of {source}: {reasons}")
    write(kept, out)
    if json:
        show.as_json({"out": str(out), "read": len(read), "written": len(kept), "left_out": left_out})
        return
    show.say(f"{out}: {len(kept)} of {len(read)} pairs")
    for reason, number in left_out.items():
        show.say(f"left out: {number} × {reason}")
    if score_ratio is not None and not any("score_ratio" in pair.tags for pair in read):
        show.say(f"note: --score-ratio had nothing to go by: none of the {len(read)} pairs has a ratio, as SHP's have")


def _counter(filters: Filters, model: str | None) -> Count:
    """Counts tokens by the tokenizer of the model; without a limit in tokens nothing is counted."""
    if all(limit is None for limit in filters.limits):
        if model is not None:
            raise UserError(f"--model {model} counts tokens, and no limit in tokens is set: set one, or leave it out")
        return len
    if model is None:
        raise UserError("a limit in tokens needs --model, whose tokenizer counts them")
    from rlhf_bench.harness.models import resolve
    from rlhf_bench.trainers.chat import tokenizer_at
    from rlhf_bench.trainers.filters import token_count

    with lookup.open_store() as store:
        return token_count(tokenizer_at(Path(resolve(model, store, show.bars()).path)))
