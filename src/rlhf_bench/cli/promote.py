"""`rlhf-bench promote`: move the champion."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from rlhf_bench.cli import options, show, tables, wiring
from rlhf_bench.harness.errors import UserError

if TYPE_CHECKING:
    from rlhf_bench.harness.store import Champion, Store


def promote(
    candidate: Annotated[str | None, typer.Argument(help="The candidate's run, which the gate promoted.")] = None,
    verdict: Annotated[int | None, typer.Option(help="The number of the verdict, instead of a run.")] = None,
    first: Annotated[str | None, typer.Option(metavar="MODEL", help="Set the first champion.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Without a verdict; the history says so.")] = False,
    reason: Annotated[str, typer.Option(help="Why, for the history (needed with --force).")] = "",
    json: options.Json = False,
) -> None:
    """Make a candidate the champion: only a stored promote verdict against the present champion does.

    The candidate's files are checked against what was judged, and of two processes only one moves the champion.
    """
    if sum(given is not None for given in (candidate, verdict, first)) != 1:
        raise UserError("name one of: a candidate's run, --verdict ID, --first MODEL")
    if force and candidate is None:
        raise UserError("--force takes the candidate's run or model: rlhf-bench promote CANDIDATE --force --reason '…'")
    with wiring.open_store() as store:
        champion = _move(store, candidate, verdict, first, force, reason)
    if json:
        show.as_json(champion)
    else:
        show.say(f"champion: {tables.short(champion.checkpoint)} (generation {champion.generation}; {champion.reason})")


def _move(
    store: Store, candidate: str | None, verdict: int | None, first: str | None, force: bool, reason: str
) -> Champion:
    from rlhf_bench.harness import promote as moving

    if first is not None:
        from rlhf_bench.harness.models import resolve

        return moving.promote_first(store, resolve(first, store, show.bars()), reason or "first champion")
    if verdict is not None:
        return moving.promote(store, verdict)
    run = wiring.find_run(store, str(candidate))
    if force:
        return moving.promote_by_force(store, run.checkpoint, reason)
    return moving.promote(store, moving.latest_verdict(store, run.id))
