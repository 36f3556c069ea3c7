"""A process that answers through the store until it is killed: `python vllm_driver.py CHECKPOINT STORE_URL`."""

import sys
from pathlib import Path

from rlhf_bench.harness.checkpoint import checkpoint_digest
from rlhf_bench.harness.engines.stored import stored_or_asked
from rlhf_bench.harness.engines.vllm import VLLMEngine
from rlhf_bench.harness.store import Store
from rlhf_bench.harness.types import Checkpoint, Message, Request, Sampling


def requests() -> list[Request]:
    """96 sampled answers, of lengths that part, four to a prompt."""
    return [
        Request(
            f"k{number}",
            (Message("user", f"Say {number} words about the sea."),),
            Sampling(max_tokens=16 + 9 * (number % 24), temperature=1.0, seed=index),
            index=index,
        )
        for number in range(24)
        for index in range(4)
    ]


if __name__ == "__main__":
    path = Path(sys.argv[1])
    engine = VLLMEngine(Checkpoint(str(path), checkpoint_digest(path)), name="test", dtype="float32")
    with Store(sys.argv[2]) as store:
        for request, _ in stored_or_asked(requests(), engine, store):
            print(request.sample_id, request.index, flush=True)
