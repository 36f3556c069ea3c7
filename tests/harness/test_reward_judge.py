"""harness/judges/reward.py: the reward of the last real token, whatever pads and however it is batched."""

from __future__ import annotations

import math
from contextlib import contextmanager
from itertools import chain, pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from transformers import (
    AttentionInterface,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    GPT2Config,
    GPT2ForSequenceClassification,
    JambaConfig,
    JambaForSequenceClassification,
    MistralConfig,
    MistralForSequenceClassification,
)

from rlhf_bench.harness.checkpoint import checkpoint_digest
from rlhf_bench.harness.errors import UserError
from rlhf_bench.harness.judges.reward import RewardModel, _steered, encode, quiet, sigmoid
from rlhf_bench.harness.types import Battle, Checkpoint, Message

PROMPT = (Message("user", "What is the capital of France?"),)
ENDS_IN_EOS = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
ANSWERS = [
    "Paris",
    "Paris is the capital of France. " * 5,
    "no",
    "yes yes",
    "7",
    "",
    "the sea is blue, the sea is wide",
]

TINY: dict[str, Any] = {
    "vocab_size": 400,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 512,
    "num_labels": 1,
    "pad_token_id": 2,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
BATCHES = (1, 7, 64, 4096)
RECURRENT: dict[str, Any] = {
    "num_key_value_heads": 2,
    "attn_layer_period": 2,
    "attn_layer_offset": 1,
    "num_experts": 2,
    "use_mamba_kernels": False,
    "mamba_d_state": 4,
}


def heedless(
    module: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: Any, **options: Any
) -> tuple[torch.Tensor, None]:
    """Attention that is causal by place and looks at no mask, as some kernels are."""
    places = torch.arange(key.shape[2])
    seen = places <= places[-query.shape[2] :, None]
    out = torch.nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=seen)
    return out.transpose(1, 2), None


@pytest.fixture(scope="module")
def head(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    """The tiny model with a random reward head, pad equal to eos, and a template that ends in just that token."""
    path = tmp_path_factory.mktemp("reward") / "model"
    with quiet(), torch.random.fork_rng():
        torch.manual_seed(3)
        model = AutoModelForSequenceClassification.from_pretrained(tiny_checkpoint, num_labels=1)
    tokenizer = AutoTokenizer.from_pretrained(tiny_checkpoint)
    tokenizer.chat_template = ENDS_IN_EOS
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)
    assert tokenizer.pad_token_id == tokenizer.eos_token_id == model.config.pad_token_id
    return Checkpoint(str(path), checkpoint_digest(path))


@pytest.fixture(scope="module")
def judge(head: Checkpoint) -> RewardModel:
    return RewardModel(head, name="tiny", device="cpu")


@pytest.fixture(scope="module")
def judges(head: Checkpoint) -> dict[int, RewardModel]:
    """By the tokens of one forward pass."""
    return {tokens: RewardModel(head, name="tiny", device="cpu", batch_tokens=tokens) for tokens in BATCHES}


def by_hand(checkpoint: Checkpoint, answer: str) -> float:
    """The head on the last position of the unpadded conversation."""
    with quiet():
        model = AutoModelForSequenceClassification.from_pretrained(checkpoint.path)
    tokenizer = AutoTokenizer.from_pretrained(checkpoint.path)
    turns = [{"role": "user", "content": PROMPT[0].content}, {"role": "assistant", "content": answer}]
    ids = tokenizer.apply_chat_template(turns, return_tensors="pt", return_dict=False)
    with torch.no_grad():
        return float(model.score(model.model(ids).last_hidden_state[0, -1]))


def test_the_reward_is_read_at_the_last_token_where_pad_is_the_end_of_a_turn(
    judge: RewardModel, head: Checkpoint
) -> None:
    found = judge.rewards([(PROMPT, answer) for answer in ANSWERS])
    assert found == pytest.approx([by_hand(head, answer) for answer in ANSWERS], abs=1e-4)
    assert len({round(value, 3) for value in found if value is not None}) == len(ANSWERS)


def test_a_batch_of_32_agrees_with_single_inputs(head: Checkpoint, judge: RewardModel) -> None:
    items = [(PROMPT, f"{answer} {number}") for number in range(5) for answer in ANSWERS][:32]
    together = RewardModel(head, name="tiny", device="cpu", batch_tokens=32 * 512).rewards(items)
    alone = [judge.rewards([item])[0] for item in items]
    assert together == pytest.approx(alone, abs=1e-4)


