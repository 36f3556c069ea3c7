import random
from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from rlhf_bench.leaderboards.ranking import PUBLISHED, Row, board, differences, rank


def row(model: str, mean: float | None, half: float = 0.0, **conditions: str) -> Row:
    low, high = (None, None) if mean is None else (mean - half, mean + half)
    return Row(model, "b", "accuracy", mean, low, high, "run", conditions, graded=10)


rows = st.lists(st.tuples(st.floats(0, 1), st.floats(0, 0.5)), min_size=1, max_size=12).map(
    lambda pairs: [row(f"m{i}", mean, half) for i, (mean, half) in enumerate(pairs)]
)


@given(rows, st.randoms())
def test_ranks_do_not_depend_on_the_order_of_the_rows(given_rows: list[Row], chance: random.Random) -> None:
    shuffled = list(given_rows)
    chance.shuffle(shuffled)
    assert rank(shuffled) == rank(given_rows)


@given(rows)
def test_the_highest_mean_has_rank_one_and_no_rank_exceeds_the_rows_above_it(given_rows: list[Row]) -> None:
    ranked = rank(given_rows)
    best = max(each.mean or 0 for each in ranked)
    assert all(each.rank == 1 for each in ranked if each.mean == best)
    for each in ranked:
        assert each.rank == 1 + sum(other.low > each.high for other in ranked)  # type: ignore[operator]


@given(rows)
def test_only_disjoint_intervals_put_one_row_strictly_behind_the_best(given_rows: list[Row]) -> None:
    ranked = rank(given_rows)
    highest_low = max(each.low or 0.0 for each in ranked)
    for each in ranked:
        assert (each.rank == 1) == (each.high is not None and each.high >= highest_low)


@given(rows)
def test_a_row_clearly_above_another_ranks_before_it(given_rows: list[Row]) -> None:
    ranked = rank(given_rows)
    for one in ranked:
        for other in ranked:
            if one.low > other.high:  # type: ignore[operator]
                assert one.rank < other.rank  # type: ignore[operator]


def test_a_chain_of_overlaps_is_not_one_tie() -> None:
    ranked = {
        each.model: each.rank for each in rank([row("a", 0.85, 0.05), row("b", 0.77, 0.05), row("c", 0.69, 0.05)])
    }
    assert ranked == {"a": 1, "b": 1, "c": 2}


def test_a_row_without_a_mean_is_listed_last_and_unranked() -> None:
    assert [(each.model, each.rank) for each in rank([row("none", None), row("low", 0.1, 0.01)])] == [
        ("low", 1),
        ("none", None),
    ]


def models(found: Sequence[Row]) -> list[str]:
    return [each.model for each in found]


def test_rows_under_other_conditions_stand_below_and_say_why() -> None:
    here = [row("a", 0.5, 0.1, judge="J", shots="8"), row("b", 0.6, 0.1, judge="J", shots="8")]
    other = row("c", 0.99, 0.01, judge="K", shots="8")
    published = row("d", 0.999, 0.0, shots="0")
    found = board([other, *here], [published])
    assert models(found) == ["b", "a", "c", "d"]
    assert [each.rank for each in found] == [1, 1, None, None]
    assert found[2].marks == ("judge K, here J",)
    assert found[3].marks == (PUBLISHED, "shots 0, here 8")


def test_published_rows_alone_are_shown_unranked() -> None:
    found = board([], [row("d", 0.9), row("e", 0.95)])
    assert models(found) == ["e", "d"]
    assert all(each.rank is None and each.marks == (PUBLISHED,) for each in found)


def test_equal_conditions_differ_in_nothing() -> None:
    assert differences({"judge": "J", "extra": "x"}, {"judge": "J"}) == ()
