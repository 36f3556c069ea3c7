"""What a training will be, before it begins: how many rows of the data it takes, how many steps, how many tokens."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rlhf_bench.harness.types import Conversation, Preference
from rlhf_bench.trainers.recipes import DPORecipe, PreferenceRecipe, RewardRecipe, SFTRecipe, Training
from rlhf_bench.trainers.rows import Row, conversation_rows, pair_rows, question_rows

SAMPLE = 1000


@dataclass(frozen=True, slots=True)
class TrainingPlan:
    """`given` conversations or pairs, of which `used` fit `limit` tokens; they make `rows`, and these `steps`.

    `tokens` are those of all epochs, without padding. `exact` is False where they were counted on a part of the data.
    """

    given: int
    used: int
    limit: int
    rows: int
    steps: int
    tokens: int
    exact: bool


def plan_of(
    recipe: Training, data: Sequence[Conversation] | Sequence[Preference], tokenizer: Any, limit: int
) -> TrainingPlan:
    """The plan for data of the recipe's kind; past 1000 rows it is reckoned from a part that is spread over them.

    Raises UserError where no row fits, and as the tokenizer's chat template demands.
    """
    part: Any = data if len(data) <= SAMPLE else [data[i * len(data) // SAMPLE] for i in range(SAMPLE)]
    rows, facts = _rows(recipe, part, tokenizer, limit)
    scale = len(data) / len(part)
    count = round(len(rows) * scale)
    return TrainingPlan(
        given=len(data),
        used=round((len(part) - facts["over_length"]) * scale),
        limit=limit,
        rows=count,
        steps=recipe.epochs * math.ceil(count / recipe.batch_size),
        tokens=round(sum(map(_tokens, rows)) * recipe.epochs * scale),
        exact=len(part) == len(data),
    )


def _rows(recipe: Training, data: Any, tokenizer: Any, limit: int) -> tuple[list[Row], dict[str, int]]:
    if isinstance(recipe, SFTRecipe):
        return conversation_rows(data, tokenizer, limit, recipe.packing)
    if isinstance(recipe, PreferenceRecipe):
        rows, facts, _ = question_rows(data, tokenizer, limit, recipe.packing, recipe.seed)
        return rows, facts
    assert isinstance(recipe, RewardRecipe | DPORecipe)
    return pair_rows(data, tokenizer, limit)


def _tokens(row: Row) -> int:
    if "input_ids" in row:
        return len(row["input_ids"])
    return 2 * len(row["prompt"]) + len(row["chosen"]) + len(row["rejected"])
