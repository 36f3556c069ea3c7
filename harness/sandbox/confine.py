"""What the guest's processes do to themselves before foreign code is read: privileges, limits, filter, Landlock."""

from __future__ import annotations

import ctypes
import fcntl
import os
import resource
import select
import signal
import struct
import sys
from typing import Any

FILE_BYTES = 16 << 20
OPEN_FILES = 64
SELF = 0x5E1F5E1F
"""Stands in the candidate's filter for its process id."""
LIBC = ctypes.CDLL(None, use_errno=True)
SET_PDEATHSIG, SET_DUMPABLE, SET_SECCOMP, SET_SUBREAPER, SET_NO_NEW_PRIVS = 1, 4, 22, 36, 38


def prctl(option: int, *values: Any) -> None:
    """Raises OSError where the kernel refuses."""
    if LIBC.prctl(option, *values, *[ctypes.c_ulong(0)] * (4 - len(values))):
        raise OSError(ctypes.get_errno(), f"prctl {option} failed")


def die_with_parent(parent: int) -> None:
    """This process is killed when `parent`, which forked it, ends; at once if it has ended already."""
    prctl(SET_PDEATHSIG, ctypes.c_ulong(signal.SIGKILL))
    if os.getppid() != parent:
        os._exit(1)


def filter_calls(code: bytes) -> None:
    """Puts this process under a system-call filter (seccomp.py)."""

    class Program(ctypes.Structure):
        _fields_ = (("length", ctypes.c_ushort), ("code", ctypes.c_char_p))

    prctl(SET_SECCOMP, ctypes.c_ulong(2), ctypes.byref(Program(len(code) // 8, code)))


def fence(paths: list[str], abi: int) -> None:
    """Puts this process under Landlock: of all files it may read those below `paths` and use /dev/null, no network.

    Source: linux/landlock.h and Documentation/userspace-api/landlock.rst.
    """

    def call(number: int, *values: Any) -> int:
        result: int = LIBC.syscall(ctypes.c_long(number), *values)
        if result < 0:
            raise OSError(ctypes.get_errno(), "Landlock refused")
        return result

    execute, write, read_file, read_folder = 1, 2, 4, 8
    files = (1 << (16 if abi >= 5 else 15)) - 1
    words = [files] + [3] * (abi >= 4) + [3] * (abi >= 6)
    attributes = struct.pack(f"={len(words)}Q", *words)
    ruleset = call(444, attributes, ctypes.c_size_t(len(attributes)), ctypes.c_uint(0))
    rules = [(path, execute | read_file | (read_folder if os.path.isdir(path) else 0)) for path in paths]
    for path, allowed in [*rules, ("/dev/null", write | read_file)]:
        place = os.open(path, os.O_PATH)
        call(445, ctypes.c_int(ruleset), ctypes.c_int(1), struct.pack("=Qi", allowed, place), ctypes.c_uint(0))
        os.close(place)
    call(446, ctypes.c_int(ruleset), ctypes.c_uint(0))
    os.close(ruleset)


def confine(setup: dict[str, Any]) -> None:
    """Gives up what the server has over its children: privileges, being read or traced, and what bwrap left open.

    With two user ids, the first is the candidate's: the server may kill it, and it may not change the server.
    """
    if setup["uids"]:
        candidate, own = setup["uids"]
        os.setgroups([])
        os.setresgid(own, own, own)
        os.setresuid(candidate, own, own)
    prctl(SET_DUMPABLE, ctypes.c_ulong(0))
    prctl(SET_NO_NEW_PRIVS, ctypes.c_ulong(1))
    prctl(SET_SUBREAPER, ctypes.c_ulong(1))
    if setup["landlock"]:
        fence(setup["landlock"]["paths"], setup["landlock"]["abi"])
    if setup["filter"]:
        filter_calls(bytes.fromhex(setup["filter"]))


def give_up_the_rest(setup: dict[str, Any], parent: int) -> None:
    """Makes this process the candidate's: it starts no other, and signals and changes none."""
    if setup["uids"]:
        os.setresuid(*[setup["uids"][0]] * 3)
    die_with_parent(parent)
    resource.setrlimit(resource.RLIMIT_NPROC, (0, 0))
    if setup["own_filter"]:
        code = bytes.fromhex(setup["own_filter"])
        filter_calls(code.replace(SELF.to_bytes(4, sys.byteorder), os.getpid().to_bytes(4, sys.byteorder)))


def limit(cpu_s: int, memory_bytes: int) -> None:
    """Resource limits of this process, which nothing inside can raise again."""
    resource.setrlimit(resource.RLIMIT_CPU, (cpu_s, cpu_s + 1))
    resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, memory_bytes))
    resource.setrlimit(resource.RLIMIT_FSIZE, (FILE_BYTES, FILE_BYTES))
    resource.setrlimit(resource.RLIMIT_NOFILE, (OPEN_FILES, OPEN_FILES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def end_with(lifeline: int) -> None:
    """Ends this process, and with it its children, when the other end of the pipe `lifeline` closes.

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
