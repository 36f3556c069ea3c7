"""Foreign code: what is right passes, what is hostile does not pass, does not get out and leaves nothing behind."""

from __future__ import annotations

import gzip
import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlhf_bench.harness.sandbox import NONE, Outcome, Program, SandboxLevel, level, pool, run_tests
from rlhf_bench.harness.sandbox.launch import find_bwrap, spare_uid

needs_sandbox = pytest.mark.skipif(not level().safe, reason=f"no sandbox here: {level().description}")
LEVELS = {step: level((step,)) for step in ("bwrap", "landlock")}
at_each_level = pytest.mark.parametrize(
    "at",
    [
        pytest.param(found, id=step, marks=[] if found.safe else pytest.mark.skip(f"no sandbox: {found.description}"))
        for step, found in LEVELS.items()
    ],
)
needs_bwrap = pytest.mark.skipif(find_bwrap() is None, reason="no bwrap here")

ADD = Program("def add(a, b):\n    return a + b\n", "assert add(2, 3) == 5\n", "add")


atoms = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.binary()
plain = st.recursive(
    atoms,
    lambda inner: st.lists(inner) | st.dictionaries(atoms, inner) | st.tuples(inner, inner) | st.sets(atoms),
    max_leaves=8,
)


@dataclass(frozen=True)
class Canary:
    """What a program that gets out would find: a secret in a file anyone may read, and in what a port answers."""

    folder: Path
    secret: str
    listener: socket.socket

    @property
    def port(self) -> int:
        return int(self.listener.getsockname()[1])

    def untouched(self) -> bool:
        try:
            self.listener.accept()[0].close()
        except BlockingIOError:
            return sorted(os.listdir(self.folder)) == ["secret"]
        return False


@pytest.fixture
def canary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Canary]:
    secret = secrets.token_hex(16)
    monkeypatch.setenv("CANARY", secret)
    folder = tmp_path / "canary"
    folder.mkdir(mode=0o777)
    folder.chmod(0o777)
    (folder / "secret").write_text(secret)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setblocking(False)
        yield Canary(folder, secret, listener)


