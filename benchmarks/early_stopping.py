"""What early stopping saves and what it costs, on published AlpacaEval annotations.

Every ordered pair of models is a candidate against a champion, an item's difference that of their two preferences. The
full run decides by the gate's target test at one-sided .05: shown better (promote), shown worse (reject), or neither.
The sequential run asks the same items in a registered random order, looks as its design says, and stops when a look
decides or futility does. Of the pairs that the full run decides: how often is the verdict the same, and for which share
of the judge calls? Then the same where the designs were not tuned (other models, another judge and baseline), the error
where there is no difference, and the gate's own tests instead of the paired t that stands for them here.

    python benchmarks/early_stopping.py                # a minute or two; keeps results/ and a picture
    python benchmarks/early_stopping.py --exact 200    # more pairs by the gate's own tests too: ten minutes
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import numpy as np
from early_stopping_tables import DEFAULT, draw, markdown, table
from numpy.typing import NDArray
from rich.console import Console
from scipy import special

from rlhf_bench.harness.stats import DESIGN, Design, chance_decided, continuous_evidence, one_each_way
from rlhf_bench.harness.stats.sequential import FEW, log_e_process
from rlhf_bench.suites.judged.alpaca_eval import read_annotations

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results"
SETS = {
    "AlpacaEval 2": "alpaca_eval/annotations_reduced.csv.gz",
    "AlpacaEval 1": "alpaca_eval/alpaca_eval_1_annotations_reduced.csv.gz",
}
ALPHA = 0.05
CLOSE = 0.05
ORDERS = 24
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Rule:
    """A design as it is used: early looks `guarded` by one win and one loss; futility `predictive`, or by the trend."""

    name: str
    design: Design
    guarded: bool = True
    predictive: bool = True


PLAIN = Design(fractions=(0.2, 0.4, 0.6, 0.8, 1.0), earliest=0.0, futility=0.1)
RULES = (
    Rule("plain O'Brien-Fleming, futility 10% by the trend", PLAIN, guarded=False, predictive=False),
    Rule("plain O'Brien-Fleming, no futility", replace(PLAIN, futility=0.0), guarded=False),
    Rule(DEFAULT, DESIGN),
    Rule(f"{DEFAULT}, no futility", replace(DESIGN, futility=0.0)),
    Rule(f"{DEFAULT}, without one win and one loss", DESIGN, guarded=False),
)


@dataclass(frozen=True)
class Outcome:
    """Of one rule: verdicts (1, 0, -1) and shares of the calls, shape [orders, ordered pairs]."""

    full: NDArray[np.int8]
    stopped: NDArray[np.int8]
    calls: Floats
    difference: Floats

    def only(self, pairs: NDArray[np.bool_]) -> Outcome:
        """The same for some of the pairs."""
        return Outcome(self.full[:, pairs], self.stopped[:, pairs], self.calls[:, pairs], self.difference[:, pairs])

    def figures(self) -> dict[str, float]:
        """The shares that the tables show."""
        decided, close = self.full != 0, np.abs(self.difference) < CLOSE
        same = self.stopped == self.full

        def mean(values: NDArray[Any], where: NDArray[np.bool_]) -> float:
            return float(values[where].mean()) if where.any() else float("nan")

        return {
            "decided": float(decided.mean()),
            "same": mean(same, decided),
            "least_same_of_an_order": float(min(mean(s, d) for s, d in zip(same, decided, strict=True))),
            "calls": mean(self.calls, decided),
            "most_calls_of_an_order": float(max(mean(c, d) for c, d in zip(self.calls, decided, strict=True))),
            "opposite": mean(self.stopped == -self.full, decided),
            "close_same": mean(same, decided & close),
            "close_calls": mean(self.calls, decided & close),
            "undecided_calls": mean(self.calls, ~decided),
            "undecided_to_decided": mean(self.stopped != 0, ~decided),
            "all_calls": float(self.calls.mean()),
        }


def preferences(path: Path) -> tuple[list[str], Floats]:
    """(models, their preference on each item, NaN where there is none: shape [models, items])."""
    rows = read_annotations([path])
    models = sorted({row.model for row in rows})
    table = np.full((len(models), 1 + max(int(row.instruction) for row in rows)), np.nan)
    for row in rows:
        if row.preference is not None:
            table[models.index(row.model), int(row.instruction)] = row.preference
    return models, table


def pairs_of(models: int) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """All ordered pairs: candidates, champions."""
    candidate, champion = np.nonzero(~np.eye(models, dtype=bool))
    return candidate, champion


class Asked:
    """The paired t of every ordered pair after any number of items in one order, on the items that both have."""

    def __init__(self, table: Floats, order: int) -> None:
        shuffled = table[:, np.random.default_rng(order).permutation(table.shape[1])]
        self.n = table.shape[1]
        self._has, self._value = np.isfinite(shuffled).astype(np.float64), np.nan_to_num(shuffled)
        self._pairs = pairs_of(len(table))
        self._kept: dict[tuple[int, float, bool], tuple[Floats, Floats, Floats]] = {}

    def look(self, count: int, threshold: float, guarded: bool) -> tuple[Floats, Floats, Floats]:
        """(p_above, p_below, difference) of each pair after `count` items."""
        key = (count, threshold, guarded)
        if key not in self._kept:
            self._kept[key] = self._look(*key)
        return self._kept[key]

    def _look(self, count: int, threshold: float, guarded: bool) -> tuple[Floats, Floats, Floats]:
        has, value = self._has[:, :count], self._value[:, :count]
        once, squares = value @ has.T, (value * value) @ has.T
        totals = ((has @ has.T), once - once.T, squares + squares.T - 2 * value @ value.T)
        items, total, square = (each[self._pairs] for each in totals)
        difference = total / items
        if guarded and count < min(FEW, self.n):
            items, square = items + 2, square + 2
        mean = total / items
        spread = np.maximum((square - items * mean**2) / (items - 1), 0.0)
        with np.errstate(divide="ignore", invalid="ignore"):
            t = np.where(spread > 1e-12, (mean - threshold) / np.sqrt(spread / items), 0.0)
        return special.stdtr(items - 1, -t), special.stdtr(items - 1, t), difference


def sequential(asked: Asked, rule: Rule, threshold: float = 0.0) -> tuple[NDArray[np.int8], Floats]:
    """(verdicts, shares of the calls) of every ordered pair in this order."""
    looks, levels = rule.design.looks(asked.n), rule.design.levels(asked.n)
    first = asked.look(asked.n, threshold, rule.guarded)[0]
    verdict, calls = np.zeros(first.size, dtype=np.int8), np.ones(first.size)
    open_ = np.ones(first.size, dtype=bool)
    for count, level in zip(looks, levels, strict=True):
        above, below, _ = asked.look(count, threshold, rule.guarded)
        verdict[open_ & (above < level)] = 1
        verdict[open_ & (below < level)] = -1
        ends = (above < level) | (below < level)
        if rule.design.futility and count < asked.n:
            chance = chance_decided(above, below, count / asked.n, levels[-1], predictive=rule.predictive)
            ends |= chance < rule.design.futility
        calls[open_ & ends] = count / asked.n
        open_ &= ~ends
    return verdict, calls


def full(asked: Asked, threshold: float = 0.0) -> tuple[NDArray[np.int8], Floats]:
    """(verdicts of the full run, differences)."""
    above, below, difference = asked.look(asked.n, threshold, guarded=False)
    return (above < ALPHA).astype(np.int8) - (below < ALPHA).astype(np.int8), difference


def outcome(orders: Sequence[Asked], rule: Rule, threshold: float = 0.0) -> Outcome:
    """What the rule does on every pair in every order."""
    whole = [full(asked, threshold) for asked in orders]
    stopped = [sequential(asked, rule, threshold) for asked in orders]
    columns = [*zip(*whole, strict=True), *zip(*stopped, strict=True)]
    verdicts, differences, early, calls = (np.array(each) for each in columns)
    return Outcome(verdicts, early, calls, differences)


def peeking(table: Floats, order: int) -> Outcome:
    """The e-process with a look after every item."""
    asked = Asked(table, order)
    whole, difference = full(asked)
    shuffled = table[:, np.random.default_rng(order).permutation(table.shape[1])]
    line = -np.log(ALPHA)
    verdict, calls = np.zeros(whole.size, dtype=np.int8), np.ones(whole.size)
    for k, (ours, theirs) in enumerate(zip(*pairs_of(len(table)), strict=True)):
        d = shuffled[ours] - shuffled[theirs]
        at = np.flatnonzero(np.isfinite(d))
        y = (d[at] + 1) / 2
        for sign, values in ((1, y), (-1, 1 - y)):
            over = np.flatnonzero(log_e_process(values, 0.5) > line)
            if over.size and (at[over[0]] + 1) / asked.n < calls[k]:
                verdict[k], calls[k] = sign, (at[over[0]] + 1) / asked.n
    return Outcome(whole[None], verdict[None], calls[None], difference[None])


def candidates() -> list[Rule]:
    """The designs that are tuned over: five looks, the first two early."""
    grid = itertools.product(
        (0.05, 0.075, 0.1), (0.15, 0.2, 0.25), (0.35, 0.4, 0.45), (0.6, 0.7), (0.08, 0.1, 0.15, 0.2), (0.05, 0.1)
    )
    return [Rule("", Design(fractions=(a, b, c, d, 1.0), earliest=e, futility=f)) for a, b, c, d, e, f in grid]


def tuned(orders: Sequence[Asked], models: int, splits: int) -> list[dict[str, Any]]:
    """Tune on half of the models (fewest calls with at least 98.5% the same), then check on the other half."""
    found = [(rule, outcome(orders, rule)) for rule in candidates()]
    default = outcome(orders, RULES[2])
    ours, theirs = pairs_of(models)
    rows = []
    for split in range(splits):
        half = np.zeros(models, dtype=bool)
        half[np.random.default_rng(1000 + split).permutation(models)[: models // 2]] = True
        inside, outside = half[ours] & half[theirs], ~half[ours] & ~half[theirs]
        on_half = [(rule, each, each.only(inside).figures()) for rule, each in found]
        enough = [each for each in on_half if each[2]["same"] >= 0.985] or on_half
        rule, each, before = min(enough, key=lambda row: row[2]["calls"])
        rows.append(
            {
                "fractions": rule.design.fractions,
                "earliest": rule.design.earliest,
                "futility": rule.design.futility,
                "tuned": before,
                "checked": each.only(outside).figures(),
                "default": default.only(outside).figures(),
            }
        )
    return rows


def errors(table: Floats, rule: Rule | None, null: str, repeats: int) -> dict[str, float]:
    """How often a pair without a difference is decided in one direction: mean, and the worst pair of a hundred.

    "signs": each item's difference with a random sign. "resampled": the items of a pair drawn anew from its own, less
    their mean, so that the skew stays. Without a rule: the full run.
    """
    rng = np.random.default_rng(0)
    n = table.shape[1]
    ours, theirs = np.triu_indices(len(table), 1)
    d = np.nan_to_num(table[ours] - table[theirs])[:, rng.permutation(n)]
    design = rule.design if rule else Design(fractions=(1.0,))
    wrong = np.zeros((2, len(d), repeats), dtype=bool)
    signs = rng.choice([-1.0, 1.0], size=(n, repeats))
    drawn, counts, before = rng.integers(0, n, size=(n, repeats)), np.zeros((n, repeats)), 0
    centred = d - d.mean(axis=1, keepdims=True)
    for count, level in zip(design.looks(n), design.levels(n), strict=True):
        if null == "signs":
            total = d[:, :count] @ signs[:count]
            square = (d[:, :count] ** 2).sum(axis=1, keepdims=True)
        else:
            np.add.at(counts, (drawn[before:count], np.arange(repeats)[None, :]), 1.0)
            total, square, before = centred @ counts, centred**2 @ counts, count
        more = 2 if rule and rule.guarded and count < min(FEW, n) else 0
        items, mean = count + more, total / (count + more)
        spread = np.maximum((square + more - items * mean**2) / (items - 1), 1e-12)
        t, bound = mean / np.sqrt(spread / items), -special.stdtrit(items - 1, level)
        wrong |= np.array([t > bound, t < -bound])
    each = wrong.mean(axis=2).ravel()
    return {"mean": float(each.mean()), "worst_of_100": float(np.quantile(each, 0.99))}


def exact(table: Floats, rule: Rule, pairs: int) -> dict[str, Any]:
    """The same study on some pairs, each in an order of its own, by the gate's own tests, and whether the t agrees."""
    ours, theirs = pairs_of(len(table))
    rows = []
    for k in np.random.default_rng(7).permutation(ours.size)[:pairs]:
        both = table[[ours[k], theirs[k]]]
        asked = Asked(both, int(k))
        by_t, difference = full(asked)
        early_by_t, calls_by_t = sequential(asked, rule)
        shuffled = both[:, np.random.default_rng(int(k)).permutation(asked.n)]
        d = shuffled[0] - shuffled[1]
        whole = _stop(d, Rule("", Design(fractions=(1.0,))), asked.n)[0]
        ours_early, ours_calls = _stop(d, rule, asked.n)
        rows.append((whole, ours_early, ours_calls, difference[0], by_t[0], early_by_t[0], calls_by_t[0]))
    columns = np.array(rows, dtype=np.float64).T
    found = Outcome(columns[:1].astype(np.int8), columns[1:2].astype(np.int8), columns[2:3], columns[3:4])
    agree = {
        "full_as_t": float((columns[0] == columns[4]).mean()),
        "early_as_t": float((columns[1] == columns[5]).mean()),
        "calls_as_t": float((columns[2] == columns[6]).mean()),
    }
    return {"pairs": len(rows), **found.figures(), **agree}


