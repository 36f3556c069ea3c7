"""Which benchmarks exist, which suites they form, and how they may be asked.

Listing them imports none; `benchmark` and `suite` import the modules of those that are named.
"""

from __future__ import annotations

import importlib
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

from rlhf_bench.harness.errors import UnknownName
from rlhf_bench.harness.types import Benchmark, EvalProtocol, Figure, Suite
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
        "mmlu": Entry(
            "mmlu", "questions of 57 subjects with four choices, by the likelihood of the letter", 14042, "acc"
        ),
        "truthfulqa_mc1": Entry(
            "truthfulqa_mc1", "questions that invite a common error, by the likeliest answer", 817, "acc"
        ),
        "truthfulqa_mc2": Entry(
            "truthfulqa_mc2", "questions that invite a common error, by the likelihood of all true answers", 817, "acc"
        ),
        "humaneval": Entry(
            "humaneval", "Python functions from docstrings, run against their tests", 164, "pass@1,create_test"
        ),
        "mbpp": Entry("mbpp", "basic Python tasks, run against three tests each", 500, "pass_at_1"),
        "humaneval_plus": Entry(
            "humaneval_plus", "HumanEval against EvalPlus's many more tests", 164, "pass@1,create_test"
        ),
        "mbpp_plus": Entry("mbpp_plus", "MBPP's best 378 tasks against EvalPlus's many more tests", 378, "pass_at_1"),
        "alpaca_eval": Entry(
            "alpaca_eval", "open instructions, judged against the answers of gpt4_1106_preview", 805, "win_rate"
        ),
        "mt_bench": Entry(
            "mt_bench", "questions of two turns in eight categories, rated by a language model", 80, "score"
        ),
        "arena_hard": Entry(
            "arena_hard", "hard prompts of real users, judged twice against the answers of gpt-4-0314", 500, "win_rate"
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
            "what must not be lost: arithmetic, knowledge, truthfulness and code, by lm-eval's definitions",
            ("gsm8k", "mmlu", "humaneval", "truthfulqa_mc1", "truthfulqa_mc2", "arc_challenge", "mbpp"),
        ),
        "code": Group(
            "Python functions, run against tests in a sandbox: HumanEval, MBPP and their EvalPlus extensions",
            ("humaneval", "mbpp", "humaneval_plus", "mbpp_plus"),
        ),
        "chat": Group(
            "what should improve: open instructions, judged by a language model",
            ("alpaca_eval", "mt_bench", "arena_hard"),
        ),
        "demo": Group(
            "this project's own, packaged: no download", ("demo-chat", "demo-arithmetic", "demo-four-way", "demo-code")
        ),
    }
)


LINEARISED = ("alpaca_eval", "arena_hard")
"""The benchmarks with metrics that are no means over samples and compare all the same."""


def figures(names: Iterable[str]) -> Mapping[str, Mapping[str, Figure]]:
    """By benchmark the metrics that are no means over samples, those of `names` that have some."""
    return {name: benchmark(name).figures for name in names if name in LINEARISED}


def benchmark(name: str) -> Benchmark:
    """The benchmark with this name. Raises UnknownName."""
    if name not in BENCHMARKS:
        raise UnknownName("benchmark", name, BENCHMARKS)
    found: Benchmark = importlib.import_module(f"rlhf_bench.suites.{BENCHMARKS[name].module}").BENCHMARK
    return found


def suite(name: str, include_path: Sequence[Path] = ()) -> Suite:
    """The suite with this name; a benchmark's name is a suite of one, and names may be joined by commas.

    Beside the names of the tables, any of lm-eval's tasks, groups and tags, and before all those of the task files in
    the folders of `include_path`. Raises UnknownName, or UserError for a task that cannot be asked or scored here.
    """
    names = [part.strip() for part in name.split(",")]
    own = _names_in(include_path)
    found: dict[str, Benchmark] = {}
    for part in names:
        for member in SUITES[part].benchmarks if part in SUITES and part not in own else (part,):
            if member not in found:
                listed = member in BENCHMARKS and member not in own
                found[member] = benchmark(member) if listed else _lm_eval(member, include_path)
    summary = SUITES[name].summary if name in SUITES and name not in own else ""
    return Suite(",".join(names), tuple(found.values()), summary)


def _names_in(include_path: Sequence[Path]) -> Collection[str]:
    if not include_path:
        return ()
    from rlhf_bench.suites.lm_eval_index import merged

    return merged(include_path).names()


def _lm_eval(name: str, include_path: Sequence[Path]) -> Benchmark:
    from rlhf_bench.suites.lm_eval_named import named

    return named(name, include_path, beside=(*SUITES, *BENCHMARKS))


def protocol(name: str) -> EvalProtocol:
    """The protocol with this name. Raises UnknownName."""
    if name not in PROTOCOLS:
        raise UnknownName("protocol", name, PROTOCOLS)
    return PROTOCOLS[name]
