"""`run --tasks`: lm-eval's tasks and a user's own, with lm-eval's names for its flags, as guards of a gate too."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tests.cli.conftest import Call
from tests.suites.lm_eval_output import write_tasks

from rlhf_bench.harness.store import Store

POLICY = """
name: own
ledger: none
targets:
  - {benchmark: words, metric: "exact_match,digits"}
guards:
  - {benchmark: quiz, metric: acc, margin: 0.9}
"""


@pytest.fixture
def tasks(tmp_path: Path) -> str:
    return str(write_tasks(tmp_path / "own"))


def run(call: Call, tasks: str, *args: str, model: str = "scripted:oracle"):  # type: ignore[no-untyped-def]
    return call("run", "--tasks", "quiz,words", "--include-path", tasks, "-m", model, "--json", *args)


def test_a_users_own_tasks_are_run_alone_and_by_name(call: Call, tasks: str) -> None:
    done = run(call, tasks)
    assert done.code == 0, done.err
    means = {(each["benchmark"], each["metric"]): each["mean"] for each in done.json["estimates"]}
    assert means["quiz", "acc"] == means["words", "exact_match,digits"] == 1.0
    assert {name for name, _ in means} == {"quiz", "words"}


def test_own_tasks_guard_and_are_targets_of_a_gate(call: Call, tasks: str, home: Path) -> None:
    better = run(call, tasks).json["run_id"]
    worse = run(call, tasks, model="scripted:empty").json["run_id"]
    (home / "own.yaml").write_text(POLICY)
    up = call("gate", better, worse, "--policy", "own.yaml", "--json")
    assert up.code == 0 and up.json["verdict"] == "promote", up.err
    down = call("gate", worse, better, "--policy", "own.yaml", "--json")
    assert down.code == 1 and down.json["verdict"] == "reject", down.err


def test_lm_evals_flags_are_in_the_protocol_and_never_mix(call: Call, tasks: str) -> None:
    flags = (
        [],
        ["--apply-chat-template"],
        ["--apply-chat-template", "--no-fewshot-as-multiturn"],
        ["--apply-chat-template", "--system-instruction", "Be brief."],
    )
    found = [run(call, tasks, *more).json for more in flags]
    assert len({each["run_id"] for each in found}) == len({each["protocol"] for each in found}) == len(flags)
    protocols = [each["manifest"]["protocol"] for each in found]
    assert [each["chat_template"] for each in protocols] == [False, True, True, True]
    assert protocols[2]["fewshot_as_multiturn"] is False
    assert protocols[3]["system_prompt"] == "Be brief."
    refused = call("compare", found[0]["run_id"], found[1]["run_id"])
    assert refused.code == 2
    assert "chat_template" in refused.one_line


def test_a_run_of_own_tasks_is_resumed_from_any_folder(
    call: Call, tasks: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(Path(tasks).parent)
    args = ["--tasks", "quiz", "--include-path", "tasks", "--apply-chat-template", "--system-instruction", "Be brief."]
    first = call("run", *args, "-m", "scripted:oracle", "-L", "3", "--json").json
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    again = call("runs", "resume", first["run_id"], "--json")
    assert again.code == 0, again.err
    assert (again.json["run_id"], again.json["estimates"]) == (first["run_id"], first["estimates"])


def test_tasks_join_a_suite(call: Call, tasks: str, mirror: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RLHF_BENCH_DATA", str(mirror))
    args = ["--suite", "arc_challenge", "--tasks", "words", "--include-path", tasks, "-L", "2", "--json"]
    done = call("run", *args, "-m", "scripted:oracle")
    assert {each["benchmark"] for each in done.json["estimates"]} == {"arc_challenge", "words"}


def test_a_groups_tasks_are_shown_as_strata(call: Call, tasks: str) -> None:
    run(call, tasks)
    strata = call("runs", "show", "--by-stratum", "--json").json["strata"]
    assert set(strata) == {"quiz"}
    assert sorted((part[1]["graded"], part[1]["mean"]) for part in strata["quiz"]) == [(4, 1.0), (6, 1.0)]
    assert "quiz by stratum (acc)" in call("runs", "show", "--by-stratum").out
    none = call("runs", "show", "--by-stratum", "--benchmark", "words")
    assert none.code == 2
    assert "words" in none.one_line


def test_a_run_is_written_and_read_as_lm_evals_files(call: Call, tasks: str, home: Path, store: Store) -> None:
    first = run(call, tasks).json
    written = call("runs", "export", "--format", "lm-eval", "--output", "out", "--json").json
    assert all(Path(path).is_file() for path in written["files"]) and not written["left_out"]
    read = call("runs", "import", "out", "--name", "theirs", "--json").json
    assert [each["model"] for each in read] == ["theirs"]
    kept = [(each["benchmark"], each["metric"], each["mean"]) for each in first["estimates"]]
    assert sorted(kept) == sorted((each["benchmark"], each["metric"], each["mean"]) for each in read[0]["estimates"])
    assert store.run(read[0]["run_id"]).status == "complete"
    assert call("runs", "resume", read[0]["run_id"]).code == 2
    assert call("runs", "export", read[0]["run_id"], "-o", "again").code == 2


def test_what_lm_eval_has_no_task_for_is_not_written(call: Call, home: Path) -> None:
    call("run", "--suite", "demo-four-way", "-m", "scripted:oracle", "-L", "2")
    done = call("runs", "export", "-o", "out")
    assert done.code == 2
    assert "demo-four-way" in done.one_line
    assert not (home / "out").exists()


def test_answers_that_hit_their_limit_are_counted(call: Call, tasks: str, tiny_checkpoint: Path) -> None:
    done = run(call, tasks, model=str(tiny_checkpoint)).json
    cut = {each["benchmark"]: each["cut"] for each in done["estimates"]}
    assert cut["words"] > 0 and cut["quiz"] == 0
    out = call("runs", "show", done["run_id"]).out
    (line,) = [line for line in out.splitlines() if "exact_match,digits" in line]
    assert line.split()[-1] == str(cut["words"]) and " cut " in out
    run(call, tasks)
    assert " cut " not in call("runs", "show", "latest").out


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["--tasks", "quizz"], "Did you mean 'quiz'"),
        (["--tasks", ""], "''"),
        (["--include-path", "nowhere"], "nowhere"),
        (["--num-fewshot", "-1"], "num-fewshot"),
        (["--num-fewshot", "many"], "num-fewshot"),
        (["--num-fewshot", "99"], "99 shots are too many"),
    ],
)
def test_a_mistake_is_one_line_and_runs_nothing(
    call: Call, tasks: str, store: Store, args: list[str], says: str
) -> None:
    done = call("run", "--tasks", "quiz", "--include-path", tasks, "-m", "scripted:oracle", *args)
    assert done.code == 2
    assert says in done.one_line
    assert store.runs() == []


def test_two_paths_have_no_one_name(call: Call) -> None:
    done = call("runs", "import", "a", "b", "--name", "x")
    assert done.code == 2
    assert "one by one" in done.one_line


def test_a_packaged_policy_asks_for_what_its_suites_have() -> None:
    from rlhf_bench.cli import gating
    from rlhf_bench.suites import SUITES

    for name, suites in (("academic", ("academic",)), ("chat", ("chat", "academic"))):
        policy = gating.policy(name)
        asked = {member for each in suites for member in SUITES[each].benchmarks}
        assert set(policy.benchmarks) <= asked
    assert {part.benchmark for guard in gating.policy("chat").guards for part in guard.parts} == {
        "gsm8k", "mmlu", "truthfulqa_mc2", "arc_challenge", "humaneval", "mbpp",
    }  # fmt: skip


def test_help_names_lm_evals_flags(call: Call) -> None:
    out = call("run", "--help").out
    for flag in ("--tasks", "--include-path", "--num-fewshot", "--apply-chat-template", "--system-instruction"):
        assert flag in out
    assert json.dumps("lm-eval")[1:-1] in call("runs", "export", "--help").out
