"""Any task, group or tag of lm-eval's, or of a folder of the user's own, as a benchmark.

Its data come from where its YAML file says, by `datasets`; code from the hub is never run. A group or a tag is one
benchmark, each of its tasks a stratum. The score is the first of the task's metrics that is a mean over documents and
better when higher: what else lm-eval computes over all documents at once (perplexity, F1, corpus BLEU) has no value for
a document, so nothing could be paired or tested.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from rlhf_bench.harness.errors import MissingData, RlhfBenchError, UnknownName, UserError
from rlhf_bench.harness.types import Benchmark, EvalProtocol, Kind, Sample
from rlhf_bench.suites import lm_eval_index
from rlhf_bench.suites.lm_eval_index import Task, packaged
from rlhf_bench.suites.lm_eval_tasks import LM_EVAL, Part, benchmark_of, build_task, require_lm_eval

ANSWERED = ("multiple_choice", "loglikelihood", "generate_until")
"""The kinds of request that an engine answers."""
_ZERO_OR_ONE = {"acc", "acc_norm", "acc_bytes", "exact_match"}
"""Metrics of lm-eval's own that are 0 or 1 for a document."""


def named(name: str, include_path: Sequence[Path] = (), beside: Sequence[str] = ()) -> Benchmark:
    """The benchmark that lm-eval or a folder of `include_path` defines by this name.

    Its data are not looked for before it is loaded. Raises UnknownName, with the nearest of all names there are and
    those in `beside`, and UserError where it cannot be asked or scored here.
    """
    known = lm_eval_index.index(include_path)
    if known.kind(name) is None:
        raise UnknownName("suite", name, {*beside, *known.names()})
    require_lm_eval()
    tasks = lm_eval_index.members(name, known)
    if not tasks:
        raise UserError(f"the lm-eval group '{name}' has no tasks")
    configs = {task.name: lm_eval_index.config(task, resolved=False) for task in tasks}
    metric, kind = _score(name, list(configs.values()))
    version = _digest(tasks, configs, include_path)
    found = benchmark_of(
        name,
        [_part(task, name if len(tasks) > 1 else "") for task in tasks],
        metric=metric,
        kind=kind,
        size=0,
        summary=f"lm-eval's {known.kind(name)} {name}" + (f", {len(tasks)} tasks" if len(tasks) > 1 else ""),
        version=f"lm-eval-{LM_EVAL}+{version}",
    )

    def load(protocol: EvalProtocol) -> Sequence[Sample]:
        try:
            return found.load(protocol)
        except RlhfBenchError:
            raise
        except Exception as error:  # whatever a task's own code and templates raise
            said = " ".join(str(error).split())[:300]
            raise UserError(f"the lm-eval task '{name}' cannot be loaded: {type(error).__name__}: {said}") from error

    return replace(found, load=load)


def _part(task: Task, group: str) -> Part:
    def config_of(resolved: bool) -> dict[str, Any]:
        config = lm_eval_index.config(task, resolved)
        if resolved and config.get("custom_dataset") is None:
            config["custom_dataset"] = functools.partial(_data, task.name, dict(config))
        return config

    stratum = task.name.removeprefix(f"{group}_").removeprefix(f"{group}::") if group else ""
    return Part(task.name, functools.partial(build_task, config_of, read=None), stratum)


def _data(task: str, config: Mapping[str, Any], **_: Any) -> Any:
    """What the task's `dataset_path` names. Raises MissingData, whatever `datasets` fails with."""
    import datasets

    datasets.disable_progress_bars()  # they would stand among our lines
    path, name = config.get("dataset_path"), config.get("dataset_name")
    given = {key: value for key, value in (config.get("dataset_kwargs") or {}).items() if key != "trust_remote_code"}
    try:
        return datasets.load_dataset(path=path, name=name, **given)
    except Exception as error:  # of its many kinds of error none says by its class what is missing
        said = " ".join(str(error).split())[:200]
        raise MissingData(
            f"no data for the lm-eval task '{task}': {path}{f' ({name})' if name else ''} cannot be loaded "
            f"({type(error).__name__}: {said}); it is kept once it was loaded where there is a network, and a data set "
            "that needs code of its own is not loaded at all"
        ) from error


