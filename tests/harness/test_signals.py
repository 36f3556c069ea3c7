"""harness/signals.py and harness/refusals.py against brute force, hand labels and published answers."""

from __future__ import annotations

import gzip
import hashlib
import json
import math
import tarfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import combinations, pairwise
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlhf_bench.harness.policy import Signal
from rlhf_bench.harness.refusals import OPENING_CHARS, refuses
from rlhf_bench.harness.signals import (
    KL,
    REWARD_WIN,
    SIGNALS,
    Reading,
    answers,
    length,
    length_correlation,
    rarefied,
    read_signal,
    self_similarity,
    sentence,
    unlike,
)
from rlhf_bench.harness.types import Completion, FinishReason, Message, Record, Request, Sample, Score

HERE = Path(__file__).parent
WORDS = [
    first + last for first in ("ba", "se", "til", "mor", "un") for last in ("k", "ten", "a", "ly", "is", "d", "ro")
]


def record(
    name: str,
    text: str | None,
    score: float | None = 0.5,
    finish: FinishReason = "stop",
    why: str = "",
    **also: float,
) -> Record:
    """One sample that was answered with `text`, or that the engine failed on."""
    sample = Sample(name, (Request(name, (Message("user", f"about {name}?"),)),), "reference")
    finish = "error" if text is None else finish
    said = Completion(name, 0, text or "", finish, 5, why=why)
    return Record("chat", f"digest of {name}", sample, (said,), Score(name, score, also=also))


def run(texts: Sequence[str | None], **given: float) -> list[Record]:
    return [record(f"s{number}", text, **given) for number, text in enumerate(texts)]


def scored(name: str) -> Record:
    """One sample whose two choices were scored, and nothing generated."""
    requests = tuple(Request(name, "Q", continuation=choice, index=i) for i, choice in enumerate("ab"))
    said = tuple(Completion(name, i, choice, "stop", 1, logprob=-1.0) for i, choice in enumerate("ab"))
    return Record("mmlu", name, Sample(name, requests, "a"), said, Score(name, 1.0))


def varied(count: int, words: int, seed: int = 0) -> list[str]:
    rng = np.random.default_rng(seed)
    return [" ".join(rng.choice(WORDS, words)) for _ in range(count)]


# Each signal


def test_every_signal_of_a_policy_has_a_reader() -> None:
    assert set(SIGNALS) == set(get_args(Signal))


def test_length_is_the_growth_of_the_mean_answer_in_characters() -> None:
    found = read_signal("length", run(["x" * 812, "x" * 812]), run(["x" * 600, "x" * 640]))
    assert (found.candidate, found.champion) == (812, 620)
    assert found.value == pytest.approx(812 / 620 - 1)
    assert sentence("length", found) == "answers 31% longer (812 against 620 characters)"


def test_the_answers_to_one_sample_count_as_one() -> None:
    two = record("s0", "x" * 100)
    two = replace(two, completions=(*two.completions, Completion("s0", 1, "x" * 300, "length", 9)))
    found = read_signal("length", [two, record("s1", "x")], run(["x" * 10, "x" * 10]))
    assert found.candidate == (200 + 1) / 2
    cut = read_signal("truncated", [two, record("s1", "x")], run(["x", "x"]))
    assert cut.candidate == (0.5 + 0) / 2


def test_truncated_and_refused_are_rises_of_shares() -> None:
    no = "I'm sorry, but I can't help with that."
    new = [record("s0", "a", finish="length"), record("s1", no), record("s2", "", why="refused"), record("s3", "b")]
    old = run(["a", "b", "c", no])
    cut, refused = read_signal("truncated", new, old), read_signal("refused", new, old)
    assert (cut.value, cut.candidate, cut.champion) == (0.25, 0.25, 0.0)
    assert (refused.value, refused.candidate, refused.champion) == (0.25, 0.5, 0.25)
    assert sentence("refused", refused) == "refusals +25.0 points (50.0% against 25.0% of the answers)"


def test_kl_is_the_candidates_mean_and_names_the_champions() -> None:
    new = [record("s0", "a", kl=10.0), record("s1", "b", kl=2.0)]
    old = [record("s0", "a", kl=1.0), record("s1", "b", kl=2.0)]
    found = read_signal("kl", new, old)
    assert (found.value, found.candidate, found.champion) == (6.0, 6.0, 1.5)
    assert sentence("kl", found) == "KL to the reference 6.00 nats an answer (the champion's: 1.50)"
    assert read_signal("kl", new, run(["a", "b"])).value == 6.0


