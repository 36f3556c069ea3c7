import csv
import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlhf_bench.suites.judged import Choice, alpaca_eval, score
from rlhf_bench.suites.judged.alpaca_eval import Annotation, fit, gamed, read_annotations
from rlhf_bench.suites.judged.length_controlled import (
    CANDIDATES_C,
    Floats,
    bootstrap,
    lc_difference,
    length_feature,
    sigmoid,
)
from rlhf_bench.suites.judged.length_controlled import fit as solve

Board = Mapping[str, Mapping[str, str]]


@pytest.fixture(scope="module")
def annotated(mirror: Path) -> dict[str, list[Annotation]]:
    found: dict[str, list[Annotation]] = {}
    for each in read_annotations([mirror / "alpaca_eval/annotations_reduced.csv.gz"]):
        found.setdefault(each.model, []).append(each)
    return found


def arrays(rows: list[Annotation]) -> tuple[Floats, Floats, Floats]:
    preferences = np.array([np.nan if each.preference is None else each.preference for each in rows])
    length = length_feature(
        np.array([each.baseline_chars for each in rows]), np.array([each.model_chars for each in rows])
    )
    return preferences, length, gamed()[0].difficulty[[int(each.instruction) for each in rows]]


def test_every_published_lc_win_rate_comes_out_within_015_and_most_within_001(here: Path, leaderboard: Board) -> None:
    file = here / "alpaca_eval/annotations_reduced.csv.gz"
    found = score("alpaca_eval", [file], Choice(official_row_order=True))
    off = {
        each.model: each.metrics["lc_win_rate"].value - float(leaderboard[each.model]["length_controlled_winrate"])  # type: ignore[operator]
        for each in found
        if each.model in leaderboard
    }
    assert len(found) == 40 and len(off) == 39
    assert max(map(abs, off.values())) <= 0.15
    assert sum(abs(each) <= 0.01 for each in off.values()) >= 26


def test_the_published_standard_error_is_reproduced_and_is_too_small(here: Path, leaderboard: Board) -> None:
    found = score("alpaca_eval", [here / "alpaca_eval/annotations_reduced.csv.gz"], Choice())
    by_name = {each.model: each.metrics for each in found}
    checked = 0
    for model, metrics in by_name.items():
        published = leaderboard.get(model, {}).get("lc_standard_error")
        if published:
            assert metrics["lc_standard_error_published"].value == pytest.approx(float(published), abs=1e-4)
            assert metrics["lc_win_rate"].se > 1.7 * float(published)  # type: ignore[operator]
            checked += 1
    assert checked >= 4


def test_the_published_weights_give_the_published_rates(here: Path, leaderboard: Board) -> None:
    with (here / "alpaca_eval/published/glm_weights_length_controlled_v1.csv").open() as file:
        weights = {row[""]: [float(value) for value in list(row.values())[1:]] for row in csv.DictReader(file)}
    difficulty = gamed()[0].difficulty
    off = [
        abs(
            100 * float(sigmoid(w[1] * difficulty + w[2]).mean())
            - float(leaderboard[model]["length_controlled_winrate"])
        )
        for model, w in weights.items()
        if model in leaderboard and leaderboard[model]["length_controlled_winrate"]
    ]
    assert sum(each < 1e-6 for each in off) == 189 and len(off) == 199


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    rows=st.integers(1, 60),
    c=st.sampled_from([float(each) for each in CANDIDATES_C]),
    certain=st.booleans(),
)
def test_a_fit_meets_the_conditions_of_an_l1_optimum(seed: int, rows: int, c: float, certain: bool) -> None:
    rng = np.random.default_rng(seed)
    features = rng.normal(size=(rows, 3)) * rng.choice([0.1, 1.0, 3.0], size=3)
    labels = rng.integers(0, 2, rows).astype(float) if certain else rng.uniform(size=rows)
    omega = rng.choice([0.1, 1.0], size=rows)
    weights = solve(features, labels, omega[None], np.array([c]), np.zeros((1, 3)), tolerance=1e-9)[0]
    pull = c * (omega * (sigmoid(features @ weights) - labels)) @ features
    for weight, gradient in zip(weights, pull, strict=True):
        if weight:
            assert gradient == pytest.approx(-np.sign(weight), abs=1e-5)
        else:
            assert abs(gradient) <= 1 + 1e-6


@pytest.mark.parametrize("model", ["vicuna-7b-v1.5", "NullModel", "FuseChat-Llama-3.1-8B-Instruct"])
def test_the_standard_error_is_that_of_refitted_resamples(
    model: str, annotated: dict[str, list[Annotation]], here: Path
) -> None:
    rows = annotated[model]
    found = fit(rows)
    drawn = bootstrap(*arrays(rows), gamed()[0], found, resamples=400)
    assert found.se == pytest.approx(drawn.std(ddof=1), rel=0.12)
    assert drawn.mean() == pytest.approx(found.score, abs=3 * found.se / 400**0.5 + 0.002)


