"""Two runs, sample by sample: paired by what was asked, never by position."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rlhf_bench.harness.errors import UserError
from rlhf_bench.harness.stats import mcnemar_midp, mean_interval, sign_flip_p, tango_interval
from rlhf_bench.harness.stats.intervals import by_cluster
from rlhf_bench.harness.types import Comparison, Kind, Record


@dataclass(frozen=True, slots=True)
class Pairs:
    """The same samples in two runs, in the order of their digests; a score is NaN where it is ungraded.

    `clusters` names the cluster of each pair, None where every pair stands alone. `unpaired` holds the sample ids that
    only one run has.
    """

    records: tuple[tuple[Record, Record], ...]
    candidate: NDArray[np.float64]
    champion: NDArray[np.float64]
    clusters: tuple[str, ...] | None
    unpaired: tuple[str, ...]

    @property
    def graded(self) -> NDArray[np.bool_]:
        """Which pairs have a score on both sides."""
        return np.isfinite(self.candidate) & np.isfinite(self.champion)


def compare(
    candidate: Sequence[Record],
    champion: Sequence[Record],
    *,
    benchmark: str,
    metric: str,
    kind: Kind,
    level: float = 0.95,
    seed: int = 0,
) -> Comparison:
    """Candidate minus champion over the pairs that both runs graded.

    Binary pairs that stand alone: McNemar's mid-p and Tango's interval; all others: clustered paired t and sign flips.
    Raises UserError where no pair is graded in both runs, or a score does not fit its kind.
    """
    pairs = pair(candidate, champion, benchmark=benchmark, metric=metric)
    graded = pairs.graded
    if not graded.any():
        raise UserError(f"'{benchmark}': not one of {graded.size} samples is graded in both runs, so nothing compares")
    ours, theirs = pairs.candidate[graded], pairs.champion[graded]
    require_kind(pairs, kind, benchmark)
    d = ours - theirs
    gained, lost = int((d > 0).sum()), int((d < 0).sum())
    clusters = [c for c, keep in zip(pairs.clusters, graded, strict=True) if keep] if pairs.clusters else None
    if kind == "binary" and clusters is None:
        low, high = tango_interval(gained, lost, d.size, level)
        p, method = mcnemar_midp(gained, lost), "tango, mcnemar mid-p"
    else:
        interval = mean_interval(*by_cluster(d, clusters), level=level)
        low = -1.0 if interval.low is None else interval.low
        high = 1.0 if interval.high is None else interval.high
        p, method = sign_flip_p(d, clusters, seed=seed), f"paired {interval.method}, sign flips"
    return Comparison(
        benchmark=benchmark,
        metric=metric,
        kind=kind,
        candidate=float(ours.mean()),
        champion=float(theirs.mean()),
        difference=float(d.mean()),
        low=low,
        high=high,
        p=p,
        paired=d.size,
        gained=gained,
        lost=lost,
        ungraded=int(graded.size - d.size),
        unpaired=pairs.unpaired,
        level=level,
        method=method,
    )


def flips(
    candidate: Sequence[Record], champion: Sequence[Record], *, benchmark: str, metric: str
) -> list[tuple[Record, Record]]:
    """The pairs (candidate's, champion's) whose scores differ, the candidate's greatest loss first."""
    pairs = pair(candidate, champion, benchmark=benchmark, metric=metric)
    d = pairs.candidate - pairs.champion
    return [pairs.records[i] for i in np.argsort(d, kind="stable") if math.isfinite(d[i]) and d[i] != 0]


def pair(candidate: Iterable[Record], champion: Iterable[Record], *, benchmark: str, metric: str) -> Pairs:
    """Pair the two runs' records of one benchmark by digest.

    A question that a benchmark asks more than once is paired in the order of the sample ids. `metric` is the one of
    that name in `Score.also`, or else the benchmark's own. Raises UserError where nothing pairs, or where a score lies
    outside 0 to 1.
    """
    ours, theirs = _by_digest(candidate, benchmark), _by_digest(champion, benchmark)
    records: list[tuple[Record, Record]] = []
    unpaired: list[str] = []
    for digest in sorted(ours.keys() | theirs.keys()):
        mine, other = ours.get(digest, []), theirs.get(digest, [])
        both = min(len(mine), len(other))
        records += zip(mine[:both], other[:both], strict=True)
        unpaired += [record.sample.id for record in mine[both:] + other[both:]]
    if not records:
        raise UserError(
            f"'{benchmark}': no sample was asked alike in both runs ({len(unpaired)} in all): "
            f"run both with the same suite, protocol and limit"
        )
    also = any(metric in record.score.also for both in records for record in both)
    return Pairs(
        tuple(records),
        np.array([_value(record, metric, also) for record, _ in records]),
        np.array([_value(record, metric, also) for _, record in records]),
        _clusters([record for record, _ in records]),
        tuple(unpaired),
    )


def require_kind(pairs: Pairs, kind: Kind, benchmark: str) -> None:
    """Raise UserError where a benchmark that calls itself binary has a score other than 0 and 1."""
    scores = np.concatenate([pairs.candidate, pairs.champion])
    odd = scores[np.isfinite(scores) & ~np.isin(scores, (0.0, 1.0))]
    if kind == "binary" and odd.size:
        raise UserError(f"'{benchmark}' calls itself binary but has a score of {odd[0]:g}: its kind must be continuous")


def _by_digest(records: Iterable[Record], benchmark: str) -> dict[str, list[Record]]:
    found: dict[str, list[Record]] = defaultdict(list)
    for record in records:
        if record.benchmark == benchmark:
            found[record.digest].append(record)
    for same in found.values():
        same.sort(key=lambda record: record.sample.id)
    return found


def _value(record: Record, metric: str, also: bool) -> float:
    value = record.score.also.get(metric) if also else record.score.value
    if value is None or not math.isfinite(value):
        return math.nan
    if not 0 <= value <= 1:
        raise UserError(f"'{record.benchmark}': {metric} of sample '{record.sample.id}' is {value:g}, not from 0 to 1")
    return value


def _clusters(records: Sequence[Record]) -> tuple[str, ...] | None:
    """Tagged clusters; a pair without a tag is a cluster of its own. None where no cluster has two pairs."""
    names = tuple(
        f"tag {record.sample.tags['cluster']}" if "cluster" in record.sample.tags else f"pair {i}"
        for i, record in enumerate(records)
    )
    return names if len(set(names)) < len(names) else None
