"""harness/judges/evaluate.py: accuracy, calibration and length, each a second time by hand."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from rlhf_bench.harness.judges.evaluate import evaluate_pairs, length_correlation, reliability
from rlhf_bench.harness.judges.preference import PreferenceModel
from rlhf_bench.harness.stats import wilson
from rlhf_bench.harness.types import Battle, Checkpoint, Conversation, Message, Preference, Score


def asked(text: str) -> Conversation:
    return (Message("user", text),)


class Rewards:
    """A judge with a reward for each answer; an answer without one is too long."""

    name = identity = "table"

    def __init__(self, rewards: Mapping[str, float]) -> None:
        self.rewards = rewards

    def prefer(self, battles: Sequence[Battle]) -> Iterator[Score]:
        for battle in reversed(battles):  # any order
            one, other = self.rewards.get(battle.answer), self.rewards.get(battle.baseline)
            if one is None or other is None:
                yield Score(battle.sample_id, None, "too long")
            else:
                p = 1 / (1 + math.exp(other - one))
                yield Score(battle.sample_id, p, also={"reward": one, "baseline_reward": other})


def test_pairs_of_prompts_of_their_own_have_wilsons_interval() -> None:
    pairs = [Preference(asked(f"{n}"), f"good {n}", f"bad {n}") for n in range(50)]
    rewards = {f"good {n}": 1.0 if n % 5 else -1.0 for n in range(50)} | {f"bad {n}": 0.0 for n in range(50)}
    found = evaluate_pairs(Rewards(rewards), pairs)
    assert (found.pairs, found.prompts, found.ungraded, found.ties) == (50, 50, 0, 0)
    assert found.accuracy.mean == 0.8 and (found.accuracy.low, found.accuracy.high) == wilson(40, 50)


def test_pairs_of_one_prompt_are_no_independent_evidence() -> None:
    """Five prompts, ten pairs each, all of a prompt right or all wrong: the interval is that of five items."""
    answers = [(n, k) for n in range(5) for k in range(10)]
    pairs = [Preference(asked(f"{n}"), f"good {n} {k}", f"bad {n} {k}") for n, k in answers]
    rewards = {f"good {n} {k}": 1.0 if n < 3 else -1.0 for n, k in answers} | {f"bad {n} {k}": 0.0 for n, k in answers}
    found = evaluate_pairs(Rewards(rewards), pairs)
    assert (found.pairs, found.prompts, found.accuracy.mean) == (50, 5, 0.6)
    low, high = wilson(30, 50)
    assert found.accuracy.low is not None and found.accuracy.high is not None
    assert found.accuracy.low < low and found.accuracy.high > high and "clusters" in found.accuracy.method


def test_ties_are_wrong_and_too_long_pairs_are_counted_apart() -> None:
    pairs = [Preference(asked(each), each, "bad") for each in ("better", "alike", "worse", "endless")]
    found = evaluate_pairs(Rewards({"better": 1.0, "alike": 0.0, "worse": -1.0, "bad": 0.0}), pairs)
    assert (found.pairs, found.ties, found.ungraded, found.why) == (3, 1, 1, "too long")
    assert found.accuracy.mean == pytest.approx(1 / 3)


def test_where_nothing_could_be_judged_there_are_no_figures() -> None:
    found = evaluate_pairs(Rewards({}), [Preference(asked("x"), "a", "b")])
    assert (found.pairs, found.ungraded, found.accuracy.mean, found.calibration_error) == (0, 1, None, None)
    assert found.bins == () and found.prefers_longer is found.length_correlation is None


def test_length_is_held_against_what_the_data_prefer() -> None:
    pairs = [
        Preference(asked("1"), "long answer", "short"),
        Preference(asked("2"), "short", "long answer"),
        Preference(asked("3"), "short", "longer answer"),
        Preference(asked("4"), "equal", "alike"),
    ]
    by_length = {"short": 5.0, "long answer": 11.0, "longer answer": 13.0, "equal": 5.0, "alike": 4.0}
    found = evaluate_pairs(Rewards(by_length), pairs)
    assert found.prefers_longer is not None and found.prefers_longer.mean == 1.0
    assert found.chosen_longer is not None and found.chosen_longer.mean == pytest.approx(1 / 3)
    assert found.length_correlation is None  # two answers to a prompt


def test_the_length_correlation_is_the_mean_of_the_prompts_own() -> None:
    rewards = {
        asked("up"): {"a": 0.0, "bb": 1.0, "ccc": 2.0},
        asked("down"): {"d": 3.0, "ee": 1.0, "fff": 2.0, "gggg": 0.0},
        asked("two"): {"h": 0.0, "ii": 9.0},
        asked("alike"): {"j": 1.0, "k": 2.0, "l": 3.0},
    }
    found = length_correlation(rewards)
    expected = [float(stats.pearsonr([1, 2, 3], [0, 1, 2])[0]), float(stats.pearsonr([1, 2, 3, 4], [3, 1, 2, 0])[0])]
    assert found is not None and found.mean == pytest.approx(np.mean(expected))
    pairs = [
        Preference(prompt, chosen, rejected)
        for prompt, answers in rewards.items()
        for chosen in answers
        for rejected in answers
        if answers[chosen] > answers[rejected]
    ]
    everything = {answer: value for answers in rewards.values() for answer, value in answers.items()}
    assert evaluate_pairs(Rewards(everything), pairs).length_correlation == found


@given(st.lists(st.floats(0, 1), min_size=1, max_size=60))
def test_every_pair_lies_in_one_bin_and_confidence_within_its_edges(p: list[float]) -> None:
    bins = reliability(p)
    assert sum(each.pairs for each in bins) == len(p)
    assert all(each.low - 1e-9 <= each.confidence <= each.high + 1e-9 for each in bins)
    assert sum(each.pairs * each.accuracy for each in bins) == pytest.approx(
        sum(0.5 if value == 0.5 else value > 0.5 for value in p)
    )


def test_the_calibration_error_is_the_distance_of_confidence_and_accuracy() -> None:
    """Confidence 0.9 and 0.6, right in all and in half of the pairs: 0.1 and 0.1 off."""
    logits = {0.9: math.log(9), 0.6: math.log(1.5)}
    rewards = {"bad": 0.0, "sure": logits[0.9], "unsure": logits[0.6], "misled": -logits[0.6]}
    pairs = [Preference(asked(f"{n}{each}"), each, "bad") for n in range(4) for each in ("sure", "unsure", "misled")]
    found = evaluate_pairs(Rewards(rewards), pairs)
    assert found.calibration_error == pytest.approx(0.1)
    assert [(each.pairs, each.accuracy) for each in found.bins] == [(8, 0.5), (4, 1.0)]


def test_a_preference_model_is_held_against_pairs_in_the_same_way(tiny_checkpoint: Path) -> None:
    judge = PreferenceModel(Checkpoint(str(tiny_checkpoint), "0" * 64), name="tiny", device="cpu")
    pairs = [Preference(asked("Hi."), f"yes {n}", "no") for n in range(4)]
    found = evaluate_pairs(judge, pairs)
    chances = judge.probabilities([(pair.prompt, pair.chosen, pair.rejected) for pair in pairs])
    assert found.accuracy.mean == np.mean([p is not None and p > 0.5 for p in chances])
    assert found.length_correlation is None and found.calibration_error is not None
