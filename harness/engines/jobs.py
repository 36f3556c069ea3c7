"""Requests as tokens: what the model reads, and which of its predictions are read out."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from jinja2 import TemplateError
from transformers import AutoTokenizer

from rlhf_bench.harness.checkpoint import OWN_FILES
from rlhf_bench.harness.engines import TOO_LONG
from rlhf_bench.harness.errors import UserError
from rlhf_bench.harness.types import Completion, FinishReason, Prompt, Request

NO_NUMBER = "the model's output is not a number: overflow, or damaged weights"


@dataclass(frozen=True, slots=True, eq=False)
class Job:
    """A request as tokens. The predictions after `tokens[first:]` are read: all `targets`, or one to go on from.

    `special` are the token ids that end a generated answer.
    """

    request: Request
    tokens: list[int]
    first: int
    targets: list[int]
    special: frozenset[int] = frozenset()

    def answer(self, text: str, reason: FinishReason, tokens: int, **scored: Any) -> Completion:
        """The completion of this request."""
        return Completion(self.request.sample_id, self.request.index, text, reason, tokens, **scored)


class Coder:
    """A checkpoint's tokenizer with its chat template, and the rules by which prompts become tokens.

    Text follows lm-eval's hf model token by token: the tokenizer's default special tokens, none where the text starts
    with one already; see `_pair` for continuations. Conversations are rendered with the chat template and get no
    special tokens besides the template's.
    """

    def __init__(self, path: Path, *, end_ids: frozenset[int], context: int) -> None:
        self.tokenizer: Any = AutoTokenizer.from_pretrained(path, **OWN_FILES)
        self._path = path
        self.context = context
        eos, bos = self.tokenizer.eos_token_id, self.tokenizer.bos_token_id
        self._end_ids = end_ids | ({eos} if eos is not None else set())
        self._prefix_id: int | None = bos if bos is not None else eos
        self._prefix = self.tokenizer.decode(self._prefix_id) if self._prefix_id is not None else ""
        self._encode = lru_cache(maxsize=64)(self._encode_uncached)

    def job(self, request: Request) -> Job | Completion:
        """The request as tokens, or the completion that says why there is none.

        Raises UserError for a conversation where the checkpoint has no chat template.
        """
        if request.sampling.function:
            return _failed(request, "a local model cannot be made to call a function: use openai:MODEL")
        try:
            text, templated = self._text(request.prompt), not isinstance(request.prompt, str)
        except TemplateError as error:
            return _failed(request, f"the chat template refuses the conversation: {error}")
        if request.continuation is None:
            return self._to_generate(request, self._encode(text, templated) or self._empty())
        context, continuation = self._pair(text, request.continuation, templated)
        if not context or not continuation:
            return _failed(request, f"the continuation {request.continuation!r} has no tokens of its own")
        whole = context + continuation
        if len(whole) - 1 > self.context:
            return self._too_long(request, len(whole) - 1)
        return Job(request, whole[:-1], len(context) - 1, continuation)

    def text(self, tokens: Iterable[int]) -> str:
        """The text of generated tokens, without special tokens."""
        decoded: str = self.tokenizer.decode(list(tokens), skip_special_tokens=True)
        return decoded

    def room(self, job: Job) -> int:
        """How many tokens may be generated: what was asked for, or what the context has left."""
        return min(job.request.sampling.max_tokens, self.context - len(job.tokens))

    def _to_generate(self, request: Request, tokens: list[int]) -> Job | Completion:
        if len(tokens) >= self.context:
            return self._too_long(request, len(tokens))
        if not tokens or request.sampling.max_tokens < 1:
            return _failed(request, "there is nothing to generate: an empty prompt, or max_tokens below 1")
        special = set(request.sampling.stop) & set(self.tokenizer.get_added_vocab())
        stops = frozenset(self.tokenizer.convert_tokens_to_ids(sorted(special)))
        return Job(request, tokens, len(tokens) - 1, [], self._end_ids | stops)

    def _too_long(self, request: Request, length: int) -> Completion:
        return _failed(request, f"{TOO_LONG}: it has {length} tokens, the context {self.context}")

    def _text(self, prompt: Prompt) -> str:
        if isinstance(prompt, str):
            return prompt
        if not self.tokenizer.chat_template:
            raise UserError(f"{self._path} has no chat template. Use a chat model, or a protocol that asks with text.")
        turns = [{"role": message.role, "content": message.content} for message in prompt]
        begun = prompt[-1].role == "assistant"
        rendered: str = self.tokenizer.apply_chat_template(
            turns, tokenize=False, add_generation_prompt=not begun, continue_final_message=begun
        )
        return rendered

    def _encode_uncached(self, text: str, templated: bool) -> list[int]:
        has_prefix = bool(self._prefix) and text.startswith(self._prefix)
        ids: list[int] = self.tokenizer.encode(text, add_special_tokens=not templated and not has_prefix)
        return ids

    def _empty(self) -> list[int]:
        return [self._prefix_id] if self._prefix_id is not None else []

    def _pair(self, context: str, continuation: str, templated: bool) -> tuple[list[int], list[int]]:
        """Context and continuation as tokens.

        As lm_eval.api.model.TemplateLM._encode_pair: spaces at the end of the context move to the continuation, and
        the continuation's tokens are those of the whole beyond as many as the context alone has. An empty context is
        the bos token, or eos where there is no bos.
        """
        bare = context.rstrip()
        continuation = context[len(bare) :] + continuation
        if not bare:
            tokens = list(self._encode(continuation, True))
            return (tokens[:1], tokens[1:]) if tokens[:1] == self._empty() else (self._empty(), tokens)
        whole, alone = self._encode(bare + continuation, templated), self._encode(bare, templated)
        return list(alone), list(whole[len(alone) :])


def _failed(request: Request, why: str) -> Completion:
    return Completion(request.sample_id, request.index, "", "error", 0, why=why)
