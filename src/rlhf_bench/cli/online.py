"""What `rlhf-bench iterate` shows of a loop: its plan before it starts, its monitors."""

from __future__ import annotations

import shutil
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlhf_bench.cli import lookup, measuring, scorers, show, tables

if TYPE_CHECKING:
    from rlhf_bench.harness.engines import Engine
    from rlhf_bench.harness.progress import Track
    from rlhf_bench.harness.store import Store
    from rlhf_bench.harness.types import Preference, Report, Sample, Verdict
    from rlhf_bench.trainers.online import Iteration, LoopConfig
    from rlhf_bench.trainers.online.ahead import Ahead
    from rlhf_bench.trainers.online.config import Stage
    from rlhf_bench.trainers.online.monitors import Figure, Watch
    from rlhf_bench.trainers.online.planned import Evaluation, LoopPlan, Work

WORDS = {"promote": "promote", "reject": "reject", "inconclusive": "inconcl."}
GB = 1e9


@dataclass(frozen=True, slots=True)
class Monitored:
    """An iteration as its monitors saw it: what the candidate was trained on, and signs in its evaluation.

    `watch` is of the answers that it was trained on, which the policy before it gave; `kl` (nats an answer, to π0) and
    `gap` (training reward's win rate minus the judge's, in points) are of the candidate's own answers.
    """

    model: str
    verdict: Verdict
    watch: Watch
    kl: float | None = None
    gap: float | None = None


def monitored(
    model: str, verdict: Verdict, report: Report, rows: Sequence[Mapping[str, Any]], pairs: Sequence[Preference]
) -> Monitored:
    """The monitors of one iteration: its candidate's name and report, and the rows and pairs that it was trained on."""
    from rlhf_bench.harness.signals import KL, REWARD_WIN
    from rlhf_bench.trainers.online.monitors import watch

    means = {(each.benchmark, each.metric): each.mean for each in report.estimates if each.mean is not None}
    facts = report.manifest.get("benchmarks", {})
    kls = [mean for (_, metric), mean in means.items() if metric == KL]
    gaps = [
        100 * (mean - means[name, facts[name]["metric"]])
        for (name, metric), mean in means.items()
        if metric == REWARD_WIN and (name, facts.get(name, {}).get("metric")) in means
    ]
    return Monitored(model, verdict, watch(rows, pairs), kls[0] if kls else None, gaps[0] if gaps else None)


def seen(done: Iteration, model: str) -> Monitored:
    """The monitors of an iteration of the loop; `model` is what its candidate is called."""
    return monitored(model, done.verdict, done.candidate_report, done.rows, done.learned.pairs)


def print_monitors(iterations: Sequence[Monitored]) -> None:
    """A row an iteration, then in words where one of them moved as hacking does."""
    columns = ("candidate", "verdict", "target", "reward", "chars", "ρ", "dist.", "alike", "ref.", "cut", "KL", "gap",
               "margin")  # fmt: skip
    show.table("monitors", columns, [_monitors(each) for each in iterations], right=columns[2:], whole=columns[1:])
    _say(
        "of the answers that it was trained on: reward, chars, ρ (rank correlation of length with reward, within a "
        "prompt), dist. (distinct word pairs), alike (answers to one prompt), ref. (refusals), cut, margin; of its "
        "evaluation: target (difference), KL to the first policy (nats an answer), gap (win rate by the training "
        "reward minus the judge's, in points); – was not measured"
    )
    for sentence in drifted(iterations):
        _say(f"note: {sentence}")


def monitors_as_json(iterations: Sequence[Monitored]) -> dict[str, Any]:
    """The same as other programs read it."""
    from rlhf_bench.harness.codec import plain

    rows = [
        {
            "candidate": each.model,
            "verdict": each.verdict.outcome,
            "target": _target(each.verdict),
            "kl": each.kl,
            "reward_gap": each.gap,
            "answers": plain(each.watch),
        }
        for each in iterations
    ]
    return {"iterations": rows, "drift": drifted(iterations)}