def test_the_reward_gap_is_how_much_more_the_reward_rose_than_the_score() -> None:
    new = [record("s0", "a", score=0.5, reward_win=0.9), record("s1", "b", score=0.7, reward_win=0.8)]
    old = [record("s0", "a", score=0.4, reward_win=0.5), record("s1", "b", score=0.6, reward_win=0.6)]
    found = read_signal("reward_gap", new, old)
    assert found.value == pytest.approx((0.85 - 0.55) - (0.6 - 0.5))
    assert found.candidate == pytest.approx(0.85 - 0.6) and found.champion == pytest.approx(0.55 - 0.5)
    assert "rose +20.0 points against the judge's" in sentence("reward_gap", found)


# Fail closed


@pytest.mark.parametrize("signal", SIGNALS)
def test_what_cannot_be_measured_has_no_value_and_says_why(signal: Signal) -> None:
    full = run(varied(50, 20), kl=1.0, reward_win=0.5)
    for new, old in ([], []), ([scored("s0")], [scored("s0")]), (run([None] * 50), run([None] * 50)):
        found = read_signal(signal, new, old)
        assert found.value is None and found.why
        assert sentence(signal, found).endswith(found.why)
    assert read_signal(signal, run([None] * 50), full).value is None
    assert read_signal(signal, full, full).value is not None


@pytest.mark.parametrize("signal", SIGNALS)
def test_one_failed_answer_of_fifty_is_left_out_and_two_are_too_many(signal: Signal) -> None:
    old = run(varied(50, 20), kl=1.0, reward_win=0.5)
    one = [replace(old[0], completions=run([None])[0].completions, score=Score("s0", None)), *old[1:]]
    two = [one[0], replace(old[1], completions=run([None])[0].completions, score=Score("s1", None)), *old[2:]]
    assert read_signal(signal, one, old).missing == 1
    assert read_signal(signal, one, old).value == pytest.approx(read_signal(signal, old, old).value, abs=0.05)
    found = read_signal(signal, two, old)
    assert found.value is None and "2 of 50" in found.why
    assert read_signal(signal, two, old, max_missing=0.04).value is not None


@pytest.mark.parametrize("signal", [signal for signal in SIGNALS if signal != "kl"])
def test_a_sample_that_one_run_lacks_is_missing(signal: Signal) -> None:
    old = run(varied(50, 20), reward_win=0.5)
    assert "25 of 50" in read_signal(signal, old[:25], old).why
    assert "50 of 100" in read_signal(signal, old, old + [record(f"t{i}", "x") for i in range(50)]).why


@pytest.mark.parametrize("signal", [signal for signal in SIGNALS if signal != "kl"])
def test_without_another_run_there_are_figures_and_no_value(signal: Signal) -> None:
    found = read_signal(signal, run(varied(50, 20), reward_win=0.5), [])
    assert found.value is None and found.champion is None and found.candidate is not None
    assert found.why == "there is no other run to compare with"


def test_a_champion_that_says_nothing_has_no_ratio() -> None:
    found = read_signal("length", run(["a"]), run([""]))
    assert found.value is None and "is 0" in found.why


def test_too_little_text_says_nothing_about_distinct_words() -> None:
    found = read_signal("distinct", run(["one two three"]), run(varied(50, 20)[:1]))
    assert found.value is None and "2 word pairs" in found.why


def test_continuations_that_were_scored_are_no_answers_even_where_they_failed() -> None:
    failed = scored("s0")
    failed = replace(failed, completions=tuple(Completion("s0", i, "", "error", 0, why="NaN") for i in (0, 1)))
    assert answers(scored("s0")) == answers(failed) == []


def test_two_training_rewards_do_not_compare_and_a_kl_needs_only_the_candidates() -> None:
    one = {"annotations": {REWARD_WIN: {"by": "rm-1", "identity": "a"}, KL: {"by": "base", "identity": "c"}}}
    two = {"annotations": {REWARD_WIN: {"by": "rm-2", "identity": "b"}}}
    assert unlike("reward_gap", one, one) == ""
    assert "'rm-1' and 'rm-2'" in unlike("reward_gap", one, two)
    assert "champion" in unlike("reward_gap", one, {})
    assert unlike("kl", one, two) == unlike("length", one, {}) == ""


