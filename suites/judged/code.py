"""HumanEval's and MBPP's `samples.jsonl`, {task_id, completion | solution}: run against the tests in the sandbox.

Official: openai/human-eval, evaluate_functional_correctness: prompt, completion and tests as they stand; pass@k is the
unbiased estimate (Chen et al. 2021, equation 1). A `solution` is a whole program (EvalPlus), whose definitions come
after the prompt's. Differs: the sandbox; the mean's interval is over tasks, and tasks without a sample are counted.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rlhf_bench.harness.errors import UserError
from rlhf_bench.harness.stats import estimate
from rlhf_bench.harness.types import Completion, Kind, Sample
from rlhf_bench.suites.judged import Choice, Metric, Scored, said_ungraded
from rlhf_bench.suites.judged import lm_eval as lm_eval_samples
from rlhf_bench.suites.judged.files import Row, read

KS = (1, 10, 100)


def score(files: Sequence[Path], choice: Choice) -> list[Scored]:
    """One Scored for each file, named as the file is. lm-eval's samples, which are graded already, are scored as such.

    Raises UserError: a broken row, or a task that the benchmark does not have.
    """
    from rlhf_bench import suites

    if any(path.is_dir() or "doc_id" in next((row.fields for row in read(path)), {}) for path in files):
        return lm_eval_samples.score(files, choice)
    found = suites.benchmark(choice.benchmark)
    samples = {_id(sample.row["task_id"]): sample for sample in found.load(suites.protocol("paper"))}
    scored = []
    for path in files:
        programs: dict[str, list[str]] = {}
        for row in read(path):
            programs.setdefault(_known(row, samples, choice.benchmark), []).append(_program(row))
        scored.append(_scored(choice.benchmark, path, samples, programs))
    return scored


def _id(task: object) -> str:
    """HumanEval/3, Mbpp/11 and 11 alike: the number."""
    return str(task).rpartition("/")[2]


def _known(row: Row, samples: dict[str, Sample], benchmark: str) -> str:
    task = _id(row.text("task_id"))
    if task not in samples:
        raise row.wrong("task_id", f"should be one of {benchmark}'s {len(samples)} tasks")
    return task


def _program(row: Row) -> str:
    name = "solution" if row.fields.get("completion") is None and "solution" in row.fields else "completion"
    text = row.fields.get(name)
    if not isinstance(text, str):  # an empty one is an answer: it fails
        raise row.wrong(name, "should be a program's text ('completion', or 'solution' for a whole one)")
    return text if name == "completion" else f"\n{text}"


def _scored(benchmark: str, path: Path, samples: dict[str, Sample], programs: dict[str, list[str]]) -> Scored:
    from rlhf_bench import suites
    from rlhf_bench.suites.lm_eval_code import pass_at_k

    if not programs:
        raise UserError(f"no sample in {path}")
    found = suites.benchmark(benchmark)
    passed: dict[str, list[bool]] = {}
    failed: set[str] = set()
    why = ""
    for turn in range(max(map(len, programs.values()))):
        now = {samples[task].id: task for task, texts in programs.items() if turn < len(texts)}
        answered = [
            (samples[task], (Completion(name, 0, programs[task][turn], "stop", 0),)) for name, task in now.items()
        ]
        for each in found.grade(answered, None):
            if each.value is None:
                failed.add(now[each.sample_id])
                why = each.why
            else:
                passed.setdefault(now[each.sample_id], []).append(each.value == 1.0)
    graded = [outcomes for task, outcomes in passed.items() if task not in failed]
    least = min(map(len, graded), default=0)
    kind: Kind = "binary" if all(len(outcomes) == 1 for outcomes in graded) else "continuous"
    metrics = {
        f"pass@{k}": Metric.of(estimate([pass_at_k(outcomes, k) for outcomes in graded], kind=kind))
        for k in KS
        if k <= least
    }
    ungraded = len(samples) - len(graded)
    notes = (*said_ungraded(len(graded), ungraded), *([f"ungraded: {why}"] if why else []))
    return Scored(benchmark, path.name.split(".jsonl")[0], metrics, len(graded), ungraded, notes=notes)
