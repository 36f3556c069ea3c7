"""Policies from scratch: a small Llama; a byte-level BPE tokenizer to which each word of the world is one token."""

from __future__ import annotations

from pathlib import Path

from online.world import VOCABULARY
from rlhf_bench.harness.checkpoint import checkpoint_digest
from rlhf_bench.harness.types import Checkpoint

TEMPLATE = (
    "{% for message in messages %}<|{{ message['role'] }}|>{% if message['role'] == 'user' %} {% endif %}"
    "{{ message['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
CONTEXT = 128
SPREAD = 0.1
"""Of the first weights: about 1/√width. With the usual 0.02 so narrow a model learns little in so few steps."""


def untrained(folder: Path, seed: int, width: int, layers: int) -> Checkpoint:
    """A new model in `folder`, its weights drawn from `seed`; the one that is there already."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    if not folder.is_dir():
        special = ["<|pad|>", "<|end|>", "<|user|>", "<|assistant|>", "<|system|>"]
        core = Tokenizer(models.BPE())
        core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        core.decoder = decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        trainer = trainers.BpeTrainer(
            vocab_size=4096, special_tokens=special, initial_alphabet=alphabet, show_progress=False
        )
        core.train_from_iterator([word + f" {word}" for word in VOCABULARY], trainer)
        tokenizer = PreTrainedTokenizerFast(
            tokenizer_object=core,
            pad_token="<|pad|>",
            eos_token="<|end|>",
            additional_special_tokens=special[2:],
            chat_template=TEMPLATE,
            model_max_length=CONTEXT,
        )
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            model = LlamaForCausalLM(
                LlamaConfig(
                    vocab_size=len(tokenizer),
                    hidden_size=width,
                    intermediate_size=2 * width,
                    num_hidden_layers=layers,
                    num_attention_heads=4,
                    num_key_value_heads=4,
                    max_position_embeddings=CONTEXT,
                    tie_word_embeddings=True,
                    initializer_range=SPREAD,
                    bos_token_id=None,
                    eos_token_id=tokenizer.eos_token_id,
                    pad_token_id=tokenizer.pad_token_id,
                )
            )
        draft = folder.with_name(folder.name + ".draft")
        model.save_pretrained(draft)
        tokenizer.save_pretrained(draft)
        draft.replace(folder)
    return Checkpoint(str(folder), checkpoint_digest(folder))
