"""What a gate could decide, before anything is spent: power, detectable effects, samples and repeats.

    Policy + a run of the champion ─► Spread of each claim's difference ─► chance to pass, if nothing is lost or so much
    is gained ─► the chance that all guards pass together, and what that would take

A target is planned for a true gain, a guard for no true difference. Sentinels are not planned: nothing says in advance
how answers will grow. Chances of several checks multiply as if they were independent; where the same answers serve
several, or a better model is better at everything, they are somewhat more likely to pass together than that.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Literal

from scipy import special

from rlhf_bench.harness.claims import Claim, RunData, claims, require_whole
from rlhf_bench.harness.errors import UnknownName, UserError
from rlhf_bench.harness.policy import Policy
from rlhf_bench.harness.spread import Spread, spread
from rlhf_bench.harness.stats import alpha_share, chance_to_show, detectable
from rlhf_bench.harness.types import Kind

MOST_SAMPLES = 1e9
MOST_REPEATS = 1_000_000


@dataclass(frozen=True, slots=True)
class Stage:
    """One test that a check must pass: on this share of the items, at this one-sided alpha."""

    share: float
    alpha: float


@dataclass(frozen=True, slots=True)
class PlannedCheck:
    """What is to be expected of one target or guard. Differences are fractions of the score; better is above 0.

    `full` is how many items there are at all, None where that is not known. `se` is the standard error of the
    difference on the items of all stages together; `detectable` the distance from the threshold that a z-test sees with
    the wished power (MDE). `chance` is that of passing: of a target at the wished gain, of a guard where nothing is
    lost. What would give it the wished power: `samples`; `repeats`, so many answers to each of `full` items, None where
    samples suffice, and a lower bound while `spread.within` is None; `enough`, of a target so large a true gain, of a
    guard so wide a margin. Each is None where no number would. `joint_margin` is the margin with which a guard would
    play its part in all guards passing together with that power.
    """

    role: Literal["target", "guard"]
    label: str
    metric: str
    benchmarks: tuple[str, ...]
    threshold: float
    spread: Spread
    stages: tuple[Stage, ...]
    full: int | None
    se: float
    detectable: float
    chance: float
    samples: int | None
    repeats: int | None = None
    enough: float | None = None
    joint_margin: float | None = None


@dataclass(frozen=True, slots=True)
class PowerPlan:
    """A policy, held against a run of the champion before there is a candidate.

    `alphas` are the levels of the first decisions on the same samples, from the first on. `targets` and `guards` are
    the chances that what is asked of them holds together, `promote` that both do: at the wished gain, nothing lost.
    """

    policy: str
    run: str
    twin: str | None
    power: float
    gain: float
    alphas: tuple[float, ...]
    checks: tuple[PlannedCheck, ...]
    targets: float
    guards: float
    promote: float


def plan(
    policy: Policy,
    run: RunData,
    twin: RunData | None = None,
    *,
    power: float = 0.8,
    gain: float = 0.03,
    sizes: Mapping[str, int] | None = None,
) -> PowerPlan:
    """What `policy` can decide about a candidate that is asked as `run` was.

    `twin` is a run that `spread.require_twin` accepts; `sizes` are the full sizes of benchmarks, where known. Raises
    UserError where power or gain are no fractions, or where the run was stopped early: nothing is gated against it, and
    its scores are those that it was stopped for. Raises UnknownName where the policy is about what the run has not.
    """
    if not 0 < power < 1:
        raise UserError(f"a power of {power:g}: give the chance that is wished, between 0 and 1, such as 0.8")
    if not 0 < gain < 1:
        hint = f"; did you mean {gain / 100:g}?" if 1 <= gain < 100 else ""
        raise UserError(f"a gain of {gain:g}: give a fraction of the score, such as 0.03 for 3 points{hint}")
    require_whole(run)
    for name in policy.benchmarks:
        if name not in run.benchmarks:
            about = f"Policy '{policy.name}' asks for it."
            raise UnknownName(f"benchmark in run {run.run_id}", name, run.benchmarks, about)
    alphas = levels(policy, 10)
    checks = [_check(claim, policy, run, twin, sizes or {}, power, gain) for claim in claims(policy, ["champion"])]
    count = sum(check.role == "guard" for check in checks)
    checks = [_with_joint_margin(check, power ** (1 / count)) for check in checks]
    targets = [check.chance for check in checks if check.role == "target"]
    passed = math.prod(targets) if policy.require == "all" else 1 - math.prod(1 - each for each in targets)
    guards = math.prod(check.chance for check in checks if check.role == "guard")
    return PowerPlan(
        policy=policy.name,
        run=run.run_id,
        twin=None if twin is None else twin.run_id,
        power=power,
        gain=gain,
        alphas=alphas,
        checks=tuple(checks),
        targets=passed,
        guards=guards,
        promote=passed * guards,
    )


def levels(policy: Policy, decisions: int) -> tuple[float, ...]:
    """The alpha of each of the first decisions on the same samples; fewer where fewer are planned."""
    if policy.ledger is None:
        return (policy.alpha,)
    planned = policy.ledger.planned
    count = min(decisions, planned) if planned else decisions
    return tuple(alpha_share(policy.alpha, planned, place) for place in range(1, count + 1))


def chance(
    check: PlannedCheck,
    difference: float,
    *,
    items: float | None = None,
    variance: float | None = None,
    threshold: float | None = None,
    exact: bool = True,
) -> float:
    """How likely the check is to pass where this is the true difference; with other items, another variance of an
    item's difference or another threshold than the check's where they are given. `exact` as for `chance_to_show`."""
    kind: Kind = "binary" if check.spread.binary else "continuous"
    count = check.spread.items if items is None else items
    sd = math.sqrt(check.spread.variance if variance is None else variance)
    limit = check.threshold if threshold is None else threshold
    return math.prod(
        chance_to_show(difference, limit, stage.share * count, sd, stage.alpha, kind=kind, exact=exact)
        for stage in check.stages
    )


def _check(
    claim: Claim,
    policy: Policy,
    run: RunData,
    twin: RunData | None,
    sizes: Mapping[str, int],
    power: float,
    gain: float,
) -> PlannedCheck:
    found = spread(claim.parts, run, twin)
    rivals = len(policy.targets) if claim.role == "target" and policy.require == "any" else 1
    empty = PlannedCheck(
        role=claim.role,
        label=claim.label,
        metric=claim.metric,
        benchmarks=tuple(dict.fromkeys(part.benchmark for part in claim.parts)),
        threshold=claim.threshold,
        spread=found,
        stages=_stages(policy, rivals),
        full=_full(claim, run, found, sizes),
        se=math.sqrt(found.variance / found.items),
        detectable=0.0,
        chance=0.0,
        samples=None,
    )
    return with_needs(empty, gain if claim.role == "target" else 0.0, power)


def with_needs(check: PlannedCheck, true: float, power: float) -> PlannedCheck:
    """The check with its chance where the true difference is this, and with what the wished power would take."""
    found = replace(
        check, detectable=_detectable(check, power), chance=chance(check, true), samples=_samples(check, true, power)
    )
    return replace(found, repeats=_repeats(found, true, power), enough=_enough(check, power))


def _stages(policy: Policy, rivals: int) -> tuple[Stage, ...]:
    """The tests of a check; among `rivals` of which one is to pass, at Holm's first and strictest level."""
    first = levels(policy, 1)[0] / rivals
    if policy.halves is None:
        return (Stage(1.0, first),)
    return Stage(policy.halves.share, policy.alpha / rivals), Stage(1 - policy.halves.share, first)


