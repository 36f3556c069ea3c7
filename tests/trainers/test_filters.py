"""The paper's filters: what is dropped is what they say, all of it is counted, and nothing else changes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from rlhf_bench.harness.types import Message, Preference
from rlhf_bench.trainers import filters
from rlhf_bench.trainers.filters import Filters, Kept


def pair(prompt: str = "p", chosen: str = "a", rejected: str = "b", margin: float = 1.0, **tags: str) -> Preference:
    return Preference((Message("user", prompt),), chosen, rejected, margin, tags)


def words(text: str) -> int:
    return len(text.split())


def test_pairs_of_equal_score_go_and_so_do_those_whose_rejected_answer_scores_higher() -> None:
    pairs = [pair(margin=0.0), pair(margin=0.5), pair(margin=-2.0)]
    assert filters.drop_equal_scores(pairs) == (
        [pairs[1]],
        {"pairs with equal scores": 1, "pairs whose rejected answer has the higher score": 1},
    )


def test_the_margin_is_a_threshold_that_is_kept_itself() -> None:
    pairs = [pair(margin=0.99), pair(margin=1.0), pair(margin=3.0)]
    assert filters.drop_small_margin(pairs, 1.0) == (pairs[1:], {"pairs whose margin is below min_margin": 1})


def test_shp_keeps_ratios_above_two_and_then_five_pairs_of_a_prompt() -> None:
    pairs = [pair("post", f"a{n}", margin=n + 1, score_ratio=str(ratio)) for n, ratio in enumerate([2, 2.01, 9, 3] * 3)]
    pairs += [pair("other", score_ratio="2.5")]
    kept, dropped = filters.apply(filters.SHP, pairs, words)
    assert kept == [each for each in pairs if each.tags["score_ratio"] != "2"][:5] + pairs[-1:]
    assert dropped == {"pairs whose score ratio is too low": 3, "pairs beyond per_prompt": 4}


def test_pairs_without_a_ratio_are_not_shps() -> None:
    assert filters.drop_low_ratio([pair()], 2.0) == ([pair()], {})


def test_a_pair_stands_once_and_one_that_is_ranked_both_ways_not_at_all() -> None:
    pairs = [pair(), pair(margin=2.0), pair("q"), pair("q", "b", "a"), pair("r", "a", "c")]
    assert filters.drop_duplicates(pairs) == (
        [pairs[0], pairs[4]],
        {"pairs that are ranked both ways": 2, "pairs that are there twice": 1},
    )


def test_lengths_are_counted_by_the_callers_tokenizer() -> None:
    pairs = [pair("one two three"), pair("one", "a b c d"), pair("one two", "a b", "c d e"), pair("one", "a", "b")]
    kept, dropped = filters.drop_long(pairs, words, prompt=2, answer=3, total=4)
    assert kept == pairs[3:]
    assert dropped == {
        "pairs with a prompt that is too long": 1,
        "pairs with an answer that is too long": 1,
        "pairs that are too long": 1,
    }
    assert filters.drop_long(pairs, words) == (pairs, {})


def test_the_defaults_drop_only_what_nothing_can_be_learned_from() -> None:
    pairs = [pair("x " * 9999), pair(margin=1e-9, score_ratio="1.1"), *(pair("p", str(n)) for n in range(50))]
    assert filters.apply(Filters(), pairs, words) == (pairs, {})


def test_every_filter_of_the_config_is_used() -> None:
    pairs = [pair(margin=0), pair(), pair(), pair("q", score_ratio="1"), pair("r", margin=0.5), pair("long one")]
    pairs += [pair("s", "c"), pair("s", "d")]
    everything = Filters(score_ratio=2, per_prompt=1, min_margin=1, max_tokens=2)
    kept, dropped = filters.apply(everything, pairs, words)
    assert kept == [pairs[1], pairs[6]]
    assert dropped == {
        "pairs with equal scores": 1,
        "pairs that are there twice": 1,
        "pairs whose score ratio is too low": 1,
        "pairs whose margin is below min_margin": 1,
        "pairs that are too long": 1,
        "pairs beyond per_prompt": 1,
    }
    assert filters.apply(Filters(equal_scores=False, duplicates=False), pairs, words) == (pairs, {})


@pytest.mark.parametrize("setting", [{"per_prompt": 0}, {"score_ratio": 0.5}, {"min_margin": -1}, {"ratio": 2}])
def test_a_setting_that_means_nothing_is_refused(setting: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Filters(**setting)


SOME = st.lists(
    st.builds(
        pair,
        st.sampled_from("pq"),
        st.sampled_from("abc"),
        st.sampled_from("abc"),
        st.integers(-1, 3).map(float),
        score_ratio=st.sampled_from(["1", "3"]),
    ),
    max_size=12,
)
STEPS: Sequence[Callable[[Sequence[Preference]], Kept]] = (
    filters.drop_equal_scores,
    filters.drop_duplicates,
    lambda pairs: filters.drop_small_margin(pairs, 2.0),
    lambda pairs: filters.drop_low_ratio(pairs, 2.0),
    lambda pairs: filters.drop_beyond(pairs, 2),
    lambda pairs: filters.drop_long(pairs, words, total=1),
    lambda pairs: filters.apply(Filters(score_ratio=2, per_prompt=2, min_margin=2), pairs, words),
)


@given(SOME, st.sampled_from(range(len(STEPS))))
def test_what_is_kept_and_what_is_counted_are_all_there_was_in_order(pairs: list[Preference], step: int) -> None:
    kept, dropped = STEPS[step](pairs)
    assert len(kept) + sum(dropped.values()) == len(pairs)
    rest = iter(pairs)
    assert all(any(each is other for other in rest) for each in kept)
    assert STEPS[step](kept) == (kept, {})
    assert all(dropped.values())
