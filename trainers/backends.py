"""Back ends: who does the training. What surrounds it is the same for all and stands here.

    out.work/   while it runs: what is being made (made.json), the lock, the back end's own checkpoints, the draft
    out/        when it is done: the draft, renamed in one step; it never holds half a checkpoint, and recipe.json keeps
                the digest of what was trained, so that files changed since are refused and not taken for it

Another package adds a back end by an entry point of the group `rlhf_bench.trainers` that names a module (or any object)
with the two functions of `Fit`.
"""

from __future__ import annotations

import importlib
import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, Protocol

from rlhf_bench.harness.checkpoint import checkpoint_digest, verify
from rlhf_bench.harness.codec import digest, plain
from rlhf_bench.harness.errors import Fault, UnknownName, UserError
from rlhf_bench.harness.files import only_one, write
from rlhf_bench.harness.progress import Track, silent
from rlhf_bench.harness.types import Checkpoint, Preference
from rlhf_bench.trainers.recipes import DPORecipe, RewardRecipe, Training

GROUP = "rlhf_bench.trainers"
BUILTIN = {"trl": "rlhf_bench.trainers.trl"}
DRAFT = "model"
RECIPE = "recipe.json"


class Fit(Protocol):
    """What a back end provides. Each function trains and leaves a complete model folder in `work / "model"`.

    That folder holds safetensors weights, config, tokenizer with chat template, and metrics.jsonl. `work` outlives the
    process: a function that finds its own checkpoints there goes on from them, to the same weights. Returned are facts
    for the checkpoint's recipe, such as how many pairs were used. Raises Fault where the loss is not finite.
    """

    def fit_reward(
        self, recipe: RewardRecipe, preferences: Sequence[Preference], base: Checkpoint, work: Path, track: Track
    ) -> Mapping[str, int]: ...

    def fit_dpo(
        self,
        recipe: DPORecipe,
        preferences: Sequence[Preference],
        policy: Checkpoint,
        reference: Checkpoint,
        work: Path,
        track: Track,
    ) -> Mapping[str, int]: ...


@dataclass(frozen=True, slots=True)
class Backend:
    """Trains by the named back end, whose libraries are loaded only if there is something left to train."""

    name: str
    load: Callable[[], Fit]

    def train_reward(
        self,
        recipe: RewardRecipe,
        preferences: Sequence[Preference],
        base: Checkpoint,
        out: Path,
        track: Track = silent,
    ) -> Checkpoint:
        """A reward model at `out`, with `base` as parent. Raises UserError for bad data or another model at `out`."""
        inputs = {"trainer": "reward", "base_digest": base.digest}
        return self._train(
            recipe,
            preferences,
            [base],
            inputs,
            out,
            lambda work: self.load().fit_reward(recipe, preferences, base, work, track),
        )

    def train_dpo(
        self,
        recipe: DPORecipe,
        preferences: Sequence[Preference],
        policy: Checkpoint,
        reference: Checkpoint,
        out: Path,
        track: Track = silent,
    ) -> Checkpoint:
        """`policy` trained on the preferences against `reference`, at `out`, child of `policy`. Raises likewise."""
        inputs = {"trainer": "dpo", "policy": policy.digest, "reference": reference.digest}
        return self._train(
            recipe,
            preferences,
            [policy, reference],
            inputs,
            out,
            lambda work: self.load().fit_dpo(recipe, preferences, policy, reference, work, track),
        )

    def _train(
        self,
        recipe: Training,
        preferences: Sequence[Preference],
        models: Sequence[Checkpoint],
        inputs: Mapping[str, str],
        out: Path,
        fit: Callable[[Path], Mapping[str, int]],
    ) -> Checkpoint:
        check(preferences)
        data = digest([plain(pair) for pair in preferences])
        made = {**inputs, "backend": self.name, "preferences": data, **plain(recipe)}
        work = out.with_name(out.name + ".work")
        if not out.exists():
            with _disk_faults(out), only_one(work, "training"):
                if not out.exists():
                    for model in models:
                        verify(model)
                    _begin(work / "made.json", made)
                    facts = fit(work)
                    _write(work / DRAFT / RECIPE, {**made, **facts, "digest": checkpoint_digest(work / DRAFT)})
                    (work / DRAFT).replace(out)
        known = _same(out / RECIPE, made, f"{out} holds another model")
        trained = Checkpoint(str(out), str(known.pop("digest", "")), parent=models[0].digest, recipe=known)
        verify(trained)
        shutil.rmtree(work, ignore_errors=True)
        return trained


def get_backend(name: str) -> Backend:
    """The built-in `trl`, or one that an installed package brings. Raises UnknownName with the nearest."""
    found = {point.name: point for point in entry_points(group=GROUP)}
    if name in BUILTIN:
        return Backend(name, lambda: _module(BUILTIN[name]))
    if name in found:
        return Backend(name, found[name].load)
    raise UnknownName("training back end", name, {*BUILTIN, *found}, f"Others come by the entry point group '{GROUP}'.")


def _module(path: str) -> Any:
    return importlib.import_module(path)


def check(preferences: Sequence[Preference]) -> None:
    """Raise UserError, naming the row, for data that nothing can be learned from."""
    if not preferences:
        raise UserError("there are no preferences to train on: the pairs are empty")
    for number, pair in enumerate(preferences):
        if pair.chosen == pair.rejected:
            raise UserError(f"preference {number}: chosen and rejected are the same answer; drop it")
        if not any(turn.role == "user" for turn in pair.prompt):
            raise UserError(f"preference {number}: the prompt has no user turn")


def _begin(path: Path, made: Mapping[str, Any]) -> None:
    if path.exists():
        _same(path, made, f"{path.parent} holds another, unfinished training")
    else:
        _write(path, made)


def _same(path: Path, made: Mapping[str, Any], what: str) -> dict[str, Any]:
    """What the file at `path` says; UserError if it contradicts `made`."""
    try:
        there: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise UserError(f"{what}, not one that a trainer wrote: choose another output folder") from None
    for key, value in made.items():
        if there.get(key) != value:
            raise UserError(
                f"{what} ({key} is {there.get(key)!r} there, {value!r} now): remove it or choose another output folder"
            )
    return there


def _write(path: Path, value: Mapping[str, Any]) -> None:
    write(path, json.dumps(value, indent=1, sort_keys=True))


@contextmanager
def _disk_faults(out: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise Fault(
            f"training into {out} stopped: {error}; nothing there was changed, run it again to go on"
        ) from error
