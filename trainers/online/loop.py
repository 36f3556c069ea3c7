"""The online loop: the paper's Algorithm 2 and its last line, "output the best policy by a validation set".

    prompts ─► answers ─► rewards ─► pairs ─► DPO ─► candidate ─► measure ─► gate ─► promote, or keep the champion

Paper: "RLHF Workflow: From Reward Modeling to Online RLHF" (arXiv 2405.07863), Algorithm 2. An equal share of the n
answers is sampled at each temperature; best against worst by the reward model become a pair; DPO trains on this
iteration's pairs from the current champion, with the initial policy as reference. The paper's code moved the reference
to the previous iterate; `reference: previous` does that.
Left out: the offline data D_off of iteration 1 (the authors trained without it too).

A killed loop goes on where it was, to the same result: stages are kept by what went into them (`stages`), verdicts by
the runs that they are about, and what an iteration begins from stands in its folder.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, fields, replace
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

from rlhf_bench.harness.codec import digest
from rlhf_bench.harness.decide import decide
from rlhf_bench.harness.errors import UserError
from rlhf_bench.harness.files import only_one, write
from rlhf_bench.harness.models import resolve
from rlhf_bench.harness.progress import Track
from rlhf_bench.harness.promote import promote
from rlhf_bench.harness.store import Store
from rlhf_bench.harness.types import Checkpoint, Report, Verdict
from rlhf_bench.trainers.backends import get_backend, rank
from rlhf_bench.trainers.online.config import STAGES, LoopConfig, Stage
from rlhf_bench.trainers.online.line import (
    Line,
    begin,
    begun,
    candidate_name,
    check_unchanged,
    clean,
    clean_pairs,
    kept,
    registered,
)
from rlhf_bench.trainers.online.pool import batch
from rlhf_bench.trainers.online.scoring import Row, freed
from rlhf_bench.trainers.online.stages import (
    FILES,
    Learned,
    Task,
    answers_stage,
    pairs_stage,
    rewards_stage,
    stage,
    train_stage,
)

RESULT = "result.json"


@dataclass(frozen=True, slots=True)
class Iteration:
    """What one iteration did. `dropped` counts the answers and prompts that took no part, by reason.

    `policy` is what it improved: the champion, or with on_hold follow the candidate before. `attempt` is 0, or the
    number of the retry, and `changed` its settings. `rows` are the answers with their rewards, none where pairs were
    given.
    """

    number: int
    attempt: int
    changed: Mapping[str, Any]
    policy: Checkpoint
    champion: Checkpoint
    candidate: Checkpoint
    learned: Learned
    rows: Sequence[Row]
    champion_report: Report
    candidate_report: Report
    verdict: Verdict
    verdict_id: int
    folder: str

    @property
    def pairs(self) -> int:
        """How many pairs, or best answers, it was trained on."""
        return len(self.learned)

    @property
    def dropped(self) -> Mapping[str, int]:
        """The answers and prompts that took no part, by reason."""
        return self.learned.dropped


@dataclass(frozen=True, slots=True)
class _Roles:
    """Who is who in an iteration: π0, what is improved, what was before it, whom the gate compares with."""

    start: Checkpoint
    policy: Checkpoint
    previous: Checkpoint
    champion: Checkpoint

    def after(self, found: Iteration, follow: bool) -> _Roles:
        """Who is who in the next one."""
        if found.verdict.outcome == "promote":
            return _Roles(self.start, found.candidate, self.policy, found.candidate)
        return replace(self, policy=found.candidate, previous=self.policy) if follow else self


@dataclass(slots=True)
class _Made:
    """What the stages of an iteration gave, as far as they were done.

    The reports are the candidate's, the champion's and the anchor's.
    """

    rows: Sequence[Row] = ()
    learned: Learned | None = None
    candidate: Checkpoint | None = None
    reports: tuple[Report, ...] = ()


def iterate(line: Line, *, until: Stage | None = None) -> Iterator[Iteration]:
    """Yield each iteration as it is decided; the champion of the store is moved only by a promote verdict.

    With `until` it ends after this stage of the first iteration that is not decided yet. The iterations share the
    policy's alpha as its ledger says. Raises UserError where the config contradicts what is there, before any long
    work, and Fault where a stage fails.
    """
    config = line.config
    get_backend(config.backend)
    _check_stage(config, until)
    with only_one(line.work, "running this loop"):
        start = begin(line)
        roles = _Roles(start, start, start, start)
        done: list[Iteration] = []
        for number in range(1, config.iterations + 1):
            for attempt in range(1 + len(config.retries)):
                found = _iteration(line, number, attempt, roles, until)
                if found is None:
                    return
                done.append(replace(found, rows=()))  # a days-long loop keeps no answers in memory
                write(line.work / RESULT, json.dumps(_result(line, done), indent=1))
                yield found
                if found.verdict.outcome == "promote":
                    break
            if done[-1].verdict.outcome != "promote" and config.on_hold in ("stop", "retry"):
                return
            roles = roles.after(done[-1], config.on_hold == "follow")


def run_stage(line: Line, name: Stage, number: int, attempt: int) -> None:
    """One stage of an iteration that a loop has begun, in this process: what `Line.launch` starts, and torchrun too.

    Raises UserError where the loop has not come there.
    """
    _check_stage(line.config, name)
    path = line.work / f"iteration-{number}" / f"begun-{attempt}.json"
    if not path.exists():
        where = f"iteration {number}" + (f", retry {attempt}" if attempt else "")
        raise UserError(f"loop '{line.config.name}' has not begun {where}: run `rlhf-bench iterate`")
    check_unchanged(line)
    names = [each.name for each in fields(_Roles)]
    said = kept(path, *names)
    roles = _Roles(*(registered(line.store, said[name]) for name in names))
    line = replace(line, launch=None, track=_within(line.track, f"iteration {number} of {line.config.iterations}"))
    task = _task(line, number, attempt, roles)
    with nullcontext() if rank() else only_one(task.folder / "running" / name, f"running stage '{name}'"):
        _stages(line, task, roles, name)


def set_aside(line: Line, name: Stage) -> list[Path]:
    """Rename what the latest iteration made in this stage and after it, so that it is made again; gives the new names.

    Answers, rewards and grades that are in the store are taken from there again. Raises UserError where there is no
    iteration, where the settings changed, or where its candidate has become the champion, by a verdict or by force.
    """
    _check_stage(line.config, name)
    with only_one(line.work, "running this loop"):
        numbered = [folder for folder in line.work.glob("iteration-*") if folder.name.partition("-")[2].isdecimal()]
        begun = sorted(numbered, key=lambda folder: int(folder.name.partition("-")[2]))
        if not begun:
            raise UserError(f"loop '{line.config.name}' has made nothing yet: leave --from out")
        check_unchanged(line)
        folder = begun[-1]
        verdicts = [kept(path, "outcome") for path in folder.glob("verdict-*.json")]
        if any(verdict["outcome"] == "promote" for verdict in verdicts):
            raise UserError(f"{folder.name} ended in a promotion: nothing of it is made again (rollback undoes it)")
        for each in line.store.history():
            found = line.store.checkpoint(each.checkpoint)
            if found is not None and folder.resolve() in Path(found.path).resolve().parents:
                raise UserError(
                    f"{found.digest[:12]} of {folder.name} became champion (generation {each.generation}): nothing of "
                    "it is made again, since rollback may need its files"
                )
        later = STAGES[STAGES.index(name) :]
        made = [path for each in later for path in folder.glob(f"{FILES[each]}-*") if ".before-" not in path.name]
        made += folder.glob("verdict-*.json")
        place = next(n for n in count(1) if not any(folder.glob(f"*.before-{n}")))
        return [path.rename(path.with_name(f"{path.name}.before-{place}")) for path in sorted(made)]


def _check_stage(config: LoopConfig, name: Stage | None) -> None:
    """Raise UserError for a stage that the loop does not have."""
    if config.preferences is not None and name in ("answers", "score"):
        raise UserError(f"there is no stage '{name}' where the config gives preferences: choose pair, train or measure")


def _iteration(line: Line, number: int, attempt: int, roles: _Roles, until: Stage | None) -> Iteration | None:
    """One iteration with its verdict; None where it was to end before."""
    line = replace(line, track=_within(line.track, f"iteration {number} of {line.config.iterations}"))
    task = _task(line, number, attempt, roles)
    verdict_file = task.folder / f"verdict-{attempt}.json"
    if verdict_file.exists():
        until = None
    else:
        _require_champion(line.store, roles, task.folder)
    who = {each.name: getattr(roles, each.name).digest for each in fields(roles)}
    write(task.folder / f"begun-{attempt}.json", json.dumps(who, indent=1))
    made = _stages(line, task, roles, until or "measure")
    if until is not None:
        return None
    assert made.learned is not None and made.candidate is not None
    decided = decide(line.store, line.policy, *map(line.read, made.reports))
    if decided.verdict.outcome == "promote" and decided.id not in {each.verdict_id for each in line.store.history()}:
        promote(line.store, decided.id)
    write(verdict_file, json.dumps({"id": decided.id, "outcome": decided.verdict.outcome}))
    return Iteration(
        number,
        attempt,
        line.config.retries[attempt - 1] if attempt else {},
        roles.policy,
        roles.champion,
        made.candidate,
        made.learned,
        made.rows,
        made.reports[1],
        made.reports[0],
        decided.verdict,
        decided.id,
        str(task.folder),
    )


def _require_champion(store: Store, roles: _Roles, folder: Path) -> None:
    """Raise UserError where somebody else moved the champion: what this iteration makes could not be promoted.

    The iteration's own candidate may be the champion already, if it was killed just after the move.
    """
    champion = store.champion()
    if champion is None or champion.checkpoint == roles.champion.digest:
        return
    now = registered(store, champion.checkpoint)
    if folder.resolve() not in Path(now.path).resolve().parents:
        raise UserError(
            f"the champion is now {now.digest[:12]}, and this loop's is {roles.champion.digest[:12]}: begin another "
            "loop from it (another name, model: champion), or bring this one back (rlhf-bench rollback)"
        )


def _stages(line: Line, task: Task, roles: _Roles, upto: Stage) -> _Made:
    """The stages in their order, up to and with this one."""
    made = _Made()
    if task.config.preferences is None:
        scoring = line.scoring()  # what is wrong with it is found before the answers are made
        made.rows = rows = answers_stage(task, line.store, line.track)
        if upto == "answers":
            return made
        made.rows = rows = rewards_stage(task, rows, scoring, line.store, line.track)
        if upto == "score":
            return made
    made.learned = learned = pairs_stage(task, list(made.rows))
    if upto == "pair":
        return made
    made.candidate = candidate = train_stage(task, learned, line.track)
    if rank():
        return made
    _register(line, task, candidate)
    if upto == "measure":
        made.reports = _measured(line, task, roles.start, (candidate, roles.champion, _anchor(line)))
    return made


def _register(line: Line, task: Task, candidate: Checkpoint) -> None:
    """Know the candidate by its name, which one that was set aside loses, and a model of another line keeps."""
    known = line.store.alias(task.name)
    ours = (
        known is None or known.digest == candidate.digest or task.folder.resolve() in Path(known.path).resolve().parents
    )
    line.store.register(candidate, alias=task.name if ours else None)
    if not ours:
        line.say(f"another model is called {task.name}: this candidate goes by {candidate.digest[:12]}")


def _measured(line: Line, task: Task, start: Checkpoint, checkpoints: Sequence[Checkpoint]) -> tuple[Report, ...]:
    """The reports of these; champion first, since its run is there more often.

    What was measured before, perhaps by another process on another machine, is read from the store: the same runs are
    the same decision.
    """
    found: dict[str, Report] = {}

    def measured(checkpoint: Checkpoint) -> Report:
        if checkpoint.digest not in found:
            with freed(None):
                found[checkpoint.digest] = line.signals(line.measure(checkpoint), checkpoint, start)
        return found[checkpoint.digest]

    def make() -> list[Row]:
        order = [checkpoints[1], *checkpoints]
        return [{"checkpoint": each.digest, "run": measured(each).run_id} for each in order]

    rows = stage(task, "measure", digest([each.digest for each in checkpoints]), make, line.track)
    runs = {row["checkpoint"]: row["run"] for row in rows}

    def known(checkpoint: Checkpoint) -> Report:
        kept = None if checkpoint.digest in found else _kept(line.store, checkpoint, runs.get(checkpoint.digest))
        return measured(checkpoint) if kept is None else line.signals(kept, checkpoint, start)

    return tuple(map(known, checkpoints))


def _kept(store: Store, checkpoint: Checkpoint, run_id: str | None) -> Report | None:
    """The finished report of this run, if it is of this checkpoint and nothing in it is left to grade."""
    try:
        run = store.run(run_id) if run_id else None
    except UserError:  # removed since
        run = None
    if run is None or run.report is None or run.status != "complete" or run.checkpoint != checkpoint.digest:
        return None
    return None if any(each.ungraded for each in run.report.estimates) else run.report


def _task(line: Line, number: int, attempt: int, roles: _Roles) -> Task:
    """What an iteration works on."""
    config = line.config.retry(attempt - 1) if attempt else line.config
    known = {"current": roles.policy, "initial": roles.start, "previous": roles.previous}
    given = config.preferences is not None

    def elsewhere(name: Stage) -> bool:
        if line.launch is None or name not in line.config.launch:
            return False
        line.launch(name, number, attempt)
        return True

    return Task(
        number=number,
        name=candidate_name(config, number, attempt),
        config=config,
        policy=roles.policy,
        reference=roles.start if config.reference == "initial" else roles.policy,
        explore=[known.get(name) or resolve(name, line.store, line.track) for name in config.answers.policies],
        prompts=() if given else batch(clean(line), line.config, number, attempt),
        given=batch(clean_pairs(line), line.config, number, attempt) if given else (),
        engine=begun(line)["engine"],
        folder=line.work / f"iteration-{number}",
        elsewhere=elsewhere,
        doing=partial(line.doing, number),
    )


def _anchor(line: Line) -> Checkpoint:
    """What guards hold against beside the champion: the first champion that there was."""
    return registered(line.store, line.store.history()[0].checkpoint)


def _within(track: Track, where: str) -> Track:
    return lambda label, total: track(f"{where}: {label}", total)


def _result(line: Line, done: Sequence[Iteration]) -> dict[str, Any]:
    """What the loop came to: the best policy by the gate, and on what evidence."""
    champion = line.store.champion()
    return {
        "champion": None if champion is None else champion.checkpoint,
        "iterations": [
            {
                "number": each.number,
                "attempt": each.attempt,
                "changed": dict(each.changed),
                "candidate": each.candidate.digest,
                "path": each.candidate.path,
                "trained_on": each.pairs,
                "dropped": dict(each.dropped),
                "runs": [each.champion_report.run_id, each.candidate_report.run_id],
                "verdict": each.verdict_id,
                "outcome": each.verdict.outcome,
                "reasons": list(each.verdict.reasons),
            }
            for each in done
        ],
    }
