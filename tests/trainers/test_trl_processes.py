"""trainers/trl under torchrun: two processes take the steps that one takes, and go on from where both were killed."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tests.trainers.oracles import metrics, weights
from tests.trainers.trl_driver import train

from rlhf_bench.harness.checkpoint import checkpoint_digest
from rlhf_bench.harness.types import Checkpoint

DRIVER = Path(__file__).with_name("trl_driver.py")
pytestmark = pytest.mark.slow  # each starts Python, torch and TRL anew in two processes


def launched(what: str, start: Checkpoint, out: Path) -> subprocess.Popen[bytes]:
    """`torchrun --nproc-per-node 2` on two CPU processes (gloo), in a process group of its own."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(DRIVER)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen([*command, what, start.path, str(out), "1"], env=environment, stderr=subprocess.PIPE)


def finished(child: subprocess.Popen[bytes], out: Path) -> Checkpoint:
    _, errors = child.communicate(timeout=400)
    assert child.returncode == 0, errors.decode()[-3000:]
    return Checkpoint(str(out), checkpoint_digest(out))


@pytest.mark.parametrize("what", ["sft", "reward", "preference", "dpo"])
def test_two_processes_take_the_steps_of_one(tiny: Checkpoint, tmp_path: Path, what: str) -> None:
    """Rows that no round fills: the last step of an epoch has one row for two processes of micro-batch two."""
    one = train(what, tiny, tmp_path / "one")
    two = finished(launched(what, tiny, tmp_path / "two"), tmp_path / "two")
    assert len(metrics(one)) == len(metrics(two)) > 20
    for step, other in zip(metrics(one), metrics(two), strict=True):
        assert step.keys() == other.keys()
        assert other["loss"] == pytest.approx(step["loss"], abs=1e-4)
        assert other["grad_norm"] == pytest.approx(step["grad_norm"], rel=1e-2, abs=1e-4)
    for name, weight in weights(one).items():
        assert (weights(two)[name] - weight).abs().max() < 1e-3, name
    assert not (tmp_path / "two.work").exists()


def test_two_killed_processes_go_on_to_the_same_weights(tiny: Checkpoint, tmp_path: Path) -> None:
    whole = finished(launched("reward-lora", tiny, tmp_path / "whole"), tmp_path / "whole")
    both = _both("reward-lora", tiny, tmp_path / "killed")
    log = tmp_path / "killed.work" / "metrics.jsonl"
    while both[0].poll() is None and not (log.exists() and len(log.read_bytes().splitlines()) >= 11):
        time.sleep(0.002)
    for child in both:
        child.kill()
        child.communicate()
    assert [child.returncode for child in both] == [-signal.SIGKILL] * 2
    assert not (tmp_path / "killed").exists()
    resumed = finished(launched("reward-lora", tiny, tmp_path / "killed"), tmp_path / "killed")
    assert resumed.digest == whole.digest
    assert metrics(resumed) == metrics(whole)


def _both(what: str, start: Checkpoint, out: Path) -> list[subprocess.Popen[bytes]]:
    """The two processes that torchrun would start; its own children outlive it when it is killed."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2", "OMP_NUM_THREADS": "1"}
    return [
        subprocess.Popen(
            [sys.executable, str(DRIVER), what, start.path, str(out), "1"],
            env={**os.environ, **shared, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stderr=subprocess.DEVNULL,
        )
        for rank in range(2)
    ]