def drifted(iterations: Sequence[Monitored]) -> list[str]:
    """Where each iteration's answers moved against the first's, named by its candidate."""
    from rlhf_bench.trainers.online.monitors import drift

    watches = [each.watch for each in iterations]
    return [
        f"what {each.model} was trained on: {sentence}"
        for place, each in enumerate(iterations)
        for sentence in drift(watches[: place + 1])
    ]


def _monitors(each: Monitored) -> tuple[object, ...]:
    seen = each.watch
    return (
        each.model,
        WORDS[each.verdict.outcome],
        show.number(_target(each.verdict), signed=True),
        _figure(seen.reward, "{:.2f}"),
        _figure(seen.length, "{:.0f}"),
        _figure(seen.length_reward, "{:+.2f}"),
        _value(seen.distinct, "{:.1%}"),
        _figure(seen.alike, "{:.2f}"),
        _figure(seen.refused, "{:.1%}"),
        _figure(seen.truncated, "{:.1%}"),
        _value(each.kl, "{:.2f}"),
        _value(each.gap, "{:+.1f}"),
        _figure(seen.margin, "{:.2f}"),
    )


def _target(verdict: Verdict) -> float | None:
    """By how much the candidate was better than the champion in the first target."""
    return next((each.difference for each in verdict.checks if each.role == "target"), None)


def _figure(figure: Figure, form: str) -> str:
    return _value(figure.mean, form)


def _value(value: float | None, form: str) -> str:
    return "–" if value is None else form.format(value)


def loop_plan(
    config: LoopConfig,
    store: Store,
    home: Path,
    *,
    prompts: Sequence[Sample] = (),
    preferences: Sequence[Preference] = (),
    track: Track,
) -> LoopPlan:
    """What the loop will do here: nothing is started, fetched or written beside the evaluation's data.

    `prompts` are the pool, `preferences` the given pairs where the config has a file of them. Raises UserError.
    """
    from rlhf_bench.harness.prices import price_of
    from rlhf_bench.trainers.chat import tokenizer_at
    from rlhf_bench.trainers.memory import parameters
    from rlhf_bench.trainers.online import facts
    from rlhf_bench.trainers.online.line import check_recipes
    from rlhf_bench.trainers.online.planned import Facts, Rate, plan_of
    from rlhf_bench.trainers.online.pool import batch, prompts_of, sift

    check_recipes(config, None)
    folder, work = facts.local_folder(config.model, store), home / "loops" / config.name
    here = facts.machine(config.answers.engine)
    count = facts.counter(folder)
    known = facts.answer_tokens(work, count)
    sifted = sift(config, prompts, preferences, None if folder is None else tokenizer_at(folder))
    if config.preferences is not None:
        texts = [text for pair in preferences[: facts.SAMPLE] for text in (pair.chosen, pair.rejected)]
        prompts, known = prompts_of(preferences), sum(map(count, texts)) / max(1, len(texts))
    prompts = [each for each in prompts if each.id not in sifted.ids]
    batch(prompts, config, 1, 0)
    facts.check_templates(config, store, prompts)
    length, exact = facts.prompt_tokens(prompts, folder)
    size = None if folder is None else parameters(folder)
    evaluation = _evaluation(config, store, track)
    kind, _, name = config.reward.partition(":")
    rates = facts.rates(here, size, config, facts.measured_rates(work))
    if evaluation.seconds:
        rates["evaluations"] = Rate("evaluations", evaluation.samples / evaluation.seconds, True, "samples")
    found = plan_of(
        config,
        Facts(
            pool=len(prompts),
            prompt_tokens=length,
            machine=here.name,
            rates=rates,
            evaluation=evaluation,
            first_evaluations=0 if _measured(config, store) else 1,
            parameters=size,
            checkpoint_bytes=None if folder is None else facts.bytes_of(folder),
            answer_tokens=known,
            reward_price=price_of(name.partition("@")[0]) if kind == "openai" else None,
            done=facts.stages_done(work),
            free_bytes=shutil.disk_usage(next(each for each in (home, *home.parents) if each.exists())).free,
            exact_tokens=exact,
        ),
    )
    notes = [f"left out: {count} × {reason}" for reason, count in sifted.counts.items()]
    return replace(found, notes=(*notes, *found.notes, *facts.lacking(config, folder), *_unknown(config, store)))


