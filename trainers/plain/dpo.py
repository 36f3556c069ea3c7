"""Direct preference optimisation (Rafailov et al. 2023, eq. 7; the paper, section 3.3), from top to bottom.

The reference's log-probabilities are computed once, before the policy is loaded, and kept in the work folder. Prompt,
chosen and rejected answer share one row of tokens, so the prompt is computed once for both; where a model cannot do
that they take two rows. Only answer tokens meet the vocabulary.

Left out of the paper: its optimiser ran on eight GPUs (several processes, sharding and quantised weights are left to
the trl back end).
"""

from __future__ import annotations

import dataclasses
import gc
import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from rlhf_bench.harness.codec import digest
from rlhf_bench.harness.errors import UserError
from rlhf_bench.harness.files import write
from rlhf_bench.harness.judges.reward import quiet
from rlhf_bench.harness.progress import Track
from rlhf_bench.harness.types import Checkpoint, Preference
from rlhf_bench.trainers.chat import check_data
from rlhf_bench.trainers.faults import faults
from rlhf_bench.trainers.losses import Answers, dpo_loss, implicit_rewards
from rlhf_bench.trainers.plain.journal import Journal
from rlhf_bench.trainers.plain.models import load_policy, load_reference, save, tokenizer_of
from rlhf_bench.trainers.plain.pairs import answers_of, tokens_of
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
from rlhf_bench.trainers.recipes import DPORecipe
from rlhf_bench.trainers.rows import Row, pair_rows, room
from rlhf_bench.trainers.starts import copy_settings

log = logging.getLogger(__name__)


def fit_dpo(
    recipe: DPORecipe,
    preferences: Sequence[Preference],
    policy: Checkpoint,
    reference: Checkpoint,
    work: Path,
    track: Track,
) -> Mapping[str, int]:
    """Minimise the recipe's loss of the policy against the reference, in `work / "model"`."""
    check_recipe(recipe, policy)
    with quiet(), faults(work):
        tokenizer = tokenizer_of(policy)
        if reference.digest != policy.digest and tokenizer_of(reference).get_vocab() != tokenizer.get_vocab():
            raise UserError(f"{reference.path} has another vocabulary than {policy.path}: it cannot be its reference")
        check_data(tokenizer, [pair.prompt for pair in preferences], Path(policy.path))
        pairs, facts = pair_rows(preferences, tokenizer, room(recipe, policy))
        anchors = None if recipe.loss == "simpo" else reference_logps(recipe, pairs, reference, work, track)

        model = load_policy(policy, recipe)
        if not model.shares:
            log.warning("%s computes a prompt once for each answer: no mask keeps two in one row apart", policy.path)
        optimizer = adamw(model.whole, recipe)
        steps = batches(len(pairs), recipe)
        journal = Journal(work, recipe, model.whole, optimizer, len(steps))
        with track("train dpo", len(pairs) * recipe.epochs) as advance:
            done = journal.resume()
            advance(sum(map(len, steps[:done])))
            for step, batch in enumerate(steps[done:], start=done):
                totals: dict[str, float] = {}
                for part in parts(batch, recipe):
                    with computing(recipe, model.device):
                        answers = answers_of(model, [pairs[row] for row in part])
                    anchor = None if anchors is None else _rows(anchors, part, model.device)
                    loss_B = dpo_loss(recipe, answers, anchor)
                    (loss_B.sum() / len(batch)).backward()  # type: ignore[no-untyped-call]
                    add(totals, {"loss": loss_B, **_shown(answers, implicit_rewards(recipe, answers, anchor))})
                    advance(len(part))
                lr = learning_rate(recipe, step, len(steps))
                norm = descend(optimizer, recipe, lr)
                means = {name: total / len(batch) for name, total in totals.items()}
                tokens = sum(tokens_of(pairs[row]) for row in batch)
                journal.write(step + 1, {**means, "lr": lr, "grad_norm": norm}, tokens)

        draft = save(model, policy, work)
        copy_settings(Path(policy.path), draft)
    return {**facts, "shared_prompt": int(model.shares)}


def reference_logps(
    recipe: DPORecipe, pairs: Sequence[Row], reference: Checkpoint, work: Path, track: Track
) -> Answers:
    """The reference's log-probabilities of every pair: from the work folder, or computed and kept there."""
    rows = [[pair["prompt"], pair["chosen"], pair["rejected"]] for pair in pairs]
    kept = work / f"reference-{digest([reference.digest, rows, recipe.dtype])[:12]}.json"
    if not kept.exists():
        model = load_reference(reference, recipe)
        found: dict[str, list[float]] = {"chosen": [], "rejected": []}
        with track("reference log-probabilities", len(pairs)) as advance, torch.inference_mode():
            for part in parts(range(len(pairs)), recipe):
                with computing(recipe, model.device):
                    answers = answers_of(model, [pairs[row] for row in part])
                found["chosen"] += answers.chosen_B.tolist()
                found["rejected"] += answers.rejected_B.tolist()
                advance(len(part))
        write(kept, json.dumps(found))
        del model
        gc.collect()  # its modules refer to each other
    known = json.loads(kept.read_text())
    tokens = torch.tensor([[len(pair["chosen"]), len(pair["rejected"])] for pair in pairs])
    return Answers(torch.tensor(known["chosen"]), torch.tensor(known["rejected"]), tokens[:, 0], tokens[:, 1])


def _rows(answers: Answers, rows: Sequence[int], device: torch.device) -> Answers:
    index = torch.tensor(rows)
    return Answers(*(getattr(answers, field.name)[index].to(device) for field in dataclasses.fields(answers)))


def _shown(answers: Answers, rewards: Answers) -> dict[str, torch.Tensor]:
    """The metrics of each pair."""
    return {
        "logps/chosen": answers.chosen_B,
        "logps/rejected": answers.rejected_B,
        "rewards/chosen": rewards.chosen_B,
        "rewards/rejected": rewards.rejected_B,
        "margin": rewards.delta_B,
        "accuracy": rewards.delta_B > 0,
    }