# Each defines attempt(folder, port); the test passes on any non-empty text or on 2, so a program that gets something
# out, or forges its way past the test, would pass.
HOSTILE = {
    "read a secret file": "def attempt(folder, port):\n    return open(folder + '/secret').read()",
    "list the folder": "import os\ndef attempt(folder, port):\n    return ' '.join(os.listdir(folder))",
    "read /etc/shadow": "def attempt(folder, port):\n    return open('/etc/shadow').read()",
    "read /etc/passwd": "def attempt(folder, port):\n    return open('/etc/passwd').read()",
    "list a home folder": "import os\ndef attempt(folder, port):\n    return ' '.join(os.listdir('/root'))",
    "read the environment": "import os\ndef attempt(folder, port):\n    return os.environ.get('CANARY', '')",
    "read /proc/1/environ": "def attempt(folder, port):\n    return open('/proc/1/environ').read()",
    "read the memory of PID 1": "def attempt(folder, port):\n    return str(open('/proc/1/mem', 'rb').read(1))",
    "open a connection": (
        "import socket\n"
        "def attempt(folder, port):\n"
        "    socket.create_connection(('127.0.0.1', port), timeout=2)\n"
        "    return 'connected'"
    ),
    "send a datagram": (
        "import socket\n"
        "def attempt(folder, port):\n"
        "    return str(socket.socket(type=socket.SOCK_DGRAM).sendto(b'x', ('127.0.0.1', port)))"
    ),
    "make a unix socket": "import socket\ndef attempt(folder, port):\n    return str(socket.socketpair())",
    "write a file outside": "def attempt(folder, port):\n    return str(open(folder + '/written', 'w').write('x'))",
    "write to the system": "def attempt(folder, port):\n    return str(open('/usr/lib/written', 'w').write('x'))",
    "write to the root": "def attempt(folder, port):\n    return str(open('/written', 'w').write('x'))",
    "write to /dev": "def attempt(folder, port):\n    return str(open('/dev/written', 'w').write('x'))",
    "overwrite the guest": "def attempt(folder, port):\n    return str(open('/guest.py', 'w').write('x'))",
    "fork": "import os\ndef attempt(folder, port):\n    return str(os.fork())",
    "fork bomb": "import os\nwhile True:\n    os.fork()",
    "swallow fork errors": (
        "import os\n"
        "started = []\n"
        "def attempt(folder, port):\n"
        "    for _ in range(1000):\n"
        "        try:\n"
        "            started.append(os.fork())\n"
        "        except OSError:\n"
        "            pass\n"
        "    return ' '.join(map(str, started))"
    ),
    "start a thread": (
        "import threading\ndef attempt(folder, port):\n    threading.Thread(target=print).start()\n    return 'started'"
    ),
    "start a shell": "import os\ndef attempt(folder, port):\n    return os.popen('echo out').read()",
    "take 3 GiB": "def attempt(folder, port):\n    return str(len(bytearray(3 << 30)))",
    "grow without end": "held = []\nwhile True:\n    held.append(bytearray(1 << 26))",
    "fill the disk": (
        "def attempt(folder, port):\n"
        "    for number in range(64):\n"
        "        open(f'/tmp/{number}', 'wb').write(bytes(15 << 20))\n"
        "    return 'filled'"
    ),
    "write a large file": "def attempt(folder, port):\n    return str(open('/tmp/large', 'wb').write(bytes(65 << 20)))",
    "loop for ever": "while True:\n    pass",
    "loop and ignore the signal": (
        "import signal\nfor number in range(1, 65):\n    try:\n        signal.signal(number, signal.SIG_IGN)\n"
        "    except (OSError, ValueError):\n        pass\nwhile True:\n    pass"
    ),
    "wait for ever": "import time\ntime.sleep(1000)",
    "close the pipes and wait": "import os, time\nos.closerange(0, 64)\ntime.sleep(1000)",
    "os._exit(0)": "import os\nos._exit(0)",
    "sys.exit(0)": "import sys\nsys.exit(0)",
    "os._exit(0) in the call": "import os\ndef attempt(folder, port):\n    os._exit(0)",
    "raise SystemExit in the call": "def attempt(folder, port):\n    raise SystemExit(0)",
    "segfault": "import ctypes\ndef attempt(folder, port):\n    ctypes.string_at(0)",
    "print a fake report everywhere": (
        "import json, os\n"
        "for fd in range(256):\n"
        "    try:\n"
        "        os.write(fd, (json.dumps({'nonce': '', 'outcome': 'pass', 'why': ''}) + chr(10)).encode())\n"
        "    except OSError:\n"
        "        pass\n"
        "os._exit(0)"
    ),
    "find the nonce in frames and objects": (
        "import gc, sys\n"
        "def attempt(folder, port):\n"
        "    frame, seen = sys._getframe(), []\n"
        "    while frame:\n"
        "        seen.append(dict(frame.f_locals))\n"
        "        seen.append(frame.f_globals)\n"
        "        frame = frame.f_back\n"
        "    hold = [one for one in gc.get_objects() if isinstance(one, dict)] + seen\n"
        "    return ' '.join(str(one['nonce']) for one in hold if 'nonce' in one and one['nonce'])"
    ),
    "find the test in memory": (
        "import gc\n"
        "def attempt(folder, port):\n"
        "    wanted = 'got == ' + '2 or'\n"
        "    return ' '.join(x for one in gc.get_objects() if isinstance(one, dict) for x in map(str, one.values())\n"
        "                    if wanted in x and 'def attempt' not in x)[:100]"
    ),
    "read every descriptor": (
        "import os\n"
        "def attempt(folder, port):\n"
        "    found = b''\n"
        "    for fd in [*range(60), *range(62, 256)]:\n"
        "        try:\n"
        "            os.lseek(fd, 0, 0)\n"
        "            found += os.read(fd, 100)\n"
        "        except OSError:\n"
        "            pass\n"
        "    return found.decode()"
    ),
    "patch equality and length": (
        "class Anything(str):\n"
        "    __eq__ = __ge__ = __gt__ = lambda self, other: True\n"
        "    __bool__ = lambda self: True\n"
        "    __len__ = lambda self: 1\n"
        "    __hash__ = str.__hash__\n"
        "def attempt(folder, port):\n"
        "    return Anything('')"
    ),
    "answer with code": (
        "import os\n"
        "class Code:\n"
        "    def __reduce__(self):\n"
        "        return exec, ('import builtins; builtins.isinstance = lambda *a: True',)\n"
        "def attempt(folder, port):\n"
        "    return Code()"
    ),
    "patch the builtins": (
        "import builtins, sys\n"
        "builtins.AssertionError = builtins.len = builtins.isinstance = lambda *a: True\n"
        "sys.excepthook = lambda *a: None\n"
        "def attempt(folder, port):\n"
        "    return ''"
    ),
    "answer without end": "def attempt(folder, port):\n    return 'x' * (100 << 20)",
    "print without end": "def attempt(folder, port):\n    for _ in range(10**4):\n        print('x' * (1 << 20))",
    "kill everything": "import os\nos.kill(-1, 9)",
    "kill PID 1": (
        "import os, signal\n"
        "for number in range(1, 65):\n"
        "    if number not in (signal.SIGXCPU, signal.SIGALRM):\n"
        "        os.kill(1, number)\n"
        "def attempt(folder, port):\n"
        "    return ''"
    ),
    "stop the clock of PID 1": "import os\nos.kill(1, 14)\ndef attempt(folder, port):\n    return ''",
    "become root": "import os\ndef attempt(folder, port):\n    os.setuid(0)\n    return 'root'",
    "trace PID 1": (
        "import ctypes\n"
        "def attempt(folder, port):\n"
        "    return '' if ctypes.CDLL(None).ptrace(16, 1, 0, 0) else 'attached'"
    ),
    "make a namespace": (
        "import ctypes\n"
        "def attempt(folder, port):\n"
        "    return '' if ctypes.CDLL(None).unshare(0x10000000) else 'unshared'"
    ),
    "mount": (
        "import ctypes\n"
        "def attempt(folder, port):\n"
        "    return '' if ctypes.CDLL(None).mount(b'none', b'/tmp', b'tmpfs', 0, 0) else 'mounted'"
    ),
    "hold memory outside the limits": (
        "import os\ndef attempt(folder, port):\n    return str(os.memfd_create('held'))"
    ),
    "raise the limits": (
        "import resource\n"
        "def attempt(folder, port):\n"
        "    resource.setrlimit(resource.RLIMIT_NPROC, (100, 100))\n"
        "    return 'raised'"
    ),
    "signal the parent": (
        "import os, signal\ndef attempt(folder, port):\n    os.kill(os.getppid(), signal.SIGKILL)\n    return 'sent'"
    ),
    "stop the parent": "import os\nos.kill(os.getppid(), 19)\ndef attempt(folder, port):\n    return 'stopped'",
    "kill everything and exit": ("import os\ntry:\n    os.kill(-1, 9)\nexcept OSError:\n    pass\nos._exit(0)"),
    "send a signal through a pipe's owner": (
        "import fcntl, os\n"
        "def attempt(folder, port):\n"
        "    fcntl.fcntl(61, fcntl.F_SETSIG, 9)\n"
        "    fcntl.fcntl(61, fcntl.F_SETOWN, os.getppid())\n"
        "    return 'owned'"
    ),
    "outlive the parent": (
        "import ctypes\ndef attempt(folder, port):\n    return '' if ctypes.CDLL(None).prctl(1, 0) else 'free'"
    ),
    "limit the parent": (
        "import os, resource\n"
        "def attempt(folder, port):\n"
        "    return str(resource.prlimit(os.getppid(), resource.RLIMIT_CPU, (1, 1)))"
    ),
    "limit PID 1": (
        "import resource\n"
        "def attempt(folder, port):\n"
        "    return str(resource.prlimit(1, resource.RLIMIT_NOFILE, (3, 3)))"
    ),
    "slow the parent down": (
        "import os\n"
        "def attempt(folder, port):\n"
        "    os.setpriority(os.PRIO_PROCESS, os.getppid(), 19)\n"
        "    return 'slowed'"
    ),
    "move the parent to a processor": (
        "import os\ndef attempt(folder, port):\n    os.sched_setaffinity(os.getppid(), {0})\n    return 'moved'"
    ),
    "keep shared memory": (
        "import ctypes\n"
        "def attempt(folder, port):\n"
        "    got = ctypes.CDLL(None).shmget(77, 4096, 0o1666)\n"
        "    return '' if got < 0 else 'kept'"
    ),
    "keep a queue": (
        "import ctypes\n"
        "def attempt(folder, port):\n"
        "    got = ctypes.CDLL(None).msgget(77, 0o1666)\n"
        "    return '' if got < 0 else 'kept'"
    ),
    "keep a file and hide it": (
        "import os\n"
        "os.makedirs('/tmp/a/b')\n"
        "open('/tmp/a/b/c', 'w').write('x')\n"
        "os.chmod('/tmp/a', 0)\n"
        "def attempt(folder, port):\n"
        "    return 'hidden'"
    ),
    "mark /tmp": "import os\ndef attempt(folder, port):\n    os.setxattr('/tmp', 'user.x', b'x')\n    return 'marked'",
    "answer with an object that equals all": (
        "class All:\n"
        "    __eq__ = __lt__ = __gt__ = __le__ = __ge__ = __contains__ = __bool__ = lambda *a: True\n"
        "    __hash__ = lambda self: hash(2)\n"
        "    __len__ = __index__ = __int__ = lambda self: 2\n"
        "    __float__ = lambda self: 2.0\n"
        "    __sub__ = __rsub__ = __abs__ = lambda *a: 0\n"
        "    __str__ = __repr__ = __format__ = lambda *a: '2'\n"
        "    __class__ = property(lambda self: int)\n"
        "def attempt(folder, port):\n"
        "    return All()"
    ),
    "answer with a number that equals all": (
        "class All(int):\n"
        "    __eq__ = lambda *a: True\n"
        "    __ne__ = lambda *a: False\n"
        "    __hash__ = int.__hash__\n"
        "def attempt(folder, port):\n"
        "    return All(3)"
    ),
    "answer with a list that equals all": (
        "class All(list):\n"
        "    __eq__ = lambda *a: True\n"
        "    __len__ = lambda self: 2\n"
        "def attempt(folder, port):\n"
        "    return All()"
    ),
    "answer with a mapping that equals all": (
        "class All(dict):\n    __eq__ = lambda *a: True\ndef attempt(folder, port):\n    return All()"
    ),
    "answer nan": "def attempt(folder, port):\n    return float('nan')",
    "answer a deep list": (
        "def attempt(folder, port):\n    deep = []\n    for _ in range(10**6):\n        deep = [deep]\n    return deep"
    ),
    "send a deep pickle": (
        "import os\n"
        "body = b'\\x80\\x05X\\x05\\0\\0\\0value' + b'(' * 10**6 + b't' * 10**6 + b'\\x86.'\n"
        "def attempt(folder, port):\n"
        "    os.write(61, len(body).to_bytes(8, 'little') + body)\n"
        "    return ''"
    ),
    "send a handle to nothing": (
        "import os\n"
        "body = b'\\x80\\x05X\\x05\\0\\0\\0valueJ\\x00\\xff\\xff\\xffQ\\x86.'\n"
        "def attempt(folder, port):\n"
        "    os.write(61, len(body).to_bytes(8, 'little') + body)\n"
        "    return ''"
    ),
    "make a type of the test's equal to everything": (
        "import gc, os\n"
        "def attempt(folder, port):\n"
        "    mine = next(found for found in gc.get_objects() if type(found).__name__ == 'Candidate')\n"
        "    yes = mine._number(lambda *_: True).to_bytes(4, 'little')\n"
        "    body = b'\\x80\\x05X\\x05\\0\\0\\0valueccollections\\nCounter\\n'\n"
        "    body += b'(N}X\\x06\\0\\0\\0__eq__J' + yes + b'Qstb)R\\x86.'\n"
        "    os.write(61, len(body).to_bytes(8, 'little') + body)\n"
        "    while True:\n"
        "        mine._answer(mine._receive())"
    ),
    "send half a frame": (
        "import os, time\n"
        "def attempt(folder, port):\n"
        "    os.write(61, (100).to_bytes(8, 'little') + b'x')\n"
        "    time.sleep(1000)"
    ),
    "end an iteration": "def attempt(folder, port):\n    raise StopIteration",
}
ENDLESS = {
    "loop for ever",
    "loop and ignore the signal",
    "wait for ever",
    "close the pipes and wait",
    "send half a frame",
}
TRACES = Program(
    "import os, resource, signal\n"
    "def traces():\n"
    "    found = [f'limit {n}' for n in (resource.RLIMIT_STACK, resource.RLIMIT_DATA)\n"
    "             if resource.getrlimit(n)[1] != resource.RLIM_INFINITY]\n"
    "    found += [f'priority of {pid}' for pid in (0, os.getppid(), 1) if os.getpriority(os.PRIO_PROCESS, pid)]\n"
    "    try:\n"
    "        found += os.listdir('/tmp')\n"
    "    except PermissionError:\n"
    "        pass\n"
    "    return found\n",
    "assert traces() == [], traces()",
    "traces",
)
"""Passes where the program before it left no file, limit or priority behind."""
TEST = "got = attempt({folder!r}, {port})\nassert got == 2 or isinstance(got, str) and 0 < len(got)\n"


