"""The TRL back end: all four recipes by TRL 1.16. Nothing outside this package knows TRL, PEFT or accelerate.

What is ours, because TRL 1.16 does otherwise:
- the chat template is applied where scoring applies it; what is too long is left out and counted (TRL drops it, or
  cuts it, without saying so);
- the loss of a step is the mean over its pairs (tokens, in SFT), whatever the micro-batch and the number of processes
  (transformers averages the means of micro-batches, so the pairs of a short last one weigh more, and fills up the last
  round of several processes with pairs that were trained on already);
- the reference of DPO is a checkpoint that the caller names. Its log-probabilities are computed once, before training,
  kept in the work folder, and its weights freed (TRL would reload whatever `_name_or_path` points to);
- label smoothing of the sigmoid loss and of Bradley-Terry, and the likelihood term a pair, which TRL leaves out or
  takes over all tokens of a micro-batch;
- the reward head pools at the last token that is not padding, so the padding token is one that ends no conversation,
  taken from the existing vocabulary, which is never resized;
- dropout of adapters acts (TRL sets every dropout to 0, the adapters' too);
- frozen weights are held in bfloat16, or 4 or 8 bits, and merged in float32;
- a loss that is not finite, or runs away, stops the run (transformers would log a running mean in its place);
- a checkpoint counts only once all of it is written, by all processes;
- no telemetry, no model card, no progress bar, no cache of its own.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

from rlhf_bench.trainers.trl.options import check_recipe

FITS = {"fit_dpo": "dpo", "fit_preference": "preference", "fit_reward": "reward", "fit_sft": "sft"}
"""What trains, and the module that it is in: TRL is imported only to train, not to be asked what it lacks."""


def __getattr__(name: str) -> Any:
    if name in FITS:
        return getattr(import_module(f"{__name__}.{FITS[name]}"), name)
    raise AttributeError(f"module '{__name__}' has no attribute '{name}'")


def __dir__() -> list[str]:
    return [*globals(), *FITS]


__all__ = ["check_recipe"]
