"""Warm sandboxes, and one program at a time in each.

A sandbox serves many programs, but only clean ones: after a time-out, a death, a touched /tmp or any surprise it is
killed and another is started. Idle ones wait in this process and end with it.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import secrets
import subprocess
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import IO, Any

from rlhf_bench.harness.sandbox import guest, launch, seccomp, wire
from rlhf_bench.harness.sandbox.launch import Kind

START_S = 30.0
CLOSE_S = 1.0
WHY_CHARS = 300


@dataclass(frozen=True, slots=True)
class Program:
    """Python to judge: `test` runs after `setup`, in a process of its own, and calls `entry_point`.

    `source`, which defines the entry point, is foreign; `setup` and `test` come from the benchmark. Without an entry
    point the test sees every public name that the source defines, except names of builtins and standard modules.
    """

    source: str
    test: str
    entry_point: str = ""
    setup: str = ""


@dataclass(frozen=True, slots=True)
class Outcome:
    """Whether the test passed; None if it could not be run, which is no failure of the program. `why` is one line."""

    passed: bool | None
    why: str = ""


class Sandbox:
    """One running sandbox. Raises OSError where it cannot be started."""

    def __init__(self, kind: Kind, bwrap: str) -> None:
        self._process, self._held = _starter(os.getpid()).submit(_start, kind, bwrap).result()
        self._in, self._out, self._err = _pipes(self._process)
        self._send(launch.setup(kind))
        self.clean = True
        """Whether the last program left nothing behind, so that the next may come."""

    def run(self, program: Program, limits: dict[str, int]) -> Outcome | None:
        """The outcome of one program; None where the sandbox failed it: died before, or while it ran, on its own."""
        self.clean = False
        nonce = secrets.token_hex(16)
        expired = threading.Event()

        def expire() -> None:
            expired.set()
            self._process.kill()

        backstop = threading.Timer(limits["wall_s"] + START_S, expire)
        backstop.daemon = True
        backstop.start()
        try:
            self._send({"nonce": nonce, **asdict(program), **limits})
            reports = list(self._reports(nonce))
        finally:
            backstop.cancel()
        if not reports:
            return None
        final = reports[-1]
        if final["outcome"] == "started":
            if expired.is_set():
                return Outcome(False, "timed out")
            return Outcome(False, "the test's process was ended") if self._process.wait() == 0 else None
        return Outcome({"pass": True, "fail": False}.get(final["outcome"]), final["why"])

    def close(self) -> str:
        """Ends all that is in the sandbox, by force unless it waits for a program; returns the last line it said."""
        self._in.close()
        if self.clean:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(CLOSE_S)
        self._process.kill()
        if self._held is not None:
            os.close(self._held)
            self._held = None
        said = self._err.read().decode(errors="replace").strip().splitlines()
        status = self._process.wait()
        self._out.close()
        self._err.close()
        return said[-1][:WHY_CHARS] if said else f"status {status}"

    def _send(self, message: dict[str, Any]) -> None:
        with contextlib.suppress(wire.Gone):
            wire.write_frame(self._in.fileno(), json.dumps(message).encode())

    def _reports(self, nonce: str) -> Iterator[dict[str, Any]]:
        """What the test's process reports; clean if nothing else is said, and the server ends it with DONE."""
        for line in iter(self._out.readline, b""):
            if line == guest.DONE:
                self.clean = True
                return
            try:
                report = json.loads(line)
                if not secrets.compare_digest(report.pop("nonce"), nonce):
                    return
            except (ValueError, KeyError, TypeError, AttributeError):
                return
            yield report


_idle: dict[tuple[int, Kind, str], list[Sandbox]] = {}
"""By process (a forked one has none), kind and bwrap."""


def execute(kind: Kind, bwrap: str, program: Program, *, cpu_s: int, wall_s: int, memory_bytes: int) -> Outcome:
    """Runs the program's test in a sandbox of this kind. Two that fail, one after the other: passed=None."""
    idle = _idle.setdefault((os.getpid(), kind, bwrap), [])
    limits = {"cpu_s": cpu_s, "wall_s": wall_s, "memory_bytes": memory_bytes}
    said = ""
    for warm in (True, False):
        try:
            sandbox = _take(idle, kind, bwrap) if warm else Sandbox(kind, bwrap)
        except OSError as error:
            return Outcome(None, f"the sandbox did not start: {error}")
        outcome = None
        try:
            outcome = sandbox.run(program, limits)
        finally:
            if outcome is not None and sandbox.clean and seccomp.program() is not None:
                idle.append(sandbox)
            else:
                said = sandbox.close()
        if outcome is not None:
            return outcome
    return Outcome(None, f"the sandbox failed twice: {said}")


def close_idle() -> None:
    """Ends the sandboxes that wait in this process."""
    for (pid, _, _), idle in list(_idle.items()):
        while pid == os.getpid() and idle:
            idle.pop().close()


atexit.register(close_idle)


def _take(idle: list[Sandbox], kind: Kind, bwrap: str) -> Sandbox:
    try:
        return idle.pop()
    except IndexError:
        return Sandbox(kind, bwrap)


@lru_cache(maxsize=2)
def _starter(pid: int) -> ThreadPoolExecutor:
    """The thread that starts all sandboxes of this process: a death signal comes when the starting thread ends."""
    return ThreadPoolExecutor(1, "sandbox-starter")


def _start(kind: Kind, bwrap: str) -> tuple[subprocess.Popen[bytes], int | None]:
    """The process and, without bwrap, the end of the lifeline that this process holds."""
    lifeline = os.pipe()
    held = None
    pipe = subprocess.PIPE
    try:
        with launch.filter_file() as filter_fd:
            words = launch.command(kind, bwrap, filter_fd, lifeline)
            fds = [lifeline[0], *([] if kind == "landlock" else [lifeline[1]])]
            fds += [] if filter_fd is None or kind == "landlock" else [filter_fd]
            process = subprocess.Popen(
                words,
                stdin=pipe,
                stdout=pipe,
                stderr=pipe,
                env={"PYTHONHASHSEED": "0"} if kind == "landlock" else {},
                cwd="/",
                pass_fds=fds,
                start_new_session=kind == "landlock",
                bufsize=-1,
            )
        if kind == "landlock":
            held = os.dup(lifeline[1])
    finally:
        for end in lifeline:
            os.close(end)
    return process, held


def _pipes(process: subprocess.Popen[bytes]) -> tuple[IO[bytes], IO[bytes], IO[bytes]]:
    assert process.stdin is not None and process.stdout is not None and process.stderr is not None
    return process.stdin, process.stdout, process.stderr
