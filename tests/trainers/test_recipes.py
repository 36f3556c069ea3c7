"""trainers/recipes.py: the paper's numbers by default, one line for each mistake, presets that parse."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from rlhf_bench.harness.config import read_config
from rlhf_bench.harness.errors import UnknownName, UserError
from rlhf_bench.trainers.recipes import PRESETS, DPORecipe, RewardRecipe, Training, preset, recipe_from


def test_the_reward_defaults_are_the_papers() -> None:
    recipe = RewardRecipe()
    assert (recipe.epochs, recipe.batch_size, recipe.learning_rate, recipe.warmup) == (1, 512, 2e-6, 0.03)
    assert (recipe.schedule, recipe.weight_decay, recipe.max_length) == ("cosine", 0.001, 4096)


def test_the_dpo_defaults_are_the_papers() -> None:
    recipe = DPORecipe()
    assert (recipe.beta, recipe.learning_rate, recipe.epochs, recipe.batch_size) == (0.1, 5e-7, 2, 128)
    assert (recipe.micro_batch, recipe.max_length, recipe.label_smoothing, recipe.loss) == (2, 2048, 0.0, "sigmoid")
    assert (recipe.schedule, recipe.warmup) == ("cosine", 0.03)


def test_a_recipe_cannot_be_changed_after_it_was_checked() -> None:
    with pytest.raises(ValidationError):
        DPORecipe().beta = 0.5  # type: ignore[misc]


@pytest.mark.parametrize("path", sorted(PRESETS.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_preset_parses_as_the_recipe_it_is_named_for(path: Path) -> None:
    cls: type[Training] = RewardRecipe if "reward" in path.stem else DPORecipe
    assert preset(cls, path.stem) == read_config(cls, path)


def test_an_override_replaces_a_preset_value() -> None:
    assert preset(DPORecipe, "demo-dpo", ["beta=0.3"]).beta == 0.3


def test_an_unknown_preset_names_the_nearest() -> None:
    with pytest.raises(UnknownName, match=r"no preset named 'demo-rewad'. Did you mean 'demo-reward'"):
        preset(RewardRecipe, "demo-rewad")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("learning_rat: 1e-6", "learning_rate"),
        ("learning_rate: fast", "learning_rate"),
        ("epochs: 0", "epochs"),
        ("batch_size: 6\nmicro_batch: 4", "batch_size 6 is not a multiple of micro_batch 4"),
        ("label_smoothing: 0.1", "label_smoothing has no effect on loss 'sigmoid'"),
        ("loss: simgoid", "loss"),
        ("lora: {rnak: 4}", "rank"),
    ],
)
def test_a_mistake_in_a_recipe_is_one_line_that_names_the_key(tmp_path: Path, text: str, says: str) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    with pytest.raises(UserError) as caught:
        read_config(DPORecipe, path)
    message = str(caught.value)
    assert says in message and "\n" not in message and str(path) in message


def test_an_exponent_without_a_point_is_a_number(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text("learning_rate: 5e-7")
    assert read_config(DPORecipe, path).learning_rate == 5e-7


@pytest.mark.parametrize("cls", [RewardRecipe, DPORecipe])
def test_the_papers_preset_says_what_the_defaults_are(cls: type[Training]) -> None:
    assert recipe_from(cls, None, None) == cls()


def test_a_config_and_a_preset_together_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="choose one"):
        recipe_from(DPORecipe, tmp_path / "mine.yaml", "paper-dpo")


def test_a_recipe_is_read_from_a_file_with_overrides(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("beta: 0.2\nepochs: 3")
    recipe = recipe_from(DPORecipe, path, None, ["epochs=1"])
    assert (recipe.beta, recipe.epochs) == (0.2, 1)
