"""Judges and answers behind an API, from the command line: planned, paid for, stopped and resumed."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import pytest
from tests.cli.conftest import Call

from rlhf_bench.harness.store import Store

STUB = Path(__file__).parents[1] / "stub_server.py"


@pytest.fixture
def server() -> Iterator[str]:
    process = subprocess.Popen([sys.executable, str(STUB)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        yield process.stdout.readline().strip()
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


@pytest.fixture(autouse=True)
def settings(mirror: Path, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RLHF_BENCH_DATA", str(mirror))
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    prices = home / "prices.yaml"
    prices.write_text("priced: {input: 100.0, output: 100.0}\n")
    monkeypatch.setenv("RLHF_BENCH_PRICES", str(prices))


def calls(server: str) -> int:
    with urlopen(f"{server.removesuffix('/v1')}/calls") as reply:
        return sum(json.load(reply).values())


def judged(server: str, *more: str) -> list[str]:
    judge = f"openai:priced@{server}"
    return ["run", "-s", "alpaca_eval", "-m", "scripted:echo", "-L", "5", "--judge", judge, *more]


def estimate(report: Any, metric: str = "win_rate") -> Any:
    return next(each for each in report["estimates"] if each["metric"] == metric)


def test_an_api_judges_a_run_and_its_cost_is_said(call: Call, server: str) -> None:
    done = call(*judged(server, "--json"))
    assert done.code == 0
    assert estimate(done.json)["graded"] == 5
    assert calls(server) == 5
    assert "$" in done.json["manifest"]["judge_manifest"]["cost"]
    out = call(*judged(server)).out
    assert calls(server) == 5, "what was paid for once is not paid for again"
    assert "judgments:" not in out
    assert "judgments: 1 calls, " in call(*judged(server, "-L", "6")).out


def test_people_see_what_the_judgments_cost(call: Call, server: str) -> None:
    assert "tokens in (10 cached), 5 out; $" in call(*judged(server)).out


def test_a_dry_run_asks_nothing_and_counts_what_the_run_then_asks(call: Call, server: str, store: Store) -> None:
    before = call(*judged(server, "--dry-run", "--json"))
    assert before.code == 0 and calls(server) == 0
    plan = before.json
    assert (plan["judgments"]["calls"], plan["judgments_known"], plan["answers"]["usd"]) == (5, 0, 0.0)
    assert plan["usd"] == plan["judgments"]["usd"] > 0
    assert store.runs() == []
    call(*judged(server))
    after = call(*judged(server, "--dry-run", "--json")).json
    assert (after["judgments"]["calls"], after["judgments_known"], after["usd"]) == (0, 5, 0)
    assert calls(server) == 5


def test_a_dry_run_needs_no_key_and_estimates_answers_that_are_not_there(call: Call) -> None:
    done = call(
        "run", "-s", "alpaca_eval", "-m", "openai:gpt-4o-mini", "-L", "2", "--judge", "openai:gpt-4o", "--dry-run"
    )
    assert done.code == 0
    assert "2 answers are still to be given" in done.out and "$" in done.out
    refused = call("run", "-s", "alpaca_eval", "-m", "openai:gpt-4o-mini", "-L", "2", "--judge", "scripted:tie")
    assert refused.code == 2 and "OPENAI_API_KEY" in refused.one_line


def test_a_dry_run_runs_no_code_and_knows_no_price_of_an_unknown_model(call: Call) -> None:
    done = call("run", "-s", "gsm8k,humaneval", "-m", "openai:who@http://127.0.0.1:9/v1", "-L", "2", "--dry-run")
    assert done.code == 0 and "unknown price" in done.out
    plan = call(
        "run", "-s", "gsm8k,humaneval", "-m", "openai:who@http://127.0.0.1:9/v1", "-L", "2", "--dry-run", "--json"
    ).json
    assert (plan["answers"]["calls"], plan["usd"], plan["judgments"]) == (4, None, None)


def test_a_budget_stops_the_run_which_goes_on_with_a_larger_one(call: Call, server: str) -> None:
    stopped = call(*judged(server, "--budget", "0.6usd", "--concurrency", "1"))
    assert stopped.code == 2 and "the budget of $0.60 has no room" in stopped.err
    paid = calls(server)
    assert 0 < paid < 5
    done = call(*judged(server, "--budget", "$100", "--json"))
    assert done.code == 0 and calls(server) == 5
    again = call("runs", "resume", done.json["run_id"], "--json")
    assert again.json["estimates"] == done.json["estimates"] and calls(server) == 5


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--budget", "lots"], "a budget of 'lots': give US dollars, such as 5usd"),
        (["--budget", "0"], "give an amount above 0"),
        (["--concurrency", "0"], "--concurrency"),
    ],
)
def test_a_bound_that_is_none_is_one_line(more: list[str], said: str, call: Call, store: Store) -> None:
    done = call(*judged("http://127.0.0.1:9/v1", *more))
    assert done.code == 2 and said in done.one_line and store.runs() == []


def test_a_budget_needs_a_price(call: Call) -> None:
    done = call("run", "-s", "alpaca_eval", "-m", "openai:who@http://127.0.0.1:9/v1", "--budget", "5")
    assert done.code == 2 and "unknown price of who" in done.one_line


def test_the_key_is_kept_nowhere(call: Call, server: str, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-not-for-anyone-0123456789")
    done = call(*judged(server, "--json"))
    assert done.code == 0
    kept = b"".join(path.read_bytes() for path in home.rglob("*") if path.is_file())
    assert b"sk-not-for" not in kept and "sk-not-for" not in done.out + done.err
    assert "sk-not-for" not in call("doctor", "--json").out


def outputs(mirror: Path, home: Path, leave_out: int = 0) -> Path:
    from rlhf_bench.suites.data import rows

    given = [
        {"instruction": row["instruction"], "output": "an answer", "generator": "theirs"}
        for row in rows("alpaca_eval/baseline")
    ]
    path = home / "model_outputs.json"
    path.write_text(json.dumps(given[leave_out:]))
    return path


def test_outputs_of_a_file_are_judged_without_a_model(call: Call, mirror: Path, home: Path) -> None:
    outputs(mirror, home, leave_out=1)
    done = call("run", "-s", "alpaca_eval", "-m", "outputs:model_outputs.json", "--judge", "scripted:longer", "--json")
    assert done.code == 0 and done.json["model"] == "outputs:theirs"
    found = estimate(done.json)
    assert (found["graded"], found["ungraded"]) == (804, 1)
    assert call("runs", "resume", done.json["run_id"], "--json").json["estimates"] == done.json["estimates"]


def test_outputs_of_two_models_in_one_file_are_refused(call: Call, home: Path) -> None:
    rows = [{"instruction": str(i), "output": "x", "generator": f"m{i}"} for i in range(2)]
    (home / "mixed.json").write_text(json.dumps(rows))
    done = call("run", "-s", "alpaca_eval", "-m", "outputs:mixed.json", "--judge", "scripted:tie")
    assert done.code == 2 and "mixes outputs of m0, m1" in done.one_line


def test_a_judged_run_is_written_as_alpaca_evals_files_and_scored_from_them(call: Call, home: Path) -> None:
    done = call("run", "-s", "alpaca_eval", "-m", "scripted:echo", "-L", "40", "--judge", "scripted:longer", "--json")
    written = call("runs", "export", "latest", "--format", "alpaca-eval", "-o", "out", "--json").json
    assert written["files"] == ["out/model_outputs.json", "out/annotations.json"]
    outputs = json.loads((home / "out" / "model_outputs.json").read_text())
    assert len(outputs) == 40 and set(outputs[0]) == {"instruction", "output", "generator", "dataset"}
    (found,) = call("score", "alpaca_eval", "out/annotations.json", "--json").json
    assert (found["model"], found["judge"], found["graded"]) == ("scripted:echo", "scripted:longer", 40)
    assert found["metrics"]["win_rate"]["value"] == pytest.approx(100 * estimate(done.json)["mean"])
    again = call(
        "run", "-s", "alpaca_eval", "-m", "outputs:out/model_outputs.json", "-L", "40",
        "--judge", "replay:out/annotations.json", "--json",
    ).json  # fmt: skip
    assert estimate(again)["mean"] == pytest.approx(estimate(done.json)["mean"])


def test_a_run_without_chat_has_nothing_to_write_as_chat(call: Call) -> None:
    call("run", "-s", "arc_challenge", "-m", "scripted:echo", "-L", "2")
    done = call("runs", "export", "latest", "--format", "mt-bench", "-o", "out")
    assert done.code == 2 and "has no answers of mt_bench" in done.one_line


def test_every_fault_that_is_tested_is_in_the_document() -> None:
    from tests.harness import test_engines_openai as tested

    (marked,) = (
        mark
        for mark in tested.test_a_fault_is_named_and_costs_its_own_item_alone.pytestmark  # type: ignore[attr-defined]
        if mark.name == "parametrize"
    )
    document = (Path(__file__).parents[2] / "docs" / "faults.md").read_text()
    for fault, why, calls_ in marked.args[1]:
        assert f"(`{fault}`) | {calls_} | {why} |" in document


def test_mt_benchs_answers_are_written_with_both_turns(call: Call, server: str, home: Path) -> None:
    judge = f"openai:priced@{server}"
    done = call("run", "-s", "mt_bench", "-m", "scripted:echo", "-L", "2", "--judge", judge, "--json")
    assert done.code == 0
    call("runs", "export", "latest", "--format", "mt-bench", "-o", "out")
    (path,) = (home / "out" / "model_answer").iterdir()
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert path.name == "scripted_echo.jsonl" and len(lines) == 2
    assert [len(line["choices"][0]["turns"]) for line in lines] == [2, 2]
    assert lines[0]["question_id"] == 81 and lines[0]["model_id"] == "scripted_echo"


def test_a_dry_run_of_all_chat_counts_second_turns_and_both_orders(call: Call) -> None:
    args = ["-m", "scripted:echo", "-L", "2", "--judge", "openai:gpt-4o", "--dry-run", "--json"]
    found = {name: call("run", "-s", name, *args).json for name in ("alpaca_eval", "mt_bench", "arena_hard")}
    assert {name: plan["judgments"]["calls"] for name, plan in found.items()} == {
        "alpaca_eval": 2,
        "mt_bench": 4,
        "arena_hard": 4,
    }
    assert found["mt_bench"]["answers"]["calls"] == 4
