"""The gate: may the candidate replace the champion? Three answers, each with its reasons, and never a guess.

Every target and guard asks about one difference, candidate minus champion (or anchor), at one-sided level alpha:

    target   passes where the difference is shown to be above min_effect, fails where it is shown to be below
    guard    passes where the difference is shown to be above -margin,    fails where it is shown to be below

    PROMOTE        all targets pass (`require: any`: at least one, after Holm) and all guards pass, against champion and
                   anchor, and no sentinel vetoes. An intersection-union test (Berger 1982): each at alpha, wrong
                   promotions at most alpha.
    REJECT         a guard fails, after Holm over all guards, or the targets can no longer be met (futility): one fails,
                   or with `require: any` all do; or a sentinel vetoes.
    INCONCLUSIVE   otherwise: the champion stays, and the reasons say what would decide.

What shows it: for binary pairs Tango's score test, and above 0 McNemar's mid-p too; for others the studentised
cluster bootstrap, and above 0 the sign flips too. The p-value decides, after Holm where Holm applies; `low` and `high`
are the bounds at 1 - alpha and are drawn back to the threshold where p does not reach alpha, so that bound and outcome
never disagree. Every ungraded pair counts at its worst, against whichever claim is made.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

from rlhf_bench.harness.claims import HIGHER, Finding, Level, RunData, claims, find
from rlhf_bench.harness.errors import UnknownName, UserError
from rlhf_bench.harness.parity import unshown
from rlhf_bench.harness.policy import Policy, Sentinel
from rlhf_bench.harness.signals import read_signal, sentence, unlike
from rlhf_bench.harness.stats import holm, samples_to_decide
from rlhf_bench.harness.stats.planning import repeats_to_decide
from rlhf_bench.harness.types import Check, Outcome, Verdict

__all__ = ["RunData", "gate", "require_comparable", "rivals_of"]


def gate(
    policy: Policy,
    candidate: RunData,
    champion: RunData,
    anchor: RunData | None = None,
    *,
    alpha: float | None = None,
    levels: Mapping[str, Level] = {},
) -> Verdict:
    """The verdict of `policy` on these runs.

    `anchor` is the run that guards are also held against; where it is the champion's (or the candidate's own) the
    champion's checks stand for it. `alpha` replaces the policy's; `levels` gives some benchmarks their own, where a
    sequential design does. Answers of two engines that no parity record shows to agree are said in the reasons. Raises
    UserError where the question itself is wrong: the candidate is the champion, the runs were made under different
    conditions (by the policy's `engines` also: by two such engines) or on different samples, the policy names what no
    run has, or wants an anchor that is not given.
    """
    alpha = policy.alpha if alpha is None else alpha
    rivals = rivals_of(policy, candidate, champion, anchor)
    warnings = _across_engines(policy, candidate, rivals)
    findings = [
        find(
            claim,
            policy,
            candidate,
            rivals[claim.against],
            min(levels.get(part.benchmark, Level(alpha)) for part in claim.parts),
        )
        for claim in claims(policy, rivals)
    ]
    targets = _judge([f for f in findings if f.claim.role == "target"], adjust_passes=policy.require == "any")
    guards = _judge([f for f in findings if f.claim.role == "guard"], adjust_fails=True)
    watched = [_watch(sentinel, candidate, champion) for sentinel in policy.sentinels]
    checks = (*targets, *guards, *watched)
    outcome = _outcome(policy, targets, guards, watched)
    decisive = {"promote": "pass", "reject": "fail", "inconclusive": "undecided"}[outcome]
    return Verdict(
        outcome=outcome,
        checks=checks,
        reasons=(
            *(check.reason for wanted in (decisive, "warn") for check in checks if check.outcome == wanted),
            *warnings,
        ),
        candidate=candidate.checkpoint,
        champion=champion.checkpoint,
        policy=policy.digest,
        alpha=alpha,
        runs={"candidate": candidate.run_id} | {name: run.run_id for name, run in rivals.items()},
    )


def require_comparable(one: RunData, other: RunData, benchmarks: Iterable[str] = ()) -> None:
    """Raise UserError, naming the field, where protocol, judge, dtype or the version of a benchmark differ."""
    fields: list[tuple[str, Any, Any]] = [("judge", one.manifest["judge_identity"], other.manifest["judge_identity"])]
    for part, names in (("engine", ("dtype",)), ("protocol", ("chat_template", "system_prompt", "seed", "shots"))):
        ours, theirs = (run.manifest.get(part) or {} for run in (one, other))
        fields += [(f"{part}'s {name}", ours.get(name), theirs.get(name)) for name in names]
    fields.append(("protocol", one.manifest["protocol_digest"], other.manifest["protocol_digest"]))
    for benchmark in benchmarks:
        if benchmark in one.benchmarks and benchmark in other.benchmarks:
            ours, theirs = one.benchmarks[benchmark], other.benchmarks[benchmark]
            fields += [(f"{k} of '{benchmark}'", ours.get(k), theirs.get(k)) for k in ("version", "metric")]
    for field, ours, theirs in fields:
        if ours != theirs:
            raise UserError(
                f"runs {one.run_id} and {other.run_id} do not compare: the {field} is {_short(ours)} in the one and "
                f"{_short(theirs)} in the other; run both alike"
            )


def rivals_of(policy: Policy, candidate: RunData, champion: RunData, anchor: RunData | None) -> dict[str, RunData]:
    """The runs that guards are held against, by their role. Raises UserError as `gate` where the question is wrong."""
    rivals = {"champion": champion}
    if candidate.checkpoint == champion.checkpoint:
        raise UserError(f"the candidate is the champion ({_short(champion.checkpoint)}): there is nothing to decide")
    if policy.against_anchor:
        if anchor is None:
            raise UserError(
                f"policy '{policy.name}' holds its guards against an anchor too, and none was given: "
                f"name the anchor's run, or set `against_anchor: false`"
            )
        if anchor.checkpoint not in (champion.checkpoint, candidate.checkpoint):
            rivals["anchor"] = anchor
    for rival in rivals.values():
        require_comparable(candidate, rival, policy.benchmarks)
    _require_directions(policy, candidate)
    known = {name for run in (candidate, *rivals.values()) for name in run.benchmarks}
    for name in policy.benchmarks:
        if name not in known:
            raise UnknownName("benchmark in these runs", name, known, f"Policy '{policy.name}' asks for it.")
    return rivals


def _require_directions(policy: Policy, candidate: RunData) -> None:
    """Raise UserError where a rule takes for better what the run says is worse."""
    said = candidate.manifest.get(HIGHER, {})
    for rule in (*policy.targets, *policy.guards):
        for part in rule.parts:
            higher = said.get(part.benchmark, {}).get(part.metric)
            if higher is not None and higher != (rule.direction == "higher"):
                more, direction = ("more", "higher") if higher else ("less", "lower")
                raise UserError(
                    f"run {candidate.run_id} says that {more} {part.metric} of '{part.benchmark}' is better, and "
                    f"policy '{policy.name}' the contrary: write `direction: {direction}`"
                )


def _across_engines(policy: Policy, candidate: RunData, rivals: Mapping[str, RunData]) -> list[str]:
    """A warning for each rival whose engine is not known to answer alike; UserError by `engines: refuse`."""
    found = []
    for name, rival in rivals.items():
        why = unshown(candidate.manifest.get("engine") or {}, rival.manifest.get("engine") or {}, candidate.parity)
        if why and policy.engines == "refuse":
            raise UserError(
                f"policy '{policy.name}' refuses it (engines: refuse): the candidate's and the {name}'s {why}"
            )
        found += [f"warning: the candidate's and the {name}'s {why}"] if why else []
    return found


def _outcome(policy: Policy, targets: Sequence[Check], guards: Sequence[Check], watched: Sequence[Check]) -> Outcome:
    enough = any if policy.require == "any" else all
    hopeless = all if policy.require == "any" else any
    if any(c.outcome == "fail" for c in (*guards, *watched)) or hopeless(c.outcome == "fail" for c in targets):
        return "reject"
    kept = all(c.outcome == "pass" for c in guards) and all(c.outcome != "undecided" for c in watched)
    return "promote" if kept and enough(c.outcome == "pass" for c in targets) else "inconclusive"


def _judge(findings: Sequence[Finding], *, adjust_passes: bool = False, adjust_fails: bool = False) -> list[Check]:
    """The checks of all targets, or of all guards: p-values adjusted together (Holm) on the side that is a union."""
    above: Sequence[float] = [finding.evidence.p_above for finding in findings]
    below: Sequence[float] = [finding.evidence.p_below for finding in findings]
    above = holm(above) if adjust_passes else above
    below = holm(below) if adjust_fails else below
    return [_check(*row) for row in zip(findings, above, below, strict=True)]


def _check(finding: Finding, p_above: float, p_below: float) -> Check:
    claim, (low, high, _, _) = finding.claim, finding.evidence
    outcome: Literal["pass", "fail", "undecided"] = "undecided"
    if p_above < finding.level.alpha:
        outcome = "pass"
    elif p_below < finding.level.alpha:
        outcome = "fail"
    low = low if p_above < finding.level.alpha else min(low, claim.threshold)
    high = high if p_below < finding.level.alpha else max(high, claim.threshold)
    known = not finding.missing
    return Check(
        benchmark=claim.label,
        role=claim.role,
        metric=claim.metric,
        difference=finding.difference,
        low=low if known and math.isfinite(low) else None,
        high=high if known and math.isfinite(high) else None,
        margin=claim.margin,
        p=p_above if known else None,
        outcome=outcome,
        against=claim.against,
        reason=_sentence(finding, p_above, outcome),
        level=finding.level.alpha,
        pairs=finding.pairs,
        ungraded=finding.ungraded,
    )


def _watch(sentinel: Sentinel, candidate: RunData, champion: RunData) -> Check:
    """A sentinel's reading held against its limit. What cannot be measured does not pass."""
    name, signal = sentinel.benchmark, sentinel.signal
    value, why = None, unlike(signal, candidate.manifest, champion.manifest)
    if not why:
        reading = read_signal(signal, candidate.records.get(name, ()), champion.records.get(name, ()))
        value, why = reading.value, sentence(signal, reading)
    outcome: Literal["pass", "fail", "undecided", "warn"] = "pass"
    if value is None:
        outcome = "warn" if sentinel.action == "warn" else "undecided"
    elif value > sentinel.limit:
        outcome = "warn" if sentinel.action == "warn" else "fail"
    held = (
        "" if value is None else f": {'within' if value <= sentinel.limit else 'past'} the limit of {sentinel.limit:g}"
    )
    return Check(
        benchmark=name,
        role="sentinel",
        metric=signal,
        difference=value,
        low=None,
        high=None,
        margin=sentinel.limit,
        p=None,
        outcome=outcome,
        reason=f"{'warning: ' if outcome == 'warn' else ''}{name}: {why}{held}",
    )


def _sentence(finding: Finding, p: float, outcome: str) -> str:
    claim, (low, high, _, _) = finding.claim, finding.evidence
    subject = claim.label if claim.against == "champion" else f"{claim.label} against the {claim.against}"
    if finding.missing:
        return f"{subject}: {finding.missing}"
    margin = f"{100 * claim.margin:g}"
    says = {
        ("target", "pass"): f"better by more than {margin} points" if claim.threshold else "better",
        ("target", "fail"): f"shown not to gain {margin} points" if claim.threshold else "shown to be worse",
        ("target", "undecided"): f"not shown to gain {margin} points" if claim.threshold else "not shown to be better",
        ("guard", "pass"): f"margin {margin}: shown to be safe",
        ("guard", "fail"): f"margin {margin}: shown to lose more",
        ("guard", "undecided"): f"margin {margin}: not shown to be worse, not shown to be safe",
    }[claim.role, outcome]
    facts = "no interval: too little varies among them"
    if math.isfinite(high - low):
        facts = f"{100 * (1 - 2 * finding.level.alpha):.3g}% interval {_points(low)} to {_points(high)}"
    facts += f", p {'< 0.001' if p < 0.001 else f'= {p:.3f}'}" if claim.role == "target" and outcome != "fail" else ""
    facts += f", {finding.ungraded} ungraded counted at their worst" if finding.ungraded else ""
    more = f"; {_what_would_decide(finding)}" if outcome == "undecided" else ""
    return f"{subject}: {_moved(finding)} on {finding.pairs} pairs ({facts}), {says}{more}"


def _moved(finding: Finding) -> str:
    if not finding.difference:
        return "no difference"
    points = f"{100 * abs(finding.difference):.1f} points"
    if finding.claim.sign < 0:
        return f"{'fell' if finding.difference > 0 else 'rose'} by {points}"
    return f"{'gained' if finding.difference > 0 else 'lost'} {points}"


def _what_would_decide(finding: Finding) -> str:
    """How many samples would decide four times in five, if the difference is as seen; or repeats of those there are.

    The repeats are the fewest that could do it: were all of the spread the chance of sampling an answer.
    """
    low, high, _, _ = finding.evidence
    distance = abs((finding.difference or 0.0) - finding.claim.threshold)
    needed = samples_to_decide(low, high, finding.items, distance, finding.level.alpha)
    first = f"grade the {finding.ungraded} ungraded first; " if finding.ungraded else ""
    if not math.isfinite(high - low):
        return f"{first}more samples are needed, and these do not tell how many"
    if needed - finding.items > 1_000_000:
        return f"{first}with so small a difference no number of samples is likely to decide"
    more = f"{first}about {max(1, round(needed - finding.items))} more samples would decide"
    times = max(1, finding.pairs // max(finding.items, 1))
    repeats = repeats_to_decide(low, high, finding.items, distance, finding.level.alpha, repeats=times)
    return f"{more}, or {max(2, repeats):.0f} or more answers to each of these" if finding.repeatable else more


def _points(value: float) -> str:
    return f"{100 * value:+.1f}".replace("-", "−")


def _short(value: Any) -> str:
    text = "empty" if value == "" else str(value)
    return f"{text[:12]}…" if len(text) > 40 else text
