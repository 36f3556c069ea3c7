"""What a run would ask and cost, before anything is asked."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from rlhf_bench.cli import measuring, scorers
from rlhf_bench.harness.errors import RlhfBenchError

if TYPE_CHECKING:
    from rlhf_bench.harness.dry import DryEngine, Planned
    from rlhf_bench.harness.engines import Engine
    from rlhf_bench.harness.prices import Plan
    from rlhf_bench.harness.progress import Track
    from rlhf_bench.harness.store import Run, Store
    from rlhf_bench.harness.types import Completion, EvalProtocol, Request, Suite


@dataclass(frozen=True, slots=True)
class Judging:
    """What a judge is asked about one benchmark, all of it anew. `cost` None: `why` says why nothing is known."""

    benchmark: str
    judge: str
    cost: Plan | None
    why: str = ""


def planned(model: str, asked: measuring.Asked, store: Store, track: Track) -> Planned:
    """What `measuring.measure` would ask: the same run in a store of its own, with engines that only count."""
    from rlhf_bench.harness.dry import DryEngine
    from rlhf_bench.suites import data

    measuring.bounds(asked)
    chosen, regime = measuring.asked_of(asked)
    answering = DryEngine(measuring.engine_of(model, asked, store, track, keyless=True), store)
    data.fetch([need for each in chosen.benchmarks for need in each.needs], track)
    return _counted(chosen, regime, answering, asked, store)


def judging(run: Run, benchmarks: Sequence[str], store: Store) -> list[Judging]:
    """What judging a model that answers as that of `run` did would ask: its answers are taken from the store, and no
    judgment of them is. Nothing is fetched or loaded."""
    judged = [name for name in benchmarks if name in run.manifest.get("judged", ())]
    return [_judging(run, name, store) for name in judged]


def _judging(run: Run, name: str, store: Store) -> Judging:
    from rlhf_bench.harness.dry import DryEngine
    from rlhf_bench.harness.prices import Plan

    judge = run.judge or ""
    if not run.settings:
        return Judging(name, judge, None, f"run {run.id} was not made by `rlhf-bench run`")
    asked = replace(measuring.asked_before(run), suite=name)
    if not asked.judge_spec.startswith("openai:"):
        return Judging(name, judge, Plan(0, 0, 0, 0.0), "it is asked nothing that costs")
    before = _Before(run.model, str(run.manifest.get("engine_identity")), run.checkpoint)
    try:
        chosen, regime = measuring.asked_of(asked)
        found = _counted(chosen, regime, DryEngine(before, store), asked, store, afresh=True)
    except RlhfBenchError as error:
        return Judging(name, judge, None, str(error))
    return Judging(name, judge, found.judgments)


@dataclass(frozen=True, slots=True)
class _Before:
    """The engine of a run that is over: what it said is in the store, and it says no more."""

    name: str
    identity: str
    checkpoint: str
    manifest: dict[str, str] = field(default_factory=dict)

    def generate(self, requests: Sequence[Request]) -> Iterator[Completion]:
        from rlhf_bench.harness.types import Completion

        return (Completion(each.sample_id, each.index, "", "error", 0, why="this run is over") for each in requests)


def _counted(
    chosen: Suite,
    regime: EvalProtocol,
    answering: DryEngine,
    asked: measuring.Asked,
    store: Store,
    *,
    afresh: bool = False,
) -> Planned:
    """`afresh`: judgments that the store has are counted as if it had not."""
    from tempfile import TemporaryDirectory

    from rlhf_bench.harness.dry import DryEngine, Planned, only_counted
    from rlhf_bench.harness.progress import silent
    from rlhf_bench.harness.run import evaluate
    from rlhf_bench.harness.store import Store as Opened

    judges: list[DryEngine] = []
    judged = any(each.judged for each in chosen.benchmarks)
    counted = replace(chosen, benchmarks=tuple(map(only_counted, chosen.benchmarks)))
    with TemporaryDirectory() as folder, Opened(f"sqlite:///{folder}/dry.db") as own:

        def around(engine: Engine) -> Engine:
            judges.append(DryEngine(engine, own if afresh else store, fails=True))
            return judges[-1]

        # what a judge of this store has said is found by `around`, so the judge itself writes to the other one
        by = (
            scorers.judge(asked.judge_spec, own, silent, around=around, models=store, prompt=asked.judge_prompt)
            if judged
            else None
        )
        evaluate(counted, answering, protocol=regime, store=own, judge=by, limit=asked.limit)
        answers, judgments = answering.plan, judges[0].plan if judges else None
    costs = [each.usd for each in (answers, judgments) if each is not None and each.calls]
    return Planned(
        model=answering.name,
        judge=asked.judge_spec if judged else None,
        answers=answers,
        answers_known=answering.known,
        judgments=judgments,
        judgments_known=judges[0].known if judges else 0,
        usd=None if None in costs else sum(cost for cost in costs if cost is not None),
    )
