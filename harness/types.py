"""The nouns: frozen, plain, and the same in memory and on disk.

    Benchmark.load ─► Sample ─► Request ─► Engine ─► Completion ─► Benchmark.grade ─► Score
    Sample + Completions + Score = Record ─► Estimate ─► Report;  two runs' Records ─► Comparison ─► Check ─► Verdict

Everything after a Record is computed from records, so it can be recomputed without a model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import Field

Role = Literal["system", "user", "assistant"]
FinishReason = Literal["stop", "length", "error"]
Kind = Literal["binary", "continuous"]
Outcome = Literal["promote", "reject", "inconclusive"]


Later = Field(exclude_if=lambda value: not value)
"""A field that was added later: empty, it is left out of the canonical form, so that every older digest holds."""


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation."""

    role: Role
    content: str


Conversation: TypeAlias = tuple[Message, ...]
Prompt: TypeAlias = str | Conversation
"""Text that is continued as it stands, or a conversation that the engine renders with its own chat template.

A conversation that ends with the assistant's turn is an answer begun, and is continued.
"""


@dataclass(frozen=True, slots=True)
class Sampling:
    """How to generate. `temperature` 0 is greedy; `stop` strings end an answer and are not part of it.

    `logprobs` asks for that many most probable alternatives of the first token. An API that knows no `seed` ignores it.
    `function`, JSON text of {"tools": [...], "tool_choice": {...}}, forces a call of that function: the answer's text
    is then the call's arguments. Only an API can.
    """

    max_tokens: int = 256
    temperature: float = 0.0
    top_p: float = 1.0
    stop: tuple[str, ...] = ()
    seed: int = 0
    logprobs: Annotated[int, Later] = 0
    function: Annotated[str, Later] = ""


@dataclass(frozen=True, slots=True)
class Request:
    """One question to an engine: generate after `prompt`, or, if `continuation` is set, score that continuation.

    `index` tells the requests of one sample apart (the number of the choice, or of the repeat).
    """

    sample_id: str
    prompt: Prompt
    sampling: Sampling = field(default_factory=Sampling)
    continuation: str | None = None
    index: int = 0


@dataclass(frozen=True, slots=True)
class Sample:
    """One item of a benchmark: what is asked, what would be right, and how it is grouped.

    `row` is the benchmark's own row in its official format. `tags` may hold "stratum" (fixed groups, reported apart),
    "cluster" (items that are not independent of each other) and "runs": "code" (grading runs the answer).
    """

    id: str
    requests: tuple[Request, ...]
    reference: str
    tags: Mapping[str, str] = field(default_factory=dict)
    row: Mapping[str, Any] = field(default_factory=dict)

    @property
    def prompt(self) -> Prompt:
        """The prompt of the first request: what a reader is shown."""
        return self.requests[0].prompt


@dataclass(frozen=True, slots=True)
class Completion:
    """An engine's answer to one request.

    `logprob` (nats, summed over the continuation's tokens) and `greedy` (whether greedy decoding would produce it) are
    set where a continuation was scored. `finish_reason` "error" says in `why` what failed; such an answer is no answer.
    `top_logprobs` holds the alternatives of the first token, where they were asked for; `served_by` is who answered, as
    an API says it: the model's id and, after a space, its fingerprint.
    """

    sample_id: str
    index: int
    text: str
    finish_reason: FinishReason
    tokens: int
    logprob: float | None = None
    greedy: bool | None = None
    why: str = ""
    top_logprobs: Annotated[Mapping[str, float], Later] = field(default_factory=dict)
    served_by: Annotated[str, Later] = ""


@dataclass(frozen=True, slots=True)
class Score:
    """The grade of one sample. `value` None is ungraded, never zero, and `why` says why.

    `also` holds the benchmark's other metrics of the same sample, by name.
    """

    sample_id: str
    value: float | None
    why: str = ""
    also: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Record:
    """One sample of one run, complete. `digest` identifies what was asked (requests and reference): the pairing key."""

    benchmark: str
    digest: str
    sample: Sample
    completions: tuple[Completion, ...]
    score: Score


@dataclass(frozen=True, slots=True)
class Battle:
    """A candidate's answer against a baseline's, for a judge."""

    sample_id: str
    prompt: Conversation
    answer: str
    baseline: str


@dataclass(frozen=True, slots=True)
class Estimate:
    """A score over a benchmark, with its interval at `level`. No mean where too little is graded; `why` says so.

    `cut` counts the samples with an answer that hit its length limit; they are graded as they are.
    """

    benchmark: str
    metric: str
    mean: float | None
    low: float | None
    high: float | None
    se: float | None
    graded: int
    ungraded: int
    level: float = 0.95
    method: str = ""
    why: str = ""
    cut: int = 0


@dataclass(frozen=True, slots=True)
class Comparison:
    """Candidate minus champion on the same samples, paired by digest.

    `low` and `high` bound the difference at `level`, two-sided; `p` is one-sided for "the candidate is better".
    `gained` and `lost` count the samples on which the candidate scored higher and lower.
    """

    benchmark: str
    metric: str
    kind: Kind
    candidate: float
    champion: float
    difference: float
    low: float
    high: float
    p: float
    paired: int
    gained: int
    lost: int
    ungraded: int
    unpaired: tuple[str, ...] = ()
    level: float = 0.95
    method: str = ""


