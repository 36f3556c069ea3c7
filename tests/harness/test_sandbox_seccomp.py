"""The system-call filter, read back by an interpreter of the instructions that it uses, and asked of the kernel."""

from __future__ import annotations

import platform
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlhf_bench.harness.sandbox import Outcome, Program, level, run_tests, seccomp
from rlhf_bench.harness.sandbox.confine import SELF

ALLOW, KILL, EPERM, ENOSYS = 0x7FFF0000, 0x80000000, 0x00050001, 0x00050026
MACHINES = {"x86_64": (0, 0xC000003E, 56), "aarch64": (1, 0xC00000B7, 220)}
NAMESPACES = [0x00020000, 0x02000000, 0x04000000, 0x08000000, 0x10000000, 0x20000000, 0x40000000, 0x00000080]
machines = pytest.mark.parametrize("machine", MACHINES)
ME = 4321


def denied(machine: str) -> list[int]:
    """The numbers of the calls that no process makes."""
    column = MACHINES[machine][0]
    return [number for numbers in seccomp.NUMBERS.values() if (number := numbers[column]) is not None]


def decide(machine: str, number: int, audit: int | None = None, flags: int = 0) -> int:
    """What the filter of all returns for this call."""
    return run(seccomp.program(machine), machine, number, audit, flags, 0)


def decide_for_candidate(machine: str, number: int, first: int = 0, second: int = 0) -> int:
    """What the candidate's further filter returns for this call in the process ME."""
    code = seccomp.candidate_program(machine)
    assert code is not None
    return run(code.replace(struct.pack("=I", SELF), struct.pack("=I", ME)), machine, number, None, first, second)


def run(code: bytes | None, machine: str, number: int, audit: int | None, first: int, second: int) -> int:
    """Interprets the filter: struct seccomp_data is nr, arch, instruction pointer, six arguments."""
    arch = MACHINES[machine][1] if audit is None else audit
    data = struct.pack("<IIQ6Q", number, arch, 0, first, second, *[0] * 4)
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
    assert {decide(machine, number) for number in denied(machine)} == {EPERM}


@given(st.sampled_from(list(MACHINES)), st.integers(0, 449))
def test_every_other_call_is_allowed(machine: str, number: int) -> None:
    if number not in denied(machine) and number != 435:
        assert decide(machine, number) == ALLOW


@given(st.sampled_from(list(MACHINES)), st.integers(450, 0x3FFFFFFF))
def test_calls_newer_than_the_list_do_not_exist(machine: str, number: int) -> None:
    assert decide(machine, number) == ENOSYS


@given(st.sampled_from(list(MACHINES)), st.sampled_from(sorted(seccomp.SIGNALS)), st.integers(0, 0xFFFFFFFF))
def test_the_candidate_signals_itself_alone(machine: str, name: str, target: int) -> None:
    number = seccomp.SIGNALS[name][MACHINES[machine][0]]
    assert decide_for_candidate(machine, number, ME) == ALLOW
    assert decide_for_candidate(machine, number, target) == (ALLOW if target == ME else EPERM)


@machines
def test_the_candidate_limits_itself_alone_keeps_its_death_signal_and_owns_no_pipe(machine: str) -> None:
    column = MACHINES[machine][0]
    limits = {target: decide_for_candidate(machine, seccomp.PRLIMIT[column], target) for target in (0, ME, 1, ME + 1)}
    assert limits == {0: ALLOW, ME: ALLOW, 1: EPERM, ME + 1: EPERM}
    options = {option: decide_for_candidate(machine, seccomp.PRCTL[column], option) for option in (0, 1, 2, 4, 22)}
    assert options == {0: ALLOW, 1: EPERM, 2: ALLOW, 4: ALLOW, 22: ALLOW}
    commands = {each: decide_for_candidate(machine, seccomp.FCNTL[column], 61, each) for each in (3, 4, 8, 9, 10, 15)}
    assert commands == {3: ALLOW, 4: ALLOW, 8: EPERM, 9: ALLOW, 10: EPERM, 15: EPERM}


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
    column = MACHINES[machine][0]
    further = [seccomp.PRLIMIT[column], seccomp.PRCTL[column], seccomp.FCNTL[column]]
    numbers = [*denied(machine), *(pair[column] for pair in seccomp.SIGNALS.values()), *further]
    assert len(set(numbers)) == len(numbers)


def test_an_unknown_processor_has_no_filter() -> None:
    assert seccomp.program("sparc64") is None
    assert seccomp.candidate_program("sparc64") is None


@pytest.mark.skipif(not level().safe or seccomp.program() is None, reason="no sandbox with a filter here")
def test_the_kernel_denies_every_listed_call() -> None:
    source = """
import ctypes
libc = ctypes.CDLL(None, use_errno=True)
def denied(numbers):
    return [name for name, number in numbers.items() if libc.syscall(number, 0, 0, 0, 0, 0, 0) == -1
            and ctypes.get_errno() == 1]
"""
    column = MACHINES[platform.machine()][0]
    numbers = {name: pair[column] for name, pair in seccomp.NUMBERS.items() if pair[column] is not None}
    test = f"numbers = {numbers!r}\ngot = denied(numbers)\nassert got == list(numbers), set(numbers) - set(got)"
    assert run_tests(Program(source, test, "denied")) == Outcome(True)
