"""Finds the pinned data: a mirror (RLHF_BENCH_DATA), then the cache, then the hub, then the pinned URL.

Whatever the place, the content must have the pinned sha256 and row count before a row of it is used. What is
downloaded is kept in the cache under the mirror's own paths. With HF_HUB_OFFLINE=1 nothing is downloaded.
"""

from __future__ import annotations

import csv
import gzip
import hashlib
import http.client
import io
import json
import os
import re
import tempfile
import time
import urllib.request
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import IO, Any, TypeAlias
from urllib.parse import urlsplit

from rlhf_bench.harness.errors import MissingData, UnknownName, UserError
from rlhf_bench.harness.files import user_path
from rlhf_bench.harness.progress import Advance, Track, silent
from rlhf_bench.suites.archives import csv_content, csv_rows, is_archive
from rlhf_bench.suites.pins import PINS, Pin

Row: TypeAlias = Mapping[str, Any]

STALL_S = 20.0
"""Seconds without a byte after which a source is given up."""
DEADLINE_S = 300.0
"""Seconds after which a source is given up, however busy."""

GZIP_BYTES = 1024
"""By how much a gzipped file may be larger than its content."""


def find(name: str) -> Path | None:
    """Where the file lies on this machine, unverified: in the mirror, else in the cache. Raises as `pin`."""
    wanted = pin(name)
    for root in _roots():
        for path in (root / wanted.mirror, root / _unpacked(wanted)):
            if path.is_file():
                return path
    return None


def resolve(name: str, track: Track = silent) -> Path:
    """The verified file, downloaded if it is not on this machine.

    Raises UserError if its content is not what is pinned, MissingData if it is nowhere.
    """
    path = find(name)
    if path is None:
        with track(f"fetch {name}", PINS[name].bytes) as advance:
            path = _cached(PINS[name])
            content, failures = _download(PINS[name], advance)
            if content is None:
                raise _missing(name, failures)
            _write(path, content)
    _load(path, path.stat().st_mtime_ns, PINS[name])
    return path


def rows(name: str) -> Sequence[Row]:
    """The verified rows in file order, read once per process; not to be changed. Raises as `resolve`."""
    path = resolve(name)
    return _load(path, path.stat().st_mtime_ns, PINS[name])


def fetch(names: Iterable[str], track: Track = silent) -> list[Path]:
    """Gets and verifies the files of these benchmarks (or single files), and says where each lies.

    Raises as `resolve`, and UnknownName for a name of neither.
    """
    wanted = dict.fromkeys(one for name in names for one in parts(name))
    return [resolve(name, track) for name in wanted]


def parts(name: str) -> tuple[str, ...]:
    """The names of the pinned files of a benchmark; a single file's name stands for itself. Raises UnknownName."""
    found = tuple(one for one in PINS if one == name or one.startswith(f"{name}/"))
    if not found:
        raise UnknownName("pinned data", name, {*PINS, *(one.split("/")[0] for one in PINS)})
    return found


def digests(names: Iterable[str]) -> dict[str, str]:
    """The sha256 of each file's content: what a manifest says about data. Raises UnknownName."""
    return {name: pin(name).sha256 for name in names}


def pin(name: str) -> Pin:
    """The pin with this name. Raises UnknownName."""
    if name not in PINS:
        raise UnknownName("pinned data", name, PINS)
    return PINS[name]


def _roots() -> Iterator[Path]:
    """The mirror if there is one, then the cache."""
    given = os.environ.get("RLHF_BENCH_DATA")
    if given:
        mirror = user_path(given)
        if not mirror.is_dir():
            raise UserError(
                f"RLHF_BENCH_DATA={given} is not a folder: set it to the folder of the pinned data, or unset it"
            )
        yield mirror
    yield _cache()


def _cache() -> Path:
    from rlhf_bench.harness.weights import cache_dir

    return cache_dir() / "data"


def _cached(wanted: Pin) -> Path:
    return _cache() / _unpacked(wanted)


def _unpacked(wanted: Pin) -> str:
    """The mirror's path of the file without what it may be packed in."""
    return re.sub(r"\.(gz|tar\.xz)$", "", wanted.mirror)


@lru_cache(maxsize=128)
def _load(path: Path, mtime_ns: int, wanted: Pin) -> tuple[Row, ...]:
    """The rows of a file that holds what is pinned. Raises UserError if it holds anything else."""
    content = _content(path, wanted.bytes)
    found = hashlib.sha256(content).hexdigest()
    if found != wanted.sha256:
        raise UserError(
            f"{path} is not the pinned file: its content has sha256 {found}, expected {wanted.sha256} "
            f"({wanted.source}); replace or delete it"
        )
    parsed = _parsed(content, wanted)
    if len(parsed) != wanted.rows:
        raise UserError(f"{path} has {len(parsed)} rows, expected {wanted.rows} ({wanted.source})")
    return tuple(parsed)


