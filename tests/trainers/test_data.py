"""Files to what is trained on: the layouts that people have are read, and a bad row is named or counted."""

from __future__ import annotations

import csv
import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rlhf_bench.harness.errors import MissingData, UnknownName, UserError
from rlhf_bench.harness.types import Conversation, Message, Preference
from rlhf_bench.trainers.data import read_conversations, read_preferences, read_prompts, read_ranked

GOOD: dict[str, Any] = {"prompt": "Why?", "chosen": "Because.", "rejected": "No."}
WHY, BECAUSE, NO = Message("user", "Why?"), Message("assistant", "Because."), Message("assistant", "No.")
PAIR = Preference((WHY,), "Because.", "No.")
TURNS = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Why?"}]
LONG: Conversation = (Message("system", "Be brief."), WHY, BECAUSE, Message("user", "And?"), NO)


def turns(*said: Message) -> list[dict[str, str]]:
    return [{"role": turn.role, "content": turn.content} for turn in said]


def spoken(*said: Message) -> list[dict[str, str]]:
    names = {"system": "system", "user": "human", "assistant": "gpt"}
    return [{"from": names[turn.role], "value": turn.content} for turn in said]


def written(path: Path, *rows: Any) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("form", "row"),
    [
        ("preference", GOOD),
        ("preference", {"prompt": turns(WHY), "chosen": turns(BECAUSE), "rejected": turns(NO)}),
        ("preference", {"conversations": spoken(WHY), "chosen": spoken(BECAUSE)[0], "rejected": spoken(NO)[0]}),
        ("preference", {"instruction": "Why?", "input": "", "chosen": "Because.", "rejected": "No."}),
        ("preference", {"prompt": "Why?", "chosen": turns(WHY, BECAUSE), "rejected": turns(WHY, NO)}),
        ("implicit", {"chosen": turns(WHY, BECAUSE), "rejected": turns(WHY, NO)}),
        ("implicit", {"chosen": "Why? Because.", "rejected": "Why? No."}),
        ("hh-rlhf", {side: f"\n\nHuman: Why?\n\nAssistant: {GOOD[side]}" for side in ("chosen", "rejected")}),
        ("shp", {"history": "Why?", "human_ref_A": "No.", "human_ref_B": "Because.", "labels": 0}),
    ],
)
def test_every_layout_of_a_pair_is_the_same_pair(tmp_path: Path, form: str, row: dict[str, Any]) -> None:
    read = read_preferences(written(tmp_path / "a.jsonl", row))
    assert read == [PAIR]
    assert read.formats == {form: 1}
    assert read_conversations(tmp_path / "a.jsonl") == [(WHY, BECAUSE)]
    assert read_prompts(tmp_path / "a.jsonl")[0].prompt == (WHY,)


@pytest.mark.parametrize(
    ("form", "row"),
    [
        ("messages", {"messages": turns(*LONG)}),
        ("messages", {"prompt": "Why?", "messages": turns(*LONG)}),
        ("messages", {"messages": [{"role": m.role, "content": [{"type": "text", "text": m.content}]} for m in LONG]}),
        ("sharegpt", {"conversations": spoken(*LONG)}),
        ("sharegpt", {"conversations": spoken(*LONG[1:]), "system": "Be brief."}),
        ("prompt-completion", {"prompt": turns(*LONG[:-1]), "completion": turns(NO)}),
        ("prompt-completion", {"context_messages": turns(*LONG[:-1]), "response": "No."}),
        ("unpaired", {"prompt": turns(*LONG[:-1]), "completion": "No.", "label": True}),
        ("unpaired", {"messages": turns(*LONG), "label": 1}),
        (
            "alpaca",
            {
                "instruction": "And?",
                "input": "",
                "output": "No.",
                "system": "Be brief.",
                "history": [["Why?", "Because."]],
            },
        ),
    ],
)
def test_every_layout_of_a_conversation_is_the_same_conversation(tmp_path: Path, form: str, row: Any) -> None:
    read = read_conversations(written(tmp_path / "a.jsonl", row))
    assert read == [LONG]
    assert read.formats == {form: 1}
    (prompt,) = read_prompts(tmp_path / "a.jsonl")
    assert prompt.prompt == LONG[:-1]
    assert prompt.reference == "No."


