"""Back ends: who does the training. What surrounds it is the same for all and stands here.

    out.work/   while it runs: what is being made (made.json), the lock, the back end's own checkpoints, metrics.jsonl,
                the draft
    out/        when it is done: the draft, renamed in one step; it never holds half a checkpoint, and recipe.json keeps
                the digest of what was trained and of its chat template, so that files changed since are refused and
                not taken for it

Another package adds a back end by an entry point of the group `rlhf_bench.trainers` that names a module (or any object)
with the functions of `Fit`; docs/backends.md has one of 40 lines.
"""

from __future__ import annotations

import importlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from rlhf_bench.harness.checkpoint import chat_template_digest, check_finite, checkpoint_digest, verify
from rlhf_bench.harness.codec import digest, plain
from rlhf_bench.harness.errors import Fault, UnknownName, UserError
from rlhf_bench.harness.files import flush, only_one, write
from rlhf_bench.harness.progress import Track, silent
from rlhf_bench.harness.types import Checkpoint, Conversation, Preference
from rlhf_bench.trainers.chat import check_talks, dressed, template_text
from rlhf_bench.trainers.chat.reading import RECIPE, TEMPLATE
from rlhf_bench.trainers.recipes import KINDS, DPORecipe, PreferenceRecipe, RewardRecipe, SFTRecipe, Training
from rlhf_bench.trainers.starts import check_speaks

GROUP = "rlhf_bench.trainers"
BUILTIN = {"trl": "rlhf_bench.trainers.trl", "torch": "rlhf_bench.trainers.plain"}
DRAFT = "model"
METRICS = "metrics.jsonl"
WAIT_S = 1800.0
OPTIONS = {name for recipe in KINDS.values() for name in recipe.model_fields}


