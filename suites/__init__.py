"""Which benchmarks exist, which suites they form, and how they may be asked.

Listing them imports none; `benchmark` and `suite` import the modules of those that are named.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple

from rlhf_bench.harness.errors import UnknownName
from rlhf_bench.harness.types import Benchmark, EvalProtocol, Suite
from rlhf_bench.suites.protocols import PROTOCOLS


class Entry(NamedTuple):
    """A benchmark as a list shows it: its module below rlhf_bench.suites, and what its BENCHMARK says of itself."""

    module: str
    summary: str
    size: int
    metric: str


class Group(NamedTuple):
    """A suite as a list shows it."""

    summary: str
    benchmarks: tuple[str, ...]


BENCHMARKS: Mapping[str, Entry] = MappingProxyType(
    {
        "gsm8k": Entry(
            "gsm8k",
            "grade-school word problems, by the last number of the answer",
            1319,
            "exact_match,flexible-extract",
        ),
        "arc_challenge": Entry(
            "arc_challenge", "science questions with four choices, by likelihood per character", 1172, "acc_norm"
        ),
        "alpaca_eval": Entry(
            "alpaca_eval", "open instructions, judged against the answers of gpt4_1106_preview", 805, "win_rate"
        ),
        "demo-chat": Entry("demo.chat", "packaged instructions, judged against reference answers", 40, "win_rate"),
        "demo-arithmetic": Entry(
            "demo.arithmetic",
            "packaged word problems of one to three steps, by the last number of the answer",
            60,
            "exact_match",
        ),
        "demo-four-way": Entry(
            "demo.four_way",
            "packaged science questions with four choices, by likelihood per character",
            40,
            "acc_norm",
        ),
        "demo-code": Entry(
            "demo.code", "packaged Python functions, completed and run against tests in a sandbox", 20, "pass@1"
        ),
    }
)

SUITES: Mapping[str, Group] = MappingProxyType(
    {
        "academic": Group(
            "what must not be lost: arithmetic and knowledge, by lm-eval's definitions", ("gsm8k", "arc_challenge")
        ),
        "chat": Group("what should improve: open instructions, judged against a baseline", ("alpaca_eval",)),
        "demo": Group(
            "this project's own, packaged: no download", ("demo-chat", "demo-arithmetic", "demo-four-way", "demo-code")
        ),
    }
)


def benchmark(name: str) -> Benchmark:
    """The benchmark with this name. Raises UnknownName."""
    if name not in BENCHMARKS:
        raise UnknownName("benchmark", name, BENCHMARKS)
    found: Benchmark = importlib.import_module(f"rlhf_bench.suites.{BENCHMARKS[name].module}").BENCHMARK
    return found


def suite(name: str) -> Suite:
    """The suite with this name; a benchmark's name is a suite of one, and names may be joined by commas.

    Raises UnknownName.
    """
    names = [part.strip() for part in name.split(",")]
    for part in names:
        if part not in SUITES and part not in BENCHMARKS:
            raise UnknownName("suite", part, [*SUITES, *BENCHMARKS])
    members = dict.fromkeys(one for part in names for one in (SUITES[part].benchmarks if part in SUITES else (part,)))
    summary = SUITES[name].summary if name in SUITES else ""
    return Suite(",".join(names), tuple(benchmark(member) for member in members), summary)


def protocol(name: str) -> EvalProtocol:
    """The protocol with this name. Raises UnknownName."""
    if name not in PROTOCOLS:
        raise UnknownName("protocol", name, PROTOCOLS)
    return PROTOCOLS[name]
