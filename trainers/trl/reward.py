"""Bradley-Terry reward models by TRL's RewardTrainer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from peft import TaskType
from torch import Tensor
from transformers import AutoModelForSequenceClassification, set_seed
from trl import RewardConfig, RewardTrainer

from rlhf_bench.harness.judges.reward import quiet
from rlhf_bench.harness.progress import Track
from rlhf_bench.harness.types import Checkpoint, Preference
from rlhf_bench.trainers.chat import check_data
from rlhf_bench.trainers.faults import faults
from rlhf_bench.trainers.measures import reward_means, reward_terms
from rlhf_bench.trainers.recipes import RewardRecipe
from rlhf_bench.trainers.rows import pair_rows, room
from rlhf_bench.trainers.trl import models
from rlhf_bench.trainers.trl.run import configured, steps
from rlhf_bench.trainers.trl.steps import Seen, Step, alone


def fit_reward(
    recipe: RewardRecipe, preferences: Sequence[Preference], base: Checkpoint, work: Path, track: Track
) -> Mapping[str, int]:
    """Minimise -log sigmoid(r_chosen - r_rejected) (paper, section 2.1) in `work / "model"`."""
    with quiet(), faults(work):
        options = {"center_rewards_coefficient": recipe.centring or None, "disable_dropout": False}
        args = configured(RewardConfig, recipe, base, work, **options)
        tokenizer = models.tokenizer_of(base)
        check_data(tokenizer, [pair.prompt for pair in preferences])
        pairs, facts = pair_rows(preferences, tokenizer, room(recipe, base))
        rows = [{f"{side}_ids": pair["prompt"] + pair[side] for side in ("chosen", "rejected")} for pair in pairs]
        if recipe.use_margin:
            rows = [{**row, "margin": pair["margin"]} for row, pair in zip(rows, pairs, strict=True)]
        tokenizer.pad_token_id = models.padding(tokenizer, {ids[-1] for pair in pairs for ids in _answers(pair)})
        set_seed(recipe.seed)  # the new head
        model = models.load(AutoModelForSequenceClassification, base, recipe, num_labels=1)
        model.config.get_text_config().pad_token_id = tokenizer.pad_token_id
        trainer = _Reward(
            model=model,
            args=args,
            rows=rows,
            seed=recipe.seed,
            smoothing=recipe.label_smoothing,
            processing_class=tokenizer,
            peft_config=models.adapters(recipe, model, TaskType.SEQ_CLS),
        )
        models.trained_in_float32(trainer.model)
        draft = steps(trainer, recipe, len(rows), work, track, "train reward")
        models.save(trainer, recipe, AutoModelForSequenceClassification, base, draft, num_labels=1)
        if trainer.is_world_process_zero():
            tokenizer.save_pretrained(draft)
    return facts


def _answers(pair: Mapping[str, Any]) -> tuple[list[int], list[int]]:
    return pair["chosen"], pair["rejected"]


class _Reward(Step, RewardTrainer):  # type: ignore[misc]
    """TRL's loss, with label smoothing: −(1−ε) log σ(x) − ε log σ(−x) = −log σ(x) + ε x."""

    def __init__(self, *, smoothing: float, **kwargs: Any) -> None:
        self._smoothing = smoothing
        super().__init__(**kwargs)

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Tensor:
        rows, seen = inputs.pop("rows"), Seen(model)
        with alone(self.accelerator):
            loss = super().compute_loss(seen, inputs)
        rewards_2B = seen.outputs.logits.squeeze(-1)
        if self._smoothing:
            apart_B = torch.sub(*rewards_2B.chunk(2)) - inputs.get("margin", 0.0)
            loss = loss + self._smoothing * apart_B.mean()
        lengths_2B = inputs["attention_mask"].sum(1)
        terms = reward_terms(*rewards_2B.chunk(2), *lengths_2B.chunk(2))
        self.note(rows, tokens=lengths_2B.sum(), **{name: values_B.sum() for name, values_B in terms.items()})
        return self.weighed(loss, rows, num_items_in_batch)

    def measured(self, sums: Mapping[str, float]) -> dict[str, float]:
        return reward_means(sums, sums["rows"])
