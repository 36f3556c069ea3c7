from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tests.cli.conftest import Call

ROWS: list[dict[str, Any]] = [
    {"instruction": f"do {i}", "output_1": "short", "output_2": "rather longer", "preference": 1.0 + i % 2}
    for i in range(20)
]


def write(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text(json.dumps(rows))
    return str(path)


def test_a_judge_is_held_against_a_gold_file_in_which_the_outputs_are_the_other_way_round(
    call: Call, home: Path
) -> None:
    judge = write(home / "judge.json", ROWS)
    turned = [
        {**row, "output_1": row["output_2"], "output_2": row["output_1"], "preference": 3 - row["preference"]}
        for row in ROWS
    ]
    found = call("judge", "calibrate", judge, "--gold", write(home / "gold.json", turned), "--json").json
    assert (found["items"], found["gold"], found["figures"]["agreement"]["mean"]) == (20, 20, 1.0)
    assert found["figures"]["kappa"]["mean"] == 1.0


def test_a_table_says_order_repeats_and_several_golds(call: Call, home: Path) -> None:
    path = home / "table.csv"
    path.write_text(
        "id,repeat,preference,preference_swapped,gold_1,gold_2,len_1,len_2\n"
        "a,1,2,2,2,2,10,20\na,2,1,,2,2,10,20\nb,1,1,2,1,2,30,20\nc,1,,,1,1,5,6\n"
    )
    found = call("judge", "calibrate", str(path), "--json").json["figures"]
    assert found["swap_consistency"]["mean"] == 0.5
    assert found["null_rate"]["mean"] == pytest.approx(1 / 3)
    assert found["repeat_consistency"]["mean"] == 0.0
    assert found["human_agreement"]["mean"] == pytest.approx(2 / 3)
    out = call("judge", "calibrate", str(path)).out
    assert "3 pairs, 3 with gold" in out and "note: only 2 items have gold" in out


def test_published_judgments_can_be_calibrated_as_they_are(call: Call, mirror: Path) -> None:
    """A judge is its own best stand-in."""
    file = str(mirror / "alpaca_eval" / "full" / "text_davinci_003.annotations.json.gz")
    found = call("judge", "calibrate", file, "--gold", file, "--json").json
    assert (found["items"], found["gold"]) == (805, 805)
    assert found["figures"]["agreement"]["mean"] == found["figures"]["rho"]["mean"] == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("rows", "gold", "said"),
    [
        ([ROWS[0], ROWS[0]], None, "row 2: the same pair again"),
        ([{**ROWS[0], "preference": 3}], None, "row 1: field 'preference' is 3"),
        ([{"preference": 1}], None, "row 1: no field 'id'"),
        (ROWS, [{**ROWS[0], "instruction": "another"}], "no pair in common"),
        (ROWS, [{**ROWS[0], "output_1": "another"}], "other outputs than the judge had"),
        ([{**ROWS[0], "gold": ["x"]}], None, "row 1: field 'gold' is 'x'"),
    ],
)
def test_a_broken_table_is_one_line(rows: Any, gold: Any, said: str, call: Call, home: Path) -> None:
    more = ["--gold", write(home / "gold.json", gold)] if gold else []
    done = call("judge", "calibrate", write(home / "judge.json", rows), *more)
    assert done.code == 2 and said in done.one_line
