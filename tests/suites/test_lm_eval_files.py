"""Files that lm-eval wrote become runs that compare; files that it would not have written become one line."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.suites.lm_eval_output import QUESTIONS, lm_eval_writes, write_tasks

from rlhf_bench.harness.compare import compare
from rlhf_bench.harness.errors import RlhfBenchError, UserError
from rlhf_bench.harness.gate import RunData, gate, require_comparable
from rlhf_bench.harness.policy import Guard, Policy, Target
from rlhf_bench.harness.store import Store
from rlhf_bench.suites.lm_eval_files import read

Rows = list[dict[str, Any]]


@pytest.fixture(scope="session")
def written(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A results file of lm-eval's own, its samples beside it."""
    folder = tmp_path_factory.mktemp("lm-eval")
    return lm_eval_writes(write_tasks(folder), tiny_checkpoint, folder / "out")


@pytest.fixture
def copy(written: Path, tmp_path: Path) -> Path:
    """A copy of the folder, to be spoiled."""
    return Path(shutil.copytree(written.parent, tmp_path / "copy"))


def change(folder: Path, task: str, by: Callable[[Rows], Rows]) -> None:
    (file,) = folder.glob(f"samples_{task}_*.jsonl")
    rows = by([json.loads(line) for line in file.read_text().splitlines()])
    file.write_text("\n".join(map(json.dumps, rows)))


def change_results(folder: Path, **values: Any) -> None:
    (file,) = folder.glob("results_*.json")
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


def set_first(**values: Any) -> Callable[[Rows], Rows]:
    return lambda rows: [rows[0] | values, *rows[1:]]


def test_estimates_are_the_files_own_results(written: Path, store: Store) -> None:
    report = read(written, store)
    official = json.loads(written.read_text())["results"]
    found = {(each.benchmark, each.metric): each for each in report.estimates}
    assert found["quiz", "acc"].mean == pytest.approx(official["quiz"]["acc,none"])
    for name in ("strict", "digits"):
        assert found["words", f"exact_match,{name}"].mean == pytest.approx(official["words"][f"exact_match,{name}"])
    assert {name for name, _ in found} == {"quiz", "words"}
    assert all(each.ungraded == 0 for each in report.estimates)
    assert store.run(report.run_id).status == "complete"


def test_a_group_is_one_benchmark_with_a_stratum_for_each_task(written: Path, store: Store) -> None:
    records = store.records(read(written, store).run_id, "quiz")
    assert [record.sample.tags["stratum"] for record in records] == ["sums"] * 6 + ["doubles"] * 4


def test_records_hold_what_was_asked_answered_and_graded(written: Path, store: Store) -> None:
    records = store.records(read(written, store).run_id)
    (file,) = written.parent.glob("samples_quiz_sums_*.jsonl")
    row, record = json.loads(file.read_text().splitlines()[0]), records[0]
    assert [each.continuation for each in record.sample.requests] == [" 0", " 1", " a lot"]
    assert [str(each.logprob) for each in record.completions] == [each[0] for each in row["filtered_resps"]]
    assert (record.sample.row, record.sample.reference) == (QUESTIONS[0], "0")
    assert (record.score.value, record.score.also["acc_norm"]) == (row["acc"], row["acc_norm"])
    words = records[-1]
    assert words.sample.requests[0].sampling.stop == ("\n",)
    assert words.sample.requests[0].sampling.max_tokens == 8
    assert words.sample.row["zeal"] == "é\U0001f600"


def test_the_same_files_are_the_same_run_by_file_and_by_folder(written: Path, store: Store) -> None:
    runs = {read(path, store).run_id for path in (written, written.parent, written.parent.parent)}
    assert len(runs) == len(store.runs()) == 1


