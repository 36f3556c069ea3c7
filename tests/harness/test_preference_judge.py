"""harness/judges/preference.py: the paper's text, the letters where they were trained, the same in any company."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, AutoTokenizer

from rlhf_bench.harness.checkpoint import checkpoint_digest
from rlhf_bench.harness.errors import UserError
from rlhf_bench.harness.judges.preference import PreferenceModel, answer_tokens, encode_pair, render
from rlhf_bench.harness.types import Battle, Checkpoint, Conversation, Message

PROMPT = (Message("user", "What is the capital of France?"),)
PUBLISHED = (
    "\n{% for message in messages %}{% if loop.index0 % 2 == 0 %}\n\n<turn> user\n {{ message['content'] }}{% else %}"
    "\n\n<turn> assistant\n {{ message['content'] }}{% endif %}{% endfor %}\n\n\n"
)
"""The context's chat template in the paper's code (RLHF-Reward-Modeling, pair-pm/README.md)."""

BATCHES = (5, 64, 600)
ANSWERS = ["Paris", "Paris is the capital of France. " * 5, "no", "yes yes", "7", "", "the sea is blue"]


@pytest.fixture(scope="module")
def checkpoint(tiny_checkpoint: Path) -> Checkpoint:
    return Checkpoint(str(tiny_checkpoint), checkpoint_digest(tiny_checkpoint))


@pytest.fixture(scope="module")
def judge(checkpoint: Checkpoint) -> PreferenceModel:
    """The tiny chat model, in which pad is eos; what it prefers is chance, and far from one half."""
    return PreferenceModel(checkpoint, name="tiny", device="cpu")


@pytest.fixture(scope="module")
def judges(checkpoint: Checkpoint) -> dict[int, PreferenceModel]:
    """By the tokens of one forward pass."""
    return {tokens: PreferenceModel(checkpoint, name="x", device="cpu", batch_tokens=tokens) for tokens in BATCHES}


def as_published(path: Path, prompt: Conversation, chosen: str, rejected: str) -> float:
    """The paper's scoring loop (pair-pm/README.md), one order after the other, with the header that it leaves out."""
    tokenizer, model = AutoTokenizer.from_pretrained(path), AutoModelForCausalLM.from_pretrained(path)
    turns = [{"role": turn.role, "content": turn.content} for turn in prompt]
    context = tokenizer.apply_chat_template(turns, chat_template=PUBLISHED, tokenize=False)
    letters = [tokenizer.encode(letter, add_special_tokens=False)[0] for letter in "AB"]
    responses = [chosen, rejected]
    probabilities = []
    for position in (0, 1):
        asked = f"[CONTEXT] {context} [RESPONSE A] {responses[position]} [RESPONSE B] {responses[1 - position]} \n"
        message = [{"role": "user", "content": asked}]
        ids = tokenizer.apply_chat_template(message, add_generation_prompt=True, return_tensors="pt", return_dict=False)
        with torch.no_grad():
            logits = np.exp(model(ids).logits[0, -1, letters].double().numpy())
        probabilities.append(logits[position] / logits.sum())
    return float(np.mean(probabilities))


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


