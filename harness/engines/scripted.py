"""Engines without a model: for dry runs, documentation and tests, and to check that a benchmark grades its own gold."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from rlhf_bench.harness.codec import digest
from rlhf_bench.harness.errors import UnknownName, UserError
from rlhf_bench.harness.types import Completion, Prompt, Request

WRONG_LOGPROB = -10.0


@dataclass(frozen=True)
class ScriptedEngine:
    """Answers by rule.

    `scripted:echo` says what it was asked last, `scripted:oracle` the reference, `scripted:empty` nothing, and
    `scripted:fail` fails on every request. A continuation has log-probability 0 if it is what the engine would say
    (spaces around it aside), else -10.
    """

    name: str
    references: Mapping[str, str] = field(default_factory=dict, repr=False)

    @property
    def checkpoint(self) -> str:
        """Stands where other engines name their weights."""
        return self.name

    @property
    def identity(self) -> str:
        """A digest of the rule, and of the references where they are the answers."""
        return digest([self.name, dict(self.references)])

    @property
    def manifest(self) -> dict[str, str]:
        """What a report says about this engine."""
        return {"engine": "scripted", "checkpoint": self.name}

    def generate(self, requests: Sequence[Request]) -> Iterator[Completion]:
        """One completion for each request, in order."""
        for request in requests:
            yield self._complete(request)

    def _complete(self, request: Request) -> Completion:
        place = request.sample_id, request.index
        if self.name == "scripted:fail":
            return Completion(*place, "", "error", 0, why="scripted:fail fails on every request")
        if self.name == "scripted:oracle" and request.sample_id not in self.references:
            return Completion(*place, "", "error", 0, why="scripted:oracle has no reference for this sample")
        answer = self._answer(request)
        if request.continuation is None:
            return Completion(*place, answer, "stop", len(answer.split()))
        greedy = request.continuation.strip() == answer.strip()
        logprob = 0.0 if greedy else WRONG_LOGPROB
        tokens = len(request.continuation.split())
        return Completion(*place, request.continuation, "stop", tokens, logprob=logprob, greedy=greedy)

    def _answer(self, request: Request) -> str:
        if self.name == "scripted:oracle":
            return self.references[request.sample_id]
        return _last_words(request.prompt) if self.name == "scripted:echo" else ""


RULES = ("echo", "oracle", "empty", "fail")


def scripted_engine(name: str, references: Callable[[], Mapping[str, str]] | None = None) -> ScriptedEngine:
    """The engine `scripted:NAME`. `references` gives each sample's reference by its id; only the oracle calls it.

    Raises UnknownName for another name, and UserError for an oracle without references.
    """
    if name not in RULES:
        raise UnknownName("scripted engine", name, RULES)
    if name != "oracle":
        return ScriptedEngine(f"scripted:{name}")
    if references is None:
        raise UserError("scripted:oracle answers with a suite's references: use it where a suite is run")
    return ScriptedEngine("scripted:oracle", dict(references()))


def _last_words(prompt: Prompt) -> str:
    """The last line of a text, or the last thing that the user said."""
    if isinstance(prompt, str):
        return prompt.strip().rpartition("\n")[2]
    return next((message.content for message in reversed(prompt) if message.role == "user"), "")
