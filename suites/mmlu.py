"""MMLU: 14042 exam questions of 57 subjects, answered by the likelihood of the letters A to D.

Paper: Hendrycks et al. 2021, "Measuring Massive Multitask Language Understanding", arXiv 2009.03300.
Data: hendrycks/test's final data.tar as hiyouga/LLaMA-Factory@465ee811 keeps it, evaluation/mmlu/mmlu.zip; MIT.
Metric: acc over questions; over subjects (acc,macro), and by subject: each question's stratum.
Differs: nothing from lm-eval 0.4.13's group mmlu, whose score is that over questions. The examples are the first rows
of the subject's own dev split, five in the protocol `paper`, none in `lm-eval`: its YAML names no number.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import replace

from rlhf_bench.suites.data import Row, rows
from rlhf_bench.suites.lm_eval_tasks import Part, benchmark_of, task_of

SUBJECTS = (
    *("abstract_algebra", "anatomy", "astronomy", "business_ethics", "clinical_knowledge", "college_biology"),
    *("college_chemistry", "college_computer_science", "college_mathematics", "college_medicine", "college_physics"),
    *("computer_security", "conceptual_physics", "econometrics", "electrical_engineering", "elementary_mathematics"),
    *("formal_logic", "global_facts", "high_school_biology", "high_school_chemistry", "high_school_computer_science"),
    *("high_school_european_history", "high_school_geography", "high_school_government_and_politics"),
    *("high_school_macroeconomics", "high_school_mathematics", "high_school_microeconomics", "high_school_physics"),
    *("high_school_psychology", "high_school_statistics", "high_school_us_history", "high_school_world_history"),
    *("human_aging", "human_sexuality", "international_law", "jurisprudence", "logical_fallacies", "machine_learning"),
    *("management", "marketing", "medical_genetics", "miscellaneous", "moral_disputes", "moral_scenarios", "nutrition"),
    *("philosophy", "prehistory", "professional_accounting", "professional_law", "professional_medicine"),
    *("professional_psychology", "public_relations", "security_studies", "sociology", "us_foreign_policy"),
    *("virology", "world_religions"),
)
PIN = "mmlu/questions"


def hub_row(row: Row, subject: str) -> Row:
    """A row of a CSV file (question, four choices, letter) as cais/mmlu has it. Raises ValueError for another form."""
    question, *choices, letter = row["cells"]
    if len(choices) != 4:
        raise ValueError(f"not a question with four choices: {question[:80]!r}")
    return {"question": question, "subject": subject, "choices": choices, "answer": "ABCD".index(letter)}


@functools.cache
def _files() -> Mapping[str, Sequence[Row]]:
    """The rows by file: "test/anatomy_test.csv"."""
    files: dict[str, list[Row]] = {}
    for row in rows(PIN):
        files.setdefault(row["file"], []).append(row)
    return files


def _split(subject: str, split: str) -> list[Row]:
    return [hub_row(row, subject) for row in _files()[f"{split}/{subject}_{split}.csv"]]


def _part(subject: str) -> Part:
    read = {split: functools.partial(_split, subject, split) for split in ("test", "dev")}
    yaml = f"mmlu/default/mmlu_{subject}.yaml"
    return Part(f"mmlu_{subject}", functools.partial(task_of, yaml, read=read), stratum=subject)


BENCHMARK = replace(
    benchmark_of(
        "mmlu",
        [_part(subject) for subject in SUBJECTS],
        metric="acc",
        kind="binary",
        size=14042,
        summary="questions of 57 subjects with four choices, by the likelihood of the letter",
    ),
    needs=(PIN,),
)
