"""What a claim is about: pools, strata, either direction, figures that are no means; and what sentinels add."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from scipy import stats

from rlhf_bench.harness.claims import Level, RunData, claims, find
from rlhf_bench.harness.codec import sample_digest
from rlhf_bench.harness.errors import UnknownName, UserError
from rlhf_bench.harness.gate import gate
from rlhf_bench.harness.policy import Guard, Part, Policy, Sentinel, Target
from rlhf_bench.harness.stats import binary_evidence
from rlhf_bench.harness.types import Completion, Record, Request, Sample, Score

CHAT = Target(benchmark="chat", metric="win_rate")
CODE = Guard(benchmark="code", metric="passed", margin=0.1)


def policy(**more: Any) -> Policy:
    rules: dict[str, Any] = {"name": "p", "targets": (CHAT,), "guards": (CODE,), "against_anchor": False}
    return Policy(**rules | more)


def records(
    benchmark: str,
    values: Sequence[float | None],
    strata: Sequence[str] = (),
    also: Sequence[dict[str, float]] = (),
    text: str = "an answer",
    finish: Any = "stop",
) -> list[Record]:
    found = []
    for i, value in enumerate(values):
        tags = {"stratum": strata[i]} if strata else {}
        sample = Sample(f"{i}", (Request(f"{i}", f"{benchmark} {i}"),), "", tags)
        answer = Completion(f"{i}", 0, text, finish, 2)
        score = Score(f"{i}", value, "" if value is not None else "lost", also[i] if also else {})
        found.append(Record(benchmark, sample_digest(sample), sample, (answer,), score))
    return found


KINDS = {"chat": ("win_rate", "continuous"), "code": ("passed", "binary"), "more": ("ok", "binary")}


def run(name: str, *groups: list[Record], **more: Any) -> RunData:
    by_name = {group[0].benchmark: group for group in groups}
    facts = {b: {"version": "1", "metric": KINDS[b][0], "kind": KINDS[b][1], "digest": b} for b in by_name}
    manifest = {"protocol_digest": "p", "judge_identity": "j", "benchmarks": facts}
    return RunData(f"run-{name}", name, manifest, by_name, **more)


GOOD, FAIR = records("chat", [0.8, 0.7] * 40), records("chat", [0.5, 0.45] * 40)
SOUND = records("code", [1.0, 0.0] * 60)


def test_a_pool_is_all_its_samples_together_each_counted_once() -> None:
    code = Guard(
        name="both", margin=0.1, pool=(Part(benchmark="code", metric="passed"), Part(benchmark="more", metric="ok"))
    )
    new = run("new", GOOD, records("code", [0.0] * 3 + [1.0] * 97), records("more", [0.0] * 2 + [1.0] * 38))
    old = run("old", FAIR, records("code", [1.0] * 99 + [0.0]), records("more", [1.0] * 39 + [0.0]))
    verdict = gate(policy(guards=(code,)), new, old)
    check = verdict.checks[1]
    assert (check.benchmark, check.metric, check.pairs) == ("both", "passed + ok", 140)
    low = binary_evidence(2, 5, 140, threshold=-0.1, alpha=0.05).low
    assert check.low == pytest.approx(low)
    assert check.difference == pytest.approx(-3 / 140)
    assert check.reason.startswith("both: lost 2.1 points on 140 pairs")


def test_a_pool_of_binary_and_continuous_parts_is_continuous() -> None:
    mixed = Guard(
        name="all",
        margin=0.1,
        pool=(Part(benchmark="code", metric="passed"), Part(benchmark="chat", metric="win_rate")),
    )
    verdict = gate(policy(guards=(mixed,)), run("new", GOOD, SOUND), run("old", FAIR, SOUND))
    assert verdict.checks[1].pairs == 200
    assert verdict.checks[1].outcome == "pass"


def test_a_guard_may_be_about_some_strata_only() -> None:
    strata = ["law", "art", "law", "chess"] * 30
    lost = [0.0 if name == "art" else 1.0 for name in strata]
    new = run("new", GOOD, records("code", lost, strata))
    old = run("old", FAIR, records("code", [1.0] * 120, strata))
    law, art = (
        gate(policy(guards=(CODE.model_copy(update={"strata": wanted}),)), new, old)
        for wanted in (("law", "chess"), ("art",))
    )
    assert (law.outcome, law.checks[1].pairs, law.checks[1].benchmark) == ("promote", 90, "code [law, chess]")
    assert (art.outcome, art.checks[1].pairs) == ("reject", 30)
    with pytest.raises(UnknownName, match=r"no stratum of 'code' in run run-new named 'laws'\. Did you mean 'law'"):
        gate(policy(guards=(CODE.model_copy(update={"strata": ("laws",)}),)), new, old)


def test_where_lower_is_better_a_rise_is_a_loss() -> None:
    toxic = Guard(benchmark="code", metric="toxicity", margin=0.05, direction="lower")
    mild, harsh = ([{"toxicity": 0.1 + 0.001 * (i % 9) + shift} for i in range(120)] for shift in (0.0, 0.2))
    calm = run("calm", GOOD, records("code", [1.0] * 120, also=mild))
    wild = run("wild", FAIR, records("code", [1.0] * 120, also=harsh))
    better = gate(policy(guards=(toxic,)), calm, wild)
    assert better.outcome == "promote"
    assert better.checks[1].difference == pytest.approx(0.2)
    assert better.checks[1].metric == "toxicity" and "fell by 20.0 points" in better.checks[1].reason
    worse = gate(policy(guards=(toxic,)), run("wild", GOOD, records("code", [1.0] * 120, also=harsh)), calm)
    assert worse.outcome == "reject"
    assert "rose by 20.0 points" in worse.reasons[0]


def test_what_is_ungraded_counts_at_its_worst_in_the_direction_that_is_worst() -> None:
    claim_up, claim_down = (
        claims(policy(guards=(CODE.model_copy(update={"direction": d}),), max_ungraded=0.5), ["champion"])[1]
        for d in ("higher", "lower")
    )
    new = run("new", records("code", [None] * 10 + [1.0] * 90))
    old = run("old", records("code", [1.0] * 100))
    rules = policy(max_ungraded=0.5)
    up, down = (find(claim, rules, new, old, Level(0.05)) for claim in (claim_up, claim_down))
    assert up.ungraded == down.ungraded == 10
    assert up.evidence.low == pytest.approx(binary_evidence(0, 10, 100, threshold=-0.1, alpha=0.05).low)
    assert down.evidence.low == pytest.approx(binary_evidence(0, 0, 100, threshold=-0.1, alpha=0.05).low)


def doubled(found: Sequence[Record], values: Sequence[float]) -> list[float]:
    """A figure that is no score: twice the mean's, off the scale of 0 to 1."""
    return [2 * value + 1 for value in values]


