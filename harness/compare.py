"""Two runs, sample by sample: paired by what was asked, never by position.

pair(records, records) ─► Pairs ─► contrast(pairs, measure) ─► Contrast: a Comparison, and whether it shows anything
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray
from scipy import special

from rlhf_bench.harness.errors import UserError
from rlhf_bench.harness.stats import holm, mcnemar_midp, mean_interval, sign_flip_p, tango_interval
from rlhf_bench.harness.stats.intervals import Floats, by_cluster, mean_se
from rlhf_bench.harness.types import Comparison, Figure, Kind, Record

Direction: TypeAlias = Literal["higher", "lower"]
Shown: TypeAlias = Literal["better", "worse", "neither"]


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

    @property
    def cut(self) -> tuple[int, int]:
        """How many of the candidate's, and of the champion's, have an answer that hit its length limit."""
        ours, theirs = (
            sum(any(each.finish_reason == "length" for each in both[side].completions) for both in self.records)
            for side in (0, 1)
        )
        return ours, theirs

    @property
    def kind(self) -> Kind:
        """What the scores look like: binary where all are 0 or 1."""
        scores = np.concatenate([self.candidate, self.champion])
        return "binary" if np.isin(scores[np.isfinite(scores)], (0.0, 1.0)).all() else "continuous"

    def reading(self, metric: str) -> Pairs:
        """The same pairs by another metric of their scores, on whatever scale it is."""
        ours, theirs = (
            np.array([both[side].score.also.get(metric, math.nan) for both in self.records], dtype=np.float64)
            for side in (0, 1)
        )
        return replace(self, candidate=ours, champion=theirs)

    @property
    def strata(self) -> set[str]:
        """The strata that there are; "" where a pair has none."""
        return {record.sample.tags.get("stratum", "") for record, _ in self.records}

    def by_stratum(self) -> dict[str, Pairs]:
        """The pairs of each stratum, strata by name; those that have none are left out."""
        places: dict[str, list[int]] = defaultdict(list)
        for number, (record, _) in enumerate(self.records):
            places[record.sample.tags.get("stratum", "")].append(number)
        return {stratum: self._at(places[stratum]) for stratum in sorted(places) if stratum}

    def _at(self, places: Sequence[int]) -> Pairs:
        records = tuple(self.records[number] for number in places)
        clusters = _clusters([record for record, _ in records])
        return Pairs(records, self.candidate[places], self.champion[places], clusters, ())


@dataclass(frozen=True, slots=True)
class Measure:
    """What is compared: a metric of a benchmark, and whether more of it is better.

    `figure` is set where the metric is no mean over samples.
    """

    benchmark: str
    metric: str
    kind: Kind
    direction: Direction = "higher"
    figure: Figure | None = None


@dataclass(frozen=True, slots=True)
class Contrast:
    """A comparison, and what it takes to say whether it shows anything.

    `p_worse` is one-sided for "the candidate is worse", as the comparison's `p` is for "better". `cut` counts the
    candidate's and the champion's samples with an answer that hit its length limit. `adjusted` is the two-sided p-value
    among others of the same kind, where it stands among such.
    """

    comparison: Comparison
    p_worse: float
    cut: tuple[int, int]
    direction: Direction = "higher"
    adjusted: float | None = None

    @property
    def p_two_sided(self) -> float:
        """Twice the smaller of both one-sided p-values."""
        return min(1.0, 2 * min(self.comparison.p, self.p_worse))

    @property
    def shown(self) -> Shown:
        """What interval and p-value both show at the comparison's level."""
        found, p = self.comparison, self.p_two_sided if self.adjusted is None else self.adjusted
        if p > 1 - found.level or found.low <= 0.0 <= found.high:
            return "neither"
        return "better" if (found.low > 0.0) == (self.direction == "higher") else "worse"


def compare(
    candidate: Sequence[Record],
    champion: Sequence[Record],
    *,
    benchmark: str,
    metric: str,
    kind: Kind,
    level: float = 0.95,
    seed: int = 0,
    figure: Figure | None = None,
    direction: Direction = "higher",
) -> Comparison:
    """Candidate minus champion over the pairs that both runs graded: `pair`, then `contrast`."""
    pairs = pair(candidate, champion, benchmark=benchmark, metric=metric)
    return contrast(pairs, Measure(benchmark, metric, kind, direction, figure), level=level, seed=seed).comparison


