"""trainers/losses.py: each loss a second time in scalar mathematics, and what its paper says must hold."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rlhf_bench.trainers import losses
from rlhf_bench.trainers.losses import Answers
from rlhf_bench.trainers.recipes import DPORecipe

finite = st.floats(-30, 30, allow_nan=False)
betas = st.floats(0.01, 5)
chances = st.floats(0.01, 0.49)


def of(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def log_sigma(x: float) -> float:
    return -math.log1p(math.exp(-x)) if x > 0 else x - math.log1p(math.exp(x))


def answers(chosen: float, rejected: float, chosen_tokens: int = 1, rejected_tokens: int = 1) -> Answers:
    return Answers(of(chosen), of(rejected), of(chosen_tokens), of(rejected_tokens))


def slope(loss: Callable[[torch.Tensor], torch.Tensor], at: float) -> float:
    delta = of(at).requires_grad_()
    loss(delta).sum().backward()
    assert delta.grad is not None
    return float(delta.grad)


@given(finite, betas)
def test_the_gradient_of_dpo_weighs_a_pair_by_how_wrong_the_implicit_reward_is(delta: float, beta: float) -> None:
    """Rafailov et al., section 4: −β σ(−βδ)."""
    expected = -beta * math.exp(log_sigma(-beta * delta))
    assert slope(lambda x: losses.sigmoid(x, beta), delta) == pytest.approx(expected, rel=1e-9, abs=1e-12)


@given(finite, betas, chances)
def test_a_smoothed_loss_is_the_mean_over_labels_that_may_be_wrong(delta: float, beta: float, chance: float) -> None:
    expected = -(1 - chance) * log_sigma(beta * delta) - chance * log_sigma(-beta * delta)
    assert float(losses.sigmoid(of(delta), beta, chance)) == pytest.approx(expected, rel=1e-9, abs=1e-12)


@given(finite, betas, chances)
def test_the_robust_loss_is_unbiased_under_wrong_labels(delta: float, beta: float, chance: float) -> None:
    right, wrong = (float(losses.robust(of(sign * delta), beta, chance)) for sign in (1, -1))
    expected = -log_sigma(beta * delta)
    scale = 1 + abs(right) + abs(wrong)
    assert (1 - chance) * right + chance * wrong == pytest.approx(expected, abs=1e-9 * scale)


@given(betas)
def test_ipo_is_least_where_the_log_ratio_gap_is_half_of_one_over_beta(beta: float) -> None:
    assert float(losses.ipo(of(1 / (2 * beta)), beta)) == pytest.approx(0, abs=1e-12)
    assert slope(lambda x: losses.ipo(x, beta), 1 / (2 * beta) + 1) == pytest.approx(2)


@given(finite, betas)
def test_the_hinge_stops_pushing_once_the_margin_is_reached(delta: float, beta: float) -> None:
    assert float(losses.hinge(of(delta), beta)) == pytest.approx(max(0.0, 1 - beta * delta))
    assert slope(lambda x: losses.hinge(x, beta), 1 / beta + 0.01) == 0


@given(finite, betas, st.floats(0, 5))
def test_simpo_asks_for_its_margin(delta: float, beta: float, target: float) -> None:
    assert float(losses.simpo(of(delta), beta, target)) == pytest.approx(-log_sigma(beta * delta - target), abs=1e-12)


@given(finite, finite, finite, st.floats(0, 3), chances)
def test_bradley_terry_sees_only_the_difference_until_it_is_centred(
    chosen: float, rejected: float, shift: float, margin: float, chance: float
) -> None:
    plain = losses.bradley_terry(of(chosen), of(rejected), of(margin), smoothing=chance)
    moved = losses.bradley_terry(of(chosen + shift), of(rejected + shift), of(margin), smoothing=chance)
    apart = chosen - rejected - margin
    expected = -(1 - chance) * log_sigma(apart) - chance * log_sigma(-apart)
    assert float(plain) == pytest.approx(expected, rel=1e-9, abs=1e-12) == pytest.approx(float(moved), abs=1e-9)
    centred = losses.bradley_terry(of(chosen), of(rejected), of(margin), smoothing=chance, centring=0.5)
    assert float(centred - plain) == pytest.approx(0.5 * (chosen + rejected) ** 2, rel=1e-9, abs=1e-9)


def test_every_loss_of_the_recipe_by_hand() -> None:
    """Policy −6 (3 tokens) and −8 (2 tokens), reference −9 and −7: δ is 3 − (−1) = 4, a token 1 − (−0.5) = 1.5."""
    policy, reference = answers(-6, -8, 3, 2), answers(-9, -7, 3, 2)
    expected = {
        "sigmoid": -log_sigma(0.5 * 4),
        "robust": (-0.9 * log_sigma(0.5 * 4) + 0.1 * log_sigma(-0.5 * 4)) / 0.8,
        "ipo": (1.5 - 1) ** 2,
        "hinge": 0.0,
        "sigmoid_norm": -log_sigma(0.5 * 1.5),
        "simpo": -log_sigma(0.5 * (-2 + 4) - 0.3),
    }
    for name, value in expected.items():
        options = {"robust": {"label_smoothing": 0.1}, "simpo": {"target_margin": 0.3}}.get(name, {})
        recipe = DPORecipe.model_validate({"loss": name, "beta": 0.5, **options})
        found = losses.dpo_loss(recipe, policy, None if name == "simpo" else reference)
        assert float(found) == pytest.approx(value, abs=1e-12), name
        with_nll = recipe.model_copy(update={"nll_weight": 0.25})
        more = losses.dpo_loss(with_nll, policy, None if name == "simpo" else reference)
        assert float(more - found) == pytest.approx(0.25 * 6 / 3)


def test_implicit_rewards_are_beta_times_the_log_ratio_and_simpos_have_no_reference() -> None:
    policy, reference = answers(-6, -8, 3, 2), answers(-9, -7, 3, 2)
    rewards = losses.implicit_rewards(DPORecipe(beta=0.5), policy, reference)
    assert (float(rewards.chosen_B), float(rewards.rejected_B)) == (1.5, -0.5)
    rewards = losses.implicit_rewards(DPORecipe(beta=0.5, loss="simpo"), policy, None)
    assert (float(rewards.chosen_B), float(rewards.rejected_B)) == (-1.0, -2.0)


def test_the_loss_of_sft_is_a_mean_over_tokens_and_adds_up_over_parts_of_a_batch() -> None:
    whole = losses.token_mean(of(-1, -2, -6))
    assert float(whole) == 3 == float(losses.token_mean(of(-1), 3) + losses.token_mean(of(-2, -6), 3))
