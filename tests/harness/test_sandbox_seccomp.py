"""The system-call filter, read back by an interpreter of the instructions that it uses, and asked of the kernel."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlhf_bench.harness.sandbox import Outcome, Program, level, run_tests, seccomp

ALLOW, KILL, EPERM, ENOSYS = 0x7FFF0000, 0x80000000, 0x00050001, 0x00050026
MACHINES = {"x86_64": (0, 0xC000003E, 56), "aarch64": (1, 0xC00000B7, 220)}
NAMESPACES = [0x00020000, 0x02000000, 0x04000000, 0x08000000, 0x10000000, 0x20000000, 0x40000000, 0x00000080]
machines = pytest.mark.parametrize("machine", MACHINES)


def decide(machine: str, number: int, audit: int | None = None, flags: int = 0) -> int:
    """What the filter returns for this call: struct seccomp_data is nr, arch, instruction pointer, six arguments."""
    data = struct.pack("<IIQ6Q", number, MACHINES[machine][1] if audit is None else audit, 0, flags, *[0] * 5)
    code = seccomp.program(machine)
    assert code is not None
    lines = list(struct.iter_unpack("<HBBI", code))
    at, held = 0, 0
    while True:
        operation, yes, no, value = lines[at]
        at += 1
        if operation == 0x20:
            (held,) = struct.unpack_from("<I", data, value)
        elif operation == 0x06:
            return int(value)
        else:
            true = {0x15: held == value, 0x35: held >= value, 0x45: bool(held & value)}[operation]
            at += yes if true else no


@machines
def test_every_listed_call_is_denied(machine: str) -> None:
    column = MACHINES[machine][0]
    assert {decide(machine, numbers[column]) for numbers in seccomp.NUMBERS.values()} == {EPERM}


@given(st.sampled_from(list(MACHINES)), st.integers(0, 0x3FFFFFFF))
def test_every_other_call_is_allowed(machine: str, number: int) -> None:
    column = MACHINES[machine][0]
    denied = {numbers[column] for numbers in seccomp.NUMBERS.values()} | {435}
    if number not in denied:
        assert decide(machine, number) == ALLOW


@machines
def test_clone_makes_processes_and_threads_but_no_namespaces(machine: str) -> None:
    clone = MACHINES[machine][2]
    assert decide(machine, clone, flags=17) == ALLOW
    assert decide(machine, clone, flags=0x3D0F00) == ALLOW
    assert {decide(machine, clone, flags=17 | flag) for flag in NAMESPACES} == {EPERM}
    assert decide(machine, 435) == ENOSYS


@machines
def test_calls_of_another_architecture_kill(machine: str) -> None:
    assert decide(machine, 0, audit=0x40000003) == KILL
    assert decide(machine, 0x40000000) == KILL


@machines
def test_no_number_stands_twice(machine: str) -> None:
    numbers = [pair[MACHINES[machine][0]] for pair in seccomp.NUMBERS.values()]
    assert len(set(numbers)) == len(numbers)


def test_an_unknown_processor_has_no_filter() -> None:
    assert seccomp.program("sparc64") is None


@pytest.mark.skipif(not level().safe or seccomp.program() is None, reason="no sandbox with a filter here")
def test_the_kernel_denies_every_listed_call() -> None:
    source = """
import ctypes, platform
libc = ctypes.CDLL(None, use_errno=True)
def denied(numbers):
    column = 0 if platform.machine() == "x86_64" else 1
    return [name for name, pair in numbers.items() if libc.syscall(pair[column], 0, 0, 0, 0, 0, 0) == -1
            and ctypes.get_errno() == 1]
"""
    test = f"numbers = {seccomp.NUMBERS!r}\ngot = denied(numbers)\nassert got == list(numbers), set(numbers) - set(got)"
    assert run_tests(Program(source, test, "denied")) == Outcome(True)