def _parsed(content: bytes, wanted: Pin) -> list[Row]:
    if wanted.mirror.endswith(".tar.xz"):
        return list(csv_rows(content))
    return list(_PARSERS[Path(_unpacked(wanted)).suffix](content.decode()))


def _lines(text: str) -> list[Row]:
    return [json.loads(line) for line in text.split("\n") if line]


def _table(text: str) -> list[Row]:
    return list(csv.DictReader(io.StringIO(text)))


def _settings(text: str) -> list[Row]:
    """A YAML file is one row."""
    import yaml

    return [yaml.safe_load(text)]


_PARSERS: Mapping[str, Callable[[str], Sequence[Row]]] = {
    ".json": json.loads,
    ".jsonl": _lines,
    ".csv": _table,
    ".yaml": _settings,
}


def _content(path: Path, limit_bytes: int) -> bytes:
    """The unpacked content, cut one byte past `limit_bytes`. Raises UserError if it cannot be read."""
    try:
        with path.open("rb") as file:
            return _read(file, limit_bytes)
    except (OSError, EOFError, zlib.error, ValueError) as error:
        raise UserError(f"{path} cannot be read ({error}): replace or delete it") from error


def _read(file: IO[bytes], limit_bytes: int) -> bytes:
    """What a plain file, a gzipped one or an archive of CSV files holds, cut one byte past `limit_bytes`.

    Raises OSError, EOFError, zlib.error or ValueError if it is broken.
    """
    head = file.read(4)
    file.seek(0)
    if is_archive(head):
        return csv_content(file.read(limit_bytes + 1), limit_bytes)
    return (gzip.GzipFile(fileobj=file) if head.startswith(b"\x1f\x8b") else file).read(limit_bytes + 1)


def _missing(name: str, failures: Sequence[str]) -> MissingData:
    return MissingData(
        f"no data for {name}: run `rlhf-bench suites fetch {name.split('/')[0]}` where there is a network, or set "
        f"RLHF_BENCH_DATA to a folder that holds {PINS[name].mirror} ({'; '.join(failures)})"
    )


def _download(wanted: Pin, advance: Advance) -> tuple[bytes | None, list[str]]:
    """The content from the first source that has it, and for the sources before it why not."""
    if os.environ.get("HF_HUB_OFFLINE", "").lower() in {"1", "true", "yes", "on"}:
        return None, ["HF_HUB_OFFLINE is set, so nothing was downloaded"]
    failures = []
    for url in _urls(wanted):
        host = urlsplit(url).hostname or "?"
        try:
            content = _read(io.BytesIO(_get(url, wanted.bytes + GZIP_BYTES)), wanted.bytes)
        except (OSError, EOFError, zlib.error, http.client.HTTPException, ValueError) as error:
            failures.append(f"{host}: {getattr(error, 'reason', type(error).__name__)}")
            continue
        if hashlib.sha256(content).hexdigest() == wanted.sha256:
            advance(len(content))
            return content, failures
        failures.append(f"{host}: its file has another sha256 than the pinned one")
    return None, failures


def _urls(wanted: Pin) -> Iterator[str]:
    """Where the content can be downloaded, the hub first."""
    if wanted.hub:
        dataset, _, place = wanted.hub.partition("@")
        revision, _, path = place.partition(":")
        endpoint = os.environ.get("HF_ENDPOINT", "https://huggingface.co").rstrip("/")
        yield f"{endpoint}/datasets/{dataset}/resolve/{revision}/{path}"
    yield wanted.url


def _get(url: str, limit_bytes: int) -> bytes:
    """At most `limit_bytes` and one of the body. Raises OSError, HTTPException, or ValueError for a URL not of http."""
    if urlsplit(url).scheme not in {"http", "https"}:
        raise ValueError("not an http(s) address")
    until = time.monotonic() + DEADLINE_S
    body = bytearray()
    with urllib.request.urlopen(url, timeout=STALL_S) as response:
        while len(body) <= limit_bytes and (chunk := response.read(min(1 << 16, limit_bytes + 1 - len(body)))):
            body += chunk
            if time.monotonic() > until:
                raise TimeoutError(f"not done in {DEADLINE_S:.0f} s")
    return bytes(body)


def _write(path: Path, content: bytes) -> None:
    """All of the file or none of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", delete=False) as file:
        try:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
            os.replace(file.name, path)
        except BaseException:
            Path(file.name).unlink(missing_ok=True)
            raise
