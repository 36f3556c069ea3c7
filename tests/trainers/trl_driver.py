"""Trains in a process of its own, which the test kills: WHAT POLICY OUT THREADS."""

from __future__ import annotations

import os
import sys
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch
from tests.trainers.conftest import dpo_recipe, reward_recipe, sums

from rlhf_bench.harness.checkpoint import checkpoint_digest
from rlhf_bench.harness.types import Checkpoint
from rlhf_bench.trainers.backends import get_backend
from rlhf_bench.trainers.recipes import LoRA

what, path, out, threads = sys.argv[1:]
torch.set_num_threads(int(threads))
start = Checkpoint(path, checkpoint_digest(Path(path)))
backend = get_backend("trl")
if what == "dpo":
    backend.train_dpo(dpo_recipe(epochs=3, save_every=3), sums(0, 30), start, start, Path(out))
else:
    recipe = reward_recipe(epochs=3, save_every=3, lora=LoRA(rank=2, dropout=0.1))
    backend.train_reward(recipe, sums(0, 30), start, Path(out))
