"""trainers/memory.py: what cannot fit is refused before it is loaded, with what would."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from tests.trainers.conftest import dpo_recipe

from rlhf_bench.harness.errors import Fault, UserError
from rlhf_bench.harness.types import Checkpoint
from rlhf_bench.trainers.memory import bytes_a_parameter, check_fits, main_memory, parameters
from rlhf_bench.trainers.recipes import LoRA


def test_the_parameters_are_counted_from_the_headers(tiny: Checkpoint) -> None:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(tiny.path)
    assert parameters(Path(tiny.path)) == sum(weight.numel() for weight in model.parameters())


@pytest.mark.parametrize(
    ("changes", "processes", "least"),
    [
        ({}, 1, 16),
        ({"shard": "fsdp"}, 8, 2),
        ({"shard": "zero3"}, 4, 4),
        ({"shard": "zero2"}, 4, 7),
        ({"lora": LoRA()}, 1, 4),
        ({"lora": LoRA(), "dtype": "bfloat16"}, 1, 2),
        ({"lora": LoRA(), "dtype": "bfloat16", "shard": "fsdp"}, 4, 1),
        ({"lora": LoRA(bits=8)}, 1, 1),
        ({"lora": LoRA(bits=4)}, 1, 0.5),
    ],
)
def test_what_a_parameter_takes(changes: dict[str, object], processes: int, least: float) -> None:
    assert bytes_a_parameter(dpo_recipe(**changes), processes) == least


def test_a_training_that_cannot_fit_is_one_line_with_a_way_out(tiny: Checkpoint) -> None:
    count = parameters(Path(tiny.path))
    check_fits(dpo_recipe(), tiny, 16 * count)
    with pytest.raises(UserError, match=r"parameters, which take at least .* GB to train this way.*set lora") as caught:
        check_fits(dpo_recipe(), tiny, 16 * count - 1)
    assert "\n" not in str(caught.value)
    check_fits(dpo_recipe(lora=LoRA()), tiny, 16 * count - 1)
    with pytest.raises(UserError, match=r"lora\.bits=4"):
        check_fits(dpo_recipe(lora=LoRA()), tiny, count)


def test_weights_that_are_none_are_a_fault(tiny: Checkpoint, tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"\xff" * 100)
    with pytest.raises(Fault, match="cannot read"):
        parameters(Path(replace(tiny, path=str(tmp_path)).path))


def test_this_machine_has_memory() -> None:
    assert 1 << 28 < main_memory() < 1 << 48
