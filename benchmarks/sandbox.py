"""How long the sandbox takes for HumanEval's 164 canonical solutions, beside a plain process per program.

    RLHF_BENCH_DATA=FOLDER python benchmarks/sandbox.py

FOLDER holds humaneval/HumanEval.jsonl.gz. The plain process is no sandbox: it runs the canonical solutions alone. CPU
seconds count this process and all that it started and that has ended.
"""

from __future__ import annotations

import gzip
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

from rlhf_bench.harness import sandbox
from rlhf_bench.harness.sandbox.pool import close_idle

LADDER = ("bwrap", "landlock")


def problems() -> list[dict[str, str]]:
    """The rows of HumanEval."""
    folder = os.environ.get("RLHF_BENCH_DATA")
    if not folder:
        sys.exit("set RLHF_BENCH_DATA to the folder that holds humaneval/HumanEval.jsonl.gz")
    with gzip.open(Path(folder, "humaneval", "HumanEval.jsonl.gz"), "rt", encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def in_sandbox(row: dict[str, str], level: sandbox.SandboxLevel) -> bool:
    """Whether the canonical solution passes."""
    source, test = row["prompt"] + row["canonical_solution"], f"{row['test']}\ncheck({row['entry_point']})\n"
    return sandbox.run_tests(sandbox.Program(source, test, row["entry_point"], row["prompt"]), at=level).passed is True


def in_plain_process(row: dict[str, str]) -> bool:
    """The same without any protection: for trusted code."""
    code = f"{row['prompt']}{row['canonical_solution']}\n{row['test']}\ncheck({row['entry_point']})\n"
    return subprocess.run([sys.executable, "-I", "-S", "-"], input=code.encode(), capture_output=True).returncode == 0


def cpu_s() -> float:
    """The CPU seconds of this process and of its children that ended."""
    used = os.times()
    return used.user + used.system + used.children_user + used.children_system


def measure(name: str, run: Callable[[dict[str, str]], bool], rows: Sequence[dict[str, str]], workers: int) -> None:
    """Runs all rows, and prints how many passed, and how long it took with cold starts and what ends them."""
    wall, cpu = time.monotonic(), cpu_s()
    with ThreadPoolExecutor(workers) as pool:
        passed = sum(pool.map(run, rows))
    wall = time.monotonic() - wall
    close_idle()
    used = cpu_s() - cpu
    print(f"{name:14} {workers} workers: {passed}/{len(rows)} passed, {wall:.2f} s, {used:.2f} CPU s", flush=True)


def main() -> None:
    """Prints one line per way and number of workers."""
    rows = problems()
    for workers in (1, 2):
        measure("plain process", in_plain_process, rows, workers)
        for step in LADDER:
            level = sandbox.level((step,))
            if level.safe:
                close_idle()
                measure(level.name, partial(in_sandbox, level=level), rows, workers)
            else:
                print(f"{step}: {level.description}")


if __name__ == "__main__":
    main()
