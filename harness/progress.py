"""Progress without a dependency on who shows it: long jobs take a `Track` and advance it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import TypeAlias

Advance: TypeAlias = Callable[[int], None]
Track: TypeAlias = Callable[[str, int], AbstractContextManager[Advance]]
"""`with track("generate", total) as advance: advance(1)`"""


@contextmanager
def silent(label: str, total: int) -> Iterator[Advance]:
    """Shows nothing."""

    def advance(count: int) -> None:
        return None

    yield advance
