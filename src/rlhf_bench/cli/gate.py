"""`rlhf-bench gate`: promote, reject or inconclusive."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from rlhf_bench.cli import options, show, tables, wiring
from rlhf_bench.harness.errors import UserError

if TYPE_CHECKING:
    from rlhf_bench.harness.store import Run, Store

EXIT_CODES = {"promote": 0, "reject": 1, "inconclusive": 3}


def gate(
    candidate: Annotated[str, typer.Argument(help="The new checkpoint's run: id, latest, or a model's alias.")],
    champion: Annotated[str, typer.Argument(help="The champion's run: id, champion, or a model's alias.")] = "champion",
    policy: Annotated[
        str | None,
        typer.Option(
            "--policy",
            help="A packaged policy or a YAML file.",
            show_default="the packaged one about the candidate's benchmarks",
            autocompletion=options.policies,
        ),
    ] = None,
    anchor: Annotated[
        str | None,
        typer.Option(
            help="A fixed run that guards must hold against too.", show_default="the run of the first champion"
        ),
    ] = None,
    json: options.Json = False,
) -> None:
    """Decide whether the candidate may become champion. Exit code: 0 promote, 1 reject, 3 inconclusive, 2 misuse.

    The verdict is stored; `rlhf-bench promote` carries it out.
    """
    from rlhf_bench.harness import gate as deciding

    with wiring.open_store() as store:
        new = wiring.find_run(store, candidate)
        old = wiring.find_run(store, champion, like=new)
        rules = wiring.default_policy(new) if policy is None else wiring.policy(policy)
        fixed = _first_champion(store, new, old) if anchor is None else _anchor(store, anchor, new)
        data = [deciding.RunData.load(store, each.id) for each in (new, old, fixed)]
        verdict = deciding.gate(rules, *data)
        number = store.save_verdict(verdict)
    if json:
        show.as_json({"id": number, "verdict": verdict})
    else:
        tables.verdict(verdict, number)
        if verdict.outcome == "promote":
            show.say(f"next: rlhf-bench promote --verdict {number}")
    raise typer.Exit(EXIT_CODES[verdict.outcome])


def _anchor(store: Store, name: str, new: Run) -> Run:
    """The run that is named as anchor. Raises UserError for one of the candidate itself: it would hold nothing."""
    found = wiring.find_run(store, name, like=new)
    if found.checkpoint == new.checkpoint:
        raise UserError(f"--anchor {name} is a run of the candidate itself: name one of a model that stays as it is")
    return found


def _first_champion(store: Store, new: Run, old: Run) -> Run:
    """The run of the first champion, so that small losses cannot add up; while there is none, the champion's run."""
    history = store.history()
    if not history:
        return old
    first = wiring.find_checkpoint(store, history[0].checkpoint)
    return wiring.last_run(store, first.digest, wiring.name_of(first, store), like=new)
