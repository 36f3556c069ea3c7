"""What a run would ask and cost, before anything is asked."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from rlhf_bench.cli import wiring

if TYPE_CHECKING:
    from rlhf_bench.harness.dry import Planned
    from rlhf_bench.harness.engines import Engine
    from rlhf_bench.harness.progress import Track
    from rlhf_bench.harness.store import Store


def planned(model: str, asked: wiring.Asked, store: Store, track: Track) -> Planned:
    """What `wiring.measure` would ask: the same run in a store of its own, with engines that only count."""
    from tempfile import TemporaryDirectory

    from rlhf_bench.harness.dry import DryEngine, Planned, only_counted
    from rlhf_bench.harness.progress import silent
    from rlhf_bench.harness.run import evaluate
    from rlhf_bench.harness.store import Store as Opened
    from rlhf_bench.suites import data

    wiring.bounds(asked)
    chosen, regime = wiring.asked_of(asked)
    answering = DryEngine(wiring.engine_of(model, asked, store, track, keyless=True), store)
    data.fetch([need for each in chosen.benchmarks for need in each.needs], track)
    judging: list[DryEngine] = []

    def around(engine: Engine) -> Engine:
        judging.append(DryEngine(engine, store, fails=True))
        return judging[-1]

    judged = any(each.judged for each in chosen.benchmarks)
    counted = replace(chosen, benchmarks=tuple(map(only_counted, chosen.benchmarks)))
    with TemporaryDirectory() as folder, Opened(f"sqlite:///{folder}/dry.db") as own:
        # what a judge of this store has said is found by `around`, so the judge itself writes to the other one
        by = (
            wiring.judge(asked.judge_spec, own, silent, around=around, models=store, prompt=asked.judge_prompt)
            if judged
            else None
        )
        evaluate(counted, answering, protocol=regime, store=own, judge=by, limit=asked.limit)
    answers, judgments = answering.plan, judging[0].plan if judging else None
    costs = [each.usd for each in (answers, judgments) if each is not None and each.calls]
    return Planned(
        model=answering.name,
        judge=asked.judge_spec if judged else None,
        answers=answers,
        answers_known=answering.known,
        judgments=judgments,
        judgments_known=judging[0].known if judging else 0,
        usd=None if None in costs else sum(cost for cost in costs if cost is not None),
    )
