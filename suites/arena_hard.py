"""Arena-Hard v0.1: 500 hard prompts of real users, each answer judged twice against that of gpt-4-0314.

Paper: Li et al. 2024, "From Crowdsourced Data to High-Quality Benchmarks", arXiv 2406.11939.
Data: lmarena/arena-hard-auto@196f6b82, data/arena-hard-v0.1, and its judge configuration @b4b78bf3; Apache-2.0, the
baseline's answers under OpenAI's terms.
Metric: win_rate, the mean over prompts of what the answer got in its two games (the answers swapped; in the first the
baseline is A), a strong verdict (>>) counting three times; and "score", the official figure, in which a prompt with
strong verdicts counts more. Beside it verdict_weight (2 to 6), and agree, whether both games name the same winner.
Differs: the judge is the one that the run names, not gpt-4-1106-preview; a reply without one verdict is asked for
again, where theirs is continued; a prompt is graded only with both games; the interval is clustered by prompt. A judge
that only compares is asked once, and its P(answer ≻ baseline) is the win rate; it has no "score".

v2.0's baseline answers are not published with its questions here: its judgments are read by `rlhf-bench score`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from rlhf_bench.harness.errors import UserError
from rlhf_bench.harness.judges import Asks, Judge
from rlhf_bench.harness.judges.llm import ask_each, fill
from rlhf_bench.harness.judges.readers import arena_verdict, reader
from rlhf_bench.harness.types import (
    Benchmark,
    Estimate,
    EvalProtocol,
    Graded,
    Message,
    Record,
    Request,
    Sample,
    Sampling,
    Score,
)
from rlhf_bench.suites import alpaca_eval
from rlhf_bench.suites.data import rows
from rlhf_bench.suites.estimates import clusters_of, summary

MAX_TOKENS = 4096
"""gen_answer_config.yaml: greedy, 4096 tokens."""
MOST = 6.0
"""The weight of a prompt with two strong verdicts."""


def load(protocol: EvalProtocol) -> Sequence[Sample]:
    """The prompts in the official order, each one user turn, after the system prompt if there is one."""
    system = (Message("system", protocol.system_prompt),) if protocol.system_prompt else ()
    baseline = {row["uid"]: row["messages"][-1]["content"]["answer"] for row in rows("arena_hard/baseline")}
    sampling = Sampling(max_tokens=MAX_TOKENS)
    return [
        Sample(
            id=name,
            requests=(Request(name, (*system, Message("user", row["prompt"])), sampling),),
            reference=baseline[row["uid"]],
            row=row,
        )
        for row in rows("arena_hard/questions")
        for name in (f"arena_hard/{row['uid']}",)
    ]


def grade(answered: Sequence[Graded], judge: Judge | None) -> Iterator[Score]:
    """What each answer gets of its two games. Raises UserError without a judge.

    Empty answers and those cut at the limit are judged as they are; a prompt with a game without a verdict is ungraded.
    """
    if judge is None:
        raise UserError("arena_hard compares answers, so it needs a judge: name one with --judge")
    if not isinstance(judge, Asks):
        yield from alpaca_eval.grade(answered, judge)
        return
    asked, shapes = {}, {}
    for sample, completions in answered:
        answer = next(iter(completions), None)
        if answer is None or answer.finish_reason == "error":
            yield Score(sample.id, None, (answer and answer.why) or "the engine gave no answer")
            continue
        asked[sample.id] = games(sample, answer.text)
        shapes[sample.id] = alpaca_eval.shape(answer)
    for name, judgments in ask_each(asked, reader(_verdict), judge):
        why = "; ".join(f"game {n}: {j.why}" for n, j in enumerate(judgments, 1) if j.value is None)
        verdicts = [judgment.value for judgment in judgments if judgment.value is not None]
        yield Score(name, None, why) if why else _score(name, verdicts, shapes[name])


def games(sample: Sample, answer: str) -> list[Request]:
    """What the judge is asked: the baseline's answer first, then the model's first."""
    (settings,) = rows("arena_hard/judge")
    sampling = Sampling(max_tokens=settings["max_tokens"], temperature=float(settings["temperature"]))
    (template,) = settings["prompt_template"]
    pairs = (sample.reference, answer), (answer, sample.reference)
    return [
        Request(
            sample.id,
            (
                Message("system", settings["system_prompt"]),
                Message(
                    "user", fill(template, {"question_1": sample.row["prompt"], "answer_1": first, "answer_2": second})
                ),
            ),
            sampling,
            index=index,
        )
        for index, (first, second) in enumerate(pairs)
    ]


def _verdict(text: str) -> tuple[float, float] | None:
    """What A gets and how often it counts; none where the reply has no verdict, or two different ones."""
    from rlhf_bench.suites.judged.arena_hard import VERDICTS_V01

    return VERDICTS_V01.get(arena_verdict(text, unanimous=True) or "")


def _score(name: str, verdicts: Sequence[tuple[float, float]], shape: Mapping[str, float]) -> Score:
    (baseline, first), (model, second) = verdicts
    weight = first + second
    also = {"verdict_weight": weight, "agree": float(1.0 - baseline == model), **shape}
    return Score(name, ((1.0 - baseline) * first + model * second) / weight, also=also)


def summarise(records: Sequence[Record]) -> list[Estimate]:
    """The official score, from 0 to 1, its interval over prompts; nothing where the judge only compared."""
    from rlhf_bench.harness.stats import Interval, mean_interval
    from rlhf_bench.harness.stats.intervals import by_cluster

    graded = [record for record in records if record.score.value is not None and "verdict_weight" in record.score.also]
    if not graded and any(record.score.value is not None for record in records):
        return []

    def measure() -> Interval:
        import numpy as np

        weights = np.array([record.score.also["verdict_weight"] for record in graded])
        values = np.array([record.score.value for record in graded], dtype=np.float64)
        clusters = clusters_of(graded)
        sums, sizes = by_cluster(values * weights, clusters)[0], by_cluster(weights, clusters)[0]
        return mean_interval(sums, sizes, lowest=0.0, highest=1.0)

    return [summary("arena_hard", "score", len(graded), len(records), measure)]


def official_score(records: Sequence[Record], scores: Sequence[float]) -> Sequence[float]:
    """The official score, linearised. It is Σ wᵢsᵢ / Σ wᵢ, so a prompt's value is score + wᵢ (sᵢ − score) / mean(w).

    A prompt without its two verdicts weighs as two strong ones. Raises UserError where the judge only compared.
    """
    import numpy as np

    weights = np.array([_weight(record) for record in records])
    values = np.asarray(scores, dtype=np.float64)
    score = float(weights @ values / weights.sum())
    return [float(value) for value in score + weights * (values - score) / weights.mean()]


def _weight(record: Record) -> float:
    weight = record.score.also.get("verdict_weight")
    if weight is None and record.score.value is not None:
        raise UserError(
            f"arena_hard has no score here: the judge of '{record.sample.id}' only compared, so it gave no verdicts to "
            "weigh; win_rate is what there is"
        )
    return MOST if weight is None else weight


BENCHMARK = Benchmark(
    name="arena_hard",
    version="0.1",
    metric="win_rate",
    kind="continuous",
    size=500,
    summary="hard prompts of real users, judged twice against the answers of gpt-4-0314",
    load=load,
    grade=grade,
    judged=True,
    needs=("arena_hard/questions", "arena_hard/baseline", "arena_hard/judge"),
    summarise=summarise,
    figures={"score": official_score},
)
