"""The online loop of the paper: its settings, its stages, and what it does with a verdict.

    config ─► loop ─► stages ─► back end, engine, reward
                 └──► monitors, probes, notify: what it shows and tells of itself

`stages` make one file or folder each, named by the digest of what went in; `loop` decides which come next.
"""

from __future__ import annotations

from rlhf_bench.trainers.online.config import STAGES, AnswersConfig, LoopConfig, PairsConfig, Stage, loop_config
from rlhf_bench.trainers.online.line import Line
from rlhf_bench.trainers.online.loop import Iteration, iterate, run_stage, set_aside
from rlhf_bench.trainers.online.scoring import Scoring, reward_scoring

__all__ = [
    "STAGES",
    "AnswersConfig",
    "Iteration",
    "Line",
    "LoopConfig",
    "PairsConfig",
    "Scoring",
    "Stage",
    "iterate",
    "loop_config",
    "reward_scoring",
    "run_stage",
    "set_aside",
]
