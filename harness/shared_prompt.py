"""Several answers to a prompt in one row of tokens, [prompt | answer | answer | …]: the prompt is computed once.

Each answer's positions go on from the prompt's, and it sees the prompt and itself, never another answer. So with
explicit positions and an explicit mask a causal model computes for each answer what it computes for prompt and answer
alone, up to rounding. Token k of a row sees token q exactly if q <= k < ends[q], as in engines.tree.

Shapes: B rows, T tokens in the longest, A answers in all, N tokens of all answers.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, pairwise
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask
from transformers.modeling_utils import AttentionInterface

Group = tuple[Sequence[int], Sequence[Sequence[int]]]
"""The tokens of a prompt and of its answers; none of them is empty."""
STEERED = {"sdpa", "eager"}
"""Implementations of attention that take a prepared mask."""
TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4, torch.bfloat16: 5e-2, torch.float16: 1e-2}
"""How far apart states may be, as a share of the largest, that are called the same."""


@dataclass(frozen=True, slots=True)
class Segment:
    """A piece of a row, a prompt or an answer: how many tokens, and the pieces they see, by number, their own last."""

    length: int
    sees: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Packed:
    """Rows of tokens, padded on the right, and where to read them; answers are numbered in the order given.

    `before_N` is the place, in the flattened [B·T], of the token that each answer token is predicted from; `targets_N`
    that answer token; `answer_N` the number of its answer. `last_A` is the place of each answer's last token. Rows are
    `alone` where each holds one sequence: then any causal mask does.
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
    segments: tuple[tuple[Segment, ...], ...]

    def inputs(self, dtype: torch.dtype) -> dict[str, Any]:
        """What a transformers model takes; unless rows are `alone`, the mask is prepared: [B, 1, T, T], additive."""
        places_T = torch.arange(self.ids_BT.shape[1], device=self.ids_BT.device)
        if self.alone:
            mask = (places_T < self.lengths_B[:, None]).long()
        else:
            sees_BTT = (places_T <= places_T[:, None]) & (places_T[:, None] < self.ends_BT[:, None])
            mask = torch.zeros(sees_BTT.shape, dtype=dtype, device=sees_BTT.device)
            mask = mask.masked_fill_(~sees_BTT, float("-inf"))[:, None]
            mask.segments = self._segments(mask)  # type: ignore[attr-defined]
        return {"input_ids": self.ids_BT, "position_ids": self.positions_BT, "attention_mask": mask}

    def _segments(self, mask: Tensor) -> list[list[tuple[Segment, Tensor | None]]]:
        """By row, each segment and the mask of what it sees; None where that is itself alone."""
        rows = []
        for mask_QK, segments in zip(mask[:, 0], self.segments, strict=True):
            bounds = [0, *accumulate(segment.length for segment in segments)]
            spans = [slice(first, stop) for first, stop in pairwise(bounds)]
            rows.append(
                [
                    (each, torch.cat([mask_QK[span, spans[seen]] for seen in each.sees], 1) if each.sees[1:] else None)
                    for each, span in zip(segments, spans, strict=True)
                ]
            )
        return rows

    def only(self, wanted_N: Tensor) -> Packed:
        """The same rows, of whose answer tokens fewer are read."""
        read = {name: getattr(self, name)[wanted_N] for name in ("before_N", "targets_N", "answer_N")}
        return replace(self, **read)

    def sums(self, values_N: Tensor) -> Tensor:
        """The sum of a value over each answer's tokens [A]."""
        return values_N.new_zeros(len(self.last_A)).index_add(0, self.answer_N, values_N)


def pack(groups: Sequence[Group], device: torch.device | str = "cpu", *, share: bool = True) -> Packed:
    """A row for each group; without `share`, for each answer, with its prompt in front. The answers' order is kept."""
    return pack_rows([[group] for group in groups], device, share=share)


