"""What runs inside vLLM's own process: it chooses the tokens of sampled answers, as the hf engine does.

vLLM's own seeds hang on the order of its kernels, and on a CPU they crash it (0.32: "CPU Generator does not use
offset"). Here the t-th token of an answer hangs on nothing but the model's output and the t-th draw of the answer's own
stream, so an answer is the same in any batch, in any order and after any restart, as far as floating point is.

vLLM's processes outlive one that is killed, and keep its GPU; so they also watch for that here, and end.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from dataclasses import dataclass
from typing import Any

import torch
from vllm.v1.sample.logits_processor import LogitsProcessor
from vllm.v1.sample.logits_processor.builtin import process_dict_updates

from rlhf_bench.harness.engines.draws import KEY, OWNER, Stream, choose_each, started

WATCH_S = 1.0


@dataclass(frozen=True, slots=True)
class _Answer:
    """A sampled answer in vLLM's batch; `written` is vLLM's own list of its tokens, which grows."""

    stream: Stream
    temperature: float
    top_p: float
    written: list[int]


class Draws(LogitsProcessor):  # type: ignore[misc]
    """Raises the chosen token above all others in the row of every sampled answer, which vLLM then decodes greedily.

    The answers of one request are told apart by their seed, which vLLM counts up from the request's 0.
    """

    def __init__(self, vllm_config: Any, device: torch.device, is_pin_memory: bool) -> None:
        self._rows: dict[int, _Answer] = {}
        threading.Thread(target=_end_with, args=(os.environ[OWNER], os.getppid()), daemon=True).start()

    def is_argmax_invariant(self) -> bool:
        """False: it decides what greedy decoding finds."""
        return False

    def update_state(self, batch_update: Any) -> None:
        """Follow the answers to their rows of the batch."""
        process_dict_updates(self._rows, batch_update, _answer)

    def apply(self, logits: torch.Tensor) -> torch.Tensor:
        """The logits [B, V], changed in place."""
        if not self._rows:
            return logits
        rows, answers = zip(*sorted(self._rows.items()), strict=True)
        at = torch.tensor(rows, device=logits.device)
        chosen = choose_each(
            logits[at],
            [answer.temperature for answer in answers],
            [answer.top_p for answer in answers],
            [answer.stream[len(answer.written)] for answer in answers],
        )
        logits[at, chosen] = torch.inf
        return logits


def _answer(params: Any, prompt: list[int] | None, written: list[int]) -> _Answer | None:
    asked = (params.extra_args or {}).get(KEY)
    if asked is None:
        return None
    return _Answer(Stream(asked["streams"][params.seed]), asked["temperature"], asked["top_p"], written)


def _end_with(owner: str, parent: int) -> None:
    """Wait until the owner is gone, then end vLLM's engine: this process, or the one that started it for a share."""
    pid, _, since = owner.partition(":")
    while started(int(pid)) == since:
        time.sleep(WATCH_S)
    if parent not in (int(pid), 1) and os.getppid() == parent:
        os.kill(parent, signal.SIGKILL)
    os.kill(os.getpid(), signal.SIGKILL)
