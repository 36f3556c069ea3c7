"""MT-Bench: 80 questions of two turns in eight categories, each answer rated from 1 to 10 by a language model.

Paper: Zheng et al. 2023, "Judging LLM-as-a-Judge with MT-Bench and Chatbot Arena", arXiv 2306.05685.
Data: lm-sys/FastChat@0e6d3e4b, llm_judge/data: questions, judge prompts, gpt-4's reference answers; Apache-2.0.
Metric: score, a tenth of the mean of a question's two ratings, so that it lies from 0 to 1 as all scores here; turn_1
and turn_2 beside it, and "rating", the same mean on the scale from 1 to 10. By category as strata.
Differs: the judge is the one that the run names, not gpt-4; a rating above 10 is none; a reply without a rating is
asked for again at most twice, and a question without one for each turn is ungraded, where the official mean takes the
other turn alone. Intervals are over questions, whose turns hang together.

As in FastChat (llm_judge): temperatures by category, answers of at most 1024 tokens; the judge greedy, 2048 tokens, and
shown a reference for reasoning, math and coding; prompts are compared with published ones in the tests.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from rlhf_bench.harness.errors import UserError
from rlhf_bench.harness.judges import Asks, Judge
from rlhf_bench.harness.judges.llm import ask_each, fill
from rlhf_bench.harness.judges.readers import rating, reader
from rlhf_bench.harness.types import (
    Benchmark,
    Completion,
    Estimate,
    EvalProtocol,
    Graded,
    Message,
    Prompt,
    Record,
    Request,
    Sample,
    Sampling,
    Score,
)
from rlhf_bench.suites.data import rows
from rlhf_bench.suites.estimates import clusters_of, summary

TURNS = 2
TOP = 10.0
MAX_TOKENS = 1024
TEMPERATURES: Mapping[str, float] = {"writing": 0.7, "roleplay": 0.7, "stem": 0.1, "humanities": 0.1}
"""By category; the others are decoded greedily (FastChat, llm_judge/common.py)."""
REFERENCED = ("math", "reasoning", "coding")
"""The categories whose judge is shown a reference answer."""
JUDGED = Sampling(max_tokens=2048, temperature=0.0)


def load(protocol: EvalProtocol) -> Sequence[Sample]:
    """The questions in the official order, the first turn asked after the system prompt if there is one."""
    system = (Message("system", protocol.system_prompt),) if protocol.system_prompt else ()
    references = {row["question_id"]: row["choices"][0]["turns"] for row in rows("mt_bench/references")}
    samples = []
    for row in rows("mt_bench/questions"):
        name, category = f"mt_bench/{row['question_id']}", row["category"]
        told = references[row["question_id"]] if category in REFERENCED else []
        sampling = Sampling(max_tokens=MAX_TOKENS, temperature=TEMPERATURES.get(category, 0.0))
        first = Request(name, (*system, Message("user", row["turns"][0])), sampling)
        tags = {"stratum": category}
        samples.append(Sample(name, (first,), "\n\n".join(told), tags, {**row, "reference_answers": told}))
    return samples


def follow(sample: Sample, completions: tuple[Completion, ...]) -> tuple[Request, ...]:
    """The second turn, after the answer to the first."""
    if len(completions) >= TURNS:
        return ()
    said = (Message("assistant", completions[0].text), Message("user", sample.row["turns"][1]))
    return (replace(sample.requests[0], prompt=(*sample.prompt, *said), index=1),)


def grade(answered: Sequence[Graded], judge: Judge | None) -> Iterator[Score]:
    """The judge's rating of each turn. Raises UserError without a judge that can be asked.

    Empty answers and those cut at the limit are rated as they are; a question with a turn that the engine could not
    answer, or that the judge did not rate, is ungraded.
    """
    if not isinstance(judge, Asks):
        raise UserError("mt_bench needs a language model as judge: name one with --judge openai:MODEL or llm:MODEL")
    asked = {}
    for sample, completions in answered:
        missing = next((c.why or "the engine failed" for c in completions if c.finish_reason == "error"), None)
        if missing is not None or len(completions) != TURNS:
            yield Score(sample.id, None, missing or f"{len(completions)} answers, where two turns are asked")
        else:
            asked[sample.id] = [questions(sample, [c.text for c in completions], turn) for turn in (1, 2)]
    for name, judgments in ask_each(asked, reader(_rating), judge):
        turns = {f"turn_{n}": j.value / TOP for n, j in enumerate(judgments, 1) if j.value is not None}
        why = "; ".join(f"turn {n}: {j.why}" for n, j in enumerate(judgments, 1) if j.value is None)
        yield Score(name, None if why else sum(turns.values()) / TURNS, why, turns)


def questions(sample: Sample, answers: Sequence[str], turn: int) -> Request:
    """What the judge is asked about this turn (1 or 2): FastChat's prompt, filled in."""
    math = "-math" if sample.row["category"] in REFERENCED else ""
    name = f"single{math}-v1{'-multi-turn' if turn == TURNS else ''}"
    prompt = next(row for row in rows("mt_bench/judge") if row["name"] == name)
    told = sample.row["reference_answers"]
    places = {f"ref_answer_{n}": text for n, text in enumerate(told, 1)}
    if turn == 1:
        places |= {"question": sample.row["turns"][0], "answer": answers[0]}
    else:
        places |= {f"question_{n}": text for n, text in enumerate(sample.row["turns"], 1)}
        places |= {f"answer_{n}": text for n, text in enumerate(answers, 1)}
    messages: Prompt = (
        Message("system", prompt["system_prompt"]),
        Message("user", fill(prompt["prompt_template"], places)),
    )
    return Request(sample.id, messages, JUDGED, index=turn - 1)


def _rating(text: str) -> float | None:
    value = rating(text)
    return value if value is not None and value <= TOP else None


def summarise(records: Sequence[Record]) -> list[Estimate]:
    """The official figure, from 1 to 10, where the score is a tenth of it."""
    from rlhf_bench.harness.stats import Interval, estimate

    graded = [record for record in records if record.score.value is not None]
    scores = [record.score.value or 0.0 for record in graded]

    def measure() -> Interval:
        return estimate(scores, kind="continuous", clusters=clusters_of(graded))

    return [summary("mt_bench", "rating", len(scores), len(records), measure, unit=TOP)]


BENCHMARK = Benchmark(
    name="mt_bench",
    version="1",
    metric="score",
    kind="continuous",
    size=80,
    summary="questions of two turns in eight categories, rated by a language model",
    load=load,
    grade=grade,
    judged=True,
    needs=("mt_bench/questions", "mt_bench/references", "mt_bench/judge"),
    follow=follow,
    asks=True,
    summarise=summarise,
)
