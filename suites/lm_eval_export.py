"""A run as lm-eval's result files: `<model>/results_<time>.json` and `<model>/samples_<task>_<time>.jsonl`.

What was asked, answered and scored comes from the run's records; tables, hashes, versions and configurations are made
by lm-eval's own code from its own task definitions, so that whatever reads its files reads these. A benchmark of
several tasks (MMLU) becomes these tasks and their group. An ungraded document has no line, since lm-eval knows none:
`n-samples` then has fewer that are effective than there were. Nothing is executed again.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import Any

from rlhf_bench.harness import files
from rlhf_bench.harness.errors import UserError
from rlhf_bench.harness.repeats import sampled
from rlhf_bench.harness.store import Run
from rlhf_bench.harness.types import Benchmark, EvalProtocol, Prompt, Record, Sample
from rlhf_bench.suites import lm_eval_tasks

BATCH = 0
"""Stands for lm-eval's batch size: our engine has none."""


def write(
    run: Run, records: Sequence[Record], benchmarks: Sequence[Benchmark], protocol: EvalProtocol, folder: Path
) -> list[Path]:
    """Write the records of these benchmarks, which `run` asked under `protocol`; the results file comes last.

    Loads the benchmarks' data, for documents are hashed as lm-eval reads them. Raises UserError where a definition or
    its data are no longer what was asked, Fault where the disk fails.
    """
    from lm_eval.loggers.evaluation_tracker import GeneralConfigTracker

    tasks: dict[str, dict[str, Any]] = {}
    groups: dict[str, list[str]] = {}
    for benchmark in benchmarks:
        mine = [record for record in records if record.benchmark == benchmark.name]
        found = _tasks(benchmark, mine, protocol)
        tasks |= found
        if any("stratum" in record.sample.tags for record in mine):
            groups[benchmark.name] = list(found)
    about = GeneralConfigTracker()
    about.log_experiment_args(
        model_source="rlhf-bench",
        model_args={"pretrained": run.model},
        system_instruction=protocol.system_prompt or None,
        chat_template=_template(run) if protocol.chat_template else None,
        fewshot_as_multiturn=protocol.fewshot_as_multiturn,
    )
    about.total_evaluation_time_seconds = str(_seconds(run))
    metrics = {benchmark.name: benchmark.metric for benchmark in benchmarks}
    results = _results(tasks, groups, metrics, protocol) | _about(run, protocol) | _hashes(tasks) | asdict(about)
    stamp = datetime.fromisoformat(run.finished or run.created).replace(tzinfo=None).isoformat().replace(":", "-")
    target = folder / str(about.model_name_sanitized)
    written = {target / f"samples_{name}_{stamp}.jsonl": _lines(task["logged_samples"]) for name, task in tasks.items()}
    written[target / f"results_{stamp}.json"] = _dumps(results, indent=2)
    for path, text in written.items():
        files.write(path, text)
    return list(written)


def _tasks(benchmark: Benchmark, records: Sequence[Record], protocol: EvalProtocol) -> dict[str, dict[str, Any]]:
    """By lm-eval task name what its evaluator collects: the task, the values of each metric, the lines of samples."""
    numbers: dict[str, int] = {}
    places: dict[str, tuple[Sample, int]] = {}
    for sample in sampled(benchmark.load(protocol), protocol, benchmark.name):
        name = sample.tags["task"]
        places[sample.id] = sample, numbers.setdefault(name, 0)
        numbers[name] += 1
    found: dict[str, dict[str, Any]] = {}
    for record in records:
        sample, number = places.get(record.sample.id, (record.sample, -1))
        if number < 0 or sample.requests != record.sample.requests:
            raise UserError(f"'{benchmark.name}' no longer asks '{record.sample.id}' as this run did: run it again")
        name = sample.tags["task"]
        task = lm_eval_tasks.loaded_task(benchmark.name, name)
        entry = found.setdefault(name, {"task": task, "raw_metrics": {}, "logged_samples": []})
        if record.score.value is None:
            continue
        scores = {benchmark.metric: record.score.value, **record.score.also}
        for line, values in _document(task, number, sample, record, scores):
            entry["logged_samples"].append(line)
            for metric, value in values.items():
                entry["raw_metrics"].setdefault((metric, line["filter"]), []).append(value)
    for entry in found.values():
        order = [ensemble.name for ensemble in entry["task"]._filters]
        entry["logged_samples"].sort(key=lambda line: order.index(line["filter"]))
    return found


def _document(
    task: Any, number: int, sample: Sample, record: Record, scores: Mapping[str, float]
) -> Iterator[tuple[dict[str, Any], dict[str, float]]]:
    """The line of a document under each filter, and its metrics."""
    from lm_eval.utils import handle_non_serializable, hash_string, sanitize_list

    document = dict(sample.row)
    arguments, responses = _asked(task, record)
    filtered = _filtered(task, document, responses)
    target = task.doc_to_target(document)
    text = json.dumps(document, indent=2, default=handle_non_serializable, ensure_ascii=False)
    for name, answers in filtered.items():
        suffix = "" if name == "none" else f",{name}"
        mine = {key.removesuffix(suffix): value for key, value in scores.items() if _filter_of(key) == name}
        values = {key: mine[key] for key in sorted(mine, key=_place(task))}
        yield (
            {
                "doc_id": number,
                "doc": document,
                "target": str(target),
                "arguments": {
                    f"gen_args_{i}": {f"arg_{j}": value for j, value in enumerate(given)}
                    for i, given in enumerate(arguments)
                },
                "resps": sanitize_list(responses),
                "filtered_resps": sanitize_list(answers),
                "filter": name,
                "metrics": list(values),
                "doc_hash": hash_string(text),
                "prompt_hash": hash_string(arguments[0][0]),
                "target_hash": hash_string(str(target)),
                **values,
            },
            values,
        )


