"""Runs side by side, before they are shown: what `rlhf-bench compare` found.

runs ─► pairs with the base's, benchmark by benchmark ─► Row: a Contrast for each run ─► Compared
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple

from rlhf_bench.harness.errors import UnknownName, UserError

if TYPE_CHECKING:
    from rlhf_bench.harness.compare import Contrast, Direction, Pairs
    from rlhf_bench.harness.store import Run, Store
    from rlhf_bench.harness.types import Figure, Kind, Record, Sample

ALL = "all"
SHOWN_BESIDE: Mapping[str, tuple[str, ...]] = {"alpaca_eval": ("lc_win_rate",), "arena_hard": ("score",)}
"""The official figures that stand under a benchmark's own metric unasked, where they can be computed."""
LOWER = ("truncated", "kl")
"""Metrics beside a benchmark's own of which less is better without being told."""
NAMED = 3
"""So many of the samples without a partner are named."""


class Source(NamedTuple):
    """A finished run and the store that it is in."""

    store: Store
    run: Run


@dataclass(frozen=True, slots=True)
class Row:
    """One line: a benchmark's metric, or a stratum of it. A cell for each run, None where there is nothing to say."""

    benchmark: str
    metric: str
    cells: tuple[Contrast | None, ...]
    stratum: str = ""
    own: bool = True

    @property
    def valued(self) -> bool:
        """Whether more of the metric is known to be better or worse; it is not of a length, or of a count."""
        return self.own or self.first is None or self.first.direction == "lower" or not off_scale(self.first)

    @property
    def first(self) -> Contrast | None:
        """The first cell that says something."""
        return next((cell for cell in self.cells if cell is not None), None)


@dataclass(frozen=True, slots=True)
class Choice:
    """What is compared: further `metrics` ("all"), which of them are better when `lower`, strata, and flips of each run
    and benchmark."""

    benchmark: str | None = None
    metrics: tuple[str, ...] = ()
    lower: tuple[str, ...] = ()
    by_stratum: bool = False
    flips: int = 0

    def direction(self, metric: str) -> Direction:
        """Whether more of this metric is better."""
        return "lower" if metric in (*self.lower, *LOWER) else "higher"


Flips = Mapping[str, Sequence[tuple["Record", "Record"]]]
"""By benchmark the samples that changed, (the run's, the base's): those that lost most first, then what gained most."""


@dataclass(frozen=True, slots=True)
class Compared:
    """Runs against one base: the rows, a line for each thing that is not as it should be, and flips of each run."""

    base: Run
    runs: tuple[Run, ...]
    rows: tuple[Row, ...]
    notes: tuple[str, ...]
    flips: tuple[Flips, ...]

    @property
    def strata(self) -> dict[str, int]:
        """How many strata of each benchmark are among the rows."""
        found: dict[str, int] = {}
        for row in self.rows:
            if row.stratum:
                found[row.benchmark] = found.get(row.benchmark, 0) + 1
        return found


def compared(base: Source, others: Sequence[Source], choice: Choice) -> Compared:
    """`others` against `base`, sample by sample, in the order of the base's benchmarks.

    Raises UserError where a run is not finished, two were not asked and judged alike or have no benchmark in common,
    and for a metric or strata that none has; UnknownName for a benchmark that is not in the base and one of the others.
    """
    names = _shared(base, others, choice.benchmark)
    runs = tuple(each.run for each in others)
    parts = []
    for name in names:
        own = _own(name, (base.run, *runs))
        known: dict[str, Sample] = {}
        old = base.store.records(base.run.id, name, known)
        pairs = [_pairs(name, own["metric"], old, each, known) for each in others]
        parts.append(_part(name, own, pairs, runs, choice))
    rows = tuple(row for part in parts for row in part.rows)
    _require_answered(choice, names, parts, rows)
    notes = [
        *_left_out(base.run, runs, choice.benchmark),
        *_stopped(base.run, runs),
        *_across_engines(base.run, runs),
        *(note for part in parts for note in part.notes),
    ]
    flips = tuple({n: p.flips[i] for n, p in zip(names, parts, strict=True) if p.flips} for i in range(len(runs)))
    return Compared(base.run, runs, rows, tuple(dict.fromkeys(notes)), flips if choice.flips else ())


def _across_engines(base: Run, runs: Sequence[Run]) -> Iterator[str]:
    """A note for each run whose engine is not known to answer as the base's does."""
    from rlhf_bench.harness.parity import records, unshown

    known = records()
    for run in runs:
        why = unshown(base.manifest.get("engine") or {}, run.manifest.get("engine") or {}, known)
        if why:
            yield f"{base.id} and {run.id}: {why}"