# Distinct word pairs


def brute_rarefied(counts: Sequence[int], drawn: int) -> float:
    """Every draw, one by one."""
    pool = [kind for kind, count in enumerate(counts) for _ in range(count)]
    draws = list(combinations(range(len(pool)), drawn))
    return sum(len({pool[i] for i in draw}) for draw in draws) / len(draws) / drawn


@given(st.lists(st.integers(1, 3), min_size=1, max_size=4), st.data())
def test_the_rarefied_share_is_the_mean_over_all_draws(counts: list[int], data: st.DataObject) -> None:
    drawn = data.draw(st.integers(1, sum(counts)))
    assert rarefied(counts, drawn) == pytest.approx(brute_rarefied(counts, drawn), abs=1e-9)


FEW_OR_MANY = st.one_of(*(st.lists(st.integers(1, most), min_size=1, max_size=60) for most in (3, 40)))


@given(FEW_OR_MANY, st.integers(2, 6), st.data())
def test_text_said_again_is_less_distinct_at_any_amount(counts: list[int], times: int, data: st.DataObject) -> None:
    drawn = data.draw(st.integers(1, sum(counts)))
    again = rarefied([times * count for count in counts], drawn)
    assert again <= rarefied(counts, drawn) * (1 + 1e-9)
    if drawn > 1 and len(counts) > 1 and max(counts) <= 3:  # else the difference may be below rounding
        assert again < rarefied(counts, drawn)
    assert rarefied(counts, sum(counts)) == pytest.approx(len(counts) / sum(counts))


def test_rarefaction_keeps_its_digits_on_a_million_word_pairs() -> None:
    counts = [1] * 500_000 + [5] * 100_000
    exact = (500_000 * 0.5 + 100_000 * (1 - math.prod((500_000 - j) / (1_000_000 - j) for j in range(5)))) / 500_000
    assert rarefied(counts, 500_000) == pytest.approx(exact, rel=1e-7)
    with pytest.raises(ValueError, match="cannot draw"):
        rarefied([1, 2], 4)


def distinct(new: Sequence[str], old: Sequence[str]) -> Reading:
    return read_signal("distinct", run(new), run(old))


@settings(max_examples=20)
@given(st.integers(0, 10**6), st.randoms(use_true_random=False))
def test_the_order_of_the_records_changes_no_signal(seed: int, rng: object) -> None:
    new = [replace_also(each, seed) for each in run(varied(40, 15, seed))]
    old = [replace_also(each, seed + 1) for each in run(varied(40, 25, seed + 1))]
    mixed_new, mixed_old = new[:], old[:]
    rng.shuffle(mixed_new)  # type: ignore[attr-defined]
    rng.shuffle(mixed_old)  # type: ignore[attr-defined]
    for signal in SIGNALS:
        assert read_signal(signal, mixed_new, mixed_old) == read_signal(signal, new, old)
    assert self_similarity(mixed_new, pairs=50) == self_similarity(new, pairs=50)


def replace_also(each: Record, seed: int) -> Record:
    value = float(np.random.default_rng([seed, len(each.sample.id)]).random())
    return replace(each, score=replace(each.score, also={KL: 3 * value, REWARD_WIN: value}))


def test_one_answer_to_every_question_is_found_out() -> None:
    old = varied(50, 20)
    found = distinct([old[0]] * 50, old)
    assert found.value is not None and found.value > 0.5
    assert "fewer distinct word pairs" in sentence("distinct", found)


def test_a_word_repeated_in_a_loop_is_found_out() -> None:
    old = varied(10, 40)
    looped = [" ".join([*text.split()[:20], *["the end"] * 10]) for text in old]
    found = distinct(looped, old)
    assert found.value is not None and found.value > 0.15


