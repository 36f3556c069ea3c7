"""EvalPlus's comparison of a candidate with the canonical solution, as a program that needs the standard library alone.

This file's text stands at the head of every HumanEval+ and MBPP+ test, so it runs inside the sandbox, in the test's
process. The rule is that of EvalPlus 0.3.1 (Liu et al. 2023, arXiv 2305.01210; evalplus/eval/__init__.py): equal, or
within a tolerance where there is one, with oracles of their own for the tasks that have several right answers. Only for
find_zero does it differ: any zero is right, as EvalPlus means it, while that version counts no answer to it at all.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from copy import deepcopy
from typing import Any

RTOL = 1e-07
FLOAT_ATOL = 1e-6
"""The tolerance from the first float on that is expected, where a task states none."""
SETS = {
    "similar_elements",
    "find_char_long",
    "common_in_nested_lists",
    "extract_singly",
    "larg_nnum",
    "intersection_array",
    "find_dissimilar",
    "Diff",
}
"""MBPP's tasks whose answer is a set in the form of a sequence."""
MATCHES = {"check_str", "text_match_three", "text_starta_endb"}
"""MBPP's tasks whose answer is a match or None; a bool says the same."""


def compare(
    candidate: Callable[..., Any],
    source: str,
    entry_point: str,
    inputs: Sequence[Sequence[Any]],
    atol: float,
    mbpp: bool,
) -> None:
    """Calls the candidate and the canonical `source` with each input. Raises AssertionError at the first difference.

    What the candidate is given is carried to it by value, so nothing that it does to its arguments is seen here.
    """
    namespace: dict[str, Any] = {}
    exec(source, namespace)
    for given in inputs:
        expected = namespace[entry_point](*deepcopy(given))
        found = candidate(*given)
        if atol == 0 and all_floats(expected):
            atol = FLOAT_ATOL
        exact = exact_mbpp if mbpp else exact_humaneval
        if not exact(entry_point, given, found, expected, atol) and not within(found, expected, atol):
            call = f"{entry_point}({', '.join(map(shown, given))})"
            raise AssertionError(f"{call} gives {shown(found)}, not {shown(expected)}")


def shown(value: object) -> str:
    """The value in at most 60 characters."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def exact_humaneval(entry_point: str, given: Sequence[Any], found: Any, expected: Any, atol: float) -> bool:
    """Whether an answer is right as it stands: for find_zero any zero of the polynomial is."""
    if entry_point == "find_zero":
        return bool(abs(sum(factor * math.pow(found, power) for power, factor in enumerate(given[0]))) <= atol)
    return bool(found == expected)


def exact_mbpp(entry_point: str, given: Sequence[Any], found: Any, expected: Any, atol: float) -> bool:
    """Whether an answer is right as it stands: several tasks have a second right answer or a meaning of their own."""
    if entry_point in SETS:
        return set(found) == set(expected)
    if entry_point in MATCHES:
        return (found if isinstance(found, bool) else found is not None) == (expected is not None)
    return bool(found == expected) or (
        entry_point == "are_equivalent"
        or (entry_point == "sum_div" and found == 0)
        or (entry_point == "surface_Area" and abs(found - pyramid_surface(*given)) <= atol)
        or (entry_point == "digit_distance_nums" and found == digit_distance(*given))
    )


def within(found: Any, expected: Any, atol: float) -> bool:
    """Where there is a tolerance: of the same type and everywhere within it."""
    return atol != 0 and type(found) is type(expected) and close(found, expected, atol)


def close(found: Any, expected: Any, atol: float) -> bool:
    """numpy.allclose for numbers and for sequences of one shape; False for anything else."""
    if isinstance(found, list | tuple) and isinstance(expected, list | tuple):
        return len(found) == len(expected) and all(
            close(one, other, atol) for one, other in zip(found, expected, strict=True)
        )
    if not isinstance(found, int | float | complex) or not isinstance(expected, int | float | complex):
        return False
    return found == expected or abs(found - expected) <= atol + RTOL * abs(expected) < math.inf


def all_floats(value: Any) -> bool:
    """Whether a value is a float, or a list or tuple of nothing else."""
    if isinstance(value, list | tuple):
        return bool(value) and all(isinstance(one, float) for one in value)
    return isinstance(value, float)


def pyramid_surface(edge: float, height: float) -> int:
    """Of a square pyramid, where `height` is its own and not that of its sides (Mbpp/581)."""
    return round(edge**2 + 2 * edge * math.hypot(edge / 2, height))


def digit_distance(one: int, other: int) -> int:
    """The sum of the differences of digits at the same place, counted from the last (Mbpp/558)."""
    width = max(len(str(one)), len(str(other)))
    pairs = zip(str(one).zfill(width), str(other).zfill(width), strict=True)
    return sum(abs(int(a) - int(b)) for a, b in pairs)
