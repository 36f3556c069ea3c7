"""Conversations to token ids by the model's own chat template, and what must hold of that template before training.

The faults looked for are those that cost users of the published code their results: a BOS written twice, an assistant's
header that prompts lack, an end of turn that is cut, so that the policy never stops, and answers that are trained on as
other tokens than the policy generates. `encode` (harness.judges.reward) renders one answer to a prompt, for rewards and
DPO; `encode_conversation` renders all turns of a conversation, for SFT, and gives the same for one turn.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

from rlhf_bench.harness.errors import UserError
from rlhf_bench.harness.types import Conversation, Message, Preference
from rlhf_bench.trainers.data.turns import BadRow, short

QUESTION = Message("user", "How many legs has a spider?")
ANSWER = "A spider has eight legs."
SYSTEM = Message("system", "Answer as a zoologist would.")


def check_template(tokenizer: Any, *, stops: Collection[int] = (), system: bool = False, turns: bool = False) -> None:
    """Raise UserError, one line that names the model and the fault, unless its chat template can be trained with.

    `stops` are the token ids that end generation beside the tokenizer's own EOS (`stops_of` reads them); where they are
    given, an answer must end with one of them. `system` and `turns` say that the data have system turns,
    and conversations of several turns that are learned from (SFT).
    """
    name = _name(tokenizer)
    head, tail = _split(tokenizer, (QUESTION,), ANSWER)
    _check_end(tokenizer, tail, {*stops}, name)
    _check_tokens(tokenizer, head, tail, name)
    if system:
        rendered, _ = _split(tokenizer, (SYSTEM, QUESTION), ANSWER)
        if SYSTEM.content not in rendered:
            raise UserError(f"the chat template of {name} leaves system turns out: take them out of the data")
    if turns:
        said = (QUESTION, Message("assistant", ANSWER))
        encode_conversation(tokenizer, (*said, *said))


def stops_of(folder: Path) -> frozenset[int]:
    """The token ids at which a checkpoint's generation ends, by its generation_config.json; none where it has none."""
    try:
        found = json.loads((folder / "generation_config.json").read_text(encoding="utf-8")).get("eos_token_id")
    except (OSError, ValueError, AttributeError):
        return frozenset()
    return frozenset(each for each in (found if isinstance(found, list) else [found]) if isinstance(each, int))


def check_text(tokenizer: Any, row: Conversation | Preference) -> None:
    """Raise BadRow where a turn or an answer holds a control token of the tokenizer as text.

    It would be read as that token, which ends or begins a turn that nobody wrote.
    """
    said = row.prompt if isinstance(row, Preference) else row
    texts = [(f"turn {number}", turn.content) for number, turn in enumerate(said, start=1)]
    if isinstance(row, Preference):
        texts += [("chosen", row.chosen), ("rejected", row.rejected)]
    for where, text in texts:
        if found := control_in(tokenizer, text):
            raise BadRow("control token in a turn", f"{where} holds {found!r}, a control token of {_name(tokenizer)}")


def control_in(tokenizer: Any, text: str) -> str | None:
    """The first control token of the tokenizer that stands in the text, if there is one."""
    found = _controls(tokenizer).text.search(text)
    return None if found is None else found.group()


def encode_conversation(tokenizer: Any, conversation: Conversation) -> tuple[list[int], list[int]]:
    """Token ids of a conversation, and a mask of the same length: 1 where the assistant would have generated the token.

    In each of its turns that is from after the assistant's header up to and with the end of turn; the loss is taken
    there. The text is cut where an answer begins, and the pieces are tokenized apart, as a policy meets them. Raises
    BadRow where a turn holds a control token of the tokenizer as text, and UserError where the template does not fit:
    it renders earlier turns otherwise once more follow (as those that strip the thinking), or loses the end of turn.
    """
    check_text(tokenizer, conversation)
    name, controls = _name(tokenizer), _controls(tokenizer)
    starts: list[tuple[int, int]] = []
    whole = done = ""
    for number, turn in enumerate(conversation):
        if turn.role != "assistant":
            continue
        head, tail = _split(tokenizer, conversation[:number], turn.content)
        end = _end_of_turn(tokenizer, tail, name)
        if not head.startswith(done):
            raise UserError(
                f"the chat template of {name} renders earlier turns otherwise once turn {number + 1} follows: "
                "take a template that leaves them as they are"
            )
        starts.append((len(head), len(end)))
        whole, done = head + tail, head + tail.partition(end[0])[0] + "".join(end)
    if not starts:
        raise BadRow("no answer", "the conversation has no turn of the assistant's")
    ids = _ids(tokenizer, whole[: starts[0][0]])
    mask = [0] * len(ids)
    for (start, closing), (stop, _) in itertools.pairwise([*starts, (len(whole), 0)]):
        piece = _ids(tokenizer, whole[start:stop])
        learned = next(place for place, token in enumerate(piece) if token in controls.ids) + closing
        ids += piece
        mask += [1] * learned + [0] * (len(piece) - learned)
    return ids, mask


