"""How the test's process and the candidate's talk: frames, plain values, handles, calls in both directions.

The tester reads what the candidate says with an unpickler that knows plain builtin values; of any other object it sees
a handle. The candidate reads what the tester says without such care: it may do in its process what it likes.
"""

from __future__ import annotations

import builtins
import contextlib
import functools
import io
import operator
import os
import pickle
import struct
import sys
import types
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

FRAME = struct.Struct("<Q")
REPLY_BYTES = 16 << 20
WHY_CHARS = 200
PLAIN = (str, bytes, bytearray, int, float, complex, tuple, list, dict, set, frozenset)
"""Builtin types; an instance of a subclass is carried as one of these."""
SAFE = {
    *(("builtins", kind.__name__) for kind in (bool, range, *PLAIN)),
    ("collections", "Counter"),
    ("collections", "OrderedDict"),
    ("collections", "defaultdict"),
    ("collections", "deque"),
    ("datetime", "date"),
    ("datetime", "datetime"),
    ("datetime", "time"),
    ("datetime", "timedelta"),
    ("datetime", "timezone"),
    ("decimal", "Decimal"),
    ("fractions", "Fraction"),
}
"""The types, besides None, that an answer may hold; of all others it holds handles."""


class Gone(BaseException):
    """The process at the other end ended."""


class Uncarried(BaseException):
    """The test passes a value that cannot be carried to the candidate."""


def read_exactly(fd: int, count: int) -> bytes:
    """`count` bytes. Raises Gone if the other end closes first."""
    parts = []
    while count:
        part = os.read(fd, min(count, 1 << 20))
        if not part:
            raise Gone
        parts.append(part)
        count -= len(part)
    return b"".join(parts)


def read_frame(fd: int, limit: int) -> bytes:
    """One frame. Raises ValueError if it is longer than `limit` bytes."""
    (count,) = FRAME.unpack(read_exactly(fd, FRAME.size))
    if count > limit:
        raise ValueError(f"the answer is longer than {limit >> 20} MiB")
    return read_exactly(fd, count)


def write_frame(fd: int, data: bytes) -> None:
    """One frame. Raises Gone if nobody reads it."""
    view = memoryview(FRAME.pack(len(data)) + data)
    try:
        while view:
            view = view[os.write(fd, view) :]
    except BrokenPipeError:
        raise Gone from None


def message_of(error: BaseException) -> str:
    """What the error says, in one short line."""
    try:
        return " ".join(str(error).split())[:WHY_CHARS]
    except Exception:
        return ""


def describe(error: BaseException) -> str:
    """The error in one short line, with its type."""
    return f"{type(error).__name__}: {message_of(error)}".removesuffix(": ")[:WHY_CHARS]


def raised(error: BaseException) -> tuple[str, str, str]:
    """The message that says what was raised."""
    return "raise", type(error).__name__, message_of(error)


def as_error(name: str, text: str) -> Exception:
    """The builtin exception of this name, else a RuntimeError. What ends an iteration is no error of a call."""
    kind = getattr(builtins, name, None)
    if isinstance(kind, type) and issubclass(kind, Exception) and not issubclass(kind, (StopIteration, Warning)):
        with contextlib.suppress(TypeError):
            return kind(text) if text else kind()
    return RuntimeError(f"{name}: {text}")


class Handle:
    """An object that stays with the candidate, as the test sees it.

    It can be called, iterated, indexed, measured, asked for an attribute and passed back. It equals itself alone, has
    no truth value, no order, no arithmetic and no text: nothing that a test compares is decided by the candidate.
    """

    __slots__ = ("__ask",)

    def __init__(self, ask: Callable[..., Any]) -> None:
        self.__ask = ask

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.__ask("call", self, args, kwargs)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(f"'{name}' of an object of the candidate is not carried")
        return self.__ask("attribute", self, name)

    def __getitem__(self, key: Any) -> Any:
        return self.__ask("item", self, key)

    def __len__(self) -> int:
        count = self.__ask("length", self)
        if type(count) is not int:
            raise TypeError("the length is no number")
        return count

    def __iter__(self) -> Iterator[Any]:
        iterator = self.__ask("iterate", self)
        if type(iterator) is not Handle:
            raise TypeError("the iterator is none")
        return iterator

    def __next__(self) -> Any:
        more, value = self.__ask("next", self)
        if more is not True:
            raise StopIteration
        return value

    def __bool__(self) -> bool:
        raise TypeError("an object of the candidate has no truth value")

    def __repr__(self) -> str:
        return "<an object of the candidate>"

    def __reduce_ex__(self, protocol: Any) -> NoReturn:
        raise TypeError("an object of the candidate is not copied")


