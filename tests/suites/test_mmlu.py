"""MMLU: its 57 subjects, their questions and their examples."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import lm_eval.tasks
import pytest

from rlhf_bench import suites
from rlhf_bench.harness.types import Sample
from rlhf_bench.suites import lm_eval_index, mmlu


@pytest.fixture(scope="module")
def samples(mirror: Path) -> Sequence[Sample]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RLHF_BENCH_DATA", str(mirror))
        return suites.benchmark("mmlu").load(suites.protocol("paper"))


def test_the_subjects_are_those_of_lm_evals_group() -> None:
    found = lm_eval_index.members("mmlu", lm_eval_index.index())
    assert sorted(task.name for task in found) == [f"mmlu_{subject}" for subject in mmlu.SUBJECTS]
    folder = Path(lm_eval.tasks.__file__).parent / "mmlu" / "default"
    assert {Path(task.path).resolve() for task in found} == {(folder / f"{task.name}.yaml").resolve() for task in found}


def test_each_subject_has_the_official_number_of_questions(samples: Sequence[Sample], mirror: Path) -> None:
    counts = json.loads((mirror / "mmlu" / "counts.json").read_text())
    assert Counter(sample.tags["stratum"] for sample in samples) == Counter(counts["test"])
    assert len(samples) == 14042


def test_the_questions_of_a_subject_stand_behind_the_same_five_examples(samples: Sequence[Sample]) -> None:
    for subject in mmlu.SUBJECTS:
        prompts = [str(sample.prompt) for sample in samples if sample.tags["stratum"] == subject]
        header = prompts[0][: prompts[0].rindex("\n\n") + 2]
        assert header.startswith("The following are multiple choice questions (with answers) about")
        assert header.count("\nAnswer: ") == 5
        shared = [prompt for prompt in prompts if prompt.startswith(header)]
        assert len(shared) == len(prompts)


def test_the_four_letters_are_asked_for_after_one_text(samples: Sequence[Sample]) -> None:
    for sample in samples:
        assert [request.continuation for request in sample.requests] == [" A", " B", " C", " D"]
        assert {id(request.prompt) for request in sample.requests} == {id(sample.prompt)}


def test_a_row_of_another_form_is_refused() -> None:
    with pytest.raises(ValueError, match="not a question with four choices"):
        mmlu.hub_row({"file": "test/x.csv", "cells": ["Is it?", "yes", "no", "A"]}, "x")