class TestSharing:
    """What inputs share is computed once, wherever a model can."""

    @settings(deadline=None, max_examples=20)
    @given(
        st.lists(
            st.tuples(st.sampled_from(["Hi.", "What?", "What is it?"]), st.sampled_from(ANSWERS)),
            min_size=2,
            max_size=9,
        ),
        st.sampled_from(BATCHES),
    )
    def test_a_reward_is_the_same_in_any_company(
        self, judge: RewardModel, judges: dict[int, RewardModel], asked: list[tuple[str, str]], batch_tokens: int
    ) -> None:
        items = [((Message("user", prompt),), answer) for prompt, answer in asked]
        alone = [judge.rewards([item])[0] for item in items]
        assert judges[batch_tokens].rewards(items) == pytest.approx(alone, abs=1e-4)

    def test_a_prompt_is_computed_once_for_all_of_its_answers(self, head: Checkpoint) -> None:
        judge = RewardModel(head, name="tiny", device="cpu")
        seen: list[int] = []
        judge._model.base_model.register_forward_pre_hook(
            lambda module, args, kwargs: seen.append(kwargs["input_ids"].numel()), with_kwargs=True
        )
        judge.rewards([(PROMPT, answer) for answer in ("Paris", "7", "Paris", "no")])
        tokenizer = AutoTokenizer.from_pretrained(head.path)
        prompt = len(encode(tokenizer, PROMPT, "7")[0])
        answers = sum(len(encode(tokenizer, PROMPT, answer)[1]) for answer in ("Paris", "7", "no"))
        assert judge.shares and sum(seen) == prompt + answers

    @pytest.mark.parametrize(
        ("config", "cls", "shares"),
        [
            (MistralConfig(**TINY, num_key_value_heads=2, sliding_window=6), MistralForSequenceClassification, True),
            (GPT2Config(**TINY), GPT2ForSequenceClassification, True),
            (JambaConfig(**TINY, **RECURRENT), JambaForSequenceClassification, False),
        ],
        ids=["a window shorter than the text", "learned positions", "recurrent layers"],
    )
    def test_every_causal_architecture_has_the_rewards_of_single_inputs(
        self, head: Checkpoint, tmp_path: Path, config: Any, cls: Any, shares: bool
    ) -> None:
        model = cls(config)
        torch.manual_seed(5)
        for weight in model.parameters():
            torch.nn.init.normal_(weight, std=0.2)
        model.eval().save_pretrained(tmp_path)
        tokenizer = AutoTokenizer.from_pretrained(head.path)
        tokenizer.save_pretrained(tmp_path)
        judge = RewardModel(Checkpoint(str(tmp_path), "0" * 64), name="x", device="cpu", batch_tokens=300)
        rows = [[*chain(*encode(tokenizer, PROMPT, answer))] for answer in ANSWERS]
        with torch.no_grad():
            states = [model.base_model(torch.tensor([row]), use_cache=False)[0][0, -1] for row in rows]
            expected = [float(model.score(state)) for state in states]
        assert judge.shares is shares
        assert judge.rewards([(PROMPT, answer) for answer in ANSWERS]) == pytest.approx(expected, abs=1e-4)

    def test_a_model_that_takes_no_heed_of_the_mask_shares_nothing(self) -> None:
        AttentionInterface.register("heedless", heedless)
        config = MistralConfig(**TINY, num_key_value_heads=4, sliding_window=None, attn_implementation="heedless")
        body = MistralForSequenceClassification(config).base_model
        assert _steered(body, "cpu") is None
        assert body.config._attn_implementation == "heedless"


def test_rewards_come_in_the_order_given_whatever_the_lengths(judge: RewardModel) -> None:
    items = [(PROMPT, answer) for answer in ANSWERS]
    there, back = judge.rewards(items), judge.rewards(items[::-1])
    assert there == pytest.approx(back[::-1], abs=1e-4)


def test_an_input_beyond_the_context_has_no_reward_and_its_battle_says_why(judge: RewardModel) -> None:
    long = "word " * 600
    assert judge.rewards([(PROMPT, "Paris"), (PROMPT, long)])[1] is None
    scores = {score.sample_id: score for score in judge.prefer([Battle("a", PROMPT, "Paris", long)])}
    assert scores["a"].value is None and "the reward model reads 512" in scores["a"].why


