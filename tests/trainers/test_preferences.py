"""trainers/preferences.py: honest pairs, the same ones every time, and nothing dropped uncounted."""

from __future__ import annotations

import random
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlhf_bench.harness.types import FinishReason, Message, Request, Sample
from rlhf_bench.trainers.preferences import (
    DAMAGES,
    best_worst,
    damaged_preferences,
    select_best,
    select_pairs,
)

PROMPT = (Message("user", "Why?"),)
words = st.text("abcdefghij", min_size=1, max_size=8)
sentences = st.lists(words, min_size=1, max_size=12).map(lambda parts: " ".join(parts).capitalize() + ".")
references = st.lists(sentences, min_size=1, max_size=4).map(" ".join)
rewards = st.one_of(st.none(), st.floats(-5, 5), st.just(float("nan")))
finishes: st.SearchStrategy[FinishReason] = st.sampled_from(["stop", "stop", "length"])
answers = st.lists(st.tuples(words, rewards, finishes), max_size=6)


def sample(name: str, reference: str) -> Sample:
    return Sample(name, (Request(name, (Message("user", f"Question {name}"),)),), reference)


def samples(texts: list[str]) -> list[Sample]:
    return [sample(str(number), text) for number, text in enumerate(texts)]


@settings(max_examples=60, deadline=None)
@given(st.lists(references, max_size=5), st.integers(0, 9))
def test_a_damaged_pair_keeps_the_reference_as_chosen_and_differs_from_it(texts: list[str], seed: int) -> None:
    pairs = damaged_preferences(samples(texts), seed)
    known = {(Message("user", f"Question {n}"),): text for n, text in enumerate(texts)}
    for pair in pairs:
        assert pair.chosen == known[pair.prompt] != pair.rejected
        assert pair.tags["damage"] in DAMAGES
    assert max(Counter(pair.prompt for pair in pairs).values(), default=0) <= 4


@settings(max_examples=60, deadline=None)
@given(st.lists(references, max_size=5), st.integers(0, 9))
def test_the_same_samples_and_seed_give_the_same_pairs(texts: list[str], seed: int) -> None:
    assert damaged_preferences(samples(texts), seed) == damaged_preferences(samples(texts), seed)


@settings(max_examples=60, deadline=None)
@given(st.lists(references, min_size=2, max_size=5, unique=True), st.randoms())
def test_the_order_of_the_samples_does_not_change_their_pairs(texts: list[str], rng: random.Random) -> None:
    given_order = samples(texts)
    shuffled = rng.sample(given_order, len(given_order))
    pairs, again = damaged_preferences(given_order, 1), damaged_preferences(shuffled, 1)
    assert sorted(pairs, key=repr) == sorted(again, key=repr)


@settings(max_examples=60, deadline=None)
@given(references, references, st.integers(0, 99))
def test_each_damage_does_what_its_name_says(answer: str, other: str, seed: int) -> None:
    damaged = {kind: damage(answer, [answer, other], random.Random(seed)) for kind, damage in DAMAGES.items()}
    if (cut := damaged["truncated"]) is not None:
        assert answer.startswith(cut) and cut != answer and cut[-1] not in ".!?"
    assert damaged["off-topic"] == (other if other != answer else None)
    assert answer in (damaged["padded"] or "") and damaged["padded"] != answer
    if (mixed := damaged["shuffled"]) is not None:
        assert Counter(mixed.split()) == Counter(answer.split())
    if (hot := damaged["garbled"]) is not None:
        replaced = [new for old, new in zip(answer.split(), hot.split(), strict=True) if old != new]
        assert set(replaced) <= set(other.split()) and len(replaced) < len(answer.split()) / 2
    stuck = damaged["repeated"] or ""
    assert max(Counter(stuck.split(". ")).values()) > 1 or stuck.count(answer) > 1


@pytest.mark.parametrize("each", [1, 3, 6])
def test_a_reference_of_normal_length_is_damaged_in_as_many_ways_as_asked(each: int) -> None:
    text = "Ice floats because it is less dense than water. Its crystal takes up more room than the liquid."
    pairs = damaged_preferences([sample("a", text), sample("b", "Boil the egg for six minutes. Cool it.")], 0, each)
    assert len({pair.tags["damage"] for pair in pairs if pair.chosen == text}) == each


def test_every_kind_of_damage_is_drawn_equally_often() -> None:
    text = "Ice floats because it is less dense than water. Its crystal takes up more room than the liquid."
    pairs = damaged_preferences(samples([f"{text} {number}." for number in range(200)]), 0)
    counts = Counter(pair.tags["damage"] for pair in pairs)
    assert len(pairs) == 800 and counts.keys() == DAMAGES.keys() and min(counts.values()) > 100


def test_the_length_penalty_decides_which_answer_is_chosen_and_not_only_which_two_are_picked() -> None:
    """The published code picks by penalised reward and then orders by raw reward: the long answer stays chosen."""
    long, short = "x" * 5000, "y" * 100
    pair, _ = best_worst(PROMPT, [long, short], [1.0, 0.9], length_penalty=0.001)
    assert pair is not None and pair.chosen == short
    assert pair.margin == pytest.approx((0.9 - 0.1) - (1.0 - 5.0))


