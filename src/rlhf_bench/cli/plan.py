"""`rlhf-bench plan`: what a gate could decide, before anything is spent."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rlhf_bench.cli import dry, gating, lookup, options, power, show

if TYPE_CHECKING:
    from rlhf_bench.harness.claims import RunData
    from rlhf_bench.harness.policy import Policy
    from rlhf_bench.harness.store import Run, Store


def plan(
    policy: Annotated[str | None, options.policy("the packaged one about the run's benchmarks")] = None,
    against: Annotated[
        str, typer.Option(help="The run that candidates will be compared with: id, champion, or a model's alias.")
    ] = "champion",
    twin: Annotated[
        str | None,
        typer.Option(
            help="A second run of the same checkpoint, with another --sample-seed: it shows the chance in its answers.",
            show_default="one of the store, if there is one",
        ),
    ] = None,
    wished: Annotated[float, typer.Option("--power", help="The wished chance to decide rightly.")] = 0.8,
    gain: Annotated[float, typer.Option(help="The true gain to plan for, a fraction: 0.03 is 3 points.")] = 0.03,
    plot: Annotated[
        Path | None, typer.Option(help="Draw power against the true difference into this file (.svg, .png, .pdf).")
    ] = None,
    json: options.Json = False,
) -> None:
    """What a policy can decide about a candidate that is asked as this run was: power, and what more would take.

    For each target and guard the smallest difference that would be seen, the chance to pass, and the samples or answers
    that the wished power needs; for all guards the chance to pass together; for judges of an API what they cost.
    """
    from rlhf_bench.harness.plan import plan as planned

    with lookup.open_store() as store:
        run = lookup.find_run(store, against, whole=True)
        rules = gating.default_policy(run) if policy is None else gating.policy(policy)
        data = gating.run_data(store, run.id)
        found = planned(
            rules, data, _twin(store, data, twin, rules, run), power=wished, gain=gain, sizes=_sizes(rules.benchmarks)
        )
        judging = dry.judging(run, rules.benchmarks, store)
    if plot is not None:
        power.plot(found, plot)
    sentences = list(power.says(found, rules, judging))
    if json:
        return show.as_json({"plan": found, "judging": judging, "says": sentences})
    power.table(found)
    if plot is None:
        power.curves(found)
    for sentence in sentences:
        show.say(f"- {sentence}")
    if plot is not None:
        show.say(f"power by the true difference: {plot}")


def _twin(store: Store, data: RunData, name: str | None, rules: Policy, run: Run) -> RunData | None:
    """The run that is named as twin, or the first of the store that is one. Raises UserError for one that is none."""
    from rlhf_bench.harness.spread import find_twin, require_twin

    def load(run_id: str) -> RunData:
        return gating.run_data(store, run_id)

    if name is None:
        return find_twin(data, store.runs(), rules.benchmarks, load)
    found = load(store.run(name).id)
    require_twin(data, found, rules.benchmarks)
    return found


def _sizes(benchmarks: list[str]) -> dict[str, int]:
    """How many samples each of these benchmarks has, of those that are listed."""
    from rlhf_bench.suites import BENCHMARKS

    return {name: BENCHMARKS[name].size for name in benchmarks if name in BENCHMARKS}
