import csv
import gzip
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from rlhf_bench.harness.errors import UserError
from rlhf_bench.suites.judged import Choice, score

Write = Callable[..., Path]
Board = Mapping[str, Mapping[str, str]]


def row(number: int = 0, **fields: Any) -> dict[str, Any]:
    return {
        "instruction": f"instruction {number}",
        "output_1": "a baseline's answer",
        "generator_1": "gpt4_1106_preview",
        "output_2": "an answer",
        "generator_2": "mine",
        "annotator": "weighted_alpaca_eval_gpt4_turbo",
        "preference": 1.25,
        **fields,
    }


def test_every_win_rate_is_the_leaderboards_to_1e_6(here: Path, leaderboard: Board) -> None:
    files = [here / "alpaca_eval/annotations_reduced.csv.gz"]
    found = [each for each in score("alpaca_eval", files, Choice()) if each.model in leaderboard]
    assert len(found) == 39  # text_davinci_003 is not on it
    for each in found:
        published = leaderboard[each.model]
        for name in ("win_rate", "discrete_win_rate"):
            assert each.metrics[name].value == pytest.approx(float(published[name]), abs=1e-6), (each.model, name)
        assert each.metrics["win_rate"].se == pytest.approx(float(published["standard_error"]), abs=1e-6)
        whole = ("avg_length",) if published["n_total"] == "805" else ()  # theirs is of the answers, judged or not
        for name in ("n_wins", "n_wins_base", "n_draws", "n_total", *whole):
            assert each.metrics[name].value == float(published[name]), (each.model, name)


def test_the_official_file_scores_as_its_reduced_form(here: Path) -> None:
    reduced = {
        each.model: each for each in score("alpaca_eval", [here / "alpaca_eval/annotations_reduced.csv.gz"], Choice())
    }
    for file in sorted((here / "alpaca_eval/full").iterdir()):
        (found,) = score("alpaca_eval", [file], Choice())
        assert found.graded == 805 and found.judge == "weighted_alpaca_eval_gpt4_turbo"
        other = reduced[found.model].metrics
        assert {name: each.value for name, each in found.metrics.items()} == pytest.approx(
            {name: each.value for name, each in other.items()}, abs=1e-7
        )


def test_alpaca_eval_1_has_its_published_win_rates_and_no_length_controlled_one(here: Path, tmp_path: Path) -> None:
    with gzip.open(here / "alpaca_eval/alpaca_eval_1_annotations_reduced.csv.gz", "rt") as file:
        rows = [{**each, "generator_1": "text_davinci_003"} for each in csv.DictReader(file)]
    path = tmp_path / "one.csv"
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    with (here / "alpaca_eval/published/alpaca_eval_1_gpt4_leaderboard.csv").open() as file:
        published = {each[""]: each for each in csv.DictReader(file)}
    found = score("alpaca_eval", [path], Choice())
    assert len(found) == 53
    for each in found:
        assert "lc_win_rate" not in each.metrics and "text_davinci_003" in each.notes[-1]
        if each.model in published:
            assert each.metrics["win_rate"].value == pytest.approx(float(published[each.model]["win_rate"]), abs=1e-6)


@pytest.mark.parametrize("name", ["a.json", "a.jsonl", "a.json.gz", "a.jsonl.gz"])
def test_a_list_or_lines_gzipped_or_not_are_one(name: str, written: Write) -> None:
    (found,) = score("alpaca_eval", [written([row(0), row(1, preference=2)], name)], Choice())
    assert found.metrics["win_rate"].value == pytest.approx(62.5)


def test_missing_verdicts_are_counted_and_said_and_no_zero(written: Write) -> None:
    rows = [row(number, preference=2.0) for number in range(9)] + [row(9, preference=None)]
    (found,) = score("alpaca_eval", [written(rows)], Choice())
    assert (found.graded, found.ungraded) == (9, 1)
    assert found.metrics["win_rate"].value == 100
    assert any("1 of 10 verdicts are missing (10.0%)" in note for note in found.notes)


def test_a_zero_is_a_draw_as_it_was_once_written(written: Write) -> None:
    (found,) = score("alpaca_eval", [written([row(0, preference=0), row(1, preference=1.5)])], Choice())
    assert found.metrics["n_draws"].value == 2 and found.metrics["win_rate"].value == 50


def test_a_baseline_against_itself_is_50_by_construction(written: Write) -> None:
    rows = [row(number, generator_2="gpt4_1106_preview", preference=1.5) for number in range(3)]
    (found,) = score("alpaca_eval", [written(rows)], Choice())
    assert (found.metrics["lc_win_rate"].value, found.metrics["lc_win_rate"].se) == (50, 0)


