"""Asynchronous work as a plain iterator: an event loop in a thread of its own, what it produces in the caller's."""

from __future__ import annotations

import asyncio
import queue
import threading
import time
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from contextlib import suppress
from typing import Any, Generic, Self, TypeAlias, TypeVar

T = TypeVar("T")
Emit: TypeAlias = Callable[[Any], Awaitable[None]]
GATHER_S = 0.02
"""How long an answer waits for company: 20 of them at 1,000 a second go to the disk together."""
BEHIND = 256
"""How far the caller may fall behind: what it has not taken is not stored, so no more than this can be lost."""


class _End:
    def __init__(self, error: BaseException | None) -> None:
        self.error = error


class Arrivals(Iterator[T], Generic[T]):
    """Runs `work(emit)` in a thread from the first answer that is asked for, and iterates over what it emits.

    What `work` raises is raised after everything that it emitted before. Closed, interrupted (Ctrl-C) or dropped, it
    cancels `work` and waits until that has ended.
    """

    def __init__(self, work: Callable[[Emit], Coroutine[Any, Any, None]]) -> None:
        self._work = work
        self._inbox: queue.SimpleQueue[T | _End] = queue.SimpleQueue()
        self._there: deque[T] = deque()
        self._end: _End | None = None
        self._runner: _Runner | None = None

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> T:
        if self._runner is None and self._end is None:
            self._runner = _Runner(self._work, self._inbox)
        if not self._there and self._end is None:
            try:
                self._take(self._inbox.get())
                if self._end is None:
                    time.sleep(GATHER_S)
                self._take_all()
            except BaseException:
                self.close()
                raise
        if self._there:
            return self._there.popleft()
        end, self._end = self._end, _End(None)
        if end is not None and end.error is not None:
            raise end.error
        raise StopIteration

    def ready(self) -> list[T]:
        """What has come already."""
        self._take_all()
        found = list(self._there)
        self._there.clear()
        return found

    def close(self) -> None:
        """Cancel what is in flight; no more will come, but `ready` still gives what came before."""
        if self._runner is not None:
            self._runner.stop()
            self._runner = None
            while self._end is None:
                self._take(self._inbox.get())
        self._end = self._end or _End(None)

    def __del__(self) -> None:
        self.close()

    def _take_all(self) -> None:
        while self._end is None and not self._inbox.empty():
            self._take(self._inbox.get())

    def _take(self, item: T | _End) -> None:
        if isinstance(item, _End):
            self._end = item
        else:
            self._there.append(item)


class _Runner:
    """The thread. It holds no reference to the iterator, so that one which is dropped is closed."""

    def __init__(self, work: Callable[[Emit], Coroutine[Any, Any, None]], inbox: queue.SimpleQueue[Any]) -> None:
        self._loop = asyncio.new_event_loop()
        self._task = self._loop.create_task(work(self._emit))
        self._inbox = inbox
        self._thread = threading.Thread(target=self._run, name="api calls", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        if self._thread.is_alive():
            with suppress(RuntimeError):  # it ended by itself, just now
                self._loop.call_soon_threadsafe(self._task.cancel)
        self._thread.join()

    async def _emit(self, item: Any) -> None:
        self._inbox.put(item)
        while self._inbox.qsize() > BEHIND:
            await asyncio.sleep(GATHER_S)

    def _run(self) -> None:
        error: BaseException | None = None
        try:
            self._loop.run_until_complete(self._task)
        except asyncio.CancelledError:
            pass
        except BaseException as raised:
            error = raised
        finally:
            self._loop.run_until_complete(self._loop.shutdown_asyncgens())
            self._loop.close()
            self._inbox.put(_End(error))