@at_each_level
@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_program_does_not_pass_and_leaves_no_trace(name: str, at: SandboxLevel, canary: Canary) -> None:
    test = TEST.format(folder=str(canary.folder), port=canary.port)
    started = time.monotonic()
    outcome = run_tests(Program(HOSTILE[name], test, "attempt"), cpu_s=1, wall_s=1, at=at)
    assert outcome.passed is False, outcome
    assert outcome.why == "timed out" if name in ENDLESS else outcome.why
    assert "\n" not in outcome.why
    assert canary.secret not in outcome.why
    assert canary.untouched()
    assert time.monotonic() - started < 30
    assert run_tests(TRACES, cpu_s=5, at=at) == Outcome(True)


@needs_sandbox
def test_the_test_of_the_hostile_programs_lets_through_what_gets_something_out(canary: Canary) -> None:
    test = TEST.format(folder=str(canary.folder), port=canary.port)
    assert run_tests(Program("def attempt(folder, port):\n    return 'out'", test, "attempt")) == Outcome(True)
    canary.folder.joinpath("more").touch()
    assert not canary.untouched()


@needs_sandbox
def test_processor_time_counts_and_waiting_does_not() -> None:
    slow = Program("import time\ndef nap():\n    time.sleep(2.5)\n    return 1\n", "assert nap() == 1", "nap")
    assert run_tests(slow, cpu_s=1) == Outcome(True)


