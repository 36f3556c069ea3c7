"""harness/shared_prompt.py: answers that share a row get what they get alone, in values and gradients."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from functools import cache
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rlhf_bench.harness.shared_prompt import Group, by_segments, can_share, pack, pack_rows

tokens = st.lists(st.integers(0, 63), min_size=1, max_size=9)
groups = st.lists(st.tuples(tokens, st.lists(tokens, min_size=1, max_size=4)), min_size=1, max_size=3)
ROOMY: dict[str, Any] = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
HEADS: dict[str, Any] = {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64}


@cache
def model(kind: str = "llama", **changes: Any) -> Any:
    """A tiny language model of random weights in float64."""
    from transformers import AutoModelForCausalLM, LlamaConfig, MambaConfig, MistralConfig

    torch.manual_seed(0)
    if kind == "mamba":
        config: Any = MambaConfig(vocab_size=64, hidden_size=32, num_hidden_layers=1, state_size=4)
    else:
        config = {"llama": LlamaConfig, "mistral": MistralConfig}[kind](**ROOMY, **HEADS, initializer_range=0.3)
    config.update(changes)
    return AutoModelForCausalLM.from_config(config, dtype=torch.float64).eval()


@cache
def segmented() -> Any:
    """The same, with the attention that goes by segments."""
    policy = copy.deepcopy(model())
    by_segments(policy)
    assert policy.config._attn_implementation != "sdpa"
    return policy


def sums(groups: Sequence[Group], policy: Any, *, share: bool) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Σ log p of each answer's tokens, and the gradient of a number that treats each answer differently."""
    packed = pack(groups, share=share)
    logits_NV = policy(**packed.inputs(torch.float64)).logits.flatten(0, 1)[packed.before_N]
    logps_A = packed.sums(logits_NV.log_softmax(-1).gather(1, packed.targets_N[:, None])[:, 0])
    policy.zero_grad()
    (logps_A * torch.linspace(1, 2, len(logps_A))).sum().backward()
    return logps_A.detach(), [weight.grad.clone() for weight in policy.parameters()]


def one_at_a_time(groups: Sequence[Group]) -> list[float]:
    """Σ log p of each answer, by the plainest code there is."""
    found = []
    for prompt, answers in groups:
        for answer in answers:
            with torch.no_grad():
                logits_TV = model()(torch.tensor([[*prompt, *answer]])).logits[0].log_softmax(-1)
            places = range(len(prompt) - 1, len(prompt) + len(answer) - 1)
            found.append(sum(float(logits_TV[place, token]) for place, token in zip(places, answer, strict=True)))
    return found


@settings(deadline=None, max_examples=25)
@given(groups)
def test_an_answer_gets_in_a_shared_row_what_it_gets_alone(drawn: list[Group]) -> None:
    """Whatever the lengths, the padding and the number of rows and answers."""
    apart, apart_grads = sums(drawn, model(), share=False)
    assert apart.tolist() == pytest.approx(one_at_a_time(drawn), abs=1e-9)
    for policy in (model(), segmented()):
        shared, shared_grads = sums(drawn, policy, share=True)
        torch.testing.assert_close(shared, apart, rtol=0, atol=1e-9)
        for one, other in zip(shared_grads, apart_grads, strict=True):  # the norms of transformers compute in float32
            assert (one - other).abs().max() <= 1e-5 * max(1.0, float(other.abs().max()))


@settings(deadline=None, max_examples=30)
@given(groups)
def test_places_to_read_are_those_of_the_tokens_they_name(drawn: list[Group]) -> None:
    for share in (True, False):
        packed = pack(drawn, share=share)
        flat, flat_positions = packed.ids_BT.flatten(), packed.positions_BT.flatten()
        answers = [(prompt, answer) for prompt, each in drawn for answer in each]
        for number, (prompt, answer) in enumerate(answers):
            mine = packed.answer_N == number
            before = packed.before_N[mine]
            assert packed.targets_N[mine].tolist() == answer
            assert flat[before].tolist() == [prompt[-1], *answer[:-1]]
            assert flat_positions[before].tolist() == list(range(len(prompt) - 1, len(prompt) + len(answer) - 1))
            assert int(flat[packed.last_A[number]]) == answer[-1]


def test_groups_that_share_a_row_see_nothing_of_each_other() -> None:
    """Packing."""
    rows: list[list[Group]] = [[([5], [[6, 7]]), ([8, 5], [[1], [2]])], [([9], [[10]])]]
    packed = pack_rows(rows)
    assert packed.ids_BT.tolist() == [[5, 6, 7, 8, 5, 1, 2], [9, 10, 0, 0, 0, 0, 0]]
    assert packed.positions_BT.tolist()[0] == [0, 1, 2, 0, 1, 2, 2]
    assert packed.targets_N.tolist() == [6, 7, 1, 2, 10]
    with torch.no_grad():
        logits_NV = segmented()(**packed.inputs(torch.float64)).logits.flatten(0, 1)[packed.before_N]
    logps_N = logits_NV.log_softmax(-1).gather(1, packed.targets_N[:, None])[:, 0]
    expected = one_at_a_time([group for row in rows for group in row])
    assert packed.sums(logps_N).tolist() == pytest.approx(expected, abs=1e-9)


def test_a_shared_row_holds_the_prompt_once() -> None:
    group: Group = ([1] * 20, [[2] * 10, [3] * 10])
    assert pack([group]).ids_BT.numel() == 40
    assert pack([group], share=False).ids_BT.numel() == 60


def test_models_that_a_mask_and_positions_do_not_steer_are_told_apart() -> None:
    """State-space layers, a window shorter than the sequences; and one that is long enough makes no difference."""
    assert can_share(model().base_model, 64)
    assert not can_share(model("mamba").base_model, 64)
    assert can_share(model("mistral").base_model, 64)
    assert not can_share(model("mistral", sliding_window=16).base_model, 64)
    assert can_share(model("mistral", sliding_window=16).base_model, 16)


def test_a_model_that_takes_no_notice_of_positions_is_found_out() -> None:
    from transformers import LlamaConfig, LlamaModel

    class Counts(LlamaModel):  # type: ignore[misc]
        """Counts positions from the left, whatever it is told."""

        def forward(self, input_ids: Any, position_ids: Any = None, **rest: Any) -> Any:
            return super().forward(input_ids, position_ids=torch.arange(input_ids.shape[1])[None], **rest)

    torch.manual_seed(0)
    assert not can_share(Counts(LlamaConfig(**ROOMY, **HEADS, initializer_range=0.3)), 64)
