"""What calls to a model that is paid by the token cost: before (a plan), during (a budget that holds) and after."""

from __future__ import annotations

import math
import os
import re
import threading
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from rlhf_bench.harness.errors import UserError
from rlhf_bench.harness.files import user_path
from rlhf_bench.harness.types import Request

PACKAGED = Path(__file__).with_name("prices.yaml")
PER = 1e6
CHARS_PER_TOKEN = 4
MESSAGE_TOKENS = 8
"""What a chat format adds to a message, generously."""


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens, as a server counts them. `cached` are those of `input` that it read from its own cache."""

    calls: int = 0
    input: int = 0
    cached: int = 0
    output: int = 0

    def __add__(self, other: Usage) -> Usage:
        return Usage(
            self.calls + other.calls, self.input + other.input, self.cached + other.cached, self.output + other.output
        )


@dataclass(frozen=True, slots=True)
class Price:
    """US dollars for a million tokens."""

    input: float
    cached: float
    output: float

    def of(self, usage: Usage) -> float:
        """What this usage costs, in US dollars."""
        fresh = usage.input - usage.cached
        return (fresh * self.input + usage.cached * self.cached + usage.output * self.output) / PER

    def most(self, request: Request) -> float:
        """What one call can cost at most, in US dollars: a token is at least one byte, and every one is written."""
        texts = _texts(request)
        tokens = sum(len(text.encode(errors="replace")) for text in texts) + MESSAGE_TOKENS * (len(texts) + 1)
        return (tokens * max(self.input, self.cached) + request.sampling.max_tokens * self.output) / PER


def price_of(model: str) -> Price | None:
    """The price of a model, None if no table knows it: RLHF_BENCH_PRICES first, then the packaged one.

    An id that no table names has the price of the longest name that it continues with a date or version number.
    Raises UserError for a table that is not one.
    """
    given = os.environ.get("RLHF_BENCH_PRICES")
    table = _read(PACKAGED) | (_read(user_path(given)) if given else {})
    if model in table:
        return table[model]
    begins = [name for name in table if re.fullmatch(re.escape(name) + r"-\d[\d-]*", model)]
    return table[max(begins, key=len)] if begins else None


@dataclass(frozen=True, slots=True)
class Plan:
    """What requests would take, before any is sent. Input is estimated at 4 characters a token (no tokenizer is
    asked), output is at most `max_tokens` of each; `usd` is the cost of both, None if the price is unknown."""

    calls: int
    input_tokens: int
    output_tokens: int
    usd: float | None


def plan(requests: Iterable[Request], price: Price | None) -> Plan:
    """The plan for these requests; give those that the store has no answer for (engines.stored.unanswered)."""
    calls = read = written = 0
    for request in requests:
        texts = _texts(request)
        calls += 1
        read += math.ceil(sum(map(len, texts)) / CHARS_PER_TOKEN) + MESSAGE_TOKENS * len(texts)
        written += request.sampling.max_tokens
    return Plan(calls, read, written, None if price is None else price.of(Usage(calls, read, 0, written)))


def dollars(text: str) -> float:
    """US dollars of "5usd", "$5" or "5". Raises UserError."""
    found = re.fullmatch(r"\$?\s*(\d+(?:\.\d*)?|\.\d+)\s*(?:usd)?", text.strip(), re.IGNORECASE)
    if found is None:
        raise UserError(f"a budget of '{text}': give US dollars, such as 5usd")
    return float(found[1])


class Budget:
    """So many US dollars and no more, shared by all engines that are given it.

    Before a call its highest possible cost is set aside; after it, what it did cost is spent. So `spent` cannot exceed
    `usd` as long as servers report their usage truthfully and prices are right.
    """

    def __init__(self, usd: float) -> None:
        if not (math.isfinite(usd) and usd > 0):
            raise UserError(f"a budget of {usd} US dollars: give an amount above 0, such as 5")
        self.usd = usd
        self.spent = 0.0
        self.calls = 0
        """Calls for which money is set aside now."""
        self._aside = 0.0
        self._lock = threading.Lock()

    def reserve(self, most: float) -> bool:
        """Set `most` aside, if it is still there."""
        with self._lock:
            if self.spent + self._aside + most > self.usd:
                return False
            self._aside += most
            self.calls += 1
            return True

    def settle(self, most: float, cost: float) -> None:
        """What was set aside turned out to cost `cost`."""
        with self._lock:
            self.calls -= 1
            self._aside = self._aside - most if self.calls else 0.0
            self.spent += cost


def _texts(request: Request) -> list[str]:
    prompt = request.prompt
    texts = [prompt] if isinstance(prompt, str) else [message.content for message in prompt]
    return [*texts, request.sampling.function] if request.sampling.function else texts


def _read(path: Path) -> dict[str, Price]:
    try:
        found = yaml.safe_load(path.read_text())
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(f"the price table {path} cannot be read: {str(error).splitlines()[0]}") from error
    if not isinstance(found, Mapping):
        raise UserError(f"the price table {path} is not a mapping of model to {{input, cached, output}}")
    return {str(model): _price(path, str(model), rates) for model, rates in found.items()}


def _price(path: Path, model: str, rates: Any) -> Price:
    known = {"input", "cached", "output"}
    if not isinstance(rates, Mapping) or not {"input", "output"} <= rates.keys() <= known:
        raise UserError(f"the price of {model} in {path} needs input and output, may have cached, and nothing else")
    for name, rate in rates.items():
        if isinstance(rate, bool) or not isinstance(rate, int | float) or not (math.isfinite(rate) and rate >= 0):
            raise UserError(f"the price of {model} in {path}: {name} is {rate!r}, not dollars for a million tokens")
    return Price(float(rates["input"]), float(rates.get("cached", rates["input"])), float(rates["output"]))
