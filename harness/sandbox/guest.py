"""What runs inside the sandbox: a small fork server. It needs the standard library alone.

    harness ─ stdin: setup ─► the server ─ forks, for every program ─► the tester ─ forks ─► the candidate
    harness ─ stdin: order (program, test, nonce) ───────────────────► the tester ─ calls ─► the candidate
    harness ◄─ stdout: reports with the nonce ──────────────────────── the tester ◄ replies ─ the candidate
    harness ◄─ stdout: done ─ the server, when both are gone and nothing is left

The candidate's process is forked before the order is read: it never holds the test, the nonce or a descriptor to the
harness. What it can say are plain values, read by an unpickler that knows no others, and handles to objects that stay
with it. It may not fork, start a thread, or signal or change another process. The server reads no order: no later
program finds an earlier one in the memory that it inherits. After anything but a clean report, and after a program
that touched /tmp, the server ends, and the harness starts another sandbox.

Not carried over a call: changes that the candidate makes to its arguments.
"""

from __future__ import annotations

import ast
import builtins
import contextlib
import importlib
import json
import os
import signal
import sys
import types
from typing import Any, NoReturn

from rlhf_bench.harness.sandbox.confine import confine, die_with_parent, end_with, give_up_the_rest, limit
from rlhf_bench.harness.sandbox.wire import Candidate, Gone, Link, Uncarried, describe, read_frame

DONE = b"done\n"
ORDER_BYTES = 1 << 30
UNCLEAN = 3
CALLS, REPLIES = 60, 61
COMMON = (  # noqa: SIM905
    "abc array bisect calendar cmath collections copy dataclasses datetime decimal enum fractions functools hashlib "
    "heapq inspect itertools json math numbers operator queue random re statistics string textwrap threading time "
    "traceback types typing unicodedata"
).split()
"""Modules that the server imports once, so that no program has to."""


class Expired(BaseException):
    """Time is up. Not an Exception, so that no test swallows it."""


def offered(defined: Any, test: str) -> dict[str, Any]:
    """Of the candidate's names those that the test may see: none that means something to the test already.

    Hidden are names with an underscore (`__builtins__` would replace them all: `define` sends none, but what comes over
    the pipe may not be its answer); builtins' names, except where the test uses no other of its names and that one
    ("def sum"): then it is what is tested; and names of COMMON modules whose attributes the test uses: those are the
    test's own modules, if the candidate imported them.
    """
    values, modules = defined
    nodes = list(ast.walk(ast.parse(test)))
    used = {node.id for node in nodes if isinstance(node, ast.Name)}
    asked = {node.value.id for node in nodes if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name)}
    builtin = {name for name in values if hasattr(builtins, name)}
    hidden = builtin | (asked & set(COMMON))
    shown = {name: value for name, value in values.items() if name not in hidden and not name.startswith("_")}
    tested = sorted(builtin & used)
    if len(tested) == 1 and not used & shown.keys():
        shown[tested[0]] = values[tested[0]]
    return {name: sys.modules[name] for name in modules if name in COMMON} | shown


def run_test(order: dict[str, Any], pid: int, link: Link) -> tuple[str, str, bool]:
    """("pass" | "fail" | "fault", why, whether all went cleanly): runs the test against the candidate."""
    namespace: dict[str, Any] = {"__name__": "test"}
    try:
        link.send((order["source"], order["entry_point"], order["cpu_s"], order["memory_bytes"]))
        defined = link.receive()
        if order["entry_point"]:
            exec(compile(order["setup"], "setup.py", "exec"), namespace)
            namespace[order["entry_point"]] = defined
        else:
            namespace |= offered(defined, order["test"])
            exec(compile(order["setup"], "setup.py", "exec"), namespace)
        exec(compile(order["test"], "test.py", "exec"), namespace)
    except Expired:
        return "fail", "timed out", False
    except Gone:
        return "fail", how_it_ended(pid, order["cpu_s"]), False
    except Uncarried as error:
        return "fault", f"the test passes a value that cannot be carried: {error}", True
    except BaseException as error:
        return "fail", describe(error), True
    return "pass", "", True


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


def expire(number: int, frame: object) -> NoReturn:
    raise Expired


