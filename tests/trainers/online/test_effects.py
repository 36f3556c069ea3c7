"""A setting that does nothing under the others is refused by its name; what acts, or is the default, is not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import Field, ValidationError

from rlhf_bench.harness.config import Config
from rlhf_bench.trainers.online.config import LoopConfig, loop_config, packaged
from rlhf_bench.trainers.online.effects import changed, idle

ROOT = Path(__file__).resolve().parents[3]
GIVEN = {"preferences": "pairs.jsonl"}
RETRY: dict[str, Any] = {"on_hold": "retry"}


def loop(*settings: dict[str, Any]) -> LoopConfig:
    joined: dict[str, Any] = {"name": "x"}
    for each in settings:
        joined |= each
    return LoopConfig.model_validate(joined)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"sft": {"learning_rate": 1e-5}}, r"sft\.learning_rate has no effect, since method is dpo"),
        ({"sft": {"keep": 3}}, r"sft\.keep has no effect"),
        ({"method": "sft", "dpo": {"beta": 0.2}}, r"dpo\.beta has no effect, since method is sft"),
        ({"method": "sft", "dpo": {"lora": {"rank": 8}}}, r"dpo\.lora has no effect"),
        ({"method": "sft", "reference": "previous"}, "reference has no effect"),
        ({"dpo": {"loss": "simpo"}, "reference": "previous"}, "loss simpo has no reference"),
        ({"method": "sft", "sft": {"base": "mine"}}, r"sft\.base has no effect, since a loop trains its own policy"),
        ({"method": "sft", "pairs": {"cut_may_lose": True}}, r"pairs\.cut_may_lose has no effect"),
        ({"partial": True}, "partial has no effect, since no language model"),
        ({"reward": "pm:mine", "partial": True}, "partial has no effect"),
        (GIVEN | {"judge": "pm:mine", "patience_s": 5}, "patience_s has no effect"),
        (GIVEN | {"reward": "mine"}, "reward has no effect, since preferences are given"),
        (GIVEN | {"prompts": "mine.jsonl"}, "prompts has no effect"),
        (GIVEN | {"answers": {"n": 4}}, r"answers\.n has no effect"),
        (GIVEN | {"answers": {"policies": ["initial"]}}, r"answers\.policies has no effect"),
        (GIVEN | {"probes": None, "answers": {"max_tokens": 64}}, r"answers\.max_tokens has no effect"),
        (GIVEN | {"pairs": {"length_penalty": 0.1}}, r"pairs\.length_penalty has no effect"),
        (GIVEN | {"launch": {"score": ""}}, r"launch\.score has no effect"),
        ({"filters": {"per_prompt": 5}}, r"filters\.per_prompt has no effect, since it is for given preferences"),
        (RETRY | {"retries": [{"dpo.beta": 0.1}]}, r"retries\.0 changes nothing"),
        (RETRY | {"retries": [{"dpo.beta": 0.2}, {"fresh_prompts": False}]}, r"retries\.1 changes nothing"),
        (RETRY | {"retries": [{"sft.learning_rate": 1e-5}]}, r"retries\.0: sft\.learning_rate has no effect"),
        (RETRY | {"retries": [{"dpo.beta": 0.2}, {"sft": {"epochs": 2}}]}, r"retries\.1: sft\.epochs has no effect"),
        (RETRY | {"retries": [{"method": "sft", "dpo.beta": 0.2}]}, r"retries\.0: dpo\.beta has no effect"),
        (RETRY | {"sft": {"epochs": 2}, "retries": [{"dpo.beta": 0.2}]}, r"sft\.epochs has no effect"),
    ],
)
def test_a_setting_without_effect_is_refused_by_its_name(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        loop(settings)


@pytest.mark.parametrize(
    "settings",
    [
        {"sft": {"learning_rate": 2e-5}, "reference": "initial"},  # as they are anyway
        GIVEN | {"answers": {"engine": "hf", "dtype": "float32", "max_tokens": 64}, "contaminated": "keep"},
        GIVEN | {"method": "sft", "sft": {"epochs": 2}, "launch": {"pair": "", "train": "", "measure": ""}},
        GIVEN | {"filters": {"min_margin": 0.5, "per_prompt": 5, "score_ratio": 2}},
        {"reward": "openai:some", "partial": True, "pairs": {"cut_may_lose": True}},
        GIVEN | {"judge": "openai:some", "partial": True, "patience_s": 5},
        {"method": "sft", "pairs": {"length_penalty": 0.001}, "sft": {"chat_template": "chatml"}},
        {"sft": {"epochs": 2}} | RETRY | {"retries": [{"method": "sft"}]},  # the retry's
        {"dpo": {"beta": 0.2}, "reference": "previous"} | RETRY | {"retries": [{"method": "sft", "sft.epochs": 2}]},
    ],
)
def test_a_setting_that_acts_in_some_attempt_is_taken(settings: dict[str, Any]) -> None:
    assert loop(settings)


@pytest.mark.parametrize(
    "changes",
    [
        {"answers.temperatures": [1.0, 0.8, 0.6], "answers.n": 9},
        {"dpo.target_margin": 0.5, "dpo.loss": "simpo"},
        {"sft.epochs": 2, "method": "sft"},
    ],
)
def test_the_changes_of_a_retry_are_checked_together_in_any_order(changes: dict[str, Any]) -> None:
    orders = [changes, dict(reversed(changes.items()))]
    one, other = (loop(RETRY, {"retries": [order]}).retry(0) for order in orders)
    assert one == other and set(changed(one)) >= set(changes)


@pytest.mark.parametrize("name", packaged())
def test_nothing_in_a_packaged_loop_is_without_effect(name: str) -> None:
    assert not idle(loop_config(name)[0])


def test_the_example_loads() -> None:
    assert loop_config(str(ROOT / "examples" / "demo.yaml"))[0].iterations == 1


class Inner(Config):
    a: int = 1
    b: tuple[int, ...] = (2,)


class Outer(Config):
    c: float = 0.5
    inner: Inner = Inner()
    other: Inner | None = None
    by_name: dict[str, str] = Field({})


@given(
    st.builds(
        Outer,
        c=st.sampled_from([0.5, 1.0]),
        inner=st.builds(Inner, a=st.integers(1, 2), b=st.sampled_from([(2,), ()])),
        other=st.none() | st.builds(Inner, a=st.integers(1, 2)),
        by_name=st.dictionaries(st.sampled_from(["x", "y"]), st.just("")),
    )
)
def test_what_was_changed_is_all_that_differs_from_the_defaults(config: Outer) -> None:
    names = set(changed(config))
    assert ("c" in names) == (config.c != 0.5)
    assert ("inner.a" in names) == (config.inner.a != 1) and ("inner.b" in names) == (config.inner.b != (2,))
    assert ("other" in names) == (config.other is not None)
    assert {name for name in names if name.startswith("by_name.")} == {f"by_name.{key}" for key in config.by_name}
    assert bool(names) == (config != Outer())
