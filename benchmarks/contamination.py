"""Contamination at size: 100,000 prompts against the questions of every registered benchmark, beside a plain way.

The prompts are made up, as long as those of the paper's preference data (Table 5: 250 tokens a pair on average, about
190 words, most much shorter), of the benchmarks' own words in their own frequencies, so that no n-gram is discarded for
an unknown word; one in a hundred holds a stretch of a real question. The command is timed from start to end, first
with nothing in its cache, then with the index; and its parts. The plain way keeps every n-gram as a tuple of words in a
dictionary and looks up each of a prompt's; on the prompts that both search, both must find the same.

    RLHF_BENCH_DATA=... python benchmarks/contamination.py            # a minute or two
    RLHF_BENCH_DATA=... python benchmarks/contamination.py 5000       # fewer prompts
"""

from __future__ import annotations

import itertools
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np

from rlhf_bench import suites
from rlhf_bench.cli.data import questions
from rlhf_bench.harness.contamination import COMMON, NS, TEMPLATES, Index, build_index, contaminated, words

RESULTS = Path(__file__).parent / "results" / "contamination.json"
MEAN_WORDS = 190
COMPARED = 10_000
"""The plain way searches the first of them only: it takes long."""
TARGET_S = 60.0
T = TypeVar("T")
Grams = Mapping[int, Mapping[tuple[str, ...], Sequence[int]]]


def timed(work: Callable[[], T]) -> tuple[T, dict[str, float]]:
    """What the work gives, and the seconds that it took: of the clock, and of this process's CPU."""
    clock, cpu = time.perf_counter(), time.process_time()
    found = work()
    return found, {"wall_s": round(time.perf_counter() - clock, 2), "cpu_s": round(time.process_time() - cpu, 2)}


def command(prompts: Sequence[str]) -> tuple[int, dict[str, dict[str, float]]]:
    """How many prompts `rlhf-bench data contamination` finds, and the seconds that it takes from start to end."""
    program = [sys.executable, "-c", "from rlhf_bench.cli import entry; entry()", "data", "contamination", "--json"]
    took = {}
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "prompts.jsonl"
        file.write_text("".join(json.dumps({"prompt": prompt}) + "\n" for prompt in prompts))
        for name in ("nothing kept", "the index kept"):
            clock, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
            environment = {**os.environ, "RLHF_BENCH_CACHE": folder}
            said = subprocess.run([*program, str(file)], env=environment, check=True, stdout=subprocess.PIPE).stdout
            after = resource.getrusage(resource.RUSAGE_CHILDREN)
            cpu_s = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
            took[name] = {"wall_s": round(time.perf_counter() - clock, 2), "cpu_s": round(cpu_s, 2)}
    return json.loads(said)["contaminated"], took


def made_up(count: int, texts: Mapping[str, Sequence[str]]) -> list[str]:
    """Prompts of the benchmarks' words, lognormal in length; each hundredth quotes twenty words of a question."""
    rng = np.random.default_rng(0)
    items = [text.split() for each in texts.values() for text in each]
    seen = Counter(itertools.chain.from_iterable(items))
    vocabulary, counts = list(seen), np.array([*seen.values()], dtype=np.float64)
    lengths = np.maximum(3, rng.lognormal(np.log(MEAN_WORDS) - 0.5, 1.0, count)).astype(int)
    drawn = iter(rng.choice(len(vocabulary), size=int(lengths.sum()), p=counts / counts.sum()).tolist())
    prompts = [[vocabulary[next(drawn)] for _ in range(length)] for length in lengths]
    long = [item for item in items if len(item) >= 25]
    for place in range(0, count, 100):
        item = long[int(rng.integers(len(long)))]
        at = int(rng.integers(len(item) - 20))
        prompts[place] += item[at : at + 20]
    return [" ".join(prompt) for prompt in prompts]


def plain_index(texts: Mapping[str, Sequence[str]]) -> Grams:
    """Every n-gram that counts, as a tuple of words, with the numbers of its items."""
    found: dict[int, dict[tuple[str, ...], list[int]]] = {n: defaultdict(list) for n in NS}
    templates = [words(text) for text in TEMPLATES]
    number = 0
    for each in texts.values():
        split = [words(text) for text in each]
        for n in NS:
            grams = [{tuple(text[i : i + n]) for i in range(len(text) - n + 1)} for text in split]
            usual = Counter(itertools.chain.from_iterable(grams))
            ignored = {tuple(text[i : i + n]) for text in templates for i in range(len(text) - n + 1)}
            for item, some in enumerate(grams, start=number):
                for gram in some:
                    telling = any(len(word) > 1 and not word.isnumeric() for word in gram)
                    if usual[gram] <= COMMON and gram not in ignored and telling:
                        found[n][gram].append(item)
        number += len(split)
    return found


def plain_search(prompts: Sequence[str], grams: Grams) -> set[tuple[int, int, int]]:
    """(prompt, item, n) by looking up the tuple of words at every place."""
    hits = set()
    for number, prompt in enumerate(prompts):
        text = words(prompt)
        for n in NS:
            for at in range(len(text) - n + 1):
                for item in grams[n].get(tuple(text[at : at + n]), ()):
                    hits.add((number, item, n))
    return hits


def ours(prompts: Sequence[str], index: Index) -> set[tuple[int, int, int]]:
    """The same by the index, without the items of fewer than n words, which the plain way does not look for."""
    number = {name: place for place, name in enumerate(index.names)}
    found = {(hit.prompt, number[hit.benchmark, hit.item], hit.n) for hit in contaminated(prompts, index)}
    return {hit for hit in found if index.lengths[hit[1]] >= hit[2]}


def main() -> None:
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 100_000
    texts, loading = timed(lambda: {name: questions(suites.benchmark(name)) for name in suites.BENCHMARKS})
    index, building = timed(lambda: build_index(texts))
    prompts = made_up(count, texts)
    hits, searching = timed(lambda: contaminated(prompts, index))
    load = os.getloadavg()[0]
    found_by_command, as_run = command(prompts)
    if found_by_command != len({hit.prompt for hit in hits}):
        raise SystemExit(f"the command finds {found_by_command} prompts")
    compared = prompts[:COMPARED]
    grams, plain_building = timed(lambda: plain_index(texts))
    theirs, plain = timed(lambda: plain_search(compared, grams))
    found, same = timed(lambda: ours(compared, index))
    if found != theirs:
        raise SystemExit(f"the two differ: {sorted(found ^ theirs)[:5]}")
    result = {
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, one used; load average {load:.1f} before",
        "prompts": count,
        "words a prompt": round(sum(len(prompt.split()) for prompt in prompts) / count),
        "items": sum(map(len, texts.values())),
        "prompts with a hit": len({hit.prompt for hit in hits}),
        "the command from start to end": as_run | {"target_s": TARGET_S},
        "load the questions (kept in the cache after)": loading,
        "build the index (kept in the cache after)": building,
        "search": searching,
        f"plain way, {len(compared)} prompts": {"index": plain_building, "search": plain},
        f"ours, the same {len(compared)} prompts and the same {len(found)} hits": same,
        "ratio of CPU time, plain to ours": round(plain["cpu_s"] / same["cpu_s"], 2),
    }
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
