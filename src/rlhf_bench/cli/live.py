"""What a training shows of itself while it runs: the last line of its metrics."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

SHOWN = ("loss", "margin", "accuracy")


def note(metrics: Path) -> Callable[[], str]:
    """`loss 0.512, margin 1.03, accuracy 0.75, lr 4.2e-05, 512 tokens/s`, of the last step in a file that grows.

    "" while there is none. Whatever back end trains writes that file (`trainers.backends.Fit`).
    """
    seen: tuple[int, str] = (-1, "")

    def latest() -> str:
        nonlocal seen
        try:
            size = metrics.stat().st_size
            if size != seen[0]:
                lines = _last_lines(metrics)
                seen = (size, _line(json.loads(lines[-1])) if lines else "")
        except (OSError, ValueError):
            return seen[1]
        return seen[1]

    return latest


def course(metrics: Path) -> str:
    """`loss 0.693 to 0.310, accuracy 0.500 to 0.875 over 10 steps`, means over a tenth at each end."""
    steps = [json.loads(line) for line in metrics.read_text(encoding="utf-8").splitlines()]
    part = max(1, len(steps) // 10)
    found = [
        f"{name} {_mean(steps[:part], name):.3f} to {_mean(steps[-part:], name):.3f}"
        for name in SHOWN
        if name in steps[0]
    ]
    return f"{', '.join(found)} over {len(steps)} steps"


def _line(step: Mapping[str, float]) -> str:
    parts = [f"{name} {step[name]:.3g}" for name in SHOWN if name in step]
    return ", ".join([*parts, f"lr {step['lr']:.2g}", f"{step['tokens_per_s']:.0f} tokens/s"])


def _mean(steps: Sequence[Mapping[str, float]], name: str) -> float:
    return sum(step[name] for step in steps) / len(steps)


def _last_lines(path: Path, tail: int = 4096) -> list[str]:
    """The whole lines at the end of a file."""
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - tail))
        text = file.read().decode(errors="replace")
    whole = text[: text.rfind("\n") + 1]
    return whole.splitlines()
