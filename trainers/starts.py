"""What a training begins from: a language model where one is needed, and whole; what of it stays as it was."""

from __future__ import annotations

import json
import shutil
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from rlhf_bench.harness.checkpoint import DECISIVE, OWN_FILES
from rlhf_bench.harness.errors import UserError
from rlhf_bench.harness.types import Checkpoint

HEAD = "score.weight"
"""What a reward model has more than the language model that it began from."""
WEIGHTS = ("*.safetensors", "adapter_config.json")


def check_speaks(*models: Checkpoint) -> None:
    """Raise UserError for a reward model or another classifier, whose head that says words would be drawn at random."""
    for model in models:
        kinds = config_of(Path(model.path)).get("architectures") or []
        if any("Classification" in str(kind) for kind in kinds):
            raise UserError(
                f"{model.path} is no language model ({kinds[0]}), it only scores: take the one it began from"
            )


def config_of(folder: Path) -> dict[str, Any]:
    """The configuration of the model in this folder. Raises UserError where it is none."""
    try:
        found = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"config.json in {folder} cannot be read ({type(error).__name__}): restore it") from None
    if not isinstance(found, dict):
        raise UserError(f"config.json in {folder} holds no object: restore it")
    return found


def opened(cls: Any, path: str, new: Collection[str] = (), **options: Any) -> Any:
    """The model of a transformers class from the safetensors in a folder, none of whose code is run.

    Raises UserError where it does not load, or as `whole` does.
    """
    options |= {"use_safetensors": True, "output_loading_info": True, **OWN_FILES}
    try:
        loaded = cls.from_pretrained(path, **options)
    except (ValueError, TypeError, KeyError, AttributeError, ImportError) as error:
        raise unreadable(f"the model in {path}", error) from error
    except RuntimeError as error:
        if "mismatched_sizes" not in str(error):
            raise
        raise UserError(f"{path} holds weights of other shapes than its config.json says: save it again") from error
    return whole(loaded, path, new)


def unreadable(what: str, error: Exception) -> UserError:
    """Why `what` cannot be read by transformers, in one line."""
    said = " ".join(str(error).split())
    if "trust_remote_code" in said:
        return UserError(f"{what} needs code of its own, which is never run: take one that transformers knows")
    return UserError(f"{what} cannot be read ({type(error).__name__}: {said[:150]}): restore it")


def whole(loaded: tuple[Any, Mapping[str, Collection[str]]], path: str, new: Collection[str] = ()) -> Any:
    """The model of `from_pretrained(..., output_loading_info=True)`.

    Raises UserError where weights but those in `new` are not in its files: they would be random numbers.
    """
    model, info = loaded
    if missing := sorted(set(info["missing_keys"]) - set(new)):
        rest = f" and {len(missing) - 1} more" if missing[1:] else ""
        raise UserError(f"{path} lacks weights of its own model ({missing[0]}{rest}): save it again")
    return model


def copy_settings(source: Path, draft: Path) -> None:
    """The model's own config, tokenizer, chat template and generation defaults: training changes none of them."""
    for pattern in DECISIVE:
        for file in source.glob(pattern):
            if not pattern.startswith(WEIGHTS):
                (draft / file.relative_to(source)).parent.mkdir(exist_ok=True)
                shutil.copy(file, draft / file.relative_to(source))
