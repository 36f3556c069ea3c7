"""TruthfulQA MC2: 817 questions that invite a common error; the score is the likelihood that falls to true answers.

Paper: Lin et al. 2022, "TruthfulQA: Measuring How Models Mimic Human Falsehoods", arXiv 2109.07958.
Data: the first edition's mc_task.json as ictnlp/TruthX@a41093a6 keeps it, TruthfulQA/data; Apache-2.0.
Metric: acc, the share of the likelihood of all listed answers that the true ones have; between 0 and 1.
Differs: from lm-eval 0.4.13's truthfulqa_mc2 only in the rows' form, which the hub derives from the same file.
"""

from __future__ import annotations

from rlhf_bench.suites.lm_eval_tasks import lm_eval_benchmark
from rlhf_bench.suites.truthfulqa_mc1 import hub_row

BENCHMARK = lm_eval_benchmark(
    "truthfulqa_mc2",
    metric="acc",
    kind="continuous",
    size=817,
    summary="questions that invite a common error, by the likelihood of all true answers",
    tasks={"truthfulqa_mc2": "truthfulqa/truthfulqa_mc2.yaml"},
    splits=("validation",),
    data="truthfulqa_mc1",
    row=hub_row,
)
