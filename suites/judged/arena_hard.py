"""Arena-Hard from judgments or battles: the score against the baseline, in percent, with and without style control.

Official: lmarena/arena-hard-auto, show_result.py at 0489bf38 (v0.1) and at 196f6b82 (v2.0). A prompt is judged twice,
the answers swapped; in game 1 the baseline is A. A strong verdict (>>) counts three times, a tie half.
- v0.1: one baseline, gpt-4-0314; a game without a verdict is left out, the other stays. The official score is a
  Bradley-Terry fit, which against one baseline equals the weighted mean, so it is computed as that.
- v2.0: by category, each with its baseline; a prompt with a game that failed is left out whole. The official score
  is the mean of 100 bootstraps of the same mean, and its interval is a 90% one.
Differs: the interval is clustered by prompt; theirs resamples verdicts, three copies of a strong one too, as if they
were independent. `score_published` holds their figures.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from rlhf_bench.harness.errors import UserError
from rlhf_bench.harness.stats.intervals import Interval, by_cluster, mean_interval
from rlhf_bench.suites.judged import Choice, Metric, Scored, one_of, said_ungraded
from rlhf_bench.suites.judged.arena_style import Controlled, style_control, style_of
from rlhf_bench.suites.judged.files import Row, read
from rlhf_bench.suites.judged.length_controlled import Floats, sigmoid

STRONG = 3.0
REPLICATES = 100
INTERVAL_V20 = "score_published is the mean of 100 bootstraps, and its bounds are at 90%"
V01, V20 = "v0.1", "v2.0"
BASELINE_V01 = "gpt-4-0314"
BASELINES_V20: Mapping[str, str] = {
    "hard_prompt": "o3-mini-2025-01-31",
    "coding": "o3-mini-2025-01-31",
    "math": "o3-mini-2025-01-31",
    "creative_writing": "gemini-2.0-flash-001",
    "arena-hard-v0.1": BASELINE_V01,
}
WINNERS: Mapping[str, float] = {"model_a": 0.0, "model_b": 1.0, "tie": 0.5, "tie (bothbad)": 0.5}
VERDICTS_V01: Mapping[str, tuple[float, float]] = {
    "A>>B": (1.0, STRONG),
    "A>B": (1.0, 1.0),
    "A=B": (0.5, 1.0),
    "B>A": (0.0, 1.0),
    "B>>A": (0.0, STRONG),
}
"""What A gets, and how often it counts."""
VERDICTS_V20: Mapping[str, tuple[float, float]] = {
    **VERDICTS_V01,
    "A<<B": (0.0, STRONG),
    "A<B": (0.0, 1.0),
    "B=A": (0.5, 1.0),
    "B<A": (1.0, 1.0),
    "B<<A": (1.0, STRONG),
}


@dataclass(frozen=True, slots=True)
class Battle:
    """One verdict: what the model got of it, and how often it counts. `outcome` None is a game without a verdict."""

    model: str
    baseline: str
    judge: str
    category: str
    prompt: str
    outcome: float | None
    weight: float
    version: str


def score(files: Sequence[Path], choice: Choice) -> list[Scored]:
    """One Scored for each model. Raises UserError: a broken row, a prompt twice; judges, versions, baselines mixed."""
    found = battles(files, choice.version)
    one_of("version", [each.version for each in found], None)
    judge = one_of("judge", [each.judge for each in found], choice.judge)
    found = [each for each in found if each.judge == judge]
    if choice.baseline is not None:
        one_of("baseline", [each.baseline for each in found], choice.baseline)
        found = [each for each in found if each.baseline == choice.baseline]
    for category in {each.category for each in found}:
        one_of("baseline", [each.baseline for each in found if each.category == category], None)
    controlled = _style_controlled(found, choice.answers)
    published = _published_v01(found) if found and found[0].version == V01 else {}
    models = dict.fromkeys(each.model for each in found)
    return [
        _scored([each for each in found if each.model == model], controlled, published.get(model)) for model in models
    ]


def _style_controlled(found: Sequence[Battle], answers: Sequence[Path]) -> dict[tuple[str, str], Controlled]:
    """By category and model; empty without answers. Raises UserError where an answer that was judged is missing."""
    if not answers:
        return {}
    styles = style_of(answers)
    controlled: dict[tuple[str, str], Controlled] = {}
    for category in dict.fromkeys(each.category for each in found):
        graded = [each for each in found if each.category == category and each.outcome is not None]
        for each in graded:
            for model in (each.model, each.baseline):
                if each.prompt not in styles.get(model, {}):
                    raise UserError(f"style control: no answer of {model} to prompt {each.prompt} in the answers given")
        if graded:
            parts = style_control(graded, styles, penalised=graded[0].version == V01)
            controlled |= {(category, model): one for model, one in parts.items()}
    return controlled


def battles(files: Sequence[Path], version: str | None = None) -> list[Battle]:
    """All verdicts in these files, in their order. Raises UserError as `score`."""
    found: list[Battle] = []
    seen: dict[tuple[str, ...], Row] = {}
    for path in files:
        for row in read(path):
            if "winner" in row.fields:
                found.append(_battle(row, version or V01))
                continue
            own = version or (V20 if "uid" in row.fields else V01)
            games = _games(row, own)
            first = games[0]
            before = seen.setdefault((first.judge, first.model, first.category, first.prompt), row)
            if before is not row:
                where = f"row {before.number}" + (f" of {before.path}" if before.path != path else "")
                raise UserError(f"{path}, row {row.number}: the prompt of {where} again, for {first.model}")
            found += games
    if not found:
        raise UserError(f"no judgment in {', '.join(map(str, files))}")
    return found


def _battle(row: Row, version: str) -> Battle:
    winner = row.text("winner")
    if winner not in WINNERS:
        raise row.wrong("winner", f"should be one of {', '.join(WINNERS)}")
    names = (row.text("model_b"), row.text("model_a"), str(row.fields.get("judge") or ""))
    category = str(row.fields.get("category") or "")
    return Battle(*names, category, row.text("question_id", "uid"), WINNERS[winner], 1.0, version)


def _games(row: Row, version: str) -> list[Battle]:
    """The games of one prompt, at least one: where there is none, two that failed. In game 1 the baseline is A."""
    games = row.fields.get("games", "")
    if games is None or games == []:
        games = [None, None]
    if not isinstance(games, list) or not 1 <= len(games) <= 2:
        raise row.wrong("games", "should be a list of one or two games")
    category = str(row.fields.get("category") or "")
    default = BASELINES_V20.get(category, "") if version == V20 else BASELINE_V01
    baseline = str(row.fields.get("baseline") or default)
    if not baseline:
        raise row.wrong("baseline", f"should be text, or 'category' one of {', '.join(BASELINES_V20)}")
    owner = row.text("model"), baseline, str(row.fields.get("judge") or ""), category, row.text("question_id", "uid")
    verdicts = VERDICTS_V20 if version == V20 else VERDICTS_V01
    found = []
    for place, game in enumerate(games):
        got = verdicts.get(_verdict(row, game))
        if got is None:
            found.append(Battle(*owner, None, 0.0, version))
        else:
            found.append(Battle(*owner, got[0] if place == 1 else 1.0 - got[0], got[1], version))
    if version == V20 and (len(found) < 2 or any(each.outcome is None for each in found)):
        return [Battle(*owner, None, 0.0, version)] * 2
    return found


def _verdict(row: Row, game: Any) -> str:
    """The label of a game, or "" for a game that failed."""
    label = game.get("score") if isinstance(game, dict) else None
    if not (game is None or isinstance(game, dict)) or not (label is None or isinstance(label, str)):
        raise row.wrong("games", "should hold objects with a 'score' such as A>B, or null")
    return label or ""


def _scored(
    rows: Sequence[Battle], controlled: Mapping[tuple[str, str], Controlled], published: Metric | None
) -> Scored:
    first = rows[0]
    graded = [each for each in rows if each.outcome is not None]
    by_category: dict[str, list[Battle]] = {}
    for each in graded:
        by_category.setdefault(each.category, []).append(each)
    metrics: dict[str, Metric] = {}
    notes = list(said_ungraded(len(graded), len(rows) - len(graded)))
    for category, some in by_category.items():
        name = f"_{category}" if len(by_category) > 1 else ""
        metrics[f"score{name}"] = Metric.of(clustered(some), 100)
        metrics[f"score_published{name}"] = published or _published_v20(some)
        style = controlled.get((category, first.model))
        if style:
            metrics[f"style_controlled_score{name}"] = style.score
            metrics[f"style_controlled_score_published{name}"] = style.published
        metrics[f"prompts{name}"] = Metric(float(len({each.prompt for each in some})))
    if not metrics:
        metrics["score"] = Metric(None)
    baselines = ", ".join(dict.fromkeys(each.baseline for each in rows))
    return Scored(
        "arena_hard",
        first.model,
        metrics,
        len(graded),
        len(rows) - len(graded),
        first.judge,
        baselines,
        (f"Arena-Hard {first.version}", *notes, *((INTERVAL_V20,) if first.version == V20 else ())),
    )


def clustered(graded: Sequence[Battle]) -> Interval:
    """The weighted mean of what the model got, in [0, 1], with its interval over prompts."""
    outcomes, weights = _arrays(graded)
    prompts = [each.prompt for each in graded]
    sums, _ = by_cluster(outcomes * weights, prompts)
    sizes, _ = by_cluster(weights, prompts)
    return mean_interval(sums, sizes, lowest=0.0, highest=1.0)


def _arrays(graded: Sequence[Battle]) -> tuple[Floats, Floats]:
    return (
        np.array([each.outcome for each in graded], dtype=np.float64),
        np.array([each.weight for each in graded], dtype=np.float64),
    )


def _published_v01(rows: Sequence[Battle]) -> dict[str, Metric]:
    """By model, the score to two decimals and the percentiles of 100 row bootstraps of all models together.

    Seed 42, as in their utils_math.py: the same file gives the same replicates.
    """
    graded = [each for each in rows if each.outcome is not None]
    outcomes, weights = _arrays(graded)
    copies = weights.astype(np.intp)
    outcome = np.repeat(outcomes, copies)
    names, code = np.unique([each.model for each in graded], return_inverse=True)
    model = np.repeat(code, copies)
    if not len(outcome):
        return {}
    rng = np.random.RandomState(42)
    drawn = np.empty((REPLICATES, len(names)))
    for replicate in range(REPLICATES):
        picks = rng.randint(0, len(outcome), size=len(outcome))
        count = np.bincount(model[picks], minlength=len(names))
        with np.errstate(invalid="ignore"):
            drawn[replicate] = np.bincount(model[picks], weights=outcome[picks], minlength=len(names)) / count
    found = {}
    for place, name in enumerate(names):
        point = float(outcome[model == place].mean())
        share = np.clip(drawn[:, place], 1e-12, 1 - 1e-12)
        bounds = sigmoid(np.nanpercentile(np.log(share / (1 - share)), (2.5, 97.5)))  # theirs are of the ratings
        found[str(name)] = Metric(*(round(100 * float(each), 2) for each in (point, *bounds)))
    return found


def _published_v20(graded: Sequence[Battle]) -> Metric:
    """The mean of 100 row bootstraps with their 5th and 95th percentile. Theirs has no seed: it differs by chance."""
    outcomes, weights = _arrays(graded)
    outcome = np.repeat(outcomes, weights.astype(np.intp))
    picks = np.random.default_rng(0).integers(0, len(outcome), size=(REPLICATES, len(outcome)))
    drawn = outcome[picks].mean(axis=1)
    low, high = np.percentile(drawn, (5, 95))
    return Metric(100 * float(drawn.mean()), 100 * float(low), 100 * float(high))
