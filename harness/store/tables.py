"""The tables. A schema that changes what a column means raises SCHEMA."""

from __future__ import annotations

from typing import TypeAlias

from sqlalchemy import Column, Float, ForeignKey, Integer, LargeBinary, MetaData, String, Table, Text, TypedColumns

SCHEMA = 2
metadata = MetaData()


class _Content(TypedColumns):
    """A value under the digest of everything that decides it."""

    key = Column(String(64), primary_key=True)
    value = Column(LargeBinary, nullable=False)


ContentTable: TypeAlias = Table[_Content]


class _Meta(TypedColumns):
    name = Column(String, primary_key=True)
    value = Column(String, nullable=False)


class _Runs(TypedColumns):
    id = Column(String, primary_key=True)
    key = Column(String(64), nullable=False)
    model = Column(String, nullable=False)
    checkpoint = Column(String, nullable=False)
    suite = Column(String, nullable=False)
    protocol = Column(String, nullable=False)
    judge: Column[str | None] = Column(String)
    settings = Column(LargeBinary, nullable=False)
    manifest = Column(LargeBinary, nullable=False)
    status = Column(String, nullable=False)
    created = Column(String, nullable=False)
    started = Column(Float, nullable=False)  # Unix time of the last start: what "latest" goes by
    finished: Column[str | None] = Column(String)
    report: Column[bytes | None] = Column(LargeBinary)


class _Records(TypedColumns):
    run = Column(String, ForeignKey("runs.id"), primary_key=True)
    benchmark = Column(String, primary_key=True)
    sample_id = Column(String, primary_key=True)
    position = Column(Integer, nullable=False)
    digest = Column(String(64), nullable=False)
    sample = Column(String(64), ForeignKey("samples.key"), nullable=False)
    value = Column(LargeBinary, nullable=False)


class _Checkpoints(TypedColumns):
    digest = Column(String, primary_key=True)
    path = Column(String, nullable=False)
    parent: Column[str | None] = Column(String)
    recipe = Column(LargeBinary, nullable=False)
    registered = Column(Float, nullable=False)


class _Aliases(TypedColumns):
    name = Column(String, primary_key=True)
    checkpoint = Column(String, ForeignKey("checkpoints.digest"), nullable=False)


class _Verdicts(TypedColumns):
    id = Column(Integer, primary_key=True)
    value = Column(LargeBinary, nullable=False)
    created = Column(String, nullable=False)
    key: Column[str | None] = Column(String(64), unique=True)  # what was decided; empty in verdicts of schema 1


class _Decisions(TypedColumns):
    """The alpha ledger: what each gate decision, which is verdict `number` among those on its items, has spent."""

    verdict = Column(Integer, ForeignKey("verdicts.id"), primary_key=True, autoincrement=False)
    number = Column(Integer, nullable=False)
    spent = Column(Float, nullable=False)


class _DecidedItems(TypedColumns):
    """The digest of the samples of each benchmark that a decision was reached on."""

    verdict = Column(Integer, ForeignKey("decisions.verdict"), primary_key=True, autoincrement=False)
    benchmark = Column(String, primary_key=True)
    digest = Column(String, nullable=False, index=True)


class _Champions(TypedColumns):
    """One row for each champion there was; the highest generation is the champion.

    `how` is "forced" where nothing else is said: an older rlhf-bench that still has the store open looks at less.
    """

    generation = Column(Integer, primary_key=True, autoincrement=False)
    checkpoint = Column(String, ForeignKey("checkpoints.digest"), nullable=False)
    verdict: Column[int | None] = Column(Integer, ForeignKey("verdicts.id"))
    reason = Column(Text, nullable=False)
    moved_at = Column(String, nullable=False)
    how = Column(String, nullable=False, server_default="forced")


meta = Table("meta", metadata, _Meta)
completions = Table("completions", metadata, _Content)
scores = Table("scores", metadata, _Content)
rewards = Table("rewards", metadata, _Content)
samples = Table("samples", metadata, _Content)
runs = Table("runs", metadata, _Runs)
records = Table("records", metadata, _Records)
checkpoints = Table("checkpoints", metadata, _Checkpoints)
aliases = Table("aliases", metadata, _Aliases)
verdicts = Table("verdicts", metadata, _Verdicts)
decisions = Table("decisions", metadata, _Decisions)
decided_items = Table("decided_items", metadata, _DecidedItems)
champions = Table("champions", metadata, _Champions)