def test_a_figure_is_compared_by_its_pseudo_values() -> None:
    rng = np.random.default_rng(1)
    ours, theirs = (np.clip(rng.normal(mean, 0.1, 120), 0, 1) for mean in (0.6, 0.55))
    figures = {"chat": {"twice": doubled}}
    new = run("new", records("chat", ours.tolist()), SOUND, figures=figures)
    old = run("old", records("chat", theirs.tolist()), SOUND, figures=figures)
    verdict = gate(policy(targets=(Target(benchmark="chat", metric="twice"),)), new, old)
    check = verdict.checks[0]
    d = 2 * (ours - theirs)
    assert check.difference == pytest.approx(d.mean())
    half = stats.norm.ppf(0.95) * d.std(ddof=1) / np.sqrt(120)
    assert check.low == pytest.approx(d.mean() - half, abs=0.2 * half)
    with pytest.raises(UnknownName, match="metric of 'chat' named 'thrice'"):
        gate(policy(targets=(Target(benchmark="chat", metric="thrice"),)), new, old)


def test_a_veto_rejects_whatever_was_gained_and_a_warning_is_only_said() -> None:
    long = records("chat", [0.8, 0.7] * 40, text="an answer that goes on and on and on")
    new, old = run("new", long, SOUND), run("old", FAIR, SOUND)
    length = Sentinel(signal="length", benchmark="chat", limit=0.25)
    warned = gate(policy(sentinels=(length,)), new, old)
    assert warned.outcome == "promote"
    assert warned.checks[-1].outcome == "warn"
    assert warned.reasons[-1].startswith("warning: chat: answers 300% longer (36 against 9 characters)")
    vetoed = gate(policy(sentinels=(length.model_copy(update={"action": "veto"}),)), new, old)
    assert vetoed.outcome == "reject"
    assert vetoed.reasons[0].endswith("past the limit of 0.25")
    within = gate(policy(sentinels=(length.model_copy(update={"action": "veto", "limit": 4.0}),)), new, old)
    assert (within.outcome, within.checks[-1].outcome) == ("promote", "pass")


