"""What benchmarks/online_vs_offline.py found, as figures with intervals, tables and a picture."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from scipy import stats

from online.arms import Setting
from rlhf_bench.harness.codec import plain
from rlhf_bench.harness.stats import continuous_evidence

ALPHA = 0.05
Row = dict[str, Any]
MEANS = ("proxy", "words", "characters", "kl")
NAMES = {"offline": "offline DPO", "best-of-n": "best-of-n SFT", "gated": "online, gated", "concise": "online, λ"}


def summary(setting: Setting, found: Mapping[str, Any]) -> dict[str, Any]:
    """All that is kept: settings, each seed's facts, a figure for each policy, and the comparisons."""
    runs = {(each["arm"], each["seed"]): each for each in found["arms"]}
    arms, seeds = (list(dict.fromkeys(keys)) for keys in zip(*runs, strict=True))
    few, last = setting.few, setting.iterations
    policies: dict[str, list[Row]] = {"π0": [runs["online", seed]["rows"][0] for seed in seeds]}
    for arm in arms:
        for number in range(1, len(runs[arm, seeds[0]]["rows"])):
            name = NAMES.get(arm, arm) if arm in ("offline", "best-of-n") else f"{NAMES.get(arm, arm)} {number}"
            policies[name] = [runs[arm, seed]["rows"][number] for seed in seeds]
    for arm in ("online", "gated"):
        policies[f"{NAMES.get(arm, arm)}: shipped"] = [shipped(runs[arm, seed]) for seed in seeds]
    wanted = [
        ("offline DPO", "π0"),
        ("best-of-n SFT", "π0"),
        *((f"online {number}", "offline DPO") for number in range(1, few + 1)),
        (f"online {few}", "best-of-n SFT"),
        (f"online, λ {few}", f"online {few}"),
        (f"online {last}", f"online {few}"),
        ("online, gated: shipped", "online: shipped"),
        ("online, gated: shipped", "offline DPO"),
        ("online, gated: shipped", "π0"),
    ]
    return {
        "setting": plain(setting),
        "facts": {str(seed): facts for seed, facts in found["facts"].items()},
        "policies": {name: figures(rows) for name, rows in policies.items()},
        "comparisons": [compared(a, b, policies[a], policies[b]) for a, b in wanted if a != b],
        "gate": [verdicts(runs["gated", seed]) for seed in seeds],
        "arm_seconds": {f"{arm} {seed}": round(each["seconds"]) for (arm, seed), each in runs.items()},
        "example": {name: rows[0]["example"] for name, rows in policies.items()},
    }


def shipped(run: Mapping[str, Any]) -> Row:
    """The row of the checkpoint that an arm ships."""
    row: Row = next(row for row in run["rows"] if row["checkpoint"] == run["shipped"])
    return row


def gold_of(rows: Sequence[Row]) -> list[float]:
    """The gold reward of every test prompt of every seed."""
    return [value for row in rows for value in row["gold"].values()]


def figures(rows: Sequence[Row]) -> dict[str, Any]:
    """A policy over its seeds: gold with its standard error over prompts, gold of each seed, the means of all else."""
    values = gold_of(rows)
    return {
        "gold": fmean(values),
        "se": stdev(values) / math.sqrt(len(values)),
        "seeds": [fmean(row["gold"].values()) for row in rows],
        **{name: fmean(row[name] for row in rows) for name in MEANS},
        "reading": {kind: fmean(row["reading"][kind] for row in rows) for kind in rows[0]["reading"]},
        "outcomes": [row.get("outcome") for row in rows],
    }


def compared(one: str, other: str, ours: Sequence[Row], theirs: Sequence[Row]) -> dict[str, Any]:
    """The difference in gold, paired by prompt. `low` and `high`: over prompts, these trainings given (the gate's
    bootstrap); `seeds_low` and `seeds_high`: over seeds, Student's t on the seeds' means."""
    pairs = [
        [mine["gold"][prompt] - other["gold"][prompt] for prompt in mine["gold"]]
        for mine, other in zip(ours, theirs, strict=True)
    ]
    every = [value for each in pairs for value in each]
    evidence = continuous_evidence(every, threshold=0.0, alpha=ALPHA / 2)
    means = [fmean(each) for each in pairs]
    found = {"one": one, "other": other, "difference": fmean(every), "low": evidence.low, "high": evidence.high}
    if len(means) > 1:
        reach = float(stats.t.ppf(1 - ALPHA / 2, len(means) - 1)) * stdev(means) / math.sqrt(len(means))
        found |= {"seeds_low": fmean(means) - reach, "seeds_high": fmean(means) + reach}
    words = [fmean(row["words"] for row in rows) for rows in (ours, theirs)]
    return {**found, "seeds": means, "words": words[0] - words[1]}


