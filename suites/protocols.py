"""The named ways to ask. Two results compare only if they were asked in the same way.

`paper` is Table 6 of arXiv 2405.07863: GSM8K 8 shots, MMLU 5, ARC-Challenge 25, TruthfulQA, HumanEval and MBPP none,
AlpacaEval none. Of the metric that table says "acc" and no more. What it leaves open, and what is done here:

- GSM8K with chain of thought, by lm-eval's gsm8k_cot, which has the eight worked examples of Wei et al. (2022): the
  paper's figure for LLaMA-3-8B-Instruct, 79.6, is the one its makers published for 8 shots with chain of thought.
  Right is what ends in the right number (flexible-extract): the guard asks whether arithmetic was lost, not whether
  the phrase "The answer is" was; strict-match is reported beside it.
- ARC-Challenge by acc_norm (log-likelihood over the characters of the choice), as on the Open LLM Leaderboard, from
  which 25 shots come; acc is reported beside it.
- MMLU by the likelihood of the letter, without chain of thought: acc, the metric that lm-eval's group has. The score is
  the mean over questions; the mean over the 57 subjects stands beside it.
- TruthfulQA by both MC1 and MC2, of which the paper does not name one. MC2 is the guard: it is the leaderboard's, and
  as a share of likelihood it moves with every question, so that 817 of them show a smaller loss.
- HumanEval and MBPP by one greedy answer (pass@1); the prompt alone, so the answer is a continuation.
- Examples are the same for every question (the first of the training rows, or those that the task gives), so all
  questions share one prefix, which is computed once; lm-eval draws others for each question of ARC.
- AlpacaEval, MT-Bench and Arena-Hard as their own code asks them: no examples, MT-Bench at a temperature by category.
- No chat template and no system prompt on academic tasks, as lm-eval does unless asked.

`lm-eval` is what that harness does when no flag is given: GSM8K with 5 shots of the training split's own solutions,
drawn for each question; MBPP with its 3; MMLU, ARC-Challenge, TruthfulQA and HumanEval with none; its seed, 1234.

A task outside the table has its own number of shots in both. `derive` changes a protocol, under a name that says so.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType

from rlhf_bench.harness.errors import UserError
from rlhf_bench.harness.types import EvalProtocol

_NO_SHOTS = dict.fromkeys(("truthfulqa_mc1", "truthfulqa_mc2", "humaneval", "humaneval_plus"), 0)

PROTOCOLS: Mapping[str, EvalProtocol] = MappingProxyType(
    {
        "paper": EvalProtocol(
            "paper",
            shots={"gsm8k": 8, "mmlu": 5, "arc_challenge": 25, "mbpp": 0, "mbpp_plus": 0, **_NO_SHOTS},
            variants={"gsm8k": "gsm8k_cot"},
            fixed_shots=True,
        ),
        "lm-eval": EvalProtocol(
            "lm-eval",
            shots={"gsm8k": 5, "mmlu": 0, "arc_challenge": 0, "mbpp": 3, "mbpp_plus": 3, **_NO_SHOTS},
            variants={"gsm8k": "gsm8k"},
        ),
    }
)


def derive(
    base: EvalProtocol,
    *,
    shots: int | None = None,
    chat_template: bool | None = None,
    fewshot_as_multiturn: bool | None = None,
    system_prompt: str | None = None,
    repeats: int | None = None,
    temperature: float | None = None,
    sampling_seed: int | None = None,
    benchmarks: Sequence[str] = (),
) -> EvalProtocol:
    """`base` with what is given in its place: another name ("paper+chat+shots=0"), so another digest.

    `shots` is for each of `benchmarks`. What is None, or as it was, changes nothing; if nothing changes it is `base`.
    Raises UserError for fewer shots than 0, repeats than 1, a temperature of 0 or less, or a negative seed.
    """
    if shots is not None and shots < 0:
        raise UserError(f"{shots} shots: give 0 or more")
    changed, said = base, []
    if chat_template is not None and chat_template != base.chat_template:
        changed = replace(changed, chat_template=chat_template)
        said.append("chat" if chat_template else "no-chat")
    if fewshot_as_multiturn is not None and fewshot_as_multiturn != base.fewshot_as_multiturn:
        changed = replace(changed, fewshot_as_multiturn=fewshot_as_multiturn)
        said.append("multiturn" if fewshot_as_multiturn else "one-turn")
    if shots is not None and any(base.shots.get(name) != shots for name in benchmarks):
        changed = replace(changed, shots={**base.shots, **dict.fromkeys(benchmarks, shots)})
        said.append(f"shots={shots}")
    if system_prompt is not None and system_prompt != base.system_prompt:
        changed = replace(changed, system_prompt=system_prompt)
        said.append(
            f"system={hashlib.sha256(system_prompt.encode()).hexdigest()[:6]}" if system_prompt else "no-system"
        )
    changed, more = _sampled(changed, repeats, temperature, sampling_seed)
    said += more
    return replace(changed, name="+".join([base.name, *said])) if said else base


def _sampled(
    base: EvalProtocol, repeats: int | None, temperature: float | None, sampling_seed: int | None
) -> tuple[EvalProtocol, list[str]]:
    if repeats is not None and repeats < 1:
        raise UserError(f"{repeats} repeats: give 1 answer to each question or more")
    if temperature is not None and not 0 < temperature < math.inf:
        raise UserError(f"a temperature of {temperature:g}: give one above 0, or none for each benchmark's own")
    if sampling_seed is not None and sampling_seed < 0:
        raise UserError(f"a sampling seed of {sampling_seed}: give 0 or more")
    said = []
    if repeats is not None and repeats != max(base.repeats, 1):
        base = replace(base, repeats=repeats)
        said.append(f"repeats={repeats}")
    if temperature is not None and temperature != base.temperature:
        base = replace(base, temperature=temperature)
        said.append(f"temperature={temperature:g}")
    if sampling_seed is not None and sampling_seed != base.sampling_seed:
        base = replace(base, sampling_seed=sampling_seed)
        said.append(f"sample-seed={sampling_seed}")
    return base, said
