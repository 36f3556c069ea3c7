"""Real servers: for the engines that call one, and for the store."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from tests.postgres_server import PostgresServer, find_binaries

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


@pytest.fixture(scope="session")
def postgres() -> Iterator[str]:
    """The URL of a PostgreSQL: RLHF_BENCH_TEST_POSTGRES, or a server of this session's own."""
    given = os.environ.get("RLHF_BENCH_TEST_POSTGRES")
    if given:
        yield given
        return
    binaries = find_binaries()
    if binaries is None:
        pytest.skip("no PostgreSQL here: apt-get install postgresql, or set RLHF_BENCH_TEST_POSTGRES to a URL")
    if importlib.util.find_spec("psycopg") is None:
        pytest.skip("psycopg (the postgres extra) is not installed")
    server = PostgresServer(binaries)
    yield server.url
    server.close()


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """The URL of an empty database: a file, or a schema that is dropped afterwards."""
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path}/store.db"
        return
    from sqlalchemy import create_engine, make_url, text

    whole = request.getfixturevalue("postgres")
    schema = f"test_{uuid4().hex}"
    server = create_engine(whole, isolation_level="AUTOCOMMIT")
    with server.connect() as connection:
        connection.execute(text(f"create schema {schema}"))
        own = make_url(whole).update_query_dict({"options": f"-csearch_path={schema}"})
        yield own.render_as_string(hide_password=False)
        connection.execute(text(f"drop schema {schema} cascade"))
    server.dispose()