def _asked(task: Any, record: Record) -> tuple[list[tuple[Any, ...]], list[list[Any]]]:
    """Arguments and responses as lm-eval's instances hold them: repeats of an answer are responses of one."""
    answers = sorted(record.completions, key=lambda completion: completion.index)
    requests = record.sample.requests
    if requests[0].continuation is None:
        settings = dict(task.config.generation_kwargs)
        return [(_text(requests[0].prompt), settings)], [[answer.text for answer in answers]]
    arguments = [(_text(request.prompt), request.continuation) for request in requests]
    return arguments, [[(answer.logprob, bool(answer.greedy))] for answer in answers]


def _filtered(task: Any, document: dict[str, Any], responses: Sequence[list[Any]]) -> dict[str, list[Any]]:
    from lm_eval.api.instance import Instance

    instances = [
        Instance(request_type=task.OUTPUT_TYPE, doc=document, arguments=(), idx=index, resps=list(response))
        for index, response in enumerate(responses)
    ]
    for ensemble in task._filters:
        ensemble.apply(instances)
    return {each.name: [instance.filtered_resps[each.name] for instance in instances] for each in task._filters}


def _filter_of(metric: str) -> str:
    return metric.rpartition(",")[2] if "," in metric else "none"


def _place(task: Any) -> Any:
    """Sorts metrics as the task lists them."""
    order = list(task.aggregation())
    return lambda metric: order.index(metric) if metric in order else len(order)


def _text(prompt: Prompt) -> str:
    """A conversation as lm-eval writes what it sends to chat endpoints: its turns as JSON."""
    if isinstance(prompt, str):
        return prompt
    return json.dumps([{"role": turn.role, "content": turn.content} for turn in prompt], ensure_ascii=False)


def _results(
    tasks: Mapping[str, dict[str, Any]],
    groups: Mapping[str, Sequence[str]],
    metrics: Mapping[str, str],
    protocol: EvalProtocol,
) -> dict[str, Any]:
    """The tables, by lm-eval's own aggregation."""
    from lm_eval.api.group import Group
    from lm_eval.config.group import AggMetricConfig
    from lm_eval.evaluator_utils import _process_results

    made = {}
    for name, members in groups.items():
        metric, _, filter_ = metrics[name].partition(",")
        aggregate = AggMetricConfig(metric=metric, weight_by_size=True, filter_list=[filter_ or "none"])
        made[name] = Group(name, aggregate_metric_list=[aggregate])
        for member in members:
            made[name].add(tasks[member]["task"])
    found = _process_results(dict(tasks), made)
    title = {member: name for name, members in groups.items() for member in members}
    for name, config in found.configs.items():
        config.pop("custom_dataset", None)
        config["fewshot_config"] = {**config.get("fewshot_config", {}), **_templates(tasks[name]["task"])}
        shots = protocol.shots.get(title.get(name, name), config.get("num_fewshot") or 0)
        config["num_fewshot"] = found.num_fewshot[name] = shots
    return dict(found._to_eval_results())


def _templates(task: Any) -> dict[str, Any]:
    """How a task renders its examples, as its file says it."""
    parts = ("doc_to_text", "doc_to_choice", "doc_to_target")
    given = {part: getattr(getattr(task.fewshot_cfg, part), "template", None) for part in parts}
    return {part: template for part, template in given.items() if template is not None and not callable(template)}


def _about(run: Run, protocol: EvalProtocol) -> dict[str, Any]:
    """What lm-eval says of the model and of how it was run."""
    packages = run.manifest.get("packages", {})
    return {
        "config": {
            "model": "rlhf-bench",
            "model_args": {"pretrained": run.model},
            "model_num_parameters": None,
            "model_dtype": run.manifest.get("engine", {}).get("dtype"),
            "model_revision": None,
            "model_sha": run.checkpoint,
            "batch_size": BATCH,
            "batch_sizes": [],
            "device": run.settings.get("device"),
            "use_cache": None,
            "limit": run.manifest.get("limit"),
            "bootstrap_iters": 100000,
            "gen_kwargs": None,
            "random_seed": 0,
            "numpy_seed": protocol.seed,
            "torch_seed": protocol.seed,
            "fewshot_seed": protocol.seed,
        },
        "git_hash": None,
        "date": datetime.fromisoformat(run.created).timestamp(),
        "pretty_env_info": f"rlhf-bench {run.manifest.get('rlhf_bench')}, Python {run.manifest.get('python')}",
        "transformers_version": packages.get("transformers"),
        "lm_eval_version": packages.get("lm_eval"),
        "upper_git_hash": None,
    }


def _hashes(tasks: Mapping[str, dict[str, Any]]) -> dict[str, Any]:
    from lm_eval.utils import hash_string

    lines = {name: task["logged_samples"] for name, task in tasks.items()}
    parts = ("doc_hash", "prompt_hash", "target_hash")
    joined = {name: "".join(line[part] for line in own for part in parts) for name, own in lines.items()}
    return {"task_hashes": {name: hash_string(text) for name, text in joined.items()}}


def _template(run: Run) -> str:
    return f"sha256:{run.manifest.get('engine', {}).get('chat_template', '')}"


def _seconds(run: Run) -> float:
    if run.finished is None:
        return 0.0
    return (datetime.fromisoformat(run.finished) - datetime.fromisoformat(run.created)).total_seconds()


def _lines(lines: Sequence[dict[str, Any]]) -> str:
    return "".join(f"{_dumps(line)}\n" for line in lines)


def _dumps(value: Any, indent: int | None = None) -> str:
    from lm_eval.utils import handle_non_serializable

    return json.dumps(value, default=handle_non_serializable, ensure_ascii=False, indent=indent)
