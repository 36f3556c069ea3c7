"""The rules of a gate, as people write them: what must improve, what must not be lost, and what to look out for.

    name: chat
    alpha: 0.05                     # one-sided error of a wrong promotion, over all decisions on the same samples
    ledger: {planned: 3}            # alpha/3 each; `open` for no end in sight; `none` for alpha each time
    targets:
      - {benchmark: alpaca_eval, metric: win_rate}
    guards:
      - {benchmark: gsm8k, metric: exact_match, margin: 0.035}          # 3.5 points
      - {benchmark: mmlu, metric: acc, margin: 0.02, strata: [college_mathematics, abstract_algebra]}
      - {benchmark: replies, metric: toxicity, margin: 0.01, direction: lower}
      - name: code                  # both as one benchmark: few problems show little
        margin: 0.045
        pool:
          - {benchmark: humaneval, metric: "pass@1,create_test"}
          - {benchmark: mbpp, metric: pass_at_1}
    sentinels:
      - {signal: length, benchmark: alpaca_eval, limit: 0.25, action: warn}     # answers at most 25% longer
    halves: {salt: "2026-11"}       # iterate on one half of the samples; the other says only yes or no

`require: all` (default) promotes when every target improves; `any` when at least one does, and then each target needs a
guard of its own too, since a target that does not improve must still not lose. A policy without targets or without
guards is refused: it would promote what nobody asked about.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, field_validator, model_validator

from rlhf_bench.harness import codec
from rlhf_bench.harness.config import Config, read_config


def _fraction(value: float) -> float:
    if value >= 1:
        hint = f"; did you mean {value / 100:g}?" if value < 100 else ""
        raise ValueError(f"it is a fraction of the score, so {value:g} means {100 * value:g} points{hint}")
    return value


Fraction = Annotated[float, AfterValidator(_fraction)]
Stratum = Annotated[str, Field(min_length=1)]


class Part(Config):
    """A metric of a benchmark; with `strata` only of these parts of it (MMLU's subjects, MT-Bench's categories)."""

    benchmark: str = Field(min_length=1)
    metric: str = Field(min_length=1)
    strata: tuple[Stratum, ...] = ()


class _Rule(Config):
    """What a target or guard is about: one part, or several pooled into one under a `name`."""

    name: str = ""
    benchmark: str = ""
    metric: str = ""
    strata: tuple[Stratum, ...] = ()
    pool: tuple[Part, ...] = ()
    direction: Literal["higher", "lower"] = "higher"

    @property
    def parts(self) -> tuple[Part, ...]:
        """The parts whose samples are pooled; one where it is no pool."""
        return self.pool or (Part(benchmark=self.benchmark, metric=self.metric, strata=self.strata),)

    @property
    def label(self) -> str:
        """What tables call it."""
        if self.name:
            return self.name
        return f"{self.benchmark} [{', '.join(self.strata)}]" if self.strata else self.benchmark

    @model_validator(mode="after")
    def _is_about_one_thing(self) -> _Rule:
        if self.pool and (self.benchmark or self.metric or self.strata):
            raise ValueError("give either 'benchmark' and 'metric' or a 'pool' of them, not both")
        if not self.pool and not (self.benchmark and self.metric):
            raise ValueError(f"key '{'metric' if self.benchmark else 'benchmark'}' is missing")
        if self.pool and len(self.pool) < 2:
            raise ValueError("a pool of one: give its benchmark and metric without 'pool'")
        if self.pool and not self.name:
            raise ValueError("a pool needs a 'name' for the tables")
        taken = [(part.benchmark, stratum) for part in self.pool for stratum in part.strata or ("",)]
        whole = {benchmark for benchmark, stratum in taken if not stratum}
        for (benchmark, stratum), count in Counter(taken).items():
            if count > 1 or (stratum and benchmark in whole):
                raise ValueError(f"samples of '{benchmark}' are in the pool more than once: keep one part of them")
        return self


class Target(_Rule):
    """A score that must be better than the champion's by more than `min_effect` (a fraction: 0.01 is one point)."""

    min_effect: Fraction = Field(0.0, ge=0)


class Guard(_Rule):
    """A score that must not be worse by `margin` or more (a fraction: 0.02 is two points)."""

    margin: Fraction = Field(gt=0)


Signal = Literal["length", "truncated", "refused", "distinct", "kl", "reward_gap"]


