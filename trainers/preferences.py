"""Preference pairs, made honestly: from damaged reference answers, and from ranked answers of a policy."""

from __future__ import annotations

import math
import random
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rlhf_bench.harness.types import Conversation, FinishReason, Message, Preference, Sample

FILLER = (
    "That is a really great question, and I am very glad that you asked it.",
    "As we all know, there are many different things to consider when it comes to a topic like this one.",
    "It is important to note that everyone may have their own point of view, and that is perfectly fine.",
    "In this day and age, this is something that a lot of people think about, in one way or another.",
    "Before we go any further, let us take a moment to appreciate how interesting this subject is.",
    "Generally speaking, it depends on a number of factors, which can vary from case to case.",
    "At the end of the day, what matters most is that we keep an open mind about all of it.",
    "I hope that this was helpful, and please do not hesitate to let me know if there is anything else.",
    "To sum up everything that has been stated so far, there is a lot that could be said here.",
)
SENTENCE_END = re.compile(r"(?<=[.!?])\s+")
FEWEST_WORDS = 6


def damaged_preferences(samples: Sequence[Sample], seed: int, each: int = 4) -> list[Preference]:
    """Pairs of a sample's reference answer (chosen) and a damaged form of it (rejected), `each` to a sample.

    The kinds of damage are drawn; `tags["damage"]` names the one. A sample has fewer where a damage cannot be done (an
    answer too short to cut, no other sample's answer). The same samples and seed give the same pairs, in any order of
    the samples.
    """
    answers = sorted({sample.reference for sample in samples})
    pairs = []
    for sample in samples:
        kinds = random.Random(f"{seed}/{sample.id}").sample(list(DAMAGES), len(DAMAGES))
        damaged = {kind: DAMAGES[kind](sample.reference, answers, _rng(seed, sample, kind)) for kind in kinds}
        done = {kind: text for kind, text in damaged.items() if text is not None and text != sample.reference}
        for kind, text in list(done.items())[:each]:
            pairs.append(Preference(conversation(sample), sample.reference, text, tags={"damage": kind}))
    return pairs


def _rng(seed: int, sample: Sample, kind: str) -> random.Random:
    return random.Random(f"{seed}/{sample.id}/{kind}")


def conversation(sample: Sample) -> Conversation:
    """The sample's prompt as turns: plain text is one user turn."""
    return (Message("user", sample.prompt),) if isinstance(sample.prompt, str) else sample.prompt