def be_tester(setup: dict[str, Any], server: int) -> NoReturn:
    """Forks the candidate's process, reads the order, runs the test, reports, ends; status 0 if all went cleanly."""
    die_with_parent(server)
    pid, calls, replies = start_candidate(setup)
    order = json.loads(read_frame(0, ORDER_BYTES))
    reports = os.dup(1)
    null = os.open("/dev/null", os.O_RDWR)
    for standard in (0, 1, 2):
        os.dup2(null, standard)
    limit(2 * order["cpu_s"], order["memory_bytes"])
    signal.signal(signal.SIGIO, signal.SIG_IGN)
    signal.signal(signal.SIGXCPU, expire)
    signal.signal(signal.SIGALRM, expire)
    signal.setitimer(signal.ITIMER_REAL, order["wall_s"])

    def report(outcome: str, why: str = "") -> None:
        line = json.dumps({"nonce": order["nonce"], "outcome": outcome, "why": why}) + "\n"
        os.write(reports, line.encode())

    report("started")
    outcome, why, clean = run_test(order, pid, Link(calls, replies))
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGXCPU, signal.SIG_IGN)
    report(outcome, why)
    os._exit(0 if clean else UNCLEAN)


def define(source: str, entry_point: str, cpu_s: int, memory_bytes: int) -> Any:
    """Runs the source; returns its entry point, or, without one, (its public values, its modules' names)."""
    limit(cpu_s, memory_bytes)
    namespace: dict[str, Any] = {"__name__": "candidate"}
    exec(compile(source, "candidate.py", "exec"), namespace)
    if entry_point:
        if entry_point not in namespace:
            raise NameError(f"'{entry_point}' is not defined")
        return namespace[entry_point]
    public = {name: value for name, value in namespace.items() if not name.startswith("_")}
    modules = [name for name, value in public.items() if type(value) is types.ModuleType and value.__name__ == name]
    return {name: value for name, value in public.items() if type(value) is not types.ModuleType}, modules


def start_candidate(setup: dict[str, Any]) -> tuple[int, int, int]:
    """Forks the candidate's process with nothing open but its two pipes; returns (pid, calls, replies)."""
    calls_out, calls_in = os.pipe()
    replies_out, replies_in = os.pipe()
    parent = os.getpid()
    pid = os.fork()
    if pid:
        os.close(calls_out)
        os.close(replies_in)
        return pid, calls_in, replies_out
    with contextlib.suppress(BaseException):
        for number in (signal.SIGINT, signal.SIGIO):
            signal.signal(number, signal.SIG_DFL)
        os.dup2(calls_out, CALLS)
        os.dup2(replies_in, REPLIES)
        null = os.open("/dev/null", os.O_RDWR)
        for standard in (0, 1, 2):
            os.dup2(null, standard)
        os.closerange(3, CALLS)
        os.closerange(REPLIES + 1, 4096)
        give_up_the_rest(setup, parent)
        Candidate(CALLS, REPLIES).serve(define)
    os._exit(1)


def traces(namespace: bool) -> Any:
    """What a program could leave behind: the state of the one folder that it can write to, if there is one."""
    if not namespace:
        return None
    seen = os.stat("/tmp")
    return seen.st_mode, seen.st_mtime_ns, seen.st_ctime_ns, os.listdir("/tmp")


def clear(namespace: bool) -> None:
    """Kills and reaps all that is left. Without a PID namespace the candidate's process died with the tester."""
    with contextlib.suppress(ProcessLookupError):
        if namespace:
            os.kill(-1, signal.SIGKILL)
    with contextlib.suppress(ChildProcessError):
        while True:
            os.wait()


def main() -> NoReturn:
    """Reads the setup, then serves one program after another until one ends uncleanly or the harness is gone.

    Argument: the reading end of a pipe whose writing end bwrap, or else the harness, alone holds.
    """
    lifeline = int(sys.argv[1])
    os.closerange(3, lifeline)
    os.closerange(lifeline + 1, 4096)
    setup = json.loads(read_frame(0, ORDER_BYTES))
    for name in COMMON:
        importlib.import_module(name)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    confine(setup)
    end_with(lifeline)
    namespace, server = not setup["landlock"], os.getpid()
    while True:
        before = traces(namespace)
        tester = os.fork()
        if not tester:
            with contextlib.suppress(Gone):
                be_tester(setup, server)
            os._exit(UNCLEAN)
        _, status = os.waitpid(tester, 0)
        clear(namespace)
        if status or traces(namespace) != before:
            os._exit(0)
        os.write(1, DONE)


if __name__ == "__main__":
    main()
