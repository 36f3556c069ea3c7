"""lm-eval's `samples_<task>_<time>.jsonl` (written with --log_samples): every metric under every filter, from 0 to 1.

The tasks of one benchmark in one folder are one model's, pooled over documents as lm-eval's groups are by size; the
name `lm_eval` takes any tasks, each by itself. Folders that hold such files are read whole.
Official: the plain mean over documents. Differs: intervals, and documents whose metric is no number are counted.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from pathlib import Path

from rlhf_bench.harness.errors import UserError
from rlhf_bench.harness.stats import estimate
from rlhf_bench.suites.judged import Choice, Metric, Scored, said_ungraded
from rlhf_bench.suites.judged.files import Row, read

ANY = "lm_eval"
_NAME = re.compile(r"samples_(.+?)_\d{4}-\d\d-\d\dT.*\.jsonl(?:\.gz)?")
Values = dict[str, dict[str, float | None]]


def score(files: Sequence[Path], choice: Choice) -> list[Scored]:
    """One Scored for each folder (and task, for `lm_eval`). Raises UserError: a broken row, another task, one twice."""
    found: dict[tuple[str, str], Values] = {}
    for path in [each for given in files for each in _samples(given)]:
        task = _task(path, choice.benchmark)
        values = found.setdefault((path.absolute().parent.name, task if choice.benchmark == ANY else ""), {})
        for row in read(path):
            _add(row, task, values)
    return [_scored(task or choice.benchmark, model, values) for (model, task), values in found.items()]


def _samples(path: Path) -> list[Path]:
    if not path.is_dir():
        return [path]
    found = sorted(path.glob("samples_*.jsonl"))
    if not found:
        raise UserError(f"{path} holds no samples_*.jsonl: give what lm-eval wrote with --log_samples")
    return found


def _task(path: Path, benchmark: str) -> str:
    """The task that the file's name tells, which has to be the benchmark's; a file of another name is taken as it."""
    named = _NAME.fullmatch(path.name)
    task = named[1] if named else benchmark
    if benchmark != ANY and task != benchmark and not task.startswith(f"{benchmark}_"):
        raise UserError(f"{path} is of the task '{task}', not of {benchmark}: score it by that name, or as {ANY}")
    return task


def _add(row: Row, task: str, values: Values) -> None:
    """The metrics of a row: by "metric,filter" and document."""
    under = row.fields.get("filter", "none")
    names = row.fields.get("metrics")
    if not isinstance(names, list) or not names:
        raise row.wrong("metrics", "should list the metrics of a document, as lm-eval from 0.4.9 on writes it")
    document = f"{task}/{row.text('doc_id')}"
    for name in names:
        value = row.fields.get(str(name))
        if isinstance(value, list | dict | str) or (value is not None and not math.isfinite(value)):
            value = None
        elif value is not None and not 0 <= value <= 1:
            raise row.wrong(str(name), "should be from 0 to 1")
        if document in values.setdefault(f"{name},{under}", {}):
            raise UserError(f"{row.path}, row {row.number}: document {document} again, under the filter '{under}'")
        values[f"{name},{under}"][document] = None if value is None else float(value)


def _scored(benchmark: str, model: str, values: Values) -> Scored:
    metrics: dict[str, Metric] = {}
    for name, by_document in values.items():
        graded = [value for value in by_document.values() if value is not None]
        binary = set(graded) <= {0.0, 1.0}
        metrics[name] = Metric.of(estimate(graded, kind="binary" if binary else "continuous"))
    first = next(iter(values.values()), {})
    graded_first = sum(value is not None for value in first.values())
    missing = len(first) - graded_first
    return Scored(benchmark, model, metrics, graded_first, missing, notes=said_ungraded(graded_first, missing))
