"""What an evaluation would ask, before anything is asked: the evaluation itself, with engines that only count."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from rlhf_bench.harness.codec import digest, request_key
from rlhf_bench.harness.engines import Engine
from rlhf_bench.harness.prices import CHARS_PER_TOKEN, Plan, Price, plan
from rlhf_bench.harness.store import Store
from rlhf_bench.harness.types import Battle, Benchmark, Completion, Graded, Request, Score

FREE = Price(0.0, 0.0, 0.0)
WHY = "a dry run asks nothing"


@dataclass(frozen=True, slots=True)
class Planned:
    """What a run would ask that is not answered yet. `known` counts what is there and will not be asked again.

    `judgments` is of a judge that is a language model, else None. Where `answers` are still to be given, what the judge
    reads is estimated with answers as long as they may get. `usd` is None where a price is unknown.
    """

    model: str
    judge: str | None
    answers: Plan
    answers_known: int
    judgments: Plan | None
    judgments_known: int
    usd: float | None


class DryEngine:
    """Stands for `engine`: gives what `store` has of its answers, and counts what it would have to be asked.

    An answer that is not there is as long as it may get, or with `fails` an error, which is what a judge's is: it is
    not asked for again. The evaluation around it writes to a store of its own.
    """

    def __init__(self, engine: Engine, store: Store, *, fails: bool = False) -> None:
        self.name, self.identity, self.checkpoint = engine.name, engine.identity, engine.checkpoint
        self.manifest = engine.manifest
        self.known = 0
        self.asked: list[Request] = []
        self._price: Price | None = getattr(engine, "price", FREE)
        self._store = store
        self._fails = fails

    @property
    def plan(self) -> Plan:
        """What was counted so far; a local engine costs nothing."""
        return plan(self.asked, self._price)

    def generate(self, requests: Sequence[Request]) -> Iterator[Completion]:
        """One completion for each request, in order."""
        keys = [request_key(self.identity, request) for request in requests]
        stored = self._store.completions(keys)
        for request, key in zip(requests, keys, strict=True):
            if key in stored:
                self.known += 1
                yield stored[key]
            else:
                self.asked.append(request)
                yield self._stand_in(request)

    def _stand_in(self, request: Request) -> Completion:
        place, most = (request.sample_id, request.index), request.sampling.max_tokens
        if self._fails:
            return Completion(*place, "", "error", 0, why=WHY)
        if request.continuation is not None:
            return Completion(*place, request.continuation, "stop", 1, logprob=0.0, greedy=False)
        return Completion(*place, "x" * (most * CHARS_PER_TOKEN), "length", most)


class DryJudge:
    """Stands for a judge that costs nothing and is not loaded: it has no verdict."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.identity = digest(["dry", name])

    def prefer(self, battles: Sequence[Battle]) -> Iterator[Score]:
        """No preference, of each battle."""
        return (Score(battle.sample_id, None, WHY) for battle in battles)


def only_counted(benchmark: Benchmark) -> Benchmark:
    """The benchmark, graded only where that asks a judge: no made-up answer is worth grading, and none is run."""

    def ungraded(answered: Sequence[Graded], judge: object) -> Iterator[Score]:
        return (Score(sample.id, None, WHY) for sample, _ in answered)

    return benchmark if benchmark.judged else replace(benchmark, grade=ungraded)
