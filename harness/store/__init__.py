"""Where everything is kept: answers and grades by content, runs, checkpoints, verdicts, and who is champion.

Values are canonical JSON, compressed (with a checksum) where they can be long. A value that does not read back is never
used: answers are dropped, so that they are made again, and everything else raises CorruptRow. Any number of threads and
processes may use one database at once; what a method has returned from survives the death of the process.
"""

from __future__ import annotations

import os
from pathlib import Path

from rlhf_bench.harness.store.rows import Champion, Run, StoredVerdict
from rlhf_bench.harness.store.store import Store

__all__ = ["Champion", "Run", "Store", "StoredVerdict", "default_store_url", "home"]


def home() -> Path:
    """The folder of everything a project keeps: RLHF_BENCH_HOME, or .rlhf-bench in the working directory."""
    return Path(os.environ.get("RLHF_BENCH_HOME") or ".rlhf-bench").absolute()


def default_store_url() -> str:
    """RLHF_BENCH_STORE, or the SQLite file in home()."""
    return os.environ.get("RLHF_BENCH_STORE") or f"sqlite:///{home() / 'store.db'}"
