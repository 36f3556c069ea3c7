"""Where a project keeps what it knows."""

from __future__ import annotations

import os
from pathlib import Path


def home() -> Path:
    """The folder of everything a project keeps: RLHF_BENCH_HOME, or .rlhf-bench in the working directory."""
    return Path(os.environ.get("RLHF_BENCH_HOME") or ".rlhf-bench").absolute()


def default_store_url() -> str:
    """RLHF_BENCH_STORE, or the SQLite file in home()."""
    return os.environ.get("RLHF_BENCH_STORE") or f"sqlite:///{home() / 'store.db'}"
