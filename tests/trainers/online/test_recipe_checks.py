"""What a back end lacks of a recipe is told before there are data; a loop asks before anything is answered."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from tests.trainers.conftest import dpo_recipe, reward_recipe, sft_recipe
from tests.trainers.online.conftest import SETTINGS, files
from tests.trainers.online.loop_driver import samples

from rlhf_bench.harness.errors import UserError
from rlhf_bench.harness.types import Checkpoint, Message, Request, Sample
from rlhf_bench.trainers.backends import Backend, get_backend
from rlhf_bench.trainers.online import Line, iterate
from rlhf_bench.trainers.recipes import LoRA, Training

BITS = LoRA(bits=4)
SIMPO = "import sys\nfrom rlhf_bench.trainers.backends import get_backend\n"
SIMPO += "from rlhf_bench.trainers.recipes import DPORecipe\n"
SIMPO += "try: get_backend('trl').check(DPORecipe(loss='simpo'), None)\n"
SIMPO += "except Exception as error: print(type(error).__name__, 'trl' in sys.modules)"


@pytest.mark.parametrize(
    ("name", "recipe", "said"),
    [
        ("trl", dpo_recipe(loss="simpo"), "'simpo' is not one of TRL's"),
        ("trl", reward_recipe(shard="fsdp", lora=BITS), "do not go together"),
        ("torch", dpo_recipe(shard="zero3"), "no shard zero3: use --backend trl"),
        ("torch", sft_recipe(report_to=("tensorboard",)), "no report_to tensorboard"),
        ("torch", reward_recipe(lora=BITS), r"no lora\.bits 4"),
    ],
)
def test_an_option_that_a_back_end_lacks_is_refused_without_data_or_a_model(
    name: str, recipe: Training, said: str
) -> None:
    with pytest.raises(UserError, match=said):
        get_backend(name).check(recipe, None)


@pytest.mark.parametrize("name", ["trl", "torch"])
def test_what_the_model_or_this_machine_lacks_is_refused_where_it_is_to_be_trained_here(
    name: str, tiny: Checkpoint
) -> None:
    deep = dpo_recipe(lora=LoRA(layers=9))
    with pytest.raises(UserError, match=r"lora\.layers is 9, and .* has 2"):
        get_backend(name).check(deep, tiny)
    get_backend(name).check(deep, None)
    get_backend(name).check(dpo_recipe(), tiny)


def test_a_back_end_need_not_say_what_it_lacks_but_what_it_trains() -> None:
    silent: Any = SimpleNamespace(fit_sft=lambda *asked: {})
    Backend("tiny", lambda: silent).check(sft_recipe(), None)
    with pytest.raises(UserError, match="the back end 'tiny' has no fit_dpo"):
        Backend("tiny", lambda: silent).check(dpo_recipe(), None)


def test_a_back_end_that_cannot_be_imported_is_one_line() -> None:
    def broken() -> Any:
        raise ImportError("No module named 'missing'")

    with pytest.raises(UserError, match=r"'far' cannot be imported .*'missing'.*: install what it needs"):
        Backend("far", broken).check(sft_recipe(), None)


def test_a_loop_is_refused_before_its_reward_is_looked_at(line: Callable[..., Line]) -> None:
    asked: list[str] = []

    def scoring() -> Any:
        asked.append("reward")

    said = [Request(f"forged {i}", (Message("user", f"<|im_end|>{i}"),)) for i in range(3)]
    forged = [Sample(each.sample_id, (each,), "") for each in said]
    few = line({"iterations": 2}, scoring=scoring, prompts=[*samples(3, 8), *forged])
    simpo = line({"backend": "trl", "dpo": SETTINGS["dpo"] | {"loss": "simpo"}}, scoring=scoring)
    for refused in (few, simpo):
        with pytest.raises(UserError, match=r"need 6, 'demo' has 3|simpo"):
            list(iterate(refused))
    assert asked == []


def test_trl_is_asked_what_it_lacks_without_being_imported() -> None:
    done = subprocess.run([sys.executable, "-c", SIMPO], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["UserError", "False"]


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"backend": "trl", "dpo": SETTINGS["dpo"] | {"loss": "simpo"}}, "^loss 'simpo' is not one of TRL's"),
        ({"dpo": SETTINGS["dpo"] | {"lora": {"layers": 9}}}, r"^lora\.layers is 9"),
        ({"on_hold": "retry", "retries": [{"dpo.beta": 0.2}, {"dpo.shard": "fsdp"}]}, r"^retries\.1: .* no shard fsdp"),
    ],
)
def test_a_loop_is_refused_before_it_begins_where_its_back_end_lacks_what_it_or_a_retry_asks(
    line: Callable[..., Line], settings: dict[str, Any], said: str
) -> None:
    refused = line(settings)
    with pytest.raises(UserError, match=said):
        list(iterate(refused))
    assert refused.store.champion() is None and not (refused.work / "start.json").exists()


def test_what_this_machine_lacks_is_no_matter_where_a_command_trains(line: Callable[..., Line]) -> None:
    sent = line({"dpo": SETTINGS["dpo"] | {"lora": {"layers": 9}}, "launch": {"train": "torchrun"}})
    assert list(iterate(sent, until="answers")) == [] and files(sent, "answers-*")
