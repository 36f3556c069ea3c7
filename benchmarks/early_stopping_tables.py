"""What benchmarks/early_stopping.py found, as tables and a picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.table import Table

if TYPE_CHECKING:
    from early_stopping import Outcome

DEFAULT = "the default"
COLUMNS = ("same verdict", "calls", "close: same", "close: calls", "opposite", "undecided pairs: calls", "all: calls")
KEYS = ("same", "calls", "close_same", "close_calls", "opposite", "undecided_calls", "all_calls")


def rows_of(found: dict[str, Any]) -> list[tuple[str, list[str]]]:
    """The main table, a title row for each set."""
    rows = []
    for name, rules in found["rules"].items():
        pairs = found["models"][name] * (found["models"][name] - 1)
        decided = rules[DEFAULT]["decided"]
        rows.append((f"{name}: {pairs:,} ordered pairs, {decided:.1%} decided by the full run", [""] * len(KEYS)))
        rows += [(rule, [f"{each[key]:.1%}" for key in KEYS]) for rule, each in rules.items()]
        rows.append((f"{DEFAULT}, as a guard of margin 2", [f"{found['guard'][name][key]:.1%}" for key in KEYS]))
    return rows


def markdown(found: dict[str, Any]) -> str:
    """The tables of docs/early-stopping.md."""
    main = [(title if any(cells) else f"**{title}**", *cells) for title, cells in rows_of(found)]
    orders = []
    for name, rules in found["rules"].items():
        each = rules[DEFAULT]
        same = f"{each['same']:.1%}, {each['least_same_of_an_order']:.1%}"
        orders.append((name, same, f"{each['calls']:.1%}, {each['most_calls_of_an_order']:.1%}"))
    halves = []
    for name, splits in found["splits"].items():
        for label, worst in (("mean of 10 halves", False), ("worst of 10 halves", True)):
            cells = []
            for which in ("checked", "default"):
                alike = [split[which]["same"] for split in splits]
                used = [split[which]["calls"] for split in splits]
                shown = (min(alike), max(used)) if worst else (fmean(alike), fmean(used))
                cells.append(", ".join(f"{share:.1%}" for share in shown))
            halves.append((f"{name}, {label}", *cells))
    wrong = []
    for name, each in found["errors"].items():
        for label, nulls in each.items():
            worst_pair = max(null["worst_of_100"] for null in nulls.values())
            means = (f"{nulls[null]['mean']:.2%}" for null in ("signs", "resampled"))
            wrong.append((f"{name}, {label}", *means, f"{worst_pair:.1%}"))
    tests = [
        (name, str(each["pairs"]), *(f"{each[key]:.1%}" for key in (*KEYS[:4], "early_as_t", "calls_as_t")))
        for name, each in found["exact"].items()
    ]
    return "\n".join(
        (
            _rows(("rule", *COLUMNS), main),
            _rows((f"{DEFAULT}, {found['orders']} orders", "same verdict: mean, worst", "calls: mean, worst"), orders),
            _rows(
                ("models that were not tuned on", "tuned on the others: same, calls", "default: same, calls"), halves
            ),
            _rows(("no difference: decided wrongly", "random signs", "resampled", "worst pair of 100"), wrong),
            _rows(("the gate's own tests", "pairs", *COLUMNS[:4], "verdict as by the t", "same look too"), tests),
        )
    )


def _rows(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [f"| {' | '.join(cells)} |" for cells in (head, *rows)]
    return "\n".join([lines[0], f"|---{'|---:' * (len(head) - 1)}|", *lines[1:], ""])


def table(found: dict[str, Any]) -> Table:
    """The main table for people."""
    shown = Table("rule", title="Early stopping, of the pairs that the full run decides")
    for column in COLUMNS:
        shown.add_column(column, justify="right")
    for title, cells in rows_of(found):
        shown.add_row(title, *cells, style=None if any(cells) else "bold")
    return shown


def draw(plain: Outcome, default: Outcome, path: Path) -> None:
    """Calls and agreement against the size of the difference, as SVG."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "rlhf-bench"
    import matplotlib.pyplot as plt

    edges = np.array([0, 1, 2, 3, 4, 5, 7, 10, 15, 20, 30, 45, 80]) / 100
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.6), layout="constrained")
    for label, style, each in (("plain, futility by the trend", "o--", plain), ("default", "o-", default)):
        bins = np.digitize(np.abs(each.difference), edges) - 1
        centres = [100 * np.abs(each.difference)[bins == k].mean() for k in range(len(edges) - 1)]
        decided = each.full != 0
        left.plot(centres, [100 * each.calls[bins == k].mean() for k in range(len(edges) - 1)], style, label=label)
        same = [100 * (each.stopped == each.full)[decided & (bins == k)].mean() for k in range(1, len(edges) - 1)]
        right.plot(centres[1:], same, style, label=label)
    left.set(ylabel="judge calls, %", ylim=(0, 105), title="all pairs")
    right.set(ylabel="same verdict, %", title="pairs that the full run decides")
    ticks = (0.5, 1, 2, 5, 10, 20, 50)
    for axis in (left, right):
        axis.set(xlabel="difference, points", xscale="log", xlim=(0.4, 80))
        axis.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        axis.minorticks_off()
        axis.legend()
    figure.savefig(path, metadata={"Date": None})
