"""How a database is opened and a transaction runs: all that differs between SQLite and PostgreSQL is in this module.

SQLite runs in WAL mode (so not on network file systems). Every write takes the lock when it begins (BEGIN IMMEDIATE):
it waits for other processes and never fails half-way. `synchronous` is NORMAL (a power cut may lose the last commits,
and never corrupts), and FULL for a transaction that asks to be durable. PostgreSQL lets writers run side by side; those
of the line of champions take turns by an advisory lock.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import Engine, Table, create_engine, event, inspect, make_url, select, text
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import URL, Connection
from sqlalchemy.exc import ArgumentError, DBAPIError, NoSuchModuleError
from sqlalchemy.exc import TimeoutError as NoFreeConnection

from rlhf_bench.harness.errors import Fault, UserError
from rlhf_bench.harness.store import migrations, tables

BUSY_S = 30.0
_SCHEMA_LOCK = 0x726C6866  # PostgreSQL's advisory locks: while the tables are made or changed ...
_LINE_LOCK = 0x726C6867  # ... and while verdicts and champions are written
_SUPPORTED = ("sqlite", "postgresql")


def open_database(url: str) -> Engine:
    """The engine for `url`, its tables made if they were not there.

    Raises UserError for a URL that cannot be one or a store of a newer version, Fault if the database does not answer.
    """
    engine = _connect(url)
    try:
        _prepare(engine)
    except BaseException:
        engine.dispose()
        raise
    return engine


def insert(engine: Engine, table: Table[Any]) -> postgresql.Insert | sqlite.Insert:
    """An insert that knows ON CONFLICT, in the engine's dialect."""
    return postgresql.insert(table) if engine.dialect.name == "postgresql" else sqlite.insert(table)


@contextmanager
def transaction(
    engine: Engine, *, write: bool = False, durable: bool = False, alone: bool = False
) -> Iterator[Connection]:
    """One transaction. `durable`: on disk before it returns, whatever happens to the power; `alone`: of those that ask
    for it one runs at a time, and sees all that the ones before it have written.

    Raises Fault, in one line, for everything that the database or its disk refuses.
    """
    options = {"rlhf_write": write, "rlhf_durable": durable}
    postgres = engine.dialect.name == "postgresql"
    try:
        with engine.connect().execution_options(**options) as connection, connection.begin():
            if postgres and durable:
                connection.execute(text("set local synchronous_commit = on"))
            if postgres and alone:
                connection.execute(text("select pg_advisory_xact_lock(:lock)"), {"lock": _LINE_LOCK})
            yield connection
    except (DBAPIError, NoFreeConnection) as error:
        said = str(getattr(error, "orig", None) or error).strip().splitlines()
        shown = engine.url.render_as_string(hide_password=True)
        raise Fault(f"the store {shown} failed: {said[0] if said else type(error).__name__}") from error


def _connect(url: str) -> Engine:
    try:
        parsed = make_url(url)
        kind = parsed.get_backend_name()
        if kind in _SUPPORTED:
            return _connect_sqlite(parsed) if kind == "sqlite" else create_engine(parsed, pool_pre_ping=True)
    except ModuleNotFoundError as error:
        raise UserError(f"a store there needs '{error.name}': pip install 'rlhf-bench[postgres]'") from None
    except (ArgumentError, NoSuchModuleError, ValueError):
        pass
    raise UserError(
        "the store's URL is not one of sqlite:///path/to/store.db and postgresql://user:password@host/name "
        "(RLHF_BENCH_STORE sets it)"
    )


def _connect_sqlite(url: URL) -> Engine:
    if url.database and url.database != ":memory:":
        try:
            Path(url.database).parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise Fault(f"cannot make the store's folder {Path(url.database).parent}: {error.strerror}") from error
    engine = create_engine(url, connect_args={"timeout": BUSY_S})
    event.listen(engine, "connect", _configure_sqlite)
    event.listen(engine, "begin", _begin_sqlite)
    return engine


def _configure_sqlite(connection: sqlite3.Connection, _record: object) -> None:
    connection.isolation_level = None  # no implicit BEGIN: _begin_sqlite says which
    connection.execute("PRAGMA foreign_keys = ON")
    deadline = time.monotonic() + BUSY_S
    while True:
        try:
            connection.execute("PRAGMA journal_mode = WAL")
            return
        except sqlite3.OperationalError as error:  # the busy timeout does not cover a change of mode
            if "locked" not in str(error) or time.monotonic() > deadline:
                raise
            time.sleep(0.02)


def _begin_sqlite(connection: Connection) -> None:
    options = connection.get_execution_options()
    connection.exec_driver_sql(f"PRAGMA synchronous = {'FULL' if options.get('rlhf_durable') else 'NORMAL'}")
    connection.exec_driver_sql("BEGIN IMMEDIATE" if options.get("rlhf_write") else "BEGIN")


def _prepare(engine: Engine) -> None:
    """Make the tables that are not there, and bring those of an older schema to this one, all in one transaction."""
    with transaction(engine) as connection:
        if _schema(connection) == tables.SCHEMA:
            return
    with transaction(engine, write=True, durable=True) as connection:
        if engine.dialect.name == "postgresql":
            connection.execute(text("select pg_advisory_xact_lock(:lock)"), {"lock": _SCHEMA_LOCK})
        found = _schema(connection)
        if found is None:
            tables.metadata.create_all(connection)
            connection.execute(insert(engine, tables.meta).values(name="schema", value=str(tables.SCHEMA)))
        elif found < tables.SCHEMA:
            migrations.migrate(connection, found)


def _schema(connection: Connection) -> int | None:
    """The schema of the tables that are there, None where there are none. Raises UserError for a newer one."""
    if not inspect(connection).has_table("meta"):
        return None
    found = connection.execute(select(tables.meta.c.value).where(tables.meta.c.name == "schema")).scalar_one_or_none()
    if found is not None and int(found) > tables.SCHEMA:
        raise UserError(
            f"this store was written by a newer rlhf-bench (schema {found}, this one knows {tables.SCHEMA}): "
            f"upgrade, or set RLHF_BENCH_STORE to another store"
        )
    return None if found is None else int(found)
