"""How much the paired difference of one item varies, before there is a candidate to compare with.

    a twin of the run (the same checkpoint, another sampling seed), or the run's own repeats   the chance in an answer
    what two alike models were seen to differ by on this benchmark, or else by their scores    that, and their own ways

The first is measured, and too small: two samples of one model differ by chance alone, where a candidate that learned
something differs on more items. The second is assumed. The larger of the two is taken, and what exceeds the first is
held to be how the models themselves differ, which no number of repeats averages out.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from rlhf_bench.harness.claims import STOPPED, RunData
from rlhf_bench.harness.codec import digest, plain
from rlhf_bench.harness.errors import UnknownName, UserError
from rlhf_bench.harness.policy import Part
from rlhf_bench.harness.store import Run
from rlhf_bench.harness.types import Record, Sample

Source = Literal["twin", "repeats", "assumed"]
USUAL = MappingProxyType(
    {
        "mmlu": 0.10,
        "gsm8k": 0.12,
        "arc_challenge": 0.08,
        "truthfulqa_mc1": 0.10,
        "truthfulqa_mc2": 0.10,
        "mbpp": 0.12,
        "mbpp_plus": 0.12,
        "humaneval": 0.10,
        "humaneval_plus": 0.10,
    }
)
"""The share of items that two alike models answer differently, generously; what MC2 varies by is no more."""
MEASURED = MappingProxyType(
    {("alpaca_eval", "win_rate"): 805 * 0.0145**2, ("alpaca_eval", "lc_win_rate"): 805 * 0.0155**2}
)
"""The variance of a difference among published models, the largest."""
ALIKE = 0.5
"""The correlation of two models' scores on an item, where nothing is known of it: published ones have .48 to .61."""


@dataclass(frozen=True, slots=True)
class Spread:
    """How the difference of one item varies, and where that is known from.

    `items` are all there are in the run, `ungraded` those of them without a score. `single` is the variance with one
    answer to each, `variance` with the run's `repeats`; of a binary score it is the share of items that change.
    `within` is what of `single` is the chance in an answer, None where nothing was measured. `source` says which of the
    two was the larger. `generated`: answers are written, so that more of them to the same items would say more.
    """

    items: int
    ungraded: int
    repeats: int
    binary: bool
    generated: bool
    single: float
    within: float | None
    source: Source

    @property
    def between(self) -> float:
        """What is left of the variance however often each item is answered."""
        return self.single - (self.within or 0.0)

    @property
    def variance(self) -> float:
        """With the run's repeats."""
        return self.single if self.within is None else self.between + self.within / self.repeats


def spread(parts: Sequence[Part], run: RunData, twin: RunData | None = None) -> Spread:
    """That of the items of all parts together. Raises UnknownName for a metric or stratum that the run lacks, UserError
    where nothing of a part is graded or a score lies outside 0 to 1."""
    found = [_of_part(part, run, twin) for part in parts]
    items = np.array([each.items for each in found])
    within = [each.within for each in found if each.generated]
    weights = items / items.sum()
    sources = [each.source for each in found]
    return Spread(
        items=int(items.sum()),
        ungraded=sum(each.ungraded for each in found),
        repeats=max(each.repeats for each in found),
        binary=all(each.binary for each in found),
        generated=any(each.generated for each in found),
        single=float(weights @ [each.single for each in found]),
        within=None if None in within else float(weights @ [each.within or 0.0 for each in found]),
        source=sources[0] if len(set(sources)) == 1 else "assumed",
    )


def repeats_of(run: RunData) -> int:
    """How many answers the run asked to each question."""
    return max(1, int((run.manifest.get("protocol") or {}).get("repeats", 1)))


# Twins


def asked_alike(sample: Sample) -> str:
    """Identifies a question and its reference whatever the temperature, seed and repeat that it is answered with."""
    return digest([[[plain(r.prompt), r.continuation, r.index] for r in sample.requests], sample.reference])


