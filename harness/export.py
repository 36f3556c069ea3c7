"""Checkpoints for others: a folder as transformers reads it, a GGUF file for llama.cpp, a repository of the hub.

What is written is what was registered: the files are checked against the digest, and a folder or file appears under its
name when it is whole, or not at all.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from fnmatch import fnmatch
from pathlib import Path

from rlhf_bench.harness.checkpoint import DECISIVE, checkpoint_digest, decisive_files, verify
from rlhf_bench.harness.errors import Fault, UserError
from rlhf_bench.harness.files import flush, only_one, user_path
from rlhf_bench.harness.types import Checkpoint

BESIDE = ("recipe.json", "metrics.jsonl")
"""Files that stand beside the weights and say how they were made."""
CONVERTER = "convert_hf_to_gguf.py"
CONVERTER_VARIABLE = "RLHF_BENCH_GGUF_CONVERTER"
GGUF_MAGIC = b"GGUF"


def export_folder(checkpoint: Checkpoint, out: Path) -> Path:
    """Copy the weights, configuration and tokenizer, and how they were made, to the new folder `out`.

    Raises UserError where `out` exists or the files are not what was registered, Fault where it cannot be written.
    """
    source = Path(checkpoint.path)
    with _draft(checkpoint, out) as draft:
        draft.mkdir()
        for file in _files(source):
            copy = draft / file.relative_to(source)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, copy)
        if checkpoint_digest(draft) != checkpoint.digest:
            raise Fault(f"{source} changed while it was copied; nothing was left at {out}, export it again")
        flush(draft)
    return out


def export_gguf(checkpoint: Checkpoint, out: Path) -> Path:
    """Convert to the new file `out` by llama.cpp's converter, in the precision of the weights.

    It is RLHF_BENCH_GGUF_CONVERTER, or `convert_hf_to_gguf.py` on the PATH, and a Python script is run by this Python,
    which needs sentencepiece for it. Raises UserError where there is none, or where `out` exists, and Fault with the
    last line that it said where it fails.
    """
    converter = _converter()
    with _draft(checkpoint, out) as draft:
        program = [sys.executable, str(converter)] if converter.suffix == ".py" else [str(converter)]
        command = [*program, checkpoint.path, "--outfile", str(draft), "--outtype", "auto"]
        done = subprocess.run(command, capture_output=True, text=True, errors="replace")
        if done.returncode:
            said = [line.strip() for line in (done.stderr or done.stdout).splitlines() if line.strip()]
            raise Fault(f"{converter} failed on {checkpoint.path}: {said[-1] if said else f'exit {done.returncode}'}")
        if not _is_gguf(draft):
            raise Fault(f"{converter} wrote no GGUF file for {checkpoint.path}")
        flush(draft.parent)
    return out


def push(checkpoint: Checkpoint, repository: str, *, public: bool = False) -> str:
    """Put the checkpoint into the repository `org/name` of the hub, a new one if need be; gives the commit's address.

    Files of an earlier model that decide its answers are removed in the same commit. The token is HF_TOKEN and no
    other. A new repository is private unless `public`; without it, one that is public already is left alone. Raises
    UserError for what the caller can mend, Fault where the hub cannot be reached or fails.
    """
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", repository):
        raise UserError(f"'{repository}' is no repository of the hub: write org/name")
    token = os.environ.get("HF_TOKEN", "").strip()
    if not token:
        raise UserError("pushing needs a token of the hub that may write: set HF_TOKEN")
    verify(checkpoint)
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi

    source = Path(checkpoint.path)
    api = HfApi(endpoint=os.environ.get("HF_ENDPOINT") or None, token=token)
    with _hub_faults(repository, token):
        api.create_repo(repository, private=not public, exist_ok=True)
        if not public and not api.repo_info(repository).private:
            raise UserError(f"{repository} is public, so nothing was pushed: say --public, or name another repository")
        ours = {file.relative_to(source).as_posix(): file for file in _files(source)}
        stale = sorted(name for name in api.list_repo_files(repository) if _decides(name) and name not in ours)
        added = [CommitOperationAdd(name, str(file)) for name, file in ours.items()]
        removed = [CommitOperationDelete(name) for name in stale]
        made = api.create_commit(repository, [*added, *removed], commit_message=f"checkpoint {checkpoint.digest}")
    return str(made.commit_url)


def _files(source: Path) -> list[Path]:
    beside = {source / name for name in BESIDE if (source / name).is_file()}
    return sorted(decisive_files(source) | beside)


def _decides(name: str) -> bool:
    """Whether the digest covers a file of this name, relative to the folder."""
    return any(fnmatch(name, pattern) and name.count("/") == pattern.count("/") for pattern in DECISIVE)


@contextmanager
def _draft(checkpoint: Checkpoint, out: Path) -> Iterator[Path]:
    """A path beside `out`, with nothing there, that becomes `out` where all goes well, and is removed where not."""
    if out.exists():
        raise UserError(f"{out} is there already: choose another name, or remove it")
    verify(checkpoint)
    work = out.with_name(out.name + ".part")
    draft = work / out.name
    with only_one(work, "exporting"):
        try:
            _remove(draft)  # of one that was killed
            yield draft
            draft.rename(out)
        except OSError as error:
            raise Fault(f"cannot write {out}: {error.strerror or error}; nothing was left there") from error
        finally:
            shutil.rmtree(work, ignore_errors=True)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    path.unlink(missing_ok=True)


def _is_gguf(path: Path) -> bool:
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(len(GGUF_MAGIC)) == GGUF_MAGIC


def _converter() -> Path:
    named = os.environ.get(CONVERTER_VARIABLE)
    found = named or shutil.which(CONVERTER)
    if not found:
        raise UserError(
            f"no {CONVERTER} here: it comes with llama.cpp; put it on the PATH, or name it in {CONVERTER_VARIABLE}"
        )
    if not user_path(found).is_file():
        raise UserError(f"{CONVERTER_VARIABLE} names {found}, which is no file")
    return user_path(found)


@contextmanager
def _hub_faults(repository: str, token: str) -> Iterator[None]:
    """What the hub's client raises, as one line without the token."""
    from huggingface_hub import errors
    from huggingface_hub.utils.tqdm import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    client: type[Exception] = errors.HTTPError  # type: ignore[attr-defined] # the base of what its HTTP client raises

    def line(error: Exception) -> str:
        return " ".join(str(error).replace(token, "***").split())

    shown = not are_progress_bars_disabled()
    disable_progress_bars()
    try:
        yield
    except errors.OfflineModeIsEnabled:
        raise UserError(f"HF_HUB_OFFLINE is set, so nothing is pushed to {repository}: unset it") from None
    except errors.HFValidationError as error:
        raise UserError(f"'{repository}' is no repository of the hub: {line(error)}") from None
    except errors.HfHubHTTPError as error:
        status = error.response.status_code
        if status in (401, 403):
            raise UserError(
                f"the hub refuses {repository} to this HF_TOKEN ({status}): it must be allowed to write"
            ) from None
        raise Fault(f"the hub did not take {repository}: {line(error)}") from None
    except (OSError, client) as error:
        raise Fault(f"{repository} was not pushed: {line(error)}") from None
    finally:
        if shown:
            enable_progress_bars()
