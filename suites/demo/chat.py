"""Demo chat: 40 instructions in five categories, each answer judged against a reference answer.

Paper: none; the form and the metric are AlpacaEval's (arXiv 2404.04475).
Data: data/chat.jsonl, written by this project; Apache-2.0.
Metric: win_rate, the mean of the judge's P(answer ≻ reference); by category as strata.
Differs: from AlpacaEval in its prompts, which ask for brief answers, in the baseline (references of 40 to 90 words) and
in answers of at most 128 tokens.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rlhf_bench.harness.errors import UserError
from rlhf_bench.harness.judges import Judge
from rlhf_bench.harness.types import Benchmark, EvalProtocol, Graded, Sample, Score
from rlhf_bench.suites import alpaca_eval
from rlhf_bench.suites.demo import instructions


def load(protocol: EvalProtocol) -> Sequence[Sample]:
    """The instructions in order, after the protocol's system prompt."""
    return instructions("chat", "demo-chat", protocol.system_prompt)


def grade(answered: Sequence[Graded], judge: Judge | None) -> Iterator[Score]:
    """As AlpacaEval: the judge's preference for each answer over the reference. Raises UserError without a judge."""
    if judge is None:
        raise UserError("demo-chat compares answers, so it needs a judge: name one with --judge")
    yield from alpaca_eval.grade(answered, judge)


BENCHMARK = Benchmark(
    name="demo-chat",
    version="1",
    metric="win_rate",
    kind="continuous",
    size=40,
    summary="packaged instructions, judged against reference answers",
    load=load,
    grade=grade,
    judged=True,
)
