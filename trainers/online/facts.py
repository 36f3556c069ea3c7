"""What a plan is made from: the machine, the model, how fast this loop has been, what it has made already.

Rates that are not measured are reckoned: 2 floating-point operations a parameter for each token that is read or
written, 6 for each that is trained on, and a share of the machine's peak that each kind of work reaches.
"""

from __future__ import annotations

import json
import math
import os
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from statistics import median
from typing import Any

from rlhf_bench.harness.checkpoint import chat_template_digest, decisive_files
from rlhf_bench.harness.errors import UserError
from rlhf_bench.harness.models import HUB, engine_here
from rlhf_bench.harness.prices import CHARS_PER_TOKEN
from rlhf_bench.harness.progress import Advance, Track
from rlhf_bench.harness.store import Store
from rlhf_bench.harness.types import Checkpoint, Request, Sample
from rlhf_bench.harness.weights import BUILTIN, cache_dir
from rlhf_bench.trainers.backends import METRICS
from rlhf_bench.trainers.chat import tokenizer_at
from rlhf_bench.trainers.chat.reading import check_asks, check_reads
from rlhf_bench.trainers.filters import token_count
from rlhf_bench.trainers.online.ahead import Counted
from rlhf_bench.trainers.online.config import LoopConfig, Stage
from rlhf_bench.trainers.online.line import check_recipes
from rlhf_bench.trainers.online.planned import EXPECTED_TOKENS, Rate, recipe_of
from rlhf_bench.trainers.online.stages import FILES
from rlhf_bench.trainers.preferences import conversation

CORE_FLOPS = 150e9
"""A CPU core in float32: two of those that this project measured on multiply at 300 GFLOP/s (docs/benchmarks.md)."""
CARDS: Mapping[str, float] = {
    "B200": 2250e12, "H200": 990e12, "H100": 990e12, "A100": 312e12, "L40S": 362e12, "L4": 121e12, "A10": 125e12,
    "4090": 165e12, "3090": 71e12, "V100": 125e12, "T4": 65e12,
}  # fmt: skip
"""Peak FLOP/s of a card in 16 bit without sparsity, as its maker states it."""
OTHER_CARD = 60e12
"""Of a card that is not in the table: the least of those above."""
SHARES: Mapping[str, Mapping[str, float]] = {
    "cpu": {"read": 0.4, "write": 0.15, "train": 0.25},
    "cuda": {"read": 0.4, "write": 0.05, "train": 0.35},
    "vllm": {"read": 0.4, "write": 0.15, "train": 0.35},
}
"""What each kind of work reaches of the peak. CPU: measured with SmolLM2 on two cores. GPU: estimated, from the
presets' rates; writing is bound by memory, and vLLM, which has far more answers in flight, writes faster."""
OPERATIONS = {"read": 2.0, "write": 2.0, "train": 6.0}
PACE = "pace.jsonl"
SAMPLE = 500
UNFINISHED = (".work", ".tmp")
_STAGE = re.compile(r": (answers|rewards)$")
"""What the loop calls these stages; an evaluation's own answers come without an iteration before them."""


@dataclass(frozen=True, slots=True)
class Machine:
    """What computes here: `flops` is the peak of one device, of which there are `count`; `kind` is a key of SHARES."""

    name: str
    kind: str
    flops: float
    count: int = 1


def machine(engine: str = "auto") -> Machine:
    """This machine's cards, with `engine` to write on them, or its cores."""
    import torch

    if torch.cuda.is_available():
        kind = "vllm" if engine_here(engine).startswith("vllm") else "cuda"
        name, count = torch.cuda.get_device_name(0), torch.cuda.device_count()
        peak = next((flops for card, flops in CARDS.items() if re.search(rf"\b{card}\b", name)), OTHER_CARD)
        return Machine(f"{count} × {name}", kind, peak, count)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return Machine(f"{cores} CPU cores", "cpu", cores * CORE_FLOPS)


def rates(here: Machine, parameters: int | None, config: LoopConfig, measured: Mapping[str, Rate]) -> dict[str, Rate]:
    """Rates by name (read, write, train; answers, rewards where they are measured), the measured ones first choice.

    All cards train where the recipe shards the model; one of them answers and scores.
    """
    shares = SHARES[here.kind]
    found: dict[str, Rate] = {}
    for name, operations in OPERATIONS.items():
        cards = here.count if name == "train" and recipe_of(config).shard else 1
        per_s = None if not parameters else cards * here.flops * shares[name] / (operations * parameters)
        found[name] = Rate(name, per_s)
    return {**found, **measured}


