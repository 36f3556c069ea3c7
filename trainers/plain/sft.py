"""Supervised fine-tuning (the paper, section 3.1), from top to bottom: −log p of the assistant's tokens, a token.

With `packing`, conversations share rows of at most `max_length` tokens; each starts at position 0 and sees only itself,
so the loss is that of conversations apart. Only tokens that the assistant would have generated meet the vocabulary.

Left out of the paper: its optimiser ran on eight GPUs (several processes, sharding and quantised weights are left to
the trl back end).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import accumulate, pairwise
from pathlib import Path

import torch

from rlhf_bench.harness.judges.reward import quiet
from rlhf_bench.harness.progress import Track
from rlhf_bench.harness.shared_prompt import Packed, pack_rows
from rlhf_bench.harness.types import Checkpoint, Conversation
from rlhf_bench.trainers.chat import check_data
from rlhf_bench.trainers.faults import faults
from rlhf_bench.trainers.losses import token_mean
from rlhf_bench.trainers.plain.journal import Journal
from rlhf_bench.trainers.plain.models import (
    Loaded,
    load_policy,
    save,
    tokenizer_of,
)
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
from rlhf_bench.trainers.recipes import SFTRecipe
from rlhf_bench.trainers.rows import IGNORED, Row, conversation_rows, room
from rlhf_bench.trainers.starts import copy_settings


def fit_sft(
    recipe: SFTRecipe, conversations: Sequence[Conversation], base: Checkpoint, work: Path, track: Track
) -> Mapping[str, int]:
    """Minimise −log p of the assistant's tokens under `base`, in `work / "model"`."""
    check_recipe(recipe, base)
    with quiet(), faults(work):
        tokenizer = tokenizer_of(base)
        check_data(tokenizer, conversations, Path(base.path))
        rows, facts = conversation_rows(conversations, tokenizer, room(recipe, base), recipe.packing)

        model = load_policy(base, recipe)
        optimizer = adamw(model.whole, recipe)
        steps = batches(len(rows), recipe)
        journal = Journal(work, recipe, model.whole, optimizer, len(steps))
        with track("train sft", len(rows) * recipe.epochs) as advance:
            done = journal.resume()
            advance(sum(map(len, steps[:done])))
            for step, batch in enumerate(steps[done:], start=done):
                totals: dict[str, float] = {}
                learned = sum(label != IGNORED for row in batch for label in rows[row]["labels"])
                for part in parts(batch, recipe):
                    with computing(recipe, model.device):
                        logps_N = model.logps(_packed(model, [rows[row] for row in part]))
                    loss = token_mean(logps_N, learned)
                    loss.backward()  # type: ignore[no-untyped-call]
                    add(totals, {"loss": loss})
                    advance(len(part))
                lr = learning_rate(recipe, step, len(steps))
                norm = descend(optimizer, recipe, lr)
                tokens = sum(len(rows[row]["input_ids"]) for row in batch)
                journal.write(step + 1, {**totals, "lr": lr, "grad_norm": norm}, tokens)

        copy_settings(Path(base.path), save(model, base, work))
    return facts


def _packed(model: Loaded, rows: Sequence[Row]) -> Packed:
    """The rows, of whose tokens those are read that are learned."""
    groups, learned = [], []
    for row in rows:
        lengths = row.get("seq_lengths", [len(row["input_ids"])])
        ends = list(accumulate(lengths, initial=0))
        groups.append([(row["input_ids"][i : i + 1], [row["input_ids"][i + 1 : j]]) for i, j in pairwise(ends)])
        learned += [label != IGNORED for i, j in pairwise(ends) for label in row["labels"][i + 1 : j]]
    together = pack_rows(groups, model.device, share=model.shares)
    return together.only(torch.tensor(learned, device=model.device))
