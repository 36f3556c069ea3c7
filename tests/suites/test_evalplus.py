"""EvalPlus's rule, value by value."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlhf_bench.suites import evalplus, evalplus_rule

ATOL = evalplus_rule.FLOAT_ATOL
numbers = st.floats(allow_nan=True, allow_infinity=True) | st.integers(-(2**53), 2**53)


@given(st.lists(st.tuples(numbers, st.sampled_from([0.0, 1e-8, 1e-7, 2e-6, 1.0])), max_size=6))
def test_within_a_tolerance_is_what_numpy_allclose_says(pairs: list[tuple[float, float]]) -> None:
    expected = [float(value) for value, _ in pairs]
    found = [float(value) + shift * (1 + abs(float(value))) for value, shift in pairs]
    with np.errstate(all="ignore"):
        theirs = bool(np.allclose(found, expected, rtol=1e-07, atol=ATOL))
    assert evalplus_rule.close(found, expected, ATOL) is theirs


@pytest.mark.parametrize(
    ("found", "expected", "right"),
    [
        (1.0, 1.0 + 1e-7, True),
        (1, 1.0000001, False),  # a tolerance asks for the same type
        ([0.1 + 0.2], [0.3], True),
        ((0.3,), [0.3], False),
        ([0.3, 0.3], [0.3], False),
        (None, 0.5, False),
        ("0.5", 0.5, False),
        (float("nan"), float("nan"), False),
        (float("inf"), float("inf"), True),
    ],
)
def test_floats_are_compared_within_a_tolerance_and_types_as_they_are(found: Any, expected: Any, right: bool) -> None:
    assert passes(f"lambda: {expected!r}", found) is right


@pytest.mark.parametrize(
    ("entry_point", "given_", "expected", "found", "right"),
    [
        ("find_char_long", ["abc"], ["a", "b"], ["b", "a"], True),
        ("find_char_long", ["abc"], ["a", "b"], ["b"], False),
        ("check_str", ["abc"], object(), True, True),
        ("check_str", ["abc"], None, False, True),
        ("check_str", ["abc"], None, "found", False),
        ("are_equivalent", [1, 2], True, False, True),
        ("sum_div", [8], 7, 0, True),
        ("sum_div", [8], 7, 8, False),
        ("surface_Area", [3, 4], 33, 35, True),
        ("surface_Area", [3, 4], 33, 34, False),
        ("digit_distance_nums", [1, 200], 1, 3, True),
        ("digit_distance_nums", [1, 200], 1, 2, False),
    ],
)
def test_tasks_with_several_right_answers_have_oracles(
    entry_point: str, given_: list[Any], expected: Any, found: Any, right: bool
) -> None:
    assert evalplus_rule.exact_mbpp(entry_point, given_, found, expected, 0.0) is right
    assert evalplus_rule.exact_humaneval(entry_point, given_, found, expected, 0.0) is bool(found == expected)


@pytest.mark.parametrize(("zero", "right"), [(1.0, True), (2.0, True), (1.5, False)])
def test_any_zero_of_a_polynomial_is_right(zero: float, right: bool) -> None:
    assert evalplus_rule.exact_humaneval("find_zero", [[2, -3, 1]], zero, 1.0, 1e-4) is right


def test_an_expected_float_brings_a_tolerance_for_all_inputs_after_it() -> None:
    source = "def f(x): return x if x else 7"
    rule = evalplus_rule.compare
    rule(lambda x: x + 1e-9 if x else 7, source, "f", [[0], [0.5]], 0.0, False)
    with pytest.raises(AssertionError, match=r"f\(0\) gives 8, not 7"):
        rule(lambda x: x or 8, source, "f", [[0.5], [0]], 0.0, False)


def test_the_canonical_solution_may_change_its_arguments_and_the_candidate_still_gets_them_whole() -> None:
    source = "def f(values):\n    values.sort()\n    return values.pop()"
    evalplus_rule.compare(max, source, "f", [[[3, 1, 2]]], 0.0, True)


def test_a_test_defines_one_name_that_no_entry_point_has() -> None:
    row = {"prompt": "", "canonical_solution": "def compare(a): return a", "entry_point": "compare", "atol": 0}
    rule, call = evalplus.test_call(row, [[float("inf")], [(1, 2)]], mbpp=False)
    names: dict[str, Any] = {}
    exec(rule, names)
    assert set(names) - {"__builtins__", "inf", "nan"} == {"EVALPLUS"}
    exec(call, names | {"candidate": lambda a: a})
    with pytest.raises(AssertionError, match="gives None, not inf"):
        exec(call, names | {"candidate": lambda a: None})


def passes(source: str, found: Any) -> bool:
    """Whether `found` passes where the canonical solution is this lambda."""
    try:
        evalplus_rule.compare(
            lambda: found, f"nan, inf = float('nan'), float('inf')\nf = {source}", "f", [[]], 0.0, True
        )
    except AssertionError:
        return False
    return True
