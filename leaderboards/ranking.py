"""Ranks that say no more than the intervals do."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

PUBLISHED = "published"


@dataclass(frozen=True, slots=True)
class Row:
    """One model's score on one benchmark, measured here or published by others.

    `mean`, `low` and `high` are in the metric's unit (a share is 0 to 1); a published number has no interval.
    `conditions` are what must be equal before two scores compare (judge, shots, samples, …); `marks` say which are not.
    `lineage` is the chain of parents, nearest first. `rank` None is unranked.
    """

    model: str
    benchmark: str
    metric: str
    mean: float | None
    low: float | None
    high: float | None
    source: str
    conditions: Mapping[str, str]
    graded: int | None = None
    ungraded: int | None = None
    checkpoint: str | None = None
    lineage: tuple[str, ...] = ()
    rank: int | None = None
    marks: tuple[str, ...] = field(default=())


def rank(rows: Sequence[Row]) -> tuple[Row, ...]:
    """Each row's rank is one more than the number of rows whose interval lies wholly above its own.

    So rows that overlap the best one share rank 1, and nobody is placed above another on less than the intervals show.
    The order of `rows` does not matter; the highest mean has rank 1; a row clearly above another has the better rank.
    "Overlaps" is not transitive: A may tie with B and B with C while A is clearly above C, so a shared rank is no proof
    of equality. Overlap is also a blunter test than a paired comparison of the same samples. Rows without a mean or an
    interval stay unranked. Best first; unranked rows last.
    """
    placed = [replace(row, rank=_above(row, rows) + 1 if _has_interval(row) else None) for row in rows]
    return tuple(sorted(placed, key=lambda row: (row.rank is None, row.rank or 0, -(row.mean or 0.0), row.model)))


def board(measured: Sequence[Row], published: Sequence[Row] = ()) -> tuple[Row, ...]:
    """One benchmark's table: what compares is ranked, the rest stands under it with a mark that says why not.

    What compares is the largest set of measured rows under equal conditions (of equally large sets the one with the
    most samples). Published rows are never ranked: their prompts and harness are not known to be ours.
    """
    chosen = _commonest(measured)
    here = [row for row in measured if dict(row.conditions) == chosen]
    others = [_marked(row, chosen) for row in measured if dict(row.conditions) != chosen]
    beside = [_marked(row, chosen, PUBLISHED) for row in published]
    return (*rank(here), *_by_mean(others), *_by_mean(beside))


def differences(conditions: Mapping[str, str], reference: Mapping[str, str]) -> tuple[str, ...]:
    """Which of `reference`'s conditions are known to be other in `conditions`, for people: "shots 0, here 8"."""
    return tuple(
        f"{key} {conditions[key]}, here {value}"
        for key, value in reference.items()
        if conditions.get(key, value) != value
    )


def _has_interval(row: Row) -> bool:
    return row.mean is not None and row.low is not None and row.high is not None


def _above(row: Row, rows: Sequence[Row]) -> int:
    high = row.high
    return sum(1 for other in rows if high is not None and other.low is not None and other.low > high)


def _commonest(rows: Sequence[Row]) -> dict[str, str]:
    keys = [tuple(sorted(row.conditions.items())) for row in rows]
    sizes = {key: row.graded or 0 for key, row in zip(keys, rows, strict=True)}
    counts = Counter(keys)
    if not keys:
        return {}
    commonest = max(sizes, key=lambda key: (counts[key], sizes[key], key))
    return dict(commonest)


def _marked(row: Row, reference: Mapping[str, str], *first: str) -> Row:
    return replace(row, rank=None, marks=(*first, *differences(row.conditions, reference)))


def _by_mean(rows: Sequence[Row]) -> list[Row]:
    return sorted(rows, key=lambda row: (row.mean is None, -(row.mean or 0.0), row.model))
