"""Judges say how probable it is that an answer beats a baseline. One method, whatever stands behind it."""

from __future__ import annotations

import typing
from collections.abc import Iterator, Sequence

from rlhf_bench.harness.types import Battle, Score


class Judge(typing.Protocol):
    """`name` is shown in every table; `identity` is a digest of weights and protocol: scores by two are never mixed."""

    @property
    def name(self) -> str: ...
    @property
    def identity(self) -> str: ...

    def prefer(self, battles: Sequence[Battle]) -> Iterator[Score]:
        """For each battle P(answer ≻ baseline) in [0, 1], in any order; None with a reason where it cannot say."""
        ...
