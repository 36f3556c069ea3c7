"""Is a judge to be trusted? Its verdicts beside human or gold ones, in both orders, again, and against length.

A preference is in [0, 1]: 1 for output 2, 0 for output 1, 0.5 for neither. Its verdict is the side of 0.5 it lies on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rlhf_bench.harness.stats.agreement import bootstrap_mean, fractional_logit, kappa, prediction_powered
from rlhf_bench.harness.stats.intervals import Interval, by_cluster, estimate, mean_interval

PAYS_FROM = 0.7
"""The correlation with gold from which a judge's verdicts save a good part of the gold ones (39% at N = 4n)."""
FEW_GOLD = 100
CLIPPED = 1e-3


@dataclass(frozen=True, slots=True)
class Judged:
    """One pair of outputs. `judge` None is no verdict; `swapped` is the judge's with the outputs shown the other way
    round (same meaning), `first` the output (1 or 2) that `judge` was shown first, where known. `repeats` are all
    verdicts of the same question, `judge` among them; `longer` is len(output 2) − len(output 1) in characters."""

    key: str
    judge: float | None
    swapped: float | None = None
    first: int | None = None
    golds: tuple[float, ...] = ()
    longer: float | None = None
    repeats: tuple[float, ...] = ()

    @property
    def gold(self) -> float:
        """The mean of the gold judgments."""
        return float(np.mean(self.golds))


@dataclass(frozen=True, slots=True)
class Calibration:
    """What is known of a judge: figures with their intervals, by name, and what there is to say."""

    items: int
    gold: int
    figures: dict[str, Interval]
    notes: tuple[str, ...]


def calibrate(items: Sequence[Judged]) -> Calibration:
    """Every figure that these items allow; what they do not allow is left out."""
    figures = _rates(items) | _agreement(items) | _swaps(items) | _length(items) | _repeats(items)
    combined, notes = _combined(items)
    return Calibration(len(items), sum(bool(each.golds) for each in items), figures | combined, tuple(notes))


def verdict(preference: float) -> int:
    """0: output 1, 1: neither, 2: output 2."""
    return 1 + int(preference > 0.5) - int(preference < 0.5)


def _share(hits: Sequence[bool]) -> Interval:
    return estimate([float(hit) for hit in hits], kind="binary")


def _rates(items: Sequence[Judged]) -> dict[str, Interval]:
    given = [each.judge for each in items if each.judge is not None]
    found = {"null_rate": _share([each.judge is None for each in items])}
    if given:
        found["tie_rate"] = _share([verdict(value) == 1 for value in given])
    return found


def _agreement(items: Sequence[Judged]) -> dict[str, Interval]:
    """With the verdict of the golds' mean; and, where there are several golds, of each with the others'."""
    pairs = [(verdict(each.judge), verdict(each.gold)) for each in items if each.golds and each.judge is not None]
    found: dict[str, Interval] = {}
    if pairs:
        same = [a == b for a, b in pairs]
        found["agreement"] = _share(same)
        low, high = bootstrap_mean(np.array(same, dtype=np.float64))
        shared = found["agreement"]
        found["agreement_bootstrap"] = Interval(shared.mean, low, high, shared.se, "bootstrap of items")
        labels: NDArray[np.int64] = np.array(pairs, dtype=np.int64)
        found["kappa"] = kappa(labels[:, 0], labels[:, 1])
    among = [(each.key, agreed) for each in items for agreed in _leave_one_out(each.golds)]
    if among:
        sums, sizes = by_cluster(np.array([agreed for _, agreed in among]), [key for key, _ in among])
        found["human_agreement"] = mean_interval(sums, sizes, lowest=0.0, highest=1.0)
    return found


def _leave_one_out(golds: Sequence[float]) -> list[float]:
    """Of each gold judgment whether it has the verdict of the others' mean."""
    if len(golds) < 2:
        return []
    rest = [(sum(golds) - each) / (len(golds) - 1) for each in golds]
    return [float(verdict(each) == verdict(other)) for each, other in zip(golds, rest, strict=True)]


