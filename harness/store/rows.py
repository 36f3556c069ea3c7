"""The nouns that only the store has, and how nouns become rows and rows nouns."""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Literal

from sqlalchemy import Row

from rlhf_bench.harness.codec import dumps, loads
from rlhf_bench.harness.errors import CorruptRow, Fault
from rlhf_bench.harness.types import Checkpoint, Completion, Record, Report, Sample, Score, Verdict


@dataclass(frozen=True, slots=True)
class Run:
    """One evaluation: what it was started with (`settings` start it again), and its report once it is complete."""

    id: str
    model: str
    checkpoint: str
    suite: str
    protocol: str
    judge: str | None
    key: str
    manifest: Mapping[str, Any] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    status: Literal["running", "complete"] = "running"
    created: str = ""
    finished: str | None = None
    report: Report | None = None


How = Literal["first", "verdict", "forced", "rollback"]


@dataclass(frozen=True, slots=True)
class Champion:
    """The checkpoint (digest) that a candidate must beat. Each move raises `generation` by one; the first is 1.

    `how` it came to be: as the first, by a verdict, by force, or brought back.
    """

    checkpoint: str
    generation: int
    verdict_id: int | None
    moved_at: str
    reason: str
    how: How


@dataclass(frozen=True, slots=True)
class Decision:
    """A gate decision in the ledger: the verdict's number, the alpha that it spent, and the digest of each benchmark's
    samples. `decision` is its number among the decisions on these samples, as the verdict says itself.
    """

    number: int
    spent: float
    items: Mapping[str, str]
    decision: int = 0


@dataclass(frozen=True, slots=True)
class StoredVerdict:
    """A verdict under its number."""

    id: int
    verdict: Verdict
    created: str


def now() -> str:
    """UTC in ISO 8601."""
    return datetime.now(UTC).isoformat()


def pack(value: Any) -> bytes:
    """Canonical JSON, compressed. Raises Fault for what JSON cannot say (NaN, infinity, half a surrogate pair)."""
    try:
        return zlib.compress(dumps(value).encode())
    except ValueError as error:
        raise Fault(f"a {type(value).__name__} cannot be stored: {error}") from error


def unpack(cls: Any, value: bytes, what: str) -> Any:
    """The `cls` that was packed. Raises CorruptRow, naming `what`, where checksum or text say otherwise."""
    try:
        return loads(cls, zlib.decompress(value))
    except (zlib.error, TypeError, CorruptRow) as error:
        raise CorruptRow(f"{what} does not read back: {error}") from error


def to_run(row: Row[Any]) -> Run:
    """The run of a row of tables.runs."""
    return Run(
        id=row.id,
        model=row.model,
        checkpoint=row.checkpoint,
        suite=row.suite,
        protocol=row.protocol,
        judge=row.judge,
        key=row.key,
        manifest=unpack(dict[str, Any], row.manifest, f"the manifest of run {row.id}"),
        settings=unpack(dict[str, Any], row.settings, f"the settings of run {row.id}"),
        status=row.status,
        created=row.created,
        finished=row.finished,
        report=None if row.report is None else unpack(Report, row.report, f"the report of run {row.id}"),
    )


def to_checkpoint(row: Row[Any]) -> Checkpoint:
    """The checkpoint of a row of tables.checkpoints."""
    recipe = unpack(dict[str, Any], row.recipe, f"the recipe of checkpoint {row.digest[:12]}")
    return Checkpoint(row.path, row.digest, row.parent, recipe)


def to_champion(row: Row[Any]) -> Champion:
    """The champion of a row of tables.champions."""
    return Champion(row.checkpoint, row.generation, row.verdict, row.moved_at, row.reason, row.how)


def to_verdict(row: Row[Any]) -> StoredVerdict:
    """The verdict of a row of tables.verdicts."""
    return StoredVerdict(row.id, unpack(Verdict, row.value, f"verdict {row.id}"), row.created)


def to_record(row: Row[Any], known: dict[str, Sample]) -> Record:
    """The record of a row of tables.records, with the sample's content as `content`; `known` holds samples by key, and
    gets this one."""
    what = f"sample '{row.sample_id}' of {row.benchmark} in run {row.run}"
    completions, score = unpack(tuple[tuple[Completion, ...], Score], row.value, what)
    sample = known.get(row.sample)
    if sample is None:
        sample = known[row.sample] = unpack(Sample, row.content, what)
    return Record(row.benchmark, row.digest, sample, completions, score)
