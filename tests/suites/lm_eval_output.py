"""What lm-eval itself writes: its evaluator and its tracker on a tiny model, over tasks with rows of their own."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

QUESTIONS = [
    {"question": f"What is {n} plus {n}?", "choices": [str(2 * n), str(2 * n + 1), "a lot"], "answer": 0}
    for n in range(6)
]
TASKS = ("quiz", "words")
_CHOICE = """
task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {rows}}}, cache_dir: {cache}}}
output_type: multiple_choice
test_split: test
doc_to_text: "Q: {{{{question}}}}\\nA:"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: answer
metric_list:
  - {{metric: acc, aggregation: mean, higher_is_better: true}}
  - {{metric: acc_norm, aggregation: mean, higher_is_better: true}}
metadata: {{version: 1.0}}
"""
_GROUP = """
group: quiz
task: [quiz_sums, quiz_doubles]
aggregate_metric_list: [{metric: acc, weight_by_size: true}]
metadata: {version: 2.0}
"""
_WORDS = """
task: words
dataset_path: json
dataset_kwargs: {{data_files: {{test: {rows}}}, cache_dir: {cache}}}
output_type: generate_until
test_split: test
doc_to_text: "Q: {{{{question}}}}\\nA:"
doc_to_target: answer
generation_kwargs: {{until: ["\\n"], max_gen_toks: 8, do_sample: false}}
metric_list:
  - {{metric: exact_match, aggregation: mean, higher_is_better: true}}
filter_list:
  - {{name: strict, filter: [{{function: take_first}}]}}
  - {{name: digits, filter: [{{function: regex, regex_pattern: "([0-9]+)"}}, {{function: take_first}}]}}
metadata: {{version: 1.0}}
"""


def write_tasks(folder: Path) -> Path:
    """Task files for lm-eval: the group `quiz` of two tasks with choices, and `words`, which generates."""
    tasks, cache = folder / "tasks", folder / "cache"
    tasks.mkdir(parents=True)
    for name, questions in (("quiz_sums", QUESTIONS), ("quiz_doubles", QUESTIONS[:4])):
        rows = folder / f"{name}.jsonl"
        rows.write_text("\n".join(map(json.dumps, questions)))
        (tasks / f"{name}.yaml").write_text(_CHOICE.format(name=name, rows=rows, cache=cache))
    rows = folder / "words.jsonl"
    words = [{"zeal": "é\U0001f600", "question": each["question"], "answer": each["choices"][0]} for each in QUESTIONS]
    rows.write_text("\n".join(map(json.dumps, words)))
    (tasks / "words.yaml").write_text(_WORDS.format(rows=rows, cache=cache))
    (tasks / "quiz.yaml").write_text(_GROUP)
    return tasks


def lm_eval_writes(tasks: Path, model: Path, output: Path) -> Path:
    """The results file that lm-eval writes for this model on these tasks."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from lm_eval import simple_evaluate
        from lm_eval.loggers import EvaluationTracker
        from lm_eval.tasks import TaskManager

        tracker = EvaluationTracker(output_path=str(output))
        results: dict[str, Any] = simple_evaluate(
            model="hf",
            model_args={"pretrained": str(model), "dtype": "float32"},
            tasks=list(TASKS),
            task_manager=TaskManager(include_path=str(tasks), include_defaults=False),
            evaluation_tracker=tracker,
            device="cpu",
            bootstrap_iters=1000,
            log_samples=True,
        )
        samples = results.pop("samples")
        tracker.save_results_aggregated(results=results, samples=samples)
        for task, rows in samples.items():
            tracker.save_results_samples(task_name=task, samples=rows)
    (file,) = output.glob("*/results_*.json")
    return file
