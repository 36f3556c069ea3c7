"""Judgments a second and CPU a call against a local server with 100 ms latency, in a process of its own.

    python benchmarks/judging.py [COUNT]

Ours: the engine alone, then the whole judge (template, order, calls, preference, store on disk, fresh and again).
Beside it, where the package alpaca_eval imports, its own annotator on the same pairs with as many threads in flight.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from rlhf_bench.harness.engines.openai import OpenAIEngine
from rlhf_bench.harness.engines.pace import Limits
from rlhf_bench.harness.judges.llm import LLMJudge
from rlhf_bench.harness.store import Store
from rlhf_bench.harness.types import Battle, Message
from rlhf_bench.suites.judge_prompts import WEIGHTED, alpaca_eval_prompt

ROOT = Path(__file__).resolve().parent.parent
MODEL = "gpt-4-1106-preview"
IN_FLIGHT = 256
WORDS = "The answer depends on what is asked, and here is a paragraph that says so at some length. " * 12


def measured(label: str, count: int, work: Callable[[], int]) -> None:
    """Run `work`, which says how many it did, and print its rate and CPU."""
    began, cpu = time.perf_counter(), time.process_time()
    done = work()
    took, used = time.perf_counter() - began, time.process_time() - cpu
    assert done == count, f"{label}: {done} of {count}"
    print(
        f"{label:45} {count:6} calls {took:7.2f} s {count / took:8.0f}/s {1000 * used / count:7.3f} ms CPU a call",
        flush=True,
    )


def ours(base: str, count: int) -> None:
    """The engine alone, and the whole judge."""
    battles = [
        Battle(f"b/{n}", (Message("user", f"{n}: {WORDS[:200]}"),), f"{WORDS} {n}", f"{n} {WORDS}")
        for n in range(count)
    ]
    engine = OpenAIEngine(MODEL, base, limits=Limits(concurrency=IN_FLIGHT))
    with tempfile.TemporaryDirectory() as folder, Store(f"sqlite:///{folder}/store.db") as store:
        judge = LLMJudge(engine, store, alpaca_eval_prompt())
        requests = judge.requests(battles)
        measured("rlhf-bench, engine alone", count, lambda: sum(1 for _ in engine.generate(requests)))
        graded = lambda: sum(score.value is not None for score in judge.prefer(battles))  # noqa: E731
        measured("rlhf-bench, judge and store", count, graded)
        measured("rlhf-bench, the same again (all stored)", count, graded)
    print(f"  {engine.manifest['usage']}; {engine.cost}")


def theirs(base: str, count: int) -> None:
    """alpaca_eval's annotator, caching off."""
    os.environ |= {"OPENAI_API_BASE": base, "OPENAI_API_KEY": "none", "OPENAI_MAX_CONCURRENCY": str(IN_FLIGHT)}
    os.environ["IS_ALPACA_EVAL_2"] = "True"
    try:
        from alpaca_eval.annotators import PairwiseAnnotator
    except ImportError as error:
        print(f"alpaca_eval's own annotator: not measured ({error})")
        return
    pairs = [
        {"instruction": f"{n}: {WORDS[:200]}", "output_1": f"{n} {WORDS}", "output_2": f"{WORDS} {n}"}
        for n in range(count)
    ]
    annotator = PairwiseAnnotator(annotators_config=WEIGHTED, caching_path=None)
    graded = lambda: sum(x["preference"] is not None for x in annotator.annotate_pairs(pairs))  # noqa: E731
    measured("alpaca_eval's own annotator", count, graded)


def main() -> None:
    """Start the server, measure, stop it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("count", type=int, nargs="?", default=8000)
    count = parser.parse_args().count
    command = [sys.executable, str(ROOT / "tests" / "stub_server.py"), "0.1"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        base = server.stdout.readline().strip()
        try:
            ours(base, count)
            theirs(base, min(count, 500))
        finally:
            server.kill()


if __name__ == "__main__":
    main()
