"""`train`: mistakes cost one line before any long work starts."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tests.cli.conftest import Call

PAIR = {"prompt": "Why?", "chosen": "Because.", "rejected": "No."}


@pytest.fixture
def pairs(home: Path) -> str:
    path = home / "pairs.jsonl"
    path.write_text(json.dumps(PAIR) + "\n")
    return str(path)


def test_an_unknown_preset_names_the_nearest(call: Call, pairs: str) -> None:
    done = call("train", "rm", "--data", pairs, "--out", "out", "--preset", "demo-rewards")
    assert done.code == 2
    assert "Did you mean 'demo-reward'?" in done.one_line


def test_an_unknown_key_names_the_nearest(call: Call, pairs: str) -> None:
    done = call("train", "dpo", "--data", pairs, "--out", "out", "--preset", "demo-dpo", "--set", "bta=0.2")
    assert done.code == 2
    assert "Did you mean 'beta'?" in done.one_line


def test_a_value_out_of_range_says_what_is_allowed(call: Call, pairs: str) -> None:
    done = call("train", "dpo", "--data", pairs, "--out", "out", "--preset", "demo-dpo", "--set", "beta=-1")
    assert done.code == 2
    assert "beta" in done.one_line
    assert "greater than 0" in done.one_line


def test_a_missing_data_file_is_named(call: Call) -> None:
    done = call("train", "rm", "--data", "none.jsonl", "--out", "out", "--preset", "demo-reward")
    assert done.code == 2
    assert "none.jsonl" in done.one_line


def test_an_unknown_back_end_says_where_others_come_from(call: Call, pairs: str) -> None:
    done = call("train", "rm", "--data", pairs, "--out", "out", "--preset", "demo-reward", "--backend", "jax")
    assert done.code == 2
    assert "rlhf_bench.trainers" in done.one_line


@pytest.mark.parametrize("alias", ["champion", "latest", "demo-reward", "smollm2-135m-instruct", "scripted:x", ""])
def test_a_name_that_means_something_else_is_refused_before_training(call: Call, pairs: str, alias: str) -> None:
    done = call("train", "rm", "--data", pairs, "--out", "out", "--preset", "demo-reward", "--alias", alias)
    assert done.code == 2
    assert "alias" in done.one_line
