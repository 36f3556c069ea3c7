"""Engines and judges of the tests of judged benchmarks: whole, small, and without a model."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import ClassVar

from rlhf_bench.harness.codec import digest
from rlhf_bench.harness.judges.llm import LLMJudge, PairPrompt
from rlhf_bench.harness.store import Store
from rlhf_bench.harness.types import Completion, Message, Request, Sampling

PAIR = PairPrompt("p", (Message("user", "{instruction}{output_1}{output_2}"),), Sampling(1, logprobs=5), "m", "M")


class Talks:
    """Says to each request what `rule` says (None: it fails), and remembers what it was asked; stops after `most`."""

    checkpoint = "talks"
    manifest: ClassVar[dict[str, str]] = {"engine": "talks", "cost_usd": "0.25"}

    def __init__(self, rule: Callable[[Request], str | None], most: int | None = None) -> None:
        self.name = "talks"
        self.identity = digest("talks")
        self.rule = rule
        self.most = most
        self.asked: list[Request] = []

    def generate(self, requests: Sequence[Request]) -> Iterator[Completion]:
        for request in reversed(requests):
            if self.most is not None and len(self.asked) >= self.most:
                raise KeyboardInterrupt
            self.asked.append(request)
            text = self.rule(request)
            place = request.sample_id, request.index
            if text is None:
                yield Completion(*place, "", "error", 0, why="out of memory")
            else:
                yield Completion(*place, text, "stop", len(text.split()))


def judge(engine: Talks, store: Store) -> LLMJudge:
    """A judge that can be asked."""
    return LLMJudge(engine, store, PAIR)


def told(request: Request) -> str:
    """What the last message says."""
    assert not isinstance(request.prompt, str)
    return request.prompt[-1].content