def test_other_instructions_have_a_win_rate_and_a_reason_for_no_more(written: Write, here: Path) -> None:
    (found,) = score("alpaca_eval", [written([row(0), row(1)])], Choice())
    assert "lc_win_rate" not in found.metrics and "not one of AlpacaEval's 805" in found.notes[-1]


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"preference": 2.5}, "row 2: field 'preference' is 2.5"),
        ({"preference": 0.5}, "from 1 to 2, or 0, or null"),
        ({"preference": float("nan")}, "is nan"),
        ({"preference": float("inf")}, "is inf"),
        ({"preference": True}, "is True"),
        ({"preference": [1]}, "is [1]"),
        ({"preference": "much"}, "is 'much'"),
        ({"instruction": "instruction 0"}, "row 2: the instruction of row 1 again"),
        ({"output_2": 3}, "field 'output_2' is 3"),
        ({"generator_2": None}, "field 'generator_2' is None"),
        ({"instruction": ""}, "field 'instruction' is ''"),
        ({"annotator": "other"}, "mix 2 judges (other, weighted_alpaca_eval_gpt4_turbo): pick one with --judge"),
        ({"generator_1": "other"}, "mix 2 baselines (gpt4_1106_preview, other): pick one with --baseline"),
    ],
)
def test_a_broken_row_is_one_line_that_names_it(wrong: dict[str, Any], said: str, written: Write) -> None:
    with pytest.raises(UserError) as caught:
        score("alpaca_eval", [written([row(0), row(1, **wrong)])], Choice())
    assert said in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "no annotation"),
        (b"[]", "no annotation"),
        (b"[1, 2]", "row 1: a int"),
        (b'{"a": 1', "row 1 is not JSON"),
        (b"\xff\xfe\x00", "not UTF-8"),
        (b"\x1f\x8b broken", "cannot be read"),
        (gzip.compress(b"[]", mtime=0)[:-4], "cannot be read"),
        (b"[" * 100_000, "not JSON"),
        (b'[{"instruction": "x"}]', "no field 'generator_2'"),
    ],
)
def test_a_hostile_file_is_one_line(content: bytes, said: str, tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(content)
    with pytest.raises(UserError, match=said):
        score("alpaca_eval", [path], Choice())


def test_a_judge_picked_by_name_unmixes(written: Write) -> None:
    rows = [row(0), row(0, annotator="other", preference=2)]
    (found,) = score("alpaca_eval", [written(rows)], Choice(judge="other"))
    assert found.judge == "other" and found.metrics["win_rate"].value == 100
    with pytest.raises(UserError, match=r"no judge in these files named 'others'\. Did you mean 'other'"):
        score("alpaca_eval", [written(rows)], Choice(judge="others"))


def test_two_models_in_two_files_are_two_scores(written: Write) -> None:
    files = [written([row(0)], "a.jsonl"), written([row(0, generator_2="yours")], "b.jsonl")]
    assert [each.model for each in score("alpaca_eval", files, Choice())] == ["mine", "yours"]
    with pytest.raises(UserError, match="again"):
        score("alpaca_eval", [files[0], files[0]], Choice())


@pytest.mark.parametrize("rows", [1, 2, 40])
@pytest.mark.parametrize("preference", [1.0, 1.5, 2.0, None])
def test_few_rows_or_rows_that_are_all_alike_break_nothing(
    rows: int, preference: float | None, here: Path, written: Write
) -> None:
    asked = json.loads(gzip.decompress((here / "alpaca_eval/full/text_davinci_003.annotations.json.gz").read_bytes()))
    few = [{**each, "preference": preference} for each in asked[:rows]]
    (found,) = score("alpaca_eval", [written(few)], Choice())
    if preference is None:
        assert found.metrics["win_rate"].value is None and (found.graded, found.ungraded) == (0, rows)
    else:
        lc = found.metrics["lc_win_rate"]
        assert lc.value is not None and lc.se is not None and 0 <= lc.value <= 100 and lc.se >= 0
        assert (lc.value - 50) * (preference - 1.5) >= 0


def test_a_row_order_longer_than_the_instructions_is_no_index_error(written: Write, here: Path) -> None:
    rows = [row(number) for number in range(806)]
    (found,) = score("alpaca_eval", [written(rows)], Choice(official_row_order=True))
    assert "more rows than the 805" in found.notes[-1]


def test_the_reduced_rows_of_alpaca_eval_1_name_no_baseline_and_have_the_published_win_rates(here: Path) -> None:
    with (here / "alpaca_eval/published/alpaca_eval_1_gpt4_leaderboard.csv").open() as lines:
        board = {row[""]: row for row in csv.DictReader(lines)}
    found = score("alpaca_eval", [here / "alpaca_eval/alpaca_eval_1_annotations_reduced.csv.gz"], Choice())
    on_it = [each for each in found if each.model in board]
    assert len(on_it) >= 50
    for each in on_it:
        assert each.metrics["win_rate"].value == pytest.approx(float(board[each.model]["win_rate"]), abs=1e-6)
        assert "lc_win_rate" not in each.metrics
