"""What a reward model's metrics are made of: sums over pairs, which add up over micro-batches and processes.

Shapes: B pairs. Rewards are those of prompt and answer; lengths are in tokens, prompt and answer together.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor


def reward_terms(
    chosen_B: Tensor, rejected_B: Tensor, chosen_tokens_B: Tensor, rejected_tokens_B: Tensor
) -> dict[str, Tensor]:
    """By name a value of each pair [B] in float64, whose sums over pairs `reward_means` takes."""
    apart_B = chosen_B.detach().double() - rejected_B.detach().double()
    rewards_2B = torch.stack([chosen_B, rejected_B]).detach().double()
    lengths_2B = torch.stack([chosen_tokens_B, rejected_tokens_B]).to(rewards_2B)
    return {
        "accuracy": (apart_B > 0).double(),
        "margin": apart_B,
        "confidence": apart_B.abs().sigmoid(),
        "reward": rewards_2B.sum(0),
        "reward_square": (rewards_2B**2).sum(0),
        "length": lengths_2B.sum(0),
        "length_square": (lengths_2B**2).sum(0),
        "product": (rewards_2B * lengths_2B).sum(0),
    }


def reward_means(sums: Mapping[str, float], pairs: float) -> dict[str, float]:
    """The metrics of a step from the sums of `reward_terms` over its pairs.

    `confidence` is the mean of σ(|r_chosen − r_rejected|), which equals `accuracy` where the model is calibrated;
    `length_correlation` is Pearson's, of reward and length over the answers, 0 where either is the same for all.
    """
    answers = 2 * pairs
    reward, length = sums["reward"] / answers, sums["length"] / answers
    spread = (sums["reward_square"] / answers - reward**2) * (sums["length_square"] / answers - length**2)
    together = sums["product"] / answers - reward * length
    means = {name: sums[name] / pairs for name in ("accuracy", "margin", "confidence")}
    return {**means, "length_correlation": together / math.sqrt(spread) if spread > 1e-12 else 0.0}
