"""HumanEval and HumanEval+: the canonical solutions pass, wrong ones do not."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from rlhf_bench.harness import sandbox
from rlhf_bench.harness.types import Completion, Sample, Score
from rlhf_bench.suites import benchmark, protocol

NAMES = ["humaneval", "humaneval_plus"]
pytestmark = pytest.mark.skipif(not sandbox.level().safe, reason=f"no sandbox here: {sandbox.level().description}")


@pytest.fixture(autouse=True)
def _data(mirror: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RLHF_BENCH_DATA", str(mirror))


def grade(name: str, samples: Sequence[Sample], text: str | None = None) -> list[Score]:
    """The scores where every answer is `text`, or the canonical solution."""
    answered = [
        (sample, (Completion(sample.id, 0, sample.reference if text is None else text, "stop", 1),))
        for sample in samples
    ]
    return list(benchmark(name).grade(answered, None))


def wrong(scores: Sequence[Score]) -> list[Score]:
    return [score for score in scores if score.value != 1.0]


@pytest.mark.parametrize("name", NAMES)
def test_canonical_solutions_pass(name: str) -> None:
    samples = benchmark(name).load(protocol("paper"))[2::18]
    assert wrong(grade(name, samples)) == []


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_all_164_canonical_solutions_pass(name: str) -> None:
    scores = grade(name, benchmark(name).load(protocol("paper")))
    assert (len(scores), wrong(scores)) == (164, [])


@pytest.mark.parametrize("name", NAMES)
def test_a_wrong_solution_fails(name: str) -> None:
    scores = grade(name, benchmark(name).load(protocol("paper"))[::9], "    return object\n")
    assert {score.value for score in scores} == {0.0}
    assert all(score.why for score in scores)


def test_a_solution_that_only_knows_the_base_inputs_passes_humaneval_and_fails_humaneval_plus() -> None:
    """HumanEval/0 at two decimals: enough for its own seven tests."""
    text = (
        "    numbers = sorted(numbers)[:5]\n    return any(b - a < threshold for a, b in zip(numbers, numbers[1:]))\n"
    )
    [base] = grade("humaneval", benchmark("humaneval").load(protocol("paper"))[:1], text)
    [plus] = grade("humaneval_plus", benchmark("humaneval_plus").load(protocol("paper"))[:1], text)
    assert (base.value, plus.value, plus.also) == (1.0, 0.0, {"base": 1.0})
    assert "has_close_elements(" in plus.why
