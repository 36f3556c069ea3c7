"""Any task of lm-eval's, or of the user's own, as a benchmark; against lm-eval's own evaluator on the same files."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from lm_eval.api.model import LM

from rlhf_bench import suites
from rlhf_bench.harness.errors import MissingData, UnknownName, UserError
from rlhf_bench.harness.estimates import strata_of
from rlhf_bench.harness.run import evaluate
from rlhf_bench.harness.store import Store
from rlhf_bench.harness.types import Benchmark, Completion, EvalProtocol, Sample

ROWS = [{"q": f"Is {n} even?", "a": "yes" if n % 2 == 0 else "no", "n": n} for n in range(8)]
HEAD = "dataset_path: json\ndataset_kwargs: {data_files: {test: DATA, train: DATA}}\n"
CHOICE = (
    HEAD + "task: NAME\noutput_type: multiple_choice\ntraining_split: train\ntest_split: test\n"
    "doc_to_text: '{{q}}'\ndoc_to_choice: ['yes', 'no']\ndoc_to_target: '{{a}}'\n"
    "metric_list: [{metric: acc, aggregation: mean, higher_is_better: true}, {metric: acc_norm}]\n"
)
ANSWER = (
    HEAD + "task: NAME\noutput_type: generate_until\ntraining_split: train\ntest_split: test\nnum_fewshot: 2\n"
    "doc_to_text: '{{q}}'\ndoc_to_target: '{{a}}'\ngeneration_kwargs: {until: [\"\\n\"], max_gen_toks: 4}\n"
    "filter_list: [{name: first, filter: [{function: regex, regex_pattern: '(yes|no)'}, {function: take_first}]}]\n"
    "metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true}]\n"
)


class Guesses(LM):  # type: ignore[misc]
    """lm-eval's side of answers that hang on the prompt alone."""

    def loglikelihood(self, requests: Sequence[Any]) -> list[tuple[float, bool]]:
        return [(-guess("".join(request.args)), False) for request in requests]

    def generate_until(self, requests: Sequence[Any]) -> list[str]:
        return [said(request.args[0]) for request in requests]

    def loglikelihood_rolling(self, requests: Sequence[Any]) -> list[float]:
        raise NotImplementedError


def guess(text: str) -> float:
    return hashlib.sha256(text.encode()).digest()[0] / 16


def said(prompt: str) -> str:
    return ["I say yes", "no", "perhaps"][hashlib.sha256(prompt.encode()).digest()[1] % 3]


def answered(sample: Sample) -> tuple[Sample, tuple[Completion, ...]]:
    completions = []
    for request in sample.requests:
        prompt = str(request.prompt)
        if request.continuation is None:
            completions.append(Completion(sample.id, request.index, said(prompt), "stop", 1))
        else:
            logprob = -guess(prompt + request.continuation)
            completions.append(Completion(sample.id, request.index, "", "stop", 1, logprob, False))
    return sample, tuple(completions)


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.fixture
def mine(tmp_path: Path) -> Path:
    """A folder with tasks of the user's own over a local file: two of choices in a group and under a tag, one asked."""
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    for name, text in {
        "own_even": CHOICE + "tag: own_tag\n",
        "own_again": CHOICE.replace("{{q}}", "Again: {{q}}") + "tag: own_tag\n",
        "own_said": ANSWER,
    }.items():
        write(folder, name, text)
    (folder / "group.yaml").write_text("group: own\ntask: [own_again, own_even]\n")
    return folder


def write(folder: Path, name: str, text: str) -> None:
    (folder / f"{name}.yaml").write_text(text.replace("NAME", name).replace("DATA", str(folder / "rows.jsonl")))


def own(name: str, folder: Path) -> Benchmark:
    [found] = suites.suite(name, [folder]).benchmarks
    return found


