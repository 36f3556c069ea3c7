"""Which of a prompt's answers are better: by a reward model's numbers, or by a tournament of a judge that compares."""

from __future__ import annotations

import gc
import math
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from rlhf_bench.harness.codec import digest, plain
from rlhf_bench.harness.engines import TOO_LONG, Closes
from rlhf_bench.harness.engines.reply import may_pass
from rlhf_bench.harness.errors import Fault, Outage
from rlhf_bench.harness.judges import Asks, Judge
from rlhf_bench.harness.judges.knockout import Match, knockout
from rlhf_bench.harness.progress import Track
from rlhf_bench.harness.store import Store
from rlhf_bench.harness.types import Battle, Checkpoint, Conversation, Message

Row = dict[str, Any]
T = TypeVar("T")
AT_ONCE = 32
"""Answers, or prompts with all of theirs, that are scored together; what is done is kept after each lot."""


class Rates(Protocol):
    """A reward model: a number for each answer, None where it cannot read it; one that is not finite is none."""

    def rewards(self, items: Sequence[tuple[Conversation, str]]) -> list[float | None]: ...


@dataclass(frozen=True, slots=True)
class Scoring:
    """Who says which answers are better: `rates` gives each a number, or `compares` two at a time; one of them is None.

    Either loads it, and is called only if something is left to ask. `identity` is a digest of weights and protocol.
    """

    name: str
    identity: str
    rates: Callable[[], Rates] | None = None
    compares: Callable[[], Judge] | None = None


def reward_scoring(model: Checkpoint, name: str) -> Scoring:
    """Scoring by a Bradley-Terry reward model."""

    def load() -> Rates:
        from rlhf_bench.harness.judges.reward import RewardModel  # takes seconds: only where something is to be rated

        return RewardModel(model, name=name)

    return Scoring(name, model.digest, rates=load)


def scored(
    rows: Sequence[Row], scoring: Scoring, store: Store, track: Track, *, cut_may_lose: bool, partial: bool
) -> list[Row]:
    """The rows with `rewards`; None where there is none. A judge that compares gives how many answers stand below.

    Those cut at the token limit are compared only with `cut_may_lose`. Raises Fault where a language model as judge
    failed on a comparison (Outage, if that may pass), unless `partial`: then the answers concerned have none.
    """
    if scoring.rates is not None:
        return _rated(rows, scoring.identity, scoring.rates, store, track)
    reasons = {"stop", "length"} if cut_may_lose else {"stop"}
    return _ranked(rows, scoring, store, track, reasons, partial)


def _rated(rows: Sequence[Row], identity: str, load: Callable[[], Rates], store: Store, track: Track) -> list[Row]:
    items = [(turns(row), answer) for row in rows for answer in row["responses"]]
    keys = [digest([identity, plain(prompt), answer]) for prompt, answer in items]
    known: dict[str, float] = store.rewards(keys)
    failed = [why == "error" for row in rows for why in row["finish_reasons"]]
    missing = sorted({key: i for i, key in enumerate(keys) if key not in known and not failed[i]}.values())
    with track("rewards", len(items)) as advance:
        advance(len(items) - len(missing))
        with freed(load() if missing else None) as model:
            for first in range(0, len(missing), AT_ONCE):
                chunk = missing[first : first + AT_ONCE]
                assert model is not None
                values = model.rewards([items[i] for i in chunk])
                told = zip(chunk, values, strict=True)
                found = {keys[i]: value for i, value in told if value is not None and math.isfinite(value)}
                store.save_rewards(found)
                known |= found
                advance(len(chunk))
    values_left = iter(None if lost else known.get(key) for key, lost in zip(keys, failed, strict=True))
    return [row | {"rewards": [next(values_left) for _ in row["responses"]]} for row in rows]