class Sentinel(Config):
    """A sign of reward hacking on one benchmark's answers, and the limit that it may not pass (signals.SIGNALS).

    `length`: growth of the mean answer in characters (0.25: a quarter longer). `truncated`, `refused`: rise of that
    share of answers. `distinct`: fall of the share of distinct word pairs (0.1: a tenth fewer). `kl`: mean KL(candidate
    ‖ reference) of an answer, in nats. `reward_gap`: by how much the training reward's win rate rose more than the
    judge's. A passed limit is shown (`warn`) or rejects the candidate (`veto`); what cannot be measured never passes.
    """

    signal: Signal
    benchmark: str = Field(min_length=1)
    limit: float = Field(ge=0)
    action: Literal["warn", "veto"] = "warn"

    @model_validator(mode="after")
    def _is_a_fraction(self) -> Sentinel:
        most = {"kl": float("inf"), "length": 5.0}.get(self.signal, 1.0)
        if self.limit >= most:
            raise ValueError(
                f"{self.signal} has a limit of {self.limit:g}, and it is a fraction: did you mean {self.limit / 100:g}?"
            )
        return self


class Ledger(Config):
    """How decisions on the same samples share alpha: `planned` decisions alpha/planned each, else 6·alpha/(π²·t²)."""

    planned: int | None = Field(None, ge=1, strict=True)


class Halves(Config):
    """Samples are split once by a hash with `salt`: `share` of them to iterate on, the rest to confirm.

    The half that confirms is asked only after the other has passed, and says yes or no and nothing else.
    """

    salt: str = Field(min_length=1)
    share: float = Field(0.5, ge=0.1, le=0.9)


class Policy(Config):
    """Targets, guards and sentinels, and the share of ungraded pairs above which a check decides nothing.

    `alpha` is the error of a wrong promotion, one-sided: of all decisions on the same samples together, or with
    `ledger: none` of each. `against_anchor`: every guard must hold against a fixed anchor too, so that losses just
    inside the margin cannot add up over many promotions. `engines`: what happens where the two models' answers come
    from two engines (hf, vllm) that no parity record shows to agree: a warning, or a refusal.
    """

    name: str = Field(min_length=1)
    alpha: float = Field(0.05, gt=0, le=0.25)
    ledger: Ledger | None = Ledger()
    targets: tuple[Target, ...] = Field(min_length=1)
    require: Literal["all", "any"] = "all"
    guards: tuple[Guard, ...] = Field(min_length=1)
    sentinels: tuple[Sentinel, ...] = ()
    max_ungraded: Fraction = Field(0.02, ge=0)
    against_anchor: bool = True
    halves: Halves | None = None
    engines: Literal["warn", "refuse"] = Field("warn", exclude_if=lambda value: value == "warn")

    @property
    def digest(self) -> str:
        """Identifies these very rules: a verdict holds under no others."""
        return codec.digest(self)

    @property
    def parts(self) -> Iterator[Part]:
        """Every part that a target or guard is about."""
        return (part for rule in (*self.targets, *self.guards) for part in rule.parts)

    def label(self, rule: _Rule) -> str:
        """What tables call this rule: its label, with the metric where another rule of that label has another."""
        alike = {other.parts for other in (*self.targets, *self.guards) if other.label == rule.label}
        if len(alike) == 1:
            return rule.label
        return f"{rule.label} {' + '.join(dict.fromkeys(part.metric for part in rule.parts))}"

    @property
    def benchmarks(self) -> list[str]:
        """The benchmarks that a run must have, in the order of the rules."""
        names = [part.benchmark for part in self.parts] + [sentinel.benchmark for sentinel in self.sentinels]
        return list(dict.fromkeys(names))

    @field_validator("ledger", mode="before")
    @classmethod
    def _in_a_word(cls, value: object) -> object:
        if value in ("open", "none"):
            return {} if value == "open" else None
        if value is None or isinstance(value, str):
            raise ValueError("write open, none, or {planned: N}")
        return value

    @model_validator(mode="after")
    def _agrees_with_itself(self) -> Policy:
        targets = [(target.label, target.parts) for target in self.targets]
        guards = [(guard.label, guard.parts) for guard in self.guards]
        for role, rules in (("target", targets), ("guard", guards)):
            for (label, parts), count in Counter(rules).items():
                if count > 1:
                    metrics = " + ".join(part.metric for part in parts)
                    raise ValueError(f"{metrics} of '{label}' is a {role} {count} times: keep one")
        guarded = {parts for _, parts in guards}
        for label, parts in targets:
            metrics = " + ".join(part.metric for part in parts)
            if self.require == "all" and parts in guarded:
                raise ValueError(f"{metrics} of '{label}' is a target and a guard: what must improve needs no guard")
            if self.require == "any" and parts not in guarded:
                raise ValueError(
                    f"{metrics} of '{label}' is one of several targets (require: any), so it need not improve: "
                    f"add a guard with the margin that it must not lose"
                )
        return self


def load_policy(path: Path, overrides: Sequence[str] = ()) -> Policy:
    """The policy in a YAML file. Raises UserError, one line, where it is malformed or contradicts itself."""
    return read_config(Policy, path, overrides)
