"""`rlhf-bench history` and `rlhf-bench rollback`: who beat whom, and bringing an earlier champion back."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rlhf_bench.cli import lookup, models, options, show, tables

if TYPE_CHECKING:
    from rich.tree import Tree

    from rlhf_bench.harness.store import Champion, StoredVerdict
    from rlhf_bench.harness.types import Checkpoint

    Known = Sequence[tuple[Checkpoint, tuple[str, ...]]]


DIGEST = re.compile("[0-9a-f]{64}")
INDENT, LEAST_WIDTH = 4, 60
"""Columns that a generation takes in the tree, and those that a checkpoint is left with however deep it stands."""


def history(
    tree: Annotated[bool, typer.Option("--tree", help="The checkpoints by descent, with what became of each.")] = False,
    json: options.Json = False,
) -> None:
    """Who was champion, whom it beat, when, and by what verdict; a forced or brought back one says so and why."""
    with lookup.open_store() as store:
        store.champion()  # champion.json is set right where it is not
        champions, verdicts, known = store.history(), store.verdicts(), store.checkpoints()
    if json:
        show.as_json(
            {
                "champions": _moves(champions, verdicts, known),
                "checkpoints": list(_fates(known, champions, verdicts).values()),
            }
        )
    elif tree:
        _draw(known, champions, verdicts)
    else:
        _table(_moves(champions, verdicts, known))


def rollback(
    to: Annotated[str, typer.Argument(help="An earlier champion: its generation, alias, or digest.")],
    reason: Annotated[str, typer.Option(help="Why, for the history (needed).")] = "",
    json: options.Json = False,
) -> None:
    """Bring an earlier champion back, as a new generation; its files are checked first."""
    from rlhf_bench.harness.promote import rollback as bring_back

    with lookup.open_store() as store:
        champion = bring_back(store, to, reason)
    if json:
        show.as_json(champion)
    else:
        say_champion(champion)


def say_champion(champion: Champion) -> None:
    """One line: who is champion now, and why."""
    show.say(f"champion: {tables.short(champion.checkpoint)} (generation {champion.generation}; {champion.reason})")


def _moves(champions: Sequence[Champion], verdicts: Iterable[StoredVerdict], known: Known) -> list[dict[str, Any]]:
    """Each champion with the one before it and the verdict that moved it, the first first."""
    names = {each.digest: list(aliases) for each, aliases in known}
    reached = {each.id: each for each in verdicts}
    found = []
    for before, champion in zip([None, *champions], champions, strict=False):
        found.append(
            {
                "generation": champion.generation,
                "checkpoint": champion.checkpoint,
                "names": names.get(champion.checkpoint, []),
                "in_place_of": before.checkpoint if before else None,
                "in_place_of_names": names.get(before.checkpoint, []) if before else [],
                "how": champion.how,
                "moved_at": champion.moved_at,
                "reason": champion.reason,
                "verdict": None if champion.verdict_id is None else _reached(reached[champion.verdict_id]),
            }
        )
    return found


def _reached(stored: StoredVerdict) -> dict[str, Any]:
    """A verdict in short: its number, what it spent, and how much each target gained."""
    verdict = stored.verdict
    targets = [each for each in verdict.checks if each.role == "target"]
    return {
        "id": stored.id,
        "outcome": verdict.outcome,
        "created": stored.created,
        "policy": verdict.policy,
        "alpha": verdict.alpha,
        "alpha_spent": verdict.spent,
        "decision": verdict.decision,
        "targets": [{"benchmark": t.benchmark, "metric": t.metric, "difference": t.difference} for t in targets],
    }


def _table(moves: Sequence[Mapping[str, Any]]) -> None:
    if not moves:
        show.say("no champion yet: `rlhf-bench promote --first MODEL` or `rlhf-bench iterate` sets one")
        return
    columns = ("gen.", "champion", "in place of", "when (UTC)", "how", "verdict", "spent", "target")
    rows = [
        (
            each["generation"],
            _named(each["names"], each["checkpoint"]),
            _named(each["in_place_of_names"], each["in_place_of"]) if each["in_place_of"] else "–",
            each["moved_at"][:16].replace("T", " "),
            each["how"],
            *_cells(each["verdict"]),
        )
        for each in moves
    ]
    show.table("champions", columns, rows, right=("gen.", "spent"), whole=("when (UTC)", "how"))
    show.say("spent: of the alpha that all decisions on the same samples share; target: what the gate saw it gain")
    for each in moves:
        if each["verdict"] is None:
            show.say(f"generation {each['generation']}: {each['reason']}")


def _cells(verdict: Mapping[str, Any] | None) -> tuple[str, str, str]:
    if verdict is None:
        return "–", "–", "–"
    targets = (f"{each['benchmark']} {show.number(each['difference'], signed=True)}" for each in verdict["targets"])
    spent = f"{verdict['alpha_spent']:.4f}" if verdict["decision"] else "–"
    return f"{verdict['id']} {verdict['outcome']}", spent, "\n".join(targets)


def _named(names: Sequence[str], digest: str) -> str:
    return ", ".join(names) or tables.short(digest)


def _fates(known: Known, champions: Sequence[Champion], verdicts: Sequence[StoredVerdict]) -> dict[str, dict[str, Any]]:
    """By digest each checkpoint: where it comes from, when it was champion, and what the gate said of it.

    `data` are the digests in its recipe that are no model's.
    """
    models_here = {each.digest for each, _ in known}
    return {
        each.digest: {
            "digest": each.digest,
            "names": list(names),
            "parent": each.parent,
            "made_by": models.made_by(each),
            "data": {
                key: value
                for key, value in each.recipe.items()
                if DIGEST.fullmatch(str(value)) and value not in {*models_here, each.parent}
            },
            "champion": bool(champions) and champions[-1].checkpoint == each.digest,
            "generations": [
                {"generation": c.generation, "how": c.how} for c in champions if c.checkpoint == each.digest
            ],
            "verdicts": [
                {"id": stored.id, "outcome": stored.verdict.outcome, "against": stored.verdict.champion}
                for stored in verdicts
                if stored.verdict.candidate == each.digest
            ],
        }
        for each, names in known
    }


def _draw(known: Known, champions: Sequence[Champion], verdicts: Sequence[StoredVerdict]) -> None:
    """A tree for each checkpoint whose parent is not registered; each checkpoint stands in one place."""
    from rich.text import Text
    from rich.tree import Tree

    fates = _fates(known, champions, verdicts)
    children: dict[str | None, list[str]] = {}
    for digest, fate in fates.items():
        parent = fate["parent"] if fate["parent"] in fates else None
        children.setdefault(parent, []).append(digest)
    depths: dict[str, int] = {}

    def grow(root: str) -> Tree:
        depths[root] = 0
        made = Tree(Text(show.safe(_said(fates[root], champions))))
        waiting = [(root, made)]
        while waiting:  # no recursion: a line may be longer than Python's stack
            digest, branch = waiting.pop()
            for child in children.get(digest, ()):
                if child not in depths:
                    depths[child] = depths[digest] + 1
                    waiting.append((child, branch.add(Text(show.safe(_said(fates[child], champions))))))
        return made

    trees = [grow(digest) for digest in children.get(None, ())]
    trees += [grow(digest) for digest in fates if digest not in depths]  # parents in a circle
    console = show.console()
    console.width = max(console.width, INDENT * max(depths.values(), default=0) + LEAST_WIDTH)
    for tree in trees:
        console.print(tree)


def _said(fate: Mapping[str, Any], champions: Sequence[Champion]) -> str:
    """One line for a checkpoint in the tree."""
    how = champions[-1].how if fate["champion"] else None
    parts = [f"{models.called(fate['names'], how)} {tables.short(fate['digest'])}"]
    if fate["made_by"]:
        parts.append(f"by {fate['made_by']}")
    parts += [f"{key} {tables.short(digest)}" for key, digest in fate["data"].items()]
    if fate["generations"]:
        marks = [
            str(g["generation"]) + ("" if g["how"] in ("first", "verdict") else f" ({g['how']})")
            for g in fate["generations"]
        ]
        parts.append(f"champion of generation {', '.join(marks)}")
    carried_out = {champion.verdict_id for champion in champions}
    for verdict in fate["verdicts"]:
        done = "" if verdict["outcome"] != "promote" or verdict["id"] in carried_out else ", not carried out"
        parts.append(f"{verdict['outcome']} by verdict {verdict['id']}{done}")
    return " · ".join(parts)