def measured_rates(work: Path) -> dict[str, Rate]:
    """What this loop's own files say: tokens trained a second, answers written and scored a second."""
    found: dict[str, list[float]] = {}
    for path in sorted(work.glob(f"iteration-*/candidate-*/{METRICS}")):
        found.setdefault("train", []).extend(_numbers(path, "tokens_per_s"))
    for line in _lines(work / PACE):
        done, seconds = _positive(line.get("done")), _positive(line.get("seconds"))
        if done and seconds:
            found.setdefault(str(line.get("stage")), []).append(done / seconds)
    units = {"train": "tokens"}
    return {
        name: Rate(name, median(values), measured=True, unit=units.get(name, "answers"))
        for name, values in found.items()
        if values and name in ("train", "answers", "rewards")
    }


def pacing(track: Track, work: Path) -> Track:
    """The same progress, and how fast answers and rewards came is added to work/pace.jsonl.

    What comes without a pause at the beginning was in the store, and is not counted.
    """

    @contextmanager
    def timed(label: str, total: int) -> Iterator[Advance]:
        stage, now = _STAGE.search(label), time.monotonic()
        bar = Counted(total, now, now)

        with track(label, total) as advance:

            def counted(count: int) -> None:
                bar.add(count, time.monotonic())
                advance(count)

            try:
                yield counted
            finally:
                if stage is not None and bar.paid:
                    _append(work / PACE, {"stage": stage[1], "done": bar.paid, "seconds": bar.last - bar.began})

    return timed


def evaluation_seconds(store: Store, config: LoopConfig) -> float | None:
    """How long the store's finished runs took that were asked as this loop asks; None where there is none.

    One that was interrupted took longer than it says it did work: the median is given.
    """
    wanted = {"suite": config.suite, "protocol": config.protocol, "judge_spec": config.judge, "limit": config.limit}
    spans = [
        (datetime.fromisoformat(run.finished) - datetime.fromisoformat(run.created)).total_seconds()
        for run in store.runs()
        if run.finished and run.created and not run.model.startswith("scripted:")
        if run.settings and all(run.settings.get(name) == value for name, value in wanted.items())
    ]
    return median(spans) if spans else None


def stages_done(work: Path) -> dict[int, frozenset[Stage]]:
    """By iteration the stages that left their file or folder, whatever went into it."""
    return {
        int(folder.name.partition("-")[2]): frozenset(
            stage
            for stage, begins in FILES.items()
            if any(path.suffix not in UNFINISHED and ".before-" not in path.name for path in folder.glob(f"{begins}-*"))
        )
        for folder in work.glob("iteration-*")
        if folder.name.partition("-")[2].isdigit()
    }