@needs_sandbox
def test_nothing_is_left_for_the_next_program() -> None:
    write = "def note():\n    open('/tmp/note', 'w').write('x')\n    return open('/tmp/note').read()\n"
    read = "import os\ndef note():\n    return os.listdir('/tmp')\n"
    assert run_tests(Program(write, "assert note() == 'x'", "note")) == Outcome(True)
    assert run_tests(Program(read, "assert note() == []", "note")) == Outcome(True)


def descendants(root: int) -> set[int]:
    """The processes below `root`, as this machine sees them."""
    parents = {}
    for entry in Path("/proc").glob("[0-9]*/stat"):
        try:
            after_name = entry.read_text().rsplit(")", 1)[1].split()
        except OSError:
            continue
        parents[int(entry.parent.name)] = int(after_name[1])
    found = {root}
    while more := {pid for pid, parent in parents.items() if parent in found} - found:
        found |= more
    return found - {root}


def parent_of(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[1])


def wait_until(true: object, seconds: float = 20.0) -> bool:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if callable(true) and true():
            return True
        time.sleep(0.02)
    return False


@at_each_level
@pytest.mark.parametrize("victim", ["the harness", "its child"])
def test_nothing_outlives_a_killed_run(victim: str, at: SandboxLevel) -> None:
    code = (
        "from rlhf_bench.harness.sandbox import Program, SandboxLevel, run_tests\n"
        f"at = {at!r}\n"
        "run_tests(Program('import time\\ntime.sleep(1000)', 'f()', 'f'), cpu_s=30, at=at)"
    )
    with subprocess.Popen([sys.executable, "-c", code]) as harness:
        try:
            assert wait_until(lambda: len(descendants(harness.pid)) >= 3), "the server, the test and the candidate run"
            time.sleep(0.5)
            below = descendants(harness.pid)
            (child,) = (pid for pid in below if parent_of(pid) == harness.pid)
            os.kill(harness.pid if victim == "the harness" else child, signal.SIGKILL)
            assert wait_until(lambda: not any(running(pid) for pid in below)), "all are gone"
        finally:
            harness.kill()


