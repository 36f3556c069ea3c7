"""The rules of a gate, as people write them: what must improve, and what must not be lost.

    name: demo
    alpha: 0.05                     # one-sided error of a wrong promotion
    targets:
      - {benchmark: demo-chat, metric: win_rate}
    guards:
      - {benchmark: demo-arithmetic, metric: accuracy, margin: 0.10}    # 10 points

`require: all` (default) promotes when every target improves; `any` when at least one does, and then each target needs a
guard of its own too, since a target that does not improve must still not lose. A policy without targets or without
guards is refused: it would promote what nobody asked about.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, model_validator

from rlhf_bench.harness import codec
from rlhf_bench.harness.config import Config, read_config


def _fraction(value: float) -> float:
    if value >= 1:
        hint = f"; did you mean {value / 100:g}?" if value < 100 else ""
        raise ValueError(f"it is a fraction of the score, so {value:g} means {100 * value:g} points{hint}")
    return value


Fraction = Annotated[float, AfterValidator(_fraction)]


class Target(Config):
    """A score that must be higher than the champion's by more than `min_effect` (a fraction: 0.01 is one point)."""

    benchmark: str
    metric: str
    min_effect: Fraction = Field(0.0, ge=0)


class Guard(Config):
    """A score that must not be lower by `margin` or more (a fraction: 0.02 is two points)."""

    benchmark: str
    metric: str
    margin: Fraction = Field(gt=0)


class Policy(Config):
    """Targets and guards, `alpha` for each, and the share of ungraded pairs above which a check decides nothing.

    `against_anchor`: every guard must hold against a fixed anchor too, so that losses just inside the margin cannot add
    up over many promotions.
    """

    name: str = Field(min_length=1)
    alpha: float = Field(0.05, gt=0, le=0.25)
    targets: tuple[Target, ...] = Field(min_length=1)
    require: Literal["all", "any"] = "all"
    guards: tuple[Guard, ...] = Field(min_length=1)
    max_ungraded: Fraction = Field(0.02, ge=0)
    against_anchor: bool = True

    @property
    def digest(self) -> str:
        """Identifies these very rules: a verdict holds under no others."""
        return codec.digest(self)

    @model_validator(mode="after")
    def _agrees_with_itself(self) -> Policy:
        targets = [(target.benchmark, target.metric) for target in self.targets]
        guards = [(guard.benchmark, guard.metric) for guard in self.guards]
        for role, pairs in (("target", targets), ("guard", guards)):
            for (benchmark, metric), count in Counter(pairs).items():
                if count > 1:
                    raise ValueError(f"{metric} of '{benchmark}' is a {role} {count} times: keep one")
        for benchmark, metric in targets:
            guarded = (benchmark, metric) in guards
            if self.require == "all" and guarded:
                raise ValueError(f"{metric} of '{benchmark}' is a target and a guard: what must improve needs no guard")
            if self.require == "any" and not guarded:
                raise ValueError(
                    f"{metric} of '{benchmark}' is one of several targets (require: any), so it need not improve: "
                    f"add a guard with the margin that it must not lose"
                )
        return self


def load_policy(path: Path, overrides: Sequence[str] = ()) -> Policy:
    """The policy in a YAML file. Raises UserError, one line, where it is malformed or contradicts itself."""
    return read_config(Policy, path, overrides)
