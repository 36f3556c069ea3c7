"""Which settings of a loop do nothing under its other settings: they would mislead whoever reads them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

from rlhf_bench.harness.config import Config

if TYPE_CHECKING:
    from rlhf_bench.trainers.online.config import LoopConfig

Rule: TypeAlias = tuple[bool, Sequence[str], str]
"""Whether it holds, the settings (with all inside them) that it leaves without effect, and why."""


def idle(config: LoopConfig) -> Mapping[str, str]:
    """The settings, by dotted key, that are not at their default and have no effect, each with the reason."""
    rules = [(names, why) for holds, names, why in _rules(config) if holds]
    found: dict[str, str] = {}
    for name in changed(config):
        why = next((why for names, why in rules if any(within(name, each) for each in names)), None)
        if why is not None:
            found[name] = why
    return found


def within(name: str, other: str) -> bool:
    """Whether a dotted key is the other one or inside it."""
    return f"{name}.".startswith(f"{other}.")


def changed(config: Config) -> Iterator[str]:
    """The dotted keys of the values that are not the defaults, the innermost that configs have."""
    for name, field in type(config).model_fields.items():
        value: Any = getattr(config, name)
        default: Any = field.get_default()
        if value == default:
            continue
        if isinstance(value, Config) and isinstance(default, type(value)):
            yield from (f"{name}.{inner}" for inner in changed(value))
        elif isinstance(value, dict):
            yield from (f"{name}.{key}" for key in value)
        else:
            yield name


def _rules(config: LoopConfig) -> tuple[Rule, ...]:
    """What acts is left out: of given pairs `contaminated` too, and of `answers` what evaluations and probes go by."""
    given, sft = config.preferences is not None, config.method == "sft"
    unasked = [f"answers.{name}" for name in ("n", "temperatures", "policies", "top_p")]
    unasked += ["reward", "prompts", "launch.answers", "launch.score"]
    nothing = "preferences are given, and nothing is answered or scored"
    return (
        (given, unasked, nothing),
        (given and config.probes is None, ("answers.max_tokens",), nothing),
        (given, ("pairs",), "it is about how answers become pairs, and preferences are pairs already"),
        (not given, ("filters",), "it is for given preferences, and `pairs` says how answers become pairs"),
        (True, ("sft.base",), "a loop trains its own policy, and begins with `model`"),
        (sft, ("dpo", "reference"), "method is sft"),
        (not sft, ("sft",), "method is dpo"),
        (not sft and config.dpo.loss == "simpo", ("reference",), "loss simpo has no reference"),
        (sft, ("pairs.min_margin", "pairs.cut_may_lose"), "method sft takes the best answer alone"),
        (config.ranks, ("pairs.length_penalty", "pairs.min_margin"), f"'{config.reward}' only ranks, without numbers"),
        (not config.asks, ("partial", "patience_s"), "no language model, whose calls can fail, is reward or judge"),
    )
