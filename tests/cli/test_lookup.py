from pathlib import Path

import pytest
from tests.cli.conftest import POLICY, Line, checkpoint

from rlhf_bench.cli import gating, lookup
from rlhf_bench.harness.errors import MissingData, UnknownName, UserError
from rlhf_bench.harness.store import Store

ARC = ["arc_challenge/test", "arc_challenge/train"]


def test_the_champion_is_the_default_model_once_there_is_one(store: Store, home: Path) -> None:
    assert lookup.default_model(store) == "smollm2-135m-instruct"
    made = checkpoint(home / "weights", "x")
    store.register(made)
    store.set_champion(made.digest, expect_generation=0, verdict_id=None, reason="first")
    assert lookup.default_model(store) == "champion"


def test_a_checkpoint_is_called_by_its_alias_or_its_folder(store: Store, home: Path) -> None:
    made = checkpoint(home / "weights", "x")
    store.register(made)
    assert lookup.name_of(made, store) == made.path
    store.register(made, alias="x")
    assert lookup.name_of(made, store) == "x"


def test_a_lineage_that_leads_outside_the_store_ends_there(store: Store, home: Path) -> None:
    made = checkpoint(home / "weights", "x", parent="f" * 64)
    store.register(made)
    assert lookup.lineage(store, made) == [made]


def test_a_policy_is_sought_beside_the_config_that_names_it(home: Path) -> None:
    (home / "configs").mkdir()
    (home / "configs" / "mine.yaml").write_text(POLICY)
    assert gating.policy("mine.yaml", beside=home / "configs" / "loop.yaml").name == "test"
    with pytest.raises(UserError):
        gating.policy("mine.yaml")
    with pytest.raises(UnknownName, match="Did you mean 'academic'"):
        gating.policy("acedemic")


def test_prompts_are_packaged_or_in_a_file_beside_the_config(home: Path) -> None:
    (home / "configs").mkdir()
    (home / "configs" / "mine.jsonl").write_text('{"prompt": "Hello?"}\n')
    assert [each.id for each in lookup.prompts("mine.jsonl", beside=home / "configs" / "loop.yaml")] == ["0"]
    with pytest.raises(MissingData):
        lookup.prompts("mine.jsonl")
    assert all(each.reference for each in lookup.prompts("demo"))


def test_a_run_is_found_by_prefix_place_champion_and_alias(store: Store, line: Line) -> None:
    for text in (line.champion.run_id[:6], "latest~3", "champion", "base"):
        assert lookup.find_run(store, text).id == line.champion.run_id
    with pytest.raises(UnknownName):
        lookup.find_run(store, "nothing")


def test_an_alias_comes_before_a_run_whose_id_begins_so(store: Store, line: Line) -> None:
    made = lookup.find_checkpoint(store, "better")
    store.register(made, alias=line.worse.run_id[:2])
    assert lookup.find_run(store, line.worse.run_id[:2]).id == line.better.run_id
    assert lookup.find_run(store, line.worse.run_id).id == line.worse.run_id


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["gsm8k"], ["gsm8k/test", "gsm8k/train"]),
        (["gsm8k/test", "gsm8k,arc_challenge"], ["gsm8k/test", "gsm8k/train", *ARC]),
        (["demo"], []),
    ],
)
def test_data_names_are_the_files_of_suites_and_benchmarks(names: list[str], expected: list[str]) -> None:
    assert lookup.data_names(names) == expected


def test_all_data_are_meant_where_none_is_named() -> None:
    assert {"gsm8k/test", "alpaca_eval/baseline"} <= set(lookup.data_names([]))
