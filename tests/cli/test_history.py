import json
from dataclasses import replace
from pathlib import Path

import pytest
from tests.cli.conftest import Call, Line, checkpoint

from rlhf_bench.harness.store import Store
from rlhf_bench.harness.types import Checkpoint


@pytest.fixture
def told(call: Call, line: Line, policy: str) -> Line:
    """A line with a history: better beat base, worse was rejected and forced, and base was brought back."""
    call("gate", "better", "--policy", policy)
    call("promote", "better")
    call("gate", "worse", "--policy", policy)
    call("promote", "worse", "--force", "--reason", "the judge was down")
    call("rollback", "1", "--reason", "it was not")
    return line


def test_history_says_who_beat_whom_when_by_what_verdict(call: Call, told: Line) -> None:
    out = call("history").out
    rows = [each.split() for each in out.splitlines() if each.strip()[:1].isdigit()]
    assert [each[0] for each in rows] == ["1", "2", "3", "4"]
    assert rows[1][1:3] == ["better", "base"]
    assert rows[1][5:] == ["verdict", "1", "promote", "0.0304", "chat", "+0.310"]
    assert [each[1:3] + each[5:6] for each in rows[2:]] == [
        ["worse", "better", "forced"],
        ["base", "worse", "rollback"],
    ]
    assert "generation 3: forced: the judge was down" in out
    assert "generation 4: rollback to generation 1: it was not" in out
    assert max(map(len, out.splitlines())) <= 110


def test_history_as_json_holds_verdict_alpha_and_targets(call: Call, told: Line, store: Store) -> None:
    found = call("history", "--json").json
    assert [(each["how"], each["in_place_of_names"]) for each in found["champions"]] == [
        ("first", []),
        ("verdict", ["base"]),
        ("forced", ["better"]),
        ("rollback", ["worse"]),
    ]
    verdict = found["champions"][1]["verdict"]
    stored = store.verdict(1).verdict
    assert (verdict["id"], verdict["outcome"], verdict["policy"]) == (1, "promote", stored.policy)
    assert verdict["alpha_spent"] == stored.spent > 0
    assert verdict["targets"][0]["difference"] == pytest.approx(0.31, abs=0.001)
    assert [each["verdict"] for each in found["champions"]].count(None) == 3
    fates = {each["names"][0]: each for each in found["checkpoints"]}
    assert [each["outcome"] for each in fates["worse"]["verdicts"]] == ["reject"]
    assert fates["base"]["generations"] == [{"generation": 1, "how": "first"}, {"generation": 4, "how": "rollback"}]
    assert [fates[name]["champion"] for name in ("base", "better", "worse")] == [True, False, False]


def test_the_tree_shows_descent_recipe_data_and_what_became_of_each(
    call: Call, told: Line, store: Store, home: Path
) -> None:
    third = checkpoint(home / "weights", "third", told.better.checkpoint)
    store.register(
        replace(third, recipe={"trainer": "dpo", "policy": told.better.checkpoint, "preferences": "d" * 64, "seed": 7}),
        alias="third",
    )
    lines = call("history", "--tree").out.splitlines()
    assert lines[0].startswith("base ★ champion (rollback)")
    assert "champion of generation 1, 4 (rollback)" in lines[0]
    (better,) = [each for each in lines if " better " in each]
    assert "champion of generation 2 · promote by verdict 1" in better
    (worse,) = [each for each in lines if " worse " in each]
    assert "champion of generation 3 (forced) · reject by verdict 2" in worse
    (child,) = [each for each in lines if " third " in each]
    assert child.endswith("by dpo · preferences dddddddddddd")
    assert child.index("third") > better.index("better") > 0  # a child of better, which is a child of base
    assert lines.index(child) == lines.index(better) + 1


def test_a_verdict_that_nobody_carried_out_says_so(call: Call, line: Line, policy: str) -> None:
    call("gate", "better", "--policy", policy)
    assert "promote by verdict 1, not carried out" in call("history", "--tree").out


def test_parents_in_a_circle_and_long_lines_are_drawn_whole(call: Call, line: Line, store: Store) -> None:
    for number in range(300):
        store.register(replace(checkpoint_of(store, "alike"), digest=f"{number:064x}", parent=f"{number - 1:064x}"))
    for own, parent in ("ab", "ba"):
        store.register(replace(checkpoint_of(store, "alike"), digest=own * 64, parent=parent * 64), alias=f"loop-{own}")
    out = call("history", "--tree").out
    assert out.count("loop-a") == out.count("loop-b") == 1
    assert len(out.splitlines()) == 4 + 300 + 2
    assert out.count("000000000000\n") == 300


def checkpoint_of(store: Store, name: str) -> Checkpoint:
    found = store.alias(name)
    assert found is not None
    return found


def test_names_and_reasons_are_text_and_drive_no_terminal(call: Call, line: Line, store: Store) -> None:
    store.register(checkpoint_of(store, "worse"), alias="[red]x[/red]\x1b[31m")
    call("promote", "worse", "--force", "--reason", "[bold]no[/bold] \x1b[2J")
    for command in (["history"], ["history", "--tree"]):
        out = call(*command).out
        assert "[red]x[/red]" in "".join(out.split())
        assert "\x1b" not in out
    assert "[bold]no[/bold] \\x1b[2J" in call("history").out


def test_without_a_champion_history_says_how_to_set_one(call: Call, store: Store) -> None:
    assert "promote --first" in call("history").out
    assert call("history", "--json").json == {"champions": [], "checkpoints": []}
    assert call("history", "--tree").code == 0


def test_a_rollback_moves_the_champion_and_its_pointer(call: Call, told: Line, store: Store, home: Path) -> None:
    done = call("rollback", "better", "--reason", "enough", "--json").json
    assert (done["checkpoint"], done["generation"], done["how"]) == (told.better.checkpoint, 5, "rollback")
    assert done["reason"] == "rollback to generation 2: enough"
    assert json.loads((home / "home" / "champion.json").read_text())["generation"] == 5
    assert "champion: " in call("rollback", told.champion.checkpoint[:10], "--reason", "no").out


def test_a_rollback_that_cannot_be_is_one_line(call: Call, told: Line) -> None:
    for args, says in {
        ("better",): "--reason",
        ("9", "--reason", "x"): "rlhf-bench history",
        ("alike", "--reason", "x"): "never was champion",
        ("base", "--reason", "x"): "is the champion already",
        (): "'to'",
    }.items():
        done = call("rollback", *args)
        assert done.code == 2
        assert says in done.one_line


def test_a_rollback_to_changed_weights_is_refused(call: Call, told: Line, home: Path, store: Store) -> None:
    (home / "weights" / "better" / "model.safetensors").write_bytes(b"other")
    done = call("rollback", "better", "--reason", "x")
    assert done.code == 2 and "was registered as" in done.one_line
    assert len(store.history()) == 4
