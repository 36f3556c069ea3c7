"""The Bradley-Terry reward model (the paper, section 2.1), from top to bottom: −log σ(r_chosen − r_rejected).

A linear head reads each conversation at its last token. Prompt, chosen and rejected answer share one row of tokens, so
the prompt is computed once for both; where a model cannot do that they take two rows.

Left out of the paper: its optimiser ran on eight GPUs (several processes, sharding and quantised weights are left to
the trl back end).
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from rlhf_bench.harness.judges.reward import quiet
from rlhf_bench.harness.progress import Track
from rlhf_bench.harness.types import Checkpoint, Preference
from rlhf_bench.trainers.chat import check_data
from rlhf_bench.trainers.faults import faults
from rlhf_bench.trainers.losses import bradley_terry
from rlhf_bench.trainers.measures import reward_means, reward_terms
from rlhf_bench.trainers.plain.journal import Journal
from rlhf_bench.trainers.plain.models import load_scorer, padding_token, save, tokenizer_of
from rlhf_bench.trainers.plain.pairs import lengths_of, packed, tokens_of
from rlhf_bench.trainers.plain.steps import (
    adamw,
    add,
    batches,
    check_recipe,
    computing,
    descend,
    learning_rate,
    parts,
)
from rlhf_bench.trainers.recipes import RewardRecipe
from rlhf_bench.trainers.rows import pair_rows, room

log = logging.getLogger(__name__)


def fit_reward(
    recipe: RewardRecipe, preferences: Sequence[Preference], base: Checkpoint, work: Path, track: Track
) -> Mapping[str, int]:
    """Minimise the recipe's loss of a new head on `base`, and of `base` below it, in `work / "model"`."""
    check_recipe(recipe, base)
    with quiet(), faults(work):
        tokenizer = tokenizer_of(base)
        check_data(tokenizer, [pair.prompt for pair in preferences])
        pairs, facts = pair_rows(preferences, tokenizer, room(recipe, base))
        tokenizer.pad_token_id = padding_token(
            tokenizer, {pair[side][-1] for pair in pairs for side in ("chosen", "rejected")}
        )

        model = load_scorer(base, recipe, tokenizer.pad_token_id)
        if not model.shares:
            log.warning("%s computes a prompt once for each answer: no mask keeps two in one row apart", base.path)
        optimizer = adamw(model.whole, recipe)
        steps = batches(len(pairs), recipe)
        journal = Journal(work, recipe, model.whole, optimizer, len(steps))
        with track("train reward", len(pairs) * recipe.epochs) as advance:
            done = journal.resume()
            advance(sum(map(len, steps[:done])))
            for step, batch in enumerate(steps[done:], start=done):
                totals: dict[str, float] = {}
                for part in parts(batch, recipe):
                    with computing(recipe, model.device):
                        rows = packed(model, [pairs[row] for row in part])
                        states_AD = model.states(rows)[rows.last_A]
                    chosen_B, rejected_B = model.head(states_AD.float()).view(-1, 2).unbind(1)
                    margins_B = torch.tensor([pairs[row]["margin"] for row in part], device=model.device)
                    loss_B = bradley_terry(
                        chosen_B,
                        rejected_B,
                        margins_B if recipe.use_margin else None,
                        smoothing=recipe.label_smoothing,
                        centring=recipe.centring,
                    )
                    (loss_B.sum() / len(batch)).backward()  # type: ignore[no-untyped-call]
                    terms = reward_terms(chosen_B, rejected_B, *lengths_of([pairs[row] for row in part]))
                    add(totals, {"loss": loss_B, **terms})
                    advance(len(part))
                lr = learning_rate(recipe, step, len(steps))
                norm = descend(optimizer, recipe, lr)
                means = {"loss": totals["loss"] / len(batch), **reward_means(totals, len(batch))}
                tokens = sum(tokens_of(pairs[row]) for row in batch)
                journal.write(step + 1, {**means, "lr": lr, "grad_norm": norm}, tokens)

        tokenizer.save_pretrained(save(model, base, work))
    return {**facts, "shared_prompt": int(model.shares)}
