"""A full gate over nine suites at full size: the time of the verdict, and of reading both runs from the store.

    python benchmarks/gate_speed.py

18,000 paired samples, three runs (candidate, champion, anchor), eight guards and a target, 10,000 resamples where
resampling is used. Printed: seconds of wall and CPU time, the median of three; nothing is asserted.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from rlhf_bench.harness.codec import sample_digest
from rlhf_bench.harness.gate import RunData, gate
from rlhf_bench.harness.policy import Guard, Policy, Target
from rlhf_bench.harness.store import Run, Store
from rlhf_bench.harness.types import Completion, Kind, Record, Report, Request, Sample, Score

SIZES: dict[str, tuple[int, Kind]] = {
    "mmlu": (14042, "binary"),
    "gsm8k": (1319, "binary"),
    "arc_challenge": (1172, "binary"),
    "truthfulqa_mc2": (817, "continuous"),
    "alpaca_eval": (805, "continuous"),
    "mbpp": (500, "binary"),
    "arena_hard": (500, "continuous"),
    "humaneval": (164, "binary"),
    "mt_bench": (80, "continuous"),
}
METRIC = "score"
ROUNDS = 3


def records(benchmark: str, skill: float, seed: int) -> list[Record]:
    """Made-up records of one run: scores that hang on the sample's difficulty and on chance."""
    size, kind = SIZES[benchmark]
    difficulty = np.random.default_rng(len(benchmark)).uniform(0, 1, size)
    noise = np.random.default_rng([seed, len(benchmark)]).normal(0, 0.15, size)
    values = np.clip(skill + 0.5 - difficulty + noise, 0, 1)
    if kind == "binary":
        values = (values > 0.5).astype(float)
    found = []
    for number, value in enumerate(values):
        name = f"{benchmark}/{number}"
        sample = Sample(name, (Request(name, f"question {number} of {benchmark} " * 20),), "reference")
        answer = Completion(name, 0, "an answer of some length " * 20, "stop", 100)
        found.append(Record(benchmark, sample_digest(sample), sample, (answer,), Score(name, float(value))))
    return found


def run(name: str, skill: float, seed: int) -> RunData:
    """A run of all nine."""
    facts = {b: {"version": "1", "metric": METRIC, "kind": kind, "digest": b} for b, (_, kind) in SIZES.items()}
    manifest: dict[str, Any] = {"protocol_digest": "p", "judge_identity": "j", "benchmarks": facts}
    return RunData(name, name, manifest, {benchmark: records(benchmark, skill, seed) for benchmark in SIZES})


def timed(work: Callable[[], object]) -> tuple[float, float]:
    """Median wall and CPU seconds."""
    walls, cpus = [], []
    for _ in range(ROUNDS):
        wall, cpu = time.perf_counter(), time.process_time()
        work()
        walls.append(time.perf_counter() - wall)
        cpus.append(time.process_time() - cpu)
    return statistics.median(walls), statistics.median(cpus)


def main() -> None:
    """Make the runs, gate them, and read one back from a store."""
    candidate, champion, anchor = run("new", 0.53, 1), run("old", 0.5, 2), run("first", 0.5, 3)
    policy = Policy(
        name="nine",
        targets=(Target(benchmark="alpaca_eval", metric=METRIC),),
        guards=tuple(Guard(benchmark=name, metric=METRIC, margin=0.05) for name in SIZES if name != "alpaca_eval"),
    )
    table = Table("what", "wall s", "CPU s", title=f"{sum(n for n, _ in SIZES.values()):,} paired samples")
    table.add_row("the verdict", *(f"{x:.2f}" for x in timed(lambda: gate(policy, candidate, champion, anchor))))
    with TemporaryDirectory() as folder, Store(f"sqlite:///{folder}/store.db") as store:
        store.start_run(Run("new", "new", "new", "nine", "p", None, "k", candidate.manifest))
        for found in candidate.records.values():
            store.save_records("new", found)
        store.finish_run("new", Report("new", "new", "new", "nine", "p", None, (), candidate.manifest))
        table.add_row("reading one run", *(f"{x:.2f}" for x in timed(lambda: RunData.load(store, "new"))))
    Console().print(table)


if __name__ == "__main__":
    main()