def test_alpacas_input_follows_the_instruction_on_its_own_line(tmp_path: Path) -> None:
    row = {"instruction": "Translate.", "input": "Guten Tag", "output": "Good day"}
    (said,) = read_conversations(written(tmp_path / "a.jsonl", row))
    assert said[0] == Message("user", "Translate.\nGuten Tag")


def test_ultrafeedback_gives_every_pair_of_unequal_scores_and_counts_the_others(tmp_path: Path) -> None:
    completions = [
        {"response": text, "overall_score": score} for text, score in (("a", 7.0), ("b", 9), ("c", 7.0), ("d", 1.5))
    ]
    path = written(tmp_path / "a.jsonl", {"instruction": "Why?", "completions": completions, "source": "x"})
    read = read_preferences(path)
    assert {(pair.chosen, pair.rejected, pair.margin) for pair in read} == {
        ("b", "a", 2.0),
        ("b", "c", 2.0),
        ("b", "d", 7.5),
        ("a", "d", 5.5),
        ("c", "d", 5.5),
    }
    assert read.skipped == {"pairs with equal scores": 1}
    assert read.numbers == [1] * 5
    assert read_ranked(path)[0].rewards == (7.0, 9.0, 7.0, 1.5)


def test_rlhflows_rewards_are_read_as_they_were_ranked(tmp_path: Path) -> None:
    row = {"context_messages": TURNS, "responses": ["a", "", "c"], "rewards": [1, 2.5, None]}
    (ranked,) = read_ranked(written(tmp_path / "a.jsonl", row))
    assert ranked.prompt == (Message("system", "Be brief."), WHY)
    assert (ranked.responses, ranked.rewards) == (("a", "", "c"), (1.0, 2.5, None))
    assert ranked.finish_reasons == ("stop",) * 3
    with pytest.raises(UserError, match="2 answers that are empty or without a reward"):
        read_preferences(tmp_path / "a.jsonl")


def test_an_answer_that_was_cut_is_never_chosen(tmp_path: Path) -> None:
    row = {
        "prompt": "Why?",
        "responses": ["cut", "whole", "worse"],
        "rewards": [3, 2, 1],
        "finish_reasons": ["length", "stop", "stop"],
    }
    read = read_preferences(written(tmp_path / "a.jsonl", row))
    assert [(pair.chosen, pair.rejected) for pair in read] == [("whole", "worse")]
    assert read.skipped == {"pairs whose better answer was cut": 2}


def test_the_ratio_of_shp_is_kept_for_its_filter(tmp_path: Path) -> None:
    row = {"history": "Why?", "human_ref_A": "A", "human_ref_B": "B", "labels": 1, "score_A": 9, "score_B": 4}
    (pair,) = read_preferences(written(tmp_path / "a.jsonl", row | {"score_ratio": 2.25}))
    assert (pair.chosen, pair.margin, pair.tags) == ("A", 5.0, {"score_ratio": "2.25"})


def test_good_and_bad_answers_to_one_prompt_are_pairs(tmp_path: Path) -> None:
    rows = [
        {"prompt": prompt, "completion": answer, "label": label}
        for prompt, answer, label in (("P", "g1", True), ("Q", "g", True), ("P", "b", False), ("P", "g2", True))
    ]
    read = read_preferences(written(tmp_path / "a.jsonl", *rows))
    assert [(pair.chosen, pair.rejected) for pair in read] == [("g1", "b"), ("g2", "b")]
    assert read.skipped == {"prompts with good or bad answers only": 1}
    assert read.numbers == [1, 4]
    good = read_conversations(tmp_path / "a.jsonl")
    assert [said[-1].content for said in good] == ["g1", "g", "g2"]
    assert good.skipped == {"answers with a bad label": 1}


@pytest.mark.parametrize("names", [("score_chosen", "score_rejected"), ("chosen-rating", "rejected-rating")])
def test_the_margin_is_the_difference_of_the_scores(tmp_path: Path, names: tuple[str, str]) -> None:
    path = written(tmp_path / "a.jsonl", GOOD | dict(zip(names, (8.5, 6), strict=True)), GOOD | {"margin": 3})
    assert [pair.margin for pair in read_preferences(path)] == [2.5, 3.0]


