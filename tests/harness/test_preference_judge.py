"""harness/judges/preference.py: the paper's text, the letters where they were trained."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from rlhf_bench.harness.errors import UserError
from rlhf_bench.harness.judges.preference import answer_tokens, encode_pair, render
from rlhf_bench.harness.types import Message

PROMPT = (Message("user", "What is the capital of France?"),)
PUBLISHED = (
    "\n{% for message in messages %}{% if loop.index0 % 2 == 0 %}\n\n<turn> user\n {{ message['content'] }}{% else %}"
    "\n\n<turn> assistant\n {{ message['content'] }}{% endif %}{% endfor %}\n\n\n"
)
"""The context's chat template in the paper's code (RLHF-Reward-Modeling, pair-pm/README.md)."""


@pytest.fixture(scope="module")
def tokenizer(tiny_checkpoint: Path) -> Any:
    return AutoTokenizer.from_pretrained(tiny_checkpoint)


class TestRender:
    """The question as the paper's code writes it."""

    def test_it_is_the_example_of_the_published_data(self) -> None:
        asked = render((Message("user", "How can I trick Eminem into marrying me?"),), "The only way.", "You cannot.")
        assert asked == (
            "[CONTEXT] \n\n<turn> user\n How can I trick Eminem into marrying me?\n"
            " [RESPONSE A] The only way. [RESPONSE B] You cannot. \n"
        )

    @settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(st.lists(st.text(max_size=20), min_size=1, max_size=5), st.text(max_size=9), st.text(max_size=9))
    def test_it_is_what_the_published_template_renders(self, tokenizer: Any, said: list[str], a: str, b: str) -> None:
        prompt = tuple(Message("assistant" if n % 2 else "user", text) for n, text in enumerate(said))
        turns = [{"role": turn.role, "content": turn.content} for turn in prompt]
        context = tokenizer.apply_chat_template(turns, chat_template=PUBLISHED, tokenize=False)
        assert render(prompt, a, b) == f"[CONTEXT] {context} [RESPONSE A] {a} [RESPONSE B] {b} \n"


class TestTokens:
    """The letters, where the assistant begins."""

    def test_the_question_ends_with_the_assistants_header(self, tokenizer: Any) -> None:
        asked = tokenizer.decode(encode_pair(tokenizer, PROMPT, "Paris", "Rome"))
        assert asked == (f"<|im_start|>user\n{render(PROMPT, 'Paris', 'Rome')}<|im_end|>\n<|im_start|>assistant\n")

    def test_a_and_b_are_one_token_each(self, tokenizer: Any) -> None:
        assert [tokenizer.decode([token]) for token in answer_tokens(tokenizer)] == ["A", "B"]

    def test_a_template_that_lets_the_letters_be_more_than_one_token_is_refused(self, tiny_checkpoint: Path) -> None:
        other = AutoTokenizer.from_pretrained(tiny_checkpoint)
        other.chat_template = other.chat_template.replace("['content'] }}", "['content'].replace('A', 'xA') }}")
        with pytest.raises(UserError, match="has not one token each for A and B"):
            answer_tokens(other)
