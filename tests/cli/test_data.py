"""`rlhf-bench data`: what a file holds, the same in other layouts, and the benchmarks that are found in it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tests.cli.conftest import Call

from rlhf_bench.suites.demo import rows as demo_rows
from rlhf_bench.trainers.data import read_conversations, read_preferences

PAIR = {"prompt": "Why?", "chosen": "Because it is so.", "rejected": "No.", "margin": 2.5, "source": "x"}


def written(path: Path, *rows: Any) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


@pytest.fixture
def mixed(home: Path) -> str:
    """Three prompts: the second quotes a question of demo-arithmetic, the third asks what demo-chat asks."""
    asked, instruction = demo_rows("arithmetic")[0]["question"], demo_rows("chat")[0]["instruction"]
    hello = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Hi"}]
    rows = [
        {"prompt": "Name three rivers of Spain.", "id": 7},
        {"prompt": f"Solve this with care:\n{asked}", "id": 8},
        {"prompt": [*hello, {"role": "user", "content": f"{instruction} Write a poem."}], "id": 9},
    ]
    return written(home / "prompts.jsonl", *rows)


def test_show_says_what_a_file_holds_and_what_is_wrong_with_the_rest(call: Call, home: Path) -> None:
    path = written(home / "a.jsonl", PAIR, PAIR | {"rejected": ""}, PAIR | {"prompt": "Who?"})
    done = call("data", "show", path)
    assert done.code == 0
    assert "2 preferences, format preference (2)" in done.out
    assert "left out: 1 × empty answer" in done.out
    assert "a.jsonl row 2: rejected is ''" in done.out
    assert "chosen: Because it is so." in done.out
    found = call("data", "show", path, "--rows", "2", "--json").json
    assert (found["as"], found["read"], found["skipped"]) == ("preferences", 2, {"empty answer": 1})
    assert found["chars"]["chosen"] == {"least": 17, "median": 17, "most": 17, "mean": 17}
    assert [row["margin"] for row in found["rows"]] == [2.5, 2.5]


@pytest.mark.parametrize(
    ("row", "kind"),
    [
        ({"messages": [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": "So."}]}, "conversations"),
        ({"prompt": "Why?", "responses": ["a", "b"], "rewards": [1, None]}, "ranked"),
        ({"prompt": "Why?"}, "prompts"),
    ],
)
def test_show_reads_every_kind(call: Call, home: Path, row: Any, kind: str) -> None:
    path = written(home / "a.jsonl", row)
    assert f"1 {kind}" in call("data", "show", path).out
    assert call("data", "show", path, "--json").json["as"] == kind


def test_text_that_would_drive_the_terminal_is_shown_and_not_sent(call: Call, home: Path) -> None:
    done = call("data", "show", written(home / "a.jsonl", {"prompt": "Why \x1b[2J [bold]?"}))
    assert r"\x1b[2J [bold]?" in done.out


def test_convert_writes_another_layout_in_another_kind_of_file(call: Call, home: Path) -> None:
    path = written(home / "a.jsonl", PAIR)
    assert "1 preferences" in call("data", "convert", path, "b.csv", "--to", "sharegpt").out
    assert read_preferences("b.csv") == read_preferences(path)
    done = call("data", "convert", path, "c.parquet", "--as", "conversations", "--json")
    assert done.json == {"out": "c.parquet", "as": "conversations", "written": 1, "skipped": {}}
    assert read_conversations("c.parquet")[0][-1].content == "Because it is so."


def test_filter_writes_the_pairs_that_can_be_learned_from_and_counts_the_rest(call: Call, home: Path) -> None:
    bare = {name: PAIR[name] for name in ("prompt", "chosen", "rejected")}
    scored = [bare | {"prompt": f"Why {n}?", "score_chosen": n, "score_rejected": 1.0} for n in range(5)]
    path = written(
        home / "a.jsonl", *scored, scored[4], PAIR | {"chosen": PAIR["rejected"], "rejected": PAIR["chosen"]}, PAIR
    )
    done = call("data", "filter", path, "kept.jsonl", "--min-margin", "2")
    assert done.out.splitlines()[0] == "kept.jsonl: 2 of 8 pairs"
    assert {*done.out.splitlines()[1:]} == {
        "left out: 1 × pairs with equal scores",
        "left out: 1 × pairs whose rejected answer has the higher score",
        "left out: 2 × pairs that are ranked both ways",
        "left out: 1 × pairs that are there twice",
        "left out: 1 × pairs whose margin is below min_margin",
    }
    assert [pair.margin for pair in read_preferences("kept.jsonl")] == [2.0, 3.0]
    as_json = call("data", "filter", path, "b.jsonl", "--per-prompt", "1", "--json").json
    assert (as_json["read"], as_json["written"]) == (8, 3)


def test_filter_keeps_shps_ratio_and_its_tag(call: Call, home: Path) -> None:
    rows = [
        {"history": f"Why {n}?", "human_ref_A": "a", "human_ref_B": "b", "labels": 1, "score_ratio": ratio}
        for n, ratio in enumerate([1.5, 2.0, 3.0])
    ]
    done = call("data", "filter", written(home / "shp.jsonl", *rows), "kept.jsonl", "--score-ratio", "2", "--json")
    assert done.json["left_out"] == {"pairs whose score ratio is too low": 2}
    assert read_preferences("kept.jsonl")[0].tags == {"score_ratio": "3.0"}


def test_a_ratio_that_no_pair_has_is_told(call: Call, home: Path) -> None:
    done = call("data", "filter", written(home / "a.jsonl", PAIR), "kept.jsonl", "--score-ratio", "2")
    assert done.code == 0 and "note: --score-ratio had nothing to go by: none of the 1 pairs" in done.out


def test_filter_counts_tokens_by_the_models_tokenizer(call: Call, home: Path, tiny_checkpoint: Path) -> None:
    path = written(home / "a.jsonl", PAIR, PAIR | {"prompt": "Why, " * 90 + "why?"})
    order = ["data", "filter", path, "kept.jsonl", "--max-prompt-tokens", "50"]
    assert call(*order).one_line == "error: a limit in tokens needs --model, whose tokenizer counts them"
    done = call(*order, "--model", str(tiny_checkpoint))
    assert done.out.splitlines() == ["kept.jsonl: 1 of 2 pairs", "left out: 1 × pairs with a prompt that is too long"]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--min-margin", "9"], "the filters leave none of the 1 pairs"),
        (["--min-margin", "-1"], "--min-margin"),
        (["--model", "x"], "no limit in tokens is set"),
    ],
)
def test_a_filter_that_means_nothing_is_one_line(call: Call, home: Path, options: list[str], said: str) -> None:
    done = call("data", "filter", written(home / "a.jsonl", PAIR), "kept.jsonl", *options)
    assert done.code == 2 and said in done.one_line and not (home / "kept.jsonl").exists()


def test_contamination_names_the_row_the_item_and_the_words(call: Call, mixed: str) -> None:
    done = call("data", "contamination", mixed, "--suite", "demo")
    assert done.code == 0
    assert "2 of 3 prompts share 8 words in a row with a benchmark (66.67%)" in done.out
    found = call("data", "contamination", mixed, "--suite", "demo", "--json").json
    assert (found["prompts"], found["contaminated"], found["written"], found["missing"]) == (3, 2, None, [])
    assert {(hit["row"], hit["benchmark"], hit["item"]) for hit in found["hits"]} == {
        (2, "demo-arithmetic", 0),
        (3, "demo-chat", 0),
    }
    hit = next(hit for hit in found["hits"] if hit["row"] == 2 and hit["n"] == 13)
    assert hit["shared"] == "mia has 2 pears her uncle gives her 3 more pears how many"
    counts = {(each["benchmark"], each["n"]): (each["prompts"], each["items"]) for each in found["overlaps"]}
    assert counts["demo-arithmetic", 8] == (1, 1) and counts["demo-code", 13] == (0, 0)


def test_rows_without_hits_are_written_as_they_were(call: Call, mixed: str, home: Path) -> None:
    done = call("data", "contamination", mixed, "--suite", "demo", "--drop-contaminated", "clean.jsonl")
    assert "clean.jsonl: 1 rows, without 2 that share words with a benchmark" in done.out
    assert json.loads((home / "clean.jsonl").read_text()) == {"prompt": "Name three rivers of Spain.", "id": 7}
    again = call("data", "contamination", mixed, "--suite", "demo", "--drop-contaminated", "clean.jsonl")
    assert (again.code, again.one_line) == (2, "error: clean.jsonl is there already: choose another name")


def test_the_training_prompts_that_are_packaged_are_clean(call: Call, home: Path) -> None:
    path = written(home / "demo.jsonl", *demo_rows("prompts"))
    assert call("data", "contamination", path, "--suite", "demo", "--n", "8", "--json").json["hits"] == []


def test_the_index_is_made_once_and_again_when_it_is_broken(call: Call, mixed: str, home: Path) -> None:
    first = call("data", "contamination", mixed, "--suite", "demo", "--json")
    (kept,) = (home / "cache" / "contamination").iterdir()
    second = call("data", "contamination", mixed, "--suite", "demo", "--json")
    assert "questions: 4/4" in first.err and "questions" not in second.err
    assert first.json == second.json
    kept.write_bytes(kept.read_bytes()[:100])
    assert call("data", "contamination", mixed, "--suite", "demo", "--json").json == first.json
    call("data", "contamination", mixed, "--suite", "demo", "--n", "9", "--json")
    assert len(list(kept.parent.iterdir())) == 2


def test_benchmarks_without_data_are_named_and_the_others_are_compared(
    call: Call, mixed: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    done = call("data", "contamination", mixed, "--suite", "demo,gsm8k,arena_hard")
    assert "not compared, for want of data: gsm8k, arena_hard (rlhf-bench suites fetch gsm8k arena_hard)" in done.out
    assert "2 of 3 prompts share 8 words" in done.out
    none = call("data", "contamination", mixed, "--suite", "gsm8k")
    assert (none.code, none.one_line) == (2, "error: no data for gsm8k: run `rlhf-bench suites fetch gsm8k`")


def test_koalas_prompts_are_found_in_alpaca_eval(
    call: Call, mirror: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RLHF_BENCH_DATA", str(mirror))
    path = str(mirror / "training" / "koala_test_prompts.jsonl")
    suites = "alpaca_eval,mt_bench,arena_hard"
    done = call("data", "contamination", path, "-s", suites, "--drop-contaminated", "clean.jsonl", "--json").json
    assert (done["prompts"], done["contaminated"], done["written"]) == (180, 156, 24)
    assert {hit["benchmark"] for hit in done["hits"]} == {"alpaca_eval"}
    clean = call("data", "contamination", "clean.jsonl", "-s", suites, "--json").json
    assert (clean["prompts"], clean["contaminated"]) == (24, 0)


@pytest.mark.parametrize("n", ["", "four", "4", "8,", "13,0", "-8", "101"])
def test_numbers_of_words_that_mean_nothing_are_one_line(call: Call, mixed: str, n: str) -> None:
    done = call("data", "contamination", mixed, "--suite", "demo", f"--n={n}")
    assert (done.code, done.one_line) == (2, f"error: --n {n}: give numbers of words from 5 to 100, as in 8,13")


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (("show", "none.jsonl"), "no file none.jsonl"),
        (("show", "a.jsonl", "--as", "ranked"), "a.jsonl gives no ranked answers: 1 missing column"),
        (
            ("show", "a.jsonl", "--format", "preferences"),
            "no data format named 'preferences'. Did you mean 'preference'",
        ),
        (("convert", "a.jsonl", "b.txt"), "its suffix must be one of .jsonl"),
        (("convert", "a.jsonl", "a.jsonl"), "a.jsonl is there already"),
        (("convert", "a.jsonl", "b.jsonl", "--to", "alpaca"), "no format to write preferences named 'alpaca'"),
        (("contamination", "a.jsonl", "--suite", "chta"), "'chta'"),
        (("contamination", "a.jsonl", "--format", "messages"), "row 1: messages is missing"),
    ],
)
def test_a_mistake_is_one_line(call: Call, home: Path, args: tuple[str, ...], said: str) -> None:
    written(home / "a.jsonl", PAIR)
    done = call("data", *args)
    assert done.code == 2
    assert said in done.one_line
