"""The TRL back end: Bradley-Terry reward models and DPO by TRL 1.16. The only module that knows TRL and PEFT.

What is ours, because TRL 1.16 does otherwise:
- the chat template is applied by `encode`, as in scoring; longer pairs are left out and counted (TRL drops them, or
  cuts them, without saying so);
- the reference of DPO is a checkpoint that the caller names. Its log-probabilities are computed once, before training,
  kept in the work folder, and its weights freed (TRL would reload whatever `_name_or_path` points to);
- the reward head pools at the last token that is not padding, so the padding token is one that ends no conversation,
  taken from the existing vocabulary, which is never resized;
- a loss that is not finite stops the run (transformers would log a running mean in its place);
- a checkpoint counts only once all of it is written;
- no telemetry, no model card, no progress bar, no cache of its own.
"""

from __future__ import annotations

import json
import math
import os
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import LoraConfig, TaskType
from safetensors import SafetensorError
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PrinterCallback,
    TrainerCallback,
    set_seed,
)
from trl import DPOConfig, DPOTrainer, RewardConfig, RewardTrainer

from rlhf_bench.harness.checkpoint import DECISIVE
from rlhf_bench.harness.codec import digest
from rlhf_bench.harness.errors import Fault, UserError
from rlhf_bench.harness.files import write
from rlhf_bench.harness.judges.reward import encode, quiet
from rlhf_bench.harness.progress import Advance, Track
from rlhf_bench.harness.types import Checkpoint, Preference
from rlhf_bench.trainers.backends import DRAFT
from rlhf_bench.trainers.recipes import DPORecipe, LoRA, RewardRecipe, Training

Row = dict[str, list[int]]
COMPLETE = "complete.json"
RENAMED = {"learning_rate": "lr", "accuracy": "rewards/accuracies", "margin": "rewards/margins"}
LEFT_OUT = ("num_tokens", "total_flos", "train_runtime", "train_samples_per_second", "train_steps_per_second")
WEIGHTS = ("*.safetensors", "adapter_config.json")


def fit_reward(
    recipe: RewardRecipe, preferences: Sequence[Preference], base: Checkpoint, work: Path, track: Track
) -> Mapping[str, int]:
    """Minimise -log sigmoid(r_chosen - r_rejected) (paper, section 2.1) in `work / "model"`."""
    with quiet(), _faults(work):
        tokenizer = _tokenizer(base)
        rows, facts = _rows(preferences, tokenizer, recipe, base)
        tokenizer.pad_token_id = _padding(tokenizer, {row[side][-1] for row in rows for side in ("chosen", "rejected")})
        data = [{f"{side}_ids": row["prompt"] + row[side] for side in ("chosen", "rejected")} for row in rows]
        set_seed(recipe.seed)  # the new head
        model = _load(AutoModelForSequenceClassification, base, num_labels=1)
        dtype = _stored_dtype(base)
        model.config.get_text_config().pad_token_id = tokenizer.pad_token_id
        trainer = _Reward(
            model=model,
            args=RewardConfig(**_arguments(recipe, work)),
            train_dataset=Dataset.from_list(data),
            processing_class=tokenizer,
            peft_config=_adapters(recipe.lora, model, TaskType.SEQ_CLS),
        )
        draft = _train(trainer, recipe, len(rows), work, track, "train reward")
        trainer.model.config.use_cache = True  # transformers switches it off to train
        _save(trainer, draft, dtype)
        tokenizer.save_pretrained(draft)
    return facts


