"""Generation by continuous batching: finished answers leave, waiting prompts take their room."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from rlhf_bench.harness.engines.forward import Model, Row, gather, slabs, walk
from rlhf_bench.harness.engines.jobs import Coder, Job
from rlhf_bench.harness.engines.tree import plan
from rlhf_bench.harness.types import Completion, FinishReason, Sampling

NUCLEUS = 1024  # the likeliest tokens that are sorted for top_p before all are


def generate(
    model: Model, coder: Coder, jobs: Sequence[Job], *, batch_tokens: int, stretch_tokens: int
) -> Iterator[tuple[Job, Completion]]:
    """The answer to each job, as they finish.

    At most `batch_tokens` tokens of keys and values, or one answer, are held for answers in the making. The batch is
    laid anew when a quarter of its rows are finished. An answer depends on its own seed, sample and index, and on the
    batch it is in only as far as floating point does.
    """
    prompts = _read_prompts(model, coder, jobs, stretch_tokens)
    waiting = next(prompts, None)
    batch = _Batch(model, [])
    while batch.answers or waiting:
        making = batch.living()
        while waiting and (not making or _size([*making, waiting]) <= batch_tokens):
            if waiting.finish:
                yield waiting.job, waiting.completion()
            else:
                making.append(waiting)
            waiting = next(prompts, None)
        batch = _Batch(model, making)
        finished = 0
        while making and finished < max(1, len(making) // 4):
            for answer in batch.step():
                finished += 1
                yield answer.job, answer.completion()


@dataclass(eq=False)
class _Answer:
    """An answer in the making. `row` holds the keys and values of all its tokens but the newest."""

    job: Job
    coder: Coder
    row: Row
    room: int
    tokens: list[int] = field(default_factory=list)
    text: str = ""
    finish: FinishReason | None = None

    def __post_init__(self) -> None:
        request = self.job.request
        self.random = random.Random(f"{request.sampling.seed}/{request.sample_id}/{request.index}")

    @property
    def cached(self) -> int:
        """How many tokens `row` holds."""
        return len(self.job.tokens) + len(self.tokens) - 1

    @property
    def final(self) -> int:
        """The most tokens that `row` will ever hold."""
        return len(self.job.tokens) + self.room

    def push(self, logits_V: Tensor) -> None:
        """Chooses the next token, and finishes the answer if it is the last."""
        token = choose(logits_V, self.job.request.sampling, self.random)
        if token in self.job.special:
            self.text, self.finish = self.coder.text(self.tokens), "stop"
            return
        self.tokens.append(token)
        stop = self.job.request.sampling.stop
        if stop or len(self.tokens) >= self.room:
            self.text = self.coder.text(self.tokens)
            cuts = [cut for cut in (self.text.find(string) for string in stop) if cut >= 0]
            if cuts:
                self.text, self.finish = self.text[: min(cuts)], "stop"
            elif len(self.tokens) >= self.room:
                self.finish = "length"

    def completion(self) -> Completion:
        """The finished answer."""
        return self.job.answer(self.text, self.finish or "length", len(self.tokens))


class _Batch:
    """Answers side by side, aligned at their ends, in one cache with room for the longest that any of them can get."""

    def __init__(self, model: Model, answers: list[_Answer]) -> None:
        self.answers = answers
        if not answers:
            return
        self._model = model
        self._used = max(answer.cached for answer in answers)
        capacity = self._used + max(answer.final - answer.cached for answer in answers)
        self._cache = slabs([answer.row for answer in answers], capacity)
        self._pads_B = torch.tensor([self._used - answer.cached for answer in answers], device=model.device)
        for answer in answers:
            answer.row = []
        self._read = torch.zeros(1, dtype=torch.long, device=model.device)

    def step(self) -> list[_Answer]:
        """Adds a token to every answer and returns those that it finished; an earlier finished one idles along."""
        device = self._model.device
        newest_B1 = torch.tensor([[answer.tokens[-1]] for answer in self.answers], device=device)
        self._used += 1
        positions_BK = torch.arange(self._used, device=device) - self._pads_B[:, None]
        sees_B1K = (positions_BK >= 0)[:, None]
        newest = positions_BK[:, -1:].clamp(max=self._model.context - 1)
        logits_BV = self._model(newest_B1, newest, sees_B1K, positions_BK, self._cache, self._read)[:, 0]
        finished: list[_Answer] = []
        for slot, answer in enumerate(self.answers):
            if not answer.finish:
                answer.push(logits_BV[slot])
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


def choose(logits_V: Tensor, sampling: Sampling, draw: random.Random) -> int:
    """The next token: the likeliest at temperature 0, else a draw from the smallest set of the likeliest tokens that
    holds `top_p` of the probability.
    """
    if sampling.temperature <= 0:
        return int(logits_V.argmax())
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


def _read_prompts(model: Model, coder: Coder, jobs: Sequence[Job], stretch_tokens: int) -> Iterator[_Answer]:
    """Answers with their first token, in the order of the prompts' tree, computed as they are asked for."""
    tree = plan([job.tokens for job in jobs])
    order = sorted(range(len(jobs)), key=lambda number: tree.paths[number][-1])
    number = 0
    for stretch in walk(model, tree, [path[-1] for path in tree.paths], stretch_tokens=stretch_tokens):
        while number < len(order) and tree.paths[order[number]][-1] < stretch.stop:
            job, path = jobs[order[number]], tree.paths[order[number]]
            answer = _Answer(job, coder, gather(stretch, path), coder.room(job))
            answer.push(stretch.logits[stretch.read.index(path[-1])])
            yield answer
            number += 1


def _size(answers: Sequence[_Answer]) -> int:
    """Tokens of keys and values for these answers side by side."""
    return len(answers) * max(answer.final for answer in answers)
