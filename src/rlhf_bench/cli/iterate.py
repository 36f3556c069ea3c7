"""`rlhf-bench iterate`: the online loop of the paper, gated."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rlhf_bench.cli import options, show, tables, wiring
from rlhf_bench.harness.errors import UnknownName

if TYPE_CHECKING:
    from rlhf_bench.harness.policy import Policy
    from rlhf_bench.harness.store import Store
    from rlhf_bench.harness.types import Checkpoint, Report, Suite
    from rlhf_bench.trainers.loop import Iteration, LoopConfig


def iterate(
    config: Annotated[Path, typer.Argument(help="The loop's YAML; examples/demo.yaml is one.")],
    set_: Annotated[list[str] | None, typer.Option("--set", help="key=value over the config; repeatable.")] = None,
    json: options.Json = False,
) -> None:
    """Answer, rank, train, evaluate and gate, iteration by iteration; only a promote verdict moves the champion.

    Killed or interrupted anywhere, the same command goes on; finished, it prints the result again.
    """
    from rlhf_bench import suites
    from rlhf_bench.harness.config import read_config
    from rlhf_bench.harness.store import home
    from rlhf_bench.trainers import loop

    plan = read_config(loop.LoopConfig, config, set_ or [])
    asked = wiring.Asked(plan.suite, protocol=plan.protocol, judge_spec=plan.judge, limit=plan.limit)
    chosen, track = wiring.suite(plan.suite), show.bars()
    suites.protocol(plan.protocol)
    policy = wiring.policy(plan.policy, beside=config)
    _require_asked(policy, chosen)
    with wiring.open_store() as store:
        if plan.judge != wiring.DEMO_JUDGE and any(each.judged for each in chosen.benchmarks):
            wiring.judge(plan.judge, store, track)  # a name that is wrong is found before any long work

        def measure(checkpoint: Checkpoint) -> Report:
            return wiring.measure(wiring.name_of(checkpoint, store), asked, store, track)

        done = []
        for iteration in loop.iterate(
            plan,
            store=store,
            prompts=wiring.prompts(plan.prompts, beside=config),
            reward=lambda: wiring.reward_checkpoint(plan.reward, store, track),
            measure=measure,
            policy=policy,
            home=home(),
            track=track,
            figures=suites.figures(each.name for each in chosen.benchmarks),
        ):
            done.append(iteration)
            if not json:
                _print_iteration(iteration, plan, store)
        if json:
            show.as_json([_plain(each) for each in done])
        else:
            _print_end(done, plan, store)


def _require_asked(policy: Policy, suite: Suite) -> None:
    """Raise UnknownName for the first rule of the policy about a benchmark that the suite does not ask."""
    names = [each.name for each in suite.benchmarks]
    for name in policy.benchmarks:
        if name not in names:
            raise UnknownName(f"benchmark in suite '{suite.name}'", name, names, f"Policy '{policy.name}' asks for it.")


def _print_iteration(done: Iteration, plan: LoopConfig, store: Store) -> None:
    """What one iteration trained on, how the candidate compares, and the verdict."""
    from rlhf_bench.cli.compared import Choice, Source, compared
    from rlhf_bench.cli.side_by_side import print_compared

    dropped = ", ".join(f"{count} {reason}" for reason, count in done.dropped.items())
    show.say("")
    show.say(
        f"iteration {done.number} of {plan.iterations}: trained on {done.pairs} pairs"
        + (f" ({dropped})" if dropped else "")
    )
    new, old = (Source(store, store.run(each.run_id)) for each in (done.candidate_report, done.champion_report))
    found = compared(old, [new], Choice())
    print_compared(found, f"candidate {new.run.model} against champion {old.run.model}")
    tables.verdict(done.verdict, done.verdict_id)


def _print_end(done: list[Iteration], plan: LoopConfig, store: Store) -> None:
    """The lineage, who is champion, and where everything lies."""
    from rlhf_bench.harness.store import default_store_url

    champion = store.champion()
    assert champion is not None
    rows: list[tuple[str, str, str | None, str]] = [
        (wiring.name_of(done[0].champion, store), done[0].champion.digest, None, "start")
    ]
    for each in done:
        made = f"DPO on {each.pairs} pairs, iteration {each.number}: {each.verdict.outcome}"
        rows.append((wiring.name_of(each.candidate, store), each.candidate.digest, each.candidate.parent, made))
    marked = [
        (f"{name} ★ champion" if digest == champion.checkpoint else name, digest, parent, made)
        for name, digest, parent, made in rows
    ]
    tables.lineage(marked)
    if plan.judge == plan.reward:
        show.say(
            f"note: {plan.judge} judges the chat and is also the training reward, so the chat rows read optimistic;"
        )
        show.say("      the guards (arithmetic, four-way, code) do not depend on it")
    show.say(f"answers, rewards, pairs and candidates: {Path(done[0].folder).parent}")
    show.say(f"records and verdicts: {show.redact(default_store_url())}")
    last = done[-1]
    show.say(f"next: rlhf-bench compare {last.champion_report.run_id} {last.candidate_report.run_id} --flips 5")


def _plain(done: Iteration) -> dict[str, Any]:
    from rlhf_bench.harness.codec import plain

    row: dict[str, Any] = plain(done)
    return row
