"""Several sequences in one row: which go together. What keeps them apart inside the row is the back end's business."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Sequence


def pack(lengths: Sequence[int], limit: int) -> list[list[int]]:
    """Rows of at most `limit` tokens, as indices into `lengths`, each index once: best fit, longest first.

    A sequence goes into the row with the least room that still holds it (Ding et al. 2024, "Fewer truncations improve
    language modeling"), so that none is cut. Of equals the one that comes first in the data comes first. Raises
    ValueError for a sequence longer than `limit`.
    """
    if lengths and max(lengths) > limit:
        raise ValueError(f"a sequence of {max(lengths)} tokens does not fit into a row of {limit}")
    rows: list[list[int]] = []
    room: list[tuple[int, int]] = []  # (tokens left, row), sorted
    for index in sorted(range(len(lengths)), key=lambda index: -lengths[index]):
        place = bisect_left(room, (lengths[index], -1))
        if place == len(room):
            rows.append([index])
            left = limit - lengths[index], len(rows) - 1
        else:
            free, row = room.pop(place)
            rows[row].append(index)
            left = free - lengths[index], row
        insort(room, left)
    return rows
