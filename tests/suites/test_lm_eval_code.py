"""lm-eval's code tasks: asked as lm-eval asks them, and run in the sandbox only."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import lm_eval.tasks
import pytest
from datasets import Dataset, DatasetDict
from hypothesis import given
from hypothesis import strategies as st
from lm_eval.api.model import LM
from lm_eval.api.task import ConfigurableTask
from lm_eval.tasks._yaml_loader import load_yaml

from rlhf_bench.harness import sandbox
from rlhf_bench.harness.errors import UserError
from rlhf_bench.harness.types import Completion, EvalProtocol, Sample, Sampling, Score
from rlhf_bench.suites import benchmark, humaneval_plus, lm_eval_code, lm_eval_tasks, mbpp_plus, protocol
from rlhf_bench.suites.data import rows

TASKS = Path(lm_eval.tasks.__file__).parent
YAML = {
    "humaneval": "humaneval/humaneval.yaml",
    "humaneval_plus": "humaneval/humaneval_plus.yaml",
    "mbpp": "mbpp/mbpp.yaml",
    "mbpp_plus": "mbpp/mbpp_plus.yaml",
}
CASES = [(name, given) for name in YAML for given in ("paper", "lm-eval")]
LIMIT = 6
needs_sandbox = pytest.mark.skipif(not sandbox.level().safe, reason=f"no sandbox here: {sandbox.level().description}")


@pytest.fixture(autouse=True)
def _data(mirror: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RLHF_BENCH_DATA", str(mirror))


@pytest.fixture
def official(lines: Callable[[str], list[dict[str, Any]]]) -> Callable[..., Any]:
    """lm-eval's code task, from its own YAML file over the mirror's own rows; what it runs, it runs in the sandbox."""
    files: Mapping[str, Callable[[], list[dict[str, Any]]]] = {
        "humaneval": lambda: lines("humaneval/HumanEval.jsonl.gz"),
        "humaneval_plus": lambda: [dict(humaneval_plus.hub_row(row)) for row in rows("humaneval_plus/test")],
        "mbpp": lambda: [row for row in lines("mbpp/mbpp.jsonl") if 11 <= row["task_id"] <= 510],
        "mbpp_plus": lambda: [dict(mbpp_plus.hub_row(row)) for row in rows("mbpp_plus/test")],
    }

    def build(name: str, shots: int) -> Any:
        with lm_eval_code.code_eval_in_sandbox():
            config = load_yaml(TASKS / YAML[name])
        config["custom_dataset"] = lambda **_: DatasetDict(test=Dataset.from_list(files[name]()))
        task = ConfigurableTask(config=config)
        task.set_config(key="num_fewshot", value=shots)
        task.set_fewshot_seed(seed=1234)
        return task

    return build


def answered(sample: Sample, *texts: str) -> tuple[Sample, tuple[Completion, ...]]:
    return sample, tuple(Completion(sample.id, index, text, "stop", 1) for index, text in enumerate(texts))


@pytest.mark.parametrize(("name", "how"), CASES)
def test_requests_are_those_of_lm_evals_own_task(name: str, how: str, official: Callable[..., Any]) -> None:
    task = official(name, protocol(how).shots[name])
    task.build_all_requests(limit=LIMIT)
    samples = benchmark(name).load(protocol(how))[:LIMIT]
    assert [sample.prompt for sample in samples] == [one.args[0] for one in task.instances]
    settings = task.instances[0].args[1]
    limit = {"humaneval": 1024, "humaneval_plus": 1024}.get(name, lm_eval_tasks.MAX_TOKENS)
    assert settings.get("max_gen_toks", lm_eval_tasks.MAX_TOKENS) == limit
    expected = Sampling(max_tokens=limit, temperature=0.0, stop=tuple(settings["until"]))
    assert {request.sampling for sample in samples for request in sample.requests} == {expected}


def test_the_lm_eval_protocol_has_the_shots_of_its_yaml_files() -> None:
    shots = {name: load_yaml(TASKS / file, resolve_func=False)["num_fewshot"] for name, file in YAML.items()}
    assert {name: protocol("lm-eval").shots[name] for name in YAML} == shots


class Canned(LM):  # type: ignore[misc]
    """lm-eval's side of the same answers."""

    def __init__(self, answers: Mapping[str, str]) -> None:
        super().__init__()
        self.answers = answers

    def generate_until(self, requests: Sequence[Any]) -> list[str]:
        return [self.answers[request.args[0]] for request in requests]

    def loglikelihood(self, requests: Sequence[Any]) -> list[tuple[float, bool]]:
        raise NotImplementedError

    def loglikelihood_rolling(self, requests: Sequence[Any]) -> list[float]:
        raise NotImplementedError


