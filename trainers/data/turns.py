"""Values of a row to text and turns, checked. What is wrong with a row is said by a BadRow."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

from rlhf_bench.harness.errors import UserError
from rlhf_bench.harness.types import Conversation, Message, Role

ROLES: Mapping[str, Role] = {
    "system": "system",
    "user": "user",
    "human": "user",
    "prompter": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bot": "assistant",
    "model": "assistant",
}
"""What people call the roles: chat APIs, ShareGPT, OpenAssistant, Gemma."""
_RENDERED = re.compile(
    r"\s*(<s>|<bos>|<\|begin_of_text\|>|<\|endoftext\|>)?\s*"
    r"(<\|im_start\|>|<\|start_header_id\|>|<start_of_turn>|<\|(system|user|assistant)\|>|\[INST\])"
)
_SURROGATE = re.compile("[\ud800-\udfff]")


class BadRow(UserError):
    """A row that nothing can be learned from: `reason` is what such rows are counted under."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason


def text(value: Any, name: str, empty: str = "empty text") -> str:
    """Text with something in it. Raises BadRow, for `empty` if there is nothing."""
    if value is None:
        raise BadRow("missing column", f"{name} is missing")
    if not isinstance(value, str):
        raise BadRow("no text", f"{name} is {short(value)}: give text")
    if not value.strip():
        raise BadRow(empty, f"{name} is {short(value)}: give text")
    return whole(value, name)


def whole(value: str, name: str) -> str:
    """Text of whole characters, or none. Raises BadRow for half of one, which no tokenizer takes."""
    if not value.isascii() and _SURROGATE.search(value):
        raise BadRow("no text", f"{name} holds half of a character ({short(value)}): it was cut or decoded wrongly")
    return value


def number(value: Any, name: str) -> float:
    """A finite number. Raises BadRow."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise BadRow("no number", f"{name} is {short(value)}, not a number")
    try:
        found = float(value)
    except OverflowError:
        found = math.inf
    if not math.isfinite(found):
        raise BadRow("number that is not finite", f"{name} is {short(value)}, which is not finite")
    return found


def turns(value: Any, name: str) -> Conversation:
    """Text as one user turn, or turns under any of the names that roles have. Their order is not checked."""
    if isinstance(value, str):
        if _RENDERED.match(value):
            raise BadRow(
                "prompt with a template in it",
                f"{name} is {short(value)}, which a chat template rendered already: give the turns",
            )
        return (Message("user", text(value, name)),)
    listed = [value] if isinstance(value, Mapping) else value
    if value is None or not isinstance(listed, list) or not listed:
        if value is None:
            raise BadRow("missing column", f"{name} is missing")
        raise BadRow("no text", f"{name} is {short(value)}: give text, or turns with role and content")
    return tuple(_turn(each, f"{name} turn {place}") for place, each in enumerate(listed, start=1))


def _turn(value: Any, name: str) -> Message:
    if not isinstance(value, Mapping):
        raise BadRow("no text", f"{name} is {short(value)}: give an object with role and content")
    role = value.get("role", value.get("from"))
    known = ROLES.get(role) if isinstance(role, str) else None
    if known is None:
        raise BadRow("unknown role", f"{name} has role {short(role)}: give system, user or assistant")
    content = value.get("content", value.get("value"))
    if isinstance(content, list):
        content = _parts(content, name)
    if known == "system" and content == "":
        return Message(known, "")
    return Message(known, text(content, f"{name} ({known})", "empty turn"))


def _parts(parts: list[Any], name: str) -> str:
    """The text of a turn in parts, as multimodal APIs have it."""
    for part in parts:
        if not isinstance(part, Mapping) or part.get("type") != "text" or not isinstance(part.get("text"), str):
            raise BadRow("no text", f"{name} has a part that is no text: {short(part)}")
    return "".join(part["text"] for part in parts)


def prompt(said: Conversation, name: str) -> Conversation:
    """The turns, if an assistant can answer them: they alternate, and the user's is the last. Raises BadRow.

    Two turns of one role in a row are refused, as many chat templates refuse them and the others differ in what they
    make of them; a system turn may only be the first.
    """
    spoken = said[1:] if said and said[0].role == "system" else said
    before = len(said) - len(spoken)
    if not any(turn.role == "user" for turn in spoken):
        raise BadRow("no user turn", f"{name} has no user turn")
    for place, turn in enumerate(spoken):
        expected = "assistant" if place % 2 else "user"
        where = f"{name} turn {place + before + 1}"
        if turn.role == "system":
            raise BadRow("turns out of order", f"{where} is a system turn: only the first may be one")
        if turn.role != expected:
            why = f"two {turn.role} turns in a row" if place else "the assistant speaks first"
            raise BadRow("turns out of order", f"{where} is the {turn.role}'s, where the {expected}'s is due: {why}")
    if said[-1].role != "user":
        raise BadRow("prompt without a question", f"{name} ends with the assistant's turn: there is nothing to answer")
    return said


def answered(said: Conversation, name: str) -> Conversation:
    """The turns, if they alternate and the assistant's is the last. Raises BadRow."""
    if said[-1].role != "assistant":
        raise BadRow("no answer", f"{name} ends with the {said[-1].role}'s turn: the last must be the assistant's")
    prompt(said[:-1], name)
    return said


def answer(value: Any, name: str) -> str:
    """Text, or one turn of the assistant's. Raises BadRow."""
    if not isinstance(value, Mapping | list):
        return text(value, name, "empty answer")
    said = turns(value, name)
    if len(said) != 1 or said[0].role != "assistant":
        raise BadRow("no text", f"{name} is {short(value)}: give text, or one assistant turn")
    return said[0].content


def assistant(said: str) -> Message:
    """An answer as the assistant's turn."""
    return Message("assistant", said)


def short(value: Any) -> str:
    """How a value is shown in a message."""
    shown = "missing" if value is None else ascii(value) if isinstance(value, str) else repr(value)
    return shown if len(shown) <= 60 else shown[:57] + "..."