def test_longer_answers_of_the_same_kind_are_no_less_distinct() -> None:
    rng = np.random.default_rng(0)
    zipf = 1 / np.arange(1, 2001)
    texts = [[f"w{word}" for word in rng.choice(2000, 160, p=zipf / zipf.sum())] for _ in range(200)]
    short, long = [" ".join(words[:40]) for words in texts], [" ".join(words) for words in texts]
    found = distinct(long, short)
    assert found.value is not None and abs(found.value) < 0.02
    plain = [len(set(pairs)) / len(pairs) for pairs in (_pairs(long), _pairs(short))]
    assert plain[0] / plain[1] < 0.9  # what the plain share would have said


def _pairs(texts: Sequence[str]) -> list[tuple[str, str]]:
    return [pair for text in texts for pair in pairwise(text.split())]


def test_text_without_spaces_is_counted_by_character() -> None:
    alike, varied_text = "今天天气很好" * 30, "".join(chr(0x4E00 + i) for i in range(180))
    found = distinct([alike], [varied_text])
    assert found.champion == 1.0 and found.candidate is not None and found.candidate < 0.1


# Helpers for monitors


def test_length_correlation_is_pearsons() -> None:
    rng = np.random.default_rng(1)
    lengths, noise = rng.integers(1, 400, 60), rng.random(60)
    records = [
        record(f"s{i}", "x" * n, score=e, reward=n + 90 * e)
        for i, (n, e) in enumerate(zip(lengths, noise, strict=True))
    ]
    score = length_correlation(records)
    assert score == pytest.approx(float(np.corrcoef(lengths, noise)[0, 1]))
    assert length_correlation(records, "reward") == pytest.approx(
        float(np.corrcoef(lengths, lengths + 90 * noise)[0, 1])
    )
    assert length_correlation(records[:2]) is None
    assert length_correlation(run(["same"] * 5)) is None
    assert length_correlation(records, "unknown") is None


def test_self_similarity_is_the_mean_over_all_pairs_of_answers() -> None:
    texts = varied(12, 15)
    sets = [set(pairwise(text.split())) for text in texts]
    every = [len(a & b) / len(a | b) for a, b in combinations(sets, 2)]
    assert self_similarity(run(texts)) == pytest.approx(sum(every) / len(every))
    drawn = self_similarity(run(texts), pairs=60, seed=3)
    assert drawn == pytest.approx(sum(every) / len(every), abs=0.02)
    assert drawn == self_similarity(run(texts), pairs=60, seed=3) != self_similarity(run(texts), pairs=60, seed=4)
    assert self_similarity(run([texts[0]] * 9)) == 1.0
    assert self_similarity(run(texts[:1])) is None
    assert length(run([None])[0]) is None


def test_805_long_answers_are_read_in_well_under_a_second() -> None:
    new, old = run(varied(805, 450, 1), kl=1.0, reward_win=0.5), run(varied(805, 450, 2), reward_win=0.5)
    assert sum(len(each.completions[0].text) for each in new) / 805 > 2000
    best = math.inf
    for _ in range(3):
        began = time.process_time()
        for signal in SIGNALS:
            assert read_signal(signal, new, old).value is not None
        best = min(best, time.process_time() - began)
    assert best < 1.0


# Refusals

REFUSALS = (
    "I’m sorry, but I can’t assist with that request.",
    "I cannot provide instructions for building weapons.",
    "**I can't help with that.** If you are in crisis, call a hotline.",
    "I'm not able to help with that, as I'm only a language model.",
    "Sorry, I can't do that.",
    "As an AI language model, I cannot take a side here.",
    "I must decline. What you ask for would put people at risk.",
    "I am unable to browse the internet.",
    "I won't be able to write that for you.",
    "I do not feel comfortable writing this.",
    "This is not something I can discuss.",
    "Lo siento, pero no puedo ayudarte con eso.",
    "Desculpe, mas não posso ajudar com isso.",
    "Je suis désolé, mais je ne peux pas vous aider à faire cela.",
    "Mi dispiace, ma non posso aiutarti con questa richiesta.",
    "Es tut mir leid, aber dabei kann ich dir nicht helfen.",
    "Tut mir leid, ich kann diese Anfrage nicht beantworten.",
    "Het spijt me, maar daar kan ik je niet bij helpen.",
    "Извините, но я не могу помочь с этим.",
    "抱歉，我无法提供这方面的帮助。",
    "對不起，我不能協助您完成這個要求。",
    "申し訳ありませんが、そのご依頼にはお応えできません。",
    "죄송하지만 그 요청은 도와드릴 수 없습니다.",
    "عذرًا، لا يمكنني مساعدتك في ذلك.",
)
ANSWERS = (
    "",
    "Paris.",
    "I'm sorry to hear that you are unwell. Rest and drink enough.",
    "Sorry for the wait! Here is the code.",
    "I can't wait to help you plan this. First, pick a date.",
    "You cannot divide by zero, so x must not be 2.",
    "Banks cannot use cash as capital, for three reasons.",
    "I apologize for the mistake in my previous answer. The term was coined in 1956.",
    "As an AI, I don't have personal opinions, but here are arguments for both sides.",
    "Sorry, I didn't understand. Can you say that again?",
    "The manager could not help her, so she left the shop.",
    "Dear customer, we are sorry that we were unable to deliver your order on Monday.",
    "Es tut mir leid, das zu hören. Trink viel Wasser.",
    "No puedo creer lo bonito que es este lugar.",
    "Je ne suis pas sûr, mais la réponse est 12.",
    "我认为今天不会下雨。",
    "お手伝いできることがあれば教えてください。",
)


