"""What TRL, or this machine, lacks of a recipe: told before TRL is imported and any long work."""

from __future__ import annotations

import importlib.util
import os
from typing import Any

import torch

from rlhf_bench.harness.errors import UserError
from rlhf_bench.harness.types import Checkpoint
from rlhf_bench.trainers.adapters import check_layers
from rlhf_bench.trainers.backends import processes
from rlhf_bench.trainers.memory import check_fits, main_memory
from rlhf_bench.trainers.recipes import DPORecipe, Training


def check_recipe(recipe: Training, start: Checkpoint | None) -> None:
    """Raise UserError for what TRL does not have and, with `start` to be trained here, for what is not to be had here.

    That is the processes, the sharding, the trackers and bits that are asked for, or room for the model.
    """
    bits = None if recipe.lora is None else recipe.lora.bits
    if isinstance(recipe, DPORecipe) and recipe.loss == "simpo":
        raise UserError("loss 'simpo' is not one of TRL's: use --backend torch")
    if recipe.shard is not None and bits is not None:
        raise UserError(f"shard {recipe.shard} and lora.bits {bits} do not go together: set one of them null")
    if start is None:
        return
    if recipe.batch_size % (recipe.micro_batch * processes()):
        raise UserError(
            f"batch_size {recipe.batch_size} is not a multiple of micro_batch {recipe.micro_batch} × {processes()} "
            "processes: change one of them"
        )
    for name in recipe.report_to:
        if importlib.util.find_spec(name) is None:
            raise UserError(f"report_to {name} needs the package {name}: pip install {name}, or leave it out")
    if recipe.shard is not None and not torch.cuda.is_available():
        raise UserError(f"shard {recipe.shard} needs GPUs and there is none here: set shard=null")
    sharding(recipe, processes())
    if bits is not None:
        check_bits(bits)
    check_layers(recipe, start)
    check_fits(recipe, start, _room_bytes(), processes())


def check_bits(bits: int) -> None:
    """Raise UserError where weights in so many bits are not to be had here."""
    if not torch.cuda.is_available():
        raise UserError(f"lora.bits {bits} needs a GPU and there is none here: set lora.bits=null")
    if importlib.util.find_spec("bitsandbytes") is None:
        raise UserError(f"lora.bits {bits} needs bitsandbytes: pip install bitsandbytes, or set lora.bits=null")


def sharding(recipe: Training, among: int) -> dict[str, Any]:
    """How `shard` is said to transformers: FSDP of PyTorch (version 2), or a DeepSpeed configuration."""
    if recipe.shard is None:
        return {}
    if among == 1:
        raise UserError(
            f"shard {recipe.shard} shares the model among several processes and this is one: start it with "
            "torchrun --nproc-per-node GPUS, or set shard=null"
        )
    if recipe.shard == "fsdp":
        return {"fsdp": True, "fsdp_config": {"version": 2, "auto_wrap_policy": "TRANSFORMER_BASED_WRAP"}}
    if importlib.util.find_spec("deepspeed") is None:
        raise UserError(f"shard {recipe.shard} needs DeepSpeed: pip install deepspeed, or set shard=fsdp")
    stage: dict[str, Any] = {"stage": int(recipe.shard.removeprefix("zero")), "overlap_comm": True}
    if stage["stage"] == 3:
        stage["stage3_gather_16bit_weights_on_model_save"] = True
    ours = ("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps", "gradient_clipping")
    bf16 = {"enabled": recipe.dtype == "bfloat16"}
    return {"deepspeed": {"zero_optimization": stage, "bf16": bf16, **dict.fromkeys(ours, "auto")}}


def _room_bytes() -> int:
    if torch.cuda.is_available():
        return int(torch.cuda.get_device_properties(int(os.environ.get("LOCAL_RANK", "0"))).total_memory)
    return main_memory()
