"""The pairwise preference model as judge: a chat model that reads a prompt with two answers and says A or B.

P(a ≻ b) = p(A) / (p(A) + p(B)) at temperature 1, averaged over both orders of the answers (paper, section 2.1; code:
RLHF-Reward-Modeling, pair-pm). Training and scoring both take what is asked from `encode_pair` and the letters from
`answer_tokens`, so that A and B are read at the position where they were trained. (The published scoring script leaves
the assistant's header out, which fits only templates that write it unasked.) A pair that is too long has no
probability; nothing is cut. What pairs share (the prompt, the first answer) is computed once, and however they are
batched they have the probabilities that each has alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer

from rlhf_bench.harness.checkpoint import OWN_FILES
from rlhf_bench.harness.codec import digest
from rlhf_bench.harness.engines.forward import Model
from rlhf_bench.harness.engines.hf import STRETCH_TOKENS
from rlhf_bench.harness.errors import UserError
from rlhf_bench.harness.judges.ends import at_ends
from rlhf_bench.harness.judges.knockout import Match, Ranking, knockout
from rlhf_bench.harness.judges.reward import encode, quiet
from rlhf_bench.harness.progress import Track, silent
from rlhf_bench.harness.types import Battle, Checkpoint, Conversation, Message, Score

LETTERS = ("A", "B")


class PreferenceModel:
    """Raises UserError if the checkpoint is no chat model, or has not one token each for A and B.

    `batch_tokens` bounds the tokens of one forward pass; None is what suits the device.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        *,
        name: str,
        dtype: str = "float32",
        device: str = "auto",
        batch_tokens: int | None = None,
        track: Track = silent,
    ) -> None:
        self.name = name
        self.identity = digest([checkpoint.digest, "preference", dtype])
        self._track = track
        self._tokenizer = AutoTokenizer.from_pretrained(checkpoint.path, **OWN_FILES)
        self._letters = list(answer_tokens(self._tokenizer))
        device = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
        with quiet():
            self._model = Model(Path(checkpoint.path), getattr(torch, dtype), device)
        self._batch_tokens = batch_tokens or STRETCH_TOKENS.get(device.split(":")[0], STRETCH_TOKENS["cpu"])

    def prefer(self, battles: Sequence[Battle]) -> Iterator[Score]:
        """P(answer ≻ baseline) of each battle, as both orders are known.

        `also` has it with the answer as A ("answer_first") and as B: a model without a leaning says the same twice.
        """
        rows = [
            encode_pair(self._tokenizer, battle.prompt, *pair)
            for battle in battles
            for pair in ((battle.answer, battle.baseline), (battle.baseline, battle.answer))
        ]
        known: dict[int, float | None] = {}
        with self._track(f"judge {self.name}", len(battles)) as advance:
            for index, value in self._says_a(rows):
                known[index] = value
                if index ^ 1 in known:
                    first = index & ~1
                    longest = max(len(rows[first]), len(rows[first + 1]))
                    yield self._score(battles[index // 2], known[first], known[first + 1], longest)
                    advance(1)

    def probabilities(self, pairs: Sequence[tuple[Conversation, str, str]]) -> list[float | None]:
        """P(first answer ≻ second) of each (prompt, first, second), in the order given; None where it is too long."""
        battles = [Battle(str(number), *pair) for number, pair in enumerate(pairs)]
        found = {score.sample_id: score.value for score in self.prefer(battles)}
        return [found[battle.sample_id] for battle in battles]

    def tournament(self, prompt: Conversation, answers: Sequence[str], *, worst: bool = False) -> Ranking:
        """The answers from best to worst in n - 1 comparisons; `knockout` says what the order is worth."""
        return self.tournaments([(prompt, answers)], worst=worst)[0]

    def tournaments(self, asked: Sequence[tuple[Conversation, Sequence[str]]], *, worst: bool = False) -> list[Ranking]:
        """A tournament for each prompt with its answers, a round of all of them at once."""

        def compare(matches: Sequence[Match]) -> list[float | None]:
            return self.probabilities([(asked[n][0], asked[n][1][a], asked[n][1][b]) for n, a, b in matches])

        return knockout([[len(answer) for answer in answers] for _, answers in asked], compare, worst=worst)

    def _score(self, battle: Battle, first: float | None, second: float | None, longest: int) -> Score:
        """`first` is P(says A) with the answer as A, `second` with the baseline as A."""
        if first is None or second is None:
            why = f"prompt and answers have {longest} tokens, the preference model reads {self._model.context}"
            return Score(battle.sample_id, None, why)
        orders = {"answer_first": first, "answer_second": 1 - second}
        return Score(battle.sample_id, (first + 1 - second) / 2, also=orders)

    def _says_a(self, rows: Sequence[list[int]]) -> Iterator[tuple[int, float | None]]:
        """(index, p(A) / (p(A) + p(B))) of each row of token ids, in any order; too long ones at once, with None."""
        fits = []
        for index, row in enumerate(rows):
            if len(row) > self._model.context:
                yield index, None
            else:
                fits.append(index)
        for numbers, logits_RV in at_ends(self._model, [rows[index] for index in fits], self._batch_tokens):
            a_R, b_R = logits_RV[:, self._letters].float().unbind(1)
            yield from zip([fits[number] for number in numbers], (a_R - b_R).sigmoid().tolist(), strict=True)


def render(prompt: Conversation, answer_a: str, answer_b: str) -> str:
    """What the model is asked, as the user's one turn: the paper's text, to the letter.

    Its context template is written with two line feeds before each turn and three at the end, of which transformers
    drops one after each tag and one at the end, in training as in scoring; this is what is left. The published data
    have no system turns; one is written as the others are.
    """
    context = "".join(f"\n<turn> {turn.role}\n {turn.content}" for turn in prompt)
    return f"[CONTEXT] \n{context}\n [RESPONSE A] {answer_a} [RESPONSE B] {answer_b} \n"


def encode_pair(tokenizer: Any, prompt: Conversation, answer_a: str, answer_b: str) -> list[int]:
    """Token ids of the question by the chat template, assistant's header included: what follows them is A or B.

    Raises UserError as `encode` does.
    """
    return encode(tokenizer, (Message("user", render(prompt, answer_a, answer_b)),), LETTERS[0])[0]


def answer_tokens(tokenizer: Any) -> tuple[int, int]:
    """The tokens that say A and B where the assistant begins. Raises UserError unless each is one token."""
    question = (Message("user", "A or B?"),)
    (a, *after_a), (b, *after_b) = (encode(tokenizer, question, letter)[1] for letter in LETTERS)
    if a == b or after_a != after_b or [tokenizer.decode([token]).strip() for token in (a, b)] != list(LETTERS):
        where = getattr(tokenizer, "name_or_path", "") or "the model"
        raise UserError(
            f"the tokenizer of {where} has not one token each for A and B: a preference model cannot use it"
        )
    return a, b
