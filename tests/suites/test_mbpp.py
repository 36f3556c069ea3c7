"""MBPP and MBPP+: the canonical solutions pass, wrong ones do not."""

from __future__ import annotations

import ast
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from rlhf_bench.harness import sandbox
from rlhf_bench.harness.types import Completion, Sample, Score
from rlhf_bench.suites import benchmark, mbpp, protocol
from rlhf_bench.suites.data import rows
from rlhf_bench.suites.mbpp_plus import typed_input

NAMES = ["mbpp", "mbpp_plus"]
needs_sandbox = pytest.mark.skipif(not sandbox.level().safe, reason=f"no sandbox here: {sandbox.level().description}")


@pytest.fixture(autouse=True)
def _data(mirror: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RLHF_BENCH_DATA", str(mirror))


def grade(name: str, samples: Sequence[Sample], text: str | None = None) -> list[Score]:
    """The scores where every answer is `text`, or the canonical solution."""
    answered = [
        (sample, (Completion(sample.id, 0, sample.reference if text is None else text, "stop", 1),))
        for sample in samples
    ]
    return list(benchmark(name).grade(answered, None))


def wrong(scores: Sequence[Score]) -> list[tuple[str, str]]:
    return [(score.sample_id, score.why) for score in scores if score.value != 1.0]


def test_the_test_split_is_500_of_974_rows_in_order() -> None:
    samples = benchmark("mbpp").load(protocol("paper"))
    assert (len(rows("mbpp/test")), len(samples)) == (974, 500)
    assert [sample.row["task_id"] for sample in samples] == list(mbpp.TEST_IDS)


def test_the_three_examples_of_the_lm_eval_protocol_are_lm_evals_own() -> None:
    prompt = str(benchmark("mbpp").load(protocol("lm-eval"))[0].prompt)
    assert prompt.count("[BEGIN]") == prompt.count("[DONE]") + 1 == 4
    assert "heap_queue_largest" in prompt and "is_not_prime" in prompt


@needs_sandbox
@pytest.mark.parametrize("name", NAMES)
def test_canonical_solutions_pass(name: str) -> None:
    samples = benchmark(name).load(protocol("paper"))[5 :: 20 if name == "mbpp" else 27]
    assert wrong(grade(name, samples)) == []


@needs_sandbox
@pytest.mark.slow
def test_all_378_canonical_solutions_pass() -> None:
    scores = grade("mbpp_plus", benchmark("mbpp_plus").load(protocol("paper")))
    assert (len(scores), wrong(scores)) == (378, [])


@needs_sandbox
@pytest.mark.slow
def test_499_of_500_canonical_solutions_pass_and_one_lacks_the_setup_that_lm_eval_leaves_out() -> None:
    scores = grade("mbpp", benchmark("mbpp").load(protocol("paper")))
    assert (len(scores), wrong(scores)) == (500, [("mbpp/356", "NameError: name 'root' is not defined")])


@needs_sandbox
def test_a_test_of_the_answers_own_classes_runs() -> None:
    """Mbpp/367 asks about trees of the answer's own class, which lm-eval expects the answer to build."""
    [sample] = [one for one in benchmark("mbpp").load(protocol("paper")) if one.row["task_id"] == 367]
    trees = f"{sample.row['code']}\n{sample.row['test_setup_code']}"
    assert wrong(grade("mbpp", [sample], trees)) == []
    [score] = grade("mbpp", [sample], trees.replace("return True", "return False"))
    assert score == Score(sample.id, 0.0, "AssertionError")


@needs_sandbox
def test_an_answer_that_is_a_match_counts_as_found() -> None:
    """Mbpp/737's canonical solution gives a match object, which only has to be there or not."""
    [sample] = [one for one in benchmark("mbpp_plus").load(protocol("paper")) if one.row["task_id"] == 737]
    assert wrong(grade("mbpp_plus", [sample])) == []


@needs_sandbox
@pytest.mark.parametrize("name", NAMES)
def test_a_wrong_solution_fails(name: str) -> None:
    samples = benchmark(name).load(protocol("paper"))[::40]
    assert {score.value for score in grade(name, samples, "def unrelated(): return 1\n")} == {0.0}


def test_an_answer_after_its_code_is_cut_where_lm_eval_stops() -> None:
    [request] = benchmark("mbpp").load(protocol("paper"))[0].requests
    assert (request.sampling.stop, request.sampling.max_tokens) == (("[DONE]",), 256)


def test_inputs_have_the_types_that_mbpps_own_calls_write_out(lines: Callable[[str], list[dict[str, Any]]]) -> None:
    """The assertions of the tasks are Python and show what JSON cannot; EvalPlus itself keeps lists for these nine."""
    differs = {87, 98, 104, 124, 140, 145, 252, 301, 596}
    checked = 0
    for row in lines("mbpp/MbppPlus.jsonl.gz"):
        number = int(row["task_id"].removeprefix("Mbpp/"))
        typed = [repr(typed_input(number, given)) for given in row["base_input"]]
        for arguments in written_out(row["assertion"], row["entry_point"]):
            assert repr(arguments) in typed or number in differs, number
            checked += 1
    assert checked > 1100


def written_out(assertions: str, function: str) -> list[list[Any]]:
    """The arguments of each call of the function whose arguments are literals."""
    found = []
    for node in ast.walk(ast.parse(assertions)):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == function:
            try:
                found.append([ast.literal_eval(argument) for argument in node.args])
            except ValueError:
                continue
    return found
