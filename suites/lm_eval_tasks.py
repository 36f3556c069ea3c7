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
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple, SupportsFloat, TypeAlias

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
from rlhf_bench.suites import lm_eval_code
from rlhf_bench.suites.data import Row, rows

Splits: TypeAlias = Mapping[str, Callable[[], Sequence[Row]]]
"""How each split's rows are read."""

LM_EVAL = "0.4.13"
MAX_TOKENS = 256
"""Where a task sets no limit on an answer; lm-eval's own default."""
_LOADED: dict[tuple[str, str], Any] = {}
_MAX_TOKENS_KEYS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")


class Part(NamedTuple):
    """One lm-eval task of a benchmark: its name, how it is built (given `fixed_shots`), and the stratum that it is."""

    task: str
    build: Callable[[bool], Any]
    stratum: str = ""


def lm_eval_benchmark(
    name: str,
    *,
    metric: str,
    kind: Kind,
    size: int,
    summary: str,
    tasks: Mapping[str, str],
    splits: Sequence[str],
    data: str = "",
    row: Callable[[Row], Row | None] = dict,
) -> Benchmark:
    """A benchmark that lm-eval defines by one task.

    `tasks` gives, by lm-eval task name, its YAML file below lm_eval/tasks; the first is asked unless the protocol names
    another. `splits` are the splits that these tasks read; split s is the pinned file "data/s" (`data` is the name
    where it is not given), and `row` brings a row of it into the form that the task reads, or leaves it out (None).
    `metric` is a key of lm-eval's results: "acc_norm", or "exact_match,flexible-extract" where there is a named filter.
    """
    needs = {split: f"{data or name}/{split}" for split in splits}
    read = {split: functools.partial(_split, pin, row) for split, pin in needs.items()}
    parts = [Part(task, functools.partial(task_of, yaml, read=read)) for task, yaml in tasks.items()]

    def asked(protocol: EvalProtocol) -> Sequence[Part]:
        variant = protocol.variants.get(name, parts[0].task)
        if variant not in tasks:
            raise UnknownName(f"variant of {name}", variant, tasks)
        return [part for part in parts if part.task == variant]

    found = benchmark_of(name, parts, metric=metric, kind=kind, size=size, summary=summary, asked=asked)
    return replace(found, needs=tuple(needs.values()))


def benchmark_of(
    name: str,
    parts: Sequence[Part],
    *,
    metric: str,
    kind: Kind,
    size: int,
    summary: str,
    version: str = f"lm-eval-{LM_EVAL}",
    asked: Callable[[EvalProtocol], Sequence[Part]] | None = None,
) -> Benchmark:
    """A benchmark whose samples are those of these tasks, one after the other, or only of those that `asked` picks.

    `size` 0 is not known before it is loaded; any other that is not the number of its samples is a UserError then.
    """
    by_name = {part.task: part for part in parts}

    @functools.cache
    def task(of: str, fixed_shots: bool = False) -> Any:
        return by_name[of].build(fixed_shots)

    def load(protocol: EvalProtocol) -> Sequence[Sample]:
        samples: list[Sample] = []
        for part in asked(protocol) if asked else parts:
            _LOADED[name, part.task] = loaded = task(part.task, protocol.fixed_shots)
            samples += load_samples(loaded, name, protocol, part.stratum)
        if size not in (0, len(samples)):
            raise UserError(f"{name} has {len(samples)} samples, expected {size}: its data are not the official ones")
        return samples

    def grade(answered: Sequence[Graded], judge: Any) -> Iterator[Score]:
        def one(graded: Graded) -> Score:
            return grade_sample(task(graded[0].tags["task"]), metric, *graded)

        runs_code = any(task(of).config.unsafe_code for of in {sample.tags["task"] for sample, _ in answered})
        yield from lm_eval_code.grade_programs(answered, one) if runs_code else map(one, answered)

    return Benchmark(name, version, metric, kind, size, summary, load, grade)