@needs_sandbox
@pytest.mark.parametrize("name", ["humaneval", "mbpp"])
def test_metrics_of_canned_answers_are_those_of_lm_evals_evaluator(name: str, official: Callable[..., Any]) -> None:
    from lm_eval.evaluator import evaluate

    samples = benchmark(name).load(protocol("paper"))[:LIMIT]
    texts = [sample.reference if index % 2 else "    return 1\n" for index, sample in enumerate(samples)]
    model = Canned({str(sample.prompt): text for sample, text in zip(samples, texts, strict=True)})
    task = official(name, 0)
    found = evaluate(model, {name: task}, limit=LIMIT, bootstrap_iters=0, confirm_run_unsafe_code=True)
    theirs = [found["samples"][name][number] for number in range(LIMIT)]
    ours = benchmark(name).grade([answered(*one) for one in zip(samples, texts, strict=True)], None)
    metric = benchmark(name).metric.split(",")[0]
    assert {f"{name}/{one['doc_id']}": one[metric] for one in theirs} == {one.sample_id: one.value for one in ours}
    assert found["results"][name][f"{metric},{theirs[0]['filter']}"] == 0.5


@given(st.lists(st.booleans(), min_size=1, max_size=12), st.integers(1, 12))
def test_pass_at_k_is_the_share_of_k_subsets_with_a_passing_program(passed: list[bool], k: int) -> None:
    from itertools import combinations

    k = min(k, len(passed))
    subsets = list(combinations(passed, k))
    assert lm_eval_code.pass_at_k(passed, k) == pytest.approx(sum(map(any, subsets)) / len(subsets))


@needs_sandbox
def test_compute_answers_in_the_form_of_the_hubs_metric() -> None:
    right, wrong = "def add(a, b): return a + b", "def add(a, b): return a * b"
    found, details = lm_eval_code.CODE_EVAL.compute(
        references=["assert add(2, 3) == 5"], predictions=[[right, wrong, right, wrong]], k=[1, 2, 8]
    )
    assert found == {"pass@1": pytest.approx(1 / 2), "pass@2": pytest.approx(5 / 6)}
    assert [result["passed"] for _, result in details[0]] == [True, False, True, False]
    assert details[0][1] == (1, {"task_id": 0, "passed": False, "result": "AssertionError"})


@needs_sandbox
def test_a_task_that_repeats_gives_pass_at_k_of_its_answers() -> None:
    read = {"test": lambda: list(rows("humaneval/test"))[:1]}
    task = lm_eval_tasks.task_of("humaneval/humaneval_64.yaml", False, read)
    task.set_config("repeats", 4)
    task._metric_fn_kwargs["pass_at_k"]["k"] = [1, 2]
    [sample] = lm_eval_tasks.load_samples(task, "humaneval_64", EvalProtocol("mine"))
    right, wrong = sample.row["canonical_solution"], "    return None\n"
    grade = lm_eval_tasks.grade_sample
    [score] = lm_eval_code.grade_programs(
        [answered(sample, right, wrong, wrong, wrong)], lambda one: grade(task, "pass@2,create_test", *one)
    )
    assert (score.value, score.also) == (pytest.approx(1 / 2), {"pass@1,create_test": pytest.approx(1 / 4)})
    assert {request.sampling.seed for request in sample.requests} == {1234, 1235, 1236, 1237}


