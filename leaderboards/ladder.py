"""The Ladder over runs: the published best of a benchmark, as the iterations of a loop came to climb it.

finished runs, one set of items, one way to ask ─► by date ─► harness.stats.ladder ─► a rung for each run
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from rlhf_bench.harness.errors import UserError
from rlhf_bench.harness.stats.intervals import Floats
from rlhf_bench.harness.stats.ladder import ladder
from rlhf_bench.harness.store import Run
from rlhf_bench.harness.types import Record
from rlhf_bench.leaderboards.measured import conditions


@dataclass(frozen=True, slots=True)
class Rung:
    """What was published once this run had finished, and the number of the rung on which that was reached."""

    step: int
    run: str
    model: str
    checkpoint: str
    finished: str
    published: float | None
    moved: bool
    moved_at: int | None


@dataclass(frozen=True, slots=True)
class Climb:
    """The rungs of one benchmark, by date; `conditions` are what all of its runs share."""

    benchmark: str
    metric: str
    samples: int
    conditions: Mapping[str, str]
    rungs: tuple[Rung, ...]


def candidates(runs: Iterable[Run], benchmark: str, wanted: Mapping[str, str]) -> list[Run]:
    """The finished runs that were asked under these conditions, in the order in which they were finished."""
    found = [
        run
        for run in runs
        if run.report is not None
        and benchmark in run.report.manifest.get("benchmarks", {})
        and conditions(run.report, benchmark) == wanted
    ]
    return sorted(found, key=lambda run: (run.finished or "", run.created, run.id))


def climb(benchmark: str, submitted: Iterable[tuple[Run, str, Sequence[Record]]], wanted: Mapping[str, str]) -> Climb:
    """The Ladder over runs with what their models are called and their records, in this order.

    Raises UserError where there is none, or they are of different samples.
    """
    runs: list[tuple[Run, str]] = []
    scores: list[Floats] = []
    keys: list[str] = []
    clusters: list[str] = []
    for run, name, records in submitted:
        ordered = sorted(records, key=lambda record: (record.digest, record.sample.id))
        if not runs:
            keys = [record.digest for record in ordered]
            clusters = [record.sample.tags.get("cluster", record.sample.id) for record in ordered]
        if [record.digest for record in ordered] != keys:
            raise UserError(f"'{benchmark}': runs {runs[0][0].id} and {run.id} are of different samples")
        runs.append((run, name))
        scores.append(np.array([r.score.value for r in ordered], dtype=np.float64))
    if not runs:
        raise UserError(f"no finished run of '{benchmark}' to climb: `rlhf-bench run -s {benchmark}` adds one")
    steps = ladder(scores, clusters if len(set(clusters)) < len(clusters) else None)
    rungs = tuple(
        Rung(
            step=number,
            run=run.id,
            model=name,
            checkpoint=run.checkpoint,
            finished=run.finished or "",
            published=step.published,
            moved=step.moved,
            moved_at=None if step.holder is None else step.holder + 1,
        )
        for number, ((run, name), step) in enumerate(zip(runs, steps, strict=True), 1)
    )
    metric = runs[0][0].manifest["benchmarks"][benchmark]["metric"]
    return Climb(benchmark, metric, len(keys), wanted, rungs)
