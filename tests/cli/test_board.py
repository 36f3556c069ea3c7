from pathlib import Path

import pytest
from tests.cli.conftest import Call, Line, N, checkpoint, finished

from rlhf_bench.harness.store import Store


def test_ties_share_a_rank_and_parents_are_named(call: Call, line: Line) -> None:
    rows = call("leaderboard", "--json").json["boards"]["chat"]
    assert [(row["model"], row["rank"]) for row in rows] == [("better", 1), ("worse", 1), ("alike", 3), ("base", 3)]
    assert rows[0]["lineage"] == ["base"]
    out = call("leaderboard").out
    assert "chat (win_rate)" in out and "maths (accuracy)" in out and "parents" in out


def test_another_judge_and_other_shots_are_not_ranked_and_say_why(call: Call, line: Line, store: Store) -> None:
    finished(store, "alike", line.alike.checkpoint, [0.99] * N, [1.0] * N, judge="K", shots=8)
    boards = call("leaderboard", "--json").json["boards"]
    assert boards["chat"][-1]["rank"] is None
    assert any(mark.startswith("judge K") for mark in boards["chat"][-1]["marks"])
    assert "shots 8, here 0" in boards["maths"][-1]["marks"]
    assert not any(mark.startswith("judge") for mark in boards["maths"][-1]["marks"])
    assert "not comparable" in call("leaderboard", "maths").out


def test_a_checkpoint_is_one_row_whatever_it_was_called(call: Call, line: Line, store: Store) -> None:
    finished(store, "/a/path", line.better.checkpoint, [0.1] * N, [1.0] * N)
    rows = call("leaderboard", "chat", "--json").json["boards"]["chat"]
    assert [row["model"] for row in rows].count("better") == 1
    assert "/a/path" not in {row["model"] for row in rows}


def test_the_papers_tables_stand_beside_and_are_never_ranked(call: Call, line: Line) -> None:
    found = call("leaderboard", "--with", "published", "--json").json
    assert [each["name"] for each in found["published"]] == ["table-2", "table-3"]
    out = call("leaderboard", "--with", "published").out
    assert "arXiv 2405.07863v3, Table 2" in out and "Claude-3-Opus" in out


def test_published_rows_of_a_measured_benchmark_are_marked(call: Call, line: Line) -> None:
    rows = call("leaderboard", "gsm8k", "--with", "published", "--json").json["boards"]["gsm8k"]
    assert [row["mean"] for row in rows] == [0.807, 0.798, 0.796, 0.742]
    assert all(row["rank"] is None and row["marks"][0] == "published" for row in rows)
    assert "published: prompts" in call("leaderboard", "gsm8k", "--with", "table-3").out


def test_an_empty_store_says_what_to_type(call: Call) -> None:
    done = call("leaderboard")
    assert done.code == 0
    assert "`rlhf-bench run`" in done.out


def test_unregistered_weights_are_ranked_by_their_runs_name(call: Call, store: Store, home: Path) -> None:
    finished(store, "stranger", checkpoint(home, "x").digest, [0.5] * N, [1.0] * N)
    assert call("leaderboard", "chat", "--json").json["boards"]["chat"][0]["model"] == "stranger"


def test_the_ladder_tells_when_the_published_best_moved_and_no_runs_own_score(call: Call, line: Line) -> None:
    done = call("leaderboard", "chat", "--ladder")
    rows = [each.split() for each in done.out.splitlines() if each.strip()[:1].isdigit()]
    assert [(row[0], row[3], row[4], row[-1]) for row in rows] == [
        ("1", "base", line.champion.run_id, "1"),
        ("2", "better", line.better.run_id, "2"),
        ("3", "worse", line.worse.run_id, "2"),
        ("4", "alike", line.alike.run_id, "2"),
    ]
    assert [row[5:-1] for row in rows] == [["0.450", "▲"], ["0.750", "▲"], ["0.750"], ["0.750"]]
    assert "Blum & Hardt 2015" in done.out
    assert max(map(len, done.out.splitlines())) <= 100


def test_the_ladder_of_every_benchmark_is_in_json_with_what_its_runs_share(call: Call, line: Line) -> None:
    found = {each["benchmark"]: each for each in call("leaderboard", "--ladder", "--json").json["ladders"]}
    assert set(found) == {"chat", "maths"}
    rungs = found["maths"]["rungs"]
    assert [(rung["step"], rung["moved"], rung["moved_at"], rung["published"]) for rung in rungs] == [
        (1, True, 1, 0.5),
        (2, False, 1, 0.5),
        (3, False, 1, 0.5),
        (4, False, 1, 0.5),
    ]
    assert {name for rung in rungs for name in rung if "score" in name or "mean" in name} == set()
    assert (found["chat"]["samples"], found["chat"]["metric"]) == (N, "win_rate")
    assert found["chat"]["conditions"]["judge"].startswith("J ")


def test_runs_under_other_conditions_are_not_on_the_ladder_and_are_counted(
    call: Call, line: Line, store: Store
) -> None:
    other = finished(store, "other", "f" * 64, [0.99] * N, [1.0] * N, judge="K")
    part = finished(store, "part", "e" * 64, [0.99] * 10, [1.0] * 10)
    found = call("leaderboard", "chat", "--ladder", "--json").json
    assert not {other.run_id, part.run_id} & {rung["run"] for rung in found["ladders"][0]["rungs"]}
    assert found["under_other_conditions"] == {"chat": 2}
    assert "note: 2 finished under other conditions" in call("leaderboard", "chat", "--ladder").out


def test_a_run_that_is_made_again_keeps_its_place_on_the_ladder(call: Call, line: Line, store: Store) -> None:
    before = call("leaderboard", "chat", "--ladder", "--json").json
    store.start_run(store.run(line.champion.run_id))
    store.finish_run(line.champion.run_id, line.champion)
    assert call("leaderboard", "chat", "--ladder", "--json").json == before


@pytest.mark.parametrize(
    ("args", "says"),
    [(["chatt"], "Did you mean 'chat'?"), (["chat", "--with", "published"], "leave out --with"), (["gsm8k"], "gsm8k")],
)
def test_a_ladder_that_cannot_be_is_one_line(call: Call, line: Line, args: list[str], says: str) -> None:
    done = call("leaderboard", *args, "--ladder")
    assert done.code == 2 and says in done.one_line


def test_the_ladder_of_an_empty_store_says_what_to_type(call: Call) -> None:
    assert "`rlhf-bench run`" in call("leaderboard", "--ladder").out
