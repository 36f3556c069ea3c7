"""The loop: killed in every stage it goes on to the result of an uninterrupted one, and finished it does nothing."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

WORDS = ("sea", "train", "gas", "poem", "capital", "plant", "blue", "wide", "fast", "hour", "mile", "short")
DRIVER = Path(__file__).with_name("loop_driver.py")
KILLS = [
    ("answers", 5),
    ("rewards", 1),
    ("train", 2),
    ("iteration 2 of 2: answers", 3),
    ("grades", 1),
    ("promote:before", 1),
    ("promote:after", 1),
]


def drive(home: Path, model: Path, reward: Path, *kill: str) -> subprocess.CompletedProcess[str]:
    home.mkdir(parents=True, exist_ok=True)
    environment = os.environ | {"RLHF_BENCH_HOME": str(home), "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, str(DRIVER), str(home), str(model), str(reward), *kill],
        capture_output=True,
        text=True,
        env=environment,
        timeout=300,
        check=False,
    )


@pytest.fixture(scope="module")
def talker(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model, taught in a few steps to say some words and then to stop."""
    import torch
    from transformers import AutoTokenizer, LlamaForCausalLM

    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(tiny_checkpoint)
    model = LlamaForCausalLM.from_pretrained(tiny_checkpoint)
    texts = [
        tokenizer.apply_chat_template(
            [
                {"role": "user", "content": f"Tell me about the {word}-{i}."},
                {"role": "assistant", "content": " ".join(WORDS[(i * 5 + k) % len(WORDS)] for k in range(3 + i % 4))},
            ],
            tokenize=False,
        )
        for i, word in enumerate(WORDS * 2)
    ]
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for step in range(120):
        ids = torch.tensor([tokenizer(texts[step % len(texts)], add_special_tokens=False)["input_ids"]])
        model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    path = tmp_path_factory.mktemp("talker") / "model"
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def reward(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A reward model with a random head on the tiny model: enough to rank answers."""
    import torch
    from transformers import AutoTokenizer, LlamaForSequenceClassification

    torch.manual_seed(1)
    path = tmp_path_factory.mktemp("reward") / "model"
    LlamaForSequenceClassification.from_pretrained(tiny_checkpoint, num_labels=1).save_pretrained(path)
    AutoTokenizer.from_pretrained(tiny_checkpoint).save_pretrained(path)
    return path


def test_a_loop_killed_in_every_stage_ends_as_an_uninterrupted_one_and_then_does_nothing_twice(
    tmp_path: Path, talker: Path, reward: Path
) -> None:
    whole = drive(tmp_path / "whole", talker, reward)
    assert whole.returncode == 0, whole.stderr
    expected: dict[str, Any] = json.loads(whole.stdout.splitlines()[-1])
    struck = []
    for label, count in KILLS:
        killed = drive(tmp_path / "killed", talker, reward, label, str(count))
        if killed.returncode == -signal.SIGKILL:
            struck.append(label)
        else:
            assert killed.returncode == 0, killed.stderr
    assert {"answers", "rewards", "train", "grades"} <= set(struck)
    resumed = drive(tmp_path / "killed", talker, reward)
    assert resumed.returncode == 0, resumed.stderr
    assert json.loads(resumed.stdout.splitlines()[-1]) == expected
    again = drive(tmp_path / "killed", talker, reward, "asked", "1")  # dies if anything is asked of a model again
    assert again.returncode == 0, again.stderr
    assert again.stdout == resumed.stdout
