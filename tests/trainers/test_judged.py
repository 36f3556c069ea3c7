"""Models that were trained are judges: letters and rewards are read where they were learned."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.trainers.conftest import preference_recipe, reward_recipe, sums

from rlhf_bench.harness.judges.evaluate import evaluate_pairs
from rlhf_bench.harness.judges.preference import PreferenceModel
from rlhf_bench.harness.judges.reward import RewardModel
from rlhf_bench.harness.types import Checkpoint
from rlhf_bench.trainers.backends import get_backend


@pytest.mark.parametrize("backend", ["trl", "torch"])
def test_a_trained_preference_model_prefers_what_it_has_not_seen(
    tiny: Checkpoint, tmp_path: Path, backend: str
) -> None:
    before = evaluate_pairs(PreferenceModel(tiny, name="before", device="cpu"), sums(100, 30))
    recipe = preference_recipe(epochs=6, learning_rate=2e-3, max_length=300)
    made = get_backend(backend).train_preference(recipe, sums(0, 48), tiny, tmp_path / "out")
    judge = PreferenceModel(made, name="after", device="cpu")
    found = evaluate_pairs(judge, sums(100, 30))
    assert before.accuracy.mean is not None and found.accuracy.mean is not None
    assert found.accuracy.mean >= 0.9 and found.ungraded == 0, (before.accuracy, found.accuracy)
    pair = sums(200, 1)[0]
    answers = [pair.rejected, pair.chosen, pair.rejected + " 7", pair.rejected + " A"]
    assert judge.tournament(pair.prompt, answers).order[0] == 1


@pytest.mark.parametrize("backend", ["trl", "torch"])
def test_a_trained_reward_model_is_right_and_calibrated_on_what_it_has_not_seen(
    tiny: Checkpoint, tmp_path: Path, backend: str
) -> None:
    made = get_backend(backend).train_reward(reward_recipe(epochs=3), sums(0, 24), tiny, tmp_path / "out")
    found = evaluate_pairs(RewardModel(made, name="after", device="cpu"), sums(100, 30))
    assert found.accuracy.mean is not None and found.accuracy.mean >= 0.9
    assert found.calibration_error is not None and found.calibration_error < 0.3