def answer_tokens(work: Path, count: Callable[[str], int]) -> float | None:
    """The mean tokens of the answers that the latest iteration has; None where there are none."""
    paths = sorted(work.glob("iteration-*/answers-*.jsonl"), key=lambda path: path.stat().st_mtime)
    if not paths:
        return None
    texts = [text for row in _lines(paths[-1]) for text in row.get("responses", ()) if isinstance(text, str)]
    some = texts if len(texts) <= SAMPLE else [texts[i * len(texts) // SAMPLE] for i in range(SAMPLE)]
    return sum(map(count, some)) / len(some) if some else None


def local_folder(spec: str, store: Store) -> Path | None:
    """The folder of the model that `spec` means, if it is on this machine; nothing is fetched."""
    champion = store.champion() if spec == "champion" else None
    known = store.alias(spec) or (store.checkpoint(champion.checkpoint) if champion else None)
    if known is None and re.fullmatch("[0-9a-f]{6,64}", spec):
        known = store.checkpoint(spec)
    if known is not None:
        return Path(known.path) if Path(known.path).is_dir() else None
    if spec in BUILTIN:
        found = cache_dir() / spec
    elif spec.startswith(HUB):
        return _in_hub_cache(spec.removeprefix(HUB))
    else:
        found = Path(spec)
    return found if (found / "config.json").is_file() else None


def _in_hub_cache(name: str) -> Path | None:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    repository, _, revision = name.partition("@")
    try:
        found = Path(snapshot_download(repository, revision=revision or None, local_files_only=True))
    except (LocalEntryNotFoundError, HFValidationError):
        return None
    return found if (found / "config.json").is_file() else None


def bytes_of(folder: Path) -> int:
    """What a checkpoint takes on the disk: the files that its digest covers."""
    return sum(path.stat().st_size for path in decisive_files(folder))


def prompt_tokens(prompts: Sequence[Sample], folder: Path | None) -> tuple[float, bool]:
    """The mean tokens of a prompt, and whether the model's own tokenizer and chat template counted them.

    Past 500 prompts it is the mean of as many that are spread over them.
    """
    some = prompts if len(prompts) <= SAMPLE else [prompts[i * len(prompts) // SAMPLE] for i in range(SAMPLE)]
    talks = [conversation(each) for each in some]
    if not talks:
        return 0.0, folder is not None
    tokenizer = None if folder is None else tokenizer_at(folder)
    if tokenizer is None or not tokenizer.chat_template:
        return sum(len(turn.content) for talk in talks for turn in talk) / CHARS_PER_TOKEN / len(talks), False
    texts = [
        tokenizer.apply_chat_template(
            [{"role": turn.role, "content": turn.content} for turn in talk], tokenize=False, add_generation_prompt=True
        )
        for talk in talks
    ]
    counts = [len(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]) for text in texts]
    return sum(counts) / len(counts), True


def counter(folder: Path | None) -> Callable[[str], int]:
    """Counts a text's tokens, with the model's tokenizer if it is here."""
    tokenizer = None if folder is None else tokenizer_at(folder)
    if tokenizer is None:
        return lambda text: math.ceil(len(text) / CHARS_PER_TOKEN)
    return token_count(tokenizer)


def lacking(config: LoopConfig, folder: Path | None) -> list[str]:
    """What keeps this machine from training the policy in the folder, as a note: another machine may do it."""
    try:
        check_recipes(config, None if folder is None else Checkpoint(str(folder), ""))
    except UserError as error:
        return [f"it does not train here: {error}"]
    return []


def check_templates(config: LoopConfig, store: Store, prompts: Sequence[Sample]) -> None:
    """Raise UserError where the policy or the reward model is on this machine, and would not read these prompts."""
    policy = local_folder(config.model, store)
    if policy is not None and chat_template_digest(policy):
        check_asks(Checkpoint(str(policy), ""), map(conversation, prompts))
    folder = None if config.ranks or config.preferences is not None else local_folder(config.reward, store)
    if folder is not None:
        check_reads(Checkpoint(str(folder), ""), map(conversation, prompts))


def asked_tokens(requests: Iterable[Request]) -> tuple[int, int]:
    """Tokens that requests make an engine read (what prompts begin with alike counts once) and write, as expected."""
    prompts, read, written = set(), 0, 0
    for request in requests:
        prompt = request.prompt
        prompts.add(prompt if isinstance(prompt, str) else "\n".join(turn.content for turn in prompt))
        if request.continuation is None:
            written += min(request.sampling.max_tokens, EXPECTED_TOKENS)
        else:
            read += len(request.continuation)
    before = ""
    for text in sorted(prompts):
        read += len(text) - _alike(before, text)
        before = text
    return math.ceil(read / CHARS_PER_TOKEN), written


def _alike(one: str, other: str) -> int:
    """How many characters two texts begin alike with, found by halving."""
    low, high = 0, min(len(one), len(other))
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if one[low:middle] == other[low:middle] else (low, middle - 1)
    return low


def _append(path: Path, value: Mapping[str, Any]) -> None:
    """A line at the end of a file; a disk that is full costs this figure and nothing else."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(value) + "\n")
    except OSError:
        return


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    """The objects in a file of JSON lines; a line that is none (half written) is passed over."""
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return
    for line in text.splitlines():
        try:
            found = json.loads(line)
        except ValueError:
            continue
        if isinstance(found, dict):
            yield found


def _numbers(path: Path, name: str) -> list[float]:
    return [value for line in _lines(path) if (value := _positive(line.get(name)))]


def _positive(value: object) -> float | None:
    return float(value) if isinstance(value, int | float) and math.isfinite(value) and value > 0 else None
