"""Files that are whole or not there, and folders that one process works in at a time."""

from __future__ import annotations

import gzip
import json
import os
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from rlhf_bench.harness.errors import Busy, Fault, UserError


def write(path: Path, text: str) -> None:
    """Write `text` beside `path`, flush it and rename it into place. Raises Fault, and what was there stays."""
    draft = path.with_name(path.name + ".tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with draft.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)
    except OSError as error:
        with suppress(OSError):
            draft.unlink(missing_ok=True)  # what it holds of a full disk is wanted
        raise Fault(f"cannot write {path}: {error.strerror}") from error


def user_path(text: str | Path) -> Path:
    """The path with a leading ~ or ~NAME as that user's home; a name that nobody has here is kept as it is given."""
    try:
        return Path(os.path.expanduser(text))
    except ValueError:  # a zero byte, which is in no file's name
        return Path(text)


def flush(folder: Path) -> None:
    """Have every file in `folder` on the disk, names included, so that a rename of it survives a power cut."""
    for path in (*folder.rglob("*"), folder):
        if path.is_dir() or path.is_file():
            number = os.open(path, os.O_RDONLY)
            try:
                os.fsync(number)
            finally:
                os.close(number)


@contextmanager
def only_one(folder: Path, doing: str) -> Iterator[None]:
    """Hold the folder's lock, which goes when the process dies. Raises Busy where another process holds it."""
    from filelock import FileLock, Timeout  # 10 ms that `--help` need not take

    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise Fault(f"cannot make {folder}: {error.strerror}") from error
    lock = FileLock(folder / "lock", timeout=0)
    try:
        lock.acquire()
    except Timeout:
        raise Busy(f"another process is {doing} in {folder}: wait for it") from None
    try:
        yield
    finally:
        lock.release()


def json_rows(path: Path, what: str) -> list[Any]:
    """The rows of a JSON list or of JSON lines, gzipped or not. Raises UserError where it holds none; `what` it is."""
    try:
        content = path.read_bytes()
        text = (gzip.decompress(content) if content[:2] == b"\x1f\x8b" else content).decode()
        listed = text.lstrip()[:1] == "["
        rows: list[Any] = json.loads(text) if listed else [json.loads(x) for x in text.split("\n") if x.strip()]
    except (OSError, EOFError, zlib.error, ValueError, RecursionError) as error:
        said = getattr(error, "strerror", None) or str(error).splitlines()[0]
        raise UserError(f"{path} cannot be read as {what} ({said}): give a JSON list, or JSON lines") from error
    if not rows:
        raise UserError(f"{path} holds no {what}: give a JSON list, or JSON lines")
    return rows
