"""A decision: the gate's verdict, at the level that the ledger leaves for it, kept with what it spent.

    decisions before on these samples ─► alpha of this one ─► gate ─► verdict and ledger entry, in one transaction

Whoever gates twenty candidates on the same samples at 0.05 each promotes a worthless one in about one of three cases.
So all decisions on the same samples share the policy's alpha: alpha/T each where T are planned, else 6·alpha/(π²·t²)
for the t-th, and never more than is left. New samples begin anew; another seed or temperature makes none. A decision
stands: the same runs under the same policy are shown the stored verdict again, whatever it spent and whoever is
champion by now, and where samples were graded since they are judged at the level that they had.

A run that was stopped early was stopped at the level that the ledger left when it began. Where another decision took
that level meanwhile, it is not decided at a smaller one, which its samples were never meant for: it goes on first.

With `halves` a candidate is judged on one half of the samples as often as you like; only one that passes there is held
against the other half, which spends, and of which no more is told than whether it agrees (Blum & Hardt 2015).
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import replace

from rlhf_bench.harness import sequential
from rlhf_bench.harness.claims import RunData
from rlhf_bench.harness.codec import items_in, question_digest
from rlhf_bench.harness.errors import LostRace, UserError
from rlhf_bench.harness.gate import gate
from rlhf_bench.harness.policy import Halves, Policy
from rlhf_bench.harness.stats.planning import alpha_share
from rlhf_bench.harness.store import Store, StoredVerdict
from rlhf_bench.harness.types import Record, Verdict

LEAST = 1e-9
"""Less alpha than this is none."""
TRIES = 20


def decide(
    store: Store, policy: Policy, candidate: RunData, champion: RunData, anchor: RunData | None = None
) -> StoredVerdict:
    """The verdict on these runs, stored with its entry in the ledger; the stored one where they were judged before.

    Raises UserError as `gate` does; LostRace where the run was stopped early at a level that another decision took
    since, or where other processes keep deciding on the same samples.
    """
    items = items_of(policy, candidate)
    for _ in range(TRIES):
        before = store.decisions(items, candidate.run_id)
        stood = _stood(store, policy, candidate.run_id, champion, anchor, items)
        paid = _paid(stood)
        place, alpha = next_level(policy, [each.spent for each in before])
        if paid is not None:
            place, alpha = paid.decision, paid.alpha
        elif alpha >= LEAST:
            alpha = sequential.level_left(policy, candidate, champion, alpha)
        verdict, spends = judge(policy, candidate, champion, anchor, alpha=alpha)
        leader = store.champion()
        generation = leader.generation if leader and leader.checkpoint == champion.checkpoint else 0
        known = next((each for each in reversed(stood) if _stands(each.verdict, verdict, generation)), None)
        if known is not None:
            return known
        decided = replace(
            verdict,
            runs=_asked(candidate.run_id, champion, policy, anchor),
            generation=generation,
            items=items,
            decision=place if spends else 0,
            spent=alpha if spends and paid is None else 0.0,
        )
        try:
            return store.verdict(store.save_verdict(decided, expect_decisions=len(before)))
        except LostRace:
            continue
    raise LostRace("other processes keep deciding on the same samples: gate again when they are done")


def level_of(store: Store, policy: Policy, run_id: str, champion: RunData, anchor: RunData | None = None) -> float:
    """The alpha at which this run of the champion's samples will be decided, or was: what a sequential run is made for.

    Raises UserError where nothing is left.
    """
    items = items_of(policy, champion)
    paid = _paid(_stood(store, policy, run_id, champion, anchor, items))
    if paid is not None:
        return paid.alpha
    _, alpha = next_level(policy, [each.spent for each in store.decisions(items, champion.run_id)])
    if alpha < LEAST:
        raise UserError(f"the alpha of policy '{policy.name}' is spent on these samples, so that no run can be decided")
    return alpha


def judge(
    policy: Policy, candidate: RunData, champion: RunData, anchor: RunData | None, *, alpha: float
) -> tuple[Verdict, bool]:
    """The verdict at this level, and whether it spends it: with `halves` only what passes the first half does."""
    level = alpha if alpha >= LEAST else policy.alpha
    levels, candidate, rivals = sequential.stopped(policy, candidate, (champion, anchor), level)
    champion_, anchor_ = rivals
    assert champion_ is not None
    if policy.halves is None:
        if alpha < LEAST:
            return _nothing_left(gate(policy, candidate, champion_, anchor_, levels=levels)), False
        return gate(policy, candidate, champion_, anchor_, alpha=alpha, levels=levels), True
    first, second = (
        [run and split(run, policy.halves, confirm) for run in (candidate, champion_, anchor_)]
        for confirm in (False, True)
    )
    assert first[0] and first[1] and second[0] and second[1]
    _require_samples(policy, candidate, first[0], second[0])
    verdict = gate(policy, first[0], first[1], first[2])
    if verdict.outcome != "promote":
        return verdict, False
    if alpha < LEAST:
        return _nothing_left(verdict), False
    confirmed = gate(policy, second[0], second[1], second[2], alpha=alpha).outcome == "promote"
    said = f"the other half of the samples {'confirms' if confirmed else 'does not confirm'} it (at {alpha:.4g})"
    outcome = verdict.outcome if confirmed else "inconclusive"
    return replace(verdict, outcome=outcome, alpha=alpha, reasons=(*verdict.reasons, said)), True


def _require_samples(policy: Policy, whole: RunData, *halves: RunData) -> None:
    """Raise UserError for a benchmark of so few samples that a half has none."""
    for name in policy.benchmarks:
        count = len(whole.records.get(name, ()))
        if count and not all(half.records[name] for half in halves):
            raise UserError(
                f"policy '{policy.name}' splits the samples into halves, and one of them has none of the {count} of "
                f"'{name}': ask more of it (run without --limit), or leave out `halves`"
            )


def next_level(policy: Policy, spent: list[float]) -> tuple[int, float]:
    """(t, alpha of the t-th decision) after decisions that took these shares. 0 where nothing is left."""
    taken = [share for share in spent if share > 0]
    place = len(taken) + 1
    if policy.ledger is None:
        return place, policy.alpha
    share = alpha_share(policy.alpha, policy.ledger.planned, place)
    return place, max(0.0, min(share, policy.alpha - sum(taken)))


def split(run: RunData, halves: Halves, confirm: bool) -> RunData:
    """The samples of a run to iterate on, or those that confirm. Samples of one cluster stay together."""
    return replace(
        run,
        records={
            name: [
                record
                for record, item in zip(records, _together(records), strict=True)
                if _confirms(f"{halves.salt}\n{name}\n{item}", halves) == confirm
            ]
            for name, records in run.records.items()
        },
    )


def _together(records: Sequence[Record]) -> list[str]:
    """What each record is parted by: its question, whatever seed it was asked with, or the cluster of several."""
    questions = [question_digest(record.sample) for record in records]
    clusters: dict[str, set[str]] = {}
    for record, question in zip(records, questions, strict=True):
        clusters.setdefault(record.sample.tags.get("cluster", question), set()).add(question)
    names = (record.sample.tags.get("cluster", question) for record, question in zip(records, questions, strict=True))
    return [name if len(clusters[name]) > 1 else question for name, question in zip(names, questions, strict=True)]


def _confirms(what: str, halves: Halves) -> bool:
    return int(hashlib.sha256(what.encode()).hexdigest()[:12], 16) >= halves.share * 16**12


def items_of(policy: Policy, run: RunData) -> dict[str, str]:
    """The digest of the questions of each benchmark that the policy decides on."""
    return items_in(run.manifest, policy.benchmarks)


def _stood(
    store: Store, policy: Policy, run_id: str, champion: RunData, anchor: RunData | None, items: Mapping[str, str]
) -> list[StoredVerdict]:
    """The verdicts on this candidate's run against these, under this policy and on these samples, in their order."""
    asked = _asked(run_id, champion, policy, anchor)
    return [
        stored
        for stored in store.verdicts()
        if stored.verdict.policy == policy.digest and stored.verdict.runs == asked and stored.verdict.items == items
    ]


