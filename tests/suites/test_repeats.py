"""The real benchmarks with several answers to a question: graded each for itself, counted together."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tests.suites.talk import Talks, judge

from rlhf_bench import suites
from rlhf_bench.harness.estimates import estimates_of
from rlhf_bench.harness.run import evaluate
from rlhf_bench.harness.store import Store
from rlhf_bench.harness.types import Benchmark, Completion, Record, Request, Sample, Score, Suite
from rlhf_bench.suites import alpaca_eval, arena_hard, mt_bench, protocol

TWICE = replace(protocol("paper"), name="twice", repeats=2, temperature=0.7)


@pytest.fixture(autouse=True)
def data(mirror: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RLHF_BENCH_DATA", str(mirror))


def answer(request: Request) -> str:
    return f"answer {request.index + 1} to {request.sample_id} by seed {request.sampling.seed}"


def test_mt_bench_follows_each_first_answer_with_a_second_turn_of_its_own(store: Store) -> None:
    suite = Suite("mt_bench", (mt_bench.BENCHMARK,))
    judges = Talks(lambda request: f"Rating: [[{6 if request.index else 9}]]")
    engine = Talks(answer)
    report = evaluate(suite, engine, protocol=TWICE, store=store, judge=judge(judges, store), limit=8)
    records = store.records(report.run_id)
    assert [len(record.completions) for record in records] == [2] * 16
    for record in records:
        second = next(r for r in engine.asked if (r.sample_id, r.index) == (record.sample.id, 1))
        assert record.completions[0].text in [m.content for m in second.prompt if not isinstance(m, str)]
        assert (second.sampling.temperature, second.sampling.seed) == (0.7, record.sample.requests[0].sampling.seed)
    assert len(judges.asked) == 32
    score, rating = (next(e for e in report.estimates if e.metric == name) for name in ("score", "rating"))
    assert score.mean == pytest.approx(0.75) and rating.mean == pytest.approx(7.5)
    assert score.graded == 16 and "8 clusters" in score.method and "8 clusters" in rating.method


def test_mt_benchs_own_temperatures_are_enough_to_repeat_it(store: Store) -> None:
    own = replace(TWICE, temperature=0.0)
    suite = Suite("mt_bench", (mt_bench.BENCHMARK,))
    judges = Talks(lambda request: "Rating: [[5]]")
    report = evaluate(suite, Talks(answer), protocol=own, store=store, judge=judge(judges, store), limit=8)
    assert len(store.records(report.run_id)) == 16


def test_two_games_are_played_for_each_of_arena_hards_answers(store: Store) -> None:
    suite = Suite("arena_hard", (arena_hard.BENCHMARK,))
    judges = Talks(lambda request: "[[B>A]]" if request.index == 0 else "[[A>B]]")
    report = evaluate(suite, Talks(answer), protocol=TWICE, store=store, judge=judge(judges, store), limit=3)
    assert len(judges.asked) == 12 and len(set(judges.asked)) == 12
    assert {record.score.value for record in store.records(report.run_id)} == {1.0}


@pytest.mark.parametrize("name", ["demo-arithmetic", "demo-code"])
def test_right_answers_are_right_whichever_repeat_they_are(name: str, store: Store) -> None:
    benchmark = suites.benchmark(name)
    right = {sample.id: sample.reference for sample in benchmark.load(TWICE)}
    engine = Talks(lambda request: right[request.sample_id.partition("#")[0]])
    report = evaluate(Suite(name, (benchmark,)), engine, protocol=TWICE, store=store, limit=3)
    assert [record.score.value for record in store.records(report.run_id)] == [1.0] * 6


Made = Callable[[Sample, float], Score]


def _alpaca(sample: Sample, value: float) -> Score:
    return Score(sample.id, value, also={"length_chars": 500.0 + 900 * value, "truncated": 0.0})


def _arena(sample: Sample, value: float) -> Score:
    return Score(sample.id, value, also={"verdict_weight": 2.0 + 4 * (value > 0.7)})


def _plain(sample: Sample, value: float) -> Score:
    return Score(sample.id, value)


@pytest.mark.parametrize(
    ("benchmark", "made", "allowed"),
    [
        (alpaca_eval.BENCHMARK, _alpaca, {"lc_win_rate": 0.1}),
        (arena_hard.BENCHMARK, _arena, {}),
        (mt_bench.BENCHMARK, _plain, {}),
    ],
    ids=["alpaca_eval", "arena_hard", "mt_bench"],
)
def test_an_answer_given_three_times_is_no_more_evidence_than_once(
    benchmark: Benchmark, made: Made, allowed: dict[str, float]
) -> None:
    values = np.random.default_rng(0).beta(0.7, 0.9, size=200)
    samples = benchmark.load(protocol("paper"))[: len(values)]

    def records(repeats: int) -> Sequence[Record]:
        found = []
        for sample, value in zip(samples, values, strict=False):
            for number in range(repeats):
                tags = {**sample.tags, "cluster": sample.id} if repeats > 1 else sample.tags
                one = replace(sample, id=f"{sample.id}#{number}", tags=tags)
                given = (Completion(one.id, 0, "x", "stop", 1),)
                found.append(Record(benchmark.name, one.id, one, given, made(one, float(value))))
        return found

    once, thrice = ({e.metric: e for e in estimates_of(benchmark, records(k))} for k in (1, 3))
    assert once.keys() == thrice.keys()
    for metric in once.keys() - {"turn_1", "turn_2", "length_chars", "truncated"}:
        assert once[metric].se is not None and once[metric].se > 0
        close = allowed.get(metric, 1e-9)  # the fit of lc_win_rate has a penalty that counts for less
        for part in ("mean", "se", "low", "high"):
            assert getattr(thrice[metric], part) == pytest.approx(getattr(once[metric], part), rel=close), metric
