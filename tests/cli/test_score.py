import json
from pathlib import Path

import pytest
from tests.cli.conftest import Call


@pytest.fixture
def file(tmp_path: Path) -> Path:
    rows = [
        {
            "instruction": f"[b]instruction[/b] {number}",
            "output_1": "an answer",
            "generator_1": "gpt4_1106_preview",
            "output_2": "another",
            "generator_2": "mine",
            "annotator": "j",
            "preference": preference,
        }
        for number, preference in enumerate((1.0, 2.0, 1.75, None))
    ]
    path = tmp_path / "annotations.json"
    path.write_text(json.dumps(rows))
    return path


def test_a_file_is_scored_without_a_model_a_key_or_data(call: Call, file: Path) -> None:
    called = call("score", "alpaca_eval", str(file), "--json")
    (found,) = called.json
    assert called.code == 0 and (found["benchmark"], found["model"], found["judge"]) == ("alpaca_eval", "mine", "j")
    assert set(found["metrics"]["win_rate"]) == {"value", "low", "high", "se"}
    assert found["metrics"]["win_rate"]["value"] == pytest.approx(100 * 1.75 / 3)
    assert (found["graded"], found["ungraded"]) == (3, 1)


def test_people_see_the_judge_and_what_is_missing(call: Call, file: Path) -> None:
    out = call("score", "alpaca_eval", str(file)).out
    assert "alpaca_eval: mine" in out and "58.333" in out
    assert "judge j, against gpt4_1106_preview; 3 graded, 1 ungraded" in out
    assert "note: 1 of 4 verdicts are missing" in out


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["alpaca_evals", "FILE"], "Did you mean 'alpaca_eval'?"),
        (["alpaca_eval", "nowhere.json"], "nowhere.json cannot be read: No such file or directory"),
        (["alpaca_eval", "."], "cannot be read"),
        (["alpaca_eval", "FILE", "--model", "min"], "no model in these files named 'min'. Did you mean 'mine'?"),
        (["alpaca_eval", "FILE", "--judge", "k"], "no judge in these files named 'k'"),
        (["arena_hard", "FILE"], "row 1: no field 'games'"),
        (["arena_hard", "FILE", "--version", "v3"], "no Arena-Hard version named 'v3'"),
        (["mt_bench", "FILE"], "row 1: no field 'model'"),
    ],
)
def test_a_mistake_is_one_line(args: list[str], said: str, call: Call, file: Path) -> None:
    called = call("score", *(str(file) if each == "FILE" else each for each in args))
    assert called.code == 2 and said in called.one_line and not called.out
