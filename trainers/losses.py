"""The losses of the recipes, as pure functions of tensors: no model, no padding, no averaging over pairs.

Shapes: B pairs, N tokens. Log-probabilities are natural and summed over an answer's tokens; a loss is one value a pair.
δ = log π(chosen)/π₀(chosen) − log π(rejected)/π₀(rejected), with π the policy and π₀ the reference.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from rlhf_bench.trainers.recipes import DPORecipe


@dataclass(frozen=True, slots=True)
class Answers:
    """What a model makes of B pairs of answers: log-probabilities, and how many tokens each answer has."""

    chosen_B: Tensor
    rejected_B: Tensor
    chosen_tokens_B: Tensor
    rejected_tokens_B: Tensor

    def a_token(self) -> Answers:
        """The same as means over the answer's tokens."""
        chosen_B, rejected_B = self.chosen_B / self.chosen_tokens_B, self.rejected_B / self.rejected_tokens_B
        return Answers(chosen_B, rejected_B, self.chosen_tokens_B, self.rejected_tokens_B)

    def over(self, reference: Answers) -> Answers:
        """Log-ratios: these log-probabilities less the reference's."""
        chosen_B, rejected_B = self.chosen_B - reference.chosen_B, self.rejected_B - reference.rejected_B
        return Answers(chosen_B, rejected_B, self.chosen_tokens_B, self.rejected_tokens_B)

    @property
    def delta_B(self) -> Tensor:
        return self.chosen_B - self.rejected_B


def dpo_loss(recipe: DPORecipe, policy: Answers, reference: Answers | None) -> Tensor:
    """The recipe's loss of each pair [B]. Only simpo does without a reference."""
    ratios = policy if reference is None else policy.over(reference)
    if recipe.loss == "sigmoid":
        loss_B = sigmoid(ratios.delta_B, recipe.beta, recipe.label_smoothing)
    elif recipe.loss == "robust":
        loss_B = robust(ratios.delta_B, recipe.beta, recipe.label_smoothing)
    elif recipe.loss == "ipo":
        loss_B = ipo(ratios.a_token().delta_B, recipe.beta)
    elif recipe.loss == "hinge":
        loss_B = hinge(ratios.delta_B, recipe.beta)
    elif recipe.loss == "sigmoid_norm":
        loss_B = sigmoid(ratios.a_token().delta_B, recipe.beta)
    else:
        loss_B = simpo(policy.a_token().delta_B, recipe.beta, recipe.target_margin)
    return loss_B + recipe.nll_weight * nll(policy) if recipe.nll_weight else loss_B


def implicit_rewards(recipe: DPORecipe, policy: Answers, reference: Answers | None) -> Answers:
    """β log π/π₀ of each answer (Rafailov et al. 2023, eq. 5, less the prompt's own term); simpo: β log π a token."""
    ratios = policy.a_token() if recipe.loss == "simpo" or reference is None else policy.over(reference)
    chosen_B, rejected_B = recipe.beta * ratios.chosen_B, recipe.beta * ratios.rejected_B
    return Answers(chosen_B, rejected_B, policy.chosen_tokens_B, policy.rejected_tokens_B)


def sigmoid(delta_B: Tensor, beta: float, smoothing: float = 0.0) -> Tensor:
    """−log σ(βδ) (Rafailov et al. 2023, eq. 7); with ε: −(1−ε) log σ(βδ) − ε log σ(−βδ).

    The smoothed form is conservative DPO (Mitchell 2023): a label is wrong with chance ε. With δ of means a token this
    is length-normalised DPO (Tulu 3).
    """
    kept = -logsigmoid(beta * delta_B)
    return kept if not smoothing else (1 - smoothing) * kept - smoothing * logsigmoid(-beta * delta_B)


def robust(delta_B: Tensor, beta: float, smoothing: float) -> Tensor:
    """(−(1−ε) log σ(βδ) + ε log σ(−βδ)) / (1 − 2ε) (robust DPO, Chowdhury et al. 2024).

    Its mean over labels that are wrong with chance ε is the loss on right ones.
    """
    kept, flipped = -logsigmoid(beta * delta_B), -logsigmoid(-beta * delta_B)
    return ((1 - smoothing) * kept - smoothing * flipped) / (1 - 2 * smoothing)


def ipo(delta_B: Tensor, beta: float) -> Tensor:
    """(δ − 1/(2β))² (Azar et al. 2023, eq. 17; τ there is β here), δ of means a token, as its authors compute it."""
    return (delta_B - 1 / (2 * beta)) ** 2


def hinge(delta_B: Tensor, beta: float) -> Tensor:
    """max(0, 1 − βδ) (SLiC, Zhao et al. 2023, on DPO's implicit rewards)."""
    return torch.relu(1 - beta * delta_B)


def simpo(delta_B: Tensor, beta: float, target_margin: float) -> Tensor:
    """−log σ(βδ − γ), δ of log π itself, a mean a token, no reference (Meng et al. 2024, eq. 6)."""
    return -logsigmoid(beta * delta_B - target_margin)


def nll(policy: Answers) -> Tensor:
    """−log π(chosen) a token: the term that RPO adds (Pang et al. 2024, eq. 1; the paper's code: rpo_alpha)."""
    return -policy.a_token().chosen_B


def bradley_terry(
    chosen_B: Tensor,
    rejected_B: Tensor,
    margin_B: Tensor | None = None,
    *,
    smoothing: float = 0.0,
    centring: float = 0.0,
) -> Tensor:
    """−log σ(r_chosen − r_rejected) of rewards (Bradley and Terry 1952; the paper, section 2.1).

    `margin_B` m: −log σ(r_chosen − r_rejected − m) (Llama 2, eq. 2). `smoothing` ε: −(1−ε) log σ(x) − ε log σ(−x).
    `centring` c: + c (r_chosen + r_rejected)² (Eisenstein et al. 2023).
    """
    apart_B = chosen_B - rejected_B if margin_B is None else chosen_B - rejected_B - margin_B
    loss_B = sigmoid(apart_B, 1.0, smoothing)
    return loss_B + centring * (chosen_B + rejected_B) ** 2 if centring else loss_B


def token_mean(logps_N: Tensor, count: int | None = None) -> Tensor:
    """−(1/N) Σ log p(token | what stands before): the loss of SFT. `count` is N where these are some of the tokens."""
    return -logps_N.sum() / (len(logps_N) if count is None else count)
