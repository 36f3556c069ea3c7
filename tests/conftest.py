"""What the tests share: real weights, a tiny model, the data mirror and an empty store."""

from __future__ import annotations

import os

os.environ["HF_HUB_OFFLINE"] = "1"  # read by huggingface_hub when it is imported, so it is set before anything else
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as the command line does: tests share their cores

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings

if TYPE_CHECKING:
    from rlhf_bench.harness.store import Store

# The same examples at each run, so that a red run is of the change at hand; `make test-all` looks for new ones. No test
# is about time.
settings.register_profile("pinned", derandomize=True, deadline=None)
settings.register_profile("explore", derandomize=False, deadline=None)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "pinned"))

ROOT = Path(__file__).resolve().parent.parent
CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
WORDS = ("sea", "train", "gas", "poem", "capital", "plant", "blue", "wide", "fast", "hour", "mile", "short")
TINY_TEXT = [
    "The capital of France is Paris, and the capital of Japan is Tokyo.",
    "If a train travels 60 miles in 2 hours, how fast does it go? 60 / 2 = 30 miles an hour.",
    "Question: Which gas do plants absorb?\nAnswer: carbon dioxide",
    "def add(a, b):\n    return a + b\n",
    "Write a short poem about the sea. The sea is wide, the sea is blue.",
    "user assistant system A. B. C. D. yes no true false 0 1 2 3 4 5 6 7 8 9",
]


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """The folder of SmolLM2-135M-Instruct: real weights, converted once per machine."""
    from rlhf_bench.harness.weights import fetch_smollm2

    return fetch_smollm2()


@pytest.fixture(scope="session")
def mirror() -> Path:
    """The folder of the pinned data."""
    given = os.environ.get("RLHF_BENCH_DATA")
    path = Path(given) if given else ROOT.parent / "shared" / "data"
    if not path.is_dir():
        pytest.skip(f"no data: RLHF_BENCH_DATA is not set to a folder and there is no {path}")
    return path.resolve()


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a randomly initialised Llama of 0.3M parameters with a byte-level BPE tokenizer and ChatML.

    As in SmolLM2, pad equals eos (`<|im_end|>`), bos is `<|im_start|>`, and the context has 512 positions.
    """
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    bpe.train_from_iterator(
        TINY_TEXT,
        trainers.BpeTrainer(vocab_size=400, special_tokens=special, initial_alphabet=alphabet, show_progress=False),
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        bos_token="<|im_start|>",
        eos_token="<|im_end|>",
        unk_token="<|endoftext|>",
        pad_token="<|im_end|>",
        chat_template=CHATML,
        model_max_length=512,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = LlamaForCausalLM(
            LlamaConfig(
                vocab_size=len(tokenizer),
                hidden_size=96,
                intermediate_size=256,
                num_hidden_layers=2,
                num_attention_heads=4,
                num_key_value_heads=2,
                max_position_embeddings=512,
                tie_word_embeddings=True,
                initializer_range=0.2,
                bos_token_id=tokenizer.bos_token_id,
                eos_token_id=tokenizer.eos_token_id,
                pad_token_id=tokenizer.pad_token_id,
            )
        )
    path = tmp_path_factory.mktemp("tiny") / "model"
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


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


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    """An empty store in a file of its own."""
    from rlhf_bench.harness.store import Store

    with Store(f"sqlite:///{tmp_path}/store.db") as opened:
        yield opened


@contextmanager
def light() -> Iterator[None]:
    """One thread, and a short way for the collections of garbage that a loop asks for between its stages."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()
        torch.set_num_threads(threads)
