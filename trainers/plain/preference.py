"""The pairwise preference model (the paper, section 2.1), from top to bottom: −log p of the better answer's letter.

The model reads the prompt with both answers and says A or B; the recipe's seed says which of the two is A. With
`packing`, questions share rows of at most `max_length` tokens, each seeing only itself.

Left out of the paper: its optimiser ran on eight GPUs (several processes, sharding and quantised weights are left to
the trl back end).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import accumulate, pairwise
from pathlib import Path

import torch
from torch import Tensor

from rlhf_bench.harness.judges.reward import quiet
from rlhf_bench.harness.progress import Track
from rlhf_bench.harness.shared_prompt import pack_rows
from rlhf_bench.harness.types import Checkpoint, Preference
from rlhf_bench.trainers.chat import check_data
from rlhf_bench.trainers.faults import faults
from rlhf_bench.trainers.plain.journal import Journal
from rlhf_bench.trainers.plain.models import Loaded, load_policy, save, tokenizer_of
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
from rlhf_bench.trainers.recipes import PreferenceRecipe
from rlhf_bench.trainers.rows import Row, question_rows, room
from rlhf_bench.trainers.starts import copy_settings


def fit_preference(
    recipe: PreferenceRecipe, preferences: Sequence[Preference], base: Checkpoint, work: Path, track: Track
) -> Mapping[str, int]:
    """Minimise −log p of the right letter after each question under `base`, in `work / "model"`."""
    check_recipe(recipe, base)
    with quiet(), faults(work):
        tokenizer = tokenizer_of(base)
        check_data(tokenizer, [])
        rows, facts, letters = question_rows(preferences, tokenizer, room(recipe, base), recipe.packing, recipe.seed)

        model = load_policy(base, recipe)
        optimizer = adamw(model.whole, recipe)
        steps = batches(len(rows), recipe)
        journal = Journal(work, recipe, model.whole, optimizer, len(steps))
        with track("train preference", len(rows) * recipe.epochs) as advance:
            done = journal.resume()
            advance(sum(map(len, steps[:done])))
            for step, batch in enumerate(steps[done:], start=done):
                totals: dict[str, float] = {}
                questions = sum(len(rows[row]["right"]) for row in batch)
                for part in parts(batch, recipe):
                    with computing(recipe, model.device):
                        right_B, wrong_B = _letters(model, [rows[row] for row in part], letters)
                    (-right_B.sum() / questions).backward()  # type: ignore[no-untyped-call]
                    add(totals, {"loss": -right_B, "accuracy": right_B > wrong_B})
                    advance(len(part))
                lr = learning_rate(recipe, step, len(steps))
                norm = descend(optimizer, recipe, lr)
                means = {name: total / questions for name, total in totals.items()}
                tokens = sum(len(rows[row]["input_ids"]) for row in batch)
                journal.write(step + 1, {**means, "lr": lr, "grad_norm": norm}, tokens)

        copy_settings(Path(base.path), save(model, base, work))
    return facts


def _letters(model: Loaded, rows: Sequence[Row], letters: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """log p of the right and of the wrong letter after each question."""
    groups, wrong = [], []
    for row in rows:
        spans = pairwise(accumulate(row["seq_lengths"], initial=0))
        asked = [row["input_ids"][first:last] for first, last in spans]
        groups.append([(ids, [[letters[right]]]) for ids, right in zip(asked, row["right"], strict=True)])
        wrong += [letters[1 - right] for right in row["right"]]
    rightly = pack_rows(groups, model.device, share=model.shares)
    targets = torch.cat([rightly.targets_N, torch.tensor(wrong, device=model.device)])
    both = replace(rightly, before_N=rightly.before_N.repeat(2), targets_N=targets)
    right_B, wrong_B = model.logps(both).view(2, -1).unbind(0)
    return right_B, wrong_B
