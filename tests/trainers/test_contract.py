"""Two back ends, one recipe: on the same data and seed, in float32, `torch` and `trl` agree step by step, to 1e-4.

And a golden trajectory: 50 steps of DPO on a tiny model from scratch, as `torch` computed them when the two agreed.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.trainers.conftest import dpo_recipe, preference_recipe, reward_recipe, sft_recipe, talks
from tests.trainers.oracles import metrics, weights

from rlhf_bench.harness.types import Checkpoint, Message, Preference
from rlhf_bench.trainers.backends import get_backend
from rlhf_bench.trainers.recipes import LoRA

TORCH, TRL = get_backend("torch"), get_backend("trl")
GOLDEN = Path(__file__).with_name("golden_dpo.json")
WITHIN = 1e-4
OF_DPO = ("logps/chosen", "logps/rejected", "rewards/chosen", "rewards/rejected", "margin", "accuracy")
COMMON: dict[str, Any] = {
    "epochs": 2,
    "batch_size": 4,
    "micro_batch": 2,
    "warmup": 0.2,
    "weight_decay": 0.1,
    "max_grad_norm": 0.5,
}
"""Accumulation with a smaller last micro-batch, warm-up, clipping and weight decay all have something to do."""


def uneven(count: int) -> list[Preference]:
    """Pairs of many lengths, so that batches are padded."""
    return [
        Preference(
            (Message("user", f"What is {'0' * (n % 7)}{n} + {n}?"),),
            f"yes {2 * n} it is" + " so" * (n % 3),
            f"no {2 * n} true A" + " B" * (n % 5),
            margin=0.1 + n % 4,
        )
        for n in range(count)
    ]


def agree(one: Checkpoint, other: Checkpoint, *names: str) -> None:
    """Every step's figures to 1e-4 (norms of gradients relative to their size), and every weight at the end."""
    assert len(metrics(one)) == len(metrics(other)) > 1
    for mine, theirs in zip(metrics(one), metrics(other), strict=True):
        for name in ("step", "epoch", "loss", "lr", *names):
            assert mine[name] == pytest.approx(theirs[name], abs=WITHIN), (name, mine["step"])
        assert mine["grad_norm"] == pytest.approx(theirs["grad_norm"], rel=WITHIN, abs=WITHIN), mine["step"]
    before, after = weights(one), weights(other)
    assert before.keys() == after.keys()
    for name, weight in before.items():
        torch.testing.assert_close(weight, after[name], rtol=0, atol=WITHIN)


def test_dpo(tiny: Checkpoint, tmp_path: Path) -> None:
    """Against a reference that is not the policy."""
    first = TORCH.train_dpo(dpo_recipe(learning_rate=1e-4), uneven(4), tiny, tiny, tmp_path / "first")
    recipe = dpo_recipe(**COMMON)
    found = [each.train_dpo(recipe, uneven(13), first, tiny, tmp_path / each.name) for each in (TORCH, TRL)]
    agree(*found, *OF_DPO)


@pytest.mark.parametrize(
    "changes",
    [
        {"loss": "sigmoid", "label_smoothing": 0.1, "nll_weight": 0.2, "lora": LoRA(rank=2)},
        {"loss": "robust", "label_smoothing": 0.1},
        {"loss": "ipo", "learning_rate": 1e-4},
        {"loss": "hinge"},
        {"loss": "sigmoid_norm", "beta": 2.0},
    ],
    ids=lambda changes: changes["loss"],
)
def test_the_other_losses_of_dpo(tiny: Checkpoint, tmp_path: Path, changes: dict[str, Any]) -> None:
    recipe = dpo_recipe(**{**COMMON, "epochs": 1, **changes})
    found = [each.train_dpo(recipe, uneven(8), tiny, tiny, tmp_path / each.name) for each in (TORCH, TRL)]
    agree(*found, *OF_DPO)


@pytest.mark.parametrize("changes", [{}, {"use_margin": True, "centring": 0.01, "label_smoothing": 0.1}])
def test_the_reward_model(tiny: Checkpoint, tmp_path: Path, changes: dict[str, Any]) -> None:
    recipe = reward_recipe(**COMMON, **changes)
    found = [each.train_reward(recipe, uneven(13), tiny, tmp_path / each.name) for each in (TORCH, TRL)]
    agree(*found, "accuracy", "margin", "confidence", "length_correlation")


def test_the_only_step_of_a_run_is_no_warm_up(tiny: Checkpoint, tmp_path: Path) -> None:
    recipe = sft_recipe(**{**COMMON, "epochs": 1, "batch_size": 16})
    found = [each.train_sft(recipe, talks(3), tiny, tmp_path / each.name) for each in (TORCH, TRL)]
    (mine,), (theirs,) = map(metrics, found)
    assert mine["lr"] == theirs["lr"] == recipe.learning_rate
    assert all(each.digest != tiny.digest for each in found)


@pytest.mark.parametrize("packing", [False, True])
def test_sft(tiny: Checkpoint, tmp_path: Path, packing: bool) -> None:
    recipe = sft_recipe(**COMMON, packing=packing)
    found = [each.train_sft(recipe, talks(26 if packing else 13), tiny, tmp_path / each.name) for each in (TORCH, TRL)]
    agree(*found)


@pytest.mark.parametrize("packing", [False, True])
def test_the_preference_model(tiny: Checkpoint, tmp_path: Path, packing: bool) -> None:
    recipe = preference_recipe(**COMMON, packing=packing)
    pairs = uneven(20 if packing else 13)
    found = [each.train_preference(recipe, pairs, tiny, tmp_path / each.name) for each in (TORCH, TRL)]
    agree(*found, "accuracy")


def test_fifty_steps_of_dpo_are_those_that_were_pinned(tiny: Checkpoint, tmp_path: Path) -> None:
    """To 1e-4 of each figure's largest value; another order of the same sums (TRL's) moves them by 1e-6."""
    recipe = dpo_recipe(epochs=5, learning_rate=2e-4, schedule="cosine", warmup=0.1)
    found = metrics(TORCH.train_dpo(recipe, uneven(40), tiny, tiny, tmp_path / "out"))
    golden = json.loads(GOLDEN.read_text())
    assert len(found) == 50 == len(golden["loss"])
    for name, values in golden.items():
        largest = max(map(abs, values))
        assert [line[name] for line in found] == pytest.approx(values, abs=WITHIN * largest), name
