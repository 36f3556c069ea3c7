"""Our contexts, requests and metrics against those of lm-eval's own evaluator on the same rows."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import datasets
import lm_eval
import pytest
from lm_eval.api.model import LM
from lm_eval.api.task import ConfigurableTask

from rlhf_bench.harness.errors import UnknownName, UserError
from rlhf_bench.harness.types import Completion, EvalProtocol, Message, Request, Sample, Sampling, Score
from rlhf_bench.suites import benchmark, lm_eval_tasks, protocol
from rlhf_bench.suites.arc_challenge import hub_row

MMLU = {f"mmlu_{subject}": subject for subject in ("anatomy", "high_school_us_history")}
CASES = [
    (name, given)
    for name in ("gsm8k", "arc_challenge", "truthfulqa_mc1", "truthfulqa_mc2", *MMLU)
    for given in ("paper", "lm-eval")
]
LIMIT = 5


@pytest.fixture(autouse=True)
def _data(mirror: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RLHF_BENCH_DATA", str(mirror))


@cache
def load(name: str, given: str) -> Sequence[Sample]:
    """The samples of a benchmark, or of one subject of MMLU."""
    samples = benchmark("mmlu" if name in MMLU else name).load(protocol(given))
    return [sample for sample in samples if name not in MMLU or sample.tags["stratum"] == MMLU[name]]


def asked(sample: Sample) -> list[tuple[Any, ...]]:
    return [(request.prompt, request.continuation, request.index) for request in sample.requests]


def canned(text: str, number: int) -> float:
    """A number in [0, 1) that depends on both."""
    return int(hashlib.sha256(f"{text}|{number}".encode()).hexdigest()[:8], 16) / 2**32


def canned_text(prompt: str, row: Mapping[str, Any]) -> str:
    """An answer with the right number or another, in one of the forms that the filters know or do not."""
    number = row["answer"].split("####")[1].strip() if canned(prompt, 0) < 0.5 else str(int(canned(prompt, 1) * 99))
    forms = ["So there are 12 - 2. The answer is {}.", "#### {}", "It costs ${},000.", "none", "", "{}.00 dollars"]
    return forms[int(canned(prompt, 2) * len(forms))].format(number)


class CannedLM(LM):  # type: ignore[misc]
    """lm-eval's side of the same canned answers."""

    def loglikelihood(self, requests: Sequence[Any]) -> list[tuple[float, bool]]:
        return [
            (-99 * canned("".join(request.args), 0), canned("".join(request.args), 1) > 0.5) for request in requests
        ]

    def generate_until(self, requests: Sequence[Any]) -> list[str]:
        return [canned_text(request.args[0], request.doc) for request in requests]

    def loglikelihood_rolling(self, requests: Sequence[Any]) -> list[float]:
        raise NotImplementedError


def canned_answers(sample: Sample) -> tuple[Completion, ...]:
    return tuple(canned_completion(request, sample.row) for request in sample.requests)


def canned_completion(request: Request, row: Mapping[str, Any]) -> Completion:
    assert isinstance(request.prompt, str)
    if request.continuation is None:
        return Completion(request.sample_id, request.index, canned_text(request.prompt, row), "stop", 9)
    text = request.prompt + request.continuation
    logprob, greedy = -99 * canned(text, 0), canned(text, 1) > 0.5
    return Completion(request.sample_id, request.index, "", "stop", 9, logprob, greedy)


@pytest.mark.parametrize(("name", "given"), CASES)
def test_contexts_and_requests_are_those_of_lm_evals_evaluator(
    name: str, given: str, official: Callable[..., Any]
) -> None:
    task = official(name, protocol(given))
    task.build_all_requests(limit=LIMIT)
    theirs = [(one.args[0], one.args[1] if name != "gsm8k" else None, one.idx) for one in task.instances]
    samples = load(name, given)[:LIMIT]
    assert [request for sample in samples for request in asked(sample)] == theirs


