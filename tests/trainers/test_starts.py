"""trainers/starts.py: nothing is trained from random numbers that stand where weights should be."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file
from tests.trainers.conftest import dpo_recipe, preference_recipe, reward_recipe, sft_recipe, sums, talks

from rlhf_bench.harness.checkpoint import checkpoint_digest
from rlhf_bench.harness.errors import UserError
from rlhf_bench.harness.types import Checkpoint
from rlhf_bench.trainers.backends import get_backend

TORCH = get_backend("torch")


@pytest.fixture(scope="module")
def scorer(tiny: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return TORCH.train_reward(reward_recipe(), sums(0, 4), tiny, tmp_path_factory.mktemp("scorer") / "out")


def test_a_reward_model_is_no_start_for_what_must_speak(tiny: Checkpoint, scorer: Checkpoint, tmp_path: Path) -> None:
    refused = r"out is no language model \(LlamaForSequenceClassification\)"
    with pytest.raises(UserError, match=refused):
        TORCH.train_sft(sft_recipe(), talks(2), scorer, tmp_path / "sft")
    with pytest.raises(UserError, match=refused):
        TORCH.train_preference(preference_recipe(), sums(0, 4), scorer, tmp_path / "pm")
    for policy, reference in ((scorer, tiny), (tiny, scorer)):
        with pytest.raises(UserError, match=refused):
            TORCH.train_dpo(dpo_recipe(), sums(0, 4), policy, reference, tmp_path / "dpo")
    assert not list(tmp_path.iterdir())


def test_a_reward_model_goes_on_with_its_own_head(scorer: Checkpoint, tmp_path: Path) -> None:
    again = TORCH.train_reward(reward_recipe(learning_rate=1e-9), sums(0, 4), scorer, tmp_path / "again")
    heads = [load_file(Path(each.path) / "model.safetensors")["score.weight"] for each in (scorer, again)]
    assert (heads[0] - heads[1]).abs().max() < 1e-6


@pytest.mark.parametrize("backend", ["torch", "trl"])
@pytest.mark.parametrize("what", ["sft", "rm"])
def test_a_model_whose_files_lack_a_weight_is_refused(
    tiny: Checkpoint, tmp_path: Path, backend: str, what: str
) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(tiny.path, broken)
    weights = load_file(broken / "model.safetensors")
    del weights["model.norm.weight"], weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, broken / "model.safetensors", metadata={"format": "pt"})
    start = Checkpoint(str(broken), checkpoint_digest(broken))
    said = r"broken lacks weights of its own model \(model\.layers\.1\.mlp\.up_proj\.weight and 1 more\)"
    with pytest.raises(UserError, match=said):
        if what == "sft":
            get_backend(backend).train_sft(sft_recipe(), talks(2), start, tmp_path / "out")
        else:
            get_backend(backend).train_reward(reward_recipe(), sums(0, 4), start, tmp_path / "out")


@pytest.mark.parametrize("backend", ["torch", "trl"])
@pytest.mark.parametrize("what", ["sft", "rm"])
def test_weights_of_another_shape_than_the_configuration_says_are_one_line(
    tiny: Checkpoint, tmp_path: Path, backend: str, what: str
) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(tiny.path, broken)
    weights = load_file(broken / "model.safetensors")
    weights["model.norm.weight"] = weights["model.norm.weight"][:-1].contiguous()
    save_file(weights, broken / "model.safetensors", metadata={"format": "pt"})
    start = Checkpoint(str(broken), checkpoint_digest(broken))
    with pytest.raises(UserError, match=r"broken holds weights of other shapes than its config\.json says"):
        if what == "sft":
            get_backend(backend).train_sft(sft_recipe(), talks(2), start, tmp_path / "out")
        else:
            get_backend(backend).train_reward(reward_recipe(), sums(0, 4), start, tmp_path / "out")


@pytest.mark.parametrize("backend", ["torch", "trl"])
def test_a_kind_of_model_that_transformers_does_not_know_is_one_line(
    tiny: Checkpoint, tmp_path: Path, backend: str
) -> None:
    other = tmp_path / "other"
    shutil.copytree(tiny.path, other)
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps(config | {"model_type": "unheard-of"}))
    start = Checkpoint(str(other), checkpoint_digest(other))
    with pytest.raises(UserError, match=r"the model in .*other cannot be read \(ValueError: .*unheard-of"):
        get_backend(backend).train_sft(sft_recipe(), talks(2), start, tmp_path / "out")
