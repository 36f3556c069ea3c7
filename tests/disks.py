"""A disk of the tests' own that can be filled."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

BALLAST = "ballast"


@contextmanager
def small_disk(folder: Path, size: str) -> Iterator[Path]:
    """A file system of this size. Skips where this process may not mount one."""
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)], capture_output=True, text=True
    )
    if mounted.returncode:
        pytest.skip(f"no small disk to fill: {mounted.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def fill(disk: Path, free: int = 0) -> None:
    """Leave so many bytes free."""
    empty(disk)
    with (disk / BALLAST).open("ab", buffering=0) as file:
        there = subprocess.run(["df", "--output=avail", "-B1", str(disk)], check=True, capture_output=True, text=True)
        file.write(b"\0" * (int(there.stdout.split()[1]) - free))


def empty(disk: Path) -> None:
    """Give the room back."""
    (disk / BALLAST).unlink(missing_ok=True)
