"""CSV files in an archive, in memory, as rows with one digest whatever the archive's kind.

An archive is other people's: nothing is extracted to disk, links and other files are passed over, and what is larger
than expected is refused before it is held.
"""

from __future__ import annotations

import csv
import io
import lzma
import tarfile
import zipfile
from collections.abc import Iterator
from typing import Any

MAX_MEMORY_BYTES = 256 << 20
"""What the decompressor may ask for."""
_MAGIC = {b"PK\x03\x04": "zip", b"\xfd7zX": "xz"}


def is_archive(content: bytes) -> bool:
    """Whether this is a zip file or an xz stream."""
    return content[:4] in _MAGIC


def csv_content(archive: bytes, limit_bytes: int) -> bytes:
    """All CSV files of a zip or .tar.xz archive, one after the other in the order of their names.

    Each stands behind a line with its name (its last two parts: "test/anatomy_test.csv") and its size in bytes. Raises
    ValueError where the archive is broken, has a name twice, or holds more than `limit_bytes`.
    """
    members = _zip_members if _MAGIC[archive[:4]] == "zip" else _tar_members
    found: dict[str, bytes] = {}
    try:
        for path, content in members(archive, limit_bytes):
            name = "/".join(path.split("/")[-2:])
            if name in found:
                raise ValueError(f"it holds {name} twice")
            found[name] = content
            if sum(map(len, found.values())) > limit_bytes:
                raise ValueError("it holds more than is pinned")
    except (tarfile.TarError, zipfile.BadZipFile, lzma.LZMAError, EOFError, NotImplementedError, RuntimeError) as error:
        raise ValueError(f"it is broken: {error}") from error
    return b"".join(f"{name} {len(content)}\n".encode() + content for name, content in sorted(found.items()))


def csv_rows(content: bytes) -> list[dict[str, Any]]:
    """The rows of `csv_content`: {"file": name, "cells": texts}. Raises ValueError if it is not of that form."""
    rows: list[dict[str, Any]] = []
    start = 0
    while start < len(content):
        end = content.index(b"\n", start)
        name, size = content[start:end].decode().rsplit(" ", 1)
        start = end + 1 + int(size)
        table = csv.reader(io.StringIO(content[end + 1 : start].decode(), newline=""), strict=True)
        rows += [{"file": name, "cells": cells} for cells in table]
    return rows


def _zip_members(archive: bytes, limit_bytes: int) -> Iterator[tuple[str, bytes]]:
    with zipfile.ZipFile(io.BytesIO(archive)) as opened:
        for info in opened.infolist():
            if info.filename.endswith(".csv"):
                with opened.open(info) as member:
                    yield info.filename, member.read(limit_bytes + 1)


def _tar_members(archive: bytes, limit_bytes: int) -> Iterator[tuple[str, bytes]]:
    """A tar file pads each member to whole blocks, so it may be twice as large as what it holds, and no larger."""
    unpacked = lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=MAX_MEMORY_BYTES).decompress(archive, 2 * limit_bytes)
    with tarfile.open(fileobj=io.BytesIO(unpacked), mode="r:") as opened:
        for info in opened:
            if info.isreg() and info.name.endswith(".csv") and (member := opened.extractfile(info)) is not None:
                yield info.name, member.read(limit_bytes + 1)
