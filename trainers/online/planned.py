"""What a loop will do, before it starts: how much of everything, for how long, at what cost, and what is done already.

Counts follow from the settings. Tokens of answers are at most `max_tokens` and are expected to be as many as answers
had so far, or EXPECTED_TOKENS. Hours are tokens over rates (`facts.Rate`): measured where this loop has been running,
else reckoned from a model's parameters and a table of machines, good to a factor of two or three. Everything here is
a function of values; `facts` finds them.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import reduce

from rlhf_bench.harness.errors import UserError
from rlhf_bench.harness.models import OPENAI
from rlhf_bench.harness.prices import CHARS_PER_TOKEN, Price, Usage
from rlhf_bench.trainers.online.config import STAGES, LoopConfig, Stage
from rlhf_bench.trainers.recipes import Training

EXPECTED_TOKENS = 700
"""Of an answer, where nothing is measured: as the training presets reckon (trainers/presets)."""
ANSWER_BYTES = CHARS_PER_TOKEN + 0.5
"""What a token of an answer takes in a file of JSON lines, its quoting included."""
RECORD_BYTES = 4096
"""A sample's record in the store, compressed, with its answer and grade."""
ADAM_BYTES = 12
"""A trained parameter in a training checkpoint: weight and AdamW's two moments, in float32."""
LORA_SHARE = 0.02
"""Adapters and their moments beside a model's weights, at most, for ranks up to 64."""


@dataclass(frozen=True, slots=True)
class Rate:
    """How fast something goes, in tokens a second, or answers a second where `unit` says so; None: nobody knows."""

    name: str
    per_s: float | None
    measured: bool = False
    unit: str = "tokens"


@dataclass(frozen=True, slots=True)
class Evaluation:
    """One evaluation of a new model on the policy's suites. `read` tokens are those that prompts do not share.

    `written` tokens are expected. `usd` is what the judge costs, None where its price is unknown; `seconds` is what
    such a run took, if any has run.
    """

    samples: int
    read: int
    written: int
    judge: str = ""
    calls: int = 0
    usd: float | None = 0.0
    seconds: float | None = None


@dataclass(frozen=True, slots=True)
class Facts:
    """What a plan is made from. `pool` is the number of prompts, or of given pairs; `prompt_tokens` their mean length.

    `parameters` and `checkpoint_bytes` are the policy's, None where it is not on this machine; the reward model is
    taken to be as large, and `reward_price` is that of a reward behind an API. `answer_tokens` is the mean of answers
    that are there already. `first_evaluations` counts the runs beside the candidate's that the first iteration still
    needs. `done` has the stages that have written their files, by iteration. `exact_tokens`: they were counted by the
    model's tokenizer, not by characters.
    """

    pool: int
    prompt_tokens: float
    machine: str
    rates: Mapping[str, Rate]
    evaluation: Evaluation
    first_evaluations: int = 1
    parameters: int | None = None
    checkpoint_bytes: int | None = None
    answer_tokens: float | None = None
    reward_price: Price | None = None
    done: Mapping[int, frozenset[Stage]] = field(default_factory=dict)
    free_bytes: int | None = None
    exact_tokens: bool = False


@dataclass(frozen=True, slots=True)
class Work:
    """What an iteration takes, or all of them. `pairs` and tokens named `_most` are upper bounds.

    `comparisons` of answers are made instead of `rewards` where the reward is a judge that compares. `hours` by stage
    and `usd` are of what is left to do; None where a rate or a price is unknown.
    """

    prompts: int = 0
    answers: int = 0
    prompt_tokens: int = 0
    answer_tokens: int = 0
    answer_tokens_most: int = 0
    rewards: int = 0
    comparisons: int = 0
    pairs: int = 0
    steps: int = 0
    trained_tokens: int = 0
    evaluations: int = 0
    samples: int = 0
    judge_calls: int = 0
    usd: float | None = 0.0
    hours: Mapping[Stage, float | None] = field(default_factory=dict)
    done: tuple[Stage, ...] = ()

    @property
    def hours_left(self) -> float | None:
        """Of all stages; None where one is unknown."""
        return _sum(self.hours.values())


