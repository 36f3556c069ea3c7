"""lm-eval's result files as runs of the store: `results_<time>.json` and `samples_<task>_<time>.jsonl`.

Whoever has such files of two models can compare and gate them here, with no model at hand. A document is a sample: what
was asked are its arguments, so the documents of two runs pair where prompt, generation settings or choice, and target
agree. A group whose tasks share their metric is one benchmark with a stratum for each task; other tasks stand alone.
The score is the metric of our own table for a task that is in it, else the first that the file has; the others stand
beside it. Shots and the task's version are the benchmark's version, template and system prompt the protocol, so that
runs asked in another way are refused by name.

Files are other people's: sizes are bounded, nothing in them is run, and what is no number is no score.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NoReturn

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from rlhf_bench.harness.codec import digest, plain, sample_digest
from rlhf_bench.harness.errors import UserError
from rlhf_bench.harness.run import estimates_of
from rlhf_bench.harness.store import Run, Store
from rlhf_bench.harness.types import (
    Benchmark,
    Completion,
    EvalProtocol,
    Record,
    Report,
    Request,
    Sample,
    Score,
)
from rlhf_bench.suites import BENCHMARKS
from rlhf_bench.suites.lm_eval_tasks import sampling

MAX_RESULTS_BYTES = 256 << 20
MAX_LINE_BYTES = 64 << 20
PROTOCOL = "lm-eval-file"
_IDENTITY = ("model", "model_args", "model_sha", "model_revision", "peft_sha", "delta_sha")
_VARIANTS = {"gsm8k_cot": "gsm8k"}


class _Results(BaseModel):
    """What is read of a results file."""

    model_config = ConfigDict(protected_namespaces=())

    results: dict[str, dict[str, Any]] = Field(min_length=1)
    group_subtasks: dict[str, list[str]] = {}
    versions: dict[str, Any] = {}
    shots: dict[str, Any] = Field({}, alias="n-shot")
    config: dict[str, Any] = {}
    model_name: str | None = None
    system_instruction: str | None = None
    chat_template: str | None = None
    fewshot_as_multiturn: bool | None = None
    lm_eval_version: str | None = None


class _Row(BaseModel):
    """A line of a samples file; the metrics are its further keys. Early versions named no filter."""

    model_config = ConfigDict(extra="allow")

    doc_id: int
    doc: dict[str, Any]
    target: Any
    arguments: dict[str, dict[str, Any]] | list[list[Any]]
    resps: list[Any]
    filter: str = "none"


@dataclass
class _Document:
    """One document of a task, with what its lines say under each filter."""

    sample: Sample
    completions: tuple[Completion, ...]
    metrics: dict[str, float | None] = field(default_factory=dict)
    filters: set[str] = field(default_factory=set)


def read(path: Path, store: Store, name: str | None = None) -> Report:
    """Keep what lm-eval wrote to `path` (a results file, or the folder of one) as a finished run.

    `name` replaces the model's name and sets apart two models that lm-eval was given under the same one. The same files
    are the same run. Raises UserError, one line, where files are missing, malformed or say what no score can be.
    """
    file = _results_file(path)
    found = _results(file)
    benchmarks, records = [], []
    for title, tasks in _benchmarks(found):
        loaded = [record for task in tasks for record in _records(title, task, tasks, found, file)]
        benchmarks.append(_benchmark(title, tasks, found, loaded))
        records += loaded
    model = name or found.model_name or _model_name(found.config) or "lm-eval"
    manifest = _manifest(file, found, benchmarks, records, model, name)
    scores = [[record.digest, record.score.value, dict(record.score.also)] for record in records]
    key = digest([manifest["engine_identity"], manifest["protocol_digest"], manifest["benchmarks"], scores])
    run = Run(
        id=key[:10],
        model=model,
        checkpoint=manifest["checkpoint"],
        suite=",".join(each.name for each in benchmarks),
        protocol=PROTOCOL,
        judge=None,
        key=key,
        manifest=manifest,
        created=manifest["created"],
    )
    store.start_run(run)
    store.save_records(run.id, records)
    estimates = [
        estimate
        for each in benchmarks
        for estimate in estimates_of(each, [record for record in records if record.benchmark == each.name])
    ]
    report = Report(run.id, model, run.checkpoint, run.suite, PROTOCOL, None, tuple(estimates), manifest)
    store.finish_run(run.id, report)
    return report


def _results_file(path: Path) -> Path:
    if path.is_file():
        return path
    if not path.exists():
        raise UserError(f"there is no {path}: give what lm-eval wrote to its --output_path")
    found = sorted({*path.glob("results_*.json"), *path.glob("*/results_*.json")})
    if len(found) > 1:
        names = ", ".join(file.relative_to(path).as_posix() for file in found[:4])
        raise UserError(
            f"{path} holds {len(found)} results files ({names}{', …' * (len(found) > 4)}): name one of them"
        )
    if not found:
        raise UserError(f"{path} holds no results_*.json: give what lm-eval wrote to its --output_path")
    return found[0]


def _results(file: Path) -> _Results:
    if file.stat().st_size > MAX_RESULTS_BYTES:
        raise UserError(f"{file} has more than {MAX_RESULTS_BYTES >> 20} MiB: that is no results file of lm-eval")
    try:
        return _Results.model_validate(_json(file.read_bytes()))
    except ValidationError as error:
        raise UserError(f"{file} is no results file of lm-eval: {_first(error)}") from error
    except ValueError as error:
        raise UserError(f"{file} is no results file of lm-eval: {error}") from error


def _benchmarks(found: _Results) -> Iterator[tuple[str, list[str]]]:
    """(name, tasks) of each benchmark: an outermost group whose tasks agree on metric and shots, or a single task."""
    groups = {name: children for name, children in found.group_subtasks.items() if children}
    inner = {child for children in groups.values() for child in children}
    seen: set[str] = set()
    for group in groups:
        leaves = list(dict.fromkeys(_leaves(group, groups)))
        alike = {(_primary(group, leaf, found), str(found.shots.get(leaf))) for leaf in leaves if leaf in found.results}
        if group not in inner and len(alike) == 1 and not seen.intersection(leaves):
            seen.update(leaves)
            yield group, leaves
    yield from ((task, [task]) for task in found.results if task not in groups and task not in seen)


def _leaves(group: str, groups: Mapping[str, Sequence[str]], above: tuple[str, ...] = ()) -> Iterator[str]:
    for child in groups[group]:
        if child in above:
            raise UserError(f"the group '{child}' is said to hold itself")
        yield from _leaves(child, groups, (*above, child)) if child in groups else (child,)


def _metrics(task: str, found: _Results) -> list[str]:
    """The metrics of a task, "metric,filter", in the file's order."""
    keys = [key.rpartition(",") for key in found.results.get(task, {})]
    return [f"{name},{filter_}" for name, comma, filter_ in keys if comma and not name.endswith("_stderr")]