def test_two_imported_runs_compare_and_gate(written: Path, copy: Path, store: Store) -> None:
    def all_right(rows: Rows) -> Rows:
        return [row | {"acc": 1.0} for row in rows]

    change(copy, "quiz_sums", all_right)
    change(copy, "quiz_doubles", all_right)
    old, new = read(written, store, "old"), read(copy, store, "new")
    assert old.checkpoint != new.checkpoint
    found = compare(store.records(new.run_id), store.records(old.run_id), benchmark="quiz", metric="acc", kind="binary")
    assert (found.paired, found.lost, found.unpaired) == (10, 0, ())
    assert found.gained > 0
    policy = Policy(
        name="p",
        targets=(Target(benchmark="quiz", metric="acc"),),
        guards=(Guard(benchmark="words", metric="exact_match,strict", margin=0.9),),
    )
    runs = [RunData.load(store, each.run_id) for each in (new, old)]
    assert gate(policy, *runs, runs[1]).outcome in ("promote", "inconclusive")


def test_documents_pair_by_what_was_asked_and_not_by_number(written: Path, copy: Path, store: Store) -> None:
    change(copy, "words", lambda rows: rows[::-1])
    old, new = (store.records(read(path, store).run_id, "words") for path in (written, copy))
    found = compare(new, old, benchmark="words", metric="exact_match,strict", kind="binary")
    assert (found.paired, found.gained, found.lost) == (6, 0, 0)
    change(copy, "words", lambda rows: [row | {"target": "another"} for row in rows])
    new = store.records(read(copy, store).run_id, "words")
    with pytest.raises(UserError, match="no sample was asked alike"):
        compare(new, old, benchmark="words", metric="exact_match,strict", kind="binary")


@pytest.mark.parametrize(
    ("changed", "field"),
    [
        ({"n-shot": {"quiz_sums": 5, "quiz_doubles": 5, "words": 0}}, "version of 'quiz'"),
        ({"versions": {"quiz": 3, "words": 1.0}}, "version of 'quiz'"),
        ({"system_instruction": "Be brief."}, "protocol's system_prompt"),
        ({"chat_template": "{{ messages }}"}, "protocol's chat_template"),
    ],
)
def test_runs_that_were_asked_in_another_way_are_refused_by_name(
    written: Path, copy: Path, store: Store, changed: dict[str, Any], field: str
) -> None:
    change_results(copy, **changed)
    runs = [RunData.load(store, read(path, store).run_id) for path in (written, copy)]
    with pytest.raises(UserError, match=field):
        require_comparable(runs[0], runs[1], ["quiz", "words"])


def test_a_known_task_is_scored_by_our_tables_metric(copy: Path, store: Store) -> None:
    for file in copy.glob("samples_words_*"):
        file.rename(file.with_name(file.name.replace("words", "gsm8k")))
    text = next(copy.glob("results_*")).read_text().replace('"words"', '"gsm8k"')
    next(copy.glob("results_*")).write_text(text.replace(",digits", ",flexible-extract"))
    change(
        copy,
        "gsm8k",
        lambda rows: [row | {"filter": row["filter"].replace("digits", "flexible-extract")} for row in rows],
    )
    report = read(copy, store)
    assert report.manifest["benchmarks"]["gsm8k"]["metric"] == "exact_match,flexible-extract"


def test_a_score_that_is_no_number_is_ungraded_and_not_zero(copy: Path, store: Store) -> None:
    change(copy, "quiz_sums", set_first(acc=float("nan")))
    report = read(copy, store)
    first = store.records(report.run_id, "quiz")[0]
    assert first.score.value is None and "acc,none" in first.score.why
    assert report.estimates[0].ungraded == 1


@pytest.mark.parametrize("logprob", ["nan", "-inf", "1e999", "much", None])
def test_a_choice_without_a_log_likelihood_leaves_its_document_ungraded(
    copy: Path, store: Store, logprob: str | None
) -> None:
    def spoil(rows: Rows) -> Rows:
        rows[0]["resps"][0][0][0] = logprob
        return rows

    change(copy, "quiz_sums", spoil)
    first = store.records(read(copy, store).run_id, "quiz")[0]
    assert first.score.value is None and not first.score.also
    assert "log-likelihood" in first.score.why


