"""A run's chat answers and judgments in the official forms, for the official tools and for `rlhf-bench score`.

alpaca-eval: model_outputs.json, and annotations.json of what was graded (a preference in [1, 2], output_1 the
baseline's). mt-bench: model_answer/MODEL.jsonl. An answer that the engine could not give is left out.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from types import MappingProxyType
from typing import Any

from rlhf_bench.harness.errors import UserError
from rlhf_bench.harness.files import write
from rlhf_bench.harness.store import Run
from rlhf_bench.harness.types import Completion, Record

BASELINE = "gpt4_1106_preview"


def alpaca_eval(run: Run, records: Sequence[Record], folder: Path) -> list[Path]:
    """Write model_outputs.json, and annotations.json where something is graded; gives their paths."""
    outputs, annotations = [], []
    for record in records:
        asked = {"instruction": record.sample.row["instruction"], "dataset": record.sample.row["dataset"]}
        answer = record.completions[0].text
        outputs.append(asked | {"output": answer, "generator": run.model})
        if record.score.value is not None:
            pair = {"output_1": record.sample.reference, "generator_1": record.sample.row.get("generator", BASELINE)}
            theirs = {"output_2": answer, "generator_2": run.model, "annotator": run.judge}
            annotations.append(asked | pair | theirs | {"preference": 1.0 + record.score.value})
    paths = [folder / "model_outputs.json"]
    write(paths[0], _json(outputs))
    if annotations:
        paths.append(folder / "annotations.json")
        write(paths[1], _json(annotations))
    return paths


def mt_bench(run: Run, records: Sequence[Record], folder: Path) -> list[Path]:
    """Write model_answer/MODEL.jsonl, a line for each question with all its turns; gives its path."""
    name = re.sub(r"[^\w.-]+", "_", run.model)
    made = datetime.fromisoformat(run.created).timestamp()
    lines = [
        {
            "question_id": record.sample.row["question_id"],
            "answer_id": record.digest[:22],
            "model_id": name,
            "choices": [{"index": 0, "turns": [each.text for each in sorted(record.completions, key=_index)]}],
            "tstamp": made,
        }
        for record in records
    ]
    path = folder / "model_answer" / f"{name}.jsonl"
    write(path, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))
    return [path]


FORMATS: Mapping[str, tuple[str, Callable[[Run, Sequence[Record], Path], list[Path]]]] = MappingProxyType(
    {"alpaca-eval": ("alpaca_eval", alpaca_eval), "mt-bench": ("mt_bench", mt_bench)}
)
"""By format, the benchmark whose records it is of, and what writes them."""


def export(form: str, run: Run, records: Iterable[Record], folder: Path) -> tuple[list[Path], list[str]]:
    """Write the run in this form; gives the files and the benchmarks that it has no place for. Raises UserError."""
    benchmark, writes = FORMATS[form]
    listed = list(records)
    answered = [
        record
        for record in listed
        if record.benchmark == benchmark and all(each.finish_reason != "error" for each in record.completions)
    ]
    if not answered:
        raise UserError(f"run {run.id} has no answers of {benchmark}, which is what {form}'s files hold")
    left_out = dict.fromkeys(record.benchmark for record in listed if record.benchmark != benchmark)
    return writes(run, answered, folder), list(left_out)


def _index(completion: Completion) -> int:
    return completion.index


def _json(rows: Sequence[Mapping[str, Any]]) -> str:
    return json.dumps(rows, indent=1, ensure_ascii=False) + "\n"