def test_importing_a_task_runs_no_program_and_no_real_evaluate() -> None:
    code = (
        "import sys; from rlhf_bench.suites import benchmark, protocol\n"
        "from rlhf_bench.harness import sandbox\n"
        "def refuse(*_, **__): raise AssertionError('a program was run')\n"
        "sandbox.run_tests = refuse\n"
        "print(len(benchmark('mbpp').load(protocol('paper'))), len(benchmark('humaneval').load(protocol('paper'))))\n"
        "print('evaluate' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["500", "164", "False"]


@pytest.mark.slow
def test_another_metric_than_code_eval_comes_from_the_real_evaluate() -> None:
    code = (
        "import sys; from rlhf_bench.suites import lm_eval_code\n"
        "with lm_eval_code.code_eval_in_sandbox():\n"
        "    import evaluate as stand_in\n"
        "    print(stand_in.load('code_eval') is lm_eval_code.CODE_EVAL, stand_in.EvaluationModule.__name__)\n"
        "import evaluate\n"
        "print(evaluate is stand_in, evaluate.load.__module__)"
    )
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["True", "EvaluationModule", "False", "evaluate.loading"]


@pytest.mark.parametrize("yaml", ["cruxeval/cruxeval_output.yaml", "longproc/pseudo_to_code_0.5k.yaml"])
def test_a_task_that_would_run_code_on_the_host_is_refused(yaml: str) -> None:
    with pytest.raises(UserError, match="by means of its own, outside any sandbox: it is not run here"):
        lm_eval_tasks.task_of(yaml, False, {"test": list})


def test_without_a_sandbox_an_answer_is_ungraded_and_never_zero(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandbox, "level", lambda: sandbox.NONE)
    for name in YAML:
        sample = benchmark(name).load(protocol("paper"))[0]
        [score] = benchmark(name).grade([answered(sample, sample.reference)], None)
        assert score == Score(sample.id, None, "no sandbox: switched off by the caller; see rlhf-bench doctor")


@needs_sandbox
def test_a_failing_programs_reason_stands_beside_its_zero_and_beside_no_others() -> None:
    samples = benchmark("humaneval").load(protocol("paper"))[:5]
    texts = [
        "    raise ValueError('lost')\n",
        samples[1].reference,
        "    raise SystemExit\n",
        "  )",
        samples[4].reference,
    ]
    scores = list(benchmark("humaneval").grade([answered(*one) for one in zip(samples, texts, strict=True)], None))
    assert [score.value for score in scores] == [0.0, 1.0, 0.0, 0.0, 1.0]
    whys = [score.why for score in scores]
    assert (whys[0], whys[1], whys[4]) == ("ValueError: lost", "", "")
    assert "SystemExit" in whys[2] and "Error" in whys[3]


@needs_sandbox
def test_a_helper_of_the_benchmark_is_not_replaced_by_the_answers_own() -> None:
    """HumanEval/32 is checked by `poly`, which stands in the prompt: were it zero, every answer would be right."""
    sample = benchmark("humaneval").load(protocol("paper"))[32]
    assert sample.row["entry_point"] == "find_zero"
    forged = "    return 0.0\n\n\ndef poly(xs, x):\n    return 0.0\n"
    [score] = benchmark("humaneval").grade([answered(sample, forged)], None)
    assert score.value == 0.0


@pytest.mark.parametrize(
    ("test", "document", "names"),
    [
        ("assert add(2, 3) == len([1])", {}, ("add", "")),
        ("assert sum(10, 15) == 6", {}, ("sum", "")),
        ("import math\nassert math.isclose(area(2), 4.0)", {}, ("area", "")),
        ("assert depth(Node(1)) == 1", {}, ("", "")),
        ("def check(candidate):\n    assert candidate([x for x in 'a'])\ncheck(f)", {}, ("f", "")),
        ("check(f)", {"entry_point": "f", "prompt": "import math\n"}, ("f", "import math\n")),
        ("assert f(1)", {"entry_point": "f", "prompt": "for x in y:"}, ("f", "")),
        ("assert ", {}, ("", "")),
    ],
)
def test_a_test_takes_from_the_answer_only_what_it_asks_for(
    test: str, document: Mapping[str, Any], names: tuple[str, str]
) -> None:
    assert lm_eval_code._names(test, document) == names


def test_with_a_chat_template_the_answer_begins_as_the_task_begins_it() -> None:
    """humaneval_instruct ends its prompt in the assistant's own words, which the engine continues."""
    asked = EvalProtocol("chat", chat_template=True, variants={"humaneval": "humaneval_instruct"})
    sample = benchmark("humaneval").load(asked)[0]
    question, begun = sample.prompt
    assert (question.role, begun.role) == ("user", "assistant")  # type: ignore[union-attr]
    assert begun.content.startswith("Here is the completed function:\n```python\nfrom typing")  # type: ignore[union-attr]
    assert sample.tags["runs"] == "code"