def _primary(title: str, task: str, found: _Results) -> str:
    """The metric that is the score, "metric,filter"."""
    metrics = _metrics(task, found)
    if not metrics:
        raise UserError(f"the results file has no metric of '{task}'")
    known = BENCHMARKS.get(_VARIANTS.get(title, title))
    wanted = (known.metric if "," in known.metric else f"{known.metric},none") if known else ""
    return wanted if wanted in metrics else metrics[0]


def _records(title: str, task: str, tasks: Sequence[str], found: _Results, file: Path) -> Iterator[Record]:
    primary = _primary(title, task, found)
    tags = {"task": task} | ({"stratum": task.removeprefix(f"{title}_")} if len(tasks) > 1 else {})
    seed = found.config.get("fewshot_seed")
    for document in _documents(_samples_file(file, task), task, tags, _metrics(task, found), primary, seed).values():
        sample, completions = document.sample, document.completions
        value = document.metrics.pop(primary)
        failed = [each.why for each in completions if each.finish_reason == "error"]
        why = failed[0] if failed else "" if value is not None else f"{primary} is not a finite number"
        also = {_short(key): also for key, also in document.metrics.items() if also is not None and not why}
        score = Score(sample.id, None if why else value, why, also)
        yield Record(title, sample_digest(sample), sample, completions, score)


def _documents(
    file: Path, task: str, tags: Mapping[str, str], metrics: Sequence[str], primary: str, seed: Any
) -> dict[int, _Document]:
    """The documents of a samples file by id, in its order, each with its metrics under all filters."""
    documents: dict[int, _Document] = {}
    for number, line in enumerate(_lines(file), 1):
        try:
            row = _Row.model_validate(_json(line))
            document = documents.get(row.doc_id)
            if document is None:
                documents[row.doc_id] = document = _Document(*_asked(row, task, tags, seed))
            if row.filter in document.filters:
                raise ValueError(f"doc_id {row.doc_id} is there twice under the filter '{row.filter}'")
            document.filters.add(row.filter)
            document.metrics |= _values(row, metrics, primary)
        except ValidationError as error:
            raise UserError(f"{file}, line {number}: {_first(error)}") from error
        except (ValueError, TypeError) as error:
            raise UserError(f"{file}, line {number}: {error}") from error
    for identity, document in documents.items():
        if primary not in document.metrics:
            raise UserError(f"{file}: doc_id {identity} has no line under the filter of {primary}")
    if not documents:
        raise UserError(f"{file} is empty: nothing was asked")
    return documents


