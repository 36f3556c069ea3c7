"""Files that are whole or not there, and folders that one process works in at a time."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from rlhf_bench.harness.errors import Fault, UserError


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
        raise Fault(f"cannot write {path}: {error.strerror}") from error


@contextmanager
def only_one(folder: Path, doing: str) -> Iterator[None]:
    """Hold the folder's lock, which goes when the process dies. Raises UserError where another process holds it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise Fault(f"cannot make {folder}: {error.strerror}") from error
    lock = FileLock(folder / "lock", timeout=0)
    try:
        lock.acquire()
    except Timeout:
        raise UserError(f"another process is {doing} in {folder}: wait for it") from None
    try:
        yield
    finally:
        lock.release()
