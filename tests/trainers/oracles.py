"""What a trained checkpoint holds, and what a model gives by plain torch, one sequence at a time, without padding."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from rlhf_bench.harness.judges.reward import encode
from rlhf_bench.harness.types import Checkpoint, Preference


def metrics(checkpoint: Checkpoint) -> list[dict[str, float]]:
    """The lines of metrics.jsonl, without the one figure that no two runs share."""
    rows = [json.loads(line) for line in (Path(checkpoint.path) / "metrics.jsonl").read_text().splitlines()]
    assert all(row.pop("tokens_per_s") > 0 for row in rows)
    return rows


def weights(checkpoint: Checkpoint) -> dict[str, Tensor]:
    return load_file(Path(checkpoint.path) / "model.safetensors")


def opened(checkpoint: Checkpoint) -> tuple[Any, Any]:
    """Tokenizer and causal model, in float32."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(checkpoint.path, dtype=torch.float32)
    return AutoTokenizer.from_pretrained(checkpoint.path), model


def token_logps(model: Any, ids: Sequence[int]) -> Tensor:
    """log p(token | what stands before) of every token but the first, [T - 1]."""
    with torch.no_grad():
        logps_TV = model(torch.tensor([list(ids)])).logits[0].log_softmax(-1)
    found: Tensor = logps_TV[:-1].gather(1, torch.tensor(ids[1:])[:, None])[:, 0]
    return found


def answer_logps(checkpoint: Checkpoint, pairs: Sequence[Preference]) -> tuple[Tensor, Tensor]:
    """log π(answer | prompt) of each chosen and rejected answer, and its tokens, both [pairs, 2]."""
    tokenizer, model = opened(checkpoint)
    values, lengths = [], []
    for pair in pairs:
        for answer in (pair.chosen, pair.rejected):
            head, tail = encode(tokenizer, pair.prompt, answer)
            values.append(float(token_logps(model, head + tail)[-len(tail) :].sum()))
            lengths.append(len(tail))
    return torch.tensor(values).view(-1, 2), torch.tensor(lengths).view(-1, 2)
