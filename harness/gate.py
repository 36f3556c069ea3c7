"""The gate: may the candidate replace the champion? Three answers, each with its reasons, and never a guess.

Every target and guard asks about one difference, candidate minus champion (or anchor), at one-sided level alpha:

    target   passes where the difference is shown to be above min_effect, fails where it is shown to be below
    guard    passes where the difference is shown to be above -margin,    fails where it is shown to be below

    PROMOTE        all targets pass (`require: any`: at least one, after Holm) and all guards pass, against champion and
                   anchor. An intersection-union test (Berger 1982): each at alpha, wrong promotions at most alpha.
    REJECT         a guard fails, after Holm over all guards, or the targets can no longer be met (futility): one fails,
                   or with `require: any` all do.
    INCONCLUSIVE   otherwise: the champion stays, and the reasons say what would decide.

What shows it: for binary pairs Tango's score test, and above 0 McNemar's mid-p too; for others the studentised
cluster bootstrap, and above 0 the sign flips too. The p-value decides, after Holm where Holm applies; `low` and `high`
are the bounds at 1 - alpha and are drawn back to the threshold where p does not reach alpha, so that bound and outcome
never disagree. Every ungraded pair counts at its worst, against whichever claim is made.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, Self

import numpy as np
from numpy.typing import NDArray

from rlhf_bench.harness.compare import Pairs, pair, require_kind
from rlhf_bench.harness.errors import UnknownName, UserError
from rlhf_bench.harness.policy import Policy
from rlhf_bench.harness.stats import Evidence, binary_evidence, continuous_evidence, holm, samples_to_decide
from rlhf_bench.harness.store import Store
from rlhf_bench.harness.types import Check, Kind, Outcome, Record, Verdict

_NO_EVIDENCE = Evidence(-1.0, 1.0, 1.0, 1.0)
_MANIFEST = ("protocol_digest", "judge_identity", "benchmarks")


@dataclass(frozen=True, slots=True)
class RunData:
    """What the gate reads of one run: whose answers, under which conditions, with which scores.

    `manifest` holds "protocol_digest", "judge_identity" and "benchmarks" ({name: {"version", "metric", "kind"}}), and
    may hold "protocol" and "engine"; UserError where one of the first is missing: nothing could be shown to compare.
    """

    run_id: str
    checkpoint: str
    manifest: Mapping[str, Any]
    records: Mapping[str, Sequence[Record]]

    def __post_init__(self) -> None:
        for key in _MANIFEST:
            if key not in self.manifest:
                raise UserError(f"run {self.run_id} does not say its {key}, so it compares with nothing: run it again")

    @classmethod
    def load(cls, store: Store, run_id: str) -> Self:
        """The finished run of this id in the store. Raises UserError where it is not finished."""
        report = store.report(run_id)
        records: dict[str, list[Record]] = {}
        for record in store.records(report.run_id):
            records.setdefault(record.benchmark, []).append(record)
        return cls(report.run_id, report.checkpoint, report.manifest, records)

    @property
    def benchmarks(self) -> Mapping[str, Mapping[str, Any]]:
        """Version, metric and kind of each benchmark that was run."""
        found: Mapping[str, Mapping[str, Any]] = self.manifest["benchmarks"]
        return found


def gate(policy: Policy, candidate: RunData, champion: RunData, anchor: RunData | None = None) -> Verdict:
    """The verdict of `policy` on these runs.

    `anchor` is the run that guards are also held against; where it is the champion's (or the candidate's own) the
    champion's checks stand for it. Raises UserError where the question itself is wrong: the candidate is the champion,
    the runs were made under different conditions or on different samples, the policy names what no run has, or wants
    an anchor that is not given.
    """
    rivals = _rivals(policy, candidate, champion, anchor)
    findings = [_find(claim, policy, candidate, rivals[claim.against]) for claim in _claims(policy, rivals)]
    targets = _judge([f for f in findings if f.claim.role == "target"], policy, adjust_passes=policy.require == "any")
    guards = _judge([f for f in findings if f.claim.role == "guard"], policy, adjust_fails=True)
    enough = any if policy.require == "any" else all
    hopeless = all if policy.require == "any" else any

    outcome: Outcome = "inconclusive"
    if any(c.outcome == "fail" for c in guards) or hopeless(c.outcome == "fail" for c in targets):
        outcome = "reject"
    elif enough(c.outcome == "pass" for c in targets) and all(c.outcome == "pass" for c in guards):
        outcome = "promote"
    checks = (*targets, *guards)
    decisive = {"promote": "pass", "reject": "fail", "inconclusive": "undecided"}[outcome]
    return Verdict(
        outcome=outcome,
        checks=checks,
        reasons=tuple(check.reason for check in checks if check.outcome == decisive),
        candidate=candidate.checkpoint,
        champion=champion.checkpoint,
        policy=policy.digest,
        alpha=policy.alpha,
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
            fields += [(f"{k} of '{benchmark}'", ours.get(k), theirs.get(k)) for k in ("version", "metric", "kind")]
    for field, ours, theirs in fields:
        if ours != theirs:
            raise UserError(
                f"runs {one.run_id} and {other.run_id} do not compare: the {field} is {_short(ours)} in the one and "
                f"{_short(theirs)} in the other; run both alike"
            )


@dataclass(frozen=True, slots=True)
class _Claim:
    """What a policy wants shown: that a difference lies above `threshold`."""

    role: Literal["target", "guard"]
    benchmark: str
    metric: str
    threshold: float
    against: str

    @property
    def margin(self) -> float:
        return abs(self.threshold)


@dataclass(frozen=True, slots=True)
class _Finding:
    """What the records say about a claim; no evidence where `missing` says what there is not."""

    claim: _Claim
    difference: float | None = None
    evidence: Evidence = _NO_EVIDENCE
    pairs: int = 0
    ungraded: int = 0
    missing: str = ""


def _rivals(policy: Policy, candidate: RunData, champion: RunData, anchor: RunData | None) -> dict[str, RunData]:
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
    wanted = [target.benchmark for target in policy.targets] + [guard.benchmark for guard in policy.guards]
    for rival in rivals.values():
        require_comparable(candidate, rival, wanted)
    known = {name for run in (candidate, *rivals.values()) for name in run.benchmarks}
    for name in wanted:
        if name not in known:
            raise UnknownName("benchmark in these runs", name, known, f"Policy '{policy.name}' asks for it.")
    return rivals


def _claims(policy: Policy, rivals: Iterable[str]) -> list[_Claim]:
    targets = [_Claim("target", t.benchmark, t.metric, t.min_effect, "champion") for t in policy.targets]
    return targets + [
        _Claim("guard", guard.benchmark, guard.metric, -guard.margin, rival)
        for rival in rivals
        for guard in policy.guards
    ]


def _find(claim: _Claim, policy: Policy, candidate: RunData, rival: RunData) -> _Finding:
    for run in (candidate, rival):
        if claim.benchmark not in run.benchmarks:
            return _Finding(claim, missing=f"run {run.run_id} does not have it, and nothing is shown without it")
    pairs = pair(
        candidate.records.get(claim.benchmark, ()),
        rival.records.get(claim.benchmark, ()),
        benchmark=claim.benchmark,
        metric=claim.metric,
    )
    if pairs.unpaired:
        raise UserError(
            f"'{claim.benchmark}': {len(pairs.unpaired)} samples are in only one of the runs {candidate.run_id} and "
            f"{rival.run_id} ('{pairs.unpaired[0]}' first): run both with the same limit"
        )
    kind = _kind(claim, candidate, pairs)
    graded = pairs.graded
    ungraded = int(graded.size - graded.sum())
    difference = float((pairs.candidate - pairs.champion)[graded].mean()) if graded.any() else None
    found = _Finding(claim, difference, pairs=graded.size, ungraded=ungraded)
    if ungraded > policy.max_ungraded * graded.size:
        allowed = f"{100 * policy.max_ungraded:g}% allowed"
        return replace(found, missing=f"{ungraded} of {graded.size} pairs are ungraded, more than the {allowed}")
    worst = _weigh(claim, policy, kind, pairs, _filled(pairs, 0.0, 1.0))
    best = _weigh(claim, policy, kind, pairs, _filled(pairs, 1.0, 0.0)) if ungraded else worst
    return replace(found, evidence=Evidence(worst.low, best.high, worst.p_above, best.p_below))


def _kind(claim: _Claim, run: RunData, pairs: Pairs) -> Kind:
    """The benchmark's declared kind for its own metric, and for its other metrics what their values look like."""
    facts = run.benchmarks[claim.benchmark]
    if claim.metric == facts["metric"]:
        kind: Kind = facts["kind"]
        require_kind(pairs, kind, claim.benchmark)
        return kind
    others = {name for both in pairs.records for record in both for name in record.score.also}
    if claim.metric not in others:
        raise UnknownName(f"metric of '{claim.benchmark}'", claim.metric, {facts["metric"], *others})
    scores = np.concatenate([pairs.candidate, pairs.champion])
    return "binary" if np.isin(scores[np.isfinite(scores)], (0.0, 1.0)).all() else "continuous"