@settings(max_examples=60, deadline=None)
@given(answers, st.sampled_from([0.0, 0.01, 1.0]), st.sampled_from([0.0, 0.5]))
def test_the_pair_is_the_best_and_the_worst_of_the_whole_scored_answers(
    rows: list[tuple[str, float | None, FinishReason]], penalty: float, min_margin: float
) -> None:
    texts, values, finish = [[row[i] for row in rows] for i in range(3)]
    pair, why = best_worst(PROMPT, texts, values, finish, length_penalty=penalty, min_margin=min_margin)
    ranked = {
        (value - penalty * len(text), text)
        for text, value, reason in rows
        if reason == "stop" and value is not None and value == value
    }
    assert (pair is None) == bool(why)
    if pair is not None:
        assert pair.margin == max(ranked)[0] - min(ranked)[0] >= min_margin and pair.margin > 0
        assert (max(ranked)[0], pair.chosen) in ranked and (min(ranked)[0], pair.rejected) in ranked
        assert pair.chosen != pair.rejected


@pytest.mark.parametrize(
    ("texts", "values", "finish", "why"),
    [
        (["a", "a"], [1.0, 1.0], ["stop", "stop"], "prompts whose answers are identical"),
        (["a", "b"], [1.0, 1.0], ["stop", "stop"], "prompts whose rewards are equal"),
        (["a", "b"], [1.0, 1.2], ["stop", "stop"], "prompts whose margin is below min_margin"),
        (["a", "b"], [1.0, 2.0], ["stop", "length"], "prompts with too few whole, scored answers"),
        (["a", "b"], [1.0, None], ["stop", "stop"], "prompts with too few whole, scored answers"),
        ([], [], [], "prompts with too few whole, scored answers"),
    ],
)
def test_a_prompt_without_a_pair_says_why(
    texts: list[str], values: list[float | None], finish: list[FinishReason], why: str
) -> None:
    assert best_worst(PROMPT, texts, values, finish, min_margin=0.5) == (None, why)


def test_a_truncated_answer_is_never_chosen_even_with_the_highest_reward() -> None:
    pair, _ = best_worst(PROMPT, ["cut", "good", "bad"], [9.0, 1.0, 0.0], ["length", "stop", "stop"])
    assert pair is not None and (pair.chosen, pair.rejected) == ("good", "bad")


def test_a_cut_answer_may_lose_where_that_is_asked_and_still_never_wins() -> None:
    texts, values, finish = ["cut well", "whole", "cut badly"], [9.0, 1.0, 0.0], ["length", "stop", "length"]
    pair, _ = best_worst(PROMPT, texts, values, finish, cut_may_lose=True)
    assert pair is not None and (pair.chosen, pair.rejected) == ("whole", "cut badly")
    assert best_worst(PROMPT, texts[:1] + texts[2:], [9.0, 0.0], ["length"] * 2, cut_may_lose=True)[0] is None
    assert best_worst(PROMPT, texts[:2], [9.0, 1.0], ["length", "stop"], cut_may_lose=True)[0] is None


@settings(max_examples=60, deadline=None)
@given(st.lists(answers, max_size=6))
def test_every_prompt_gives_a_pair_or_is_counted(prompts: list[list[tuple[str, float | None, FinishReason]]]) -> None:
    rows = [
        {
            "prompt": [{"role": "user", "content": f"prompt {number}"}],
            "responses": [row[0] for row in rows],
            "rewards": [row[1] for row in rows],
            "finish_reasons": [row[2] for row in rows],
        }
        for number, rows in enumerate(prompts)
    ]
    pairs, left_out = select_pairs(rows)
    without_a_pair = sum(count for reason, count in left_out.items() if reason.startswith("prompts"))
    assert len(pairs) + without_a_pair == len(rows)
    cut = sum(reason == "length" for row in rows for reason in row["finish_reasons"])
    assert left_out.get("answers cut at the token limit", 0) == cut


@given(answers, st.floats(0, 1))
def test_the_best_answer_is_a_whole_one_that_no_whole_one_beats(
    told: list[tuple[str, float | None, FinishReason]], penalty: float
) -> None:
    row = {
        "prompt": [{"role": "user", "content": "Why?"}],
        "responses": [text for text, _, _ in told],
        "rewards": [reward for _, reward, _ in told],
        "finish_reasons": [reason for _, _, reason in told],
    }
    found, left_out = select_best([row], penalty)
    whole = {text: r - penalty * len(text) for text, r, why in told if why == "stop" and r is not None and r == r}
    if not whole:
        assert not found and left_out["prompts with too few whole, scored answers"] == 1
        return
    [best] = found
    assert best["reward"] - penalty * len(best["response"]) == max(
        r - penalty * len(text) for text, r, why in told if why == "stop" and r is not None and r == r
    )
    assert sum(left_out.values()) == len([1 for _, r, why in told if why != "stop" or r is None or r != r])