@pytest.mark.parametrize(
    ("by", "says"),
    [
        (lambda rows: rows + rows[:1], "doc_id 0 is there twice"),
        (lambda rows: [{k: v for k, v in rows[0].items() if k != "acc"}, *rows[1:]], "doc_id 0 has no 'acc'"),
        (set_first(filter="other"), "no line under the filter"),
        (set_first(acc=7.0), "not from 0 to 1"),
        (set_first(acc=[1, 2]), "no number"),
        (set_first(acc="__import__('os').abort()"), "no number"),
        (set_first(resps=[]), "3 arguments and 0 responses"),
        (set_first(arguments={"gen_args_0": {}, "gen_args_1": {}, "gen_args_2": {}}), "arguments that are neither"),
        (set_first(arguments="all"), "arguments"),
        (set_first(doc_id="a"), "doc_id"),
        (set_first(doc="\ud800"), "no Unicode"),
        (set_first(doc={"nested": "\ud800"}), "no Unicode"),
        (lambda rows: [], "is empty"),
        (lambda rows: [{"a": 1}], "doc_id: field required"),
    ],
)
def test_a_spoiled_samples_file_is_one_line_that_names_it(
    copy: Path, store: Store, by: Callable[[Rows], Rows], says: str
) -> None:
    change(copy, "quiz_sums", by)
    with pytest.raises(UserError, match="samples_quiz_sums") as raised:
        read(copy, store)
    assert says in str(raised.value)
    assert len(str(raised.value).splitlines()) == 1
    assert store.runs() == []


@pytest.mark.parametrize(
    "text",
    [b"", b"{", b"[]", b"\xff\xfe", b"[" * 200_000, b'{"results": {}}', b'{"results": {"a": 1}}', b"9" * 9_000],
    ids=["empty", "cut", "list", "bytes", "deep", "nothing", "number", "digits"],
)
def test_what_is_no_results_file_is_one_line(tmp_path: Path, store: Store, text: bytes) -> None:
    (tmp_path / "results_x.json").write_bytes(text)
    with pytest.raises(UserError) as raised:
        read(tmp_path, store)
    assert len(str(raised.value).splitlines()) == 1


def test_a_deep_document_is_one_line(copy: Path, store: Store) -> None:
    (file,) = copy.glob("samples_quiz_sums_*")
    first, _, rest = file.read_text().partition("\n")
    for depth in (300, 900, 100_000):
        file.write_text(first.replace('"answer": 0', '"answer": ' + "[" * depth + "]" * depth) + "\n" + rest)
        with pytest.raises(RlhfBenchError) as raised:
            read(copy, store)
        assert len(str(raised.value).splitlines()) == 1


