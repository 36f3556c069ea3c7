"""What a loop works with, and what is fixed when it begins: its settings, its first policy, its prompts."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rlhf_bench.harness.checkpoint import verify
from rlhf_bench.harness.claims import NO_FIGURES, Figures, RunData
from rlhf_bench.harness.codec import digest, plain
from rlhf_bench.harness.errors import Fault, LostRace, UserError
from rlhf_bench.harness.files import write
from rlhf_bench.harness.models import engine_here, resolve
from rlhf_bench.harness.policy import Policy
from rlhf_bench.harness.progress import Track, silent
from rlhf_bench.harness.store import Store
from rlhf_bench.harness.types import Checkpoint, Preference, Report, Sample
from rlhf_bench.trainers.backends import get_backend
from rlhf_bench.trainers.chat import check_talks, tokenizer_at
from rlhf_bench.trainers.chat.reading import check_asks
from rlhf_bench.trainers.online.config import LoopConfig, Stage, settings_of
from rlhf_bench.trainers.online.planned import recipe_of
from rlhf_bench.trainers.online.pool import batch, prompts_of, sift
from rlhf_bench.trainers.online.scoring import Scoring
from rlhf_bench.trainers.preferences import conversation
from rlhf_bench.trainers.starts import check_speaks

START = "start.json"
KNOWN = ("current", "initial", "previous")
"""Names of `answers.policies` that mean a role in the loop."""


@dataclass(frozen=True, slots=True)
class Line:
    """What a loop works with. `prompts` are the pool; `scoring` says which answers are better, `measure` evaluates a
    checkpoint on the policy's suites; `figures` are those metrics of them that are no means. `preferences` are the
    pairs where the config gives a file of them. `contaminated` finds the prompts, by id, that hold a benchmark's
    question; a given pair's id is its number, from 0.
    `signals` adds to a report, given its checkpoint and π0, what the policy's sentinels ask for beyond an evaluation.
    `launch` runs a stage of an iteration (number, attempt) in a process of its own, and raises Fault where it fails.
    `say` tells the user what is left out when the loop begins.
    A stage of an iteration (number) that is not there yet is made within `doing`.
    """

    config: LoopConfig
    store: Store
    policy: Policy
    scoring: Callable[[], Scoring]
    measure: Callable[[Checkpoint], Report]
    home: Path
    prompts: Sequence[Sample] = ()
    preferences: Sequence[Preference] = ()
    contaminated: Callable[[Sequence[Sample]], Collection[str]] = lambda prompts: ()
    signals: Callable[[Report, Checkpoint, Checkpoint], Report] = lambda report, checkpoint, initial: report
    launch: Callable[[Stage, int, int], None] | None = None
    say: Callable[[str], None] = lambda text: None
    doing: Callable[[int, Stage], AbstractContextManager[None]] = lambda number, stage: nullcontext()
    figures: Figures = field(default_factory=lambda: NO_FIGURES)
    track: Track = silent

    @property
    def work(self) -> Path:
        """Where the loop's files lie."""
        return self.home / "loops" / self.config.name

    def read(self, report: Report) -> RunData:
        """The run of a report, as the gate reads it."""
        return RunData.load(self.store, report.run_id, self.figures)


def begin(line: Line) -> Checkpoint:
    """The policy this loop starts from, fixed with its settings at the first start.

    A resumed loop replays the same line, on the same data; margins cannot be changed after a verdict was seen. Only the
    number of iterations may grow. Nothing is fixed before every name in the settings was found. Raises UserError where
    something else differs, where the start is not the champion or no chat model, or where the prompts do not suffice.
    """
    config, store, marker = line.config, line.store, line.work / START
    if marker.exists():
        check_unchanged(line)
        known = begun(line)
        start = store.checkpoint(known["digest"])
        if start is None:
            raise UserError(f"loop '{config.name}' began from {known['digest'][:12]}, which this store does not have")
        verify(start)
        return start
    _check_prompts(line.prompts)
    asked = line.prompts if config.preferences is None else prompts_of(line.preferences)
    batch(asked, config, 1, 0)
    engine = engine_here(config.answers.engine)
    start = resolve(config.model, store, line.track)
    champion = store.champion()
    if champion is not None and champion.checkpoint != start.digest:
        raise UserError(
            f"the champion is {champion.checkpoint[:12]}, the config's model is {start.digest[:12]}: "
            f"set 'model: champion', or another RLHF_BENCH_HOME for a separate line"
        )
    check_talks(start)
    check_speaks(start)
    check_asks(start, map(conversation, asked))
    _check_names(line)
    check_recipes(config, start)
    left_out = _left_out(line, tokenizer_at(Path(start.path)))
    if champion is None:
        _crown(line, start)
    facts = {"digest": start.digest, "settings": _fixed(line), "left_out": left_out, "engine": engine}
    write(marker, json.dumps(facts))
    return start


def _crown(line: Line, start: Checkpoint) -> None:
    """Make the start the first champion; another loop that begins from it may have done so in the meantime."""
    reason = f"start of loop {line.config.name}"
    try:
        line.store.set_champion(start.digest, expect_generation=0, verdict_id=None, reason=reason)
    except LostRace:
        champion = line.store.champion()
        if champion is None or champion.checkpoint != start.digest:
            raise


