"""An evaluation, top to bottom: load, name the run, answer, grade, estimate, report.

Answers and grades are stored one by one under the digest of all that decides them, so a run that was stopped anywhere
(Ctrl-C, kill -9, a full disk) goes on when it is called again, and nothing is generated, judged or executed twice.
What failed is not stored: an engine's error leaves its sample ungraded, never zero, and is asked again the next time.
"""

from __future__ import annotations

import platform
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from importlib import metadata
from typing import Any, Protocol

from rlhf_bench.harness.codec import digest, plain, question_digest, sample_digest
from rlhf_bench.harness.engines import Closes, Engine
from rlhf_bench.harness.engines.stored import stored_or_asked
from rlhf_bench.harness.errors import Fault, RlhfBenchError, UserError
from rlhf_bench.harness.estimates import estimates_of
from rlhf_bench.harness.judges import Asks, Judge
from rlhf_bench.harness.progress import Advance, Track, silent
from rlhf_bench.harness.repeats import sampled
from rlhf_bench.harness.sandbox import REVISION, level
from rlhf_bench.harness.store import Run, Store
from rlhf_bench.harness.types import (
    Benchmark,
    Completion,
    EvalProtocol,
    Graded,
    Record,
    Report,
    Request,
    Sample,
    Score,
    Suite,
)

KEYED_BY = ("benchmarks", "engine_identity", "protocol", "judge_identity", "limit")
"""The entries of a manifest that name the run: where they agree it is the same one."""
PACKAGES = ("torch", "transformers", "lm_eval", "trl", "numpy")


class Until(Protocol):
    """How far a run goes: its samples look by look, and after each look which of them are still to be asked.

    `registered` is what names the run; `begin` is told the run's id and manifest before anything is asked. `design` is
    all that fixes it from then on and, after the last look, how far it went: it is part of the manifest.
    """

    @property
    def registered(self) -> Mapping[str, Any]: ...

    @property
    def design(self) -> Mapping[str, Any]: ...

    def begin(self, run_id: str, manifest: Mapping[str, Any]) -> None: ...

    def looks(self, samples: Mapping[str, Sequence[Sample]]) -> Iterator[Mapping[str, Sequence[Sample]]]:
        """The samples of each look, by benchmark; the next look's depend on what `look` was shown."""
        ...

    def look(
        self, number: int, checkpoint: str, manifest: Mapping[str, Any], records: Mapping[str, Sequence[Record]]
    ) -> None:
        """All records so far, after look `number`, from 1, and the run's checkpoint and manifest."""
        ...


def evaluate(
    suite: Suite,
    engine: Engine,
    *,
    protocol: EvalProtocol,
    store: Store,
    judge: Judge | None = None,
    limit: int | None = None,
    settings: Mapping[str, Any] = {},
    manifest_extra: Mapping[str, Any] = {},
    until: Until | None = None,
    track: Track = silent,
) -> Report:
    """Evaluate `engine` on the first `limit` samples of each benchmark; the report is stored, and so is every record.

    Where a benchmark has strata, `limit` takes of each in turn. The same samples, engine, protocol, judge and limit are
    the same run: called again, it takes what is stored and does only what is missing. `settings` is kept for whoever
    starts the run again, `manifest_extra` joins the manifest. With `until` the samples are asked look by look.
    Raises UserError where a benchmark needs a judge and there is none, or none that can be asked. Raises Fault where an
    engine or a grader breaks its contract or a grader raises; everything that was finished before is stored.
    """
    judge = judge if any(benchmark.judged for benchmark in suite.benchmarks) else None
    _check(suite, judge, limit)
    samples = {benchmark.name: _load(benchmark, protocol, limit) for benchmark in suite.benchmarks}
    manifest = _manifest(suite, samples, engine, protocol, judge, limit)
    key = digest([manifest[name] for name in KEYED_BY] + ([until.registered] if until else []))
    if until is not None:
        until.begin(key[:10], manifest)
        manifest["sequential"] = plain(dict(until.design))
    manifest |= plain(dict(manifest_extra))
    run = Run(
        id=key[:10],
        model=engine.name,
        checkpoint=engine.checkpoint,
        suite=suite.name,
        protocol=protocol.name,
        judge=judge.name if judge else None,
        key=key,
        manifest=manifest,
        settings=settings,
        created=manifest["created"],
    )
    store.start_run(run)
    records: dict[str, list[Record]] = {benchmark.name: [] for benchmark in suite.benchmarks}
    answers: list[Completion] = []
    looks = until.looks(samples) if until else iter([samples])
    for number, asked in enumerate(looks, start=1):
        part = replace(suite, benchmarks=tuple(each for each in suite.benchmarks if asked.get(each.name)))
        for name, found in _measured(part, asked, engine, judge, store, track):
            store.save_records(run.id, found)
            records[name] += found
            answers += [completion for record in found for completion in record.completions]
        if until is not None:
            until.look(number, engine.checkpoint, manifest, records)
            manifest["sequential"] = plain(dict(until.design))
    estimates = [each for benchmark in suite.benchmarks for each in estimates_of(benchmark, records[benchmark.name])]
    manifest |= _said_by(engine, answers, judge)
    report = Report(run.id, run.model, run.checkpoint, run.suite, run.protocol, run.judge, tuple(estimates), manifest)
    store.finish_run(run.id, report)
    return report


