"""Supervised fine-tuning by TRL's SFTTrainer, on token ids and labels of our own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from peft import TaskType
from torch import Tensor
from transformers import AutoModelForCausalLM, Trainer, set_seed
from trl import SFTConfig, SFTTrainer

from rlhf_bench.harness.judges.reward import quiet
from rlhf_bench.harness.progress import Track
from rlhf_bench.harness.types import Checkpoint, Conversation
from rlhf_bench.trainers.chat import check_data
from rlhf_bench.trainers.faults import faults
from rlhf_bench.trainers.recipes import SFTRecipe
from rlhf_bench.trainers.rows import IGNORED, conversation_rows, room
from rlhf_bench.trainers.starts import copy_settings
from rlhf_bench.trainers.trl import models
from rlhf_bench.trainers.trl.run import configured, steps
from rlhf_bench.trainers.trl.steps import Step, alone


def fit_sft(
    recipe: SFTRecipe, conversations: Sequence[Conversation], base: Checkpoint, work: Path, track: Track
) -> Mapping[str, int]:
    """Minimise −log p(token | what stands before) over the assistant's tokens, in `work / "model"`.

    Packed, the conversations of a micro-batch are one row of tokens. Each has positions of its own from 0, from which
    transformers makes the mask that keeps them apart (block-diagonal; under flash attention, sequence lengths).
    """
    with quiet(), faults(work):
        args = configured(SFTConfig, recipe, base, work, packing=recipe.packing)
        tokenizer = models.tokenizer_of(base)
        check_data(tokenizer, conversations, Path(base.path))
        rows, facts = conversation_rows(conversations, tokenizer, room(recipe, base), recipe.packing)
        filler = {**rows[0], "labels": [IGNORED] * len(rows[0]["labels"])}
        set_seed(recipe.seed)
        model = models.load(AutoModelForCausalLM, base, recipe)
        trainer = _SFT(
            model=model,
            args=args,
            rows=rows,
            filler=filler,
            seed=recipe.seed,
            processing_class=tokenizer,
            peft_config=models.adapters(recipe, model, TaskType.CAUSAL_LM),
        )
        models.trained_in_float32(trainer.model)
        draft = steps(trainer, recipe, len(rows), work, track, "train sft")
        models.save(trainer, recipe, AutoModelForCausalLM, base, draft)
        if trainer.is_world_process_zero():
            copy_settings(Path(base.path), draft)
    return facts


class _SFT(Step, SFTTrainer):  # type: ignore[misc]
    """TRL's loss: the mean over the step's labelled tokens, of all processes."""

    _get_num_items_in_batch = Trainer._get_num_items_in_batch

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Tensor:
        rows, ids_BT = inputs.pop("rows"), inputs["input_ids"]
        mask_BT = inputs.get("attention_mask", torch.ones_like(ids_BT))  # packed, there is no padding
        with alone(self.accelerator):
            loss: Tensor = super().compute_loss(model, inputs, num_items_in_batch=num_items_in_batch)
        self.note(rows, tokens=mask_BT.sum())
        return loss
