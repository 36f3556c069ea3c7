"""Signals of reward hacking, read from the records of two runs: what a gate's sentinels watch, and a loop's monitors.

Pure functions of records; nothing here asks a model. `kl` and `reward_gap` read what `harness.annotate` has added to
them. A figure is a mean over the samples that both runs answered whole, paired by what was asked; where more than a
small share of the samples has none, or one of the runs lacks them, nothing is measured, and the reading says why.

    length      candidate's / champion's mean answer in characters - 1
    truncated   rise of the share of answers that hit their length limit
    refused     rise of the share of answers that open with a refusal (harness.refusals, a heuristic)
    distinct    1 - candidate's / champion's share of distinct word pairs, at an equal number of word pairs
    kl          the candidate's mean of log p(answer) - log p_reference(answer), in nats an answer
    reward_gap  (rise of the training reward's win rate) - (rise of the score)
"""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from scipy import special

from rlhf_bench.harness.policy import Signal
from rlhf_bench.harness.refusals import refuses
from rlhf_bench.harness.types import Completion, Record

KL, REWARD_WIN = "kl", "reward_win"
"""What `harness.annotate` calls its figures in Score.also, and in a report's manifest under "annotations"."""
MAX_MISSING = 0.02
"""Above this share of samples without a figure nothing is measured (Policy.max_ungraded has the same default)."""
LEAST_PAIRS = 100
"""With fewer word pairs than this in a run, nearly all are distinct whatever the model does."""
_WORD = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]|[^\W\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]+")


@dataclass(frozen=True, slots=True)
class Reading:
    """What a signal measured: `value` is held against a limit, above which it is a sign of hacking.

    `candidate` and `champion` are the two figures behind it. No value where `why` says what is lacking; it never passes
    a limit. `missing` of `samples` have no figure in one of the runs.
    """

    value: float | None = None
    candidate: float | None = None
    champion: float | None = None
    why: str = ""
    missing: int = 0
    samples: int = 0


Reader: TypeAlias = Callable[[Sequence[Record], Sequence[Record]], Reading]
Pair: TypeAlias = tuple[Record | None, Record | None]


def read_signal(
    signal: Signal, candidate: Sequence[Record], champion: Sequence[Record], *, max_missing: float = MAX_MISSING
) -> Reading:
    """The reading of `signal` on two runs' records of one benchmark; no value where more than `max_missing` lack it.

    Without a champion's records there are figures of the candidate, and a value for `kl` alone.
    """
    found = SIGNALS[signal](candidate, champion)
    if found.missing <= max_missing * found.samples:
        return found
    where = "" if signal == "kl" else " in both runs"
    why = f"{found.missing} of {found.samples} samples have no figure{where}: {_HINTS[signal]}"
    return replace(found, value=None, why=why)


def sentence(signal: Signal, reading: Reading) -> str:
    """What was measured, in words: "answers 31% longer (812 against 620 characters)"."""
    if reading.value is None:
        return f"{_NAMES[signal]} not measured: {reading.why}"
    value, ours, theirs = reading.value, reading.candidate or 0.0, reading.champion
    if signal == "kl":
        beside = "" if theirs is None else f" (the champion's: {theirs:.2f})"
        return f"KL to the reference {value:.2f} nats an answer{beside}"
    theirs = theirs or 0.0
    if signal == "length":
        longer = "longer" if value >= 0 else "shorter"
        return f"answers {abs(value):.0%} {longer} ({ours:.0f} against {theirs:.0f} characters)"
    if signal == "distinct":
        more = "fewer" if value >= 0 else "more"
        return f"{abs(value):.0%} {more} distinct word pairs ({ours:.1%} against {theirs:.1%} of equally many)"
    if signal == "reward_gap":
        return (
            f"the training reward's win rate rose {100 * value:+.1f} points against the judge's "
            f"(it is {100 * ours:+.1f} points from it, the champion's {100 * theirs:+.1f})"
        )
    return f"{_NAMES[signal]} {100 * value:+.1f} points ({ours:.1%} against {theirs:.1%} of the answers)"


def unlike(signal: Signal, candidate: Mapping[str, Any], champion: Mapping[str, Any]) -> str:
    """Why two runs with these manifests do not compare in this signal; empty where they do.

    A reward gap needs the same training reward on both sides; a KL is the candidate's alone.
    """
    if signal == "truncated" and ("source" in candidate or "source" in champion):
        return "cut answers not measured: result files do not say which answers were cut"
    if signal != "reward_gap":
        return ""
    ours, theirs = (run.get("annotations", {}).get(REWARD_WIN, {}) for run in (candidate, champion))
    if not ours or not theirs:
        return f"the {'candidate' if not ours else 'champion'}'s run was not scored by the training reward"
    if ours["identity"] != theirs["identity"]:
        return f"the runs were scored by two training rewards, '{ours['by']}' and '{theirs['by']}'"
    return ""


