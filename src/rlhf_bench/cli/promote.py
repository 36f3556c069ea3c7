"""`rlhf-bench promote`: move the champion."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from rlhf_bench.cli import gating, lookup, options, show
from rlhf_bench.cli.history import say_champion
from rlhf_bench.harness.errors import UserError

if TYPE_CHECKING:
    from rlhf_bench.harness.store import Champion, Store


def promote(
    candidate: Annotated[str | None, typer.Argument(help="The candidate's run, which the gate promoted.")] = None,
    verdict: Annotated[int | None, typer.Option(help="The number of the verdict, instead of a run.")] = None,
    first: Annotated[str | None, typer.Option(metavar="MODEL", help="Set the first champion.")] = None,
    policy: Annotated[
        str | None,
        typer.Option(
            help="Only by a verdict of this policy: a packaged one or a YAML file.", autocompletion=options.policies
        ),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Without a verdict; the history says so for ever.")] = False,
    reason: Annotated[str, typer.Option(help="Why, for the history (needed with --force).")] = "",
    json: options.Json = False,
) -> None:
    """Make a candidate the champion: only a stored promote verdict against the present champion does.

    The verdict must be about this very generation of the champion and the samples that the runs have now. The
    candidate's files are checked against what was judged, and of several processes only one moves the champion.
    """
    if sum(given is not None for given in (candidate, verdict, first)) != 1:
        raise UserError("name one of: a candidate's run, --verdict ID, --first MODEL")
    if force and candidate is None:
        raise UserError("--force takes the candidate's run or model: rlhf-bench promote CANDIDATE --force --reason '…'")
    if policy is not None and (force or first is not None):
        raise UserError("--policy asks for a verdict of that policy, and --force and --first do without one")
    with lookup.open_store() as store:
        champion = _move(store, candidate, verdict, first, policy, force, reason)
    if json:
        show.as_json(champion)
    else:
        say_champion(champion)


def _move(
    store: Store,
    candidate: str | None,
    verdict: int | None,
    first: str | None,
    policy: str | None,
    force: bool,
    reason: str,
) -> Champion:
    from rlhf_bench.harness import promote as moving

    if first is not None:
        from rlhf_bench.harness.models import resolve

        return moving.promote_first(store, resolve(first, store, show.bars()), reason or "first champion")
    rules = None if policy is None else gating.policy(policy).digest
    if verdict is not None:
        return moving.promote(store, verdict, policy=rules)
    run = lookup.find_run(store, str(candidate))
    if force:
        return moving.promote_by_force(store, run.checkpoint, reason)
    return moving.promote(store, moving.latest_verdict(store, run.id), policy=rules)
