"""AlpacaEval's instructions, and the battles that a judge decides."""

from __future__ import annotations

import gzip
import itertools
import json
import random
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlhf_bench import suites
from rlhf_bench.harness.errors import MissingData, UserError
from rlhf_bench.harness.estimates import estimates_of
from rlhf_bench.harness.types import Battle, Completion, EvalProtocol, Message, Record, Sample, Score
from rlhf_bench.suites import alpaca_eval, protocol
from rlhf_bench.suites.alpaca_eval import BENCHMARK, MAX_TOKENS, shape
from rlhf_bench.suites.judged import Choice, score
from rlhf_bench.suites.judged.alpaca_eval import fit, gamed, read_annotations
from rlhf_bench.suites.judged.length_controlled import bootstrap, lc_difference, length_feature


class Prefers:
    """A judge that finds an answer as good as it is longer than the baseline's, and none at all on empty ones."""

    name = "prefers-longer"
    identity = "prefers-longer"

    def __init__(self) -> None:
        self.battles: list[Battle] = []

    def prefer(self, battles: Sequence[Battle]) -> Iterator[Score]:
        self.battles.extend(battles)
        for battle in reversed(battles):
            if battle.answer:
                yield Score(battle.sample_id, float(len(battle.answer) > len(battle.baseline)))
            else:
                yield Score(battle.sample_id, None, "nothing to judge")


@pytest.fixture(scope="module")
def samples(mirror: Path) -> Iterator[list[Sample]]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RLHF_BENCH_DATA", str(mirror))
        yield list(BENCHMARK.load(protocol("paper")))


def test_the_instructions_are_the_official_ones_in_the_official_order(samples: list[Sample], mirror: Path) -> None:
    lines = (mirror / "alpaca_eval/instructions.jsonl").read_text().splitlines()
    official = [json.loads(line) for line in lines]
    assert [sample.row["instruction"] for sample in samples] == [row["instruction"] for row in official]
    assert [sample.tags["stratum"] for sample in samples] == [row["dataset"] for row in official]
    assert Counter(sample.row["generator"] for sample in samples) == {"gpt4_1106_preview": 805}


def test_a_request_is_the_instruction_as_a_user_turn_decoded_greedily(samples: list[Sample]) -> None:
    [request] = samples[0].requests
    assert request.prompt == (Message("user", samples[0].row["instruction"]),)
    assert (request.sampling.temperature, request.sampling.max_tokens) == (0.0, MAX_TOKENS)


def test_a_system_prompt_is_asked_but_not_shown_to_the_judge(samples: list[Sample]) -> None:
    sample = BENCHMARK.load(EvalProtocol("mine", system_prompt="Be brief."))[0]
    assert sample.prompt[0] == Message("system", "Be brief.")
    judge = Prefers()
    list(BENCHMARK.grade([(sample, (Completion(sample.id, 0, "x", "stop", 1),))], judge))
    assert judge.battles[0].prompt == samples[0].prompt


def test_each_answer_meets_the_baselines_answer_to_the_same_instruction(samples: list[Sample]) -> None:
    judge = Prefers()
    answered = [(sample, (Completion(sample.id, 0, f"to {sample.id}", "stop", 3),)) for sample in reversed(samples)]
    scores = {score.sample_id: score for score in BENCHMARK.grade(answered, judge)}
    assert set(scores) == {sample.id for sample in samples}
    assert {battle.sample_id: battle.baseline for battle in judge.battles} == {
        sample.id: sample.row["output"] for sample in samples
    }
    assert all(battle.answer == f"to {battle.sample_id}" for battle in judge.battles)


def test_the_baselines_own_answers_are_as_long_as_the_leaderboard_says(samples: list[Sample]) -> None:
    answered = [(sample, (Completion(sample.id, 0, sample.reference, "stop", 9),)) for sample in samples]
    lengths = [score.also["length_chars"] for score in BENCHMARK.grade(answered, Prefers())]
    assert int(sum(lengths) / len(lengths)) == 2049


