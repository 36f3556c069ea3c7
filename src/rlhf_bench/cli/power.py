"""What a gate could decide, for people: the table, the sentences, and power against the true difference as a curve."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rlhf_bench.cli import show
from rlhf_bench.cli.tables import dollars
from rlhf_bench.harness.errors import UserError

if TYPE_CHECKING:
    from rlhf_bench.cli.dry import Judging
    from rlhf_bench.harness.plan import PlannedCheck, PowerPlan
    from rlhf_bench.harness.policy import Policy

_LEVELS = "▁▂▃▄▅▆▇█"
_CELLS = 41
_FORMATS = (".svg", ".png", ".pdf")


def table(found: PowerPlan) -> None:
    """A line for each check; differences in points."""
    goal = f"for {found.power:g}"
    columns = ("check", "benchmark", "n", "varies", "from", "SE", "MDE", "margin", "chance", goal, "joint")
    rows = [
        (
            each.role,
            each.label,
            each.spread.items,
            _varies(each),
            each.spread.source,
            _points(each.se),
            _points(each.detectable),
            _points(abs(each.threshold)),
            _chance(each.chance),
            _samples(each),
            "" if each.role == "target" else "–" if each.joint_margin is None else _points(each.joint_margin),
        )
        for each in found.checks
    ]
    title = f"plan: policy {found.policy} against run {found.run}, in points"
    show.table(title, columns, rows, right=("n", "varies", "SE", "MDE", "margin", "chance", goal, "joint"))
    show.say(
        f"chance: to pass where a target truly gains {_points(found.gain)} and a guard loses nothing; {goal}: the "
        f"samples that give it (!: more than there are); MDE: the distance from the margin that is seen with "
        f"{found.power:g}; joint: the margins with which all guards pass together as often"
    )


def curves(found: PowerPlan) -> None:
    """The chance of each check to pass, drawn against the true difference."""
    rows = []
    for each in found.checks:
        low, high = _range(each, found)
        steps = [low + (high - low) * i / (_CELLS - 1) for i in range(_CELLS)]
        rows.append((each.role, each.label, _points(low), _drawn(each, steps), _points(high)))
    columns = ("check", "benchmark", "from", "chance to pass, ▁ 0 … █ 1", "to")
    show.table(
        "power by the true difference, in points", columns, rows, right=("from",), whole=("chance to pass, ▁ 0 … █ 1",)
    )


def says(found: PowerPlan, policy: Policy, judging: Sequence[Judging]) -> Iterator[str]:
    """What this plan can and cannot decide, a sentence each."""
    yield _alpha(found)
    for each in found.checks:
        if each.role == "target":
            yield _target(each, found)
    yield from _guards(found, policy)
    yield (
        f"a candidate that truly gains {_points(found.gain)} points and loses nothing is promoted with a chance of "
        f"{_chance(found.promote)}"
    )
    yield from _spreads(found)
    for each in found.checks:
        if each.spread.ungraded > policy.max_ungraded * each.spread.items:
            share = f"{100 * policy.max_ungraded:g}%"
            yield (
                f"{each.label}: {each.spread.ungraded} of {each.spread.items} samples are ungraded in run {found.run}; "
                f"with more than {share} a check decides nothing"
            )
    for about in judging:
        yield _judged(about, found)
    weak = [each.label for each in found.checks if each.chance < found.power]
    if weak:
        yield f"as it stands this cannot decide with {found.power:g}: {', '.join(weak)}"
    else:
        yield f"as it stands every check decides with {found.power:g} or more"


def plot(found: PowerPlan, path: Path) -> None:
    """Power against the true difference, a line for each check, as SVG, PNG or PDF. Raises UserError."""
    if path.suffix.lower() not in _FORMATS:
        raise UserError(f"--plot {path}: give a file that ends in {', '.join(_FORMATS)}")
    try:
        import matplotlib
        from matplotlib.figure import Figure
    except ImportError:
        raise UserError("--plot needs matplotlib: pip install 'rlhf-bench[plot]'") from None
    with matplotlib.rc_context({"svg.hashsalt": found.run, "svg.fonttype": "none"}):
        figure = Figure(figsize=(8, 5), layout="constrained")
        axes = figure.add_subplot()
        for each in found.checks:
            low, high = _range(each, found)
            steps = [low + (high - low) * i / 200 for i in range(201)]
            style = "-" if each.role == "target" else "--"
            label = f"{each.role} {each.label}, n = {each.spread.items}"
            axes.plot([100 * x for x in steps], [_passes(each, x) for x in steps], style, label=label)
        axes.axhline(found.power, color="grey", linewidth=0.8)
        axes.axvline(0.0, color="grey", linewidth=0.8)
        axes.set_xlabel("true difference, points")
        axes.set_ylabel("chance to pass")
        axes.set_ylim(0, 1)
        axes.set_title(f"policy {found.policy} against run {found.run}")
        axes.legend(fontsize="small")
        try:
            figure.savefig(path, metadata={"Date": None} if path.suffix.lower() == ".svg" else None)
        except OSError as error:
            raise UserError(f"--plot {path} cannot be written: {error.strerror}") from error


def _alpha(found: PowerPlan) -> str:
    first, *later = found.alphas
    if not later:
        return f"the decision is made at alpha {first:.4g}, one-sided"
    if later[-1] == first:
        return f"each of the planned decisions on the same samples is made at alpha {first:.4g}, one-sided"
    shown = [place for place in (2, 5, 10) if place <= len(found.alphas)]
    costs = ", ".join(
        f"the {_ordinal(place)} at {found.alphas[place - 1]:.2g} ({_dearer(found, place):.1f} times the samples)"
        for place in shown
    )
    return (
        f"the first decision on these samples is made at alpha {first:.4g}, one-sided, {costs}; "
        "`ledger: {planned: T}` in the policy would share alpha evenly"
    )


def _dearer(found: PowerPlan, place: int) -> float:
    """How many times the samples of the first decision the one at this place needs."""
    from rlhf_bench.harness.stats import detectable

    one, other = (detectable(1.0, found.alphas[at], found.power) for at in (0, place - 1))
    return (other / one) ** 2


def _target(check: PlannedCheck, found: PowerPlan) -> str:
    more = f" to be more than {_points(check.threshold)}" if check.threshold else ""
    gain = f"a true gain of {_points(found.gain)} points"
    said = f"{check.label}: {gain} is shown{more} with a chance of {_chance(check.chance)}"
    sure = "more than any gain" if check.enough is None else f"a gain of {_points(check.enough)}"
    if check.chance >= found.power:
        return f"{said}; {found.power:g} takes {sure}"
    return f"{said}; {found.power:g} takes {sure}, or {_takes(check)}"


def _takes(check: PlannedCheck) -> str:
    """What would give a check its power: samples, or answers to those that there are."""
    if check.samples is None:
        return "what no number of samples gives, as it is no more than the policy asks for"
    there = f"the {check.full} that there are" if check.full else f"the {check.spread.items} of this run"
    within = check.spread.within
    repeats = ""
    if check.repeats is not None:
        repeats = f"{'at least ' if within is None else ''}{check.repeats} answers to each of {there}"
    if check.full is None or check.samples <= check.full:
        return f"{check.samples} samples" + (f" ({repeats})" if repeats else "")
    if repeats:
        return f"{check.samples} samples, and so {repeats}"
    why = "models differ too much on them" if check.spread.generated else "its choices are scored, not answered"
    return f"{check.samples} samples, where there are {check.full} and more answers to each do not help ({why})"


def _guards(found: PowerPlan, policy: Policy) -> Iterator[str]:
    guards = [each for each in found.checks if each.role == "guard"]
    for each in guards:
        if each.chance < found.power:
            margin = f"its margin of {_points(abs(each.threshold))}"
            wider = "" if each.enough is None else f"a margin of {_points(each.enough)}, or "
            yield (
                f"{each.label}: where nothing is lost {margin} is held with a chance of {_chance(each.chance)}; "
                f"{found.power:g} takes {wider}{_takes(each)}"
            )
    if len(guards) > 1:
        alone = found.power ** (1 / len(guards))
        yield (
            f"where nothing is lost all {len(guards)} guards pass together with a chance of {_chance(found.guards)}, "
            f"their product as if they were independent; for {found.power:g} each needs {alone:.3f}, as with the "
            "margins of the last column"
        )
    if policy.against_anchor:
        yield (
            "guards are held against the anchor too: where that is another run than the champion's they pass together "
            f"with a chance between {_chance(found.guards**2)} and {_chance(found.guards)}"
        )


def _spreads(found: PowerPlan) -> Iterator[str]:
    """Where the spread of each difference comes from."""
    where = f"twin {found.twin}" if found.twin else f"the repeats of run {found.run}"
    for each in found.checks:
        spread = each.spread
        if not spread.generated or spread.within is None:
            continue
        unit = "of the answers change" if spread.binary else "of the assumed variance is"
        share = spread.within if spread.binary else spread.within / spread.single
        chance = f"{each.label}: by {where} {100 * share:.3g}% {unit} by chance alone"
        if spread.source == "assumed":
            chance += f"; {_varies(each)} is assumed, as a candidate that learned something differs on more"
        yield chance
    assumed = [each.label for each in found.checks if each.spread.source == "assumed"]
    if assumed and not found.twin:
        yield (
            f"assumed, from what alike models differ by: {', '.join(dict.fromkeys(assumed))}; two runs of this "
            "checkpoint with --temperature, the second with another --sample-seed, measure the chance in its answers"
        )


def _judged(about: Judging, found: PowerPlan) -> str:
    if about.cost is None:
        return f"{about.benchmark}: what {about.judge} costs is not known: {about.why}"
    if about.why:
        return f"{about.benchmark}: {about.judge} judges, and {about.why}"
    cost = about.cost
    said = f"{about.benchmark}: {about.judge} is asked {cost.calls} times for each candidate, {dollars(cost.usd)}"
    mine = [each for each in found.checks if each.role == "target" and each.benchmarks == (about.benchmark,)]
    for each in [each for each in mine if each.samples][:1]:
        share = (each.samples or 0) / each.spread.items
        more = None if cost.usd is None else share * cost.usd
        said += f"; {math.ceil(share * cost.calls)} times for a power of {found.power:g}, {dollars(more)}"
    return said


def _range(check: PlannedCheck, found: PowerPlan) -> tuple[float, float]:
    """The true differences that a curve is drawn over: from the threshold to where it is all but certain to pass."""
    least = found.gain if check.role == "target" else 0.0
    return check.threshold, max(least, check.threshold + 1.6 * check.detectable)


def _drawn(check: PlannedCheck, steps: Sequence[float]) -> str:
    return "".join(_LEVELS[min(len(_LEVELS) - 1, int(_passes(check, x) * len(_LEVELS)))] for x in steps)


def _passes(check: PlannedCheck, difference: float) -> float:
    from rlhf_bench.harness.plan import chance

    return chance(check, difference)


def _varies(check: PlannedCheck) -> str:
    """The share of items that change, or the standard deviation of a difference."""
    variance = check.spread.variance
    return f"{100 * variance:.1f}%" if check.spread.binary else f"sd {math.sqrt(variance):.2f}"


def _samples(check: PlannedCheck) -> str:
    if check.samples is None:
        return "–"
    return f"{check.samples}{'' if check.full is None or check.samples <= check.full else '!'}"


def _points(value: float) -> str:
    return f"{100 * value:.3g}".replace("-", "−")


def _chance(value: float) -> str:
    return f"{value:.3f}" if 0.0005 <= value < 0.9995 else "<0.001" if value < 0.5 else ">0.999"


def _ordinal(place: int) -> str:
    return {2: "2nd", 5: "5th", 10: "10th"}[place]