def _own(name: str, runs: Sequence[Run]) -> dict[str, Any]:
    """The benchmark's metric, its kind, which files know by their values alone and so by all of them, and those of its
    metrics of which the runs say that less is better."""
    from rlhf_bench.harness.claims import HIGHER

    known = [run.manifest["benchmarks"][name] for run in runs if name in run.manifest["benchmarks"]]
    said = [run.manifest.get(HIGHER, {}).get(name, {}) for run in runs]
    return {
        "metric": known[0]["metric"],
        "kind": "binary" if all(facts["kind"] == "binary" for facts in known) else "continuous",
        "lower": sorted({metric for each in said for metric, higher in each.items() if not higher}),
    }


class _Part(NamedTuple):
    """What was found of one benchmark: also every metric that it has, and why one that was named is not among the
    rows."""

    rows: list[Row]
    notes: list[str]
    known: set[str]
    failed: list[UserError]
    flips: list[list[tuple[Record, Record]]]


def _part(
    name: str, own: Mapping[str, Any], pairs: Sequence[Pairs | None], runs: Sequence[Run], choice: Choice
) -> _Part:
    """One benchmark: its own metric, further ones, its strata, and flips."""
    from rlhf_bench import suites
    from rlhf_bench.harness.compare import Measure, by_stratum, contrast, macro_average

    choice = replace(choice, lower=(*choice.lower, *own["lower"]))
    measure = Measure(name, own["metric"], own["kind"], choice.direction(own["metric"]))
    cells = tuple(None if each is None else contrast(each, measure) for each in pairs)
    rows, notes, failed = [Row(name, measure.metric, cells)], list(_unpaired(name, cells, runs)), []
    figures = dict(suites.figures([name]).get(name, {}))
    if any(len(each.strata) > 1 for each in pairs if each):
        figures[f"{measure.metric},macro"] = macro_average
    beside = {metric for each in pairs if each for both in each.records for r in both for metric in r.score.also}
    further = [*figures, *sorted(beside - {measure.metric} - figures.keys())]
    for metric in _wanted(name, further, choice):
        row, problems = _further(name, metric, figures.get(metric), pairs, choice)
        rows += [row] if row else []
        notes += [f"{name}: {problem}" for problem in problems]
        failed += problems if row is None and metric in choice.metrics else []
    if choice.by_stratum:
        found = [{} if each is None else by_stratum(each, measure) for each in pairs]
        for stratum in dict.fromkeys(stratum for each in found for stratum in each):
            rows.append(Row(name, measure.metric, tuple(each.get(stratum) for each in found), stratum))
    flips = [_flips(each, cell, choice.flips) for each, cell in zip(pairs, cells, strict=True) if choice.flips]
    return _Part(rows, notes, {measure.metric, *further}, failed, flips)


def _wanted(name: str, further: Sequence[str], choice: Choice) -> list[str]:
    """The metrics that stand beside the benchmark's own: the official figures, then what was named."""
    if ALL in choice.metrics:
        return list(further)
    found = [*SHOWN_BESIDE.get(name, ()), *choice.metrics]
    return [metric for metric in dict.fromkeys(found) if metric in further]


def _further(
    name: str, metric: str, figure: Figure | None, pairs: Sequence[Pairs | None], choice: Choice
) -> tuple[Row | None, list[UserError]]:
    """The row of one further metric and what kept cells empty; no row where it can be computed for no run."""
    cells: list[Contrast | None] = []
    problems = []
    for each in pairs:
        try:
            cells.append(None if each is None else _measured(name, metric, figure, each, choice.direction(metric)))
        except UserError as error:
            cells.append(None)
            problems.append(error)
    return (Row(name, metric, tuple(cells), own=False) if any(cells) else None), problems


def _measured(name: str, metric: str, figure: Figure | None, pairs: Pairs, direction: Direction) -> Contrast | None:
    """None where no pair has it."""
    from rlhf_bench.harness.compare import Measure, contrast

    read = pairs if figure else pairs.reading(metric)
    kind: Kind = "continuous" if figure else read.kind
    return contrast(read, Measure(name, metric, kind, direction, figure)) if read.graded.any() else None


def _flips(pairs: Pairs | None, cell: Contrast | None, count: int) -> list[tuple[Record, Record]]:
    """Up to `count` samples that were lost, the greatest loss first, then as many that were gained."""
    from rlhf_bench.harness.compare import changed

    if pairs is None or cell is None:
        return []
    both, lost = changed(pairs, cell.direction), cell.comparison.lost
    return both[:lost][:count] + both[lost:][::-1][:count]


