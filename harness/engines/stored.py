"""Answers through the store: what was answered once, by the same engine to the same request, is never asked again."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from rlhf_bench.harness.codec import request_key
from rlhf_bench.harness.engines import Engine, Ready
from rlhf_bench.harness.errors import Fault
from rlhf_bench.harness.store import Store
from rlhf_bench.harness.types import Completion, Request


def stored_or_asked(requests: Iterable[Request], engine: Engine, store: Store) -> Iterator[tuple[Request, Completion]]:
    """Each distinct request with its answer: the stored ones, then the engine's, each stored before it is given.

    Answers that are there at the same time are stored together, before the engine is asked for its next one. Raises
    Fault where the engine answers what it was not asked, twice, or not at all; what it answered before is stored.
    """
    identity = engine.identity
    keys = {request: request_key(identity, request) for request in requests}
    stored = store.completions(keys.values())
    yield from ((request, stored[key]) for request, key in keys.items() if key in stored)
    for waiting in _calls(request for request, key in keys.items() if key not in stored):
        answers = engine.generate(list(waiting.values()))
        try:
            for batch in _batches(answers):
                answered = _taken(batch, waiting)
                store.save_completions({keys[request]: completion for request, completion in answered.items()})
                if len(answered) < len(batch):
                    other = next(c for c in batch if not any(c is known for known in answered.values()))
                    raise Fault(f"engine {engine.name} answered '{other.sample_id}', which it was not asked, or twice")
                yield from answered.items()
        finally:  # interrupted: what has come meanwhile was paid for
            if isinstance(answers, Ready):
                answers.close()
                late = _taken(answers.ready(), waiting)
                store.save_completions({keys[request]: completion for request, completion in late.items()})
        if waiting:
            raise Fault(f"engine {engine.name} left {len(waiting)} requests without an answer")


def unanswered(requests: Iterable[Request], engine: Engine, store: Store) -> list[Request]:
    """The distinct requests that the engine would have to be asked: what a dry run counts."""
    keys = {request: request_key(engine.identity, request) for request in requests}
    stored = store.completions(keys.values())
    return [request for request, key in keys.items() if key not in stored]


def _batches(answers: Iterator[Completion]) -> Iterator[Sequence[Completion]]:
    """The answers one by one, or, of an engine that can say which are there already, all of those at once."""
    if isinstance(answers, Ready):
        yield from ([answer, *answers.ready()] for answer in answers)
    else:
        yield from ([answer] for answer in answers)


def _taken(batch: Sequence[Completion], waiting: dict[tuple[str, int], Request]) -> dict[Request, Completion]:
    """The answers to requests that are waiting, which then wait no more."""
    found: dict[Request, Completion] = {}
    for completion in batch:
        request = waiting.pop((completion.sample_id, completion.index), None)
        if request is not None:
            found[request] = completion
    return found


def _calls(requests: Iterable[Request]) -> list[dict[tuple[str, int], Request]]:
    """All requests in one call, by what a completion says of its request; a clash of ids opens a further call."""
    calls: list[dict[tuple[str, int], Request]] = []
    for request in requests:
        place = (request.sample_id, request.index)
        call = next((call for call in calls if place not in call), None)
        if call is None:
            calls.append(call := {})
        call[place] = request
    return calls
