"""Trains in a process of its own, which a test kills: BACKEND WHAT START OUT THREADS."""

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


def train(backend: str, what: str, start: Checkpoint, out: Path) -> Checkpoint:
    """Sixteen steps over two epochs, a checkpoint after every one."""
    trainer, changes = get_backend(backend), {"epochs": 2, "save_every": 1, "keep": 2}
    if what == "sft":
        return trainer.train_sft(sft_recipe(**changes), talks(30), start, out)
    if what == "reward":
        return trainer.train_reward(reward_recipe(**changes), sums(0, 30), start, out)
    if what == "preference":
        return trainer.train_preference(preference_recipe(**changes), sums(0, 30), start, out)
    return trainer.train_dpo(dpo_recipe(**changes), sums(0, 30), start, start, out)


if __name__ == "__main__":
    backend, what, path, out, threads = sys.argv[1:]
    torch.set_num_threads(int(threads))
    train(backend, what, Checkpoint(path, checkpoint_digest(Path(path))), Path(out))
