"""`rlhf-bench parity`: do two engines give one model the same answers?"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rlhf_bench.cli import lookup, measuring, options, show
from rlhf_bench.harness.errors import UserError

if TYPE_CHECKING:
    from rlhf_bench.harness.parity import Equivalence, Parity


def parity(
    one: Annotated[str, typer.Argument(metavar="ENGINE", help="hf, vllm, or with a dtype: hf:bfloat16.")],
    other: Annotated[str, typer.Argument(metavar="ENGINE", help="The other one.")],
    model: Annotated[
        str | None,
        typer.Option("--model", "-m", help="Whose answers: alias, folder or hf:org/name.", show_default="the champion"),
    ] = None,
    suite: Annotated[
        str, typer.Option("--suite", "-s", help="Suites or benchmarks.", autocompletion=options.suites)
    ] = lookup.DEMO,
    limit: options.Limit = None,
    judge: Annotated[str, typer.Option(help="Who judges chat answers, as for `run`.")] = lookup.DEMO_JUDGE,
    protocol: Annotated[str, typer.Option(help="paper or lm-eval.", autocompletion=options.protocols)] = "paper",
    margin: Annotated[
        float, typer.Option(help="The difference in score that would matter, a fraction: 0.02 is two points.")
    ] = 0.02,
    alpha: Annotated[float, typer.Option(help="The chance to call engines equivalent that are not.")] = 0.05,
    dtype: Annotated[str, typer.Option(help="Of an engine that names none.")] = "auto",
    device: options.Device = "auto",
    json: options.Json = False,
) -> None:
    """Run one model by two engines and compare: texts, log-likelihoods, and scores by an equivalence test.

    The record is kept for the gate, which warns (or, by a policy with `engines: refuse`, refuses) where candidate and
    champion were answered by engines that no record shows to agree. Exit code 0 where they are equivalent within the
    margin, 3 where that is not shown.
    """
    from rlhf_bench.harness.parity import measure, require_margin, save

    require_margin(margin, alpha)
    with lookup.open_store() as store:
        model = lookup.default_model(store) if model is None else model
        if model.startswith(("scripted:", "openai:", "outputs:")):
            raise UserError(f"'{model}' is no local model: two engines need the weights of one")
        ways = [
            measuring.Asked(
                suite, protocol=protocol, judge_spec=lookup.lasting(judge), limit=limit,
                engine=engine, dtype=dtype, device=device,
            )
            for engine in (one, other)
        ]  # fmt: skip
        engines = [measuring.engine_of(model, each, store, show.bars()) for each in ways]
        if engines[0].identity == engines[1].identity:
            raise UserError(f"'{one}' and '{other}' are the same engine here: name two, such as hf and vllm")
        first, second = (measuring.measure(model, each, store, show.bars()) for each in ways)
        ours, theirs = (store.records(each.run_id) for each in (first, second))
    found = measure(first, second, ours, theirs, margin=margin, alpha=alpha)
    path = save(found)
    if json:
        show.as_json({**_plain(found), "record": str(path)})
    else:
        _print(found, path)
    raise typer.Exit(0 if found.equivalent else 3)


def _plain(found: Parity) -> dict[str, object]:
    from rlhf_bench.harness.codec import plain

    return {**plain(found), "equivalent": found.equivalent}


def _print(found: Parity, path: Path) -> None:
    one, other = found.engines
    show.say(f"{found.model} on {found.suite}: {one} (run {found.runs[0]}) and {other} (run {found.runs[1]})")
    if (texts := found.texts) is not None:
        show.say(
            f"texts: {texts.equal} of {texts.answers} equal ({show.interval(texts.low, texts.high)}), "
            f"{texts.finish} ended for the same reason"
        )
        if texts.middle is not None:
            show.say(
                f"  the others part at character {texts.first} ('{texts.example}') or later, half of them by "
                f"{texts.middle:g}"
            )
    if (scored := found.logprobs) is not None:
        show.say(
            f"log-likelihoods: {scored.continuations} compared, differences at most {scored.largest:.2g} nats, "
            f"{scored.mean:.2g} on average; {scored.greedy} equal in whether greedy decoding agrees"
        )
    show.table(
        f"scores, {one} minus {other}, margin {found.margin:g}",
        ("benchmark", "metric", "pairs", "ungraded", "difference", "bounds", "p", "outcome"),
        [
            (
                each.benchmark, each.metric, each.pairs, each.ungraded, show.number(each.difference, signed=True),
                show.interval(each.low, each.high, signed=True), show.chance(each.p), _outcome(each),
            )
            for each in found.scores
        ],
        right=("pairs", "ungraded", "difference", "p"),
        whole=("bounds",),
    )  # fmt: skip
    verdict = "equivalent" if found.equivalent else "not shown to be equivalent"
    show.say(f"{verdict} within {100 * found.margin:g} points (two one-sided tests at {found.alpha:g})")
    show.say(f"record: {path}")


def _outcome(each: Equivalence) -> str:
    if each.equivalent:
        return "equivalent"
    if each.apart:
        return "apart"
    return "not shown" if each.more is None else f"not shown; about {each.more} more samples"
