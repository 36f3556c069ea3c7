"""MT-Bench from `*_single.jsonl` (ratings from 1 to 10) and `*_pair.jsonl` (shares of won comparisons).

Official: lm-sys/FastChat, llm_judge/show_result.py. Single: the mean of all ratings of both turns, each row one; -1 is
a reply without a rating and is left out. Pairs: a win only if both orders agree, else a tie; a comparison with an error
is left out; the adjusted win rate counts a tie half.
Differs: what is left out is counted, and intervals are over questions (t, 79 degrees of freedom), whose turns hang
together. A row that stands twice counts twice, as in the official mean, and is said.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from rlhf_bench.harness.errors import UserError
from rlhf_bench.harness.stats.intervals import by_cluster, mean_interval
from rlhf_bench.suites.judged import Choice, Metric, Scored, one_of, said_ungraded
from rlhf_bench.suites.judged.files import Row, read

CATEGORIES = ("writing", "roleplay", "reasoning", "math", "coding", "extraction", "stem", "humanities")
"""Ten questions each, from number 81."""
FIRST_QUESTION = 81
WINNERS = ("model_1", "model_2", "tie", "error")


@dataclass(frozen=True, slots=True)
class Rating:
    """One judged answer of `model`: a rating, or in pairs its share of the win. `value` None is ungraded."""

    model: str
    against: str
    judge: str
    question: str
    turn: int
    value: float | None


def score(files: Sequence[Path], choice: Choice) -> list[Scored]:
    """One Scored for each model, of pairs for both. Raises UserError: a broken row, mixed judges, ratings and pairs."""
    single, pairs = _ratings(files)
    if single and pairs:
        raise UserError("ratings and pairs in one command: score the *_single and the *_pair files apart")
    if not single and not pairs:
        raise UserError(f"no judgment in {', '.join(map(str, files))}")
    judge = one_of("judge", [each.judge for each in single or pairs], choice.judge)
    found = [each for each in single or pairs if each.judge == judge]
    if choice.baseline is not None:
        one_of("baseline", [each.against for each in found], choice.baseline)
        found = [each for each in found if each.against == choice.baseline]
    models = dict.fromkeys(each.model for each in found)
    scored = _single if single else _pairs
    return [scored([each for each in found if each.model == model]) for model in models]


def _ratings(files: Sequence[Path]) -> tuple[list[Rating], list[Rating]]:
    single: list[Rating] = []
    pairs: list[Rating] = []
    for path in files:
        for row in read(path):
            if "g1_winner" in row.fields:
                pairs += _pair(row)
            else:
                single.append(_rating(row))
    return single, pairs


def _rating(row: Row) -> Rating:
    value = row.number_in("score", 0, 10, also=-1)
    return Rating(
        row.text("model"), "", _judge(row), row.text("question_id"), _turn(row), None if value == -1 else value
    )


def _pair(row: Row) -> list[Rating]:
    """The comparison as each of the two models sees it."""
    games = [row.text("g1_winner"), row.text("g2_winner")]
    for name, winner in zip(("g1_winner", "g2_winner"), games, strict=True):
        if winner not in WINNERS:
            raise row.wrong(name, f"should be one of {', '.join(WINNERS)}")
    first, second = row.text("model_1"), row.text("model_2")
    if first == second:
        raise row.wrong("model_2", "should be another model than model_1")
    value: float | None = 0.5
    if "error" in games:
        value = None
    elif games[0] == games[1] != "tie":
        value = 1.0 if games[0] == "model_1" else 0.0
    place = _judge(row), row.text("question_id"), _turn(row)
    return [
        Rating(first, second, *place, value),
        Rating(second, first, *place, None if value is None else 1.0 - value),
    ]


def _judge(row: Row) -> str:
    """The judge's name; beside it stands the name of its prompt, which differs by category and turn."""
    judge = row.fields.get("judge")
    name = judge[0] if isinstance(judge, list) and judge else judge
    if name is not None and not isinstance(name, str):
        raise row.wrong("judge", "should be a name, or a list of a name and a prompt's")
    return name or ""


def _turn(row: Row) -> int:
    value = row.number_in("turn", 1, 2) if "turn" in row.fields else 1
    if value not in (1, 2):
        raise row.wrong("turn", "should be 1 or 2")
    return int(value)


def _single(rows: Sequence[Rating]) -> Scored:
    graded = [each for each in rows if each.value is not None]
    metrics = {"score": _mean(graded)}
    for turn in (1, 2):
        metrics[f"score_turn_{turn}"] = _mean([each for each in graded if each.turn == turn])
    by_category: dict[str, list[Rating]] = {}
    for each in graded:
        by_category.setdefault(category(each.question), []).append(each)
    for name in CATEGORIES:
        if name in by_category:
            metrics[f"score_{name}"] = _mean(by_category[name])
    return _scored(rows, graded, metrics, _single_notes(rows, graded))


def _single_notes(rows: Sequence[Rating], graded: Sequence[Rating]) -> tuple[str, ...]:
    notes = said_ungraded(len(graded), len(rows) - len(graded))
    turns = {turn: {each.question for each in graded if each.turn == turn} for turn in (1, 2)}
    lonely = len(turns[1] ^ turns[2])
    return (*notes, f"questions with a rating for one turn only: {lonely}") if turns[2] and lonely else notes


def _pairs(rows: Sequence[Rating]) -> Scored:
    graded = [each for each in rows if each.value is not None]
    metrics = {"win_rate_adjusted": _mean(graded, unit=True)}
    for name, value in (("win_rate", 1.0), ("tie_rate", 0.5), ("loss_rate", 0.0)):
        hits = [
            Rating(e.model, e.against, e.judge, e.question, e.turn, 1.0 if e.value == value else 0.0) for e in graded
        ]
        metrics[name] = _mean(hits, unit=True)
    return _scored(rows, graded, metrics, said_ungraded(len(graded), len(rows) - len(graded)))


def _scored(
    rows: Sequence[Rating], graded: Sequence[Rating], metrics: dict[str, Metric], notes: tuple[str, ...]
) -> Scored:
    copies = Counter((each.question, each.turn, each.against) for each in rows)
    double = sum(count - 1 for count in copies.values())
    if double:
        notes = (*notes, f"{double} of {len(rows)} judgments are of an answer that another row judges too: all count")
    against = ", ".join(dict.fromkeys(each.against for each in rows if each.against))
    first = rows[0]
    return Scored("mt_bench", first.model, metrics, len(graded), len(rows) - len(graded), first.judge, against, notes)


def _mean(graded: Sequence[Rating], *, unit: bool = False) -> Metric:
    """The mean of all rows, with its interval over questions."""
    if not graded:
        return Metric(None)
    values = np.array([each.value for each in graded], dtype=np.float64)
    sums, sizes = by_cluster(values, [each.question for each in graded])
    low, high = (0.0, 1.0) if unit else (0.0, 10.0)
    return Metric.of(mean_interval(sums, sizes, lowest=low, highest=high))


def category(question: str) -> str:
    """The category of a question by its number, "" for a number that is none of the 80."""
    place = (int(question) - FIRST_QUESTION) // 10 if question.isdecimal() else -1
    return CATEGORIES[place] if 0 <= place < len(CATEGORIES) else ""
