"""The assertion helpers: what is not shown fails, and says what was measured."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from tests.cli.conftest import Line, N, finished
from tests.cli.test_files import annotations, right, samples

from rlhf_bench.cli import gating
from rlhf_bench.harness.errors import UserError
from rlhf_bench.harness.policy import Guard, Halves, Ledger, Policy, Sentinel, Target
from rlhf_bench.harness.store import Store, default_store_url
from rlhf_bench.testing import assert_not_regressed, assert_promotes


def rules(**changes: object) -> Policy:
    given = {
        "name": "test",
        "ledger": "none",
        "targets": (Target(benchmark="chat", metric="win_rate"),),
        "guards": (Guard(benchmark="maths", metric="accuracy", margin=0.1),),
    }
    return Policy.model_validate(given | changes)


WIDE = (Guard(benchmark="maths", metric="accuracy", margin=0.3),)


def test_a_candidate_that_lost_nothing_passes_both(line: Line, policy: str, store: Store) -> None:
    assert assert_not_regressed("better", "champion", policy).outcome == "promote"
    assert assert_promotes("better", "champion", policy).outcome == "promote"


def test_a_loss_is_an_error_with_its_numbers(line: Line) -> None:
    for check in (assert_not_regressed, assert_promotes):
        with pytest.raises(AssertionError) as raised:
            check("worse", "champion", rules())
        first, *reasons = str(raised.value).splitlines()
        assert "worse" in first and "against champion: reject (policy test, alpha 0.05)" in first
        assert reasons == [reason for reason in reasons if reason.startswith("- ")]
        assert "guard maths: lost 50.0 points on 40 pairs" in reasons[0] and "margin 10" in reasons[0]


def test_a_candidate_that_is_no_better_lost_nothing_and_is_not_promoted(line: Line, policy: str) -> None:
    assert assert_not_regressed("alike", "champion", policy).outcome == "inconclusive"
    with pytest.raises(AssertionError, match=r"is not promoted[^\n]*inconclusive[^\n]*\n- target chat: "):
        assert_promotes("alike", "champion", policy)


def test_a_guard_that_nothing_decides_is_no_pass(line: Line) -> None:
    narrow = rules(guards=(Guard(benchmark="maths", metric="accuracy", margin=0.001),))
    with pytest.raises(AssertionError, match=r"guard maths: no difference on 40 pairs.*not shown to be safe"):
        assert_not_regressed("alike", "champion", narrow)


def test_ungraded_samples_are_no_pass(store: Store, line: Line) -> None:
    right = [float(i % 2) for i in range(N)]
    new = finished(store, "new", "e" * 64, [0.9] * N, [None] * 4 + right[4:])
    with pytest.raises(AssertionError, match="4 of 40 pairs are ungraded"):
        assert_not_regressed(new.run_id, line.champion.run_id, rules(against_anchor=False))


def test_a_sentinel_that_vetoes_or_cannot_be_measured_fails_and_one_that_warns_does_not(
    line: Line, store: Store
) -> None:
    right = [float(i % 2) for i in range(N)]
    long = finished(store, "long", "e" * 64, [0.9] * N, right, text="a much longer answer than it was")

    def watched(signal: str, action: str) -> Policy:
        given = {"signal": signal, "benchmark": "chat", "limit": 0.1, "action": action}
        return rules(sentinels=(Sentinel.model_validate(given),))

    assert_not_regressed(long.run_id, "champion", watched("length", "warn"))
    for signal in ("length", "kl"):
        with pytest.raises(AssertionError, match="- sentinel "):
            assert_not_regressed(long.run_id, "champion", watched(signal, "veto"))


def test_a_target_that_is_shown_to_be_worse_fails(line: Line, store: Store) -> None:
    right = [float(i % 2) for i in range(N)]
    dull = finished(store, "dull", "e" * 64, [0.1 + 0.01 * (i % 3) for i in range(N)], right)
    with pytest.raises(AssertionError, match=r"- target chat: lost .*shown to be worse"):
        assert_not_regressed(dull.run_id, "champion", rules())


def test_no_loss_is_asserted_without_a_decision_and_a_promotion_is_one(line: Line, store: Store) -> None:
    ledger = rules(ledger=Ledger(planned=4), guards=WIDE)
    assert assert_not_regressed("better", "champion", ledger).alpha == 0.05
    assert store.verdicts() == []
    for _ in range(2):
        found = assert_promotes("better", "champion", ledger)
        assert (found.alpha, found.decision) == (pytest.approx(0.05 / 4), 1)
    (kept,) = store.verdicts()
    assert kept.verdict == found


def test_of_halves_only_the_first_is_looked_at(line: Line, store: Store) -> None:
    halved = rules(halves=Halves(salt="s"), guards=WIDE)
    found = assert_not_regressed("better", "champion", halved)
    assert found.policy == halved.digest
    assert all(0 < check.pairs < N for check in found.checks)
    assert store.verdicts() == []
    assert not any("half" in reason for reason in found.reasons)


def test_guards_hold_against_the_first_champion_or_the_anchor_that_is_named(line: Line, store: Store) -> None:
    store.set_champion(line.alike.checkpoint, expect_generation=1, verdict_id=None, reason="second")
    found = assert_not_regressed("better", "champion", rules())
    assert found.runs["anchor"] == line.champion.run_id
    found = assert_not_regressed("better", "champion", rules(), anchor="worse")
    assert found.runs["anchor"] == line.worse.run_id
    with pytest.raises(UserError, match="candidate itself"):
        assert_not_regressed("better", "champion", rules(), anchor="better")


def test_a_store_is_given_open_or_by_its_url(tmp_path: Path, line: Line, store: Store) -> None:
    for given in (store, default_store_url(), None):
        assert_not_regressed("better", "champion", rules(), store=given)
    assert store.runs()  # it is still open
    with Store(f"sqlite:///{tmp_path}/other.db") as other, pytest.raises(UserError, match="no run"):
        assert_not_regressed("better", "champion", rules(), store=other)


def test_two_result_files_are_asserted_and_nothing_is_kept(home: Path) -> None:
    old = samples(home / "old", right(0.5))
    new = samples(home / "new", right(0.5)[:-40] + [True] * 40)
    bad = samples(home / "bad", [False] * len(right(0.5)))
    policy = rules(
        targets=(Target(benchmark="gsm8k", metric="exact_match,flexible-extract"),),
        guards=(Guard(benchmark="gsm8k", metric="exact_match,strict-match", margin=0.05),),
    )
    assert assert_promotes(new, old, policy).outcome == "promote"
    assert assert_not_regressed(str(new), str(old), policy, anchor=old).outcome == "promote"
    with pytest.raises(AssertionError, match=r"guard gsm8k exact_match,strict-match: lost .* points on 200 pairs"):
        assert_not_regressed(bad, old, policy)
    assert not (home / "home").exists()


def test_a_mistake_in_the_question_is_no_failed_assertion(home: Path, line: Line, policy: str) -> None:
    file = annotations(home / "a.json", 0.5)
    for candidate, champion, given, says in (
        ("bettr", "champion", policy, "no run named 'bettr'"),
        ("better", "champion", "demoo", "Did you mean 'demo'"),
        ("base", "champion", policy, "is the champion"),
        (str(file), "champion", policy, "'champion' is no file, and "),
        (Path("a.json"), Path("nothing"), policy, "there is no"),
        ("better", "champion", "demo", "demo-chat"),
    ):
        with pytest.raises(UserError, match=says):
            assert_not_regressed(candidate, champion, given)


def test_a_policy_of_any_make_is_the_same_policy(line: Line, policy: str) -> None:
    found = [assert_not_regressed("better", "champion", each) for each in (policy, Path(policy), gating.policy(policy))]
    assert found[0] == found[1] == found[2]


def test_under_plain_python_it_needs_no_pytest_and_no_torch(home: Path) -> None:
    old, new = samples(home / "old", right(0.5)), samples(home / "new", right(0.5)[:-40] + [True] * 40)
    (home / "policy.yaml").write_text(
        "name: p\n"
        "targets: [{benchmark: gsm8k, metric: 'exact_match,flexible-extract'}]\n"
        "guards: [{benchmark: gsm8k, metric: 'exact_match,strict-match', margin: 0.05}]\n"
    )
    script = (
        "import sys; from rlhf_bench.testing import assert_not_regressed; "
        f"assert_not_regressed({str(new)!r}, {str(old)!r}, 'policy.yaml'); "
        "print(sorted({'torch', 'pytest', 'transformers', 'lm_eval'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120, cwd=home)
    assert (done.returncode, done.stdout.strip(), done.stderr) == (0, "[]", "")
