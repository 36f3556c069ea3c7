"""What an OpenAI-compatible server said: its body to a Completion, or to the one reason why it is none. Pure."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, NoReturn

from rlhf_bench.harness.prices import Usage
from rlhf_bench.harness.types import Completion, FinishReason, Request

Kind = Literal[
    "transport", "throttled", "server", "unparseable", "content filter", "rejected", "logprobs missing", "other model"
]
AGAIN: frozenset[Kind] = frozenset({"transport", "throttled", "server", "unparseable"})
"""Kinds that may pass: they are tried again."""
SHOWN = 200
_FINISH: Mapping[Any, FinishReason] = {"length": "length", "max_tokens": "length"}


@dataclass(eq=False)
class Failed(Exception):
    """One attempt gave no answer. `wait_s` is the server's Retry-After; `billed`, that the server may count it."""

    kind: Kind
    text: str
    wait_s: float = 0.0
    billed: bool = False
    usage: Usage | None = None

    def __str__(self) -> str:
        return f"{self.kind}: {self.text}"


def may_pass(why: str) -> bool:
    """Whether an answer failed for a reason that may be gone the next time that it is asked for."""
    return why.partition(":")[0] in AGAIN


def read_reply(body: bytes, request: Request, model: str, any_model: bool) -> tuple[Completion, Usage]:
    """The completion in the body of a 200, and its usage. Raises Failed for everything else.

    The served model must be `model`, or `model` with a date or version after it, unless `any_model`; a server that does
    not say which it is is believed. A refusal is an answer, with `why` "refused". Half a surrogate pair, which a cut in
    the middle of a character leaves, becomes U+FFFD, as a tokenizer decodes it.
    """
    said = parse(body)
    usage = _usage(said.get("usage"))
    served = said.get("model") or ""
    if not isinstance(served, str):
        _unparseable("'model' is not text", usage)
    if served and not any_model and not re.fullmatch(re.escape(model) + r"([-:@]\d[\w.:-]*)?", served):
        raise Failed("other model", f"asked for {model}, answered by {clean(served)}", billed=True, usage=usage)
    choice = _first(said.get("choices"), "choices", usage)
    reason = choice.get("finish_reason")
    if reason == "content_filter":
        raise Failed("content filter", "the server withheld the answer", billed=True, usage=usage)
    text, refused = _called(choice, usage) if request.sampling.function else _text(choice, usage)
    logprobs: Mapping[str, float] = {}
    if request.sampling.logprobs and not refused:
        logprobs = _logprobs(choice.get("logprobs"), isinstance(request.prompt, str), usage)
    fingerprint = said.get("system_fingerprint")
    by = f"{served} {fingerprint}" if isinstance(fingerprint, str) and fingerprint else served
    completion = Completion(
        request.sample_id,
        request.index,
        whole(text),
        _FINISH.get(reason, "stop") if isinstance(reason, str) else "stop",
        usage.output,
        why="refused" if refused else "",
        top_logprobs=logprobs,
        served_by=clean(by),
    )
    return completion, usage


def read_refusal(status: int, body: bytes, retry_after_s: float | None) -> Failed:
    """Why a reply with another status than 200 is no answer."""
    said = _error_text(body)
    text = f"HTTP {status}{': ' + said if said else ''}"
    if "content_filter" in said or "content_policy" in said or "content management policy" in said:
        return Failed("content filter", text)
    if status in (429, 529) or (status == 503 and retry_after_s is not None):
        return Failed("throttled", text, retry_after_s or 0.0)
    if status >= 500 or status in (408, 409, 425):
        return Failed("server", text, billed=True)
    if 300 <= status < 400:
        return Failed("rejected", f"HTTP {status}: it redirects, and a redirect is not followed")
    return Failed("rejected", text)


def parse(body: bytes) -> Mapping[str, Any]:
    """The JSON object in the body. Raises Failed, also for the NaN and Infinity that JSON does not have."""
    try:
        said = json.loads(body, parse_constant=_no_constant)
    except (ValueError, RecursionError):
        raise Failed("unparseable", f"the body is not JSON: {clean(body[:SHOWN])!r}", billed=True) from None
    if not isinstance(said, dict):
        raise Failed("unparseable", f"the body is not a JSON object: {clean(body[:SHOWN])!r}", billed=True)
    return said


