"""What the trainer tests share: a tiny policy, pairs that it can learn, and short recipes in float32."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from rlhf_bench.harness.checkpoint import checkpoint_digest
from rlhf_bench.harness.types import Checkpoint, Conversation, Message, Preference
from rlhf_bench.trainers.recipes import DPORecipe, PreferenceRecipe, RewardRecipe, SFTRecipe

SHORT: dict[str, Any] = {
    "epochs": 1,
    "batch_size": 4,
    "micro_batch": 2,
    "max_length": 200,
    "learning_rate": 1e-3,
    "warmup": 0.0,
    "dtype": "float32",
    "gradient_checkpointing": False,
    "save_every": 100,
    "seed": 7,
}


@pytest.fixture(scope="session")
def tiny(tiny_checkpoint: Path) -> Checkpoint:
    return Checkpoint(str(tiny_checkpoint), checkpoint_digest(tiny_checkpoint))


def sums(first: int, count: int) -> Sequence[Preference]:
    """Pairs that differ in what is said, not in how long it is."""
    return [
        Preference((Message("user", f"What is {n} + {n}?"),), f"yes {2 * n} it is", f"no {2 * n} true A")
        for n in range(first, first + count)
    ]


def talks(count: int) -> Sequence[Conversation]:
    """Conversations of two answers each, of different lengths."""
    return [
        (
            Message("system", "Answer in short."),
            Message("user", f"What is {n} + {n}?"),
            Message("assistant", f"{2 * n}" + ", and that is" * (n % 4)),
            Message("user", "True?"),
            Message("assistant", "yes"),
        )
        for n in range(count)
    ]


def sft_recipe(**changes: Any) -> SFTRecipe:
    return SFTRecipe(**{**SHORT, "packing": False, **changes})


def preference_recipe(**changes: Any) -> PreferenceRecipe:
    return PreferenceRecipe(**{**SHORT, "packing": False, **changes})


def reward_recipe(**changes: Any) -> RewardRecipe:
    return RewardRecipe(**{**SHORT, **changes})


def dpo_recipe(**changes: Any) -> DPORecipe:
    return DPORecipe(**{**SHORT, **changes})