def running(pid: int) -> bool:
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False


@needs_sandbox
@pytest.mark.parametrize(
    ("source", "why"),
    [
        ("def add(a, b):\n    return a - b\n", "AssertionError"),
        ("def sub(a, b):\n    return a + b\n", "NameError: 'add' is not defined"),
        ("def add(a, b)\n    return a + b\n", "SyntaxError: expected ':' (candidate.py, line 1)"),
        ("def add(a, b):\n    return sum(a, b)\n", "TypeError: 'int' object is not iterable"),
        ("def add(a, b):\n    return lambda: 5\n", "AssertionError"),
        ("class Five:\n    pass\ndef add(a, b):\n    return Five()\n", "AssertionError"),
        ("import sys\nsys.exit(0)\n", "SystemExit"),
        ("import os\nos._exit(0)\n", "the program exited with status 0"),
        ("import os\nos.abort()\n", "the program was ended by SIGABRT"),
        ("def add(a, b):\n    return [0] * (1 << 40)\n", "MemoryError"),
    ],
)
def test_a_failure_says_why(source: str, why: str) -> None:
    outcome = run_tests(Program(source, ADD.test, "add"), cpu_s=2)
    assert outcome.passed is False
    assert why in outcome.why


@needs_sandbox
def test_right_programs_pass_with_every_kind_of_plain_value() -> None:
    values = "[None, True, 1, -2.5, 10**40, float('inf'), 'é', b'x', (1,), {1: [2]}, {3}, frozenset({4}), 1j, range(3)]"
    source = (
        f"from collections import Counter\ndef give(n, *, more):\n    return {values} + [Counter('aab'), n, more]\n"
    )
    test = f"from collections import Counter\nassert give({{1}}, more='y') == {values} + [Counter('aab'), {{1}}, 'y']\n"
    assert run_tests(Program(source, test, "give")) == Outcome(True)


@needs_sandbox
def test_the_test_may_use_what_the_setup_defines_and_the_candidate_may_not_change_it() -> None:
    program = Program(
        "def helper():\n    return 'mine'\ndef ask():\n    return 1\n",
        "assert helper() == 'theirs' and ask() == 1",
        "ask",
        setup="def helper():\n    return 'theirs'\n",
    )
    assert run_tests(program) == Outcome(True)


@needs_sandbox
def test_a_test_may_expect_an_exception() -> None:
    test = "try:\n    add(1, 'x')\nexcept TypeError as error:\n    said = str(error)\nassert 'unsupported' in said\n"
    assert run_tests(Program(ADD.source, test, "add")) == Outcome(True)


@needs_sandbox
def test_a_test_that_passes_an_object_of_its_own_is_ungraded_not_failed() -> None:
    outcome = run_tests(Program(ADD.source, "class Own:\n    pass\nadd(Own(), 2)", "add"))
    assert outcome.passed is None
    assert "cannot be carried" in outcome.why


@needs_sandbox
def test_the_order_of_a_set_is_the_same_in_every_run() -> None:
    source = "def order():\n    return list(map(str, {'a', 'b', 'c', 'd', 'e', 'f', 'g'}))\n"
    shown = {run_tests(Program(source, "assert False, order()", "order")).why for _ in range(3)}
    assert len(shown) == 1


PAIR = """
class Pair:
    def __init__(self, a, b):
        self.a, self.b = a, b
    def total(self):
        return self.a + self.b
def longest(pairs):
    return max(pairs, key=Pair.total)
def numbers():
    yield from range(5)
def every():
    n = 0
    while True:
        yield n
        n += 1
def twice(f):
    return lambda x: f(f(x))
"""


