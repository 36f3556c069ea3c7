"""How fast a server is asked: how many calls at once, when none may start, how many more than wanted, when to stop.

The number in flight grows like a TCP connection's: by one for each answer until the server first objects, then by one
for each round of answers, and halves when it objects (additive increase, multiplicative decrease; RFC 5681, 3.1).
"""

from __future__ import annotations

import asyncio
import math
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

from rlhf_bench.harness.errors import RlhfBenchError

START = 8


@dataclass(frozen=True, slots=True)
class Limits:
    """What a client allows itself and a server. Seconds, calls and bytes.

    `deadline_s` is for one answer with all its attempts, `attempt_s` for one attempt; `pause_s` is the longest
    Retry-After that is obeyed: past it the run stops and can be resumed. Failed attempts are made again
    `extra_floor` times, and `extra` times the number of requests.
    """

    concurrency: int = 64
    attempt_s: float = 120.0
    deadline_s: float = 300.0
    connect_s: float = 10.0
    pause_s: float = 120.0
    backoff_s: float = 0.5
    backoff_cap_s: float = 30.0
    extra: float = 0.1
    extra_floor: int = 10
    failures_in_a_row: int = 20
    body_bytes: int = 8 << 20
    drain_s: float = 10.0


DEFAULT = Limits()


class Stopped(Exception):
    """No further call may start; why is in Pace.stop_error."""


class Pace:
    """One for all calls of a run, used from its event loop alone."""

    def __init__(self, limits: Limits, requests: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._ceiling = max(1, limits.concurrency)
        self._fuse = limits.failures_in_a_row
        self._clock = clock
        self._threshold = float(self._ceiling)
        self._cut_at = float("-inf")
        self._waiting: deque[asyncio.Future[None]] = deque()
        self.limit = float(min(START, self._ceiling))
        self.in_flight = 0
        self.resume_at = float("-inf")
        self.retries_left = limits.extra_floor + int(limits.extra * requests)
        self.in_a_row = 0
        self.stop_error: RlhfBenchError | None = None
        self._stopping = asyncio.Event()

    async def enter(self) -> None:
        """Wait until a call may start. Raises Stopped once none may any more."""
        while self.stop_error is None:
            pause = self.resume_at - self._clock()
            if pause > 0:
                await self.rest(pause)
            elif self.in_flight < int(self.limit):
                self.in_flight += 1
                return
            else:
                turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
                self._waiting.append(turn)
                await turn
        raise Stopped

    async def rest(self, seconds: float) -> None:
        """Wait so long, or until the run stops."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds if seconds < math.inf else None):
                await self._stopping.wait()

    def leave(self) -> None:
        """A call has ended, however."""
        self.in_flight -= 1
        self._wake()

    def answered(self) -> None:
        """The server gave an answer."""
        self.in_a_row = 0
        self.limit = min(self._ceiling, self.limit + (1.0 if self.limit < self._threshold else 1.0 / self.limit))

    def objected(self, started: float, wait_s: float) -> None:
        """The server wants fewer calls: half as many, none for `wait_s`. Calls from before the last cut say nothing."""
        now = self._clock()
        if started >= self._cut_at:
            self.limit = self._threshold = max(1.0, self.limit / 2)
            self._cut_at = now
        self.resume_at = max(self.resume_at, now + wait_s)

    def failed(self) -> bool:
        """An attempt failed on the server's side; whether that is now too often in a row."""
        self.in_a_row += 1
        return self.in_a_row >= self._fuse

    def retry(self) -> bool:
        """Whether one more attempt than was wanted may be made; it is counted."""
        self.retries_left -= 1
        return self.retries_left >= 0

    def stop(self, error: RlhfBenchError) -> None:
        """No call starts from now on; the first error that is given is why."""
        self.stop_error = self.stop_error or error
        self._stopping.set()
        while self._waiting:
            self._free(self._waiting.popleft())

    def _wake(self) -> None:
        free = int(self.limit) - self.in_flight
        while free > 0 and self._waiting:
            free -= self._free(self._waiting.popleft())

    @staticmethod
    def _free(turn: asyncio.Future[None]) -> bool:
        if turn.done():  # its task was cancelled
            return False
        turn.set_result(None)
        return True
