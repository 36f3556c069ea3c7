"""AlpacaEval 2: 805 open instructions, each answer judged against that of gpt4_1106_preview.

Paper: Dubois et al. 2024, "Length-Controlled AlpacaEval", arXiv 2404.04475.
Data: tatsu-lab/alpaca_eval@cd543a14, results/gpt4_1106_preview/model_outputs.json; CC-BY-NC-4.0, not for commerce.
Metric: win_rate, the mean of the judge's P(answer ≻ baseline); beside it the answer's length in characters and whether
it was cut at the length limit. By source (helpful_base, koala, oasst, selfinstruct, vicuna) as strata.
Differs: the judge is the one that the run names, not gpt-4-1106-preview, and a win rate by another judge is no
AlpacaEval score; answers are greedy and end after 1024 tokens, where each model of the leaderboard has settings of
its own; the win rate is not length-controlled.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from rlhf_bench.harness.errors import UserError
from rlhf_bench.harness.judges import Judge
from rlhf_bench.harness.types import Battle, Benchmark, EvalProtocol, Graded, Message, Request, Sample, Sampling, Score
from rlhf_bench.suites.data import rows

MAX_TOKENS = 1024
"""By SmolLM2's tokens, 2% of the baseline's answers are longer, and 0 to 9% of those of nine published models."""


def load(protocol: EvalProtocol) -> Sequence[Sample]:
    """The instructions in the official order, each one user turn, after the system prompt if there is one."""
    system = (Message("system", protocol.system_prompt),) if protocol.system_prompt else ()
    sampling = Sampling(max_tokens=MAX_TOKENS)
    return [
        Sample(
            id=f"alpaca_eval/{number}",
            requests=(Request(f"alpaca_eval/{number}", (*system, Message("user", row["instruction"])), sampling),),
            reference=row["output"],
            tags={"stratum": row["dataset"]},
            row=row,
        )
        for number, row in enumerate(rows("alpaca_eval/baseline"))
    ]


def grade(answered: Sequence[Graded], judge: Judge | None) -> Iterator[Score]:
    """The judge's preference for each answer over the baseline's. Raises UserError without a judge.

    The judge sees the question without the protocol's system prompt. Empty answers and those cut at the limit are
    judged as they are; one that the engine could not give is ungraded.
    """
    if judge is None:
        raise UserError("alpaca_eval compares answers, so it needs a judge: name one with --judge")
    answers = {}
    battles = []
    for sample, completions in answered:
        answer = next(iter(completions), None)
        if answer is None or answer.finish_reason == "error":
            yield Score(sample.id, None, (answer and answer.why) or "the engine gave no answer")
            continue
        answers[sample.id] = answer
        asked = tuple(turn for turn in sample.prompt if isinstance(turn, Message) and turn.role != "system")
        battles.append(Battle(sample.id, asked, answer.text, sample.reference))
    for score in judge.prefer(battles):
        answer = answers[score.sample_id]
        shape = {"length_chars": float(len(answer.text)), "truncated": float(answer.finish_reason == "length")}
        yield replace(score, also={**score.also, **shape})


BENCHMARK = Benchmark(
    name="alpaca_eval",
    version="2",
    metric="win_rate",
    kind="continuous",
    size=805,
    summary="open instructions, judged against the answers of gpt4_1106_preview",
    load=load,
    grade=grade,
    judged=True,
    needs=("alpaca_eval/baseline",),
)
