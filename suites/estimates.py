"""Figures that are no mean over samples: how a benchmark's `summarise` says them, or why there is none."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from rlhf_bench.harness.errors import MissingData
from rlhf_bench.harness.types import Estimate, Record

if TYPE_CHECKING:
    from rlhf_bench.harness.stats import Interval


def clusters_of(records: Sequence[Record]) -> list[str] | None:
    """The cluster of each record, where there are any: several answers to one question count as one."""
    if not any("cluster" in record.sample.tags for record in records):
        return None
    return [record.sample.tags.get("cluster", record.sample.id) for record in records]


def summary(
    benchmark: str,
    metric: str,
    graded: int,
    total: int,
    measure: Callable[[], Interval],
    *,
    least: int = 1,
    unit: float = 1.0,
) -> Estimate:
    """What `measure` finds at 95%, times `unit`. No mean where fewer than `least` samples or than half are graded, or
    where data are missing; `why` says so."""
    none = Estimate(benchmark, metric, None, None, None, None, graded, total - graded)
    if graded < least or 2 * graded < total:
        more = f" and at least {least}" if least > 1 else ""
        return replace(none, why=f"{metric}: {graded} of {total} samples are graded; it needs half{more}")
    try:
        found = measure()
    except MissingData as error:
        return replace(none, why=str(error))
    mean, low, high, se = (None if x is None else unit * x for x in found[:4])
    return Estimate(benchmark, metric, mean, low, high, se, graded, total - graded, method=found.method)
