"""From the tables of an older schema to those of this one, in place: nothing that was stored is lost."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from sqlalchemy import text, update
from sqlalchemy.engine import Connection

from rlhf_bench.harness.store import tables


def migrate(connection: Connection, found: int) -> None:
    """Take each step from schema `found` on; the caller's transaction makes all of them happen, or none."""
    for schema in range(found, tables.SCHEMA):
        _STEPS[schema](connection)
    connection.execute(update(tables.meta).where(tables.meta.c.name == "schema").values(value=str(tables.SCHEMA)))


def _add_the_ledger_and_how(connection: Connection) -> None:
    """1 to 2: the ledger, what a verdict decided, and how each champion came to be one.

    A champion of the old schema says so itself: by its verdict, or as the first; all else was moved by force. Verdicts
    keep no place in the ledger: they did not say on which samples they were reached, so they promote nobody any more.
    """
    for table in (tables.decisions, tables.decided_items):
        table.create(connection)
    for statement in (
        "ALTER TABLE verdicts ADD COLUMN key VARCHAR(64)",
        "CREATE UNIQUE INDEX ix_verdicts_key ON verdicts (key)",
        "ALTER TABLE champions ADD COLUMN how VARCHAR DEFAULT 'forced' NOT NULL",
        "UPDATE champions SET how = 'verdict' WHERE verdict IS NOT NULL",
        "UPDATE champions SET how = 'first' WHERE verdict IS NULL AND generation = 1 AND reason NOT LIKE 'forced: %'",
    ):
        connection.execute(text(statement))


_STEPS: Mapping[int, Callable[[Connection], None]] = {1: _add_the_ledger_and_how}
