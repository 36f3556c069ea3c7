"""Generation by continuous batching: finished answers leave, waiting prompts take their room."""

from __future__ import annotations

import random
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from rlhf_bench.harness.engines.forward import Model, Row, gather, slabs, walk
from rlhf_bench.harness.engines.jobs import NO_NUMBER, Coder, Job
from rlhf_bench.harness.engines.tree import common, plan
from rlhf_bench.harness.types import Completion, FinishReason, Sampling

NUCLEUS = 1024  # the likeliest tokens that are sorted for top_p before all are
FAMILY = 64  # tokens that prompts begin with alike before what they share is kept once for all of them


def generate(
    model: Model, coder: Coder, jobs: Sequence[Job], *, batch_tokens: int, stretch_tokens: int
) -> Iterator[tuple[Job, Completion]]:
    """The answer to each job, as they finish.

    At most `batch_tokens` tokens of keys and values, or one answer, are held for answers in the making (and as many
    again while a batch is laid), besides what all of them share. The batch is laid anew when a quarter of its rows are
    finished. An answer depends on its own seed, sample and index, and on the batch it is in only as far as floating
    point does.
    """
    for family, shared in _families(jobs) if model.shares else [(list(jobs), 0)]:
        prompts = _Prompts(model, coder, family, shared, stretch_tokens)
        waiting = next(prompts.answers, None)
        batch = _Batch(model, [], None)
        while batch.answers or waiting:
            making = batch.living()
            while waiting and (not making or _size([*making, waiting]) <= batch_tokens):
                if waiting.finish:
                    yield waiting.job, waiting.completion()
                else:
                    making.append(waiting)
                waiting = next(prompts.answers, None)
            batch = _Batch(model, making, prompts.shared)
            finished = 0
            while making and finished < max(1, len(making) // 4):
                for answer in batch.step():
                    finished += 1
                    yield answer.job, answer.completion()


def _families(jobs: Sequence[Job]) -> list[tuple[list[Job], int]]:
    """Jobs whose prompts begin alike, with the number of tokens that they share; all others share none."""
    alike: dict[tuple[int, ...], list[Job]] = defaultdict(list)
    for job in jobs:
        alike[tuple(job.tokens[:FAMILY])].append(job)
    large = [family for start, family in alike.items() if len(family) > 1 and len(start) == FAMILY]
    others = [job for start, family in alike.items() if len(family) == 1 or len(start) < FAMILY for job in family]
    found = [(family, common([job.tokens for job in family])) for family in large]
    return [*found, (others, 0)] if others else found


@dataclass(eq=False)
class _Answer:
    """An answer in the making. `row` holds the keys and values of its tokens but the newest and the `shared` first."""

    job: Job
    coder: Coder
    row: Row
    room: int
    shared: int = 0
    tokens: list[int] = field(default_factory=list)
    text: str = ""
    finish: FinishReason | None = None

    def __post_init__(self) -> None:
        request = self.job.request
        self.random = random.Random(f"{request.sampling.seed}/{request.sample_id}/{request.index}")

    @property
    def cached(self) -> int:
        """How many tokens `row` holds."""
        return len(self.job.tokens) + len(self.tokens) - 1 - self.shared

    @property
    def final(self) -> int:
        """The most tokens that `row` will ever hold."""
        return len(self.job.tokens) + self.room - self.shared

    def push(self, logits_V: Tensor, best: int | None) -> None:
        """Chooses the next token, and finishes the answer if it is the last. `best` None: the logits are no numbers."""
        if best is None:
            self.finish = "error"
            return
        sampling = self.job.request.sampling
        token = best if sampling.temperature <= 0 else choose(logits_V, sampling, self.random)
        if token in self.job.special:
            self.text, self.finish = self.coder.text(self.tokens), "stop"
            return
        self.tokens.append(token)
        full = len(self.tokens) >= self.room
        if full or self._may_have_stopped(sampling.stop):
            self.text = self.coder.text(self.tokens)
            cuts = [cut for cut in (self.text.find(string) for string in sampling.stop) if cut >= 0]
            if cuts:
                self.text, self.finish = self.text[: min(cuts)], "stop"
            elif full:
                self.finish = "length"

    def _may_have_stopped(self, stop: tuple[str, ...]) -> bool:
        """Whether the last tokens hold a stop string: they are decoded, not the whole answer at every token.

        A stop string of n bytes ends in one of at most n tokens; what they begin with may decode otherwise than in the
        whole (a space, half a character), so as many again and a few are taken.
        """
        if not stop:
            return False
        tail = self.coder.text(self.tokens[-2 * max(len(string.encode()) for string in stop) - 8 :])
        return any(string in tail for string in stop)

    def completion(self) -> Completion:
        """The finished answer."""
        if self.finish == "error":
            return self.job.answer("", "error", 0, why=NO_NUMBER)
        return self.job.answer(self.text, self.finish or "length", len(self.tokens))


class _Batch:
    """Answers side by side, aligned at their ends, in one cache with room for the longest that any of them can get."""

    def __init__(self, model: Model, answers: list[_Answer], shared: Row | None) -> None:
        self.answers = answers
        if not answers:
            return
        self._model = model
        self._used = max(answer.cached for answer in answers)
        capacity = self._used + max(answer.final - answer.cached for answer in answers)
        self._cache = slabs([answer.row for answer in answers], capacity, shared)
        self._pads_B = torch.tensor([self._used - answer.cached for answer in answers], device=model.device)
        self._shared = answers[0].shared
        for answer in answers:
            answer.row = []
        self._read = torch.zeros(1, dtype=torch.long, device=model.device)

    def step(self) -> list[_Answer]:
        """Adds a token to every answer and returns those that it finished; an earlier finished one idles along."""
        device = self._model.device
        newest_B1 = torch.tensor([[answer.tokens[-1]] for answer in self.answers], device=device)
        self._used += 1
        places_BK = torch.arange(self._used, device=device) - self._pads_B[:, None]
        positions_BK = places_BK + self._shared
        newest = positions_BK[:, -1:].clamp(max=self._model.context - 1)
        sees_B1K = (places_BK >= 0)[:, None]
        logits_BV = self._model(newest_B1, newest, sees_B1K, positions_BK, self._cache, self._read)[:, 0]
        finished: list[_Answer] = []
        for answer, logits_V, best in zip(self.answers, logits_BV, likeliest(logits_BV), strict=True):
            if not answer.finish:
                answer.push(logits_V, best)
                if answer.finish:
                    finished.append(answer)
        return finished

    def living(self) -> list[_Answer]:
        """The unfinished answers, each with its own part of this batch's keys and values."""
        for slot, answer in enumerate(self.answers):
            if not answer.finish:
                own = slice(self._used - answer.cached, None)
                answer.row = [(layer.keys[slot, :, own], layer.values[slot, :, own]) for layer in self._cache.layers]
        return [answer for answer in self.answers if not answer.finish]


def likeliest(logits_BV: Tensor) -> list[int | None]:
    """The likeliest token of each row, or None where there is none because the logits are no numbers."""
    top_B, ids_B = logits_BV.max(-1)
    return [token if good else None for token, good in zip(ids_B.tolist(), top_B.isfinite().tolist(), strict=True)]


def choose(logits_V: Tensor, sampling: Sampling, draw: random.Random) -> int:
    """The next token, drawn from the smallest set of the likeliest tokens that holds `top_p` of the probability."""
    probs = (logits_V.float() / sampling.temperature).softmax(-1)
    if sampling.top_p >= 1:
        mass = probs.cumsum(-1)
        return _pick(mass, draw)
    values, ids = probs.topk(min(NUCLEUS, len(probs)))
    if values.sum() < sampling.top_p:
        values, ids = probs.sort(descending=True)
    mass = values.cumsum(-1)
    kept = int((mass - values < sampling.top_p).sum())
    return int(ids[_pick(mass[:kept], draw)])


def _pick(mass: Tensor, draw: random.Random) -> int:
    """The first place where the cumulated mass exceeds a uniform draw from it."""
    target = mass.new_tensor(draw.random() * float(mass[-1]))
    return min(int(torch.searchsorted(mass, target, right=True)), len(mass) - 1)


class _Prompts:
    """The prompts of a family, read: `answers` have their first token, in the order of the prompts' tree.

    They are computed as they are asked for; with the first of them come the keys and values that all `shared` tokens
    have in common.
    """

    def __init__(self, model: Model, coder: Coder, jobs: Sequence[Job], shared: int, stretch_tokens: int) -> None:
        self.shared: Row | None = None
        self.answers = self._read(model, coder, jobs, shared, stretch_tokens)

    def _read(
        self, model: Model, coder: Coder, jobs: Sequence[Job], shared: int, stretch_tokens: int
    ) -> Iterator[_Answer]:
        tree = plan([job.tokens for job in jobs])
        order = sorted(range(len(jobs)), key=lambda number: tree.paths[number][-1])
        number = 0
        for stretch in walk(model, tree, [path[-1] for path in tree.paths], stretch_tokens=stretch_tokens):
            bests = likeliest(stretch.logits) if stretch.read else []
            while number < len(order) and tree.paths[order[number]][-1] < stretch.stop:
                job, path = jobs[order[number]], tree.paths[order[number]]
                if shared and self.shared is None:
                    self.shared = gather(stretch, path[:shared])
                answer = _Answer(job, coder, gather(stretch, path[shared:]), coder.room(job), shared)
                at = bisect_left(stretch.read, path[-1])
                answer.push(stretch.logits[at], bests[at])
                yield answer
                number += 1


def _size(answers: Sequence[_Answer]) -> int:
    """Tokens of keys and values for these answers side by side."""
    return len(answers) * max(answer.final for answer in answers)
