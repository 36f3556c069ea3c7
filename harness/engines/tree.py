"""Which tokens to compute: every prefix that sequences share, once.

Sequences laid side by side in sorted order form a trie in preorder. Written flat, token k sees token q exactly if k is
on the way from the root to q, that is if k <= q < ends[k]. So one row of tokens and one mask compute all sequences,
without padding, and what they share (few-shot examples, a question before its choices) is computed once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Tree:
    """A trie of token sequences in preorder, one entry a token.

    `tokens`, `positions` (in their sequence) and `ends` (one past the last descendant) have an entry for each token of
    the trie; `paths[i]` holds the places of the tokens of sequence i.
    """

    tokens: list[int]
    positions: list[int]
    ends: list[int]
    paths: list[list[int]]


def plan(sequences: Sequence[Sequence[int]]) -> Tree:
    """The trie of `sequences`; its size is the number of their distinct prefixes."""
    tokens: list[int] = []
    ends: list[int] = []
    positions: list[int] = []
    paths: list[list[int]] = [[] for _ in sequences]
    path: list[int] = []
    previous: Sequence[int] = ()
    for place in sorted(range(len(sequences)), key=lambda place: list(sequences[place])):
        sequence = sequences[place]
        shared = _shared(previous, sequence)
        for closed in path[shared:]:
            ends[closed] = len(tokens)
        new = range(len(tokens), len(tokens) + len(sequence) - shared)
        path = [*path[:shared], *new]
        tokens.extend(sequence[shared:])
        positions.extend(range(shared, len(sequence)))
        ends.extend([0] * len(new))
        paths[place] = path
        previous = sequence
    for closed in path:
        ends[closed] = len(tokens)
    return Tree(tokens, positions, ends, paths)


def common(sequences: Sequence[list[int]]) -> int:
    """How many first tokens all sequences share, at most all but the last of the shortest."""
    first, last = min(sequences), max(sequences)
    return min(_shared(first, last), min(map(len, sequences)) - 1)


def _shared(a: Sequence[int], b: Sequence[int]) -> int:
    """The length of the longest common prefix."""
    shortest = min(len(a), len(b))
    return next((i for i in range(shortest) if a[i] != b[i]), shortest)
