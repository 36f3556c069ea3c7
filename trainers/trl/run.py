"""A run: from the recipe to a trainer's arguments, the steps with what is shown and written, checkpoints, faults."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import PrinterCallback, TrainerCallback

from rlhf_bench.harness.errors import Fault
from rlhf_bench.harness.files import write
from rlhf_bench.harness.progress import Advance, Track
from rlhf_bench.harness.types import Checkpoint
from rlhf_bench.trainers import curve
from rlhf_bench.trainers.backends import DRAFT, METRICS, processes
from rlhf_bench.trainers.recipes import Training
from rlhf_bench.trainers.trl.options import check_recipe, sharding

COMPLETE = "complete.json"
STEPS = "steps"


def configured(cls: Any, recipe: Training, start: Checkpoint, work: Path, **options: Any) -> Any:
    """A configuration of TRL's for the recipe, with `options` of that trainer.

    Raises UserError as `check_recipe` does.
    """
    check_recipe(recipe, start)
    sharded = sharding(recipe, processes())
    config = cls(**_arguments(recipe, work), **sharded, **options)
    config._n_gpu = min(config.n_gpu, 1)  # several GPUs are for several processes
    return config


def _arguments(recipe: Training, work: Path) -> dict[str, Any]:
    """The recipe in TRL's terms, and every default of transformers and TRL that would act by itself switched off."""
    on_gpu = torch.cuda.is_available()
    return {
        "output_dir": str(work / STEPS),
        "num_train_epochs": recipe.epochs,
        "per_device_train_batch_size": recipe.micro_batch,
        "gradient_accumulation_steps": recipe.batch_size // (recipe.micro_batch * processes()),
        "learning_rate": recipe.learning_rate,
        "lr_scheduler_type": recipe.schedule,
        "weight_decay": recipe.weight_decay,
        "max_grad_norm": recipe.max_grad_norm,
        "optim": "adamw_torch",
        "bf16": recipe.dtype == "bfloat16",
        "gradient_checkpointing": recipe.gradient_checkpointing,
        "max_length": None,
        "seed": recipe.seed,
        "data_seed": recipe.seed,
        "remove_unused_columns": False,
        "save_strategy": "steps",
        "save_steps": recipe.save_every,
        "save_total_limit": recipe.keep,
        "logging_strategy": "steps",
        "logging_steps": 1,
        "logging_nan_inf_filter": False,
        "report_to": list(recipe.report_to) or "none",
        "run_name": work.name.removesuffix(".work"),
        "disable_tqdm": True,
        "use_cpu": not on_gpu,
        "ddp_backend": "gloo" if processes() > 1 and not on_gpu else None,
        "ddp_find_unused_parameters": False,
        "dataloader_num_workers": 0,
        "dataloader_pin_memory": False,
    }


def steps(trainer: Any, recipe: Training, rows: int, work: Path, track: Track, label: str) -> Path:
    """Train, from the last complete checkpoint if there is one; returns the empty draft folder with the metrics."""
    draft = work / DRAFT
    trainer.remove_callback(PrinterCallback)
    with trainer.accelerator.main_process_first():
        resume = last_complete(work / STEPS)
    with track(label, rows * recipe.epochs) as advance:
        trainer.add_callback(Watch(recipe, rows, trainer.accelerator.num_processes, work, advance))
        trainer.args.warmup_steps = recipe.warmup_steps(recipe.epochs * math.ceil(rows / recipe.batch_size))
        trainer.train(resume_from_checkpoint=None if resume is None else str(resume))
    if trainer.is_world_process_zero():
        shutil.rmtree(draft, ignore_errors=True)
        draft.mkdir()
        shutil.copy(work / METRICS, draft / METRICS)
        for logged in (work / STEPS).glob("runs/*"):
            shutil.copytree(logged, draft / "tensorboard", dirs_exist_ok=True)
    return draft


class Watch(TrainerCallback):  # type: ignore[misc]
    """Shows progress in rows, writes metrics.jsonl, and stops where nothing good can come of it any more."""

    def __init__(self, recipe: Training, rows: int, processes: int, work: Path, advance: Advance) -> None:
        self._recipe, self._rows, self._work, self._advance = recipe, rows, work, advance
        self._round = recipe.micro_batch * processes
        self._total, self._done = rows * recipe.epochs, 0
        self._losses: list[float] = []

    def _show(self, rows: int) -> None:
        rows = min(rows, self._total - self._done)
        self._done += rows
        self._advance(rows)

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        epochs, part = divmod(state.global_step, self._per_epoch)
        self._show(epochs * self._rows + part * self._recipe.batch_size)
        before = [entry for entry in state.log_history if "loss" in entry]
        self._losses = [entry["loss"] for entry in before]
        if state.is_world_process_zero:
            (self._work / METRICS).write_text("".join(self._line(entry) for entry in before))

    def on_substep_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._show(self._round)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._show(self._round)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._show(self._total)

    def on_log(self, args: Any, state: Any, control: Any, logs: Mapping[str, float], **kwargs: Any) -> None:
        if "loss" not in logs:
            return
        self._losses.append(float(logs["loss"]))
        wrong = curve.fault(self._losses, float(logs.get("grad_norm", 0.0)))
        if wrong:
            what, since = wrong
            raise Fault(f"{what} at step {state.global_step}: {self._advice(state.global_step - since)}")
        if state.is_world_process_zero:
            with (self._work / METRICS).open("a") as file:
                file.write(self._line(state.log_history[-1]))

    @property
    def _per_epoch(self) -> int:
        return math.ceil(self._rows / self._recipe.batch_size)

    def _line(self, entry: Mapping[str, float]) -> str:
        kept = {"lr" if key == "learning_rate" else key: value for key, value in entry.items()}
        return json.dumps({**kept, "epoch": entry["step"] / self._per_epoch}, sort_keys=True) + "\n"

    def _advice(self, step: int) -> str:
        """What to change, and the last checkpoint of this step or an earlier one."""
        found = [path for path in complete(self._work / STEPS) if step_of(path) <= step]
        last = f"the last good checkpoint is {found[-1]}" if found else "no checkpoint is from before that"
        return f"{curve.remedy(self._recipe)}; {last}"


def mark(folder: Path) -> None:
    """Say that a checkpoint is written to its end."""
    files = (file for file in folder.rglob("*") if file.is_file() and file.name != COMPLETE)
    sizes = {file.relative_to(folder).as_posix(): file.stat().st_size for file in files}
    write(folder / COMPLETE, json.dumps(sizes))


def step_of(path: Path) -> int:
    """The step of a checkpoint's folder."""
    return int(path.name.rpartition("-")[2])


def complete(folder: Path) -> list[Path]:
    """The checkpoints in `folder` that were written to their end, in order."""
    return [path for path in sorted(folder.glob("checkpoint-*"), key=step_of) if _is_complete(path)]


def last_complete(folder: Path) -> Path | None:
    """The latest checkpoint in `folder` that was written to its end; half-written ones are removed."""
    for path in folder.glob("checkpoint-*"):
        if not _is_complete(path):
            shutil.rmtree(path)
    found = complete(folder)
    return found[-1] if found else None


def _is_complete(path: Path) -> bool:
    try:
        sizes = json.loads((path / COMPLETE).read_text())
        return all((path / name).stat().st_size == size for name, size in sizes.items())
    except (OSError, ValueError):
        return False
