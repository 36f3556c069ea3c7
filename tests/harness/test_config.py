"""Configuration files: what is accepted, and the one line that each mistake gets."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import Field, ValidationError

from rlhf_bench.harness.config import Config, read_config, schema
from rlhf_bench.harness.errors import UserError


class Optimizer(Config):
    learning_rate: float = Field(1e-3, gt=0, lt=1)
    warmup: int | None = None


class Recipe(Config):
    name: str
    kind: Literal["full", "lora"] = "full"
    optimizer: Optimizer = Optimizer()
    stages: tuple[Optimizer, ...] = ()
    shots: dict[str, int] = Field(default_factory=dict)


def read(tmp_path: Path, text: str, *overrides: str) -> Recipe:
    path = tmp_path / "recipe.yaml"
    path.write_text(text, encoding="utf-8")
    return read_config(Recipe, path, overrides)


def refusal(tmp_path: Path, text: str, *overrides: str) -> str:
    with pytest.raises(UserError) as caught:
        read(tmp_path, text, *overrides)
    line = str(caught.value)
    assert "\n" not in line
    return line.replace(f"{tmp_path}/", "")


def test_a_file_becomes_a_frozen_value(tmp_path: Path) -> None:
    recipe = read(tmp_path, "name: a\noptimizer: {learning_rate: 0.01}\nstages: [{warmup: 3}]\nshots: {gsm8k: 8}")
    assert recipe == Recipe(
        name="a", optimizer=Optimizer(learning_rate=0.01), stages=(Optimizer(warmup=3),), shots={"gsm8k": 8}
    )
    with pytest.raises(ValidationError):
        recipe.name = "b"  # type: ignore[misc]


@pytest.mark.parametrize("number", ["5e-7", "5E-07", "5.e-7", "5.0e-7", "0.0000005", "5_0e-8"])
def test_scientific_notation_is_a_number_however_it_is_written(tmp_path: Path, number: str) -> None:
    assert read(tmp_path, f"name: a\noptimizer: {{learning_rate: {number}}}").optimizer.learning_rate == 5e-7


def test_what_only_looks_like_a_number_stays_text(tmp_path: Path) -> None:
    assert read(tmp_path, "name: 1e5x").name == "1e5x"
    assert read(tmp_path, "name: '5e-7'").name == "5e-7"
    assert read(tmp_path, "name: e5").name == "e5"


def test_overrides_reach_into_mappings_and_lists(tmp_path: Path) -> None:
    recipe = read(
        tmp_path,
        "name: a\nstages: [{}, {}]",
        "optimizer.learning_rate=5e-7",
        "stages.1.warmup=7",
        "name=b=c",
        "shots={gsm8k: 8}",
    )
    assert recipe.optimizer.learning_rate == 5e-7
    assert [stage.warmup for stage in recipe.stages] == [None, 7]
    assert recipe.name == "b=c"
    assert recipe.shots == {"gsm8k": 8}


@given(st.floats(1e-12, 0.5))
def test_any_number_survives_an_override(tmp_path_factory: pytest.TempPathFactory, number: float) -> None:
    path = tmp_path_factory.getbasetemp() / "number.yaml"
    path.write_text("name: a", encoding="utf-8")
    assert read_config(Recipe, path, [f"optimizer.learning_rate={number!r}"]).optimizer.learning_rate == number


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("name: a\nkinf: lora", "recipe.yaml: no key named 'kinf'. Did you mean 'kind'?"),
        (
            "name: a\nstages: [{}, {warmpu: 3}]",
            "recipe.yaml: no key named 'warmpu' in 'stages.1'. Did you mean 'warmup'?",
        ),
        (
            "name: a\noptimizer: {zzz: 3}",
            "recipe.yaml: no key named 'zzz' in 'optimizer'. Known: learning_rate, warmup.",
        ),
        ("kind: full", "recipe.yaml: key 'name' is missing"),
        ("name: [1, 2]", "recipe.yaml: key 'name' is [1, 2]: it must be a valid string"),
        ("name: a\nkind: none", "recipe.yaml: key 'kind' is \"none\": it must be 'full' or 'lora'"),
        (
            "name: a\noptimizer: {learning_rate: 2}",
            "recipe.yaml: key 'optimizer.learning_rate' is 2: it must be less than 1",
        ),
        (
            "name: a\noptimizer: {learning_rate: .nan}",
            "recipe.yaml: key 'optimizer.learning_rate' is NaN: it must be a finite number",
        ),
        (
            "kind: x\noptimizer: 3",
            "recipe.yaml: key 'name' is missing (2 more)",
        ),
        ("name: a\nname: b", "recipe.yaml: line 2: not YAML: key 'name' twice"),
        (
            "name: a\noptimizer: {warmup: 1, warmup: 2}",
            "recipe.yaml: line 2: not YAML: key 'warmup' twice",
        ),
        ("", "recipe.yaml: it must hold `key: value` lines, not null"),
        ("- name: a", 'recipe.yaml: it must hold `key: value` lines, not [{"name": "a"}]'),
        ("name: !!python/object:os.system x", "recipe.yaml: line 1: not YAML: could not determine a constructor"),
        ('name: a\n"two\\nlines": 1', "recipe.yaml: no key named 'two lines'"),
        ("name: [", "recipe.yaml: line 1: not YAML: expected the node content, but found '<stream end>'"),
        ("? [a]\n: 1", "recipe.yaml: line 1: not YAML: found unhashable key"),
        ("name: 2026-13-45", "recipe.yaml: not YAML: month must be in 1..12"),
    ],
)
def test_a_mistake_in_the_file_is_one_line(tmp_path: Path, text: str, line: str) -> None:
    assert refusal(tmp_path, text).startswith(line)


@pytest.mark.parametrize(
    ("override", "line"),
    [
        (
            "optimizer.learning_rate=2",
            "override 'optimizer.learning_rate=2': key 'optimizer.learning_rate' is 2",
        ),
        (
            "optimizer.warmpu=2",
            "override 'optimizer.warmpu=2': no key named 'warmpu' in 'optimizer'. Did you",
        ),
        ("optimizer", "override 'optimizer': write it as key=value or key.sub=value"),
        ("name.x=1", "override 'name.x=1': there is nothing inside \"a\" to call 'x'"),
        ("stages.4.warmup=1", "override 'stages.4.warmup=1': '4' must be a number from 0 to 0"),
        ("stages.x=1", "override 'stages.x=1': 'x' must be a number from 0 to 0"),
        ("name=[", "override 'name=[': line 1: not YAML"),
        ("stages=[{warmup: x}]", "override 'stages=[{warmup: x}]': key 'stages.0.warmup' is \"x\""),
    ],
)
def test_a_mistake_in_an_override_names_the_override(tmp_path: Path, override: str, line: str) -> None:
    assert refusal(tmp_path, "name: a\nstages: [{}]", override).startswith(line)


def test_a_file_that_is_not_there_or_no_text_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"cannot read '.*gone.yaml': No such file"):
        read_config(Recipe, tmp_path / "gone.yaml")
    (tmp_path / "bytes.yaml").write_bytes(b"name: \xff\xfe")
    with pytest.raises(UserError, match=r"bytes.yaml: not YAML: the file is not UTF-8 text"):
        read_config(Recipe, tmp_path / "bytes.yaml")
    (tmp_path / "deep.yaml").write_text("a: " + "[" * 5000, encoding="utf-8")
    with pytest.raises(UserError, match=r"deep.yaml:.* not YAML"):
        read_config(Recipe, tmp_path / "deep.yaml")


def test_the_schema_names_every_key() -> None:
    found = json.loads(schema(Recipe))
    assert found["properties"].keys() == Recipe.model_fields.keys()
    assert found["additionalProperties"] is False


def test_a_value_that_holds_itself_is_refused_in_one_line(tmp_path: Path) -> None:
    assert refusal(tmp_path, "name: &a [*a]").startswith("recipe.yaml: key 'name' is a value that holds itself")
