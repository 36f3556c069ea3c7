"""Judges without a model: a file's judgments, joined by what was judged, and rules."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from rlhf_bench.harness.errors import UnknownName, UserError
from rlhf_bench.harness.judges.readers import is_switched
from rlhf_bench.harness.judges.replay import ReplayJudge, replay, scripted_judge
from rlhf_bench.harness.types import Battle, Message, Score

ROW = {"instruction": "q", "output_1": "base", "output_2": "new", "preference": 1.8}


def fight(answer: str = "new", baseline: str = "base", question: str = "q") -> Battle:
    return Battle("s", (Message("user", question),), answer, baseline)


def test_published_annotations_are_replayed_whole(mirror: Path) -> None:
    path = mirror / "alpaca_eval" / "full" / "gpt-3.5-turbo-1106.annotations.json.gz"
    rows = json.loads(gzip.decompress(path.read_bytes()))
    battles = [
        Battle(str(n), (Message("user", row["instruction"]),), row["output_2"], row["output_1"])
        for n, row in enumerate(rows)
    ]
    scores = list(replay(path).prefer(reversed(battles)))
    for score in scores:
        preference = rows[int(score.sample_id)]["preference"]
        assert score.value == (None if preference is None else pytest.approx(preference - 1, abs=1e-12))
        assert (score.value is None) == bool(score.why)
    assert len(scores) == 805


def test_a_pair_is_found_in_either_order_and_no_other_is() -> None:
    judge = ReplayJudge("r", [ROW])
    asked = [fight(), fight("base", "new"), fight("other"), fight(question="other")]
    assert [score.value for score in judge.prefer(asked)] == [pytest.approx(0.8), pytest.approx(0.2), None, None]


@pytest.mark.parametrize("preference", [None, float("nan")])
def test_a_missing_preference_is_ungraded(preference: Any) -> None:
    judge = ReplayJudge("r", [ROW | {"preference": preference}])
    assert list(judge.prefer([fight()])) == [Score("s", None, "r has no preference here")]


def test_a_draw_may_be_written_as_zero() -> None:
    assert [s.value for s in ReplayJudge("r", [ROW | {"preference": 0}]).prefer([fight()])] == [0.5]


@pytest.mark.parametrize(
    "rows",
    [
        [3], [{}], [ROW | {"output_2": None}], [ROW | {"preference": 3}], [ROW | {"preference": "2"}],
        [ROW | {"preference": float("inf")}], [ROW | {"preference": True}], [ROW, ROW | {"preference": 1.0}],
    ],
)  # fmt: skip
def test_a_row_that_is_none_is_named(rows: list[Any]) -> None:
    with pytest.raises(UserError, match=r"^r: row \d"):
        ReplayJudge("r", rows)


def test_the_identity_is_the_content_and_not_the_name() -> None:
    assert ReplayJudge("a", [ROW]).identity == ReplayJudge("b", [ROW]).identity
    assert ReplayJudge("a", [ROW]).identity != ReplayJudge("a", [ROW | {"preference": 1.0}]).identity


@pytest.mark.parametrize("content", [b"", b"[]", b"[", b"\x1f\x8b broken", b"\xff\xfe", b"{not json}\n"])
def test_a_file_that_is_no_file_of_judgments_is_one_line(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "annotations.json"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"cannot be read as annotations|holds no annotations") as raised:
        replay(path)
    assert "\n" not in str(raised.value)
    with pytest.raises(UserError, match="No such file"):
        replay(tmp_path / "nowhere.json")


def test_scripted_judges_follow_their_rule() -> None:
    battles = [fight("long answer", "short"), fight("a", "bb"), fight("ab", "cd")]
    assert [s.value for s in scripted_judge("longer").prefer(battles)] == [1.0, 0.0, 0.5]
    assert [s.value for s in scripted_judge("tie").prefer(battles)] == [0.5] * 3
    assert [s.value for s in scripted_judge("fail").prefer(battles)] == [None] * 3
    questions = [f"question {number}" for number in range(20)]
    first = [s.value for s in scripted_judge("first").prefer([fight(question=q) for q in questions])]
    assert first == [float(is_switched(q)) for q in questions] and set(first) == {0.0, 1.0}
    with pytest.raises(UnknownName, match="Did you mean 'longer'"):
        scripted_judge("longest")
