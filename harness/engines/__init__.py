"""Engines answer requests. One method; everything that varies sits behind it."""

from __future__ import annotations

import typing
from collections.abc import Iterator, Sequence

from rlhf_bench.harness.types import Completion, Request

TOO_LONG = "the prompt does not fit the model's context"
"""How the reason begins why an answer failed that no second asking would give."""


def outgrown(completion: Completion) -> bool:
    """Whether an answer failed because its prompt does not fit the model's context: that is no fault of the engine."""
    return completion.finish_reason == "error" and completion.why.startswith(TOO_LONG)


class Engine(typing.Protocol):
    """Something that answers requests.

    `name` is for people; `identity` is a digest of all that decides the answers (weights, dtype, engine version), so
    that an answer stored under it can be used again. `manifest` is what a report says about the engine.
    """

    @property
    def name(self) -> str: ...
    @property
    def identity(self) -> str: ...
    @property
    def checkpoint(self) -> str: ...
    @property
    def manifest(self) -> dict[str, str]: ...

    def generate(self, requests: Sequence[Request]) -> Iterator[Completion]:
        """One completion for each request, as they finish, in any order.

        A request that fails yields a completion with finish_reason "error"; the others go on.
        """
        ...


@typing.runtime_checkable
class Ready(typing.Protocol):
    """What an engine's iterator may offer besides, so that answers are stored in batches and its calls end at once."""

    def ready(self) -> Sequence[Completion]:
        """The further answers that have come already, without waiting for another one."""
        ...

    def close(self) -> None:
        """Give up what is in flight."""
        ...


@typing.runtime_checkable
class Closes(typing.Protocol):
    """What an engine that holds a model in memory offers besides."""

    def close(self) -> None:
        """Give the memory back, the GPU's too. What is asked afterwards loads the model again."""
        ...
