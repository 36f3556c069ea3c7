"""A reward model that ranks what the talker says, and a small loop of both."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.conftest import light
from tests.trainers.online.loop_driver import SUITE, samples

from rlhf_bench.harness.checkpoint import checkpoint_digest
from rlhf_bench.harness.models import open_engine
from rlhf_bench.harness.policy import Guard, Policy, Target
from rlhf_bench.harness.run import evaluate
from rlhf_bench.harness.store import Store
from rlhf_bench.harness.types import Checkpoint, EvalProtocol, Report
from rlhf_bench.trainers.online import Line, LoopConfig, reward_scoring

SETTINGS: dict[str, Any] = {
    "name": "small",
    "model": "start",
    "iterations": 1,
    "prompts_per_iteration": 3,
    "answers": {"n": 4, "temperatures": [1.2], "max_tokens": 40},
    "dpo": {
        "epochs": 1,
        "batch_size": 2,
        "micro_batch": 1,
        "learning_rate": 1e-2,
        "dtype": "float32",
        "max_length": 512,
    },
    "backend": "torch",
}
SFT: dict[str, Any] = {
    "method": "sft",
    "dpo": {},
    "sft": {"batch_size": 2, "learning_rate": 1e-2, "dtype": "float32", "max_length": 512, "packing": False},
}
"""What best-of-n sets beside."""
GIVEN: dict[str, Any] = {"preferences": "pairs.jsonl", "answers": {"max_tokens": 40}}
"""What a loop on given pairs sets beside."""
NEVER = Policy(
    name="never",
    targets=(Target(benchmark="vowels", metric="share", min_effect=0.9),),
    guards=(Guard(benchmark="short", metric="acc", margin=0.5),),
)
"""A policy that no candidate satisfies."""


@pytest.fixture(scope="session")
def reward(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A reward model with a random head on the tiny model: enough to rank answers."""
    import torch
    from transformers import AutoTokenizer, LlamaForSequenceClassification

    torch.manual_seed(1)
    path = tmp_path_factory.mktemp("reward") / "model"
    LlamaForSequenceClassification.from_pretrained(tiny_checkpoint, num_labels=1).save_pretrained(path)
    AutoTokenizer.from_pretrained(tiny_checkpoint).save_pretrained(path)
    return path


@pytest.fixture(autouse=True)
def quick() -> Iterator[None]:
    with light():
        yield


@pytest.fixture
def line(tmp_path: Path, talker: Path, reward: Path) -> Iterator[Callable[..., Line]]:
    """A loop on the tiny model; settings change the config, keywords the rest of it."""
    store = Store(f"sqlite:///{tmp_path}/store.db")
    store.register(Checkpoint(str(talker), checkpoint_digest(talker)), alias="start")

    def measure(checkpoint: Checkpoint) -> Report:
        return evaluate(SUITE, open_engine(checkpoint.path, store), protocol=EvalProtocol("test"), store=store, limit=4)

    def make(settings: dict[str, Any] | None = None, **changes: Any) -> Line:
        known: dict[str, Any] = {
            "config": LoopConfig.model_validate(SETTINGS | (settings or {})),
            "store": store,
            "policy": NEVER,
            "scoring": lambda: reward_scoring(Checkpoint(str(reward), checkpoint_digest(reward)), "reward"),
            "measure": measure,
            "home": tmp_path,
            "prompts": samples(12, 8),
        }
        return Line(**known | changes)

    with store:
        yield make


def files(line: Line, pattern: str, number: int = 1) -> list[Path]:
    return sorted((line.work / f"iteration-{number}").glob(pattern))


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(text) for text in path.read_text().splitlines()]
