"""The line of champions, seen and moved in one transaction: verdicts, the alpha that they spent, who followed whom."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeVar

from sqlalchemy import Column, Row, func, select
from sqlalchemy.engine import Connection

from rlhf_bench.harness.codec import digest
from rlhf_bench.harness.errors import LostRace, UnknownName, UserError
from rlhf_bench.harness.store import tables
from rlhf_bench.harness.store.database import insert
from rlhf_bench.harness.store.rows import (
    Champion,
    Decision,
    How,
    Run,
    StoredVerdict,
    now,
    pack,
    to_champion,
    to_checkpoint,
    to_run,
    to_verdict,
)
from rlhf_bench.harness.types import Checkpoint, Verdict

T = TypeVar("T")
CHUNK = 500
"""Keys in one query: well under every database's limit on parameters."""
MOST_ROWS = 2**31
"""PostgreSQL counts the verdicts in 32 bits."""


class Line:
    """What Store.line() gives: everything that a promotion rests on, as it is at one moment."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    # What is there

    def champion(self) -> Champion | None:
        """Who must be beaten now, if anyone was ever set."""
        t = tables.champions
        row = self._connection.execute(select(t).order_by(t.c.generation.desc()).limit(1)).one_or_none()
        return None if row is None else to_champion(row)

    def history(self) -> list[Champion]:
        """All champions there were, the first first."""
        t = tables.champions
        return [to_champion(row) for row in self._connection.execute(select(t).order_by(t.c.generation))]

    def verdict(self, number: int) -> StoredVerdict:
        """The verdict of this number. Raises UnknownName."""
        t = tables.verdicts
        row = self._row(t.c.id, number, select(t)) if 0 < number < MOST_ROWS else None
        if row is None:
            known = self._connection.execute(select(t.c.id)).scalars()
            raise UnknownName("verdict", str(number), map(str, known), "`rlhf-bench gate` makes one.")
        return to_verdict(row)

    def verdicts(self) -> list[StoredVerdict]:
        """All verdicts in their order."""
        t = tables.verdicts
        return [to_verdict(row) for row in self._connection.execute(select(t).order_by(t.c.id))]

    def run(self, run_id: str) -> Run | None:
        """The run of exactly this id."""
        row = self._row(tables.runs.c.id, run_id, select(tables.runs))
        return None if row is None else to_run(row)

    def checkpoint(self, digest: str) -> Checkpoint | None:
        """The registered checkpoint of exactly this digest."""
        row = self._row(tables.checkpoints.c.digest, digest, select(tables.checkpoints))
        return None if row is None else to_checkpoint(row)

    # The ledger

    def decision(self, number: int) -> Decision | None:
        """What the ledger says of verdict `number`; None where it says nothing."""
        return next(iter(self._decisions([number])), None)

    def decisions(self, items: Mapping[str, str], run: str = "") -> list[Decision]:
        """The decisions that used the same items as any of these ({benchmark: digest}), whatever they were called, or
        of which the candidate's run shares a sample with `run`; oldest first."""
        t, found = tables.decided_items, set()
        for chunk in chunks(sorted(set(items.values()))):
            found |= set(self._connection.execute(select(t.c.verdict).where(t.c.digest.in_(chunk))).scalars())
        return self._decisions(sorted(found | self._overlapping(items, run)))

    def _overlapping(self, items: Mapping[str, str], run: str) -> set[int]:
        """The verdicts on candidates that were asked one of the samples of `run` in these benchmarks."""
        by_run: dict[str, set[int]] = {}
        for stored in self.verdicts() if run else ():
            by_run.setdefault(stored.verdict.runs.get("candidate", ""), set()).add(stored.id)
        r = tables.records
        mine = select(r.c.digest).where(r.c.run == run, r.c.benchmark.in_(list(items)))
        found: set[int] = set()
        for chunk in chunks(sorted(by_run)):
            query = select(r.c.run).distinct().where(r.c.run.in_(chunk), r.c.digest.in_(mine))
            for name in self._connection.execute(query).scalars():
                found |= by_run[name]
        return found

    def _decisions(self, numbers: Sequence[int]) -> list[Decision]:
        d, i = tables.decisions, tables.decided_items
        items: dict[int, dict[str, str]] = {number: {} for number in numbers}
        found: list[Row[Any]] = []
        for chunk in chunks(numbers):
            for row in self._connection.execute(select(i).where(i.c.verdict.in_(chunk)).order_by(i.c.benchmark)):
                items[row.verdict][row.benchmark] = row.digest
            found += self._connection.execute(select(d).where(d.c.verdict.in_(chunk)).order_by(d.c.verdict)).all()
        return [Decision(row.verdict, row.spent, items[row.verdict], row.number) for row in found]

    # What is written (in a transaction that Store.line(write=True) has begun)

    def save(self, verdict: Verdict, expect_decisions: int | None = None) -> int:
        """Keep a verdict with its place in the ledger; its number. See Store.save_verdict."""
        t, engine = tables.verdicts, self._connection.engine
        value, key = pack(verdict), decided(verdict)
        known = self._connection.execute(select(t.c.id).where(t.c.key == key)).scalar_one_or_none()
        if known is not None:
            return known
        same = self.decisions(verdict.items, verdict.runs.get("candidate", "")) if expect_decisions is not None else []
        if expect_decisions is not None and len(same) != expect_decisions:
            raise LostRace(
                "another gate has decided on these samples meanwhile, and both cannot spend the same share of alpha: "
                "run this gate again"
            )
        statement = t.insert().values(value=value, created=now(), key=key).returning(t.c.id)
        number = self._connection.execute(statement).scalar_one()
        if verdict.items:
            entry = {"verdict": number, "number": verdict.decision, "spent": verdict.spent}
            rows = [{"verdict": number, "benchmark": name, "digest": verdict.items[name]} for name in verdict.items]
            self._connection.execute(insert(engine, tables.decisions).values(**entry))
            self._connection.execute(insert(engine, tables.decided_items), rows)
        return number

    def move(
        self, digest: str, *, expect_generation: int, verdict_id: int | None, reason: str, how: How | None = None
    ) -> Champion:
        """Make this checkpoint the next champion. See Store.set_champion."""
        t = tables.champions
        if how is None:
            how = "verdict" if verdict_id is not None else "forced" if expect_generation else "first"
        if self.checkpoint(digest) is None:
            raise UserError(f"{digest[:12]} is not registered here: `rlhf-bench models register PATH` adds it")
        if verdict_id is not None and self._row(tables.verdicts.c.id, verdict_id, select(tables.verdicts.c.id)) is None:
            raise UserError(f"there is no verdict {verdict_id}: `rlhf-bench gate` makes one")
        current = self._connection.execute(select(func.max(t.c.generation))).scalar() or 0
        champion = Champion(digest, expect_generation + 1, verdict_id, now(), reason, how)
        row = {"checkpoint": digest, "verdict": verdict_id, "moved_at": champion.moved_at, "reason": reason, "how": how}
        statement = insert(self._connection.engine, t).values(generation=champion.generation, **row)
        statement = statement.on_conflict_do_nothing()
        if current != expect_generation or not self._connection.execute(statement.returning(t.c.generation)).all():
            raise LostRace(f"the champion is no longer of generation {expect_generation}: another process moved it")
        return champion

    def _row(self, column: Column[T], value: T, query: Any) -> Row[Any] | None:
        row: Row[Any] | None = self._connection.execute(query.where(column == value)).one_or_none()
        return row


def decided(verdict: Verdict) -> str:
    """Identifies what was decided, about what and why: the same again is no second decision and spends nothing."""
    about = [verdict.candidate, verdict.champion, verdict.policy, dict(verdict.runs), dict(verdict.items)]
    return digest([*about, verdict.generation, verdict.outcome, list(verdict.checks), list(verdict.reasons)])


def chunks(keys: Sequence[T]) -> Iterator[Sequence[T]]:
    """`keys` in pieces that fit in one query."""
    for first in range(0, len(keys), CHUNK):
        yield keys[first : first + CHUNK]