def test_a_veto_that_cannot_be_measured_never_promotes() -> None:
    kl = Sentinel(signal="kl", benchmark="chat", limit=5, action="veto")
    verdict = gate(policy(sentinels=(kl,)), run("new", GOOD, SOUND), run("old", FAIR, SOUND))
    assert verdict.outcome == "inconclusive"
    assert "not measured" in verdict.reasons[0]
    warned = gate(
        policy(sentinels=(kl.model_copy(update={"action": "warn"}),)), run("new", GOOD, SOUND), run("old", FAIR, SOUND)
    )
    assert warned.outcome == "promote"
    assert warned.reasons[-1].startswith("warning: ")


def test_a_sentinel_about_what_no_run_has_is_refused() -> None:
    other = Sentinel(signal="length", benchmark="chats", limit=0.25)
    with pytest.raises(UserError, match="no benchmark in these runs named 'chats'"):
        gate(policy(sentinels=(other,)), run("new", GOOD, SOUND), run("old", FAIR, SOUND))


def test_generated_answers_can_be_repeated_and_what_would_decide_says_so() -> None:
    new, old = run("new", records("chat", [0.5, 0.6] * 20), SOUND), run("old", records("chat", [0.6, 0.49] * 20), SOUND)
    reason = gate(policy(), new, old).reasons[0]
    assert "more samples would decide, or " in reason and "or more answers to each of these" in reason


def test_rules_of_one_benchmark_are_told_apart_by_their_metric() -> None:
    also = [{"style": 0.5}] * 80
    chat = Guard(benchmark="chat", metric="style", margin=0.1)
    new, old = (run(n, records("chat", v, also=also), SOUND) for n, v in (("new", [0.8] * 80), ("old", [0.5] * 80)))
    verdict = gate(policy(guards=(CODE, chat)), new, old)
    assert [check.benchmark for check in verdict.checks] == ["chat win_rate", "code", "chat style"]


def asked(name: str, values: Sequence[float], times: int, benchmark: str = "code") -> list[Record]:
    """Each question `times` times, under ids of its own."""
    found = []
    for i, value in enumerate(values):
        for k in range(times):
            request = Request(f"{i}.{k}", f"question {i}")
            sample = Sample(f"{i}.{k}", (request,), f"{k}")
            found.append(Record(benchmark, sample_digest(sample), sample, (), Score(sample.id, value)))
    return found


def test_one_question_under_many_ids_is_one_piece_of_evidence() -> None:
    values = [1.0] * 9 + [0.0] * 4 + [1.0] * 17, [0.0] * 9 + [1.0] * 4 + [1.0] * 17
    target = Target(benchmark="code", metric="passed")
    chat = Guard(benchmark="chat", metric="win_rate", margin=0.1)
    rules = policy(targets=(target,), guards=(chat,))
    once, often = (
        gate(rules, run("new", asked("n", values[0], k), GOOD), run("old", asked("o", values[1], k), FAIR)).checks[0]
        for k in (1, 8)
    )
    assert (once.pairs, often.pairs) == (30, 240)
    assert once.outcome == often.outcome == "undecided"
    assert often.p is not None and often.p > 0.05


def test_in_a_pool_a_question_that_two_parts_share_counts_once() -> None:
    both = Guard(
        name="both", margin=0.1, pool=(Part(benchmark="code", metric="passed"), Part(benchmark="more", metric="ok"))
    )
    lost, kept = [0.0] * 6 + [1.0] * 24, [1.0] * 30
    new = run("new", GOOD, asked("n", lost, 1), asked("n", kept, 5, "more"))
    old = run("old", FAIR, asked("o", kept, 1), asked("o", kept, 5, "more"))
    check = gate(policy(guards=(both,)), new, old).checks[1]
    assert check.difference == pytest.approx(-6 / 180)  # six of thirty questions lost one answer of six
