"""Is online better than offline at equal labels, and what does the gate keep from being shipped? Gold is known here.

Small policies trained from scratch answer prompts of a small world (online/world.py) whose gold reward is a function.
A reward model, the proxy, learns from pairs of π0's answers that were labelled by gold with noise; offline DPO learns
from the same pairs. Everything online sees the proxy alone. Policies are compared by gold on prompts that nothing was
trained or gated on, at temperature 1: π0, offline DPO, best-of-n SFT, online DPO with and without the gate, and with a
length penalty; from one π0 three seeds, of which each has labels, prompts and a reward model of its own.

    python benchmarks/online_vs_offline.py             # three seeds, two processes; under an hour on two idle cores
    python benchmarks/online_vs_offline.py --quick     # one seed, small: minutes; writes nothing under results/
    python benchmarks/online_vs_offline.py --set dpo.learning_rate=5e-4 --set iterations=5    # printed, not kept
    python benchmarks/online_vs_offline.py --markdown  # the tables of what is kept, again

Killed, it goes on where it was: --work keeps every stage by what went into it.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as the command line does
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from online.arms import ARMS, Arm, Setting, prepare, run_arm, supervised
from online.tables import draw, markdown, summary
from rich.console import Console
from rich.markdown import Markdown

from rlhf_bench.harness.config import read_config
from rlhf_bench.harness.files import write

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results"
QUICK = {
    "demonstrations": 3_000, "demonstrated": 1_000, "labels": 300, "iterations": 2, "few": 1, "prompts": 60, "n": 4,
    "validation": 60, "test": 60,
}  # fmt: skip


def work(setting: Setting, seed: int | None, arm: Arm | None, home: Path) -> dict[str, Any]:
    """One arm of one seed; without an arm what all of its arms need, without a seed what all seeds need."""
    import torch

    from rlhf_bench.harness.judges.reward import quiet

    torch.set_num_threads(1)
    with quiet():
        if seed is None:
            supervised(setting, home)
            return {}
        ready = prepare(setting, seed, home)
        return dict(ready.facts) if arm is None else run_arm(arm, ready)


def measure(setting: Setting, seeds: Sequence[int], home: Path, processes: int) -> dict[str, Any]:
    """Every arm of every seed: what each seed began from, and what each arm found."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(processes, mp_context=context) as pool:
        pool.submit(work, setting, None, None, home).result()
        begun = {seed: pool.submit(work, setting, seed, None, home) for seed in seeds}
        facts = {seed: task.result() for seed, task in begun.items()}
        tasks = [pool.submit(work, setting, seed, arm, home) for arm in ARMS for seed in seeds]
        return {"facts": facts, "arms": [task.result() for task in tasks]}


def main() -> None:
    """Measure, print, keep."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one seed, small; nothing is kept under results/")
    parser.add_argument("--set", action="append", default=[], help="key=value over the setting; nothing is kept")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--work", type=Path, default=ROOT / ".rlhf-bench" / "online-vs-offline")
    parser.add_argument("--markdown", action="store_true", help="write the tables of what is kept, and measure nothing")
    given = parser.parse_args()
    kept, start = RESULTS / "online_vs_offline.json", time.perf_counter()
    if given.markdown:
        found = json.loads(kept.read_text(encoding="utf-8"))
    else:
        given.work.mkdir(parents=True, exist_ok=True)
        started = given.work / "setting.yaml"
        write(started, (Setting(**QUICK) if given.quick else Setting()).model_dump_json())
        setting = read_config(Setting, started, given.set)
        seeds = range(1 if given.quick else given.seeds)
        found = summary(setting, measure(setting, seeds, given.work, given.processes))
        found["seconds"] = round(time.perf_counter() - start)
    if not given.quick and not given.set:
        kept.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
        kept.with_suffix(".md").write_text(markdown(found), encoding="utf-8")
        draw(found, ROOT / "docs" / "online-vs-offline.svg")
    Console(width=160).print(Markdown(markdown(found)))


if __name__ == "__main__":
    main()
