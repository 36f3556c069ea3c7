"""The named ways to ask. Two results compare only if they were asked in the same way.

`paper` is Table 6 of arXiv 2405.07863: GSM8K 8 shots, ARC-Challenge 25 shots, AlpacaEval none. That table says "acc"
and no more. What it leaves open, and what is done here:

- GSM8K with chain of thought, by lm-eval's gsm8k_cot, which has the eight worked examples of Wei et al. (2022): the
  paper's figure for LLaMA-3-8B-Instruct, 79.6, is the one its makers published for 8 shots with chain of thought.
  Right is what ends in the right number (flexible-extract): the guard asks whether arithmetic was lost, not whether
  the phrase "The answer is" was; strict-match is reported beside it.
- ARC-Challenge by acc_norm (log-likelihood over the characters of the choice), as on the Open LLM Leaderboard, from
  which 25 shots come; acc is reported beside it. Its 25 examples are the first 25 training rows for every question,
  so all questions share one prefix, which is computed once; lm-eval draws others for each question.
- No chat template and no system prompt on academic tasks, as lm-eval does unless asked.

`lm-eval` is what that harness does when no flag is given: GSM8K with 5 shots of the training split's own solutions,
drawn for each question; ARC-Challenge with none; its seed, 1234.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from rlhf_bench.harness.types import EvalProtocol

PROTOCOLS: Mapping[str, EvalProtocol] = MappingProxyType(
    {
        "paper": EvalProtocol(
            "paper",
            shots={"gsm8k": 8, "arc_challenge": 25},
            variants={"gsm8k": "gsm8k_cot"},
            fixed_shots=True,
        ),
        "lm-eval": EvalProtocol("lm-eval", shots={"gsm8k": 5, "arc_challenge": 0}, variants={"gsm8k": "gsm8k"}),
    }
)
