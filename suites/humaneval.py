"""HumanEval: 164 Python functions, written from their signature and docstring.

Paper: Chen et al. 2021, "Evaluating Large Language Models Trained on Code", arXiv 2107.03374.
Data: openai/human-eval@6d43fb98, data/HumanEval.jsonl.gz; MIT.
Metric: pass@1, whether the one greedy completion passes the tests, in the sandbox (harness/sandbox) or not at all.
Differs: from lm-eval 0.4.13's humaneval in what runs the tests. They stand in a process of their own, so what a program
does to its arguments is not seen (no test looks at it); helpers that three tests call come from the prompt, not from
the answer; and 5 s of CPU time are the limit, not 3 s of wall-clock time.
"""

from __future__ import annotations

from rlhf_bench.suites.lm_eval_code import with_gold
from rlhf_bench.suites.lm_eval_tasks import lm_eval_benchmark

BENCHMARK = with_gold(
    lm_eval_benchmark(
        "humaneval",
        metric="pass@1,create_test",
        kind="binary",
        size=164,
        summary="Python functions from docstrings, run against their tests",
        tasks={"humaneval": "humaneval/humaneval.yaml", "humaneval_instruct": "humaneval/humaneval_instruct.yaml"},
        splits=("test",),
    ),
    lambda row: str(row["canonical_solution"]),
)
