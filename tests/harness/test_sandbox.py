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
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlhf_bench.harness.sandbox import NONE, Outcome, Program, SandboxLevel, level, run_tests
from rlhf_bench.harness.sandbox.bubblewrap import find_bwrap, spare_uid

needs_sandbox = pytest.mark.skipif(not level().safe, reason=f"no sandbox here: {level().description}")
needs_bwrap = pytest.mark.skipif(find_bwrap() is None, reason="no bwrap here")

ADD = Program("def add(a, b):\n    return a + b\n", "assert add(2, 3) == 5\n", "add")


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
        "    __hash__ = str.__hash__\n"
        "def attempt(folder, port):\n"
        "    return Anything('x')"
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
}
ENDLESS = {"loop for ever", "loop and ignore the signal", "wait for ever", "close the pipes and wait"}
TEST = "got = attempt({folder!r}, {port})\nassert got == 2 or isinstance(got, str) and 0 < len(got)\n"


@needs_sandbox
@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_program_does_not_pass_and_leaves_no_trace(name: str, canary: Canary) -> None:
    test = TEST.format(folder=str(canary.folder), port=canary.port)
    started = time.monotonic()
    outcome = run_tests(Program(HOSTILE[name], test, "attempt"), cpu_s=1, wall_s=3)
    assert outcome.passed is False, outcome
    assert outcome.why == "timed out" if name in ENDLESS else outcome.why
    assert "\n" not in outcome.why
    assert canary.secret not in outcome.why
    assert canary.untouched()
    assert time.monotonic() - started < 30


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


def wait_until(true: object, seconds: float = 20.0) -> bool:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if callable(true) and true():
            return True
        time.sleep(0.02)
    return False


@needs_sandbox
@pytest.mark.parametrize("victim", ["the harness", "bwrap"])
def test_nothing_outlives_a_killed_run(victim: str) -> None:
    code = (
        "from rlhf_bench.harness.sandbox import Program, run_tests\n"
        "run_tests(Program('import time\\ntime.sleep(1000)', 'f()', 'f'), cpu_s=30)"
    )
    with subprocess.Popen([sys.executable, "-c", code]) as harness:
        try:
            assert wait_until(lambda: len(descendants(harness.pid)) >= 3), "bwrap, the test and the candidate run"
            time.sleep(0.5)
            below = descendants(harness.pid)
            (bwrap,) = (pid for pid in below if f"\nPPid:\t{harness.pid}\n" in Path(f"/proc/{pid}/status").read_text())
            os.kill(harness.pid if victim == "the harness" else bwrap, signal.SIGKILL)
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
        ("def add(a, b):\n    return lambda: 5\n", "AttributeError"),
        ("class Five:\n    pass\ndef add(a, b):\n    return Five()\n", "PicklingError"),
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
def test_a_test_that_passes_a_function_is_ungraded_not_failed() -> None:
    outcome = run_tests(Program(ADD.source, "add(lambda: 1, 2)", "add"))
    assert outcome.passed is None
    assert "cannot be carried" in outcome.why


@needs_sandbox
def test_the_order_of_a_set_is_the_same_in_every_run() -> None:
    source = "def order():\n    return list(map(str, {'a', 'b', 'c', 'd', 'e', 'f', 'g'}))\n"
    shown = {run_tests(Program(source, "assert False, order()", "order")).why for _ in range(3)}
    assert len(shown) == 1


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
    assert level().name == "none"
    assert "bubblewrap" in level().advice


def wrapper(path: Path, body: str) -> str:
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)
    return str(path)


def test_a_bwrap_that_does_not_start_is_no_sandbox_and_says_what_it_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = "bwrap: setting up uid map: Permission denied"
    monkeypatch.setenv("RLHF_BENCH_BWRAP", wrapper(tmp_path / "bwrap", f"echo '{said}' >&2; exit 1"))
    found = level()
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
    found = level()
    assert found.name == "none"
    assert leak in found.description
    assert run_tests(ADD).passed is None


@needs_bwrap
@needs_sandbox
def test_a_sandbox_without_a_system_call_filter_on_a_known_processor_is_found_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = '*) [ "$skip" ] || set -- "$@" "$word"; skip=;;'
    drop = f'for word; do shift; case "$word" in --seccomp) skip=1;; {kept} esac; done'
    monkeypatch.setenv("RLHF_BENCH_BWRAP", wrapper(tmp_path / "bwrap", f'{drop}\nexec {find_bwrap()} "$@"'))
    assert "make a socket" in level().description


@needs_bwrap
@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_an_ordinary_user_has_a_sandbox_too(tmp_path: Path) -> None:
    python = "/usr/bin/python3"
    source = Path(__file__).resolve().parents[2] / "src"
    code = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "from rlhf_bench.harness.sandbox import Program, level, run_tests\n"
        "run = lambda source: run_tests(Program(source, 'assert f() == 1', 'f'), cpu_s=1, wall_s=3).passed\n"
        "print(level().name, level().description)\n"
        "programs = 'def f(): return 1', 'def f(): return 2', 'import os; os.fork(); f = int', 'while True: pass'\n"
        "print(*map(run, programs))"
    )
    done = subprocess.run(
        [python, "-c", code, str(source)],
        user=65534,
        group=65534,
        extra_groups=[],
        cwd="/",
        env={"RLHF_BENCH_BWRAP": find_bwrap() or ""},
        capture_output=True,
        text=True,
    )
    if "ModuleNotFoundError" in done.stderr or "Permission" in done.stderr or "no bwrap" in done.stdout:
        pytest.skip("this checkout, or its bwrap, is not readable by other users")
    said, ran = done.stdout.splitlines()
    if said.startswith("none"):
        pytest.skip(f"no sandbox for ordinary users here: {said}")
    assert said.startswith("bwrap-user")
    assert ran == "True False False False"


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
