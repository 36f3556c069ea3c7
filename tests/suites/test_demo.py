"""The packaged suite: its data are what they claim to be, and its benchmarks grade as they say."""

from __future__ import annotations

import ast
import importlib
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlhf_bench.harness import sandbox
from rlhf_bench.harness.errors import UserError
from rlhf_bench.harness.types import Battle, Benchmark, Completion, EvalProtocol, Message, Sample, Score
from rlhf_bench.suites.demo import BRIEF, rows, training_prompts
from rlhf_bench.suites.demo.arithmetic import last_number

PROTOCOL = EvalProtocol("any")
CATEGORIES = {"explain", "how_to", "writing", "planning", "compare"}
MODULES = {"demo-chat": "chat", "demo-arithmetic": "arithmetic", "demo-four-way": "four_way", "demo-code": "code"}
GRADED = [name for name in MODULES if name != "demo-chat"]

needs_sandbox = pytest.mark.skipif(not sandbox.level().safe, reason=f"no sandbox here: {sandbox.level().description}")


def benchmark(name: str) -> Benchmark:
    found: Benchmark = importlib.import_module(f"rlhf_bench.suites.demo.{MODULES[name]}").BENCHMARK
    return found


def answer(sample: Sample, text: str) -> tuple[Completion, ...]:
    return (Completion(sample.id, 0, text, "stop", 1),)


def choices(sample: Sample, logprobs: Sequence[float]) -> tuple[Completion, ...]:
    return tuple(Completion(sample.id, index, "", "stop", 1, value, False) for index, value in enumerate(logprobs))


def answered(sample: Sample, gold: bool) -> tuple[Completion, ...]:
    if sample.requests[0].continuation is None:
        return answer(sample, sample.reference if gold else "")
    right = [request.continuation == f" {sample.reference}" for request in sample.requests]
    return choices(sample, [-1.0 if one is gold else -1000.0 for one in right])


@pytest.mark.parametrize("name", MODULES)
def test_a_benchmark_is_what_it_says_of_itself(name: str) -> None:
    one = benchmark(name)
    samples = one.load(PROTOCOL)
    assert (one.name, one.size, one.needs) == (name, len(samples), ())
    assert len({sample.id for sample in samples}) == len({str(sample.prompt) for sample in samples}) == one.size
    assert all(request.sample_id == sample.id for sample in samples for request in sample.requests)


@pytest.mark.parametrize("name", MODULES)
def test_a_module_says_paper_data_metric_and_difference(name: str) -> None:
    said = importlib.import_module(f"rlhf_bench.suites.demo.{MODULES[name]}").__doc__ or ""
    assert re.findall(r"^(Paper|Data|Metric|Differs): ", said, re.MULTILINE) == ["Paper", "Data", "Metric", "Differs"]


@needs_sandbox
@pytest.mark.parametrize("name", GRADED)
def test_the_gold_answer_scores_1_and_an_empty_one_0(name: str) -> None:
    samples = benchmark(name).load(PROTOCOL)
    for gold in (True, False):
        scores = list(benchmark(name).grade([(sample, answered(sample, gold)) for sample in samples], None))
        assert {score.sample_id: score.value for score in scores} == {sample.id: float(gold) for sample in samples}


@pytest.mark.parametrize("name", GRADED)
def test_what_an_engine_could_not_answer_is_ungraded(name: str) -> None:
    sample = benchmark(name).load(PROTOCOL)[0]
    failed = [Completion(sample.id, request.index, "", "error", 0, why="out of memory") for request in sample.requests]
    scores = list(benchmark(name).grade([(sample, tuple(failed)), (sample, ())], None))
    assert [score.value for score in scores] == [None, None]
    assert scores[0].why == "out of memory"
    assert scores[1].why.startswith("0 of ")


def test_the_system_prompt_of_a_protocol_comes_first_in_conversations() -> None:
    protocol = EvalProtocol("polite", system_prompt="Be brief.")
    for name in ("demo-chat", "demo-arithmetic"):
        for with_it, without in zip(benchmark(name).load(protocol), benchmark(name).load(PROTOCOL), strict=True):
            assert with_it.prompt == (Message("system", "Be brief."), *without.prompt)


def test_listing_the_suite_imports_nothing_heavy() -> None:
    code = "import sys, rlhf_bench.suites.demo as demo; demo.training_prompts()\n" + "".join(
        f"import rlhf_bench.suites.demo.{module}\n" for module in MODULES.values()
    )
    code += "print([name for name in ('torch', 'transformers', 'numpy', 'datasets', 'lm_eval') if name in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def words(text: str) -> list[str]:
    return re.findall(r"[a-z0-9]+", text.lower())


