"""The number of calls in flight: it grows, it halves, it waits, it stops; no turn is lost."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlhf_bench.harness.engines.arrivals import Arrivals, Emit
from rlhf_bench.harness.engines.pace import START, Limits, Pace, Stopped
from rlhf_bench.harness.errors import Fault


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@given(st.integers(1, 300), st.lists(st.sampled_from(["answered", "objected"]), max_size=200))
def test_the_limit_stays_between_one_and_the_ceiling(ceiling: int, events: list[str]) -> None:
    clock = Clock()
    pace = Pace(Limits(concurrency=ceiling), 10, clock)
    for event in events:
        clock.now += 1
        pace.answered() if event == "answered" else pace.objected(clock.now, 0)
        assert 1 <= pace.limit <= ceiling


def test_it_doubles_each_round_until_the_first_objection_and_then_adds_one() -> None:
    clock = Clock()
    pace = Pace(Limits(concurrency=256), 10, clock)
    for expected in (2 * START, 4 * START, 8 * START):
        for _ in range(int(pace.limit)):
            pace.answered()
        assert pace.limit == expected
    pace.objected(started=1.0, wait_s=0)
    assert pace.limit == 32
    for _ in range(33):
        pace.answered()
    assert 33 <= pace.limit <= 33.1


def test_one_burst_of_objections_halves_once() -> None:
    clock = Clock()
    pace = Pace(Limits(concurrency=256), 10, clock)
    clock.now = 5.0
    for started in (4.0, 4.5, 4.9):
        pace.objected(started, 0)
    assert pace.limit == START / 2
    pace.objected(5.5, 0)
    assert pace.limit == START / 4


def test_every_call_gets_its_turn_and_no_more_than_the_limit_at_once() -> None:
    async def work() -> tuple[int, int]:
        pace, most, done = Pace(Limits(concurrency=5), 10), 0, 0

        async def call() -> None:
            nonlocal most, done
            await pace.enter()
            most = max(most, pace.in_flight)
            await asyncio.sleep(0)
            pace.leave()
            done += 1

        tasks = [asyncio.create_task(call()) for _ in range(200)]
        for task in tasks[50:60]:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        return most, done

    assert asyncio.run(work()) == (5, 190)


def test_a_stop_wakes_all_that_wait() -> None:
    async def work() -> list[object]:
        pace = Pace(Limits(concurrency=1), 10)
        await pace.enter()
        waiting = [asyncio.create_task(pace.enter()) for _ in range(3)]
        await asyncio.sleep(0)
        pace.stop(Fault("enough"))
        pace.stop(Fault("later"))
        assert str(pace.stop_error) == "enough"
        return list(await asyncio.wait_for(asyncio.gather(*waiting, return_exceptions=True), 1))

    assert [type(each) for each in asyncio.run(work())] == [Stopped] * 3


def test_what_a_coroutine_raises_comes_after_all_that_it_gave() -> None:
    async def work(emit: Emit) -> None:
        for number in range(100):
            await emit(number)
        raise Fault("broke")

    arrivals: Arrivals[int] = Arrivals(work)
    found = []
    with pytest.raises(Fault, match="broke"):
        for each in arrivals:
            found += [each, *arrivals.ready()]
    assert found == list(range(100))
    assert list(arrivals) == []


def test_nothing_runs_before_the_first_answer_is_asked_for() -> None:
    ran = []

    async def work(emit: Emit) -> None:
        ran.append(1)

    arrivals: Arrivals[int] = Arrivals(work)
    arrivals.close()
    assert ran == [] and list(arrivals) == []
