"""Times the scoring mathematics: `RLHF_BENCH_DATA=... python benchmarks/scoring.py`.

CPU seconds of this process, the best of several runs. alpaca_eval's own fit is timed beside ours where it imports.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np

from rlhf_bench.suites.judged.alpaca_eval import Annotation, fit, gamed, read_annotations
from rlhf_bench.suites.judged.arena_hard import Battle
from rlhf_bench.suites.judged.arena_style import Style, style_control
from rlhf_bench.suites.judged.length_controlled import bootstrap, length_feature

MODEL = "vicuna-7b-v1.5"


def best_s(work: Callable[[], Any], runs: int = 7) -> float:
    """The least CPU time of `runs` calls, after one that is not counted."""
    work()
    took = []
    for _ in range(runs):
        began = time.process_time()
        work()
        took.append(time.process_time() - began)
    return min(took)


def length_control(rows: list[Annotation]) -> None:
    fixed, found = gamed()[0], fit(rows)
    preferences = np.array([each.preference for each in rows], dtype=np.float64)
    length = length_feature(
        np.array([each.baseline_chars for each in rows]), np.array([each.model_chars for each in rows])
    )
    difficulty = fixed.difficulty[[int(each.instruction) for each in rows]]
    resampled = best_s(lambda: bootstrap(preferences, length, difficulty, fixed, found), 3)
    print(f"LC fit of one model with cross-validation: {1000 * best_s(lambda: fit(rows)):.1f} ms (target 20)")
    print(f"1000 bootstrap refits:                      {resampled:.3f} s (target 0.25)")


def official_length_control(rows: list[Annotation], data: Path) -> None:
    try:
        import pandas
        from alpaca_eval.metrics import glm_winrate
    except ImportError as error:
        print(f"alpaca_eval's own fit:                      not here ({error})")
        return
    glm_winrate.hf_hub_download = lambda **_: data / "alpaca_eval/recovered/df_gamed_surrogate.csv.gz"
    table = pandas.DataFrame(
        {
            "preference": [1 + (each.preference or 0.0) for each in rows],
            "output_1": ["x" * int(each.baseline_chars) for each in rows],
            "output_2": ["x" * int(each.model_chars) for each in rows],
            "generator_1": "gpt4_1106_preview",
            "generator_2": MODEL,
        }
    )
    theirs = best_s(
        lambda: glm_winrate.get_length_controlled_winrate(
            table.copy(), save_weights_dir=None, is_warn_extreme_changes=False
        )
    )
    print(f"alpaca_eval's own fit:                      {1000 * theirs:.1f} ms")


def style() -> None:
    """Made-up judgments of the real shape: 500 prompts, two games, two models."""
    rng = np.random.default_rng(0)
    styles = {
        name: {str(q): Style(*(float(x) for x in (rng.integers(50, 900), *rng.integers(0, 9, 3)))) for q in range(500)}
        for name in ("base", "a", "b")
    }
    rows = [
        Battle(name, "base", "j", "", str(q), float(rng.choice([0.0, 0.5, 1.0])), float(rng.choice([1.0, 3.0])), "v")
        for name in ("a", "b")
        for q in range(500)
        for _ in range(2)
    ]
    for version, penalised in (("v0.1", True), ("v2.0", False)):
        took = best_s(lambda penalised=penalised: style_control(rows, styles, penalised=penalised))  # type: ignore[misc]
        print(f"Arena-Hard {version} style, 100 replicates, 2 models: {took:.4f} s (target 0.05)")


def main() -> None:
    data = Path(os.environ["RLHF_BENCH_DATA"])
    rows = [each for each in read_annotations([data / "alpaca_eval/annotations_reduced.csv.gz"]) if each.model == MODEL]
    length_control(rows)
    official_length_control(rows, data)
    style()


if __name__ == "__main__":
    main()