def _require_answered(choice: Choice, names: Sequence[str], parts: Sequence[_Part], rows: Sequence[Row]) -> None:
    """Raise UserError for a metric or strata that were asked for and that no row is about."""
    known = {metric for part in parts for metric in part.known}
    for metric in choice.metrics + choice.lower:
        if metric not in known | {ALL}:
            raise UnknownName(f"metric of {', '.join(names)}", metric, known)
    for problem in (problem for part in parts for problem in part.failed):
        raise problem
    if choice.by_stratum and not any(row.stratum for row in rows):
        raise UserError(f"no sample of {', '.join(names)} says which part of it it belongs to: leave out --by-stratum")


def _shared(base: Source, others: Sequence[Source], wanted: str | None) -> list[str]:
    """The benchmarks that the base and one of the others have, in the base's order; these were asked and judged alike.

    Raises UserError where they were not, or a run is not finished, and UnknownName for a benchmark that is not shared.
    """
    from rlhf_bench.harness.gate import RunData, require_comparable

    def told(source: Source) -> RunData:
        report = source.store.report(source.run.id)
        return RunData(report.run_id, report.checkpoint, report.manifest, {})

    old, new = told(base), [told(each) for each in others]
    shared = [name for name in old.benchmarks if any(name in each.benchmarks for each in new)]
    if wanted is not None and wanted not in shared:
        raise UnknownName("benchmark in both runs", wanted, shared)
    for each in new:
        if not old.benchmarks.keys() & each.benchmarks.keys():
            raise UserError(f"runs {old.run_id} and {each.run_id} have no benchmark in common")
    names = shared if wanted is None else [wanted]
    for each in new:
        require_comparable(each, old, names)
    return names


def _pairs(name: str, metric: str, old: Sequence[Record], source: Source, known: dict[str, Sample]) -> Pairs | None:
    """The run's records of a benchmark with the base's; None where the run does not have it."""
    from rlhf_bench.harness.compare import pair

    if name not in source.run.manifest["benchmarks"]:
        return None
    return pair(source.store.records(source.run.id, name, known), old, benchmark=name, metric=metric)


def _left_out(base: Run, others: Sequence[Run], wanted: str | None) -> Iterable[str]:
    """What only one side has, of the benchmarks that are compared."""
    theirs = base.manifest["benchmarks"]
    for run in others:
        names = run.manifest["benchmarks"]
        missing = [name for name in theirs if name not in names and wanted in (None, name)]
        further = [name for name in names if name not in theirs and wanted in (None, name)]
        if missing:
            yield f"run {run.id} has no {', '.join(missing)}"
        if further:
            yield f"run {base.id} has no {', '.join(further)}: what run {run.id} has of it is left out"


def _unpaired(name: str, cells: Sequence[Contrast | None], runs: Sequence[Run]) -> Iterable[str]:
    """Samples that only one run has take no part in what is shown, so they are named."""
    for cell, run in zip(cells, runs, strict=True):
        if cell is not None and cell.comparison.unpaired:
            found, where = cell.comparison, f" ({run.model}, {run.id})" if len(runs) > 1 else ""
            refused = "" if _design(run) else ", and the gate refuses such runs"
            yield (
                f"{name}{where}: only {found.paired + found.ungraded} samples are in both runs; {len(found.unpaired)} "
                f"are in one and left out ({some(found.unpaired)}){refused}"
            )


def _stopped(base: Run, runs: Sequence[Run]) -> Iterable[str]:
    """What the gate does with runs that were stopped early, and what it does not."""
    if _design(base):
        yield f"run {base.id} was stopped early: the gate holds nothing against it, make the whole run for that"
    for run in runs:
        if not (design := _design(run)):
            continue
        asked = ", ".join(f"{done} of {there} of {name}" for name, (done, there) in design["asked"].items())
        said = f"run {run.id} was stopped early ({asked}); what is stopped when it looks best reads optimistic"
        if design["against"] == base.id:
            yield f"{said}: `rlhf-bench gate {run.id} {base.id}` allows for that, by the policy that it was stopped by"
        else:
            yield f"{said}: the gate allows for that against run {design['against']}, and refuses it against any other"


def _design(run: Run) -> Mapping[str, Any]:
    """How far a run went that was to stop early, and against what; empty for a whole one."""
    from rlhf_bench.harness.claims import STOPPED

    manifest = run.manifest if run.report is None else run.report.manifest
    found: Mapping[str, Any] = manifest.get(STOPPED, {})
    return found


def off_scale(cell: Contrast) -> bool:
    """Whether the metric is not on a scale from 0 to 1."""
    return max(abs(cell.comparison.candidate), abs(cell.comparison.champion)) > 1


def some(names: Sequence[str]) -> str:
    """The first few."""
    return ", ".join(names[:NAMED]) + (", …" if len(names) > NAMED else "")
