import gzip
import json
from collections.abc import Callable
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest
from scipy import stats

from rlhf_bench.harness.errors import UserError
from rlhf_bench.suites.judged import Choice, score
from rlhf_bench.suites.judged.mt_bench import category

Write = Callable[..., Path]
SINGLE = ["orpo", "medusa", "medusa_mistral"]


def rating(question: int = 81, turn: int = 1, value: Any = 7, **fields: Any) -> dict[str, Any]:
    return {"question_id": question, "model": "mine", "judge": ["gpt-4", "single-v1"], "score": value, "turn": turn} | (
        fields
    )


def pair(question: int = 81, first: str = "model_1", second: str = "model_1", **fields: Any) -> dict[str, Any]:
    names = {"model_1": "a", "model_2": "b", "g1_winner": first, "g2_winner": second}
    return {"question_id": question, **names, "judge": ["gpt-4", "pair-v2"], "turn": 1, **fields}


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in gzip.decompress(path.read_bytes()).splitlines()]


@pytest.mark.parametrize("name", SINGLE)
def test_every_mean_is_fastchats(name: str, mirror: Path) -> None:
    file = mirror / f"mt_bench/judgments/{name}.gpt-4_single.jsonl.gz"
    rows = [row for row in lines(file) if row["score"] != -1]
    found = score("mt_bench", [file], Choice())
    assert {each.model for each in found} == {row["model"] for row in rows}
    for each in found:
        mine = [row for row in rows if row["model"] == each.model]
        assert each.metrics["score"].value == pytest.approx(fmean(row["score"] for row in mine), abs=1e-12)
        for turn in (1, 2):
            part = [row["score"] for row in mine if row["turn"] == turn]
            assert each.metrics[f"score_turn_{turn}"].value == pytest.approx(fmean(part), abs=1e-12)
        assert each.graded == len(mine)


def test_a_model_judged_twice_is_counted_and_its_failed_judgment_too(mirror: Path) -> None:
    file = mirror / "mt_bench/judgments/orpo.gpt-4_single.jsonl.gz"
    (found,) = score("mt_bench", [file], Choice(model="mistral-orpo"))
    assert (found.graded, found.ungraded, found.judge) == (319, 1, "gpt-4")
    assert "160 of 320 judgments" in found.notes[-1] or "160 of 320 judgments" in found.notes[0]


def test_the_interval_is_over_questions(mirror: Path) -> None:
    file = mirror / "mt_bench/judgments/medusa.gpt-4_single.jsonl.gz"
    (found,) = score("mt_bench", [file], Choice(model="vicuna-7b-v1.3"))
    rows = [row for row in lines(file) if row["model"] == "vicuna-7b-v1.3"]
    means = [fmean(r["score"] for r in rows if r["question_id"] == question) for question in range(81, 161)]
    low, high = stats.t.interval(0.95, 79, fmean(means), stats.sem(means))
    metric = found.metrics["score"]
    assert (metric.low, metric.high, metric.se) == pytest.approx((low, high, stats.sem(means)))


def test_the_pairs_are_fastchats(mirror: Path) -> None:
    file = mirror / "mt_bench/judgments/phi3_dpo.gpt-4_pair.jsonl.gz"
    rows = [row for row in lines(file) if "error" not in (row["g1_winner"], row["g2_winner"])]
    agreed = [row["g1_winner"] if row["g1_winner"] == row["g2_winner"] else "tie" for row in rows]
    found = {each.model: each for each in score("mt_bench", [file], Choice())}
    for name, side in (("phi-3", "model_1"), ("phi-3-dpo", "model_2")):
        metrics = found[name].metrics
        assert metrics["win_rate"].value == pytest.approx(agreed.count(side) / len(rows))
        assert metrics["win_rate_adjusted"].value == pytest.approx(
            (agreed.count(side) + 0.5 * agreed.count("tie")) / len(rows)
        )
        assert found[name].graded == len(rows) and found[name].ungraded == 75 - len(rows)


def test_a_win_needs_both_orders(written: Write) -> None:
    rows = [pair(81), pair(82, "model_1", "model_2"), pair(83, "tie", "model_1"), pair(84, "model_2", "model_2")]
    first, second = score("mt_bench", [written(rows)], Choice())
    assert (first.model, first.baseline, first.metrics["win_rate"].value) == ("a", "b", 0.25)
    assert first.metrics["win_rate_adjusted"].value == 0.5 and second.metrics["tie_rate"].value == 0.5


def test_the_categories_are_the_questions_own(mirror: Path) -> None:
    for line in (mirror / "mt_bench/question.jsonl").read_text().splitlines():
        question = json.loads(line)
        assert category(str(question["question_id"])) == question["category"]
    assert category("80") == category("161") == category("x") == ""


def test_a_reply_without_a_rating_is_no_minus_one(written: Write) -> None:
    (found,) = score("mt_bench", [written([rating(81, 1, 8), rating(81, 2, -1), rating(82, 1, None)])], Choice())
    assert found.metrics["score"].value == 8 and (found.graded, found.ungraded) == (1, 2)
    (none,) = score("mt_bench", [written([rating(81, 1, -1)])], Choice())
    assert none.metrics["score"].value is None


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([rating(value=11)], "field 'score' is 11: it should be a number from 0 to 10, or -1, or null"),
        ([rating(value=-0.5)], "field 'score' is -0.5"),
        ([rating(turn=3)], "field 'turn' is 3"),
        ([rating(judge=[3])], "field 'judge' is [3]"),
        ([rating(), rating(82, judge="other")], "mix 2 judges (gpt-4, other)"),
        ([rating(), pair()], "score the *_single and the *_pair files apart"),
        ([pair(g2_winner="me")], "field 'g2_winner' is 'me'"),
        ([pair(model_2="a")], "another model than model_1"),
        ([{"turn": 1}], "no field 'model'"),
        ([], "no judgment"),
    ],
)
def test_a_broken_row_is_one_line(rows: list[dict[str, Any]], said: str, written: Write) -> None:
    with pytest.raises(UserError) as caught:
        score("mt_bench", [written(rows)], Choice())
    assert said in str(caught.value) and "\n" not in str(caught.value)
