"""The packaged suite: small, written by this project, in the official formats, so that it runs without a download.

Its four benchmarks are spread in difficulty so that a model of 135M parameters scores neither 0 nor 1. The training
prompts share no prompt and no eight words in a row with the evaluation prompts (a test holds this).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.resources import files
from typing import Any

from rlhf_bench.harness.types import Completion, Message, Request, Sample, Sampling, Score

CHAT_TOKENS = 128
BRIEF = "Answer briefly, in two or three short sentences."
"""Follows every instruction: unasked, SmolLM2-135M runs into the token limit on most; a cut answer makes no pair."""


@cache
def rows(name: str) -> Sequence[Mapping[str, Any]]:
    """The rows of data/`name`.jsonl, in order."""
    text = files(__package__).joinpath("data", f"{name}.jsonl").read_text(encoding="utf-8")
    return tuple(json.loads(line) for line in text.splitlines())


def training_prompts() -> Sequence[Sample]:
    """64 instructions in five categories, each with a reference answer, for the demo's reward model and DPO."""
    return instructions("prompts", "demo-prompt", system_prompt="")


def instructions(name: str, prefix: str, system_prompt: str) -> Sequence[Sample]:
    """The rows of an AlpacaEval-form file as samples, each one user turn after the system prompt if there is one."""
    system = (Message("system", system_prompt),) if system_prompt else ()
    return [
        Sample(
            id=f"{prefix}/{number}",
            requests=(
                Request(
                    f"{prefix}/{number}",
                    (*system, Message("user", f"{row['instruction']} {BRIEF}")),
                    Sampling(max_tokens=CHAT_TOKENS),
                ),
            ),
            reference=row["output"],
            tags={"stratum": row["dataset"]},
            row=row,
        )
        for number, row in enumerate(rows(name))
    ]


def ungraded(sample: Sample, completions: Sequence[Completion]) -> Score | None:
    """The Score without value of a sample that was not answered in full; None if it was."""
    if len(completions) != len(sample.requests):
        return Score(sample.id, None, f"{len(completions)} of {len(sample.requests)} answers")
    failed = [completion for completion in completions if completion.finish_reason == "error"]
    return Score(sample.id, None, failed[0].why or "the engine failed on this request") if failed else None
