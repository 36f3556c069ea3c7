"""The settings of an online run. The defaults are the paper's; what its code does otherwise is a setting.

Paper: "RLHF Workflow: From Reward Modeling to Online RLHF" (arXiv 2405.07863), Algorithm 2, section 3.2 and Table 7.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import Field, ValidationError, ValidationInfo, field_validator, model_validator

from rlhf_bench.harness.config import Config, read_config
from rlhf_bench.harness.errors import UnknownName
from rlhf_bench.trainers.filters import Filters
from rlhf_bench.trainers.online.effects import idle, within
from rlhf_bench.trainers.online.notify import NotifyConfig
from rlhf_bench.trainers.recipes import DPORecipe, SFTRecipe

PRESETS = Path(__file__).parent / "presets"
Stage = Literal["answers", "score", "pair", "train", "measure"]
STAGES: tuple[Stage, ...] = get_args(Stage)
FRESH = "fresh_prompts"
RETRIED = "retried"
"""Context of the validation of a loop's settings as a retry changes them: those of the loop may act elsewhere."""
TOURNAMENTS = ("pm", "openai", "llm", "scripted", "replay")
"""Kinds of `reward` that say which of two answers is better, and give none a number."""
ASKED = ("openai", "llm")
"""Those of them that are language models, whose calls can fail."""
FIXED = (
    "name",
    "model",
    "iterations",
    "seed",
    "prompts",
    "prompts_per_iteration",
    "preferences",
    "filters",
    "contaminated",
    "reward",
    "answers.engine",
    "policy",
    "suite",
    "protocol",
    "judge",
    "limit",
    "launch",
    "on_hold",
    "retries",
    "partial",
    "patience_s",
    "probes",
    "notify",
)
"""What a retry does not change: the line that it is on, what it learns from, and what it is measured by."""


class AnswersConfig(Config):
    """How the policy answers: n answers a prompt, an equal share at each temperature (paper: 8, at 1.0 and 0.7).

    `policies` share the n answers too, to explore further: "current" (the policy that the iteration improves),
    "initial" (π0), "previous" (what the iteration before improved), or any model's name. Each answer has a seed of its
    own. `engine` generates them, and answers the suites: auto (vLLM where it is installed and a GPU is there), hf, vllm
    or such as vllm:tensor=2,data=4; what auto means is settled when the loop begins.
    """

    n: int = Field(8, ge=2)
    temperatures: tuple[Annotated[float, Field(ge=0)], ...] = Field((1.0, 0.7), min_length=1)
    policies: tuple[str, ...] = Field(("current",), min_length=1)
    top_p: float = Field(1.0, gt=0, le=1)
    max_tokens: int = Field(2048, ge=1)
    engine: str = "auto"
    dtype: str = "auto"

    @model_validator(mode="after")
    def _shares_are_equal(self) -> AnswersConfig:
        shares = len(self.temperatures) * len(self.policies)
        if self.n % shares:
            of = f"{len(self.temperatures)} temperatures"
            of += f" × {len(self.policies)} policies" if len(self.policies) > 1 else ""
            raise ValueError(f"n is {self.n}: it must be a multiple of the {of}")
        if not any(self.temperatures) and len(set(self.policies)) == 1:
            raise ValueError("at temperature 0 all answers to a prompt are the same: give one above it")
        return self


class PairsConfig(Config):
    """How answers become pairs: `length_penalty` λ in r − λ·characters (paper's concise variant: 0.001).

    Answers cut at the token limit take no part; with `cut_may_lose` one may be the rejected answer, never the chosen.
    """

    length_penalty: float = Field(0.0, ge=0)
    min_margin: float = Field(0.0, ge=0)
    cut_may_lose: bool = False


