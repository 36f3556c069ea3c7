"""A language model as judge. Judges are engines too: a judgment is a Completion, asked through the store.

So an API judge, a local judge and a scripted one are the same code, a judgment that was paid for once is never paid
for again, and the template alone says which benchmark's judge it is.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Generic, TypeVar

import yaml

from rlhf_bench.harness.codec import digest
from rlhf_bench.harness.engines import Engine
from rlhf_bench.harness.engines.reply import may_pass
from rlhf_bench.harness.engines.stored import stored_or_asked
from rlhf_bench.harness.errors import Outage, UserError
from rlhf_bench.harness.judges import Asks
from rlhf_bench.harness.judges.readers import LEAST_MASS, Unreadable, first_preferred, is_switched, ranking, reader
from rlhf_bench.harness.progress import Track, silent
from rlhf_bench.harness.store import Store
from rlhf_bench.harness.types import Battle, Completion, Conversation, Message, Request, Role, Sampling, Score

T = TypeVar("T")
REASKS = 2
_RANKING = {"json_parser": {"annotation_key": "ordered_models"}, "ranking_parser": {"model_1_name": "m"}}
"""The parsers whose semantics readers.ranking has."""
_ROLES: Mapping[str, Role] = {"system": "system", "user": "user", "assistant": "assistant"}


@dataclass(frozen=True, slots=True)
class Judgment(Generic[T]):
    """A judge's last reply to a request and what it says; `value` None is no verdict, and `why` says why."""

    request: Request
    completion: Completion
    value: T | None
    why: str = ""


def ask(
    requests: Iterable[Request], read: Callable[[Completion], T], engine: Engine, store: Store
) -> Iterator[Judgment[T]]:
    """Each distinct request with its judgment, in any order; `request` is as given.

    A reply that `read` finds no verdict in (Unreadable with `again`) is asked for again at most twice, each time with
    another seed; all replies are stored. Raises what the engine raises, once the judgments before it are given.
    """
    waiting = {request: request for request in requests}
    for attempt in range(REASKS + 1):
        further: dict[Request, Request] = {}
        for asked, completion in stored_or_asked(waiting, engine, store):
            request = waiting[asked]
            if completion.finish_reason == "error":
                yield Judgment(request, completion, None, completion.why or "the judge failed")
                continue
            try:
                yield Judgment(request, completion, read(completion))
            except Unreadable as error:
                if error.again and attempt < REASKS:
                    further[_reseeded(request, attempt + 1)] = request
                else:
                    asked_often = f" (asked {attempt + 1} times)" if attempt else ""
                    yield Judgment(request, completion, None, f"{error}{asked_often}")
        waiting = further


def ask_each(
    asked: Mapping[str, Sequence[Request]], read: Callable[[Completion], T], judge: Asks
) -> Iterator[tuple[str, list[Judgment[T]]]]:
    """Each name with the judgments of its requests, in their order, once all of them are there."""
    owner = {request: name for name, requests in asked.items() for request in requests}
    found: dict[Request, Judgment[T]] = {}
    for judgment in judge.ask(owner, read):
        found[judgment.request] = judgment
        name = owner[judgment.request]
        if all(request in found for request in asked[name]):
            yield name, [found[request] for request in asked[name]]


def fill(template: str, places: Mapping[str, str]) -> str:
    """`template` with each {place} filled in, once: what stands in an answer is never a place."""
    pattern = "|".join(re.escape(f"{{{name}}}") for name in places)
    return re.sub(pattern, lambda match: places[match[0][1:-1]], template)


@dataclass(frozen=True, slots=True)
class PairPrompt:
    """How a judge is asked which of two outputs is better: it answers with the `first` or the `second` name.

    `messages` hold {instruction}, {output_1} and {output_2}; `published_with` is the model that the official numbers
    are of; `seed` decides with the instruction which output is shown first. A prompt whose sampling has a function is
    answered with a ranking of both names, every other by the logprobs of them.
    """

    name: str
    messages: Conversation
    sampling: Sampling
    first: str
    second: str
    published_with: str = ""
    seed: int = 0

    def filled(self, instruction: str, output_1: str, output_2: str) -> Conversation:
        """The messages with their places filled in, once: what stands in an output is never a place or a role."""
        places = {"instruction": instruction, "output_1": output_1, "output_2": output_2}
        return tuple(Message(message.role, fill(message.content, places).strip()) for message in self.messages)


