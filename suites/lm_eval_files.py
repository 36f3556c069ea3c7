"""lm-eval's result files as runs of the store: `results_<time>.json` and `samples_<task>_<time>.jsonl`.

    a folder, a results file, or one samples file ─► results ─► samples of each task (lm_eval_rows) ─► run

Whoever has such files of two models can compare and gate them here, with no model at hand. A document is a sample: what
was asked are its arguments, so the documents of two runs pair where prompt, generation settings or choice, and target
agree. A group whose tasks share their metric is one benchmark with a stratum for each task; other tasks stand alone.
The score is the metric of our own table for a task that is in it, else the first that the file has and does not call
better when lower; the others stand beside it. Shots and the task's version are the benchmark's version, template and
system prompt the protocol, so that runs asked in another way are refused by name. A samples file without its results
says neither: then both runs must be of such files, and what guards the comparison is that documents pair only where
they were asked alike.

Files are other people's: sizes are bounded, nothing in them is run, and what is no number is no score.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from rlhf_bench.harness.codec import digest, plain, sample_digest
from rlhf_bench.harness.errors import UserError
from rlhf_bench.harness.store import Store
from rlhf_bench.harness.types import Benchmark, EvalProtocol, Record, Report, Score
from rlhf_bench.suites import BENCHMARKS
from rlhf_bench.suites.imported import Made, keep, recorded, sha256_of
from rlhf_bench.suites.lm_eval_rows import documents, first_error, json_value, metrics_in

MAX_RESULTS_BYTES = 256 << 20
PROTOCOL = "lm-eval-file"
_IDENTITY = ("model", "model_args", "model_sha", "model_revision", "peft_sha", "delta_sha")
_VARIANTS = {"gsm8k_cot": "gsm8k"}
_SAMPLES = re.compile(r"samples_(.+?)(?:_(\d{4}-\d\d-\d\dT[^_]+))?\.jsonl")
_UNKNOWN = "unknown task version and shots"


class _Results(BaseModel):
    """What is read of a results file."""

    model_config = ConfigDict(protected_namespaces=())

    results: dict[str, dict[str, Any]] = Field(min_length=1)
    group_subtasks: dict[str, list[str]] = {}
    versions: dict[str, Any] = {}
    shots: dict[str, Any] = Field({}, alias="n-shot")
    higher_is_better: dict[str, dict[str, bool | None]] = {}
    config: dict[str, Any] = {}
    model_name: str | None = None
    system_instruction: str | None = None
    chat_template: str | None = None
    fewshot_as_multiturn: bool | None = None
    lm_eval_version: str | None = None


@dataclass(frozen=True, slots=True)
class _Output:
    """What lm-eval wrote together: what its results say, and the results file or the samples file that stands alone."""

    file: Path
    found: _Results
    alone: bool = False

    def samples(self, task: str) -> Path:
        """The samples of `task` that were written together with the results."""
        return self.file if self.alone else _samples_file(self.file, task)


def read(path: Path, store: Store, name: str | None = None, *, apart: bool = False) -> Report:
    """Keep what lm-eval wrote to `path` (a results file, its folder, or one samples file) as a finished run.

    `name` replaces the model's name and sets apart two models that lm-eval was given under the same one; with `apart`
    other answers of the same model are another state of it. The same files are the same run. Raises UserError, one
    line, where files are missing, malformed or say what no score can be.
    """
    output = _output(path)
    benchmarks, records = [], []
    higher: dict[str, dict[str, bool]] = {}
    for title, tasks in _benchmarks(output.found):
        loaded = [record for task in tasks for record in _records(title, task, tasks, output)]
        benchmarks.append(_benchmark(title, tasks, output, loaded))
        higher |= _higher(title, tasks[0], output.found)
        records += loaded
    made = replace(_made(output, records, name, apart or output.alone), higher=higher)
    return keep(made, benchmarks, records, store)


def _output(path: Path) -> _Output:
    if path.suffix != ".jsonl" or not path.is_file():
        file = _results_file(path)
        return _Output(file, _results(file))
    named = _SAMPLES.fullmatch(path.name)
    if named is None:
        raise UserError(f"{path} does not say its task: lm-eval's name for it is samples_TASK_TIME.jsonl")
    task, stamp = named.groups()
    beside = path.with_name(f"results_{stamp}.json")
    if stamp and beside.is_file():
        found = _results(beside)
        if task in found.results:
            only = {"results": {task: found.results[task]}, "group_subtasks": {}}
            return _Output(beside, found.model_copy(update=only))
    return _Output(path, _Results(results={task: dict.fromkeys(metrics_in(path))}), alone=True)


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
        return _Results.model_validate(json_value(file.read_bytes()))
    except ValidationError as error:
        raise UserError(f"{file} is no results file of lm-eval: {first_error(error)}") from error
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
        raise UserError(f"lm-eval's files have no metric of '{task}'")
    known = BENCHMARKS.get(_VARIANTS.get(title, title))
    wanted = (known.metric if "," in known.metric else f"{known.metric},none") if known else ""
    rising = [each for each in metrics if _is_higher(task, each, found) is not False]
    return wanted if wanted in metrics else [*rising, *metrics][0]


def _is_higher(task: str, metric: str, found: _Results) -> bool | None:
    """Whether the file says that more of "metric,filter" is better; None where it says nothing."""
    return found.higher_is_better.get(task, {}).get(metric.rpartition(",")[0])


def _higher(title: str, task: str, found: _Results) -> dict[str, dict[str, bool]]:
    """{benchmark: {metric: whether more is better}}, of the metrics of which the file says it."""
    said = {_short(metric): _is_higher(task, metric, found) for metric in _metrics(task, found)}
    known = {metric: higher for metric, higher in said.items() if higher is not None}
    return {title: known} if known else {}


def _records(title: str, task: str, tasks: Sequence[str], output: _Output) -> Iterator[Record]:
    found, file = output.found, output.samples(task)
    primary = _primary(title, task, found)
    tags = {"task": task} | ({"stratum": task.removeprefix(f"{title}_")} if len(tasks) > 1 else {})
    seed = found.config.get("fewshot_seed")
    for document in documents(file, task, tags, _metrics(task, found), primary, seed).values():
        sample, completions = document.sample, document.completions
        value = document.metrics.pop(primary)
        failed = [each.why for each in completions if each.finish_reason == "error"]
        why = failed[0] if failed else "" if value is not None else f"{primary} is not a finite number"
        also = {_short(key): also for key, also in document.metrics.items() if also is not None and not why}
        score = Score(sample.id, None if why else value, why, also)
        yield Record(title, sample_digest(sample), sample, completions, score)


def _benchmark(title: str, tasks: Sequence[str], output: _Output, records: Sequence[Record]) -> Benchmark:
    found = output.found
    values = {record.score.value for record in records} - {None}
    version = found.versions.get(title, found.versions.get(tasks[0], "?"))
    facts = {
        "version": _UNKNOWN if output.alone else f"lm-eval task {version}, {found.shots.get(tasks[0], '?')} shots",
        "metric": _short(_primary(title, tasks[0], found)),
        "kind": "binary" if values <= {0.0, 1.0} else "continuous",
        "samples": len(records),
    }
    return recorded(title, facts)


def _made(output: _Output, records: Sequence[Record], name: str | None, apart: bool) -> Made:
    """Who answered, as far as the files say; with `apart` what was answered is part of it."""
    found, config = output.found, output.found.config
    who: list[Any] = [found.model_name, name] + [config.get(part) for part in _IDENTITY]
    if apart:
        who.append([[record.digest, plain(record.completions), record.score.value] for record in records])
    model = name or found.model_name or _model_name(config) or (output.file.stem if output.alone else "lm-eval")
    identity = digest(["lm-eval", who])
    return Made(
        model=model,
        checkpoint=identity,
        identity=identity,
        protocol=EvalProtocol(
            PROTOCOL,
            chat_template=found.chat_template is not None,
            fewshot_as_multiturn=found.chat_template is None or bool(found.fewshot_as_multiturn),
            system_prompt=found.system_instruction or "",
        ),
        judge=None,
        engine={
            "engine": "lm-eval",
            "model": model,
            "dtype": "unknown" if output.alone else config.get("model_dtype"),
            "config": config,
            "lm_eval": found.lm_eval_version,
        },
        source={"file": output.file.name, "sha256": sha256_of(output.file)},
        limit=config.get("limit"),
    )


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


def _short(metric: str) -> str:
    """lm-eval's key as ours: the filter is named where it has a name."""
    return metric.removesuffix(",none")
