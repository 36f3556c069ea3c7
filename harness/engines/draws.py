"""The next tokens of many answers at once, each by a draw of its own: `decode.choose` for a whole batch.

Shapes: R answers, V vocabulary.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from rlhf_bench.harness.engines.decode import NUCLEUS

KEY = "rlhf_bench"
"""Where a request to vLLM says in its `extra_args` how it is sampled: {"temperature", "top_p", "streams": a name for
each of its answers}."""
OWNER = "RLHF_BENCH_VLLM_OWNER"
"""The environment variable that tells vLLM's processes whose they are: a process and when it started."""


def started(pid: int) -> str:
    """When a process that runs was started, in the kernel's ticks; "" where it runs no more."""
    try:
        fields = (Path("/proc") / str(pid) / "stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if fields[0] in "ZX" else fields[19]


class Stream:
    """The uniform draws of one answer: the t-th is for its t-th token, whenever and how often it is asked for."""

    def __init__(self, name: str) -> None:
        self._random = random.Random(name)
        self._drawn: list[float] = []

    def __getitem__(self, number: int) -> float:
        while len(self._drawn) <= number:
            self._drawn.append(self._random.random())
        return self._drawn[number]


def choose_each(
    logits_RV: Tensor, temperatures: Sequence[float], top_ps: Sequence[float], draws: Sequence[float]
) -> Tensor:
    """The next token of each answer [R], from the likeliest tokens that hold its top_p of the probability.

    `temperatures`, `top_ps` and `draws` (uniform in [0, 1)) have an entry for each answer.
    """
    device = logits_RV.device
    probs_RV = (logits_RV.float() / torch.tensor(temperatures, device=device)[:, None]).softmax(-1)
    target_R = torch.tensor(draws, dtype=torch.float64, device=device)
    whole = [number for number, top_p in enumerate(top_ps) if top_p >= 1]
    if len(whole) == len(top_ps):
        return _pick(probs_RV.cumsum(-1), target_R)
    chosen_R = torch.empty(len(top_ps), dtype=torch.long, device=device)
    if whole:
        at = torch.tensor(whole, device=device)
        chosen_R[at] = _pick(probs_RV[at].cumsum(-1), target_R[at])
    cut = [number for number, top_p in enumerate(top_ps) if top_p < 1]
    at = torch.tensor(cut, device=device)
    chosen_R[at] = _nucleus(probs_RV[at], torch.tensor([top_ps[number] for number in cut], device=device), target_R[at])
    return chosen_R


def _nucleus(probs_RV: Tensor, top_p_R: Tensor, draw_R: Tensor) -> Tensor:
    values, ids = probs_RV.topk(min(NUCLEUS, probs_RV.shape[-1]))
    if bool((values.sum(-1) < top_p_R).any()):
        values, ids = probs_RV.sort(descending=True)
    before = values.cumsum(-1) - values
    mass = values.where(before < top_p_R[:, None], 0.0).cumsum(-1)
    return ids.gather(-1, _pick(mass, draw_R)[:, None])[:, 0]


def _pick(mass_RV: Tensor, draw_R: Tensor) -> Tensor:
    """The first place of each row where the cumulated mass exceeds its share `draw_R` of all of it."""
    target_R = (draw_R * mass_RV[:, -1].double()).to(mass_RV.dtype)
    place_R = torch.searchsorted(mass_RV, target_R[:, None], right=True)[:, 0]
    last_R = (mass_RV < mass_RV[:, -1:]).sum(-1)
    return torch.minimum(place_R, last_R)
