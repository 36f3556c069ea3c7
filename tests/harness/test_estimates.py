"""Records to estimates, by strata and over them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest

from rlhf_bench.harness.codec import sample_digest
from rlhf_bench.harness.estimates import estimates_of, strata_of
from rlhf_bench.harness.types import Benchmark, Completion, Record, Request, Sample, Score

BENCHMARK = Benchmark("s", "1", "exact", "binary", 0, "", lambda _: [], lambda answered, judge: ())


def strata_sums(sizes: Sequence[int], ungraded: frozenset[str] = frozenset()) -> list[Record]:
    """Records of a stratum of each size, right in stratum k for the first k + 1 samples of it."""
    samples = [
        Sample(f"s/{k}/{n}", (Request(f"s/{k}/{n}", f"{n} + {k} ="),), "", {"stratum": f"part {k}"})
        for k, size in enumerate(sizes)
        for n in range(size)
    ]
    records = []
    for sample in samples:
        k, n = (int(part) for part in sample.id.split("/")[1:])
        value = None if sample.tags["stratum"] in ungraded else float(n <= k)
        answers = (Completion(sample.id, 0, "x", "stop", 1),)
        score = Score(sample.id, value, "" if value is not None else "lost")
        records.append(Record("s", sample_digest(sample), sample, answers, score))
    return records


def test_the_macro_average_is_the_mean_of_the_strata_with_the_variance_of_fixed_strata() -> None:
    records = strata_sums([4, 10, 30])
    micro, macro = estimates_of(BENCHMARK, records)
    assert (micro.metric, macro.metric, micro.mean) == ("exact", "exact,macro", 6 / 44)
    parts = [(1 / 4, 4), (2 / 10, 10), (3 / 30, 30)]
    assert macro.mean == pytest.approx(sum(p for p, _ in parts) / 3)
    assert macro.se == pytest.approx((sum(p * (1 - p) / (n - 1) for p, n in parts) / 9) ** 0.5)
    assert "macro average of 3 strata" in macro.method
    assert (macro.graded, macro.ungraded) == (44, 0)
    assert macro.low is not None and macro.high is not None and macro.low < macro.mean < macro.high


def test_by_stratum_each_has_its_own_estimate_in_the_order_of_the_samples() -> None:
    records = strata_sums([4, 10, 30])
    parts = strata_of(BENCHMARK, records)
    assert [(name, part.mean, part.graded) for name, part in parts] == [
        ("part 0", 1 / 4, 4),
        ("part 1", 2 / 10, 10),
        ("part 2", 3 / 30, 30),
    ]
    assert strata_of(BENCHMARK, [replace(r, sample=replace(r.sample, tags={})) for r in records]) == []


def test_a_stratum_without_a_graded_sample_leaves_no_macro_average_and_is_named() -> None:
    records = strata_sums([4, 10, 30], ungraded=frozenset({"part 0"}))
    micro, macro = estimates_of(BENCHMARK, records)
    assert (micro.mean, macro.mean, macro.low, macro.se) == (5 / 40, None, None, None)
    assert macro.why == "too little is graded in part 0"
    assert (macro.graded, macro.ungraded) == (40, 4)


def test_with_many_strata_the_interval_for_new_strata_stands_beside_the_others() -> None:
    records = strata_sums([5 + number % 3 for number in range(24)])
    micro, macro, clustered = estimates_of(BENCHMARK, records)
    assert [one.metric for one in (micro, macro, clustered)] == ["exact", "exact,macro", "exact,clustered"]
    assert clustered.mean == micro.mean
    assert clustered.method.endswith(", 24 clusters")
    assert clustered.se is not None and micro.se is not None and clustered.se > micro.se
