"""What the tests of the suites share: lm-eval's side of a comparison."""

from __future__ import annotations

import csv
import gzip
import json
import tarfile
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
def official(mirror: Path, lines: Callable[[str], list[dict[str, Any]]]) -> Callable[[str, EvalProtocol], Any]:
    """lm-eval's task, from its own YAML file over the mirror's own rows, set up as its evaluator sets it up."""
    import lm_eval.tasks
    from datasets import Dataset, DatasetDict
    from lm_eval.api.task import ConfigurableTask
    from lm_eval.tasks._yaml_loader import load_yaml

    files = {
        "gsm8k": {"test": "gsm8k/test.jsonl", "train": "gsm8k/train.jsonl.gz"},
        "arc_challenge": {split: f"arc/ARC-Challenge.{split}.normalised.jsonl.gz" for split in ("test", "train")},
    }
    yaml = {
        "gsm8k_cot": "gsm8k/gsm8k-cot.yaml",
        "arc_challenge": "arc/arc_challenge.yaml",
        "truthfulqa_mc1": "truthfulqa/truthfulqa_mc1.yaml",
        "truthfulqa_mc2": "truthfulqa/truthfulqa_mc2.yaml",
    }

    def rows(name: str) -> dict[str, list[dict[str, Any]]]:
        if name.startswith("mmlu_"):
            return {split: mmlu(split, name.removeprefix("mmlu_")) for split in ("test", "dev")}
        if name.startswith("truthfulqa"):
            questions = json.loads((mirror / "truthfulqa/mc_task.json").read_text())
            for one in questions:
                for part in ("mc1_targets", "mc2_targets"):
                    one[part] = {"choices": [*one[part].keys()], "labels": [*one[part].values()]}
            return {"validation": questions}
        return {split: lines(file) for split, file in files[name].items()}

    def mmlu(split: str, subject: str) -> list[dict[str, Any]]:
        with tarfile.open(mirror / "mmlu/mmlu.tar.xz") as archive:
            file = archive.extractfile(f"mmlu/{split}/{subject}_{split}.csv")
            assert file is not None
            table = csv.reader(file.read().decode().splitlines(keepends=True))
        return [
            {"question": question, "subject": subject, "choices": choices, "answer": ord(letter) - ord("A")}
            for question, *choices, letter in table
        ]

    def build(name: str, asked: EvalProtocol) -> Any:
        variant = asked.variants.get(name, name)
        folder = "mmlu/default" if name.startswith("mmlu_") else "gsm8k"
        config = load_yaml(Path(lm_eval.tasks.__file__).parent / yaml.get(variant, f"{folder}/{variant}.yaml"))
        config.pop("tag", None)
        config["custom_dataset"] = lambda **_: DatasetDict(
            {split: Dataset.from_list(found) for split, found in rows(name).items()}
        )
        if asked.fixed_shots:
            config["fewshot_config"] = {**config.get("fewshot_config", {}), "sampler": "first_n"}
        task = ConfigurableTask(config=config)
        task.set_config(key="num_fewshot", value=asked.shots["mmlu" if name.startswith("mmlu_") else name])
        task.set_fewshot_seed(seed=1234)
        return task

    return build