@dataclass(frozen=True, slots=True)
class Disk:
    """Bytes on the disk: the candidates, what training keeps while it runs, rows and records; `free` is there now."""

    candidates: int | None
    training: int | None
    rows: int
    free: int | None

    @property
    def needed(self) -> int | None:
        """At most, at one time."""
        return None if self.candidates is None or self.training is None else self.candidates + self.training + self.rows


@dataclass(frozen=True, slots=True)
class LoopPlan:
    """What a loop will do. `notes` are sentences about what the numbers leave out."""

    name: str
    model: str
    machine: str
    parameters: int | None
    iterations: tuple[Work, ...]
    total: Work
    disk: Disk
    rates: tuple[Rate, ...]
    judge: str
    notes: tuple[str, ...]


def plan_of(config: LoopConfig, facts: Facts) -> LoopPlan:
    """The plan of the loop. Raises UserError where its prompts do not suffice."""
    fresh = sum(config.fresh(number) for number in range(len(config.retries)))
    need = config.prompts_per_iteration * config.iterations * (1 + fresh)
    if need > facts.pool:
        raise UserError(
            f"{config.iterations} iterations of {config.prompts_per_iteration} prompts need {need}, there are "
            f"{facts.pool}: lower prompts_per_iteration or iterations"
        )
    iterations = tuple(_iteration(config, facts, number) for number in range(1, config.iterations + 1))
    return LoopPlan(
        name=config.name,
        model=config.model,
        machine=facts.machine,
        parameters=facts.parameters,
        iterations=iterations,
        total=reduce(_added, iterations),
        disk=_disk(config, facts, iterations),
        rates=tuple(facts.rates.values()),
        judge=facts.evaluation.judge,
        notes=tuple(_notes(config, facts)),
    )


def recipe_of(config: LoopConfig) -> Training:
    """What trains the candidate."""
    return config.dpo if config.method == "dpo" else config.sft


def expected_tokens(config: LoopConfig, facts: Facts) -> float:
    """Of one answer."""
    return min(config.answers.max_tokens, facts.answer_tokens or EXPECTED_TOKENS)


def comparisons(n: int) -> int:
    """How many answers of a prompt are compared two at a time until the best and the worst of n are known, at most."""
    return n - 1 + max(0, math.ceil(n / 2) - 1)


def _iteration(config: LoopConfig, facts: Facts, number: int) -> Work:
    prompts, given = config.prompts_per_iteration, config.preferences is not None
    answers = 0 if given else prompts * config.answers.n
    length, recipe = expected_tokens(config, facts), recipe_of(config)
    compares = config.ranks
    matches = prompts * comparisons(config.answers.n) if compares and not given else 0
    trained = prompts * recipe.epochs * (1 if config.method == "sft" else 2) * (facts.prompt_tokens + length)
    evaluations = 1 + (facts.first_evaluations if number == 1 else 0)
    done = facts.done.get(number, frozenset())
    work = Work(
        prompts=prompts,
        answers=answers,
        prompt_tokens=0 if given else round(prompts * facts.prompt_tokens),
        answer_tokens=round(answers * length),
        answer_tokens_most=answers * config.answers.max_tokens,
        rewards=0 if compares else answers,
        comparisons=matches,
        pairs=prompts,
        steps=recipe.epochs * math.ceil(prompts / recipe.batch_size),
        trained_tokens=round(trained),
        evaluations=evaluations,
        samples=evaluations * facts.evaluation.samples,
        judge_calls=evaluations * facts.evaluation.calls,
        done=tuple(stage for stage in STAGES if stage in done),
    )
    paid = config.reward.startswith(OPENAI)
    return replace(work, usd=_cost(work, facts, length, paid), hours=_hours(config, work, facts, length, paid))


def _cost(work: Work, facts: Facts, length: float, paid: bool) -> float | None:
    """What is left to pay, in US dollars; `paid`: the reward is asked behind an API."""
    costs: list[float | None] = []
    if "measure" not in work.done and facts.evaluation.calls:
        costs.append(None if facts.evaluation.usd is None else work.evaluations * facts.evaluation.usd)
    if "score" not in work.done and work.comparisons and paid:
        usage = Usage(
            work.comparisons, round(work.comparisons * (facts.prompt_tokens + 2 * length)), 0, work.comparisons
        )
        costs.append(None if facts.reward_price is None else facts.reward_price.of(usage))
    return _sum(costs)