def eight_grams(row: Mapping[str, Any]) -> set[tuple[str, ...]]:
    found: set[tuple[str, ...]] = set()
    for text in (row["instruction"], row["output"]):
        said = words(text)
        found |= {tuple(said[start : start + 8]) for start in range(len(said) - 7)}
    return found


@pytest.mark.parametrize(("name", "count", "shortest", "longest"), [("chat", 40, 40, 90), ("prompts", 64, 30, 80)])
def test_instructions_have_references_of_the_stated_length_in_five_categories(
    name: str, count: int, shortest: int, longest: int
) -> None:
    assert len(rows(name)) == count
    assert all(set(row) == {"instruction", "output", "dataset"} for row in rows(name))
    assert [row for row in rows(name) if not shortest <= len(row["output"].split()) <= longest] == []
    by_category = Counter(row["dataset"] for row in rows(name))
    assert set(by_category) == CATEGORIES
    assert max(by_category.values()) - min(by_category.values()) <= 1


def test_training_prompts_share_no_prompt_and_no_eight_words_in_a_row_with_the_evaluation() -> None:
    evaluation, training = rows("chat"), rows("prompts")
    assert not set.union(*map(eight_grams, evaluation)) & set.union(*map(eight_grams, training))
    prompts = [
        (set(words(one["instruction"])), set(words(other["instruction"]))) for one in evaluation for other in training
    ]
    assert max(len(one & other) / len(one | other) for one, other in prompts) < 0.6


def test_training_prompts_carry_their_reference_and_end_in_a_user_turn() -> None:
    samples = training_prompts()
    assert [sample.reference for sample in samples] == [row["output"] for row in rows("prompts")]
    assert all(sample.prompt[-1] == Message("user", f"{sample.row['instruction']} {BRIEF}") for sample in samples)
    assert len({sample.id for sample in samples}) == 64


def test_every_arithmetic_answer_follows_from_its_annotations() -> None:
    for row in rows("arithmetic"):
        solution, final = row["answer"].split("\n#### ")
        value = None
        for expression, result, shown in re.findall(r"<<([^=]+)=(\d+)>>(\d+)", solution):
            assert re.fullmatch(r"\d+([-+*/]\d+)+", expression)
            value = eval(re.sub(r"\d+", lambda number: f"Fraction({number[0]})", expression), {"Fraction": Fraction})
            assert value == Fraction(result) == Fraction(shown), row
            spaced = re.sub(r"([-+*/])", r" \1 ", expression)
            assert f"{spaced} = <<{expression}=" in solution
        assert value == Fraction(final), row


def test_every_number_in_a_solution_is_given_or_computed_before() -> None:
    known_words = {
        "two": 2,
        "twice": 2,
        "half": 2,
        "three": 3,
        "third": 3,
        "four": 4,
        "quarter": 4,
        "fifth": 5,
        "six": 6,
    }
    common = {"cows": 4, "hens": 2, "dozen": 12, "ten": 10, "day": 7, "week": 1, "three together": 3}
    for row in rows("arithmetic"):
        text = row["question"].lower()
        known = {int(number) for number in re.findall(r"\d+", text)}
        known |= {value for word, value in (known_words | common).items() if word in text}
        for expression, result in re.findall(r"<<([^=]+)=(\d+)>>", row["answer"]):
            assert {int(number) for number in re.findall(r"\d+", expression)} <= known, (row["question"], expression)
            known.add(int(result))


def test_arithmetic_goes_from_one_step_to_three() -> None:
    steps = Counter(sample.tags["stratum"] for sample in benchmark("demo-arithmetic").load(PROTOCOL))
    assert steps == {"1-step": 36, "2-step": 14, "3-step": 10}


def test_right_choices_are_spread_evenly_over_the_four_places() -> None:
    questions = rows("four_way")
    assert Counter(row["answerKey"] for row in questions) == {"A": 10, "B": 10, "C": 10, "D": 10}
    assert len({row["id"] for row in questions}) == len({row["question"] for row in questions}) == 40
    for row in questions:
        assert row["choices"]["label"] == ["A", "B", "C", "D"]
        assert len(set(row["choices"]["text"])) == 4


