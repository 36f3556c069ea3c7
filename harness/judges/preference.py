"""The pairwise preference model as judge: a chat model that reads a prompt with two answers and says A or B.

Paper: section 2.1; its code: RLHF-Reward-Modeling, pair-pm. Training and scoring both take what is asked from
`encode_pair` and the letters from `answer_tokens`, so that A and B are read at the position where they were trained.
(The published scoring script leaves the assistant's header out, which fits only templates that write it unasked.)
"""

from __future__ import annotations

from typing import Any

from rlhf_bench.harness.errors import UserError
from rlhf_bench.harness.judges.reward import encode
from rlhf_bench.harness.types import Conversation, Message

LETTERS = ("A", "B")


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
