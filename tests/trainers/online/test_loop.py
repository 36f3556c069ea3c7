"""The loop: killed in every stage it goes on to the result of an uninterrupted one, and finished it does nothing."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

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
