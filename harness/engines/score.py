"""Log-likelihoods of continuations, computed over the tree of what the requests share."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Sequence

import torch

from rlhf_bench.harness.engines.forward import Model, Stretch, walk
from rlhf_bench.harness.engines.jobs import NO_NUMBER, Job
from rlhf_bench.harness.engines.tree import plan
from rlhf_bench.harness.types import Completion


def score(model: Model, jobs: Sequence[Job], *, stretch_tokens: int) -> Iterator[tuple[Job, Completion]]:
    """The continuation's log-probability (nats) and whether greedy decoding gives it, for each job, as they finish.

    Softmax is taken in fp32, and vocabulary logits exist only where a continuation is read.
    """
    tree = plan([job.tokens for job in jobs])
    readers: dict[int, list[tuple[int, int]]] = defaultdict(list)
    for number, (job, path) in enumerate(zip(jobs, tree.paths, strict=True)):
        for place, target in zip(path[job.first :], job.targets, strict=True):
            readers[place].append((number, target))
    logprobs = [0.0] * len(jobs)
    greedy = [True] * len(jobs)
    left = [len(job.targets) for job in jobs]
    for stretch in walk(model, tree, list(readers), stretch_tokens=stretch_tokens):
        for number, logprob, best in _read(stretch, readers):
            logprobs[number] += logprob
            greedy[number] &= best
            left[number] -= 1
            if not left[number]:
                yield jobs[number], _answer(jobs[number], logprobs[number], greedy[number])


def _answer(job: Job, logprob: float, greedy: bool) -> Completion:
    if not math.isfinite(logprob):
        return job.answer("", "error", 0, why=NO_NUMBER)
    return job.answer(job.request.continuation or "", "stop", len(job.targets), logprob=logprob, greedy=greedy)


def _read(stretch: Stretch, readers: dict[int, list[tuple[int, int]]]) -> Iterator[tuple[int, float, bool]]:
    """(job, log-probability of its target, whether the target is the likeliest) for each read of a stretch."""
    reads = [(row, *reader) for row, place in enumerate(stretch.read) for reader in readers[place]]
    if not reads:
        return
    rows, numbers, targets = zip(*reads, strict=True)
    logits_RV = stretch.logits.float()
    at = torch.tensor(rows, device=logits_RV.device)
    wanted = torch.tensor(targets, device=logits_RV.device)
    logprobs = logits_RV[at, wanted] - logits_RV.logsumexp(-1)[at]
    best = logits_RV.argmax(-1)[at] == wanted
    yield from zip(numbers, logprobs.tolist(), best.tolist(), strict=True)