def fit_dpo(
    recipe: DPORecipe,
    preferences: Sequence[Preference],
    policy: Checkpoint,
    reference: Checkpoint,
    work: Path,
    track: Track,
) -> Mapping[str, int]:
    """Minimise the DPO loss (Rafailov et al., eq. 7) of the policy against the reference, in `work / "model"`."""
    with quiet(), _faults(work):
        tokenizer = _tokenizer(policy)
        if reference.digest != policy.digest and _tokenizer(reference).get_vocab() != tokenizer.get_vocab():
            raise UserError(f"{reference.path} has another vocabulary than {policy.path}: it cannot be its reference")
        rows, facts = _rows(preferences, tokenizer, recipe, policy)
        data = [{f"{part}_ids": ids for part, ids in row.items()} for row in rows]
        set_seed(recipe.seed)
        model = _load(AutoModelForCausalLM, policy)
        dtype = _stored_dtype(policy)
        trainer = _DPO(
            model=model,
            ref_model=None if reference.digest == policy.digest else _load(AutoModelForCausalLM, reference),
            args=DPOConfig(
                **_arguments(recipe, work),
                beta=recipe.beta,
                loss_type=[recipe.loss],
                label_smoothing=recipe.label_smoothing,
                precompute_ref_log_probs=True,
            ),
            train_dataset=Dataset.from_list(data),
            processing_class=tokenizer,
            peft_config=_adapters(recipe.lora, model, TaskType.CAUSAL_LM),
            reference=_Reference(work / f"reference-{digest([reference.digest, data, recipe.dtype])[:12]}.json", track),
        )
        draft = _train(trainer, recipe, len(rows), work, track, "train dpo")
        _save(trainer, draft, dtype)
        _copy_settings(Path(policy.path), draft)
    return facts


class _Reward(RewardTrainer):  # type: ignore[misc]
    """Without telemetry and model card."""

    def _send_telemetry(self) -> None:
        return None

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        return None


class _DPO(DPOTrainer):  # type: ignore[misc]
    """As above; takes rows of token ids as they are, and keeps the reference's log-probabilities where we say."""

    def __init__(self, *, reference: _Reference, **kwargs: Any) -> None:
        self._reference = reference
        super().__init__(**kwargs)

    def _send_telemetry(self) -> None:
        return None

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        return None

    def _prepare_dataset(self, dataset: Dataset, *args: Any) -> Dataset:
        return dataset

    def _precompute_ref_logps(self, dataset: Dataset, name: str, batch_size: int) -> Dataset:
        logps = self._reference.logps(self, dataset, batch_size)
        self.ref_model = None
        for side, values in logps.items():
            dataset = dataset.add_column(f"ref_{side}_logps", values)
        return dataset


class _Reference:
    """The reference's log-probabilities (nats, summed over the answer's tokens) of every pair, computed once."""

    def __init__(self, path: Path, track: Track) -> None:
        self._path = path
        self._track = track

    def logps(self, trainer: Any, dataset: Dataset, batch_size: int) -> dict[str, list[float]]:
        if not self._path.exists():
            found: dict[str, list[float]] = {"chosen": [], "rejected": []}
            rows = list(dataset)
            with self._track("reference log-probabilities", len(rows)) as advance:
                for first in range(0, len(rows), batch_size):
                    batch = trainer.data_collator(rows[first : first + batch_size])
                    batch = {key: value.to(trainer.args.device) for key, value in batch.items()}
                    model = trainer.ref_model or trainer.model
                    for side, values in zip(found, trainer.compute_ref_log_probs(model, batch), strict=True):
                        found[side] += values.tolist()
                    advance(len(rows[first : first + batch_size]))
            write(self._path, json.dumps(found))
        known: dict[str, list[float]] = json.loads(self._path.read_text())
        return known


