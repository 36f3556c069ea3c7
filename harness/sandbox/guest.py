"""What runs inside the sandbox, as its PID 1: the test's process. It needs the standard library alone.

    harness ─ stdin: order, secret ─► this process ─ calls ─► the candidate's process (forked before the secret is read)
    harness ◄─ stdout: reports ────── this process ◄ replies ─ the candidate's process

The candidate's process never holds the test, the nonce or a descriptor to the harness: what it can say is the value
that one call returned, and that is read by an unpickler that knows plain builtin values only. It may not fork or start
a thread. The test's process cannot be killed from inside (PID 1), traced or read (not dumpable).

Not carried over a call: changes that the candidate makes to its arguments, iterators, functions, instances of its own
classes.
"""

from __future__ import annotations

import builtins
import contextlib
import ctypes
import fcntl
import io
import json
import os
import pickle
import resource
import select
import signal
import struct
import sys
from collections.abc import Callable
from typing import Any, NoReturn

FRAME = struct.Struct("<Q")
REPLY_BYTES = 16 << 20
FILE_BYTES = 16 << 20
OPEN_FILES = 64
WHY_CHARS = 200
SAFE = {
    ("builtins", "bytearray"),
    ("builtins", "complex"),
    ("builtins", "frozenset"),
    ("builtins", "int"),
    ("builtins", "list"),
    ("builtins", "range"),
    ("builtins", "set"),
    ("collections", "Counter"),
    ("collections", "OrderedDict"),
    ("collections", "defaultdict"),
    ("collections", "deque"),
    ("datetime", "date"),
    ("datetime", "datetime"),
    ("datetime", "time"),
    ("datetime", "timedelta"),
    ("decimal", "Decimal"),
    ("fractions", "Fraction"),
}
"""The types, besides None, bool, int, float, str, bytes, tuple, list and dict, that an answer may hold."""


class Expired(BaseException):
    """Time is up. Not an Exception, so that no test swallows it."""


class Gone(BaseException):
    """The candidate's process ended."""


class Uncarried(BaseException):
    """The test passes a value that cannot be carried to the candidate."""


class PlainUnpickler(pickle.Unpickler):
    """Reads builtin values and nothing that could run code. Raises UnpicklingError on anything else."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in SAFE:
            raise pickle.UnpicklingError(f"the answer holds a {module}.{name}")
        return super().find_class(module, name)


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


def drop_privileges(uid: int | None) -> None:
    """Becomes `uid` for good, and cannot be read or traced by its equals."""
    if uid is not None:
        os.setgroups([])
        os.setresgid(uid, uid, uid)
        os.setresuid(uid, uid, uid)
    libc = ctypes.CDLL(None, use_errno=True)
    set_dumpable = 4
    if libc.prctl(set_dumpable, 0, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "prctl failed")


def end_with(lifeline: int) -> None:
    """Ends this process, and with it all in its PID namespace, when the other end of the pipe `lifeline` closes.

    A parent's death signal would not do: bwrap as root, without capabilities, may not signal another user.
    """

    def look(number: int = 0, frame: object = None) -> None:
        if any(event & select.POLLHUP for _, event in poll.poll(0)):
            os._exit(1)

    poll = select.poll()
    poll.register(lifeline, 0)
    signal.signal(signal.SIGIO, look)
    fcntl.fcntl(lifeline, fcntl.F_SETOWN, os.getpid())
    fcntl.fcntl(lifeline, fcntl.F_SETFL, fcntl.fcntl(lifeline, fcntl.F_GETFL) | os.O_ASYNC)
    look()


def limit(cpu_s: int, memory_bytes: int, processes: int | None) -> None:
    """Resource limits of this process, which nothing inside can raise again."""
    resource.setrlimit(resource.RLIMIT_CPU, (cpu_s, cpu_s + 1))
    resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, memory_bytes))
    resource.setrlimit(resource.RLIMIT_FSIZE, (FILE_BYTES, FILE_BYTES))
    resource.setrlimit(resource.RLIMIT_NOFILE, (OPEN_FILES, OPEN_FILES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if processes is not None:
        resource.setrlimit(resource.RLIMIT_NPROC, (processes, processes))


def serve(source: str, entry_point: str, calls: int, replies: int) -> NoReturn:
    """The candidate's process: defines the candidate, then answers one call after another until it is killed."""
    namespace: dict[str, Any] = {"__name__": "candidate"}

    def define() -> None:
        exec(compile(source, "candidate.py", "exec"), namespace)
        if entry_point not in namespace:
            raise NameError(f"'{entry_point}' is not defined")

    def reply(work: Callable[[], Any]) -> None:
        try:
            message = pickle.dumps(("value", work()))
        except BaseException as error:
            message = pickle.dumps(("raise", type(error).__name__, message_of(error)))
        write_frame(replies, message)

    reply(define)
    while True:
        args, kwargs = pickle.loads(read_frame(calls, 1 << 40))
        reply(lambda: namespace[entry_point](*args, **kwargs))  # noqa: B023


