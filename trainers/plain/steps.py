"""One optimiser step after another: which rows it takes, how far it goes. All of it follows from recipe and step.

The order of the data, the schedule and the optimiser are those that `backends.Fit` asks of every back end.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor

from rlhf_bench.harness.errors import UserError
from rlhf_bench.harness.types import Checkpoint
from rlhf_bench.trainers.adapters import check_layers
from rlhf_bench.trainers.backends import processes
from rlhf_bench.trainers.memory import check_fits, main_memory
from rlhf_bench.trainers.recipes import Training


def check_recipe(recipe: Training, start: Checkpoint | None) -> None:
    """Raise UserError for what this back end leaves to TRL and, with `start` to be trained here, if it cannot fit."""
    beyond = {
        "several processes": start is not None and processes() > 1,
        f"shard {recipe.shard}": recipe.shard is not None,
        f"report_to {', '.join(recipe.report_to)}": bool(recipe.report_to),
        f"lora.bits {recipe.lora and recipe.lora.bits}": recipe.lora is not None and recipe.lora.bits is not None,
    }
    for option, asked in beyond.items():
        if asked:
            raise UserError(f"the torch back end has no {option}: use --backend trl, or leave it out")
    if start is None:
        return
    check_layers(recipe, start)
    on_gpu = torch.cuda.is_available()
    check_fits(recipe, start, torch.cuda.get_device_properties(0).total_memory if on_gpu else main_memory())


def batches(rows: int, recipe: Training) -> list[list[int]]:
    """The row numbers of every step. An epoch e takes them in the order that a generator seeded with seed + e permutes.

    So do transformers and accelerate (SeedableRandomSampler). An epoch's last step takes what is left.
    """
    found = []
    for epoch in range(recipe.epochs):
        order = torch.randperm(rows, generator=torch.Generator().manual_seed(recipe.seed + epoch)).tolist()
        found += [order[first : first + recipe.batch_size] for first in range(0, rows, recipe.batch_size)]
    return found


def parts(batch: Sequence[int], recipe: Training) -> list[Sequence[int]]:
    """What is held in memory at once."""
    return [batch[first : first + recipe.micro_batch] for first in range(0, len(batch), recipe.micro_batch)]


def learning_rate(recipe: Training, step: int, steps: int) -> float:
    """The learning rate of a step (from 0) among `steps`: up in a line over its warm-up, then by schedule."""
    warmup = recipe.warmup_steps(steps)
    if step < warmup:
        return recipe.learning_rate * step / warmup
    done = (step - warmup) / max(1, steps - warmup)
    left = {"cosine": (1 + math.cos(math.pi * done)) / 2, "linear": 1 - done, "constant_with_warmup": 1.0}
    return recipe.learning_rate * left[recipe.schedule]


def adamw(model: Any, recipe: Training) -> torch.optim.AdamW:
    """AdamW (0.9, 0.999, 1e-8) on what is trained; weight decay on matrices only, not on biases and norms."""
    trained = [weight for weight in model.parameters() if weight.requires_grad]
    groups = [
        {"params": [weight for weight in trained if weight.ndim > 1], "weight_decay": recipe.weight_decay},
        {"params": [weight for weight in trained if weight.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW([group for group in groups if group["params"]], lr=recipe.learning_rate, fused=True)


def descend(optimizer: torch.optim.Optimizer, recipe: Training, lr: float) -> float:
    """One step along the gradients, clipped to `max_grad_norm` over all of them. Returns their norm before clipping."""
    trained = [weight for group in optimizer.param_groups for weight in group["params"]]
    norm = torch.nn.utils.clip_grad_norm_(trained, recipe.max_grad_norm)
    for group in optimizer.param_groups:
        group["lr"] = lr
    optimizer.step()
    optimizer.zero_grad()
    return float(norm)


def computing(recipe: Training, device: torch.device) -> AbstractContextManager[Any]:
    """The precision of the forward pass."""
    return torch.autocast(device.type, torch.bfloat16, enabled=recipe.dtype == "bfloat16")


def add(totals: dict[str, float], sums: Mapping[str, Tensor]) -> None:
    """Adds the sum of each vector to the total of its name."""
    for name, values in sums.items():
        totals[name] = totals.get(name, 0.0) + float(values.detach().double().sum())