@pytest.mark.parametrize(("name", "given"), [case for case in CASES if case[0] not in MMLU])
def test_loading_twice_gives_the_same_samples(name: str, given: str) -> None:
    load = benchmark(name).load
    assert load(protocol(given))[:40] == load(protocol(given))[:40]


def test_an_answer_is_asked_for_with_the_tasks_own_settings(official: Callable[..., Any]) -> None:
    task = official("gsm8k", protocol("lm-eval"))
    task.build_all_requests(limit=1)
    settings = task.instances[0].args[1]
    [request] = benchmark("gsm8k").load(protocol("lm-eval"))[0].requests
    assert request.sampling == Sampling(max_tokens=256, temperature=0.0, stop=tuple(settings["until"]))
    assert (settings["do_sample"], settings.get("max_gen_toks")) == (False, None)


@pytest.mark.parametrize("multiturn", [True, False])
@pytest.mark.parametrize(("name", "given"), [case for case in CASES if case[0] not in MMLU])
def test_with_a_chat_template_the_conversation_is_the_one_that_lm_eval_renders(
    name: str, given: str, multiturn: bool, official: Callable[..., Any]
) -> None:
    def render(turns: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        return "".join(f"<{turn['role']}>{turn['content']}" for turn in turns) + "<assistant>" * add_generation_prompt

    chat = EvalProtocol(
        "chat",
        shots=protocol(given).shots,
        chat_template=True,
        fewshot_as_multiturn=multiturn,
        system_prompt="Think.",
        fixed_shots=protocol(given).fixed_shots,
        variants=protocol(given).variants,
    )
    task = official(name, chat)
    task.build_all_requests(
        limit=LIMIT,
        system_instruction="Think.",
        apply_chat_template=True,
        fewshot_as_multiturn=multiturn,
        chat_template=render,
    )
    theirs = [(one.args[0], one.args[1] if name != "gsm8k" else None) for one in task.instances]
    ours = []
    for sample in benchmark(name).load(chat)[:LIMIT]:
        for request in sample.requests:
            turns = [
                {"role": turn.role, "content": turn.content} for turn in request.prompt if isinstance(turn, Message)
            ]
            ours.append((render(turns), request.continuation))
    assert ours == theirs


@pytest.mark.parametrize(("name", "given"), CASES)
def test_per_document_metrics_are_those_of_lm_evals_evaluator(
    name: str, given: str, official: Callable[..., Any]
) -> None:
    from lm_eval.evaluator import evaluate

    limit = 60
    ours = benchmark("mmlu" if name in MMLU else name)
    found = evaluate(CannedLM(), {name: official(name, protocol(given))}, limit=limit, bootstrap_iters=0)
    theirs: dict[str, dict[str, float]] = {}
    for one in found["samples"][name]:
        suffix = "" if one["filter"] == "none" else f",{one['filter']}"
        metrics = {f"{metric}{suffix}": one[metric] for metric in one["metrics"]}
        theirs.setdefault(f"{name.replace('_', '/', 1) if name in MMLU else name}/{one['doc_id']}", {}).update(metrics)
    answered = [(sample, canned_answers(sample)) for sample in load(name, given)[:limit]]
    scores = list(ours.grade(answered, None))
    assert {score.sample_id: {ours.metric: score.value, **score.also} for score in scores} == theirs
    assert 0 < sum(score.value or 0 for score in scores) < limit


def test_grading_agrees_with_the_flags_that_openai_published_with_5276_solutions(lines: Callable[[str], Any]) -> None:
    samples = benchmark("gsm8k").load(protocol("lm-eval"))
    published = lines("gsm8k/example_model_solutions.jsonl.gz")
    graders = [key for key, value in published[0].items() if isinstance(value, dict)]
    answered, flags = [], []
    for grader in graders:
        for sample, row in zip(samples, published, strict=True):
            answered.append((sample, (Completion(sample.id, 0, row[grader]["solution"], "stop", 1),)))
            flags.append(float(row[grader]["is_correct"]))
    assert [score.value for score in benchmark("gsm8k").grade(answered, None)] == flags
    assert len(flags) == 5276


def test_the_papers_questions_share_one_prefix() -> None:
    prompts = [str(sample.prompt) for sample in benchmark("arc_challenge").load(protocol("paper"))]
    shared = prompts[0][: prompts[0].rindex("Question:")]
    assert shared.count("Question:") == 25
    assert all(prompt.startswith(shared) for prompt in prompts)


@pytest.mark.parametrize("split", ["test", "train"])
def test_arc_rows_are_those_of_the_mirrors_normalised_copy(split: str, lines: Callable[[str], Any]) -> None:
    from rlhf_bench.suites.data import rows

    def core(row: dict[str, Any]) -> dict[str, Any]:
        return {key: row[key] for key in ("question", "choices", "answerKey")}

    normalised = lines(f"arc/ARC-Challenge.{split}.normalised.jsonl.gz")
    assert [hub_row(row) for row in rows(f"arc_challenge/{split}")] == [core(row) for row in normalised]


def test_a_row_of_another_form_is_refused() -> None:
    with pytest.raises(ValueError, match="not a question with numbered answers"):
        hub_row({"instruction": "What is 1 + 1?", "answer": "answer1"})


@pytest.fixture
def arc() -> Sample:
    return benchmark("arc_challenge").load(protocol("lm-eval"))[0]


def test_the_order_in_which_answers_arrive_does_not_matter(arc: Sample) -> None:
    answers = canned_answers(arc)
    grade = benchmark("arc_challenge").grade
    assert list(grade([(arc, answers[::-1])], None)) == list(grade([(arc, answers)], None))


def test_a_failed_or_missing_choice_leaves_a_sample_ungraded_with_the_reason(arc: Sample) -> None:
    answers = canned_answers(arc)
    failed = Completion(arc.id, 3, "", "error", 0, why="out of memory")
    [score] = benchmark("arc_challenge").grade([(arc, (*answers[:3], failed))], None)
    assert score == Score(arc.id, None, "out of memory")
    [score] = benchmark("arc_challenge").grade([(arc, answers[:3])], None)
    assert score == Score(arc.id, None, "3 of 4 answers")


@pytest.mark.parametrize("logprob", [None, float("nan")])
def test_a_choice_without_a_log_likelihood_is_never_taken_for_the_likeliest(arc: Sample, logprob: float | None) -> None:
    first = Completion(arc.id, 0, "", "stop", 9, logprob)
    [score] = benchmark("arc_challenge").grade([(arc, (first, *canned_answers(arc)[1:]))], None)
    assert score == Score(arc.id, None, "a choice has no log-likelihood")


def test_an_answer_cut_at_its_limit_is_graded_as_it_is() -> None:
    sample = benchmark("gsm8k").load(protocol("paper"))[0]
    [score] = benchmark("gsm8k").grade(
        [(sample, (Completion(sample.id, 0, "16 - 3 = 13, and 1", "length", 256),))], None
    )
    assert score.value == 0.0
    [score] = benchmark("gsm8k").grade([(sample, (Completion(sample.id, 0, "She makes $18", "length", 256),))], None)
    assert score == Score(sample.id, 1.0, also={"exact_match,strict-match": 0.0})


def test_an_unknown_variant_is_refused_with_the_nearest_name() -> None:
    with pytest.raises(UnknownName, match=r"no variant of gsm8k named 'gsm8k_cott'. Did you mean 'gsm8k_cot'\?"):
        benchmark("gsm8k").load(EvalProtocol("mine", variants={"gsm8k": "gsm8k_cott"}))


def test_without_a_word_in_the_protocol_a_task_has_its_own_number_of_shots() -> None:
    ours = benchmark("gsm8k").load(EvalProtocol("mine"))[:LIMIT]
    assert ours == benchmark("gsm8k").load(protocol("lm-eval"))[:LIMIT]


def test_another_version_of_lm_eval_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lm_eval, "__version__", "0.5.0")
    lm_eval_tasks.require_lm_eval.cache_clear()
    with pytest.raises(UserError, match=r"lm-eval 0\.4\.13, and 0\.5\.0 is installed"):
        lm_eval_tasks.require_lm_eval()