def test_a_paired_difference_is_narrower_than_an_unpaired_and_that_of_resamples(
    annotated: dict[str, list[Annotation]], here: Path
) -> None:
    some = [annotated[f"FuseChat-{name}-Instruct"] for name in ("Llama-3.1-8B", "Qwen-2.5-7B")]
    first, second = (fit(rows) for rows in some)
    difference, se = lc_difference(first, second)
    assert difference == pytest.approx(first.score - second.score)
    assert se < 0.85 * (first.se**2 + second.se**2) ** 0.5
    a, b = (
        bootstrap(*arrays(rows), gamed()[0], one, resamples=400, seed=3)
        for rows, one in zip(some, (first, second), strict=True)
    )
    assert se == pytest.approx((a - b).std(ddof=1), rel=0.12)
    assert lc_difference(first, first) == (0.0, 0.0)


def test_a_missing_row_shifts_nothing_unless_their_row_order_is_asked_for(
    annotated: dict[str, list[Annotation]], here: Path
) -> None:
    whole = fit(annotated["vicuna-7b"]).score
    without = [each for each in annotated["vicuna-7b"] if each.instruction != 5]
    assert fit(without).score == pytest.approx(whole, abs=0.0005)
    assert fit(list(reversed(without))).score == pytest.approx(whole, abs=0.0005)
    shifted = annotated["text_davinci_001"]
    assert fit(shifted).score != pytest.approx(fit(shifted, official_row_order=True).score, abs=0.001)


def test_where_the_official_order_differs_its_figure_stands_beside(here: Path, leaderboard: Board) -> None:
    file = here / "alpaca_eval/annotations_reduced.csv.gz"
    (found,) = score("alpaca_eval", [file], Choice(model="text_davinci_001"))
    published = float(leaderboard["text_davinci_001"]["length_controlled_winrate"])
    assert found.metrics["lc_win_rate_published"].value == pytest.approx(published, abs=0.15)
    assert found.metrics["lc_win_rate"].value == pytest.approx(published - 2.5, abs=0.15)
    assert "rows are missing" in found.notes[-1]


def test_rows_without_a_verdict_are_scored_by_the_fit_of_the_others(
    annotated: dict[str, list[Annotation]], here: Path
) -> None:
    rows = annotated["vicuna-7b"]
    preferences, length, difficulty = arrays(rows)
    preferences[::50] = np.nan
    fixed = gamed()[0]
    found = alpaca_eval.length_controlled(preferences, length, difficulty, fixed, range(len(rows)))
    assert len(found.influence) == len(rows)
    assert found.influence.mean() == pytest.approx(0, abs=0.02)
    assert found.score == pytest.approx(fit(rows).score, abs=0.01)


@pytest.mark.filterwarnings("ignore")  # theirs
def test_alpaca_evals_own_fit_of_the_same_rows_agrees(
    annotated: dict[str, list[Annotation]], here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their liblinear stops at a tolerance of 1e-4: converged, it is ours; as shipped, it is up to 0.05 points away."""
    pandas = pytest.importorskip("pandas")
    os.environ.setdefault("OPENAI_API_KEY", "none")
    theirs = pytest.importorskip("alpaca_eval.metrics.glm_winrate", reason="alpaca_eval is not installed")
    file = here / "alpaca_eval/recovered/df_gamed_surrogate.csv.gz"
    monkeypatch.setattr(theirs, "hf_hub_download", lambda **_: file)
    plain = theirs.fit_LogisticRegressionCV
    for model in ("vicuna-7b-v1.5", "NullModel", "FuseChat-Llama-3.1-8B-Instruct", "claude-2.1_concise"):
        rows = annotated[model]
        table = pandas.DataFrame(
            {
                "preference": [1 + (each.preference or 0.0) for each in rows],
                "output_1": ["x" * int(each.baseline_chars) for each in rows],
                "output_2": ["x" * int(each.model_chars) for each in rows],
                "generator_1": "gpt4_1106_preview",
                "generator_2": model,
            }
        )
        ours = fit(rows)
        for tolerance, points in ((1e-4, 0.05), (1e-9, 1e-5)):
            monkeypatch.setattr(
                theirs, "fit_LogisticRegressionCV", lambda *a, tol=tolerance, **k: plain(*a, tol=tol, **k)
            )
            found = theirs.get_length_controlled_winrate(
                table.copy(), save_weights_dir=None, is_warn_extreme_changes=False
            )
            assert 100 * ours.score == pytest.approx(found["length_controlled_winrate"], abs=points)
            assert 100 * ours.published_se == pytest.approx(found["lc_standard_error"], abs=points)


def test_a_row_without_a_length_leaves_the_others_theirs() -> None:
    lengths = np.array([10.0, 250.0, 90.0, np.nan])
    whole = length_feature(np.full(3, 100.0), lengths[:3])
    partly = length_feature(np.full(4, 100.0), lengths)
    assert np.array_equal(partly[:3], whole)
    assert np.isnan(partly[3])
    assert len(set(whole)) == 3
