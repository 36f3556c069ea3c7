"""A loop of one iteration on the tiny model, which the tests of its faults start from the command line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tests.cli.conftest import Call, Called

CONFIG = """
name: small
model: {model}
reward: {reward}
judge: {judge}
prompts_per_iteration: 3
iterations: 1
answers: {{n: 4, temperatures: [1.2], max_tokens: 24}}
dpo: {{epochs: 1, batch_size: 2, micro_batch: 1, learning_rate: 1.0e-2, dtype: float32, max_length: 512}}
backend: torch
suite: demo-chat,demo-arithmetic
limit: 4
policy: policy.yaml
contaminated: keep
probes: null
"""
POLICY = """
name: chat
targets:
  - {benchmark: demo-chat, metric: win_rate}
guards:
  - {benchmark: demo-arithmetic, metric: exact_match, margin: 0.5}
"""
LIMIT = 4
STUB = "scripted:longer"


class Loop:
    """Runs the loop of the config that it writes to `folder`, in a home of each name."""

    def __init__(
        self,
        call: Call,
        folder: Path,
        environment: pytest.MonkeyPatch,
        model: Path,
        reward: str = STUB,
        judge: str = STUB,
    ) -> None:
        self._call, self._folder, self._environment = call, folder, environment
        self.model = str(model)
        waits = "patience_s: 0\n" if "openai:" in reward + judge else ""
        (folder / "loop.yaml").write_text(CONFIG.format(model=model, reward=reward, judge=judge) + waits)
        (folder / "policy.yaml").write_text(POLICY)

    def __call__(self, name: str, *changes: str, json: bool = True) -> Called:
        self._environment.setenv("RLHF_BENCH_HOME", str(self._folder / name))
        shown = ("--json",) if json else ()
        return self._call("iterate", str(self._folder / "loop.yaml"), *shown, *(f"--set={each}" for each in changes))

    def work(self, name: str) -> Path:
        """Where its files lie."""
        return self._folder / name / "loops" / "small"


def result(done: Called) -> Any:
    """What came of a loop; it says where its files lie, which differs."""
    assert done.code == 0, done.err
    found = []
    for each in done.json["iterations"]:
        reports = [each[name] for name in ("champion_report", "candidate_report")]
        kept = {name: each[name] for name in ("verdict", "verdict_id", "pairs", "dropped")}
        found.append(kept | {"of": [(report["run_id"], report["estimates"]) for report in reports]})
    return found
