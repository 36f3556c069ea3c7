import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlhf_bench.harness.errors import UserError
from rlhf_bench.suites.judged import Choice, Scored, score
from rlhf_bench.suites.judged.arena_hard import Battle, battles, clustered
from rlhf_bench.suites.judged.arena_style import Style, fit_logistic, style_control

Write = Callable[..., Path]
LABELS = ["A>>B", "A>B", "A=B", "B>A", "B>>A", None]


def old(question: str, *labels: str | None, **fields: Any) -> dict[str, Any]:
    games = [{"user_prompt": "", "judgment": "", "score": label} for label in labels]
    return {"question_id": question, "model": "mine", "judge": "gpt", "games": games, **fields}


def new(uid: str, *labels: str | None, **fields: Any) -> dict[str, Any]:
    games = [None if label is None else {"score": label, "judgment": {"answer": ""}} for label in labels]
    return {"uid": uid, "category": "hard_prompt", "judge": "gpt-4.1", "model": "mine", "games": games, **fields}


def one(file: Path, **choice: Any) -> Scored:
    (found,) = score("arena_hard", [file], Choice(**choice))
    return found


def test_gpt_4_0613_has_its_published_score(mirror: Path) -> None:
    found = one(mirror / "arena_hard/judgments/battles_gpt-4-1106-preview.jsonl.gz", model="gpt-4-0613")
    assert found.metrics["score"].value == pytest.approx(37.902, abs=0.0005)
    assert found.metrics["score_published"].value == 37.9
    low, high = found.metrics["score_published"].low, found.metrics["score_published"].high
    assert low == pytest.approx(35.5, abs=1) and high == pytest.approx(40.2, abs=1)  # type: ignore[operator]
    assert found.metrics["score"].se > 1.5 * (high - low) / 3.92  # type: ignore[operator]


def test_the_closed_form_is_the_bradley_terry_fit(mirror: Path) -> None:
    sklearn = pytest.importorskip("sklearn.linear_model")
    file = mirror / "arena_hard/judgments/battles_gpt-4-1106-preview.jsonl.gz"
    rows = [json.loads(line) for line in gzip.decompress(file.read_bytes()).splitlines()]
    names = sorted({name for row in rows for name in (row["model_a"], row["model_b"])})
    design = np.zeros((2 * len(rows), len(names)))
    won = np.zeros(2 * len(rows))
    for number, row in enumerate(rows):
        for copy in (number, number + len(rows)):
            design[copy, names.index(row["model_a"])] = np.log(10)
            design[copy, names.index(row["model_b"])] = -np.log(10)
            won[copy] = row["winner"] == "model_a" or (row["winner"] == "tie" and copy == number)
    fit = sklearn.LogisticRegression(C=np.inf, fit_intercept=False, tol=1e-8).fit(design, won).coef_[0]
    strength = dict(zip(names, fit, strict=True))
    for each in score("arena_hard", [file], Choice()):
        theirs = 100 / (1 + 10 ** (strength["gpt-4-0314"] - strength[each.model]))
        assert each.metrics["score"].value == pytest.approx(theirs, abs=1e-3)


def test_raw_judgments_score_as_their_battles(mirror: Path, written: Write) -> None:
    file = mirror / "arena_hard/judgments/bagel-8b-v1.0.judge_DeepSeek-R1-Distill-Llama-70B.jsonl.gz"
    expanded = []
    for each in battles([file]):
        winner = {None: "", 0.0: "model_a", 0.5: "tie", 1.0: "model_b"}[each.outcome]
        fight = {"question_id": each.prompt, "model_a": each.baseline, "model_b": each.model, "winner": winner}
        expanded += [fight] * int(each.weight)
    judged, fought = one(file), one(written(expanded))
    assert (judged.graded, judged.ungraded, judged.judge) == (354, 8, "DeepSeek-R1-Distill-Llama-70B")
    assert judged.metrics["score"].value == pytest.approx(fought.metrics["score"].value)
    assert judged.metrics["score"].se == pytest.approx(fought.metrics["score"].se)
    assert judged.metrics["score_published"].value == fought.metrics["score_published"].value


def test_games_are_swapped_weighted_and_counted_as_v01_does(written: Write) -> None:
    """A>>B in game 1 is three losses; B>A in game 2 is a loss, A=B half a win; a failed game leaves the other."""
    rows = [old("1", "A>>B", "B>A"), old("2", "A=B", None), old("3", "B>A")]
    found = one(written(rows))
    assert found.metrics["score"].value == pytest.approx(100 * (0 + 0 + 0.5 + 1) / 6)
    assert (found.graded, found.ungraded, found.baseline) == (4, 1, "gpt-4-0314")


