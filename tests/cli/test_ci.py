"""The examples for pipelines run as they stand: the workflow's shell steps, the test and the commands in docs/ci.md."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.cli.conftest import Call, Line
from tests.cli.test_files import N, right, samples

ROOT = Path(__file__).resolve().parent.parent.parent
POLICY = """
name: mine
targets: [{benchmark: gsm8k, metric: "exact_match,flexible-extract"}]
guards: [{benchmark: gsm8k, metric: "exact_match,strict-match", margin: 0.05}]
"""
OLD = right(0.5)
BETTER, ALIKE, WORSE = OLD[:-40] + [True] * 40, OLD[:-2] + [True] * 2, [False] * N


def output(folder: Path, scores: list[bool]) -> None:
    """lm-eval's output folder of one task."""
    stamp = samples(folder, scores).stem.rpartition("_")[2]
    metrics = {f"exact_match,{name}": sum(scores) / N for name in ("strict-match", "flexible-extract")}
    found = {"results": {"gsm8k": metrics}, "versions": {"gsm8k": 3.0}, "n-shot": {"gsm8k": 5}, "model_name": "m"}
    (folder / f"results_{stamp}.json").write_text(json.dumps(found))


def workflow() -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load((ROOT / "examples/gate.yml").read_text())
    return loaded


def steps() -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = workflow()["jobs"]["gate"]["steps"]
    return found


def settings() -> dict[str, str]:
    """The job's environment on a pull request, where nobody typed any inputs."""
    found: dict[str, str] = workflow()["jobs"]["gate"]["env"]
    return {name: re.sub(r"\$\{\{ inputs\.\w+ \|\| '([^']*)' \}\}", r"\1", value) for name, value in found.items()}


def run_gate_step(home: Path, **env: str) -> tuple[int, str, str, str]:
    """The workflow's gate step under bash as a runner starts it: (exit code, summary, outputs, log)."""
    (step,) = [each for each in steps() if each.get("id") == "gate"]
    files = {name: home / name.lower() for name in ("GITHUB_STEP_SUMMARY", "GITHUB_OUTPUT")}
    for each in files.values():
        each.write_text("")
    here = Path(sys.executable).parent
    given = settings() | {name: str(path) for name, path in files.items()} | env
    done = subprocess.run(
        ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", step["run"]],
        env=os.environ | {"PATH": f"{here}{os.pathsep}{os.environ['PATH']}"} | given,
        cwd=home,
        capture_output=True,
        text=True,
        timeout=120,
    )
    return done.returncode, *(each.read_text() for each in files.values()), done.stdout + done.stderr


def test_the_workflow_is_one_that_a_runner_takes() -> None:
    found = workflow()
    assert {"name", "permissions", "jobs"} <= found.keys()
    assert {"pull_request", "workflow_dispatch"} == found[True].keys()  # YAML 1.1 reads `on` as true
    assert all(("uses" in step) != ("run" in step) for step in steps())
    assert found["permissions"] == {"contents": "read"}


def test_what_people_type_into_the_workflow_is_no_part_of_its_scripts() -> None:
    assert not any("${{" in step.get("run", "") for step in steps())


def test_only_the_candidate_is_taken_from_the_pull_request() -> None:
    base, proposed = (each["with"] for each in steps() if each.get("uses", "").startswith("actions/checkout@"))
    assert base["ref"] == "${{ github.event.pull_request.base.sha || github.sha }}" and "path" not in base
    assert proposed["path"] == "proposed" and "ref" not in proposed
    assert {name for name, value in settings().items() if value.startswith("proposed/")} == {"CANDIDATE"}
    assert "pull_request_target" not in workflow()[True]


def test_a_pull_request_cannot_loosen_the_gate_that_it_goes_through(home: Path) -> None:
    (home / "policy.yaml").write_text(POLICY)
    (home / "results").mkdir()
    output(home / "results/champion", OLD)
    (home / "proposed/results").mkdir(parents=True)
    (home / "proposed/policy.yaml").write_text(POLICY.replace("0.05", "0.99"))
    output(home / "proposed/results/candidate", ALIKE)
    output(home / "proposed/results/champion", WORSE)
    assert run_gate_step(home)[2] == "verdict=inconclusive\n"
    loose = {"POLICY": "proposed/policy.yaml", "CHAMPION": "proposed/results/champion"}
    assert run_gate_step(home, **loose)[2] == "verdict=promote\n"  # what it would have got by its own


def test_each_command_of_the_workflow_exists_with_the_options_that_it_is_given(call: Call) -> None:
    scripts = "\n".join(each["run"] for each in steps() if "run" in each).replace("\\\n", " ")
    commands = re.findall(r"^\s*rlhf-bench (\w+)(.*)$", scripts, re.MULTILINE)
    assert [name for name, _ in commands] == ["gate"]
    for name, rest in commands:
        known = call(name, "--help").out
        options = re.findall(r"(?<![\w-])--[\w-]+", rest)
        assert set(options) == {"--policy", "--anchor", "--markdown"}
        assert all(re.search(rf"(?<![\w-]){option}(?![\w-])", known) for option in options)
    installed = re.findall(r"python -m pip install (\S+)", scripts)
    assert installed == [tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["name"]]