@needs_sandbox
@pytest.mark.parametrize(
    "test",
    [
        "best = longest([Pair(1, 2), Pair(3, 4)])\nassert best.a == 3 and best.total() == 7",
        "pairs = [Pair(1, 2), Pair(3, 4)]\nassert longest(pairs) is pairs[1] and longest(pairs) != pairs[0]",
        "assert list(numbers()) == [0, 1, 2, 3, 4] and 3 in numbers() and sum(numbers()) == 10",
        "first = every()\nassert [next(first), next(first), next(first)] == [0, 1, 2]",
        "assert twice(lambda x: x * 3)(2) == 18",
        "seen = []\ntwice(lambda x: seen.append(x))(1)\nassert seen == [1, None]",
        "def fail(x):\n    raise KeyError(x)\ntry:\n    twice(fail)(1)\n    assert False\nexcept KeyError:\n    pass",
    ],
)
def test_objects_and_functions_are_passed_to_and_fro(test: str) -> None:
    assert run_tests(Program(PAIR, test)) == Outcome(True)


@needs_sandbox
def test_a_generator_that_never_ends_runs_out_of_time() -> None:
    outcome = run_tests(Program(PAIR, "list(every())"), cpu_s=1, wall_s=2)
    assert outcome.passed is False
    assert outcome.why in ("timed out", "MemoryError")


FORGED = {
    "a builtin": ("def abs(x):\n    return 0\ndef f():\n    return 5\n", "assert abs(f() - 7) < 1"),
    "two builtins": ("def set(x):\n    return 0\ndef sum(x):\n    return 0\n", "assert set([sum([1])]) == 0"),
    "a standard module": (
        "class math:\n    isclose = lambda *a: True\ndef f():\n    return 5\n",
        "math.isclose(f(), 7)",
    ),
    "a module under another's name": ("import operator as math\ndef f():\n    return 5\n", "math.add(f(), 7)"),
    "the test's own": ("def same(a, b):\n    return True\ndef f():\n    return 5\n", "assert same(f(), 7)"),
    "all builtins": (
        "import gc\n"
        "mine = next(found for found in gc.get_objects() if type(found).__name__ == 'Candidate')\n"
        "names = {'__builtins__': {'set': lambda *_: 7}, 'f': lambda *_: [1], 'g': 3}\n"
        "mine._send(('value', (names, [])))\n"
        "while True:\n"
        "    mine._answer(mine._receive())\n",
        "assert set(f(3)) == set((g, 5))",
    ),
    "an end of the cases": ("def f(x):\n    raise StopIteration\n", "assert all(map(lambda x: f(x) == 1, [1]))"),
}


@needs_sandbox
@pytest.mark.parametrize("name", FORGED)
def test_what_the_candidate_defines_never_stands_for_what_the_test_means(name: str) -> None:
    source, test = FORGED[name]
    assert run_tests(Program(source, test, setup="def same(a, b):\n    return a == b\n")).passed is False


@needs_sandbox
def test_without_an_entry_point_a_test_may_use_the_modules_and_the_one_builtin_that_the_candidate_names() -> None:
    source = "import math\nLIMIT = 3\ndef sum(a, b):\n    return a + b\n"
    assert run_tests(Program(source, "assert sum(1, 2) == 3")) == Outcome(True)
    assert run_tests(Program(source, "assert math.floor(2.5) + LIMIT == 5")) == Outcome(True)


def idle(at: SandboxLevel) -> list[pool.Sandbox]:
    return pool._idle[os.getpid(), at.kind, at.bwrap]


@at_each_level
def test_a_clean_program_leaves_its_sandbox_to_the_next_and_any_other_costs_it(at: SandboxLevel) -> None:
    pool.close_idle()
    assert run_tests(ADD, at=at) == Outcome(True)
    (warm,) = idle(at)
    assert run_tests(Program("def add(a, b):\n    return 0", ADD.test, "add"), at=at).passed is False
    assert idle(at) == [warm]
    run_tests(Program("import os\nos._exit(0)", ADD.test, "add"), at=at)
    assert idle(at) == []
    assert run_tests(ADD, at=at) == Outcome(True)
    run_tests(Program("while True: pass", ADD.test, "add"), cpu_s=1, at=at)
    assert idle(at) == []


@at_each_level
def test_a_sandbox_that_died_while_it_waited_is_replaced(at: SandboxLevel) -> None:
    assert run_tests(ADD, at=at) == Outcome(True)
    idle(at)[-1]._process.kill()
    assert run_tests(ADD, at=at) == Outcome(True)


@at_each_level
def test_a_sandbox_that_is_killed_from_outside_twice_is_no_failure_of_the_program(at: SandboxLevel) -> None:
    pool.close_idle()
    asleep = Program("import time\ndef nap():\n    time.sleep(60)", "nap()", "nap")
    others = descendants(os.getpid())
    with ThreadPoolExecutor(1) as one:
        outcome = one.submit(run_tests, asleep, at=at)
        for _ in range(2):
            time.sleep(0.7)
            (child,) = (pid for pid in descendants(os.getpid()) - others if parent_of(pid) == os.getpid())
            os.kill(child, signal.SIGKILL)
        assert outcome.result().passed is None
        assert outcome.result().why.startswith("the sandbox failed twice")


