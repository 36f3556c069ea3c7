"""The course of a training's loss: when to stop because nothing good can come of it any more."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import median

from rlhf_bench.trainers.recipes import Training

WINDOW = 20
RUNAWAY = 3.0


def fault(losses: Sequence[float], grad_norm: float) -> tuple[str, int] | None:
    """What is wrong after the step of the last loss, and for how many steps it may have been so; None if nothing is.

    A loss or gradient that is not finite; or a loss that ran away: the median of the last 20 steps is more than three
    times the first step's loss, or three times log 2, what a fair coin loses, where that is more.
    """
    for name, value in (("loss", losses[-1]), ("grad_norm", grad_norm)):
        if not math.isfinite(value):
            return f"the {name} became {value}", 1
    if len(losses) >= WINDOW and median(losses[-WINDOW:]) > RUNAWAY * max(losses[0], math.log(2)):
        return f"the loss ran away, from {losses[0]:.3g} to {median(losses[-WINDOW:]):.3g},", WINDOW
    return None


def remedy(recipe: Training) -> str:
    """What to change in a recipe whose training went wrong."""
    other = "" if recipe.dtype == "float32" else " or try dtype float32"
    return f"lower learning_rate (now {recipe.learning_rate:g}){other}"
