"""Values to canonical JSON and back, and the digest that identifies a value by its content."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from rlhf_bench.harness.errors import CorruptRow
from rlhf_bench.harness.types import Request, Sample

T = TypeVar("T")

_ADAPTERS: dict[Any, TypeAdapter[Any]] = {}


def _adapter(cls: Any) -> TypeAdapter[Any]:
    if cls not in _ADAPTERS:
        _ADAPTERS[cls] = TypeAdapter(cls)
    return _ADAPTERS[cls]


def plain(value: Any) -> Any:
    """`value` as JSON types: dataclasses become objects, tuples become arrays."""
    return _adapter(type(value)).dump_python(value, mode="json")


def dumps(value: Any) -> str:
    """Canonical JSON: sorted keys, no spaces, and no NaN or infinity (ValueError)."""
    return json.dumps(plain(value), sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def loads(cls: type[T], text: str | bytes) -> T:
    """The `cls` that `dumps` wrote. Raises CorruptRow if the text is anything else."""
    try:
        value: T = _adapter(cls).validate_json(text)
    except ValidationError as error:
        raise CorruptRow(f"a stored {cls.__name__} does not parse: {error.errors()[0]['msg']}") from error
    return value


def digest(value: Any) -> str:
    """sha256 over the canonical JSON of `value`, in hex."""
    return hashlib.sha256(dumps(value).encode()).hexdigest()


def request_key(engine: str, request: Request) -> str:
    """Identifies the answer of the engine with this identity to this request."""
    return digest([engine, plain(request)])


def sample_digest(sample: Sample) -> str:
    """Identifies what a sample asks: its requests and its reference, not its id or its place in a file."""
    asked = [[plain(r.prompt), plain(r.sampling), r.continuation, r.index] for r in sample.requests]
    return digest([asked, sample.reference])


def question_digest(sample: Sample) -> str:
    """Identifies the question alone: another seed, temperature or repeat of it is the same one."""
    return digest([sorted({digest([plain(r.prompt), r.continuation]) for r in sample.requests}), sample.reference])


def items_in(manifest: Mapping[str, Any], benchmarks: Iterable[str]) -> dict[str, str]:
    """By benchmark the digest of a run's questions: what decisions on the same samples are counted by.

    The manifest says them under "items"; older ones, and those of files, have the samples' digest alone.
    """
    facts, items = manifest.get("benchmarks", {}), manifest.get("items", {})
    return {name: str(items.get(name) or facts[name].get("digest", "")) for name in benchmarks if name in facts}
