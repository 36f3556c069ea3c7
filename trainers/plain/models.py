"""Checkpoints to models and back: loaded in float32, adapted, taken apart into body and head, saved."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import peft
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from rlhf_bench.harness.errors import UserError
from rlhf_bench.harness.shared_prompt import Packed, by_segments, can_share, pack
from rlhf_bench.harness.types import Checkpoint
from rlhf_bench.trainers.adapters import adapted
from rlhf_bench.trainers.backends import DRAFT, METRICS
from rlhf_bench.trainers.chat import tokenizer_at
from rlhf_bench.trainers.plain.logps import token_logps
from rlhf_bench.trainers.recipes import LoRA, Training
from rlhf_bench.trainers.starts import HEAD, opened


@dataclass(frozen=True, slots=True)
class Loaded:
    """A model: `whole` is all of it with its adapters, `body` gives states, `head` is what reads them (lm_head, score).

    `shares` says that answers may share their prompt's row; `apart` that `head` alone gives the model's logits (some
    models scale or cap them afterwards).
    """

    whole: Any
    body: Any
    head: Any
    shares: bool
    apart: bool = True

    @property
    def device(self) -> torch.device:
        device: torch.device = self.body.device
        return device

    def states(self, packed: Packed) -> Tensor:
        """The body's last states, flattened [B·T, D]."""
        states_BTD: Tensor = self.body(**packed.inputs(torch.float32), use_cache=False)[0]
        return states_BTD.flatten(0, 1)

    def logps(self, packed: Packed) -> Tensor:
        """log p of each answer token [N], given what it follows."""
        if self.apart:
            return token_logps(self.states(packed)[packed.before_N], self.head, packed.targets_N)
        logits_BTV: Tensor = self.whole(**packed.inputs(torch.float32), use_cache=False).logits
        logits_NV = logits_BTV.flatten(0, 1)[packed.before_N].float()
        return logits_NV.log_softmax(-1).gather(1, packed.targets_N[:, None])[:, 0]


def load_policy(checkpoint: Checkpoint, recipe: Training) -> Loaded:
    """A language model to train. What adapters leave frozen is held in the recipe's dtype, all else in float32."""
    model = _read(AutoModelForCausalLM, checkpoint, recipe, _frozen(recipe))
    return _taken_apart(model, model.get_output_embeddings(), recipe)


def load_reference(checkpoint: Checkpoint, recipe: Training) -> Loaded:
    """A language model to ask, in the precision that a policy's frozen weights have."""
    model = _read(AutoModelForCausalLM, checkpoint, recipe, _frozen(recipe)).requires_grad_(False)
    plain = recipe.model_copy(update={"lora": None, "gradient_checkpointing": False})
    loaded = _taken_apart(model, model.get_output_embeddings(), plain)
    loaded.whole.eval()
    return loaded


def load_scorer(checkpoint: Checkpoint, recipe: Training, pad: int) -> Loaded:
    """A model with a linear head of one output, new unless the checkpoint has one; its padding token is `pad`."""
    model = _read(AutoModelForSequenceClassification, checkpoint, recipe, _frozen(recipe), num_labels=1)
    model.config.get_text_config().pad_token_id = pad
    return _taken_apart(model, None, recipe)


def _frozen(recipe: Training) -> torch.dtype:
    return torch.bfloat16 if recipe.lora is not None and recipe.dtype == "bfloat16" else torch.float32


def _read(cls: Any, checkpoint: Checkpoint, recipe: Training, dtype: torch.dtype, **options: Any) -> Any:
    """The model on the device, without dropout; a new head is drawn from the recipe's seed."""
    torch.manual_seed(recipe.seed)
    model = _opened(cls, checkpoint, dtype, **options).to("cuda" if torch.cuda.is_available() else "cpu")
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        if isinstance(getattr(module, "attention_dropout", None), float):
            module.attention_dropout = 0.0
    return model