@dataclass(frozen=True, slots=True)
class Check:
    """One line of a gate: a target that must improve, a guard that must not lose more than `margin`, or a sentinel.

    `low` and `high` are one-sided bounds at 1 - `level`; `p` is one-sided against the role's null hypothesis. Where
    lower is better a positive difference is a fall. Of a sentinel `difference` is what was measured and `margin` its
    limit, and "warn" is a limit passed that only warns. `benchmark` is the claim's label: a pool's name, or the
    benchmark with the strata it is about.
    """

    benchmark: str
    role: Literal["target", "guard", "sentinel"]
    metric: str
    difference: float | None
    low: float | None
    high: float | None
    margin: float
    p: float | None
    outcome: Literal["pass", "fail", "undecided", "warn"]
    against: str = "champion"
    reason: str = ""
    level: Annotated[float, Later] = 0.0
    pairs: Annotated[int, Later] = 0
    ungraded: Annotated[int, Later] = 0


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a gate decided, about exactly which candidate, against exactly which champion, by exactly which policy.

    `alpha` is the level that it was reached at. `generation` is the champion's when it was judged (0: outside of a
    line of champions), `items` the digest of each benchmark's samples, `decision` its number among the decisions on
    these items, and `spent` what it took of the error that they share.
    """

    outcome: Outcome
    checks: tuple[Check, ...]
    reasons: tuple[str, ...]
    candidate: str
    champion: str
    policy: str
    alpha: float
    runs: Mapping[str, str] = field(default_factory=dict)
    generation: Annotated[int, Later] = 0
    items: Annotated[Mapping[str, str], Later] = field(default_factory=dict)
    decision: Annotated[int, Later] = 0
    spent: Annotated[float, Later] = 0.0


@dataclass(frozen=True, slots=True)
class Preference:
    """A prompt with a better and a worse answer; `margin` is how much better, in the scorer's unit."""

    prompt: Conversation
    chosen: str
    rejected: str
    margin: float = 1.0
    tags: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """Weights on disk. `digest` covers weights, configuration, tokenizer and chat template, and is the identity."""

    path: str
    digest: str
    parent: str | None = None
    recipe: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class EvalProtocol:
    """How a benchmark is asked: the number of shots by benchmark, the template, the system prompt. Named and hashed.

    `fixed_shots`: every question stands behind the same examples, else they are drawn for each question by `seed`.
    `fewshot_as_multiturn`: with a chat template, examples are earlier turns, else they stand in the one user turn.
    `variants` names, by benchmark, which of its task definitions is asked, where it has more than one. `repeats` asks
    what is generated that many times, each with a seed of its own, and the repeats of a sample are one cluster;
    `temperature` replaces the benchmark's own, and `sampling_seed` is added to the seed of each answer.
    """

    name: str
    shots: Mapping[str, int] = field(default_factory=dict)
    chat_template: bool = False
    fewshot_as_multiturn: bool = True
    system_prompt: str = ""
    seed: int = 1234
    fixed_shots: bool = False
    variants: Mapping[str, str] = field(default_factory=dict)
    repeats: Annotated[int, Later] = 0
    temperature: Annotated[float, Later] = 0.0
    sampling_seed: Annotated[int, Later] = 0


Graded: TypeAlias = tuple[Sample, tuple[Completion, ...]]
Figure: TypeAlias = Callable[[Sequence[Record], Sequence[float]], Sequence[float]]
"""A metric that is no mean over samples, made one: from records and their own scores (none missing) a value for each
record, whose mean is the figure and whose spread is its error: the figure plus the record's influence on it."""


@dataclass(frozen=True, slots=True)
class Benchmark:
    """A benchmark is one value.

    `load(protocol)` gives all samples in their official order. `grade(answered, judge)` gives one Score for each
    answered sample, in any order; `judge` is None unless `judged`. `needs` names the pinned data files; `size` is the
    number of samples; `summary` is one line for people. `follow(sample, completions)` gives the requests that can
    only be written once those answers are known (a second turn); it is called after each round, until it gives none.
    `asks`: the judge must be one that can be asked in words (judges.Asks), as one that only compares cannot grade.
    `summarise(records)` gives further estimates, of what is no mean over samples; `figures` hold those that a gate can
    compare, by metric.
    """

    name: str
    version: str
    metric: str
    kind: Kind
    size: int
    summary: str
    load: Callable[[EvalProtocol], Sequence[Sample]]
    grade: Callable[[Sequence[Graded], Any], Iterator[Score]]
    judged: bool = False
    needs: tuple[str, ...] = ()
    follow: Callable[[Sample, tuple[Completion, ...]], tuple[Request, ...]] | None = None
    asks: bool = False
    summarise: Callable[[Sequence[Record]], list[Estimate]] | None = None
    figures: Mapping[str, Figure] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Suite:
    """Benchmarks that are run together."""

    name: str
    benchmarks: tuple[Benchmark, ...]
    summary: str = ""


@dataclass(frozen=True, slots=True)
class Report:
    """What a run found. `manifest` says what produced it: versions, seeds, digests, judge, protocol."""

    run_id: str
    model: str
    checkpoint: str
    suite: str
    protocol: str
    judge: str | None
    estimates: tuple[Estimate, ...]
    manifest: Mapping[str, Any] = field(default_factory=dict)