def test_preference_is_the_sigmoid_of_the_difference_and_the_two_orders_sum_to_one(judge: RewardModel) -> None:
    battles = [Battle(str(n), PROMPT, a, b) for n, (a, b) in enumerate(pairwise(ANSWERS))]
    swapped = [Battle(battle.sample_id, PROMPT, battle.baseline, battle.answer) for battle in battles]
    there = {score.sample_id: score for score in judge.prefer(battles)}
    back = {score.sample_id: score for score in judge.prefer(swapped)}
    rewards = judge.rewards([(PROMPT, answer) for answer in ANSWERS])
    assert len(there) == len(battles)
    for number, battle in enumerate(battles):
        score, other = there[battle.sample_id].value, back[battle.sample_id].value
        first, second = rewards[number], rewards[number + 1]
        assert score is not None and other is not None and first is not None and second is not None
        assert score == pytest.approx(1 / (1 + math.exp(second - first)), abs=1e-4)
        assert score + other == pytest.approx(1.0, abs=1e-4)


@settings(deadline=None)
@given(st.floats(-1e4, 1e4))
def test_the_sigmoid_stays_between_0_and_1_and_is_symmetric(x: float) -> None:
    assert 0.0 <= sigmoid(x) <= 1.0
    assert sigmoid(x) + sigmoid(-x) == pytest.approx(1.0)


def test_the_identity_depends_on_the_weights_and_the_precision(head: Checkpoint, judge: RewardModel) -> None:
    other = Checkpoint(head.path, "0" * 64)
    models = [RewardModel(head, name="x", dtype="bfloat16"), RewardModel(other, name="x"), judge]
    assert len({model.identity for model in models}) == 3
    assert RewardModel(head, name="another name").identity == judge.identity


def test_a_checkpoint_without_a_reward_head_is_refused(tiny_checkpoint: Path, head: Checkpoint, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no reward head") as caught:
        RewardModel(Checkpoint(str(tiny_checkpoint), "0" * 64), name="x")
    assert "\n" not in str(caught.value)
    for file in Path(head.path).iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    kept = {name: value for name, value in load_file(tmp_path / "model.safetensors").items() if name != "score.weight"}
    save_file(kept, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match="no reward head"):
        RewardModel(Checkpoint(str(tmp_path), "0" * 64), name="x")


def test_progress_is_reported_in_battles(head: Checkpoint) -> None:
    seen: list[Any] = []

    @contextmanager
    def track(label: str, total: int) -> Any:
        seen.append((label, total))
        yield seen.append

    list(RewardModel(head, name="tiny", track=track).prefer([Battle("a", PROMPT, "x", "y")] * 3))
    assert seen == [("judge tiny", 3), 1, 1, 1]


class TestEncode:
    """The one place where the chat template is applied."""

    @pytest.fixture
    def tokenizer(self, tiny_checkpoint: Path) -> Any:
        return AutoTokenizer.from_pretrained(tiny_checkpoint)

    def test_prompt_and_answer_are_the_template_with_each_special_token_once(self, tokenizer: Any) -> None:
        tokenizer.bos_token = "<|im_start|>"
        tokenizer.add_bos_token = True
        prompt, answer = encode(tokenizer, PROMPT, "Paris.")
        assert tokenizer.decode(prompt) == (
            "<|im_start|>user\nWhat is the capital of France?<|im_end|>\n<|im_start|>assistant\n"
        )
        assert tokenizer.decode(answer) == "Paris.<|im_end|>\n"

    def test_a_leading_newline_does_not_merge_into_the_header(self, tokenizer: Any) -> None:
        assert encode(tokenizer, PROMPT, "\n\nParis.")[0] == encode(tokenizer, PROMPT, "Paris.")[0]

    def test_a_tokenizer_without_a_template_is_refused(self, tokenizer: Any) -> None:
        tokenizer.chat_template = None
        with pytest.raises(UserError, match="has no chat template"):
            encode(tokenizer, PROMPT, "Paris.")

    def test_a_template_that_loses_the_assistants_header_is_refused(self, tokenizer: Any) -> None:
        tokenizer.chat_template = ENDS_IN_EOS.partition("{% if add")[0]
        with pytest.raises(UserError, match="does not add the assistant's header"):
            encode(tokenizer, PROMPT, "Paris.")

    def test_a_template_that_renders_an_answered_prompt_differently_is_refused(self, tokenizer: Any) -> None:
        tokenizer.chat_template = "{{ messages | length }}" + ENDS_IN_EOS
        with pytest.raises(UserError, match="renders a prompt differently"):
            encode(tokenizer, PROMPT, "Paris.")
