"""The embedded engine: transformers on a CPU or a GPU, nothing computed twice and nothing padded that can be shared."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import TypeAlias

import torch

from rlhf_bench.harness.checkpoint import chat_template_digest
from rlhf_bench.harness.codec import digest
from rlhf_bench.harness.engines.decode import generate
from rlhf_bench.harness.engines.forward import Model
from rlhf_bench.harness.engines.jobs import Coder, Job
from rlhf_bench.harness.engines.score import score
from rlhf_bench.harness.errors import Fault, UnknownName, UserError
from rlhf_bench.harness.types import Checkpoint, Completion, Request

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
WINDOW = 4096  # requests that are planned together: bounds the memory for their tokens
CPU_BYTES = 2 << 30  # keys and values that are held on a CPU; on a GPU, a third of what is free
STRETCH_TOKENS = {"cpu": 512, "cuda": 2048}  # tokens of a tree in one forward pass
SMALLEST = 32  # tokens in one forward pass below which out of memory is final

Answering: TypeAlias = Callable[[list[Job]], Iterator[tuple[Job, Completion]]]


class HFEngine:
    """Answers requests with a checkpoint's own weights, tokenizer and chat template.

    `dtype` "auto" is fp32 on a CPU and bf16 on a GPU; `device` "auto" is the GPU if there is one. `batch_tokens` bounds
    the tokens whose keys and values are held while answers are generated; None is as many as 2 GiB hold on a CPU and a
    third of the free memory on a GPU. Running out of GPU memory halves it, and the work goes on. The weights are loaded
    when the first request comes, and dropped by `close`.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        *,
        name: str,
        dtype: str = "auto",
        device: str = "auto",
        batch_tokens: int | None = None,
    ) -> None:
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        elif device not in (here := _devices()):
            raise UnknownName("device here", device, ("auto", *here))
        if dtype == "auto":
            dtype = "float32" if device == "cpu" else "bfloat16"
        if dtype not in DTYPES:
            raise UserError(f"no dtype named '{dtype}'. Allowed: auto, {', '.join(DTYPES)}.")
        self.name = name
        self.checkpoint = checkpoint.digest
        self._path = Path(checkpoint.path)
        self._dtype = dtype
        self._device = device
        self._given_batch_tokens = batch_tokens
        self._stretch_tokens = STRETCH_TOKENS.get(device.split(":")[0], STRETCH_TOKENS["cpu"])

    @property
    def identity(self) -> str:
        """A digest of what decides the answers: weights, dtype, and the versions of transformers and torch."""
        transformers = ".".join(version("transformers").split(".")[:2])
        return digest([self.checkpoint, "hf", self._dtype, transformers, torch.__version__])

    @property
    def manifest(self) -> dict[str, str]:
        """What a report says about this engine."""
        return {
            "engine": "hf",
            "dtype": self._dtype,
            "device": self._device,
            "torch": torch.__version__,
            "transformers": version("transformers"),
            "checkpoint": self.checkpoint,
            "chat_template": chat_template_digest(self._path),
        }

    @cached_property
    def _model(self) -> Model:
        return Model(self._path, DTYPES[self._dtype], self._device)

    @cached_property
    def _coder(self) -> Coder:
        return Coder(self._path, end_ids=self._model.end_ids, context=self._model.context)

    @cached_property
    def _batch_tokens(self) -> int:
        """The tokens whose keys and values are held; halved when memory runs out."""
        if self._given_batch_tokens is not None:
            return self._given_batch_tokens
        cuda = self._model.device.type == "cuda"
        free = torch.cuda.mem_get_info(self._model.device)[0] // 3 if cuda else CPU_BYTES
        return max(1, free // self._model.token_bytes)

    def generate(self, requests: Sequence[Request]) -> Iterator[Completion]:
        """One completion for each request, as they finish.

        A prompt that does not fit the model's context is an error, never cut. Raises UserError for a checkpoint that
        this engine cannot run or that has no chat template for a conversation, and Fault if memory does not suffice.
        """
        for start in range(0, len(requests), WINDOW):
            jobs = [self._coder.job(request) for request in requests[start : start + WINDOW]]
            yield from (job for job in jobs if isinstance(job, Completion))
            real = [job for job in jobs if isinstance(job, Job)]
            yield from self._persist(self._score, [job for job in real if job.targets])
            yield from self._persist(self._generate, [job for job in real if not job.targets])

    def close(self) -> None:
        """Drop the weights and give their memory back; the next request loads them again."""
        for held in ("_model", "_coder", "_batch_tokens"):
            self.__dict__.pop(held, None)
        gc.collect()
        torch.cuda.empty_cache()  # nothing where there is no GPU

    def _score(self, jobs: list[Job]) -> Iterator[tuple[Job, Completion]]:
        return score(self._model, jobs, stretch_tokens=self._stretch_tokens)

    def _generate(self, jobs: list[Job]) -> Iterator[tuple[Job, Completion]]:
        return generate(
            self._model, self._coder, jobs, batch_tokens=self._batch_tokens, stretch_tokens=self._stretch_tokens
        )

    def _persist(self, answering: Answering, jobs: list[Job]) -> Iterator[Completion]:
        """Answers all jobs; out of memory, it starts the unanswered ones again in smaller pieces."""
        left = dict.fromkeys(jobs)
        while left:
            try:
                for job, completion in answering(list(left)):
                    del left[job]
                    yield completion
            except torch.OutOfMemoryError as error:
                if self._stretch_tokens < 2 * SMALLEST:
                    raise Fault(f"{self.name} does not fit the memory of {self._device}: {error}") from error
            else:
                return
            self._batch_tokens //= 2
            self._stretch_tokens //= 2
            torch.cuda.empty_cache()


def _devices() -> list[str]:
    """The names of the devices that torch can use on this machine."""
    cards = torch.cuda.device_count() if torch.cuda.is_available() else 0
    return ["cpu", *["cuda"][:cards], *(f"cuda:{index}" for index in range(cards))]
