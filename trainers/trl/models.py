"""Models in and out: loaded as the recipe wants them, under adapters, saved whole in the precision they came in."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, TaskType, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from transformers import BitsAndBytesConfig

from rlhf_bench.harness.errors import UserError
from rlhf_bench.harness.types import Checkpoint
from rlhf_bench.trainers.adapters import adapted
from rlhf_bench.trainers.chat import tokenizer_at
from rlhf_bench.trainers.recipes import Training
from rlhf_bench.trainers.starts import HEAD, opened
from rlhf_bench.trainers.trl.options import check_bits


def tokenizer_of(checkpoint: Checkpoint) -> Any:
    """The checkpoint's own tokenizer."""
    return tokenizer_at(Path(checkpoint.path))


def padding(tokenizer: Any, last: Iterable[int]) -> int:
    """A token of the vocabulary that ends no conversation (`last` holds those that do) and is not the end of a turn."""
    taken = {*last, tokenizer.eos_token_id, tokenizer.bos_token_id}
    unused = [token for token, added in sorted(tokenizer.added_tokens_decoder.items()) if added.special]
    for token in (tokenizer.pad_token_id, tokenizer.unk_token_id, *unused):
        if token is not None and token not in taken:
            return int(token)
    raise UserError(f"the tokenizer of {tokenizer.name_or_path} has no special token left to pad with: add one to it")


def load(cls: Any, checkpoint: Checkpoint, recipe: Training, **kwargs: Any) -> Any:
    """The model from safetensors, without code of its own, and without dropout (adapters may have some).

    What is trained is in float32. What adapters leave frozen is in the recipe's dtype (in float32 too where it is
    sharded: shards are of one dtype), or in `lora.bits`.
    """
    bits = recipe.lora.bits if recipe.lora else None
    frozen = recipe.lora is not None and recipe.dtype == "bfloat16" and recipe.shard is None
    if bits is not None:
        kwargs |= {"quantization_config": quantized(bits), "device_map": {"": int(os.environ.get("LOCAL_RANK", "0"))}}
    model = _load(cls, checkpoint, torch.bfloat16 if frozen else torch.float32, **kwargs)
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    return model


def quantized(bits: int) -> BitsAndBytesConfig:
    """Weights in 4 bits (NF4, doubly quantised) or 8 (LLM.int8). Raises UserError where they cannot be had."""
    check_bits(bits)
    if bits == 8:
        return BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=["lm_head", "score"])
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
        llm_int8_skip_modules=["lm_head", "score"],
    )


def adapters(recipe: Training, model: Any, task: TaskType) -> LoraConfig | None:
    """Adapters on the linear layers of the last `lora.layers` blocks; a new reward head is trained whole."""
    lora = recipe.lora
    if lora is None:
        return None
    return LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=adapted(lora, model),
        modules_to_save=["score"] if task == TaskType.SEQ_CLS else None,
        task_type=task,
    )


def trained_in_float32(model: Any) -> None:
    """Adapters (and a reward head beside them) on frozen weights of lower precision keep every small step."""
    for weight in model.parameters():
        if weight.requires_grad:
            weight.data = weight.data.float()


def save(trainer: Any, recipe: Training, cls: Any, start: Checkpoint, draft: Path, **kwargs: Any) -> None:
    """The trained weights, adapters merged in float32, in the precision they came in, written by the first process."""
    config = _config(start)
    dtype: torch.dtype = getattr(torch, config.get("dtype") or config.get("torch_dtype") or "float32")
    model = _whole(trainer, recipe, cls, start, **kwargs)
    if model is not None:
        model.config.use_cache = True  # transformers switches it off to train
        model.to(dtype).save_pretrained(draft)
    trainer.accelerator.wait_for_everyone()


def _whole(trainer: Any, recipe: Training, cls: Any, start: Checkpoint, **kwargs: Any) -> Any:
    """The trained model, unsharded, in float32, without adapters; None in all processes but the first.

    Where the trained weights are shards, or adapters on rounded weights, a new model is loaded and they are put in.
    """
    model = trainer.accelerator.unwrap_model(trainer.model)
    rounded = recipe.lora is not None and (recipe.dtype == "bfloat16" or recipe.lora.bits is not None)
    if recipe.shard is None and not rounded:
        if trainer.is_world_process_zero():
            return model.merge_and_unload() if recipe.lora else model
        return None
    state = trainer.accelerator.get_state_dict(trainer.model_wrapped)
    if not trainer.is_world_process_zero():
        return None
    fresh = _load(cls, start, torch.float32, **kwargs)
    fresh.config.get_text_config().pad_token_id = model.config.get_text_config().pad_token_id
    if recipe.lora is None:
        fresh.load_state_dict(state)
        return fresh
    fresh = get_peft_model(fresh, model.peft_config["default"])
    set_peft_model_state_dict(fresh, get_peft_model_state_dict(model, state_dict=state))
    return fresh.merge_and_unload()


def _load(cls: Any, checkpoint: Checkpoint, dtype: torch.dtype, **kwargs: Any) -> Any:
    return opened(cls, checkpoint.path, new=(HEAD,), dtype=dtype, **kwargs)


def _config(checkpoint: Checkpoint) -> dict[str, Any]:
    config: dict[str, Any] = json.loads((Path(checkpoint.path) / "config.json").read_text())
    return config
