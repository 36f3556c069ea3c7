"""What calls cost: the table, the plan before, the budget during."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlhf_bench.harness.errors import UserError
from rlhf_bench.harness.prices import Budget, Plan, Price, Usage, plan, price_of
from rlhf_bench.harness.types import Message, Request, Sampling


def test_input_cached_and_output_are_priced_apart() -> None:
    assert Price(2.0, 0.5, 8.0).of(Usage(3, 1_000_000, 400_000, 10_000)) == pytest.approx(1.2 + 0.2 + 0.08)


def test_a_dated_id_has_the_price_of_the_longest_name_that_it_continues() -> None:
    assert price_of("gpt-4o-2024-08-06") == price_of("gpt-4o") == Price(2.5, 1.25, 10.0)
    assert price_of("gpt-4o-mini-2024-07-18") == price_of("gpt-4o-mini")
    assert price_of("gpt-4o-2024-05-13") == Price(5.0, 5.0, 15.0)
    assert price_of("gpt-4-0613") == price_of("gpt-4")
    assert price_of("gpt-4o-audio-preview") is None and price_of("my-model") is None


def test_a_users_table_adds_and_overrides(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = tmp_path / "prices.yaml"
    table.write_text("my-model: {input: 1, output: 2}\ngpt-4o: {input: 3, cached: 1, output: 4}\n")
    monkeypatch.setenv("RLHF_BENCH_PRICES", str(table))
    assert price_of("my-model") == Price(1.0, 1.0, 2.0)
    assert price_of("gpt-4o") == Price(3.0, 1.0, 4.0)
    assert price_of("gpt-4-turbo") == Price(10.0, 10.0, 30.0)


@pytest.mark.parametrize(
    "text", ["[1", "- a", "m: 3", "m: {input: 1}", "m: {input: -1, output: 1}", "m: {input: .nan, output: 1}",
             "m: {input: 1, output: 1, extra: 1}", "m: {input: yes, output: 1}"],
)  # fmt: skip
def test_a_table_that_is_none_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    table = tmp_path / "prices.yaml"
    table.write_text(text)
    monkeypatch.setenv("RLHF_BENCH_PRICES", str(table))
    with pytest.raises(UserError) as raised:
        price_of("m")
    assert str(table) in str(raised.value) and "\n" not in str(raised.value)


def test_a_plan_counts_calls_tokens_and_the_most_they_cost() -> None:
    asked = [Request(str(i), (Message("user", "x" * 400),), Sampling(max_tokens=50)) for i in range(10)]
    assert plan(asked, Price(10.0, 5.0, 30.0)) == Plan(10, 1080, 500, pytest.approx(1080e-5 + 500 * 3e-5))
    assert plan(asked, None).usd is None


@given(st.text(max_size=200), st.integers(1, 5000), st.floats(0, 100), st.floats(0, 100))
def test_the_most_a_call_can_cost_is_not_below_its_plan(text: str, tokens: int, read: float, write: float) -> None:
    request, price = Request("s", (Message("user", text),), Sampling(max_tokens=tokens)), Price(read, read, write)
    planned = plan([request], price).usd
    assert planned is not None and price.most(request) >= planned - 1e-12


@given(st.lists(st.tuples(st.floats(0, 5), st.floats(0, 1)), max_size=40), st.floats(0.1, 10))
def test_a_budget_is_never_exceeded(calls: list[tuple[float, float]], usd: float) -> None:
    budget, open_calls = Budget(usd), []
    for most, share in calls:
        if budget.reserve(most):
            open_calls.append((most, most * share))
        if len(open_calls) > 3:
            budget.settle(*open_calls.pop(0))
        assert budget.spent <= usd * (1 + 1e-9)
    for each in open_calls:
        budget.settle(*each)
    assert budget.spent <= usd * (1 + 1e-9) and budget.calls == 0


def test_threads_share_a_budget() -> None:
    budget = Budget(100.0)

    def spend() -> None:
        for _ in range(1000):
            if budget.reserve(0.05):
                budget.settle(0.05, 0.05)

    threads = [threading.Thread(target=spend) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert budget.spent == pytest.approx(100.0, abs=0.06) and budget.calls == 0


@pytest.mark.parametrize("usd", [0.0, -1.0, float("nan"), float("inf")])
def test_a_budget_that_is_no_amount_is_refused(usd: float) -> None:
    with pytest.raises(UserError, match="give an amount above 0"):
        Budget(usd)
