"""Do two engines give the same model the same answers? Measured on one checkpoint, kept, and read by the gate.

    a run by each engine ─► texts, log-likelihoods, scores ─► Parity, in the project's folder ─► gate across engines

Scores are held to a margin by two one-sided tests (Schuirmann 1987): the engines are equivalent where the difference is
shown, each time at alpha, to be above -margin and to be below +margin. Not shown is not equal: few samples show little.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, median
from typing import Any

import numpy as np

from rlhf_bench.harness import codec, files
from rlhf_bench.harness.compare import Pairs, pair
from rlhf_bench.harness.errors import CorruptRow, UserError
from rlhf_bench.harness.stats import Evidence, binary_evidence, continuous_evidence, samples_to_decide, wilson
from rlhf_bench.harness.store import home
from rlhf_bench.harness.types import Completion, Record, Report

ALL = "all"
"""The row over the samples of all benchmarks."""
LIBRARIES = {"hf": "transformers", "vllm": "vllm"}


@dataclass(frozen=True, slots=True)
class Texts:
    """Generated answers: how many are equal (with the 95% interval of their share), and where others part.

    `first` and `middle` are the earliest and the median position, in characters, at which differing texts part;
    `finish` counts the answers that ended for the same reason. `example` is the sample that parts earliest.
    """

    answers: int
    equal: int
    low: float
    high: float
    finish: int
    first: int | None
    middle: float | None
    example: str


@dataclass(frozen=True, slots=True)
class Logprobs:
    """Log-likelihoods (nats) of continuations: largest and mean absolute difference, and equal `greedy` flags."""

    continuations: int
    largest: float
    mean: float
    greedy: int


@dataclass(frozen=True, slots=True)
class Equivalence:
    """A metric in both runs, one minus other: `low` and `high` bound the difference, each at 1 - alpha.

    `p` is the larger one of the two one-sided tests; `equivalent` where it is below alpha, `apart` where the difference
    is shown to lie beyond the margin. `more` estimates how many more samples would show equivalence.
    """

    benchmark: str
    metric: str
    pairs: int
    ungraded: int
    difference: float
    low: float
    high: float
    p: float
    equivalent: bool
    apart: bool
    more: int | None


@dataclass(frozen=True, slots=True)
class Parity:
    """What two engines' runs of one checkpoint on the same samples have in common. `engines` are kinds (see `kind`)."""

    engines: tuple[str, str]
    identities: tuple[str, str]
    runs: tuple[str, str]
    model: str
    checkpoint: str
    suite: str
    margin: float
    alpha: float
    texts: Texts | None
    logprobs: Logprobs | None
    scores: tuple[Equivalence, ...]
    created: str

    @property
    def equivalent(self) -> bool:
        """Whether the scores of all samples together are, and those of no benchmark lie apart."""
        return self.scores[-1].equivalent and not any(each.apart for each in self.scores)

    def about(self, one: str, other: str) -> bool:
        """Whether it is about these two kinds of engine, in whatever order."""
        return sorted(self.engines) == sorted((one, other))


def measure(
    one: Report,
    other: Report,
    ours: Sequence[Record],
    theirs: Sequence[Record],
    *,
    margin: float,
    alpha: float = 0.05,
) -> Parity:
    """The parity of the engines of two runs. Raises UserError where these are not of one checkpoint, asked alike."""
    require_margin(margin, alpha)
    if one.checkpoint != other.checkpoint:
        raise UserError(f"runs {one.run_id} and {other.run_id} are of two models: parity is measured on one")
    facts = one.manifest["benchmarks"]
    paired = {name: pair(ours, theirs, benchmark=name, metric=facts[name]["metric"]) for name in facts}
    answers = [both for each in paired.values() for both in _answers(each)]
    scores = [_equivalence(name, facts[name]["metric"], [each], margin, alpha) for name, each in paired.items()]
    if len(paired) > 1:
        scores.append(_equivalence(ALL, "score", list(paired.values()), margin, alpha))
    return Parity(
        engines=(kind(one.manifest["engine"]), kind(other.manifest["engine"])),
        identities=(one.manifest["engine_identity"], other.manifest["engine_identity"]),
        runs=(one.run_id, other.run_id),
        model=one.model,
        checkpoint=one.checkpoint,
        suite=one.suite,
        margin=margin,
        alpha=alpha,
        texts=texts([both for both in answers if both[0].logprob is None]),
        logprobs=logprobs([both for both in answers if both[0].logprob is not None]),
        scores=tuple(scores),
        created=max(one.manifest.get("created", ""), other.manifest.get("created", "")),
    )


def require_margin(margin: float, alpha: float) -> None:
    """Raises UserError for a margin or an alpha that is none."""
    if not 0 < margin < 1 or not 0 < alpha < 0.5:
        raise UserError(f"margin {margin:g} and alpha {alpha:g}: give a margin from 0 to 1 and an alpha from 0 to 0.5")


def texts(answers: Sequence[tuple[Completion, Completion]]) -> Texts | None:
    """How the texts of answers to the same requests agree; None where there are none."""
    if not answers:
        return None
    apart = {place: mine.sample_id for mine, other in answers if (place := parts_at(mine.text, other.text)) is not None}
    places = [place for mine, other in answers if (place := parts_at(mine.text, other.text)) is not None]
    equal = len(answers) - len(places)
    low, high = wilson(equal, len(answers))
    first = min(places, default=None)
    return Texts(
        answers=len(answers),
        equal=equal,
        low=low,
        high=high,
        finish=sum(mine.finish_reason == other.finish_reason for mine, other in answers),
        first=first,
        middle=median(places) if places else None,
        example="" if first is None else apart[first],
    )


