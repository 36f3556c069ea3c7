"""trainers/curve.py: a run that can come to nothing is stopped, one that only trembles is not."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlhf_bench.trainers.curve import RUNAWAY, WINDOW, fault, remedy
from rlhf_bench.trainers.recipes import DPORecipe


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_loss_or_gradient_that_is_not_finite_is_named(value: float) -> None:
    assert fault([0.7, value], 1.0) == (f"the loss became {value}", 1)
    assert fault([0.7, 0.6], value) == (f"the grad_norm became {value}", 1)


def test_the_remedy_is_not_what_is_done_already() -> None:
    assert (
        remedy(DPORecipe(dtype="bfloat16", learning_rate=0.5)) == "lower learning_rate (now 0.5) or try dtype float32"
    )
    assert remedy(DPORecipe(dtype="float32", learning_rate=0.5)) == "lower learning_rate (now 0.5)"


def test_a_loss_that_stays_far_above_where_it_began_has_run_away() -> None:
    losses = [2.0, *[2 * RUNAWAY + 0.1] * WINDOW]
    assert fault(losses, 1.0) == ("the loss ran away, from 2 to 6.1,", WINDOW)
    assert fault(losses[: WINDOW // 2], 1.0) is None


@given(st.floats(0.0, 10.0), st.lists(st.floats(-1.0, 3.0), max_size=60))
def test_a_loss_within_a_factor_of_three_never_stops_a_run(first: float, factors: list[float]) -> None:
    assert fault([first, *(first * factor for factor in factors)], 1.0) is None


@given(st.lists(st.floats(0.0, 2.0), min_size=1, max_size=60))
def test_a_loss_near_that_of_a_coin_never_stops_a_run(losses: list[float]) -> None:
    assert fault(losses, 1.0) is None


def test_bad_steps_among_good_ones_do_not_stop_a_run() -> None:
    assert fault([1.0, *[1.0, 1.0, 300.0] * 30], 1.0) is None