class Link:
    """The tester's end of the two pipes: asks, answers what it is asked back, and reads plain values and handles."""

    def __init__(self, calls: int, replies: int) -> None:
        self._calls, self._replies = calls, replies
        self._handles: dict[int, Handle] = {}
        self._numbers: dict[Handle, int] = {}
        self._functions: list[Any] = []

    def ask(self, name: str, *operands: Any) -> Any:
        """What the candidate answers. Raises what it raised, ValueError on a malformed answer, Gone, Uncarried."""
        self.send(("ask", name, operands))
        return self.receive()

    def send(self, message: Any) -> None:
        """One message. Raises Uncarried where it holds what cannot be carried, Gone if nobody reads it."""
        buffer = io.BytesIO()
        pickler = pickle.Pickler(buffer, 5)
        pickler.persistent_id = self._number  # type: ignore[method-assign]
        try:
            pickler.dump(message)
        except Exception as error:
            raise Uncarried(describe(error)) from None
        write_frame(self._calls, buffer.getvalue())

    def receive(self) -> Any:
        """The candidate's answer, after what it asks back."""
        while True:
            message = self.load(read_frame(self._replies, REPLY_BYTES))
            match message:
                case ("value", value):
                    return value
                case ("raise", str(name), str(text)):
                    raise as_error(name, text)
                case ("back", int(number), tuple(args), dict(kwargs)) if 0 <= number < len(self._functions):
                    try:
                        answer: Any = ("value", self._functions[number](*args, **kwargs))
                    except Exception as error:
                        answer = raised(error)
                    self.send(answer)
                case _:
                    raise ValueError("the answer is malformed")

    def load(self, data: bytes) -> Any:
        """The value in `data`, in which numbers stand for handles. Raises UnpicklingError on what is not plain."""
        unpickler = PlainUnpickler(io.BytesIO(data))
        unpickler.persistent_load = self._held  # type: ignore[method-assign]
        return unpickler.load()

    def _number(self, value: Any) -> int | None:
        if type(value) is Handle:
            return self._numbers[value]
        if isinstance(value, (types.FunctionType, types.MethodType)) and value.__module__ not in sys.modules:
            self._functions.append(value)
            return -len(self._functions)
        return None

    def _held(self, number: Any) -> Any:
        if type(number) is not int or number < -len(self._functions):
            raise pickle.UnpicklingError("the answer holds no such object")
        if number < 0:
            return functools.partial(self._functions[-number - 1])  # which a pickle may change, but not the function
        if number not in self._handles:
            handle = self._handles[number] = Handle(self.ask)
            self._numbers[handle] = number
        return self._handles[number]


_IMMUTABLE = 1 << 8  # Py_TPFLAGS_IMMUTABLETYPE


class PlainUnpickler(pickle.Unpickler):
    """Reads builtin values and nothing that could run code. Raises UnpicklingError on anything else.

    A pickle can also set attributes of what it names. So of a type that is written in Python (Counter, Fraction) it
    gets what makes one, and not the type itself, whose comparisons it could replace.
    """

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in SAFE:
            raise pickle.UnpicklingError(f"the answer holds a {module}.{name}")
        found = super().find_class(module, name)
        return found if found.__flags__ & _IMMUTABLE else functools.partial(found)


class Borrowed:
    """A function of the test, as the candidate sees it."""

    def __init__(self, number: int, call: Callable[..., Any]) -> None:
        self.number, self.call = number, call

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.call(self.number, args, kwargs)


class PlainPickler(pickle.Pickler):
    """Writes builtin values as they are, instances of their subclasses as such values, all else as numbers."""

    def __init__(self, file: io.BytesIO, number: Callable[[Any], int]) -> None:
        super().__init__(file, 5)
        self._number = number

    def persistent_id(self, value: Any) -> int | None:
        kind = type(value)
        if value is None or kind is bool or issubclass(kind, PLAIN) or (kind.__module__, kind.__name__) in SAFE:
            return None
        if issubclass(kind, type) and (value.__module__, value.__name__) in SAFE:
            return None
        return self._number(value)

    def reducer_override(self, value: Any) -> Any:
        actual = type(value)
        if (actual.__module__, actual.__name__) in SAFE or issubclass(actual, type):
            return NotImplemented
        return next(((kind, (kind(value),)) for kind in PLAIN if issubclass(actual, kind)), NotImplemented)


def following(iterator: Any) -> tuple[bool, Any]:
    """(whether there is one, the next)."""
    try:
        return True, next(iterator)
    except StopIteration:
        return False, None


ASKED: dict[str, Callable[..., Any]] = {
    "call": lambda function, args, kwargs: function(*args, **kwargs),
    "attribute": getattr,
    "item": operator.getitem,
    "length": len,
    "iterate": iter,
    "next": following,
}


class Candidate:
    """The candidate's end of the two pipes: answers until it is killed."""

    def __init__(self, calls: int, replies: int) -> None:
        self._calls, self._replies = calls, replies
        self._objects: list[Any] = []
        self._numbers: dict[int, int] = {}

    def serve(self, define: Callable[..., Any]) -> NoReturn:
        """Defines what the first message says, then answers one question after another."""
        order = self._receive()
        self._reply(lambda: define(*order))
        while True:
            self._answer(self._receive())

    def _call_back(self, number: int, args: Any, kwargs: Any) -> Any:
        self._send(("back", number, args, kwargs))
        while (message := self._receive())[0] == "ask":
            self._answer(message)
        if message[0] == "raise":
            raise as_error(*message[1:])
        return message[1]

    def _answer(self, message: Any) -> None:
        _, name, operands = message
        self._reply(lambda: ASKED[name](*operands))

    def _reply(self, work: Callable[[], Any]) -> None:
        try:
            self._send(("value", work()))
        except BaseException as error:
            self._send(raised(error))

    def _send(self, message: Any) -> None:
        buffer = io.BytesIO()
        PlainPickler(buffer, self._number).dump(message)
        write_frame(self._replies, buffer.getvalue())

    def _receive(self) -> Any:
        unpickler = pickle.Unpickler(io.BytesIO(read_frame(self._calls, 1 << 40)))
        unpickler.persistent_load = self._object  # type: ignore[method-assign]
        return unpickler.load()

    def _object(self, number: int) -> Any:
        return self._objects[number] if number >= 0 else Borrowed(-number - 1, self._call_back)

    def _number(self, value: Any) -> int:
        if type(value) is Borrowed:
            return -value.number - 1
        if id(value) not in self._numbers:
            self._numbers[id(value)] = len(self._objects)
            self._objects.append(value)
        return self._numbers[id(value)]