def contrast(pairs: Pairs, measure: Measure, *, level: float = 0.95, seed: int = 0) -> Contrast:
    """Candidate minus champion over the pairs that both runs graded.

    Binary pairs that stand alone: McNemar's mid-p and Tango's interval; all others: clustered paired t and sign flips,
    for a figure those of its linearised values. Where lower is better, p, `gained` and `lost` are about falling; the
    difference and its interval stay candidate minus champion.
    Raises UserError where no pair is graded in both runs, a score does not fit its kind, or a metric that is not on a
    scale from 0 to 1 differs everywhere alike.
    """
    graded = pairs.graded
    if not graded.any():
        raise UserError(
            f"'{measure.benchmark}': not one of {graded.size} samples is graded in both runs, so nothing compares"
        )
    if measure.figure is None:
        require_kind(pairs, measure.kind, measure.benchmark)
    scores = pairs.candidate[graded], pairs.champion[graded]
    ours, theirs = _linear(pairs, measure.figure, scores)
    d = ours - theirs
    changed = scores[0] - scores[1] if measure.direction == "higher" else scores[1] - scores[0]
    gained, lost = int((changed > 0).sum()), int((changed < 0).sum())
    clusters = [c for c, keep in zip(pairs.clusters, graded, strict=True) if keep] if pairs.clusters else None
    if measure.kind == "binary" and measure.figure is None and clusters is None:
        rose, fell = (gained, lost) if measure.direction == "higher" else (lost, gained)
        low, high = tango_interval(rose, fell, d.size, level)
        p, p_worse, method = mcnemar_midp(gained, lost), mcnemar_midp(lost, gained), "tango, mcnemar mid-p"
    else:
        on_scale = measure.figure is not None or bool((np.abs(np.concatenate(scores) - 0.5) <= 0.5).all())
        low, high, how = _interval(d, clusters, level, measure, on_scale)
        up = d if measure.direction == "higher" else -d
        p, p_worse = sign_flip_p(up, clusters, seed=seed), sign_flip_p(-up, clusters, seed=seed)
        method = f"paired {how}, sign flips" + (", linearised" if measure.figure else "")
    found = Comparison(
        benchmark=measure.benchmark,
        metric=measure.metric,
        kind=measure.kind,
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
    return Contrast(found, p_worse, pairs.cut, measure.direction)


def by_stratum(pairs: Pairs, measure: Measure, *, level: float = 0.95, seed: int = 0) -> dict[str, Contrast | None]:
    """Each stratum's own contrast, strata by name, None where no pair of it is graded; empty where there are none.

    `adjusted` is Holm's over the strata: of 57 subjects that did not change, three would else seem to.
    """
    found = {
        stratum: contrast(part, measure, level=level, seed=seed) if part.graded.any() else None
        for stratum, part in pairs.by_stratum().items()
    }
    known = {stratum: each for stratum, each in found.items() if each is not None}
    adjusted = holm([each.p_two_sided for each in known.values()])
    return found | {
        stratum: replace(each, adjusted=p) for (stratum, each), p in zip(known.items(), adjusted, strict=True)
    }


def macro_average(records: Sequence[Record], scores: Sequence[float]) -> list[float]:
    """The plain mean of the strata's means ("acc,macro"), linearised: a `Figure` of any benchmark with strata.

    In stratum s of S an item's value is the mean + n/(S·n_s) · (its score − the stratum's mean), stretched so that the
    spread over all n gives the error of strata that are fixed: Σ sd_s²/n_s / S². Raises UserError where a stratum has
    one record.
    """
    labels = [record.sample.tags.get("stratum", "") for record in records]
    names, codes, counts = np.unique(np.asarray(labels, dtype=str), return_inverse=True, return_counts=True)
    if counts.min() < 2:
        raise UserError(f"no macro average: stratum '{names[counts.argmin()]}' has one graded sample")
    values, total = np.asarray(scores, dtype=np.float64), len(labels)
    means = np.bincount(codes, weights=values) / counts
    stretch = total / (counts.size * counts) * np.sqrt(counts / (counts - 1) * (total - 1) / total)
    return [float(value) for value in means.mean() + stretch[codes] * (values - means[codes])]


def _linear(pairs: Pairs, figure: Figure | None, scores: tuple[Floats, Floats]) -> tuple[Floats, Floats]:
    """The scores of the graded pairs; of a figure its linearised values."""
    if figure is None:
        return scores
    graded = [both for both, keep in zip(pairs.records, pairs.graded, strict=True) if keep]
    ours, theirs = (np.array(figure([both[side] for both in graded], list(scores[side]))) for side in (0, 1))
    return ours, theirs


def _interval(
    d: Floats, clusters: Sequence[str] | None, level: float, measure: Measure, on_scale: bool
) -> tuple[float, float, str]:
    """The interval of the mean difference and what it is called; off the scale from 0 to 1 a plain t interval."""
    sums, sizes = by_cluster(d, clusters)
    if on_scale:
        found = mean_interval(sums, sizes, level=level)
        low, high = -1.0 if found.low is None else found.low, 1.0 if found.high is None else found.high
        return max(low, -1.0), min(high, 1.0), found.method
    mean, se = mean_se(sums, sizes)
    if se == 0.0:
        raise UserError(
            f"'{measure.benchmark}': {measure.metric} differs by {mean:g} on each of {d.size} pairs, which bounds "
            "nothing on its scale"
        )
    half = float(special.stdtrit(sums.size - 1, (1 + level) / 2)) * se
    return mean - half, mean + half, f"t, {sums.size} {'items' if clusters is None else 'clusters'}"


def flips(
    candidate: Sequence[Record], champion: Sequence[Record], *, benchmark: str, metric: str
) -> list[tuple[Record, Record]]:
    """The pairs (candidate's, champion's) whose scores differ, the candidate's greatest loss first."""
    return changed(pair(candidate, champion, benchmark=benchmark, metric=metric))


def changed(pairs: Pairs, direction: Direction = "higher") -> list[tuple[Record, Record]]:
    """The pairs whose scores differ, the candidate's greatest loss first."""
    d = pairs.candidate - pairs.champion if direction == "higher" else pairs.champion - pairs.candidate
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
