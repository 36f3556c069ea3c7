"""trainers/recipes.py: the paper's numbers by default, one line for each mistake, presets that parse."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from rlhf_bench.harness.codec import digest
from rlhf_bench.harness.config import read_config
from rlhf_bench.harness.errors import UnknownName, UserError
from rlhf_bench.trainers.recipes import (
    KINDS,
    PRESETS,
    DPORecipe,
    LoRA,
    PreferenceRecipe,
    RewardRecipe,
    SFTRecipe,
    Training,
    preset,
    presets,
    recipe_from,
)


def test_the_reward_defaults_are_the_papers() -> None:
    recipe = RewardRecipe()
    assert (recipe.epochs, recipe.batch_size, recipe.learning_rate, recipe.warmup) == (1, 512, 2e-6, 0.03)
    assert (recipe.schedule, recipe.weight_decay, recipe.max_length) == ("cosine", 0.001, 4096)


def test_the_dpo_defaults_are_the_papers() -> None:
    recipe = DPORecipe()
    assert (recipe.beta, recipe.learning_rate, recipe.epochs, recipe.batch_size) == (0.1, 5e-7, 2, 128)
    assert (recipe.micro_batch, recipe.max_length, recipe.label_smoothing, recipe.loss) == (2, 2048, 0.0, "sigmoid")
    assert (recipe.schedule, recipe.warmup) == ("cosine", 0.03)


def test_the_sft_defaults_are_the_papers() -> None:
    recipe = SFTRecipe()
    assert (recipe.epochs, recipe.learning_rate, recipe.batch_size, recipe.max_length) == (1, 2e-5, 32, 8192)
    assert (recipe.schedule, recipe.warmup, recipe.packing) == ("cosine", 0.03, True)


def test_the_preference_models_defaults_are_the_papers() -> None:
    recipe = PreferenceRecipe()
    assert (recipe.epochs, recipe.learning_rate, recipe.batch_size, recipe.max_length) == (1, 5e-6, 128, 3072)
    assert (recipe.schedule, recipe.warmup, recipe.packing) == ("cosine", 0.03, True)


def test_a_recipe_cannot_be_changed_after_it_was_checked() -> None:
    with pytest.raises(ValidationError):
        DPORecipe().beta = 0.5  # type: ignore[misc]


SHIPPED = [(kind, name) for kind, cls in KINDS.items() for name in presets(cls)]


def test_every_preset_ships_for_every_recipe() -> None:
    assert {path.stem for path in PRESETS.iterdir()} == {name for _, name in SHIPPED}
    for machine in ("paper", "gpu24", "demo"):
        assert {kind for kind, name in SHIPPED if name.startswith(f"{machine}-")} == set(KINDS)


@pytest.mark.parametrize(("kind", "name"), SHIPPED, ids=lambda value: value)
def test_every_preset_parses_and_says_what_it_needs(kind: str, name: str) -> None:
    recipe = preset(KINDS[kind], name)
    assert recipe == read_config(KINDS[kind], PRESETS / f"{name}.yaml")
    assert recipe.needs is not None and recipe.needs.hours > 0 and recipe.needs.memory_gb > 0
    text = (PRESETS / f"{name}.yaml").read_text()
    assert ("measured" if recipe.needs.measured else "estimated") in text.partition("\nepochs:")[0]


@pytest.mark.parametrize("shard", ["fsdp", "zero2", "zero3"])
@pytest.mark.parametrize("kind", KINDS)
def test_the_papers_presets_come_sharded_in_every_way(kind: str, shard: str) -> None:
    recipe = preset(KINDS[kind], f"paper-{kind}", [f"shard={shard}"])
    assert recipe.shard == shard and recipe.batch_size % (recipe.micro_batch * 8) == 0
    assert preset(KINDS[kind], f"paper-{kind}").shard == "fsdp"


def test_a_preset_of_another_recipe_is_none_of_this_one() -> None:
    with pytest.raises(UnknownName, match=r"no preset named 'demo-dpo'\. Did you mean 'demo-"):
        preset(SFTRecipe, "demo-dpo")


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
        ("loss: ipo\nlabel_smoothing: 0.1", "label_smoothing has no effect on loss 'ipo'"),
        ("target_margin: 0.5", "target_margin has no effect on loss 'sigmoid'"),
        ("report_to: [wandbb]", "report_to"),
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


@pytest.mark.parametrize("cls", KINDS.values())
def test_the_papers_preset_says_what_the_defaults_are(cls: type[Training]) -> None:
    changes = {"needs": None, "shard": None, **({"chat_template": None} if cls is SFTRecipe else {})}
    assert recipe_from(cls, None, None).model_copy(update=changes) == cls()


def test_options_that_change_nothing_leave_what_a_checkpoint_was_made_by_as_it_was() -> None:
    """What was trained before they existed is the same training."""
    assert digest(RewardRecipe()) == "cbf26d981fc2ecd84112c585a0a810d75ce8fee6fdcabe1ba4b5ec80972a4263"
    assert digest(DPORecipe(lora=LoRA())) == "214a74449221c7ae806d5493c4f1f0c80cb062a61caa333fa24db2ea1e98612b"
    assert digest(DPORecipe(keep=5, report_to=("wandb",))) == digest(DPORecipe())
    assert digest(DPORecipe(nll_weight=0.1)) != digest(DPORecipe())


def test_a_config_and_a_preset_together_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="choose one"):
        recipe_from(DPORecipe, tmp_path / "mine.yaml", "paper-dpo")


def test_a_recipe_is_read_from_a_file_with_overrides(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("beta: 0.2\nepochs: 3")
    recipe = recipe_from(DPORecipe, path, None, ["epochs=1"])
    assert (recipe.beta, recipe.epochs) == (0.2, 1)