def test_a_cut_answer_is_judged_and_marked_and_one_that_failed_is_ungraded(samples: list[Sample]) -> None:
    whole, cut, failed, silent = samples[:4]
    answered = [
        (whole, (Completion(whole.id, 0, "whole", "stop", 1),)),
        (cut, (Completion(cut.id, 0, "cu", "length", 1),)),
        (failed, (Completion(failed.id, 0, "", "error", 0, why="out of memory"),)),
        (silent, ()),
    ]
    scores = {score.sample_id: score for score in BENCHMARK.grade(answered, Prefers())}
    assert scores[whole.id] == Score(whole.id, 0.0, also={"length_chars": 5.0, "truncated": 0.0})
    assert scores[cut.id] == Score(cut.id, 0.0, also={"length_chars": 2.0, "truncated": 1.0})
    assert scores[failed.id] == Score(failed.id, None, "out of memory")
    assert scores[silent.id] == Score(silent.id, None, "the engine gave no answer")


def test_an_empty_answer_goes_to_the_judge_and_its_reason_is_kept(samples: list[Sample]) -> None:
    judge = Prefers()
    [score] = BENCHMARK.grade([(samples[0], (Completion(samples[0].id, 0, "", "stop", 0),))], judge)
    assert len(judge.battles) == 1
    assert (score.value, score.why) == (None, "nothing to judge")


def test_without_a_judge_nothing_is_graded(samples: list[Sample]) -> None:
    with pytest.raises(UserError, match="needs a judge: name one with --judge"):
        list(BENCHMARK.grade([(samples[0], (Completion(samples[0].id, 0, "x", "stop", 1),))], None))


def published(mirror: Path, model: str) -> list[dict[str, Any]]:
    content = (mirror / "alpaca_eval" / "full" / f"{model}.annotations.json.gz").read_bytes()
    found: list[dict[str, Any]] = json.loads(gzip.decompress(content))
    return found


def records_of(samples: list[Sample], annotations: list[dict[str, Any]]) -> list[Record]:
    """The published answers and preferences as a run would record them."""
    by_instruction = {row["instruction"]: row for row in annotations}
    found = []
    for sample in samples:
        row = by_instruction[sample.row["instruction"]]
        answer = Completion(sample.id, 0, row["output_2"], "stop", 1)
        value = None if row["preference"] is None else row["preference"] - 1
        score = Score(sample.id, value, "" if value is not None else "null", shape(answer))
        found.append(Record("alpaca_eval", sample.id, sample, (answer,), score))
    return found


@pytest.mark.parametrize("model", ["gpt-3.5-turbo-1106"])
def test_a_runs_win_rates_are_those_of_the_same_annotations_in_a_file(
    samples: list[Sample], mirror: Path, model: str
) -> None:
    annotations = published(mirror, model)
    found = {each.metric: each for each in estimates_of(BENCHMARK, records_of(samples, annotations))}
    (official,) = score("alpaca_eval", [mirror / "alpaca_eval" / "full" / f"{model}.annotations.json.gz"], Choice())
    assert official.ungraded == 0
    for metric in ("win_rate", "discrete_win_rate", "lc_win_rate"):
        wanted = official.metrics[metric]
        ours = [100 * getattr(found[metric], name) for name in ("mean", "low", "high", "se")]
        assert ours == pytest.approx([wanted.value, wanted.low, wanted.high, wanted.se])
    assert found["lc_win_rate"].mean * 100 == pytest.approx(19.3, abs=0.3)


def test_of_too_few_samples_there_is_no_length_controlled_win_rate_and_it_says_why(
    samples: list[Sample], mirror: Path
) -> None:
    records = records_of(samples, published(mirror, "gpt-3.5-turbo-1106"))[:99]
    found = {each.metric: each for each in estimates_of(BENCHMARK, records)}
    assert found["lc_win_rate"].mean is None
    assert found["lc_win_rate"].why == "lc_win_rate: 99 of 99 samples are graded; it needs half and at least 100"
    assert found["discrete_win_rate"].mean is not None


