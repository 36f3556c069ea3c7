"""Direct preference optimisation by TRL's DPOTrainer, against a reference that is read once."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import TaskType
from torch import Tensor
from transformers import AutoModelForCausalLM, set_seed
from trl import DPOConfig, DPOTrainer

from rlhf_bench.harness.codec import digest
from rlhf_bench.harness.errors import UserError
from rlhf_bench.harness.files import write
from rlhf_bench.harness.judges.reward import quiet
from rlhf_bench.harness.progress import Track
from rlhf_bench.harness.types import Checkpoint, Preference
from rlhf_bench.trainers.chat import check_data
from rlhf_bench.trainers.faults import faults
from rlhf_bench.trainers.recipes import DPORecipe
from rlhf_bench.trainers.rows import Row, pair_rows, room
from rlhf_bench.trainers.starts import copy_settings
from rlhf_bench.trainers.trl import models
from rlhf_bench.trainers.trl.run import configured, steps
from rlhf_bench.trainers.trl.steps import FILLER, Seen, Step, alone

SIDES = ("chosen", "rejected")


def fit_dpo(
    recipe: DPORecipe,
    preferences: Sequence[Preference],
    policy: Checkpoint,
    reference: Checkpoint,
    work: Path,
    track: Track,
) -> Mapping[str, int]:
    """Minimise the recipe's loss of the policy against the reference, in `work / "model"`."""
    with quiet(), faults(work):
        args = configured(
            DPOConfig,
            recipe,
            policy,
            work,
            beta=recipe.beta,
            loss_type=[recipe.loss],
            label_smoothing=recipe.label_smoothing,
            precompute_ref_log_probs=True,
            disable_dropout=False,
        )
        tokenizer = models.tokenizer_of(policy)
        if reference.digest != policy.digest and models.tokenizer_of(reference).get_vocab() != tokenizer.get_vocab():
            raise UserError(f"{reference.path} has another vocabulary than {policy.path}: it cannot be its reference")
        check_data(tokenizer, [pair.prompt for pair in preferences], Path(policy.path))
        pairs, facts = pair_rows(preferences, tokenizer, room(recipe, policy))
        rows = [{f"{part}_ids": pair[part] for part in ("prompt", "chosen", "rejected")} for pair in pairs]
        set_seed(recipe.seed)
        model = models.load(AutoModelForCausalLM, policy, recipe)
        same = reference.digest == policy.digest
        trainer = _DPO(
            model=model,
            ref_model=None if same else models.load(AutoModelForCausalLM, reference, recipe),
            args=args,
            rows=rows,
            seed=recipe.seed,
            recipe=recipe,
            reference=_Reference(work / f"reference-{digest([reference.digest, rows, recipe.dtype])[:12]}.json", track),
            processing_class=tokenizer,
            peft_config=models.adapters(recipe, model, TaskType.CAUSAL_LM),
        )
        models.trained_in_float32(trainer.model)
        draft = steps(trainer, recipe, len(rows), work, track, "train dpo")
        models.save(trainer, recipe, AutoModelForCausalLM, policy, draft)
        if trainer.is_world_process_zero():
            copy_settings(Path(policy.path), draft)
    return facts


class _DPO(Step, DPOTrainer):  # type: ignore[misc]
    """TRL's losses, and what it has not: label smoothing of the sigmoid loss, and the chosen answer's likelihood.

    Smoothed, −(1−ε) log σ(x) − ε log σ(−x) = −log σ(x) + ε x, with x = β (δ_chosen − δ_rejected).
    """

    def __init__(self, *, recipe: DPORecipe, reference: _Reference, **kwargs: Any) -> None:
        self._recipe, self._reference = recipe, reference
        super().__init__(**kwargs)

    def _precompute_ref_logps(self, dataset: Dataset, name: str, batch_size: int) -> Dataset:
        logps = self._reference.logps(self, [row for row in dataset if not row[FILLER]], batch_size)
        self.ref_model = None
        for side, values in logps.items():
            fillers = [0.0] * (len(dataset) - len(values))
            dataset = dataset.add_column(f"ref_{side}_logps", values + fillers)
        return dataset

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Tensor:
        rows, seen, recipe = inputs.pop("rows"), Seen(model), self._recipe
        with alone(self.accelerator):
            loss = super().compute_loss(seen, inputs)
        chosen_B, rejected_B = seen.outputs.log_probs.sum(1).chunk(2)
        rewards = [
            recipe.beta * (chosen_B - inputs["ref_chosen_logps"]),
            recipe.beta * (rejected_B - inputs["ref_rejected_logps"]),
        ]
        apart_B = rewards[0] - rewards[1]
        if recipe.label_smoothing and recipe.loss == "sigmoid":
            loss = loss + recipe.label_smoothing * apart_B.mean()
        if recipe.nll_weight:
            tokens_B, _ = inputs["completion_mask"].sum(1).chunk(2)
            loss = loss - recipe.nll_weight * (chosen_B / tokens_B).mean()
        self.note(
            rows,
            tokens=inputs["attention_mask"].sum(),
            accuracy=(apart_B > 0).sum(),
            margin=apart_B.sum(),
            **{"rewards/chosen": rewards[0].sum(), "rewards/rejected": rewards[1].sum()},
            **{"logps/chosen": chosen_B.sum(), "logps/rejected": rejected_B.sum()},
        )
        return self.weighed(loss, rows, num_items_in_batch)


class _Reference:
    """The reference's log-probabilities (nats, summed over the answer's tokens) of every pair, computed once."""

    def __init__(self, path: Path, track: Track) -> None:
        self._path = path
        self._track = track

    def logps(self, trainer: Any, rows: list[Row], batch_size: int) -> dict[str, list[float]]:
        """Of each row. Every process computes its share, and all call the model equally often."""
        with trainer.accelerator.main_process_first():
            known = self._path.exists()
        if not known:
            found = self._compute(trainer, rows, batch_size)
            if trainer.is_world_process_zero():
                write(self._path, json.dumps(dict(zip(SIDES, found.T.tolist(), strict=True))))
            trainer.accelerator.wait_for_everyone()
        columns: dict[str, list[float]] = json.loads(self._path.read_text())
        return columns

    def _compute(self, trainer: Any, rows: list[Row], batch_size: int) -> Tensor:
        device, state = trainer.args.device, trainer.accelerator
        found_N2 = torch.zeros(len(rows), 2, device=device, dtype=torch.float64)
        with self._track("reference log-probabilities", len(rows)) as advance:
            for first in range(0, len(rows), batch_size * state.num_processes):
                start = first + batch_size * state.process_index
                own = rows[start : start + batch_size]
                batch = {key: value.to(device) for key, value in trainer.data_collator(own or rows[:1]).items()}
                both = trainer.compute_ref_log_probs(trainer.ref_model or trainer.model, batch)
                if own:
                    found_N2[start : start + len(own)] = torch.stack(both, dim=1).double()
                advance(min(batch_size * state.num_processes, len(rows) - first))
        total_N2: Tensor = state.reduce(found_N2, reduction="sum")
        return total_N2
