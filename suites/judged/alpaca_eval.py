"""AlpacaEval 2 from its `annotations.json`: win rate, discrete and length-controlled win rate, in percent.

Official: alpaca_eval 0.6.6, metrics/winrate.py and glm_winrate.py. `generator_1` is the baseline, `generator_2` the
model; a preference lies in [1, 2], and 0 is an old way to write 1.5.
Data: df_gamed.csv of tatsu-lab/alpaca_eval on the hub, CC-BY-NC-4.0; where it is not on this machine and the mirror has
them, rows recovered from published weights, with which LC win rates come within 0.15 points of the published.
Differs: rows are joined to their instruction's difficulty by the instruction, where the official code takes the row's
place, which shifts all rows after a missing one (`official_row_order` does it their way).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from scipy import special

from rlhf_bench.harness.errors import MissingData, UserError
from rlhf_bench.harness.stats import estimate
from rlhf_bench.suites import data
from rlhf_bench.suites.judged import Choice, Metric, Scored, one_of, said_ungraded
from rlhf_bench.suites.judged.files import Row, read
from rlhf_bench.suites.judged.length_controlled import (
    Floats,
    Gamed,
    LengthControlled,
    length_controlled,
    length_feature,
)

BASELINES = ("gpt4_1106_preview", "gpt4_turbo")
"""Names of the one baseline whose gamed versions the fit knows."""
OFFICIAL_JUDGE = "weighted_alpaca_eval_gpt4_turbo"
GAMED, RECOVERED = "alpaca_eval_lc/gamed", "alpaca_eval_lc_recovered/gamed"


@dataclass(frozen=True, slots=True)
class Annotation:
    """One judged pair. `preference` in [0, 1] or None; `place` is the row's number within its model, from 0."""

    model: str
    baseline: str
    judge: str
    instruction: str | int
    preference: float | None
    baseline_chars: float
    model_chars: float
    place: int
    row: Row


def score(files: Sequence[Path], choice: Choice) -> list[Scored]:
    """One Scored for each model. Raises UserError: a broken row, an instruction twice, mixed judges or baselines."""
    found = read_annotations(files)
    judge = one_of("judge", [each.judge for each in found], choice.judge)
    found = [each for each in found if each.judge == judge]
    baseline = one_of("baseline", [each.baseline for each in found], choice.baseline)
    by_model: dict[str, list[Annotation]] = {}
    for each in found:
        if each.baseline == baseline:
            by_model.setdefault(each.model, []).append(each)
    return [_scored(rows, choice) for rows in by_model.values()]


def read_annotations(files: Sequence[Path]) -> list[Annotation]:
    """The judged pairs of these files, in their order. Raises UserError as `score`."""
    found: list[Annotation] = []
    seen: dict[tuple[str, str, str, str | int], Row] = {}
    places: dict[tuple[str, str, str], int] = {}
    for path in files:
        for row in read(path):
            owner = (
                row.text("model" if "model" in row.fields else "generator_2"),
                row.text("generator_1") if "generator_1" in row.fields else "",
                str(row.fields.get("annotator") or ""),
            )
            instruction: str | int = row.text("instruction") if "instruction" in row.fields else _index(row)
            before = seen.setdefault((*owner, instruction), row)
            if before is not row:
                where = f"row {before.number}" + (f" of {before.path}" if before.path != path else "")
                raise UserError(f"{path}, row {row.number}: the instruction of {where} again, for {owner[0]}")
            place = places[owner] = places.get(owner, -1) + 1
            chars = (_chars(row, 1), _chars(row, 2))
            found.append(Annotation(*owner, instruction, _preference(row), *chars, place, row))
    if not found:
        raise UserError(f"no annotation in {', '.join(map(str, files))}")
    return found


def _preference(row: Row) -> float | None:
    """The preference less 1; a draw for 0."""
    value = row.number_in("preference", 1.0, 2.0, also=0.0)
    return None if value is None else 0.5 if value == 0.0 else value - 1.0


def _index(row: Row) -> int:
    value = row.number_in("index", 0, 1e6)
    if value is None or value != int(value):
        raise row.wrong("instruction", "should be text (or 'index' its number)")
    return int(value)


def _chars(row: Row, side: int) -> float:
    """The length of an answer in characters; NaN for none, which the official fit leaves out."""
    if f"output_{side}" not in row.fields:
        value = row.number_in(f"len_{side}", 0, 1e9)
        if value is None:
            raise row.wrong(f"output_{side}", "should be the answer's text")
        return value
    answer = row.fields[f"output_{side}"]
    if answer is None:
        return float("nan")
    if not isinstance(answer, str):
        raise row.wrong(f"output_{side}", "should be the answer's text")
    return float(len(answer))


def _scored(rows: Sequence[Annotation], choice: Choice) -> Scored:
    first = rows[0]
    graded = [each.preference for each in rows if each.preference is not None]
    metrics, notes = win_rates(graded), list(said_ungraded(len(graded), len(rows) - len(graded)))
    lengths = [each.model_chars for each in rows if np.isfinite(each.model_chars)]
    if graded:
        controlled, said = _controlled(rows, choice.official_row_order)
        metrics = {**controlled, **metrics}
        notes += said
    metrics["avg_length"] = Metric(float(int(np.mean(lengths)))) if lengths else Metric(None)
    return Scored(
        "alpaca_eval",
        first.model,
        metrics,
        len(graded),
        len(rows) - len(graded),
        first.judge,
        first.baseline,
        tuple(notes),
    )