def parts_at(one: str, other: str) -> int | None:
    """The first position at which two texts differ, their shorter length where one begins the other; None: equal."""
    if one == other:
        return None
    shortest = min(len(one), len(other))
    return next((at for at in range(shortest) if one[at] != other[at]), shortest)


def logprobs(answers: Sequence[tuple[Completion, Completion]]) -> Logprobs | None:
    """How the log-likelihoods of the same continuations agree; None where there are none."""
    gaps = [abs((mine.logprob or 0.0) - (other.logprob or 0.0)) for mine, other in answers]
    greedy = sum(mine.greedy == other.greedy for mine, other in answers)
    return Logprobs(len(gaps), max(gaps), fmean(gaps), greedy) if gaps else None


def _answers(pairs: Pairs) -> Iterable[tuple[Completion, Completion]]:
    """The answers of both runs to the same requests; what failed in either is no answer."""
    for ours, theirs in pairs.records:
        others = {each.index: each for each in theirs.completions}
        for mine in ours.completions:
            other = others.get(mine.index)
            if other is not None and "error" not in (mine.finish_reason, other.finish_reason):
                yield mine, other


def _equivalence(benchmark: str, metric: str, parts: Sequence[Pairs], margin: float, alpha: float) -> Equivalence:
    graded = np.concatenate([each.graded for each in parts])
    d = np.concatenate([each.candidate - each.champion for each in parts])[graded]
    if not d.size:
        raise UserError(f"'{benchmark}' has no sample that is graded in both runs: nothing can be compared")
    names = [
        f"{number} {each.clusters[at] if each.clusters else at}"
        for number, each in enumerate(parts)
        for at in np.flatnonzero(each.graded)
    ]
    clusters = names if len(set(names)) < len(names) else None
    binary = clusters is None and all(each.kind == "binary" for each in parts)

    def evidence(threshold: float) -> Evidence:
        if binary:
            gained, lost = int((d > 0).sum()), int((d < 0).sum())
            return binary_evidence(gained, lost, d.size, threshold=threshold, alpha=alpha)
        return continuous_evidence(d, clusters, threshold=threshold, alpha=alpha)

    below, above = evidence(-margin), evidence(margin)
    p, difference, items = max(below.p_above, above.p_below), float(d.mean()), len(set(names))
    needed = samples_to_decide(below.low, above.high, items, margin - abs(difference), alpha)
    return Equivalence(
        benchmark=benchmark,
        metric=metric,
        pairs=d.size,
        ungraded=int(graded.size - d.size),
        difference=difference,
        low=below.low,
        high=above.high,
        p=p,
        equivalent=p < alpha,
        apart=below.p_below < alpha or above.p_above < alpha,
        more=None if p < alpha or not math.isfinite(needed) else max(1, math.ceil(needed - items)),
    )


def kind(engine: Mapping[str, Any]) -> str:
    """What a run's manifest says of its engine, less the weights: what parity is about.

    Of the library the version that may change an answer (its first two numbers), and no card's number.
    """
    name = str(engine.get("engine", ""))
    library = LIBRARIES.get(name, "")
    version = ".".join(str(engine.get(library, "")).partition("+")[0].split(".")[:2])
    device = str(engine.get("device", "")).partition(":")[0]
    return " ".join(part for part in (name, version, str(engine.get("dtype", "")), device) if part)


def folder() -> Path:
    """Where parity records lie."""
    return home() / "parity"


def save(found: Parity) -> Path:
    """Keep the record; it replaces an earlier one about the same two kinds of engine. Raises Fault."""
    path = folder() / f"{codec.digest(sorted(found.engines))[:16]}.json"
    files.write(path, codec.dumps(found))
    return path


def records() -> tuple[Parity, ...]:
    """All records of this project; one that cannot be read is none."""
    found = []
    for path in sorted(folder().glob("*.json")):
        with suppress(OSError, CorruptRow):
            found.append(codec.loads(Parity, path.read_bytes()))
    return tuple(found)


def parity_record(one: Mapping[str, Any], other: Mapping[str, Any], known: Iterable[Parity]) -> Parity | None:
    """The record about the engines that two manifests name, if there is one among `known`."""
    kinds = kind(one), kind(other)
    return next((each for each in known if each.about(*kinds)), None)


def unshown(one: Mapping[str, Any], other: Mapping[str, Any], known: Iterable[Parity]) -> str:
    """Why two runs' engines (of their manifests) are not known to agree; "" where they are, or where it is one engine.

    Runs that do not name theirs are not held to it: they come from files.
    """
    if not one.get("engine") or not other.get("engine") or one["engine"] == other["engine"]:
        return ""
    found = parity_record(one, other, known)
    engines = f"answers come from two engines ({kind(one)}; {kind(other)})"
    ask = f"rlhf-bench parity {spec(one)} {spec(other)} --model MODEL"
    if found is None:
        return f"{engines} and nothing shows that they agree: {ask}"
    if found.equivalent:
        return ""
    said = "lie apart" if any(each.apart for each in found.scores) else "were not shown to agree"
    return f"{engines}, whose scores {said} within {100 * found.margin:g} points on {found.model}: {ask}"


def spec(engine: Mapping[str, Any]) -> str:
    """The engine of a manifest as the command line names it."""
    return ":".join(str(engine[key]) for key in ("engine", "dtype") if engine.get(key))
