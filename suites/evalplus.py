"""What HumanEval+ and MBPP+ share: EvalPlus's tests, behind lm-eval's prompts.

A sample passes if its program passes EvalPlus's base inputs and its plus inputs; these are two tests, run one after
the other, and the first alone is reported as "base". Expected outputs are those of the canonical solution, which runs
beside the test (evalplus_rule.py) and not in the candidate's process.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cache
from typing import Any, Literal

from rlhf_bench.harness.types import Benchmark, Graded, Score
from rlhf_bench.suites import evalplus_rule, lm_eval_code
from rlhf_bench.suites.data import Row, rows

EVALPLUS = "0.3.1"
"""The version whose rule is followed."""
Part = Literal["base", "plus"]
CPU_S: Mapping[Part, float] = {"base": lm_eval_code.CPU_S, "plus": 20.0}
"""The limits: four times what the slowest canonical solution takes on the machine where this was measured (4.7 s)."""


def test_call(row: Row, inputs: Sequence[Sequence[Any]], *, mbpp: bool) -> tuple[str, str]:
    """A program and a call that stand for a test: the call raises AssertionError where `candidate` differs.

    The program defines one name, EVALPLUS, which is no task's entry point (as "compare" and "check" are).
    """
    source = row["prompt"] + row["canonical_solution"]
    rule = f"from math import inf, nan\nEVALPLUS = {{}}\nexec({inspect.getsource(evalplus_rule)!r}, EVALPLUS)\n"
    given = f"{row['entry_point']!r}, {list(inputs)!r}, {float(row['atol'])!r}, {mbpp!r}"
    return rule, f"EVALPLUS['compare'](candidate, {source!r}, {given})\n"


def with_evalplus_tests(inner: Benchmark, row_with_test: Callable[[Row, Part], Row]) -> Benchmark:
    """The benchmark, graded by two tests.

    `row_with_test` puts a part's test where the task of `inner` takes its test from, and may set its own "cpu_s".
    """

    def run(part: Part, answered: Sequence[Graded]) -> Iterator[Score]:
        tested = [
            (replace(sample, row={"cpu_s": CPU_S[part], **row_with_test(sample.row, part)}), answers)
            for sample, answers in answered
        ]
        yield from inner.grade(tested, None)

    def grade(answered: Sequence[Graded], judge: Any) -> Iterator[Score]:
        passed = []
        graded = {sample.id: (sample, answers) for sample, answers in answered}
        for score in run("base", answered):
            if score.value == 1:
                passed.append(graded[score.sample_id])
            else:
                yield score if score.value is None else replace(score, also={"base": score.value})
        for score in run("plus", passed):
            yield score if score.value is None else replace(score, also={"base": 1.0})

    return replace(inner, version=f"{inner.version}+evalplus-{EVALPLUS}", grade=grade)


@cache
def by_id(pin: str) -> dict[Any, Row]:
    """The rows of a pinned file by their task_id."""
    return {row["task_id"]: row for row in rows(pin)}