def win_rates(preferences: Sequence[float]) -> dict[str, Metric]:
    """Win rate and discrete win rate in percent, and the counts behind them, from preferences in [0, 1]."""
    won = [value > 0.5 for value in preferences]
    lost = [value < 0.5 for value in preferences]
    discrete = [0.5 * (1 + win - loss) for win, loss in zip(won, lost, strict=True)]
    return {
        "win_rate": Metric.of(estimate(preferences, kind="continuous"), 100),
        "discrete_win_rate": Metric.of(estimate(discrete, kind="continuous"), 100),
        "n_wins": Metric(float(sum(won))),
        "n_wins_base": Metric(float(sum(lost))),
        "n_draws": Metric(float(len(won) - sum(won) - sum(lost))),
        "n_total": Metric(float(len(won))),
    }


def _controlled(rows: Sequence[Annotation], row_order: bool) -> tuple[dict[str, Metric], list[str]]:
    """The length-controlled metrics, or none of them and why."""
    first = rows[0]
    if first.model == first.baseline:
        return {"lc_win_rate": Metric(50.0, 50.0, 50.0, 0.0), "lc_standard_error_published": Metric(0.0)}, []
    if first.baseline not in BASELINES:
        which = f"is {first.baseline}" if first.baseline else "is not named (field 'generator_1')"
        return {}, [f"no lc_win_rate: it is defined against {BASELINES[0]}, and the baseline {which}"]
    try:
        found = fit(rows, official_row_order=row_order)
    except MissingData as error:
        return {}, [f"no lc_win_rate: {error}"]
    except LookupError as error:
        return {}, [f"no lc_win_rate: {error.args[0]}"]
    notes = []
    if gamed()[1]:
        notes.append("lc_win_rate with recovered rows of the gamed baselines: within 0.15 points of the published")
    if first.judge not in ("", OFFICIAL_JUDGE):
        notes.append(f"lc_win_rate uses instruction difficulties that were fitted to {OFFICIAL_JUDGE}")
    theirs, further = found, {}
    if (
        not row_order
        and len(rows) <= len(gamed()[0].difficulty)
        and any(place_of(each.instruction) != each.place for each in rows)
    ):
        theirs = fit(rows, official_row_order=True)
        further = {"lc_win_rate_published": Metric(100 * theirs.score)}
        notes.append("rows are missing or in another order: the official code takes lc_win_rate_published for it")
    half = float(special.stdtrit(max(len(rows) - 1, 1), 0.975)) * found.se
    bounds = max(0.0, found.score - half), min(1.0, found.score + half)
    return {
        "lc_win_rate": Metric(100 * found.score, 100 * bounds[0], 100 * bounds[1], 100 * found.se),
        "lc_standard_error_published": Metric(100 * theirs.published_se),
        **further,
    }, notes


def fit(rows: Sequence[Annotation], *, official_row_order: bool = False) -> LengthControlled:
    """The length-controlled fit of one model's rows.

    Raises LookupError where an instruction is not one of the 805, MissingData without the gamed baselines' rows.
    """
    fixed = gamed()[0]
    at = [each.place for each in rows] if official_row_order else [place_of(each.instruction) for each in rows]
    if max(at) >= len(fixed.difficulty):
        raise LookupError(f"more rows than the {len(fixed.difficulty)} instructions")
    chars = np.array([(each.baseline_chars, each.model_chars) for each in rows], dtype=np.float64)
    preferences = np.array([np.nan if each.preference is None else each.preference for each in rows])
    length = length_feature(chars[:, 0], chars[:, 1])
    preferences[~np.isfinite(length)] = np.nan
    keys = [each.instruction for each in rows]
    return length_controlled(preferences, np.nan_to_num(length), fixed.difficulty[at], fixed, keys)


def place_of(instruction: str | int) -> int:
    """The number of an instruction among the 805, from 0. Raises LookupError where it is none of them."""
    if isinstance(instruction, int):
        return instruction
    found = _places().get(" ".join(instruction.split()))
    if found is None:
        raise LookupError(f"an instruction is not one of AlpacaEval's 805: {instruction[:40]!r}")
    return found


@lru_cache(maxsize=1)
def _places() -> dict[str, int]:
    return {" ".join(row["instruction"].split()): place for place, row in enumerate(data.rows("alpaca_eval/baseline"))}


def gamed() -> tuple[Gamed, bool]:
    """What the fit knows in advance, and whether it is the recovered rows. Raises MissingData."""
    recovered = data.find(GAMED) is None and data.find(RECOVERED) is not None
    return _gamed(RECOVERED if recovered else GAMED), recovered


@lru_cache(maxsize=2)
def _gamed(name: str) -> Gamed:
    rows = data.rows(name)
    difficulty: dict[int, float] = {}
    for row in rows:
        difficulty.setdefault(int(row["index"]), float(row["instruction_difficulty"]))
    length = np.tanh(_column(rows, "std_delta_len"))
    features = np.column_stack([length, _column(rows, "instruction_difficulty"), np.zeros(len(rows))])
    ordered = np.array([difficulty[place] for place in range(len(difficulty))])
    return Gamed(ordered, features, _column(rows, "preference"))


def _column(rows: Sequence[data.Row], name: str) -> Floats:
    return np.array([float(row[name]) for row in rows])