def _stop(d: Floats, rule: Rule, n: int) -> tuple[int, float]:
    design, levels = rule.design, rule.design.levels(n)
    for count, level in zip(design.looks(n), levels, strict=True):
        seen = d[:count][np.isfinite(d[:count])]
        seen = one_each_way(seen)[0] if rule.guarded and count < n else seen
        found = continuous_evidence(seen, threshold=0.0, alpha=level)
        if found.p_above < level or found.p_below < level:
            return (1 if found.p_above < level else -1), count / n
        if count < n:
            chance = chance_decided(found.p_above, found.p_below, count / n, levels[-1])
            if chance < design.futility:
                return 0, count / n
    return 0, 1.0


def measure(data: Path, exact_pairs: int) -> dict[str, Any]:
    """Everything that the tables show."""
    tables = {name: preferences(data / path)[1] for name, path in SETS.items()}
    orders = {name: [Asked(table, order) for order in range(ORDERS)] for name, table in tables.items()}
    found: dict[str, Any] = {
        "design": asdict(DESIGN),
        "orders": ORDERS,
        "models": {k: len(v) for k, v in tables.items()},
    }
    found["rules"] = {
        name: {rule.name: outcome(orders[name], rule).figures() for rule in RULES}
        | {"e-process, a look after every item": peeking(table, 0).figures()}
        for name, table in tables.items()
    }
    found["guard"] = {name: outcome(each, RULES[2], -0.02).figures() for name, each in orders.items()}
    found["ledger"] = {
        f"{alpha:g}": replace(DESIGN, alpha=alpha).levels(805) for alpha in (0.05, 0.05 / 3, 0.05 * 6 / np.pi**2 / 4)
    }
    found["splits"] = {name: tuned(orders[name][:4], len(table), 10) for name, table in tables.items()}
    found["errors"] = {
        name: {
            label: {null: errors(table, rule, null, 500) for null in ("signs", "resampled")}
            for label, rule in (("full run", None), ("default", RULES[2]), ("without one win and one loss", RULES[4]))
        }
        for name, table in tables.items()
    }
    found["exact"] = {
        f"{name}, {rule.name}": exact(table, rule, exact_pairs)
        for name, table in tables.items()
        for rule in (RULES[2], RULES[4])
    }
    first = orders["AlpacaEval 2"]
    draw(outcome(first, RULES[0]), outcome(first, RULES[2]), ROOT / "docs" / "early-stopping.svg")
    return found


def main() -> None:
    """Measure, print, keep."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--exact", type=int, default=40, help="pairs that the gate's own tests decide too")
    parser.add_argument("--markdown", action="store_true", help="write the tables of what is kept, and measure nothing")
    given = parser.parse_args()
    data = Path(os.environ.get("RLHF_BENCH_DATA") or ROOT.parent / "shared" / "data")
    kept, start = RESULTS / "early_stopping.json", time.perf_counter()
    RESULTS.mkdir(exist_ok=True)
    found = json.loads(kept.read_text()) if given.markdown else measure(data, given.exact)
    kept.write_text(json.dumps(found, indent=1) + "\n")
    (RESULTS / "early_stopping.md").write_text(markdown(found))
    console = Console(width=180)
    console.print(table(found))
    console.print(markdown(found), markup=False, highlight=False)
    console.print(f"{time.perf_counter() - start:.0f} s")


if __name__ == "__main__":
    main()