def _full(claim: Claim, run: RunData, found: Spread, sizes: Mapping[str, int]) -> int | None:
    """How many items there are of what the claim is about: those of the run, if it was asked without a limit."""
    if "limit" in run.manifest and run.manifest["limit"] is None:
        return found.items
    if any(part.strata or part.benchmark not in sizes for part in claim.parts):
        return None
    return max(found.items, sum(sizes[part.benchmark] for part in claim.parts))


def _detectable(check: PlannedCheck, power: float) -> float:
    """(z_{1-alpha} + z_power) · SE; of two stages the distance at which both are passed with this power."""
    if len(check.stages) == 1:
        return detectable(check.se, check.stages[0].alpha, power)

    def passed(distance: float) -> float:
        return math.prod(
            float(special.ndtr(distance * math.sqrt(stage.share) / check.se - special.ndtri(1 - stage.alpha)))
            for stage in check.stages
        )

    return _least(passed, power, 100 * check.se) or 0.0


def _samples(check: PlannedCheck, true: float, power: float) -> int | None:
    """The fewest items with the wished power, all of them asked as the run's were."""

    def passed(log_items: float, exact: bool = False) -> float:
        return chance(check, true, items=math.exp(log_items), exact=exact)

    found = _least(passed, power, math.log(MOST_SAMPLES)) if true > check.threshold else None
    if found is None:
        return None
    items = max(2, math.ceil(math.exp(found) - 1e-6))
    while passed(math.log(items), exact=True) < power:  # a step of the counts
        items += math.ceil(items / 30)
    return items


def _repeats(check: PlannedCheck, true: float, power: float) -> int | None:
    """The answers to each item with the wished power, where the items that there are do not have it with one."""
    items = check.full or check.spread.items
    enough = check.samples is not None and check.samples <= items
    if enough or not check.spread.generated or true <= check.threshold:
        return None
    asked = replace(check, spread=replace(check.spread, binary=False))  # several answers have a mean
    spread, within = check.spread, check.spread.within

    def passed(share: float) -> float:
        return chance(asked, true, items=items, variance=(1 - share) * spread.single)

    found = _least(passed, power, 1.0)
    if found is None:
        return None
    left = (1 - found) * spread.single - (0.0 if within is None else spread.between)
    needed = (spread.single if within is None else within) / left if left > 0 else math.inf
    return max(spread.repeats + 1, math.ceil(needed - 1e-6)) if needed <= MOST_REPEATS else None


def _with_joint_margin(check: PlannedCheck, each: float) -> PlannedCheck:
    """A guard with the margin that passes with chance `each` where nothing is lost."""
    if check.role == "target":
        return check
    return replace(check, joint_margin=_enough(check, each))


def _enough(check: PlannedCheck, power: float) -> float | None:
    """The least true gain of a target, or margin of a guard that loses nothing, with this chance to pass."""

    def passed(distance: float, exact: bool = False) -> float:
        if check.role == "target":
            return chance(check, distance, exact=exact)
        return chance(check, 0.0, threshold=-distance, exact=exact)

    found = _least(passed, power, 1.0)
    while found is not None and passed(found, exact=True) < power:  # a step of the counts
        found = None if found >= 1 else min(1.0, 1.03 * found)
    return found


def _least(rising: Callable[[float], float], goal: float, highest: float) -> float | None:
    """The least value from 0 to `highest` at which `rising` reaches the goal, None where it does not."""
    if rising(highest) < goal:
        return None
    low, high = 0.0, highest
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (low, middle) if rising(middle) >= goal else (middle, high)
    return high
