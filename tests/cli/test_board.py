from pathlib import Path

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
