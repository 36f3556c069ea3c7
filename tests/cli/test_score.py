import json
from pathlib import Path

import pytest
from tests.cli.conftest import Call

from rlhf_bench.harness import sandbox


@pytest.fixture
def file(tmp_path: Path) -> Path:
    rows = [
        {
            "instruction": f"[b]instruction[/b] {number}",
            "output_1": "an answer",
            "generator_1": "gpt4_1106_preview",
            "output_2": "another",
            "generator_2": "mine",
            "annotator": "j",
            "preference": preference,
        }
        for number, preference in enumerate((1.0, 2.0, 1.75, None))
    ]
    path = tmp_path / "annotations.json"
    path.write_text(json.dumps(rows))
    return path


def test_a_file_is_scored_without_a_model_a_key_or_data(call: Call, file: Path) -> None:
    called = call("score", "alpaca_eval", str(file), "--json")
    (found,) = called.json
    assert called.code == 0 and (found["benchmark"], found["model"], found["judge"]) == ("alpaca_eval", "mine", "j")
    assert set(found["metrics"]["win_rate"]) == {"value", "low", "high", "se"}
    assert found["metrics"]["win_rate"]["value"] == pytest.approx(100 * 1.75 / 3)
    assert (found["graded"], found["ungraded"]) == (3, 1)


def test_people_see_the_judge_and_what_is_missing(call: Call, file: Path) -> None:
    out = call("score", "alpaca_eval", str(file)).out
    assert "alpaca_eval: mine" in out and "58.333" in out
    assert "judge j, against gpt4_1106_preview; 3 graded, 1 ungraded" in out
    assert "note: 1 of 4 verdicts are missing" in out


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["alpaca_evals", "FILE"], "Did you mean 'alpaca_eval'?"),
        (["alpaca_eval", "nowhere.json"], "nowhere.json cannot be read: No such file or directory"),
        (["alpaca_eval", "."], "cannot be read"),
        (["alpaca_eval", "FILE", "--model", "min"], "no model in these files named 'min'. Did you mean 'mine'?"),
        (["alpaca_eval", "FILE", "--judge", "k"], "no judge in these files named 'k'"),
        (["arena_hard", "FILE"], "row 1: no field 'games'"),
        (["arena_hard", "FILE", "--version", "v3"], "no Arena-Hard version named 'v3'"),
        (["mt_bench", "FILE"], "row 1: no field 'model'"),
    ],
)
def test_a_mistake_is_one_line(args: list[str], said: str, call: Call, file: Path) -> None:
    called = call("score", *(str(file) if each == "FILE" else each for each in args))
    assert called.code == 2 and said in called.one_line and not called.out


def lines(path: Path, rows: list[dict[str, object]]) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def sample(doc: int, right: float, under: str = "strict-match") -> dict[str, object]:
    return {"doc_id": doc, "filter": under, "metrics": ["exact_match"], "exact_match": right, "doc": {}, "target": ""}


def test_samples_of_lm_eval_are_scored_by_metric_and_filter(call: Call, home: Path) -> None:
    rows = [sample(i, float(i % 4 == 0)) for i in range(40)] + [sample(i, 1.0, "flexible") for i in range(40)]
    lines(home / "my__model" / "samples_gsm8k_2026-01-02T03-04-05.678.jsonl", rows)
    (found,) = call("score", "gsm8k", "my__model", "--json").json
    assert (found["benchmark"], found["model"], found["graded"], found["ungraded"]) == ("gsm8k", "my__model", 40, 0)
    assert found["metrics"]["exact_match,strict-match"]["value"] == 0.25
    assert found["metrics"]["exact_match,strict-match"]["low"] == pytest.approx(0.1419, abs=1e-3), "Wilson"
    assert found["metrics"]["exact_match,flexible"]["value"] == 1.0
    out = call("score", "gsm8k", "my__model").out
    assert "40 graded, 0 ungraded" in out and "judge" not in out


def test_subjects_of_mmlu_are_pooled_and_other_tasks_refused(call: Call, home: Path) -> None:
    for task, right in (("mmlu_anatomy", 1.0), ("mmlu_virology", 0.0)):
        lines(home / f"samples_{task}_2026-01-02T03-04-05.678.jsonl", [sample(i, right, "none") for i in range(10)])
    (found,) = call("score", "mmlu", ".", "--json").json
    assert (found["metrics"]["exact_match,none"]["value"], found["graded"]) == (0.5, 20)
    done = call("score", "gsm8k", ".")
    assert done.code == 2 and "is of the task 'mmlu_anatomy', not of gsm8k" in done.one_line
    assert [each["benchmark"] for each in call("score", "lm_eval", ".", "--json").json] == [
        "mmlu_anatomy",
        "mmlu_virology",
    ]


def test_a_document_that_stands_twice_is_refused(call: Call, home: Path) -> None:
    done = call("score", "gsm8k", lines(home / "samples.jsonl", [sample(1, 1.0), sample(1, 1.0)]))
    assert done.code == 2 and "row 2: document gsm8k/1 again" in done.one_line


@pytest.mark.skipif(not sandbox.level().safe, reason=f"no sandbox here: {sandbox.level().description}")
def test_programs_are_run_against_the_tests(
    call: Call, home: Path, mirror: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RLHF_BENCH_DATA", str(mirror))
    from rlhf_bench.suites.data import rows

    given = [row for row, _ in zip(rows("humaneval/test"), range(4), strict=False)]
    programs: list[dict[str, object]] = [
        {"task_id": given[0]["task_id"], "completion": given[0]["canonical_solution"]},
        {"task_id": given[1]["task_id"], "solution": given[1]["prompt"] + given[1]["canonical_solution"]},
        {"task_id": given[2]["task_id"], "completion": "    return object\n"},
        {"task_id": given[3]["task_id"], "completion": ""},
    ]
    (found,) = call("score", "humaneval", lines(home / "mine.jsonl", programs), "--json").json
    assert (found["model"], found["metrics"]["pass@1"]["value"]) == ("mine", 0.5)
    assert (found["graded"], found["ungraded"]) == (4, 160)
    assert "160 of 164 verdicts are missing" in found["notes"][0]
    twice = lines(home / "twice.jsonl", [programs[0], {**programs[0], "completion": "    return object\n"}])
    (found,) = call("score", "humaneval", twice, "--json").json
    assert found["metrics"]["pass@1"]["value"] == 0.5
    unknown = call("score", "humaneval", lines(home / "unknown.jsonl", [{**programs[0], "task_id": "HumanEval/999"}]))
    assert unknown.code == 2 and "'task_id' is 'HumanEval/999'" in unknown.one_line


@pytest.mark.skipif(not sandbox.level().safe, reason=f"no sandbox here: {sandbox.level().description}")
def test_canonical_programs_of_mbpp_pass(call: Call, home: Path, mirror: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RLHF_BENCH_DATA", str(mirror))
    from rlhf_bench import suites

    given = [sample.row for sample in suites.benchmark("mbpp").load(suites.protocol("paper"))[:3]]
    programs: list[dict[str, object]] = [
        {"task_id": f"Mbpp/{row['task_id']}", "solution": row["code"]} for row in given
    ]
    (found,) = call("score", "mbpp", lines(home / "mine.jsonl", programs), "--json").json
    assert (found["metrics"]["pass@1"]["value"], found["graded"]) == (1.0, 3)
