"""Which layers adapters go on, for any back end."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import torch

from rlhf_bench.harness.errors import UserError
from rlhf_bench.harness.types import Checkpoint
from rlhf_bench.trainers.recipes import LoRA, Training


def check_layers(recipe: Training, start: Checkpoint) -> None:
    """Raise UserError where more layers are to be adapted than the model has, before it is loaded."""
    if recipe.lora is None or recipe.lora.layers is None:
        return
    config = json.loads((Path(start.path) / "config.json").read_text(encoding="utf-8"))
    depth = (config.get("text_config") or config).get("num_hidden_layers")
    if depth is not None and recipe.lora.layers > depth:
        raise UserError(f"lora.layers is {recipe.lora.layers}, and {start.path} has {depth}: lower it, or null for all")


def adapted(lora: LoRA, model: Any) -> list[str]:
    """The names of the linear layers in the last `lora.layers` blocks of a transformers model.

    Raises UserError where there are none.
    """
    depth = model.config.get_text_config().num_hidden_layers
    first = 0 if lora.layers is None else depth - lora.layers
    linear = [name for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)]
    blocks = {name: int(found[1]) for name in linear if (found := re.search(r"\.(\d+)\.", name))}
    names = [name for name, block in blocks.items() if block >= first]
    if not names:
        raise UserError(f"{type(model).__name__} has no linear layers in its blocks to adapt: set lora null")
    return names
