"""A real server for the engines that call one."""

from __future__ import annotations

import json
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

SERVER = Path(__file__).parent.parent / "stub_server.py"


class Stub:
    """tests/stub_server.py in a process of its own; `url` is its base."""

    def __init__(self, latency_s: float = 0.0) -> None:
        command = [sys.executable, str(SERVER), str(latency_s)]
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert self._process.stdout is not None
        self.url = self._process.stdout.readline().strip()

    def calls(self) -> dict[str, int]:
        """How often each prompt came."""
        return dict(self._get("calls"))

    def load(self) -> dict[str, Any]:
        """`most`, the calls in flight at once, and `starts`, the time of each."""
        return dict(self._get("most"))

    def close(self) -> None:
        """The server dies at once."""
        self._process.kill()
        self._process.wait()
        assert self._process.stdout is not None
        self._process.stdout.close()

    def _get(self, name: str) -> Any:
        with urllib.request.urlopen(self.url.replace("/v1", f"/{name}"), timeout=10) as response:
            return json.load(response)


@pytest.fixture(scope="session")
def stub() -> Iterator[Stub]:
    """A healthy server, but for the prompts that ask for a fault."""
    server = Stub()
    yield server
    server.close()


@pytest.fixture
def slow_stub() -> Iterator[Stub]:
    """A server of this test alone, with 100 ms latency."""
    server = Stub(0.1)
    yield server
    server.close()