@pytest.mark.parametrize("name", ["own_even", "own_said", "own", "own_tag"])
def test_requests_and_metrics_are_those_of_lm_evals_evaluator(name: str, mine: Path) -> None:
    from lm_eval.evaluator import simple_evaluate
    from lm_eval.tasks import TaskManager

    manager = TaskManager(include_path=str(mine), include_defaults=False)
    found = simple_evaluate(Guesses(), tasks=[name], task_manager=manager, bootstrap_iters=0)
    theirs = {
        (task, one["doc_id"]): (
            [list(argument) for argument in one["arguments"]],
            {metric: one[metric] for metric in one["metrics"]},
        )
        for task, samples in found["samples"].items()
        for one in samples
    }
    benchmark = own(name, mine)
    samples = benchmark.load(EvalProtocol("mine"))
    scores = {score.sample_id: score for score in benchmark.grade([answered(sample) for sample in samples], None)}
    assert len(samples) == len(theirs) == len(scores)
    for sample in samples:
        arguments, metrics = theirs[sample.tags["task"], int(sample.id.rpartition("/")[2])]
        assert [request.prompt for request in sample.requests] == [argument[0] for argument in arguments]
        continuations = [request.continuation for request in sample.requests]
        assert continuations in ([argument[1] for argument in arguments], [None])
        score = scores[sample.id]
        ours = {benchmark.metric: score.value, **score.also}
        assert {metric.split(",")[0]: value for metric, value in ours.items()} == metrics


def test_what_a_task_says_of_itself_is_what_it_is_run_by(mine: Path) -> None:
    even, asked = own("own_even", mine), own("own_said", mine)
    assert (even.metric, even.kind, even.size, even.judged) == ("acc", "binary", 0, False)
    assert (asked.metric, asked.kind) == ("exact_match,first", "binary")
    [request] = asked.load(EvalProtocol("mine"))[0].requests
    assert (request.sampling.max_tokens, request.sampling.stop) == (4, ("\n",))
    assert str(request.prompt).count("Is ") == 3


def test_shots_are_the_protocols_if_it_names_the_task_else_the_tasks_own(mine: Path) -> None:
    sample = own("own_said", mine).load(EvalProtocol("mine", shots={"own_said": 0}))[0]
    assert sample.prompt == "Is 0 even?"
    with pytest.raises(UserError, match="own_said has 8 examples in its task own_said: 9 shots are too many"):
        own("own_said", mine).load(EvalProtocol("mine", shots={"own_said": 9}))


@pytest.mark.parametrize("name", ["own", "own_tag"])
def test_the_tasks_of_a_group_or_a_tag_are_strata(name: str, mine: Path, store: Store) -> None:
    class Engine:
        name, identity, checkpoint, manifest = "guesses", "guesses", "c" * 64, {}

        def generate(self, requests: Sequence[Any]) -> Any:
            for request in requests:
                logprob = -guess(str(request.prompt) + str(request.continuation))
                yield Completion(request.sample_id, request.index, "", "stop", 1, logprob, False)

    found = suites.suite(name, [mine])
    report = evaluate(found, Engine(), protocol=EvalProtocol("mine"), store=store)
    by_metric = {one.metric: one for one in report.estimates}
    parts = strata_of(found.benchmarks[0], store.records(report.run_id))
    assert [stratum for stratum, _ in parts] == (["again", "even"] if name == "own" else ["own_again", "own_even"])
    assert by_metric["acc,macro"].mean == pytest.approx(sum(part.mean or 0 for _, part in parts) / 2)
    assert sum(part.graded for _, part in parts) == by_metric["acc"].graded == 16


def test_a_name_of_ours_is_the_users_task_where_he_has_one(mine: Path) -> None:
    write(mine, "gsm8k", CHOICE)
    assert own("gsm8k", mine).load(EvalProtocol("mine"))[0].prompt == "Is 0 even?"
    assert suites.suite("gsm8k").benchmarks == (suites.benchmark("gsm8k"),)


def test_the_version_changes_with_the_settings_and_the_code_and_not_with_the_place(mine: Path, tmp_path: Path) -> None:
    version = own("own_even", mine).version
    moved = mine.rename(tmp_path / "moved")
    write(moved, "own_even", CHOICE + "tag: own_tag\n")
    assert own("own_even", moved).version == version
    write(moved, "own_even", CHOICE + "tag: own_tag\nnum_fewshot: 1\n")
    changed = own("own_even", moved).version
    (moved / "utils.py").write_text("X = 1\n")
    assert len({version, changed, own("own_even", moved).version}) == 3


