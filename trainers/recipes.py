"""The recipes: one frozen config per trainer, checked once, every default the paper's.

Paper: "RLHF Workflow: From Reward Modeling to Online RLHF" (arXiv 2405.07863), sections 2.1 and 3.3 and Table 7.
Where the paper's published code differs, the field's docstring says so.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal, TypeVar

from pydantic import Field, model_validator

from rlhf_bench.harness.config import Config, read_config
from rlhf_bench.harness.errors import UnknownName, UserError

PRESETS = Path(__file__).parent / "presets"


class LoRA(Config):
    """Low-rank adapters on every linear layer of the body; they are merged into the weights before saving.

    `layers` adapts only the last so many layers: nothing below them is back-propagated, which is what makes training
    on a CPU affordable. None adapts all.
    """

    rank: int = Field(16, ge=1)
    alpha: int = Field(32, ge=1)
    dropout: float = Field(0.0, ge=0, lt=1)
    layers: int | None = Field(None, ge=1)


class Training(Config):
    """What the recipes share.

    `batch_size` is the number of pairs that one optimiser step sees, `micro_batch` the number held in memory at once.
    `max_length` is in tokens, prompt and answer together; a longer pair is left out and counted. `warmup` is a share of
    all steps. `dtype` is what the forward and backward passes compute in; the trained weights are kept in float32
    meanwhile and saved in the precision they came in. `save_every` is in steps. `seed` fixes the order of the data, the
    new weights (reward head, adapters) and dropout.
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

    @model_validator(mode="after")
    def _steps_are_whole(self) -> Training:
        if self.batch_size % self.micro_batch:
            raise ValueError(f"batch_size {self.batch_size} is not a multiple of micro_batch {self.micro_batch}")
        return self


class RewardRecipe(Training):
    """A Bradley-Terry reward model: a linear head on `base`, loss -log sigmoid(r_chosen - r_rejected) (section 2.1).

    The paper states 1 epoch, learning rate 2e-6, batch 512, cosine, warm-up 0.03; weight decay 0.001, 4096 tokens and
    bfloat16 are from its code (RLHF-Reward-Modeling at fc39179). That code adds a '[PAD]' token to the vocabulary, cuts
    longer conversations on the left without saying so, and uses paged 32-bit AdamW; here the vocabulary stays, a longer
    pair is left out and counted, and the optimiser is AdamW.
    """

    base: str = "hf:meta-llama/Meta-Llama-3-8B-Instruct"
    batch_size: int = Field(512, ge=1)
    micro_batch: int = Field(1, ge=1)
    max_length: int = Field(4096, ge=8)
    learning_rate: float = Field(2e-6, gt=0, lt=1)
    weight_decay: float = Field(0.001, ge=0)


class DPORecipe(Training):
    """Direct preference optimisation against a fixed reference policy (section 3.3, Table 7; Rafailov et al. eq. 7).

    The paper states β 0.1, learning rate 5e-7, batch 128 (2 x accumulation), 2 epochs, cosine, warm-up 0.03. Its code
    (Online-RLHF at 3a00ed8) sets no warm-up in the loop, label smoothing 0.1 in `run_loop2.sh`, and cuts prompts at
    1000 of 2048 tokens; here a longer pair is left out and counted. `label_smoothing` needs loss 'robust': TRL 1.16
    takes no notice of it in the others. The paper's reference is the initial policy; the caller names it.
    """

    epochs: int = Field(2, ge=1)
    beta: float = Field(0.1, gt=0)
    loss: Literal["sigmoid", "robust", "ipo", "hinge", "sigmoid_norm"] = "sigmoid"
    label_smoothing: float = Field(0.0, ge=0, lt=0.5)

    @model_validator(mode="after")
    def _smoothing_has_an_effect(self) -> DPORecipe:
        if self.label_smoothing and self.loss != "robust":
            raise ValueError(f"label_smoothing has no effect on loss '{self.loss}': set loss 'robust', or smoothing 0")
        return self


PAPERS: Mapping[type[Training], str] = {RewardRecipe: "paper-reward", DPORecipe: "paper-dpo"}
R = TypeVar("R", bound=Training)


def preset(recipe: type[R], name: str, overrides: Sequence[str] = ()) -> R:
    """The recipe that ships under this name, with `key=value` overrides. Raises UnknownName, or UserError for a key."""
    known = [file.stem for file in PRESETS.glob("*.yaml")]
    if name not in known:
        raise UnknownName("preset", name, known)
    return read_config(recipe, PRESETS / f"{name}.yaml", overrides)


def recipe_from(recipe: type[R], config: Path | None, name: str | None, overrides: Sequence[str] = ()) -> R:
    """The recipe in a file, or the preset of this name, or the paper's. Raises UserError if both are given."""
    if config is not None and name is not None:
        raise UserError(f"both a config ({config}) and a preset ('{name}') are given: choose one")
    return read_config(recipe, config, overrides) if config else preset(recipe, name or PAPERS[recipe], overrides)
