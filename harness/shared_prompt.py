"""Several answers to a prompt in one row of tokens, [prompt | answer | answer | …]: the prompt is computed once.

Each answer's positions go on from the prompt's, and it sees the prompt and itself, never another answer. So with
explicit positions and an explicit mask a causal model computes for each answer what it computes for prompt and answer
alone, up to rounding. Token k of a row sees token q exactly if q <= k < ends[q], as in engines.tree.

Shapes: B rows, T tokens in the longest, A answers in all, N tokens of all answers.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch
from torch import Tensor

Group = tuple[Sequence[int], Sequence[Sequence[int]]]
"""The tokens of a prompt and of its answers, none of which is empty. Without a prompt, sequences that share a row."""
STEERED = {"sdpa", "eager"}
"""Implementations of attention that take a prepared mask."""
TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4, torch.bfloat16: 5e-2, torch.float16: 1e-2}
"""How far apart states may be, as a share of the largest, that are called the same."""


@dataclass(frozen=True, slots=True)
class Packed:
    """Rows of tokens, padded on the right, and where to read them; answers are numbered in the order given.

    `before_N` is the place, in the flattened [B·T], of the token that each answer token is predicted from; `targets_N`
    that answer token; `answer_N` the number of its answer. (Without a prompt nothing predicts an answer's first token.)
    `last_A` is the place of each answer's last token. `alone` rows hold one sequence each: any causal mask does.
    """

    ids_BT: Tensor
    positions_BT: Tensor
    ends_BT: Tensor
    lengths_B: Tensor
    before_N: Tensor
    targets_N: Tensor
    answer_N: Tensor
    last_A: Tensor
    alone: bool

    def inputs(self, dtype: torch.dtype) -> dict[str, Tensor]:
        """What a transformers model takes; unless rows are `alone`, the mask is prepared: [B, 1, T, T], additive."""
        places_T = torch.arange(self.ids_BT.shape[1], device=self.ids_BT.device)
        if self.alone:
            mask = (places_T < self.lengths_B[:, None]).long()
        else:
            sees_BTT = (places_T <= places_T[:, None]) & (places_T[:, None] < self.ends_BT[:, None])
            mask = torch.zeros(sees_BTT.shape, dtype=dtype, device=sees_BTT.device)
            mask = mask.masked_fill_(~sees_BTT, float("-inf"))[:, None]
        return {"input_ids": self.ids_BT, "position_ids": self.positions_BT, "attention_mask": mask}

    def sums(self, values_N: Tensor) -> Tensor:
        """The sum of a value over each answer's tokens [A]."""
        return values_N.new_zeros(len(self.last_A)).index_add(0, self.answer_N, values_N)


def pack(groups: Sequence[Group], device: torch.device | str = "cpu", *, share: bool = True) -> Packed:
    """A row for each group; without `share`, for each answer, with its prompt in front. The answers' order is kept."""
    rows = groups if share else [(prompt, [answer]) for prompt, answers in groups for answer in answers]
    lengths = [len(prompt) + sum(map(len, answers)) for prompt, answers in rows]
    width = max(lengths)
    ids, positions, ends, before, targets, owner, last = (list[Any]() for _ in range(7))
    for row, ((prompt, answers), length) in enumerate(zip(rows, lengths, strict=True)):
        begin, padding = len(prompt), width - length
        ids.append([*prompt, *chain(*answers), *[0] * padding])
        positions.append([*range(begin), *chain(*(range(begin, begin + len(answer)) for answer in answers))])
        positions[-1] += [positions[-1][-1]] * padding
        ends.append([length] * begin)
        for answer in answers:
            stop = begin + len(answer)
            sources = [*[len(prompt) - 1] * bool(prompt), *range(begin, stop - 1)]
            before += [row * width + place for place in sources]
            targets += answer[len(answer) - len(sources) :]
            owner += [len(last)] * len(sources)
            last.append(row * width + stop - 1)
            ends[-1] += [stop] * len(answer)
            begin = stop
        ends[-1] += range(length + 1, width + 1)

    def on(values: list[Any]) -> Tensor:
        return torch.tensor(values, dtype=torch.long, device=device)

    return Packed(
        ids_BT=on(ids),
        positions_BT=on(positions),
        ends_BT=on(ends),
        lengths_B=on(lengths),
        before_N=on(before),
        targets_N=on(targets),
        answer_N=on(owner),
        last_A=on(last),
        alone=all(len(answers) == 1 for _, answers in rows),
    )


def can_share(body: Any, longest: int) -> bool:
    """Whether this transformers model, its head aside, computes answers in one row as it does alone.

    False where something but mask and positions decides what a token sees: recurrent layers, a window shorter than the
    `longest` prompt with answer, kernels that take no such mask. Whatever else a model may do is tried, on 13 tokens.
    """
    config = body.config.get_text_config()
    kinds = set(getattr(config, "layer_types", None) or ())
    window = (getattr(config, "sliding_window", None) or longest) if kinds != {"full_attention"} else longest
    if (
        body._is_stateful
        or kinds - {"full_attention", "sliding_attention"}
        or window < longest
        or body.config._attn_implementation not in STEERED
        or "position_ids" not in inspect.signature(body.forward).parameters
    ):
        return False
    group = ([1, 2, 3, 4, 5], [[6, 7, 8], [7, 6, 8, 9, 5]])
    together, apart = (_tried(body, pack([group], body.device, share=share)) for share in (True, False))
    close = TOLERANCE.get(body.dtype, 1e-3) * float(apart.abs().max())
    return bool((together - apart).abs().max() <= close)


@torch.no_grad()
def _tried(body: Any, packed: Packed) -> Tensor:
    """The states at the ends of the answers, in float32, dropout off."""
    training = body.training
    body.eval()
    states_BTD: Tensor = body(**packed.inputs(body.dtype), use_cache=False)[0]
    body.train(training)
    return states_BTD.flatten(0, 1)[packed.last_A].float()
