"""The whole path on real weights: our engine and grading against lm-eval's own hf engine and evaluator."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rlhf_bench.harness.checkpoint import checkpoint_digest
from rlhf_bench.harness.engines.hf import HFEngine
from rlhf_bench.harness.types import Checkpoint, Completion, Sample
from rlhf_bench.suites import benchmark, protocol


@pytest.fixture(scope="module")
def model(smollm2: Path) -> Any:
    """lm-eval's own engine in fp32."""
    from lm_eval.models.huggingface import HFLM

    return HFLM(pretrained=str(smollm2), dtype="float32", device="cpu", batch_size=8)


@pytest.fixture(scope="module")
def engine(smollm2: Path) -> HFEngine:
    checkpoint = Checkpoint(str(smollm2), checkpoint_digest(smollm2))
    return HFEngine(checkpoint, name="smollm2-135m-instruct", dtype="float32", device="cpu")


def ours(engine: HFEngine, samples: list[Sample]) -> dict[str, list[Completion]]:
    """The completions by sample, in the order of its requests."""
    found: dict[str, list[Completion]] = {sample.id: [] for sample in samples}
    for completion in engine.generate([request for sample in samples for request in sample.requests]):
        found[completion.sample_id].append(completion)
    return {name: sorted(several, key=lambda one: one.index) for name, several in found.items()}


FEW = [
    ("arc_challenge", "lm-eval", 6),
    ("mmlu_anatomy", "lm-eval", 6),
    ("truthfulqa_mc1", "paper", 1),
    ("truthfulqa_mc2", "paper", 1),
    ("gsm8k", "lm-eval", 1),
]
MANY = [
    (name, given, 10)
    for name in ("arc_challenge", "mmlu_anatomy", "truthfulqa_mc1", "truthfulqa_mc2", "gsm8k")
    for given in ("paper", "lm-eval")
]


@pytest.mark.timeout(1800)
@pytest.mark.parametrize(
    ("task_name", "given", "limit"), [*FEW, *(pytest.param(*case, marks=pytest.mark.slow) for case in MANY)]
)
def test_scores_likelihoods_and_texts_are_those_of_lm_evals_own_engine(
    task_name: str,
    given: str,
    limit: int,
    model: Any,
    engine: HFEngine,
    official: Callable[..., Any],
    mirror: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from lm_eval.evaluator import simple_evaluate
    from lm_eval.tasks import TaskManager

    monkeypatch.setenv("RLHF_BENCH_DATA", str(mirror))
    asked = protocol(given)
    name, _, subject = task_name.partition("_") if task_name.startswith("mmlu") else (task_name, "", "")
    prefix = f"{name}/{subject}/" if subject else f"{name}/"
    samples = [sample for sample in benchmark(name).load(asked) if sample.id.startswith(prefix)][:limit]
    task = official(task_name, asked)
    found = simple_evaluate(
        model,
        tasks=[task],
        num_fewshot=asked.shots[name],
        limit=limit,
        bootstrap_iters=0,
        task_manager=TaskManager(include_defaults=False),
    )
    assert found is not None
    rows = found["samples"][task.config.task]
    answers = ours(engine, samples)
    scores = benchmark(name).grade([(sample, tuple(answers[sample.id])) for sample in samples], None)
    graded = {score.sample_id: {benchmark(name).metric: score.value, **score.also} for score in scores}
    for row in rows:
        sample_id = f"{prefix}{row['doc_id']}"
        suffix = "" if row["filter"] == "none" else f",{row['filter']}"
        for metric in row["metrics"]:
            assert graded[sample_id][f"{metric}{suffix}"] == pytest.approx(row[metric], abs=1e-3), (sample_id, metric)
        for completion, [response] in zip(answers[sample_id], row["resps"], strict=True):
            if name == "gsm8k":
                assert completion.text == response
            else:
                logprob, greedy = response
                assert completion.logprob == pytest.approx(logprob, abs=1e-3)
                assert completion.greedy == greedy
    assert {f"{prefix}{row['doc_id']}" for row in rows} == set(answers)
