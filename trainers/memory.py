"""Whether a training can fit at all, by the sizes of its weights; and memory that is not kept once it is freed."""

from __future__ import annotations

import ctypes
import math
import os
import platform
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError, safe_open

from rlhf_bench.harness.errors import Fault, UserError
from rlhf_bench.harness.types import Checkpoint
from rlhf_bench.trainers.recipes import Training

GB = 1e9
RETURNED_BYTES = 2 << 20
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
_MOST = 32 << 20


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


@contextmanager
def giving_back() -> Iterator[None]:
    """Inside, main memory in blocks of RETURNED_BYTES and more goes back to the system as soon as it is freed.

    glibc raises that limit by itself, up to 32 MiB, and keeps what is smaller: freed activations, gradients and
    temporaries, between which others lie. Of a step of DPO (SmolLM2's width and vocabulary, 8 layers, 4 pairs, float32)
    1.92 GB were resident at most and are 1.52 so, at 5% more CPU time. Afterwards the limits are those that glibc comes
    to by itself. Other C libraries are left alone.
    """
    if platform.libc_ver()[0] != "glibc":
        yield
        return
    libc = ctypes.CDLL(None)
    libc.mallopt(_MMAP_THRESHOLD, RETURNED_BYTES)
    try:
        yield
    finally:
        libc.mallopt(_MMAP_THRESHOLD, _MOST)
        libc.mallopt(_TRIM_THRESHOLD, 2 * _MOST)


def _instead(recipe: Training, processes: int) -> str:
    ways: Sequence[tuple[bool, str]] = (
        (recipe.lora is None, "set lora"),
        (recipe.lora is not None and recipe.lora.bits is None, "set lora.bits=4"),
        (recipe.shard is None, "set shard and start more processes"),
        (recipe.shard is not None, f"start more than {processes} processes"),
    )
    return ", or ".join(way for possible, way in ways if possible) + ", or take a smaller model"
