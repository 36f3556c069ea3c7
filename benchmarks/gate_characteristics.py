"""How often the gate errs, beside what simpler rules would have done on the same made-up data.

    python benchmarks/gate_characteristics.py            # 2,000 gates each: some minutes on two cores
    python benchmarks/gate_characteristics.py --quick    # 200 each

Two models' scores are simulated sample by sample, at the real suites' sizes and at the share of samples that two alike
models score differently; then the very functions of the gate decide. Shown:

    wrong promotions    where nothing differs, and where one guard truly loses just its margin
    wrong rejections    where nothing differs
    promotions          where the target truly gained 1 to 6 points, and nothing was lost
    twenty in a row     candidates without merit on the same questions, by each ledger
    coverage            of every interval, at a nominal 95%

The other rules: `mean > mean` (the target's mean rose and no guard's mean fell by its margin), an unpaired z-test at
the same alpha (better on the target, no guard shown worse), and NeMo Evaluator's rule (the 95% t interval of each
paired difference lies above minus its margin, the target's margin being 0). Written: results/gate_characteristics.json,
and docs/gate-characteristics.svg.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from scipy import special

from rlhf_bench.harness.decide import next_level
from rlhf_bench.harness.policy import Guard, Ledger, Policy, Target
from rlhf_bench.harness.stats import binary_evidence, continuous_evidence, estimate, holm, mean_interval, tango_low
from rlhf_bench.harness.stats.intervals import by_cluster

Floats = NDArray[np.float64]
HERE = Path(__file__).resolve().parent
ALPHA = 0.05
RESAMPLES = 1000
"""Of bootstrap and sign flips here; the gate takes 10,000. `same_with_all` counts how often that decides otherwise."""
GAINS = (0.01, 0.02, 0.03, 0.04, 0.05, 0.06)
RULES = ("this gate", "mean > mean", "unpaired z", "NeMo's rule")


class Suite(NamedTuple):
    """A benchmark as the simulation sees it. `q`: the share of samples that two alike models score differently.

    A continuous one has `noise` instead, the spread of a score around its question's. `margin`: the packaged policy's.
    """

    name: str
    n: int
    margin: float
    q: float = 0.0
    noise: float = 0.0


TARGET = Suite("alpaca_eval", 805, 0.0, noise=0.8)
GUARDS = (
    Suite("gsm8k", 1319, 0.037, q=0.12),
    Suite("mmlu", 14042, 0.011, q=0.10),
    Suite("arc_challenge", 1172, 0.033, q=0.08),
    Suite("code, pooled", 664, 0.052, q=0.115),
    Suite("truthfulqa_mc2", 817, 0.043, noise=0.6),
)


class Found(NamedTuple):
    """What each rule goes by in one comparison: our p-values, the difference, an unpaired z, NeMo's lower bound."""

    above: float
    below: float
    difference: float
    z: float
    nemo: float


def scores(suite: Suite, true: float, rng: np.random.Generator) -> tuple[Floats, Floats]:
    """Candidate's and champion's scores [n], whose means truly differ by `true`."""
    if suite.q:
        gain = (suite.q + true) / 2
        d = rng.choice([1, -1, 0], size=suite.n, p=[gain, suite.q - gain, 1 - suite.q])
        right = np.where(d == 0, rng.random(suite.n) < 0.6, d < 0)
        return (right + d).astype(float), right.astype(float)
    return _judged(suite.n, suite.noise, _shift(suite.noise, true), rng)


def _judged(n: int, noise: float, shift: float, rng: np.random.Generator) -> tuple[Floats, Floats]:
    """A judge's preferences, most of them near 0 or 1: the question's own, and each model's chance."""
    own, chance = rng.normal(0, 1, n), rng.normal(0, noise, (2, n))
    return special.expit(3 * (own + chance[0] + shift)), special.expit(3 * (own + chance[1]))