def _ranked(
    rows: Sequence[Row],
    scoring: Scoring,
    store: Store,
    track: Track,
    reasons: set[str],
    partial: bool,
) -> list[Row]:
    """Equal answers share a place. Raises Outage or Fault where nothing came of it, even if `partial`."""
    assert scoring.compares is not None
    fields = [
        list(dict.fromkeys(a for a, why in zip(row["responses"], row["finish_reasons"], strict=True) if why in reasons))
        for row in rows
    ]
    keys = [
        [digest([scoring.identity, row["prompt"], field, place]) for place in range(len(field))]
        for row, field in zip(rows, fields, strict=True)
    ]
    known: dict[str, float] = store.rewards(key for each in keys for key in each)
    missing = [i for i, each in enumerate(keys) if any(key not in known for key in each)]
    lost: dict[int, str] = {}
    with track("rewards", len(rows)) as advance:
        advance(len(rows) - len(missing))
        with freed(scoring.compares() if missing else None) as judge:
            for first in range(0, len(missing), AT_ONCE):
                chunk = missing[first : first + AT_ONCE]
                assert judge is not None
                found, failed = _places([(turns(rows[i]), fields[i]) for i in chunk], judge, partial)
                for place_in_chunk, (i, places) in enumerate(zip(chunk, found, strict=True)):
                    lot = {keys[i][answer]: float(place) for answer, place in places.items()}
                    if place_in_chunk not in failed:  # else the judge may say more the next time
                        store.save_rewards(lot)
                    known |= lot
                lost |= {chunk[place]: why for place, why in failed.items()}
                advance(len(chunk))
    if lost and not any(sum(key in known for key in each) > 1 for each in keys):
        raise _failed(
            f"the judge {scoring.name} failed on all {len(lost)} prompts", lost.values(), "run it again to ask again"
        )
    told = [dict(zip(field, map(known.get, each), strict=True)) for field, each in zip(fields, keys, strict=True)]
    return [
        row | {"rewards": [told[i].get(a) if why in reasons else None for a, why in _answered(row)]}
        for i, row in enumerate(rows)
    ]


def _places(
    asked: Sequence[tuple[Conversation, Sequence[str]]], judge: Judge, partial: bool
) -> tuple[list[Mapping[int, int]], dict[int, str]]:
    """Of each prompt how many answers stand below each; why a language model as judge failed, by prompt.

    Answers that could not be compared have no place. Where a judge's context does not hold them, that is no failure.
    """
    broken: dict[int, str] = {}

    def compare(matches: Sequence[Match]) -> list[float | None]:
        battles = [Battle(str(i), asked[n][0], asked[n][1][a], asked[n][1][b]) for i, (n, a, b) in enumerate(matches)]
        found = {score.sample_id: score for score in judge.prefer(battles)}
        failed = [score for score in found.values() if score.value is None and not score.why.startswith(TOO_LONG)]
        if failed and isinstance(judge, Asks) and not partial:
            raise _failed(
                f"the judge {judge.name} failed on {len(failed)} of {len(battles)} comparisons",
                [score.why for score in failed],
                "run it again to ask for these alone, or set partial: true to train without them",
            )
        if isinstance(judge, Asks):
            broken.update({matches[int(score.sample_id)][0]: score.why for score in failed})
        return [found[battle.sample_id].value for battle in battles]

    rankings = knockout([[len(answer) for answer in answers] for _, answers in asked], compare, worst=True)
    return [{answer: len(each.order) - 1 - i for i, answer in enumerate(each.order)} for each in rankings], broken


def _failed(what: str, whys: Iterable[str], then: str) -> Fault:
    """The error: an Outage where one of the reasons may pass."""
    reasons = list(whys)
    return (Outage if any(map(may_pass, reasons)) else Fault)(f"{what} ({reasons[0]}): {then}")


def _answered(row: Row) -> Iterator[tuple[str, str]]:
    return zip(row["responses"], row["finish_reasons"], strict=True)


def turns(row: Mapping[str, Any]) -> Conversation:
    """The prompt of a row."""
    return tuple(Message(turn["role"], turn["content"]) for turn in row["prompt"])


@contextmanager
def freed(model: T) -> Iterator[T]:
    """The model, and its memory given back at the end, so that what follows finds the GPU empty."""
    try:
        yield model
    finally:
        if isinstance(model, Closes):
            model.close()
        del model
        gc.collect()
        torch: Any = sys.modules.get("torch")
        if torch is not None and torch.cuda.is_available():
            torch.cuda.empty_cache()