def _score(name: str, configs: Sequence[Mapping[str, Any]]) -> tuple[str, Kind]:
    """The metric that all tasks share, and whether it is 0 or 1 for every document. Raises UserError."""
    for config in configs:
        _require_answerable(config)
    shared = [_metrics(config) for config in configs]
    metric = next((metric for metric in shared[0] if all(metric in other for other in shared)), None)
    if metric is None and len(configs) > 1 and all(shared):
        some = ", ".join(str(config["task"]) for config in configs[:3])
        raise UserError(f"the tasks of '{name}' have no metric in common: name the tasks one by one ({some}, …)")
    if metric is None:
        of = next(config for config, metrics in zip(configs, shared, strict=True) if not metrics)
        raise UserError(
            f"the lm-eval task '{of['task']}' has no metric that is a mean over documents and better when higher: "
            "nothing here could be compared"
        )
    return metric, "binary" if all(metrics[metric] for metrics in shared) else "continuous"


def _require_answerable(config: Mapping[str, Any]) -> None:
    task, kind = config["task"], config.get("output_type", "generate_until")
    if "class" in config:
        raise UserError(f"the lm-eval task '{task}' is a Python class of its own: only YAML tasks are asked here")
    if kind not in ANSWERED:
        raise UserError(f"the lm-eval task '{task}' asks for {kind}, which no engine here answers")
    if config.get("doc_to_image") or config.get("doc_to_audio"):
        raise UserError(f"the lm-eval task '{task}' shows images or sounds: the engines here read text")


def _metrics(config: Mapping[str, Any]) -> dict[str, bool]:
    """The metrics that can be the score, in the task's order, and of each whether it is 0 or 1 for every document."""
    from lm_eval.api.metrics import mean
    from lm_eval.api.registry import DEFAULT_METRIC_REGISTRY, get_metric_aggregation, is_higher_better

    kind = config.get("output_type", "generate_until")
    listed = config.get("metric_list") or [{"metric": name} for name in DEFAULT_METRIC_REGISTRY[kind]]
    filters = config.get("filter_list") or [{"name": "none"}]
    suffix = "" if filters[0]["name"] == "none" else f",{filters[0]['name']}"
    found = {}
    for one in listed:
        metric = getattr(one["metric"], "__name__", str(one["metric"]))
        given = one.get("aggregation")
        aggregation = get_metric_aggregation(metric) if given is None else mean if given == "mean" else None
        higher = one["higher_is_better"] if "higher_is_better" in one else is_higher_better(metric)
        if aggregation is mean and higher:
            plain = config.get("process_results") is None and config.get("repeats", 1) == 1
            own = metric.rpartition(".")[2] if "/" in metric else metric  # a function's name, behind its file's
            found[f"{own}{suffix}"] = plain and metric in _ZERO_OR_ONE
    return found


def _digest(tasks: Sequence[Task], configs: Mapping[str, Mapping[str, Any]], include_path: Sequence[Path]) -> str:
    """Of the tasks' settings, and of the Python files beside those in the user's own folders."""
    said = json.dumps([configs[task.name] for task in tasks], default=_by_name)
    code = b""
    for root in (packaged(), *include_path):
        said = said.replace(f"{root.resolve()}/", "")
    folders = {task.path.parent for task in tasks if task.path and packaged() not in task.path.parents}
    for folder in sorted(folders):
        code += b"".join(file.read_bytes() for file in sorted(folder.glob("*.py")))
    return hashlib.sha256(said.encode() + code).hexdigest()[:10]


def _by_name(value: Any) -> str:
    """What JSON has no form for: a function by its name."""
    return getattr(value, "__qualname__", str(value))