def _unknown(config: LoopConfig, store: Store) -> list[str]:
    """The names of models that mean nothing here, as notes: the loop does not begin without them."""
    from rlhf_bench.harness.models import HUB
    from rlhf_bench.harness.weights import BUILTIN
    from rlhf_bench.trainers.online.facts import local_folder
    from rlhf_bench.trainers.online.line import KNOWN

    names = [config.model]
    if config.preferences is None:
        kind, _, name = config.reward.partition(":")
        names.append(config.reward if not config.ranks else name if kind in ("pm", "llm") else config.model)
        names += [each for tried in config.attempts() for each in tried.answers.policies]
    meant = (*KNOWN, *BUILTIN, lookup.DEMO_JUDGE)
    return [
        f"nothing here is called '{each}': the loop does not begin without it"
        for each in dict.fromkeys(names)
        if each not in meant and not each.startswith(HUB) and local_folder(each, store) is None
    ]


def _measured(config: LoopConfig, store: Store) -> bool:
    """Whether the champion, or the model that is to begin, has a finished run that was asked as the loop asks."""
    from rlhf_bench.harness.models import engine_here

    champion = store.champion()
    known = store.alias(config.model)
    digest = champion.checkpoint if champion else known.digest if known else None
    wanted = replace(measuring.loop_asked(config), engine=engine_here(config.answers.engine))
    return any(
        run.checkpoint == digest and run.status == "complete" and measuring.asked_before(run) == wanted
        for run in store.runs()
        if run.settings
    )


class _Unmade:
    """Stands for the engine of a candidate that is not there yet: nothing of it is in any store."""

    name = identity = checkpoint = "a candidate that is not made yet"
    manifest: dict[str, str] = {}  # noqa: RUF012

    def generate(self, requests: Sequence[Any]) -> Any:
        raise AssertionError("a plan asks nothing")


def _evaluation(config: LoopConfig, store: Store, track: Track) -> Evaluation:
    """What one evaluation of a candidate asks: the evaluation itself in a store of its own, with engines that count."""
    from tempfile import TemporaryDirectory

    from rlhf_bench.harness.dry import DryEngine, only_counted
    from rlhf_bench.harness.progress import silent
    from rlhf_bench.harness.run import evaluate
    from rlhf_bench.harness.store import Store as Opened
    from rlhf_bench.suites import data
    from rlhf_bench.trainers.online.facts import asked_tokens, evaluation_seconds
    from rlhf_bench.trainers.online.planned import Evaluation

    asked = measuring.loop_asked(config)
    chosen, regime = measuring.asked_of(asked)
    data.fetch([need for each in chosen.benchmarks for need in each.needs], track)
    judges: list[DryEngine] = []
    with TemporaryDirectory() as folder, Opened(f"sqlite:///{folder}/plan.db") as own:

        def around(engine: Engine) -> Engine:
            judges.append(DryEngine(engine, own, fails=True))
            return judges[-1]

        judged = any(each.judged for each in chosen.benchmarks)
        judge = scorers.judge(asked.judge_spec, own, silent, around=around, models=store) if judged else None
        answering = DryEngine(_Unmade(), own)
        counted = replace(chosen, benchmarks=tuple(map(only_counted, chosen.benchmarks)))
        evaluate(counted, answering, protocol=regime, store=own, judge=judge, limit=asked.limit)
        samples = len({(request.sample_id) for request in answering.asked})
    read, written = asked_tokens(answering.asked)
    calls, usd = (judges[0].plan.calls, judges[0].plan.usd) if judges else (0, 0.0)
    return Evaluation(
        samples, read, written, config.judge if judged else "", calls, usd, evaluation_seconds(store, config)
    )


