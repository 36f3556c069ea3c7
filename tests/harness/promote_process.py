"""What the other processes of test_promote.py do, and the line of champions that it and they work on."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from tests.harness.worker import Says

from rlhf_bench.harness import promote
from rlhf_bench.harness.checkpoint import checkpoint_digest
from rlhf_bench.harness.errors import RlhfBenchError
from rlhf_bench.harness.store import Line, Run, Store, pointer
from rlhf_bench.harness.types import Checkpoint, Verdict

ITEMS = {"chat": "c" * 64, "maths": "d" * 64}


def checkpoint(folder: Path, name: str) -> Checkpoint:
    """A folder of small files that has a digest of its own."""
    path = folder / name
    path.mkdir(parents=True)
    (path / "config.json").write_text(f'{{"name": "{name}"}}')
    (path / "model.safetensors").write_bytes(name.encode())
    (path / "tokenizer.json").write_text("{}")
    return Checkpoint(str(path), checkpoint_digest(path))


def measured(store: Store, model: Checkpoint, items: Mapping[str, str] = ITEMS, name: str = "") -> str:
    """The id of a run of this checkpoint on these samples."""
    run_id = name or f"run-{model.digest[:8]}"
    manifest = {"benchmarks": {benchmark: {"digest": digest} for benchmark, digest in items.items()}}
    store.start_run(Run(run_id, "m", model.digest, "s", "p", None, run_id, manifest))
    return run_id


def passing(store: Store, candidate: Checkpoint, champion: Checkpoint, **changes: Any) -> Verdict:
    """A verdict that promotes, against the present champion, with the next share of alpha."""
    now = store.champion()
    t = len(store.decisions(ITEMS)) + 1
    fields: dict[str, Any] = {
        "generation": now.generation if now else 0,
        "items": ITEMS,
        "decision": t,
        "spent": 0.03 / t**2,
        "runs": {"candidate": measured(store, candidate), "champion": measured(store, champion)},
    }
    verdict = Verdict("promote", (), ("better", "safe"), candidate.digest, champion.digest, "p" * 64, 0.05)
    return replace(verdict, **fields | changes)


def at_home(home: str, url: str) -> None:
    """From here on `url` is the project's own store, and `home` its folder."""
    os.environ.update(RLHF_BENCH_HOME=home, RLHF_BENCH_STORE=url)


def promote_at_once(says: Says, home: str, url: str, verdict_id: int, barrier: Any) -> None:
    """Carry out a verdict together with others; say the generation, or the error's kind and words."""
    at_home(home, url)
    with Store(url) as store:
        barrier.wait(60)
        try:
            says.send(promote.promote(store, verdict_id).generation)
        except RlhfBenchError as error:
            says.send((type(error).__name__, str(error)))


def promote_in_turn(says: Says, home: str, url: str, one: Checkpoint, other: Checkpoint) -> None:
    """The two beat each other for ever, each time by a new verdict; a generation is said once promote() returned it."""
    at_home(home, url)
    with Store(url) as store:
        while True:
            champion = store.champion()
            assert champion is not None
            old, new = (one, other) if champion.checkpoint == one.digest else (other, one)
            number = store.save_verdict(passing(store, new, old))
            says.send(promote.promote(store, number).generation)


def promote_and_die(says: Says, home: str, url: str, verdict_id: int, point: str) -> None:
    """Carry out a verdict and be killed (SIGKILL, by itself) at this point."""
    at_home(home, url)
    POINTS[point]()
    with Store(url) as store:
        promote.promote(store, verdict_id)
    die()


def save_and_die(says: Says, home: str, url: str, verdict: Verdict) -> None:
    """Save a verdict and be killed between it and its ledger entry."""
    at_home(home, url)
    instead_of("rlhf_bench.harness.store.line", "insert", before=die)
    with Store(url) as store:
        store.save_verdict(verdict)


def die(*_: Any) -> None:
    """At once, with nothing tidied up."""
    os.kill(os.getpid(), signal.SIGKILL)


def wrapped(real: Callable[..., Any], before: Callable[..., None] | None, after: Callable[..., None] | None) -> Any:
    """The real function, with something before and after it."""

    def call(*args: Any, **named: Any) -> Any:
        if before is not None:
            before()
        result = real(*args, **named)
        if after is not None:
            after()
        return result

    return call


def instead_of(
    where: Any, name: str, before: Callable[..., None] | None = None, after: Callable[..., None] | None = None
) -> None:
    """In this process, which is about to die, do something before or after a function of a module or class."""
    import importlib

    owner = importlib.import_module(where) if isinstance(where, str) else where
    setattr(owner, name, wrapped(getattr(owner, name), before, after))


def _once_moved(strike: Callable[[], None]) -> Callable[[], None]:
    """`strike` from the moment on that the champion's row was written."""
    moved: list[bool] = []
    instead_of(Line, "move", after=lambda: moved.append(True))
    return lambda: strike() if moved else None


POINTS: Mapping[str, Callable[[], None]] = {
    "before the files are read": lambda: instead_of(promote, "verify", before=die),
    "after the files were read": lambda: instead_of(promote, "verify", after=die),
    "in the transaction": lambda: instead_of(Line, "move", before=die),
    "before the commit": lambda: instead_of(Line, "move", after=die),
    "after the commit": lambda: instead_of("rlhf_bench.harness.store.store", "point", before=_once_moved(die)),
    "while champion.json is written": lambda: instead_of(os, "fsync", after=_once_moved(die)),
    "after champion.json": lambda: instead_of(pointer, "write", after=_once_moved(die)),
    "at the end": lambda: None,
}
"""Where promote() may be killed, and how."""
COMMITTED = tuple(POINTS)[4:]