def _left_out(line: Line, tokenizer: Any) -> list[str]:
    """The ids of the prompts, or the numbers of the given pairs, that the loop leaves out for good; and it says why.

    Raises UserError where what is left does not suffice, or where a given pair, or the reward, is not as it must be.
    """
    config, given = line.config, line.config.preferences is not None
    sifted = sift(config, line.prompts, line.preferences, tokenizer)
    for reason, count in sifted.counts.items():
        line.say(f"left out: {count} × {reason}")
    ids, asked = set(sifted.ids), prompts_of(line.preferences) if given else line.prompts
    batch([sample for sample in asked if sample.id not in ids], config, 1, 0)
    if not given:
        line.scoring()  # which may take long, as the demo's reward is trained at its first use
    if config.contaminated == "drop":
        ids |= set(line.contaminated([sample for sample in asked if sample.id not in ids]))
        batch([sample for sample in asked if sample.id not in ids], config, 1, 0)
    return sorted(ids)


def check_unchanged(line: Line) -> None:
    """Raise UserError where the settings, the policy, the data or the reward are not those that the loop began with.

    Nor may there be fewer iterations than are decided: the result would leave some out.
    """
    now, before = _fixed(line), begun(line)["settings"]
    changed = sorted(key for key in now.keys() | before.keys() if now.get(key) != before.get(key))
    if changed:
        raise UserError(
            f"loop '{line.config.name}' was begun with another {', '.join(changed)}: give the changed loop another name"
        )
    numbers = [path.parent.name.partition("-")[2] for path in line.work.glob("iteration-*/verdict-*.json")]
    last = max((int(number) for number in numbers if number.isdecimal()), default=0)
    if last > line.config.iterations:
        raise UserError(
            f"iterations is {line.config.iterations}, and loop '{line.config.name}' has decided iteration {last}: it "
            "may only grow"
        )


def _fixed(line: Line) -> dict[str, Any]:
    """What fixes the results of a loop: its settings, and what the names in them stand for."""
    found = {**settings_of(line.config), "policy digest": line.policy.digest}
    if line.config.preferences is not None:
        return found | {"data of preferences": digest([plain(pair) for pair in line.preferences])}
    asked = digest([[sample.id, plain(conversation(sample))] for sample in line.prompts])
    return found | {"data of prompts": asked, "model of reward": line.scoring().identity}


def check_recipes(config: LoopConfig, start: Checkpoint | None) -> None:
    """Raise UserError for a recipe, the loop's or a retry's, that its back end refuses.

    With `start`, the model to begin with, what this machine lacks is refused too, unless a command of `launch` trains.
    """
    for number, each in enumerate(config.attempts()):
        try:
            get_backend(each.backend).check(recipe_of(each), None if each.launch.get("train") else start)
        except UserError as error:
            raise (UserError(f"retries.{number - 1}: {error}") if number else error) from None


def _check_names(line: Line) -> None:
    """Raise UserError for a name in the settings, or in a retry's, that means nothing here."""
    config = line.config
    for each in config.attempts():
        get_backend(each.backend)
        if config.preferences is None:
            for name in set(each.answers.policies) - set(KNOWN):
                resolve(name, line.store, line.track)


def _check_prompts(prompts: Sequence[Sample]) -> None:
    for sample in prompts:
        if not any(turn.role == "user" for turn in conversation(sample)):
            raise UserError(f"prompt '{sample.id}' has no user turn")


def begun(line: Line) -> dict[str, Any]:
    """What was fixed when the loop began: {digest, settings, left_out, engine}."""
    found = kept(line.work / START, "digest", "settings", "engine")
    return {"left_out": found.get("contaminated", []), **found}  # as it was called before


def kept(path: Path, *names: str) -> dict[str, Any]:
    """The object with these fields that the loop wrote to a file. Raises Fault where something else is there."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        found = None
    if not isinstance(found, dict) or not found.keys() >= set(names):
        raise Fault(f"{path} is not what the loop wrote: restore it, or remove it, to have it made again")
    return found


def clean(line: Line) -> list[Sample]:
    """The pool without the prompts that were left out when the loop began."""
    left_out = set(begun(line)["left_out"])
    return [sample for sample in line.prompts if sample.id not in left_out]


def clean_pairs(line: Line) -> list[Preference]:
    """The given pairs without those that were left out when the loop began."""
    left_out = set(begun(line)["left_out"])
    return [pair for number, pair in enumerate(line.preferences) if str(number) not in left_out]


def candidate_name(config: LoopConfig, number: int, attempt: int) -> str:
    """What the candidate of an iteration is called: NAME-ITERATION, that of a retry NAME-ITERATION-retry-NUMBER."""
    return f"{config.name}-{number}" + (f"-retry-{attempt}" if attempt else "")


def registered(store: Store, name: str) -> Checkpoint:
    found = store.checkpoint(name)
    if found is None:
        raise UserError(
            f"checkpoint {name[:12]} of this loop is not registered in this store: rlhf-bench models register"
        )
    return found
