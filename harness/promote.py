"""Who becomes the champion: the candidate of a stored promote verdict, against the very champion it was judged with.

A move is one durable transaction. Everything that it rests on is looked at inside: that the verdict promotes, that its
candidate was judged against this champion in this generation, on the samples that its runs have now, that the ledger
holds what it spent, and that the candidate's files are those that were judged. So nothing slips in between.

Reading a large checkpoint takes minutes, and SQLite has one write lock, so the files are read before it is taken and
inside only their stamps (name, inode, size, times) are compared with those from before the reading. Stamps tell
nothing of files that were written just before, within the resolution of a file system's clock: such files are read
again inside, which is quick then, because they are in memory.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from rlhf_bench.harness.checkpoint import stamps, verify
from rlhf_bench.harness.codec import items_in
from rlhf_bench.harness.errors import ChangedCheckpoint, LostRace, UserError
from rlhf_bench.harness.store import Champion, Decision, How, Line, Store
from rlhf_bench.harness.types import Checkpoint, Verdict

SETTLED_S = 2.0
"""A file that was touched longer ago than this cannot be written to without its stamp changing: FAT counts in 2 s."""


def promote(store: Store, verdict_id: int, *, policy: str | None = None) -> Champion:
    """Make the candidate of this verdict the champion; a verdict that was just carried out changes nothing.

    `policy` is the digest of the only policy that may have decided. Raises UserError where the verdict is not a
    promotion, or was reached against another champion, in another generation, by another policy or on other samples;
    ChangedCheckpoint where the candidate's files are not those that were judged; LostRace where another process moved
    the champion meanwhile.
    """
    verdict = store.verdict(verdict_id).verdict
    champion = store.champion()
    if champion is not None and _is_carried_out(champion, verdict, verdict_id):
        return champion
    try:
        with store.line() as line:  # what is wrong is said before the files are read
            before = _require(line, verdict_id, policy)
    except UserError:
        champion = store.champion()
        if champion is not None and _is_carried_out(champion, verdict, verdict_id):
            return champion  # by another process, between two statements
        raise

    def cleared(line: Line) -> Champion | None:
        now = line.champion()
        if now is not None and _is_carried_out(now, verdict, verdict_id):
            return now  # by another process, this moment
        if now != before:
            raise LostRace(f"the champion is no longer of generation {before.generation}: another process moved it")
        _require(line, verdict_id, policy)
        return None

    reason = verdict.reasons[0] if verdict.reasons else "promoted by the gate"
    return _move(store, verdict.candidate, before.generation, "verdict", reason, verdict_id, cleared)


def latest_verdict(store: Store, run_id: str) -> int:
    """The number of the last verdict on this candidate's run. Raises UserError where there is none."""
    found = [each.id for each in store.verdicts() if each.verdict.runs.get("candidate") == run_id]
    if not found:
        raise UserError(f"no verdict on run {run_id}: `rlhf-bench gate {run_id} champion` reaches one")
    return max(found)


def promote_first(store: Store, checkpoint: Checkpoint, reason: str = "first champion") -> Champion:
    """Set the first champion, which no verdict can name. Raises UserError where there is a champion."""
    champion = store.champion()
    if champion is not None:
        raise UserError(
            f"the champion is {champion.checkpoint[:12]}: only a promote verdict of `rlhf-bench gate` moves it"
        )
    return _move(store, checkpoint.digest, 0, "first", _one_line(reason))


def promote_by_force(store: Store, digest: str, reason: str) -> Champion:
    """Move the champion without a verdict; the history says "forced" and why, for ever.

    Raises UserError for an empty reason, or where this is the champion.
    """
    said = _one_line(reason)
    if not said:
        raise UserError("a forced promotion needs a reason for the history: add --reason '…'")
    champion = store.champion()
    _require_another(champion, digest)
    return _move(store, digest, champion.generation if champion else 0, "forced", f"forced: {said}")


