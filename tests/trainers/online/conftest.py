"""A tiny policy that says some words and stops, and a reward model that ranks what it says."""

from __future__ import annotations

from pathlib import Path

import pytest

WORDS = ("sea", "train", "gas", "poem", "capital", "plant", "blue", "wide", "fast", "hour", "mile", "short")


@pytest.fixture(scope="session")
def talker(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model, taught in a few steps to say some words and then to stop."""
    import torch
    from transformers import AutoTokenizer, LlamaForCausalLM

    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(tiny_checkpoint)
    model = LlamaForCausalLM.from_pretrained(tiny_checkpoint)
    texts = [
        tokenizer.apply_chat_template(
            [
                {"role": "user", "content": f"Tell me about the {word}-{i}."},
                {"role": "assistant", "content": " ".join(WORDS[(i * 5 + k) % len(WORDS)] for k in range(3 + i % 4))},
            ],
            tokenize=False,
        )
        for i, word in enumerate(WORDS * 2)
    ]
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for step in range(120):
        ids = torch.tensor([tokenizer(texts[step % len(texts)], add_special_tokens=False)["input_ids"]])
        model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    path = tmp_path_factory.mktemp("talker") / "model"
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


@pytest.fixture(scope="session")
def reward(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A reward model with a random head on the tiny model: enough to rank answers."""
    import torch
    from transformers import AutoTokenizer, LlamaForSequenceClassification

    torch.manual_seed(1)
    path = tmp_path_factory.mktemp("reward") / "model"
    LlamaForSequenceClassification.from_pretrained(tiny_checkpoint, num_labels=1).save_pretrained(path)
    AutoTokenizer.from_pretrained(tiny_checkpoint).save_pretrained(path)
    return path
