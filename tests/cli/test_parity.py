import json
from pathlib import Path
from typing import Any

import pytest
from tests.cli.conftest import Call

from rlhf_bench.harness.codec import digest
from rlhf_bench.harness.parity import records


@pytest.fixture
def asked(tiny_checkpoint: Path) -> tuple[str, ...]:
    """Questions that need no judge, to a small model."""
    return ("--model", str(tiny_checkpoint), "--suite", "demo-four-way,demo-arithmetic", "--device", "cpu")


def test_two_engines_are_compared_and_the_record_is_kept(call: Call, asked: tuple[str, ...]) -> None:
    done = call("parity", "hf:float32", "hf:bfloat16", *asked, "--limit", "6", "--margin", "0.5", "--json")
    found: Any = done.json
    assert done.code == (0 if found["equivalent"] else 3)
    assert found["texts"]["answers"] == 6
    assert 0 < found["logprobs"]["largest"] < 5
    assert found["logprobs"]["continuations"] == 24
    assert [each["benchmark"] for each in found["scores"]] == ["demo-four-way", "demo-arithmetic", "all"]
    (kept,) = records()
    assert list(kept.engines) == found["engines"]
    assert [each.split()[2] for each in kept.engines] == ["float32", "bfloat16"]
    assert json.loads(Path(found["record"]).read_text())["margin"] == 0.5


def test_the_table_says_what_was_not_shown(call: Call, asked: tuple[str, ...]) -> None:
    done = call("parity", "hf:float32", "hf:bfloat16", *asked, "--limit", "2")
    assert done.code == 3
    assert "texts: " in done.out
    assert "log-likelihoods: 8 compared" in done.out
    assert "not shown to be equivalent within 2 points" in done.out


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (("hf", "hf"), "are the same engine here"),
        (("hf", "vlm"), "Did you mean 'vllm'?"),
        (("hf", "hf:bfloat16", "--model", "scripted:echo"), "is no local model"),
        (("hf", "hf:bfloat16", "--margin", "2"), "give a margin from 0 to 1"),
    ],
)
def test_what_cannot_be_compared_is_one_line(
    call: Call, asked: tuple[str, ...], args: tuple[str, ...], said: str
) -> None:
    done = call("parity", *asked, *args)
    assert done.code == 2
    assert said in done.err.splitlines()[-1]


def test_a_run_keeps_the_engine_that_it_was_answered_by(call: Call, asked: tuple[str, ...]) -> None:
    found = call("run", *asked, "--limit", "1", "--json").json
    assert found["manifest"]["engine"]["engine"] == "hf"
    again = call("run", *asked, "--limit", "1", "--engine", "hf", "--json").json
    assert again["run_id"] == found["run_id"]
    other = call("run", *asked, "--limit", "1", "--engine", "hf:bfloat16", "--json").json
    assert other["run_id"] != found["run_id"]
    assert other["manifest"]["engine"]["dtype"] == "bfloat16"
    assert digest(other["manifest"]["engine"]) != digest(found["manifest"]["engine"])


def test_vllm_where_it_is_not_installed_is_one_line(
    call: Call, asked: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rlhf_bench.harness.engines.choice.vllm_version", lambda: "")
    done = call("run", *asked, "--engine", "vllm")
    assert done.code == 2
    assert "pip install 'rlhf-bench[vllm]'" in done.one_line
