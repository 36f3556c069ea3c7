"""A policy planned: the reference's table, the gate's own decisions, and what must hold whatever the numbers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import ndtr, ndtri
from tests.harness.test_spread import records, run_of
from tests.harness.test_stats_planning import TABLE

from rlhf_bench.harness.claims import RunData
from rlhf_bench.harness.errors import UnknownName, UserError
from rlhf_bench.harness.gate import gate
from rlhf_bench.harness.plan import PlannedCheck, PowerPlan, Stage, chance, levels, plan, with_needs
from rlhf_bench.harness.policy import Policy
from rlhf_bench.harness.spread import Spread

NAMES = ("mmlu", "gsm8k", "arc_challenge", "truthfulqa_mc1", "mbpp", "humaneval")


def policy(*guards: dict[str, Any], **more: Any) -> Policy:
    """A target on "chat" and these guards, 0.05 each time."""
    given = {
        "name": "p",
        "ledger": "none",
        "against_anchor": False,
        "targets": [{"benchmark": "chat", "metric": "m"}],
        "guards": list(guards) or [{"benchmark": "own", "metric": "m", "margin": 0.05}],
    }
    return Policy.model_validate(given | more)


def guard(benchmark: str, margin: float = 0.05) -> dict[str, Any]:
    return {"benchmark": benchmark, "metric": "m", "margin": margin}


def run(**sizes: int) -> RunData:
    """Half of the samples of each benchmark are right."""
    return run_of({name: records(name, [[float(i % 2)] for i in range(size)]) for name, size in sizes.items()})


def check_of(found: PowerPlan, label: str) -> PlannedCheck:
    (check,) = [each for each in found.checks if each.label == label]
    return check


# The reference's table


def test_errors_effects_and_margins_of_the_real_suites_are_those_of_the_references_table() -> None:
    sizes = dict(zip(NAMES, (row[0] for row in TABLE), strict=False))
    guards = [guard(name, joint / 100) for name, (*_, joint) in zip(NAMES, TABLE, strict=False)]
    found = plan(policy(*guards), _light(chat=10, **sizes))
    for name, (n, q, se, mde, _) in zip(NAMES, TABLE, strict=False):
        check = check_of(found, name)
        assert (check.spread.items, check.spread.variance) == (n, pytest.approx(q))
        assert 100 * check.se == pytest.approx(se, abs=0.0051)
        assert 100 * check.detectable == pytest.approx(mde, abs=0.05)
        assert check.chance == pytest.approx(0.97, abs=0.03 if n < 200 else 0.015)
    assert found.guards == pytest.approx(0.97**6, abs=0.05)


def test_the_pool_of_the_code_suites_is_one_check_of_664_problems() -> None:
    pool = {
        "name": "code",
        "margin": 0.046,
        "pool": [{"benchmark": "humaneval", "metric": "m"}, {"benchmark": "mbpp", "metric": "m"}],
    }
    check = check_of(plan(policy(pool), run(chat=10, humaneval=164, mbpp=500)), "code")
    assert check.spread.items == 664
    assert (round(100 * check.se, 2), round(100 * check.detectable, 1)) == (1.32, 3.3)
    assert check.chance == pytest.approx(0.97, abs=0.01)


# The gate's own decisions


def outcomes(own: Sequence[tuple[float, float]], n: int, repeats: int, rules: Policy) -> float:
    """The share of real gates that the guard passes, of candidates that lose nothing."""
    rng = np.random.default_rng(5)
    passed = 0
    for _ in range(repeats):
        flips = rng.choice(len(own), size=n)
        pairs = np.array(own)[flips]
        champion, candidate = (
            run_of(
                {"own": records("own", [[float(v)] for v in pairs[:, side]]), "chat": records("chat", [[0.0], [1.0]])},
                run_id=str(side),
            )
            for side in (0, 1)
        )
        verdict = gate(rules, replace(candidate, checkpoint="d" * 64), champion)
        passed += next(check.outcome == "pass" for check in verdict.checks if check.role == "guard")
    return passed / repeats


def test_a_guard_passes_real_gates_as_often_as_planned() -> None:
    own = [(1.0, 0.0), (0.0, 1.0)] + [(1.0, 1.0), (0.0, 0.0)] * 5  # one answer in six changes
    rules = policy(guard("own", 0.12))
    found = check_of(plan(rules, run(chat=2, own=90)), "own")
    planned = chance(replace(found, spread=replace(found.spread, single=1 / 6)), 0.0)
    assert 0.6 < planned < 0.95
    assert outcomes(own, 90, 150, rules) == pytest.approx(planned, abs=3.5 * math.sqrt(planned * (1 - planned) / 150))


# What holds whatever the numbers


sizes = st.integers(60, 1500)
margins = st.sampled_from([0.02, 0.05, 0.1])


@settings(max_examples=4, deadline=None)
@given(n=sizes, margin=margins, power=st.sampled_from([0.5, 0.8, 0.95]))
def test_so_many_samples_have_the_power_and_so_wide_a_margin_has_its_share(n: int, margin: float, power: float) -> None:
    found = plan(policy(guard("own", margin), guard("gsm8k", margin)), _light(chat=n, own=n, gsm8k=n), power=power)
    for check in found.checks:
        true = 0.03 if check.role == "target" else 0.0
        assert check.samples is not None
        assert chance(check, true, items=check.samples) >= power - 0.03
        if check.samples > 1000:
            assert chance(check, true, items=0.97 * check.samples) < power
        if check.role == "guard":
            assert check.joint_margin is not None
            assert chance(check, 0.0, threshold=-check.joint_margin) >= power**0.5 - 1e-6
    guards = [check.chance for check in found.checks if check.role == "guard"]
    assert found.guards == pytest.approx(math.prod(guards))
    assert found.promote == pytest.approx(found.targets * found.guards)


@settings(max_examples=6, deadline=None)
@given(n=st.integers(500, 1500), factor=st.integers(2, 4))
def test_more_samples_give_more_power_and_a_smaller_effect(n: int, factor: int) -> None:
    rules = policy(guard("own", 0.03))
    small, large = (check_of(plan(rules, _light(chat=size, own=size)), "own") for size in (n, n * factor))
    assert small.chance <= large.chance + 1e-9
    assert small.detectable == pytest.approx(math.sqrt(factor) * large.detectable, rel=0.01)


def _light(**sizes: int) -> RunData:
    """As `run`, the items of a benchmark being one record counted so often: planning needs no more of them."""
    small = run(**dict.fromkeys(sizes, 2))
    return replace(small, records={name: _Many(small.records[name], size) for name, size in sizes.items()})


class _Many(Sequence[Any]):
    """So many records, made when they are asked for."""

    def __init__(self, some: Sequence[Any], size: int) -> None:
        self.some, self.size = some, size

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, place: Any) -> Any:
        if place >= self.size:
            raise IndexError
        record = self.some[place % 2]
        return replace(record, sample=replace(record.sample, id=str(place)))


# The policy's own rules


def test_alpha_is_the_first_decisions_share_and_the_later_ones_are_said() -> None:
    rules = {"planned": policy(ledger={"planned": 4}), "open": policy(ledger="open"), "none": policy()}
    found = {name: plan(each, run(chat=40, own=40)) for name, each in rules.items()}
    assert found["none"].alphas == (0.05,)
    assert found["planned"].alphas == (0.0125,) * 4
    assert len(found["open"].alphas) == 10
    assert found["open"].alphas[:2] == pytest.approx([0.05 * 6 / math.pi**2, 0.05 * 6 / math.pi**2 / 4])
    assert {name: each.checks[0].stages[0].alpha for name, each in found.items()} == {
        name: each.alphas[0] for name, each in found.items()
    }
    assert found["planned"].checks[1].chance < found["open"].checks[1].chance < found["none"].checks[1].chance
    assert levels(policy(ledger={"planned": 40}), 10) == (0.05 / 40,) * 10


def test_halves_are_two_tests_on_their_shares_the_first_at_the_policys_own_alpha() -> None:
    rules = policy(ledger={"planned": 2}, halves={"salt": "s", "share": 0.7})
    whole, split = (check_of(plan(each, run(chat=40, own=400)), "own") for each in (policy(), rules))
    assert split.stages == (Stage(0.7, 0.05), Stage(pytest.approx(0.3), 0.025))
    assert split.chance < whole.chance and split.detectable > whole.detectable
    passed = [ndtr(split.detectable * math.sqrt(s.share) / split.se + ndtri(s.alpha)) for s in split.stages]
    assert math.prod(passed) == pytest.approx(0.8, abs=1e-6)


def test_of_several_targets_that_need_not_all_improve_each_is_tested_more_strictly() -> None:
    targets = [{"benchmark": "chat", "metric": "m"}, {"benchmark": "own", "metric": "m"}]
    rules = policy(guard("chat"), guard("own"), targets=targets, require="any")
    found = plan(rules, run(chat=400, own=400), gain=0.06)
    first, second, *guards = found.checks
    assert {stage.alpha for each in (first, second) for stage in each.stages} == {0.025}
    assert {stage.alpha for each in guards for stage in each.stages} == {0.05}
    assert found.targets == pytest.approx(1 - (1 - first.chance) * (1 - second.chance))


def test_a_gain_no_larger_than_what_is_asked_for_is_never_sure_to_be_shown() -> None:
    rules = policy(targets=[{"benchmark": "chat", "metric": "m", "min_effect": 0.03}])
    check = plan(rules, run(chat=400, own=40), gain=0.03).checks[0]
    assert (check.samples, check.repeats) == (None, None)
    assert check.chance == pytest.approx(0.05, abs=0.01)


# Samples and repeats


def sampled(within: float | None, single: float = 0.12, *, items: int = 200, generated: bool = True) -> PlannedCheck:
    """The guard on "own", its spread as given; there are no more than its items."""
    check = check_of(plan(policy(guard("own", 0.045)), run(chat=40, own=40)), "own")
    spread = Spread(items, 0, 1, True, generated, single, within, "twin")
    return replace(check, spread=spread, full=items, se=math.sqrt(spread.variance / items))


def test_where_the_items_are_all_there_are_repeats_make_up_for_more_of_them() -> None:
    for within in (0.12, 0.10, 0.08):
        found = with_needs(sampled(within), 0.0, 0.8)
        assert found.samples is not None and found.samples > 200
        assert found.repeats is not None
        means = replace(found, spread=replace(found.spread, binary=False, repeats=found.repeats))
        fewer = replace(means, spread=replace(means.spread, repeats=found.repeats - 1))
        assert chance(means, 0.0) >= 0.8 > chance(fewer, 0.0)


def test_no_repeats_help_where_models_differ_or_choices_are_scored_or_samples_suffice() -> None:
    assert with_needs(sampled(0.01), 0.0, 0.8).repeats is None
    assert with_needs(sampled(0.0, generated=False), 0.0, 0.8).repeats is None
    assert with_needs(sampled(0.12, items=2000), 0.0, 0.8).repeats is None


def test_without_a_twin_the_repeats_are_the_fewest_that_could_do() -> None:
    unknown, known = (with_needs(sampled(within), 0.0, 0.8).repeats for within in (None, 0.11))
    assert unknown is not None and known is not None and unknown <= known


@pytest.mark.parametrize(
    ("limit", "sizes", "full"),
    [(None, {}, 40), (40, {"own": 1319}, 1319), (40, {}, None), (40, {"own": 10}, 40)],
)
def test_the_full_size_is_the_benchmarks_or_that_of_a_run_without_a_limit(
    limit: int | None, sizes: dict[str, int], full: int | None
) -> None:
    base = run(chat=40, own=40)
    base = replace(base, manifest={**base.manifest, "limit": limit})
    assert check_of(plan(policy(), base, sizes=sizes), "own").full == full


# What cannot be planned


@pytest.mark.parametrize("power", [0.0, 1.0, 80.0, -0.1, math.nan])
def test_a_power_that_is_no_chance_is_refused(power: float) -> None:
    with pytest.raises(UserError, match=r"between 0 and 1, such as 0\.8"):
        plan(policy(), run(chat=4, own=4), power=power)


@pytest.mark.parametrize(
    ("gain", "says"), [(3.0, "did you mean 0.03"), (0.0, "a gain of 0"), (math.nan, "a gain of nan")]
)
def test_a_gain_in_the_wrong_unit_is_refused(gain: float, says: str) -> None:
    with pytest.raises(UserError, match=says):
        plan(policy(), run(chat=4, own=4), gain=gain)


def test_a_policy_about_what_the_run_lacks_is_refused_by_name() -> None:
    with pytest.raises(UnknownName, match=r"no benchmark in run run named 'gsm8k'.*Policy 'p' asks for it"):
        plan(policy(guard("gsm8k")), run(chat=4, own=4))
