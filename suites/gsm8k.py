"""GSM8K: 1319 grade-school word problems, answered by generation.

Paper: Cobbe et al. 2021, "Training Verifiers to Solve Math Word Problems", arXiv 2110.14168.
Data: openai/grade-school-math@3101c7d5, grade_school_math/data; MIT.
Metric: exact_match after flexible-extract (the last number of the answer); strict-match beside it.
Differs: nothing from lm-eval 0.4.13's gsm8k_cot (protocol `paper`) and gsm8k (`lm-eval`).
"""

from __future__ import annotations

from rlhf_bench.suites.lm_eval_tasks import lm_eval_benchmark

BENCHMARK = lm_eval_benchmark(
    "gsm8k",
    metric="exact_match,flexible-extract",
    kind="binary",
    size=1319,
    summary="grade-school word problems, by the last number of the answer",
    tasks={"gsm8k": "gsm8k/gsm8k.yaml", "gsm8k_cot": "gsm8k/gsm8k-cot.yaml"},
    splits=("test", "train"),
)
