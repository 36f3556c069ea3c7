"""Judges say how probable it is that an answer beats a baseline. One method, whatever stands behind it."""

from __future__ import annotations

import typing
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, TypeVar

from rlhf_bench.harness.types import Battle, Completion, Request, Score

if TYPE_CHECKING:
    from rlhf_bench.harness.judges.llm import Judgment

T = TypeVar("T")


class Judge(typing.Protocol):
    """`name` is shown in every table; `identity` is a digest of weights and protocol: scores by two are never mixed."""

    @property
    def name(self) -> str: ...
    @property
    def identity(self) -> str: ...

    def prefer(self, battles: Sequence[Battle]) -> Iterator[Score]:
        """For each battle P(answer ≻ baseline) in [0, 1], in any order; None with a reason where it cannot say."""
        ...


@typing.runtime_checkable
class Asks(Judge, typing.Protocol):
    """A judge that is a language model: a benchmark may ask it in its own words, and read the verdict itself."""

    @property
    def manifest(self) -> Mapping[str, str]: ...

    def ask(self, requests: Iterable[Request], read: Callable[[Completion], T]) -> Iterator[Judgment[T]]:
        """Each distinct request with its judgment, in any order (`llm.ask`)."""
        ...