FAULTS: list[tuple[dict[str, Any], str, str]] = [
    ({"chosen": None}, "chosen is missing", "missing column"),
    ({"prompt": ""}, "prompt is ''", "empty text"),
    ({"prompt": [{"role": "robot", "content": "x"}]}, "prompt turn 1 has role 'robot'", "unknown role"),
    ({"rejected": 7}, "rejected is 7: give text", "no text"),
    ({"chosen": " \n"}, r"chosen is ' \\n'", "empty answer"),
    ({"chosen": "\ud800 cut"}, "chosen holds half of a character", "no text"),
    ({"chosen": "No."}, "chosen and rejected are the same answer, 'No.'", "chosen = rejected"),
    ({"margin": "wide"}, "margin is 'wide', not a number", "no number"),
    ({"margin": float("nan")}, "margin is nan, which is not finite", "number that is not finite"),
    ({"margin": 10**400}, "which is not finite", "number that is not finite"),
    ({"prompt": turns(Message("system", "Be brief."))}, "prompt has no user turn", "no user turn"),
    ({"prompt": turns(WHY, WHY)}, "prompt turn 2 is the user's.*two user turns in a row", "turns out of order"),
    ({"prompt": turns(BECAUSE, WHY)}, "the assistant speaks first", "turns out of order"),
    ({"prompt": turns(WHY, BECAUSE)}, "ends with the assistant's turn", "prompt without a question"),
    ({"prompt": TURNS[::-1]}, "turn 2 is a system turn", "turns out of order"),
    ({"prompt": [*TURNS, {"role": "assistant"}]}, r"turn 3 \(assistant\) is missing", "missing column"),
    ({"prompt": [{"role": "user", "content": [{"type": "image"}]}]}, "a part that is no text", "no text"),
    (
        {"prompt": "<|im_start|>user\nWhy?<|im_end|>"},
        "a chat template rendered already",
        "prompt with a template in it",
    ),
    ({"prompt": "<s>[INST] Why? [/INST]"}, "a chat template rendered already", "prompt with a template in it"),
    ({"chosen": turns(WHY)}, "give text, or one assistant turn", "no text"),
    ({"tags": [1]}, r"tags is \[1\]: give an object of text", "no text"),
]


@pytest.mark.parametrize(("fault", "said", "reason"), FAULTS)
def test_a_bad_row_is_named_with_its_fault_or_skipped_and_counted(
    tmp_path: Path, fault: dict[str, Any], said: str, reason: str
) -> None:
    path = written(tmp_path / "a.jsonl", GOOD, GOOD | fault, GOOD)
    with pytest.raises(UserError, match=f"a.jsonl row 2: .*{said}") as error:
        read_preferences(path)
    assert "\n" not in str(error.value)
    read = read_preferences(path, on_bad_row="skip")
    assert read == [PAIR, PAIR]
    assert read.skipped == {reason: 1}
    assert read.numbers == [1, 3]
    assert "a.jsonl row 2: " in read.fault


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"messages": turns(WHY)}, "messages ends with the user's turn: the last must be the assistant's"),
        ({"messages": turns(*LONG[2:])}, "the assistant speaks first"),
        ({"messages": []}, r"messages is \[\]"),
        ({"conversations": [{"from": "gpt"}]}, "turn 1 .assistant. is missing"),
        ({"prompt": "Why?", "completion": ""}, "completion is ''"),
        ({"prompt": "Why?", "completion": "Because.", "label": "yes"}, "label is 'yes': give true or false"),
        ({"instruction": "x", "output": "y", "history": ["z"]}, "history is .*give pairs of question and answer"),
    ],
)
def test_a_conversation_that_cannot_be_learned_from_is_named(tmp_path: Path, row: Any, said: str) -> None:
    with pytest.raises(UserError, match=f"row 1: .*{said}"):
        read_conversations(written(tmp_path / "a.jsonl", row))


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"responses": ["a"], "rewards": [1, 2]}, "there are 1 responses and 2 rewards"),
        ({"responses": ["a"], "rewards": [float("inf")]}, "reward is inf, which is not finite"),
        ({"responses": ["a"], "rewards": ["1"]}, "reward is '1', not a number"),
        ({"responses": [None], "rewards": [1]}, r"responses is \[None\]: give a list of text"),
        ({"responses": ["a"], "rewards": [1], "finish_reasons": ["tired"]}, "give stop, length or error"),
    ],
)
def test_rewards_that_do_not_fit_are_named(tmp_path: Path, row: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=f"row 1: .*{said}"):
        read_ranked(written(tmp_path / "a.jsonl", {"prompt": "Why?", **row}))


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"chosen": turns(WHY, BECAUSE), "rejected": turns(LONG[3], NO)}, "differ before their last turn"),
        ({"chosen": "Because.", "rejected": "No."}, "begin with no words in common"),
        (
            {"chosen": "\n\nHuman: Why?\n\nAssistant:", "rejected": "\n\nHuman: Why?\n\nAssistant: No."},
            "turn 2 .* is ''",
        ),
        ({"chosen": turns(WHY, BECAUSE), "rejected": turns(WHY, BECAUSE)}, "the same answer"),
        ({"chosen": "Why? No.", "rejected": "Why? No."}, "the same text"),
    ],
)
def test_a_pair_without_a_prompt_of_its_own_must_share_one(tmp_path: Path, row: Any, said: str) -> None:
    with pytest.raises(UserError, match=f"row 1: .*{said}"):
        read_preferences(written(tmp_path / "a.jsonl", row))


