"""Records to estimates: a benchmark's metric over its samples, its strata, and what else the scores say."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from textwrap import shorten

from rlhf_bench.harness.stats import estimate
from rlhf_bench.harness.types import Benchmark, Estimate, Kind, Record, Sample

WARN_UNGRADED = 0.02
"""Above this share of ungraded samples an estimate says so."""
MAX_UNGRADED = 0.5
"""Above this share there is no estimate."""
LEVEL = 0.95
MIN_CLUSTERS = 20
"""With fewer clusters a cluster standard error is too small (Cameron & Miller 2015): none is given for strata."""


def estimates_of(benchmark: Benchmark, records: Sequence[Record]) -> list[Estimate]:
    """The estimate of the benchmark's metric over its records, then of each other metric in its scores, then its own.

    The metric is the mean over samples. Where these are of several strata, "metric,macro" is the mean of the strata's
    means, and with `MIN_CLUSTERS` strata or more "metric,clustered" the mean over samples with the interval of a sample
    of strata: what new strata would score (scoring by Miller 2024, arXiv 2411.00640).
    """
    values = [record.score.value for record in records]
    found = [_estimate(benchmark.name, benchmark.metric, benchmark.kind, records, values)]
    strata = len({record.sample.tags.get("stratum", "") for record in records})
    if strata > 1:
        found.append(_macro(benchmark, records))
    if strata >= MIN_CLUSTERS:
        within = [_clustered(record) for record in records]
        found.append(_estimate(benchmark.name, f"{benchmark.metric},clustered", benchmark.kind, within, values))
    for name in sorted({name for record in records for name in record.score.also}):
        values = [record.score.also.get(name) for record in records]
        kind: Kind = "binary" if {value for value in values if value is not None} <= {0.0, 1.0} else "continuous"
        found.append(_estimate(benchmark.name, name, kind, records, values))
    return found + (benchmark.summarise(records) if benchmark.summarise else [])


def strata_of(benchmark: Benchmark, records: Sequence[Record]) -> list[tuple[str, Estimate]]:
    """The estimate of the benchmark's metric for each stratum, in the order of their first samples; none has none."""
    parts: dict[str, list[Record]] = {}
    for record in records:
        if "stratum" in record.sample.tags:
            parts.setdefault(record.sample.tags["stratum"], []).append(record)
    return [
        (stratum, _estimate(benchmark.name, benchmark.metric, benchmark.kind, part, [r.score.value for r in part]))
        for stratum, part in parts.items()
    ]


def _estimate(
    benchmark: str, metric: str, kind: Kind, records: Sequence[Record], values: Sequence[float | None]
) -> Estimate:
    graded = [(value, record.sample) for value, record in zip(values, records, strict=True) if value is not None]
    missing = [record.score.why or "no value" for value, record in zip(values, records, strict=True) if value is None]
    why = "" if records else "no samples"
    cut = sum(any(each.finish_reason == "length" for each in record.completions) for record in records)
    if len(missing) > WARN_UNGRADED * len(records):
        reasons = "; ".join(f"{count} × {shorten(reason, 100)}" for reason, count in Counter(missing).most_common(3))
        why = f"{len(missing)} of {len(records)} ungraded ({reasons})"
    if not graded or len(missing) > MAX_UNGRADED * len(records):
        return Estimate(benchmark, metric, None, None, None, None, len(graded), len(missing), why=why, cut=cut)
    clusters = _clusters([sample for _, sample in graded])
    mean, low, high, se, method = estimate([value for value, _ in graded], kind=kind, clusters=clusters, level=LEVEL)
    return Estimate(benchmark, metric, mean, low, high, se, len(graded), len(missing), LEVEL, method, why, cut)


def _macro(benchmark: Benchmark, records: Sequence[Record]) -> Estimate:
    """The mean of the strata's means; none where a stratum has none, or the benchmark."""
    metric = f"{benchmark.metric},macro"
    values = [record.score.value for record in records]
    whole = replace(_estimate(benchmark.name, benchmark.metric, benchmark.kind, records, values), metric=metric)
    without = [name or "(none)" for name, part in strata_of(benchmark, records) if part.mean is None]
    if without or whole.mean is None:
        why = whole.why if whole.mean is None else f"too little is graded in {', '.join(without[:3])}"
        return replace(whole, mean=None, low=None, high=None, se=None, method="", why=why)
    graded = [record for record in records if record.score.value is not None]
    found = estimate(
        [record.score.value for record in graded if record.score.value is not None],
        kind=benchmark.kind,
        clusters=_clusters([record.sample for record in graded]),
        level=LEVEL,
        strata=[record.sample.tags.get("stratum", "") for record in graded],
    )
    return replace(whole, mean=found.mean, low=found.low, high=found.high, se=found.se, method=found.method)


def _clustered(record: Record) -> Record:
    """The record as one of the cluster that its stratum is."""
    tags = {**record.sample.tags, "cluster": record.sample.tags.get("stratum", "")}
    return replace(record, sample=replace(record.sample, tags=tags))


def _clusters(samples: Sequence[Sample]) -> list[str] | None:
    """The cluster of each sample (its own where it has no tag), or None where none has one."""
    if not any("cluster" in sample.tags for sample in samples):
        return None
    return [sample.tags.get("cluster", sample.id) for sample in samples]
