"""What `rlhf-bench iterate` shows of a loop as it goes: each iteration with its verdict, and the end."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from rlhf_bench.cli import lookup, show, tables

if TYPE_CHECKING:
    from rlhf_bench.harness.store import Store
    from rlhf_bench.trainers.online import Iteration, LoopConfig


def print_iteration(done: Iteration, plan: LoopConfig, store: Store) -> None:
    """What one iteration trained on, how the candidate compares, and the verdict."""
    from rlhf_bench.cli.compared import Choice, Source, compared
    from rlhf_bench.cli.side_by_side import print_compared

    dropped = ", ".join(f"{count} {reason}" for reason, count in done.dropped.items())
    changed = ", ".join(f"{key} {value}" for key, value in done.changed.items())
    retry = f", retry {done.attempt} ({changed})" if done.attempt else ""
    show.say("")
    show.say(
        f"iteration {done.number} of {plan.iterations}{retry}: trained on {done.pairs} {_what(plan)}"
        + (f" ({dropped})" if dropped else "")
    )
    new, old = (Source(store, store.run(each.run_id)) for each in (done.candidate_report, done.champion_report))
    found = compared(old, [new], Choice())
    print_compared(found, f"candidate {new.run.model} against champion {old.run.model}")
    tables.verdict(done.verdict, done.verdict_id)


def _what(plan: LoopConfig) -> str:
    return "pairs" if plan.method == "dpo" else "best answers"


def print_end(done: list[Iteration], plan: LoopConfig, store: Store) -> None:
    """The lineage, who is champion, and where everything lies."""
    from rlhf_bench.harness.store import default_store_url

    champion = store.champion()
    assert champion is not None
    rows: list[tuple[str, str, str | None, str]] = [
        (lookup.name_of(done[0].champion, store), done[0].champion.digest, None, "start")
    ]
    for each in done:
        how = "DPO" if plan.method == "dpo" else "SFT"
        retry = f", retry {each.attempt}" if each.attempt else ""
        made = f"{how} on {each.pairs} {_what(plan)}, iteration {each.number}{retry}: {each.verdict.outcome}"
        rows.append((lookup.name_of(each.candidate, store), each.candidate.digest, each.candidate.parent, made))
    marked = [
        (f"{name} ★ champion" if digest == champion.checkpoint else name, digest, parent, made)
        for name, digest, parent, made in rows
    ]
    tables.lineage(marked)
    _note_of_judge(plan)
    show.say(f"answers, rewards, pairs and candidates: {Path(done[0].folder).parent}")
    show.say(f"records and verdicts: {show.redact(default_store_url())}")
    last = done[-1]
    show.say(f"next: rlhf-bench compare {last.champion_report.run_id} {last.candidate_report.run_id} --flips 5")


def _note_of_judge(plan: LoopConfig) -> None:
    """Say where the judge is what the policy was trained to please."""
    benchmarks = lookup.suite(plan.suite).benchmarks
    judged, others = ([each.name for each in benchmarks if each.judged is side] for side in (True, False))
    if plan.preferences is None and plan.judge == plan.reward and judged:
        show.say(f"note: {plan.judge} judges {', '.join(judged)} and is also the training reward: optimistic;")
        show.say(f"      what does not depend on it: {', '.join(others) or 'nothing'}")
