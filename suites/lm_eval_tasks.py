"""lm-eval's task definitions, asked by our engines and graded by its own filters and metrics.

The definitions are read from the installed package's YAML files, one task at a time (its index of all tasks takes
seconds); only where the rows come from is replaced. Contexts, requests and metrics are those of
`lm_eval.simple_evaluate` on the same rows. With a chat template, examples are earlier turns of the conversation (its
default) and our engine renders it.
"""

from __future__ import annotations

import functools
import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rlhf_bench.harness.errors import UnknownName, UserError
from rlhf_bench.harness.types import (
    Benchmark,
    Completion,
    EvalProtocol,
    Graded,
    Kind,
    Message,
    Prompt,
    Request,
    Sample,
    Sampling,
    Score,
)
from rlhf_bench.suites.data import Row, rows

LM_EVAL = "0.4.13"
MAX_TOKENS = 256
"""Where a task sets no limit on an answer; lm-eval's own default."""
_MAX_TOKENS_KEYS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")


def lm_eval_benchmark(
    name: str,
    *,
    metric: str,
    kind: Kind,
    size: int,
    summary: str,
    tasks: Mapping[str, str],
    splits: Sequence[str],
    row: Callable[[Row], Row] = dict,
) -> Benchmark:
    """A benchmark that lm-eval defines.

    `tasks` gives, by lm-eval task name, its YAML file below lm_eval/tasks; the first is asked unless the protocol names
    another. `splits` are the splits that these tasks read; split s is the pinned file "name/s", and `row` brings a row
    of it into the form that the task reads. `metric` is a key of lm-eval's results: "acc_norm", or
    "exact_match,flexible-extract" where there is a named filter.
    """

    @functools.cache
    def task(variant: str, fixed_shots: bool = False) -> Any:
        if variant not in tasks:
            raise UnknownName(f"variant of {name}", variant, tasks)
        read = {split: functools.partial(_split, f"{name}/{split}", row) for split in splits}
        return _task(tasks[variant], fixed_shots, read)

    def load(protocol: EvalProtocol) -> Sequence[Sample]:
        variant = protocol.variants.get(name, next(iter(tasks)))
        return list(load_samples(task(variant, protocol.fixed_shots), name, protocol))

    def grade(answered: Sequence[Graded], judge: Any) -> Iterator[Score]:
        for sample, completions in answered:
            yield grade_sample(task(sample.tags["task"]), metric, sample, completions)

    return Benchmark(
        name=name,
        version=f"lm-eval-{LM_EVAL}",
        metric=metric,
        kind=kind,
        size=size,
        summary=summary,
        load=load,
        grade=grade,
        needs=tuple(f"{name}/{split}" for split in splits),
    )


def load_samples(task: Any, name: str, protocol: EvalProtocol) -> Iterator[Sample]:
    """One sample for each document of a lm-eval task, in order, with the requests that lm-eval would make.

    The number of shots is the protocol's for `name`, else the task's own.
    """
    shots = protocol.shots.get(name, task.config.num_fewshot or 0)
    task.set_fewshot_seed(protocol.seed)
    for number, document in enumerate(task.eval_docs):
        context = task.fewshot_context(
            doc=document,
            num_fewshot=shots,
            system_instruction=protocol.system_prompt or None,
            apply_chat_template=protocol.chat_template,
            fewshot_as_multiturn=protocol.chat_template,
            chat_template=_turns if protocol.chat_template else None,
            gen_prefix=task.doc_to_prefix(document),
        )
        instances = task.construct_requests(doc=document, ctx=context, apply_chat_template=protocol.chat_template)
        identity = f"{name}/{number}"
        yield Sample(
            id=identity,
            requests=tuple(_requests(identity, task, instances, protocol.seed)),
            reference=_reference(task, document),
            tags={"task": task.config.task},
            row=document,
        )


def grade_sample(task: Any, metric: str, sample: Sample, completions: Sequence[Completion]) -> Score:
    """The task's own metrics of one document: `metric` is the score, the others stand beside it.

    An answer that an engine could not give leaves the sample ungraded; one cut at its length limit is graded as it is.
    """
    answers = sorted(completions, key=lambda completion: completion.index)
    failed = [answer for answer in answers if answer.finish_reason == "error"]
    if failed:
        return Score(sample.id, None, failed[0].why or "the engine failed on this request")
    if len(answers) != len(sample.requests):
        return Score(sample.id, None, f"{len(answers)} of {len(sample.requests)} answers")
    scored = [answer.logprob for answer in answers if task.OUTPUT_TYPE != "generate_until"]
    if any(logprob is None or math.isnan(logprob) for logprob in scored):
        return Score(sample.id, None, "a choice has no log-likelihood")
    metrics = _metrics(task, dict(sample.row), answers)
    if metric not in metrics:
        raise UserError(f"the lm-eval task {task.config.task} gives no metric '{metric}': {', '.join(sorted(metrics))}")
    return Score(sample.id, metrics.pop(metric), also=metrics)


def _metrics(task: Any, document: dict[str, Any], answers: Sequence[Completion]) -> dict[str, float]:
    """Every metric that is a number, as "metric" or "metric,filter"."""
    from lm_eval.api.instance import Instance

    if task.OUTPUT_TYPE == "generate_until":
        responses: list[list[Any]] = [[answer.text for answer in answers]]
    else:
        responses = [[(answer.logprob, bool(answer.greedy))] for answer in answers]
    instances = [
        Instance(request_type=task.OUTPUT_TYPE, doc=document, arguments=(), idx=index, resps=response)
        for index, response in enumerate(responses)
    ]
    found: dict[str, float] = {}
    for ensemble in task._filters:
        ensemble.apply(instances)
        graded = task.process_results(document, [instance.filtered_resps[ensemble.name] for instance in instances])
        suffix = "" if ensemble.name == "none" else f",{ensemble.name}"
        found |= {f"{key}{suffix}": float(value) for key, value in graded.items() if not isinstance(value, Sequence)}
    return found