def test_v20_leaves_out_a_prompt_whole_and_reads_its_other_labels(written: Write) -> None:
    rows = [new("1", "A<<B", "A>B"), new("2", "A>B", None), new("3", "B=A", "B<A")]
    found = one(written(rows))
    assert found.metrics["score"].value == pytest.approx(100 * (3 + 1 + 0.5 + 1) / 6)
    assert (found.graded, found.ungraded, found.baseline) == (4, 2, "o3-mini-2025-01-31")
    assert "Arena-Hard v2.0" in found.notes


def test_the_two_categories_of_v20_are_two_scores_with_two_baselines(written: Write) -> None:
    rows = [new("1", "B>A", "A>B"), new("2", "A>B", "B>A", category="creative_writing")]
    found = one(written(rows))
    assert found.metrics["score_hard_prompt"].value == 100
    assert found.metrics["score_creative_writing"].value == 0
    assert "score" not in found.metrics
    assert found.baseline == "o3-mini-2025-01-31, gemini-2.0-flash-001"


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([old("1", "A>B", games=[1, 2, 3])], "should be a list of one or two games"),
        ([old("1", "A>B", games=[1])], "should hold objects with a 'score'"),
        ([old("1", "A>B", games=[{"score": 3}])], "should hold objects with a 'score'"),
        ([old("1", "A>B"), old("1", "A>B")], "row 2: the prompt of row 1 again, for mine"),
        ([old("1", "A>B"), old("2", "A>B", judge="other")], "mix 2 judges (gpt, other)"),
        ([old("1", "A>B"), new("2", "A>B", "A>B", judge="gpt")], "mix 2 versions (v0.1, v2.0)"),
        ([old("1", "A>B"), old("2", "A>B", baseline="b")], "mix 2 baselines (b, gpt-4-0314)"),
        ([new("1", "A>B", "A>B", category="poems")], "field 'baseline'"),
        ([{"question_id": "1", "model_a": "a", "model_b": "b", "winner": "me"}], "field 'winner' is 'me'"),
        ([old("1", "A>B", model=None)], "field 'model' is None"),
    ],
)
def test_a_broken_row_is_one_line(rows: list[dict[str, Any]], said: str, written: Write) -> None:
    with pytest.raises(UserError) as caught:
        score("arena_hard", [written(rows)], Choice())
    assert said in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("games", [None, []])
def test_a_row_without_games_is_ungraded_and_the_others_count(games: Any, written: Write) -> None:
    rows = [old("1", "A>B", "B>A"), old("2", "A>B", "B>A") | {"games": games}]
    found = one(written(rows, "a.jsonl"))
    assert (found.graded, found.ungraded) == (2, 2)
    assert found.metrics["score"].value == one(written(rows[:1], "b.jsonl")).metrics["score"].value


def test_a_file_of_failed_games_has_no_score(written: Write) -> None:
    found = one(written([old("1", None, None)]))
    assert found.metrics["score"].value is None and (found.graded, found.ungraded) == (0, 2)