def test_a_line_without_end_is_not_read(copy: Path, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rlhf_bench.suites.lm_eval_rows.MAX_LINE_BYTES", 100)
    with pytest.raises(UserError, match="a line of more than"):
        read(copy, store)


def test_samples_that_are_missing_or_of_another_time_are_named(copy: Path, store: Store) -> None:
    (file,) = copy.glob("samples_words_*")
    other = file.rename(file.with_name("samples_words_2020-01-01T00-00-00.jsonl"))
    with pytest.raises(UserError, match=r"samples of another run \(2020-01-01T00-00-00\)"):
        read(copy, store)
    other.unlink()
    with pytest.raises(UserError, match="--log_samples"):
        read(copy, store)


@pytest.mark.parametrize("name", ["../words", "words" * 100, "words\\u0000"], ids=["path", "long", "nul"])
def test_a_task_whose_name_is_no_file_name_reads_no_file(copy: Path, store: Store, name: str) -> None:
    text = next(copy.glob("results_*")).read_text()
    next(copy.glob("results_*")).write_text(text.replace('"words"', f'"{name}"'))
    with pytest.raises(UserError, match="beside it"):
        read(copy, store)


def test_a_folder_with_two_results_is_not_guessed_about(copy: Path, store: Store) -> None:
    shutil.copy(next(copy.glob("results_*")), copy / "results_2020-01-01T00-00-00.json")
    with pytest.raises(UserError, match="2 results files"):
        read(copy, store)
    with pytest.raises(UserError, match="there is no "):
        read(copy / "nowhere", store)
    (copy / "bare").mkdir()
    with pytest.raises(UserError, match="no results_"):
        read(copy / "bare", store)


def test_files_of_early_versions_are_read(copy: Path, store: Store) -> None:
    """Before 0.4.3: no filter in a line, arguments as lists, an empty list for a task that is no group."""

    def older(rows: Rows) -> Rows:
        for row in rows:
            del row["filter"], row["metrics"]
            row["arguments"] = [list(each.values()) for each in row["arguments"].values()]
        return rows

    for task in ("quiz_sums", "quiz_doubles"):
        change(copy, task, older)
    results = json.loads(next(copy.glob("results_*")).read_text())["results"]
    change_results(copy, results={k: v for k, v in results.items() if k in ("quiz_sums", "quiz_doubles")})
    change_results(copy, group_subtasks={"quiz_sums": [], "quiz_doubles": []}, model_name=None)
    report = read(copy, store)
    assert [each.benchmark for each in report.estimates if each.metric == "acc"] == ["quiz_sums", "quiz_doubles"]
    assert report.model.endswith("model")


def lone(folder: Path, task: str, to: Path) -> Path:
    """The samples file of a task, moved to where no results file is."""
    (file,) = folder.glob(f"samples_{task}_*.jsonl")
    to.mkdir()
    return Path(shutil.copy(file, to))


@pytest.mark.parametrize("task", ["words", "quiz_sums"])
def test_a_samples_file_alone_scores_as_with_its_results(copy: Path, tmp_path: Path, store: Store, task: str) -> None:
    alone = read(lone(copy, task, tmp_path / "alone"), store)
    (beside,) = copy.glob(f"samples_{task}_*.jsonl")
    known = read(beside, store)
    assert alone.suite == known.suite == task
    assert [(e.metric, e.mean, e.low, e.high) for e in alone.estimates] == [
        (e.metric, e.mean, e.low, e.high) for e in known.estimates
    ]
    assert "unknown" in alone.manifest["benchmarks"][task]["version"]
    assert known.manifest["benchmarks"][task]["version"] == "lm-eval task 1.0, 0 shots"
    records = [store.records(each.run_id) for each in (alone, known)]
    assert [each.digest for each in records[0]] == [each.digest for each in records[1]]


def test_a_known_tasks_samples_alone_are_scored_by_our_tables_metric(copy: Path, tmp_path: Path, store: Store) -> None:
    def renamed(rows: Rows) -> Rows:
        return [row | {"filter": row["filter"].replace("digits", "flexible-extract")} for row in rows]

    change(copy, "words", renamed)
    file = lone(copy, "words", tmp_path / "alone")
    report = read(file.rename(file.with_name("samples_gsm8k_cot.jsonl")), store)
    assert report.manifest["benchmarks"]["gsm8k_cot"]["metric"] == "exact_match,flexible-extract"


def test_two_samples_files_alone_gate_and_pair_only_what_was_asked_alike(
    copy: Path, tmp_path: Path, store: Store
) -> None:
    old = read(lone(copy, "words", tmp_path / "old"), store)
    change(copy, "words", lambda rows: [row | {"exact_match": 1.0} for row in rows])
    new = read(lone(copy, "words", tmp_path / "new"), store)
    assert old.checkpoint != new.checkpoint
    runs = [RunData.load(store, each.run_id) for each in (new, old)]
    require_comparable(runs[0], runs[1], ["words"])
    found = compare(
        runs[0].records["words"],
        runs[1].records["words"],
        benchmark="words",
        metric="exact_match,strict",
        kind="binary",
    )
    assert (found.paired, found.lost, found.unpaired) == (6, 0, ())
    change(copy, "words", lambda rows: [row | {"arguments": shots(row["arguments"])} for row in rows])
    other = store.records(read(lone(copy, "words", tmp_path / "shots"), store).run_id)
    with pytest.raises(UserError, match="no sample was asked alike"):
        compare(other, runs[1].records["words"], benchmark="words", metric="exact_match,strict", kind="binary")


def shots(arguments: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """The same questions behind an example."""
    return {key: each | {"arg_0": "Q: 1?\nA: 1\n\n" + each["arg_0"]} for key, each in arguments.items()}


def test_a_samples_file_alone_does_not_compare_with_one_whose_shots_are_known(
    copy: Path, tmp_path: Path, store: Store
) -> None:
    (beside,) = copy.glob("samples_words_*.jsonl")
    paths = (lone(copy, "words", tmp_path / "alone"), beside)
    runs = [RunData.load(store, read(path, store).run_id) for path in paths]
    with pytest.raises(UserError, match="is unknown in the one"):
        require_comparable(runs[0], runs[1], ["words"])


def test_the_same_samples_alone_are_the_same_state_and_other_answers_another(
    copy: Path, tmp_path: Path, store: Store
) -> None:
    same = [read(lone(copy, "words", tmp_path / name), store) for name in ("a", "b")]
    assert same[0].run_id == same[1].run_id
    change(copy, "words", lambda rows: [row | {"resps": [["another"]]} for row in rows])
    other = read(lone(copy, "words", tmp_path / "c"), store)
    assert other.checkpoint != same[0].checkpoint


def test_two_outputs_of_one_model_are_two_states_only_where_that_is_asked(
    written: Path, copy: Path, store: Store
) -> None:
    change(copy, "words", lambda rows: [row | {"exact_match": 1.0} for row in rows])
    assert read(written, store).checkpoint == read(copy, store).checkpoint
    assert read(written, store, apart=True).checkpoint != read(copy, store, apart=True).checkpoint
    assert read(written, store, apart=True).checkpoint == read(written.parent, store, apart=True).checkpoint


@pytest.mark.parametrize(
    ("by", "says"),
    [
        (lambda rows: [], "no metric of 'words'"),
        (lambda rows: [row | {"metrics": []} for row in rows], "no metric of 'words'"),
        (lambda rows: [row | {"metrics": ["exact_match"], "exact_match": [1, 2]} for row in rows], "no metric of"),
        (lambda rows: [row | {"metrics": [f"m{n}" for n in range(300)]} for row in rows], "more than 200 metrics"),
        (lambda rows: [rows[0] | {"metrics": 1}, *rows[1:]], "line 1: metrics"),
        (lambda rows: [*rows, {"doc_id": 1}], "line 13: doc: field required"),
    ],
)
def test_a_spoiled_samples_file_alone_is_one_line(
    copy: Path, tmp_path: Path, store: Store, by: Callable[[Rows], Rows], says: str
) -> None:
    change(copy, "words", by)
    with pytest.raises(UserError) as raised:
        read(lone(copy, "words", tmp_path / "alone"), store)
    assert says in str(raised.value)
    assert len(str(raised.value).splitlines()) == 1
    assert store.runs() == []


@pytest.mark.parametrize("until", [[1], 5, [None], [["a"]]])
def test_a_stop_that_is_no_text_is_one_line(copy: Path, store: Store, until: Any) -> None:
    change(copy, "words", set_first(arguments={"gen_args_0": {"arg_0": "Q", "arg_1": {"until": until}}}))
    with pytest.raises(UserError, match=r"samples_words_.*, line 1: "):
        read(copy, store)
    assert store.runs() == []


def test_a_samples_file_whose_name_says_no_task_is_one_line(copy: Path, tmp_path: Path, store: Store) -> None:
    file = lone(copy, "words", tmp_path / "alone")
    with pytest.raises(UserError, match=r"samples_TASK_TIME\.jsonl"):
        read(file.rename(file.with_name("words.jsonl")), store)
