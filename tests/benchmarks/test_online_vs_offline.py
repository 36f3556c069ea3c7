"""The comparison of online and offline by a known gold reward: its world, and a reduced size of it, end to end."""

from __future__ import annotations

import json
import random
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path.append(str(ROOT / "benchmarks"))  # the benchmarks are scripts, not a package

from online import arms, tables, world  # noqa: E402

PROMPT = " ".join(world.TOPICS[: world.ASKED])
SMALL: dict[str, Any] = {
    "layers": 1, "width": 32, "demonstrations": 1_600, "demonstrated": 400, "labels": 60, "iterations": 2, "few": 1,
    "prompts": 12, "n": 4, "validation": 24, "test": 24, "max_tokens": 24,
    "sft": arms.Setting().sft.model_copy(update={"epochs": 2, "learning_rate": 1e-2}),
    "reward": arms.Setting().reward.model_copy(update={"epochs": 1}),
}  # fmt: skip


def clause(topic: str, true: bool = True) -> str:
    facts = [fact for fact in world.FACTS if (fact in world.TRUTHS[topic]) is true]
    return f"{topic} {sorted(facts)[0]} {world.STOP}"


def best(prompt: str) -> str:
    return " ".join(map(clause, prompt.split()))


def test_only_one_true_thing_of_each_topic_and_nothing_else_has_all_of_gold() -> None:
    assert world.gold(PROMPT, best(PROMPT)) == 1.0
    assert world.gold(PROMPT, "") == 0.5
    first = PROMPT.split()[0]
    worse = {
        "again": f"{best(PROMPT)} {clause(first)}",
        "stray": f"{best(PROMPT)} {clause(world.TOPICS[-1])}",
        "filler": f"well {best(PROMPT)}",
        "broken": f"{best(PROMPT)} {first}",
        "wrong": best(PROMPT).replace(clause(first), clause(first, true=False)),
        "vague": best(PROMPT).replace(clause(first), f"{first} nice ."),
        "missing": best(PROMPT).replace(clause(first), ""),
    }
    assert all(world.gold(PROMPT, answer) < 1.0 for answer in worse.values())
    assert all(getattr(world.read(PROMPT, worse[kind]), kind) == 1 for kind in world.COSTS)


@given(st.lists(st.sampled_from([*world.VOCABULARY, "", "<|end|>", "é.x"]), max_size=40).map(" ".join))
def test_gold_takes_any_text_and_stays_on_its_scale(answer: str) -> None:
    assert 0.0 <= world.gold(PROMPT, answer) <= 1.0
    assert world.gold(PROMPT, f"{answer} {clause(PROMPT.split()[0])}") <= 1.0


@given(st.lists(st.integers(0, 300), min_size=1, max_size=5), st.integers(0, 99))
@settings(max_examples=20)
def test_no_prompt_is_in_two_lists(counts: list[int], seed: int) -> None:
    lists = world.prompts(str(seed), counts)
    later = world.prompts(str(seed + 1), counts, without=lists[0])
    assert list(map(len, lists)) == counts
    assert len({prompt for each in lists for prompt in each}) == sum(counts)
    assert not set(lists[0]) & {prompt for each in later for prompt in each}


def test_labels_follow_gold_as_often_as_bradley_and_terry_say() -> None:
    draw = random.Random(0)
    firsts = [world.prefers_first(draw, 0.7, 0.5, 5.0) for _ in range(4000)]
    assert sum(firsts) / len(firsts) == pytest.approx(0.731, abs=0.02)


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A comparison too small to show anything, and where it lies."""
    return compare(tmp_path_factory.mktemp("comparison"))


def compare(home: Path) -> dict[str, Any]:
    import torch

    from rlhf_bench.harness.judges.reward import quiet

    torch.set_num_threads(1)
    setting = arms.Setting(**SMALL)
    with quiet():
        ready = arms.prepare(setting, 0, home)
        ran = [arms.run_arm(arm, ready) for arm in arms.ARMS]
    return {"home": home, "ready": ready, "setting": setting, "arms": ran, "facts": {0: dict(ready.facts)}}


def test_the_same_seed_gives_the_same_numbers_and_a_finished_one_is_read_back(
    found: dict[str, Any], tmp_path: Path
) -> None:
    again = compare(tmp_path)
    assert timeless(again["arms"]) == timeless(found["arms"])
    shutil.rmtree(again["ready"].home / "online")  # nothing is asked of what made a finished arm
    assert compare(tmp_path)["arms"] == again["arms"]


def timeless(ran: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{key: value for key, value in each.items() if key != "seconds"} for each in ran]


def test_online_training_never_sees_gold(
    found: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """With another gold reward after the labels were drawn, online trains the very same checkpoints, the gate aside."""
    ready = found["ready"]
    monkeypatch.setattr(world, "gold", lambda prompt, answer: 1 / (1 + len(answer)))
    other = arms.run_arm("online", arms.Ready(**{**fields(ready), "home": tmp_path}))
    mine = next(each for each in found["arms"] if each["arm"] == "online")
    assert [row["checkpoint"] for row in other["rows"]] == [row["checkpoint"] for row in mine["rows"]]
    assert [row["gold"] for row in other["rows"]] != [row["gold"] for row in mine["rows"]]


def fields(ready: arms.Ready) -> dict[str, Any]:
    return {name: getattr(ready, name) for name in arms.Ready.__dataclass_fields__}


def test_only_a_promoted_candidate_is_shipped_by_the_gated_arm_and_the_last_by_the_other(found: dict[str, Any]) -> None:
    ran = {each["arm"]: each for each in found["arms"]}
    assert ran["online"]["shipped"] == ran["online"]["rows"][-1]["checkpoint"]
    promoted = [row for row in ran["gated"]["rows"] if row.get("outcome") == "promote"]
    assert ran["gated"]["shipped"] == (promoted or ran["gated"]["rows"])[-1 if promoted else 0]["checkpoint"]
    rows = ran["online"]["rows"]
    assert [row["from"] for row in rows[1:]] == [row["checkpoint"] for row in rows[:-1]]


def test_all_arms_are_graded_on_the_same_prompts_which_nothing_else_has(found: dict[str, Any]) -> None:
    ready = found["ready"]
    graded = {tuple(row["gold"]) for each in found["arms"] for row in each["rows"]}
    assert {frozenset(each) for each in graded} == {frozenset(ready.test)}
    others = (
        {turn.content for pair in ready.labelled for turn in pair.prompt} | set(ready.online) | set(ready.validation)
    )
    assert not others & set(ready.test)


def test_the_tables_hold_every_policy_and_every_comparison(found: dict[str, Any], tmp_path: Path) -> None:
    summary = json.loads(json.dumps(tables.summary(found["setting"], found)))
    text = tables.markdown(summary)
    for name in (*summary["policies"], *(f"{each['one']} − {each['other']}" for each in summary["comparisons"])):
        assert f"| {name} |" in text
    shipped = next(each for each in summary["comparisons"] if each["one"] == "online, gated: shipped")
    assert shipped["low"] <= shipped["difference"] <= shipped["high"]
    tables.draw(summary, tmp_path / "plot.svg")
    assert (tmp_path / "plot.svg").read_text(encoding="utf-8").startswith("<?xml")