def test_without_the_gamed_baselines_the_length_controlled_win_rate_says_how_to_get_them(
    samples: list[Sample], mirror: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    records = records_of(samples, published(mirror, "gpt-3.5-turbo-1106"))
    (tmp_path / "alpaca_eval").mkdir()
    monkeypatch.setenv("RLHF_BENCH_DATA", str(tmp_path))
    monkeypatch.setenv("RLHF_BENCH_HOME", str(tmp_path))
    found = {each.metric: each for each in estimates_of(BENCHMARK, records)}
    assert found["lc_win_rate"].mean is None
    assert "suites fetch alpaca_eval_lc" in found["lc_win_rate"].why


LC = BENCHMARK.figures["lc_win_rate"]


@pytest.fixture(scope="module")
def fusechat(samples: list[Sample], mirror: Path) -> dict[str, list[Record]]:
    """The published judgments of the four FuseChat models, as runs would record them."""
    found: dict[str, list[Record]] = {}
    for each in read_annotations([mirror / "alpaca_eval/annotations_reduced.csv.gz"]):
        if each.model.startswith("FuseChat"):
            sample = samples[int(each.instruction)]
            kept = Score(sample.id, each.preference, also={"length_chars": each.model_chars})
            found.setdefault(each.model, []).append(Record("alpaca_eval", sample.id, sample, (), kept))
    assert len(found) == 4 and {len(records) for records in found.values()} == {805}
    return found


def own(records: Sequence[Record]) -> list[float]:
    """The records' own scores, none missing."""
    return [record.score.value for record in records if record.score.value is not None]


def linear(records: Sequence[Record]) -> np.ndarray[Any, np.dtype[np.float64]]:
    return np.array(LC(records, own(records)))


def test_the_linearised_rate_has_the_mean_and_the_error_of_the_fit(fusechat: dict[str, list[Record]]) -> None:
    for records in fusechat.values():
        values = linear(records)
        [estimate] = [each for each in estimates_of(BENCHMARK, records) if each.metric == "lc_win_rate"]
        assert values.mean() == pytest.approx(estimate.mean, abs=1e-12)
        assert values.std(ddof=1) / 805**0.5 == pytest.approx(estimate.se, rel=2e-3)


def test_differences_of_linearised_rates_are_the_paired_lc_differences(
    fusechat: dict[str, list[Record]], mirror: Path
) -> None:
    """The standard errors of scoring.md, 1.39 to 1.55 points, within what the recovered gamed rows leave open."""
    fits: dict[str, Any] = {}
    for each in read_annotations([mirror / "alpaca_eval/annotations_reduced.csv.gz"]):
        fits.setdefault(each.model, []).append(each)
    errors = []
    for one, other in itertools.combinations(fusechat, 2):
        d = linear(fusechat[one]) - linear(fusechat[other])
        difference, se = lc_difference(fit(fits[one]), fit(fits[other]))
        assert d.mean() == pytest.approx(difference, abs=1e-12)
        assert d.std(ddof=1) / 805**0.5 == pytest.approx(se, rel=2e-3)
        errors.append(100 * se)
    assert 1.39 < min(errors) < 1.45 and 1.54 < max(errors) < 1.60


def test_the_error_of_a_difference_is_that_of_pairs_drawn_again_and_refitted(fusechat: dict[str, list[Record]]) -> None:
    pairs = [fusechat[f"FuseChat-{name}-Instruct"] for name in ("Llama-3.2-3B", "Qwen-2.5-7B")]
    drawn = []
    for records in pairs:
        chars = [(len(r.sample.reference), r.score.also["length_chars"]) for r in records]
        baseline, model = (np.array(column, dtype=float) for column in zip(*chars, strict=True))
        arrays = np.array(own(records)), length_feature(baseline, model), gamed()[0].difficulty
        fitted = alpaca_eval._fit(records, own(records))
        drawn.append(bootstrap(*arrays, gamed()[0], fitted, resamples=400, seed=5))
    d = linear(pairs[0]) - linear(pairs[1])
    assert d.std(ddof=1) / 805**0.5 == pytest.approx((drawn[0] - drawn[1]).std(ddof=1), rel=0.12)
    assert d.mean() == pytest.approx((drawn[0] - drawn[1]).mean(), abs=0.004)


def test_the_order_of_records_changes_no_value(fusechat: dict[str, list[Record]]) -> None:
    records = fusechat["FuseChat-Llama-3.1-8B-Instruct"]
    wanted = {record.digest: value for record, value in zip(records, linear(records), strict=True)}
    shuffled = random.Random(0).sample(records, len(records))
    assert [wanted[record.digest] for record in shuffled] == list(linear(shuffled))


def test_the_given_scores_count_and_not_the_records_own(fusechat: dict[str, list[Record]]) -> None:
    records = fusechat["FuseChat-Llama-3.1-8B-Instruct"]
    gaps = [
        replace(record, score=Score(record.sample.id, None, "judge down")) if i % 50 == 0 else record
        for i, record in enumerate(records)
    ]
    whole, worst, best = (
        np.mean(LC(gaps, [fill if r.score.value is None else r.score.value for r in gaps])) for fill in (0.5, 0.0, 1.0)
    )
    assert worst < whole - 0.007 < whole + 0.007 < best
    assert worst < linear(records).mean() < best


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"last": 99}, "needs at least 100 graded samples, and there are 99"),
        (
            {"row": {"generator": "gpt4_turbo", "instruction": "?"}},
            "an instruction is not one of AlpacaEval's 805: '?'",
        ),
        ({"row": {"generator": "mine"}}, "defined against gpt4_1106_preview, and these samples' baseline is mine"),
        ({"row": {}}, "these samples' baseline is not named"),
        ({"also": {}}, "sample 'alpaca_eval/0' was judged and its answer has no length"),
    ],
)
def test_where_there_is_no_length_controlled_rate_one_line_says_why(
    fusechat: dict[str, list[Record]], change: dict[str, Any], says: str
) -> None:
    first, *others = fusechat["FuseChat-Llama-3.1-8B-Instruct"]
    sample = replace(first.sample, row=change.get("row", first.sample.row))
    score = replace(first.score, also=change.get("also", first.score.also))
    records = [replace(first, sample=sample, score=score), *others][: change.get("last")]
    with pytest.raises(UserError) as caught:
        LC(records, own(records))
    assert says in str(caught.value) and "\n" not in str(caught.value)


def test_a_comparison_downloads_nothing_and_says_what_would(
    fusechat: dict[str, list[Record]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RLHF_BENCH_DATA", str(tmp_path))
    monkeypatch.setenv("RLHF_BENCH_CACHE", str(tmp_path))
    with pytest.raises(MissingData, match="`rlhf-bench suites fetch alpaca_eval_lc`"):
        linear(fusechat["FuseChat-Llama-3.1-8B-Instruct"])


@settings(max_examples=30)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=30))
def test_the_discrete_rate_is_wins_and_half_the_draws(values: list[float]) -> None:
    found = BENCHMARK.figures["discrete_win_rate"]([], values)
    assert sum(found) == sum(v > 0.5 for v in values) + 0.5 * sum(v == 0.5 for v in values)


def test_the_table_of_linearised_benchmarks_is_what_they_say_of_themselves() -> None:
    told = {name: suites.benchmark(name).figures for name in suites.BENCHMARKS}
    assert suites.figures(["no-such-task", *suites.BENCHMARKS]) == {name: own for name, own in told.items() if own}
