"""lm-eval's code tasks, graded in the sandbox.

Such a task takes the metric `code_eval` from the hub when its module is imported, and that metric would run answers in
this process's own name. `code_eval_in_sandbox` lets it find `SandboxedCodeEval` in its place: prompts, filters and
metrics stay the task's own, and what they run, they run in harness/sandbox. A task that runs code by other means is
refused (`refuse_other_means`).

A limit of 5 s of CPU time for one program stands where code_eval and OpenAI's harness have 3 s of wall-clock time: what
is ended does not hang on how busy the machine is, and a slow processor has a margin.
"""

from __future__ import annotations

import ast
import builtins
import importlib
import math
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from statistics import fmean
from types import ModuleType
from typing import Any

from rlhf_bench.harness import sandbox
from rlhf_bench.harness.errors import UserError
from rlhf_bench.harness.types import Benchmark, EvalProtocol, Graded, Sample, Score
from rlhf_bench.suites.data import Row

CPU_S = 5.0
"""A program's limit, where its document has no "cpu_s"."""


class Ungraded(Exception):
    """The sandbox could not run a program, which says nothing about the program."""


@dataclass(slots=True)
class _Asked:
    """What is being graded: the document, and the reasons of the programs that failed, as they come."""

    document: Row
    whys: list[str] = field(default_factory=list)


_ASKED: ContextVar[_Asked | None] = ContextVar("asked", default=None)


class SandboxedCodeEval:
    """The hub's `code_eval` as its users call it, with every program in the sandbox."""

    importing = False

    def compute(
        self, references: Sequence[str], predictions: Sequence[Sequence[str]], k: Sequence[int] = (1, 10, 100)
    ) -> tuple[dict[str, float], dict[int, list[tuple[int, dict[str, Any]]]]]:
        """({"pass@k": share of the problems}, {problem: its programs' results}).

        `references` holds one test for each problem, `predictions` its candidate programs; pass@k is left out where
        a problem has fewer than k of them. While a task is imported (where it tries its metric) nothing is run.
        Raises Ungraded.
        """
        if self.importing:
            return {}, {}
        passed: list[list[bool]] = []
        details: dict[int, list[tuple[int, dict[str, Any]]]] = {}
        for problem, (test, programs) in enumerate(zip(references, predictions, strict=True)):
            outcomes = [_run(program, test) for program in programs]
            passed.append([bool(outcome.passed) for outcome in outcomes])
            details[problem] = [
                (number, {"task_id": problem, "passed": one.passed, "result": one.why or "passed"})
                for number, one in enumerate(outcomes)
            ]
        fewest = min(map(len, passed), default=0)
        return {f"pass@{n}": fmean(pass_at_k(one, n) for one in passed) for n in k if n <= fewest}, details


CODE_EVAL = SandboxedCodeEval()


def pass_at_k(passed: Sequence[bool], k: int) -> float:
    """The chance that one of k programs, drawn without replacement, passes (Chen et al. 2021, equation 1)."""
    wrong = len(passed) - sum(passed)
    return 1 - math.comb(wrong, k) / math.comb(len(passed), k)


def _run(source: str, test: str) -> sandbox.Outcome:
    """One program against one test. Raises Ungraded."""
    asked = _ASKED.get() or _Asked({})
    entry_point, setup = _names(test, asked.document)
    program = sandbox.Program(source, test, entry_point, setup)
    outcome = sandbox.run_tests(program, cpu_s=asked.document.get("cpu_s", CPU_S))
    if outcome.passed is None:
        raise Ungraded(outcome.why)
    if not outcome.passed:
        asked.whys.append(outcome.why)
    return outcome


def _names(test: str, document: Row) -> tuple[str, str]:
    """(entry point, setup) of a test: which name it takes from the candidate, and what comes from the benchmark.

    A document of HumanEval's form names its entry point, and its prompt holds the helpers that the test calls beside
    it: those are the benchmark's own, which no answer replaces. Elsewhere it is the one name that the test does not
    define; where it needs several, "" (all that the candidate defines).
    """
    entry_point, prompt = document.get("entry_point"), document.get("prompt", "")
    if entry_point and _tree(prompt):
        return entry_point, prompt
    names = _free_names(test)
    return (names.pop() if len(names) == 1 else ""), ""


