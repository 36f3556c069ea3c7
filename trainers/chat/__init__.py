"""The chat template of a model that is trained: its own, or one that the recipe gives it; and whether it will do."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from rlhf_bench.harness.checkpoint import DECISIVE, OWN_FILES, chat_template_digest
from rlhf_bench.harness.errors import UnknownName, UserError
from rlhf_bench.harness.files import user_path
from rlhf_bench.harness.types import Checkpoint, Conversation, Message
from rlhf_bench.trainers.starts import config_of, unreadable

HERE = Path(__file__).parent
TEMPLATE, GENERATION = "chat_template.jinja", "generation_config.json"


def check_talks(start: Checkpoint, given: str | None = None) -> None:
    """Raise UserError where a model has no chat template, and none is given to it."""
    if given is not None:
        template_text(given)
    elif not chat_template_digest(Path(start.path)):
        raise UserError(
            f"the tokenizer of {start.path} has no chat template: use a chat model, or make it one by SFT with "
            f"chat_template set ({', '.join(_packaged())}, or a Jinja file)"
        )


def tokenizer_at(folder: Path) -> Any:
    """The tokenizer of the model in this folder. Raises UserError where these, or its configuration, cannot be read."""
    from transformers import AutoConfig, AutoTokenizer

    config_of(folder)
    try:  # a kind of model that is not known, or has code of its own, is refused here and not after long work
        AutoConfig.from_pretrained(folder, **OWN_FILES)
    except Exception as error:
        raise unreadable(f"the model in {folder}", error) from error
    try:
        return AutoTokenizer.from_pretrained(folder, **OWN_FILES)
    except Exception as error:  # it raises whatever the files lead it to
        raise unreadable(f"the tokenizer in {folder}", error) from error


def dressed(start: Checkpoint, template: str, folder: Path) -> Checkpoint:
    """The model with another chat template, in `folder`: links to its files, the template, and where an answer ends.

    Every process that trains may call it for the same folder. Raises UserError where the tokenizer has no token that
    ends an answer by this template.
    """
    if not folder.exists():
        draft = folder.with_name(f"{folder.name}.{os.getpid()}")
        shutil.rmtree(draft, ignore_errors=True)
        for file in (file for pattern in DECISIVE for file in Path(start.path).glob(pattern)):
            link = draft / file.relative_to(start.path)
            if link.name not in (TEMPLATE, GENERATION) and not link.exists():
                link.parent.mkdir(parents=True, exist_ok=True)
                link.symlink_to(file.resolve())
        (draft / TEMPLATE).write_text(template_text(template), encoding="utf-8")
        settings = {**_settings(Path(start.path)), "eos_token_id": _ends(Path(start.path), draft)}
        (draft / GENERATION).write_text(json.dumps(settings, indent=2), encoding="utf-8")
        try:
            draft.rename(folder)
        except OSError:  # another process was first
            shutil.rmtree(draft)
    return replace(start, path=str(folder))


def wearing(tokenizer: Any, template: str | None, start: Checkpoint) -> Any:
    """The tokenizer of `start` with the template that the recipe gives it, if it gives one.

    Raises UserError where answers by that template cannot be trained on, as with another vocabulary's control tokens.
    """
    from rlhf_bench.trainers.data import encode_conversation

    if template is None:
        return tokenizer
    tokenizer.chat_template = template_text(template)
    try:
        encode_conversation(tokenizer, (Message("user", "Why?"), Message("assistant", "Because.")))
    except UserError as fault:
        own = ", or null for its own" if chat_template_digest(Path(start.path)) else ""
        raise UserError(
            f"chat_template {template} does not suit {start.path} ({fault}): set one whose control tokens are in its "
            f"vocabulary{own}"
        ) from None
    return tokenizer


def check_data(tokenizer: Any, said: Sequence[Conversation], folder: Path | None = None) -> None:
    """Raise UserError where the tokenizer's template cannot be trained with on these prompts or conversations.

    `folder` is that of a model whose generation settings must know where its answers end.
    """
    from rlhf_bench.trainers.data import check_template, stops_of

    system = any(turn.role == "system" for turns in said for turn in turns)
    several = any(sum(turn.role == "assistant" for turn in turns) > 1 for turns in said)
    check_template(tokenizer, stops=() if folder is None else stops_of(folder), system=system, turns=several)


def template_text(template: str) -> str:
    """A packaged template, or that in a Jinja file. Raises UserError."""
    if template in _packaged():
        return (HERE / f"{template}.jinja").read_text(encoding="utf-8")
    try:
        return user_path(template).read_text(encoding="utf-8")
    except FileNotFoundError:
        raise UnknownName("chat template", template, _packaged(), "A path to a Jinja file works too.") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"chat_template {template} cannot be read ({error}): give a Jinja file in UTF-8") from None


def _packaged() -> list[str]:
    return sorted(path.stem for path in HERE.glob("*.jinja"))


def _ends(start: Path, draft: Path) -> list[int]:
    """The token that ends an answer by the new template, and those at which the model stopped before."""
    from rlhf_bench.trainers.data import encode_conversation, stops_of

    tokenizer = tokenizer_at(draft)
    ids, learned = encode_conversation(tokenizer, (Message("user", "Why?"), Message("assistant", "Because.")))
    last = max(place for place, own in enumerate(learned) if own)
    return [ids[last], *sorted(stops_of(start) - {ids[last]})]


def _settings(folder: Path) -> dict[str, Any]:
    try:
        found = json.loads((folder / GENERATION).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