def _asked(row: _Row, task: str, tags: Mapping[str, str], seed: Any) -> tuple[Sample, tuple[Completion, ...]]:
    """What a document was asked and what was answered: a request for each choice, or for each repeat of an answer."""
    given = (
        [list(each.values()) for each in row.arguments.values()] if isinstance(row.arguments, dict) else row.arguments
    )
    if not given or len(given) != len(row.resps):
        raise ValueError(f"{len(given)} arguments and {len(row.resps)} responses")
    name = f"{task}/{row.doc_id}"
    requests: list[Request] = []
    completions: list[Completion] = []
    for arguments, responses in zip(given, row.resps, strict=True):
        for response in responses if isinstance(responses, list) else [responses]:
            index = len(requests)
            requests.append(_request(name, index, arguments, seed))
            completions.append(_completion(name, index, requests[-1].continuation, response))
    if not requests:
        raise ValueError("no response")
    return Sample(name, tuple(requests), str(row.target), tags, row.doc), tuple(completions)


def _request(name: str, index: int, arguments: Sequence[Any], seed: Any) -> Request:
    prompt, rest = arguments[0] if arguments else None, arguments[1] if len(arguments) > 1 else None
    if not isinstance(prompt, str) or not isinstance(rest, str | dict):
        raise ValueError("arguments that are neither a prompt and a choice nor a prompt and generation settings")
    if isinstance(rest, str):
        return Request(name, prompt, continuation=rest, index=index)
    return Request(name, prompt, sampling(rest, index + (seed if isinstance(seed, int) else 0)), index=index)


def _completion(name: str, index: int, continuation: str | None, response: Any) -> Completion:
    if continuation is None:
        return Completion(name, index, str(response), "stop", 0)
    pair = response if isinstance(response, list) and len(response) == 2 else [response, "False"]
    logprob = _number(pair[0])
    if logprob is None:
        why = "a choice has no finite log-likelihood"
        return Completion(name, index, continuation, "error", 0, why=why)
    return Completion(name, index, continuation, "stop", 0, logprob=logprob, greedy=str(pair[1]) == "True")


def _values(row: _Row, metrics: Sequence[str], primary: str) -> dict[str, float | None]:
    """What a line says of the metrics under its filter. Raises ValueError without the one that counts."""
    extra = row.model_extra or {}
    found: dict[str, float | None] = {}
    for key in metrics:
        metric, _, filter_ = key.rpartition(",")
        if filter_ != row.filter or (metric not in extra and key != primary):
            continue
        if metric not in extra:
            raise ValueError(f"doc_id {row.doc_id} has no '{metric}'")
        value = extra[metric]
        if key == primary and isinstance(value, list | dict | str):
            raise ValueError(f"{metric} of doc_id {row.doc_id} is no number, so documents do not compare by it")
        number = _number(value) if isinstance(value, int | float) else None
        if key == primary and number is not None and not 0 <= number <= 1:
            raise ValueError(f"{metric} of doc_id {row.doc_id} is {number:g}, not from 0 to 1")
        found[key] = number
    return found


def recorded(name: str, facts: Mapping[str, Any]) -> Benchmark:
    """A benchmark as a run's manifest knows it: what its records say can be computed, but it cannot be asked again."""
    return Benchmark(
        name=name,
        version=facts["version"],
        metric=facts["metric"],
        kind=facts["kind"],
        size=facts["samples"],
        summary="",
        load=_not_here,
        grade=_not_here,
    )


def _benchmark(title: str, tasks: Sequence[str], found: _Results, records: Sequence[Record]) -> Benchmark:
    values = {record.score.value for record in records} - {None}
    version = found.versions.get(title, found.versions.get(tasks[0], "?"))
    facts = {
        "version": f"lm-eval task {version}, {found.shots.get(tasks[0], '?')} shots",
        "metric": _short(_primary(title, tasks[0], found)),
        "kind": "binary" if values <= {0.0, 1.0} else "continuous",
        "samples": len(records),
    }
    return recorded(title, facts)


