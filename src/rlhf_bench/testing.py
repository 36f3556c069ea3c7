"""The gate as an assertion, so that a pipeline of any kind can hold a new checkpoint to a policy in a test.

    from rlhf_bench.testing import assert_not_regressed

    def test_the_new_checkpoint_lost_nothing():
        assert_not_regressed("out/new", "out/old", "policy.yaml")

A checkpoint is named by a run of the store (id, alias, "latest", "champion") or by a result file of lm-eval or
AlpacaEval; both alike. What is not shown fails: a guard that the samples cannot decide is no pass. A mistake in the
question (no such run, runs that do not compare) is a UserError and no AssertionError. Works under pytest, unittest and
in a plain script; imports no torch.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, TypeAlias

from rlhf_bench.harness.errors import UserError

if TYPE_CHECKING:
    from rlhf_bench.harness.claims import RunData
    from rlhf_bench.harness.policy import Policy
    from rlhf_bench.harness.store import Store
    from rlhf_bench.harness.types import Check, Verdict

__all__ = ["assert_not_regressed", "assert_promotes"]

Checkpoint: TypeAlias = "str | Path"
"""A run of the store by name, or the path of a result file."""


def assert_not_regressed(
    candidate: Checkpoint,
    champion: Checkpoint,
    policy: str | Path | Policy,
    *,
    anchor: Checkpoint | None = None,
    store: Store | str | None = None,
) -> Verdict:
    """Raise AssertionError unless every guard of `policy` is shown safe, and no target or sentinel says reject.

    `policy` is a packaged one's name, a YAML file or a Policy, and its alpha is each guard's; `anchor` is the fixed run
    that guards must hold against too, by default the first champion's, among files the champion's. `store` is one that
    is open or its URL, by default the one that the command line uses. Nothing is stored and no alpha is spent; of
    samples in halves only those to iterate on are looked at. Raises UserError where the question itself is wrong.
    """
    __tracebackhide__ = True
    from rlhf_bench.harness.decide import judge, split

    with _asked(candidate, champion, policy, anchor, store) as asked:
        rules, runs, halves = asked.policy, asked.runs, asked.policy.halves
        if halves is not None:
            runs = [run and split(run, halves, False) for run in runs]
        found, _ = judge(rules.model_copy(update={"halves": None}), *_three(runs), alpha=rules.alpha)
        verdict = replace(found, policy=rules.digest)
    wrong = [
        check
        for check in verdict.checks
        if (check.role == "guard" and check.outcome != "pass")
        or (check.role == "sentinel" and check.outcome in ("fail", "undecided"))
        or (check.role == "target" and check.outcome == "fail" and verdict.outcome == "reject")
    ]
    if wrong or verdict.outcome == "reject":
        raise AssertionError(_message("is not shown to have lost nothing", asked, verdict, _reasons(wrong, verdict)))
    return verdict


def assert_promotes(
    candidate: Checkpoint,
    champion: Checkpoint,
    policy: str | Path | Policy,
    *,
    anchor: Checkpoint | None = None,
    store: Store | str | None = None,
) -> Verdict:
    """Raise AssertionError unless the gate promotes: every target shown better, every guard shown safe.

    The arguments are those of `assert_not_regressed`. On runs of the store it is the decision of `rlhf-bench gate`,
    stored with the alpha that it spends, and the same decision when the test is run again.
    """
    __tracebackhide__ = True
    from rlhf_bench.harness.decide import decide, judge

    with _asked(candidate, champion, policy, anchor, store) as asked:
        if asked.store is None:
            verdict, _ = judge(asked.policy, *_three(asked.runs), alpha=asked.policy.alpha)
        else:
            verdict = decide(asked.store, asked.policy, *_three(asked.runs)).verdict
    if verdict.outcome != "promote":
        wrong = [check for check in verdict.checks if check.outcome in ("fail", "undecided")]
        raise AssertionError(_message("is not promoted", asked, verdict, _reasons(wrong, verdict)))
    return verdict


@dataclass(frozen=True, slots=True)
class _Asked:
    """The question: the policy, the runs of candidate, champion and anchor, and the store where they are kept."""

    names: tuple[str, str]
    policy: Policy
    runs: Sequence[RunData | None]
    store: Store | None


@contextmanager
def _asked(
    candidate: Checkpoint,
    champion: Checkpoint,
    policy: str | Path | Policy,
    anchor: Checkpoint | None,
    store: Store | str | None,
) -> Iterator[_Asked]:
    from rlhf_bench.cli import files, wiring
    from rlhf_bench.harness.policy import Policy as Rules
    from rlhf_bench.harness.store import Store as Opened

    rules = policy if isinstance(policy, Rules) else wiring.policy(str(policy))
    given = [_text(each) for each in (candidate, champion, anchor) if each is not None]
    names = given[0], given[1]
    loose = [name for name in given if files.is_file(name)]
    if loose and len(loose) < len(given):
        raise UserError(
            f"{loose[0]} is a result file and '{next(name for name in given if name not in loose)}' is not: give files "
            f"alone or runs alone (`rlhf-bench runs import` makes a run of a file)"
        )
    if loose:
        with TemporaryDirectory() as folder, Opened(f"sqlite:///{folder}/files.db") as own:
            runs = [wiring.run_data(own, files.load(name, own)) for name in given]
            yield _Asked(names, rules, [*runs[:2], runs[-1] if rules.against_anchor else None], None)
        return
    opened = Opened(store) if isinstance(store, str) else store or wiring.open_store()
    try:
        yield _Asked(names, rules, _runs(opened, rules, *names, given[2] if anchor is not None else None), opened)
    finally:
        if opened is not store:
            opened.close()


def _runs(store: Store, rules: Policy, candidate: str, champion: str, anchor: str | None) -> list[RunData | None]:
    from rlhf_bench.cli import gate, wiring

    new = wiring.find_run(store, candidate)
    old = wiring.find_run(store, champion, like=new)
    fixed = gate.anchor_run(store, anchor, new, old) if rules.against_anchor else None
    return [wiring.run_data(store, each.id) if each else None for each in (new, old, fixed)]


def _three(runs: Sequence[RunData | None]) -> tuple[RunData, RunData, RunData | None]:
    candidate, champion, anchor = runs
    assert candidate is not None and champion is not None
    return candidate, champion, anchor


def _text(name: Checkpoint) -> str:
    """A name on the command line; a Path is always a path."""
    return name if isinstance(name, str) else f"{'' if '/' in str(name) else './'}{name}"


def _reasons(wrong: Sequence[Check], verdict: Verdict) -> list[str]:
    """What each of these checks says, or else what the verdict says."""
    return [f"{check.role} {check.reason}" for check in wrong] or list(verdict.reasons)


def _message(what: str, asked: _Asked, verdict: Verdict, reasons: Sequence[str]) -> str:
    candidate, champion = asked.names
    by = f"policy {asked.policy.name}, alpha {verdict.alpha:g}"
    head = f"{candidate} {what} against {champion}: {verdict.outcome} ({by})"
    return "\n".join([head, *(f"- {reason}" for reason in reasons)])
