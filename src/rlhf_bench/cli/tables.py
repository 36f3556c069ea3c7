"""The nouns as tables: reports, comparisons, verdicts and lineage, the same wherever they are shown."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rlhf_bench.cli import lookup, show

if TYPE_CHECKING:
    from rlhf_bench.harness.dry import Planned
    from rlhf_bench.harness.types import Check, Estimate, Report, Verdict


def short(digest: str | None) -> str:
    """The first twelve digits of a digest; what is no digest (a scripted engine's name) stays whole."""
    if digest is None:
        return "–"
    return digest[:12] if len(digest) == 64 else digest


def report(found: Report) -> None:
    """A run's scores with intervals, and the judge beside each benchmark that it graded; beside a KL the reference.

    What was left ungraded is counted, and so are answers that were cut at their length limit where there are any.
    """
    judged, annotated = found.manifest.get("judged", ()), found.manifest.get("annotations", {})
    cut = any(each.cut for each in found.estimates)
    rows = [
        (
            each.benchmark,
            each.metric,
            show.number(each.mean),
            show.interval(each.low, each.high),
            each.graded,
            each.ungraded,
            *([each.cut] if cut else []),
            annotated.get(each.metric, {}).get("by") or (found.judge if each.benchmark in judged else ""),
        )
        for each in found.estimates
    ]
    columns = ("benchmark", "metric", "score", "95% interval", "graded", "ungraded", *(["cut"] if cut else []), "judge")
    right = ("score", "graded", "ungraded", "cut")
    title = f"{found.model} on {found.suite}, protocol {found.protocol}"
    show.table(title, columns, rows, right=right, whole=("95% interval",))
    for each in found.estimates:
        if each.why:
            show.say(f"{each.benchmark}: {each.why}")
    if found.judge == lookup.DEMO_JUDGE:
        show.say(f"note: {lookup.DEMO_JUDGE} is the reward that the demo trains on: what it judges reads optimistic")


def costs(found: Report) -> None:
    """What calls of an API took, of the model and of the judge, where there were any."""
    for who, about in (("answers", found.manifest.get("engine")), ("judgments", found.manifest.get("judge_manifest"))):
        if about and "cost" in about:
            show.say(f"{who}: {about['usage']}; {about['cost']}")


def stopped(found: Report) -> None:
    """How far a run went that was to stop early, why it ended, and what it saved."""
    design = found.manifest.get("sequential")
    if design is None:
        return
    parts = [f"{done} of {there} of {name}" for name, (done, there) in design["asked"].items()]
    done, there = (sum(each[i] for each in design["asked"].values()) for i in (0, 1))
    saved = f"{there - done} samples ({1 - done / max(there, 1):.0%}) were never asked or judged"
    show.say(f"ended after {', '.join(parts)}: {design['why']}; {saved}")
    show.say(
        "note: what is stopped when it looks best reads optimistic: these scores decide the gate, and no leaderboard"
    )


def planned(plan: Planned) -> None:
    """What a run would ask, and cost."""
    parts = [("answers", plan.model, plan.answers, plan.answers_known)]
    if plan.judgments is not None:
        parts.append(("judgments", plan.judge or "", plan.judgments, plan.judgments_known))
    rows = [
        (what, by, each.calls, known, each.input_tokens, each.output_tokens, dollars(each.usd))
        for what, by, each, known in parts
    ]
    columns = ("what", "by", "calls", "kept", "tokens in", "tokens out", "cost")
    show.table("a dry run: nothing was asked", columns, rows, right=columns[2:])
    show.say("tokens in at 4 characters each; tokens out at most; kept: answered before, not asked again")
    if plan.judge is not None and plan.answers.calls:
        long = f"{plan.answers.calls} answers are still to be given: a judge's reading is estimated with the longest"
        show.say(f"{long} that they can get")
    if plan.judge is not None and plan.judgments is None:
        show.say(f"{plan.judge} is asked nothing that costs")


def dollars(usd: float | None) -> str:
    """An amount as people write it."""
    return "unknown price" if usd is None else "free" if usd == 0 else f"${usd:.2f}" if usd >= 1 else f"${usd:.4f}"


def strata(benchmark: str, parts: Sequence[tuple[str, Estimate]]) -> None:
    """The parts of a benchmark, each with its own score."""
    rows = [
        (name, show.number(each.mean), show.interval(each.low, each.high), each.graded, each.ungraded)
        for name, each in parts
    ]
    columns = ("stratum", "score", "95% interval", "graded", "ungraded")
    title = f"{benchmark} by stratum ({parts[0][1].metric})"
    show.table(title, columns, rows, right=("score", "graded", "ungraded"), whole=("95% interval",))


def verdict(found: Verdict, number: int | None = None) -> None:
    """The checks of a gate, what they mean, and the decision."""
    drawn = [c for c in found.checks if c.role != "sentinel"]
    reach = max((max(abs(c.low or 0.0), abs(c.high or 0.0), c.margin) for c in drawn), default=0.0)
    axis = f"−{reach:.2f} … +{reach:.2f}"
    columns = ("check", "benchmark", "diff.", "bounds", axis, "margin", "p", "outcome")
    show.table(
        f"gate: candidate {short(found.candidate)} against champion {short(found.champion)}, {_level(found)}",
        columns,
        [_check(each, reach) for each in drawn],
        right=("diff.", "margin", "p"),
        whole=("bounds", axis, "outcome"),
    )
    for each in found.checks:
        if each.role == "sentinel" and each.reason not in found.reasons:
            show.say(f"  {each.reason}")
    for reason in found.reasons:
        show.say(f"- {reason}")
    kept = "" if found.outcome == "promote" else ": the champion stays"
    show.say(f"verdict{'' if number is None else f' {number}'}: {found.outcome.upper()}{kept}")


def verdict_as_json(found: Verdict, number: int | None = None) -> dict[str, object]:
    """The verdict as other programs read it."""
    from rlhf_bench.harness.codec import plain

    told = plain(found)
    outcome, spent = told.pop("outcome"), told.pop("spent", 0.0)
    return {"id": number, "verdict": outcome, **told, "alpha_spent": spent}


def verdict_as_markdown(found: Verdict, number: int | None = None) -> None:
    """The same as GitHub markdown: the decision first, then the checks, then the reasons."""
    from rlhf_bench.cli.pull_request import text

    mark = {"promote": "✅ promote", "reject": "❌ reject", "inconclusive": "⚠️ inconclusive"}[found.outcome]
    print(f"**{mark}**: candidate {short(found.candidate)} against champion {short(found.champion)}, {_level(found)}\n")
    columns = ("check", "benchmark", "metric", "difference", "bounds", "margin", "p", "outcome")
    rows = [
        (
            *_names(each),
            each.metric,
            show.number(each.difference, signed=True),
            show.interval(each.low, each.high, signed=True),
            show.number(each.margin),
            show.chance(each.p),
            each.outcome,
        )
        for each in found.checks
    ]
    show.markdown(columns, [[text(cell) for cell in row] for row in rows])
    print()
    for reason in found.reasons:
        print(f"- {text(reason)}")


def _level(found: Verdict) -> str:
    place = f", decision {found.decision} on these samples" if found.decision else ""
    return f"alpha {found.alpha:.3g}{place}"


def _names(each: Check) -> tuple[str, str]:
    return each.role if each.against == "champion" else f"{each.role}, {each.against}", each.benchmark


def _check(each: Check, reach: float) -> tuple[object, ...]:
    drawn = ""
    if each.low is not None and each.high is not None and each.difference is not None:
        margin = each.margin if each.role == "guard" else None
        drawn = show.whisker(each.low, each.difference, each.high, reach, margin=margin, cells=15)
    return (
        *_names(each),
        show.number(each.difference, signed=True),
        show.interval(each.low, each.high, signed=True),
        drawn,
        show.number(each.margin),
        show.chance(each.p),
        each.outcome,
    )


def lineage(rows: Sequence[tuple[str, str, str | None, str]]) -> None:
    """Checkpoints with their parents: (names, digest, parent, recipe)."""
    columns = ("model", "digest", "parent", "made by")
    show.table("lineage", columns, [(name, short(own), short(parent), made) for name, own, parent, made in rows])