def start_candidate(order: dict[str, Any]) -> tuple[int, int, int]:
    """Forks the candidate's process with nothing open but its two pipes; returns (pid, calls, replies)."""
    calls_out, calls_in = os.pipe()
    replies_out, replies_in = os.pipe()
    pid = os.fork()
    if pid:
        os.close(calls_out)
        os.close(replies_in)
        return pid, calls_in, replies_out
    with contextlib.suppress(BaseException):
        for number in (signal.SIGINT, signal.SIGIO, signal.SIGXCPU, signal.SIGALRM):
            signal.signal(number, signal.SIG_DFL)
        calls, replies = os.dup2(calls_out, 60), os.dup2(replies_in, 61)
        null = os.open("/dev/null", os.O_RDWR)
        for standard in (0, 1, 2):
            os.dup2(null, standard)
        os.closerange(3, 60)
        os.closerange(62, 4096)
        limit(order["cpu_s"], order["memory_bytes"], processes=0)
        serve(order["source"], order["entry_point"], calls, replies)
    os._exit(1)


def receive(replies: int) -> Any:
    """The candidate's answer, or what it raised, raised here."""
    message = PlainUnpickler(io.BytesIO(read_frame(replies, REPLY_BYTES))).load()
    if not isinstance(message, tuple) or len(message) < 2 or message[0] not in ("value", "raise"):
        raise ValueError("the answer is malformed")
    if message[0] == "value":
        return message[1]
    name, text = str(message[1]), str(message[-1])
    kind = getattr(builtins, name, None)
    error: Exception = RuntimeError(f"{name}: {text}")
    if isinstance(kind, type) and issubclass(kind, Exception):
        with contextlib.suppress(TypeError):
            error = kind(text) if text else kind()
    raise error


def how_it_ended(pid: int, cpu_s: int) -> str:
    """Why the candidate's process is gone, in words."""
    try:
        _, status, usage = os.wait4(pid, 0)
    except Expired:
        return "timed out"
    if not os.WIFSIGNALED(status):
        return f"the program exited with status {os.waitstatus_to_exitcode(status)}"
    number = os.WTERMSIG(status)
    if number == signal.SIGXCPU or usage.ru_utime + usage.ru_stime >= cpu_s:
        return "timed out"
    return f"the program was ended by {signal.Signals(number).name}"


def run_test(order: dict[str, Any], setup: str, test: str, pid: int, calls: int, replies: int) -> tuple[str, str]:
    """("pass" | "fail" | "fault", why): runs the test against the candidate over its two pipes."""

    def candidate(*args: Any, **kwargs: Any) -> Any:
        try:
            message = pickle.dumps((args, kwargs))
        except Exception as error:
            raise Uncarried(describe(error)) from None
        write_frame(calls, message)
        return receive(replies)

    try:
        receive(replies)
        namespace: dict[str, Any] = {"__name__": "test"}
        exec(compile(setup, "setup.py", "exec"), namespace)
        namespace[order["entry_point"]] = candidate
        exec(compile(test, "test.py", "exec"), namespace)
    except Expired:
        return "fail", "timed out"
    except Gone:
        return "fail", how_it_ended(pid, order["cpu_s"])
    except Uncarried as error:
        return "fault", f"the test passes a value that cannot be carried: {error}"
    except BaseException as error:
        return "fail", describe(error)
    return "pass", ""


def expire(number: int, frame: object) -> NoReturn:
    raise Expired


def main() -> NoReturn:
    """Reads the order, forks the candidate, reads the secret, runs the test, reports, ends.

    Argument: the reading end of a pipe whose writing end bwrap alone may hold.
    """
    lifeline = int(sys.argv[1])
    os.closerange(3, lifeline)
    os.closerange(lifeline + 1, 4096)
    order = json.loads(read_frame(0, 1 << 30))
    reports = os.dup(1)
    os.dup2(os.open("/dev/null", os.O_RDWR), 1)
    drop_privileges(order["uid"])
    end_with(lifeline)
    limit(2 * order["cpu_s"], order["memory_bytes"], processes=None)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGXCPU, expire)
    signal.signal(signal.SIGALRM, expire)
    signal.setitimer(signal.ITIMER_REAL, order["wall_s"])
    pid, calls, replies = start_candidate(order)
    secret = json.loads(read_frame(0, 1 << 30))

    def report(outcome: str, why: str = "") -> None:
        line = json.dumps({"nonce": secret["nonce"], "outcome": outcome, "why": why}) + "\n"
        os.write(reports, line.encode())

    report("started")
    outcome, why = run_test(order, secret["setup"], secret["test"], pid, calls, replies)
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGXCPU, signal.SIG_IGN)
    report(outcome, why)
    os._exit(0)


if __name__ == "__main__":
    main()