def require_twin(run: RunData, twin: RunData, benchmarks: Iterable[str]) -> None:
    """Raise UserError, saying what differs, where `twin` is no second sample of the same checkpoint asked alike."""
    name = f"run {twin.run_id} is no twin of run {run.run_id}"
    again = "a twin is the same `rlhf-bench run` with another --sample-seed"
    if twin.run_id == run.run_id:
        raise UserError(f"run {run.run_id} is its own twin: {again}")
    if twin.checkpoint != run.checkpoint:
        raise UserError(f"{name}: it is of another checkpoint, {twin.checkpoint[:12]} and not {run.checkpoint[:12]}")
    if STOPPED in twin.manifest:
        raise UserError(f"{name}: it was stopped early; {again}, and without --sequential")
    shared = [each for each in benchmarks if each in run.benchmarks and each in twin.benchmarks]
    if not shared:
        raise UserError(f"{name}: it has none of the policy's benchmarks")
    facts: list[tuple[str, Any, Any]] = [("judge", run.manifest["judge_identity"], twin.manifest["judge_identity"])]
    ours, theirs = _asked(run), _asked(twin)
    facts += [(f"protocol's {key}", ours.get(key), theirs.get(key)) for key in sorted(ours.keys() | theirs.keys())]
    for each in shared:
        one, other = run.benchmarks[each], twin.benchmarks[each]
        facts += [(f"{key} of '{each}'", one.get(key), other.get(key)) for key in ("version", "metric", "kind")]
    for what, one, other in facts:
        if one != other:
            raise UserError(f"{name}: the {what} is {one!s:.40} in the one and {other!s:.40} in the other; {again}")
    _require_chance(run, twin, shared, name)


def find_twin(
    run: RunData, runs: Iterable[Run], benchmarks: Sequence[str], load: Callable[[str], RunData]
) -> RunData | None:
    """The first twin of `run` among finished `runs`, if there is one that has all of these benchmarks."""
    for each in runs:
        has = each.manifest.get("benchmarks") or {}
        alike = each.checkpoint == run.checkpoint and all(name in has for name in benchmarks)
        if each.status != "complete" or each.id == run.run_id or not alike:
            continue
        try:
            twin = load(each.id)
            require_twin(run, twin, benchmarks)
        except UserError:
            continue
        return twin
    return None


def _asked(run: RunData) -> dict[str, Any]:
    """The protocol without what twins differ in."""
    protocol = dict(run.manifest.get("protocol") or {})
    return {key: value for key, value in protocol.items() if key not in ("name", "sampling_seed")}


def _require_chance(run: RunData, twin: RunData, benchmarks: Sequence[str], name: str) -> None:
    """Raise UserError where chance had no part in the answers, so that both runs are one sample."""
    written = {each: [r for r in run.records.get(each, ()) if _texts(r)] for each in benchmarks}
    if not any(written.values()):
        raise UserError(f"{name}: both only score given choices, and there is no chance in that")
    pairs = [
        (ours, theirs)
        for benchmark, records in written.items()
        if records
        for ours, theirs in _paired(records, twin.records.get(benchmark, ()))
    ]
    if not pairs:
        raise UserError(f"{name}: no question was asked in both")
    if all(_texts(ours) == _texts(theirs) for ours, theirs in pairs):
        raise UserError(
            f"{name}: its {len(pairs)} answers are the same, as with greedy decoding; run both with --temperature"
        )


def _paired(ours: Iterable[Record], theirs: Iterable[Record]) -> Iterator[tuple[Record, Record]]:
    """The answers of both to the same question, in the order of the sample ids."""
    one, other = (defaultdict[str, list[Record]](list) for _ in range(2))
    for found, records in ((one, ours), (other, theirs)):
        for record in sorted(records, key=lambda record: record.sample.id):
            found[asked_alike(record.sample)].append(record)
    return (both for key in one for both in zip(one[key], other.get(key, ()), strict=False))


def _texts(record: Record) -> list[str]:
    """What was written, not scored."""
    return [completion.text for completion in record.completions if completion.logprob is None]


# One part


class _Scores(NamedTuple):
    """The graded records of one part with their scores, and how many items there are and are not graded.

    `stretch` is how many times the variance of the scores that of a figure made of them is; 1 of the scores themselves.
    """

    records: list[Record]
    values: NDArray[np.float64]
    binary: bool
    items: int
    ungraded: int
    stretch: float


def _of_part(part: Part, run: RunData, twin: RunData | None) -> Spread:
    scores = _scores(part, run)
    generated = any(c.logprob is None for record in scores.records for c in record.completions)
    repeats = repeats_of(run) if generated else 1
    assumed = _assumed(part, scores)
    measured: tuple[float, Source] | None = None
    if generated and twin is not None and part.benchmark in twin.benchmarks:
        measured = _between_twins(scores, _scores(part, twin), repeats)
    if generated and measured is None and repeats > 1:
        measured = _among_repeats(scores)
    within = measured[0] if measured else None if generated else 0.0
    alone = not any("cluster" in record.sample.tags for record in scores.records)
    larger = measured is not None and measured[0] > assumed
    return Spread(
        items=scores.items,
        ungraded=scores.ungraded,
        repeats=repeats,
        binary=scores.binary and alone,
        generated=generated,
        single=max(assumed, within or 0.0),
        within=within,
        source=measured[1] if measured and larger else "assumed",
    )