def _requests(identity: str, task: Any, instances: Any, seed: int) -> Iterator[Request]:
    """What lm-eval's instances ask: a continuation for each choice, or an answer, repeated if the task repeats."""
    if task.OUTPUT_TYPE == "generate_until":
        context, settings = instances.arguments
        for index in range(task.config.repeats):
            yield Request(identity, _prompt(task, context), _sampling(settings, seed + index), index=index)
    elif task.OUTPUT_TYPE in {"multiple_choice", "loglikelihood"}:
        for index, instance in enumerate(instances if isinstance(instances, list) else [instances]):
            context, continuation = instance.arguments
            yield Request(identity, _prompt(task, context), continuation=continuation, index=index)
    else:
        raise UserError(
            f"the lm-eval task {task.config.task} asks for {task.OUTPUT_TYPE}, which no engine here answers"
        )


def _sampling(settings: Mapping[str, Any], seed: int) -> Sampling:
    """lm-eval's generation settings. Without `do_sample` the temperature counts for nothing."""
    until = settings.get("until") or []
    limits = [settings[key] for key in _MAX_TOKENS_KEYS if settings.get(key) is not None]
    temperature = 0.0 if settings.get("do_sample") is False else float(settings.get("temperature", 0.0))
    return Sampling(
        max_tokens=int(next(iter(limits), MAX_TOKENS)),
        temperature=temperature,
        top_p=float(settings.get("top_p", 1.0)),
        stop=(until,) if isinstance(until, str) else tuple(until),
        seed=seed if temperature else 0,
    )


def _prompt(task: Any, context: str | list[dict[str, str]]) -> Prompt:
    if isinstance(context, str):
        return context
    if context[-1]["role"] == "assistant":
        raise UserError(f"the lm-eval task {task.config.task} begins the answer itself: ask it without a chat template")
    return tuple(Message(turn["role"], turn["content"]) for turn in context)  # type: ignore[arg-type]


def _turns(turns: list[dict[str, str]], *, add_generation_prompt: bool) -> list[dict[str, str]]:
    """Stands where lm-eval renders a conversation: ours is rendered by the engine."""
    return turns


def _reference(task: Any, document: dict[str, Any]) -> str:
    """The right answer as text: the right choice, or the target (the first, where several are right)."""
    target = task.doc_to_target(document)
    target = target[0] if isinstance(target, list) else target
    return str(task.doc_to_choice(document)[target] if isinstance(target, int) else target)


def _split(pin: str, row: Callable[[Row], Row]) -> list[Row]:
    return [row(one) for one in rows(pin)]


def _task(yaml: str, fixed_shots: bool, read: Mapping[str, Callable[[], list[Row]]]) -> Any:
    """lm-eval's task over our rows: in memory, with no call to the hub and no cache of `datasets` on disk."""
    _lm_eval()
    import lm_eval.tasks
    from datasets import Dataset, DatasetDict
    from lm_eval.api.task import ConfigurableTask
    from lm_eval.tasks._yaml_loader import load_yaml

    config = load_yaml(Path(lm_eval.tasks.__file__).parent / yaml)
    config.pop("tag", None)
    named = {config.get(f"{use}_split") for use in ("training", "validation", "test", "fewshot")}
    if fixed_shots:
        config["fewshot_config"] = {**config.get("fewshot_config", {}), "sampler": "first_n"}
    config["custom_dataset"] = lambda **_: DatasetDict(
        {split: Dataset.from_list(get()) for split, get in read.items() if split in named}
    )
    with _quiet("lm_eval.api.task", "lm_eval.config.task"):
        task = ConfigurableTask(config=config)
    shots = task.fewshot_cfg
    for part in ("doc_to_text", "doc_to_choice", "doc_to_target"):
        if (template := getattr(shots, part)) is not None:
            setattr(shots, part, _once(getattr(task, part), template))
    return task


def _once(render: Callable[[Any, Any], Any], template: Any) -> Callable[[Any], Any]:
    """Renders an example once and not before every question; the task keeps its examples, so their ids stay theirs."""
    done: dict[int, Any] = {}

    def rendered(example: Any) -> Any:
        if id(example) not in done:
            done[id(example)] = render(example, template)
        return done[id(example)]

    return rendered


@functools.cache
def _lm_eval() -> None:
    """Imports the one version that scores hang on, and lets it compile each template once, not once a document.

    Raises UserError if another version is installed.
    """
    import lm_eval
    import lm_eval.utils

    if lm_eval.__version__ != LM_EVAL:
        raise UserError(
            f"these tasks are those of lm-eval {LM_EVAL}, and {lm_eval.__version__} is installed: "
            f"pip install lm-eval=={LM_EVAL}"
        )
    lm_eval.utils.env.from_string = functools.lru_cache(maxsize=1024)(lm_eval.utils.env.from_string)


@contextmanager
def _quiet(*loggers: str) -> Iterator[None]:
    """Holds back advice that these loggers have for authors of tasks; errors pass."""
    levels = {name: logging.getLogger(name).level for name in loggers}
    for name in loggers:
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        yield
    finally:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)