class TestProbabilities:
    """P(a ≻ b) from the two letters, both orders averaged."""

    def test_they_are_those_of_the_published_loop(self, judge: PreferenceModel, tiny_checkpoint: Path) -> None:
        talk = (*PROMPT, Message("assistant", "It is Paris."), Message("user", "And of Japan?"))
        pairs = [(prompt, a, b) for prompt in (PROMPT, talk) for a, b in pairwise(ANSWERS)]
        found = judge.probabilities(pairs)
        assert found == pytest.approx([as_published(tiny_checkpoint, *pair) for pair in pairs], abs=1e-4)
        assert max(abs(p - 0.5) for p in found if p is not None) > 0.1

    @settings(deadline=None, max_examples=20)
    @given(
        st.lists(
            st.tuples(st.sampled_from(["Hi.", "What?"]), st.sampled_from(ANSWERS), st.sampled_from(ANSWERS)),
            min_size=2,
            max_size=8,
        ),
        st.sampled_from(BATCHES),
    )
    def test_they_are_the_same_in_any_company(
        self,
        judge: PreferenceModel,
        judges: dict[int, PreferenceModel],
        asked: list[tuple[str, str, str]],
        batch_tokens: int,
    ) -> None:
        pairs = [((Message("user", prompt),), a, b) for prompt, a, b in asked]
        alone = [judge.probabilities([pair])[0] for pair in pairs]
        assert judges[batch_tokens].probabilities(pairs) == pytest.approx(alone, abs=1e-4)

    def test_a_batch_of_32_agrees_with_single_pairs(self, judge: PreferenceModel) -> None:
        pairs = [(PROMPT, a, f"{b} {n}") for n in range(6) for a, b in pairwise(ANSWERS)][:32]
        assert judge.probabilities(pairs) == pytest.approx([judge.probabilities([p])[0] for p in pairs], abs=1e-4)

    def test_they_sum_to_one_with_the_answers_the_other_way_round(self, judge: PreferenceModel) -> None:
        there = judge.probabilities([(PROMPT, a, b) for a, b in pairwise(ANSWERS)])
        back = judge.probabilities([(PROMPT, b, a) for a, b in pairwise(ANSWERS)])
        assert [p + q for p, q in zip(there, back, strict=True) if p and q] == pytest.approx([1.0] * 6, abs=1e-5)
        assert judge.probabilities([(PROMPT, "same", "same")]) == pytest.approx([0.5], abs=1e-6)

    def test_a_battle_says_what_either_order_gave(self, judge: PreferenceModel) -> None:
        (score,) = judge.prefer([Battle("x", PROMPT, "Paris", "7")])
        (turned,) = judge.prefer([Battle("x", PROMPT, "7", "Paris")])
        assert score.value == pytest.approx((score.also["answer_first"] + score.also["answer_second"]) / 2)
        assert score.also["answer_first"] == pytest.approx(1 - turned.also["answer_second"], abs=1e-5)

    def test_a_pair_beyond_the_context_has_none_and_says_why(self, judge: PreferenceModel) -> None:
        battles = [Battle("long", PROMPT, "Paris", "word " * 600), Battle("short", PROMPT, "Paris", "7")]
        scores = {score.sample_id: score for score in judge.prefer(battles)}
        assert scores["long"].value is None and "the preference model reads 512" in scores["long"].why
        assert scores["short"].value is not None
        assert judge.probabilities([(b.prompt, b.answer, b.baseline) for b in battles])[0] is None

    def test_the_identity_depends_on_the_weights_and_the_precision(
        self, checkpoint: Checkpoint, judge: PreferenceModel
    ) -> None:
        others = [
            PreferenceModel(checkpoint, name="x", dtype="bfloat16"),
            PreferenceModel(Checkpoint(checkpoint.path, "0" * 64), name="x"),
        ]
        assert len({judge.identity, *(other.identity for other in others)}) == 3


class TestTournament:
    """A ranking with few comparisons; the rules are those of test_knockout.py."""

    def test_eight_answers_take_seven_comparisons_and_ten_with_the_worst(self, judge: PreferenceModel) -> None:
        answers = [*ANSWERS, "Tokyo"]
        found, with_worst = judge.tournament(PROMPT, answers), judge.tournament(PROMPT, answers, worst=True)
        assert (found.comparisons, with_worst.comparisons) == (7, 10)
        assert found.order[0] == with_worst.order[0] and set(found.order) == set(range(8))
        lost_to = [judge.probabilities([(PROMPT, answers[found.order[0]], other)])[0] for other in answers]
        assert sum(p is not None and p >= 0.5 - 1e-6 for p in lost_to) >= 4  # itself, and the three it met

    def test_many_prompts_at_once_are_ranked_as_each_alone(self, judge: PreferenceModel) -> None:
        asked = [((Message("user", ask),), ANSWERS[:n]) for n, ask in ((5, "Hi."), (1, "No?"), (7, "What?"), (2, "A"))]
        assert judge.tournaments(asked, worst=True) == [judge.tournament(*each, worst=True) for each in asked]

    def test_an_answer_too_long_to_compare_stands_in_no_order(self, judge: PreferenceModel) -> None:
        ranking = judge.tournament(PROMPT, ["Paris", "word " * 600, "7"])
        assert ranking.unranked == (1,) and set(ranking.order) == {0, 2}