class _Watch(TrainerCallback):  # type: ignore[misc]
    """Shows progress in pairs, writes metrics.jsonl, stops at a loss that is not finite, marks complete checkpoints."""

    def __init__(self, recipe: Training, pairs: int, metrics: Path, advance: Advance) -> None:
        self._recipe, self._metrics, self._advance = recipe, metrics, advance
        self._total, self._done = pairs * recipe.epochs, 0

    def _show(self, pairs: int) -> None:
        pairs = min(pairs, self._total - self._done)
        self._done += pairs
        self._advance(pairs)

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._show(state.global_step * self._recipe.batch_size)
        self._metrics.write_text("".join(_line(entry) for entry in state.log_history))

    def on_substep_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._show(args.per_device_train_batch_size)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._show(args.per_device_train_batch_size)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._show(self._total)

    def on_log(self, args: Any, state: Any, control: Any, logs: Mapping[str, float], **kwargs: Any) -> None:
        wrong = {key: logs[key] for key in ("loss", "grad_norm") if not math.isfinite(float(logs.get(key, 0.0)))}
        if wrong:
            name, value = next(iter(wrong.items()))
            raise Fault(
                f"the {name} became {value} at step {state.global_step}: lower learning_rate (now "
                f"{self._recipe.learning_rate:g}) or try dtype float32; no checkpoint was made"
            )
        if "loss" in logs:
            with self._metrics.open("a") as file:
                file.write(_line(state.log_history[-1]))

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        sizes = {file.name: file.stat().st_size for file in folder.iterdir() if file.name != COMPLETE}
        write(folder / COMPLETE, json.dumps(sizes))


def last_complete(folder: Path) -> Path | None:
    """The latest checkpoint in `folder` that was written to its end; half-written ones are removed."""
    complete = []
    for path in sorted(folder.glob("checkpoint-*"), key=lambda path: int(path.name.rpartition("-")[2])):
        try:
            sizes = json.loads((path / COMPLETE).read_text())
            if any((path / name).stat().st_size != size for name, size in sizes.items()):
                raise ValueError("a file is shorter than it was")
        except (OSError, ValueError):
            shutil.rmtree(path)
        else:
            complete.append(path)
    return complete[-1] if complete else None


def _train(trainer: Any, recipe: Training, pairs: int, work: Path, track: Track, label: str) -> Path:
    """Train, from the last complete checkpoint if there is one; returns the empty draft folder with the metrics."""
    draft = work / DRAFT
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir()
    trainer.remove_callback(PrinterCallback)
    with track(label, pairs * recipe.epochs) as advance:
        trainer.add_callback(_Watch(recipe, pairs, work / "metrics.jsonl", advance))
        resume = last_complete(work / "steps")
        trainer.train(resume_from_checkpoint=None if resume is None else str(resume))
    shutil.copy(work / "metrics.jsonl", draft / "metrics.jsonl")
    return draft


def _arguments(recipe: Training, work: Path) -> dict[str, Any]:
    """The recipe in TRL's terms, and every default of transformers and TRL that would act by itself switched off."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UserError("the trl back end trains in one process: start it without torchrun or accelerate launch")
    return {
        "output_dir": str(work / "steps"),
        "num_train_epochs": recipe.epochs,
        "per_device_train_batch_size": recipe.micro_batch,
        "gradient_accumulation_steps": recipe.batch_size // recipe.micro_batch,
        "learning_rate": recipe.learning_rate,
        "lr_scheduler_type": recipe.schedule,
        "warmup_steps": recipe.warmup,  # below 1: a share of all steps
        "weight_decay": recipe.weight_decay,
        "max_grad_norm": recipe.max_grad_norm,
        "optim": "adamw_torch",
        "bf16": recipe.dtype == "bfloat16",
        "gradient_checkpointing": recipe.gradient_checkpointing,
        "max_length": None,
        "seed": recipe.seed,
        "data_seed": recipe.seed,
        "save_strategy": "steps",
        "save_steps": recipe.save_every,
        "save_total_limit": 2,
        "logging_strategy": "steps",
        "logging_steps": 1,
        "logging_nan_inf_filter": False,
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": not torch.cuda.is_available(),
        "dataloader_num_workers": 0,
        "dataloader_pin_memory": False,
    }


def _rows(
    preferences: Sequence[Preference], tokenizer: Any, recipe: Training, start: Checkpoint
) -> tuple[list[Row], dict[str, int]]:
    """Token ids of each pair that fits `max_length` and the model's context, and how many did and did not."""
    config = json.loads((Path(start.path) / "config.json").read_text())
    limit = min(recipe.max_length, config.get("max_position_embeddings") or recipe.max_length)
    rows = []
    for pair in preferences:
        prompt, chosen = encode(tokenizer, pair.prompt, pair.chosen)
        _, rejected = encode(tokenizer, pair.prompt, pair.rejected)
        if len(prompt) + max(len(chosen), len(rejected)) <= limit:
            rows.append({"prompt": prompt, "chosen": chosen, "rejected": rejected})
    if not rows:
        raise UserError(
            f"all {len(preferences)} pairs are longer than {limit} tokens: raise max_length or shorten them"
        )
    return rows, {"pairs": len(rows), "over_length": len(preferences) - len(rows)}