def rollback(store: Store, to: int | str, reason: str) -> Champion:
    """Bring an earlier champion back, as a new generation; `to` is its generation, alias, or digest (or its beginning).

    Raises UserError for an empty reason, or where `to` never was champion or is; else as promote.
    """
    said = _one_line(reason)
    if not said:
        raise UserError("a rollback needs a reason for the history: add --reason '…'")
    champion = store.champion()
    if champion is None:
        raise _nobody()
    earlier = _earlier(store, to)
    _require_another(champion, earlier.checkpoint)
    why = f"rollback to generation {earlier.generation}: {said}"
    return _move(store, earlier.checkpoint, champion.generation, "rollback", why)


def _earlier(store: Store, to: int | str) -> Champion:
    """The last time that `to` was champion. A number is a generation, if there is one of it."""
    history = store.history()
    for each in history:
        if str(each.generation) == str(to):
            return each
    name = str(to)
    checkpoint = store.alias(name) or store.checkpoint(name)
    if checkpoint is None:
        raise UserError(f"'{name}' is no generation, alias or digest of a champion: `rlhf-bench history` lists them")
    found = [each for each in history if each.checkpoint == checkpoint.digest]
    if not found:
        raise UserError(f"'{name}' ({checkpoint.digest[:12]}) never was champion: `rlhf-bench history` lists who was")
    return found[-1]


def _move(
    store: Store,
    digest: str,
    expect_generation: int,
    how: How,
    reason: str,
    verdict_id: int | None = None,
    cleared: Callable[[Line], Champion | None] = lambda line: None,
) -> Champion:
    """Read the files, then move in one transaction; `cleared` looks at the line inside, and may say that it is done."""
    with store.line() as line:
        checkpoint = _registered(line, digest)
    unchanged = _read(checkpoint)
    with store.line(write=True) as line:
        moved = cleared(line)
        if moved is None:
            if _registered(line, digest).path != checkpoint.path:
                raise ChangedCheckpoint(f"{digest[:12]} was registered at another place meanwhile: promote it again")
            unchanged()
            moved = line.move(
                digest, expect_generation=expect_generation, verdict_id=verdict_id, reason=reason, how=how
            )
    store.champion()  # the pointer file follows
    return moved


def _read(checkpoint: Checkpoint) -> Callable[[], None]:
    """Check the files now; what is returned raises ChangedCheckpoint where they are no longer what was checked."""
    path = Path(checkpoint.path)

    before = stamps(path)
    last = max((when for stamp in before for when in stamp[-2:]), default=0)
    settled = last < time.time_ns() - SETTLED_S * 1e9
    verify(checkpoint)

    def unchanged() -> None:
        if stamps(path) != before:
            raise ChangedCheckpoint(f"{path} was written to while it was read: promote it again when it is at rest")
        if not settled:
            verify(checkpoint)

    return unchanged


def _require(line: Line, verdict_id: int, policy: str | None) -> Champion:
    """The champion, which this verdict may move. Raises UserError, in one line, where it may not."""
    verdict, champion = line.verdict(verdict_id).verdict, line.champion()
    gate_again = "gate the candidate against it"
    if verdict.outcome != "promote":
        raise UserError(f"verdict {verdict_id} is '{verdict.outcome}', so the champion stays: only 'promote' moves it")
    if champion is None:
        raise _nobody()
    if champion.checkpoint != verdict.champion:
        raise UserError(
            f"verdict {verdict_id} was reached against {verdict.champion[:12]}, but the champion is now "
            f"{champion.checkpoint[:12]}: {gate_again}"
        )
    if champion.generation != verdict.generation:
        when = f"in its generation {verdict.generation}" if verdict.generation else "in no generation"
        raise UserError(
            f"verdict {verdict_id} was reached against {verdict.champion[:12]} {when}, and the champion's is now "
            f"{champion.generation}: {gate_again}"
        )
    if policy is not None and policy != verdict.policy:
        raise UserError(
            f"verdict {verdict_id} was reached by the policy {verdict.policy[:12]}, not by {policy[:12]}: "
            f"gate the candidate by that policy"
        )
    _require_last_word(line, verdict_id, verdict)
    _require_same_data(line, verdict_id, verdict)
    if line.decision(verdict_id) != Decision(verdict_id, verdict.spent, dict(verdict.items), verdict.decision):
        raise UserError(f"the ledger does not hold what verdict {verdict_id} spent: {gate_again}")
    return champion