def test_tasks_without_a_metric_in_common_are_no_group_here(mine: Path) -> None:
    (mine / "mixed.yaml").write_text("group: mixed\ntask: [own_even, own_said]\n")
    with pytest.raises(UserError, match=r"the tasks of 'mixed' have no metric in common: name the tasks one by one"):
        own("mixed", mine)


def test_lm_evals_own_tasks_are_benchmarks_without_any_data() -> None:
    found = suites.suite("hellaswag,gpqa_main_zeroshot,bbh_cot_fewshot,lambada_openai")
    assert [(one.name, one.metric, one.kind) for one in found.benchmarks] == [
        ("hellaswag", "acc", "binary"),
        ("gpqa_main_zeroshot", "acc", "binary"),
        ("bbh_cot_fewshot", "exact_match,get-answer", "binary"),
        ("lambada_openai", "acc", "binary"),
    ]
    assert all(one.version.startswith("lm-eval-0.4.13+") for one in found.benchmarks)


def test_without_its_data_a_task_is_missing_data_in_one_line() -> None:
    with pytest.raises(MissingData, match=r"no data for the lm-eval task 'hellaswag': \S+ cannot be loaded") as refused:
        suites.suite("hellaswag").benchmarks[0].load(EvalProtocol("mine"))
    assert "\n" not in str(refused.value)


def test_an_unknown_task_is_refused_with_the_nearest_name() -> None:
    with pytest.raises(UnknownName, match=r"no suite named 'helaswag'. Did you mean 'hellaswag'\?"):
        suites.suite("helaswag")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("wikitext", "asks for loglikelihood_rolling, which no engine here answers"),
        ("squadv2", "'squadv2' is a Python class of its own"),
        ("mmmu_val_art", "shows images or sounds"),
        ("wmt14-en-fr", "has no metric that is a mean over documents and better when higher"),
        ("glue", "'cola' has no metric that is a mean"),
    ],
)
def test_what_cannot_be_asked_or_scored_is_refused_before_any_data(name: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        suites.suite(name)


@pytest.mark.parametrize(
    "broken",
    [
        CHOICE.replace("{{q}}", "{{q"),
        CHOICE.replace("test_split: test\n", ""),
        CHOICE + "fewshot_config: {sampler: no_such}\n",
        CHOICE + "process_docs: !function nowhere.function\n",
    ],
)
def test_a_broken_task_is_a_users_mistake_in_one_line(mine: Path, broken: str) -> None:
    write(mine, "own_broken", broken)
    with pytest.raises(UserError, match="own_broken") as refused:
        own("own_broken", mine).load(EvalProtocol("mine"))
    assert "\n" not in str(refused.value)


def test_a_task_that_runs_code_by_means_of_its_own_is_refused(mine: Path) -> None:
    (mine / "utils.py").write_text("def run(references, predictions):\n    return exec(predictions[0])\n")
    write(
        mine, "own_code", ANSWER.replace("metric: exact_match", "metric: !function utils.run") + "unsafe_code: true\n"
    )
    with pytest.raises(UserError, match="runs generated code by means of its own, outside any sandbox"):
        own("own_code", mine).load(EvalProtocol("mine"))


def test_the_first_examples_are_not_the_questions_own_answers(mine: Path) -> None:
    write(mine, "own_same", ANSWER.replace("training_split: train\n", "fewshot_split: test\n"))
    samples = own("own_same", mine).load(EvalProtocol("mine", fixed_shots=True))
    for sample in samples:
        assert str(sample.prompt).count(sample.row["q"]) == 1


def test_naming_our_own_benchmarks_reads_no_index_and_imports_no_lm_eval() -> None:
    code = (
        "import sys, rlhf_bench.suites as s; s.suite('academic,chat');"
        "print({'lm_eval', 'datasets', 'rlhf_bench.suites.lm_eval_index'} & set(sys.modules))"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "set()"
