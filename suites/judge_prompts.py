"""AlpacaEval's judge as published: template and settings from the alpaca_eval package, or from the pinned mirror.

Data: tatsu-lab/alpaca_eval@cd543a14, src/alpaca_eval/evaluators_configs; Apache-2.0. The wheel alpaca_eval 0.6.6 holds
the same two files. Neither is typed again here; their digests are.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
from collections.abc import Iterator
from pathlib import Path

from rlhf_bench.harness.errors import MissingData
from rlhf_bench.harness.judges.llm import PairPrompt, weighted_prompt

WEIGHTED = "weighted_alpaca_eval_gpt4_turbo"
_FILES = {
    "configs.yaml": "fd5c656d9959ffd63b986c8216a81e83e001d17ced5a08defc1c857ce9dd033e",
    "alpaca_eval_clf.txt": "784227e6dc2832fc08c43d2c8ea3a308e7523780187a1aaad2f85e30bac85f62",
}


def alpaca_eval_prompt() -> PairPrompt:
    """The judge of AlpacaEval 2's leaderboard. Raises MissingData where its two files are nowhere as pinned."""
    for files in _places():
        found = {name: path.read_bytes() for name, path in files.items() if path.is_file()}
        if {name: hashlib.sha256(content).hexdigest() for name, content in found.items()} == _FILES:
            return weighted_prompt(WEIGHTED, found["configs.yaml"].decode(), found["alpaca_eval_clf.txt"].decode())
    raise MissingData(
        "AlpacaEval's judge prompt is not here as published: pip install alpaca-eval==0.6.6, or set RLHF_BENCH_DATA to "
        "a folder that holds alpaca_eval/judge/"
    )


def _places() -> Iterator[dict[str, Path]]:
    """The two files in the installed package (which is found, not imported), then in the mirror."""
    package = importlib.util.find_spec("alpaca_eval")
    for root in (package.submodule_search_locations or ()) if package else ():
        configs = Path(root) / "evaluators_configs"
        template = configs / "alpaca_eval_clf_gpt4_turbo" / "alpaca_eval_clf.txt"
        yield {"configs.yaml": configs / WEIGHTED / "configs.yaml", "alpaca_eval_clf.txt": template}
    if mirror := os.environ.get("RLHF_BENCH_DATA"):
        yield {name: Path(mirror).expanduser() / "alpaca_eval" / "judge" / name for name in _FILES}
