"""A loop whose reward compares answers, with models that really do: a trained preference model, a local chat model."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.cli.conftest import Call
from tests.cli.loops import Loop, result
from tests.conftest import WORDS, light
from tests.trainers.conftest import preference_recipe

from rlhf_bench.harness.checkpoint import checkpoint_digest
from rlhf_bench.harness.engines.hf import HFEngine
from rlhf_bench.harness.judges.knockout import Match, knockout
from rlhf_bench.harness.judges.llm import PairPrompt
from rlhf_bench.harness.judges.preference import PreferenceModel, answer_tokens, encode_pair
from rlhf_bench.harness.judges.readers import is_switched
from rlhf_bench.harness.types import Checkpoint, Conversation, Message, Preference
from rlhf_bench.suites.judge_prompts import alpaca_eval_prompt
from rlhf_bench.trainers.backends import get_backend

Prefers = Callable[[Conversation, str, str], float]


@pytest.fixture(autouse=True)
def quick() -> Iterator[None]:
    with light():
        yield


def stage_rows(loop: Loop, name: str, stage: str) -> list[dict[str, Any]]:
    (path,) = (loop.work(name) / "iteration-1").glob(f"{stage}-*.jsonl")
    return [json.loads(line) for line in path.read_text().splitlines()]


def placed(row: Mapping[str, Any], prefers: Prefers) -> list[int | None]:
    """How many of the whole answers of a row stand below each, in a tournament by `prefers`; equal ones share it."""
    prompt = tuple(Message(turn["role"], turn["content"]) for turn in row["prompt"])
    said = list(zip(row["responses"], row["finish_reasons"], strict=True))
    answers = list(dict.fromkeys(answer for answer, why in said if why == "stop"))

    def compare(matches: Sequence[Match]) -> list[float | None]:
        return [prefers(prompt, answers[a], answers[b]) for _, a, b in matches]

    (ranking,) = knockout([[len(answer) for answer in answers]], compare, worst=True)
    places = {answers[answer]: len(answers) - 1 - place for place, answer in enumerate(ranking.order)}
    return [places[answer] if why == "stop" else None for answer, why in said]


def check(loop: Loop, name: str, prefers: Prefers) -> None:
    """The rewards are the places of that tournament, and a pair is its first answer and its last."""
    rows = stage_rows(loop, name, "rewards")
    expected = [placed(row, prefers) for row in rows]
    assert [row["rewards"] for row in rows] == expected
    ranked = {}
    for row, places in zip(rows, expected, strict=True):
        whole = [each for each in zip(places, row["responses"], strict=True) if each[0] is not None]
        ranked[row["prompt"][-1]["content"]] = [answer for _, answer in sorted(whole)]
    pairs = stage_rows(loop, name, "pairs")
    assert pairs
    for pair in pairs:
        answers = ranked[pair["prompt"][-1]["content"]]
        assert (pair["chosen"], pair["rejected"]) == (answers[-1], answers[0])


def next_logprobs(path: Path, ids: Sequence[int]) -> torch.Tensor:
    """What the model says after these tokens: shape (vocabulary,)."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
    with torch.no_grad():
        return model(input_ids=torch.tensor([ids])).logits[0, -1].log_softmax(-1)


@pytest.fixture
def preference_model(talker: Path, tmp_path: Path) -> Path:
    """The talker, taught in a few steps to prefer an answer that speaks of the sea."""
    pairs = [
        Preference((Message("user", f"Tell me about the {word}."),), f"{word} sea {i}", f"{word} gas {i}")
        for i, word in enumerate(WORDS)
    ]
    start = Checkpoint(str(talker), checkpoint_digest(talker))
    recipe = preference_recipe(epochs=2, max_length=300)
    return Path(get_backend("torch").train_preference(recipe, pairs, start, tmp_path / "pm").path)


