"""What goes between the test's process and the candidate: plain values, handles, and nothing that runs."""

from __future__ import annotations

import copy
import io
import operator
import os
import pickle
import signal
from collections.abc import Callable
from typing import Any, NamedTuple, NoReturn

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlhf_bench.harness.sandbox import wire

atoms = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text()
    | st.binary()
    | st.complex_numbers(allow_nan=False)
)
hashable = atoms | st.tuples(atoms, atoms) | st.frozensets(st.integers())
plain = st.recursive(
    hashable,
    lambda inner: st.lists(inner) | st.dictionaries(hashable, inner) | st.tuples(inner, inner) | st.sets(hashable),
    max_leaves=12,
)


def read(data: bytes) -> Any:
    return wire.Link(-1, -1).load(data)


@given(plain)
def test_plain_values_arrive_as_they_were_sent(value: Any) -> None:
    assert read(pickle.dumps(value)) == value


class Call:
    def __init__(self, function: Callable[..., Any], *args: Any) -> None:
        self.call = (function, args)

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return self.call


@pytest.mark.parametrize(
    "value",
    [
        Call(exec, "0"),
        Call(eval, "0"),
        Call(os.getpid),
        Call(getattr, 0, "real"),
        Call(type, "A", (), {}),
        len,
        Call,
        Call(len, ()),
    ],
)
def test_what_would_run_code_is_refused(value: object) -> None:
    with pytest.raises(pickle.UnpicklingError, match="the answer holds a"):
        read(pickle.dumps(value))


def piped(data: bytes) -> int:
    read_end, write_end = os.pipe()
    os.write(write_end, data)
    os.close(write_end)
    return read_end


@given(st.binary(max_size=4000))
def test_a_frame_is_read_as_it_was_written(data: bytes) -> None:
    fd = piped(wire.FRAME.pack(len(data)) + data)
    try:
        assert wire.read_frame(fd, 4000) == data
        with pytest.raises(wire.Gone):
            wire.read_frame(fd, 4000)
    finally:
        os.close(fd)


def test_a_frame_that_says_it_is_too_long_is_not_read() -> None:
    fd = piped(wire.FRAME.pack(1 << 50))
    try:
        with pytest.raises(ValueError, match="longer than"):
            wire.read_frame(fd, wire.REPLY_BYTES)
    finally:
        os.close(fd)


@pytest.mark.parametrize(
    ("message", "kind", "text"),
    [
        (("raise", "KeyError", "x"), KeyError, "'x'"),
        (("raise", "Mine", "x"), RuntimeError, "Mine: x"),
        (("raise", "SystemExit", "0"), RuntimeError, "SystemExit: 0"),
        (("raise", "StopIteration", "x"), RuntimeError, "StopIteration: x"),
        (("raise", "UnicodeDecodeError", "x"), RuntimeError, "UnicodeDecodeError: x"),
        (("other", 1), ValueError, "malformed"),
        (("back", 0, (), {}), ValueError, "malformed"),
        ("value", ValueError, "malformed"),
    ],
)
def test_what_the_candidate_raised_is_raised_in_the_test(message: object, kind: type[Exception], text: str) -> None:
    data = pickle.dumps(message)
    fd = piped(wire.FRAME.pack(len(data)) + data)
    try:
        with pytest.raises(kind, match=text):
            wire.Link(-1, fd).receive()
    finally:
        os.close(fd)


@given(st.text())
def test_a_reason_is_one_short_line(text: str) -> None:
    said = wire.describe(ValueError(text))
    assert len(said.splitlines()) == 1
    assert len(said) <= wire.WHY_CHARS


def written(value: Any) -> bytes:
    """As the candidate writes it, where each object that is not plain has the number 0."""
    buffer = io.BytesIO()
    wire.PlainPickler(buffer, lambda value: 0).dump(value)
    return buffer.getvalue()


@given(plain)
def test_the_candidate_writes_plain_values_as_they_are(value: Any) -> None:
    assert read(written(value)) == value


class Lying(int):
    def __eq__(self, other: object) -> bool:
        return True

    def __hash__(self) -> int:
        return 0


class Pair(NamedTuple):
    first: int
    second: int


def test_instances_of_subclasses_are_carried_as_plain_values() -> None:
    got = read(written([Lying(3), Pair(1, 2), signal.SIGKILL]))
    assert [type(one) for one in got] == [int, tuple, int]
    assert got == [3, (1, 2), 9]


@pytest.mark.parametrize("value", [object(), iter([1]), len, Call, Call(exec, "0"), [object()], {1: object()}])
def test_any_other_object_is_carried_as_a_handle(value: Any) -> None:
    got = read(written(value))
    held = got[0] if isinstance(value, list) else got[1] if isinstance(value, dict) else got
    assert type(held) is wire.Handle


COMPARED: dict[str, Callable[[Any], Any]] = {
    "truth": bool,
    "order": lambda held: held < 1,
    "order, turned": lambda held: operator.lt(1, held),
    "sum": lambda held: held + 1,
    "difference, turned": lambda held: 5 - held,
    "absolute": abs,
    "float": float,
    "int": int,
    "index": lambda held: [1, 2][held],
    "copy": copy.deepcopy,
    "pickle": pickle.dumps,
    "attribute of the class": lambda held: held.__dict__,
    "change": lambda held: setattr(held, "name", 1),
}


@pytest.mark.parametrize("operation", COMPARED)
def test_a_handle_decides_nothing_that_a_test_compares(operation: str) -> None:
    def ask(*asked: Any) -> NoReturn:
        raise AssertionError(f"the candidate was asked {asked}")

    held = wire.Handle(ask)
    with pytest.raises((TypeError, AttributeError)):
        COMPARED[operation](held)
    others: list[object] = [1, "", None, wire.Handle(ask)]
    assert held not in others
    assert [held].index(held) == 0 and len({held, held}) == 1
    assert str(held) == repr(held) == f"{held}" == "<an object of the candidate>"


def test_the_length_of_a_handle_is_a_number_or_an_error() -> None:
    with pytest.raises(TypeError):
        len(wire.Handle(lambda *asked: True))
