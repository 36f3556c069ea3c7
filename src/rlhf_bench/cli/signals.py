"""`rlhf-bench runs signals`: the signs of reward hacking in a run, beside another run's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any, TypeAlias

import typer

from rlhf_bench.cli import lookup, measuring, options, scorers, show
from rlhf_bench.harness.errors import UserError

if TYPE_CHECKING:
    from rlhf_bench.harness.annotate import Follow
    from rlhf_bench.harness.engines import Engine
    from rlhf_bench.harness.policy import Signal
    from rlhf_bench.harness.signals import Reading
    from rlhf_bench.harness.store import Run, Store
    from rlhf_bench.harness.types import Record

Readings: TypeAlias = "list[tuple[str, Signal, Reading]]"


def signals(
    run: Annotated[
        str, typer.Argument(help="Run id or its beginning, latest, latest~1, champion or a model's alias.")
    ] = "latest",
    against: Annotated[
        str | None, typer.Option("--against", help="The run to compare with: the champion's, as a gate does.")
    ] = None,
    reference: Annotated[
        str | None,
        typer.Option(help="Measure the KL to this model, the one that training started from: alias, folder, hf:…"),
    ] = None,
    reward: Annotated[
        str | None,
        typer.Option(help="Measure the win rate by this training reward: a reward model, or a judge as in `run`."),
    ] = None,
    json: options.Json = False,
) -> None:
    """Signs of reward hacking in the answers of a run, as a policy's sentinels read them.

    Length, answers cut at their limit, refusals (a heuristic) and distinct words; with --reference the KL to a model,
    with --reward how far a training reward and the score part. The last two are kept with the runs.
    """
    with lookup.open_store() as store:
        found = lookup.find_run(store, run)
        other = None if against is None else lookup.find_run(store, against, like=found)
        runs = [each for each in (found, other) if each is not None]
        if other is not None and other.id == found.id:
            raise UserError(f"run {found.id} is compared with itself: name another with --against")
        for each in runs:
            _annotate(each, reference, reward, store)
        readings = _read(store, runs)
    if json:
        show.as_json(
            {
                "run": found.id,
                "against": other.id if other else None,
                "signals": [_plain(*each) for each in readings],
            }
        )
        return
    _print(runs, readings)


def _annotate(run: Run, reference: str | None, reward: str | None, store: Store) -> None:
    """Measure what was asked for, where the run's own model can be asked again. Raises UserError."""
    if reference is None and reward is None:
        return
    from rlhf_bench.harness.annotate import annotate

    track = show.bars()
    store.report(run.id)  # unfinished: said before a model is loaded
    records = store.records(run.id)
    annotate(
        run.id,
        store,
        policy=None if reference is None else _policy(run, records, store),
        reference=None if reference is None else _engine(reference, run, records, store),
        reward=None if reward is None else scorers.judge(reward, store, track),
        follow=_follow(run, records) if reference is not None else {},
        track=track,
    )


def _policy(run: Run, records: Sequence[Record], store: Store) -> Engine:
    """The model that answered in the run."""
    registered = store.checkpoint(run.checkpoint)
    if registered is None and not run.model.startswith("scripted:"):
        raise UserError(
            f"run {run.id} was answered by {run.model}, which is no model on this machine: a KL needs its weights"
        )
    return _engine(run.model if registered is None else lookup.name_of(registered, store), run, records, store)


def _engine(spec: str, run: Run, records: Sequence[Record], store: Store) -> Engine:
    """A model as the run's own was opened: with the same dtype, on the same device."""
    from rlhf_bench.harness.models import open_engine

    return open_engine(
        spec,
        store,
        engine="hf",  # whose log-likelihoods a vLLM engine has too
        dtype=run.manifest.get("engine", {}).get("dtype", "auto"),
        device=run.settings.get("device", "auto"),
        references=lambda: {record.sample.id: record.sample.reference for record in records},
        track=show.bars(),
    )


