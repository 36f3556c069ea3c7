"""Log-probabilities of given tokens, without ever holding the logits of all of them.

Shapes: N tokens, D width of the model, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

CHUNK_LOGITS = 1 << 23
"""Logits that are held at a time: 32 MiB in float32."""


def token_logps(states_ND: Tensor, head: Any, targets_N: Tensor) -> Tensor:
    """log softmax(head(states))[target] [N] in float32 or better; `head` is a linear layer, with or without bias.

    The product with the head is computed in autocast's precision, a chunk of tokens at a time, and once more for the
    gradient.
    """
    device = states_ND.device.type
    if torch.is_autocast_enabled(device):
        states_ND = states_ND.to(torch.get_autocast_dtype(device))
    with torch.autocast(device, enabled=False):
        found = _TokenLogps.apply(states_ND, head.weight, head.bias, targets_N)  # type: ignore[no-untyped-call]
    logps_N: Tensor = found
    return logps_N


class _TokenLogps(torch.autograd.Function):
    """With p = softmax(logits): d log p[target] / d logits = onehot(target) − p."""

    @staticmethod
    def forward(ctx: Any, states_ND: Tensor, weight_VD: Tensor, bias_V: Tensor | None, targets_N: Tensor) -> Tensor:
        head = weight_VD.to(states_ND.dtype), bias_V
        norms, logps = [], []
        for states, targets in _chunks(len(weight_VD), states_ND, targets_N):
            logits = _logits(states, *head)
            norms.append(logits.logsumexp(-1))
            logps.append(logits.gather(1, targets[:, None])[:, 0] - norms[-1])
        ctx.save_for_backward(states_ND, weight_VD, bias_V, targets_N, torch.cat(norms))
        return torch.cat(logps)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_N: Tensor) -> tuple[Tensor | None, ...]:
        states_ND, weight_VD, bias_V, targets_N, norms_N = ctx.saved_tensors
        head = weight_VD.to(states_ND.dtype), bias_V
        grads = [
            torch.zeros_like(value) if wanted else None
            for value, wanted in zip((states_ND, weight_VD, bias_V), ctx.needs_input_grad, strict=False)
        ]
        done = 0
        for states, targets, norms, grad in _chunks(len(weight_VD), states_ND, targets_N, norms_N, grad_N):
            slope = _logits(states, *head).sub_(norms[:, None]).exp_().neg_()
            slope[torch.arange(len(targets), device=targets.device), targets] += 1
            slope.mul_(grad[:, None])
            if grads[2] is not None:
                grads[2] += slope.sum(0)
            slope = slope.to(states.dtype)
            if grads[0] is not None:
                torch.mm(slope, head[0], out=grads[0][done : done + len(states)])
            if grads[1] is not None and grads[1].dtype == states.dtype:
                grads[1].addmm_(slope.T, states)
            elif grads[1] is not None:
                grads[1] += slope.T @ states
            done += len(states)
        return *grads, None


def _chunks(vocabulary: int, *values: Tensor) -> Iterator[tuple[Tensor, ...]]:
    size = max(1, CHUNK_LOGITS // vocabulary)
    return zip(*(torch.split(value, size) for value in values), strict=True)


def _logits(states: Tensor, weight_VD: Tensor, bias_V: Tensor | None) -> Tensor:
    """In float32 at least."""
    logits = states @ weight_VD.T
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return logits if bias_V is None else logits.add_(bias_V)
