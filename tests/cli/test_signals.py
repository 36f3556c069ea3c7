"""`rlhf-bench runs signals`: a table beside another run's, KL and reward measured on demand and kept."""

from pathlib import Path

import pytest
from tests.cli.conftest import Call, Line, N, finished

from rlhf_bench.harness.store import Store

RUN = ("run", "--suite", "demo-chat", "--limit", "6", "--judge", "scripted:longer", "--json", "--model")


@pytest.fixture
def runs(call: Call) -> tuple[str, str]:
    """Runs of scripted:echo and scripted:oracle on the packaged chat prompts."""
    echo, oracle = (call(*RUN, f"scripted:{name}").json["run_id"] for name in ("echo", "oracle"))
    return echo, oracle


def told(call: Call, *args: str) -> dict[str, dict[str, float | str | None]]:
    """What `runs signals --json` says of each signal of the one benchmark."""
    return {each["signal"]: each for each in call("runs", "signals", *args, "--json").json["signals"]}


def test_the_answers_of_two_runs_are_set_side_by_side(call: Call, runs: tuple[str, str]) -> None:
    done = call("runs", "signals", runs[0], "--against", runs[1])
    assert done.code == 0
    lines = {cells[1]: cells for each in done.out.splitlines() if len(cells := each.split()) > 3}
    assert set(lines) >= {"length", "truncated", "refused", "distinct", "kl", "reward_gap"}
    found = told(call, runs[0], "--against", runs[1])
    assert lines["length"][2:] == [
        f"{found['length']['candidate']:.0f}",
        f"{found['length']['champion']:.0f}",
        f"{found['length']['value']:+.1%}",
    ]
    assert lines["kl"][2:] == ["–", "–", "–"]
    assert "demo-chat: KL to the reference not measured: 6 of 6 samples" in done.out
    assert "runs signals RUN --reference MODEL" in done.out
    assert found["length"]["says"] in (
        f"answers {abs(found['length']['value']):.0%} shorter "  # type: ignore[arg-type]
        f"({found['length']['candidate']:.0f} against {found['length']['champion']:.0f} characters)"
    )
    assert found["kl"]["value"] is None and found["kl"]["why"]


def test_alone_a_run_has_figures_and_no_change(call: Call, runs: tuple[str, str]) -> None:
    out = call("runs", "signals", runs[0]).out
    assert "change" not in out and "against" not in out
    found = told(call, runs[0])
    assert found["length"]["candidate"] is not None and found["length"]["champion"] is None


def test_kl_and_reward_are_measured_in_both_runs_kept_and_shown(call: Call, runs: tuple[str, str]) -> None:
    measured = ("--reference", "scripted:empty", "--reward", "scripted:tie")
    found = told(call, runs[0], "--against", runs[1], *measured)
    assert found["kl"]["value"] == 10.0 and found["kl"]["champion"] == 10.0
    assert found["reward_gap"]["value"] is not None
    assert told(call, runs[0], "--against", runs[1]) == found
    shown = call("runs", "show", runs[0]).out
    (kl,) = [each.split() for each in shown.splitlines() if " kl " in each]
    (win,) = [each.split() for each in shown.splitlines() if " reward_win " in each]
    assert kl[-1] == "scripted:empty" and win[-1] == "scripted:tie"
    assert call("compare", *runs).code == 0


def test_two_training_rewards_are_not_compared(call: Call, runs: tuple[str, str]) -> None:
    call("runs", "signals", runs[0], "--reward", "scripted:tie")
    assert "6 of 6 samples" in str(told(call, runs[0], "--against", runs[1])["reward_gap"]["why"])
    call("runs", "signals", runs[1], "--reward", "scripted:longer")
    found = told(call, runs[0], "--against", runs[1])["reward_gap"]
    assert found["value"] is None
    assert "'scripted:tie' and 'scripted:longer'" in str(found["why"])


def test_a_local_model_is_asked_again_by_its_digest(call: Call, tiny_checkpoint: Path) -> None:
    run = call("run", "--suite", "demo-chat", "--limit", "2", "--judge", "scripted:longer", "--json", "--model",
               str(tiny_checkpoint)).json["run_id"]  # fmt: skip
    found = told(call, run, "--reference", str(tiny_checkpoint))
    assert found["kl"]["value"] == 0.0
    assert told(call, run, "--reference", "scripted:empty")["kl"]["value"] != 0.0


def test_a_run_whose_weights_are_not_here_gets_no_kl(call: Call, line: Line, store: Store) -> None:
    report = finished(store, "openai:gpt", "openai:gpt", [0.5] * N, [1.0] * N)
    done = call("runs", "signals", report.run_id, "--reference", "scripted:empty")
    assert done.code == 2
    assert "no model on this machine" in done.one_line
    assert call("runs", "signals", report.run_id).code == 0


def test_mistakes_are_one_line(call: Call, runs: tuple[str, str]) -> None:
    for args, said in (
        ((runs[0], "--against", runs[0]), "with itself"),
        ((runs[0], "--reference", "nope"), "no model named 'nope'"),
        (("nope",), "no run named 'nope'"),
        ((runs[0], "--reward", "scripted:nope"), "no scripted judge named 'nope'"),
    ):
        done = call("runs", "signals", *args)
        assert done.code == 2 and said in done.one_line


def test_runs_that_were_asked_in_another_way_are_not_compared(call: Call, line: Line, store: Store) -> None:
    other = finished(store, "other", "d" * 64, [0.5] * N, [1.0] * N, shots=5)
    done = call("runs", "signals", other.run_id, "--against", line.champion.run_id)
    assert done.code == 2 and "do not compare" in done.one_line


def test_a_run_that_wrote_nothing_has_no_signals(call: Call) -> None:
    run = call("run", "--suite", "demo-four-way", "--limit", "4", "--model", "scripted:echo", "--json").json["run_id"]
    assert "no generated answers" in call("runs", "signals", run).one_line