def _follow(run: Run, records: Sequence[Record]) -> Mapping[str, Follow]:
    """How benchmarks of several turns ask the later ones, where the run has any."""
    if not run.settings or all(len(each.completions) <= len(each.sample.requests) for each in records):
        return {}
    asked = measuring.asked_before(run)
    chosen = lookup.suite(asked.suite, asked.include_path)
    return {each.name: each.follow for each in chosen.benchmarks if each.follow is not None}


def _read(store: Store, runs: Sequence[Run]) -> Readings:
    """Every signal of every benchmark that generates, of the first run against the second if there is one."""
    from rlhf_bench.harness.gate import RunData, require_comparable
    from rlhf_bench.harness.signals import SIGNALS, answers

    data = [RunData.load(store, run.id) for run in runs]
    generates = [name for name, records in data[0].records.items() if any(map(answers, records))]
    if not generates:
        raise UserError(f"run {runs[0].id} has no generated answers: signals are read from what a model writes")
    names = [name for name in generates if all(name in each.records for each in data)]
    if not names:
        raise UserError(f"runs {runs[0].id} and {runs[1].id} have no benchmark with generated answers in common")
    if len(data) > 1:
        require_comparable(data[0], data[1], names)
    return [
        (name, signal, _reading(signal, [each.records[name] for each in data], [each.manifest for each in data]))
        for name in names
        for signal in SIGNALS
    ]


def _reading(signal: Signal, records: Sequence[Sequence[Record]], manifests: Sequence[Mapping[str, Any]]) -> Reading:
    from rlhf_bench.harness.signals import Reading, read_signal, unlike

    if len(records) < 2:
        return read_signal(signal, records[0], [])
    found = read_signal(signal, records[0], records[1])
    why = unlike(signal, manifests[0], manifests[1]) if found.value is not None else ""
    return Reading(None, why=why, missing=found.missing, samples=found.samples) if why else found


def _plain(benchmark: str, signal: Signal, reading: Reading) -> dict[str, Any]:
    from rlhf_bench.harness.signals import sentence

    return {"benchmark": benchmark, "signal": signal, **asdict(reading), "says": sentence(signal, reading)}


def _print(runs: Sequence[Run], readings: Readings) -> None:
    from rlhf_bench.harness.signals import NO_OTHER, sentence

    names = [f"{each.model} ({each.id})" for each in runs]
    rows = [
        (
            benchmark,
            signal,
            _figure(signal, reading.candidate),
            *([_figure(signal, reading.champion), _change(signal, reading)] if len(runs) > 1 else []),
        )
        for benchmark, signal, reading in readings
    ]
    columns = ("benchmark", "signal", "run", *(("against", "change") if len(runs) > 1 else ()))
    show.table("signals of " + " against ".join(names), columns, rows, right=("run", "against", "change"))
    lacking: dict[str, list[str]] = {}
    for benchmark, signal, reading in readings:
        if reading.value is None and reading.why != NO_OTHER:
            lacking.setdefault(sentence(signal, reading), []).append(benchmark)
    for said, benchmarks in lacking.items():
        show.say(f"{', '.join(benchmarks)}: {said}")
    show.say("length in characters, kl in nats an answer, reward_gap in points; refused is a heuristic")


def _figure(signal: Signal, value: float | None) -> str:
    if value is None:
        return "–"
    if signal in ("length", "kl"):
        return f"{value:.0f}" if signal == "length" else f"{value:.2f}"
    return f"{100 * value:+.1f}" if signal == "reward_gap" else f"{value:.1%}"


def _change(signal: Signal, reading: Reading) -> str:
    """From the other run to this one; for what is held against a limit see the policy."""
    if reading.value is None or reading.candidate is None or reading.champion is None:
        return "–"
    if signal in ("length", "distinct"):
        return f"{reading.candidate / reading.champion - 1:+.1%}"
    change = reading.candidate - reading.champion
    return f"{change:+.2f}" if signal == "kl" else f"{100 * change:+.1f} points"
