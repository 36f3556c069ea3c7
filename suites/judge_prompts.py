"""AlpacaEval's judges as published: template and settings from the alpaca_eval package, or from the pinned mirror.

Data: tatsu-lab/alpaca_eval@cd543a14, src/alpaca_eval/evaluators_configs; Apache-2.0. The wheel alpaca_eval 0.6.6 holds
the same files. None is typed again here; their digests are.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from rlhf_bench.harness.errors import MissingData, UnknownName
from rlhf_bench.harness.files import user_path
from rlhf_bench.harness.judges.llm import PairPrompt, ranking_prompt, weighted_prompt

WEIGHTED = "weighted"


@dataclass(frozen=True, slots=True)
class _Published:
    """An annotator's two files with their sha256: configs.yaml in the folder `name`, and `template`."""

    name: str
    read: Callable[[str, str, str], PairPrompt]
    configs: str
    template: str
    template_sha256: str

    @property
    def digests(self) -> list[str]:
        return [self.configs, self.template_sha256]


_FN_SHA256 = "12490d7306fcdcc6d3963ae03ea0d16c043cfbe2f2d10a7ff36762b6c1580b2e"
PROMPTS = {
    WEIGHTED: _Published(
        "weighted_alpaca_eval_gpt4_turbo",
        weighted_prompt,
        "fd5c656d9959ffd63b986c8216a81e83e001d17ced5a08defc1c857ce9dd033e",
        "alpaca_eval_clf_gpt4_turbo/alpaca_eval_clf.txt",
        "784227e6dc2832fc08c43d2c8ea3a308e7523780187a1aaad2f85e30bac85f62",
    ),
    "fn": _Published(
        "alpaca_eval_gpt4_turbo_fn",
        ranking_prompt,
        "865962092dd6cd2630f7b6e2c6d0482458437bcbeb1e83b0ae96bb2cb533084d",
        "alpaca_eval_gpt4_turbo_fn/alpaca_eval_fn.txt",
        _FN_SHA256,
    ),
    "cot": _Published(
        "alpaca_eval_cot_gpt4_turbo_fn",
        ranking_prompt,
        "f1fd14d8bf12b5cbb2ce135878a2dfbec1da4eed921e52d7cca1f39f90370ab0",
        "alpaca_eval_cot_gpt4_turbo_fn/alpaca_eval_fn.txt",
        _FN_SHA256,
    ),
}


def alpaca_eval_prompt(name: str = WEIGHTED) -> PairPrompt:
    """AlpacaEval 2's judge: that of its leaderboard (weighted), or by a function call without or with an explanation
    (fn, cot). Raises UnknownName, and MissingData where its two files are nowhere as pinned."""
    published = PROMPTS.get(name)
    if published is None:
        raise UnknownName("judge prompt", name, PROMPTS)
    for files in _places(published):
        found = [path.read_bytes() for path in files if path.is_file()]
        if [hashlib.sha256(content).hexdigest() for content in found] == published.digests:
            return published.read(published.name, *(content.decode() for content in found))
    mirror = ", or set RLHF_BENCH_DATA to a folder that holds alpaca_eval/judge/" if name == WEIGHTED else ""
    raise MissingData(
        f"AlpacaEval's judge prompt '{name}' is not here as published: pip install alpaca-eval==0.6.6{mirror}"
    )


def _places(published: _Published) -> Iterator[list[Path]]:
    """The two files in the installed package (which is found, not imported), then the weighted one's in the mirror."""
    package = importlib.util.find_spec("alpaca_eval")
    for root in (package.submodule_search_locations or ()) if package else ():
        folder = Path(root) / "evaluators_configs"
        yield [folder / published.name / "configs.yaml", folder / published.template]
    if mirror := os.environ.get("RLHF_BENCH_DATA"):
        judge = user_path(mirror) / "alpaca_eval" / "judge"
        yield [judge / "configs.yaml", judge / Path(published.template).name]
