"""What a policy wants shown, and what two runs' records say about it.

    Policy ─► Claim (a difference lies above a threshold) ─► pairs of both runs ─► Finding: difference, bounds, p-values

A claim is about the samples of one part, or of several pooled. In a pool each question counts once, however often and
in how many parts it was asked. Every ungraded pair counts at its worst, against whichever claim is made.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any, Literal, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from rlhf_bench.harness import parity
from rlhf_bench.harness.codec import sample_digest
from rlhf_bench.harness.compare import Pairs, pair, require_kind
from rlhf_bench.harness.errors import UnknownName, UserError
from rlhf_bench.harness.policy import Part, Policy, Target
from rlhf_bench.harness.stats import Evidence, binary_evidence, continuous_evidence
from rlhf_bench.harness.stats.intervals import by_cluster
from rlhf_bench.harness.stats.sequential import anytime_evidence, one_each_way
from rlhf_bench.harness.store import Store
from rlhf_bench.harness.types import Figure, Record, Sample

NO_EVIDENCE = Evidence(-1.0, 1.0, 1.0, 1.0)
STOPPED = "sequential"
"""The entry of a manifest that says how far a run was asked that was to stop early (sequential.Stopping.design)."""
HIGHER = "higher_is_better"
"""The entry of a manifest of files that say which metrics are better when higher: {benchmark: {metric: bool}}."""
_MANIFEST = ("protocol_digest", "judge_identity", "benchmarks")
Figures = Mapping[str, Mapping[str, Figure]]
NO_FIGURES: Figures = MappingProxyType({})


class Level(NamedTuple):
    """The one-sided alpha of a claim's bounds. `interim`: the samples are the first part of more that were planned, so
    one win and one loss are added to them (stats.sequential). With `order` the test holds after any sample: these are
    taken in the registered order that this salt fixes."""

    alpha: float
    order: str = ""
    interim: bool = False


@dataclass(frozen=True, slots=True)
class RunData:
    """What the gate reads of one run: whose answers, under which conditions, with which scores.

    `manifest` holds "protocol_digest", "judge_identity" and "benchmarks" ({name: {"version", "metric", "kind"}}), and
    may hold "protocol", "engine" and `HIGHER`; UserError where one of the first three is missing: nothing could be
    shown to compare. `figures` are the metrics that are no means over samples, by benchmark and name; `parity` is what
    is known of how engines agree.
    """

    run_id: str
    checkpoint: str
    manifest: Mapping[str, Any]
    records: Mapping[str, Sequence[Record]]
    figures: Figures = field(default_factory=dict)
    parity: tuple[parity.Parity, ...] = ()

    def __post_init__(self) -> None:
        for key in _MANIFEST:
            if key not in self.manifest:
                raise UserError(f"run {self.run_id} does not say its {key}, so it compares with nothing: run it again")

    @classmethod
    def load(cls, store: Store, run_id: str, figures: Figures = NO_FIGURES) -> Self:
        """The finished run of this id in the store. Raises UserError where it is not finished."""
        report = store.report(run_id)
        records: dict[str, list[Record]] = {}
        for record in store.records(report.run_id):
            records.setdefault(record.benchmark, []).append(record)
        return cls(report.run_id, report.checkpoint, report.manifest, records, figures, parity.records())

    @property
    def benchmarks(self) -> Mapping[str, Mapping[str, Any]]:
        """Version, metric and kind of each benchmark that was run."""
        found: Mapping[str, Mapping[str, Any]] = self.manifest["benchmarks"]
        return found

    def only(self, keep: Mapping[str, frozenset[str]]) -> Self:
        """The same run with the records of these digests only, by benchmark."""
        nothing: frozenset[str] = frozenset()
        return replace(
            self,
            records={
                name: [record for record in records if record.digest in keep.get(name, nothing)]
                for name, records in self.records.items()
            },
        )


@dataclass(frozen=True, slots=True)
class Claim:
    """What a policy wants shown: that a difference, counted so that more is better, lies above `threshold`."""

    role: Literal["target", "guard"]
    label: str
    parts: tuple[Part, ...]
    threshold: float
    sign: float
    against: str

    @property
    def margin(self) -> float:
        """The threshold without its sign."""
        return abs(self.threshold)

    @property
    def metric(self) -> str:
        """The metric, or those of the pool."""
        return " + ".join(dict.fromkeys(part.metric for part in self.parts))


@dataclass(frozen=True, slots=True)
class Finding:
    """What the records say about a claim; no evidence where `missing` says what there is not.

    `level` is that of its bounds; `items` counts what stands alone among the pairs. `repeatable`: the answers were
    generated, so that more of them to the same samples would say more.
    """

    claim: Claim
    level: Level
    difference: float | None = None
    evidence: Evidence = NO_EVIDENCE
    pairs: int = 0
    items: int = 0
    ungraded: int = 0
    repeatable: bool = False
    missing: str = ""


def require_whole(run: RunData) -> None:
    """Raise UserError for a run that was stopped early: it has the samples that its own gate wanted, and no others."""
    if STOPPED in run.manifest:
        raise UserError(
            f"run {run.run_id} was stopped early, so nothing can be held against it: make the whole run with "
            "`rlhf-bench run` without --sequential"
        )


def require_known(policy: Policy, run: RunData, *, means: bool = False) -> None:
    """Raise UnknownName for a benchmark, metric or stratum of a policy that this run lacks; with `means` UserError for
    a metric that is no mean over samples."""
    for name in policy.benchmarks:
        if name not in run.benchmarks:
            about = f"Policy '{policy.name}' asks for it."
            raise UnknownName(f"benchmark in run {run.run_id}", name, run.benchmarks, about)
    for rule in (*policy.targets, *policy.guards):
        for part in rule.parts:
            if _paired(part, run, run).figure is not None and means:
                raise _no_mean(part.metric, part.benchmark)


def _no_mean(metric: str, label: str) -> UserError:
    return UserError(f"{metric} of {label} is no mean over samples, so no e-process bets on it: leave out --peek")


def place(salt: str, sample: Sample) -> str:
    """Where a sample stands in the order that `salt` registers; those of one cluster stand together."""
    own = sample_digest(sample)
    together = sample.tags.get("cluster", own)
    return f"{hashlib.sha256(f'{salt} {together}'.encode()).hexdigest()} {own}"


def claims(policy: Policy, rivals: Iterable[str]) -> list[Claim]:
    """Every target against the champion, and every guard against each of `rivals`."""

    def claim(rule: Any, against: str) -> Claim:
        role: Literal["target", "guard"] = "target" if isinstance(rule, Target) else "guard"
        threshold = rule.min_effect if role == "target" else -rule.margin
        return Claim(
            role, policy.label(rule), rule.parts, threshold, 1.0 if rule.direction == "higher" else -1.0, against
        )

    targets = [claim(target, "champion") for target in policy.targets]
    return targets + [claim(guard, rival) for rival in rivals for guard in policy.guards]


def find(claim: Claim, policy: Policy, candidate: RunData, rival: RunData, level: Level) -> Finding:
    """What the two runs show at this one-sided level. Raises UserError where they were not asked the same samples."""
    found = Finding(claim, level)
    for run in (candidate, rival):
        for part in claim.parts:
            if part.benchmark not in run.benchmarks:
                return replace(
                    found, missing=f"run {run.run_id} does not have {part.benchmark}, and nothing is shown without it"
                )
    paired = [_paired(part, candidate, rival) for part in claim.parts]
    graded = np.concatenate([each.pairs.graded for each in paired])
    ungraded = int(graded.size - graded.sum())
    clusters = _clusters(paired)
    found = replace(
        found,
        pairs=graded.size,
        items=len(set(clusters)) if clusters else graded.size,
        ungraded=ungraded,
        repeatable=all(each.generated for each in paired),
    )
    if ungraded > policy.max_ungraded * graded.size or not graded.any():
        allowed = f"{100 * policy.max_ungraded:g}% allowed"
        return replace(
            found,
            difference=_plain_difference(claim, paired),
            missing=f"{ungraded} of {graded.size} pairs are ungraded, more than the {allowed}",
        )
    low, high = (0.0, 1.0) if claim.sign > 0 else (1.0, 0.0)
    d = claim.sign * _differences(paired, low, high)
    worst = _weigh(claim, paired, clusters, d, level)
    if not ungraded:
        return replace(found, difference=_mean(paired, clusters, d), evidence=worst)
    best = _weigh(claim, paired, clusters, claim.sign * _differences(paired, high, low), level)
    return replace(
        found,
        difference=_plain_difference(claim, paired),
        evidence=Evidence(worst.low, best.high, worst.p_above, best.p_below),
    )


class _Paired(NamedTuple):
    """One part in both runs; `figure` where its metric is no mean over samples."""

    pairs: Pairs
    figure: Figure | None
    binary: bool
    generated: bool


def _paired(part: Part, candidate: RunData, rival: RunData) -> _Paired:
    name, facts = part.benchmark, candidate.benchmarks[part.benchmark]
    figure = candidate.figures.get(name, {}).get(part.metric)
    ours, theirs = (_in_strata(part, run) for run in (candidate, rival))
    pairs = pair(ours, theirs, benchmark=name, metric=facts["metric"] if figure else part.metric)
    if pairs.unpaired:
        count = len(pairs.unpaired)
        raise UserError(
            f"'{name}': {count} sample{'s are' if count > 1 else ' is'} in only one of the runs {candidate.run_id} and "
            f"{rival.run_id} ('{pairs.unpaired[0]}' first): run both with the same limit"
        )
    first = pairs.records[0][0].completions
    generated = bool(first) and first[0].logprob is None
    return _Paired(pairs, figure, figure is None and _is_binary(part, (candidate, rival), pairs), generated)


def _in_strata(part: Part, run: RunData) -> Sequence[Record]:
    records = run.records.get(part.benchmark, ())
    if not part.strata:
        return records
    known = {record.sample.tags.get("stratum", "") for record in records}
    for stratum in part.strata:
        if stratum not in known:
            raise UnknownName(f"stratum of '{part.benchmark}' in run {run.run_id}", stratum, known - {""})
    return [record for record in records if record.sample.tags.get("stratum") in part.strata]


def _is_binary(part: Part, runs: tuple[RunData, RunData], pairs: Pairs) -> bool:
    """By the kind that both runs declare of the benchmark's own metric (files know it by their values alone, and these
    may all be 0 or 1 by chance), and of its other metrics by what their values look like."""
    run = runs[0]
    facts = run.benchmarks[part.benchmark]
    if part.metric == facts["metric"]:
        binary = all(each.benchmarks[part.benchmark]["kind"] == "binary" for each in runs)
        require_kind(pairs, "binary" if binary else "continuous", part.benchmark)
        return binary
    others = {name for both in pairs.records for record in both for name in record.score.also}
    if part.metric not in others:
        known = {facts["metric"], *others, *run.figures.get(part.benchmark, {})}
        raise UnknownName(f"metric of '{part.benchmark}'", part.metric, known)
    scores = np.concatenate([pairs.candidate, pairs.champion])
    return bool(np.isin(scores[np.isfinite(scores)], (0.0, 1.0)).all())


def _differences(paired: Sequence[_Paired], candidate: float, champion: float) -> NDArray[np.float64]:
    """Candidate minus champion of all parts, with these scores where there is none."""
    return np.concatenate(
        [
            _difference(
                each,
                np.nan_to_num(each.pairs.candidate, nan=candidate),
                np.nan_to_num(each.pairs.champion, nan=champion),
                each.pairs.records,
            )
            for each in paired
        ]
    )


def _plain_difference(claim: Claim, paired: Sequence[_Paired]) -> float | None:
    """The difference over the pairs that are graded; None where none is."""
    parts = []
    for each in paired:
        graded = each.pairs.graded
        records = [both for both, keep in zip(each.pairs.records, graded, strict=True) if keep]
        if records:
            parts.append(_difference(each, each.pairs.candidate[graded], each.pairs.champion[graded], records))
    return claim.sign * float(np.concatenate(parts).mean()) if parts else None


def _difference(
    paired: _Paired,
    candidate: NDArray[np.float64],
    champion: NDArray[np.float64],
    records: Sequence[tuple[Record, Record]],
) -> NDArray[np.float64]:
    if paired.figure is None:
        return candidate - champion
    ours = paired.figure([mine for mine, _ in records], candidate.tolist())
    theirs = paired.figure([other for _, other in records], champion.tolist())
    return np.subtract(ours, theirs, dtype=np.float64)


def _mean(paired: Sequence[_Paired], clusters: Sequence[str] | None, d: NDArray[np.float64]) -> float:
    """The mean difference: over the pairs, in a pool over the questions."""
    return float(_by_question(paired, clusters, d)[0].mean())


def _by_question(
    paired: Sequence[_Paired], clusters: Sequence[str] | None, d: NDArray[np.float64]
) -> tuple[NDArray[np.float64], Sequence[str] | None]:
    """Differences and clusters as they are, or in a pool one difference for each question."""
    if clusters is None or len(paired) == 1:
        return d, clusters
    sums, sizes = by_cluster(d, clusters)
    return sums / sizes, None


def _weigh(
    claim: Claim,
    paired: Sequence[_Paired],
    clusters: Sequence[str] | None,
    d: NDArray[np.float64],
    level: Level,
) -> Evidence:
    bounded = not any(each.figure for each in paired)
    if level.order:
        if not bounded:
            raise _no_mean(claim.metric, claim.label)
        places = [place(level.order, mine.sample) for each in paired for mine, _ in each.pairs.records]
        together = [where.split()[0] for where in places] if clusters else places
        sums, sizes = by_cluster(d, together)
        return anytime_evidence(sums / sizes, threshold=claim.threshold, alpha=level.alpha)
    binary = clusters is None and all(each.binary for each in paired)
    d, clusters = _by_question(paired, clusters, d)
    seen = float(d.mean())
    if level.interim:
        d, clusters = one_each_way(d, clusters)
    if binary:
        gained, lost = int((d > 0).sum()), int((d < 0).sum())
        found = binary_evidence(gained, lost, d.size, threshold=claim.threshold, alpha=level.alpha)
    else:
        found = continuous_evidence(d, clusters, threshold=claim.threshold, alpha=level.alpha, bounded=bounded)
    return found._replace(low=min(found.low, seen), high=max(found.high, seen)) if level.interim else found


DUPLICATES = 0.01
"""Up to this share of questions that a benchmark asks again under other ids are taken for its own oversight."""


def _clusters(paired: Sequence[_Paired]) -> tuple[str, ...] | None:
    """What belongs together: tagged clusters, and the same question in several parts or under several ids.

    None where every pair stands alone.
    """
    asked: dict[object, str] = {}
    names = []
    for number, each in enumerate(paired):
        for at, (mine, _) in enumerate(each.pairs.records):
            question = asked.setdefault(mine.sample.prompt, f"question {len(asked)}")
            tagged = each.pairs.clusters is not None and "cluster" in mine.sample.tags
            names.append(f"{number} {each.pairs.clusters[at]}" if tagged and each.pairs.clusters else question)
    again = len(names) - len(set(names))
    shared = len(paired) > 1 and again > 0
    return tuple(names) if shared or again > DUPLICATES * len(names) else None
