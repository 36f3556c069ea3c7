"""`rlhf-bench plan`: what a policy can decide, before a candidate is there."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from tests.cli.conftest import Call, Line, finished, stopped
from tests.cli.test_judging import calls
from tests.cli.test_judging import server as _server

from rlhf_bench.cli import main
from rlhf_bench.harness.store import Store

DEMO = ("-s", "demo-chat,demo-arithmetic", "-m", "scripted:echo", "--judge", "scripted:longer", "-L", "20")
RULES = """
name: mine
ledger: {planned: 2}
against_anchor: false
targets:
  - {benchmark: demo-chat, metric: win_rate}
guards:
  - {benchmark: demo-arithmetic, metric: exact_match, margin: 0.1}
"""
server = _server


@pytest.fixture
def rules(home: Path) -> str:
    path = home / "mine.yaml"
    path.write_text(RULES)
    return str(path)


def check(found: Any, benchmark: str) -> Any:
    return next(each for each in found["plan"]["checks"] if each["label"] == benchmark)


def test_a_table_a_curve_and_sentences_say_what_the_gate_can_decide(call: Call, line: Line, policy: str) -> None:
    done = call("plan", "--policy", policy, "--against", "champion")
    assert (done.code, done.err) == (0, "")
    assert "MDE" in done.out and "joint" in done.out and "█" in done.out
    assert f"policy test against run {line.champion.run_id}" in done.out
    assert "- chat: a true gain of 3 points is shown with a chance of" in done.out
    assert "the first decision on these samples is made at alpha 0.0304, one-sided, the 2nd at 0.0076" in done.out
    assert "guards are held against the anchor too" in done.out
    assert "a candidate that truly gains 3 points and loses nothing is promoted with a chance of" in done.out
    table = [each for each in done.out.splitlines() if not each.startswith(("-", "chance:"))]
    assert max(map(len, table)) <= 100


def test_the_numbers_are_those_of_the_statistics(call: Call, line: Line, policy: str) -> None:
    found = call("plan", "--policy", policy, "--json").json
    maths = check(found, "maths")
    assert maths["spread"]["items"] == 40 and maths["spread"]["source"] == "assumed"
    assert maths["spread"]["single"] == pytest.approx(0.25)  # half are right, and two models agree by half
    assert maths["se"] == pytest.approx((0.25 / 40) ** 0.5)
    assert found["plan"]["guards"] == maths["chance"]
    assert found["plan"]["promote"] == pytest.approx(maths["chance"] * check(found, "chat")["chance"])
    assert found["says"][-1] == "as it stands this cannot decide with 0.8: maths"


def test_a_higher_power_or_a_smaller_gain_takes_more(call: Call, line: Line, policy: str) -> None:
    usual, strict = (
        call("plan", "--policy", policy, "--json", *more).json for more in ((), ("--power", "0.95", "--gain", "0.01"))
    )
    for name in ("chat", "maths"):
        assert check(strict, name)["samples"] > check(usual, name)["samples"]
        assert check(strict, name)["detectable"] > check(usual, name)["detectable"]


def test_the_policy_that_fits_the_run_is_planned_where_none_is_named(call: Call) -> None:
    call("run", "-s", "demo", "-m", "scripted:echo", "--judge", "scripted:longer", "-L", "4")
    assert call("plan", "--against", "latest", "--json").json["plan"]["policy"] == "demo"


# Twins


def test_a_twin_of_the_store_is_found_and_shows_the_chance_in_the_answers(
    call: Call, store: Store, home: Path, policy: str
) -> None:
    half = [0.4 if i % 2 else 0.5 for i in range(40)]
    runs = []
    for seed in (0, 3):
        right = [float((i * (1 + seed)) % 5 < 2) for i in range(40)]
        runs.append(finished(store, "base", "b" * 64, half, right, text=f"sampled {seed}"))
        _reseed(store, runs[-1].run_id, seed)
    found = call("plan", "--policy", policy, "--against", runs[0].run_id, "--json").json
    named = call("plan", "--policy", policy, "--against", runs[0].run_id, "--twin", runs[1].run_id, "--json").json
    assert found == named and found["plan"]["twin"] == runs[1].run_id
    maths = check(found, "maths")
    flips = sum(((i % 5 < 2) != ((i * 4) % 5 < 2)) for i in range(40)) / 40
    assert maths["spread"]["within"] == pytest.approx(flips)
    assert any(f"maths: by twin {runs[1].run_id}" in each for each in found["says"])


def _reseed(store: Store, run_id: str, seed: int) -> None:
    """The run again as one of this sampling seed."""
    from dataclasses import replace

    run, report = store.run(run_id), store.report(run_id)
    manifest = {**run.manifest, "protocol": {**run.manifest["protocol"], "temperature": 0.7, "sampling_seed": seed}}
    store.start_run(replace(run, manifest=manifest))
    store.finish_run(run_id, replace(report, manifest=manifest))


def test_greedy_answers_and_other_checkpoints_are_no_twins(call: Call, rules: str) -> None:
    first = call("run", *DEMO, "--json").json["run_id"]
    again = call("run", *DEMO, "--sample-seed", "1", "--json").json["run_id"]
    other = call("run", *DEMO, "-m", "scripted:empty", "--json").json["run_id"]
    for twin, says in ((again, "its 40 answers are the same"), (other, "another checkpoint"), (first, "its own twin")):
        done = call("plan", "--policy", rules, "--against", first, "--twin", twin)
        assert done.code == 2
        assert says in done.one_line
    assert call("plan", "--policy", rules, "--against", first, "--json").json["plan"]["twin"] is None


def test_the_repeats_of_the_run_are_a_twin_within_it(call: Call, rules: str) -> None:
    run = call("run", *DEMO, "--temperature", "0.7", "--repeats", "3", "--json").json["run_id"]
    found = call("plan", "--policy", rules, "--against", run, "--json").json
    spread = check(found, "demo-arithmetic")["spread"]
    assert (spread["items"], spread["repeats"], spread["within"], spread["binary"]) == (20, 3, 0.0, False)


# What it costs


@pytest.fixture
def priced(mirror: Path, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RLHF_BENCH_DATA", str(mirror))
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    (home / "prices.yaml").write_text("priced: {input: 100.0, output: 100.0}\n")
    monkeypatch.setenv("RLHF_BENCH_PRICES", str(home / "prices.yaml"))


def test_a_judge_behind_an_api_is_counted_anew_and_not_asked(call: Call, server: str, home: Path, priced: None) -> None:
    chat = home / "chat.yaml"
    chat.write_text(
        RULES.replace("demo-chat", "alpaca_eval") + "  - {benchmark: alpaca_eval, metric: truncated, margin: 0.1}\n"
    )
    suite = ("-s", "alpaca_eval,demo-arithmetic", "-m", "scripted:echo", "-L", "5")
    assert call("run", *suite, "--judge", f"openai:priced@{server}").code == 0
    asked = calls(server)
    found = call("plan", "--policy", str(chat), "--against", "latest", "--json").json
    (about,) = found["judging"]
    assert (about["benchmark"], about["cost"]["calls"]) == ("alpaca_eval", asked)
    assert about["cost"]["usd"] > 0
    assert any(
        each.startswith(f"alpaca_eval: {about['judge']} is asked {asked} times for each candidate, $")
        for each in found["says"]
    )
    assert calls(server) == asked
    assert check(found, "alpaca_eval win_rate")["full"] == 805
    assert check(found, "demo-arithmetic")["full"] == 60


def test_a_judge_of_ones_own_costs_nothing_and_of_a_foreign_run_nothing_is_known(
    call: Call, rules: str, line: Line, policy: str
) -> None:
    call("run", *DEMO)
    (free,) = call("plan", "--policy", rules, "--against", "latest", "--json").json["judging"]
    assert (free["cost"]["usd"], free["why"]) == (0.0, "it is asked nothing that costs")
    (unknown,) = call("plan", "--policy", policy, "--against", "champion", "--json").json["judging"]
    assert unknown["cost"] is None and "was not made by `rlhf-bench run`" in unknown["why"]


# Drawn


@pytest.mark.parametrize("name", ["power.svg", "power.png"])
def test_a_plot_shows_every_check(call: Call, line: Line, policy: str, home: Path, name: str) -> None:
    done = call("plan", "--policy", policy, "--plot", name)
    assert done.code == 0 and done.out.rstrip().endswith(f"power by the true difference: {name}")
    assert "█" not in done.out
    content = (home / name).read_bytes()
    if name.endswith(".png"):
        assert content.startswith(b"\x89PNG")
        return
    words = "".join(ElementTree.fromstring(content).itertext())
    assert "target chat, n = 40" in words and "guard maths, n = 40" in words and "chance to pass" in words
    call("plan", "--policy", policy, "--plot", name)
    assert (home / name).read_bytes() == content


@pytest.mark.parametrize(
    ("name", "says"), [("power.txt", "give a file that ends in .svg"), ("no/power.svg", "cannot be written")]
)
def test_a_plot_that_cannot_be_is_one_line(call: Call, line: Line, policy: str, name: str, says: str) -> None:
    done = call("plan", "--policy", policy, "--plot", name)
    assert done.code == 2
    assert says in done.one_line


@pytest.fixture
def without_matplotlib(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    yield


def test_without_matplotlib_a_plot_says_what_to_install(
    call: Call, line: Line, policy: str, without_matplotlib: None
) -> None:
    done = call("plan", "--policy", policy, "--plot", "power.svg")
    assert done.code == 2
    assert done.one_line == "error: --plot needs matplotlib: pip install 'rlhf-bench[plot]'"
    assert call("plan", "--policy", policy).code == 0


# Mistakes


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (["--power", "80"], "a power of 80: give the chance that is wished, between 0 and 1"),
        (["--gain", "3"], "did you mean 0.03?"),
        (["--against", "nothing"], "no run named 'nothing'"),
        (["--twin", "nothing"], "no run named 'nothing'"),
        (["--policy", "demoo"], "Did you mean 'demo'?"),
        (["--policy", "demo"], "Policy 'demo' asks for it."),
    ],
)
def test_a_mistake_is_one_line(call: Call, line: Line, policy: str, more: list[str], says: str) -> None:
    done = call("plan", "--policy", policy, *more)
    assert done.code == 2
    assert says in done.one_line


def test_a_run_that_was_stopped_early_is_neither_planned_against_nor_a_twin(
    call: Call, line: Line, policy: str, store: Store
) -> None:
    part = stopped(store, line.champion)
    assert call("plan", "--policy", policy, "--json").json["plan"]["run"] == line.champion.run_id
    done = call("plan", "--policy", policy, "--against", part.run_id)
    assert done.code == 2
    assert done.one_line.endswith("make the whole run with `rlhf-bench run` without --sequential")
    done = call("plan", "--policy", policy, "--twin", part.run_id)
    assert done.code == 2
    assert "it was stopped early" in done.one_line


def test_planning_imports_neither_torch_nor_a_plot(line: Line, policy: str, capsys: pytest.CaptureFixture[str]) -> None:
    heavy = "[m for m in ('torch', 'transformers', 'lm_eval', 'matplotlib') if m in sys.modules]"
    code = f"import sys; from rlhf_bench.cli import main; assert main(sys.argv[1:]) == 0; print({heavy})"
    command = [sys.executable, "-c", code, "plan", "--policy", policy, "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
    assert main(["plan", "--policy", policy, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["plan"]["policy"] == "test"
