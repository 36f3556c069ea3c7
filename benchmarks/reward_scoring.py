"""Rewards of n answers to each prompt, the prompt computed once, against each (prompt, answer) computed alone.

    python benchmarks/reward_scoring.py           # n = 8, prompts as long as the answers and longer: some 8 minutes
    python benchmarks/reward_scoring.py --quick   # the shortest case, once: about a minute

SmolLM2-135M-Instruct with a reward head drawn by a seed, fp32, CPU. The peer is transformers' own attention on the same
token ids, one input at a time and in batches (of equal lengths, so that nothing is padded), whichever is faster. Every
reward is compared; what is timed is CPU time of this process, tokenization not counted for the peer, the best of the
rounds, in which the three take turns. The token bound is n(p + a) / (p + na) for p and a tokens of prompt and answer.
Results are kept in benchmarks/results/ case by case, so a stopped run goes on; remove the file to measure anew.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as the command line does
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import numpy as np
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from rlhf_bench.harness.checkpoint import checkpoint_digest
from rlhf_bench.harness.judges.reward import RewardModel, encode, padded_ends, quiet
from rlhf_bench.harness.types import Checkpoint, Conversation, Message
from rlhf_bench.harness.weights import fetch_smollm2

RESULTS = Path(__file__).parent / "results" / "reward_scoring.json"
N = 8
CASES = ((64, 64, 2), (128, 128, 1), (256, 256, 1), (256, 64, 2), (512, 128, 1))
"""Tokens of the prompt, tokens of each answer, prompts."""
WITHIN = 1e-4
WORDS = ("the", "sea", "is", "wide", "and", "blue", "a", "train", "goes", "fast", "to", "town", "we", "read", "about")
Items = list[tuple[Conversation, str]]


@dataclass(frozen=True)
class Result:
    """Seconds of CPU, and the largest difference of a reward."""

    prompt: int
    answer: int
    prompts: int
    ours_s: float
    alone_s: float
    batched_s: float
    difference: float

    @property
    def bound(self) -> float:
        return N * (self.prompt + self.answer) / (self.prompt + N * self.answer)

    @property
    def ratio(self) -> float:
        return min(self.alone_s, self.batched_s) / self.ours_s


def reward_checkpoint(folder: Path) -> Checkpoint:
    """SmolLM2 with a reward head of its own, saved in float32."""
    base = fetch_smollm2()
    with quiet(), torch.random.fork_rng():
        torch.manual_seed(0)
        model = AutoModelForSequenceClassification.from_pretrained(base, num_labels=1, dtype=torch.float32)
        model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(base).save_pretrained(folder)
    return Checkpoint(str(folder), checkpoint_digest(folder))


def text(rng: np.random.Generator, tokens: int, length: Callable[[str], int]) -> str:
    """Words whose `length` in tokens is `tokens`, or the nearest above."""
    words = [str(word) for word in rng.choice(WORDS, tokens)]
    while length(" ".join(words)) > tokens and len(words) > 1:
        words.pop()
    while length(" ".join(words)) < tokens:
        words.append(str(rng.choice(WORDS)))
    return " ".join(words)


def items_of(tokenizer: object, prompt: int, answer: int, prompts: int) -> Items:
    """N answers to each prompt; lengths in tokens, those of the template included."""
    rng = np.random.default_rng(prompt)
    found: Items = []
    for _ in range(prompts):
        asked = user(text(rng, prompt, lambda said: len(encode(tokenizer, user(said), "a")[0])))
        found += [(asked, text(rng, answer, lambda said: len(encode(tokenizer, user("a"), said)[1]))) for _ in range(N)]
    return found


def user(said: str) -> Conversation:
    return (Message("user", said),)


class Peer:
    """transformers' sequence classifier, prompt and answer together, as it comes."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        with quiet():
            self.model = AutoModelForSequenceClassification.from_pretrained(checkpoint.path, dtype=torch.float32).eval()

    @torch.inference_mode()
    def rewards(self, rows: Sequence[list[int]], batch_tokens: int) -> list[float]:
        found: dict[int, float] = {}
        for numbers, states in padded_ends(self.model.base_model, rows, batch_tokens):
            found |= dict(zip(numbers, self.model.score(states)[:, 0].tolist(), strict=True))
        return [found[number] for number in range(len(rows))]


def measured(ours: RewardModel, peer: Peer, tokenizer: object, case: tuple[int, int, int], rounds: int) -> Result:
    """The three take turns, and agree."""
    items = items_of(tokenizer, *case)
    pieces = [encode(tokenizer, *item) for item in items]
    rows = [[*head, *tail] for head, tail in pieces]
    works: dict[str, Callable[[], list[float | None]]] = {
        "ours": lambda: ours.rewards(items),
        "alone": lambda: [*peer.rewards(rows, 1)],
        "batched": lambda: [*peer.rewards(rows, 4096)],
    }
    seconds: dict[str, list[float]] = {name: [] for name in works}
    rewards: dict[str, np.ndarray[tuple[int], np.dtype[np.float64]]] = {}
    for _ in range(rounds):
        for name, work in works.items():
            began = time.process_time()
            values = work()
            seconds[name].append(time.process_time() - began)
            rewards[name] = np.array(values, dtype=np.float64)
    difference = max(float(np.abs(rewards[name] - rewards["alone"]).max()) for name in ("ours", "batched"))
    assert difference <= WITHIN, f"rewards differ by {difference:.1e}"
    best = {f"{name}_s": min(each) for name, each in seconds.items()}
    return Result(len(pieces[0][0]), len(pieces[0][1]), case[2], difference=difference, **best)


def main() -> None:
    """Measure what is not kept yet, print it, and keep it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--quick", action="store_true", help="the shortest case, once; nothing is kept")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    kept = {} if asked.quick or not RESULTS.exists() else json.loads(RESULTS.read_text())
    print(f"{N} answers to each prompt, {asked.threads} thread, torch {torch.__version__}")
    print("prompt answer prompts   alone s  batched s  ours s   ratio  bound  largest difference   load")
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = reward_checkpoint(Path(folder))
        ours, peer = RewardModel(checkpoint, name="ours", device="cpu"), Peer(checkpoint)
        assert ours.shares
        tokenizer = AutoTokenizer.from_pretrained(checkpoint.path)
        for case in CASES[:1] if asked.quick else CASES:
            name = "x".join(map(str, case))
            if name not in kept:
                found = measured(ours, peer, tokenizer, case, 1 if asked.quick else asked.rounds)
                kept[name] = asdict(found) | {"load": round(os.getloadavg()[0], 1)}
            if not asked.quick:
                RESULTS.write_text(json.dumps(kept, indent=1) + "\n")
            show(Result(**{key: value for key, value in kept[name].items() if key != "load"}), kept[name]["load"])


def show(r: Result, load: float) -> None:
    print(
        f"{r.prompt:6} {r.answer:6} {r.prompts:7} {r.alone_s:9.2f} {r.batched_s:10.2f} {r.ours_s:7.2f} "
        f"{r.ratio:6.2f}x {r.bound:5.2f}x {r.difference:13.1e} {load:12}",
        flush=True,
    )


if __name__ == "__main__":
    main()
