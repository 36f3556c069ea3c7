"""What a gate's sentinels need and no benchmark measures: added to the records of a finished run, in Score.also.

    kl          log p_policy(answer) - log p_reference(answer), in nats, summed over the answer's tokens
    reward_win  the training reward's P(answer ≻ the sample's reference), where one answer is judged against it

Both engines are asked for the answer as a continuation of the very prompt that it was given to. An answer sampled at
temperature 1 is one unbiased draw for KL(policy ‖ reference) on its prompt (the estimator k1 of Schulman 2020; one draw
may be negative, the mean estimates the KL). The non-negative k3 is not offered: on sums over a whole answer its e^-kl
drowns the rest. A greedy answer, or one sampled colder, is what the policy likes best: its figure is a proxy, too high
as a rule, that compares checkpoints asked alike.

Which tokens: the answer's text is tokenized again behind the rendered chat template, which may differ from the tokens
that were sampled. The template's white space before the answer is scored with it, as lm-eval does, the same for every
answer (1e-4 nats under SmolLM2's template); the end of the turn is not, so the decision to stop there counts for
nothing.

Answers of the engines and verdicts of the reward are stored as they come: killed, it goes on, and nothing is computed
twice. `evaluate` writes a run's records anew: annotate after it.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from textwrap import shorten
from typing import Any, TypeAlias

import numpy as np
from scipy import special

from rlhf_bench.harness.codec import digest, plain
from rlhf_bench.harness.engines import Engine
from rlhf_bench.harness.engines.stored import stored_or_asked
from rlhf_bench.harness.errors import Fault, UserError
from rlhf_bench.harness.judges import Judge
from rlhf_bench.harness.progress import Track, silent
from rlhf_bench.harness.signals import KL, REWARD_WIN, answers, whole
from rlhf_bench.harness.stats import Interval, estimate
from rlhf_bench.harness.stats.intervals import by_cluster, mean_se
from rlhf_bench.harness.store import Store
from rlhf_bench.harness.types import (
    Battle,
    Completion,
    Conversation,
    Estimate,
    Message,
    Record,
    Report,
    Request,
    Sample,
    Score,
)

Follow: TypeAlias = Callable[[Sample, tuple[Completion, ...]], tuple[Request, ...]]
MAX_MISSING = 0.5
"""Above this share of answered samples without a figure there is no estimate, as in an evaluation."""
LEVEL = 0.95
NO_LOGPROB = "the engine gives no log-likelihood"
NOT_JUDGED = "no single answer with a reference that it is judged against"


@dataclass(slots=True)
class _Found:
    """The figures of a metric by (benchmark, sample id), and why there is none of others."""

    values: dict[tuple[str, str], float] = field(default_factory=dict)
    missing: dict[tuple[str, str], str] = field(default_factory=dict)


def annotate(
    run_id: str,
    store: Store,
    *,
    policy: Engine | None = None,
    reference: Engine | None = None,
    reward: Judge | None = None,
    follow: Mapping[str, Follow] = {},
    track: Track = silent,
) -> Report:
    """Add `kl` (with `policy`, the run's own model, and `reference`) and `reward_win` (with `reward`) to a run.

    The records and the report, with an estimate of each metric for each benchmark and who measured it, are stored
    again; figures of an earlier reference or reward are replaced. `follow` gives by name what Benchmark.follow is, for
    benchmarks of several turns: without it their samples get no KL. Failed answers, and those that an engine or the
    reward cannot read, get no figure. Raises UserError where the run is not finished, `policy` is another checkpoint,
    or not one answer can be measured.
    """
    run, report = store.run(run_id), store.report(run_id)
    if reference is None and reward is None:
        raise UserError("there is nothing to measure with: give a reference for the KL, or a training reward")
    records = [record for record in store.records(run.id) if answers(record)]
    if not records:
        raise UserError(f"run {run.id} has no generated answers, so there is nothing to measure")
    measured: dict[str, _Found] = {}
    about: dict[str, Any] = {}
    if reference is not None:
        if policy is None or policy.checkpoint != run.checkpoint:
            given = "none" if policy is None else policy.checkpoint[:12]
            raise UserError(f"the KL of run {run.id} needs its own model, {run.checkpoint[:12]}; given: {given}")
        measured[KL] = _kl(records, policy, reference, follow, store, track)
        about[KL] = {"by": reference.name, "identity": reference.identity, "policy": policy.identity}
    if reward is not None:
        judged = report.manifest.get("judged", [record.benchmark for record in records])
        measured[REWARD_WIN] = _reward_win([r for r in records if r.benchmark in judged], reward, store, track)
        about[REWARD_WIN] = {"by": reward.name, "identity": reward.identity}
    for metric, found in measured.items():
        if not found.values:
            why = next(iter(found.missing.values()), NOT_JUDGED)
            raise UserError(f"run {run.id} gets no {metric} from {about[metric]['by']}: {why}")
    records = [_with(record, measured) for record in records]
    store.save_records(run.id, records)
    manifest = {**report.manifest, "annotations": {**report.manifest.get("annotations", {}), **about}}
    report = replace(report, estimates=_estimates(report.estimates, records, measured), manifest=manifest)
    store.finish_run(run.id, report)
    return report


def _kl(
    records: Sequence[Record],
    policy: Engine,
    reference: Engine,
    follow: Mapping[str, Follow],
    store: Store,
    track: Track,
) -> _Found:
    """The mean of log p_policy - log p_reference over each sample's answers."""
    found = _Found()
    asked: dict[tuple[str, str], list[Request]] = {}
    for record in records:
        key, said = (record.benchmark, record.sample.id), whole(record)
        requests = _requests(record, follow.get(record.benchmark))
        if not said:
            found.missing[key] = "an answer failed"
        elif any(each.index not in requests for each in said):
            found.missing[key] = "its later turns cannot be asked again"
        else:
            asked[key] = [_scoring(requests[each.index], each.text) for each in said if each.text]
    wanted = [request for scored in asked.values() for request in scored]
    ours, failed = _logprobs(wanted, policy, store, track)
    theirs, failed_there = _logprobs(list(ours), reference, store, track)
    failed |= failed_there
    for key, scored in asked.items():
        if why := next((failed[request] for request in scored if request in failed), ""):
            found.missing[key] = why
        else:
            ratios = [ours[request] - theirs[request] for request in scored]
            found.values[key] = sum(ratios) / len(ratios) if ratios else 0.0  # an empty answer has no tokens
    return found


def _requests(record: Record, follow: Follow | None) -> dict[int, Request]:
    """By index, the requests that the record's completions answer, those of later turns included."""
    known = {request.index: request for request in record.sample.requests}
    done = len(record.sample.requests)
    while follow is not None and done < len(record.completions):
        further = follow(record.sample, record.completions[:done])
        if not further:
            break
        known |= {request.index: request for request in further}
        done += len(further)
    return known


def _scoring(request: Request, text: str) -> Request:
    """Asks for the log-probability of `text` after the request's prompt."""
    return Request(request.sample_id, request.prompt, continuation=text, index=request.index)


def _logprobs(
    requests: Sequence[Request], engine: Engine, store: Store, track: Track
) -> tuple[dict[Request, float], dict[Request, str]]:
    """The log-probability of each continuation, and of those that have none why."""
    found: dict[Request, float] = {}
    failed: dict[Request, str] = {}
    with track(f"log-likelihoods under {engine.name}", len(set(requests))) as advance:
        for request, said in stored_or_asked(requests, engine, store):
            if said.finish_reason == "error" or said.logprob is None:
                failed[request] = said.why or NO_LOGPROB
            else:
                found[request] = said.logprob
            advance(1)
    return found, failed


def _reward_win(records: Sequence[Record], reward: Judge, store: Store, track: Track) -> _Found:
    """P(answer ≻ reference) of each sample that has a reference and gave one answer to its own request."""
    found = _Found()
    battles: dict[str, dict[str, Battle]] = defaultdict(dict)
    for record in records:
        said = answers(record)
        if len(said) != 1 or len(record.sample.requests) != 1 or not record.sample.reference:
            continue
        if said[0].finish_reason == "error":
            found.missing[record.benchmark, record.sample.id] = "its answer failed"
            continue
        prompt = _asked(record.sample)
        battle = Battle(record.sample.id, prompt, said[0].text, record.sample.reference)
        battles[record.benchmark][record.sample.id] = battle
    with track(f"reward of {reward.name}", sum(map(len, battles.values()))) as advance:
        for benchmark, each in battles.items():
            for name, score in _preferred(each, reward, store):
                if score.value is None:
                    found.missing[benchmark, name] = score.why or "no verdict"
                else:
                    found.values[benchmark, name] = score.value
                advance(1)
    return found


def _preferred(battles: Mapping[str, Battle], reward: Judge, store: Store) -> Iterator[tuple[str, Score]]:
    """Each battle's score by sample id: the stored ones, then the reward's, each stored before it is given."""
    keys = {
        name: digest([REWARD_WIN, reward.identity, plain(battle.prompt), battle.answer, battle.baseline])
        for name, battle in battles.items()
    }
    stored = store.scores(keys.values())
    yield from ((name, stored[key]) for name, key in keys.items() if key in stored)
    waiting = {name: battle for name, battle in battles.items() if keys[name] not in stored}
    for score in reward.prefer(list(waiting.values())) if waiting else ():
        if waiting.pop(score.sample_id, None) is None:
            raise Fault(f"{reward.name} judged '{score.sample_id}', which it was not asked, or twice")
        if score.value is not None and not 0 <= score.value <= 1:
            raise Fault(f"{reward.name} gives '{score.sample_id}' {score.value:g}, which is no probability")
        store.save_scores({keys[score.sample_id]: score})
        yield score.sample_id, score
    if waiting:
        raise Fault(f"{reward.name} left {len(waiting)} answers without a verdict")


def _asked(sample: Sample) -> Conversation:
    """The prompt as turns, system prompts aside, as judges see it."""
    if isinstance(sample.prompt, str):
        return (Message("user", sample.prompt),)
    return tuple(turn for turn in sample.prompt if turn.role != "system")


def _with(record: Record, measured: Mapping[str, _Found]) -> Record:
    """The record with the figures that were measured now, and none that was measured before instead of them."""
    also = {name: value for name, value in record.score.also.items() if name not in measured}
    for metric, found in measured.items():
        value = found.values.get((record.benchmark, record.sample.id))
        if value is not None:
            also[metric] = value
    return replace(record, score=replace(record.score, also=also))


def _estimates(
    known: Sequence[Estimate], records: Sequence[Record], measured: Mapping[str, _Found]
) -> tuple[Estimate, ...]:
    """The report's estimates with those of what was measured, each after the others of its benchmark."""
    by_benchmark: dict[str, list[Record]] = defaultdict(list)
    for record in records:
        by_benchmark[record.benchmark].append(record)
    rows: dict[str, list[Estimate]] = defaultdict(list)
    for each in known:
        if each.metric not in measured:
            rows[each.benchmark].append(each)
    for benchmark, own in by_benchmark.items():
        rows[benchmark] += [
            _estimate(benchmark, metric, own, found)
            for metric, found in measured.items()
            if any((benchmark, record.sample.id) in found.values for record in own)
        ]
    return tuple(each for row in rows.values() for each in row)


def _estimate(benchmark: str, metric: str, records: Sequence[Record], found: _Found) -> Estimate:
    """The mean over samples with its t interval; a KL has no bounds that it could be cut at."""
    graded = [record for record in records if metric in record.score.also]
    without = [record.sample.id for record in records if metric not in record.score.also]
    reasons = Counter(found.missing.get((benchmark, name), NOT_JUDGED) for name in without).most_common(3)
    why = "; ".join(f"{count} × {shorten(reason, 100)}" for reason, count in reasons)
    why = f"{len(without)} of {len(records)} without {metric} ({why})" if without else ""
    empty = Estimate(benchmark, metric, None, None, None, None, len(graded), len(without), why=why)
    if len(without) > MAX_MISSING * len(records):
        return empty
    values = [record.score.also[metric] for record in graded]
    clusters = [record.sample.tags.get("cluster", record.sample.id) for record in graded]
    if metric == REWARD_WIN:
        mean, low, high, se, method = estimate(values, kind="continuous", clusters=clusters, level=LEVEL)
    else:
        mean, low, high, se, method = _unbounded(values, clusters)
    return replace(empty, mean=mean, low=low, high=high, se=se, level=LEVEL, method=method)


def _unbounded(values: Sequence[float], clusters: Sequence[str]) -> Interval:
    """The mean ± t · SE of a figure that lies on no scale; without spread no interval, as nothing bounds the next."""
    sums, sizes = by_cluster(np.asarray(values, dtype=np.float64), clusters)
    mean, se = mean_se(sums, sizes)
    if se == 0.0:
        return Interval(mean, None, None, None, f"no interval: {sums.size} items without spread")
    half = float(special.stdtrit(sums.size - 1, (1 + LEVEL) / 2)) * se
    return Interval(mean, mean - half, mean + half, se, f"t, {sums.size} items")
