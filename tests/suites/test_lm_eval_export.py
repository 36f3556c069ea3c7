"""What we write is what lm-eval writes for the same model on the same tasks, and reads back to the same estimates."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from tests.suites.lm_eval_output import lm_eval_writes, write_tasks

from rlhf_bench.cli import exports, lookup, measuring
from rlhf_bench.harness.errors import UserError
from rlhf_bench.harness.progress import silent
from rlhf_bench.harness.store import Run, Store
from rlhf_bench.harness.types import Report, Score
from rlhf_bench.suites.lm_eval_export import write
from rlhf_bench.suites.lm_eval_files import read

OF_A_TOKENIZER = {"tokenizer_pad_token", "tokenizer_eos_token", "tokenizer_bos_token", "eot_token_id", "max_length"}
HASHES = ("doc_hash", "prompt_hash", "target_hash")


@dataclass(frozen=True)
class Both:
    """The same model on the same tasks, by lm-eval and by us."""

    tasks: Path
    store: Store
    report: Report
    run: Run
    theirs: Path
    ours: Path

    def results(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """Their results file and ours."""
        return json.loads(self.theirs.read_text()), json.loads(self.ours.read_text())

    def rows(self, task: str) -> list[tuple[dict[str, Any], dict[str, Any]]]:
        """Their lines and ours, in the order of the files."""
        both = []
        for results in (self.theirs, self.ours):
            (file,) = results.parent.glob(f"samples_{task}_*.jsonl")
            both.append([json.loads(line) for line in file.read_text().splitlines()])
        return list(zip(*both, strict=True))


@pytest.fixture(scope="module")
def both(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Both:
    folder = tmp_path_factory.mktemp("export")
    tasks = write_tasks(folder)
    theirs = lm_eval_writes(tasks, tiny_checkpoint, folder / "theirs")
    store = Store(f"sqlite:///{folder}/store.db")
    asked = measuring.Asked("quiz,words", include_path=(str(tasks),), protocol="lm-eval", device="cpu", dtype="float32")
    report = measuring.measure(str(tiny_checkpoint), asked, store, silent)
    run = store.run(report.run_id)
    paths, left_out = exports.export(store, run, folder / "ours")
    assert not left_out
    return Both(tasks, store, report, run, theirs, paths[-1])


def test_files_have_lm_evals_names(both: Both) -> None:
    def shapes(folder: Path) -> set[str]:
        return {re.sub(r"\d{4}-\d\d-\d\dT\d\d-\d\d-\d\d(\.\d+)?", "TIME", file.name) for file in folder.iterdir()}

    assert shapes(both.ours.parent) == shapes(both.theirs.parent)
    assert both.ours.parent.name == both.theirs.parent.name


def test_results_have_lm_evals_keys_and_tables(both: Both) -> None:
    theirs, ours = both.results()
    assert set(ours) == set(theirs) - OF_A_TOKENIZER
    assert set(ours["config"]) == set(theirs["config"])
    for name, table in theirs["results"].items():
        assert list(ours["results"][name]) == list(table)
        for key, value in table.items():
            assert ours["results"][name][key] == (pytest.approx(value) if isinstance(value, float) else value), key
    for part in ("n-shot", "higher_is_better", "n-samples", "group_subtasks", "task_hashes"):
        assert ours[part] == theirs[part], part
    for name, config in theirs["configs"].items():
        assert ours["configs"][name].keys() == config.keys()
        for key in config.keys() - {"metadata"}:
            assert ours["configs"][name][key] == config[key], key
    assert {name: ours["versions"][name] for name in theirs["configs"]} == {
        name: theirs["versions"][name] for name in theirs["configs"]
    }


@pytest.mark.parametrize("task", ["quiz_sums", "quiz_doubles", "words"])
def test_lines_are_lm_evals_but_for_rounding(both: Both, task: str) -> None:
    for theirs, ours in both.rows(task):
        assert list(ours) == list(theirs)
        for key in set(theirs) - {"resps", "filtered_resps"}:
            assert ours[key] == theirs[key], key
        for key in ("resps", "filtered_resps"):
            for mine, other in zip(_flat(ours[key]), _flat(theirs[key]), strict=True):
                assert mine == other or abs(float(mine) - float(other)) < 1e-3


def test_lm_evals_own_table_reads_it(both: Both) -> None:
    from lm_eval.utils import get_file_datetime, get_file_task_name, get_sample_results_filenames, make_table

    theirs, ours = both.results()
    assert _cells(make_table(ours)) == _cells(make_table(theirs))
    names = get_sample_results_filenames([f"/{file.name}" for file in both.ours.parent.iterdir()])
    stems = [name.removeprefix("/") for name in names]
    assert {get_file_task_name(name) for name in stems} == {"quiz_sums", "quiz_doubles", "words"}
    assert len({get_file_datetime(name) for name in stems}) == 1


def test_read_back_the_estimates_are_the_same(both: Both, store: Store) -> None:
    def found(report: Report) -> dict[tuple[str, str], tuple[Any, ...]]:
        return {(e.benchmark, e.metric): (e.mean, e.low, e.high, e.se, e.graded, e.method) for e in report.estimates}

    assert found(read(both.ours, store)) == found(both.report)


def test_an_ungraded_document_has_no_line_and_is_counted(both: Both, tmp_path: Path) -> None:
    records = both.store.records(both.run.id)
    asked = measuring.asked_before(both.run)
    chosen = lookup.suite(asked.suite, asked.include_path)
    records[0] = replace(records[0], score=Score(records[0].sample.id, None, "no verdict"))
    paths = write(both.run, records, chosen.benchmarks, measuring.protocol(asked, chosen), tmp_path)
    results = json.loads(paths[-1].read_text())
    assert results["n-samples"]["quiz_sums"] == {"original": 6, "effective": 5}
    (samples,) = [path for path in paths if "quiz_sums" in path.name]
    assert [json.loads(line)["doc_id"] for line in samples.read_text().splitlines()] == [1, 2, 3, 4, 5]


def test_a_run_whose_questions_changed_since_is_not_written(both: Both, tmp_path: Path) -> None:
    records = both.store.records(both.run.id)
    sample = records[0].sample
    other = replace(sample, requests=tuple(replace(request, prompt="Else?") for request in sample.requests))
    asked = measuring.asked_before(both.run)
    chosen = lookup.suite(asked.suite, asked.include_path)
    with pytest.raises(UserError, match="no longer asks"):
        write(
            both.run,
            [replace(records[0], sample=other), *records[1:]],
            chosen.benchmarks,
            measuring.protocol(asked, chosen),
            tmp_path,
        )
    assert list(tmp_path.iterdir()) == []


def _flat(value: Any) -> list[str]:
    return [each for part in value for each in _flat(part)] if isinstance(value, list) else [value]


def _cells(table: str) -> list[list[str]]:
    """The cells of lm-eval's table, but for the version, which a group has only in its own file."""
    rows = [[cell.strip() for cell in line.split("|")] for line in table.splitlines()[2:]]
    return [row[:2] + row[3:] for row in rows]
