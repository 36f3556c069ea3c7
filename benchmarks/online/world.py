"""A small world with a known gold reward: topics, facts about them, people who write about them, and what is good.

A prompt names topics; an answer is clauses, each a topic and a fact about it, ended by full stops:

    prompt   moon river bread
    answer   moon round . river deep . bread warm .

Nothing here is learned. Training sees `demonstrations` and labels that were drawn from `gold` with noise, never `gold`.
"""

from __future__ import annotations

import math
import random
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from itertools import islice, permutations

TOPICS = (
    "moon", "river", "bread", "stone", "tiger", "cloud", "garden", "piano", "winter", "bridge", "lemon", "engine",
    "forest", "candle", "island", "desert", "spider", "mirror", "violin", "rocket",
)  # fmt: skip
FACTS = (
    "round", "deep", "warm", "hard", "striped", "white", "green", "loud", "cold", "long", "sour", "strong", "dark",
    "bright", "lonely", "dry",
)  # fmt: skip
VAGUE = ("nice", "fine", "good", "great")
"""Said of anything, and true of nothing in particular."""
FILLER = ("well", "indeed", "really", "truly")
TRUE_FACTS = 4
"""How many of FACTS are true of a topic."""
STOP = "."
VOCABULARY = (*TOPICS, *FACTS, *VAGUE, *FILLER, STOP)
ASKED = 3
"""How many topics a prompt names."""
COSTS = {"vague": 0.2, "wrong": 0.5, "stray": 0.5, "again": 0.5, "broken": 0.5, "filler": 0.1}
"""What a clause costs that is vague, false, of a topic not asked for or said before, or no clause; and a filler."""


def _truths() -> dict[str, frozenset[str]]:
    draw = random.Random("the world")
    return {topic: frozenset(draw.sample(FACTS, TRUE_FACTS)) for topic in TOPICS}


TRUTHS = _truths()


@dataclass(frozen=True, slots=True)
class Reading:
    """What stands in an answer: clauses that are `right` (a topic asked for, for the first time, and a true fact),
    `vague` or `wrong`, `stray` (a topic not asked for), `again` (a topic said before) or `broken`; and filler words.
    """

    asked: int
    right: int
    vague: int
    wrong: int
    stray: int
    again: int
    broken: int
    filler: int


def read(prompt: str, answer: str) -> Reading:
    """What the answer says, clause by clause; filler words may stand anywhere."""
    asked, said = set(prompt.split()), set[str]()
    found = dict.fromkeys(("right", "vague", "wrong", "stray", "again", "broken"), 0)
    words = answer.split()
    plain = [word for word in words if word not in FILLER]
    clauses = " ".join(plain).split(STOP)
    tail = clauses.pop()
    for clause in clauses:
        match clause.split():
            case [topic, fact] if topic in TRUTHS and fact in (*FACTS, *VAGUE):
                kind = (
                    "again" if topic in said
                    else "stray" if topic not in asked
                    else "right" if fact in TRUTHS[topic]
                    else "vague" if fact in VAGUE
                    else "wrong"
                )  # fmt: skip
                said.add(topic)
            case _:
                kind = "broken"
        found[kind] += 1
    found["broken"] += bool(tail.strip())
    return Reading(len(asked), filler=len(words) - len(plain), **found)


def gold(prompt: str, answer: str) -> float:
    """The gold reward, in [0, 1]: (1 + (right − costs) / asked) / 2.

    1 for one true thing about each topic and nothing else; 0.5 for saying nothing; never below 0.
    """
    r = read(prompt, answer)
    costs: float = sum(cost * getattr(r, kind) for kind, cost in COSTS.items())
    return max(0.0, (1 + (r.right - costs) / r.asked) / 2)


def prefers_first(draw: random.Random, first: float, second: float, sharpness: float) -> bool:
    """A label as a person gives it: Bradley-Terry, P(first ≻ second) = σ(sharpness · (first − second))."""
    return draw.random() < 1 / (1 + math.exp(-sharpness * (first - second)))


def prompts(seed: str, counts: Sequence[int], without: Collection[str] = ()) -> list[list[str]]:
    """Disjoint lists of prompts, so many in each, and none of those `without`.

    A prompt is ASKED topics in an order: there are 6,840. Raises ValueError where these do not suffice.
    """
    known = set(without)
    every = [named for each in permutations(TOPICS, ASKED) if (named := " ".join(each)) not in known]
    if sum(counts) > len(every):
        raise ValueError(f"{sum(counts)} prompts are wanted and there are {len(every)}")
    drawn = iter(random.Random(seed).sample(every, len(every)))
    return [list(islice(drawn, count)) for count in counts]


def demonstration(prompt: str, draw: random.Random) -> str:
    """What a person writes, careful or hasty: they forget topics, are vague, err, stray, say things again, and fill."""
    care = draw.random()
    said = []
    for topic in prompt.split():
        if draw.random() < 0.5 + 0.5 * care:
            said.append(_clause(topic, draw, 0.45 + 0.5 * care))
    if draw.random() < 0.25 * (1 - care) or not said:
        said.insert(draw.randint(0, len(said)), _clause(draw.choice(TOPICS), draw, 0.6))
    if draw.random() < 0.1:
        said.append(draw.choice(said))
    if draw.random() < 0.3:
        said[0] = f"{draw.choice(FILLER)} {said[0]}"
    return " ".join(said)


def _clause(topic: str, draw: random.Random, right: float) -> str:
    true = sorted(TRUTHS[topic])
    false = VAGUE if draw.random() < 0.7 else [fact for fact in FACTS if fact not in true]
    return f"{topic} {draw.choice(true if draw.random() < right else false)} {STOP}"