def _measured(
    suite: Suite,
    samples: Mapping[str, Sequence[Sample]],
    engine: Engine,
    judge: Judge | None,
    store: Store,
    track: Track,
) -> Iterator[tuple[str, list[Record]]]:
    """The records of these samples, benchmark by benchmark: all are answered first, then graded."""
    answered_by = _answered(suite, samples, engine, store, track)
    if judge is not None and isinstance(engine, Closes):
        engine.close()  # the judge may need the GPU
    with track("grades", sum(map(len, answered_by.values()))) as advance:
        for benchmark in suite.benchmarks:
            answered = answered_by[benchmark.name]
            scores = _grade(benchmark, answered, judge, store, advance)
            yield (
                benchmark.name,
                [
                    Record(benchmark.name, sample_digest(sample), sample, completions, scores[sample.id])
                    for sample, completions in answered
                ],
            )


def _check(suite: Suite, judge: Judge | None, limit: int | None) -> None:
    for benchmark in suite.benchmarks:
        if benchmark.judged and judge is None:
            raise UserError(f"benchmark '{benchmark.name}' compares answers: name a judge with --judge")
        if benchmark.asks and judge is not None and not isinstance(judge, Asks):
            raise UserError(
                f"benchmark '{benchmark.name}' asks its judge for ratings, which '{judge.name}' cannot give: name a "
                "language model with --judge openai:MODEL or --judge llm:MODEL"
            )
    if limit is not None and limit < 1:
        raise UserError(f"limit is {limit}: give at least 1, or none for all samples")


def _load(benchmark: Benchmark, protocol: EvalProtocol, limit: int | None) -> list[Sample]:
    """The first `limit` samples, each as often as the protocol repeats it. One that stands there twice is one; two of
    the same id are a Fault."""
    found: dict[str, Sample] = {}
    for sample in sampled(_first(benchmark.load(protocol), limit), protocol, benchmark.name):
        if found.setdefault(sample.id, sample) != sample:
            raise Fault(f"benchmark '{benchmark.name}' has two different samples with the id '{sample.id}'")
        places = {(request.sample_id, request.index) for request in sample.requests}
        if not sample.requests or {name for name, _ in places} != {sample.id} or len(places) != len(sample.requests):
            raise Fault(
                f"benchmark '{benchmark.name}': sample '{sample.id}' needs requests of its own id, each its index"
            )
    return list(found.values())


def _first(samples: Sequence[Sample], limit: int | None) -> Sequence[Sample]:
    """The first `limit` samples in their order; where there are strata, the first of each, then the second of each."""
    seen: Counter[str] = Counter()
    places = []
    for number, sample in enumerate(samples):
        stratum = sample.tags.get("stratum", "")
        places.append((seen[stratum], number))
        seen[stratum] += 1
    return [samples[number] for number in sorted(number for _, number in sorted(places)[:limit])]


def _answered(
    suite: Suite, samples: Mapping[str, Sequence[Sample]], engine: Engine, store: Store, track: Track
) -> dict[str, list[Graded]]:
    """Each benchmark's samples with all their completions: first those of their own requests, then round by round those
    of the requests that the benchmark writes from what was answered so far."""
    found: dict[str, list[Graded]] = {
        benchmark.name: [(sample, ()) for sample in samples[benchmark.name]] for benchmark in suite.benchmarks
    }
    waiting = [
        (benchmark, place, sample.requests)
        for benchmark in suite.benchmarks
        for place, sample in enumerate(samples[benchmark.name])
    ]
    while waiting:
        answers = _answer([request for *_, requests in waiting for request in requests], engine, store, track)
        following = []
        for benchmark, place, requests in waiting:
            sample, before = found[benchmark.name][place]
            completions = before + tuple(answers[request] for request in requests)
            found[benchmark.name][place] = sample, completions
            if further := _follow(benchmark, sample, completions):
                following.append((benchmark, place, further))
        waiting = following
    return found


def _answer(requests: Sequence[Request], engine: Engine, store: Store, track: Track) -> dict[Request, Completion]:
    answers = {}
    with track("answers", len(set(requests))) as advance:
        for request, completion in stored_or_asked(requests, engine, store):
            answers[request] = completion
            advance(1)
    return answers


