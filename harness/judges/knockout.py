"""Ranking answers by comparing two at a time, in a number of comparisons that grows with their number.

A knock-out: neighbours meet, the preferred one goes on, until one is left; n answers take n − 1 comparisons. With
`worst`, those that beat nobody then meet to find the worst of them; that makes at most 3n/2 − 2 (rounded up), and for
eight answers the ten of the published code. What the order is worth:

- The first answer is the best, and with `worst` the last one the worst, if preferences are transitive. If they go
  round in circles the outcome hangs on who meets whom, which is the order of the answers; no answer then is the best.
- In between, who lost later stands higher, and of those that lost in the same round who lost more narrowly. So whoever
  lost a match stands below the answer that won it, always; answers that never met may stand either way round.
- A tie (P = 0.5) goes to the answer that was given first. With an odd number one answer waits, and meets the first
  winner in the next round.
- Where two answers cannot be compared (too long together), the longer one is out and stands in no order.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

Match: TypeAlias = tuple[int, int, int]
"""Number of the prompt, and of the two of its answers that meet, the one given first in front."""
Compare: TypeAlias = Callable[[Sequence[Match]], Sequence[float | None]]
"""P(first of the two ≻ second) for each match; None where they cannot be compared."""


@dataclass(frozen=True, slots=True)
class Ranking:
    """Numbers of answers from best to worst, those that could not be compared, and how many comparisons it took."""

    order: tuple[int, ...]
    unranked: tuple[int, ...]
    comparisons: int


@dataclass(slots=True)
class _Bracket:
    """Who is still in it; `gone` holds (round, P that it was the better one, answer) of those that are not."""

    alive: list[int]
    gone: list[tuple[int, float, int]] = field(default_factory=list)
    unranked: list[int] = field(default_factory=list)
    beat_someone: set[int] = field(default_factory=set)
    comparisons: int = 0
    round: int = 0

    def matches(self) -> list[tuple[int, int]]:
        pairs = zip(self.alive[::2], self.alive[1::2], strict=False)
        return [(min(pair), max(pair)) for pair in pairs]

    def play(self, told: Iterable[float | None], lengths: Sequence[int], keep_better: bool) -> None:
        waits = self.alive[len(self.alive) // 2 * 2 :]
        stay = []
        for (a, b), p in zip(self.matches(), told, strict=True):
            self.comparisons += 1
            if p is None:
                self.unranked.append(a if lengths[a] > lengths[b] else b)
                stay.append(b if lengths[a] > lengths[b] else a)
                continue
            better, worse, share = (a, b, p) if p >= 0.5 else (b, a, 1 - p)
            self.beat_someone.add(better)
            stays, goes = (better, worse) if keep_better else (worse, better)
            stay.append(stays)
            self.gone.append((self.round, 1 - share if keep_better else share, goes))
        self.alive = waits + stay
        self.round += 1


def knockout(lengths: Sequence[Sequence[int]], compare: Compare, *, worst: bool = False) -> list[Ranking]:
    """A ranking of the answers to each prompt, whose lengths these are; a round of all prompts is compared at once."""
    upper = [_Bracket([*range(len(each))]) for each in lengths]
    _play(upper, lengths, compare, keep_better=True)
    winless = [{answer for _, _, answer in bracket.gone} - bracket.beat_someone for bracket in upper]
    lower = [_Bracket(sorted(each) if worst else []) for each in winless]
    _play(lower, lengths, compare, keep_better=False)
    rankings = []
    for up, down in zip(upper, lower, strict=True):
        lost = [answer for _, _, answer in sorted(up.gone, key=lambda each: (-each[0], -each[1], each[2]))]
        last = [answer for _, _, answer in sorted(down.gone, key=lambda each: (each[0], -each[1], each[2]))]
        last += down.alive
        placed = [answer for answer in up.alive + lost if answer not in {*last, *down.unranked}]
        comparisons = up.comparisons + down.comparisons
        rankings.append(Ranking((*placed, *last), (*up.unranked, *down.unranked), comparisons))
    return rankings


def _play(brackets: Sequence[_Bracket], lengths: Sequence[Sequence[int]], compare: Compare, keep_better: bool) -> None:
    """Round after round, until at most one is left in each bracket."""
    while matches := [(number, *pair) for number, bracket in enumerate(brackets) for pair in bracket.matches()]:
        told = iter(compare(matches))
        for bracket, each in zip(brackets, lengths, strict=True):
            bracket.play([next(told) for _ in bracket.matches()], each, keep_better)
