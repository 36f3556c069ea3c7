"""The time left of a whole run: by the plan at first, then by what was measured, with a clock of the tests' own."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.trainers.online.test_planned import FACTS, config

from rlhf_bench.harness.progress import Advance
from rlhf_bench.trainers.online.ahead import Ahead, Counted, Left
from rlhf_bench.trainers.online.config import STAGES, Stage
from rlhf_bench.trainers.online.planned import LoopPlan, plan_of

PLAN = plan_of(config(iterations=3), FACTS)


class Clock:
    """Time that passes when a test says so."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now

    def take(self, seconds: float | None) -> None:
        assert seconds is not None
        self.now += seconds


@contextmanager
def hidden(label: str, total: int) -> Iterator[Advance]:
    SEEN.append(label)
    yield lambda count: None


SEEN: list[str] = []


def ahead(plan: LoopPlan | None = PLAN, iterations: int = 3) -> tuple[Ahead, Clock]:
    clock = Clock()
    return Ahead(iterations, lambda: plan, clock), clock


def seconds(plan: LoopPlan, number: int, stage: Stage) -> float:
    hours = plan.iterations[number - 1].hours[stage]
    assert hours is not None
    return 3600 * hours


def test_before_anything_is_measured_it_is_what_the_plan_says() -> None:
    watch, clock = ahead()
    assert watch.left() is None
    with watch.doing(1, "answers"):
        hours = PLAN.total.hours_left
        assert hours is not None and watch.left() == (pytest.approx(3600 * hours), True)
        clock.take(seconds(PLAN, 1, "answers") / 2)
        assert watch.left() == (pytest.approx(3600 * hours - seconds(PLAN, 1, "answers") / 2), True)
    assert watch.left() is None


def test_a_run_that_goes_as_planned_counts_down_to_nothing() -> None:
    watch, clock = ahead()
    hours = PLAN.total.hours_left
    assert hours is not None
    end = clock.now + 3600 * hours
    for number in (1, 2, 3):
        for stage in STAGES:
            with watch.doing(number, stage):
                assert watch.left() == (pytest.approx(end - clock.now, abs=1e-6), True)
                clock.take(seconds(PLAN, number, stage))
    assert clock.now == pytest.approx(end)


def test_a_stage_that_took_twice_as_long_as_planned_is_expected_to_do_so_again() -> None:
    watch, clock = ahead()
    with watch.doing(1, "measure"):
        clock.take(2 * seconds(PLAN, 1, "measure"))  # two evaluations, where later iterations have one
    with watch.doing(2, "measure"):
        left = watch.left()
        rest = sum(seconds(PLAN, 3, stage) for stage in STAGES if stage != "measure")
        assert left == (pytest.approx(2 * (seconds(PLAN, 2, "measure") + seconds(PLAN, 3, "measure")) + rest), True)


def test_while_a_stage_is_made_its_own_progress_says_how_long_such_stages_take() -> None:
    watch, clock = ahead()
    with watch.doing(1, "answers"), watch.watched(hidden)("iteration 1 of 3: answers", 100) as advance:
        advance(40)  # at once: out of the store
        for _ in range(30):
            clock.take(10.0)
            advance(1)
        left = watch.left()
        assert left is not None and left.complete
        others = sum(seconds(PLAN, number, stage) for number in (1, 2, 3) for stage in STAGES if stage != "answers")
        assert left.seconds == pytest.approx(30 * 10.0 + 2 * 600.0 + others)


def test_a_stage_that_went_on_from_another_process_does_not_make_the_next_ones_look_short() -> None:
    watch, clock = ahead(None, iterations=2)
    for number, took in ((1, 100.0), (2, 3.0)):
        with watch.doing(number, "train"):
            clock.take(took)
    with watch.doing(2, "train"):
        assert watch.left() == (100.0, False)  # what measuring takes, nobody knows


def test_without_a_plan_or_with_an_unknown_time_it_is_more_than_what_is_known() -> None:
    watch, _ = ahead(None)
    with watch.doing(1, "answers"):
        assert watch.left() == Left(0.0, False)
    api = plan_of(config(iterations=3, reward="openai:judge"), FACTS)
    watch, clock = ahead(api)
    with watch.doing(1, "answers"):
        left = watch.left()
        assert left is not None and left.seconds > 0 and not left.complete
    for stage in STAGES[1:]:
        with watch.doing(1, stage):
            clock.take(5.0)
    with watch.doing(2, "score"):
        left = watch.left()
        assert left is not None and left.complete and left.seconds > 10.0


def test_what_is_done_already_is_not_waited_for() -> None:
    done = plan_of(
        config(iterations=3), replace(FACTS, done={1: frozenset(STAGES), 2: frozenset(("answers", "score"))})
    )
    watch, _ = ahead(done)
    with watch.doing(2, "train"):
        hours = done.total.hours_left
        assert hours is not None and watch.left() == (pytest.approx(3600 * hours), True)


def test_progress_that_names_no_iteration_gets_it_and_a_fault_is_no_measurement() -> None:
    watch, clock = ahead()
    SEEN.clear()
    track = watch.watched(hidden)
    with track("fetch", 1):
        pass
    with pytest.raises(ZeroDivisionError), watch.doing(2, "measure"), track("grades", 1):
        clock.take(1e9)
        raise ZeroDivisionError
    with watch.doing(2, "answers"), track("iteration 2 of 3: answers", 1):
        left = watch.left()
    assert SEEN == ["fetch", "iteration 2 of 3: measure: grades", "iteration 2 of 3: answers"]
    assert left is not None and left.seconds < 1e8


@given(st.lists(st.tuples(st.integers(0, 5), st.floats(0, 100)), min_size=1, max_size=20))
def test_counted_progress_is_never_behind_itself(steps: list[tuple[int, float]]) -> None:
    now, bar = 0.0, Counted(sum(count for count, _ in steps), 0.0, 0.0)
    for count, wait in steps:
        now += wait
        bar.add(count, now)
        left: Any = bar.left_s(now)
        assert bar.paid <= bar.done <= bar.total and (left is None or left >= 0)
    assert bar.left_s(now) == 0.0