def _free_names(test: str) -> set[str]:
    """The names that a test uses and neither defines nor has from Python; if there are none, the builtins it calls."""
    tree = _tree(test) or ast.Module([], [])
    used = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    own = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name) and not isinstance(node.ctx, ast.Load)}
    own |= {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.ClassDef)}
    own |= {node.arg for node in ast.walk(tree) if isinstance(node, ast.arg)}
    imports = [node for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom)]
    own |= {(name.asname or name.name).split(".")[0] for node in imports for name in node.names}
    called = {n.func.id for n in ast.walk(tree) if isinstance(n, ast.Call) and isinstance(n.func, ast.Name)}
    return used - own - set(dir(builtins)) or called - own


def _tree(source: str) -> ast.Module | None:
    try:
        return ast.parse(source)
    except (SyntaxError, ValueError):
        return None


class _Evaluate(ModuleType):
    """Stands where a task imports `evaluate`, which takes seconds to import; another metric than ours brings it in."""

    def load(self, path: str, *args: Any, **kwargs: Any) -> Any:
        return CODE_EVAL if path == "code_eval" else self._real().load(path, *args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real(), name)

    def _real(self) -> ModuleType:
        sys.modules.pop("evaluate", None)
        return importlib.import_module("evaluate")


@contextmanager
def code_eval_in_sandbox() -> Iterator[None]:
    """While this lasts, a task's module that is imported finds `CODE_EVAL` where it loads "code_eval"."""
    before = sys.modules.get("evaluate")
    sys.modules["evaluate"] = stand_in = _Evaluate("evaluate")
    CODE_EVAL.importing = True
    try:
        yield
    finally:
        CODE_EVAL.importing = False
        if before is not None:
            sys.modules["evaluate"] = before
        elif sys.modules.get("evaluate") is stand_in:
            del sys.modules["evaluate"]


def refuse_other_means(config: Mapping[str, Any]) -> None:
    """Raises UserError if a task that runs code does so by other means than `code_eval`, as it would on the host."""
    named = [config.get("process_results"), *(metric["metric"] for metric in config.get("metric_list") or ())]
    modules = [metric.__globals__.values() for metric in named if hasattr(metric, "__globals__")]
    if not modules or not all(any(value is CODE_EVAL for value in held) for held in modules):
        raise UserError(
            f"the lm-eval task {config.get('task')} runs generated code by means of its own, outside any sandbox: "
            "it is not run here"
        )


def grade_programs(answered: Sequence[Graded], grade: Callable[[Graded], Score]) -> Iterator[Score]:
    """`grade` of each, in order, as many at a time as there are processors.

    Where the sandbox could not run a program the sample is ungraded. A failing program's reason is the score's.
    """

    def one(graded: Graded) -> Score:
        asked = _Asked(graded[0].row)
        token = _ASKED.set(asked)
        try:
            score = grade(graded)
        except Ungraded as error:
            return Score(graded[0].id, None, str(error))
        finally:
            _ASKED.reset(token)
        return replace(score, why=asked.whys[0]) if asked.whys and score.value != 1 else score

    pool = ThreadPoolExecutor(os.cpu_count() or 1)
    try:
        yield from pool.map(one, answered)
    finally:
        pool.shutdown(cancel_futures=True)


def with_gold(benchmark: Benchmark, gold: Callable[[Row], str]) -> Benchmark:
    """The same benchmark with a right answer, made from the row, as each sample's reference (lm-eval's is the test)."""

    def load(protocol: EvalProtocol) -> Sequence[Sample]:
        return [replace(sample, reference=gold(sample.row)) for sample in benchmark.load(protocol)]

    return replace(benchmark, load=load)