def weighted_prompt(name: str, configs: str, template: str) -> PairPrompt:
    """The PairPrompt of an alpaca_eval annotator that reads its verdict from logprobs (configs.yaml and template).

    Raises UserError for a configuration of another kind.
    """
    settings: Any = yaml.safe_load(configs)
    try:
        config = settings[name]
        asked, parser = config["completions_kwargs"], config["completion_parser_kwargs"]
        first, (second,) = parser["numerator_token"], set(parser["denominator_tokens"]) - {parser["numerator_token"]}
        if config["fn_completion_parser"] != "logprob_parser" or parser["is_binarize"]:
            raise ValueError
        sampling = Sampling(
            max_tokens=int(asked["max_tokens"]),
            temperature=float(asked["temperature"]),
            logprobs=int(asked["top_logprobs"]),
        )
        messages = _turns(template)
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"'{name}' is no alpaca_eval annotator that reads a preference from logprobs") from error
    return PairPrompt(name, messages, sampling, first, second, str(asked["model_name"]))


def ranking_prompt(name: str, configs: str, template: str) -> PairPrompt:
    """The PairPrompt of an alpaca_eval annotator that calls a function with a ranking (configs.yaml and template).

    Raises UserError for a configuration of another kind.
    """
    settings: Any = yaml.safe_load(configs)
    try:
        config = settings[name]
        asked = config["completions_kwargs"]
        if config["completion_parser_kwargs"] != {"parsers_to_kwargs": _RANKING}:
            raise ValueError
        sampling = Sampling(
            max_tokens=int(asked["max_tokens"]),
            temperature=float(asked["temperature"]),
            function=json.dumps({"tools": asked["tools"], "tool_choice": asked["tool_choice"]}),
        )
        messages = _turns(template)
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"'{name}' is no alpaca_eval annotator that ranks by a function call") from error
    return PairPrompt(name, messages, sampling, "m", "M", str(asked["model_name"]))


def _turns(template: str) -> Conversation:
    """The messages of a template in ChatML. Raises ValueError where one of the three places is missing."""
    turns = re.findall(r"<\|im_start\|>(\w+)\n(.*?)<\|im_end\|>", template, re.DOTALL)
    if not turns or any(f"{{{place}}}" not in template for place in ("instruction", "output_1", "output_2")):
        raise ValueError
    return tuple(Message(_ROLES[role], content.strip()) for role, content in turns)


