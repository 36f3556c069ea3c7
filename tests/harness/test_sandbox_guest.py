"""What the test's process reads from the candidate: plain values, and nothing that runs."""

from __future__ import annotations

import io
import os
import pickle
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlhf_bench.harness.sandbox import guest

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
    return guest.PlainUnpickler(io.BytesIO(data)).load()


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
    fd = piped(guest.FRAME.pack(len(data)) + data)
    try:
        assert guest.read_frame(fd, 4000) == data
        with pytest.raises(guest.Gone):
            guest.read_frame(fd, 4000)
    finally:
        os.close(fd)


def test_a_frame_that_says_it_is_too_long_is_not_read() -> None:
    fd = piped(guest.FRAME.pack(1 << 50))
    try:
        with pytest.raises(ValueError, match="longer than"):
            guest.read_frame(fd, guest.REPLY_BYTES)
    finally:
        os.close(fd)


@pytest.mark.parametrize(
    ("message", "kind", "text"),
    [
        (("raise", "KeyError", "x"), KeyError, "'x'"),
        (("raise", "Mine", "x"), RuntimeError, "Mine: x"),
        (("raise", "SystemExit", "0"), RuntimeError, "SystemExit: 0"),
        (("raise", "UnicodeDecodeError", "x"), RuntimeError, "UnicodeDecodeError: x"),
        (("other", 1), ValueError, "malformed"),
        ("value", ValueError, "malformed"),
    ],
)
def test_what_the_candidate_raised_is_raised_in_the_test(message: object, kind: type[Exception], text: str) -> None:
    data = pickle.dumps(message)
    fd = piped(guest.FRAME.pack(len(data)) + data)
    try:
        with pytest.raises(kind, match=text):
            guest.receive(fd)
    finally:
        os.close(fd)


@given(st.text())
def test_a_reason_is_one_short_line(text: str) -> None:
    said = guest.describe(ValueError(text))
    assert len(said.splitlines()) == 1
    assert len(said) <= guest.WHY_CHARS
