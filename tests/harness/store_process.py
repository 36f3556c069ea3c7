"""What the other processes of test_store.py do: `python store_process.py WORK URL NAME`."""

from __future__ import annotations

import sys

from rlhf_bench.harness.codec import digest
from rlhf_bench.harness.errors import LostRace
from rlhf_bench.harness.store import Store
from rlhf_bench.harness.types import Completion


def write_and_acknowledge(url: str, name: str) -> None:
    """Save 60 batches of 8 answers; a key is printed after the call that saved it has returned."""
    with Store(url) as store:
        for batch in range(60):
            answers = [Completion(name, index, f"{name} {batch} " * 50, "stop", index) for index in range(8)]
            items = {digest(answer): answer for answer in answers}
            store.save_completions(items)
            print(*items, sep="\n", flush=True)


def compete_for_ten_generations(url: str, name: str) -> None:
    """Try to win each generation in turn; print those that were won."""
    with Store(url) as store:
        for generation in range(10):
            try:
                won = store.set_champion(name, expect_generation=generation, verdict_id=None, reason="race")
            except LostRace:
                continue
            print(won.generation, flush=True)


if __name__ == "__main__":
    globals()[sys.argv[1]](*sys.argv[2:])
