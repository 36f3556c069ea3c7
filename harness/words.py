"""A policy in words: what `rlhf-bench gate --explain` says."""

from __future__ import annotations

import math
from collections.abc import Iterator

from rlhf_bench.harness.policy import Guard, Policy, Sentinel, Target

_SIGNALS = {
    "length": "the answers grow by more than {limit:.0%} in characters",
    "truncated": "the share of answers cut at their limit rises by more than {points} points",
    "refused": "the share of refusals rises by more than {points} points",
    "distinct": "the share of distinct word pairs falls by more than {limit:.0%}",
    "kl": "the mean KL divergence from the reference exceeds {limit:g} nats an answer",
    "reward_gap": "the training reward's win rate rises {points} points more than the judge's",
}


def explain(policy: Policy) -> Iterator[str]:
    """The rules, one sentence each, in the order in which they are applied."""
    yield f"Policy '{policy.name}' ({policy.digest[:12]})."
    what = "all of these are" if policy.require == "all" else "at least one of these is (after Holm's correction)"
    yield f"The candidate is promoted where {what} shown to be better than the champion's:"
    yield from (f"  - {_target(target)}" for target in policy.targets)
    rivals = "the champion and the fixed anchor" if policy.against_anchor else "the champion"
    yield f"and every one of these is shown not to lose its margin against {rivals}:"
    yield from (f"  - {_guard(guard)}" for guard in policy.guards)
    vetoes = [s for s in policy.sentinels if s.action == "veto"]
    if vetoes:
        yield "It is rejected, whatever the scores, where"
        yield from (f"  - {_sentinel(sentinel)}" for sentinel in vetoes)
    warnings = [s for s in policy.sentinels if s.action == "warn"]
    if warnings:
        yield "A warning is shown where"
        yield from (f"  - {_sentinel(sentinel)}" for sentinel in warnings)
    missed = "a target" if policy.require == "all" else "every target"
    yield f"It is rejected where a guard is shown to lose more than its margin, or {missed} to gain no more than asked."
    yield "Else the verdict is inconclusive: the champion stays, and the reasons say what would decide."
    yield _error(policy)
    least = f"{100 * policy.max_ungraded:g}%"
    yield f"Ungraded samples count at their worst; where more than {least} are ungraded a check decides nothing."
    if policy.engines == "refuse":
        yield "Answers of two engines are refused where no parity record shows that these agree."
    if policy.halves:
        yield (
            f"A hash with salt '{policy.halves.salt}' sets {policy.halves.share:.0%} of the samples apart for trials; "
            "the rest is asked only when that half says promote, and says no more than yes or no."
        )


def _error(policy: Policy) -> str:
    chance = f"{100 * policy.alpha:g}%"
    if policy.ledger is None:
        return (
            f"Each decision promotes a candidate that should not be with a chance of at most {chance}; twenty add up."
        )
    if policy.ledger.planned:
        each = f"{100 * policy.alpha / policy.ledger.planned:.3g}%"
        return (
            f"All {policy.ledger.planned} planned decisions on the same samples together promote wrongly with a chance "
            f"of at most {chance}, {each} each; after them nothing is promoted on these samples."
        )
    first, second = (f"{100 * 6 * policy.alpha / (math.pi * t) ** 2:.3g}%" for t in (1, 2))
    return (
        f"All decisions on the same samples together promote wrongly with a chance of at most {chance}: {first} for "
        f"the first, {second} for the second, 6·{chance}/(π²·t²) for the t-th."
    )


def _target(target: Target) -> str:
    better = "lower" if target.direction == "lower" else "higher"
    more = f" by more than {100 * target.min_effect:g} points" if target.min_effect else ""
    return f"{_about(target)}: {better}{more}"


def _guard(guard: Guard) -> str:
    worse = "higher" if guard.direction == "lower" else "lower"
    return f"{_about(guard)}: not {worse} by {100 * guard.margin:g} points or more"


def _about(rule: Target | Guard) -> str:
    parts = [
        f"{part.metric} of {part.benchmark}" + (f" in {', '.join(part.strata)}" if part.strata else "")
        for part in rule.parts
    ]
    return f"{rule.label} ({' and '.join(parts)}, pooled)" if rule.pool else parts[0]


def _sentinel(sentinel: Sentinel) -> str:
    says = _SIGNALS[sentinel.signal].format(limit=sentinel.limit, points=f"{100 * sentinel.limit:g}")
    return f"on {sentinel.benchmark}, {says}"
