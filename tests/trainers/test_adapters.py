"""trainers/adapters.py: which layers adapters go on, under any back end."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tests.trainers.conftest import dpo_recipe, sums
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel

from rlhf_bench.harness.errors import UserError
from rlhf_bench.harness.types import Checkpoint
from rlhf_bench.trainers.adapters import adapted
from rlhf_bench.trainers.backends import get_backend
from rlhf_bench.trainers.recipes import LoRA


def test_adapters_go_on_every_linear_layer_of_the_last_blocks_and_on_no_head(tiny: Checkpoint) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny.path)
    every = {name for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)}
    assert {*adapted(LoRA(), model)} == every - {"lm_head"}
    assert {*adapted(LoRA(layers=1), model)} == {name for name in every if name.startswith("model.layers.1.")}


@pytest.mark.parametrize("backend", ["torch", "trl"])
def test_more_layers_than_the_model_has_are_refused_before_it_is_loaded(
    tiny: Checkpoint, tmp_path: Path, backend: str
) -> None:
    recipe = dpo_recipe(lora=LoRA(layers=3))
    with pytest.raises(UserError, match=r"lora\.layers is 3, and .* has 2: lower it"):
        get_backend(backend).train_dpo(recipe, sums(0, 4), tiny, tiny, tmp_path / "out")
    assert not list((tmp_path / "out.work").glob("reference-*"))


def test_a_model_without_linear_layers_is_named() -> None:
    model = GPT2LMHeadModel(GPT2Config(n_layer=1, n_embd=8, n_head=2, vocab_size=20, n_positions=8))
    with pytest.raises(UserError, match="GPT2LMHeadModel has no linear layers in its blocks to adapt"):
        adapted(LoRA(), model)
