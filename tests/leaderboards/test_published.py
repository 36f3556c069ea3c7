import csv
from pathlib import Path

import pytest

from rlhf_bench.harness.errors import UnknownName
from rlhf_bench.leaderboards.published import PAPER_TABLES, published, table_names

V2_COLUMNS = {
    "LC AlpacaEval": "alpaca_eval",
    "MATH": "math",
    "GSM8K": "gsm8k",
    "HumanEval": "humaneval",
    "HumanEval+": "humaneval_plus",
    "MMLU": "mmlu",
    "ARC-c": "arc_challenge",
    "Truthful QA": "truthfulqa",
}


def value(table: str, model: str, benchmark: str) -> float | None:
    found = published(table)
    return found.values[model][found.columns.index(benchmark)]


def test_every_table_is_complete_and_names_its_source() -> None:
    for name in table_names():
        found = published(name)
        assert found.source
        assert all(len(values) == len(found.columns) for values in found.values.values())
        assert len(found.rows) == sum(each is not None for values in found.values.values() for each in values)
        assert all(row.source == found.source and row.low is None and row.rank is None for row in found.rows)


def test_the_papers_headline_numbers_are_as_printed() -> None:
    assert published("table-2").columns == ("alpaca_eval", "mt_bench", "arena_hard")
    assert [
        value("table-2", f"RLHFlow LLaMA-3-8B {step}", "alpaca_eval")
        for step in ("SFT", "offline DPO", "iterative DPO")
    ] == [
        10.2,
        22.5,
        31.3,
    ]
    assert value("table-3", "RLHFlow LLaMA-3-8B iterative DPO", "gsm8k") == 80.7
    assert value("table-2", "Yi-34B-Chat", "mt_bench") is None
    assert [len(published(name).values) for name in PAPER_TABLES] == [20, 4]


def test_tables_3_and_4_differ_in_one_cell_and_say_so() -> None:
    model = "RLHFlow LLaMA-3-8B iterative DPO"
    differing = {
        name for name in published("table-3").columns if value("table-3", model, name) != value("table-4", model, name)
    }
    assert differing == {"truthfulqa"}
    assert "62.2" in " ".join(published("table-4").notes)


def test_shares_are_shares_and_ratings_are_ratings() -> None:
    for name in table_names():
        for row in published(name).rows:
            assert row.mean is not None
            if row.benchmark == "mt_bench":
                assert 1 <= row.mean <= 10
            elif row.benchmark != "arena_hard_length":
                assert 0 <= row.mean <= 1


def test_an_unknown_table_names_the_nearest() -> None:
    with pytest.raises(UnknownName, match="Did you mean 'table-2'"):
        published("table2")


def test_the_later_table_agrees_with_the_authors_file(mirror: Path) -> None:
    with (mirror / "published_iterative_dpo_table.csv").open(encoding="utf-8") as file:
        theirs = list(csv.DictReader(file))
    assert {row["Model"] for row in theirs} == set(published("v2").values)
    for row in theirs:
        for column, benchmark in V2_COLUMNS.items():
            cell = row[column].split(" ")[0]
            ours = value("v2", row["Model"], benchmark)
            if cell == "-":
                assert ours is None
            else:
                printed = float(cell)
                assert ours == pytest.approx(printed if printed > 1 else 100 * printed)