def _hours(config: LoopConfig, work: Work, facts: Facts, length: float, paid: bool) -> dict[Stage, float | None]:
    """By stage what is left; making pairs takes nothing worth counting, and an API's time is not known."""
    rates = facts.rates
    read, written = rates["read"].per_s, rates["write"].per_s
    evaluated = facts.evaluation.seconds
    if evaluated is None:
        evaluated = _sum((_over(facts.evaluation.read, read), _over(facts.evaluation.written, written)))
    answered = _over(work.answers, rates["answers"].per_s) if "answers" in rates else None
    if answered is None:
        answered = _sum((_over(work.answer_tokens, written), _over(work.prompt_tokens, read)))
    scored = _over(work.rewards, rates["rewards"].per_s) if "rewards" in rates and work.rewards else None
    if scored is None:
        texts = work.comparisons * (facts.prompt_tokens + 2 * length) if work.comparisons else work.prompt_tokens
        scored = _over(texts + work.rewards * length, read)
    trained = _over(work.trained_tokens, rates["train"].per_s)
    if config.method == "dpo" and config.dpo.loss != "simpo":  # the reference reads every pair once
        trained = _sum((trained, _over(work.trained_tokens / config.dpo.epochs, read)))
    seconds: dict[Stage, float | None] = {
        "answers": answered if work.answers else 0.0,
        "score": scored if work.answers and not paid else 0.0,
        "pair": 0.0,
        "train": trained,
        "measure": None if evaluated is None else work.evaluations * evaluated,
    }
    return {stage: 0.0 if stage in work.done else _over(value, 3600.0) for stage, value in seconds.items()}


def _disk(config: LoopConfig, facts: Facts, iterations: Sequence[Work]) -> Disk:
    """Candidates are all kept; a training keeps `keep` checkpoints with its optimiser's state until it is done."""
    recipe, size = recipe_of(config), facts.checkpoint_bytes
    kept = None
    if size is not None and facts.parameters is not None:
        state = LORA_SHARE * size if recipe.lora is not None else ADAM_BYTES * facts.parameters
        kept = round((recipe.keep + 1) * state) + size  # one more while it is written, and the draft
    tokens = sum(
        2 * each.answer_tokens + 2 * each.prompt_tokens + each.trained_tokens / recipe.epochs for each in iterations
    )
    records = RECORD_BYTES * sum(each.samples + each.answers for each in iterations)
    missing = sum("train" not in each.done for each in iterations)
    return Disk(
        None if size is None else missing * size, kept, round(tokens * ANSWER_BYTES) + records, facts.free_bytes
    )


def _notes(config: LoopConfig, facts: Facts) -> Sequence[str]:
    notes = []
    if not facts.exact_tokens:
        notes.append(f"prompt tokens at {CHARS_PER_TOKEN} characters each: {config.model} is not on this machine yet")
    if facts.answer_tokens is None and config.preferences is None and config.answers.max_tokens > EXPECTED_TOKENS:
        notes.append(f"answers are expected to have {EXPECTED_TOKENS} tokens, until the first are there")
    if config.contaminated == "drop" and config.preferences is None:
        notes.append("prompts that hold a benchmark's question are dropped when it begins, and are counted here")
    if config.retries:
        notes.append(
            f"an iteration that is not promoted is retried, up to {len(config.retries)} times: not counted here"
        )
    if config.on_hold in ("stop", "retry"):
        notes.append("it ends with the first iteration that is not promoted: this is the longest it can get")
    if facts.evaluation.judge and facts.evaluation.calls:
        notes.append("the time that a judge's calls take is not counted: it hangs on the endpoint")
    if facts.parameters is None:
        notes.append("without the model's size there are no hours and no size of a checkpoint")
    return notes


def _added(one: Work, other: Work) -> Work:
    values = {
        each.name: getattr(one, each.name) + getattr(other, each.name)
        for each in fields(Work)
        if each.name not in ("usd", "hours", "done")
    }
    hours = {stage: _sum((one.hours[stage], other.hours[stage])) for stage in one.hours}
    return Work(**values, usd=_sum((one.usd, other.usd)), hours=hours)


def _sum(values: Iterable[float | None]) -> float | None:
    found = list(values)
    return None if None in found else sum(value for value in found if value is not None)


def _over(amount: float | None, rate: float | None) -> float | None:
    return None if amount is None or not rate else amount / rate