def _swaps(items: Sequence[Judged]) -> dict[str, Interval]:
    both = [(each, each.judge, each.swapped) for each in items if each.judge is not None and each.swapped is not None]
    if not both:
        return {}
    found = {"swap_consistency": _share([verdict(one) == verdict(other) for _, one, other in both])}
    # verdicts that favour the first slot, less one half: 0 where both orders say the same
    slots = []
    for each, one, other in both:
        wins = [verdict(value) / 2 for value in (one, other)]
        slots.append((wins[0] - wins[1]) / 2 * (1.0 if each.first == 2 else -1.0))
    found["first_slot_bias"] = mean_interval(*by_cluster(np.array(slots), None))
    return found


def _length(items: Sequence[Judged]) -> dict[str, Interval]:
    """P(the longer one is preferred) of the judge and of gold, and what length adds to gold in the judge's verdict."""
    told = [each for each in items if each.longer and each.judge is not None]
    if not told:
        return {}
    judge = {each.key: _for_longer(each.judge, each.longer) for each in told}
    found = {"prefers_longer": mean_interval(*by_cluster(np.array(list(judge.values())), None), lowest=0.0)}
    known = [each for each in told if each.golds]
    if not known:
        return found
    gold = np.array([_for_longer(each.gold, each.longer) for each in known])
    found["gold_prefers_longer"] = mean_interval(*by_cluster(gold, None), lowest=0.0)
    gap = np.array([judge[each.key] for each in known]) - gold
    found["prefers_longer_more_than_gold"] = mean_interval(*by_cluster(gap, None))
    lengths = np.array([each.longer for each in known], dtype=np.float64)
    if len(known) > 2 and lengths.std(ddof=1) > 0:
        features = np.column_stack([[each.gold for each in known], np.tanh(lengths / lengths.std(ddof=1))])
        shares = np.array([each.judge for each in known], dtype=np.float64)
        fitted = fractional_logit(np.clip(shares, CLIPPED, 1 - CLIPPED), features)
        if fitted is not None:
            found["length_coefficient"] = fitted[1]
    return found


def _for_longer(preference: float | None, longer: float | None) -> float:
    side = verdict(0.5 if preference is None else preference) / 2
    return side if (longer or 0) > 0 else 1 - side


def _repeats(items: Sequence[Judged]) -> dict[str, Interval]:
    """The variance of the same question's preferences, and how often two of its verdicts agree."""
    again = [each.repeats for each in items if len(each.repeats) > 1]
    if not again:
        return {}
    spread = np.array([np.var(values, ddof=1) for values in again])
    same = np.array([_pairs_alike([verdict(value) for value in values]) for values in again])
    return {
        "repeat_variance": mean_interval(*by_cluster(spread, None), lowest=0.0),
        "repeat_consistency": mean_interval(*by_cluster(same, None), lowest=0.0),
    }


def _pairs_alike(verdicts: Sequence[int]) -> float:
    n = len(verdicts)
    return sum(verdicts.count(one) * (verdicts.count(one) - 1) for one in range(3)) / (n * (n - 1))


def _combined(items: Sequence[Judged]) -> tuple[dict[str, Interval], list[str]]:
    """The win rate by gold alone, and helped by the judge where that pays."""
    known = [(each.gold, each.judge) for each in items if each.golds and each.judge is not None]
    further = np.array([each.judge for each in items if not each.golds and each.judge is not None], dtype=np.float64)
    if len(known) < 2:
        return {}, ["no gold judgments: agreement and the combination need them"] if not known else []
    gold, judge = np.array(known, dtype=np.float64).T
    found = {"gold_win_rate": estimate(gold, kind="continuous")}
    spread = gold.std() * judge.std()
    rho = float(np.corrcoef(gold, judge)[0, 1]) if spread > 0 else 0.0
    found["rho"] = Interval(rho, None, None, None, f"{len(known)} items with gold")
    notes = [f"only {len(known)} items have gold: below {FEW_GOLD} take rho with care"] if len(known) < FEW_GOLD else []
    if rho < PAYS_FROM:
        return found, [*notes, f"the judge does not pay as a stand-in for gold: rho {rho:.2f}, {PAYS_FROM} is needed"]
    if further.size < 2:
        return found, [*notes, "the judge would pay as a stand-in for gold: give it items without gold as well"]
    both = prediction_powered(gold, judge, further)
    found["combined_win_rate"] = Interval(both.mean, both.low, both.high, both.se, "PPI++")
    saved = f"{100 * (1 - both.ratio):.0f}% less variance than the {len(known)} gold judgments alone"
    notes.append(
        f"the judge pays: {further.size} items without gold give {saved}, if those with gold are a random draw"
    )
    return found, notes