def _filled(pairs: Pairs, candidate: float, champion: float) -> NDArray[np.float64]:
    """Candidate minus champion, with these scores where there is none."""
    return np.nan_to_num(pairs.candidate, nan=candidate) - np.nan_to_num(pairs.champion, nan=champion)


def _weigh(claim: _Claim, policy: Policy, kind: Kind, pairs: Pairs, d: NDArray[np.float64]) -> Evidence:
    if kind == "binary" and pairs.clusters is None:
        gained, lost = int((d > 0).sum()), int((d < 0).sum())
        return binary_evidence(gained, lost, d.size, threshold=claim.threshold, alpha=policy.alpha)
    return continuous_evidence(d, pairs.clusters, threshold=claim.threshold, alpha=policy.alpha)


def _judge(
    findings: Sequence[_Finding], policy: Policy, *, adjust_passes: bool = False, adjust_fails: bool = False
) -> list[Check]:
    """The checks of all targets, or of all guards: p-values adjusted together (Holm) on the side that is a union."""
    above: Sequence[float] = [finding.evidence.p_above for finding in findings]
    below: Sequence[float] = [finding.evidence.p_below for finding in findings]
    above = holm(above) if adjust_passes else above
    below = holm(below) if adjust_fails else below
    return [_check(*row, policy) for row in zip(findings, above, below, strict=True)]


