"""AlpacaEval 2: 805 open instructions, each answer judged against that of gpt4_1106_preview.

Paper: Dubois et al. 2024, "Length-Controlled AlpacaEval", arXiv 2404.04475.
Data: tatsu-lab/alpaca_eval@cd543a14, results/gpt4_1106_preview/model_outputs.json; CC-BY-NC-4.0, not for commerce.
Metric: win_rate, the mean of the judge's P(answer ≻ baseline); beside it the answer's length in characters and whether
it was cut at the length limit. By source (helpful_base, koala, oasst, selfinstruct, vicuna) as strata. Further
discrete_win_rate, the share of won comparisons, a draw half; and lc_win_rate, what would be won at the baseline's
length (judged.length_controlled), with the interval of that figure, where theirs leaves out the fit's own error.
Differs: the judge is the one that the run names, not gpt-4-1106-preview, and a win rate by another judge is no
AlpacaEval score; lc_win_rate by another judge rests on difficulties and gamed baselines that were fitted to theirs, so
it corrects for length in part. Answers are greedy and end after 1024 tokens, where each model of the leaderboard has
settings of its own.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from rlhf_bench.harness.errors import MissingData, UserError
from rlhf_bench.harness.judges import Judge
from rlhf_bench.harness.types import (
    Battle,
    Benchmark,
    Completion,
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
from rlhf_bench.suites import data
from rlhf_bench.suites.data import rows
from rlhf_bench.suites.estimates import clusters_of, summary

if TYPE_CHECKING:
    from rlhf_bench.harness.stats import Interval
    from rlhf_bench.suites.judged.length_controlled import LengthControlled

MAX_TOKENS = 1024
"""By SmolLM2's tokens, 2% of the baseline's answers are longer, and 0 to 9% of those of nine published models."""
LEAST_CONTROLLED = 100
"""With fewer samples the length-controlled fit, which has three coefficients, is not made."""


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
        yield replace(score, also={**score.also, **shape(answers[score.sample_id])})


def shape(answer: Completion) -> dict[str, float]:
    """How long an answer is, and whether it was cut at the length limit."""
    return {"length_chars": float(len(answer.text)), "truncated": float(answer.finish_reason == "length")}


def summarise(records: Sequence[Record]) -> list[Estimate]:
    """The discrete and the length-controlled win rate, from 0 to 1."""
    from rlhf_bench.harness.stats import estimate

    graded = [record for record in records if record.score.value is not None]
    values = [record.score.value or 0.0 for record in graded]
    discrete = discrete_win_rate(graded, values)
    counts = len(graded), len(records)
    return [
        summary(
            "alpaca_eval",
            "discrete_win_rate",
            *counts,
            lambda: estimate(discrete, kind="continuous", clusters=clusters_of(graded)),
        ),
        summary("alpaca_eval", "lc_win_rate", *counts, lambda: _length_controlled(graded), least=LEAST_CONTROLLED),
    ]


def _length_controlled(graded: Sequence[Record]) -> Interval:
    """Of the graded samples; the standard error is by the score's influence function."""
    from scipy import special

    from rlhf_bench.harness.stats import Interval, estimate

    found = _fit(graded, [record.score.value or 0.0 for record in graded])
    if clusters := clusters_of(graded):
        many = estimate(found.linearised, kind="continuous", clusters=clusters)
        return many._replace(method=f"{many.method}, by influence function")
    half = float(special.stdtrit(len(graded) - 1, 0.975)) * found.se
    low, high = max(0.0, found.score - half), min(1.0, found.score + half)
    return Interval(found.score, low, high, found.se, f"t by influence function, {len(graded)} items")


def discrete_win_rate(records: Sequence[Record], scores: Sequence[float]) -> Sequence[float]:
    """1 for a score above a half, 0 for one below, a half for a draw."""
    return [(1 + (value > 0.5) - (value < 0.5)) / 2 for value in scores]


def lc_win_rate(records: Sequence[Record], scores: Sequence[float]) -> Sequence[float]:
    """The length-controlled win rate, linearised: a value for each record, whose mean is the rate and whose spread is
    its error; two models' values on the same records differ as their rates do, and by as much error.

    An ungraded record counts as an answer as long as the baseline's. Nothing is downloaded. Raises MissingData without
    the fit's data; UserError for fewer than `LEAST_CONTROLLED` records, another baseline, an instruction that is none
    of the 805, or an answer that was judged and has no length.
    """
    from rlhf_bench.suites.judged.alpaca_eval import BASELINES, GAMED, RECOVERED

    if len(records) < LEAST_CONTROLLED:
        raise UserError(f"lc_win_rate needs at least {LEAST_CONTROLLED} graded samples, and there are {len(records)}")
    baseline = str(records[0].sample.row.get("generator", ""))
    if baseline not in BASELINES:
        which = f"is {baseline}" if baseline else "is not named"
        raise UserError(f"lc_win_rate is defined against {BASELINES[0]}, and these samples' baseline {which}")
    if data.find("alpaca_eval/baseline") is None or (data.find(GAMED) is None and data.find(RECOVERED) is None):
        raise MissingData(
            "lc_win_rate rests on data that are not here: run `rlhf-bench suites fetch alpaca_eval` and `rlhf-bench "
            "suites fetch alpaca_eval_lc` where there is a network, or set RLHF_BENCH_DATA to a folder that holds them"
        )
    try:
        return [float(value) for value in _fit(records, scores).linearised]
    except LookupError as error:
        raise UserError(f"no lc_win_rate: {error.args[0]}") from error


def _fit(records: Sequence[Record], scores: Sequence[float]) -> LengthControlled:
    """The fit, its rows in the order of `records`. It is made in the official order, which its folds hang on."""
    import numpy as np

    from rlhf_bench.suites.judged.alpaca_eval import Annotation, fit, place_of
    from rlhf_bench.suites.judged.files import Row

    places = [place_of(str(record.sample.row.get("instruction", ""))) for record in records]
    order = sorted(range(len(records)), key=places.__getitem__)
    annotations = []
    for number in order:
        row, chars = records[number].sample.row, float(len(records[number].sample.reference))
        owner = "", str(row.get("generator", "")), "", places[number]
        lengths = chars, _length(records[number])
        annotations.append(Annotation(*owner, scores[number], *lengths, number, Row(Path(), number + 1, row)))
    found = fit(annotations)
    influence = np.empty_like(found.influence)
    influence[order] = found.influence
    return replace(found, influence=influence, keys=tuple(range(len(records))))


def _length(record: Record) -> float:
    """The answer's length in characters; of an ungraded one the baseline's, so that its score counts in full."""
    if record.score.value is None:
        return float(len(record.sample.reference))
    if "length_chars" in record.score.also:
        return record.score.also["length_chars"]
    answer = next(iter(record.completions), None)
    if answer is None or answer.finish_reason == "error":
        raise UserError(f"no lc_win_rate: sample '{record.sample.id}' was judged and its answer has no length")
    return float(len(answer.text))


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
    summarise=summarise,
    figures={"lc_win_rate": lc_win_rate, "discrete_win_rate": discrete_win_rate},
)
