"""The store itself: one method for each thing that is kept or asked."""

from __future__ import annotations

import gc
import logging
import re
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Self, TypeVar

from sqlalchemy import delete, func, select, update

from rlhf_bench.harness.codec import digest
from rlhf_bench.harness.errors import CorruptRow, Fault, UnknownName, UserError
from rlhf_bench.harness.store import tables
from rlhf_bench.harness.store.database import insert, open_database, transaction
from rlhf_bench.harness.store.line import Line, chunks
from rlhf_bench.harness.store.place import default_store_url, home
from rlhf_bench.harness.store.pointer import NAME, point, pointer
from rlhf_bench.harness.store.rows import (
    Champion,
    Decision,
    How,
    Run,
    StoredVerdict,
    now,
    pack,
    to_checkpoint,
    to_record,
    to_run,
    unpack,
)
from rlhf_bench.harness.types import Checkpoint, Completion, Record, Report, Sample, Score, Verdict

log = logging.getLogger(__name__)
T = TypeVar("T")
_LATEST = re.compile(r"latest(?:~(\d+))?")


class Store:
    """A database of results. Raises Fault, in one line, wherever the database or its disk fails."""

    def __init__(self, url: str) -> None:
        """Open `url` (sqlite:///FILE or postgresql://…). Raises UserError where it cannot be a store.

        The project's own store, default_store_url(), keeps champion.json in home() (see pointer.py); others have none.
        """
        self._engine = open_database(url)
        self._pointer = home() / NAME if url == default_store_url() else None
        self.dropped = 0

    def close(self) -> None:
        """Let the connections go."""
        self._engine.dispose()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    # Answers, by content. `dropped` counts the rows that did not read back and were deleted.

    def completions(self, keys: Iterable[str]) -> dict[str, Completion]:
        """The stored answers among `keys` (codec.request_key)."""
        return self._get(tables.completions, Completion, keys)

    def save_completions(self, items: Mapping[str, Completion]) -> None:
        """Keep answers; one that is there already stays. A failed one ("error") is no answer and is not kept."""
        self._put(tables.completions, {key: item for key, item in items.items() if item.finish_reason != "error"})

    def scores(self, keys: Iterable[str]) -> dict[str, Score]:
        """The stored grades among `keys`."""
        return self._get(tables.scores, Score, keys)

    def save_scores(self, items: Mapping[str, Score]) -> None:
        """Keep grades; one that is there already stays. Ungraded ones are not kept, so that they are graded again."""
        self._put(tables.scores, {key: item for key, item in items.items() if item.value is not None})

    def rewards(self, keys: Iterable[str]) -> dict[str, float]:
        """The stored rewards among `keys`."""
        return self._get(tables.rewards, float, keys)

    def save_rewards(self, items: Mapping[str, float]) -> None:
        """Keep rewards; one that is there already stays."""
        self._put(tables.rewards, items)

    def _get(self, table: tables.ContentTable, cls: type[T], keys: Iterable[str]) -> dict[str, T]:
        found: dict[str, T] = {}
        corrupt: list[tuple[str, bytes]] = []
        with transaction(self._engine) as connection:
            for chunk in chunks(sorted(set(keys))):
                query = select(table.c.key, table.c.value).where(table.c.key.in_(chunk))
                for key, value in connection.execute(query):
                    try:
                        found[key] = unpack(cls, value, table.name)
                    except CorruptRow:
                        corrupt.append((key, value))
        if corrupt:
            self._drop(table, corrupt)
        return found

    def _drop(self, table: tables.ContentTable, rows: Sequence[tuple[str, bytes]]) -> None:
        """Delete rows that do not read back, unless another process has replaced them meanwhile."""
        with transaction(self._engine, write=True) as connection:
            for key, value in rows:
                connection.execute(delete(table).where(table.c.key == key, table.c.value == value))
        self.dropped += len(rows)
        log.warning("%d stored %s did not read back; they are made again", len(rows), table.name)

    def _put(self, table: tables.ContentTable, items: Mapping[str, Any]) -> None:
        if not items:
            return
        rows = [{"key": key, "value": pack(items[key])} for key in sorted(items)]  # one order: no deadlocks
        statement = insert(self._engine, table).on_conflict_do_nothing()
        with transaction(self._engine, write=True) as connection:
            connection.execute(statement, rows)

    # Runs

    def start_run(self, run: Run) -> None:
        """Add a run, or note that it was started again: its date, status and report stay, the rest is as given now."""
        columns = {
            "key": run.key,
            "model": run.model,
            "checkpoint": run.checkpoint,
            "suite": run.suite,
            "protocol": run.protocol,
            "judge": run.judge,
            "settings": pack(run.settings),
            "manifest": pack(run.manifest),
            "started": time.time(),
        }
        created = run.created or now()
        statement = (
            insert(self._engine, tables.runs)
            .values(id=run.id, status="running", created=created, **columns)
            .on_conflict_do_update(index_elements=["id"], set_=columns)
        )
        with transaction(self._engine, write=True) as connection:
            connection.execute(statement)

    def finish_run(self, run_id: str, report: Report) -> None:
        """Mark a run complete, with what it found; finished again it keeps its date. Raises UnknownName where it was
        never started."""
        finished = func.coalesce(tables.runs.c.finished, now())
        values = {"status": "complete", "finished": finished, "report": pack(report)}
        with transaction(self._engine, write=True) as connection:
            changed = connection.execute(update(tables.runs).where(tables.runs.c.id == run_id).values(**values))
        if changed.rowcount != 1:
            raise UnknownName("run", run_id, self._run_ids())

    def run(self, id_or_prefix: str) -> Run:
        """A run by id, by an unambiguous prefix of it, or counted back from the last started: "latest", "latest~1"."""
        ids = self._run_ids()
        latest = _LATEST.fullmatch(id_or_prefix)
        if latest:
            back = int(latest[1] or 0)
            if back >= len(ids):
                raise UserError(f"no run '{id_or_prefix}': the store holds {len(ids)} runs (`rlhf-bench run` adds one)")
            found = [ids[back]]
        else:
            found = _matching(id_or_prefix, ids)
        if not found:
            raise UnknownName("run", id_or_prefix, ids, "`rlhf-bench runs` lists them.")
        if len(found) > 1:
            raise UserError(f"'{id_or_prefix}' is the start of {len(found)} runs: {', '.join(found)}")
        with transaction(self._engine) as connection:
            return to_run(connection.execute(select(tables.runs).where(tables.runs.c.id == found[0])).one())

    def runs(self) -> list[Run]:
        """All runs, the last started first."""
        query = select(tables.runs).order_by(tables.runs.c.started.desc(), tables.runs.c.id)
        with transaction(self._engine) as connection:
            rows = connection.execute(query).all()
        return [to_run(row) for row in rows]

    def report(self, run_id: str) -> Report:
        """What a run found; `run_id` as in run(). Raises UserError where it is not finished."""
        run = self.run(run_id)
        if run.report is None:
            raise UserError(f"run {run.id} is not finished: `rlhf-bench runs resume {run.id}` goes on with it")
        return run.report

    def _run_ids(self) -> list[str]:
        with transaction(self._engine) as connection:
            query = select(tables.runs.c.id).order_by(tables.runs.c.started.desc(), tables.runs.c.id)
            return list(connection.execute(query).scalars())

    def save_records(self, run_id: str, records: Iterable[Record]) -> None:
        """Add records to a run in this order; one of the same benchmark and sample id is replaced in its place."""
        rows, samples = [], {}
        for record in records:
            key = digest(record.sample)
            samples[key] = pack(record.sample)
            rows.append(
                {
                    "run": run_id,
                    "benchmark": record.benchmark,
                    "sample_id": record.sample.id,
                    "digest": record.digest,
                    "sample": key,
                    "value": pack((record.completions, record.score)),
                }
            )
        if not rows:
            return
        t = tables.records
        new_samples = insert(self._engine, tables.samples)
        new_samples = new_samples.on_conflict_do_update(
            index_elements=["key"],
            set_={"value": new_samples.excluded.value},  # mends one that no longer reads back
        )
        new_records = insert(self._engine, t)
        replaced = {name: new_records.excluded[name] for name in ("digest", "sample", "value")}
        upsert = new_records.on_conflict_do_update(index_elements=["run", "benchmark", "sample_id"], set_=replaced)
        with transaction(self._engine, write=True) as connection:
            known = select(tables.runs.c.id).where(tables.runs.c.id == run_id)
            if connection.execute(known).first() is None:
                raise UnknownName("run", run_id, connection.execute(select(tables.runs.c.id)).scalars())
            connection.execute(new_samples, [{"key": key, "value": samples[key]} for key in sorted(samples)])
            last = connection.execute(select(func.max(t.c.position)).where(t.c.run == run_id)).scalar()
            first = 0 if last is None else last + 1
            connection.execute(upsert, [row | {"position": first + i} for i, row in enumerate(rows)])

    def records(
        self, run_id: str, benchmark: str | None = None, known: dict[str, Sample] | None = None
    ) -> list[Record]:
        """The records of a run in their order; `run_id` as in run(). Raises CorruptRow naming run and sample.

        Runs share their samples: given the same `known`, those of one run are not read again for the next.
        """
        run_id = self.run(run_id).id
        t, s = tables.records, tables.samples
        query = (
            select(t, s.c.value.label("content"))
            .join_from(t, s, t.c.sample == s.c.key)
            .where(t.c.run == run_id)
            .order_by(t.c.position, t.c.sample_id)
        )
        if benchmark is not None:
            query = query.where(t.c.benchmark == benchmark)
        with transaction(self._engine) as connection:
            rows = connection.execute(query).all()
        known = {} if known is None else known
        with _uncollected():
            return [to_record(row, known) for row in rows]

    # Checkpoints

    def register(self, checkpoint: Checkpoint, alias: str | None = None) -> None:
        """Know a checkpoint by its digest, and by `alias`, which moves here if it was another's.

        Registered again, it takes the new path; a parent or recipe that is known is not forgotten.
        """
        t = tables.checkpoints
        statement = insert(self._engine, t).values(
            digest=checkpoint.digest,
            path=checkpoint.path,
            parent=checkpoint.parent,
            recipe=pack(checkpoint.recipe),
            registered=time.time(),
        )
        known: dict[str, Any] = {"path": checkpoint.path}
        if checkpoint.parent is not None:
            known["parent"] = checkpoint.parent
        if checkpoint.recipe:
            known["recipe"] = pack(checkpoint.recipe)
        with transaction(self._engine, write=True) as connection:
            connection.execute(statement.on_conflict_do_update(index_elements=["digest"], set_=known))
            if alias is not None:
                names = insert(self._engine, tables.aliases).values(name=alias, checkpoint=checkpoint.digest)
                moved = {"checkpoint": checkpoint.digest}
                connection.execute(names.on_conflict_do_update(index_elements=["name"], set_=moved))

    def alias(self, name: str) -> Checkpoint | None:
        """The checkpoint of this alias, if there is one."""
        found = self.aliases().get(name)
        return None if found is None else self.checkpoint(found)

    def checkpoint(self, digest_or_prefix: str) -> Checkpoint | None:
        """A registered checkpoint by digest or a prefix of it. Raises UserError where several begin so."""
        t = tables.checkpoints
        with transaction(self._engine) as connection:
            known = list(connection.execute(select(t.c.digest)).scalars())
            found = _matching(digest_or_prefix, known)
            if len(found) > 1:
                shown = ", ".join(sorted(name[:12] for name in found))
                raise UserError(f"'{digest_or_prefix}' is the start of {len(found)} checkpoints: {shown}")
            if not found:
                return None
            return to_checkpoint(connection.execute(select(t).where(t.c.digest == found[0])).one())

    def checkpoints(self) -> list[tuple[Checkpoint, tuple[str, ...]]]:
        """All registered checkpoints with their aliases, in the order of registration."""
        t = tables.checkpoints
        with transaction(self._engine) as connection:
            rows = connection.execute(select(t).order_by(t.c.registered, t.c.digest)).all()
        aliases = self.aliases()
        return [
            (to_checkpoint(row), tuple(name for name, known in sorted(aliases.items()) if known == row.digest))
            for row in rows
        ]

    def aliases(self) -> dict[str, str]:
        """The digest of each alias."""
        with transaction(self._engine) as connection:
            rows = connection.execute(select(tables.aliases.c.name, tables.aliases.c.checkpoint)).all()
        return {row.name: row.checkpoint for row in rows}

    # Verdicts, the ledger and the champions: all of it is Line's, and each method here is one transaction

    @contextmanager
    def line(self, *, write: bool = False) -> Iterator[Line]:
        """One transaction over the line of champions. `write`: a durable one, beside no other that writes the line."""
        with transaction(self._engine, write=write, durable=write, alone=write) as connection:
            yield Line(connection)

    def champion(self) -> Champion | None:
        """Who must be beaten now, if anyone was ever set. champion.json is made to say the same."""
        champion, said = self._said()
        if self._pointer is not None:
            try:
                point(self._pointer, said, lambda: self._said()[1])
            except Fault as error:  # the store decides; the next who asks tries again
                log.warning("%s", error)
        return champion

    def _said(self) -> tuple[Champion | None, str | None]:
        """The champion, and what champion.json has to say of it."""
        with self.line() as line:
            champion = line.champion()
            checkpoint = None if champion is None else line.checkpoint(champion.checkpoint)
        return champion, None if champion is None or checkpoint is None else pointer(champion, checkpoint)

    def set_champion(
        self, digest: str, *, expect_generation: int, verdict_id: int | None, reason: str, how: How | None = None
    ) -> Champion:
        """Move the champion, if it is still of `expect_generation` (0: none yet); one durable transaction.

        Without a verdict it is the first, or forced. Nothing else is checked here: promote.promote does that. Raises
        LostRace where the generation is another, UserError for a checkpoint or verdict that is not stored here.
        """
        with self.line(write=True) as line:
            moved = line.move(
                digest, expect_generation=expect_generation, verdict_id=verdict_id, reason=reason, how=how
            )
        self.champion()
        return moved

    def history(self) -> list[Champion]:
        """All champions there were, the first first."""
        with self.line() as line:
            return line.history()

    def save_verdict(self, verdict: Verdict, expect_decisions: int | None = None) -> int:
        """Keep a verdict together with its place in the ledger, in one durable transaction; its number.

        A verdict that is stored already (about the same runs and items, by the same policy, in the same generation,
        with the same outcome, checks and reasons) keeps its number and spends nothing again. Raises LostRace where the
        decisions on these items are no longer `expect_decisions` in number: another gate has spent from the same alpha.
        """
        with self.line(write=True) as line:
            return line.save(verdict, expect_decisions)

    def decisions(self, items: Mapping[str, str], run: str = "") -> list[Decision]:
        """The decisions that used the same items as any of these ({benchmark: digest}), or whose candidate's run shares
        a sample with `run`; oldest first."""
        with self.line() as line:
            return line.decisions(items, run)

    def verdict(self, number: int) -> StoredVerdict:
        """The verdict of this number. Raises UnknownName."""
        with self.line() as line:
            return line.verdict(number)

    def verdicts(self) -> list[StoredVerdict]:
        """All verdicts in their order."""
        with self.line() as line:
            return line.verdicts()


@contextmanager
def _uncollected() -> Iterator[None]:
    """While many objects are made that all stay: the collector, which would go through them again and again, rests."""
    collecting = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collecting:
            gc.enable()


def _matching(prefix: str, names: Sequence[str]) -> list[str]:
    """The names that begin so; the exact one alone if there is one; none for an empty prefix."""
    return [prefix] if prefix in names else [name for name in names if prefix and name.startswith(prefix)]
