"""From what people call a model to its checkpoint, and to an engine that answers with it."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from rlhf_bench.harness.checkpoint import checkpoint_digest, verify
from rlhf_bench.harness.engines import Engine
from rlhf_bench.harness.engines.scripted import scripted_engine
from rlhf_bench.harness.errors import MissingData, UnknownName, UserError
from rlhf_bench.harness.files import user_path
from rlhf_bench.harness.progress import Track, silent
from rlhf_bench.harness.store import Store
from rlhf_bench.harness.types import Checkpoint
from rlhf_bench.harness.weights import BUILTIN

if TYPE_CHECKING:
    from rlhf_bench.harness.engines.pace import Limits
    from rlhf_bench.harness.prices import Budget

SCRIPTED = "scripted:"
OPENAI = "openai:"
OUTPUTS = "outputs:"
HUB = "hf:"


def resolve(spec: str, store: Store, track: Track = silent) -> Checkpoint:
    """The checkpoint that `spec` means, its files checked against its digest; one that is new here is registered.

    `spec` is an alias, a built-in model (fetched at its first use), "champion", the beginning of a registered digest,
    a folder, or hf:org/name[@revision]. Raises UnknownName, MissingData, or ChangedCheckpoint where files are no longer
    what was registered.
    """
    if not spec:
        raise UserError("the model's name is empty: give an alias, a folder or hf:org/name")
    known = store.alias(spec)
    if known is None or (spec in BUILTIN and not Path(known.path).is_dir()):
        known = _champion(store) if spec == "champion" else _by_digest(spec, store)
    if known is not None:
        verify(known)
        return known
    if spec in BUILTIN:
        return _register(BUILTIN[spec](track), store, alias=spec)
    if spec.startswith(HUB):
        return _register(_download(spec.removeprefix(HUB), track), store)
    if Path(spec).is_dir():
        return _register(Path(spec).resolve(), store)
    if "/" in spec:
        raise MissingData(f"there is no folder {spec}. A model of the hub is written hf:org/name.")
    raise UnknownName("model", spec, {*store.aliases(), *BUILTIN, "champion"}, "A folder or hf:org/name will do too.")


def open_engine(
    spec: str,
    store: Store,
    *,
    engine: str = "auto",
    dtype: str = "auto",
    device: str = "auto",
    batch_tokens: int | None = None,
    references: Callable[[], Mapping[str, str]] | None = None,
    limits: Limits | None = None,
    budget: Budget | None = None,
    keyless: bool = False,
    track: Track = silent,
) -> Engine:
    """An engine: `scripted:NAME`, `openai:MODEL[@BASE_URL]`, `outputs:FILE` (answers that are there already), or one
    with the checkpoint that `spec` means.

    `engine` says which that is (`engines.choice`): hf, vllm, or auto, which is vLLM where it is installed and a GPU is
    there; a dtype in it goes before `dtype`. `batch_tokens` is for hf. `references` gives the right answers by sample
    id to scripted:oracle, which alone calls it; `limits`, `budget` and `keyless` (it is only planned with) are for an
    API.
    """
    if spec.startswith(SCRIPTED):
        return scripted_engine(spec.removeprefix(SCRIPTED), references)
    if spec.startswith(OUTPUTS):
        from rlhf_bench.harness.engines.replayed import replayed

        return replayed(user_path(spec.removeprefix(OUTPUTS)))
    if spec.startswith(OPENAI):
        from rlhf_bench.harness.engines.openai import OpenAIEngine

        return OpenAIEngine.of(spec, budget=budget, keyless=keyless, **({} if limits is None else {"limits": limits}))
    return _local(spec, store, engine, dtype, device, batch_tokens, track)


def engine_here(engine: str, device: str = "auto") -> str:
    """The engine that `engine` means on this machine, with "auto" decided. Raises UserError where it means none."""
    from rlhf_bench.harness.engines.choice import MISSING, parse, vllm_version

    choice = parse(engine)
    if choice.name == "vllm" and not vllm_version():
        raise UserError(MISSING)
    return str(choice.settled(device))


def _local(
    spec: str, store: Store, engine: str, dtype: str, device: str, batch_tokens: int | None, track: Track
) -> Engine:
    from rlhf_bench.harness.engines.choice import parse

    choice = parse(engine_here(engine, device))
    checkpoint = resolve(spec, store, track)
    dtype = choice.dtype or dtype
    if choice.name == "vllm":
        from rlhf_bench.harness.engines.vllm import VLLMEngine

        return VLLMEngine(checkpoint, name=spec, dtype=dtype, device=device, serving=choice.serving)
    from rlhf_bench.harness.engines.hf import HFEngine

    return HFEngine(checkpoint, name=spec, dtype=dtype, device=device, batch_tokens=batch_tokens)


def _champion(store: Store) -> Checkpoint:
    champion = store.champion()
    if champion is None:
        raise UserError("there is no champion yet: `rlhf-bench promote --first MODEL` or `rlhf-bench iterate` sets one")
    found = store.checkpoint(champion.checkpoint)
    if found is None:
        raise MissingData(f"the champion {champion.checkpoint[:12]} is not registered: rlhf-bench models register")
    return found


def _by_digest(spec: str, store: Store) -> Checkpoint | None:
    return store.checkpoint(spec) if re.fullmatch("[0-9a-f]{6,64}", spec) else None


def _register(path: Path, store: Store, alias: str | None = None) -> Checkpoint:
    """The checkpoint in this folder. Raises ChangedCheckpoint if another one was registered there."""
    digest = checkpoint_digest(path)
    here = {each.digest for each, _ in store.checkpoints() if each.path == str(path)}
    if here and digest not in here:
        verify(Checkpoint(str(path), here.pop()))
    known = store.checkpoint(digest)
    if known is None or not Path(known.path).is_dir() or alias:
        store.register(Checkpoint(str(path), digest), alias=alias)
    return replace(known, path=str(path)) if known else Checkpoint(str(path), digest)


def _download(name: str, track: Track) -> Path:
    """A model of the hub, or of the hub's cache on this machine."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    repository, _, revision = name.partition("@")
    wanted = ["*.json", "*.safetensors", "*.txt", "*.jinja", "*.model"]
    try:
        with track(f"{HUB}{name}", 1) as advance:
            path = snapshot_download(repository, revision=revision or None, allow_patterns=wanted)
            advance(1)
    except LocalEntryNotFoundError as error:
        raise MissingData(f"{HUB}{name} is not on this machine and the hub is not reached; give a folder.") from error
    except (HfHubHTTPError, HFValidationError) as error:
        raise UserError(
            f"the hub does not give '{name}'; write hf:org/name[@revision], and log in where it is gated."
        ) from error
    return Path(path)