def clean(text: str | bytes) -> str:
    """What a server sent, fit for one line of ours."""
    decoded = text.decode(errors="replace") if isinstance(text, bytes) else whole(text)
    return re.sub(r"[\s\x00-\x1f\x7f]+", " ", decoded[: 4 * SHOWN]).strip()[:SHOWN]


def whole(text: str) -> str:
    """The text, each half of a surrogate pair replaced by U+FFFD."""
    return text if text.isascii() else text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


def _text(choice: Mapping[str, Any], usage: Usage) -> tuple[str, bool]:
    if "text" in choice:
        text, refusal = choice["text"], None
    else:
        message = choice.get("message")
        if not isinstance(message, dict):
            _unparseable("the choice has no message", usage)
        text, refusal = message.get("content"), message.get("refusal")
    if isinstance(refusal, str) and refusal and not text:
        return refusal, True
    if text is None and choice.get("finish_reason") == "length":
        return "", False  # a reasoning model that ran out of tokens before it said a word
    if not isinstance(text, str):
        _unparseable("the message has no text", usage)
    return text, False


def _called(choice: Mapping[str, Any], usage: Usage) -> tuple[str, bool]:
    """The arguments of the first function call, or a refusal. Raises Failed where there is neither."""
    message = choice.get("message")
    if not isinstance(message, dict):
        _unparseable("the choice has no message", usage)
    if not message.get("tool_calls") and (message.get("refusal") or choice.get("finish_reason") == "length"):
        return _text(choice, usage)
    try:
        arguments = message["tool_calls"][0]["function"]["arguments"]
    except (TypeError, KeyError, IndexError):
        arguments = None
    if not isinstance(arguments, str):
        _unparseable("the message calls no function", usage)
    return arguments, False


def _logprobs(said: Any, is_text: bool, usage: Usage) -> dict[str, float]:
    """Token to logprob of the first generated token's alternatives, as the chat or the text endpoint writes them."""
    pairs: list[tuple[Any, Any]] = []
    try:
        if is_text:
            pairs = list(said["top_logprobs"][0].items())
        else:
            pairs = [(each["token"], each["logprob"]) for each in said["content"][0]["top_logprobs"]]
    except (TypeError, KeyError, IndexError, AttributeError):
        pass
    numbers = {t: p for t, p in pairs if isinstance(t, str) and isinstance(p, int | float) and not isinstance(p, bool)}
    found = {whole(token): float(value) for token, value in numbers.items() if math.isfinite(value) and value <= 1e-3}
    if not found:
        raise Failed("logprobs missing", "the server gave none for the first token", billed=True, usage=usage)
    return found


def _first(choices: Any, name: str, usage: Usage) -> Mapping[str, Any]:
    if not isinstance(choices, list) or not choices or not isinstance(choices[0], dict):
        _unparseable(f"'{name}' is empty or no list", usage)
    first: Mapping[str, Any] = choices[0]
    return first


def _usage(said: Any) -> Usage:
    """The tokens that the server counted; 0 for what it does not say."""
    said = said if isinstance(said, dict) else {}
    details = said.get("prompt_tokens_details")
    cached = _count(details.get("cached_tokens")) if isinstance(details, dict) else 0
    read = _count(said.get("prompt_tokens"))
    return Usage(1, read, min(cached, read), _count(said.get("completion_tokens")))


def _count(value: Any) -> int:
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 40 else 0


def _error_text(body: bytes) -> str:
    try:
        said: Any = parse(body)
    except Failed:
        return clean(body[:SHOWN])
    error = said.get("error", said)
    if not isinstance(error, dict):
        return clean(str(error))
    return clean(" ".join(str(error[name]) for name in ("code", "type", "message") if error.get(name)))


def _unparseable(text: str, usage: Usage) -> NoReturn:
    raise Failed("unparseable", text, billed=True, usage=usage)


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")
