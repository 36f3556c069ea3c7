"""Demo code: 20 small Python functions, completed from their docstrings and run against tests.

Paper: none; the form is that of HumanEval (arXiv 2107.03374).
Data: data/code.jsonl, written by this project; Apache-2.0.
Metric: pass@1, whether the one greedy completion passes all tests, in a sandbox (harness/sandbox) or not at all.
Differs: from HumanEval in its problems, in prompts without a line break at the end, in one more stop string and in
completions of at most 128 tokens; plain text and no examples under every protocol; 5 s of CPU time where HumanEval
takes 3 s of wall-clock time.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from rlhf_bench.harness import sandbox
from rlhf_bench.harness.types import Benchmark, EvalProtocol, Graded, Request, Sample, Sampling, Score
from rlhf_bench.suites.demo import rows, ungraded
from rlhf_bench.suites.lm_eval_code import grade_programs

STOP = ("\nclass", "\ndef", "\n#", "\nif", "\nprint", "\n```")
"""HumanEval's, and the end of a code block, after which chat models go on in prose."""
SAMPLING = Sampling(max_tokens=128, stop=STOP)
CPU_S = 5.0


def load(protocol: EvalProtocol) -> Sequence[Sample]:
    """The problems in order, from trivial to modest."""
    return [
        Sample(
            id=f"demo-code/{number}",
            requests=(Request(f"demo-code/{number}", row["prompt"], SAMPLING),),
            reference=row["canonical_solution"],
            tags={"runs": "code"},
            row=row,
        )
        for number, row in enumerate(rows("code"))
    ]


def grade(answered: Sequence[Graded], judge: Any) -> Iterator[Score]:
    """1 where the tests pass, else 0 and why; ungraded where no sandbox would run them."""
    yield from grade_programs(answered, _score)


def _score(graded: Graded) -> Score:
    sample, completions = graded
    if missing := ungraded(sample, completions):
        return missing
    row = sample.row
    program = sandbox.Program(
        source=row["prompt"] + completions[0].text,
        test=f"{row['test']}\ncheck({row['entry_point']})\n",
        entry_point=row["entry_point"],
    )
    outcome = sandbox.run_tests(program, cpu_s=CPU_S)
    return Score(sample.id, None if outcome.passed is None else float(outcome.passed), outcome.why)


BENCHMARK = Benchmark(
    name="demo-code",
    version="1",
    metric="pass@1",
    kind="binary",
    size=20,
    summary="packaged Python functions, completed and run against tests in a sandbox",
    load=load,
    grade=grade,
)
