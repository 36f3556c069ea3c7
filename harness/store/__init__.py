"""Where everything is kept: answers and grades by content, runs, checkpoints, verdicts, and who is champion.

Values are canonical JSON, compressed (with a checksum) where they can be long. A value that does not read back is never
used: answers are dropped, so that they are made again, and everything else raises CorruptRow. Any number of threads and
processes may use one database at once; what a method has returned from survives the death of the process.
"""

from __future__ import annotations

from rlhf_bench.harness.store.line import Line
from rlhf_bench.harness.store.place import default_store_url, home
from rlhf_bench.harness.store.rows import Champion, Decision, How, Run, StoredVerdict
from rlhf_bench.harness.store.store import Store

__all__ = ["Champion", "Decision", "How", "Line", "Run", "Store", "StoredVerdict", "default_store_url", "home"]
