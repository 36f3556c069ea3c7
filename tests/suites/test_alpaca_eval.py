"""AlpacaEval's instructions, and the battles that a judge decides."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from rlhf_bench.harness.errors import UserError
from rlhf_bench.harness.types import Battle, Completion, EvalProtocol, Message, Sample, Score
from rlhf_bench.suites import protocol
from rlhf_bench.suites.alpaca_eval import BENCHMARK, MAX_TOKENS


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