class LLMJudge:
    """P(answer ≻ baseline) by AlpacaEval's weighted protocol, from any engine, or as the prompt's function ranks them.

    From an API: the logprobs of the two names among the first token's alternatives. With `scores`, from a local engine
    that scores given continuations: the same two probabilities exactly, however small, so there is no least mass.
    `also` of a score holds `judge_mass`, the probability on both names together, where it is by logprobs.
    Unless `partial`, questions that it failed on for reasons that may pass raise Outage, after all that it did say.
    """

    def __init__(
        self,
        engine: Engine,
        store: Store,
        prompt: PairPrompt,
        *,
        scores: bool = False,
        partial: bool = True,
        track: Track = silent,
    ) -> None:
        self.name = engine.name
        self.identity = digest([engine.identity, "pair", prompt, LEAST_MASS, scores])
        self._engine = engine
        self._store = store
        self._prompt = prompt
        self._scores = scores
        self._partial = partial
        self._track = track

    @property
    def manifest(self) -> dict[str, str]:
        """What a report says about this judge: its engine's own, and the prompt."""
        asked = {"prompt": self._prompt.name, "prompt_digest": digest(self._prompt)}
        return self._engine.manifest | asked | {"published_with": self._prompt.published_with}

    def requests(self, battles: Sequence[Battle]) -> list[Request]:
        """What will be asked first, re-asks aside: what a plan is made of."""
        return [r for battle in battles if battle.answer != battle.baseline for r in self._requests(battle)]

    def prefer(self, battles: Sequence[Battle]) -> Iterator[Score]:
        """The preference of each battle, each judgment stored before it is given. Equal answers are a draw, unasked."""
        differing = [battle for battle in battles if battle.answer != battle.baseline]
        with self._track(f"judge {self.name}", len(differing)) as advance:
            yield from (Score(battle.sample_id, 0.5) for battle in battles if battle.answer == battle.baseline)
            for score in self._scored(differing) if self._scores else self._sampled(differing):
                yield score
                advance(1)

    def ask(self, requests: Iterable[Request], read: Callable[[Completion], T]) -> Iterator[Judgment[T]]:
        """Each distinct request with its judgment, each stored before it is given: a benchmark's own questions."""
        wanted = list(requests)
        with self._track(f"judge {self.name}", len(wanted)) as advance:
            for judgment in self._whole(ask(wanted, read, self._engine, self._store)):
                yield judgment
                advance(1)

    def _whole(self, judgments: Iterable[Judgment[T]]) -> Iterator[Judgment[T]]:
        """The judgments. Raises Outage at their end where some may come the next time, unless these will do."""
        asked, waiting = 0, []
        for judgment in judgments:
            asked += 1
            if judgment.completion.finish_reason == "error" and may_pass(judgment.completion.why):
                waiting.append(judgment.why)
            yield judgment
        if waiting and not self._partial:
            raise Outage(
                f"the judge {self.name} failed on {len(waiting)} of {asked} questions ({waiting[0]}); what it said is "
                "kept: run it again to ask for these alone"
            )

    def _sampled(self, battles: Sequence[Battle]) -> Iterator[Score]:
        asked: dict[Request, list[Battle]] = {}
        for battle in battles:
            asked.setdefault(self._requests(battle)[0], []).append(battle)
        for judgment in self._whole(ask(asked, self._read, self._engine, self._store)):
            for battle in asked[judgment.request]:
                yield self._score(battle, judgment.value, judgment.why)

    def _scored(self, battles: Sequence[Battle]) -> Iterator[Score]:
        asked = {battle.sample_id: self._requests(battle) for battle in battles}
        everything = [request for requests in asked.values() for request in requests]
        answers = dict(stored_or_asked(everything, self._engine, self._store))
        for battle in battles:
            pair = [answers[request] for request in asked[battle.sample_id]]
            failed = next((c.why or "the judge failed" for c in pair if c.finish_reason == "error"), "")
            values = {
                request.continuation or "": c.logprob for request, c in zip(asked[battle.sample_id], pair, strict=True)
            }
            try:
                known = {name: value for name, value in values.items() if value is not None}
                value = None if failed else first_preferred(known, self._prompt.first, self._prompt.second, 0.0)
                yield self._score(battle, value, failed)
            except Unreadable as error:
                yield self._score(battle, None, str(error))

    def _read(self, completion: Completion) -> tuple[float, float]:
        if self._prompt.sampling.function:
            return reader(ranking)(completion)
        if completion.why == "refused":
            raise Unreadable("the judge refused", again=False)
        return first_preferred(completion.top_logprobs, self._prompt.first, self._prompt.second, LEAST_MASS)

    def _score(self, battle: Battle, value: tuple[float, float] | None, why: str) -> Score:
        if value is None:
            return Score(battle.sample_id, None, why)
        first, mass = value
        preference = first if self._answer_is_first(battle) else 1.0 - first
        also = {} if self._prompt.sampling.function else {"judge_mass": min(mass, 1.0)}
        return Score(battle.sample_id, preference, also=also)

    def _requests(self, battle: Battle) -> list[Request]:
        outputs = (
            (battle.answer, battle.baseline) if self._answer_is_first(battle) else (battle.baseline, battle.answer)
        )
        messages = self._prompt.filled(instruction_of(battle.prompt), *outputs)
        request = Request(battle.sample_id, messages, self._prompt.sampling)
        if not self._scores:
            return [request]
        plain = replace(self._prompt.sampling, logprobs=0)
        names = (self._prompt.first, self._prompt.second)
        return [replace(request, sampling=plain, continuation=name, index=i) for i, name in enumerate(names)]

    def _answer_is_first(self, battle: Battle) -> bool:
        return is_switched(instruction_of(battle.prompt), self._prompt.seed)


def instruction_of(prompt: Conversation) -> str:
    """What was asked, as one text: a single turn as it stands, several each behind its role."""
    if len(prompt) == 1:
        return prompt[0].content
    return "\n\n".join(f"{message.role}: {message.content}" for message in prompt)


def _reseeded(request: Request, attempt: int) -> Request:
    return replace(request, sampling=replace(request.sampling, seed=request.sampling.seed + attempt))