def _not_here(*_: Any) -> NoReturn:
    raise UserError("a benchmark that is known from a run's records cannot be asked again")


def _manifest(
    file: Path,
    found: _Results,
    benchmarks: Sequence[Benchmark],
    records: Sequence[Record],
    model: str,
    name: str | None,
) -> dict[str, Any]:
    """What a report says of a run that was made elsewhere."""
    who = [found.model_name, name] + [found.config.get(part) for part in _IDENTITY]
    protocol = EvalProtocol(
        PROTOCOL,
        chat_template=found.chat_template is not None,
        fewshot_as_multiturn=found.chat_template is None or bool(found.fewshot_as_multiturn),
        system_prompt=found.system_instruction or "",
    )
    digests = {each.name: [record.digest for record in records if record.benchmark == each.name] for each in benchmarks}
    return {
        "engine": {
            "engine": "lm-eval",
            "model": model,
            "dtype": found.config.get("model_dtype"),
            "config": found.config,
            "lm_eval": found.lm_eval_version,
        },
        "engine_identity": digest(["lm-eval", who]),
        "checkpoint": digest(["lm-eval", who]),
        "protocol": plain(protocol),
        "protocol_digest": digest(protocol),
        "judge": None,
        "judge_identity": None,
        "benchmarks": {
            each.name: {
                "version": each.version,
                "metric": each.metric,
                "kind": each.kind,
                "samples": each.size,
                "digest": digest(digests[each.name]),
            }
            for each in benchmarks
        },
        "judged": [],
        "limit": found.config.get("limit"),
        "source": {"file": file.name, "sha256": hashlib.sha256(file.read_bytes()).hexdigest()},
        "created": datetime.now(UTC).isoformat(),
    }


def _model_name(config: Mapping[str, Any]) -> str | None:
    """The model in lm-eval's arguments, which versions before 0.4.3 named nowhere else."""
    given = config.get("model_args")
    pairs = given if isinstance(given, dict) else dict(part.partition("=")[::2] for part in str(given or "").split(","))
    return next((str(pairs[key]) for key in ("peft", "pretrained", "model", "path") if pairs.get(key)), None)


def _samples_file(results: Path, task: str) -> Path:
    """The samples of `task` that were written together with this results file."""
    stamp = results.stem.rpartition("_")[2]
    written = {file.stem.rpartition("_")[2]: file for file in _written(results.parent, task)}
    if stamp in written:
        return written[stamp]
    hint = f"there are samples of another run ({min(written)})" if written else "was lm-eval run with --log_samples?"
    raise UserError(f"{results.name} has no samples_{task}_{stamp}.jsonl beside it: {hint}")


def _written(folder: Path, task: str) -> list[Path]:
    names = [each for each in folder.iterdir() if each.name.startswith("samples_") and each.suffix == ".jsonl"]
    return sorted(each for each in names if each.stem.rpartition("_")[0] == f"samples_{task}")


def _lines(file: Path) -> Iterable[bytes]:
    with file.open("rb") as opened:
        while line := opened.readline(MAX_LINE_BYTES + 1):
            if len(line) > MAX_LINE_BYTES:
                raise UserError(f"{file} has a line of more than {MAX_LINE_BYTES >> 20} MiB")
            if line.strip():
                yield line


def _json(text: bytes) -> Any:
    """JSON in which no number is infinite or NaN: such a one is null. Raises ValueError for anything else."""
    try:
        value = json.loads(text, parse_constant=lambda _: None, parse_float=_number)
        plain([[[[value]]]])  # what is nested too deeply to be stored is refused here
        if b"\\ud" in text.lower():
            json.dumps(value, ensure_ascii=False).encode()  # half of a surrogate pair is no text
    except RecursionError:
        raise ValueError("JSON nested too deeply") from None
    except UnicodeError:
        raise ValueError("text that is no Unicode") from None
    return value


def _number(value: Any) -> float | None:
    try:
        found = float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return found if math.isfinite(found) else None


def _short(metric: str) -> str:
    """lm-eval's key as ours: the filter is named where it has a name."""
    return metric.removesuffix(",none")


def _first(error: ValidationError) -> str:
    found = error.errors()[0]
    where = f"{'.'.join(map(str, found['loc']))}: " if found["loc"] else ""
    return f"{where}{found['msg'][0].lower()}{found['msg'][1:]}"