def _follow(benchmark: Benchmark, sample: Sample, completions: tuple[Completion, ...]) -> tuple[Request, ...]:
    """What is asked of this sample next; nothing once the engine failed on it."""
    if benchmark.follow is None or any(completion.finish_reason == "error" for completion in completions):
        return ()
    requests = benchmark.follow(sample, completions)
    places = [(completion.sample_id, completion.index) for completion in completions]
    places += [(request.sample_id, request.index) for request in requests]
    if {name for name, _ in places} != {sample.id} or len(set(places)) != len(places):
        raise Fault(
            f"benchmark '{benchmark.name}': what follows sample '{sample.id}' needs its id, and an index of its own"
        )
    return requests


def _grade(
    benchmark: Benchmark, answered: Sequence[Graded], judge: Judge | None, store: Store, advance: Advance
) -> dict[str, Score]:
    """The score of each sample by id: none where the engine failed, the stored one, or else the benchmark's."""
    judge = judge if benchmark.judged else None
    by = judge.identity if judge else None
    scores = _unanswered(answered)
    keys = {graded[0].id: _grade_key(benchmark, graded, by) for graded in answered if graded[0].id not in scores}
    stored = store.scores(keys.values())
    scores |= {name: stored[key] for name, key in keys.items() if key in stored}
    advance(len(scores))
    waiting = {sample.id: (sample, completions) for sample, completions in answered if sample.id not in scores}
    try:
        for score in benchmark.grade(list(waiting.values()), judge) if waiting else ():
            if waiting.pop(score.sample_id, None) is None:
                raise Fault(f"benchmark '{benchmark.name}' graded '{score.sample_id}', which was not asked, or twice")
            scores[score.sample_id] = score
            store.save_scores({keys[score.sample_id]: score})
            advance(1)
    except RlhfBenchError:
        raise
    except Exception as error:
        raise Fault(
            f"grading '{benchmark.name}' broke off, {len(waiting)} of {len(answered)} samples to go: "
            f"{type(error).__name__}: {error}"
        ) from error
    if waiting:
        raise Fault(
            f"benchmark '{benchmark.name}' left {len(waiting)} samples without a score, '{next(iter(waiting))}' first"
        )
    return scores


def _unanswered(answered: Sequence[Graded]) -> dict[str, Score]:
    """Of each sample with a request that the engine could not answer: no score, and why."""
    return {
        sample.id: Score(sample.id, None, f"no answer: {completion.why or 'the engine failed'}")
        for sample, completions in answered
        for completion in completions
        if completion.finish_reason == "error"
    }


def _grade_key(benchmark: Benchmark, graded: Graded, judge: str | None) -> str:
    """The digest of all that decides a grade."""
    sample, completions = graded
    said = [[c.index, c.text, c.finish_reason, c.logprob, c.greedy] for c in completions]
    asked = [sample_digest(sample), plain(sample.row)]
    by = REVISION if "runs" in sample.tags else judge
    return digest([benchmark.name, benchmark.version, asked, said, by])


def _manifest(
    suite: Suite,
    samples: Mapping[str, Sequence[Sample]],
    engine: Engine,
    protocol: EvalProtocol,
    judge: Judge | None,
    limit: int | None,
) -> dict[str, Any]:
    """What produced this run, as JSON types."""
    return {
        "rlhf_bench": _version("rlhf-bench"),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {name: version for name in PACKAGES if (version := _version(name))},
        "engine": dict(engine.manifest),
        "engine_identity": engine.identity,
        "checkpoint": engine.checkpoint,
        "protocol": plain(protocol),
        "protocol_digest": digest(protocol),
        "sandbox": level().name if any("runs" in s.tags for loaded in samples.values() for s in loaded) else None,
        "judge": judge.name if judge else None,
        "judge_identity": judge.identity if judge else None,
        "benchmarks": {
            benchmark.name: {
                "version": benchmark.version,
                "metric": benchmark.metric,
                "kind": benchmark.kind,
                "samples": len(samples[benchmark.name]),
                "digest": digest([sample_digest(sample) for sample in samples[benchmark.name]]),
            }
            for benchmark in suite.benchmarks
        },
        "items": {name: digest(sorted({question_digest(each) for each in loaded})) for name, loaded in samples.items()},
        "limit": limit,
        "seed": protocol.seed,
        "created": datetime.now(UTC).isoformat(),
    }


def _said_by(engine: Engine, answers: Sequence[Completion], judge: Judge | None) -> dict[str, Any]:
    """What is only known afterwards: what an API took for answers and judgments, and who it says answered."""
    served = {completion.served_by for completion in answers}
    said: dict[str, Any] = {"engine": dict(engine.manifest)}
    if served - {""}:
        said["served_by"] = sorted(served - {""})
    if isinstance(judge, Asks):
        said["judge_manifest"] = dict(judge.manifest)
    return said


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
