"""`iterate`: a config's mistake costs one line before any long work starts."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tests.cli.conftest import Call, Line

from rlhf_bench.cli.iterate import _over
from rlhf_bench.trainers.online import LoopConfig

ROOT = Path(__file__).resolve().parents[2]
CONFIG = """
name: mine
model: base
prompts: prompts.jsonl
prompts_per_iteration: 2
iterations: 1
policy: demo
suite: demo
"""


@pytest.fixture
def config(home: Path) -> Path:
    path = home / "loop.yaml"
    path.write_text(CONFIG)
    (home / "prompts.jsonl").write_text('{"prompt": "Why?"}\n{"prompt": "How?"}\n')
    return path


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("answer.n=4", "Did you mean 'answers'?"),
        ("answers.n=3", "multiple of the 2 temperatures"),
        ("suite=dmo", "Did you mean 'demo'?"),
        ("protocol=papr", "Did you mean 'paper'?"),
        ("policy=chatt", "Did you mean 'chat'?"),
        ("policy=chat", "no benchmark in suite 'demo' named 'alpaca_eval'"),
        ("judge=bse", "Did you mean 'base'?"),
        ("backend=jax", "no training back end named 'jax'"),
        ("reference=first", "initial"),
        ("launch.train=torchrn --nproc-per-node 8", "launch.train: there is no command 'torchrn' here"),
        ("iterations=3", "need 6, 'prompts.jsonl' has 2"),
        ("model=bse", "Did you mean 'base'?"),
        ("name=../escape", "name"),
    ],
)
def test_a_mistake_in_the_config_is_one_line(call: Call, config: Path, line: Line, change: str, said: str) -> None:
    done = call("iterate", str(config), "--set", change)
    assert done.code == 2
    assert said in done.one_line


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--iteration", "2"], "give --only STAGE, or neither"),
        (["--attempt", "0"], "give --only STAGE, or neither"),
        (["--only", "train", "--until", "score"], "--until has no effect with --only"),
        (["--only", "train", "--plan"], "--plan has no effect with --only"),
        (["--plan", "--from", "pair"], "--from has no effect with --plan"),
        (["--plan", "--probes"], "--probes has no effect with --plan"),
        (["--only", "train", "--json"], "--json has no effect with --only"),
        (["--json", "--probes"], "--probes has no effect with --json"),
        (["--until", "train", "--json", "--probes"], "--probes has no effect with --until"),
        (["--set=probes=null", "--probes"], "--probes has no effect with 'probes: null' in the config"),
    ],
)
def test_an_option_that_would_do_nothing_is_refused(
    call: Call, config: Path, line: Line, options: list[str], said: str
) -> None:
    done = call("iterate", str(config), *options)
    assert done.code == 2
    assert said in done.one_line


def test_a_judge_of_a_suite_in_which_nothing_is_judged_is_refused(call: Call, config: Path, line: Line) -> None:
    rules = {
        "name": "maths",
        "targets": [{"benchmark": "demo-arithmetic", "metric": "accuracy"}],
        "guards": [{"benchmark": "demo-four-way", "metric": "accuracy", "margin": 0.1}],
    }
    (config.parent / "maths.yaml").write_text(json.dumps(rules))
    changes = ("suite=demo-arithmetic,demo-four-way", "policy=maths.yaml", "judge=base")
    done = call("iterate", str(config), *(f"--set={each}" for each in changes))
    assert done.code == 2
    assert "judge has no effect, since nothing in suite 'demo-arithmetic,demo-four-way' is judged" in done.one_line


def test_a_start_that_is_not_the_champion_is_refused(call: Call, config: Path, line: Line) -> None:
    done = call("iterate", str(config), "--set", "model=worse")
    assert done.code == 2
    assert "set 'model: champion'" in done.one_line


def test_a_start_that_cannot_chat_fixes_nothing(call: Call, config: Path, line: Line, home: Path) -> None:
    done = call("iterate", str(config))
    assert done.code == 2
    assert "has no chat template" in done.one_line
    assert not list(home.rglob("start.json"))


def test_a_prompt_without_a_user_turn_is_named(call: Call, config: Path, line: Line, home: Path) -> None:
    system = '{"prompt": [{"role": "system", "content": "Be brief."}]}\n'
    (home / "prompts.jsonl").write_text(system * 2)
    done = call("iterate", str(config))
    assert done.code == 2
    assert "no user turn" in done.one_line


def test_the_shipped_example_parses() -> None:
    from rlhf_bench.harness.config import read_config
    from rlhf_bench.trainers.online import LoopConfig

    plan = read_config(LoopConfig, ROOT / "examples" / "demo.yaml")
    assert plan.iterations == 1
    assert plan.model == "smollm2-135m-instruct"


def test_every_packaged_loop_parses_and_its_policy_is_about_its_suite() -> None:
    from rlhf_bench.cli import gating, lookup
    from rlhf_bench.trainers.online.config import loop_config, packaged

    assert {"paper", "paper-concise", "gpu24", "offline", "best-of-n"} <= set(packaged())
    for name in packaged():
        plan, path = loop_config(name)
        assert plan.name == name == path.stem
        asked = {each.name for each in lookup.suite(plan.suite).benchmarks}
        assert set(gating.policy(plan.policy).benchmarks) <= asked


def test_a_loop_that_is_no_file_and_not_packaged_is_one_line(call: Call, home: Path, line: Line) -> None:
    done = call("iterate", "papr")
    assert done.code == 2
    assert "Did you mean 'paper'?" in done.one_line


@pytest.mark.parametrize(
    ("on_hold", "at", "over"),
    [
        ("continue", (1, 0, "reject"), False),
        ("continue", (2, 0, "reject"), True),
        ("follow", (1, 0, "inconclusive"), False),
        ("stop", (1, 0, "promote"), False),
        ("stop", (1, 0, "inconclusive"), True),
        ("retry", (1, 0, "reject"), False),
        ("retry", (1, 1, "promote"), False),  # two decisions of two iterations, and only the first is decided
        ("retry", (2, 0, "promote"), True),
        ("retry", (2, 0, "reject"), False),
        ("retry", (1, 1, "reject"), True),
    ],
)
def test_a_loop_is_over_after_its_last_iteration_or_where_it_stops(
    on_hold: str, at: tuple[int, int, str], over: bool
) -> None:
    retries = [{"dpo.beta": 0.2}] if on_hold == "retry" else []
    config = LoopConfig.model_validate({"name": "mine", "iterations": 2, "on_hold": on_hold, "retries": retries})
    number, attempt, outcome = at
    last: Any = SimpleNamespace(number=number, attempt=attempt, verdict=SimpleNamespace(outcome=outcome))
    assert _over(config, [last]) is over and not _over(config, [])
