"""What libraries raise while a model is trained, as a Fault that says what to do."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import SafetensorError

from rlhf_bench.harness.errors import Fault

GO_ON = "run it again to go on from the last one"


@contextmanager
def faults(work: Path) -> Iterator[None]:
    """Memory that runs out, and weights or checkpoints that cannot be written or read."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise Fault(
            "the model does not fit: lower micro_batch or max_length, set lora or gradient_checkpointing"
        ) from None
    except SafetensorError as error:
        raise Fault(f"weights could not be written or read in {work}: {error}; {GO_ON}") from error
    except RuntimeError as error:
        if "inline_container" not in str(error):  # torch's writer of optimiser states, which does not say why
            raise
        left_mb = shutil.disk_usage(work).free // 1_000_000
        raise Fault(f"no checkpoint could be written in {work}, whose disk has {left_mb} MB left: {GO_ON}") from error
