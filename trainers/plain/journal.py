"""What a run has done so far: a line for every step, and checkpoints from which it goes on to the same weights.

    work/metrics.jsonl               a line a step
    work/steps/12.safetensors        after step 12: what is trained, AdamW's moments, the state of the random numbers

A checkpoint is written under another name and renamed, so one that is there is whole; a disk that is full, or a process
that is killed, leaves the earlier ones. What rows a step takes and its learning rate follow from its number.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from rlhf_bench.harness.errors import Fault
from rlhf_bench.harness.files import write
from rlhf_bench.trainers import curve
from rlhf_bench.trainers.backends import METRICS
from rlhf_bench.trainers.recipes import Training

MOMENTS = ("step", "exp_avg", "exp_avg_sq")


class Journal:
    """The record of a run of `steps` steps on a model and its optimiser."""

    def __init__(self, work: Path, recipe: Training, model: Any, optimizer: torch.optim.Optimizer, steps: int) -> None:
        self._metrics, self._folder, self._recipe, self._steps = work / METRICS, work / "steps", recipe, steps
        self._weights = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
        self._optimizer = optimizer
        self._losses: list[float] = []
        self._since = time.perf_counter()

    def resume(self) -> int:
        """Brings model, optimiser and random numbers to the latest whole checkpoint; returns the steps it has done."""
        done = next((step for step in reversed(self._saved()) if self._restore(step)), 0)
        lines = self._metrics.read_text().splitlines()[:done] if self._metrics.exists() else []
        write(self._metrics, "".join(line + "\n" for line in lines))
        self._losses = [json.loads(line)["loss"] for line in lines]
        self._since = time.perf_counter()
        return done

    def write(self, step: int, values: Mapping[str, float], tokens: int) -> None:
        """Notes step `step` (from 1) of `tokens` tokens, and saves a checkpoint when one is due.

        Raises Fault where nothing good can come of it any more.
        """
        self._check(step, values)
        now = time.perf_counter()
        a_step = {"step": step, "epoch": step * self._recipe.epochs / self._steps}
        line = {**a_step, **values, "tokens_per_s": tokens / (now - self._since)}
        self._since = now
        with self._metrics.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line, sort_keys=True) + "\n")
        if step % self._recipe.save_every == 0 and step < self._steps:
            self._save(step)
            for old in self._saved()[: -self._recipe.keep]:
                self._path(old).unlink()

    def _check(self, step: int, values: Mapping[str, float]) -> None:
        self._losses.append(values["loss"])
        wrong = curve.fault(self._losses, values["grad_norm"])
        if wrong is None:
            return
        what, since = wrong
        good = [self._path(each) for each in self._saved() if each <= step - since]
        last = f"the last good checkpoint is {good[-1]}" if good else "no checkpoint is from before that"
        raise Fault(f"{what} at step {step}: {curve.remedy(self._recipe)}; {last}")

    def _saved(self) -> list[int]:
        return sorted(int(path.stem) for path in self._folder.glob("*.safetensors") if path.stem.isdigit())

    def _path(self, step: int) -> Path:
        return self._folder / f"{step}.safetensors"

    def _save(self, step: int) -> None:
        tensors = self._state()
        draft = self._path(step).with_suffix(".tmp")
        self._folder.mkdir(exist_ok=True)
        with self._metrics.open("a") as file:
            os.fsync(file.fileno())
        try:
            save_file(tensors, draft)
            with draft.open("rb+") as file:
                os.fsync(file.fileno())
            draft.replace(self._path(step))
        except (OSError, SafetensorError) as error:
            draft.unlink(missing_ok=True)
            raise Fault(f"cannot write {self._path(step)}: {error}; run it again to go on from the last one") from error

    def _restore(self, step: int) -> bool:
        """Whether the checkpoint could be read; one that cannot is removed."""
        try:
            tensors = load_file(self._path(step))
        except (OSError, SafetensorError):
            self._path(step).unlink()
            return False
        with torch.no_grad():
            for name, weight in self._weights.items():
                weight.copy_(tensors[f"weight/{name}"])
                moments = {moment: tensors[f"{moment}/{name}"] for moment in MOMENTS if f"{moment}/{name}" in tensors}
                self._optimizer.state[weight] = {
                    key: value.to(weight.device, copy=True) for key, value in moments.items()
                }
        torch.set_rng_state(tensors["random"].clone())
        if torch.cuda.is_available() and "random/cuda" in tensors:
            torch.cuda.set_rng_state(tensors["random/cuda"].clone())
        return True

    def _state(self) -> dict[str, Tensor]:
        """What a checkpoint holds."""
        tensors = {f"weight/{name}": weight.detach() for name, weight in self._weights.items()}
        for name, weight in self._weights.items():
            tensors |= {f"{moment}/{name}": value for moment, value in self._optimizer.state[weight].items()}
        tensors["random"] = torch.get_rng_state()
        if torch.cuda.is_available():
            tensors["random/cuda"] = torch.cuda.get_rng_state()
        return tensors