def test_the_right_choice_is_not_given_away_by_its_length() -> None:
    longest = [max(row["choices"]["text"], key=len) for row in rows("four_way")]
    gold = [sample.reference for sample in benchmark("demo-four-way").load(PROTOCOL)]
    assert sum(one == right for one, right in zip(longest, gold, strict=True)) <= 20


def test_acc_norm_divides_by_characters_and_acc_does_not() -> None:
    sample = next(one for one in benchmark("demo-four-way").load(PROTOCOL) if one.reference == "carbon dioxide")
    texts = sample.row["choices"]["text"]
    logprobs = [-14.0 if text == sample.reference else -12.0 for text in texts]
    (score,) = benchmark("demo-four-way").grade([(sample, choices(sample, logprobs))], None)
    assert (score.value, score.also) == (1.0, {"acc": 0.0})


@given(
    st.integers(-(10**9), 10**9), st.sampled_from(["{}", "{:,}", "So it is {}.", "It costs ${:,}.", "12 * 2 = {}.00"])
)
def test_the_last_number_is_found_with_separators_currency_and_full_stop(number: int, shape: str) -> None:
    assert last_number(shape.format(number).replace("$-", "-$")) == number


@pytest.mark.parametrize("text", ["", "no idea", "...", "$", "1.2.3"])
def test_what_is_no_number_is_none_and_wrong(text: str) -> None:
    sample = benchmark("demo-arithmetic").load(PROTOCOL)[0]
    assert last_number(text) is None
    (score,) = benchmark("demo-arithmetic").grade([(sample, answer(sample, text))], None)
    assert (score.value, score.why) == (0.0, "no number in the answer")


def test_numbers_are_compared_by_value() -> None:
    sample = benchmark("demo-arithmetic").load(PROTOCOL)[0]
    (score,) = benchmark("demo-arithmetic").grade([(sample, answer(sample, f"${Decimal(sample.reference)}.00."))], None)
    assert score.value == 1.0


@needs_sandbox
def test_the_examples_in_every_docstring_are_what_the_canonical_solution_gives() -> None:
    checked = 0
    for row in rows("code"):
        (function,) = ast.parse(row["prompt"]).body
        assert isinstance(function, ast.FunctionDef)
        docstring = ast.get_docstring(function) or ""
        examples = re.findall(r">>> (.+)\n(.+)", docstring)
        test = "".join(f"assert repr({call}) == {expected!r}, {call!r}\n" for call, expected in examples)
        source = row["prompt"] + row["canonical_solution"]
        assert sandbox.run_tests(sandbox.Program(source, test, row["entry_point"])) == sandbox.Outcome(True)
        checked += len(examples)
    assert checked >= 20


@needs_sandbox
def test_a_body_that_belongs_to_another_problem_fails_the_tests() -> None:
    samples = benchmark("demo-code").load(PROTOCOL)
    wrong = [(sample, answer(sample, "\n    return 42\n")) for sample in samples]
    assert {score.value for score in benchmark("demo-code").grade(wrong, None)} == {0.0}


def test_without_a_sandbox_code_is_ungraded_and_says_where_to_look(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandbox, "level", lambda: sandbox.NONE)
    sample = benchmark("demo-code").load(PROTOCOL)[0]
    (score,) = benchmark("demo-code").grade([(sample, answer(sample, sample.reference))], None)
    assert score.value is None
    assert score.why.startswith("no sandbox: ")
    assert score.why.endswith("see rlhf-bench doctor")


@dataclass(frozen=True)
class PrefersLonger:
    name: str = "longer"
    identity: str = "longer"

    def prefer(self, battles: Sequence[Battle]) -> Iterator[Score]:
        for battle in battles:
            yield Score(battle.sample_id, float(len(battle.answer) > len(battle.baseline)))


def test_chat_answers_are_judged_against_the_reference() -> None:
    samples = benchmark("demo-chat").load(PROTOCOL)
    longer = [(sample, answer(sample, sample.reference + "!")) for sample in samples[:3]]
    shorter = [(sample, answer(sample, "")) for sample in samples[3:6]]
    scores = {score.sample_id: score.value for score in benchmark("demo-chat").grade(longer + shorter, PrefersLonger())}
    assert scores == {sample.id: float(index < 3) for index, sample in enumerate(samples[:6])}


def test_chat_without_a_judge_says_how_to_name_one() -> None:
    with pytest.raises(UserError, match="--judge"):
        list(benchmark("demo-chat").grade([], None))
