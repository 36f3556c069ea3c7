"""champion.json: who is champion, for programs that read no database.

The store decides, and the file only repeats it: it is written after each move, and again by whoever asks for the
champion and finds that it says something else (after a kill between the two, or another hand's edit).
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from filelock import FileLock, Timeout

from rlhf_bench.harness.errors import Fault
from rlhf_bench.harness.files import write
from rlhf_bench.harness.store.rows import Champion
from rlhf_bench.harness.types import Checkpoint

NAME = "champion.json"
WAIT_S = 10.0


def pointer(champion: Champion, checkpoint: Checkpoint) -> str:
    """What the file says."""
    said = {
        "checkpoint": champion.checkpoint,
        "path": checkpoint.path,
        "generation": champion.generation,
        "verdict": champion.verdict_id,
        "how": champion.how,
        "moved_at": champion.moved_at,
    }
    return json.dumps(said, indent=2, ensure_ascii=False) + "\n"


def point(path: Path, said: str | None, ask: Callable[[], str | None]) -> None:
    """Make the file say what the store says (None: there is no file); `said` is what it said a moment ago.

    Of several processes one writes at a time, and asks again when it may, so that an older champion never replaces a
    newer one. Raises Fault where the disk refuses.
    """
    if _read(path) == said:
        return
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(path.with_name(path.name + ".lock"), timeout=WAIT_S):
            said = ask()
            if _read(path) == said:
                return
            if said is None:
                path.unlink(missing_ok=True)
            else:
                write(path, said)
    except Timeout:
        raise Fault(f"cannot write {path}: another process has held its lock for {WAIT_S:.0f} s") from None
    except OSError as error:
        raise Fault(f"cannot write {path}: {error.strerror}") from error


def _read(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, ValueError):
        return None