def print_plan(plan: LoopPlan) -> None:
    """What each iteration takes and what is left of it, then the hours by stage, the disk, and what is not counted."""
    columns = ("", "prompts", "answers", "tokens", "steps", "samples", "calls", "cost", "hours", "done")
    rows = [(number, *_work(each)) for number, each in enumerate(plan.iterations, start=1)]
    title = f"the plan of {plan.name}: nothing was started"
    show.table(title, columns, [*rows, ("all", *_work(plan.total))], right=columns[:-1])
    _say(
        "tokens of answers, as expected; samples of the evaluation, and calls of its judge; cost and hours of what is "
        "left to do"
    )
    total = plan.total
    scored = f"{_short(total.comparisons)} comparisons" if total.comparisons else f"{_short(total.rewards)} rewards"
    most = f"{_short(total.answer_tokens_most)} tokens of answers, {scored}, {_short(total.pairs)} pairs"
    _say(f"at most: {most}")
    size = "" if plan.parameters is None else f", {plan.parameters / 1e6:,.0f}M parameters"
    where = f"hours on {plan.machine}{size}"
    show.table(where, ("stage", "hours", "rate", ""), _stages(plan), right=("hours", "rate"))
    _print_disk(plan)
    for note in plan.notes:
        _say(f"note: {note}")


def time_left(ahead: Ahead) -> str:
    """`whole run: 1h40m left`; "more than" where the plan leaves something out, "" where no stage is being made."""
    left = ahead.left()
    if left is None or not (left.seconds or left.complete):
        return ""
    return f"whole run: {'' if left.complete else 'more than '}{show.duration(left.seconds)} left"


def plan_as_json(plan: LoopPlan) -> dict[str, Any]:
    """The plan as other programs read it, with the sums that the table shows."""
    from rlhf_bench.harness.codec import plain

    return {"plan": plain(plan), "hours_left": plan.total.hours_left, "disk_needed": plan.disk.needed}


def _stages(plan: LoopPlan) -> list[tuple[str, str, str, str]]:
    """By stage the hours that are left, and the rate that they are reckoned with."""
    rates = {each.name: each for each in plan.rates}
    rows: list[tuple[str, str, str, str]] = []
    rated: Mapping[Stage, Sequence[str]] = {
        "answers": ("answers", "write"),
        "score": ("rewards", "read"),
        "train": ("train",),
        "measure": ("evaluations", "write"),
    }
    for stage, names in rated.items():
        rate = next(rates[name] for name in names if name in rates)
        figure = "–" if rate.per_s is None else f"{rate.per_s:,.0f}" if rate.per_s >= 10 else f"{rate.per_s:.2g}"
        how = "measured here" if rate.measured else "estimated"
        rows.append((stage, _hours(plan.total.hours[stage]), f"{figure} {rate.unit}/s", how))
    return rows


def _print_disk(plan: LoopPlan) -> None:
    disk = plan.disk
    parts = [("candidates", disk.candidates), ("one training", disk.training), ("rows and records", disk.rows)]
    told = ", ".join(f"{name} {_bytes(size)}" for name, size in parts)
    _say(f"disk, at most: {told}; free: {_bytes(disk.free)}")
    if disk.needed is not None and disk.free is not None and disk.needed > disk.free:
        _say(f"note: the disk does not suffice: {_bytes(disk.needed)} are needed, {_bytes(disk.free)} are free")


def _work(each: Work) -> tuple[object, ...]:
    numbers = (each.prompts, each.answers, each.answer_tokens, each.steps, each.samples, each.judge_calls)
    done = "all" if len(each.done) == len(each.hours) else " ".join(each.done)
    cost = "unknown" if each.usd is None else tables.dollars(each.usd)
    return (*map(_short, numbers), cost, _hours(each.hours_left), done)


def _short(number: int) -> str:
    """1,234 or 1.2M: what fits a column."""
    return f"{number:,}" if number < 1e5 else f"{number / 1e3:,.0f}k" if number < 1e6 else f"{number / 1e6:,.1f}M"


def _hours(hours: float | None) -> str:
    return "unknown" if hours is None else show.duration(hours * 3600)


def _say(text: str) -> None:
    """A sentence, in lines that fit where there is no terminal."""
    for line in textwrap.wrap(text, show.PLAIN_WIDTH):
        show.say(line)


def _bytes(size: int | None) -> str:
    return "unknown" if size is None else f"{size / GB:.1f} GB" if size >= GB / 10 else f"{size / 1e6:.1f} MB"