def test_building_a_task_says_nothing_and_leaves_the_log_levels_alone(caplog: pytest.LogCaptureFixture) -> None:
    logger = logging.getLogger("lm_eval.api.task")
    before = logger.level
    lm_eval_tasks.task_of("arc/arc_challenge.yaml", True, {"test": lambda: [ROW], "train": lambda: [ROW]})
    assert caplog.records == []
    assert logger.level == before


ROW: dict[str, Any] = {
    "question": "Which is a gas?",
    "choices": {"text": ["stone", "air"], "label": ["A", "B"]},
    "answerKey": "B",
}


@pytest.fixture
def task_of() -> Callable[..., Any]:
    """A task of lm-eval's with these settings over one row."""

    def build(**config: Any) -> Any:
        dataset = datasets.DatasetDict(test=datasets.Dataset.from_list([ROW]))
        with lm_eval_tasks._quiet("lm_eval.api.task", "lm_eval.config.task"):
            return ConfigurableTask(
                config={
                    "task": "gas",
                    "test_split": "test",
                    "doc_to_text": "{{question}}",
                    "doc_to_target": "{{choices.text[1]}}",
                    "custom_dataset": lambda **_: dataset,
                    "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
                    **config,
                }
            )

    return build


def test_a_repeated_answer_is_asked_for_with_a_seed_for_each_repeat(task_of: Callable[..., Any]) -> None:
    settings = {"do_sample": True, "temperature": 0.5, "until": "\n", "max_gen_toks": 7}
    task = task_of(generation_kwargs=settings, repeats=3)
    [sample] = lm_eval_tasks.load_samples(task, "gas", EvalProtocol("mine", seed=10))
    expected = [Sampling(max_tokens=7, temperature=0.5, stop=("\n",), seed=seed) for seed in (10, 11, 12)]
    assert [request.sampling for request in sample.requests] == expected
    assert [request.index for request in sample.requests] == [0, 1, 2]
    answers = [Completion(sample.id, index, text, "stop", 1) for index, text in enumerate(["air", "stone", "stone"])]
    assert lm_eval_tasks.grade_sample(task, "exact_match", sample, answers).value == 1.0


