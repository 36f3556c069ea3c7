"""Trains by the torch back end in a process of its own, which the test kills: POLICY OUT THREADS."""

from __future__ import annotations

import os
import sys
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch
from tests.trainers.conftest import dpo_recipe, sums

from rlhf_bench.harness.checkpoint import checkpoint_digest
from rlhf_bench.harness.types import Checkpoint
from rlhf_bench.trainers.backends import get_backend

path, out, threads = sys.argv[1:]
torch.set_num_threads(int(threads))
start = Checkpoint(path, checkpoint_digest(Path(path)))
get_backend("torch").train_dpo(dpo_recipe(epochs=4, save_every=2), sums(0, 30), start, start, Path(out))
