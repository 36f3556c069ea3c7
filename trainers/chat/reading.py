"""Whether a reward model reads what it is to score: its record, its chat template and its tokenizer, by a probe.

Of a policy, whether its chat template takes the prompts.

A reward model renders a conversation by its own template, so another one than the policy's is no fault. Faults are what
makes it score something else: a template that it was not trained with, one that leaves answers or turns out, changes
them, refuses the prompts' roles or writes BOS twice, and a tokenizer that is not its model's.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal

from rlhf_bench.harness.checkpoint import chat_template_digest
from rlhf_bench.harness.errors import UserError
from rlhf_bench.harness.types import Checkpoint, Conversation, Message

RECIPE, TEMPLATE = "recipe.json", "template"
"""Where a trainer records, beside the weights, the digest of the chat template that it trained with."""
SAID = {"system": "Speak as a keeper of number {}.", "user": "What is number {}?", "assistant": "It is number {}."}
ANSWERS = ("The spider has eight legs.", "No idea, ask a zoologist.")
SHAPES = 64
"""Orders of roles that are tried, of those that the prompts have the first."""
PLAIN: Conversation = (Message("user", "Why?"),)


def check_reads(model: Checkpoint, prompts: Iterable[Conversation] = ()) -> None:
    """Raise UserError, one line, where a reward or preference model would score something else than answers to these.

    Of the prompts only the order of roles counts. `encode` (harness.judges.reward) says what else must hold.
    """
    from rlhf_bench.trainers.chat import tokenizer_at

    _check_record(Path(model.path))
    tokenizer = tokenizer_at(Path(model.path))
    shapes = dict.fromkeys(tuple(turn.role for turn in said) for said in (PLAIN, *prompts))
    words = _words(Path(model.path))
    plain = [number for number in tokenizer.get_vocab().values() if number not in tokenizer.added_tokens_decoder]
    for shape in itertools.islice(shapes, SHAPES):
        ids = _check_shape(tokenizer, model.path, shape)
        if words is not None and (most := max([*ids, *plain])) >= words:
            raise UserError(
                f"the tokenizer of {model.path} has a token {most}, and its model knows {words}: it is another model's"
            )


def check_asks(model: Checkpoint, prompts: Iterable[Conversation]) -> None:
    """Raise UserError, one line, where the chat template of a policy refuses an order of roles that prompts have."""
    from jinja2 import TemplateError

    from rlhf_bench.trainers.chat import tokenizer_at

    tokenizer = tokenizer_at(Path(model.path))
    for roles, said in {tuple(turn.role for turn in said): said for said in prompts}.items():
        turns = [{"role": turn.role, "content": turn.content} for turn in said]
        try:
            tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
        except (TemplateError, TypeError, ValueError, KeyError) as error:
            raise _refused(model.path, roles, error) from None


def _refused(name: str, roles: Sequence[str], error: Exception) -> UserError:
    why = " ".join(str(error).split())[:200]
    return UserError(
        f"the chat template of {name} refuses prompts of {', '.join(roles)} ({why}): take them out, or take another "
        "model"
    )


def _check_shape(tokenizer: Any, name: str, shape: Sequence[Literal["system", "user", "assistant"]]) -> list[int]:
    """The token ids of an answer to a prompt of these roles."""
    from jinja2 import TemplateError

    from rlhf_bench.harness.judges.reward import encode

    prompt = tuple(Message(role, SAID[role].format(place)) for place, role in enumerate(shape, start=1))
    roles = ", ".join(shape)
    try:
        texts = [_rendered(tokenizer, (*prompt, Message("assistant", answer))) for answer in ANSWERS]
        if not all(answer in text for answer, text in zip(ANSWERS, texts, strict=True)):
            raise UserError(f"the chat template of {name} leaves an answer out or changes it: mend it")
        heads, tails = zip(*(encode(tokenizer, prompt, answer) for answer in ANSWERS), strict=True)
    except (TemplateError, TypeError, ValueError, KeyError) as error:
        raise _refused(name, shape, error) from None
    for turn in prompt:
        if turn.content not in texts[0]:
            raise UserError(
                f"the chat template of {name} leaves a turn of the {turn.role} out of {roles}, or changes it: take "
                "such prompts out, or take another model"
            )
    if tails[0] == tails[1]:
        raise UserError(f"the tokenizer of {name} makes the same tokens of different answers: it is another model's")
    bos = tokenizer.bos_token_id
    if bos is not None and (bos, bos) in itertools.pairwise(heads[0]):
        raise UserError(f"the chat template of {name} writes {tokenizer.bos_token!r} twice: take one of them out of it")
    return [*heads[0], *tails[0]]


def _rendered(tokenizer: Any, said: Conversation) -> str:
    text: str = tokenizer.apply_chat_template([{"role": t.role, "content": t.content} for t in said], tokenize=False)
    return text


def _check_record(folder: Path) -> None:
    """The template must be the one that the model was trained with, where a trainer of ours wrote down which."""
    try:
        said = json.loads((folder / RECIPE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return
    trained = said.get(TEMPLATE) if isinstance(said, dict) else None
    if isinstance(trained, str) and trained != chat_template_digest(folder):
        raise UserError(
            f"{folder} was trained with another chat template than its folder now holds ({trained[:12]} in its "
            f"{RECIPE}): restore it, or train the model again"
        )


def _words(folder: Path) -> int | None:
    """How many tokens the model knows, if its configuration says."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    size = (config.get("text_config") or config).get("vocab_size")
    return size if isinstance(size, int) else None
