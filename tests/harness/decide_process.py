"""What the other processes of test_sequential.py do: run, stop and decide at the same time as another."""

from __future__ import annotations

from typing import Any

from tests.harness.worker import Says

from rlhf_bench.harness.errors import LostRace
from rlhf_bench.harness.store import Store


def stop_and_decide(says: Says, url: str, champion_id: str, name: str, barrier: Any) -> None:
    """Begin a run beside another that begins at the same place of the ledger; go on until it is decided. Says the
    verdict, and each level that the run was begun at."""
    from tests.harness.test_sequential import OPEN, Able, data, measure

    from rlhf_bench.harness.claims import RunData
    from rlhf_bench.harness.decide import decide, level_of
    from rlhf_bench.harness.sequential import Stopping

    begun: list[float] = []
    with Store(url) as store:
        champion = RunData.load(store, champion_id)

        def level(run_id: str) -> float:
            begun.append(level_of(store, OPEN, run_id, champion))
            if len(begun) == 1:
                barrier.wait(60)
            return begun[-1]

        while True:
            report = measure(store, Able(name, 0.9, 0.85), Stopping(OPEN, champion, level=level))
            try:
                found = decide(store, OPEN, data(store, report), champion)
            except LostRace:
                continue
            says.send((found.verdict, begun))
            return
