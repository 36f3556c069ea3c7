"""Who becomes the champion: the candidate of a stored promote verdict, against the very champion it was judged with.

Each move re-reads the candidate's files and is a compare-and-swap on the champion's generation, so that neither changed
weights nor a second process can slip in between a verdict and its promotion.
"""

from __future__ import annotations

from rlhf_bench.harness.checkpoint import verify
from rlhf_bench.harness.errors import UserError
from rlhf_bench.harness.store import Champion, Store
from rlhf_bench.harness.types import Checkpoint


def promote(store: Store, verdict_id: int) -> Champion:
    """Make the candidate of this verdict the champion; a verdict that was carried out before changes nothing.

    Raises UserError where the verdict is not a promotion or was reached against another champion, ChangedCheckpoint
    where the candidate's files are not those that were judged, LostRace where another process moved the champion first.
    """
    verdict = store.verdict(verdict_id).verdict
    champion = store.champion()
    if verdict.outcome != "promote":
        raise UserError(f"verdict {verdict_id} is '{verdict.outcome}', so the champion stays: only 'promote' moves it")
    if champion is None:
        raise UserError("there is no champion to succeed: set the first one with `rlhf-bench promote --first MODEL`")
    if champion.verdict_id == verdict_id and champion.checkpoint == verdict.candidate:
        return champion
    if champion.checkpoint != verdict.champion:
        raise UserError(
            f"verdict {verdict_id} was reached against {verdict.champion[:12]}, but the champion is now "
            f"{champion.checkpoint[:12]}: gate the candidate against it"
        )
    verify(_registered(store, verdict.candidate))
    return store.set_champion(
        verdict.candidate,
        expect_generation=champion.generation,
        verdict_id=verdict_id,
        reason=verdict.reasons[0] if verdict.reasons else "promoted by the gate",
    )


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
    verify(_registered(store, checkpoint.digest))
    return store.set_champion(checkpoint.digest, expect_generation=0, verdict_id=None, reason=reason)


def promote_by_force(store: Store, digest: str, reason: str) -> Champion:
    """Move the champion without a verdict; the history says "forced" and why. Raises UserError for an empty reason."""
    if not reason.strip():
        raise UserError("a forced promotion needs a reason for the history: add --reason '…'")
    champion = store.champion()
    verify(_registered(store, digest))
    return store.set_champion(
        digest,
        expect_generation=champion.generation if champion else 0,
        verdict_id=None,
        reason=f"forced: {reason.strip()}",
    )


def _registered(store: Store, digest: str) -> Checkpoint:
    checkpoint = store.checkpoint(digest)
    if checkpoint is None:
        raise UserError(f"{digest[:12]} is not registered here: `rlhf-bench models register PATH --alias NAME` adds it")
    return checkpoint