def loaded_task(benchmark: str, task: str) -> Any:
    """lm-eval's task of this name (a sample's tag "task") as this process last loaded it for the benchmark."""
    return _LOADED[benchmark, task]


def load_samples(task: Any, name: str, protocol: EvalProtocol, stratum: str = "") -> Iterator[Sample]:
    """One sample for each document of a lm-eval task, in order, with the requests that lm-eval would make.

    The number of shots is the protocol's for `name`, else the task's own. Raises UserError where the task has no such
    number of examples.
    """
    shots = protocol.shots.get(name, task.config.num_fewshot or 0)
    examples = len(task.sampler.df) if hasattr(task, "sampler") else 0
    if shots > examples:
        raise UserError(f"{name} has {examples} examples in its task {task.config.task}: {shots} shots are too many")
    task.set_fewshot_seed(protocol.seed)
    tags = {"task": task.config.task} | ({"stratum": stratum} if stratum else {})
    tags |= {"runs": "code"} if task.config.unsafe_code else {}
    for number, document in enumerate(task.eval_docs):
        context = task.fewshot_context(
            doc=document,
            num_fewshot=shots,
            system_instruction=protocol.system_prompt or None,
            apply_chat_template=protocol.chat_template,
            fewshot_as_multiturn=protocol.chat_template and protocol.fewshot_as_multiturn,
            chat_template=_turns if protocol.chat_template else None,
            gen_prefix=task.doc_to_prefix(document),
        )
        instances = task.construct_requests(doc=document, ctx=context, apply_chat_template=protocol.chat_template)
        identity = "/".join(filter(None, (name, stratum, str(number))))
        yield Sample(
            id=identity,
            requests=tuple(_requests(identity, task, instances, protocol.seed)),
            reference=_reference(task, document),
            tags=tags,
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
    """Every metric that is a number and whose mean over documents is reported, as "metric" or "metric,filter"."""
    from lm_eval.api.instance import Instance
    from lm_eval.api.metrics import mean

    if task.OUTPUT_TYPE == "generate_until":
        responses: list[list[Any]] = [[answer.text for answer in answers]]
    else:
        responses = [[(answer.logprob, bool(answer.greedy))] for answer in answers]
    instances = [
        Instance(request_type=task.OUTPUT_TYPE, doc=document, arguments=(), idx=index, resps=response)
        for index, response in enumerate(responses)
    ]
    found: dict[str, float] = {}
    aggregations = task.aggregation()
    for ensemble in task._filters:
        ensemble.apply(instances)
        graded = task.process_results(document, [instance.filtered_resps[ensemble.name] for instance in instances])
        suffix = "" if ensemble.name == "none" else f",{ensemble.name}"
        found |= {
            f"{key}{suffix}": float(value)
            for key, value in graded.items()
            if isinstance(value, SupportsFloat) and aggregations.get(key, mean) is mean
        }
    return found


def _requests(identity: str, task: Any, instances: Any, seed: int) -> Iterator[Request]:
    """What lm-eval's instances ask: a continuation for each choice, or an answer, repeated if the task repeats."""
    if task.OUTPUT_TYPE == "generate_until":
        context, settings = instances.arguments
        for index in range(task.config.repeats):
            yield Request(identity, _prompt(context), sampling(settings, seed + index), index=index)
    elif task.OUTPUT_TYPE in {"multiple_choice", "loglikelihood"}:
        for index, instance in enumerate(instances if isinstance(instances, list) else [instances]):
            context, continuation = instance.arguments
            yield Request(identity, _prompt(context), continuation=continuation, index=index)
    else:
        raise UserError(
            f"the lm-eval task {task.config.task} asks for {task.OUTPUT_TYPE}, which no engine here answers"
        )


def sampling(settings: Mapping[str, Any], seed: int) -> Sampling:
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


def _prompt(context: str | list[dict[str, str]]) -> Prompt:
    if isinstance(context, str):
        return context
    return tuple(Message(turn["role"], turn["content"]) for turn in context)  # type: ignore[arg-type]


def _turns(turns: list[dict[str, str]], *, add_generation_prompt: bool) -> list[dict[str, str]]:
    """Stands where lm-eval renders a conversation: ours is rendered by the engine."""
    return turns


def _reference(task: Any, document: dict[str, Any]) -> str:
    """The right answer as text: the right choice, or the target (the first, where several are right)."""
    target = task.doc_to_target(document)
    target = target[0] if isinstance(target, list) else target
    return str(task.doc_to_choice(document)[target] if isinstance(target, int) else target)


def _split(pin: str, row: Callable[[Row], Row | None]) -> list[Row]:
    return [made for one in rows(pin) if (made := row(one)) is not None]


def task_of(yaml: str, fixed_shots: bool, read: Splits) -> Any:
    """The task of a YAML file below lm_eval/tasks, over our rows."""
    require_lm_eval()
    import lm_eval.tasks
    from lm_eval.tasks._yaml_loader import load_yaml

    file = Path(lm_eval.tasks.__file__).parent / yaml
    return build_task(lambda resolved: load_yaml(file, resolve_func=resolved), fixed_shots, read)


def build_task(config_of: Callable[[bool], dict[str, Any]], fixed_shots: bool, read: Splits | None) -> Any:
    """lm-eval's task over our rows: in memory, with no call to the hub and no cache of `datasets` on disk.

    `config_of` gives the task's settings, with its functions imported or (False) by name. Without `read` the rows come
    from where the settings say.
    """
    from lm_eval.api.task import ConfigurableTask

    runs_code = config_of(False).get("unsafe_code", False)
    with lm_eval_code.code_eval_in_sandbox() if runs_code else nullcontext():
        config = config_of(True)
    if runs_code:
        lm_eval_code.refuse_other_means(config)
    config.pop("tag", None)
    if fixed_shots and _has_own_examples(config):
        config["fewshot_config"] = {**(config.get("fewshot_config") or {}), "sampler": "first_n"}
    if read is not None:
        config["custom_dataset"] = functools.partial(_in_memory, config, read)
    with _quiet("lm_eval.api.task", "lm_eval.config.task"):
        task = ConfigurableTask(config=config)
    shots = task.fewshot_cfg
    for part in ("doc_to_text", "doc_to_choice", "doc_to_target"):
        if (template := getattr(shots, part)) is not None:
            setattr(shots, part, _once(getattr(task, part), template))
    return task


def _in_memory(config: Mapping[str, Any], read: Splits, **_: Any) -> Any:
    """Of the splits in `read`, those that the task reads."""
    from datasets import Dataset, DatasetDict

    named = {config.get(f"{use}_split") for use in ("training", "validation", "test", "fewshot")}
    return DatasetDict({split: Dataset.from_list(list(get())) for split, get in read.items() if split in named})


def _has_own_examples(config: Mapping[str, Any]) -> bool:
    """Whether a task's examples are not among its questions: the first of those would give its own answer away."""
    given = config.get("fewshot_config") or {}
    split = given.get("split") or config.get("fewshot_split")
    if split is not None:
        return split not in (config.get("test_split") or config.get("validation_split"),)
    return given.get("samples") is not None or config.get("training_split") is not None


def _once(render: Callable[[Any, Any], Any], template: Any) -> Callable[[Any], Any]:
    """Renders an example once and not before every question; the task keeps its examples, so their ids stay theirs."""
    done: dict[int, Any] = {}

    def rendered(example: Any) -> Any:
        if id(example) not in done:
            done[id(example)] = render(example, template)
        return done[id(example)]

    vars(rendered)["template"] = template
    return rendered


@functools.cache
def require_lm_eval() -> None:
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
