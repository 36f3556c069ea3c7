"""AlpacaEval's instructions, and the battles that a judge decides."""

from __future__ import annotations

import gzip
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from rlhf_bench.harness.errors import UserError
from rlhf_bench.harness.run import estimates_of
from rlhf_bench.harness.types import Battle, Completion, EvalProtocol, Message, Record, Sample, Score
from rlhf_bench.suites import protocol
from rlhf_bench.suites.alpaca_eval import BENCHMARK, MAX_TOKENS, shape
from rlhf_bench.suites.judged import Choice, score


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
