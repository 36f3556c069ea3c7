"""What a training leaves behind, whoever trains: whole or not there, with how it was made, on a disk that is full."""

from __future__ import annotations

import json
import random
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.disks import empty, fill, small_disk
from tests.trainers.checkpoint_driver import train as train_short
from tests.trainers.conftest import dpo_recipe, reward_recipe, sums

from rlhf_bench.harness.checkpoint import checkpoint_digest, verify
from rlhf_bench.harness.codec import digest, plain
from rlhf_bench.harness.errors import Fault
from rlhf_bench.harness.progress import Advance
from rlhf_bench.harness.types import Checkpoint
from rlhf_bench.trainers.backends import get_backend

BACKENDS = ("trl", "torch")
DRIVER = Path(__file__).with_name("checkpoint_driver.py")


class Stop(Exception):
    """As if the process died, where a test can go on."""


def at_row(count: int, what: Any) -> Any:
    """A track that calls `what` once so many rows were trained on."""

    @contextmanager
    def track(label: str, total: int) -> Iterator[Advance]:
        seen = 0

        def advance(done: int) -> None:
            nonlocal seen
            before, seen = seen, seen + done
            if label.startswith("train") and before < count <= seen:
                what()

        yield advance

    return track


def stop() -> None:
    raise Stop


def saved(work: Path) -> list[str]:
    """The checkpoints inside a training, by name."""
    return sorted(path.name for path in (work / "steps").iterdir() if path.name != "runs")


@pytest.mark.parametrize("backend", BACKENDS)
def test_beside_the_weights_stands_how_they_were_made(tiny: Checkpoint, tmp_path: Path, backend: str) -> None:
    recipe, pairs = reward_recipe(seed=11, epochs=2), sums(0, 6)
    made = get_backend(backend).train_reward(recipe, pairs, tiny, tmp_path / "out")
    kept = json.loads((tmp_path / "out" / "recipe.json").read_text())
    assert kept["digest"] == made.digest == checkpoint_digest(tmp_path / "out")
    assert kept.items() >= plain(recipe).items() and kept["seed"] == 11
    assert (kept["trainer"], kept["backend"]) == ("reward", backend)
    assert kept["base_digest"] == made.parent == tiny.digest
    assert kept["preferences"] == digest([plain(pair) for pair in pairs])
    lines = [json.loads(line) for line in (tmp_path / "out" / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3, 4]
    assert {"loss", "lr", "accuracy", "margin"} <= lines[0].keys()
    names = {file.name for file in (tmp_path / "out").iterdir()}
    assert "model.safetensors" in names and not any(name.endswith((".bin", ".pt", ".tmp", ".part")) for name in names)
    assert list(tmp_path.iterdir()) == [tmp_path / "out"]


@pytest.mark.parametrize("backend", BACKENDS)
def test_as_many_checkpoints_stay_as_the_recipe_keeps(tiny: Checkpoint, tmp_path: Path, backend: str) -> None:
    """After ten steps, one saved each."""
    for keep in (1, 3):
        recipe = reward_recipe(epochs=2, save_every=1, keep=keep)
        out = tmp_path / str(keep)
        with pytest.raises(Stop):
            get_backend(backend).train_reward(recipe, sums(0, 24), tiny, out, at_row(42, stop))
        names = saved(out.with_name(f"{keep}.work"))
        assert len(names) == keep and any("10" in name for name in names)
        assert not out.exists()


@pytest.mark.skipif(sys.platform != "linux", reason="a tmpfs is Linux's")
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_full_disk_leaves_the_last_checkpoint_and_with_room_the_run_ends_in_the_same_weights(
    tiny: Checkpoint, tmp_path: Path, backend: str
) -> None:
    """A real file system with room for two checkpoints, of which the second is being written when it is full."""
    recipe, pairs = reward_recipe(epochs=3, save_every=2), sums(0, 24)
    train = get_backend(backend).train_reward
    whole = train(recipe, pairs, tiny, tmp_path / "whole")
    with small_disk(tmp_path / "disk", "64m") as disk:
        with pytest.raises(Fault) as caught:
            train(recipe, pairs, tiny, disk / "out", at_row(9, lambda: fill(disk, 2_000_000)))
        said = str(caught.value)
        assert "\n" not in said and re.search("No space left|whose disk has [01] MB left", said), said
        assert "run it again to go on" in said
        assert not (disk / "out").exists() and any("2" in name for name in saved(disk / "out.work"))
        empty(disk)
        resumed = train(recipe, pairs, tiny, disk / "out")
        assert resumed.digest == whole.digest
        assert [path.name for path in disk.iterdir()] == ["out"]


@pytest.mark.skipif(sys.platform != "linux", reason="a tmpfs is Linux's")
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_disk_that_is_full_at_the_end_leaves_no_half_model(tiny: Checkpoint, tmp_path: Path, backend: str) -> None:
    recipe, pairs = dpo_recipe(save_every=100), sums(0, 8)
    train = get_backend(backend).train_dpo
    with small_disk(tmp_path / "disk", "600k") as disk:
        with pytest.raises(Fault) as caught:
            train(recipe, pairs, tiny, tiny, disk / "out")
        assert "\n" not in str(caught.value) and "No space left" in str(caught.value), str(caught.value)
        assert not (disk / "out").exists()
        subprocess.run(["mount", "-o", "remount,size=64m", str(disk)], check=True)
        verify(train(recipe, pairs, tiny, tiny, disk / "out"))


def killed(command: list[str], work: Path, moment: str) -> str:
    """Start, kill -9 at a random moment, and say when that was: while it saves steps, or while it saves the model."""
    child = subprocess.Popen(command, stderr=subprocess.PIPE)
    step, wait_s = random.SystemRandom().randint(1, 15), random.SystemRandom().uniform(0, 0.05)
    log, draft = work / "metrics.jsonl", work / "model"

    def reached() -> bool:
        if moment == "the model":
            return draft.exists()
        return log.exists() and len(log.read_bytes().splitlines()) >= step

    while child.poll() is None and not reached():
        time.sleep(0.001)
    time.sleep(wait_s)
    child.kill()
    _, errors = child.communicate()
    assert child.returncode in (0, -9), errors.decode()[-2000:]
    return f"{moment}, step {step}, {wait_s:.4f} s, exit {child.returncode}"


@pytest.mark.slow  # some 20 starts of a process that imports torch and a trainer
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("what", ["sft", "reward", "preference", "dpo"])
def test_killed_again_and_again_it_never_shows_half_a_model_and_ends_in_the_same_weights(
    tiny: Checkpoint, tmp_path: Path, backend: str, what: str
) -> None:
    """Three deaths in a row, two while steps are saved and one while the model is."""
    whole = train_short(backend, what, tiny, tmp_path / "whole")
    out = tmp_path / "killed"
    command = [sys.executable, str(DRIVER), backend, what, tiny.path, str(out), str(torch.get_num_threads())]
    when = []
    for moment in ("a step", "a step", "the model"):
        when.append(killed(command, out.with_name("killed.work"), moment))
        assert not out.exists() or checkpoint_digest(out) == whole.digest, when
    resumed = train_short(backend, what, tiny, out)
    assert resumed.digest == whole.digest, when
    steps = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert [step["step"] for step in steps] == list(range(1, 17)), when
