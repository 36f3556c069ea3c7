import pytest
from tests.cli.conftest import Call, Line, N, finished

from rlhf_bench.harness.store import Store


def test_runs_are_listed_last_first(call: Call, line: Line) -> None:
    assert [each["model"] for each in call("runs", "--json").json] == ["alike", "worse", "better", "base"]
    out = call("runs").out
    assert all(name in out for name in ("base", "better", line.worse.run_id))


def test_an_empty_store_says_what_to_type(call: Call) -> None:
    assert "`rlhf-bench run`" in call("runs").out
    assert call("runs", "list", "--json").json == []


def test_a_run_is_shown_with_intervals_judge_and_the_next_command(call: Call, line: Line) -> None:
    out = call("runs", "show", line.better.run_id).out
    assert "[0.660, 0.860]" in out
    (chat,) = [each for each in out.splitlines() if "win_rate" in each]
    (maths,) = [each for each in out.splitlines() if "accuracy" in each]
    assert chat.split()[-1] == "J" and maths.split()[-1] == "0"
    assert f"run {line.better.run_id} in sqlite" in out
    assert "next: rlhf-bench compare" in out


def test_samples_are_shown_with_markup_as_text(call: Call, line: Line) -> None:
    out = call("runs", "show", "base", "--samples", "2", "--benchmark", "maths").out
    assert out.count("── maths") == 2
    assert "chat/0" not in out
    assert "asked:     question 0 [b]?[/b]" in out
    assert "reference: reference 0" in out
    assert "answered:  an answer 0" in out


def test_a_models_answer_cannot_drive_the_terminal(call: Call, line: Line, store: Store) -> None:
    report = finished(store, "evil", "b" * 64, [0.5] * N, [1.0] * N, text="[red]\x1b[2J\x07 :smile: [/red]\nsecond")
    out = call("runs", "show", report.run_id, "-n", "1").out
    assert "[red]\\x1b[2J\\x07 :smile: [/red]" in out
    assert "\x1b" not in out
    assert "\n           second 0" in out


def test_json_holds_run_report_and_samples(call: Call, line: Line) -> None:
    found = call("runs", "show", "base", "-n", "3", "--json").json
    assert found["report"]["run_id"] == found["run"]["id"] == line.champion.run_id
    assert [each["benchmark"] for each in found["samples"]] == ["chat"] * 3 + ["maths"] * 3


def test_an_unknown_benchmark_names_the_nearest(call: Call, line: Line) -> None:
    done = call("runs", "show", "base", "-b", "math")
    assert done.code == 2
    assert "Did you mean 'maths'" in done.one_line


@pytest.mark.parametrize("command", ["show", "resume"])
def test_an_unknown_run_names_the_nearest(call: Call, line: Line, command: str) -> None:
    near = line.champion.run_id[:-2] + "zz"
    done = call("runs", command, near)
    assert done.code == 2
    assert line.champion.run_id in done.one_line


def test_a_run_of_the_library_is_not_resumed_by_guesswork(call: Call, line: Line) -> None:
    done = call("runs", "resume", line.champion.run_id)
    assert done.code == 2
    assert "start it again" in done.one_line


def test_ungraded_samples_are_counted_in_the_table(call: Call, line: Line, store: Store) -> None:
    report = finished(store, "gaps", "a" * 64, [None, None, *[0.5] * (N - 2)], [1.0] * N)
    (chat,) = [each for each in call("runs", "show", report.run_id).out.splitlines() if "win_rate" in each]
    assert chat.split()[-3:] == [str(N - 2), "2", "J"]


def test_the_demo_judge_is_called_optimistic(call: Call, line: Line, store: Store) -> None:
    report = finished(store, "m", "9" * 64, [0.5] * N, [1.0] * N, judge="demo-reward")
    assert "optimistic" in call("runs", "show", report.run_id).out
    assert "optimistic" not in call("runs", "show", line.champion.run_id).out