def _require_last_word(line: Line, verdict_id: int, verdict: Verdict) -> None:
    """Raise UserError where a later verdict on the same runs says otherwise, or guards held against a chosen anchor."""
    asked = _question(line, verdict)
    for later in line.verdicts():
        said = later.verdict
        if later.id > verdict_id and said.outcome != "promote" and _question(line, said) == asked:
            raise UserError(
                f"verdict {verdict_id} was followed by verdict {later.id} on the same runs, which is '{said.outcome}': "
                "gate the candidate again"
            )
    anchor, first = line.run(verdict.runs.get("anchor", "")), line.history()[0].checkpoint
    if "anchor" in verdict.runs and (anchor is None or anchor.checkpoint != first):
        raise UserError(
            f"verdict {verdict_id} held its guards against another anchor than the first champion, {first[:12]}: gate "
            "without --anchor"
        )


def _question(line: Line, verdict: Verdict) -> tuple[str | None, ...]:
    """What was asked: by which policy, of which runs, and against which model as anchor, whichever run of it."""
    anchor = line.run(verdict.runs.get("anchor", ""))
    runs = (verdict.runs.get(name) for name in ("candidate", "champion"))
    return (verdict.policy, *runs, None if anchor is None else anchor.checkpoint)


def _require_same_data(line: Line, verdict_id: int, verdict: Verdict) -> None:
    """Raise UserError unless the runs are of these checkpoints and have the samples that the verdict was reached on."""
    if not verdict.items or not {"candidate", "champion"} <= verdict.runs.keys():
        raise UserError(f"verdict {verdict_id} does not say on which samples it was reached: gate the candidate again")
    about = {"candidate": verdict.candidate, "champion": verdict.champion}
    for role, run_id in verdict.runs.items():
        run = line.run(run_id)
        if run is None:
            raise UserError(f"the {role}'s run {run_id} of verdict {verdict_id} is not in this store: gate again")
        if run.checkpoint != about.get(role, run.checkpoint):
            raise UserError(
                f"the {role}'s run {run_id} is of {run.checkpoint[:12]}, verdict {verdict_id} about "
                f"{about[role][:12]}: gate again"
            )
        found = items_in(run.manifest, verdict.items)
        for name, digest in verdict.items.items():
            if found.get(name) != digest:
                raise UserError(
                    f"run {run_id} now has other samples of '{name}' than those of verdict {verdict_id}: gate again"
                )


def _is_carried_out(champion: Champion, verdict: Verdict, verdict_id: int) -> bool:
    return champion.verdict_id == verdict_id and champion.checkpoint == verdict.candidate


def _require_another(champion: Champion | None, digest: str) -> None:
    if champion is not None and champion.checkpoint == digest:
        raise UserError(f"{digest[:12]} is the champion already, of generation {champion.generation}")


def _registered(line: Line, digest: str) -> Checkpoint:
    checkpoint = line.checkpoint(digest)
    if checkpoint is None:
        raise UserError(f"{digest[:12]} is not registered here: `rlhf-bench models register PATH --alias NAME` adds it")
    return checkpoint


def _one_line(reason: str) -> str:
    """The reason, without line breaks and what no text file can hold."""
    return " ".join(reason.encode("utf-8", "replace").decode().replace("\x00", " ").split())


def _nobody() -> UserError:
    return UserError("there is no champion to succeed: set the first one with `rlhf-bench promote --first MODEL`")