def pack_rows(rows: Sequence[Sequence[Group]], device: torch.device | str = "cpu", *, share: bool = True) -> Packed:
    """The same for rows of several groups; each begins at position 0 and sees only itself."""
    if not share:
        rows = [[(prompt, [answer])] for row in rows for prompt, answers in row for answer in answers]
    width = max(sum(len(prompt) + sum(map(len, answers)) for prompt, answers in row) for row in rows)
    ids, positions, ends, lengths, before, targets, owner, last, segments = (list[Any]() for _ in range(9))
    for number, row in enumerate(rows):
        tokens, places, until = (list[int]() for _ in range(3))
        segments.append(())
        for prompt, answers in row:
            begin = len(tokens)
            tokens += prompt
            places += range(len(prompt))
            until += [begin + len(prompt) + sum(map(len, answers))] * len(prompt)
            segments[-1] += _segments_of(prompt, answers, len(segments[-1]))
            for answer in answers:
                here, stop = len(tokens), len(tokens) + len(answer)
                before += [number * width + place for place in (begin + len(prompt) - 1, *range(here, stop - 1))]
                targets += answer
                owner += [len(last)] * len(answer)
                last.append(number * width + stop - 1)
                tokens += answer
                places += range(len(prompt), len(prompt) + len(answer))
                until += [stop] * len(answer)
        lengths.append(len(tokens))
        ids.append(tokens + [0] * (width - lengths[-1]))
        positions.append(places + [0] * (width - lengths[-1]))
        ends.append([*until, *range(lengths[-1] + 1, width + 1)])

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
        alone=all(len(row) == 1 and len(row[0][1]) == 1 for row in rows),
        segments=tuple(segments),
    )


def _segments_of(prompt: Sequence[int], answers: Sequence[Sequence[int]], first: int) -> tuple[Segment, ...]:
    """Those of a group; an answer that is alone goes with its prompt."""
    if len(answers) == 1:
        return (Segment(len(prompt) + len(answers[0]), (first,)),)
    said = (Segment(len(answer), (first, number)) for number, answer in enumerate(answers, start=first + 1))
    return Segment(len(prompt), (first,)), *said


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


def by_segments(module: Any) -> None:
    """Gives a transformers model on a CPU an attention that computes no more than tokens of a shared row may see.

    With sdpa's own and a mask, every token meets every other. Where there is no such row all is as before.
    How long the rows are is not asked. Forward and backward on one core, float32, a prompt and two answers: layers of
    SmolLM2's size take between 4% less and 8% more than with the mask up to 128 tokens, 16% less at 768 and 13% to 15%
    less in packed rows of 512; layers 64 wide up to 1.9 times the mask's time at 24 tokens, 1.05 at 192, 0.74 at 768.
    """
    if module.config._attn_implementation == "sdpa":
        module.set_attn_implementation(_SEGMENTS)


def _segment_attention(
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **options: Any
) -> tuple[Tensor, None]:
    """transformers' sdpa attention [B, H, T, W] → [B, T, H, W], a segment at a time where the mask knows of them."""
    rows = getattr(attention_mask, "segments", None)
    if rows is None or options.get("dropout") or any(options.get(name) is not None for name in _UNKNOWN):
        return sdpa_attention_forward(module, query, key, value, attention_mask, **options)  # type: ignore[no-any-return]
    scale, grouped = options.get("scaling"), key.shape[1] != query.shape[1]
    lines = []
    for row, segments in enumerate(rows):
        lengths = [segment.length for segment, _ in segments]
        padding = query.shape[2] - sum(lengths)
        queries, keys, values = (torch.split(each[row], [*lengths, padding], 1) for each in (query, key, value))
        line = []
        for (segment, mask), asking in zip(segments, queries, strict=False):
            near, far = (torch.cat([each[number] for number in segment.sees], 1)[None] for each in (keys, values))
            line.append(
                scaled_dot_product_attention(
                    asking[None], near, far, mask, is_causal=mask is None, scale=scale, enable_gqa=grouped
                )
            )
        line.append(value.new_zeros(1, query.shape[1], padding, value.shape[-1]))
        lines.append(torch.cat(line, 2))
    return torch.cat(lines).transpose(1, 2).contiguous(), None


_UNKNOWN = ("position_bias", "softcap", "s_aux", "head_mask")
_SEGMENTS = "rlhf_bench_segments"
AttentionInterface.register(_SEGMENTS, _segment_attention)
AttentionMaskInterface.register(_SEGMENTS, sdpa_mask)


@torch.no_grad()
def _tried(body: Any, packed: Packed) -> Tensor:
    """The states at the ends of the answers, in float32, dropout off."""
    training = body.training
    body.eval()
    states_BTD: Tensor = body(**packed.inputs(body.dtype), use_cache=False)[0]
    body.train(training)
    return states_BTD.flatten(0, 1)[packed.last_A].float()
