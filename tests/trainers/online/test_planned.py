"""The plan of a loop: counts by hand, totals that add up, and facts that are read from real files and models."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlhf_bench.harness.checkpoint import checkpoint_digest
from rlhf_bench.harness.errors import UserError
from rlhf_bench.harness.prices import Price
from rlhf_bench.harness.progress import Advance, silent
from rlhf_bench.harness.store import Run, Store
from rlhf_bench.harness.types import Checkpoint, Message, Report, Request, Sample, Sampling
from rlhf_bench.trainers.memory import parameters
from rlhf_bench.trainers.online import facts as reading
from rlhf_bench.trainers.online.config import STAGES, LoopConfig
from rlhf_bench.trainers.online.facts import Machine
from rlhf_bench.trainers.online.planned import Evaluation, Facts, LoopPlan, Rate, comparisons, plan_of

RATES = {"read": Rate("read", 1000.0), "write": Rate("write", 100.0), "train": Rate("train", 200.0, measured=True)}
EVALUATION = Evaluation(samples=50, read=10_000, written=3_600, judge="openai:x", calls=40, usd=2.0)
FACTS = Facts(
    pool=100_000,
    prompt_tokens=50.0,
    machine="two cores",
    rates=RATES,
    evaluation=EVALUATION,
    parameters=1_000_000,
    checkpoint_bytes=4_000_000,
    free_bytes=10**12,
    exact_tokens=True,
)


def config(**changes: Any) -> LoopConfig:
    given: dict[str, Any] = {
        "name": "x",
        "model": "m",
        "prompts_per_iteration": 10,
        "iterations": 3,
        "answers": {"n": 8, "max_tokens": 200},
        "dpo": {"batch_size": 4, "micro_batch": 2, "epochs": 2},
    }
    return LoopConfig.model_validate(given | changes)


def test_each_count_by_hand() -> None:
    plan = plan_of(config(), replace(FACTS, answer_tokens=100.0))
    first, second = plan.iterations[:2]
    assert (first.prompts, first.answers, first.rewards, first.pairs) == (10, 80, 80, 10)
    assert (first.prompt_tokens, first.answer_tokens, first.answer_tokens_most) == (500, 8_000, 16_000)
    assert first.steps == 2 * 3  # of 4, 4 and 2 pairs
    assert first.trained_tokens == 2 * 10 * 2 * (50 + 100)
    assert (first.evaluations, second.evaluations) == (2, 1)  # the champion's run is made once
    assert (first.samples, first.judge_calls, first.usd) == (100, 80, 4.0)
    assert second.hours["answers"] == pytest.approx((8_000 / 100 + 500 / 1000) / 3600)
    assert second.hours["score"] == pytest.approx((500 + 8_000) / 1000 / 3600)
    assert second.hours["train"] == pytest.approx((6_000 / 200 + 3_000 / 1000) / 3600)
    assert second.hours["measure"] == pytest.approx((10 + 36) / 3600)
    assert plan.total.prompts == 30 and plan.total.usd == 8.0
    assert plan.total.hours_left == pytest.approx(sum(each.hours_left or 0 for each in plan.iterations))


def test_answers_are_as_long_as_they_were_or_as_they_may_get() -> None:
    assert plan_of(config(), FACTS).iterations[0].answer_tokens == 80 * 200
    long = config(answers={"n": 8, "max_tokens": 2048})
    assert plan_of(long, FACTS).iterations[0].answer_tokens == 80 * 700
    assert any("until the first are there" in note for note in plan_of(long, FACTS).notes)
    assert plan_of(long, replace(FACTS, answer_tokens=31.0)).iterations[0].answer_tokens == 80 * 31


def test_what_is_done_takes_no_time_and_no_money() -> None:
    done = {1: frozenset(STAGES), 2: frozenset(("answers", "score"))}
    plan = plan_of(config(), replace(FACTS, done=done))
    first, second, third = plan.iterations
    assert first.hours_left == 0.0 and first.usd == 0.0 and first.done == STAGES
    assert second.hours["answers"] == 0.0 and second.hours["train"] == third.hours["train"]
    assert second.done == ("answers", "score")
    assert plan.disk.candidates == 2 * 4_000_000


def test_measured_rates_of_this_loop_take_the_place_of_reckoned_ones() -> None:
    measured = RATES | {
        "answers": Rate("answers", 4.0, True, "answers"),
        "rewards": Rate("rewards", 8.0, True, "answers"),
    }
    plan = plan_of(config(), replace(FACTS, rates=measured, evaluation=replace(EVALUATION, seconds=360.0)))
    hours = plan.iterations[1].hours
    assert hours["answers"] == pytest.approx(20 / 3600) and hours["score"] == pytest.approx(10 / 3600)
    assert hours["measure"] == pytest.approx(0.1)


def test_given_pairs_ask_for_no_answers_and_no_rewards() -> None:
    work = plan_of(config(preferences="pairs.jsonl"), replace(FACTS, answer_tokens=100.0)).iterations[0]
    assert (work.answers, work.rewards, work.answer_tokens, work.prompt_tokens) == (0, 0, 0, 0)
    assert work.hours["answers"] == work.hours["score"] == 0.0
    assert work.pairs == 10 and work.trained_tokens == 6_000


def test_best_of_n_trains_on_one_answer_a_prompt() -> None:
    sft = {"batch_size": 4, "micro_batch": 2, "epochs": 1}
    work = plan_of(config(method="sft", dpo={}, sft=sft), replace(FACTS, answer_tokens=100.0)).iterations[0]
    assert work.trained_tokens == 10 * 150 and work.steps == 3
    assert work.hours["train"] == pytest.approx(1_500 / 200 / 3600)  # and no reference reads it


def test_a_reward_that_compares_is_counted_in_comparisons_and_paid() -> None:
    assert [comparisons(n) for n in (2, 4, 8)] == [1, 4, 10]
    facts = replace(FACTS, answer_tokens=100.0, reward_price=Price(1.0, 1.0, 10.0))
    work = plan_of(config(reward="openai:judge"), facts).iterations[1]
    assert (work.rewards, work.comparisons) == (0, 100)
    assert work.usd == pytest.approx(2.0 + (100 * 250 * 1.0 + 100 * 10.0) / 1e6)
    assert work.hours["score"] == 0.0
    assert plan_of(config(reward="openai:judge"), replace(facts, reward_price=None)).iterations[1].usd is None
    local = plan_of(config(reward="pm:mine"), replace(facts, reward_price=None)).iterations[1]
    assert local.usd == 2.0 and local.hours["score"] == pytest.approx(100 * 250 / 1000 / 3600)


def test_an_unknown_price_or_size_is_unknown_in_the_total_and_not_zero() -> None:
    nothing = {name: replace(rate, per_s=None) for name, rate in RATES.items()}
    facts = replace(
        FACTS, rates=nothing, parameters=None, checkpoint_bytes=None, evaluation=replace(EVALUATION, usd=None)
    )
    plan = plan_of(config(), facts)
    assert plan.total.usd is None and plan.total.hours_left is None
    assert plan.disk.candidates is None and plan.disk.needed is None
    assert any("without the model's size" in note for note in plan.notes)


def test_too_few_prompts_are_one_line() -> None:
    with pytest.raises(UserError, match="3 iterations of 10 prompts need 30, there are 29"):
        plan_of(config(), replace(FACTS, pool=29))
    retried = config(on_hold="retry", retries=[{"dpo.beta": 0.2, "fresh_prompts": True}])
    with pytest.raises(UserError, match="need 60"):
        plan_of(retried, replace(FACTS, pool=59))
    assert any("retried, up to 1 times" in note for note in plan_of(retried, FACTS).notes)


def test_disk_counts_candidates_and_what_a_training_keeps() -> None:
    whole = plan_of(config(), FACTS).disk
    assert whole.candidates == 3 * 4_000_000
    assert whole.training == 3 * 12 * 1_000_000 + 4_000_000  # two kept, one being written, and the draft
    adapters = plan_of(config(dpo={"lora": {"rank": 8}, "batch_size": 4, "micro_batch": 2}), FACTS).disk
    assert adapters.training is not None and adapters.training < 5_000_000
    assert whole.needed == whole.candidates + whole.training + whole.rows


@given(st.integers(1, 40), st.integers(1, 500), st.sampled_from((2, 4, 8)), st.integers(1, 3000), st.floats(1, 900))
def test_totals_are_sums_and_more_of_anything_takes_longer(
    iterations: int, prompts: int, n: int, most: int, length: float
) -> None:
    facts = replace(FACTS, answer_tokens=length)

    def planned(count: int, asked: int) -> LoopPlan:
        return plan_of(
            config(iterations=count, prompts_per_iteration=asked, answers={"n": n, "max_tokens": most}), facts
        )

    plan, more = planned(iterations, prompts), planned(iterations + 1, prompts + 1)
    for name in ("answers", "answer_tokens", "answer_tokens_most", "steps", "samples", "trained_tokens"):
        assert getattr(plan.total, name) == sum(getattr(each, name) for each in plan.iterations)
        assert getattr(more.total, name) >= getattr(plan.total, name)
    assert plan.total.answer_tokens <= plan.total.answer_tokens_most
    assert more.total.hours_left is not None and plan.total.hours_left is not None
    assert more.total.hours_left > plan.total.hours_left > 0
    assert more.disk.rows >= plan.disk.rows


def test_rates_scale_with_the_model_and_the_cards() -> None:
    cpu, card = Machine("c", "cpu", 300e9), Machine("g", "cuda", 990e12, 8)
    small, large = (reading.rates(cpu, size, config(), {}) for size in (10**8, 10**9))
    assert small["read"].per_s == pytest.approx(10 * (large["read"].per_s or 0))
    alone, sharded = (reading.rates(card, 8 * 10**9, config(dpo={"shard": shard}), {}) for shard in (None, "fsdp"))
    assert sharded["train"].per_s == pytest.approx(8 * (alone["train"].per_s or 0))
    assert sharded["write"].per_s == alone["write"].per_s
    assert reading.rates(cpu, None, config(), {})["train"].per_s is None
    found = reading.rates(cpu, 10**8, config(), {"train": Rate("train", 7.0, measured=True)})
    assert found["train"] == Rate("train", 7.0, measured=True)
    assert reading.machine().flops > 0


def sample(name: str, text: str, most: int = 10) -> Sample:
    return Sample(name, (Request(name, (Message("user", text),), Sampling(max_tokens=most)),), "")


def test_prompt_tokens_are_those_of_the_models_own_tokenizer_and_template(tiny_checkpoint: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny_checkpoint)
    prompts = [sample("a", "Why?"), sample("b", "How are you today?")]
    texts = [
        tokenizer.apply_chat_template([{"role": "user", "content": text}], tokenize=False, add_generation_prompt=True)
        for text in ("Why?", "How are you today?")
    ]
    expected = sum(len(tokenizer(text, add_special_tokens=False)["input_ids"]) for text in texts) / 2
    assert reading.prompt_tokens(prompts, tiny_checkpoint) == (expected, True)
    assert reading.prompt_tokens(prompts, None) == ((4 + 18) / 4 / 2, False)
    assert reading.prompt_tokens([], None) == (0.0, False)
    assert reading.prompt_tokens(prompts[1:] * 2000, None) == (18 / 4, False)


@given(st.lists(st.text("ab", max_size=6), max_size=12))
def test_what_prompts_begin_with_alike_is_read_once(texts: list[str]) -> None:
    nodes = {text[: end + 1] for text in texts for end in range(len(text))}
    read, written = reading.asked_tokens([Request(str(i), text, Sampling(5)) for i, text in enumerate(texts)])
    assert read == -(-len(nodes) // 4) and written == 5 * len(texts)


def test_a_continuation_is_read_and_not_written() -> None:
    requests = [Request("a", "abcd", continuation=each) for each in ("efgh", "ijkl")]
    assert reading.asked_tokens(requests) == (3, 0)


def test_a_model_is_found_where_it_is_and_nothing_is_fetched(
    tiny_checkpoint: Path, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RLHF_BENCH_CACHE", str(tmp_path / "cache"))
    digest = checkpoint_digest(tiny_checkpoint)
    assert reading.local_folder(str(tiny_checkpoint), store) == tiny_checkpoint
    for absent in ("champion", "mine", digest, "smollm2-135m-instruct", "hf:no/such", "hf:not a name", str(tmp_path)):
        assert reading.local_folder(absent, store) is None
    store.register(Checkpoint(str(tiny_checkpoint), digest), alias="mine")
    store.set_champion(digest, expect_generation=0, verdict_id=None, reason="first")
    for spec in ("mine", "champion", digest[:12]):
        assert reading.local_folder(spec, store) == tiny_checkpoint
    assert reading.bytes_of(tiny_checkpoint) > 4 * parameters(tiny_checkpoint)


def test_stages_that_left_their_files_are_done(tmp_path: Path) -> None:
    first, second = tmp_path / "iteration-1", tmp_path / "iteration-2"
    for folder in (first, second, tmp_path / "iteration-x"):
        folder.mkdir()
    for name in ("answers-abc.jsonl", "rewards-abc.jsonl", "pairs-abc.jsonl", "measured-abc.jsonl"):
        (first / name).write_text("")
    (first / "candidate-abc").mkdir()
    (second / "answers-abc.jsonl").write_text("")
    (second / "rewards-abc.jsonl.before-1").write_text("")
    (second / "pairs-abc.jsonl.tmp").write_text("")
    (second / "candidate-abc.work").mkdir()
    assert reading.stages_done(tmp_path) == {1: frozenset(STAGES), 2: frozenset({"answers"})}
    assert reading.stages_done(tmp_path / "nowhere") == {}


def test_training_rates_and_answer_lengths_are_read_from_the_loops_own_files(tmp_path: Path) -> None:
    candidate = tmp_path / "iteration-1" / "candidate-abc"
    candidate.mkdir(parents=True)
    steps = [{"step": 1, "tokens_per_s": 10.0}, {"tokens_per_s": 30.0}, {"tokens_per_s": 20.0}, {"tokens_per_s": 0}]
    text = "".join(json.dumps(step) + "\n" for step in steps)
    (candidate / "metrics.jsonl").write_text(text + '{"tokens_per_s": NaN}\nnot json\n[1]\n{"tokens_')
    assert reading.measured_rates(tmp_path) == {"train": Rate("train", 20.0, measured=True)}
    assert reading.answer_tokens(tmp_path, len) is None
    rows = [{"responses": ["abc", "abcde"]}, {"responses": ["a", 7]}]
    (candidate.parent / "answers-abc.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert reading.answer_tokens(tmp_path, len) == 3.0


def test_the_pace_of_answers_is_kept_without_those_that_were_stored(tmp_path: Path) -> None:
    advanced = []

    @contextmanager
    def track(label: str, total: int) -> Iterator[Advance]:
        yield advanced.append

    with reading.pacing(track, tmp_path)("iteration 1 of 2: answers", 8) as advance:
        for _ in range(4):  # stored
            advance(1)
        for _ in range(4):
            time.sleep(0.1)
            advance(1)
    rate = reading.measured_rates(tmp_path)["answers"]
    assert rate.measured and rate.unit == "answers" and 2 < (rate.per_s or 0) <= 10
    assert advanced == [1] * 8


def test_other_stages_and_answers_out_of_the_store_leave_no_pace(tmp_path: Path) -> None:
    for label in ("iteration 1 of 2: train", "answers", "iteration 1 of 2: answers"):
        with reading.pacing(silent, tmp_path)(label, 2) as advance:
            advance(2)
    assert reading.measured_rates(tmp_path) == {}


def test_a_disk_that_is_full_costs_only_the_pace(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with reading.pacing(silent, tmp_path / "file")("iteration 1 of 2: rewards", 1) as advance:
        time.sleep(0.06)
        advance(1)
    assert reading.measured_rates(tmp_path / "file") == {}


def test_an_evaluation_takes_as_long_as_the_median_of_those_that_were_asked_alike(store: Store) -> None:
    asked = {"suite": "demo", "protocol": "paper", "judge_spec": "demo-reward", "limit": None}
    assert reading.evaluation_seconds(store, config()) is None
    for name, settings, model in (("a", asked, "m"), ("b", asked | {"limit": 5}, "m"), ("c", asked, "scripted:echo")):
        created = "2026-01-01T00:00:00+00:00"
        store.start_run(Run(name, model, "d", "demo", "paper", None, name, settings=settings, created=created))
        store.finish_run(name, Report(name, model, "d", "demo", "paper", None, ()))
    found = reading.evaluation_seconds(store, config())
    assert found is not None and found > 3600  # from then until this test ran
