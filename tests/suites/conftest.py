"""What the tests of the suites share: lm-eval's side of a comparison."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rlhf_bench.harness.types import EvalProtocol


@pytest.fixture(scope="session")
def lines(mirror: Path) -> Callable[[str], list[dict[str, Any]]]:
    """The rows of a file of the mirror, read without any code of ours."""

    def read(file: str) -> list[dict[str, Any]]:
        content = (mirror / file).read_bytes()
        text = (gzip.decompress(content) if file.endswith(".gz") else content).decode()
        return [json.loads(line) for line in text.splitlines()]

    return read


@pytest.fixture(scope="session")
def official(lines: Callable[[str], list[dict[str, Any]]]) -> Callable[[str, EvalProtocol], Any]:
    """lm-eval's task, from its own YAML file over the mirror's own rows, set up as its evaluator sets it up."""
    import lm_eval.tasks
    from datasets import Dataset, DatasetDict
    from lm_eval.api.task import ConfigurableTask
    from lm_eval.tasks._yaml_loader import load_yaml

    files = {
        "gsm8k": {"test": "gsm8k/test.jsonl", "train": "gsm8k/train.jsonl.gz"},
        "arc_challenge": {split: f"arc/ARC-Challenge.{split}.normalised.jsonl.gz" for split in ("test", "train")},
    }
    yaml = {"gsm8k": "gsm8k/gsm8k.yaml", "gsm8k_cot": "gsm8k/gsm8k-cot.yaml"}

    def build(name: str, asked: EvalProtocol) -> Any:
        variant = asked.variants.get(name, name)
        config = load_yaml(Path(lm_eval.tasks.__file__).parent / yaml.get(variant, "arc/arc_challenge.yaml"))
        config.pop("tag", None)
        config["custom_dataset"] = lambda **_: DatasetDict(
            {split: Dataset.from_list(lines(file)) for split, file in files[name].items()}
        )
        if asked.fixed_shots:
            config["fewshot_config"] = {**config.get("fewshot_config", {}), "sampler": "first_n"}
        task = ConfigurableTask(config=config)
        task.set_config(key="num_fewshot", value=asked.shots[name])
        task.set_fewshot_seed(seed=1234)
        return task

    return build
