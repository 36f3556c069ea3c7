"""Other processes of a test, forked from a server that has the store imported already: each starts in no time."""

from __future__ import annotations

import multiprocessing
import sys
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

ROOT = str(Path(__file__).resolve().parents[2])
if ROOT not in sys.path:
    sys.path.append(ROOT)  # the processes import `work` by its name, also where plain `pytest` was called
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["rlhf_bench.harness.promote", "sqlalchemy.dialects.postgresql.psycopg", "psycopg"])


class Worker:
    """`work(connection, *args)` in a process of its own; what it sends is heard here, also after its death."""

    def __init__(self, work: Callable[..., None], *args: Any) -> None:
        self._hears, says = CONTEXT.Pipe(duplex=False)
        self._process = CONTEXT.Process(target=work, args=(says, *args), daemon=True)
        self._process.start()
        says.close()

    def hear(self, timeout_s: float = 60.0) -> Any:
        """The next thing that it says. Raises EOFError where it has ended."""
        if not self._hears.poll(timeout_s):
            raise TimeoutError("the process says nothing")
        return self._hears.recv()

    def rest(self) -> list[Any]:
        """All that it still says, until it ends."""
        said = []
        while True:
            try:
                said.append(self.hear())
            except (EOFError, OSError):  # OSError: killed in the middle of a word
                break
        self._process.join(60)
        self._hears.close()
        return said

    def kill(self) -> None:
        """SIGKILL."""
        self._process.kill()

    @property
    def exit_code(self) -> int | None:
        """Minus the signal that killed it; None while it lives."""
        return self._process.exitcode


Says = Connection
