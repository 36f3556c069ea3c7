"""MBPP: 500 basic Python tasks, each shown with its three tests.

Paper: Austin et al. 2021, "Program Synthesis with Large Language Models", arXiv 2108.07732.
Data: google-research's mbpp.jsonl as deepseek-ai/DeepSeek-Coder@2f9fd859 keeps it; CC-BY-4.0. Of its 974 rows, task_id
11 to 510 are the test split.
Metric: pass_at_1, whether the one greedy answer passes the tests, in the sandbox (harness/sandbox) or not at all.
Differs: from lm-eval 0.4.13's mbpp in what runs the tests. They stand in a process of their own, so what a program does
to its arguments is not seen (no test looks at it), and 5 s of CPU time are the limit, not 3 s of wall-clock time. As in
lm-eval, a row's test_setup_code is not run; task 367 alone has one, and so its canonical solution fails: 499 of 500
pass.
"""

from __future__ import annotations

from rlhf_bench.suites.data import Row
from rlhf_bench.suites.lm_eval_code import with_gold
from rlhf_bench.suites.lm_eval_tasks import lm_eval_benchmark

TEST_IDS = range(11, 511)


def test_row(row: Row) -> Row | None:
    """The row, if it is one of the test split."""
    return row if row["task_id"] in TEST_IDS else None


BENCHMARK = with_gold(
    lm_eval_benchmark(
        "mbpp",
        metric="pass_at_1",
        kind="binary",
        size=500,
        summary="basic Python tasks, run against three tests each",
        tasks={"mbpp": "mbpp/mbpp.yaml", "mbpp_instruct": "mbpp/mbpp_instruct.yaml"},
        splits=("test",),
        row=test_row,
    ),
    lambda row: str(row["code"]),
)
