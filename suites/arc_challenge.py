"""ARC-Challenge: 1172 four-way science questions, answered by the likelihood of each choice.

Paper: Clark et al. 2018, "Think you have Solved Question Answering?", arXiv 1803.05457.
Data: AGI-Edgerunners/LLM-Adapters@81665720, dataset/ARC-Challenge, all 1172 + 1119 questions of AI2's; CC-BY-SA-4.0.
Metric: acc_norm (log-likelihood per character of the choice); acc beside it.
Differs: from lm-eval 0.4.13's arc_challenge only in the rows' form: choices are labelled A to E throughout and
questions have no id, neither of which it reads; the protocol `paper` puts the same 25 examples before every question.
"""

from __future__ import annotations

import re

from rlhf_bench.suites.data import Row
from rlhf_bench.suites.lm_eval_tasks import lm_eval_benchmark

_ROW = re.compile(
    r"Please choose the correct answer to the question: (.*)\n\n(Answer1: .*)\n\nAnswer format: .*", re.DOTALL
)


def hub_row(row: Row) -> Row:
    """The row as allenai/ai2_arc has it: question, choices (text, label), answerKey. Raises ValueError for another."""
    parsed = _ROW.fullmatch(row["instruction"])
    if parsed is None:
        raise ValueError(f"not a question with numbered answers: {row['instruction'][:80]!r}")
    texts = re.split(r"(?:^| )Answer\d: ", parsed[2])[1:]
    right = int(row["answer"].removeprefix("answer")) - 1
    labels = list("ABCDE"[: len(texts)])
    return {"question": parsed[1], "choices": {"text": texts, "label": labels}, "answerKey": labels[right]}


BENCHMARK = lm_eval_benchmark(
    "arc_challenge",
    metric="acc_norm",
    kind="binary",
    size=1172,
    summary="science questions with four choices, by likelihood per character",
    tasks={"arc_challenge": "arc/arc_challenge.yaml"},
    splits=("test", "train"),
    row=hub_row,
)