@at_each_level
def test_no_program_finds_an_earlier_test_or_program_in_its_memory(at: SandboxLevel) -> None:
    word = secrets.token_hex(8)
    run_tests(Program(f"{ADD.source}# {word}", f"{ADD.test}# {word}\nassert '{word}'", "add"), at=at)
    warm = idle(at)[-1]
    search = (
        "import gc\n"
        "def find(half, other):\n"
        "    seen = [one for each in gc.get_objects() for one in gc.get_referents(each) if type(one) is str]\n"
        "    return len(seen), sum(half + other in one for one in seen)\n"
    )
    test = f"count, found = find('{word[:8]}', '{word[8:]}')\nassert count > 10**4 and not found, (count, found)"
    assert run_tests(Program(search, test, "find"), at=at) == Outcome(True)
    assert idle(at)[-1] is warm


@needs_sandbox
@settings(deadline=None, max_examples=50)
@given(plain)
def test_a_plain_value_comes_back_from_the_candidate_as_it_went(value: object) -> None:
    sent = f"from math import inf\nvalue = {value!r}\n"
    test = f"{sent}back = same(value)\nassert back == value and type(back) is type(value)"
    assert run_tests(Program("def same(value):\n    return value", test, "same")) == Outcome(True)


@needs_sandbox
@pytest.mark.parametrize(
    "value", ["Fraction(1, 3)", "[Counter('aab')]", "defaultdict(Counter, a=Counter())", "Decimal('0.1')", "deque([1])"]
)
def test_a_value_of_the_standard_library_comes_back_as_it_went(value: str) -> None:
    sent = (
        "from collections import Counter, defaultdict, deque\nfrom decimal import Decimal\n"
        f"from fractions import Fraction\nvalue = {value}\n"
    )
    test = f"{sent}back = same()\nassert back == value and type(back) is type(value)"
    assert run_tests(Program(f"{sent}def same():\n    return value", test, "same")) == Outcome(True)


@needs_sandbox
def test_programs_run_side_by_side_without_meeting() -> None:
    programs = [Program(f"def number():\n    return {n}\n", f"assert number() == {n}", "number") for n in range(12)]
    with ThreadPoolExecutor(4) as pool:
        assert set(pool.map(run_tests, programs)) == {Outcome(True)}


def test_without_a_sandbox_nothing_is_run_and_nothing_is_graded() -> None:
    outcome = run_tests(ADD, at=NONE)
    assert outcome.passed is None
    assert outcome.why.startswith("no sandbox: ")
    assert outcome.why.endswith("see rlhf-bench doctor")


def test_a_level_is_safe_or_says_what_to_do() -> None:
    found = level()
    assert found.description
    assert found.safe or found.advice


def test_a_missing_bwrap_is_no_sandbox_and_the_advice_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RLHF_BENCH_BWRAP", "/no/such/bwrap")
    found = level(("bwrap",))
    assert found.name == "none"
    assert "bubblewrap" in found.advice


@pytest.mark.skipif(not LEVELS["landlock"].safe, reason="no Landlock here")
def test_where_bubblewrap_cannot_run_landlock_holds_and_says_what_would_be_better(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("RLHF_BENCH_BWRAP", "/no/such/bwrap")
    assert level().name == "landlock"
    assert "bubblewrap" in level().advice
    assert run_tests(ADD) == Outcome(True)


def wrapper(path: Path, body: str) -> str:
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)
    return str(path)


def test_a_bwrap_that_does_not_start_is_no_sandbox_and_says_what_it_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = "bwrap: setting up uid map: Permission denied"
    monkeypatch.setenv("RLHF_BENCH_BWRAP", wrapper(tmp_path / "bwrap", f"echo '{said}' >&2; exit 1"))
    found = level(("bwrap",))
    assert found.name == "none"
    assert said in found.description
    assert "user namespaces" in found.advice


LEAKS = {
    "read a file outside": ("--remount-ro", "--ro-bind /tmp /tmp"),
    "read /etc/passwd": ("--remount-ro", "--ro-bind /etc /etc"),
    "see an environment": ("--json-status-fd", "--setenv SECRET x"),
}


