"""Asks an endpoint through a store until it is done or killed: python openai_process.py BASE STORE_URL COUNT"""

from __future__ import annotations

import sys

from rlhf_bench.harness.engines.openai import OpenAIEngine
from rlhf_bench.harness.engines.pace import Limits
from rlhf_bench.harness.engines.stored import stored_or_asked
from rlhf_bench.harness.store import Store
from rlhf_bench.harness.types import Message, Request


def requests(count: int) -> list[Request]:
    return [Request(f"k/{number}", (Message("user", f"kill number {number}"),)) for number in range(count)]


if __name__ == "__main__":
    base, store_url, count = sys.argv[1:]
    engine = OpenAIEngine("stub", base, limits=Limits(concurrency=16))
    with Store(store_url) as store:
        for _, completion in stored_or_asked(requests(int(count)), engine, store):
            print(completion.sample_id, flush=True)