def _check(finding: _Finding, p_above: float, p_below: float, policy: Policy) -> Check:
    claim, (low, high, _, _) = finding.claim, finding.evidence
    outcome: Literal["pass", "fail", "undecided"] = "undecided"
    if p_above < policy.alpha:
        outcome = "pass"
    elif p_below < policy.alpha:
        outcome = "fail"
    low = low if p_above < policy.alpha else min(low, claim.threshold)
    high = high if p_below < policy.alpha else max(high, claim.threshold)
    known = not finding.missing
    return Check(
        benchmark=claim.benchmark,
        role=claim.role,
        metric=claim.metric,
        difference=finding.difference,
        low=low if known else None,
        high=high if known else None,
        margin=claim.margin,
        p=p_above if known else None,
        outcome=outcome,
        against=claim.against,
        reason=_sentence(finding, p_above, outcome, policy.alpha),
    )


def _sentence(finding: _Finding, p: float, outcome: str, alpha: float) -> str:
    claim, (low, high, _, _) = finding.claim, finding.evidence
    subject = claim.benchmark if claim.against == "champion" else f"{claim.benchmark} against the {claim.against}"
    if finding.missing or finding.difference is None:
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
    points = 100 * abs(finding.difference)
    moved = f"{'gained' if finding.difference > 0 else 'lost'} {points:.1f} points" if points else "no difference"
    facts = f"{1 - 2 * alpha:.0%} interval {_points(low)} to {_points(high)}"
    facts += f", p {'< 0.001' if p < 0.001 else f'= {p:.3f}'}" if claim.role == "target" and outcome != "fail" else ""
    facts += f", {finding.ungraded} ungraded counted at their worst" if finding.ungraded else ""
    more = f"; {_what_would_decide(finding, alpha)}" if outcome == "undecided" else ""
    return f"{subject}: {moved} on {finding.pairs} pairs ({facts}), {says}{more}"


def _what_would_decide(finding: _Finding, alpha: float) -> str:
    """How many samples would decide four times in five, if the difference is as seen."""
    low, high, _, _ = finding.evidence
    distance = abs((finding.difference or 0.0) - finding.claim.threshold)
    more = samples_to_decide(low, high, finding.pairs, distance, alpha) - finding.pairs
    first = f"grade the {finding.ungraded} ungraded first; " if finding.ungraded else ""
    if more > 1_000_000:
        return f"{first}with so small a difference no number of samples is likely to decide"
    return f"{first}about {max(1, round(more))} more samples would decide"


def _points(value: float) -> str:
    return f"{100 * value:+.1f}".replace("-", "−")


def _short(value: Any) -> str:
    text = str(value)
    return f"{text[:12]}…" if len(text) > 40 else text