def _opened(cls: Any, checkpoint: Checkpoint, dtype: torch.dtype, **options: Any) -> Any:
    return opened(cls, checkpoint.path, new=(HEAD,), dtype=dtype, **options)


def _taken_apart(model: Any, lm_head: Any, recipe: Training) -> Loaded:
    shares = can_share(model.base_model, recipe.max_length)
    if shares and model.device.type == "cpu":
        by_segments(model)
    apart = lm_head is None or _gives_the_logits(model, lm_head)
    if recipe.gradient_checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    body, whole = model.base_model, model
    if recipe.lora is not None:
        torch.manual_seed(recipe.seed)
        whole = peft.get_peft_model(model, _adapters(recipe.lora, model, new_head=lm_head is None))
        for weight in whole.parameters():
            weight.data = weight.data.float() if weight.requires_grad else weight.data
    return Loaded(whole.train(), body, model.score if lm_head is None else lm_head, shares, apart)


@torch.no_grad()
def _gives_the_logits(model: Any, head: Any) -> bool:
    """Whether the language model's logits are its head's product with its body's states, on a few tokens."""
    packed = pack([([1, 2, 3], [[4, 5]])], model.device)
    logits = model(**packed.inputs(torch.float32), use_cache=False).logits
    mine = head(model.base_model(**packed.inputs(torch.float32), use_cache=False)[0])
    return bool((logits - mine).abs().max() <= 1e-5 * mine.abs().max())


def _adapters(lora: LoRA, model: Any, *, new_head: bool) -> peft.LoraConfig:
    """Adapters on the linear layers of the last `lora.layers` blocks; a new reward head is trained whole."""
    return peft.LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=adapted(lora, model),
        modules_to_save=["score"] if new_head else None,
        task_type=peft.TaskType.SEQ_CLS if new_head else peft.TaskType.CAUSAL_LM,
    )


def tokenizer_of(checkpoint: Checkpoint) -> Any:
    return tokenizer_at(Path(checkpoint.path))


def padding_token(tokenizer: Any, last: set[int]) -> int:
    """A token of the vocabulary that ends no conversation (`last` holds those that do) and is not the end of a turn.

    transformers reads a reward at the last token that is not padding.
    """
    unused = [token for token, added in sorted(tokenizer.added_tokens_decoder.items()) if added.special]
    for token in (tokenizer.pad_token_id, tokenizer.unk_token_id, *unused):
        if token is not None and token not in {*last, tokenizer.eos_token_id, tokenizer.bos_token_id}:
            return int(token)
    raise UserError(f"the tokenizer of {tokenizer.name_or_path} has no special token left to pad with: add one to it")


def save(loaded: Loaded, start: Checkpoint, work: Path) -> Path:
    """The draft of the checkpoint: weights, adapters merged in float32, in the precision that `start` has; metrics."""
    draft = work / DRAFT
    shutil.rmtree(draft, ignore_errors=True)
    model = _merged(loaded.whole, start) if isinstance(loaded.whole, peft.PeftModel) else loaded.whole
    config = json.loads((Path(start.path) / "config.json").read_text())
    model.config.use_cache = True
    model.to(getattr(torch, config.get("dtype") or config.get("torch_dtype") or "float32")).save_pretrained(draft)
    shutil.copy(work / METRICS, draft / METRICS)
    return draft


def _merged(model: Any, start: Checkpoint) -> Any:
    """The model with its adapters added to the weights as they are stored, not as they were rounded to train."""
    plain = model.get_base_model()
    if plain.dtype == torch.float32:
        return model.merge_and_unload()
    options = {"num_labels": 1} if hasattr(plain, "score") else {}
    fresh = _opened(type(plain), start, torch.float32, **options)
    fresh.config.get_text_config().pad_token_id = plain.config.get_text_config().pad_token_id
    adapted = peft.get_peft_model(fresh, model.peft_config["default"])
    peft.set_peft_model_state_dict(adapted, peft.get_peft_model_state_dict(model))
    return adapted.merge_and_unload()
