"""trainers/packing.py and questions.py: nothing is lost, nothing is cut, and the seed says the rest."""

from __future__ import annotations

from collections import Counter

import pytest
from datasets import Dataset, disable_progress_bars
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.trainers.conftest import sums
from trl import pack_dataset

from rlhf_bench.trainers.packing import pack
from rlhf_bench.trainers.questions import questions

LENGTHS = st.integers(1, 60).flatmap(
    lambda limit: st.tuples(st.lists(st.integers(1, limit), max_size=40), st.just(limit))
)


@given(LENGTHS)
def test_every_sequence_is_in_one_row_and_every_row_fits(given_: tuple[list[int], int]) -> None:
    lengths, limit = given_
    rows = pack(lengths, limit)
    assert Counter(index for row in rows for index in row) == Counter(range(len(lengths)))
    assert all(0 < sum(lengths[index] for index in row) <= limit for row in rows)


@given(LENGTHS)
def test_no_two_rows_would_have_fitted_into_one(given_: tuple[list[int], int]) -> None:
    lengths, limit = given_
    fill = sorted(sum(lengths[index] for index in row) for row in pack(lengths, limit))
    assert len(fill) < 2 or fill[0] + fill[1] > limit


@given(LENGTHS)
@settings(max_examples=25, deadline=None)
def test_rows_are_as_full_as_trls(given_: tuple[list[int], int]) -> None:
    lengths, limit = given_
    if not lengths:
        return
    disable_progress_bars()
    theirs = pack_dataset(Dataset.from_dict({"input_ids": [[0] * length for length in lengths]}), limit, "bfd")
    ours = [sum(lengths[index] for index in row) for row in pack(lengths, limit)]
    assert sorted(ours) == sorted(len(row) for row in theirs["input_ids"])


def test_a_sequence_that_is_too_long_is_not_cut() -> None:
    with pytest.raises(ValueError, match="a sequence of 9 tokens does not fit into a row of 8"):
        pack([3, 9], 8)


def test_a_question_shows_both_answers_and_the_seed_says_which_is_first() -> None:
    pairs = sums(0, 400)
    asked = questions(pairs, seed=3)
    assert asked == questions(pairs, seed=3) != questions(pairs, seed=4)
    for pair, question in zip(pairs, asked, strict=True):
        answers = (question.a, question.b) if question.a_is_better else (question.b, question.a)
        assert (question.prompt, *answers) == (pair.prompt, pair.chosen, pair.rejected)
    assert 160 < sum(question.a_is_better for question in asked) < 240
