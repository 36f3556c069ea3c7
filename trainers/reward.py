"""The embedded reward model `demo-reward`: trained once, here, on preferences that this project can make honestly.

Chosen: the packaged reference answers. Rejected: the same answers damaged by a program (trainers.preferences). It
judges what such damage can teach (complete, on topic, not padded), no more; every table that it judges says so.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from rlhf_bench.harness.checkpoint import verify
from rlhf_bench.harness.codec import digest, plain
from rlhf_bench.harness.judges.reward import RewardModel
from rlhf_bench.harness.models import resolve
from rlhf_bench.harness.progress import Track, silent
from rlhf_bench.harness.stats import wilson
from rlhf_bench.harness.store import Store
from rlhf_bench.harness.types import Checkpoint, Preference, Sample
from rlhf_bench.trainers.backends import get_backend
from rlhf_bench.trainers.preferences import damaged_preferences
from rlhf_bench.trainers.recipes import RewardRecipe, preset

ALIAS = "demo-reward"
HELD_OUT_EVERY = 8


def demo_reward(store: Store, prompts: Sequence[Sample], home: Path, track: Track = silent) -> Checkpoint:
    """The registered demo reward model, trained first if it is not there; `prompts` carry reference answers.

    One prompt in eight is held out; the accuracy on its pairs is written to `heldout.json` beside the checkpoint.
    """
    recipe = preset(RewardRecipe, ALIAS)
    base = resolve(recipe.base, store, track)
    trained_on = damaged_preferences([s for i, s in enumerate(prompts) if i % HELD_OUT_EVERY], recipe.seed)
    held_out = damaged_preferences(list(prompts)[::HELD_OUT_EVERY], recipe.seed)
    out = home / "checkpoints" / f"{ALIAS}-{digest([plain(recipe), base.digest, [plain(p) for p in trained_on]])[:12]}"
    known = store.alias(ALIAS)
    if known is not None and known.path == str(out):
        verify(known)
        return known
    checkpoint = get_backend("trl").train_reward(recipe, trained_on, base, out, track)
    accuracy = pair_accuracy(RewardModel(checkpoint, name=ALIAS), held_out)
    out.with_name(out.name + ".heldout.json").write_text(json.dumps(accuracy, indent=1))
    store.register(checkpoint, alias=ALIAS)
    return checkpoint


def pair_accuracy(model: RewardModel, preferences: Sequence[Preference]) -> dict[str, float]:
    """Share of pairs whose chosen answer has the higher reward (a tie is wrong), with its 95% Wilson interval."""
    chosen = model.rewards([(pair.prompt, pair.chosen) for pair in preferences])
    rejected = model.rewards([(pair.prompt, pair.rejected) for pair in preferences])
    right = sum(c is not None and r is not None and c > r for c, r in zip(chosen, rejected, strict=True))
    low, high = wilson(right, len(preferences))
    return {"accuracy": right / len(preferences), "low": low, "high": high, "pairs": len(preferences)}
