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
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from rlhf_bench.cli.question import Question
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
        rules, halves, fixed = asked.policy, asked.policy.halves, asked.anchor
        new, old = asked.candidate, asked.champion
        if halves is not None:
            new, old = (split(run, halves, False) for run in (new, old))
            fixed = fixed and split(fixed, halves, False)
        found, _ = judge(rules.model_copy(update={"halves": None}), new, old, fixed, alpha=rules.alpha)
        verdict = replace(found, policy=rules.digest)
    wrong = [
        check
        for check in verdict.checks
        if (check.role == "guard" and check.outcome != "pass")
        or (check.role == "sentinel" and check.outcome in ("fail", "undecided"))
        or (check.role == "target" and check.outcome == "fail" and verdict.outcome == "reject")
    ]
    if wrong or verdict.outcome == "reject":
        raise AssertionError(
            _message(
                "is not shown to have lost nothing", asked, (candidate, champion), verdict, _reasons(wrong, verdict)
            )
        )
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
    with _asked(candidate, champion, policy, anchor, store) as asked:
        verdict, _ = asked.decided()
    if verdict.outcome != "promote":
        wrong = [check for check in verdict.checks if check.outcome in ("fail", "undecided")]
        raise AssertionError(
            _message("is not promoted", asked, (candidate, champion), verdict, _reasons(wrong, verdict))
        )
    return verdict


@contextmanager
def _asked(
    candidate: Checkpoint,
    champion: Checkpoint,
    policy: str | Path | Policy,
    anchor: Checkpoint | None,
    store: Store | str | None,
) -> Iterator[Question]:
    from rlhf_bench.cli import gating
    from rlhf_bench.cli.question import question
    from rlhf_bench.harness.policy import Policy as Rules
    from rlhf_bench.harness.store import Store as Opened

    rules = policy if isinstance(policy, Rules) else gating.policy(str(policy))
    names = _text(candidate), _text(champion), None if anchor is None else _text(anchor)
    with (
        Opened(store) if isinstance(store, str) else nullcontext(store) as opened,
        question(*names, lambda _: rules, opened) as asked,
    ):
        yield asked


def _text(name: Checkpoint) -> str:
    """A name on the command line; a Path is always a path."""
    return name if isinstance(name, str) else f"{'' if '/' in str(name) else './'}{name}"


def _reasons(wrong: Sequence[Check], verdict: Verdict) -> list[str]:
    """What each of these checks says, or else what the verdict says."""
    return [f"{check.role} {check.reason}" for check in wrong] or list(verdict.reasons)


def _message(
    what: str, asked: Question, names: tuple[Checkpoint, Checkpoint], verdict: Verdict, reasons: Sequence[str]
) -> str:
    candidate, champion = names
    by = f"policy {asked.policy.name}, alpha {verdict.alpha:g}"
    head = f"{candidate} {what} against {champion}: {verdict.outcome} ({by})"
    return "\n".join([head, *(f"- {reason}" for reason in reasons)])