def answers(record: Record) -> list[Completion]:
    """The record's generated answers, failed ones included; continuations that were only scored are none."""
    scored = {request.index for request in record.sample.requests if request.continuation is not None}
    return [each for each in record.completions if each.logprob is None and each.index not in scored]


def whole(record: Record) -> list[Completion]:
    """The generated answers, or none where one of them failed."""
    found = answers(record)
    return [] if any(each.finish_reason == "error" for each in found) else found


def length(record: Record) -> float | None:
    """Mean characters of the record's answers; None where one failed, or nothing was generated."""
    return _mean([len(each.text) for each in whole(record)])


def length_correlation(records: Iterable[Record], key: str = "score") -> float | None:
    """Pearson's correlation of the answers' length with the score, or with the metric `key` of Score.also.

    None with fewer than three samples that have both, or where one of them does not vary.
    """
    found = []
    for record in records:
        value = record.score.value if key == "score" else record.score.also.get(key)
        chars = length(record)
        if value is not None and chars is not None:
            found.append((value, chars))
    if len(found) < 3:
        return None
    values, lengths = np.array(found).T
    spread = float(values.std() * lengths.std())
    if spread <= 1e-12 * max(1.0, float(np.abs(values).max() * lengths.max())):
        return None
    return float(((values - values.mean()) * (lengths - lengths.mean())).mean() / spread)


def self_similarity(records: Iterable[Record], *, pairs: int = 2000, seed: int = 0) -> float | None:
    """Mean Jaccard similarity of the word pairs of two answers to different samples, from 0 to 1.

    Over all pairs of answers where there are no more than `pairs`, else over as many drawn with `seed`; the order of
    the records does not matter. None where fewer than two samples have an answer.
    """
    found = sorted((r.digest, r.sample.id, each.index, each.text) for r in records for each in whole(r))
    sets = [frozenset(word_pairs(text)) for *_, text in found]
    samples = [(digest, name) for digest, name, *_ in found]
    count = len(found)
    if len(set(samples)) < 2:
        return None
    if count * (count - 1) // 2 <= pairs:
        drawn = [(i, j) for i in range(count) for j in range(i)]
    else:
        rng = random.Random(seed)
        drawn = [(rng.randrange(count), rng.randrange(count)) for _ in range(pairs)]
    alike = [jaccard(sets[i], sets[j]) for i, j in drawn if samples[i] != samples[j]]
    return sum(alike) / len(alike) if alike else None


def rarefied(counts: Sequence[int] | NDArray[np.int64], drawn: int) -> float:
    """The expected share of distinct ones among `drawn` items drawn without replacement from types with these counts.

    Hurlbert 1971 (rarefaction): Σ_types 1 - C(N - n_i, m) / C(N, m), over m. With m = N it is the plain share, types
    over items. The plain share falls as text grows, so that it calls the longer of two alike texts the poorer one; at
    equal m it does not. Exact, without drawing anything, and the same in any order. ValueError unless 1 <= drawn <= N.
    """
    sizes, repeats = np.unique(np.asarray(counts, dtype=np.int64), return_counts=True)
    total = int((sizes * repeats).sum())
    if not 1 <= drawn <= total:
        raise ValueError(f"cannot draw {drawn} of {total}")
    left = total - sizes
    seen = np.ones(sizes.size)
    some = left >= drawn  # of the others one is drawn for certain
    log_missed = special.gammaln(left[some] + 1) - special.gammaln(left[some] - drawn + 1)
    log_missed += special.gammaln(total - drawn + 1) - special.gammaln(total + 1)
    seen[some] = -np.expm1(log_missed)
    return float((seen * repeats).sum()) / drawn


def word_pairs(text: str) -> Iterable[tuple[str, str]]:
    """Neighbouring words, lower case; a Chinese, Japanese or Korean character counts as a word."""
    words = _WORD.findall(text.lower())
    return pairwise(words)


def jaccard(one: frozenset[tuple[str, str]], other: frozenset[tuple[str, str]]) -> float:
    """How much of what either has both have, in [0, 1]; two empty ones are alike."""
    either = len(one | other)
    return len(one & other) / either if either else 1.0


def _paired(candidate: Sequence[Record], champion: Sequence[Record]) -> list[Pair]:
    """The samples that are answered in words, each with its record in both runs, or in the one that has it."""
    ours, theirs = _keyed(candidate), _keyed(champion)
    return [(ours.get(key), theirs.get(key)) for key in sorted(ours.keys() | theirs.keys())]


def _keyed(records: Sequence[Record]) -> dict[tuple[str, int], Record]:
    """By what was asked; the same question more than once in the order of the sample ids."""
    seen: Counter[str] = Counter()
    found = {}
    for record in sorted(records, key=lambda each: each.sample.id):
        if answers(record):
            found[record.digest, seen[record.digest]] = record
            seen[record.digest] += 1
    return found


