"""`rlhf-bench judge reward` and `--judge pm:MODEL`: what a model that scores is worth on pairs that it has not seen."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from tests.cli.conftest import Call

from rlhf_bench.cli import scorers
from rlhf_bench.harness.errors import UnknownName
from rlhf_bench.harness.judges.preference import PreferenceModel
from rlhf_bench.harness.progress import silent
from rlhf_bench.harness.store import Store

ROWS = [
    {"prompt": f"What is {n} + {n}?", "chosen": f"It is {2 * n}." + " Yes." * (n % 3), "rejected": "I do not know it."}
    for n in range(12)
]


@pytest.fixture
def data(home: Path) -> str:
    path = home / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return str(path)


@pytest.fixture
def reward_model(tiny_checkpoint: Path, home: Path) -> str:
    """The tiny model with a random reward head."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    from rlhf_bench.harness.judges.reward import quiet

    path = home / "reward"
    with quiet(), torch.random.fork_rng():
        torch.manual_seed(3)
        AutoModelForSequenceClassification.from_pretrained(tiny_checkpoint, num_labels=1).save_pretrained(path)
    AutoTokenizer.from_pretrained(tiny_checkpoint).save_pretrained(path)
    return str(path)


def test_a_reward_model_is_held_against_pairs(call: Call, data: str, reward_model: str) -> None:
    found = call("judge", "reward", reward_model, "--data", data, "--json").json
    assert (found["pairs"], found["prompts"], found["ungraded"]) == (12, 12, 0)
    assert 0 <= found["accuracy"]["low"] <= found["accuracy"]["mean"] <= found["accuracy"]["high"] <= 1
    assert sum(each["pairs"] for each in found["bins"]) == 12
    done = call("judge", "reward", reward_model, "--data", data, "--limit", "5")
    assert "5 pairs of 5 prompts" in done.out and "calibration error" in done.out and "accuracy" in done.out
    assert "judge " in done.err and done.code == 0


def test_a_preference_model_is_held_against_pairs_in_the_same_way(call: Call, data: str, tiny_checkpoint: Path) -> None:
    found = call("judge", "reward", f"pm:{tiny_checkpoint}", "--data", data, "--json").json
    assert found["pairs"] == 12 and found["length_correlation"] is None


def test_ties_and_rows_left_out_are_told(call: Call, home: Path) -> None:
    path = home / "pairs.jsonl"
    rows = [{"prompt": "a", "chosen": "12", "rejected": "34"}, {"prompt": "b", "chosen": "longer", "rejected": "no"}]
    path.write_text("".join(json.dumps(row) + "\n" for row in [*rows, {"prompt": "c", "chosen": 1, "rejected": "x"}]))
    assert call("judge", "reward", "scripted:longer", "--data", str(path)).code == 2
    done = call("judge", "reward", "scripted:longer", "--data", str(path), "--on-bad-row", "skip")
    assert "1 ties, which count as wrong" in done.out and "note: 1 left out" in done.out
    found = call("judge", "reward", "scripted:longer", "--data", str(path), "--on-bad-row", "skip", "--json").json
    assert (found["accuracy"]["mean"], found["ties"], found["prefers_longer"]["mean"]) == (0.5, 1, 1.0)


def test_a_judge_that_answers_in_words_is_held_against_gold_elsewhere(call: Call, data: str) -> None:
    done = call("judge", "reward", "openai:gpt-4o-mini", "--data", data)
    assert done.code == 2 and "judge calibrate" in done.one_line


def test_a_model_without_a_reward_head_is_one_line(call: Call, data: str, tiny_checkpoint: Path) -> None:
    done = call("judge", "reward", str(tiny_checkpoint), "--data", data)
    assert done.code == 2 and "no reward head" in done.one_line


def test_pm_names_a_preference_model(tiny_checkpoint: Path, store: Store) -> None:
    judge = scorers.judge(f"pm:{tiny_checkpoint}", store, silent)
    assert isinstance(judge, PreferenceModel) and judge.name == f"pm:{tiny_checkpoint}"
    with pytest.raises(UnknownName, match="no model named 'smollm2-135'"):
        scorers.judge("pm:smollm2-135", store, silent)


@pytest.mark.parametrize("judge", ["", "pm:"])
@pytest.mark.parametrize(
    ("file", "text", "said"),
    [
        ("config.json", "[]", "config.json in"),
        ("config.json", '{"model_type": "own", "auto_map": {"AutoConfig": "own.Own"}}', "code of its own"),
        ("tokenizer.json", "{", "the tokenizer in"),
        ("chat_template.jinja", "{% for x in %}", "refuses a conversation"),
    ],
)
def test_a_judge_with_a_broken_file_is_one_line_that_says_which(
    call: Call, home: Path, data: str, reward_model: str, judge: str, file: str, text: str, said: str
) -> None:
    if judge == "pm:":
        config = json.loads((Path(reward_model) / "config.json").read_text())
        (Path(reward_model) / "config.json").write_text(json.dumps(config | {"architectures": ["LlamaForCausalLM"]}))
    (Path(reward_model) / file).write_text(text)
    (Path(reward_model) / "own.py").write_text("raise SystemExit")
    done = call("judge", "reward", f"{judge}{reward_model}", "--data", data)
    assert done.code == 2 and said in done.err.splitlines()[-1]
    assert done.err.splitlines()[-1].startswith("error: ")
