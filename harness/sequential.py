"""A run that stops as soon as its gate is decided: the same verdict with fewer answers and judgments.

    samples in a registered random order ─► look 1 ─► gate at that look's level ─► look 2 … until nothing is open

The order is a hash of the samples with the design, fixed before anything is asked. At each look every claim is tested
at the level that the design gives it there; a benchmark whose claims are all decided is asked no further, and the whole
run ends when the verdict stands, or when too little chance is left that a claim that the verdict needs is ever decided
(futility, which is not binding: going on instead costs nothing but calls).

What was decided at a look is decided again, from the stored run alone, by every later `gate` of it: `stopped` reads how
far each benchmark went and gives the levels and the other runs' same samples.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from rlhf_bench.harness.claims import STOPPED, Figures, Level, RunData, place, require_known, require_whole
from rlhf_bench.harness.errors import LostRace, UnknownName, UserError
from rlhf_bench.harness.gate import gate, rivals_of
from rlhf_bench.harness.policy import Policy
from rlhf_bench.harness.stats.sequential import DESIGN, Design, chance_decided
from rlhf_bench.harness.types import Check, Sample, Verdict

STEPS = 40
"""An e-process may be looked at after every sample; a run looks after each of so many equal batches."""


@dataclass
class Stopping:
    """Ends an evaluation once `policy` is decided against `champion` (and `anchor`); what `run.evaluate` calls `until`.

    `level` gives this decision's alpha for the run's id, as the ledger leaves it; without it that is `plan.alpha`.
    `went` says how far each benchmark was asked: (its last look, samples asked, samples there are). Raises UserError
    for a policy in halves, and for a champion or anchor that was stopped early or lacks what the policy is about.
    """

    policy: Policy
    champion: RunData
    anchor: RunData | None = None
    plan: Design = DESIGN
    figures: Figures = field(default_factory=dict)
    level: Callable[[str], float] | None = None
    went: dict[str, tuple[int, int, int]] = field(default_factory=dict)
    enough: set[str] = field(default_factory=set)
    why: str = ""

    def __post_init__(self) -> None:
        if self.policy.halves is not None:
            raise UserError(
                f"policy '{self.policy.name}' splits the samples into halves, so that a run cannot be stopped by what "
                "both of them say: leave out --sequential, or `halves`"
            )
        for rival in filter(None, (self.champion, self.anchor)):
            require_whole(rival)
            require_known(self.policy, rival, means=self.plan.kind == "e_process")

    @property
    def registered(self) -> Mapping[str, Any]:
        """What names the run. Its alpha does not: where another decision takes it meanwhile, the same run goes on."""
        plan = {name: value for name, value in asdict(self.plan).items() if name != "alpha"}
        return {"policy": self.policy.digest, "against": self.champion.run_id, "plan": plan}

    def begin(self, run_id: str, manifest: Mapping[str, Any]) -> None:
        """The run has this id and manifest: from here on its design is fixed. Raises UserError, as the gate would at
        its end, where the question is wrong, and where no alpha is left for it."""
        run = RunData(run_id, manifest["checkpoint"], manifest, {})
        for name in self.policy.benchmarks:
            if name not in run.benchmarks:
                about = f"Policy '{self.policy.name}' asks for it."
                raise UnknownName("benchmark in this run", name, run.benchmarks, about)
        rivals_of(self.policy, run, self.champion, self.anchor)
        if self.level is not None:
            self.plan = replace(self.plan, alpha=self.level(run_id))

    @property
    def design(self) -> Mapping[str, Any]:
        """What was registered, and how far the run went."""
        fixed = {"policy": self.policy.digest, "against": self.champion.run_id, "plan": asdict(self.plan)}
        if not self.went:
            return fixed
        looks = {name: look for name, (look, _, _) in self.went.items()}
        asked = {name: [done, there] for name, (_, done, there) in self.went.items()}
        return fixed | {"looks": looks, "asked": asked, "why": self.why}

    def looks(self, samples: Mapping[str, Sequence[Sample]]) -> Iterator[Mapping[str, Sequence[Sample]]]:
        """The samples of each look, in the registered order; a benchmark that the policy is not about, all at once."""
        order = salt(self.design)
        ordered = {name: sorted(loaded, key=lambda each: place(order, each)) for name, loaded in samples.items()}
        ends = {name: self._ends(name, loaded) for name, loaded in ordered.items()}
        self.went = {name: (-1, 0, len(loaded)) for name, loaded in ordered.items()}
        while True:
            batch = {}
            for name, (look, done, there) in self.went.items():
                if name not in self.enough and look + 1 < len(ends[name]):
                    self.went[name] = (look + 1, ends[name][look + 1], there)
                    batch[name] = ordered[name][done : ends[name][look + 1]]
            if not batch:
                self.why = self.why or "all samples are asked"
                return
            yield batch

    def look(self, number: int, checkpoint: str, manifest: Mapping[str, Any], records: Mapping[str, Any]) -> None:
        """Decide which benchmarks are asked further, after this look."""
        run = RunData("(this run)", checkpoint, {**manifest, STOPPED: self.design}, records, self.figures)
        levels, candidate, (champion, anchor) = stopped(self.policy, run, (self.champion, self.anchor), self.plan.alpha)
        assert champion is not None
        verdict = gate(self.policy, candidate, champion, anchor, alpha=self.plan.alpha, levels=levels)
        undecided = [each for each in verdict.checks if each.outcome == "undecided" and each.role != "sentinel"]
        futile = [each for each in undecided if self._is_futile(each)]
        if verdict.outcome == "reject" or not undecided:
            self._end(verdict.outcome)
        elif self._cannot_promote(verdict, futile):
            self._end(f"futile: {futile[0].benchmark} is not likely to be decided by the rest of the samples")
        else:
            self.enough |= self.went.keys() - set(self._needed_by(undecided))

    def _end(self, why: str) -> None:
        self.why, self.enough = why, set(self.went)

    def _needed_by(self, checks: Sequence[Check]) -> Iterator[str]:
        labels = {each.benchmark for each in checks}
        for rule in (*self.policy.targets, *self.policy.guards):
            if self.policy.label(rule) in labels:
                yield from (part.benchmark for part in rule.parts)

    def _is_futile(self, check: Check) -> bool:
        """Whether the chance that this claim is still decided, if the trend goes on, is below the design's least."""
        names = list(self._needed_by([check]))
        asked, there = (sum(self.went[name][i] for name in names if name in self.went) for i in (1, 2))
        if check.p is None or self.plan.kind == "e_process" or not 0 < asked < there:
            return False
        final = min(self.plan.levels(self.went[name][2])[-1] for name in names)
        p = min(max(check.p, 1e-9), 1 - 1e-9)
        return float(chance_decided(p, 1 - p, asked / there, final)) < self.plan.futility

    def _cannot_promote(self, verdict: Verdict, futile: Sequence[Check]) -> bool:
        """Whether what is futile keeps the candidate from ever being promoted."""
        if any(each.role == "guard" for each in futile):
            return True
        targets = [each for each in verdict.checks if each.role == "target"]
        missed = [each for each in targets if each in futile or each.outcome == "fail"]
        return bool(futile) and (self.policy.require == "all" or len(missed) == len(targets))

    def _ends(self, name: str, loaded: Sequence[Sample]) -> list[int]:
        """After how many samples each look comes; a cluster is never parted."""
        count = len(loaded)
        if name not in self.policy.benchmarks:
            return [count]
        if self.plan.kind == "e_process":
            looks = tuple(-(-count * step // STEPS) for step in range(1, STEPS + 1))
        else:
            looks = self.plan.looks(count)
        ends = [count]
        for end in reversed(looks[:-1]):
            while end < count and "cluster" in loaded[end].tags and _together(loaded[end - 1], loaded[end]):
                end += 1
            ends.append(end)
        return ends[::-1]


def _together(one: Sample, other: Sample) -> bool:
    return one.tags.get("cluster") == other.tags["cluster"]


def stopped(
    policy: Policy, candidate: RunData, rivals: tuple[RunData | None, ...], alpha: float
) -> tuple[dict[str, Level], RunData, tuple[RunData | None, ...]]:
    """(levels by benchmark, candidate, rivals on its samples) of a run that may have been stopped; else all as it is.

    Raises UserError where the run was stopped for another policy, or against another run than the first of `rivals`.
    """
    design = candidate.manifest.get(STOPPED)
    for rival in filter(None, rivals):
        require_whole(rival)
    if design is None:
        return {}, candidate, rivals
    if not _is_for(design, policy, rivals[0]):
        raise UserError(
            f"run {candidate.run_id} was stopped early for another policy or against another run "
            f"({design['against']}), and says nothing about this one: gate it as it was planned, or run it whole"
        )
    plan = Design(**design["plan"] | {"alpha": alpha, "fractions": tuple(design["plan"]["fractions"])})
    order = salt(design) if plan.kind == "e_process" else ""
    levels = {}
    for name, look in design["looks"].items():
        done, there = design["asked"][name]
        by_look = plan.levels(there)
        levels[name] = Level(by_look[min(look, len(by_look) - 1)], order, interim=done < there and not order)
    keep = {name: frozenset(record.digest for record in records) for name, records in candidate.records.items()}
    return levels, candidate, tuple(rival and rival.only(keep) for rival in rivals)


def level_left(policy: Policy, candidate: RunData, champion: RunData, alpha: float) -> float:
    """At what level a run is decided where the ledger leaves `alpha`: no higher one than it was made for.

    Raises LostRace where it was stopped, with samples still to ask, at a level that is no longer left.
    """
    design = candidate.manifest.get(STOPPED)
    if design is None or not _is_for(design, policy, champion):
        return alpha
    had = float(design["plan"]["alpha"])
    if had > alpha and any(done < there for done, there in design["asked"].values()):
        raise LostRace(
            f"run {candidate.run_id} was stopped early at a level of {had:.4g}, which another decision on these "
            f"samples has taken since; {alpha:.4g} is left: the same `rlhf-bench run … --sequential` again asks what "
            "that takes, and nothing was spent"
        )
    return min(had, alpha)


def _is_for(design: Mapping[str, Any], policy: Policy, champion: RunData | None) -> bool:
    """Whether a run was stopped by this policy against this run."""
    return design["policy"] == policy.digest and (champion is None or design["against"] == champion.run_id)


def salt(design: Mapping[str, Any]) -> str:
    """What the registered order hangs on: the policy and the run that is compared with."""
    return f"{design['policy']} {design['against']}"