class Fit(Protocol):
    """What a back end provides. Each function trains and leaves a complete model folder in `work / "model"`.

    That folder holds safetensors weights, config, tokenizer with chat template, and metrics.jsonl. `work` outlives the
    process: a function that finds its own checkpoints there goes on from them, to the same weights. Returned are facts
    for the checkpoint's recipe, such as how many pairs were used. Raises UserError for an option that it does not have
    (and says which back end does), and Fault where the loss is not finite or far above where it began.

    What two back ends must have in common, so that their runs can be compared step by step:

    - order: epoch e (from 0) takes the n rows in the order `torch.randperm(n, generator=g)`, g seeded with seed + e. A
      step takes the next `batch_size` of them, the last step of an epoch what is left.
    - loss: the mean over the step's pairs (sft: over the step's assistant tokens), whatever micro_batch is and however
      many processes there are.
    - optimiser: AdamW (0.9, 0.999, 1e-8), weight decay on all but biases and norms; gradients clipped to max_grad_norm
      over all of them; warm-up over ceil(warmup · steps) steps, but never over all of them
      (`Training.warmup_steps`).
    - `work / "metrics.jsonl"`, one line an optimiser step as it goes, with at least

          all         step (from 1), epoch (steps over steps an epoch), loss, lr (of this step), grad_norm (before
                      clipping), tokens_per_s (without padding)
          reward      accuracy, margin (r_chosen - r_rejected)
          preference  accuracy (the right letter is the more probable of the two)
          dpo         logps/chosen, logps/rejected (nats, summed over the answer), rewards/chosen, rewards/rejected
                      (β · log-ratio), margin, accuracy

      of which those of pairs are means over the step's pairs.
    """

    def fit_sft(
        self, recipe: SFTRecipe, conversations: Sequence[Conversation], base: Checkpoint, work: Path, track: Track
    ) -> Mapping[str, int]: ...

    def fit_reward(
        self, recipe: RewardRecipe, preferences: Sequence[Preference], base: Checkpoint, work: Path, track: Track
    ) -> Mapping[str, int]: ...

    def fit_preference(
        self, recipe: PreferenceRecipe, preferences: Sequence[Preference], base: Checkpoint, work: Path, track: Track
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


@runtime_checkable
class Checks(Protocol):
    """A back end that says beforehand what it lacks; one need not.

    `check_recipe` raises UserError for an option of the recipe that its fit functions would refuse. With `start`, the
    model that is to be trained by this process, also for what this machine lacks; None where that is another's to say.
    """

    def check_recipe(self, recipe: Training, start: Checkpoint | None) -> None: ...


@dataclass(frozen=True, slots=True)
class Backend:
    """Trains by the named back end, whose libraries are loaded only if there is something left to train.

    Each method returns the checkpoint at `out`, with the model it began from as parent; one that is there already is
    not made again. Raises UserError for bad data or another model at `out`. Under torchrun or accelerate launch every
    process calls it, and the first does what only one may do.
    """

    name: str
    load: Callable[[], Fit]

    def check(self, recipe: Training, start: Checkpoint | None) -> None:
        """Raise UserError for a recipe that the back end would refuse, as far as it can say so without data.

        `start` is the model where this process is to train it, else None.
        """
        fit = self._loaded(next(kind for kind, cls in KINDS.items() if isinstance(recipe, cls)))
        if isinstance(fit, Checks):
            fit.check_recipe(recipe, start)

    def train_sft(
        self,
        recipe: SFTRecipe,
        conversations: Sequence[Conversation],
        base: Checkpoint,
        out: Path,
        track: Track = silent,
    ) -> Checkpoint:
        """`base` tuned on the assistant's turns of the conversations."""
        check_given(recipe, conversations, base)
        given = None if recipe.chat_template is None else template_text(recipe.chat_template)
        inputs = {"trainer": "sft", "base_digest": base.digest, "data": _digest(conversations)}
        made = {**inputs, **plain(recipe), "chat_template": given}

        def train(fit: Fit, work: Path) -> Mapping[str, int]:
            start = base if recipe.chat_template is None else dressed(base, recipe.chat_template, work / "base")
            return fit.fit_sft(recipe, conversations, start, work, track)

        return self._train(made, [base], out, train)

    def train_reward(
        self,
        recipe: RewardRecipe,
        preferences: Sequence[Preference],
        base: Checkpoint,
        out: Path,
        track: Track = silent,
    ) -> Checkpoint:
        """A Bradley-Terry reward model from `base`."""
        check_given(recipe, preferences, base)
        made = {"trainer": "reward", "base_digest": base.digest, "preferences": _digest(preferences), **plain(recipe)}
        return self._train(made, [base], out, lambda fit, work: fit.fit_reward(recipe, preferences, base, work, track))

    def train_preference(
        self,
        recipe: PreferenceRecipe,
        preferences: Sequence[Preference],
        base: Checkpoint,
        out: Path,
        track: Track = silent,
    ) -> Checkpoint:
        """A pairwise preference model from `base`."""
        check_given(recipe, preferences, base)
        data = _digest(preferences)
        made = {"trainer": "preference", "base_digest": base.digest, "preferences": data, **plain(recipe)}
        return self._train(
            made, [base], out, lambda fit, work: fit.fit_preference(recipe, preferences, base, work, track)
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
        """`policy` trained on the preferences against `reference`."""
        check_given(recipe, preferences, policy, reference)
        inputs = {"trainer": "dpo", "policy": policy.digest, "reference": reference.digest}
        made = {**inputs, "preferences": _digest(preferences), **plain(recipe)}
        return self._train(
            made,
            [policy, reference],
            out,
            lambda fit, work: fit.fit_dpo(recipe, preferences, policy, reference, work, track),
        )

    def _train(
        self,
        inputs: Mapping[str, Any],
        models: Sequence[Checkpoint],
        out: Path,
        fit: Callable[[Fit, Path], Mapping[str, int]],
    ) -> Checkpoint:
        made = {**inputs, "backend": self.name}
        work = out.with_name(out.name + ".work")
        if not out.exists():
            with _disk_faults(out):
                if rank():
                    self._join(out, lambda: fit(self._loaded(made["trainer"]), work))
                else:
                    self._make(made, models, out, work, fit)
        known = _same(out / RECIPE, made, f"{out} holds another model")
        trained = Checkpoint(str(out), str(known.pop("digest", "")), parent=models[0].digest, recipe=known)
        verify(trained)
        if not rank():
            shutil.rmtree(work, ignore_errors=True)
        return trained

    def _make(
        self,
        made: Mapping[str, Any],
        models: Sequence[Checkpoint],
        out: Path,
        work: Path,
        fit: Callable[[Fit, Path], Mapping[str, int]],
    ) -> None:
        with only_one(work, "training"):
            if out.exists():
                return
            for model in models:
                verify(model)
            begun = _begin(work / "made.json", made)
            try:
                facts = fit(self._loaded(made["trainer"]), work)
            except UserError:
                if begun:  # refused before anything was made: the next recipe finds nothing to go on from
                    _clear(work)
                raise
            check_finite(work / DRAFT)
            of_files = {TEMPLATE: chat_template_digest(work / DRAFT), "digest": checkpoint_digest(work / DRAFT)}
            _write(work / DRAFT / RECIPE, {**facts, **made, **of_files})
            flush(work / DRAFT)
            (work / DRAFT).replace(out)

    def _join(self, out: Path, fit: Callable[[], Mapping[str, int]]) -> None:
        """What a process other than the first does: its share of the training, then wait for the result."""
        fit()
        end = time.monotonic() + WAIT_S
        while not (out / RECIPE).exists():
            if time.monotonic() > end:
                raise Fault(f"process {rank()} sees no {out}: all processes need the same folder, on shared storage")
            time.sleep(0.05)

    def _loaded(self, kind: str) -> Fit:
        name = f"fit_{kind}"
        try:
            fit = self.load()
        except ImportError as error:
            raise UserError(
                f"the back end '{self.name}' cannot be imported ({error}): install what it needs"
            ) from error
        except Exception as error:  # another's module, which raises what it will
            said = f"{type(error).__name__}: {' '.join(str(error).split())}"
            raise UserError(f"the back end '{self.name}' cannot be loaded ({said}): mend its package") from error
        if name not in dir(fit) and not hasattr(fit, name):  # the first way imports nothing
            raise UserError(f"the back end '{self.name}' has no {name}: use --backend trl")
        return fit


def rank() -> int:
    """The number of this process among those that train together, as torchrun and accelerate launch say it; else 0."""
    return int(os.environ.get("RANK", "0"))


def processes() -> int:
    """How many train together; else 1."""
    return int(os.environ.get("WORLD_SIZE", "1"))


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


def check_given(recipe: Training, data: Sequence[Any], *models: Checkpoint) -> None:
    """Raise UserError for data or models that the recipe can do nothing with; the first model is what is trained."""
    if isinstance(recipe, SFTRecipe):
        check_conversations(data)
    else:
        check(data)
    if isinstance(recipe, RewardRecipe):
        check_margins(recipe, data)
    check_talks(models[0], recipe.chat_template if isinstance(recipe, SFTRecipe) else None)
    if not isinstance(recipe, RewardRecipe):
        check_speaks(*models)


def check(preferences: Sequence[Preference]) -> None:
    """Raise UserError, naming the row, for data that nothing can be learned from."""
    if not preferences:
        raise UserError("there are no preferences to train on: the pairs are empty")
    for number, pair in enumerate(preferences):
        if pair.chosen == pair.rejected:
            raise UserError(f"preference {number}: chosen and rejected are the same answer; drop it")
        if not any(turn.role == "user" for turn in pair.prompt):
            raise UserError(f"preference {number}: the prompt has no user turn")


def check_conversations(conversations: Sequence[Conversation]) -> None:
    """Raise UserError, naming the row, for a conversation that has nothing to learn or nobody who asked."""
    if not conversations:
        raise UserError("there are no conversations to train on: the data are empty")
    for number, turns in enumerate(conversations):
        roles = [turn.role for turn in turns]
        if "assistant" not in roles or "user" not in roles:
            missing = "assistant" if "assistant" not in roles else "user"
            raise UserError(f"conversation {number}: there is no {missing} turn in it; drop it")


def check_margins(recipe: RewardRecipe, preferences: Sequence[Preference]) -> None:
    """Raise UserError where margins are asked for and all are the same: they would say nothing about any pair."""
    margins = {pair.margin for pair in preferences}
    if recipe.use_margin and len(margins) == 1:
        raise UserError(
            f"use_margin has nothing to go by: all {len(preferences)} pairs have margin {margins.pop():g}; "
            "give the rows a margin, or set use_margin false"
        )


def _digest(data: Sequence[Any]) -> str:
    return digest([plain(row) for row in data])


def _begin(path: Path, made: Mapping[str, Any]) -> bool:
    """Whether this training begins; one that went on before must have been the same."""
    if path.exists():
        _same(path, made, f"{path.parent} holds another, unfinished training")
        return False
    _write(path, made)
    return True


def _clear(work: Path) -> None:
    """Remove all but the lock, which is held."""
    for path in work.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        elif path.name != "lock":
            path.unlink()


def _same(path: Path, made: Mapping[str, Any], what: str) -> dict[str, Any]:
    """What the file at `path` says; UserError if it contradicts `made`."""
    try:
        there: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise UserError(f"{what}, not one that a trainer wrote: choose another output folder") from None
    for key in [*made, *sorted(OPTIONS & there.keys() - made.keys())]:
        if there.get(key) != made.get(key):
            raise UserError(
                f"{what} ({key} is {there.get(key)!r} there, {made.get(key)!r} now): "
                "remove it or choose another output folder"
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
