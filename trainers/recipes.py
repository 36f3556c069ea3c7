"""The recipes: one frozen config per trainer, checked once, every default the paper's.

Paper: "RLHF Workflow: From Reward Modeling to Online RLHF" (arXiv 2405.07863), sections 2.1 and 3.3 and Table 7.
Where the paper's published code differs, the field's docstring says so.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Literal, TypeVar

from pydantic import Field, model_validator

from rlhf_bench.harness.config import Config, read_config
from rlhf_bench.harness.errors import UnknownName, UserError
from rlhf_bench.harness.types import Later

PRESETS = Path(__file__).parent / "presets"
Tracker = Literal["tensorboard", "wandb", "mlflow", "trackio"]


class LoRA(Config):
    """Low-rank adapters on every linear layer of the body; they are merged into the weights before saving.

    `layers` adapts only the last so many layers: nothing below them is back-propagated, which is what makes training
    on a CPU affordable. None adapts all. `bits` 4 or 8 keeps the frozen weights in so many (QLoRA, Dettmers et al.
    2023; it needs a GPU and bitsandbytes, the extra `qlora`).
    """

    rank: int = Field(16, ge=1)
    alpha: int = Field(32, ge=1)
    dropout: float = Field(0.0, ge=0, lt=1)
    layers: int | None = Field(None, ge=1)
    bits: Annotated[Literal[4, 8] | None, Later] = None


class Needs(Config):
    """What a preset takes, on which machine; `measured` by this project, or else estimated."""

    hours: float = Field(gt=0)
    memory_gb: float = Field(gt=0)
    machine: str = Field(min_length=1)
    measured: bool = False


class Training(Config):
    """What the recipes share.

    `batch_size` is the number of pairs that one optimiser step sees, of all processes together, and `micro_batch` the
    number that one process holds in memory at once; only memory and speed hang on the latter.
    `max_length` is in tokens, prompt and answer together; a longer pair is left out and counted. `warmup` is a share of
    all steps. `dtype` is what the forward and backward passes compute in; the trained weights are kept in float32
    meanwhile and saved in the precision they came in. `save_every` is in steps, and the last `keep` of these stay until
    the training is done. `seed` fixes the order of the data, the new weights (reward head, adapters) and dropout.
    `shard` is how several processes share a model that one cannot hold: fully sharded (PyTorch) or DeepSpeed's stages.
    `report_to` are trackers that TRL knows (tensorboard, wandb, mlflow, trackio), beside metrics.jsonl. `needs` is what
    a preset takes. `keep`, `report_to` and `needs` change no weights: they are no part of what made a checkpoint.
    """

    epochs: int = Field(1, ge=1)
    batch_size: int = Field(128, ge=1)
    micro_batch: int = Field(2, ge=1)
    max_length: int = Field(2048, ge=8)
    learning_rate: float = Field(5e-7, gt=0, lt=1)
    schedule: Literal["cosine", "linear", "constant_with_warmup"] = "cosine"
    warmup: float = Field(0.03, ge=0, lt=1)
    weight_decay: float = Field(0.0, ge=0)
    max_grad_norm: float = Field(1.0, gt=0)
    dtype: Literal["bfloat16", "float32"] = "bfloat16"
    lora: LoRA | None = None
    gradient_checkpointing: bool = True
    save_every: int = Field(50, ge=1)
    seed: int = Field(42, ge=0)
    shard: Annotated[Literal["fsdp", "zero2", "zero3"] | None, Later] = None
    keep: int = Field(2, ge=1, exclude=True)
    report_to: tuple[Tracker, ...] = Field((), exclude=True)
    needs: Needs | None = Field(None, exclude=True)

    @model_validator(mode="after")
    def _steps_are_whole(self) -> Training:
        if self.batch_size % self.micro_batch:
            raise ValueError(f"batch_size {self.batch_size} is not a multiple of micro_batch {self.micro_batch}")
        return self

    def warmup_steps(self, steps: int) -> int:
        """Of so many steps those that warm up, of which the first has learning rate 0; never all of them."""
        return min(math.ceil(self.warmup * steps), steps - 1)


class SFTRecipe(Training):
    """Supervised fine-tuning on conversations, loss on the assistant's turns only (section 3.1, appendix B.3).

    The paper states 1 epoch, learning rate 2e-5, cosine, warm-up 0.03, batch 32, packed blocks of 8192 tokens. Its code
    trains on the assistant only in one of two scripts, and on the whole text in the other. `packing` puts several
    conversations into one row of `max_length` tokens, none of which sees another; `batch_size` then counts rows.
    `chat_template` is what a base model is to speak: llama3, chatml, or a Jinja file; its control tokens must be in the
    vocabulary. None is the model's own.
    """

    base: str = "hf:meta-llama/Meta-Llama-3-8B"
    batch_size: int = Field(32, ge=1)
    micro_batch: int = Field(1, ge=1)
    max_length: int = Field(8192, ge=8)
    learning_rate: float = Field(2e-5, gt=0, lt=1)
    packing: bool = True
    chat_template: str | None = None


class RewardRecipe(Training):
    """A Bradley-Terry reward model: a linear head on `base`, loss -log sigmoid(r_chosen - r_rejected) (section 2.1).

    The paper states 1 epoch, learning rate 2e-6, batch 512, cosine, warm-up 0.03; weight decay 0.001, 4096 tokens and
    bfloat16 are from its code (RLHF-Reward-Modeling at fc39179). That code adds a '[PAD]' token to the vocabulary, cuts
    longer conversations on the left without saying so, and uses paged 32-bit AdamW; here the vocabulary stays, a longer
    pair is left out and counted, and the optimiser is AdamW.

    Further options, off by default: `centring` c adds c·(r_chosen + r_rejected)², which fixes the free constant
    (Eisenstein et al. 2023); `use_margin` subtracts each pair's margin (Llama 2, eq. 2); `label_smoothing` ε takes the
    chosen answer to be the worse one with that chance.
    """

    base: str = "hf:meta-llama/Meta-Llama-3-8B-Instruct"
    batch_size: int = Field(512, ge=1)
    micro_batch: int = Field(1, ge=1)
    max_length: int = Field(4096, ge=8)
    learning_rate: float = Field(2e-6, gt=0, lt=1)
    weight_decay: float = Field(0.001, ge=0)
    centring: Annotated[float, Later] = Field(0.0, ge=0)
    use_margin: Annotated[bool, Later] = False
    label_smoothing: Annotated[float, Later] = Field(0.0, ge=0, lt=0.5)


class PreferenceRecipe(Training):
    """A pairwise preference model: `base` reads a prompt and two answers and says A or B (section 2.1).

    The paper states 1 epoch, learning rate 5e-6, batch 128, packed 3072 tokens, cosine, warm-up 0.03 (its YAML: 40
    steps). `[CONTEXT] … [RESPONSE A] … [RESPONSE B] …`, the loss on the one token of the answer; which of the answers
    is A is drawn by `seed`, and scoring averages both orders.
    """

    base: str = "hf:meta-llama/Meta-Llama-3-8B-Instruct"
    batch_size: int = Field(128, ge=1)
    micro_batch: int = Field(1, ge=1)
    max_length: int = Field(3072, ge=8)
    learning_rate: float = Field(5e-6, gt=0, lt=1)
    packing: bool = True


class DPORecipe(Training):
    """Direct preference optimisation against a fixed reference policy (section 3.3, Table 7; Rafailov et al. eq. 7).

    The paper states β 0.1, learning rate 5e-7, batch 128 (2 x accumulation), 2 epochs, cosine, warm-up 0.03. Its code
    (Online-RLHF at 3a00ed8) sets no warm-up in the loop, label smoothing 0.1 in `run_loop2.sh`, and cuts prompts at
    1000 of 2048 tokens; here a longer pair is left out and counted. The paper's reference is the initial policy; the
    caller names it.

    `loss`: sigmoid (DPO), ipo (Azar et al. 2023), hinge (Zhao et al. 2023), sigmoid_norm (DPO on log-probabilities
    divided by the answer's length, as Tulu 3), simpo (Meng et al. 2024: no reference, `target_margin` γ), robust
    (Chowdhury et al. 2024). `label_smoothing` ε is for sigmoid (conservative DPO) and robust. `nll_weight` α adds α
    times the chosen answer's negative log-likelihood a token (RPO; the paper's code: rpo_alpha).
    """

    epochs: int = Field(2, ge=1)
    beta: float = Field(0.1, gt=0)
    loss: Literal["sigmoid", "robust", "ipo", "hinge", "sigmoid_norm", "simpo"] = "sigmoid"
    label_smoothing: float = Field(0.0, ge=0, lt=0.5)
    target_margin: Annotated[float, Later] = Field(0.0, ge=0)
    nll_weight: Annotated[float, Later] = Field(0.0, ge=0)

    @model_validator(mode="after")
    def _options_have_an_effect(self) -> DPORecipe:
        if self.label_smoothing and self.loss not in ("sigmoid", "robust"):
            raise ValueError(
                f"label_smoothing has no effect on loss '{self.loss}': set loss 'sigmoid' or 'robust', or 0"
            )
        if self.target_margin and self.loss != "simpo":
            raise ValueError(f"target_margin has no effect on loss '{self.loss}': set loss 'simpo', or margin 0")
        return self


KINDS: Mapping[str, type[Training]] = {
    "sft": SFTRecipe,
    "reward": RewardRecipe,
    "preference": PreferenceRecipe,
    "dpo": DPORecipe,
}
"""What is trained, as the presets' names end."""
R = TypeVar("R", bound=Training)


def presets(recipe: type[Training]) -> list[str]:
    """The names of the recipes of this kind that ship."""
    kind = next(name for name, cls in KINDS.items() if cls is recipe)
    return sorted(file.stem for file in PRESETS.glob(f"*-{kind}.yaml"))


def preset(recipe: type[R], name: str, overrides: Sequence[str] = ()) -> R:
    """The recipe that ships under this name, with `key=value` overrides. Raises UnknownName, or UserError for a key."""
    known = presets(recipe)
    if name not in known:
        raise UnknownName("preset", name, known)
    return read_config(recipe, PRESETS / f"{name}.yaml", overrides)


def recipe_from(recipe: type[R], config: Path | None, name: str | None, overrides: Sequence[str] = ()) -> R:
    """The recipe in a file, or the preset of this name, or the paper's. Raises UserError if both are given."""
    if config is not None and name is not None:
        raise UserError(f"both a config ({config}) and a preset ('{name}') are given: choose one")
    if config is not None:
        return read_config(recipe, config, overrides)
    return preset(recipe, name or next(each for each in presets(recipe) if each.startswith("paper-")), overrides)
