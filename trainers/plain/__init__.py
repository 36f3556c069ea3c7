"""The torch back end: plain recipes, one readable file each, no trainer class. The reference for the paper's equations.

A recipe is a function that reads from top to bottom: rows, model, optimiser, the loop over steps, the checkpoint. What
the four share are leaves: `rows` (pairs as tokens), `models` (loaded, taken apart, saved), `steps` (order, schedule,
AdamW), `journal` (metrics, checkpoints, resume) and `logps` (log-probabilities without logits); the losses are in
`trainers.losses`. What it does not have (several processes, quantised weights, trackers) it refuses by name.
"""

from __future__ import annotations

from rlhf_bench.trainers.plain.dpo import fit_dpo
from rlhf_bench.trainers.plain.preference import fit_preference
from rlhf_bench.trainers.plain.reward import fit_reward
from rlhf_bench.trainers.plain.sft import fit_sft
from rlhf_bench.trainers.plain.steps import check_recipe

__all__ = ["check_recipe", "fit_dpo", "fit_preference", "fit_reward", "fit_sft"]
