"""Trains in a process of its own, or as one of several: WHAT START OUT THREADS."""

from __future__ import annotations

import os
import sys
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch
from tests.trainers.conftest import dpo_recipe, preference_recipe, reward_recipe, sft_recipe, sums, talks

from rlhf_bench.harness.checkpoint import checkpoint_digest
from rlhf_bench.harness.types import Checkpoint
from rlhf_bench.trainers.backends import get_backend
from rlhf_bench.trainers.recipes import LoRA


def train(what: str, start: Checkpoint, out: Path) -> Checkpoint:
    """A run of some 20 steps over three epochs, whose last step and last micro-batch are short."""
    backend = get_backend("trl")
    changes = {"epochs": 3, "save_every": 3}
    if what == "sft":
        return backend.train_sft(sft_recipe(packing=True, max_length=100, **changes), talks(27), start, out)
    if what == "reward":
        return backend.train_reward(reward_recipe(**changes), sums(0, 29), start, out)
    if what == "reward-lora":
        recipe = reward_recipe(lora=LoRA(rank=2, dropout=0.1), **changes)
        return backend.train_reward(recipe, sums(0, 29), start, out)
    if what == "preference":
        return backend.train_preference(preference_recipe(**changes), sums(0, 29), start, out)
    return backend.train_dpo(dpo_recipe(**changes), sums(0, 29), start, start, out)


if __name__ == "__main__":
    what, path, out, threads = sys.argv[1:]
    torch.set_num_threads(int(threads))
    train(what, Checkpoint(path, checkpoint_digest(Path(path))), Path(out))
