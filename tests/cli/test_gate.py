import json
import math
from pathlib import Path

import pytest
from tests.cli.conftest import Call, Line, N, checkpoint, finished
from tests.cli.loops import Loop, result
from tests.conftest import light

from rlhf_bench.cli import gating, lookup
from rlhf_bench.harness.store import Store, default_store_url
from rlhf_bench.suites import BENCHMARKS

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(
    ("candidate", "code", "word"), [("better", 0, "PROMOTE"), ("worse", 1, "REJECT"), ("alike", 3, "INCONCLUSIVE")]
)
def test_the_exit_code_is_the_verdict(
    call: Call, line: Line, policy: str, candidate: str, code: int, word: str
) -> None:
    done = call("gate", candidate, "champion", "--policy", policy)
    assert done.code == code
    assert word in done.out
    assert ("the champion stays" in done.out) == (code != 0)
    assert ("promote --verdict 1" in done.out) == (code == 0)


def test_every_check_and_reason_is_shown(call: Call, line: Line, policy: str) -> None:
    out = call("gate", "worse", "--policy", policy).out
    assert "target" in out and "guard" in out and "┊" in out
    assert "maths: lost 50.0 points" in out
    assert max(map(len, [each for each in out.splitlines() if not each.startswith("-")])) <= 110


def test_the_verdict_is_stored_with_its_runs(call: Call, line: Line, policy: str, store: Store) -> None:
    found = call("gate", line.better.run_id, line.champion.run_id, "--policy", policy, "--json").json
    assert found["verdict"] == "promote"
    assert {"benchmark", "role", "metric", "difference", "low", "high", "margin", "p", "outcome"} <= found["checks"][
        0
    ].keys()
    assert found["alpha_spent"] == pytest.approx(0.05 * 6 / math.pi**2)
    assert found["reasons"]
    stored = store.verdict(found["id"]).verdict
    assert (stored.candidate, stored.champion) == (line.better.checkpoint, line.champion.checkpoint)
    assert stored.runs["candidate"] == line.better.run_id


def test_deciding_does_not_move_the_champion(call: Call, line: Line, policy: str, store: Store) -> None:
    call("gate", "better", "--policy", policy)
    champion = store.champion()
    assert champion is not None and champion.checkpoint == line.champion.checkpoint


def test_guards_hold_against_the_first_champion_too(call: Call, line: Line, policy: str, store: Store) -> None:
    store.set_champion(line.alike.checkpoint, expect_generation=1, verdict_id=None, reason="second")
    found = call("gate", "better", "champion", "--policy", policy, "--json").json
    assert {check["against"] for check in found["checks"]} == {"champion", "anchor"}
    assert found["runs"]["anchor"] == line.champion.run_id


def test_a_candidate_that_is_the_champion_is_refused(call: Call, line: Line, policy: str) -> None:
    done = call("gate", "base", "champion", "--policy", policy)
    assert done.code == 2
    assert "is the champion" in done.one_line


def test_of_a_models_runs_the_one_made_alike_is_taken(call: Call, line: Line, policy: str, store: Store) -> None:
    finished(store, "base", line.champion.checkpoint, [0.5] * N, [1.0] * N, judge="K")
    found = call("gate", "better", "champion", "--policy", policy, "--json").json
    assert found["runs"]["champion"] == line.champion.run_id


def test_a_champion_without_a_run_says_what_to_type(call: Call, line: Line, policy: str, store: Store) -> None:
    bare = lookup.find_checkpoint(store, "alike")
    store.register(type(bare)(bare.path, "d" * 64), alias="bare")
    done = call("gate", "bare", "champion", "--policy", policy)
    assert done.code == 2
    assert "rlhf-bench run --model bare" in done.one_line


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ("demoo", "Did you mean 'demo'"),
        ("nothere.yaml", "nothere.yaml"),
        ("demo", "demo-chat"),
        ("x" * 5000, "no policy named 'xxx"),
    ],
)
def test_a_policy_that_does_not_fit_is_one_line(call: Call, line: Line, given: str, says: str) -> None:
    done = call("gate", "better", "champion", "--policy", given)
    assert done.code == 2
    assert says in done.one_line


def test_without_a_policy_about_these_benchmarks_one_must_be_named(call: Call, line: Line) -> None:
    done = call("gate", "better")
    assert done.code == 2
    assert "--policy" in done.one_line


@pytest.mark.parametrize("name", gating.policy_names())
def test_a_packaged_policy_names_benchmarks_and_metrics_that_exist(name: str) -> None:
    found = gating.policy(name)
    assert found.name == name
    for part in found.parts:
        assert BENCHMARKS[part.benchmark].metric == part.metric
    assert all(sentinel.benchmark in found.benchmarks for sentinel in found.sentinels)


def test_the_candidate_itself_is_no_anchor(call: Call, line: Line, policy: str, store: Store) -> None:
    done = call("gate", "better", "champion", "--policy", policy, "--anchor", "better")
    assert done.code == 2
    assert "candidate itself" in done.one_line
    assert not store.verdicts()


