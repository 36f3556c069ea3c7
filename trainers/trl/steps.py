"""A training step as all four recipes take it: whose rows, in which order, weighed how, measured how."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor
from torch.utils.data import Sampler
from transformers import Trainer

from rlhf_bench.trainers.backends import processes
from rlhf_bench.trainers.rows import Row
from rlhf_bench.trainers.trl.run import mark

FILLER = "filler"


class Step(Trainer):  # type: ignore[misc]
    """Stands before a trainer of TRL's among the bases; says nothing to anyone.

    Rows come in the order that `Fit` states, each of P processes takes every P-th micro-batch, and a step's loss is the
    mean over its rows. Where the last round of an epoch has too few rows for all processes, some get a filler, which
    weighs nothing.
    """

    loss_is_scaled_for_ga = True  # by `weighed`

    def __init__(self, *, rows: list[Row], seed: int, filler: Row | None = None, **kwargs: Any) -> None:
        self._count, self._seed = len(rows), seed
        self._sums: dict[str, Tensor] = {}
        self._began_s = 0.0
        data = [{**row, FILLER: False} for row in rows]
        if processes() > 1:
            data.append({**(filler or rows[0]), FILLER: True})
        super().__init__(train_dataset=Dataset.from_list(data), **kwargs)
        self.data_collator: Any = _Real(self.data_collator)

    def _send_telemetry(self) -> None:
        return None

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        return None

    def _prepare_dataset(self, dataset: Dataset, *args: Any) -> Dataset:
        return dataset

    def _get_train_sampler(self, *args: Any) -> Sampler[int]:
        among, micro = self.accelerator.num_processes, self.args.train_batch_size
        an_epoch = math.ceil(self._count / (micro * among * self.args.gradient_accumulation_steps))
        round_rows = micro * among if among > 1 else 1
        return Order(self._count, self._seed, round_rows, lambda: self.state.global_step // an_epoch)

    def get_batch_samples(self, *args: Any) -> Any:
        self._began_s = time.monotonic()
        return super().get_batch_samples(*args)

    def _get_num_items_in_batch(self, batches: list[Any], device: torch.device) -> Tensor:
        """The rows of a step, of all processes."""
        own = torch.tensor(sum(each["rows"] for each in batches), device=device)
        rows: Tensor = self.accelerator.reduce(own, reduction="sum")
        return rows

    def weighed(self, mean: Tensor, rows: int, num_items: Tensor) -> Tensor:
        """What a micro-batch adds to the step's loss, from the mean over its rows (over a filler, if `rows` is 0)."""
        share: Tensor = rows * self.accelerator.num_processes / num_items  # the processes' gradients are averaged
        return mean * share

    def note(self, rows: int, **sums: Tensor) -> None:
        """Add to the sums that the step's metrics are made of."""
        for name, value in {"rows": torch.tensor(rows), **sums}.items():
            added = value.detach().to(self.args.device, torch.float64) * bool(rows)
            self._sums[name] = self._sums[name] + added if name in self._sums else added

    def measured(self, sums: Mapping[str, float]) -> dict[str, float]:
        """The metrics of a step from the sums over all processes."""
        return {name: value / sums["rows"] for name, value in sums.items() if name not in ("rows", "tokens")}

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        self._metrics["train"].clear()  # TRL's own
        if "loss" in logs:
            names = sorted(self._sums)
            values = self.accelerator.reduce(torch.stack([self._sums[name] for name in names]), reduction="sum")
            sums = dict(zip(names, values.tolist(), strict=True))
            logs |= self.measured(sums)
            logs["tokens_per_s"] = sums["tokens"] / (time.monotonic() - self._began_s)
            self._sums = {}
        super().log(logs, start_time)

    def _save_checkpoint(self, *args: Any, **kwargs: Any) -> None:
        super()._save_checkpoint(*args, **kwargs)
        self.accelerator.wait_for_everyone()
        if self.is_world_process_zero():
            mark(Path(self.args.output_dir) / f"checkpoint-{self.state.global_step}")


class Seen:
    """Calls a model and keeps what it gave, so that more can be made of it than TRL's loss."""

    def __init__(self, model: Any) -> None:
        self._model = model
        self.outputs: Any = None

    def __call__(self, **kwargs: Any) -> Any:
        kwargs.pop("margin", None)
        self.outputs = self._model(**kwargs)
        return self.outputs


@contextmanager
def alone(accelerator: Any) -> Iterator[None]:
    """TRL's own metrics are dropped, so nothing is gathered for them; processes' micro-batches may differ in size."""
    accelerator.gather = accelerator.gather_for_metrics = lambda value: value
    try:
        yield
    finally:
        del accelerator.gather, accelerator.gather_for_metrics


class Order(Sampler[int]):
    """Epoch e: torch.randperm seeded with seed + e, then fillers (the index after the last row) up to whole rounds.

    It asks which epoch it is. Accelerate tells a sampler, but not one of several processes that resume within an epoch:
    there transformers goes on with the rows of epoch 0.
    """

    def __init__(self, rows: int, seed: int, round_rows: int, epoch: Callable[[], int]) -> None:
        self._rows, self._seed, self._epoch = rows, seed, epoch
        self._length = -(-rows // round_rows) * round_rows

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self._seed + self._epoch())
        order = torch.randperm(self._rows, generator=generator).tolist()
        return iter([*order, *[self._rows] * (self._length - self._rows)])

    def __len__(self) -> int:
        return self._length


class _Real:
    """Makes a batch of the rows that are no fillers, or of one filler where there is nothing else, and counts them."""

    def __init__(self, collate: Callable[[list[Row]], dict[str, Any]]) -> None:
        self._collate = collate

    def __call__(self, rows: list[Row]) -> dict[str, Any]:
        real = [row for row in rows if not row[FILLER]]
        return {**self._collate(real or rows[:1]), "rows": len(real)}
