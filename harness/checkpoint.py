"""A checkpoint is its weights: one digest over everything in the folder that decides what the model answers."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import TypeAlias

from rlhf_bench.harness.codec import digest
from rlhf_bench.harness.errors import ChangedCheckpoint, Fault, MissingData, UserError
from rlhf_bench.harness.types import Checkpoint

DECISIVE = (
    "*.safetensors",
    "*.safetensors.index.json",
    "config.json",
    "generation_config.json",
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.*",
    "additional_chat_templates/*",
    "vocab.*",
    "merges.txt",
    "spiece.model",
    "adapter_config.json",
)
"""Files that decide the answers, relative to the folder. A README, a log or an optimizer state does not."""
OWN_FILES = {"trust_remote_code": False, "local_files_only": True}
"""How transformers is to read a checkpoint: without the first it asks on the terminal whether to run its code."""
Stamps: TypeAlias = tuple[tuple[str, int, int, int, int, int], ...]
PICKLED = ("*.bin", "*.pt", "*.pth", "*.ckpt")


def checkpoint_digest(path: Path) -> str:
    """sha256, in hex, over the sorted (relative name, sha256) of the files that decide what the model answers.

    Raises UserError if `path` is not a folder with a config.json and safetensors weights.
    """
    if not (path / "config.json").is_file():
        raise UserError(f"{path} is no checkpoint: it has no config.json. Give a folder saved by transformers.")
    files = decisive_files(path)
    if not any(file.suffix == ".safetensors" for file in files):
        pickled = any(file for pattern in PICKLED for file in path.glob(pattern))
        found = "only pickled weights, which can run code and are refused" if pickled else "no weights"
        raise UserError(f"{path} has {found}. Save it as safetensors: model.save_pretrained(folder).")
    return digest(sorted((file.relative_to(path).as_posix(), file_digest(file)) for file in files))


def stamps(path: Path) -> Stamps:
    """What changes when a file that the digest covers is written to, replaced, added or removed.

    Of each its relative name, device, inode, size, and the times (ns) of its content and of itself. A second write in
    one tick of the file system's clock is not seen. Raises Fault where they cannot be read.
    """
    found = []
    try:
        for file in sorted(decisive_files(path)):
            s = file.stat()
            name = file.relative_to(path).as_posix()
            found.append((name, s.st_dev, s.st_ino, s.st_size, s.st_mtime_ns, s.st_ctime_ns))
    except OSError as error:
        raise Fault(f"cannot read {path}: {error.strerror}") from error
    return tuple(found)


def decisive_files(path: Path) -> set[Path]:
    """The files of a folder that its digest covers."""
    return {file for pattern in DECISIVE for file in path.glob(pattern) if file.is_file()}


def file_digest(path: Path) -> str:
    """sha256 of a file, in hex, read in pieces."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def verify(checkpoint: Checkpoint) -> None:
    """Checks that the files are the ones that were registered. Raises MissingData, ChangedCheckpoint or Fault."""
    path = Path(checkpoint.path)
    if not path.is_dir():
        raise MissingData(
            f"checkpoint {checkpoint.digest[:10]} was at {path}, which is gone. Put it back, or train it again."
        )
    try:
        found = checkpoint_digest(path)
    except OSError as error:
        raise Fault(f"cannot read {path}: {error.strerror}") from error
    if found != checkpoint.digest:
        raise ChangedCheckpoint(
            f"{path} was registered as {checkpoint.digest[:10]} and is now {found[:10]}."
            " Restore its files, or register them as a new model: rlhf-bench models register FOLDER --alias NAME"
        )


def check_finite(path: Path) -> None:
    """Raise Fault, naming the first, if a weight in this folder is NaN or infinite: such a model answers nothing."""
    import torch
    from safetensors import safe_open

    for file in sorted(path.glob("*.safetensors")):
        with safe_open(file, framework="pt") as weights:
            for name in weights.keys():  # noqa: SIM118 (it is no mapping)
                weight = weights.get_tensor(name)
                if weight.is_floating_point() and not bool(torch.isfinite(weight).all()):
                    raise Fault(f"{name} of {path} is not finite: lower learning_rate, or train in float32")


def chat_template_digest(path: Path) -> str:
    """sha256, in hex, of the text of the chat template, wherever the folder keeps it; "" if it has none."""
    text = _chat_template(path)
    return hashlib.sha256(text.encode()).hexdigest() if text is not None else ""


def _chat_template(path: Path) -> str | None:
    try:
        return _template_in(path)
    except (ValueError, AttributeError) as error:
        raise UserError(f"the chat template in {path} cannot be read ({type(error).__name__}): restore it") from None


def _template_in(path: Path) -> str | None:
    own = path / "chat_template.jinja"
    if own.is_file():
        return own.read_text(encoding="utf-8")
    for name in ("chat_template.json", "tokenizer_config.json"):
        if (path / name).is_file():
            template = json.loads((path / name).read_text(encoding="utf-8")).get("chat_template")
            if template is not None:
                return template if isinstance(template, str) else json.dumps(template, sort_keys=True)
    return None