def truncated(answer: str, answers: Sequence[str], rng: random.Random) -> str | None:
    """The answer, broken off after a quarter to three quarters of its words, never at the end of a sentence."""
    ends = [match.end() for match in re.finditer(r"\S+", answer)]
    inside = [
        end
        for end in ends[len(ends) // 4 : 3 * len(ends) // 4 + 1]
        if end < len(answer) and answer[end - 1] not in ".!?"
    ]
    return answer[: rng.choice(inside)].rstrip(" ,;:") if len(ends) >= FEWEST_WORDS and inside else None


def repeated(answer: str, answers: Sequence[str], rng: random.Random) -> str | None:
    """The answer, stuck in one sentence: it comes two to four times more, and often nothing follows."""
    sentences = SENTENCE_END.split(answer)
    at = rng.randrange(len(sentences))
    rest = sentences[at + 1 :] if rng.random() < 0.5 else []
    return " ".join([*sentences[:at], *[sentences[at]] * rng.randint(3, 5), *rest])


def off_topic(answer: str, answers: Sequence[str], rng: random.Random) -> str | None:
    """A good answer to another prompt."""
    others = [other for other in answers if other != answer]
    return rng.choice(others) if others else None


def padded(answer: str, answers: Sequence[str], rng: random.Random) -> str | None:
    """The answer between two to four sentences that say nothing."""
    filler = rng.sample(FILLER, rng.randint(2, 4))
    before = rng.randint(1, len(filler))
    return " ".join([*filler[:before], answer, *filler[before:]])


def shuffled(answer: str, answers: Sequence[str], rng: random.Random) -> str | None:
    """The answer's words in random order."""
    words = answer.split()
    return " ".join(rng.sample(words, len(words))) if len(words) >= FEWEST_WORDS else None


def garbled(answer: str, answers: Sequence[str], rng: random.Random) -> str | None:
    """The answer with three words in ten replaced by words of other answers, as a policy sampled too hot writes."""
    words = answer.split()
    foreign = [word for other in answers if other != answer for word in other.split()]
    if len(words) < FEWEST_WORDS or not foreign:
        return None
    for at in rng.sample(range(len(words)), round(0.3 * len(words))):
        words[at] = rng.choice(foreign)
    return " ".join(words)


DAMAGES: Mapping[str, Callable[[str, Sequence[str], random.Random], str | None]] = {
    "truncated": truncated,
    "repeated": repeated,
    "off-topic": off_topic,
    "padded": padded,
    "shuffled": shuffled,
    "garbled": garbled,
}


def best_worst(
    prompt: Conversation,
    answers: Sequence[str],
    rewards: Sequence[float | None],
    finish_reasons: Sequence[FinishReason] | None = None,
    *,
    length_penalty: float = 0.0,
    min_margin: float = 0.0,
    cut_may_lose: bool = False,
) -> tuple[Preference | None, str]:
    """The best answer against the worst by r - λ·characters (eq. 9), or None and why there is no pair.

    The penalised reward decides both which two answers and which of them is chosen; the paper's code orders them by the
    raw reward. Answers that failed or have no finite reward take no part, nor do those cut at the token limit, unless
    `cut_may_lose`: then they can be the rejected one, never the chosen. `margin` is the difference of the penalised
    rewards.
    """
    finish = finish_reasons or ["stop"] * len(answers)
    ranked = [
        (reward - length_penalty * len(answer), answer, reason)
        for answer, reward, reason in zip(answers, rewards, finish, strict=True)
        if reward is not None and math.isfinite(reward) and reason != "error"
    ]
    whole = [(value, answer) for value, answer, reason in ranked if reason == "stop"]
    others = [(value, answer) for value, answer, reason in ranked if reason == "stop" or cut_may_lose]
    if not whole or len(others) < 2:
        return None, "prompts with too few whole, scored answers"
    best, chosen = max(whole, key=lambda item: item[0])
    worst, rejected = min(others, key=lambda item: item[0])
    if best == worst and len({answer for _, answer in others}) > 1:
        return None, "prompts whose rewards are equal"
    if chosen == rejected:
        return None, "prompts whose answers are identical"
    if best - worst < min_margin:
        return None, "prompts whose margin is below min_margin"
    return Preference(prompt, chosen, rejected, best - worst), ""


def select_pairs(
    rows: Sequence[Mapping[str, Any]],
    *,
    length_penalty: float = 0.0,
    min_margin: float = 0.0,
    cut_may_lose: bool = False,
) -> tuple[list[Preference], Mapping[str, int]]:
    """One pair from each prompt that gives one, and the count of what was left out, by reason.

    A row has `prompt` (turns with role and content), `responses`, `rewards` (None where there is none) and
    `finish_reasons`. Answers and prompts are counted under reasons of their own; the options are `best_worst`'s.
    """
    pairs: list[Preference] = []
    left_out: Counter[str] = Counter()
    for row in rows:
        finish, rewards = row["finish_reasons"], row["rewards"]
        left_out += _no_part(finish, rewards)
        pair, why = best_worst(
            tuple(Message(turn["role"], turn["content"]) for turn in row["prompt"]),
            row["responses"],
            rewards,
            finish,
            length_penalty=length_penalty,
            min_margin=min_margin,
            cut_may_lose=cut_may_lose,
        )
        if pair is None:
            left_out[why] += 1
        else:
            pairs.append(pair)
    return pairs, {reason: count for reason, count in sorted(left_out.items()) if count}


def select_best(
    rows: Sequence[Mapping[str, Any]], length_penalty: float = 0.0
) -> tuple[list[dict[str, Any]], Mapping[str, int]]:
    """The best whole answer of each prompt by r - λ·characters, for best-of-n tuning, and what was left out, by reason.

    Rows as `select_pairs` takes them; found are {prompt, response, reward}, the reward as it was given.
    """
    found: list[dict[str, Any]] = []
    left_out: Counter[str] = Counter()
    for row in rows:
        finish, rewards = row["finish_reasons"], row["rewards"]
        left_out += _no_part(finish, rewards)
        whole = [
            (reward - length_penalty * len(answer), answer, reward)
            for answer, reward, reason in zip(row["responses"], rewards, finish, strict=True)
            if reward is not None and math.isfinite(reward) and reason == "stop"
        ]
        if whole:
            _, answer, reward = max(whole, key=lambda each: each[0])
            found.append({"prompt": list(row["prompt"]), "response": answer, "reward": reward})
        else:
            left_out["prompts with too few whole, scored answers"] += 1
    return found, {reason: count for reason, count in sorted(left_out.items()) if count}


def _no_part(finish: Sequence[str], rewards: Sequence[float | None]) -> Counter[str]:
    """The answers that take no part, by reason."""
    why = {"length": "answers cut at the token limit", "error": "answers to prompts that are too long"}
    return Counter(
        why.get(reason, "answers without a reward")
        for reason, reward in zip(finish, rewards, strict=True)
        if reason in why or reward is None or not math.isfinite(reward)
    )