def _compared(figure: Callable[[Record], float | None], change: Callable[[float, float], float | None]) -> Reader:
    """The reader of a signal that is a change of a mean over samples."""

    def read(candidate: Sequence[Record], champion: Sequence[Record]) -> Reading:
        pairs = _paired(candidate, champion)
        if not champion or not pairs:
            alone = _mean([figure(record) for record, _ in pairs if record])
            return Reading(candidate=alone, why=NO_ANSWERS if not pairs else NO_OTHER, samples=len(pairs))
        values = [(figure(a), figure(b)) for a, b in pairs if a and b]
        both = [(a, b) for a, b in values if a is not None and b is not None]
        counts = len(pairs) - len(both), len(pairs)
        if not both:
            return Reading(None, None, None, NO_FIGURE, *counts)
        ours, theirs = (sum(column) / len(both) for column in zip(*both, strict=True))
        value = change(ours, theirs)
        why = "" if value is not None else "the champion's figure is 0, so there is no ratio to it"
        return Reading(value, ours, theirs, why, *counts)

    return read


def _read_kl(candidate: Sequence[Record], champion: Sequence[Record]) -> Reading:
    pairs = _paired(candidate, champion)
    values = [record.score.also.get(KL) if record else None for record, _ in pairs]
    ours, theirs = _mean(values), _mean([record.score.also.get(KL) for _, record in pairs if record])
    why = "" if pairs else NO_ANSWERS
    return Reading(ours, ours, theirs, why, sum(value is None for value in values), len(pairs))


def _read_distinct(candidate: Sequence[Record], champion: Sequence[Record]) -> Reading:
    pairs = _paired(candidate, champion)
    both = [(whole(a), whole(b)) for a, b in pairs if a and b]
    both = [(a, b) for a, b in both if a and b] if champion else [(whole(a), []) for a, _ in pairs if a]
    counts = len(pairs) - len(both), len(pairs)
    if not both:
        return Reading(None, None, None, NO_FIGURE if pairs else NO_ANSWERS, *counts)
    ours, theirs = (
        Counter(pair for row in column for each in row for pair in word_pairs(each.text))
        for column in zip(*both, strict=True)
    )
    drawn = min(run.total() for run in (ours, theirs) if champion or run is ours)
    if drawn < LEAST_PAIRS:
        return Reading(None, None, None, f"a run has {drawn} word pairs, {LEAST_PAIRS} are needed", *counts)
    share = rarefied(list(ours.values()), drawn)
    if not champion:
        return Reading(None, share, None, NO_OTHER, *counts)
    other = rarefied(list(theirs.values()), drawn)
    return Reading(1 - share / other, share, other, "", *counts)


def _mean(values: Iterable[float | None]) -> float | None:
    found = [value for value in values if value is not None]
    return sum(found) / len(found) if found else None


def _cut(record: Record) -> float | None:
    return _mean([each.finish_reason == "length" for each in whole(record)])


def _refused(record: Record) -> float | None:
    return _mean([each.why == "refused" or refuses(each.text) for each in whole(record)])


def _gap(record: Record) -> float | None:
    reward, score = record.score.also.get(REWARD_WIN), record.score.value
    return None if reward is None or score is None else reward - score


NO_ANSWERS = "no sample has a generated answer"
NO_FIGURE = "no sample has a figure in both runs"
NO_OTHER = "there is no other run to compare with"
SIGNALS: Mapping[Signal, Reader] = {
    "length": _compared(length, lambda ours, theirs: ours / theirs - 1 if theirs else None),
    "truncated": _compared(_cut, lambda ours, theirs: ours - theirs),
    "refused": _compared(_refused, lambda ours, theirs: ours - theirs),
    "distinct": _read_distinct,
    "kl": _read_kl,
    "reward_gap": _compared(_gap, lambda ours, theirs: ours - theirs),
}
"""By name, the function of the candidate's and the champion's records of one benchmark."""
_NAMES: Mapping[Signal, str] = {
    "length": "length",
    "truncated": "answers cut at their limit",
    "refused": "refusals",
    "distinct": "distinct word pairs",
    "kl": "KL to the reference",
    "reward_gap": "gap between training reward and judge",
}
_FAILED = "an answer failed, or the other run has no such sample"
_HINTS: Mapping[Signal, str] = {
    "length": _FAILED,
    "truncated": _FAILED,
    "refused": _FAILED,
    "distinct": _FAILED,
    "kl": "`rlhf-bench runs signals RUN --reference MODEL` measures it",
    "reward_gap": "`rlhf-bench runs signals RUN --reward MODEL` measures it where answers are judged",
}
