"""Where the spread of a difference comes from: twins, repeats, or what alike models are seen to differ by."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.harness.test_repeats import Guesser
from tests.harness.test_run import CHOICES, SUMS, TURNS, LongerWins

from rlhf_bench.harness.claims import RunData
from rlhf_bench.harness.compare import macro_average
from rlhf_bench.harness.errors import UnknownName, UserError
from rlhf_bench.harness.policy import Part
from rlhf_bench.harness.run import evaluate
from rlhf_bench.harness.spread import MEASURED, USUAL, asked_alike, find_twin, repeats_of, require_twin, spread
from rlhf_bench.harness.store import Run, Store
from rlhf_bench.harness.types import (
    Benchmark,
    Completion,
    EvalProtocol,
    Kind,
    Record,
    Request,
    Sample,
    Sampling,
    Score,
    Suite,
)

WARM = EvalProtocol("plain", seed=7, temperature=0.7)
OWN = Part(benchmark="own", metric="m")


def records(
    name: str, scores: Sequence[Sequence[float | None]], seed: int = 0, *, stratum: Sequence[str] = ()
) -> list[Record]:
    """An item for each row, answered as often as the row has scores."""
    found = []
    for number, row in enumerate(scores):
        for repeat, value in enumerate(row):
            item = f"{name}/{number}"
            own = f"{item}#{repeat + 1}" if len(row) > 1 else item
            tags = {"cluster": item} if len(row) > 1 else {}
            tags |= {"stratum": stratum[number]} if stratum else {}
            sampling = Sampling(temperature=0.7, seed=seed + 1_000_003 * repeat)
            sample = Sample(own, (Request(own, f"question {number}", sampling),), "r", tags)
            said = Completion(own, 0, f"{seed} {repeat} {value}", "stop", 1)
            score = Score(own, value, "" if value is not None else "lost", {"other": 0.5})
            found.append(Record(name, own, sample, (said,), score))
    return found


def run_of(
    given: Mapping[str, Sequence[Record]],
    kind: Kind = "binary",
    run_id: str = "run",
    metric: str = "m",
    **protocol: Any,
) -> RunData:
    facts = {name: {"version": "1", "metric": metric, "kind": kind} for name in given}
    manifest = {
        "protocol_digest": f"{protocol}",
        "judge_identity": None,
        "protocol": {"name": "x", "temperature": 0.7, **protocol},
        "benchmarks": facts,
        "limit": None,
    }
    return RunData(run_id, "c" * 64, manifest, given)


def drawn(chances: np.ndarray[Any, Any], repeats: int, seed: int) -> list[list[float]]:
    rng = np.random.default_rng(seed)
    return (rng.random((chances.size, repeats)) < chances[:, None]).astype(float).tolist()


# What is assumed


@pytest.mark.parametrize(("name", "share"), [("gsm8k", 0.12), ("mmlu", 0.10), ("arc_challenge", 0.08)])
def test_a_known_benchmark_has_its_usual_share_whatever_this_run_scored(name: str, share: float) -> None:
    run = run_of({name: records(name, [[1.0]] * 7 + [[0.0]] * 3)})
    found = spread([Part(benchmark=name, metric="m")], run)
    assert (found.variance, found.source, found.within) == (share, "assumed", None)
    assert found.binary and (found.items, found.ungraded, found.repeats) == (10, 0, 1)


def test_an_unknown_binary_benchmark_has_the_share_of_two_models_that_agree_by_half() -> None:
    run = run_of({"own": records("own", [[1.0]] * 70 + [[0.0]] * 28)})
    p = 71 / 100
    assert spread([OWN], run).variance == pytest.approx(2 * p * (1 - p) * 0.5)


@pytest.mark.parametrize("score", [0.0, 1.0])
def test_where_every_answer_is_right_or_wrong_the_next_may_not_be(score: float) -> None:
    found = spread([OWN], run_of({"own": records("own", [[score]] * 18)}))
    assert found.variance == pytest.approx(0.05 * 0.95)
    assert spread([OWN], run_of({"own": records("own", [[score]] * 18)}, "continuous")).variance > 0


def test_an_unknown_continuous_benchmark_has_the_spread_of_its_scores() -> None:
    values = np.random.default_rng(0).beta(2, 3, 300)
    found = spread([OWN], run_of({"own": records("own", [[v] for v in values])}, "continuous"))
    assert found.variance == pytest.approx(values.var())
    assert not found.binary


def test_alpaca_evals_win_rates_have_what_published_models_vary_by() -> None:
    given = {"alpaca_eval": records("alpaca_eval", [[0.2], [0.7], [0.4]])}
    found = spread([Part(benchmark="alpaca_eval", metric="m")], run_of(given, "continuous"))
    assert found.variance == pytest.approx(np.var([0.2, 0.7, 0.4]))
    rate = spread([Part(benchmark="alpaca_eval", metric="win_rate")], run_of(given, "continuous", metric="win_rate"))
    assert math.sqrt(rate.variance / 805) == pytest.approx(0.0145)
    assert rate.variance == MEASURED["alpaca_eval", "win_rate"]


def test_a_figure_varies_as_its_values_on_the_records_do() -> None:
    values = np.linspace(0.1, 0.9, 40)
    plain = run_of({"own": records("own", [[v] for v in values])}, "continuous")
    run = replace(plain, figures={"own": {"stretched": lambda rs, scores: [3 * score - 1 for score in scores]}})
    found = spread([Part(benchmark="own", metric="stretched")], run)
    assert found.variance == pytest.approx(9 * values.var())


def test_the_mean_of_unequal_strata_varies_more_than_the_mean_of_samples() -> None:
    """A macro average of parts with 10 and 90 samples: those of the small part weigh nine times as much."""
    strata = ["small"] * 10 + ["large"] * 90
    given = {"mmlu": records("mmlu", [[float(i % 2)] for i in range(100)], stratum=strata)}
    run = replace(run_of(given), figures={"mmlu": {"m,macro": macro_average}})
    plain, macro = (spread([Part(benchmark="mmlu", metric=name)], run).variance for name in ("m", "m,macro"))
    assert plain == 0.10
    weights = [(size, (100 / (2 * size)) ** 2 * size / (size - 1) * 99 / 100) for size in (10, 90)]
    assert macro == pytest.approx(0.10 * sum(size * weight for size, weight in weights) / 100)


# What is measured


@pytest.mark.parametrize("name", ["own", "gsm8k"])
def test_a_twin_shows_the_chance_in_an_answer_and_the_larger_is_taken(name: str) -> None:
    chances = np.random.default_rng(1).beta(1, 1, 2000)
    run, twin = (run_of({name: records(name, drawn(chances, 1, seed), seed)}, sampling_seed=seed) for seed in (0, 1))
    found = spread([Part(benchmark=name, metric="m")], run, replace(twin, run_id="twin"))
    expected = 2 * float((chances * (1 - chances)).mean())
    assert found.within == pytest.approx(expected, abs=0.03)
    assumed = USUAL.get(name, 0.25)
    assert (found.source == "twin") == (found.single == found.within) == (expected > assumed)
    assert found.single == pytest.approx(max(expected, assumed), abs=0.03)


def test_calm_answers_leave_the_rest_to_how_models_differ() -> None:
    chances = np.tile([0.02, 0.98], 1000)
    run, twin = (run_of({"gsm8k": records("gsm8k", drawn(chances, 1, seed), seed)}) for seed in (0, 1))
    found = spread([Part(benchmark="gsm8k", metric="m")], run, twin)
    assert (found.source, found.single) == ("assumed", 0.12)
    assert found.within == pytest.approx(2 * 0.02 * 0.98, abs=0.012)
    assert found.between == pytest.approx(0.12 - (found.within or 0.0))


@settings(max_examples=3, deadline=None)
@given(repeats=st.integers(2, 6), seed=st.integers(0, 1000))
def test_repeats_of_the_run_show_what_a_twin_would(repeats: int, seed: int) -> None:
    chances = np.random.default_rng(seed).beta(1, 2, 1000)
    run, twin = (
        run_of({"own": records("own", drawn(chances, repeats, s), s)}, repeats=repeats) for s in (seed, seed + 5000)
    )
    alone, paired = spread([OWN], run), spread([OWN], run, twin)
    assert alone.within == pytest.approx(2 * float((chances * (1 - chances)).mean()), rel=0.15)
    assert paired.within == pytest.approx(alone.within, rel=0.25)
    assert alone.repeats == repeats_of(run) == repeats
    assert alone.items == 1000 and not alone.binary


def test_the_spread_with_repeats_is_that_of_the_means_of_two_models() -> None:
    """Simulated: the candidate's own chances differ from the champion's, and both are answered four times."""
    rng = np.random.default_rng(3)
    base = rng.beta(1, 1, 40_000)
    moved = np.clip(base + rng.normal(0, 0.3, base.size), 0, 1)
    run, twin = (run_of({"own": records("own", drawn(base[:500], 4, seed), seed)}, repeats=4) for seed in (0, 1))
    found = spread([OWN], run, twin)
    within = float((base * (1 - base) + moved * (1 - moved)).mean())
    between = float((moved - base).var())
    d = np.mean(drawn(moved, 4, 8), axis=1) - np.mean(drawn(base, 4, 9), axis=1)
    assert d.var() == pytest.approx(between + within / 4, rel=0.03)
    assumed = replace(found, single=within + between, within=within)
    assert assumed.variance == pytest.approx(d.var(), rel=0.03)


def test_scored_choices_hold_no_chance_that_repeats_could_average_out(store: Store) -> None:
    suite = Suite("test", (CHOICES,))
    report = evaluate(suite, Guesser(), protocol=replace(WARM, repeats=3), store=store)
    run = RunData.load(store, report.run_id)
    found = spread([Part(benchmark="choices", metric="acc")], run)
    assert not found.generated and found.within == 0.0
    assert found.variance == found.single == found.between


# Parts together


def test_a_pool_is_the_items_of_its_parts_together() -> None:
    given = {"humaneval": records("humaneval", [[1.0], [0.0]] * 82), "mbpp": records("mbpp", [[1.0], [0.0]] * 250)}
    parts = [Part(benchmark=name, metric="m") for name in given]
    found = spread(parts, run_of(given))
    assert found.items == 664
    assert found.variance == pytest.approx((164 * 0.10 + 500 * 0.12) / 664)
    assert 100 * math.sqrt(found.variance / found.items) == pytest.approx(1.32, abs=0.005)


def test_strata_are_the_items_in_them_and_one_that_is_not_there_is_named() -> None:
    run = run_of({"own": records("own", [[1.0], [0.0], [1.0]], stratum=["a", "b", "b"])})
    assert spread([Part(benchmark="own", metric="m", strata=("b",))], run).items == 2
    with pytest.raises(UnknownName, match="no stratum of 'own' in run run named 'c'"):
        spread([Part(benchmark="own", metric="m", strata=("c",))], run)


def test_ungraded_samples_are_counted_and_take_part_in_nothing_else() -> None:
    run = run_of({"own": records("own", [[1.0], [0.0], [None], [1.0]])})
    found = spread([OWN], run)
    assert (found.items, found.ungraded) == (4, 1)
    with pytest.raises(UserError, match="none of 2 samples of run run is graded"):
        spread([OWN], run_of({"own": records("own", [[None], [None]])}))


def test_a_metric_that_the_run_lacks_or_that_no_gate_compares_is_named() -> None:
    run = run_of({"own": records("own", [[1.0], [0.0]])})
    assert spread([Part(benchmark="own", metric="other")], run).variance > 0
    with pytest.raises(UnknownName, match="no metric of 'own' named 'acc'"):
        spread([Part(benchmark="own", metric="acc")], run)
    with pytest.raises(UserError, match="m of run run is not from 0 to 1"):
        spread([OWN], run_of({"own": records("own", [[7.0], [0.5]])}, "continuous"))


# Twins


def measured(
    store: Store,
    protocol: EvalProtocol = WARM,
    benchmarks: Sequence[Benchmark] = (SUMS,),
    skill: float = 0.6,
    **more: Any,
) -> RunData:
    suite = Suite("test", tuple(benchmarks))
    report = evaluate(suite, Guesser(skill), protocol=protocol, store=store, judge=LongerWins(), **more)
    return RunData.load(store, report.run_id)


def test_a_twin_pairs_by_what_is_asked_whatever_its_seed_temperature_and_repeat(store: Store) -> None:
    run = measured(store, replace(WARM, repeats=2))
    twin = measured(store, replace(WARM, repeats=2, sampling_seed=4))
    require_twin(run, twin, ["sums"])
    ours, theirs = ({r.digest for r in each.records["sums"]} for each in (run, twin))
    assert not ours & theirs
    ours, theirs = ({asked_alike(r.sample) for r in each.records["sums"]} for each in (run, twin))
    assert ours == theirs and len(ours) == 12
    assert asked_alike(run.records["sums"][0].sample) == asked_alike(SUMS.load(WARM)[0])


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({}, "is its own twin"),
        ({"skill": 0.2}, "its 12 answers are the same"),
        ({"protocol": replace(WARM, sampling_seed=1, temperature=1.0)}, "protocol's temperature is 0.7 in the one"),
        ({"protocol": replace(WARM, sampling_seed=1, repeats=2)}, "protocol's repeats is None in the one and 2"),
        ({"protocol": replace(WARM, sampling_seed=1), "benchmarks": (TURNS,)}, "none of the policy's benchmarks"),
        (
            {"protocol": replace(WARM, sampling_seed=1), "benchmarks": (replace(SUMS, version="2"),)},
            "version of 'sums' is 1 in the one and 2 in the other",
        ),
        ({"protocol": replace(WARM, sampling_seed=1), "limit": 5}, ""),
    ],
)
def test_what_is_no_twin_is_refused_and_says_why(store: Store, change: dict[str, Any], says: str) -> None:
    run, other = measured(store), measured(store, **change)
    if "skill" in change:  # as greedy decoding would: other weights by name alone
        other = replace(run, run_id="greedy")
    if not says:
        return require_twin(run, other, ["sums"])
    with pytest.raises(UserError, match=says):
        require_twin(run, other, ["sums"])


def test_another_checkpoint_or_judge_is_no_twin_and_neither_are_scored_choices(store: Store) -> None:
    run, twin = measured(store), measured(store, replace(WARM, sampling_seed=1))
    with pytest.raises(
        UserError, match=f"run {twin.run_id} is no twin of run {run.run_id}: it is of another checkpoint"
    ):
        require_twin(run, replace(twin, checkpoint="d" * 64), ["sums"])
    with pytest.raises(UserError, match="the judge is None in the one and J in the other"):
        require_twin(run, replace(twin, manifest={**twin.manifest, "judge_identity": "J"}), ["sums"])
    run, twin = (measured(store, replace(WARM, sampling_seed=s), (CHOICES,)) for s in (0, 1))
    with pytest.raises(UserError, match="both only score given choices"):
        require_twin(run, twin, ["choices"])


def test_a_twin_is_found_in_the_store_by_itself(store: Store) -> None:
    run = measured(store)
    measured(store, replace(WARM, sampling_seed=1, temperature=1.0))
    assert find_twin(run, store.runs(), ["sums"], lambda i: RunData.load(store, i)) is None
    twin = measured(store, replace(WARM, sampling_seed=1))
    store.start_run(Run("half", "m", run.checkpoint, "s", "p", None, "k", {"benchmarks": {"sums": {}}}))
    found = find_twin(run, store.runs(), ["sums"], lambda i: RunData.load(store, i))
    assert found is not None and found.run_id == twin.run_id
    assert find_twin(run, store.runs(), ["sums", "more"], lambda i: RunData.load(store, i)) is None