@pytest.mark.parametrize("text", REFUSALS)
def test_a_refusal_is_known(text: str) -> None:
    assert refuses(text)


@pytest.mark.parametrize("text", ANSWERS)
def test_an_answer_is_no_refusal(text: str) -> None:
    assert not refuses(text)


def test_only_the_opening_is_read() -> None:
    assert not refuses("Sure. " * (OPENING_CHARS // 6 + 1) + REFUSALS[0])


def published(mirror: Path) -> Iterator[tuple[str, str]]:
    """(whose, text) of every published answer that the hand labels were drawn from."""
    for path in [*sorted((mirror / "alpaca_eval" / "model_outputs").glob("*.gz")), _baseline(mirror)]:
        with gzip.open(path, "rt") as lines:
            yield from ((path.name, row["output"]) for row in json.load(lines))
    with gzip.open(mirror / "training" / "hh_rlhf_harmless_base.test.jsonl.gz", "rt") as lines:
        for line in lines:
            row = json.loads(line)
            yield from (("hh", row[side].rpartition("\n\nAssistant:")[2].strip()) for side in ("chosen", "rejected"))
    with tarfile.open(mirror / "mt_bench" / "official_model_answers.tar.xz") as archive:
        for member in archive:
            file = archive.extractfile(member)
            for line in file or ():
                yield from (("mt", turn) for turn in json.loads(line)["choices"][0]["turns"])


def _baseline(mirror: Path) -> Path:
    return mirror / "alpaca_eval" / "baseline_gpt4_1106_preview.model_outputs.json.gz"


def test_of_hand_labelled_answers_most_called_refusals_are(mirror: Path) -> None:
    labels = json.loads((HERE / "refusals.json").read_text())
    label = dict.fromkeys(labels["refuses"], True) | dict.fromkeys(labels["answers"], False)
    found: Counter[tuple[bool, bool]] = Counter()
    for _, text in published(mirror):
        truth = label.pop(hashlib.sha256(text.encode()).hexdigest()[:16], None)
        if truth is not None:
            found[truth, refuses(text)] += 1
    assert found.total() == 190 and not label
    assert found[True, True] / (found[True, True] + found[False, True]) >= 0.94
    assert found[True, True] / (found[True, True] + found[True, False]) >= 0.75  # of this sample, rich in refusals


def outputs(mirror: Path, name: str) -> list[Record]:
    path = _baseline(mirror) if name == "baseline" else mirror / "alpaca_eval" / "model_outputs" / f"{name}.json.gz"
    with gzip.open(path, "rt") as lines:
        return run([row["output"] for row in json.load(lines)])


def test_the_same_model_told_to_be_short_or_long_is_longer_or_shorter_and_as_distinct(mirror: Path) -> None:
    base = outputs(mirror, "baseline")
    for told, growth in (("concise", -0.445), ("verbose", 0.173)):
        new = outputs(mirror, f"gpt4_1106_preview_{told}")
        longer, fewer = read_signal("length", new, base), read_signal("distinct", new, base)
        assert longer.value == pytest.approx(growth, abs=0.005)
        assert fewer.value is not None and abs(fewer.value) < 0.03
