"""What a gate is asked: the names of candidate, champion and anchor to the runs behind them.

All are runs of a store, or all are result files of other tools, which are read into a store that passes away.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from rlhf_bench.cli import files, gating, lookup
from rlhf_bench.harness.errors import UserError

if TYPE_CHECKING:
    from rlhf_bench.cli.measuring import Asked
    from rlhf_bench.harness.claims import RunData
    from rlhf_bench.harness.policy import Policy
    from rlhf_bench.harness.sequential import Stopping
    from rlhf_bench.harness.store import Run, Store
    from rlhf_bench.harness.types import Verdict


@dataclass(frozen=True, slots=True)
class Question:
    """A policy and the runs that it is held against; `store` keeps the answer, None where these are files."""

    policy: Policy
    candidate: RunData
    champion: RunData
    anchor: RunData | None
    store: Store | None

    def decided(self) -> tuple[Verdict, int | None]:
        """The verdict and its number: of runs by the ledger and stored, of files at the policy's alpha and not."""
        from rlhf_bench.harness.decide import decide, judge

        runs = self.candidate, self.champion, self.anchor
        if self.store is None:
            return judge(self.policy, *runs, alpha=self.policy.alpha)[0], None
        found = decide(self.store, self.policy, *runs)
        return found.verdict, found.id


@contextmanager
def question(
    candidate: str,
    champion: str,
    anchor: str | None,
    rules: Callable[[Run], Policy],
    store: Store | None = None,
) -> Iterator[Question]:
    """The question that these names are; `rules` gives the policy for the candidate's run.

    `store` is one that is open already, else the one that the settings name. Raises UserError where a name is of
    nothing, or where files and runs are mixed.
    """
    names = [name for name in (candidate, champion, anchor) if name is not None]
    loose = [name for name in names if files.is_file(name)]
    if loose and len(loose) < len(names):
        other = next(name for name in names if name not in loose)
        raise UserError(
            f"'{other}' is no file, and {loose[0]} is: give files alone or runs alone (`rlhf-bench runs import` makes "
            "a run of a file)"
        )
    if loose:
        from rlhf_bench.harness.store import Store as Opened

        with TemporaryDirectory() as folder, Opened(f"sqlite:///{folder}/files.db") as own:
            runs = [gating.run_data(own, files.load(name, own)) for name in names]
            policy = rules(own.run(runs[0].run_id))
            _require_anchor_is_asked_for(policy, anchor)
            if anchor is not None and runs[-1].checkpoint == runs[0].checkpoint:
                raise UserError(f"anchor {anchor} holds the candidate's own results: name those of a model that stays")
            yield Question(policy, runs[0], runs[1], runs[-1] if policy.against_anchor else None, None)
        return
    opened = store or lookup.open_store()
    try:
        new = lookup.find_run(opened, candidate)
        old = lookup.find_run(opened, champion, like=new)
        policy = rules(new)
        _require_anchor_is_asked_for(policy, anchor)
        fixed = anchor_run(opened, anchor, new, old) if policy.against_anchor else None
        found = [gating.run_data(opened, each.id) for each in (new, old, fixed) if each is not None]
        yield Question(policy, found[0], found[1], found[2] if fixed is not None else None, opened)
    finally:
        if store is None:
            opened.close()


def _require_anchor_is_asked_for(policy: Policy, anchor: str | None) -> None:
    if anchor is not None and not policy.against_anchor:
        raise UserError(
            f"policy '{policy.name}' holds its guards against no anchor (against_anchor: false), so --anchor {anchor} "
            "would change nothing: leave it out, or change the policy"
        )


def anchor_run(store: Store, name: str | None, new: Run, old: Run) -> Run:
    """The fixed run that guards hold against: the one named, else that of the first champion, so that small losses
    cannot add up; while there is none, the champion's. Raises UserError for one of the candidate itself."""
    if name is not None:
        found = lookup.find_run(store, name, like=new)
        if found.checkpoint == new.checkpoint:
            raise UserError(f"anchor {name} is a run of the candidate itself: name one of a model that stays as it is")
        return found
    history = store.history()
    if not history:
        return old
    first = lookup.find_checkpoint(store, history[0].checkpoint)
    return lookup.last_run(store, first.digest, lookup.name_of(first, store), like=new)


def stopping(asked: Asked, store: Store) -> Stopping:
    """What ends a run early: the gate that it is for, at the level that the ledger leaves. Raises UserError."""
    from rlhf_bench.harness.decide import level_of
    from rlhf_bench.harness.sequential import Stopping
    from rlhf_bench.harness.stats.sequential import Design

    against = lookup.find_run(store, asked.against or "champion", whole=True)
    rules = gating.default_policy(against) if asked.policy is None else gating.policy(asked.policy)
    champion = gating.run_data(store, against.id)
    anchor = gating.run_data(store, anchor_run(store, None, against, against).id) if rules.against_anchor else None
    kind: Any = asked.sequential

    def level(run_id: str) -> float:
        return level_of(store, rules, run_id, champion, anchor)

    return Stopping(rules, champion, anchor, Design(kind), champion.figures, level)
