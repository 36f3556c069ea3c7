"""Several answers to a question: own seeds, one cluster, the item as the unit of analysis."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.harness.test_run import CHOICES, DUELS, SUMS, TURNS, LongerWins, N, after, interrupt, without_dates

from rlhf_bench.harness.claims import RunData
from rlhf_bench.harness.codec import digest, dumps, loads, sample_digest
from rlhf_bench.harness.compare import compare, pair
from rlhf_bench.harness.decide import split
from rlhf_bench.harness.errors import UserError
from rlhf_bench.harness.gate import gate
from rlhf_bench.harness.policy import Halves, Policy
from rlhf_bench.harness.repeats import sampled
from rlhf_bench.harness.run import evaluate
from rlhf_bench.harness.stats import continuous_evidence, estimate
from rlhf_bench.harness.store import Store
from rlhf_bench.harness.types import (
    Benchmark,
    Completion,
    EvalProtocol,
    Report,
    Request,
    Sample,
    Sampling,
    Suite,
)

PLAIN = EvalProtocol("plain", seed=7)
TWICE = replace(PLAIN, name="twice", repeats=2, temperature=0.7)


class Guesser:
    """Adds rightly or one too many, as chance has it: by the seed, the question and its own skill."""

    name = "guesser"
    checkpoint = "g" * 64
    manifest: ClassVar = {"kind": "guesser"}

    def __init__(self, skill: float = 0.6, stop: Any = None) -> None:
        self.skill = skill
        self.stop = stop
        self.identity = digest(["guesser", skill])
        self.asked: list[Request] = []

    def generate(self, requests: Sequence[Request]) -> Iterator[Completion]:
        for request in requests:
            if self.stop:
                self.stop(len(self.asked))
            self.asked.append(request)
            yield self._answer(request)

    def _answer(self, request: Request) -> Completion:
        question = request.prompt if isinstance(request.prompt, str) else request.prompt[-1].content
        a, b = (int(word) for word in question.split() if word.isdigit())
        if request.continuation is not None:
            right = request.continuation == str(a + b)
            return Completion(request.sample_id, request.index, "", "stop", 1, -0.5 if right else -2.0, right)
        chance = random.Random(f"{self.skill} {request.sampling.seed} {question}").random()
        greedy = request.sampling.temperature <= 0
        total = str(a + b + (0 if greedy else chance > self.skill))
        return Completion(request.sample_id, request.index, total, "stop", 1)


def run(
    store: Store, engine: Guesser, benchmarks: Sequence[Benchmark], protocol: EvalProtocol = TWICE, **more: Any
) -> Report:
    suite = Suite("test", tuple(benchmarks))
    return evaluate(suite, engine, protocol=protocol, store=store, judge=LongerWins(), **more)


def loaded(benchmark: Benchmark, protocol: EvalProtocol) -> Sequence[Sample]:
    return sampled(benchmark.load(protocol), protocol, benchmark.name)


# What becomes of a sample


def test_a_protocol_that_says_nothing_of_sampling_leaves_samples_and_digests_alone() -> None:
    assert loaded(SUMS, PLAIN) == SUMS.load(PLAIN)
    assert digest(PLAIN) == digest(loads(EvalProtocol, dumps(PLAIN)))
    assert "repeats" not in dumps(PLAIN) and "temperature" not in dumps(PLAIN) and "sampling_seed" not in dumps(PLAIN)


def test_a_sample_becomes_one_for_each_answer_with_its_own_seed_in_one_cluster() -> None:
    first, second, *_ = loaded(SUMS, replace(TWICE, sampling_seed=3))
    assert (first.id, second.id) == ("sums/0#1", "sums/0#2")
    assert {each.tags["cluster"] for each in (first, second)} == {"sums/0"}
    assert [each.requests[0].sample_id for each in (first, second)] == [first.id, second.id]
    assert first.requests[0].sampling.seed == 7 + 3 != second.requests[0].sampling.seed
    assert {each.requests[0].sampling.temperature for each in (first, second)} == {0.7}
    assert (first.reference, first.row, first.prompt) == (second.reference, second.row, second.prompt)
    assert sample_digest(first) != sample_digest(second)


def test_the_stratum_is_kept_and_so_is_a_cluster_that_the_benchmark_names() -> None:
    tagged = replace(SUMS.load(PLAIN)[0], tags={"stratum": "small", "cluster": "page 1"})
    assert {(s.tags["stratum"], s.tags["cluster"]) for s in sampled([tagged], TWICE, "sums")} == {("small", "page 1")}


def test_scored_choices_are_neither_repeated_nor_changed() -> None:
    assert loaded(CHOICES, replace(TWICE, sampling_seed=5)) == CHOICES.load(PLAIN)


def test_a_benchmark_of_both_kinds_is_repeated_whole_so_that_each_item_counts_alike() -> None:
    both = [*SUMS.load(PLAIN), *CHOICES.load(PLAIN)]
    found = sampled(both, TWICE, "both")
    assert len(found) == 2 * len(both)
    scored = [r for s in found for r in s.requests if r.continuation is not None]
    assert {r.sampling for r in scored} == {r.sampling for s in CHOICES.load(PLAIN) for r in s.requests}


def test_a_benchmark_keeps_its_own_temperature_where_the_protocol_has_none() -> None:
    warm = [replace(s, requests=(replace(s.requests[0], sampling=Sampling(8, 0.3)),)) for s in SUMS.load(PLAIN)]
    found = sampled(warm, replace(PLAIN, repeats=3), "warm")
    assert len(found) == 3 * N
    assert {s.requests[0].sampling.temperature for s in found} == {0.3}


def test_greedy_answers_are_not_repeated_but_refused_before_anything_is_asked(store: Store) -> None:
    engine = Guesser()
    with pytest.raises(UserError, match=r"'sums' is decoded greedily, so 4 answers .*--temperature 0\.7"):
        run(store, engine, [SUMS], replace(PLAIN, repeats=4))
    assert (engine.asked, store.runs()) == ([], [])


@settings(max_examples=50, deadline=None)
@given(st.integers(2, 20), st.lists(st.integers(0, 10_000), min_size=2, max_size=4, unique=True))
def test_no_two_repeats_of_any_sampling_seeds_share_a_seed_or_an_id(repeats: int, seeds: list[int]) -> None:
    found = [loaded(SUMS, replace(TWICE, repeats=repeats, sampling_seed=seed)) for seed in seeds]
    of_one_question = [s.requests[0].sampling.seed for run in found for s in run if s.tags["cluster"] == "sums/0"]
    assert len(set(of_one_question)) == repeats * len(seeds)
    assert all(len({s.id for s in run}) == repeats * N for run in found)


# A run


def test_the_limit_counts_items_and_every_answer_is_a_record(store: Store) -> None:
    report = run(store, Guesser(), [SUMS, CHOICES], limit=5)
    asked = [record.sample.id for record in store.records(report.run_id, "sums")]
    assert asked == [f"sums/{a}#{r}" for a in range(5) for r in (1, 2)]
    assert len(store.records(report.run_id, "choices")) == 5
    assert report.manifest["protocol"]["repeats"] == 2


def test_the_error_is_that_of_the_items_and_not_of_all_answers(store: Store) -> None:
    report = run(store, Guesser(), [SUMS], replace(TWICE, repeats=8))
    records = store.records(report.run_id, "sums")
    scores = np.array([r.score.value for r in records], dtype=float).reshape(N, 8)
    found = report.estimates[0]
    assert found.mean == pytest.approx(scores.mean())
    assert found.se == pytest.approx(scores.mean(axis=1).std(ddof=1) / np.sqrt(N))
    assert found.graded == 8 * N and f"{N} clusters" in found.method


def test_repeats_narrow_the_interval_by_less_than_as_many_items_would() -> None:
    """Var = Var(E s)/n + E Var(s)/(nK): where questions differ, K answers to each are worth fewer than nK questions."""
    rng = np.random.default_rng(0)
    chances = rng.beta(0.5, 0.5, size=2000)
    scores = (rng.random((2000, 16)) < chances[:, None]).astype(float).ravel()
    names = [f"q{number}" for number in range(2000) for _ in range(16)]
    by_item = estimate(scores, kind="binary", clusters=names)
    as_if_all_were_items = estimate(scores, kind="binary")
    assert by_item.se == pytest.approx(np.sqrt(0.125 / 2000 + 0.125 / (2000 * 16)), rel=0.05)
    assert by_item.se is not None and as_if_all_were_items.se is not None
    assert by_item.se > 2.5 * as_if_all_were_items.se


def test_a_stopped_run_with_repeats_goes_on_and_more_repeats_ask_only_for_the_new(store: Store) -> None:
    with pytest.raises(KeyboardInterrupt):
        run(store, Guesser(stop=after(9, interrupt)), [SUMS, DUELS])
    engine = Guesser()
    report = run(store, engine, [SUMS, DUELS])
    assert len(engine.asked) == 4 * N - 9
    again = Guesser()
    assert without_dates(run(store, again, [SUMS, DUELS])) == without_dates(report)
    assert again.asked == []
    run(store, more := Guesser(), [SUMS, DUELS], replace(TWICE, repeats=5))
    assert len(more.asked) == 2 * 3 * N


def test_another_sampling_seed_is_another_run_with_other_answers(store: Store) -> None:
    once = replace(PLAIN, temperature=0.7)
    runs = [run(store, Guesser(), [SUMS], replace(once, sampling_seed=seed)) for seed in (0, 1)]
    answers = [[r.completions[0].text for r in store.records(each.run_id)] for each in runs]
    assert runs[0].run_id != runs[1].run_id and answers[0] != answers[1]


def test_later_turns_are_repeated_with_their_first(store: Store) -> None:
    report = run(store, Guesser(), [TURNS])
    records = store.records(report.run_id, "turns")
    assert len(records) == 2 * N
    assert all(len(r.completions) == 3 and {c.sample_id for c in r.completions} == {r.sample.id} for r in records)


# Two runs


def test_two_runs_with_repeats_pair_answer_by_answer_in_clusters_of_items(store: Store) -> None:
    runs = [run(store, Guesser(skill), [SUMS], replace(TWICE, repeats=3)) for skill in (0.9, 0.4)]
    ours, theirs = (store.records(each.run_id, "sums") for each in runs)
    pairs = pair(ours, theirs, benchmark="sums", metric="exact")
    assert pairs.unpaired == () and len(pairs.records) == 3 * N
    assert all(a.sample.id == b.sample.id for a, b in pairs.records)
    assert pairs.clusters is not None and len(set(pairs.clusters)) == N
    found = compare(ours, theirs, benchmark="sums", metric="exact", kind="binary")
    assert f"{N} clusters" in found.method
    alone = (
        [replace(r, sample=replace(r.sample, tags={})) for r in ours],
        [replace(r, sample=replace(r.sample, tags={})) for r in theirs],
    )
    naive = compare(*alone, benchmark="sums", metric="exact", kind="binary")
    assert naive.difference == found.difference and naive.paired == 3 * N


def test_the_gate_decides_on_items_and_halves_do_not_part_their_answers(store: Store) -> None:
    rules = Policy.model_validate(
        {
            "name": "p",
            "against_anchor": False,
            "targets": [{"benchmark": "sums", "metric": "exact"}],
            "guards": [{"benchmark": "choices", "metric": "acc", "margin": 0.2}],
        }
    )
    runs = [run(store, Guesser(skill), [SUMS, CHOICES], replace(TWICE, repeats=4)) for skill in (0.95, 0.3)]
    new, old = (RunData.load(store, each.run_id) for each in runs)
    new = replace(new, checkpoint="n" * 64)
    check = next(check for check in gate(rules, new, old).checks if check.role == "target")
    assert (check.pairs, check.outcome) == (4 * N, "pass")
    means = [
        np.array([r.score.value for r in each.records["sums"]], dtype=float).reshape(N, 4).mean(axis=1)
        for each in (new, old)
    ]
    by_item = continuous_evidence(means[0] - means[1], threshold=0.0, alpha=check.level)
    assert check.low == pytest.approx(by_item.low, abs=0.03) and check.p == pytest.approx(by_item.p_above, abs=0.005)
    parts = [split(new, Halves(salt="s"), confirm).records["sums"] for confirm in (False, True)]
    clusters = [{record.sample.tags["cluster"] for record in part} for part in parts]
    assert all(clusters) and not clusters[0] & clusters[1]


def test_a_judge_sees_each_answer_once_under_its_own_name(store: Store) -> None:
    def load(protocol: EvalProtocol) -> list[Sample]:
        return [replace(sample, row={"baseline": "x"}) for sample in DUELS.load(protocol)]

    judge = LongerWins()
    suite = Suite("chat", (replace(DUELS, load=load),))
    evaluate(suite, Guesser(), protocol=TWICE, store=store, judge=judge)
    assert sorted(judge.judged) == sorted(f"duels/{a}#{r}" for a in range(N) for r in (1, 2))
