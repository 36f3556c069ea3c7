"""What the other processes of test_store.py do; each says what it has done."""

from __future__ import annotations

from dataclasses import replace

from tests.harness.worker import Says

from rlhf_bench.harness.codec import digest
from rlhf_bench.harness.errors import LostRace
from rlhf_bench.harness.store import Store
from rlhf_bench.harness.types import Completion, Verdict


def write_and_acknowledge(says: Says, url: str, name: str, batches: int) -> None:
    """Save batches of 8 answers; the keys are said after the call that saved them has returned."""
    with Store(url) as store:
        for batch in range(batches):
            answers = [Completion(name, index, f"{name} {batch} " * 50, "stop", index) for index in range(8)]
            items = {digest(answer): answer for answer in answers}
            store.save_completions(items)
            says.send(list(items))


def compete_for_ten_generations(says: Says, url: str, name: str) -> None:
    """Try to win each generation in turn; those that were won are said."""
    with Store(url) as store:
        for generation in range(10):
            try:
                won = store.set_champion(name, expect_generation=generation, verdict_id=None, reason="race")
            except LostRace:
                continue
            says.send(won.generation)


def decide_once(says: Says, url: str, verdict: Verdict) -> None:
    """Spend the alpha of the next decision, computed anew while others come first, as the gate does; say its number."""
    with Store(url) as store:
        while True:
            before = len(store.decisions(verdict.items))
            decided = replace(verdict, decision=before + 1, spent=0.03 / (before + 1) ** 2)
            try:
                says.send(store.save_verdict(decided, expect_decisions=before))
                return
            except LostRace:
                continue
