"""The layouts that training data come in, recognised by their columns, and what a row of each is.

A row is one of four things, which the readers turn into what is asked for: a Preference, Ranked answers, a Labelled
answer (good or bad), or a Dialogue.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal, TypeAlias

from rlhf_bench.harness.errors import UnknownName
from rlhf_bench.harness.types import Conversation, FinishReason, Message, Preference
from rlhf_bench.trainers.data import turns as parse
from rlhf_bench.trainers.data.sources import Row
from rlhf_bench.trainers.data.turns import BadRow

Kind: TypeAlias = Literal["preferences", "conversations", "prompts", "ranked"]
PROMPTS = ("prompt", "context_messages", "conversations", "messages", "instruction", "question")
ANSWERS = ("completion", "response", "output")
SCORE_PAIRS = (
    ("score_chosen", "score_rejected"),
    ("chosen_score", "rejected_score"),
    ("chosen-rating", "rejected-rating"),
    ("chosen_rating", "rejected_rating"),
)
"""The columns whose difference is the margin, where there is no column `margin`."""
_HH = re.compile(r"\n\n(Human|Assistant):")


@dataclass(frozen=True, slots=True)
class Ranked:
    """Answers to a prompt with their rewards, None where one could not be scored."""

    prompt: Conversation
    responses: tuple[str, ...]
    rewards: tuple[float | None, ...]
    finish_reasons: tuple[FinishReason, ...]


@dataclass(frozen=True, slots=True)
class Labelled:
    """An answer that is good or bad by itself, as KTO has them."""

    prompt: Conversation
    answer: str
    good: bool


@dataclass(frozen=True, slots=True)
class Dialogue:
    """Turns; whether the last is an answer is for the reader to ask. `name` is their column."""

    turns: Conversation
    name: str
    reference: str = ""


Item: TypeAlias = Preference | Ranked | Labelled | Dialogue


@dataclass(frozen=True, slots=True)
class Format:
    """A layout. Of each group in `columns` one must be there; `fits` looks at their values too."""

    name: str
    columns: tuple[tuple[str, ...], ...]
    parse: Callable[[Row], Item]
    gives: tuple[Kind, ...]
    fits: Callable[[Row], bool] = lambda row: True

    def missing(self, row: Collection[str]) -> str | None:
        """The first column that the row lacks, with what may stand for it."""
        return next((" or ".join(group) for group in self.columns if not any(name in row for name in group)), None)


def preference(row: Row) -> Preference:
    """A prompt with a better and a worse answer: each an answer alone, or the whole conversation."""
    sides = [row.get(name) for name in ("chosen", "rejected")]
    if all(_whole(side) for side in sides):
        return implicit(row)
    return _preference(row, prompt_of(row), *(parse.answer(row.get(name), name) for name in ("chosen", "rejected")))


def implicit(row: Row) -> Preference:
    """Two conversations that differ in the last turn, or two texts that begin alike (TRL's implicit prompt)."""
    chosen, rejected = row["chosen"], row["rejected"]
    if isinstance(chosen, str) and isinstance(rejected, str):
        return _texts(row, chosen, rejected)
    a, b = (parse.answered(parse.turns(row[name], name), name) for name in ("chosen", "rejected"))
    return _conversations(row, a, b)


def hh(row: Row) -> Preference:
    """HH-RLHF: "\\n\\nHuman: …\\n\\nAssistant: …" twice, alike up to the last answer."""
    a, b = (parse.answered(_hh_turns(row[name], name), name) for name in ("chosen", "rejected"))
    return _conversations(row, a, b)


def shp(row: Row) -> Preference:
    """The Stanford Human Preferences set: two comments on a post, of which `labels` 1 prefers A."""
    prompt = parse.turns(row["history"], "history")
    label = parse.number(row["labels"], "labels")
    a, b = (parse.text(row[f"human_ref_{side}"], f"human_ref_{side}") for side in "AB")
    scores = [parse.number(row[f"score_{side}"], f"score_{side}") for side in "AB" if f"score_{side}" in row]
    margin = parse.number(abs(scores[0] - scores[1]), "the difference of the scores") if len(scores) == 2 else 1.0
    tags = {"score_ratio": repr(parse.number(row["score_ratio"], "score_ratio"))} if "score_ratio" in row else {}
    return _preference({"margin": margin, "tags": tags}, prompt, *((a, b) if label == 1 else (b, a)))


def ultrafeedback(row: Row) -> Ranked:
    """UltraFeedback as it was published: an instruction and completions, each with its overall score."""
    found = row["completions"]
    if not isinstance(found, list) or not all(isinstance(each, Mapping) for each in found):
        raise BadRow("no text", f"completions is {parse.short(found)}: give a list of objects")
    rewards = [each.get("overall_score") for each in found]
    return _ranked(prompt_of(row), [each.get("response") for each in found], rewards, None)


def ranked(row: Row) -> Ranked:
    """RLHFlow's rewards: a prompt, responses and their rewards."""
    return _ranked(prompt_of(row), row["responses"], row["rewards"], row.get("finish_reasons"))


def labelled(row: Row) -> Labelled:
    """An answer with a label, true or 1 where it is good: a prompt and a completion, or a conversation."""
    label = row["label"]
    if not isinstance(label, bool) and label not in (0, 1):
        raise BadRow("no label", f"label is {parse.short(label)}: give true or false")
    said = answered(row)
    whole = parse.answered(said.turns, said.name)
    return Labelled(whole[:-1], whole[-1].content, bool(label))


def answered(row: Row) -> Dialogue:
    """A prompt and a completion, or a whole conversation."""
    key = next((name for name in ANSWERS if name in row), None)
    if key is None:
        return dialogue(row)
    said = (*prompt_of(row), Message("assistant", parse.answer(row[key], key)))
    return Dialogue(said, "the conversation")


def dialogue(row: Row) -> Dialogue:
    """A conversation as turns: `messages`, or ShareGPT's `conversations`."""
    key = "messages" if "messages" in row else "conversations"
    return Dialogue(_with_system(row, parse.turns(row.get(key), key)), key)


def prompt_only(row: Row) -> Dialogue:
    """A prompt without an answer."""
    key = next(name for name in PROMPTS if name in row)
    reference = row.get("reference", "")
    return Dialogue(prompt_of(row), key, reference if isinstance(reference, str) else "")


def prompt_of(row: Row) -> Conversation:
    """The prompt of a row, under any of its names, checked.

    Alpaca's `input` follows the instruction on a line of its own; a column `system` is the system turn, and `history`
    (pairs of question and answer) the earlier turns.
    """
    key = next((name for name in PROMPTS if name in row), "prompt")
    said = parse.turns(row.get(key), key)
    if key == "instruction" and row.get("input"):
        said = (Message("user", f"{said[0].content}\n{parse.text(row['input'], 'input')}"),)
    history = row.get("history", [])
    if not isinstance(history, list) or not all(isinstance(pair, list) and len(pair) == 2 for pair in history):
        raise BadRow("no text", f"history is {parse.short(history)}: give pairs of question and answer")
    earlier = [
        turn
        for question, reply in history
        for turn in (
            Message("user", parse.text(question, "history")),
            Message("assistant", parse.text(reply, "history")),
        )
    ]
    return parse.prompt(_with_system(row, (*earlier, *said)), key)


def _with_system(row: Row, said: Conversation) -> Conversation:
    if not row.get("system") or said[0].role == "system":
        return said
    return (Message("system", parse.text(row["system"], "system")), *said)


def _preference(row: Row, prompt: Conversation, chosen: str, rejected: str) -> Preference:
    if chosen == rejected:
        raise BadRow("chosen = rejected", f"chosen and rejected are the same answer, {parse.short(chosen)}")
    tags = row.get("tags") or {}
    if isinstance(tags, str):  # as a column of one type holds it
        tags = _json_object(tags)
    if not isinstance(tags, Mapping) or not all(isinstance(value, str) for value in tags.values() if value is not None):
        raise BadRow("no text", f"tags is {parse.short(tags)}: give an object of text")
    kept = {name: value for name, value in tags.items() if value is not None}
    return Preference(prompt, chosen, rejected, _margin(row), kept)


def _json_object(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


def _margin(row: Row) -> float:
    """The column `margin`, else the difference of a pair of scores, else 1."""
    if "margin" in row:
        return parse.number(row["margin"], "margin")
    for names in SCORE_PAIRS:
        if all(name in row for name in names):
            better, worse = (parse.number(row[name], name) for name in names)
            return parse.number(better - worse, "the difference of the scores")
    return 1.0


def _whole(side: Any) -> bool:
    """Whether a column holds a conversation, and not only its last turn."""
    return isinstance(side, list) and len(side) > 1


def _conversations(row: Row, chosen: Conversation, rejected: Conversation) -> Preference:
    if chosen[:-1] != rejected[:-1]:
        raise BadRow(
            "prompts that differ", "chosen and rejected differ before their last turn: they answer no one prompt"
        )
    return _preference(row, chosen[:-1], chosen[-1].content, rejected[-1].content)


def _texts(row: Row, chosen: str, rejected: str) -> Preference:
    """The prompt is what both begin with, up to the last space: words are not cut."""
    parse.text(chosen, "chosen"), parse.text(rejected, "rejected")
    if chosen == rejected:
        raise BadRow("chosen = rejected", f"chosen and rejected are the same text, {parse.short(chosen)}")
    alike = next((at for at, (a, b) in enumerate(zip(chosen, rejected, strict=False)) if a != b), None)
    shared = chosen[: min(len(chosen), len(rejected)) if alike is None else alike]
    shared = shared[: max((at + 1 for at, sign in enumerate(shared) if sign.isspace()), default=0)]
    if not shared.strip():
        raise BadRow("no prompt", "chosen and rejected begin with no words in common: give the prompt, in a column")
    answers = (text[len(shared) :] for text in (chosen, rejected))
    return _preference(
        row,
        parse.prompt(parse.turns(shared.rstrip(), "the prompt"), "the prompt"),
        *(parse.answer(text, name) for text, name in zip(answers, ("chosen", "rejected"), strict=True)),
    )


def _hh_turns(value: Any, name: str) -> Conversation:
    """The turns of a text; of each the one space after the colon is no part."""
    before, *parts = _HH.split(parse.text(value, name))
    if before.strip() or not parts:
        raise BadRow(
            "no text", f"{name} is {parse.short(value)}: give text that begins with a Human: or Assistant: turn"
        )
    roles = [parse.ROLES[role.lower()] for role in parts[::2]]
    said = [part.removeprefix(" ") for part in parts[1::2]]
    where = [f"{name} turn {place} ({role})" for place, role in enumerate(roles, start=1)]
    return tuple(
        Message(role, parse.text(content, place, "empty turn"))
        for role, content, place in zip(roles, said, where, strict=True)
    )


def _ranked(prompt: Conversation, responses: Any, rewards: Any, finish: Any) -> Ranked:
    if not isinstance(responses, list) or not all(isinstance(each, str) for each in responses):
        raise BadRow("no text", f"responses is {parse.short(responses)}: give a list of text")
    if not isinstance(rewards, list) or len(rewards) != len(responses):
        given = len(rewards) if isinstance(rewards, list) else parse.short(rewards)
        raise BadRow("rewards that do not fit", f"there are {len(responses)} responses and {given} rewards")
    reasons = finish or ["stop"] * len(responses)
    if len(reasons) != len(responses) or any(reason not in ("stop", "length", "error") for reason in reasons):
        raise BadRow("rewards that do not fit", f"finish_reasons is {parse.short(finish)}: give stop, length or error")
    scores = [None if reward is None else parse.number(reward, "reward") for reward in rewards]
    answers = tuple(parse.whole(each, f"response {place}") for place, each in enumerate(responses, start=1))
    return Ranked(prompt, answers, tuple(scores), tuple(reasons))


def _is_hh(row: Row) -> bool:
    return all(isinstance(row[name], str) and _HH.match(row[name]) for name in ("chosen", "rejected"))


_PAIR = (("chosen",), ("rejected",))
_FROM_PAIRS: tuple[Kind, ...] = ("preferences", "conversations", "prompts")
_FROM_TURNS: tuple[Kind, ...] = ("conversations", "prompts")
FORMATS: Sequence[Format] = (
    Format("ultrafeedback", (("instruction",), ("completions",)), ultrafeedback, ("ranked", "preferences", "prompts")),
    Format("shp", (("history",), ("human_ref_A",), ("human_ref_B",), ("labels",)), shp, _FROM_PAIRS),
    Format("rlhflow", (PROMPTS, ("responses",), ("rewards",)), ranked, ("ranked", "preferences", "prompts")),
    Format("hh-rlhf", _PAIR, hh, _FROM_PAIRS, _is_hh),
    Format("preference", (PROMPTS, *_PAIR), preference, _FROM_PAIRS),
    Format("implicit", _PAIR, implicit, _FROM_PAIRS),
    Format("unpaired", (PROMPTS, ("label",)), labelled, _FROM_PAIRS),
    Format("alpaca", (("instruction",), ("output",)), answered, _FROM_TURNS),
    Format("prompt-completion", (PROMPTS, ANSWERS), answered, _FROM_TURNS),
    Format("messages", (("messages",),), dialogue, _FROM_TURNS),
    Format("sharegpt", (("conversations",),), dialogue, _FROM_TURNS),
    Format("prompt", (PROMPTS,), prompt_only, ("prompts",)),
)
"""In the order in which they are tried."""


def format_named(name: str) -> Format:
    """The format of this name. Raises UnknownName."""
    found = {each.name: each for each in FORMATS}
    if name not in found:
        raise UnknownName("data format", name, found)
    return found[name]


def recognise(row: Row, kind: Kind | None = None) -> Format | None:
    """The first format that the columns fit, among those that give this kind."""
    return next((each for each in _with_columns(tuple(row), kind) if each.fits(row)), None)


@lru_cache(maxsize=16)  # of 100,000 rows nearly all have the columns of the one before
def _with_columns(columns: tuple[str, ...], kind: Kind | None) -> tuple[Format, ...]:
    return tuple(each for each in FORMATS if (kind is None or kind in each.gives) and each.missing(columns) is None)
