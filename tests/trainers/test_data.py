"""Files to pairs and prompts: the forms people have are read, and the first bad row is named with its fault."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from rlhf_bench.harness.errors import MissingData, UserError
from rlhf_bench.harness.types import Message
from rlhf_bench.trainers.data import read_preferences, read_prompts

GOOD: dict[str, Any] = {"prompt": "Why?", "chosen": "Because.", "rejected": "No."}
TURNS = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Why?"}]


def written(path: Path, *rows: Any) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def test_plain_and_conversational_pairs_are_the_same_pairs(tmp_path: Path) -> None:
    spoken = {
        "prompt": [{"role": "user", "content": "Why?"}],
        "chosen": [{"role": "assistant", "content": "Because."}],
        "rejected": [{"role": "assistant", "content": "No."}],
    }
    plain, turns = read_preferences(written(tmp_path / "a.jsonl", GOOD, spoken))
    assert plain == turns
    assert plain.prompt == (Message("user", "Why?"),)


def test_a_json_array_and_a_gzipped_file_read_as_lines_do(tmp_path: Path) -> None:
    lines = read_preferences(written(tmp_path / "a.jsonl", GOOD))
    (tmp_path / "a.json").write_text(json.dumps([GOOD]), encoding="utf-8")
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(json.dumps(GOOD).encode()))
    assert read_preferences(tmp_path / "a.json") == lines == read_preferences(tmp_path / "a.jsonl.gz")


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ({"chosen": None}, "row 2: chosen is missing"),
        ({"prompt": ""}, "row 2: prompt is ''"),
        ({"prompt": [{"role": "robot", "content": "x"}]}, "row 2: prompt is"),
        ({"rejected": 7}, "row 2: rejected is 7"),
        ({"margin": "wide"}, "row 2: margin is 'wide', not a number"),
    ],
)
def test_a_bad_row_is_named_with_its_fault(tmp_path: Path, fault: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said) as error:
        read_preferences(written(tmp_path / "a.jsonl", GOOD, GOOD | fault))
    assert "\n" not in str(error.value)


def test_prompts_are_read_under_any_of_their_names(tmp_path: Path) -> None:
    rows = [
        {"prompt": "Why?"},
        {"context_messages": TURNS},
        {"messages": TURNS},
        {"instruction": "Why?", "output": "So."},
    ]
    samples = read_prompts(written(tmp_path / "p.jsonl", *rows))
    assert [sample.prompt[-1] for sample in samples] == [Message("user", "Why?")] * 4
    assert samples[3].reference == "So."
    assert len({sample.id for sample in samples}) == 4


def test_a_prompt_row_without_a_prompt_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="row 1: has none of prompt, messages"):
        read_prompts(written(tmp_path / "p.jsonl", {"question": "Why?"}))


@pytest.mark.parametrize("text", ["{not json", "[1, 2", '"text"\n'])
def test_what_is_not_json_is_one_line(tmp_path: Path, text: str) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(UserError) as error:
        read_preferences(path)
    assert "\n" not in str(error.value)


def test_a_missing_file_says_what_to_give(tmp_path: Path) -> None:
    with pytest.raises(MissingData, match=r"give a \.jsonl or \.json file"):
        read_prompts(tmp_path / "none.jsonl")
