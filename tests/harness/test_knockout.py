"""harness/judges/knockout.py: few comparisons, the ends right where there is a right one, no order against a match."""

from __future__ import annotations

import math
from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from rlhf_bench.harness.judges.knockout import Match, Ranking, knockout

tables = st.integers(0, 9).flatmap(
    lambda n: st.lists(
        st.lists(st.sampled_from([0.0, 0.1, 0.4, 0.5, 0.6, 0.9, 1.0]), min_size=n, max_size=n), min_size=n, max_size=n
    )
)
"""Any preferences at all, circles and ties among them: [a][b] is P(a ≻ b) for a < b."""


class Table:
    """Compares by a table, and remembers what was asked; `too_long` answers can be compared with none."""

    def __init__(self, chances: Sequence[Sequence[float]], too_long: frozenset[int] = frozenset()) -> None:
        self.chances, self.too_long = chances, too_long
        self.played: list[tuple[int, int, float]] = []

    def __call__(self, matches: Sequence[Match]) -> list[float | None]:
        found: list[float | None] = []
        for number, a, b in matches:
            assert number == 0 and a < b
            found.append(None if self.too_long & {a, b} else self.chances[a][b])
            if found[-1] is not None:
                self.played.append((a, b, self.chances[a][b]))
        return found

    def rank(self, *, worst: bool) -> Ranking:
        lengths = [10 + place if place in self.too_long else 1 for place in range(len(self.chances))]
        return knockout([lengths], self, worst=worst)[0]


def transitive(strengths: Sequence[float]) -> Table:
    """Bradley-Terry."""
    return Table([[1 / (1 + math.exp(other - one)) for other in strengths] for one in strengths])


@given(st.lists(st.floats(-5, 5), min_size=1, max_size=12), st.booleans())
def test_the_ends_are_the_best_and_the_worst_where_preferences_are_transitive(
    strengths: list[float], worst: bool
) -> None:
    ranking = transitive([round(each, 3) for each in strengths]).rank(worst=worst)
    assert round(strengths[ranking.order[0]], 3) == max(round(each, 3) for each in strengths)
    if worst:
        assert round(strengths[ranking.order[-1]], 3) == min(round(each, 3) for each in strengths)


@given(tables, st.booleans())
def test_it_takes_few_comparisons_and_no_pair_meets_twice(chances: list[list[float]], worst: bool) -> None:
    table, n = Table(chances), len(chances)
    ranking = table.rank(worst=worst)
    assert ranking.comparisons == len(table.played) == len({(a, b) for a, b, _ in table.played})
    least = max(0, n - 1)
    assert least <= ranking.comparisons <= (max(least, math.ceil(3 * n / 2) - 2) if worst else least)
    assert sorted(ranking.order) == [*range(n)] and ranking.unranked == ()


@given(tables, st.booleans())
def test_whoever_lost_a_match_stands_below_who_won_it(chances: list[list[float]], worst: bool) -> None:
    table = Table(chances)
    place = {answer: place for place, answer in enumerate(table.rank(worst=worst).order)}
    for a, b, p in table.played:
        assert (place[a] < place[b]) == (p >= 0.5)  # a tie goes to the one given first


@given(tables, st.sets(st.integers(0, 8)), st.booleans())
def test_what_cannot_be_compared_is_out_and_all_else_is_ranked(
    chances: list[list[float]], too_long: set[int], worst: bool
) -> None:
    n = len(chances)
    ranking = Table(chances, frozenset(too_long)).rank(worst=worst)
    out = sorted(each for each in too_long if each < n)
    assert sorted((*ranking.order, *ranking.unranked)) == [*range(n)]
    assert sorted(ranking.unranked) == (out if len(out) < n else out[1:])  # one that met nobody is left over


def test_in_between_later_and_narrower_losers_stand_higher() -> None:
    chances = [[0.5, 0.9, 0.7, 0.5], [0.5] * 4, [0.5, 0.5, 0.5, 0.6], [0.5] * 4]
    assert Table(chances).rank(worst=False).order == (0, 2, 3, 1)


def test_every_prompt_has_its_own_ranking_and_a_round_of_all_is_one_call() -> None:
    rounds: list[Sequence[Match]] = []

    def later_is_better(matches: Sequence[Match]) -> list[float | None]:
        rounds.append(matches)
        return [0.1] * len(matches)

    first, second, third = knockout([[1] * 4, [1], [1] * 2], later_is_better)
    assert (first.order[0], second.order, third.order) == (3, (0,), (1, 0))
    assert rounds == [[(0, 0, 1), (0, 2, 3), (2, 0, 1)], [(0, 1, 3)]]