@pytest.mark.parametrize("option", ["--policy", "--anchor"])
def test_an_empty_setting_is_not_taken_for_the_default(call: Call, line: Line, policy: str, option: str) -> None:
    given = {"--policy": policy, "--anchor": "base"} | {option: ""}
    done = call("gate", "better", "champion", *(part for pair in given.items() for part in pair))
    assert done.code == 2
    assert done.one_line.startswith("error: ")


def test_a_first_champion_without_a_run_is_named_as_it_must_be_typed(
    call: Call, policy: str, store: Store, home: Path
) -> None:
    models = [checkpoint(home / "weights", name) for name in ("first", "old", "new")]
    for each in models:
        store.register(each, alias=Path(each.path).name)
    store.set_champion(models[0].digest, expect_generation=0, verdict_id=None, reason="first")
    for each, chat in zip(models[1:], (0.4, 0.6), strict=True):
        finished(store, Path(each.path).name, each.digest, [chat] * N, [1.0] * N)
    done = call("gate", "new", "old", "--policy", policy)
    assert done.code == 2
    assert "rlhf-bench run --model first --suite test" in done.one_line


def test_a_policy_is_explained_in_words_without_any_run(call: Call, policy: str) -> None:
    done = call("gate", "--explain", "--policy", policy)
    assert done.code == 0
    assert "win_rate of chat: higher" in done.out
    assert "accuracy of maths: not lower by 10 points or more" in done.out
    assert "with a chance of at most 5%" in done.out


def test_the_published_schema_is_that_of_the_policies(call: Call) -> None:
    shown = call("gate", "--schema").json
    assert shown == json.loads((ROOT / "docs" / "policy.schema.json").read_text())
    assert {"targets", "guards", "sentinels", "ledger", "halves"} <= shown["properties"].keys()


def test_the_second_candidate_on_the_same_samples_has_less_alpha(call: Call, line: Line, policy: str) -> None:
    first = call("gate", "better", "--policy", policy, "--json").json
    second = call("gate", "worse", "--policy", policy, "--json").json
    again = call("gate", "better", "--policy", policy, "--json").json
    assert (first["decision"], second["decision"]) == (1, 2)
    assert second["alpha"] == pytest.approx(first["alpha"] / 4)
    assert again == first


def test_targets_and_guards_can_be_typed_instead_of_a_policy(call: Call, line: Line) -> None:
    done = call("gate", "better", "--target", "chat", "--guard", "maths=0.1", "--json")
    assert (done.code, done.json["verdict"]) == (0, "promote")
    percent = call("gate", "better", "--target", "chat", "--guard", "maths=10")
    assert percent.code == 2
    assert "did you mean 0.1" in percent.one_line


def test_markdown_leads_with_the_decision(call: Call, line: Line, policy: str) -> None:
    out = call("gate", "worse", "--policy", policy, "--markdown").out
    assert out.startswith("**❌ reject**: candidate ")
    assert "| guard | maths | accuracy | -0.500 |" in out
    assert "\n- maths: lost 50.0 points" in out


@pytest.mark.parametrize(
    ("args", "says"),
    [
        ((), "name the candidate's run"),
        (("better", "--json", "--markdown"), "one of --json, --markdown"),
        (("better", "--policy", "demo", "--target", "chat"), "two ways to say the same"),
        (("better", "base.json", "--target", "chat", "--guard", "maths=0.1"), "'better' is no file, and base.json is"),
    ],
)
def test_a_question_that_is_none_is_one_line(call: Call, line: Line, args: tuple[str, ...], says: str) -> None:
    done = call("gate", *args)
    assert done.code == 2
    assert says in done.one_line


def test_a_loop_that_is_run_again_is_shown_its_verdict_whoever_is_champion_by_now(
    call: Call, home: Path, monkeypatch: pytest.MonkeyPatch, talker: Path
) -> None:
    loop = Loop(call, home, monkeypatch, talker)
    rules = home / "policy.yaml"
    rules.write_text(f"{rules.read_text()}halves: {{salt: a}}\n")
    with light():
        first = result(loop("home", "limit=12"))
    with Store(default_store_url()) as store:
        (stored,) = store.verdicts()
        assert (stored.verdict.outcome, stored.verdict.spent) == ("inconclusive", 0.0)
        other = checkpoint(home / "weights", "other")
        store.register(other, alias="other")
        for reason in ("moved", "moved again"):
            assert result(loop("home", "limit=12")) == first
            assert [each.id for each in store.verdicts()] == [stored.id]
            champion = store.champion()
            assert champion is not None
            digest = other.digest if reason == "moved" else stored.verdict.champion
            store.set_champion(digest, expect_generation=champion.generation, verdict_id=None, reason=reason)
        assert result(loop("home", "limit=12")) == first
        assert [each.id for each in store.verdicts()] == [stored.id]
