"""A small online loop in a process of its own, which can be told to kill itself: used by test_loop.py.

    python loop_driver.py HOME MODEL REWARD [LABEL COUNT]

With LABEL and COUNT the process sends itself SIGKILL when the progress of a stage whose label contains LABEL has
advanced COUNT times; "promote:before" and "promote:after" kill around the champion's move, "asked" when a policy or the
reward model is asked anything. Prints the result as JSON.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rlhf_bench.harness.checkpoint import checkpoint_digest
from rlhf_bench.harness.engines.hf import HFEngine
from rlhf_bench.harness.judges.reward import RewardModel
from rlhf_bench.harness.models import open_engine
from rlhf_bench.harness.policy import Guard, Policy, Target
from rlhf_bench.harness.run import evaluate
from rlhf_bench.harness.store import Store
from rlhf_bench.harness.types import (
    Benchmark,
    Checkpoint,
    EvalProtocol,
    Graded,
    Message,
    Report,
    Request,
    Sample,
    Sampling,
    Score,
    Suite,
)
from rlhf_bench.trainers.online import AnswersConfig, Line, LoopConfig, iterate, loop, reward_scoring
from rlhf_bench.trainers.recipes import DPORecipe

WORDS = ("sea", "train", "gas", "poem", "capital", "plant", "blue", "wide", "fast", "hour", "mile", "short")


def samples(count: int, max_tokens: int) -> list[Sample]:
    made = []
    for i in range(count):
        name = f"{WORDS[i % len(WORDS)]}-{i}"
        request = Request(name, (Message("user", f"Tell me about the {name}."),), Sampling(max_tokens=max_tokens))
        made.append(Sample(name, (request,), "reference"))
    return made


def short_answers(answered: Sequence[Graded], judge: Any) -> Iterator[Score]:
    """Binary: does the answer stop within its tokens?"""
    for sample, completions in answered:
        yield Score(sample.id, float(completions[0].finish_reason == "stop"))


def many_vowels(answered: Sequence[Graded], judge: Any) -> Iterator[Score]:
    """Continuous: the share of vowels in the answer."""
    for sample, completions in answered:
        text = completions[0].text
        yield Score(sample.id, sum(letter in "aeiou" for letter in text) / max(1, len(text)))


SUITE = Suite(
    "small",
    (
        Benchmark("short", "1", "acc", "binary", 40, "", lambda protocol: samples(40, 24), short_answers),
        Benchmark("vowels", "1", "share", "continuous", 20, "", lambda protocol: samples(20, 16), many_vowels),
    ),
)
POLICY = Policy(
    name="small",
    targets=(Target(benchmark="vowels", metric="share"),),
    guards=(Guard(benchmark="short", metric="acc", margin=0.3),),
)
CONFIG = LoopConfig(
    name="small",
    model="start",
    backend="torch",
    iterations=2,
    prompts_per_iteration=4,
    answers=AnswersConfig(n=4, max_tokens=60),
    dpo=DPORecipe(
        epochs=2, batch_size=2, micro_batch=1, learning_rate=1e-2, dtype="float32", save_every=1, max_length=512, seed=3
    ),
)


def watched(answer: Callable[..., Any], strike: Callable[[], None] | None) -> Callable[..., Any]:
    def call(self: Any, asked: Sequence[Any]) -> Any:
        if asked and strike is not None:
            strike()
        return answer(self, asked)

    return call


def main(home: Path, model: Path, reward: Path, kill: tuple[str, int] | None) -> None:
    count = 0

    def strike() -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    @contextmanager
    def track(label: str, total: int) -> Iterator[Callable[[int], None]]:
        nonlocal count
        print(label, total, file=sys.stderr, flush=True)

        def advance(steps: int) -> None:
            nonlocal count
            if kill is not None and kill[0] in label and steps:
                count += 1
                if count >= kill[1]:
                    strike()

        yield advance

    for model_class, method in ((HFEngine, "generate"), (RewardModel, "rewards")):
        setattr(
            model_class, method, watched(getattr(model_class, method), strike if kill and kill[0] == "asked" else None)
        )
    promote = loop.promote

    def promoted(store: Store, verdict_id: int) -> Any:
        if kill is not None and kill[0] == "promote:before":
            strike()
        result = promote(store, verdict_id)
        if kill is not None and kill[0] == "promote:after":
            strike()
        return result

    loop.promote = promoted
    with Store(f"sqlite:///{home}/store.db") as store:
        store.register(Checkpoint(str(model), checkpoint_digest(model)), alias="start")

        def measure(checkpoint: Checkpoint) -> Report:
            engine = open_engine(checkpoint.path, store, track=track)
            return evaluate(SUITE, engine, protocol=EvalProtocol("test"), store=store, track=track)

        found = [
            {
                "pairs": iteration.pairs,
                "dropped": dict(iteration.dropped),
                "champion": iteration.champion.digest,
                "candidate": iteration.candidate.digest,
                "verdict": json.loads(json.dumps(iteration.verdict.reasons)),
                "outcome": iteration.verdict.outcome,
                "runs": [iteration.champion_report.run_id, iteration.candidate_report.run_id],
            }
            for iteration in iterate(
                Line(
                    CONFIG,
                    store,
                    POLICY,
                    scoring=lambda: reward_scoring(Checkpoint(str(reward), checkpoint_digest(reward)), "reward"),
                    measure=measure,
                    home=home,
                    prompts=samples(8, 8),
                    track=track,
                )
            )
        ]
        champion = store.champion()
        assert champion is not None
        answers = {
            run: [
                (r.benchmark, r.sample.id, [c.text for c in r.completions], r.score.value) for r in store.records(run)
            ]
            for one in found
            for run in one["runs"]
        }
        history = [(each.checkpoint, each.generation) for each in store.history()]
        print(
            json.dumps({"iterations": found, "champion": champion.checkpoint, "history": history, "answers": answers})
        )


if __name__ == "__main__":
    given = sys.argv[4:]
    main(*(Path(part) for part in sys.argv[1:4]), (given[0], int(given[1])) if given else None)
