"""What holds for every benchmark."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from functools import cache

import pytest

from rlhf_bench import suites
from rlhf_bench.harness.types import Completion, Sample, Score
from rlhf_bench.suites.pins import PINS
from rlhf_bench.suites.protocols import PROTOCOLS

GRADED = [
    (name, protocol)
    for name in suites.BENCHMARKS
    if name not in {"alpaca_eval", "mt_bench", "arena_hard", "demo-chat"}
    for protocol in PROTOCOLS
]


EVERY = {"mmlu": 50, "humaneval": 40, "humaneval_plus": 40, "mbpp": 80, "mbpp_plus": 80}
"""Benchmarks whose grading takes long: only every so-manieth sample is graded here (their own tests grade all)."""


@pytest.fixture(autouse=True)
def _data(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """The mirror, for the benchmarks that need one."""
    named = [request.node.callspec.params["name"]] if "name" in request.fixturenames else list(suites.BENCHMARKS)
    if any(suites.benchmark(name).needs for name in named):
        monkeypatch.setenv("RLHF_BENCH_DATA", str(request.getfixturevalue("mirror")))


@cache
def load(name: str, protocol: str) -> Sequence[Sample]:
    return suites.benchmark(name).load(suites.protocol(protocol))


def true_choices(sample: Sample) -> set[str]:
    """The reference, or all true answers where there are several."""
    if sample.tags.get("task") != "truthfulqa_mc2":
        return {sample.reference.strip()}
    targets = sample.row["mc2_targets"]
    return {choice.strip() for choice, label in zip(targets["choices"], targets["labels"], strict=True) if label == 1}


def answers(sample: Sample, right: bool) -> tuple[Completion, ...]:
    """The gold answer, or an empty one; where choices are scored, all likelihood on the gold one, or on the others."""
    made = []
    true = true_choices(sample)
    for request in sample.requests:
        if request.continuation is None:
            made.append(Completion(sample.id, request.index, sample.reference if right else "", "stop", 1))
        else:
            likely = (request.continuation.strip() in true) is right
            made.append(Completion(sample.id, request.index, "", "stop", 1, 0.0 if likely else -1e4, likely))
    return tuple(made)


def grade(name: str, samples: Sequence[Sample], right: bool) -> list[Score]:
    return list(suites.benchmark(name).grade([(sample, answers(sample, right)) for sample in samples], None))


@pytest.mark.parametrize(("name", "protocol"), GRADED)
def test_the_gold_answer_scores_1_on_every_sample(name: str, protocol: str) -> None:
    samples = load(name, protocol)[:: EVERY.get(name, 1)]
    scores = grade(name, samples, right=True)
    assert [(score.sample_id, score.value) for score in scores if score.value != pytest.approx(1)] == []
    assert sorted(score.sample_id for score in scores) == sorted(sample.id for sample in samples)


@pytest.mark.parametrize(("name", "protocol"), GRADED)
def test_an_empty_answer_scores_0(name: str, protocol: str) -> None:
    assert {score.value for score in grade(name, load(name, protocol)[: 40 : EVERY.get(name, 1)], right=False)} == {0.0}


def test_only_benchmarks_with_a_judge_are_left_out_of_the_gold_test() -> None:
    judged = {name for name in suites.BENCHMARKS if suites.benchmark(name).judged}
    assert judged == set(suites.BENCHMARKS) - {name for name, _ in GRADED}


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_no_two_samples_of_all_benchmarks_share_an_id(protocol: str) -> None:
    ids = [sample.id for name in suites.BENCHMARKS for sample in load(name, protocol)]
    assert len(set(ids)) == len(ids)


@pytest.mark.parametrize("name", suites.BENCHMARKS)
def test_a_benchmark_loads_as_many_samples_as_it_says_with_distinct_requests(name: str) -> None:
    samples = load(name, "paper")
    assert len(samples) == suites.benchmark(name).size
    for sample in samples:
        assert all(request.sample_id == sample.id for request in sample.requests)
        assert [request.index for request in sample.requests] == list(range(len(sample.requests)))


@pytest.mark.parametrize("name", suites.BENCHMARKS)
def test_a_benchmark_needs_only_files_that_are_pinned(name: str) -> None:
    assert set(suites.benchmark(name).needs) <= set(PINS)


@pytest.mark.parametrize("name", suites.BENCHMARKS)
def test_a_benchmark_says_where_it_comes_from_in_fixed_lines(name: str) -> None:
    said = importlib.import_module(f"rlhf_bench.suites.{suites.BENCHMARKS[name].module}").__doc__ or ""
    lines = [line.split(":")[0] for line in said.splitlines()]
    assert [line for line in lines if line in {"Paper", "Data", "Metric", "Differs"}] == [
        "Paper",
        "Data",
        "Metric",
        "Differs",
    ]