@lru_cache(maxsize=64)
def _shift(noise: float, true: float) -> float:
    """What moves the candidate's mean by `true`, from two million draws."""
    ours, _ = _judged(2_000_000, noise, 0.0, np.random.default_rng(0))
    latent = special.logit(np.clip(ours, 1e-12, 1 - 1e-12))
    low, high = -1.0, 1.0
    for _ in range(40):
        middle = (low + high) / 2
        moved = float(special.expit(latent + 3 * middle).mean() - ours.mean())
        low, high = (middle, high) if moved < true else (low, middle)
    return (low + high) / 2


def compared(suite: Suite, true: float, threshold: float, seed: int, resamples: int = RESAMPLES) -> Found:
    """One comparison at a true difference, against a threshold."""
    ours, theirs = scores(suite, true, np.random.default_rng([seed, suite.n]))
    d = ours - theirs
    if suite.q:
        gained, lost = int((d > 0).sum()), int((d < 0).sum())
        evidence = binary_evidence(gained, lost, d.size, threshold=threshold, alpha=ALPHA)
    else:
        evidence = continuous_evidence(d, threshold=threshold, alpha=ALPHA, resamples=resamples, seed=seed)
    mean, se = float(d.mean()), float(d.std(ddof=1)) / math.sqrt(d.size)
    unpaired = math.sqrt((ours.var() + theirs.var()) / d.size)
    return Found(
        evidence.p_above, evidence.p_below, mean, mean / unpaired, mean - float(special.stdtrit(d.size - 1, 0.975)) * se
    )


def _chunk(task: tuple[Suite, float, float, int, int]) -> list[Found]:
    suite, true, threshold, first, last = task
    return [compared(suite, true, threshold, seed) for seed in range(first, last)]


class Bench:
    """Simulated comparisons, each made once, in two processes."""

    def __init__(self, gates: int, pool: ProcessPoolExecutor) -> None:
        self.gates, self._pool = gates, pool
        self._known: dict[tuple[str, float], NDArray[np.void]] = {}

    def found(self, suite: Suite, true: float) -> Any:
        """Columns of Found, [gates] each."""
        key = suite.name, true
        if key not in self._known:
            cuts = np.linspace(0, self.gates, 9).astype(int)
            start = 1_000_000 * (1 + (TARGET, *GUARDS).index(suite)) + round(1e4 * (true + 1)) * 10
            tasks = [(suite, true, -suite.margin, start + a, start + b) for a, b in pairwise(cuts)]
            rows = [row for rows in self._pool.map(_chunk, tasks) for row in rows]
            self._known[key] = Found(*(np.array(column) for column in zip(*rows, strict=True)))  # type: ignore[assignment]
        return self._known[key]

    def outcomes(
        self, gain: float = 0.0, loser: str = "", loses: float | None = None
    ) -> dict[str, tuple[float, float]]:
        """(promoted, rejected) shares by each rule, with this gain of the target, and one guard losing so much."""
        target = self.found(TARGET, gain)
        losses = {g.name: -(g.margin if loses is None else loses) if g.name == loser else 0.0 for g in GUARDS}
        guards = [self.found(guard, losses[guard.name]) for guard in GUARDS]
        margins = np.array([guard.margin for guard in GUARDS])[:, None]
        above, below = (np.array([getattr(g, side) for g in guards]) for side in ("above", "below"))
        harmed = (np.apply_along_axis(lambda p: np.array(holm(list(p))), 0, below) < ALPHA).any(0)
        ours = (target.above < ALPHA) & (above < ALPHA).all(0)
        moved, z = (np.array([getattr(g, name) for g in guards]) for name in ("difference", "z"))
        nemo = np.array([g.nemo for g in guards])
        cut = -float(special.ndtri(ALPHA))
        none = np.zeros(self.gates, dtype=bool)
        by_rule = {
            "this gate": (ours, ~ours & (harmed | (target.below < ALPHA))),
            "mean > mean": ((target.difference > 0) & (moved > -margins).all(0), none),
            "unpaired z": ((target.z > cut) & (z > -cut).all(0), (z < -cut).any(0)),
            "NeMo's rule": ((target.nemo > 0) & (nemo > -margins).all(0), none),
        }
        return {name: (float(yes.mean()), float(no.mean())) for name, (yes, no) in by_rule.items()}


