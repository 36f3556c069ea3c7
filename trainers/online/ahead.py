"""How long a whole run still takes: what is left of the stage that it is at, and all stages that come after it.

A stage that has not begun takes what the plan says (`planned`), as much longer or shorter as such a stage took in this
run, or goes on taking; the one that is being made takes what its own progress says. Stages that a retry would make
again are in no plan, and not counted.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple

from rlhf_bench.harness.progress import Advance, Track
from rlhf_bench.trainers.online.config import STAGES, Stage
from rlhf_bench.trainers.online.planned import LoopPlan, Work

STALL_S = 0.05
"""Progress without a pause this long came out of the store."""
WHOLE: Mapping[Stage, str] = {"answers": "answers", "score": "rewards", "train": "train "}
"""How the label of the one progress begins, behind its iteration, that a stage consists of."""
HOUR_S = 3600.0


@dataclass(slots=True)
class Counted:
    """One progress. What comes without a pause at the beginning was in the store: it is done, and took no time.

    `paid` of the `done` ones came in the seconds from `began` to `last`.
    """

    total: int
    began: float
    last: float
    done: int = 0
    paid: int = 0
    real: bool = False

    def add(self, count: int, now: float) -> None:
        """So many more are done."""
        if not self.real and now - self.last >= STALL_S:
            self.began, self.real = self.last, True
        self.paid = self.paid + count if self.real else 0
        self.done, self.last = self.done + count, now

    def left_s(self, now: float) -> float | None:
        """Until all is done, at the rate so far; None while there is none."""
        if self.done >= self.total:
            return 0.0
        if not self.paid:
            return None
        return max(0.0, (self.last - self.began) / self.paid * (self.total - self.done) - (now - self.last))


class Left(NamedTuple):
    """Seconds; `complete` is False where nobody knows how long some stage will take, so that it is more."""

    seconds: float
    complete: bool


class Ahead:
    """Watches a run of so many iterations. `planned` is asked once, when the first stage begins; None: no plan."""

    def __init__(
        self, iterations: int, planned: Callable[[], LoopPlan | None], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._iterations = iterations
        self._planned = planned
        self._clock = clock
        self._works: tuple[Work, ...] | None = None
        self._took: dict[Stage, tuple[float | None, float]] = {}
        self._at: tuple[int, Stage, float] | None = None
        self._shown: tuple[str, Counted] | None = None

    @contextmanager
    def doing(self, number: int, stage: Stage) -> Iterator[None]:
        """A stage of an iteration is made within; the time it took is remembered once it is done."""
        if self._works is None:
            plan = self._planned()
            self._works = () if plan is None else plan.iterations
        self._at = (number, stage, self._clock())
        try:
            yield
            self._took[stage] = self._longest(stage, self._plan_s(number, stage), self._clock() - self._at[2])
        finally:
            self._at = None

    def watched(self, track: Track) -> Track:
        """The same progress, counted; what says no iteration in its label gets that and the stage in front."""

        @contextmanager
        def counted(label: str, total: int) -> Iterator[Advance]:
            now = self._clock()
            bar, outermost = Counted(total, now, now), self._shown is None
            if outermost:
                self._shown = (label.rpartition(": ")[2], bar)
            try:
                with track(self._named(label), total) as advance:

                    def add(count: int) -> None:
                        bar.add(count, self._clock())
                        advance(count)

                    yield add
            finally:
                if outermost:
                    self._shown = None

        return counted

    def left(self) -> Left | None:
        """Of the whole run; None while no stage is being made. A terminal asks from a thread of its own."""
        at, shown = self._at, self._shown
        if at is None:
            return None
        number, stage, began = at
        now, took = self._clock(), dict(self._took)
        bar = None if shown is None else shown[1].left_s(now)
        whole = bar if shown is not None and shown[0].startswith(WHOLE.get(stage, "\0")) else None
        if whole is not None:
            took[stage] = (self._plan_s(number, stage), now - began + whole)
        expected = self._expected_s(number, stage, took)
        parts: list[float | None] = [None if expected is None else max(0.0, expected - (now - began))]
        parts.append(max(0.0, (bar or 0.0) - (parts[0] or 0.0)))
        parts += [self._expected_s(number, each, took) for each in STAGES[STAGES.index(stage) + 1 :]]
        parts += [
            self._expected_s(later, each, took) for later in range(number + 1, self._iterations + 1) for each in STAGES
        ]
        return Left(sum(part for part in parts if part is not None), None not in parts)

    def _named(self, label: str) -> str:
        if self._at is None or label.startswith("iteration "):
            return label
        number, stage, _ = self._at
        return f"iteration {number} of {self._iterations}: {stage}: {label}"

    def _expected_s(self, number: int, stage: Stage, took: Mapping[Stage, tuple[float | None, float]]) -> float | None:
        plan_s = self._plan_s(number, stage)
        if stage not in took:
            return plan_s
        before_s, seconds = took[stage]
        return seconds * plan_s / before_s if before_s and plan_s is not None else seconds

    def _longest(self, stage: Stage, plan_s: float | None, seconds: float) -> tuple[float | None, float]:
        """A stage that went on where another process ended took less than a whole one."""
        before = self._took.get(stage)
        return (plan_s, seconds) if before is None or seconds >= before[1] else before

    def _plan_s(self, number: int, stage: Stage) -> float | None:
        """What the plan says; None where it says nothing, as of the time that an API takes."""
        if not self._works or number > len(self._works):
            return 0.0 if stage == "pair" else None
        work = self._works[number - 1]
        hours = work.hours[stage]
        unknown = stage == "score" and work.comparisons and not hours and stage not in work.done
        return None if hours is None or unknown else hours * HOUR_S