class LoopConfig(Config):
    """One online run (the paper: three iterations of 20,000 prompts).

    `method` dpo trains on best against worst; sft on the best answers alone (rejection sampling, best-of-n).
    `preferences` names a file of pairs that take the place of answers and rewards: offline DPO, sliced by iteration.
    Of these `filters` leaves out what `rlhf-bench data filter` does, under the same names.
    `reward` is a reward model, or pm:MODEL, openai:MODEL or llm:MODEL, which rank a prompt's answers in a tournament.
    `contaminated` prompts, which share 8 words in a row with a benchmark's question, are dropped unless it says keep.
    `reference` of DPO: π0 as in the paper, or the policy that the iteration improves, as in the paper's code.

    `on_hold` is what follows a verdict that is not promote: continue from the champion, stop, retry the iteration with
    the next of the `retries` (settings by dotted key, and fresh_prompts: true), or follow: go on from the candidate
    though the champion stays, which is what a loop without a gate does.
    A judge behind an endpoint that does not answer is waited for, `patience_s` seconds in all in a stage; then the loop
    ends, to go on when it is started again. `partial` lets it train and decide although a judge failed on some of the
    answers: those take no part in training, and count at their worst in the verdict.
    `launch` has a command in front of which a stage runs in a process of its own: "" for a plain one, "torchrun
    --nproc-per-node 8", "srun --gres=gpu:8".
    `probes` are a few prompts that every candidate answers, to read side by side: packaged, a file, or null for none.
    `notify` is who is told. These five may change while a loop runs: none of them changes a result, but for `partial`
    where a judge failed. A setting that has no effect under the others, in no retry either, is refused.
    """

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    model: str = "champion"
    method: Literal["dpo", "sft"] = "dpo"
    reward: str = "demo-reward"
    prompts: str = "demo"
    preferences: str | None = None
    filters: Filters = Filters()
    prompts_per_iteration: int = Field(20_000, ge=1)
    iterations: int = Field(3, ge=1)
    contaminated: Literal["drop", "keep"] = "drop"
    answers: AnswersConfig = AnswersConfig()
    pairs: PairsConfig = PairsConfig()
    dpo: DPORecipe = DPORecipe()
    sft: SFTRecipe = SFTRecipe()
    reference: Literal["initial", "previous"] = "initial"
    backend: str = "trl"
    suite: str = "demo"
    protocol: str = "paper"
    judge: str = "demo-reward"
    limit: int | None = Field(None, ge=1)
    policy: str = "demo"
    on_hold: Literal["stop", "continue", "retry", "follow"] = "continue"
    retries: tuple[dict[str, Any], ...] = ()
    partial: bool = Field(False, exclude=True)
    patience_s: float = Field(600.0, ge=0, allow_inf_nan=False, exclude=True)
    launch: dict[Stage, str] = Field({}, exclude=True)
    probes: str | None = Field("packaged", exclude=True)
    notify: NotifyConfig = Field(NotifyConfig(), exclude=True)
    seed: int = 0

    @field_validator("launch")
    @classmethod
    def _commands_are_whole(cls, launch: dict[Stage, str]) -> dict[Stage, str]:
        for command in launch.values():
            shlex.split(command)
        return launch

    @model_validator(mode="after")
    def _settings_have_an_effect(self, info: ValidationInfo) -> LoopConfig:
        if info.context == RETRIED:
            return self
        if (self.on_hold == "retry") != bool(self.retries):
            raise ValueError("retries and on_hold: retry go together: give both, or neither")
        _, *retried = self.attempts()
        first = self.model_copy(update={"on_hold": "stop", "retries": ()})
        for number, changed in enumerate(retried):
            if changed == first and not self.fresh(number):
                raise ValueError(f"retries.{number} changes nothing: give it a setting, or fresh_prompts: true")
        tried = [idle(changed) for changed in retried]
        for name, why in idle(self).items():
            if all(name in each for each in tried):
                raise ValueError(f"{name} has no effect, since {why}: leave it out")
        for number, each in enumerate(tried):
            for name, why in each.items():
                if any(within(name, key) for key in self.retries[number]):
                    raise ValueError(f"retries.{number}: {name} has no effect, since {why}: leave it out")
        return self

    @property
    def ranks(self) -> bool:
        """Whether the reward compares answers, and gives none a number."""
        kind, colon, _ = self.reward.partition(":")
        return bool(colon) and kind in TOURNAMENTS

    @property
    def asks(self) -> bool:
        """Whether the reward or the judge is a language model, whose calls can fail."""
        specs = (self.judge,) if self.preferences is not None else (self.judge, self.reward)
        return any(kind in ASKED and name for kind, _, name in (spec.partition(":") for spec in specs))

    def retry(self, number: int) -> LoopConfig:
        """These settings as the retry of this number (from 0) changes them. Raises ValueError where it cannot."""
        changes = dict(self.retries[number])
        if not isinstance(changes.pop(FRESH, False), bool):
            raise ValueError(f"retries.{number}.{FRESH} is true or false")
        values: dict[str, Any] = {**_values(self), "on_hold": "stop", "retries": ()}
        for key, value in changes.items():
            held = [key.partition(".")[0], key]
            inner = [f"{key}.{name}" for name in value] if isinstance(value, dict) else []
            if any(name in FIXED for name in (*held, *inner)):
                raise ValueError(f"retries.{number} cannot change {key}: it is fixed for the whole loop")
            try:
                values = _with(values, key.split("."), value)
            except KeyError:
                raise ValueError(f"retries.{number} has no setting named '{key}'") from None
        try:
            return LoopConfig.model_validate(values, context=RETRIED)
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            where, why = ".".join(map(str, first["loc"])), first["msg"].removeprefix("Value error, ")
            named = [key for key in changes if within(key, where) or within(where, key)]
            told = f"{named[0]} {changes[named[0]]!r}: {why}" if named else why
            raise ValueError(f"retries.{number}: {told}") from None

    def attempts(self) -> tuple[LoopConfig, ...]:
        """These settings, and as each retry changes them."""
        return (self, *(self.retry(number) for number in range(len(self.retries))))

    def fresh(self, number: int) -> bool:
        """Whether the retry of this number asks prompts that no iteration has."""
        return bool(self.retries[number].get(FRESH, False))


def _values(config: Config) -> dict[str, Any]:
    return {name: getattr(config, name) for name in type(config).model_fields}


def _with(values: Mapping[str, Any], path: Sequence[str], value: Any) -> dict[str, Any]:
    """The values with the one at `path` replaced, not checked yet. Raises KeyError for a path that leads nowhere."""
    name, *rest = path
    inner = values[name]
    if not rest:
        return {**values, name: value}
    if not isinstance(inner, Config | dict):
        raise KeyError(rest[0])
    return {**values, name: _with(_values(inner) if isinstance(inner, Config) else inner, rest, value)}


def packaged() -> list[str]:
    """The names of the loops that ship."""
    return sorted(path.stem for path in PRESETS.glob("*.yaml"))


def loop_config(source: str, overrides: Sequence[str] = ()) -> tuple[LoopConfig, Path]:
    """The loop in this YAML file, or the packaged one of this name, and the file. Raises UserError, UnknownName."""
    path = Path(source)
    if not path.exists() and path.suffix not in (".yaml", ".yml"):
        if source not in packaged():
            raise UnknownName("loop", source, packaged(), "A YAML file will do too.")
        path = PRESETS / f"{source}.yaml"
    return read_config(LoopConfig, path, overrides), path


def settings_of(config: LoopConfig) -> Mapping[str, Any]:
    """What fixes the results of a loop, as it is kept and compared; the number of iterations may grow."""
    found: dict[str, Any] = json.loads(config.model_dump_json(exclude_defaults=True, exclude={"iterations"}))
    return found