def twenty_in_a_row(ledger: Ledger | None, sequences: int, fresh: bool = False) -> float:
    """The share of lines of 20 candidates without merit of which one at least passes its target, 1,319 questions.

    Each question has a chance of its own to be solved; champion and candidates draw from it, so a champion that was
    unlucky is unlucky for all of them. `fresh`: each candidate is asked other questions.
    """
    policy = Policy(
        name="p",
        ledger=ledger or "none",  # type: ignore[arg-type]
        targets=(Target(benchmark="a", metric="m"),),
        guards=(Guard(benchmark="b", metric="m", margin=0.1),),
    )
    rng, n, promoted = np.random.default_rng(5), 1319, 0
    for _ in range(sequences):
        solve = rng.beta(0.44, 0.3, n)  # two draws differ on 12% of the questions or so
        old, spent = rng.random(n) < solve, list[float]()
        for _ in range(20):
            if fresh:
                solve = rng.beta(0.44, 0.3, n)
                old = rng.random(n) < solve
            new = rng.random(n) < solve
            _, level = next_level(policy, [] if fresh and ledger is not None else spent)
            gained, lost = int((new & ~old).sum()), int((old & ~new).sum())
            if level > 0 and binary_evidence(gained, lost, n, threshold=0.0, alpha=level).p_above < level:
                promoted += 1
                break
            spent.append(level)
    return promoted / sequences


def coverage(rounds: int) -> list[tuple[str, str, float, str]]:
    """(interval, case, share of intervals that hold the truth, the method that was taken) at a nominal 95%."""
    rng = np.random.default_rng(9)
    rows: list[tuple[str, str, float, str]] = []
    for n, p in ((20, 0.9), (80, 0.5), (80, 0.9), (164, 0.9), (164, 0.97), (500, 0.97), (1319, 0.6), (1319, 0.98)):
        counts, ways = np.unique(rng.binomial(n, p, rounds), return_counts=True)
        found = [estimate([1.0] * k + [0.0] * (n - k), kind="binary") for k in counts]
        held = [each.low <= p <= each.high for each in found if each.low is not None and each.high is not None]
        rows.append(("proportion", f"n {n}, p {p}", float(ways @ np.array(held) / rounds), found[0].method))
    for n, q, true in ((80, 0.15, 0.0), (164, 0.1, -0.05), (500, 0.12, 0.03), (1319, 0.08, 0.0)):
        draws = rng.multinomial(n, [(q + true) / 2, (q - true) / 2, 1 - q], rounds)
        low = tango_low(draws[:, 0], draws[:, 1], n, 0.025)
        high = -tango_low(draws[:, 1], draws[:, 0], n, 0.025)
        held = (low <= true) & (true <= high)
        rows.append(("paired binary", f"n {n}, q {q}, {100 * true:+g} points", float(held.mean()), "tango"))
    cases: list[tuple[str, Callable[[], tuple[Floats, list[str] | None]], float]] = [
        ("mean of a judge, n 80", lambda: (_judged(80, 0.8, 0, rng)[0], None), 0.5),
        ("mean of a judge, n 805", lambda: (_judged(805, 0.8, 0, rng)[0], None), 0.5),
        ("ratings in tenths, n 80", lambda: (rng.binomial(10, 0.83, 80) / 10, None), 0.83),
        ("mostly right, n 80", lambda: (rng.beta(9, 0.6, 80), None), 9 / 9.6),
        ("clusters of 4, 40 of them", lambda: _clustered(rng, 40, 4), 0.5),
    ]
    for case, draw, true in cases:
        held, methods = 0, set[str]()
        for _ in range(min(rounds, 4000)):
            values, clusters = draw()
            found_ = mean_interval(*by_cluster(values, clusters), lowest=0.0, highest=1.0)
            held += found_.low is not None and found_.high is not None and found_.low <= true <= found_.high
            methods.add(found_.method.split(",")[0])
        rows.append(("mean", case, held / min(rounds, 4000), " or ".join(sorted(methods))))
    return rows


