"""A Bradley-Terry reward model as judge: P(answer ≻ baseline) = σ(r_answer − r_baseline) (paper, section 2.1).

The reward is read at the last real token of prompt and answer, never found through the padding token: in many chat
models padding is the end-of-turn token, and pooling by it reads the wrong place. The published code truncates long
inputs without saying so and scores one at a time; here a too-long input has no reward, what inputs share (the prompt of
several answers) is computed once, and however they are batched they have the rewards that each has alone.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from jinja2 import TemplateError
from torch import Tensor
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer
from transformers.utils import logging as transformers_logging

from rlhf_bench.harness.checkpoint import OWN_FILES
from rlhf_bench.harness.codec import digest
from rlhf_bench.harness.engines.forward import Steered, steerable
from rlhf_bench.harness.engines.hf import STRETCH_TOKENS
from rlhf_bench.harness.errors import UserError
from rlhf_bench.harness.judges.ends import at_ends
from rlhf_bench.harness.progress import Track, silent
from rlhf_bench.harness.types import Battle, Checkpoint, Conversation, Score

PADDED_TOKENS = 4096
TRIAL = ([1, 2, 3, 4, 5, 6, 7], [1, 2, 3, 4, 5, 8, 9, 7, 6, 10])
"""Two texts that begin alike: computed together and apart they show whether a model can share what they share."""
CLOSE = {torch.float32: 1e-4, torch.bfloat16: 5e-2, torch.float16: 1e-2}
"""How far apart states may be, as a share of the largest, that are called the same."""


class RewardModel:
    """Scores answers with the checkpoint's linear head. Raises UserError if the checkpoint has none.

    `batch_tokens` bounds the tokens of one forward pass, padding included; None is what suits the device. A model with
    layers that a mask does not steer (recurrent ones) shares nothing and is padded.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        *,
        name: str,
        dtype: str = "float32",
        device: str = "auto",
        batch_tokens: int | None = None,
        track: Track = silent,
    ) -> None:
        self.name = name
        self.identity = digest([checkpoint.digest, "reward", dtype])
        self._device = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
        self._track = track
        self._tokenizer = AutoTokenizer.from_pretrained(checkpoint.path, **OWN_FILES)
        self._model = _load(checkpoint.path, getattr(torch, dtype)).to(self._device).eval()
        self._max_tokens = int(self._model.config.get_text_config().max_position_embeddings)
        self._shared = _steered(self._model.base_model, self._device)
        stretch = STRETCH_TOKENS.get(self._device.split(":")[0], STRETCH_TOKENS["cpu"])
        self._batch_tokens = batch_tokens or (PADDED_TOKENS if self._shared is None else stretch)

    @property
    def shares(self) -> bool:
        """Whether a prompt is computed once for all of its answers."""
        return self._shared is not None

    def rewards(self, items: Sequence[tuple[Conversation, str]]) -> list[float | None]:
        """The reward of each answer to its prompt, in the order given; None where they exceed the model's context."""
        values: list[float | None] = [None] * len(items)
        rows = [self._ids(prompt, answer) for prompt, answer in items]
        with self._track("rewards", len(items)) as advance:
            for index, value in self._values(rows):
                values[index] = value
                advance(1)
        return values

    def prefer(self, battles: Sequence[Battle]) -> Iterator[Score]:
        """P(answer ≻ baseline) of each battle, as its two rewards are known."""
        rows = [self._ids(b.prompt, text) for b in battles for text in (b.answer, b.baseline)]
        known: dict[int, float | None] = {}
        with self._track(f"judge {self.name}", len(battles)) as advance:
            for index, value in self._values(rows):
                known[index] = value
                if index ^ 1 in known:
                    first = index & ~1
                    longest = max(len(rows[first]), len(rows[first + 1]))
                    yield self._score(battles[index // 2], known[first], known[first + 1], longest)
                    advance(1)

    def _score(self, battle: Battle, answer: float | None, baseline: float | None, longest: int) -> Score:
        if answer is None or baseline is None:
            why = f"prompt and answer have {longest} tokens, the reward model reads {self._max_tokens}"
            return Score(battle.sample_id, None, why)
        return Score(battle.sample_id, sigmoid(answer - baseline), also={"reward": answer, "baseline_reward": baseline})

    def _ids(self, prompt: Conversation, answer: str) -> list[int]:
        head, tail = encode(self._tokenizer, prompt, answer)
        return head + tail

    def _values(self, rows: Sequence[list[int]]) -> Iterator[tuple[int, float | None]]:
        """(index, reward) of each row of token ids, in any order; too long ones at once, with None."""
        fits = []
        for index, row in enumerate(rows):
            if len(row) > self._max_tokens:
                yield index, None
            else:
                fits.append(index)
        fitting = [rows[index] for index in fits]
        if self._shared is None:
            ends = padded_ends(self._model.base_model, fitting, self._batch_tokens)
        else:
            ends = at_ends(self._shared, fitting, self._batch_tokens)
        for numbers, states_RD in ends:
            with torch.inference_mode():
                values: list[float] = self._model.score(states_RD)[:, 0].float().tolist()
            yield from zip([fits[number] for number in numbers], values, strict=True)


def padded_ends(body: Any, rows: Sequence[list[int]], batch_tokens: int) -> Iterator[tuple[list[int], Tensor]]:
    """As `at_ends`, for any causal model without its head: rows of like lengths together, padded on the right."""
    left = sorted(range(len(rows)), key=lambda number: (-len(rows[number]), number))
    while left:
        size = max(1, batch_tokens // len(rows[left[0]]))
        batch, left = left[:size], left[size:]
        lengths_B = torch.tensor([len(rows[number]) for number in batch], device=body.device)
        width = int(lengths_B[0])
        ids_BT = torch.tensor(
            [rows[number] + [0] * (width - len(rows[number])) for number in batch], device=body.device
        )
        mask_BT = (torch.arange(width, device=body.device) < lengths_B[:, None]).long()
        with torch.inference_mode():
            states_BTD = body(input_ids=ids_BT, attention_mask=mask_BT, use_cache=False)[0]
        yield batch, states_BTD[torch.arange(len(batch), device=body.device), lengths_B - 1]


def _steered(body: Any, device: str) -> Steered | None:
    """The model without its head, to be computed over trees; None where that does not give what padding gives."""
    if not steerable(body) or "past_key_values" not in inspect.signature(body.forward).parameters:
        return None
    attention = body.config._attn_implementation
    apart = _in_order(padded_ends(body, TRIAL, 1))
    steered = Steered(body, body.dtype, device)
    together = _in_order(at_ends(steered, TRIAL, 4))
    if (together - apart).abs().max() <= CLOSE.get(body.dtype, 1e-3) * apart.abs().max():
        return steered
    body.set_attn_implementation(attention)
    return None


def _in_order(ends: Iterator[tuple[list[int], Tensor]]) -> Tensor:
    found = {number: state for numbers, states in ends for number, state in zip(numbers, states.float(), strict=True)}
    return torch.stack([found[number] for number in sorted(found)])


def sigmoid(x: float) -> float:
    """1 / (1 + e^-x), without overflow."""
    return 1 / (1 + math.exp(-x)) if x >= 0 else math.exp(x) / (1 + math.exp(x))


def encode(tokenizer: Any, prompt: Conversation, answer: str) -> tuple[list[int], list[int]]:
    """Token ids of the rendered prompt, up to and with the assistant's header, and of the answer with its end of turn.

    The one place where training and scoring apply the chat template. The template writes its own BOS, so none is added,
    and the two parts are tokenized apart, as a policy that generates after the prompt sees them. Raises UserError where
    there is no template, or where it refuses them or does not render an answer as the continuation of its prompt.
    """
    where = getattr(tokenizer, "name_or_path", "") or "the model"
    if not tokenizer.chat_template:
        raise UserError(f"the tokenizer of {where} has no chat template: use a chat model")
    turns = [{"role": turn.role, "content": turn.content} for turn in prompt]
    answered = [*turns, {"role": "assistant", "content": answer}]
    try:
        head: str = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
        whole: str = tokenizer.apply_chat_template(answered, tokenize=False)
    except TemplateError as error:
        said = " ".join(str(error).split())
        raise UserError(f"the chat template of {where} refuses a conversation: {said}") from None
    tail = whole.removeprefix(head)
    if tail == whole:
        raise UserError(f"the chat template of {where} renders a prompt differently once it is answered: mend it")
    if not tail.lstrip().startswith(answer.strip()) and head == tokenizer.apply_chat_template(turns, tokenize=False):
        raise UserError(f"the chat template of {where} does not add the assistant's header to a prompt: mend it")
    options = {"add_special_tokens": False, "verbose": False}  # verbose warns of lengths, which the caller counts
    return list(tokenizer(head, **options)["input_ids"]), list(tokenizer(tail, **options)["input_ids"])


@contextmanager
def quiet() -> Iterator[None]:
    """transformers without its own progress bars and without log lines below an error; both are put back after."""
    bars, level = transformers_logging.is_progress_bar_enabled(), transformers_logging.get_verbosity()
    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(level)
        if bars:
            transformers_logging.enable_progress_bar()


def _load(path: str, dtype: torch.dtype) -> Any:
    """The sequence classifier at `path`. Raises UserError unless its files hold a head with one output."""
    require_head(path)
    with quiet():
        model, info = AutoModelForSequenceClassification.from_pretrained(
            path, dtype=dtype, use_safetensors=True, output_loading_info=True, **OWN_FILES
        )
    if info["missing_keys"] or not hasattr(model, "score"):
        raise _no_head(path)
    return model


def require_head(path: str) -> None:
    """Raise UserError for a model whose configuration is not that of a reward model; its weights are not read."""
    config = AutoConfig.from_pretrained(path, **OWN_FILES)
    if config.num_labels != 1 or not str((config.architectures or [""])[0]).endswith("ForSequenceClassification"):
        raise _no_head(path)


def _no_head(path: str) -> UserError:
    return UserError(f"{path} has no reward head: train a reward model first, `rlhf-bench train rm`")