def test_a_metric_that_the_task_does_not_have_is_named_beside_those_it_has(task_of: Callable[..., Any]) -> None:
    task = task_of()
    [sample] = lm_eval_tasks.load_samples(task, "gas", EvalProtocol("mine"))
    with pytest.raises(UserError, match="task gas gives no metric 'acc': exact_match"):
        lm_eval_tasks.grade_sample(task, "acc", sample, [Completion(sample.id, 0, "air", "stop", 1)])


def test_a_task_that_begins_the_answer_does_so_in_the_assistants_turn(task_of: Callable[..., Any]) -> None:
    task = task_of(gen_prefix="It is")
    [sample] = lm_eval_tasks.load_samples(task, "gas", EvalProtocol("mine"))
    assert sample.prompt == "Which is a gas? It is"
    [chat] = lm_eval_tasks.load_samples(task, "gas", EvalProtocol("mine", chat_template=True))
    assert chat.prompt == (Message("user", "Which is a gas?"), Message("assistant", "It is"))


def test_a_kind_of_request_that_no_engine_answers_is_refused(task_of: Callable[..., Any]) -> None:
    metric = {"metric": "word_perplexity", "aggregation": "weighted_perplexity", "higher_is_better": False}
    task = task_of(output_type="loglikelihood_rolling", metric_list=[metric])
    with pytest.raises(UserError, match="asks for loglikelihood_rolling"):
        list(lm_eval_tasks.load_samples(task, "gas", EvalProtocol("mine")))
