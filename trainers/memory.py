"""Whether a training can fit at all: known from the sizes of its weights, before anything is loaded."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from pathlib import Path

from safetensors import SafetensorError, safe_open

from rlhf_bench.harness.errors import Fault, UserError
from rlhf_bench.harness.types import Checkpoint
from rlhf_bench.trainers.recipes import Training

GB = 1e9


def check_fits(recipe: Training, start: Checkpoint, room_bytes: int, processes: int = 1) -> None:
    """Raise UserError where weights, gradients and optimiser alone need more than there is on one device.

    What else it takes (activations, a second model while a reference is read) is not counted: a training that passes
    may still run out of memory.
    """
    count = parameters(Path(start.path))
    least = bytes_a_parameter(recipe, processes) * count
    if least > room_bytes:
        raise UserError(
            f"{start.path} has {count / GB:.2f} billion parameters, which take at least {least / GB:.1f} GB to train "
            f"this way, and there are {room_bytes / GB:.1f} GB: {_instead(recipe, processes)}"
        )


def bytes_a_parameter(recipe: Training, processes: int = 1) -> float:
    """Of what a process holds for each parameter of the model, the least.

    Trained whole: weights, gradients and AdamW's two moments in float32. Under adapters: the frozen weights alone.
    """
    if recipe.lora is not None:
        bits = recipe.lora.bits or (16 if recipe.dtype == "bfloat16" and recipe.shard is None else 32)
        return bits / 8 / (processes if recipe.shard in ("fsdp", "zero3") else 1)
    if recipe.shard == "zero2":
        return 4 + 12 / processes
    return 16 / (processes if recipe.shard else 1)


def parameters(folder: Path) -> int:
    """The number of weights in the safetensors files of a folder, read from their headers. Raises Fault."""
    count = 0
    for file in sorted(folder.glob("*.safetensors")):
        try:
            with safe_open(file, framework="np") as weights:
                count += sum(math.prod(weights.get_slice(name).get_shape()) for name in weights.keys())  # noqa: SIM118
        except (OSError, SafetensorError) as error:
            raise Fault(f"cannot read {file}: {error}") from error
    return count


def main_memory() -> int:
    """The bytes of this machine's memory."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _instead(recipe: Training, processes: int) -> str:
    ways: Sequence[tuple[bool, str]] = (
        (recipe.lora is None, "set lora"),
        (recipe.lora is not None and recipe.lora.bits is None, "set lora.bits=4"),
        (recipe.shard is None, "set shard and start more processes"),
        (recipe.shard is not None, f"start more than {processes} processes"),
    )
    return ", or ".join(way for possible, way in ways if possible) + ", or take a smaller model"