@pytest.mark.parametrize(("first", "code"), [(OLD, 0), ([True] * N, 1)])
def test_the_workflows_anchor_is_held_against_where_one_is_named(home: Path, first: list[bool], code: int) -> None:
    (home / "policy.yaml").write_text(POLICY)
    (home / "results").mkdir()
    for place, scores in (("champion", OLD), ("first one", first)):
        output(home / "results" / place, scores)
    (home / "proposed/results").mkdir(parents=True)
    output(home / "proposed/results/candidate", BETTER)
    done, summary, _, log = run_gate_step(home, ANCHOR="results/first one")
    assert done == code, log
    assert ("anchor" in summary) == (code == 1)


@pytest.mark.parametrize(
    ("new", "code", "verdict", "said"),
    [
        (WORSE, 1, "reject", "::error title=gate::rejected"),
        (ALIKE, 3, "inconclusive", "::warning title=gate::inconclusive"),
        (None, 2, "error", "::error title=gate::error: there is no proposed/results/candidate"),
    ],
)
def test_the_workflows_gate_maps_verdicts_on_files_and_writes_the_table(
    home: Path, new: list[bool] | None, code: int, verdict: str, said: str
) -> None:
    (home / "results").mkdir()
    (home / "policy.yaml").write_text(POLICY)
    output(home / "results/champion", OLD)
    if new is not None:
        (home / "proposed/results").mkdir(parents=True)
        output(home / "proposed/results/candidate", new)
    done, summary, outputs, log = run_gate_step(home)
    assert done == code, log
    assert outputs == f"verdict={verdict}\n"
    assert log.startswith(said)
    if new is None:
        assert summary.startswith("error: there is no proposed/results/candidate")
    else:
        assert verdict in summary.splitlines()[0]
        assert re.search(r"^\| target \| gsm8k [^|]*\|", summary, re.MULTILINE)


def test_the_workflows_gate_promotes_a_run_of_a_store(home: Path, line: Line, policy: str) -> None:
    done, summary, outputs, log = run_gate_step(home, CANDIDATE="better", CHAMPION="champion", POLICY=policy)
    assert (done, outputs, log) == (0, "verdict=promote\n", "")
    assert "promote" in summary.splitlines()[0] and "maths" in summary


def page() -> str:
    return (ROOT / "docs/ci.md").read_text()


def checkpoints(home: Path, new: list[bool]) -> str:
    """The test in the documentation, with the files that it names."""
    (example,) = re.findall(r"```python\n(.*?)```", page(), re.DOTALL)
    (home / "policy.yaml").write_text(POLICY)
    (home / "out").mkdir()
    output(home / "out/old", OLD)
    output(home / "out/new", new)
    return str(example)


def test_the_test_in_the_documentation_is_short_and_passes(home: Path) -> None:
    example = checkpoints(home, BETTER)
    assert len([line for line in example.splitlines() if line]) <= 10
    defined: dict[str, Any] = {}
    exec(example, defined)
    tests = [each for name, each in defined.items() if name.startswith("test_")]
    assert len(tests) == 2
    for each in tests:
        each()


def test_the_test_in_the_documentation_fails_under_pytest_as_it_says(home: Path) -> None:
    (home / "test_checkpoint.py").write_text(checkpoints(home, WORSE))
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--rootdir", str(home), "test_checkpoint.py"],
        cwd=home,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert "2 failed" in done.stdout.splitlines()[-1], done.stdout
    shown = re.findall(r"^    (AssertionError: .*|- (?:target|guard) .*)$", page(), re.MULTILINE)
    assert len(shown) == 3
    assert all(line in done.stdout for line in shown), done.stdout
    assert "rlhf_bench/testing.py" not in done.stdout  # the traceback ends in the reader's own test


def test_the_commands_in_the_documentation_run(
    home: Path, call: Call, mirror: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RLHF_BENCH_DATA", str(mirror))
    board = mirror / "alpaca_eval"
    shutil.copy(board / "annotations_reduced.csv.gz", home / "board.csv.gz")
    for name, model in (("new", "FuseChat-Llama-3.1-8B-Instruct"), ("old", "gpt-3.5-turbo-1106")):
        shutil.copy(board / f"full/{model}.annotations.json.gz", home / f"{name}.json")
    (home / "policy.yaml").write_text(POLICY)
    (home / "out").mkdir()
    for name, scores in (("new", BETTER), ("old", OLD)):
        output(home / "out" / name, scores)
        samples(home / name, scores).rename(home / name / "samples_gsm8k.jsonl")
    commands = [line.split()[1:] for line in page().splitlines() if line.startswith("    rlhf-bench gate ")]
    assert len(commands) == 4
    for command in commands:
        done = call(*shlex.split(" ".join(command)), "--json")
        assert (done.code, done.json["verdict"]) == (0, "promote"), (command, done)


def test_every_file_that_the_documentation_names_is_there() -> None:
    for name in re.findall(r"\]\(([^)#]+)\)", page()):
        assert (ROOT / "docs" / name).resolve().is_file(), name