def _paid(stood: Sequence[StoredVerdict]) -> Verdict | None:
    """The one of them that spent; to grade what was missing makes no second decision."""
    return next((each.verdict for each in stood if each.verdict.spent), None)


def _stands(before: Verdict, now: Verdict, generation: int) -> bool:
    """Whether a stored verdict says what the runs say now. One that promotes holds for the generation that it names."""
    same = (before.outcome, before.checks, before.reasons) == (now.outcome, now.checks, now.reasons)
    return same and (now.outcome != "promote" or generation in (0, before.generation))


def _asked(run_id: str, champion: RunData, policy: Policy, anchor: RunData | None) -> dict[str, str]:
    """The runs that a verdict names; the anchor's even where it is the champion's: promote looks at which it was."""
    held = {"anchor": anchor.run_id} if policy.against_anchor and anchor is not None else {}
    return {"candidate": run_id, "champion": champion.run_id, **held}


def _nothing_left(verdict: Verdict) -> Verdict:
    """What the numbers would say decides nothing once alpha is spent."""
    why = (
        "the alpha of this policy is spent on these samples: decide on fresh ones, or plan for more decisions from the "
        "start (ledger: {planned: N})"
    )
    return replace(verdict, outcome="inconclusive", alpha=0.0, reasons=(why,))