def _check_end(tokenizer: Any, tail: str, stops: Collection[int], name: str) -> None:
    """An answer ends with a control token, at which generation stops where it is known at which it does."""
    last = _end_of_turn(tokenizer, tail, name)[-1]
    if stops and not {*stops, tokenizer.eos_token_id} & {*_ids(tokenizer, last)}:
        raise UserError(
            f"the chat template of {name} ends an answer with {last!r}, at which generation does not stop: "
            "add it to eos_token_id in generation_config.json"
        )


def _end_of_turn(tokenizer: Any, tail: str, name: str) -> list[str]:
    """The control tokens that end the answer: the first one, or as many in a row as it takes to the tokenizer's EOS.

    Raises UserError where there is none. The answer itself holds none.
    """
    controls = _controls(tokenizer).text
    found = controls.search(tail)
    if found is None:
        raise UserError(
            f"the chat template of {name} ends an answer with no end-of-turn token: a policy trained on it never stops"
        )
    run = []
    while found is not None:
        run.append(found.group())
        found = controls.match(tail, found.end())
    return run[: run.index(tokenizer.eos_token) + 1] if tokenizer.eos_token in run else run[:1]


def _check_tokens(tokenizer: Any, head: str, tail: str, name: str) -> None:
    """BOS stands once, and an answer's tokens are those that follow its prompt and give the answer back."""
    before, after = _ids(tokenizer, head), _ids(tokenizer, tail)
    bos = tokenizer.bos_token_id
    if bos is not None and (bos, bos) in itertools.pairwise(before):
        raise UserError(f"the chat template of {name} writes {tokenizer.bos_token!r} twice: take one of them out of it")
    together = _ids(tokenizer, head + tail)
    if together[: len(before)] == before and together[len(before) :] != after:
        raise UserError(
            f"the tokenizer of {name} makes other tokens of an answer alone than after its prompt: a policy trained "
            "on the first would never generate them; take its fast tokenizer (legacy=False)"
        )
    if ANSWER not in tokenizer.decode(after):
        raise UserError(f"the tokenizer of {name} does not give back an answer: {short(tokenizer.decode(after))}")


def _split(tokenizer: Any, prompt: Conversation, answer: str) -> tuple[str, str]:
    """The rendered prompt, up to and with the assistant's header, and the rest of the text once it is answered.

    Raises UserError as `encode` does, and where the template refuses the conversation.
    """
    from jinja2 import TemplateError

    name = _name(tokenizer)
    if not tokenizer.chat_template:
        raise UserError(f"the tokenizer of {name} has no chat template: use a chat model")
    turns = [{"role": turn.role, "content": turn.content} for turn in prompt]
    answered = [*turns, {"role": "assistant", "content": answer}]
    try:
        head: str = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
        whole: str = tokenizer.apply_chat_template(answered, tokenize=False)
        bare: str = tokenizer.apply_chat_template(turns, tokenize=False)
    except (TemplateError, TypeError, ValueError, KeyError) as error:
        raise UserError(f"the chat template of {name} refuses a conversation: {' '.join(str(error).split())}") from None
    if not whole.startswith(head):
        raise UserError(f"the chat template of {name} renders a prompt differently once it is answered: mend it")
    tail = whole[len(head) :]
    if tail.lstrip().startswith(answer.strip()):
        return head, tail
    before, found, _ = tail.partition(answer.strip())
    if head == bare:
        raise UserError(f"the chat template of {name} does not add the assistant's header to a prompt: mend it")
    if not found:
        raise UserError(f"the chat template of {name} changes the text of an answer, to {short(tail)}")
    raise UserError(
        f"the chat template of {name} writes {short(before)} before an answer, which its prompts do not end with: "
        "a policy would have to generate it"
    )


def _ids(tokenizer: Any, text: str) -> list[int]:
    """Token ids of rendered text: the template writes its own BOS, so none is added."""
    return list(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])


@dataclass(frozen=True, slots=True)
class _Controls:
    """The control tokens of a tokenizer: their ids, and what finds one in text."""

    ids: frozenset[int]
    text: re.Pattern[str]


_KNOWN: WeakKeyDictionary[Any, _Controls] = WeakKeyDictionary()


def _controls(tokenizer: Any) -> _Controls:
    if tokenizer not in _KNOWN:
        found = {token.content: number for number, token in tokenizer.added_tokens_decoder.items() if token.special}
        longest_first = sorted(found, key=len, reverse=True)
        _KNOWN[tokenizer] = _Controls(
            frozenset(found.values()), re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")
        )
    return _KNOWN[tokenizer]


def _name(tokenizer: Any) -> str:
    return getattr(tokenizer, "name_or_path", "") or "the model"