def verdicts(run: Mapping[str, Any]) -> dict[str, Any]:
    """What the gate said of each candidate, on what validation means, and what stood behind it on the test prompts."""
    by = {row["checkpoint"]: fmean(row["gold"].values()) for row in run["rows"]}
    return {
        "shipped": next(row.get("iteration", 0) for row in run["rows"] if row["checkpoint"] == run["shipped"]),
        "candidates": [
            {
                "outcome": row["outcome"],
                "validation": row["validation"],
                "test": [by[row["champion"]], by[row["checkpoint"]]],
                "pairs": row["pairs"],
            }
            for row in run["rows"][1:]
        ],
    }


def markdown(found: Mapping[str, Any]) -> str:
    """The tables of docs/online-vs-offline.md."""
    policies = []
    for name, each in found["policies"].items():
        seeds = ", ".join(f"{value:.3f}" for value in each["seeds"])
        reading = each["reading"]
        false = sum(reading[kind] for kind in ("vague", "wrong", "stray", "again", "broken"))
        main = (f"{each['gold']:.3f} ± {1.96 * each['se']:.3f}", seeds, f"{each['proxy']:+.2f}", f"{each['kl']:.1f}")
        policies.append((name, *main, f"{each['words']:.1f}", f"{reading['right']:.2f}", f"{false:.2f}"))
    comparisons = []
    for each in found["comparisons"]:
        over = f"{each['seeds_low']:+.3f} … {each['seeds_high']:+.3f}" if "seeds_low" in each else ""
        seeds = ", ".join(f"{value:+.3f}" for value in each["seeds"])
        bounds = f"{each['low']:+.3f} … {each['high']:+.3f}"
        cells = (f"{each['difference']:+.3f}", bounds, over, seeds, f"{each['words']:+.1f}")
        comparisons.append((f"{each['one']} − {each['other']}", *cells))
    gate = []
    for seed, each in enumerate(found["gate"]):
        for number, one in enumerate(each["candidates"], start=1):
            shifts = [f"{after - before:+.3f}" for before, after in (one["validation"], one["test"])]
            gate.append((str(seed), str(number), *shifts, one["outcome"]))
        gate.append((str(seed), "", "", "", f"ships iteration {each['shipped']}" if each["shipped"] else "ships π0"))
    return "\n".join(
        (
            _rows(("policy", "gold", "by seed", "proxy", "KL to π0", "words", "right", "at fault"), policies),
            _rows(("gold, paired", "difference", "95%, prompts", "95%, seeds", "by seed", "words"), comparisons),
            _rows(("seed", "candidate", "against champion: validation", "test", "gate"), gate),
        )
    )


def _rows(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [f"| {' | '.join(cells)} |" for cells in (head, *rows)]
    return "\n".join([lines[0], f"|---{'|---:' * (len(head) - 1)}|", *lines[1:], ""])


def draw(found: Mapping[str, Any], path: Path) -> None:
    """Gold, proxy and length by iteration, and gold against KL, as SVG."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "rlhf-bench"
    import matplotlib.pyplot as plt

    policies, last = found["policies"], found["setting"]["iterations"]
    figure, axes = plt.subplots(1, 4, figsize=(13, 3.4), layout="constrained")
    for label, style in (("online", "o-"), ("online, gated", "s--"), ("online, λ", "^:")):
        line = [policies["π0"], *(policies[f"{label} {k}"] for k in range(1, last + 1) if f"{label} {k}" in policies)]
        for axis, key in zip(axes, ("gold", "proxy", "words"), strict=False):
            axis.plot(range(len(line)), [each[key] for each in line], style, label=label)
        axes[3].plot([math.sqrt(max(0.0, each["kl"])) for each in line], [each["gold"] for each in line], style)
    for name, style in (("offline DPO", "C3D"), ("best-of-n SFT", "C4X")):
        axes[3].plot(math.sqrt(max(0.0, policies[name]["kl"])), policies[name]["gold"], style, label=name)
        axes[0].axhline(policies[name]["gold"], color=style[:2], linewidth=0.8)
    for axis, title in zip(axes, ("gold (test)", "proxy reward", "words an answer"), strict=False):
        axis.set(xlabel="iteration", title=title)
    axes[3].set(xlabel="√KL to π0, nats", title="gold (test)")
    axes[0].legend()
    axes[3].legend()
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)