def _padding(tokenizer: Any, last: set[int]) -> int:
    """A token of the vocabulary that ends no conversation (`last` holds those that do) and is not the end of a turn."""
    unused = [token for token, added in sorted(tokenizer.added_tokens_decoder.items()) if added.special]
    for token in (tokenizer.pad_token_id, tokenizer.unk_token_id, *unused):
        if token is not None and token not in {*last, tokenizer.eos_token_id, tokenizer.bos_token_id}:
            return int(token)
    raise UserError(f"the tokenizer of {tokenizer.name_or_path} has no special token left to pad with: add one to it")


def _tokenizer(checkpoint: Checkpoint) -> Any:
    return AutoTokenizer.from_pretrained(checkpoint.path, local_files_only=True)


def _load(cls: Any, checkpoint: Checkpoint, **kwargs: Any) -> Any:
    """The model in float32, from safetensors, without code of its own."""
    return cls.from_pretrained(
        checkpoint.path, dtype=torch.float32, local_files_only=True, use_safetensors=True, **kwargs
    )


def _stored_dtype(checkpoint: Checkpoint) -> torch.dtype:
    config = json.loads((Path(checkpoint.path) / "config.json").read_text())
    dtype: torch.dtype = getattr(torch, config.get("dtype") or config.get("torch_dtype") or "float32")
    return dtype


def _adapters(lora: LoRA | None, model: Any, task: TaskType) -> LoraConfig | None:
    """Adapters on the linear layers of the last `lora.layers` blocks; a new reward head is trained whole."""
    if lora is None:
        return None
    depth = model.config.get_text_config().num_hidden_layers
    first = 0 if lora.layers is None else depth - lora.layers
    linear = [name for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)]
    blocks = {name: int(found[1]) for name in linear if (found := re.search(r"\.(\d+)\.", name))}
    return LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=[name for name, block in blocks.items() if block >= first],
        modules_to_save=["score"] if task == TaskType.SEQ_CLS else None,
        task_type=task,
    )


def _save(trainer: Any, draft: Path, dtype: torch.dtype) -> None:
    """The trained weights, adapters merged, in the precision they came in. Raises Fault if one is not finite."""
    model = trainer.accelerator.unwrap_model(trainer.model)
    if hasattr(model, "merge_and_unload"):
        model = model.merge_and_unload()
    if not all(bool(torch.isfinite(weight).all()) for weight in model.parameters()):
        raise Fault("the trained weights are not finite: lower learning_rate; no checkpoint was made")
    model.to(dtype).save_pretrained(draft)


def _copy_settings(source: Path, draft: Path) -> None:
    """The policy's own config, tokenizer, chat template and generation defaults: DPO changes none of them."""
    for pattern in DECISIVE:
        for file in source.glob(pattern):
            if not pattern.startswith(WEIGHTS):
                (draft / file.relative_to(source)).parent.mkdir(exist_ok=True)
                shutil.copy(file, draft / file.relative_to(source))


def _line(entry: Mapping[str, float]) -> str:
    kept = {RENAMED.get(key, key): value for key, value in entry.items() if key not in LEFT_OUT}
    return json.dumps(kept, sort_keys=True) + "\n" if "loss" in kept else ""


@contextmanager
def _faults(work: Path) -> Iterator[None]:
    try:
        yield
    except torch.OutOfMemoryError:
        raise Fault(
            "the model does not fit: lower micro_batch or max_length, set lora or gradient_checkpointing"
        ) from None
    except SafetensorError as error:
        raise Fault(f"weights could not be written or read in {work}: {error}") from error