def test_a_loop_ranks_by_a_trained_preference_model_and_asks_it_once(
    call: Call, home: Path, talker: Path, preference_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import AutoTokenizer

    loop = Loop(call, home, monkeypatch, talker, reward=f"pm:{preference_model}")
    first = result(loop("mine"))
    tokenizer = AutoTokenizer.from_pretrained(preference_model)
    a, b = answer_tokens(tokenizer)

    def says_a(prompt: Conversation, one: str, other: str) -> float:
        said = next_logprobs(preference_model, encode_pair(tokenizer, prompt, one, other))
        return float((said[a] - said[b]).sigmoid())

    check(loop, "mine", lambda prompt, one, other: (says_a(prompt, one, other) + 1 - says_a(prompt, other, one)) / 2)

    def asked(*given: object, **options: object) -> None:
        raise AssertionError("the preference model is loaded again")

    monkeypatch.setattr(PreferenceModel, "__init__", asked)
    assert result(loop("mine")) == first


@pytest.fixture
def reader(tiny_checkpoint: Path, tmp_path: Path) -> Path:
    """The tiny model with a context that holds a judge's prompt."""
    path = Path(shutil.copytree(tiny_checkpoint, tmp_path / "reader"))
    for name, key in (("config.json", "max_position_embeddings"), ("tokenizer_config.json", "model_max_length")):
        settings = json.loads((path / name).read_text())
        (path / name).write_text(json.dumps(settings | {key: 4096}))
    return path


def exactly(path: Path, prompt: PairPrompt) -> Prefers:
    """P(one ≻ other) by the two names' log-probabilities, computed a question at a time with transformers alone."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(path)
    names = [tokenizer.encode(name, add_special_tokens=False) for name in (prompt.first, prompt.second)]
    assert [len(name) for name in names] == [1, 1]

    def prefers(asked: Conversation, one: str, other: str) -> float:
        instruction = asked[0].content
        shown = (one, other) if is_switched(instruction, prompt.seed) else (other, one)
        turns = [{"role": m.role, "content": m.content} for m in prompt.filled(instruction, *shown)]
        text = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
        said = next_logprobs(path, tokenizer.encode(text, add_special_tokens=False))
        first = float((said[names[0][0]] - said[names[1][0]]).sigmoid())
        return first if shown[0] == one else 1 - first

    return prefers


def test_a_loop_ranks_by_a_local_language_model_and_asks_it_once(
    call: Call, home: Path, talker: Path, reader: Path, mirror: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RLHF_BENCH_DATA", str(mirror))
    loop = Loop(call, home, monkeypatch, talker, reward=f"llm:{reader}")
    first = result(loop("mine"))
    check(loop, "mine", exactly(reader, alpaca_eval_prompt("weighted")))

    def asked(self: HFEngine, requests: Sequence[Any]) -> Any:
        raise AssertionError("a model is asked again")

    monkeypatch.setattr(HFEngine, "generate", asked)
    assert result(loop("mine")) == first


def test_answers_that_a_judges_context_does_not_hold_are_left_out_and_no_outage(
    call: Call, home: Path, talker: Path, tiny_checkpoint: Path, mirror: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The judge's prompt alone is longer than the tiny model's context, so that no answer has a place."""
    monkeypatch.setenv("RLHF_BENCH_DATA", str(mirror))
    done = Loop(call, home, monkeypatch, talker, reward=f"llm:{tiny_checkpoint}")("mine")
    assert done.code == 2 and "no prompt gave a pair" in done.err and "without a reward" in done.err


@pytest.mark.parametrize("kind", ["pm", "llm"])
def test_a_model_that_cannot_compare_is_told_before_anything_is_answered(
    call: Call, home: Path, talker: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    mute = Path(shutil.copytree(talker, tmp_path / "mute"))
    (mute / "chat_template.jinja").unlink()
    loop = Loop(call, home, monkeypatch, talker, reward=f"{kind}:{mute}")
    done = loop("mine")
    assert done.code == 2 and "has no chat template" in done.one_line
    assert not (loop.work("mine") / "start.json").exists()
