"""Rows of preference pairs (`trainers.rows.pair_rows`) as a model takes them, and what it makes of them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from rlhf_bench.harness.shared_prompt import Packed, pack
from rlhf_bench.trainers.losses import Answers
from rlhf_bench.trainers.plain.models import Loaded
from rlhf_bench.trainers.rows import Row


def tokens_of(pair: Row) -> int:
    """The tokens of both conversations, the prompt in each."""
    return 2 * len(pair["prompt"]) + len(pair["chosen"]) + len(pair["rejected"])


def lengths_of(pairs: Sequence[Row]) -> tuple[Tensor, Tensor]:
    """The tokens of the conversations with the chosen answers [B], and of those with the rejected ones [B]."""
    chosen, rejected = ([len(pair["prompt"]) + len(pair[side]) for pair in pairs] for side in ("chosen", "rejected"))
    return torch.tensor(chosen), torch.tensor(rejected)


def packed(model: Loaded, pairs: Sequence[Row]) -> Packed:
    """A row [prompt | chosen | rejected] for each pair, or two where the model needs that."""
    groups = [(pair["prompt"], [pair["chosen"], pair["rejected"]]) for pair in pairs]
    return pack(groups, model.device, share=model.shares)


def answers_of(model: Loaded, pairs: Sequence[Row]) -> Answers:
    """The log-probabilities of the pairs' answers."""
    rows = packed(model, pairs)
    logps_BC = rows.sums(model.logps(rows)).view(-1, 2)
    tokens = [[len(pair["chosen"]), len(pair["rejected"])] for pair in pairs]
    tokens_BC = torch.tensor(tokens, device=model.device)
    return Answers(logps_BC[:, 0], logps_BC[:, 1], tokens_BC[:, 0], tokens_BC[:, 1])