@pytest.mark.parametrize(
    ("chosen", "rejected", "split"),
    [
        ("The sky is blue.", "The sky is green.", ("The sky is", "blue.", "green.")),  # as trl.extract_prompt, trimmed
        ("It is blue", "It is black", ("It is", "blue", "black")),  # where that gives "It is bl"
        ("It is so", "It is so good", ("It is", "so", "so good")),
    ],
)
def test_the_prompt_of_two_texts_is_what_both_begin_with_in_whole_words(
    tmp_path: Path, chosen: str, rejected: str, split: tuple[str, str, str]
) -> None:
    (pair,) = read_preferences(written(tmp_path / "a.jsonl", {"chosen": chosen, "rejected": rejected}))
    assert (pair.prompt[0].content, pair.chosen, pair.rejected) == split


def test_prompts_are_read_under_any_of_their_names_and_numbered_by_row(tmp_path: Path) -> None:
    rows = [
        {"prompt": "Why?"},
        {"context_messages": TURNS},
        {"messages": TURNS},
        {"prompt": ""},
        {"instruction": "Why?", "output": "So."},
        {"question": "Why?"},
    ]
    samples = read_prompts(written(tmp_path / "p.jsonl", *rows), on_bad_row="skip")
    assert [sample.prompt[-1] for sample in samples] == [WHY] * 5
    assert samples[3].reference == "So."
    assert [sample.id for sample in samples] == ["0", "1", "2", "4", "5"]
    assert samples.skipped == {"empty text": 1}


def test_data_of_another_kind_say_what_is_wanted(tmp_path: Path) -> None:
    path = written(tmp_path / "p.jsonl", {"id": 1, "prompt": "Why?"})
    said = r"its columns \(id, prompt\) do not give preferences: give prompt, chosen and rejected"
    with pytest.raises(UserError, match=f"row 1: {said}"):
        read_preferences(path)
    with pytest.raises(UserError, match=rf"p.jsonl gives no preferences: 1 missing column \(.*row 1: {said}"):
        read_preferences(path, on_bad_row="skip")


def test_a_named_format_is_followed_and_an_unknown_one_offers_the_nearest(tmp_path: Path) -> None:
    path = written(tmp_path / "a.jsonl", {"prompt": "Why?", "messages": turns(*LONG), "completion": "So."})
    assert read_conversations(path, form="messages") == [LONG]
    assert read_conversations(path, form="prompt-completion")[0][-1].content == "So."
    with pytest.raises(UserError, match="row 1: chosen is missing"):
        read_preferences(path, form="preference")
    with pytest.raises(UserError, match="format 'messages' gives conversations, prompts, and preferences are wanted"):
        read_preferences(path, form="messages")
    with pytest.raises(UnknownName, match="Did you mean 'sharegpt'"):
        read_conversations(path, form="shargpt")