def _clustered(rng: np.random.Generator, clusters: int, size: int) -> tuple[Floats, list[str]]:
    own = np.repeat(rng.normal(0, 1, clusters), size)
    return special.expit(2 * (own + rng.normal(0, 0.5, own.size))), [f"{i // size:04}" for i in range(own.size)]


def same_with_all(gates: int) -> int:
    """Of so many targets at the edge of being decided, how many 10,000 resamples decide otherwise than 1,000."""
    other = 0
    for seed in range(gates):
        few, many = (compared(TARGET, 0.025, 0.0, seed, resamples) for resamples in (RESAMPLES, 10_000))
        other += (few.above < ALPHA) != (many.above < ALPHA) or (few.below < ALPHA) != (many.below < ALPHA)
    return other


def plot(power: dict[float, dict[str, tuple[float, float]]], path: Path) -> None:
    """Promotions by the target's true gain, one line for each rule."""
    import matplotlib as mpl

    mpl.use("svg")
    mpl.rcParams["svg.hashsalt"] = "rlhf-bench"
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 4))
    for rule, mark in zip(RULES, "osd^", strict=True):
        axes.plot([100 * gain for gain in power], [row[rule][0] for row in power.values()], marker=mark, label=rule)
    axes.axhline(ALPHA, color="grey", linewidth=0.8, linestyle="--")
    axes.set(xlabel="true gain of the target, in points (nothing is lost)", ylabel="share of candidates promoted")
    axes.set_ylim(0, 1)
    axes.legend(frameon=False)
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})


def main(arguments: Sequence[str] | None = None) -> None:
    """Simulate, print, and write what was found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="200 gates each")
    gates = 200 if parser.parse_args(arguments).quick else 2000
    with ProcessPoolExecutor(2) as pool:
        bench = Bench(gates, pool)
        scenarios = {"nothing differs": bench.outcomes()}
        for guard in GUARDS:
            scenarios[f"target +6, {guard.name} −{100 * guard.margin:g}"] = bench.outcomes(0.06, guard.name)
        power = {0.0: scenarios["nothing differs"]} | {gain: bench.outcomes(gain) for gain in GAINS}
    lines = {
        "alpha 0.05 each": twenty_in_a_row(None, gates),
        "ledger: {planned: 20}": twenty_in_a_row(Ledger(planned=20), gates),
        "ledger: open": twenty_in_a_row(Ledger(), gates),
        "alpha 0.05 each, fresh questions each time": twenty_in_a_row(None, gates, fresh=True),
    }
    covered = coverage(gates * 10)
    other = same_with_all(min(gates, 300))
    shown = Console()
    table = Table("case", *RULES, "this gate rejects", title=f"promoted, of {gates} simulated gates")
    cases = scenarios | {f"target +{100 * gain:g}": row for gain, row in power.items() if gain}
    for name, row in cases.items():
        table.add_row(name, *(f"{row[rule][0]:.3f}" for rule in RULES), f"{row['this gate'][1]:.3f}")
    shown.print(table)
    table = Table("twenty candidates without merit", "any promoted")
    for name, share in lines.items():
        table.add_row(name, f"{share:.3f}")
    shown.print(table)
    table = Table("interval", "case", "covers", "method")
    for interval, case, share, method in covered:
        table.add_row(interval, case, f"{share:.3f}", method)
    shown.print(table)
    shown.print(f"10,000 resamples decide otherwise than {RESAMPLES:,} in {other} of {min(gates, 300)} close cases")
    written = {
        "gates": gates,
        "cases": cases,
        "twenty": lines,
        "coverage": covered,
        "resamples": {"otherwise": other, "of": min(gates, 300)},
    }
    (HERE / "results" / "gate_characteristics.json").write_text(json.dumps(written, indent=1) + "\n")
    plot(power, HERE.parent / "docs" / "gate-characteristics.svg")


if __name__ == "__main__":
    main()
