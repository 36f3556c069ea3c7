"""TruthfulQA MC1: 817 questions that invite a common error; right is who finds the one best answer likeliest.

Paper: Lin et al. 2022, "TruthfulQA: Measuring How Models Mimic Human Falsehoods", arXiv 2109.07958.
Data: the first edition's mc_task.json as ictnlp/TruthX@a41093a6 keeps it, TruthfulQA/data; Apache-2.0.
Metric: acc, whether the best answer has the highest log-likelihood.
Differs: from lm-eval 0.4.13's truthfulqa_mc1 only in the rows' form, which the hub derives from the same file.
"""

from __future__ import annotations

from rlhf_bench.suites.data import Row
from rlhf_bench.suites.lm_eval_tasks import lm_eval_benchmark


def hub_row(row: Row) -> Row:
    """The row as truthfulqa/truthful_qa has it: answers and their labels (1 is true) as two lists."""
    targets = ("mc1_targets", "mc2_targets")
    return {"question": row["question"]} | {
        name: {"choices": list(row[name]), "labels": list(row[name].values())} for name in targets
    }


BENCHMARK = lm_eval_benchmark(
    "truthfulqa_mc1",
    metric="acc",
    kind="binary",
    size=817,
    summary="questions that invite a common error, by the likeliest answer",
    tasks={"truthfulqa_mc1": "truthfulqa/truthfulqa_mc1.yaml"},
    splits=("validation",),
    row=hub_row,
)
