"""The self-test of a sandbox: a program that tries to get out, with canaries to find. It runs inside a sandbox only."""

from __future__ import annotations

import os
import secrets
import socket
import tempfile
from pathlib import Path

from rlhf_bench.harness.sandbox import seccomp
from rlhf_bench.harness.sandbox.launch import Kind
from rlhf_bench.harness.sandbox.pool import Outcome, Program, execute

ATTEMPTS = '''
import os

KNOWN = {"LD_LIBRARY_PATH", "PYTHONHASHSEED", "PWD", "LC_CTYPE"}

def leaks(secret_file, writable_folder, port, filtered):
    """The names of the things that got through."""
    found = []

    def attempt(name, work):
        try:
            got = work()
        except (OSError, MemoryError):
            return
        if got is not False:
            found.append(name)

    def connect():
        import socket
        socket.create_connection(("127.0.0.1", port), timeout=2)

    def make_socket():
        import socket
        socket.socket(socket.AF_UNIX)

    def grow():
        bytearray(1 << 40)

    def fork():
        if os.fork() == 0:
            os._exit(0)

    attempt("read a file outside", lambda: open(secret_file).read())
    attempt("list a folder outside", lambda: os.listdir(writable_folder))
    attempt("write a file outside", lambda: open(os.path.join(writable_folder, "written"), "w"))
    attempt("write to the system", lambda: open("/usr/lib/written", "w"))
    attempt("write to the root", lambda: open("/written", "w"))
    attempt("read /etc/passwd", lambda: open("/etc/passwd").read())
    attempt("read the environment of PID 1", lambda: open("/proc/1/environ").read())
    attempt("see an environment", lambda: bool(set(os.environ) - KNOWN))
    attempt("open a connection", connect)
    if filtered:
        attempt("make a socket", make_socket)
    attempt("signal its parent", lambda: os.kill(os.getppid(), 0))
    attempt("become root", lambda: os.setuid(0))
    attempt("be root", lambda: os.getuid() == 0)
    attempt("start a process", fork)
    attempt("take all memory", grow)
    return found
'''
TEST = "found = leaks({secret!r}, {folder!r}, {port}, {filtered})\nassert not found, 'it could ' + ', '.join(found)\n"


def probe(kind: Kind, bwrap: str) -> Outcome:
    """Passed if this sandbox runs Python and nothing gets out of it, as seen from both sides."""
    with tempfile.TemporaryDirectory(prefix="canary-") as folder, socket.create_server(("127.0.0.1", 0)) as listener:
        os.chmod(folder, 0o777)
        secret = Path(folder, "secret")
        secret.write_text(secrets.token_hex(16))
        listener.setblocking(False)
        filtered = seccomp.program() is not None
        test = TEST.format(secret=str(secret), folder=folder, port=listener.getsockname()[1], filtered=filtered)
        program = Program(ATTEMPTS, test, "leaks")
        outcome = execute(kind, bwrap, program, cpu_s=10, wall_s=60, memory_bytes=1 << 30)
        if sorted(os.listdir(folder)) != ["secret"]:
            return Outcome(False, "a file was written outside")
        try:
            listener.accept()[0].close()
        except BlockingIOError:
            return outcome
        return Outcome(False, "a connection came out")