def _scores(part: Part, run: RunData) -> _Scores:
    name, facts = part.benchmark, run.benchmarks[part.benchmark]
    records = list(run.records.get(name, ()))
    if part.strata:
        known = {record.sample.tags.get("stratum", "") for record in records}
        for stratum in part.strata:
            if stratum not in known:
                raise UnknownName(f"stratum of '{name}' in run {run.run_id}", stratum, known - {""})
        records = [record for record in records if record.sample.tags.get("stratum") in part.strata]
    others = {metric for record in records for metric in record.score.also}
    figure = run.figures.get(name, {}).get(part.metric)
    own = part.metric == facts["metric"]
    if not own and figure is None and part.metric not in others:
        raise UnknownName(f"metric of '{name}'", part.metric, {facts["metric"], *others, *run.figures.get(name, {})})
    by_metric = own or figure is not None
    given = [record.score.value if by_metric else record.score.also.get(part.metric) for record in records]
    graded = [(record, value) for record, value in zip(records, given, strict=True) if value is not None]
    if not graded:
        raise UserError(f"'{name}': none of {len(records)} samples of run {run.run_id} is graded, so nothing is known")
    kept, values = [record for record, _ in graded], np.array([value for _, value in graded])
    if not ((values >= 0) & (values <= 1)).all():
        raise UserError(f"'{name}': {part.metric} of run {run.run_id} is not from 0 to 1, so no gate can compare it")
    stretch = 1.0
    if figure is not None:
        before, values = values, np.asarray(figure(kept, values.tolist()), dtype=np.float64)
        stretch = float(values.var() / before.var()) if before.var() > 0 else 1.0
    binary = facts["kind"] == "binary" if own else figure is None and bool(np.isin(values, (0.0, 1.0)).all())
    items, found = ({_item(record) for record in each} for each in (records, kept))
    return _Scores(kept, values, binary, len(items), len(items - found), stretch)


def _item(record: Record) -> str:
    """What counts as one: the cluster, or the sample."""
    cluster = record.sample.tags.get("cluster")
    return f"sample {record.sample.id}" if cluster is None else f"cluster {cluster}"


def _assumed(part: Part, scores: _Scores) -> float:
    """The variance of the difference of two alike models, one answer each.

    By benchmark where it is known; else 2 (1 - `ALIKE`) times that of the scores. That of scores that hardly differ is
    taken no smaller than one more item at either end of the scale would make it.
    """
    if (part.benchmark, part.metric) in MEASURED:
        return MEASURED[part.benchmark, part.metric]
    figure = scores.stretch != 1.0
    if part.benchmark in USUAL and (
        scores.binary or figure or (part.benchmark, part.metric) == ("truthfulqa_mc2", "acc")
    ):
        return USUAL[part.benchmark] * scores.stretch
    values = np.concatenate([scores.values, [0.0, 1.0]]) if scores.binary else scores.values
    variance = float(values.var())
    if variance == 0:
        variance = float(np.concatenate([scores.values, [0.0, 1.0]]).var())
    return 2 * (1 - ALIKE) * variance


def _between_twins(ours: _Scores, theirs: _Scores, repeats: int) -> tuple[float, Source] | None:
    """The mean square of the difference of two samples of one model, whose mean is 0, for one answer each."""
    one, other = _means(ours), _means(theirs)
    d = np.array([one[key] - other[key] for key in one.keys() & other.keys()])
    return (repeats * float(d @ d) / d.size, "twin") if d.size else None


def _among_repeats(scores: _Scores) -> tuple[float, Source] | None:
    """Twice the variance of one answer among the repeats of an item."""
    squares, freedom = 0.0, 0
    for values in _groups(scores).values():
        squares += float(np.var(values) * len(values))
        freedom += len(values) - 1
    return (2 * squares / freedom, "repeats") if freedom else None


def _means(scores: _Scores) -> dict[str, float]:
    return {key: float(np.mean(values)) for key, values in _groups(scores).items()}


def _groups(scores: _Scores) -> dict[str, list[float]]:
    found: dict[str, list[float]] = defaultdict(list)
    for record, value in zip(scores.records, scores.values, strict=True):
        found[asked_alike(record.sample)].append(float(value))
    return found
