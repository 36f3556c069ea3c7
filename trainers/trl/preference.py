"""Pairwise preference models: the letter of the better answer, by TRL's SFTTrainer with a loss on that one token."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from peft import TaskType
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM, set_seed
from trl import SFTConfig, SFTTrainer

from rlhf_bench.harness.judges.reward import quiet
from rlhf_bench.harness.progress import Track
from rlhf_bench.harness.types import Checkpoint, Preference
from rlhf_bench.trainers.chat import check_data
from rlhf_bench.trainers.faults import faults
from rlhf_bench.trainers.recipes import PreferenceRecipe
from rlhf_bench.trainers.rows import Row, question_rows, room
from rlhf_bench.trainers.starts import copy_settings
from rlhf_bench.trainers.trl import models
from rlhf_bench.trainers.trl.run import configured, steps
from rlhf_bench.trainers.trl.steps import Step


def fit_preference(
    recipe: PreferenceRecipe, preferences: Sequence[Preference], base: Checkpoint, work: Path, track: Track
) -> Mapping[str, int]:
    """Minimise −log p(letter of the better answer | prompt and both answers), in `work / "model"`.

    The questions of a micro-batch are one row of tokens, kept apart as in SFT.
    """
    with quiet(), faults(work):
        args = configured(SFTConfig, recipe, base, work)
        tokenizer = models.tokenizer_of(base)
        check_data(tokenizer, [])
        limit = room(recipe, base)
        rows, facts, letters = question_rows(preferences, tokenizer, limit, recipe.packing, recipe.seed)
        set_seed(recipe.seed)
        model = models.load(AutoModelForCausalLM, base, recipe)
        trainer = _Preference(
            model=model,
            args=args,
            rows=rows,
            seed=recipe.seed,
            letters=letters,
            data_collator=_joined,
            processing_class=tokenizer,
            peft_config=models.adapters(recipe, model, TaskType.CAUSAL_LM),
        )
        models.trained_in_float32(trainer.model)
        draft = steps(trainer, recipe, len(rows), work, track, "train preference")
        models.save(trainer, recipe, AutoModelForCausalLM, base, draft)
        if trainer.is_world_process_zero():
            copy_settings(Path(base.path), draft)
    return facts


def _joined(rows: list[Row]) -> dict[str, Any]:
    """Rows as one: `ends` are the places before the letters; `right` is 0 where the letter is A and 1 where it is B."""
    lengths = [length for row in rows for length in row["seq_lengths"]]
    return {
        "input_ids": torch.tensor([[token for row in rows for token in row["input_ids"]]]),
        "position_ids": torch.cat([torch.arange(length) for length in lengths])[None],
        "ends": torch.tensor(lengths).cumsum(0) - 1,
        "right": torch.tensor([right for row in rows for right in row["right"]]),
    }


class _Preference(Step, SFTTrainer):  # type: ignore[misc]
    """The mean over the step's questions, of all processes."""

    def __init__(self, *, letters: tuple[int, int], **kwargs: Any) -> None:
        self._letters = torch.tensor(letters)
        super().__init__(**kwargs)

    def _get_num_items_in_batch(self, batches: list[Any], device: torch.device) -> Tensor:
        own = torch.tensor(sum(len(each["right"]) for each in batches if each["rows"]), device=device)
        questions: Tensor = self.accelerator.reduce(own, reduction="sum")
        return questions

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Tensor:
        ends_Q, right_Q = inputs.pop("ends"), inputs.pop("right")
        questions = len(right_Q) if inputs.pop("rows") else 0
        logits_QV = model(**inputs, use_cache=False, logits_to_keep=ends_Q).logits[0].float()
        letters = self._letters.to(logits_QV.device)
        loss = cross_entropy(logits_QV, letters[right_Q])
        said_Q = logits_QV[:, letters].argmax(-1)
        self.note(
            questions,
            tokens=torch.tensor(inputs["input_ids"].numel()),
            accuracy=(said_Q == right_Q).sum(),
        )
        return self.weighed(loss, questions, num_items_in_batch)