def test_a_json_array_a_gzipped_file_a_table_and_lines_read_alike(tmp_path: Path) -> None:
    lines = read_preferences(written(tmp_path / "a.jsonl", GOOD))
    (tmp_path / "a.json").write_text("\ufeff" + json.dumps([GOOD], indent=1), encoding="utf-8")
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(json.dumps(GOOD).encode()))
    with (tmp_path / "a.tsv").open("w", newline="") as file:
        csv.writer(file, delimiter="\t").writerows([GOOD.keys(), GOOD.values()])
    old = {"type": "text_only", "instances": [GOOD]}
    (tmp_path / "old.json").write_text(json.dumps(old), encoding="utf-8")
    for name in ("a.json", "a.jsonl.gz", "a.tsv", "old.json"):
        assert read_preferences(tmp_path / name) == lines == [PAIR]


def test_a_line_separator_inside_a_text_ends_no_row(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps(GOOD | {"chosen": "one\u2028two\x85"}, ensure_ascii=False), encoding="utf-8")
    assert read_preferences(path)[0].chosen == "one\u2028two\x85"


@pytest.mark.parametrize("text", ["{not json", "[1, 2", '"text"\n', "", "\n\n", "null", '{"prompt": {"a": 1}}'])
def test_what_is_no_data_is_one_line(tmp_path: Path, text: str) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(text, encoding="utf-8")
    for read in (read_preferences, read_conversations, read_prompts, read_ranked):
        for on_bad_row in ("fail", "skip"):
            with pytest.raises(UserError) as error:
                read(path, on_bad_row=on_bad_row)  # type: ignore[operator]
            assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "content",
    [b"\x1f\x8b broken", b"PAR1 broken", b"\xff\xfe\x00", gzip.compress(b'{"prompt": "x"}', mtime=0)[:-6]],
    ids=["no gzip", "no parquet", "no UTF-8", "cut gzip"],
)
def test_a_broken_file_is_one_line(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.jsonl.gz").write_bytes(content)
    with pytest.raises(UserError, match=r"a\.jsonl\.gz (cannot be read|is not UTF-8)") as error:
        read_prompts(tmp_path / "a.jsonl.gz")
    assert "\n" not in str(error.value)


def test_a_broken_line_is_skipped_and_counted(tmp_path: Path) -> None:
    path = written(tmp_path / "a.jsonl", GOOD, GOOD)
    path.write_text(path.read_text() + '{"prompt": "cut', encoding="utf-8")
    with pytest.raises(UserError, match="row 3: it is not JSON"):
        read_preferences(path)
    assert read_preferences(path, on_bad_row="skip").skipped == {"no JSON": 1}


def test_deeply_nested_json_is_a_bad_row(tmp_path: Path) -> None:
    path = written(tmp_path / "a.jsonl", GOOD)
    path.write_text(path.read_text() + '{"prompt": ' + "[" * 100_000 + "\n", encoding="utf-8")
    assert read_preferences(path, on_bad_row="skip").skipped == {"no JSON": 1}


def test_scores_whose_difference_is_no_number_are_a_bad_row(tmp_path: Path) -> None:
    row = {"prompt": "Why?", "chosen": "a", "rejected": "b", "score_chosen": 1e308, "score_rejected": -1e308}
    with pytest.raises(UserError, match="row 1: the difference of the scores is inf, which is not finite"):
        read_preferences(written(tmp_path / "a.jsonl", row))


def test_half_a_character_in_a_ranked_answer_is_a_bad_row(tmp_path: Path) -> None:
    row = {"prompt": "Why?", "responses": ["So.", "cut \ud83d", ""], "rewards": [1.0, 2.0, 3.0]}
    path = written(tmp_path / "a.jsonl", row)
    with pytest.raises(UserError, match="row 1: response 2 holds half of a character"):
        read_preferences(path)
    path.write_text(path.read_text().replace("\\ud83d", ""), encoding="utf-8")
    assert [pair.chosen for pair in read_preferences(path)] == ["cut "]


def test_rewards_whose_difference_is_no_number_give_no_pair(tmp_path: Path) -> None:
    row = {"prompt": "Why?", "responses": ["a", "b", "c"], "rewards": [1e308, -1e308, 0]}
    read = read_preferences(written(tmp_path / "a.jsonl", row))
    assert [pair.margin for pair in read] == [1e308, 1e308]
    assert read.skipped["pairs whose scores differ by more than a number holds"] == 1


def test_a_column_that_is_there_twice_is_not_guessed_at(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("prompt,chosen,prompt,rejected\nWhy?,Because.,How?,No.\n")
    with pytest.raises(UserError, match=r"a\.csv cannot be read \(column 'prompt' is there twice\)"):
        read_preferences(tmp_path / "a.csv")


def test_the_folder_one_stands_in_is_read_and_an_empty_name_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written(tmp_path / "a.jsonl", GOOD)
    monkeypatch.chdir(tmp_path)
    assert len(read_preferences(".")) == 1
    with pytest.raises(UserError, match="the data's name is empty"):
        read_preferences("")


def test_a_missing_file_says_what_to_give(tmp_path: Path) -> None:
    with pytest.raises(MissingData, match=r"no file .*none\.jsonl: give a \.jsonl, \.json, \.csv or \.parquet file"):
        read_prompts(tmp_path / "none.jsonl")


def test_a_data_set_that_the_hub_does_not_give_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(MissingData, match="hf:nobody/nothing:train cannot be loaded") as error:
        read_prompts("hf:nobody/nothing:train")
    assert "\n" not in str(error.value)
    with pytest.raises(UserError, match="'hf:/etc': write it as hf:org/name"):
        read_prompts("hf:/etc")


@pytest.mark.parametrize(
    ("file", "read", "count", "skipped", "formats"),
    [
        ("alpaca_en_demo.json.gz", read_conversations, 999, {}, {"alpaca": 999}),
        ("dolly_hhrlhf_1000.jsonl.gz", read_conversations, 1000, {}, {"prompt-completion": 1000}),
        ("dpo_en_demo.json.gz", read_preferences, 300, {}, {"preference": 300}),
        ("fastchat_dummy_conversation.json.gz", read_conversations, 500, {}, {"sharegpt": 500}),
        ("koala_test_prompts.jsonl", read_prompts, 180, {}, {"prompt": 180}),
        ("kto_en_demo.json.gz", read_conversations, 150, {"answers with a bad label": 150}, {"unpaired": 300}),
        (
            "hh_rlhf_harmless_base.test.jsonl.gz",
            read_preferences,
            2299,
            {"empty turn": 4, "turns out of order": 4, "prompt without a question": 5},
            {"hh-rlhf": 2299},
        ),
    ],
)
def test_what_others_publish_is_read(
    mirror: Path,
    file: str,
    read: Callable[..., Any],
    count: int,
    skipped: dict[str, int],
    formats: dict[str, int],
) -> None:
    found = read(mirror / "training" / file, on_bad_row="skip")
    assert (len(found), found.skipped, found.formats) == (count, skipped, formats)


def test_hh_pairs_share_the_prompt_that_the_official_code_takes(mirror: Path) -> None:
    """eric-mitchell/direct-preference-optimization, extract_anthropic_prompt: up to the last "Assistant:"."""
    path = mirror / "training" / "hh_rlhf_harmless_base.test.jsonl.gz"
    rows = [json.loads(line) for line in gzip.decompress(path.read_bytes()).splitlines()]
    read = read_preferences(path, on_bad_row="skip")
    for number, pair in zip(read.numbers, read, strict=True):
        chosen = rows[number - 1]["chosen"]
        cut = chosen.rfind("\n\nAssistant:") + len("\n\nAssistant:")
        said = "".join(f"\n\n{'Human' if t.role == 'user' else 'Assistant'}: {t.content}" for t in pair.prompt)
        assert said + "\n\nAssistant:" == chosen[:cut]
        assert pair.chosen == chosen[cut:].removeprefix(" ")
        assert rows[number - 1]["rejected"].startswith(chosen[:cut])