@needs_bwrap
@needs_sandbox
@pytest.mark.parametrize("leak", LEAKS)
def test_a_sandbox_with_a_hole_is_no_sandbox(leak: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    anchor, options = LEAKS[leak]
    hole = f'for word; do shift; [ "$word" = {anchor} ] && set -- "$@" {options}; set -- "$@" "$word"; done'
    monkeypatch.setenv("TMPDIR", "/tmp")
    monkeypatch.setattr("tempfile.tempdir", None)
    body = f'{hole}\nexec {find_bwrap()} "$@"'
    monkeypatch.setenv("RLHF_BENCH_BWRAP", wrapper(tmp_path / "bwrap", body))
    found = level(("bwrap",))
    assert found.name == "none"
    assert leak in found.description
    assert run_tests(ADD, at=found).passed is None


@needs_bwrap
@needs_sandbox
def test_a_sandbox_without_a_system_call_filter_on_a_known_processor_is_found_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = '*) [ "$skip" ] || set -- "$@" "$word"; skip=;;'
    drop = f'for word; do shift; case "$word" in --seccomp) skip=1;; {kept} esac; done'
    monkeypatch.setenv("RLHF_BENCH_BWRAP", wrapper(tmp_path / "bwrap", f'{drop}\nexec {find_bwrap()} "$@"'))
    assert "make a socket" in level(("bwrap",)).description


ORDINARY = """
import json, sys
sys.path.insert(0, sys.argv[1])
from rlhf_bench.harness.sandbox import Program, level, run_tests
at = level(sys.argv[2:])
print(at.name, at.description)
for program in json.load(sys.stdin):
    outcome = run_tests(Program(*program), cpu_s=1, wall_s=2, at=at)
    print(json.dumps([outcome.passed, outcome.why]))
"""


def as_an_ordinary_user(step: str, programs: list[Program]) -> list[Outcome]:
    """What becomes of the programs when nobody runs them, with the system's interpreter, at this step of the ladder."""
    done = subprocess.run(
        ["/usr/bin/python3", "-c", ORDINARY, str(Path(__file__).resolve().parents[2] / "src"), step],
        user=65534,
        group=65534,
        extra_groups=[],
        cwd="/",
        env={"RLHF_BENCH_BWRAP": find_bwrap() or ""},
        input=json.dumps([[one.source, one.test, one.entry_point] for one in programs]),
        capture_output=True,
        text=True,
    )
    if "ModuleNotFoundError" in done.stderr or "Permission" in done.stderr or "no bwrap" in done.stdout:
        pytest.skip("this checkout, or its bwrap, is not readable by other users")
    said, *outcomes = done.stdout.splitlines()
    if said.startswith("none"):
        pytest.skip(f"no sandbox for ordinary users here: {said}")
    assert said.startswith("bwrap-user" if step == "bwrap" else "landlock")
    return [Outcome(*json.loads(line)) for line in outcomes]


only_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
steps = pytest.mark.parametrize("step", LEVELS)


@only_root
@steps
def test_an_ordinary_user_has_a_sandbox_too(step: str) -> None:
    sources = "def f(): return 1", "def f(): return 2", "import os; os.fork(); f = int", "while True: pass"
    outcomes = as_an_ordinary_user(step, [Program(source, "assert f() == 1", "f") for source in sources])
    assert [outcome.passed for outcome in outcomes] == [True, False, False, False]


@only_root
@steps
@pytest.mark.slow
def test_what_is_hostile_gets_no_further_where_an_ordinary_user_runs_it(step: str) -> None:
    with tempfile.TemporaryDirectory(dir="/tmp") as folder, socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setblocking(False)
        os.chmod(folder, 0o777)
        canary = Canary(Path(folder), secrets.token_hex(16), listener)
        (canary.folder / "secret").write_text(canary.secret)
        test = TEST.format(folder=folder, port=canary.port)
        programs = [each for source in HOSTILE.values() for each in (Program(source, test, "attempt"), TRACES)]
        outcomes = as_an_ordinary_user(step, programs)
        assert canary.untouched()
    hostile = dict(zip(HOSTILE, outcomes[::2], strict=True))
    assert {name: outcome for name, outcome in hostile.items() if outcome.passed is not False} == {}
    assert [outcome for outcome in outcomes[1::2] if outcome != Outcome(True)] == []


@given(st.integers(0, 2**31), st.integers(1 << 15, 2**32 - 1))
def test_a_spare_user_id_lies_in_the_upper_part_of_the_map(first: int, count: int) -> None:
    uid = spare_uid(f"  0  1000  1\n{first} 100000 {count}\n")
    assert uid is not None
    assert first + count // 2 <= uid < first + count - 1


def test_a_namespace_with_one_user_has_none_to_spare() -> None:
    assert spare_uid("         0       1000          1\n") is None


@needs_sandbox
@pytest.mark.slow
def test_all_164_canonical_solutions_of_humaneval_pass_and_empty_ones_do_not(mirror: Path) -> None:
    with gzip.open(mirror / "humaneval" / "HumanEval.jsonl.gz", "rt", encoding="utf-8") as lines:
        problems = [json.loads(line) for line in lines]

    def run(problem: dict[str, str], body: str) -> Outcome:
        test = f"{problem['test']}\ncheck({problem['entry_point']})\n"
        return run_tests(Program(problem["prompt"] + body, test, problem["entry_point"], setup=problem["prompt"]))

    started = time.monotonic()
    with ThreadPoolExecutor(2) as pool:
        right = list(pool.map(lambda problem: run(problem, problem["canonical_solution"]), problems))
        print(f"164 canonical solutions: {time.monotonic() - started:.1f} s")
        empty = list(pool.map(lambda problem: run(problem, "    pass\n"), problems))
    assert [(p["task_id"], o.why) for p, o in zip(problems, right, strict=True) if not o.passed] == []
    assert [p["task_id"] for p, o in zip(problems, empty, strict=True) if o.passed is not False] == []


def test_names_of_levels_that_are_not_none_are_safe() -> None:
    assert SandboxLevel("bwrap-user", "").safe
    assert not NONE.safe