@given(st.lists(st.tuples(st.sampled_from([0.0, 0.5, 1.0]), st.sampled_from([1.0, 3.0])), min_size=4, max_size=60))
def test_the_interval_holds_the_score_and_copies_of_a_verdict_add_nothing(rows: list[tuple[float, float]]) -> None:
    made = [Battle("m", "b", "j", "", str(number // 2), *each, "v0.1") for number, each in enumerate(rows)]
    found = clustered(made)
    if found.low is not None and found.high is not None and found.mean is not None:
        assert found.low <= found.mean <= found.high
    twice = clustered([each for each in made for _ in range(2)])
    assert twice.se == pytest.approx(found.se) and twice.mean == pytest.approx(found.mean)


def made_up(models: int, prompts: int, seed: int = 0) -> tuple[list[Battle], dict[str, dict[str, Style]]]:
    rng = np.random.default_rng(seed)
    names = [f"m{number}" for number in range(models)]
    styles = {
        name: {
            str(q): Style(*(float(x) for x in (rng.integers(50, 900), *rng.integers(0, 9, 3)))) for q in range(prompts)
        }
        for name in ("base", *names)
    }
    rows = [
        Battle(name, "base", "j", "", str(q), float(rng.choice([0.0, 0.5, 1.0])), float(rng.choice([1.0, 3.0])), "v0.1")
        for name in names
        for q in range(prompts)
        for _ in range(2)
    ]
    return rows, styles


def test_v01_style_control_is_scikit_learns_converged_fit() -> None:
    sklearn = pytest.importorskip("sklearn.linear_model")
    rows, styles = made_up(2, 150)
    copies = [each for each in rows for _ in range(int(each.weight))]
    difference = np.array(
        [
            [(a - b) / (a + b + 1) for a, b in zip(styles["base"][e.prompt], styles[e.model][e.prompt], strict=True)]
            for e in copies
        ]
    )
    standard = (difference - difference.mean(axis=0)) / difference.std(axis=0)
    one_hot = np.array([[1, -(e.model == "m0"), -(e.model == "m1")] for e in copies]) * np.log(10)
    design = np.concatenate([np.column_stack([one_hot, standard])] * 2)
    won = np.concatenate([[e.outcome in (0.0, 0.5) for e in copies], [e.outcome == 0.0 for e in copies]])
    fit = sklearn.LogisticRegression(fit_intercept=False, tol=1e-12, max_iter=10_000).fit(design, won).coef_[0]
    found = style_control(rows, styles, penalised=True)
    for number, model in enumerate(("m0", "m1"), 1):
        assert found[model].score.value == pytest.approx(100 / (1 + 10 ** (fit[0] - fit[number])), abs=1e-3)


def test_v20_style_control_is_the_unpenalised_fit() -> None:
    sklearn = pytest.importorskip("sklearn.linear_model")
    rows, styles = made_up(2, 150, seed=1)
    copies = [each for each in rows for _ in range(int(each.weight))]

    def features(a: Style, b: Style) -> list[float]:
        """Tokens as they are; headers, lists and bolds per token first."""
        dense = [(x / (a.tokens + 1), y / (b.tokens + 1)) for x, y in zip(a[1:], b[1:], strict=True)]
        return [(a.tokens - b.tokens) / (a.tokens + b.tokens), *((x - y) / (x + y + 1) for x, y in dense)]

    raw = np.array([features(styles[each.model][each.prompt], styles["base"][each.prompt]) for each in copies])
    standard = (raw - raw.mean(axis=0)) / raw.std(axis=0, ddof=1)
    one_hot = np.array([[each.model == "m0", each.model == "m1"] for each in copies], dtype=float)
    design = np.concatenate([np.column_stack([one_hot, standard])] * 2)
    won = np.repeat([1, 0], len(copies))
    share = np.array([each.outcome for each in copies], dtype=float)
    fit = sklearn.LogisticRegression(C=np.inf, fit_intercept=False, tol=1e-10, max_iter=10_000)
    fit.fit(design, won, sample_weight=np.concatenate([share, 1 - share]))
    found = style_control(rows, styles, penalised=False)
    for number, model in enumerate(("m0", "m1")):
        assert found[model].score.value == pytest.approx(100 / (1 + np.exp(-fit.coef_[0][number])), abs=1e-3)


def test_style_control_of_no_style_is_the_plain_score() -> None:
    rows, styles = made_up(1, 100)
    same = {name: {q: Style(100.0, 1.0, 1.0, 1.0) for q in each} for name, each in styles.items()}
    found = style_control(rows, same, penalised=False)["m0"]
    plain = clustered(rows)
    assert found.score.value == pytest.approx(100 * (plain.mean or 0))
    assert found.score.se == pytest.approx(100 * (plain.se or 0), rel=1e-6)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), certain=st.booleans())
def test_a_fit_has_no_slope_left(seed: int, certain: bool) -> None:
    rng = np.random.default_rng(seed)
    features, weights = rng.normal(size=(40, 4)), rng.integers(0, 4, (3, 40)).astype(float)
    wins = weights * (rng.integers(0, 2, (3, 40)) if certain else rng.uniform(size=(3, 40)))
    found = fit_logistic(features, wins, weights, 1.0)
    slope = (weights / (1 + np.exp(-found @ features.T)) - wins) @ features + found
    assert np.abs(slope).max() < 1e-6


def test_style_control_from_answer_files(written: Write) -> None:
    rows = [old(str(number), "A>B" if number % 3 else "B>A", "A=B") for number in range(30)]
    facts = {"header_count": {"h1": 1, "h2": 0}, "list_count": {"ordered": 2}, "bold_count": {"**": 1, "__": 0}}
    answers = [
        written(
            [
                {"question_id": str(q), "model_id": name, "conv_metadata": {"token_len": length + 7 * q, **facts}}
                for q in range(30)
            ],
            f"{name}.jsonl",
        )
        for name, length in (("mine", 100), ("gpt-4-0314", 250))
    ]
    found = one(written(rows), answers=tuple(answers))
    assert {"style_controlled_score", "style_controlled_score_published"} <= set(found.metrics)
    with pytest.raises(UserError, match="no answer of gpt-4-0314 to prompt 0"):
        one(written(rows), answers=tuple(answers[:1]))
