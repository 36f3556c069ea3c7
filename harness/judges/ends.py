"""What a model says at the end of each of many texts, computed over the tree of what the texts share.

Answers to one prompt, and the two orders in which a preference model sees a pair, begin alike: what they share is
computed once, and nothing is padded.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence

from torch import Tensor

from rlhf_bench.harness.engines.forward import Steered, walk
from rlhf_bench.harness.engines.tree import plan

TOGETHER = 4096
"""Texts that are planned together: bounds the memory for their tokens."""


def at_ends(model: Steered, rows: Sequence[list[int]], stretch_tokens: int) -> Iterator[tuple[list[int], Tensor]]:
    """Numbers of rows, and what the model puts out [R, V] at the last token of each, as it is computed.

    `rows` are token ids, none empty; equal rows are computed once and have the same output.
    """
    order = sorted(range(len(rows)), key=lambda number: rows[number])
    for first in range(0, len(order), TOGETHER):
        numbers = order[first : first + TOGETHER]
        tree = plan([rows[number] for number in numbers])
        ends: dict[int, list[int]] = defaultdict(list)
        for number, path in zip(numbers, tree.paths, strict=True):
            ends[path[-1]].append(number)
        for stretch in walk(model, tree, list(ends), stretch_tokens=stretch_tokens):
            done = [(number, place) for place, at in enumerate(stretch.read) for number in ends[at]]
            if done:
                yield [number for number, _ in done], stretch.logits[[place for _, place in done]]
