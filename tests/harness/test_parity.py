"""Two engines agree only where that is shown, and the gate says where it is not."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlhf_bench.harness.codec import digest
from rlhf_bench.harness.errors import UserError
from rlhf_bench.harness.gate import RunData, gate
from rlhf_bench.harness.parity import (
    Parity,
    kind,
    logprobs,
    measure,
    parity_record,
    parts_at,
    records,
    save,
    texts,
    unshown,
)
from rlhf_bench.harness.policy import Guard, Policy, Target
from rlhf_bench.harness.types import Completion, Record, Report, Request, Sample, Score

HF = {"engine": "hf", "transformers": "5.19.2", "torch": "2.13.0", "dtype": "float32", "device": "cuda:1"}
VLLM = {**HF, "engine": "vllm", "vllm": "0.32.1", "device": "cuda"}
FACTS = {
    "sums": {"version": "1", "metric": "accuracy", "kind": "binary"},
    "chat": {"version": "1", "metric": "win_rate", "kind": "continuous"},
}


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("RLHF_BENCH_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def report(engine: dict[str, str], *benchmarks: str, **changed: Any) -> Report:
    manifest = {"engine": engine, "engine_identity": digest(engine), "benchmarks": {b: FACTS[b] for b in benchmarks}}
    return replace(Report(f"run-{engine['engine']}", "m", "c", "s", "p", None, (), manifest), **changed)


def graded(benchmark: str, values: Sequence[float | None], answers: Sequence[str] = ()) -> list[Record]:
    found = []
    for number, value in enumerate(values):
        name = f"{benchmark}/{number}"
        answer = answers[number] if answers else "an answer"
        sample = Sample(name, (Request(name, f"question {number}?"),), "")
        found.append(
            Record(benchmark, digest(name), sample, (Completion(name, 0, answer, "stop", 2),), Score(name, value))
        )
    return found


def measured(
    ours: Sequence[float | None], theirs: Sequence[float | None], benchmark: str = "sums", **options: Any
) -> Parity:
    """The parity of two runs of one benchmark with these scores."""
    return measure(
        report(HF, benchmark),
        report(VLLM, benchmark),
        graded(benchmark, ours),
        graded(benchmark, theirs),
        **{"margin": 0.05} | options,
    )


def test_engines_that_score_alike_on_enough_samples_are_equivalent_and_few_show_nothing() -> None:
    many, few = measured([1.0, 0.0] * 100, [1.0, 0.0] * 100), measured([1.0, 0.0] * 10, [1.0, 0.0] * 10)
    assert many.equivalent
    assert not few.equivalent
    assert not few.scores[0].apart
    more = few.scores[0].more
    assert more is not None
    enough = 20 + more + (20 + more) % 2
    assert measured([1.0, 0.0] * (enough // 2), [1.0, 0.0] * (enough // 2)).equivalent


@pytest.mark.parametrize("benchmark", ["sums", "chat"])
def test_a_difference_beyond_the_margin_lies_apart(benchmark: str) -> None:
    ours = [1.0] * 200
    theirs = [0.0 if i % 4 == 0 else 1.0 for i in range(200)]
    found = measured(ours, theirs, benchmark)
    assert not found.equivalent
    assert found.scores[0].apart
    assert found.scores[0].difference == pytest.approx(0.25)
    assert found.scores[0].low > 0.05


def test_benchmarks_that_lie_apart_both_ways_do_not_make_up_for_each_other() -> None:
    ours = graded("sums", [1.0] * 200) + graded("chat", [0.5] * 200)
    theirs = graded("sums", [0.0] * 40 + [1.0] * 160) + graded("chat", [0.7] * 200)
    found = measure(report(HF, "sums", "chat"), report(VLLM, "sums", "chat"), ours, theirs, margin=0.1)
    assert [each.benchmark for each in found.scores] == ["sums", "chat", "all"]
    assert found.scores[-1].difference == pytest.approx(0.0)
    assert found.scores[-1].equivalent
    assert not found.equivalent


@settings(deadline=None, max_examples=30)
@given(st.lists(st.sampled_from([(0.0, 0.0), (1.0, 1.0), (1.0, 0.0), (0.0, 1.0)]), min_size=2, max_size=60))
def test_parity_is_the_same_from_both_sides(scores: list[tuple[float, float]]) -> None:
    ours, theirs = zip(*scores, strict=True)
    one, other = measured(ours, theirs).scores[0], measured(theirs, ours).scores[0]
    assert one.equivalent == other.equivalent
    assert one.apart == other.apart
    assert one.p == pytest.approx(other.p)
    assert (one.low, one.high) == (pytest.approx(-other.high), pytest.approx(-other.low))
    assert one.equivalent == (one.p < 0.05)
    if one.equivalent:
        assert -0.05 < one.low <= one.high < 0.05


def test_ungraded_samples_are_counted_and_compare_with_nothing() -> None:
    found = measured([1.0, None, 1.0], [1.0, 1.0, None]).scores[0]
    assert (found.pairs, found.ungraded) == (1, 2)
    with pytest.raises(UserError, match="no sample that is graded in both"):
        measured([None], [1.0])


def test_runs_of_two_models_have_no_parity() -> None:
    with pytest.raises(UserError, match="two models"):
        measure(report(HF, "sums"), report(VLLM, "sums", checkpoint="d"), [], [], margin=0.1)


def test_texts_say_how_many_are_equal_and_where_the_others_part() -> None:
    ours, theirs = ["the sea", "a dog", "rain", "ships"], ["the sea", "a dot", "rain falls", "Ships"]
    found = texts(
        [
            (Completion(f"s{i}", 0, a, "stop", 2), Completion(f"s{i}", 0, b, "length" if i == 2 else "stop", 2))
            for i, (a, b) in enumerate(zip(ours, theirs, strict=True))
        ]
    )
    assert found is not None
    assert (found.answers, found.equal, found.finish) == (4, 1, 3)
    assert (found.first, found.middle, found.example) == (0, 4, "s3")
    assert found.low < 0.25 < found.high
    assert texts([]) is None


@settings(deadline=None)
@given(st.text(max_size=6), st.text(max_size=6))
def test_texts_part_where_their_common_beginning_ends(one: str, other: str) -> None:
    at = parts_at(one, other)
    assert (at is None) == (one == other)
    if at is not None:
        assert one[:at] == other[:at]
        assert one[at : at + 1] != other[at : at + 1]


def test_log_likelihoods_are_compared_in_nats() -> None:
    def scored(*values: float) -> list[Completion]:
        return [Completion("s", i, " x", "stop", 1, logprob=v, greedy=v > -1) for i, v in enumerate(values)]

    found = logprobs(list(zip(scored(-0.5, -2.0), scored(-0.75, -0.9), strict=True)))
    assert found is not None
    assert (found.largest, found.mean, found.greedy) == (pytest.approx(1.1), pytest.approx(0.675), 1)
    assert logprobs([]) is None


def test_a_record_is_found_by_the_engines_whatever_their_card_or_patch_release() -> None:
    found = measured([1.0] * 200, [1.0] * 200)
    path = save(found)
    assert records() == (found,)
    assert parity_record(VLLM, {**HF, "device": "cuda:0", "transformers": "5.19.9"}, records()) == found
    for other in ({**VLLM, "dtype": "bfloat16"}, {**VLLM, "vllm": "0.33.0"}, {**VLLM, "device": "cpu"}):
        assert parity_record(HF, other, records()) is None
    save(replace(found, margin=0.2))
    assert [each.margin for each in records()] == [0.2]
    path.write_text("{}")
    assert records() == ()


def test_engines_are_held_to_a_record_only_where_they_are_two() -> None:
    assert unshown(HF, {**HF, "device": "cpu"}, ()) == ""
    assert unshown({"dtype": "float32"}, VLLM, ()) == ""
    assert unshown(HF, VLLM, (measured([1.0] * 200, [1.0] * 200),)) == ""
    none, few = unshown(HF, VLLM, ()), unshown(HF, VLLM, (measured([1.0] * 5, [1.0] * 5),))
    assert "nothing shows that they agree: rlhf-bench parity hf:float32 vllm:float32" in none
    assert "were not shown to agree within 5 points on m" in few
    apart = measured([1.0] * 50, [0.0] * 50)
    assert "lie apart" in unshown(VLLM, HF, (apart,))
    assert kind(HF) == "hf 5.19 float32 cuda"


def policy(**more: Any) -> Policy:
    return Policy(
        name="p",
        targets=(Target(benchmark="chat", metric="win_rate"),),
        guards=(Guard(benchmark="sums", metric="accuracy", margin=0.1),),
        **{"against_anchor": False} | more,
    )


def side(name: str, engine: dict[str, str], chat: float, known: tuple[Parity, ...] = ()) -> RunData:
    manifest = {"protocol_digest": "p", "judge_identity": "j", "engine": engine, "benchmarks": FACTS}
    scores = {
        "sums": graded("sums", [1.0, 0.0] * 60),
        "chat": graded("chat", [chat + 0.01 * (i % 5) for i in range(60)]),
    }
    return RunData(f"run-{name}", name, manifest, scores, parity=known)


def test_a_gate_across_engines_warns_unless_a_record_shows_that_they_agree() -> None:
    champion = side("old", HF, 0.3)
    same = gate(policy(), side("new", HF, 0.6), champion)
    warned = gate(policy(), side("new", VLLM, 0.6), champion)
    assert warned.outcome == same.outcome == "promote"
    assert warned.reasons[:-1] == same.reasons
    assert warned.reasons[-1].startswith("warning: the candidate's and the champion's answers come from two engines")
    known = (measured([1.0] * 200, [1.0] * 200),)
    assert gate(policy(), side("new", VLLM, 0.6, known), champion).reasons == same.reasons


def test_a_policy_can_refuse_what_the_gate_would_warn_of() -> None:
    strict = policy(engines="refuse")
    with pytest.raises(UserError, match=r"policy 'p' refuses it \(engines: refuse\).*rlhf-bench parity"):
        gate(strict, side("new", VLLM, 0.6), side("old", HF, 0.3))
    known = (measured([1.0] * 200, [1.0] * 200),)
    assert gate(strict, side("new", VLLM, 0.6, known), side("old", HF, 0.3)).outcome == "promote"


def test_a_policy_that_says_nothing_of_engines_keeps_its_digest() -> None:
    plain = policy()
    assert "engines" not in plain.model_dump()
    assert plain.digest == policy(engines="warn").digest != policy(engines="refuse").digest
