"""What is written in a layout of others is read back as it was, from every kind of file."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rlhf_bench.harness.errors import Fault, MissingData, UnknownName, UserError
from rlhf_bench.harness.types import Conversation, Message, Preference, Request, Sample
from rlhf_bench.trainers.data import (
    Ranked,
    read_conversations,
    read_preferences,
    read_prompts,
    read_ranked,
    write,
)
from rlhf_bench.trainers.data.formats import recognise
from rlhf_bench.trainers.data.sources import raw_rows
from rlhf_bench.trainers.data.write import WRITERS

FILES = ("a.jsonl", "a.json", "a.csv", "a.parquet", "a.jsonl.gz", "a.json.gz", "a.csv.gz")
AWKWARD = ["a\nb", "\r\n,x", '"', "x\x00y", "\u2028y", "7", "[1]", "true", " lead", "trail \n", "{}", "é\ufeff"]
TEXT = st.sampled_from(AWKWARD) | st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=9).map(
    lambda text: text if text.strip() else f"{text}x"
)
ROLES = ("user", "assistant")


@st.composite
def prompts(draw: st.DrawFn, system: bool = True, most: int = 2) -> Conversation:
    count = 2 * draw(st.integers(0, most)) + 1
    said = [Message(ROLES[place % 2], draw(TEXT)) for place in range(count)]  # type: ignore[arg-type]
    return tuple([Message("system", draw(TEXT)), *said] if system and draw(st.booleans()) else said)


NUMBERS = st.floats(-1e6, 1e6) | st.floats(allow_nan=False, allow_infinity=False)
TAGS = st.dictionaries(st.text(max_size=4).filter(str.isprintable), TEXT, max_size=2)


def pairs(prompt: st.SearchStrategy[Conversation]) -> st.SearchStrategy[Preference]:
    answers = st.lists(TEXT, min_size=2, max_size=2, unique=True)
    return st.builds(
        lambda said, texts, margin, tags: Preference(said, *texts, margin, tags), prompt, answers, NUMBERS, TAGS
    )


def samples(said: Sequence[Conversation], references: Sequence[str]) -> list[Sample]:
    asked = zip(said, references, strict=True)
    return [Sample(str(n), (Request(str(n), prompt),), reference) for n, (prompt, reference) in enumerate(asked)]


@st.composite
def ranked(draw: st.DrawFn) -> Ranked:
    count = draw(st.integers(1, 4))
    rewards = st.lists(st.none() | NUMBERS, min_size=count, max_size=count)
    reasons: st.SearchStrategy[Any] = st.lists(
        st.sampled_from(["stop", "length", "error"]), min_size=count, max_size=count
    )
    answers = st.lists(TEXT | st.just(""), min_size=count, max_size=count)
    return Ranked(draw(prompts()), tuple(draw(answers)), tuple(draw(rewards)), tuple(draw(reasons)))


ANY_PROMPT, ONE_TURN, NO_SYSTEM = prompts(), prompts(system=False, most=0), prompts(system=False)
CONVERSATIONS = st.builds(lambda said, answer: (*said, Message("assistant", answer)), ANY_PROMPT, TEXT)
CASES: list[tuple[str, str, Callable[..., Any], st.SearchStrategy[Any]]] = [
    ("preferences", "preference", read_preferences, pairs(ANY_PROMPT)),
    ("preferences", "plain", read_preferences, pairs(ONE_TURN)),
    ("preferences", "implicit", read_preferences, pairs(ANY_PROMPT)),
    ("preferences", "hh-rlhf", read_preferences, pairs(NO_SYSTEM)),
    ("preferences", "sharegpt", read_preferences, pairs(ANY_PROMPT)),
    *(("conversations", form, read_conversations, CONVERSATIONS) for form in WRITERS["conversations"]),
    *(("prompts", form, read_prompts, st.tuples(ANY_PROMPT, TEXT | st.just(""))) for form in WRITERS["prompts"]),
    ("ranked answers", "rlhflow", read_ranked, ranked()),
]


def test_every_format_that_can_be_written_is_tried() -> None:
    assert {(kind, form) for kind, form, *_ in CASES} == {(kind, form) for kind in WRITERS for form in WRITERS[kind]}


@pytest.mark.parametrize(("kind", "form", "read", "rows"), CASES, ids=[f"{kind} {form}" for kind, form, *_ in CASES])
@given(data=st.data(), file=st.sampled_from(FILES))
@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_what_is_written_is_read_back(
    tmp_path: Path, kind: str, form: str, read: Any, rows: st.SearchStrategy[Any], data: st.DataObject, file: str
) -> None:
    drawn = data.draw(st.lists(rows, min_size=1, max_size=4))
    if kind == "prompts":
        drawn = samples([said for said, _ in drawn], [reference for _, reference in drawn])
    write(drawn, tmp_path / file, form)
    back = read(tmp_path / file)
    assert back == drawn
    assert back.skipped == {}
    assert not list(tmp_path.glob("*.tmp"))


@pytest.mark.parametrize("form", WRITERS["preferences"])
def test_a_folder_of_datasets_is_read_back_and_so_are_its_splits(tmp_path: Path, form: str) -> None:
    rows = [Preference((Message("user", f"Why {n}?"),), "a", "b", n / 3, {"n": str(n)} if n else {}) for n in range(3)]
    write(rows, tmp_path / "saved", form)
    assert read_preferences(tmp_path / "saved") == rows
    with pytest.raises(UserError, match="is there already: choose another folder"):
        write(rows, tmp_path / "saved", form)


def test_a_split_is_named_after_the_folder(tmp_path: Path) -> None:
    import datasets

    rows = {name: datasets.Dataset.from_list([{"prompt": name}]) for name in ("train", "test", "more")}
    datasets.DatasetDict(rows).save_to_disk(str(tmp_path / "all"))
    datasets.DatasetDict({"only": rows["test"]}).save_to_disk(str(tmp_path / "one"))
    assert read_prompts(tmp_path / "all")[0].prompt == (Message("user", "train"),)
    assert read_prompts(f"{tmp_path}/all:test")[0].prompt == (Message("user", "test"),)
    assert read_prompts(tmp_path / "one")[0].prompt == (Message("user", "test"),)
    with pytest.raises(UserError, match="has the splits train, test, more: name one"):
        read_prompts(f"{tmp_path}/all:valid")


def test_a_folder_of_data_files_is_read_as_the_hub_would_give_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    folder = tmp_path / "clone" / "data"
    for split, prompt in (("train", "Why?"), ("test", "Who?")):
        write(samples([(Message("user", prompt),)], [""]), folder / f"{split}-00000-of-00001.parquet")
    assert read_prompts(tmp_path / "clone")[0].prompt == (Message("user", "Why?"),)
    assert read_prompts(f"{tmp_path}/clone:test")[0].prompt == (Message("user", "Who?"),)
    (tmp_path / "clone" / "clone.py").write_text("raise SystemExit('code that came with data was run')")
    with pytest.raises(MissingData, match=r"clone cannot be loaded \(Dataset scripts are no longer supported"):
        read_prompts(tmp_path / "clone")
    (tmp_path / "empty").mkdir()
    with pytest.raises(MissingData, match="empty cannot be loaded"):
        read_prompts(tmp_path / "empty")


@pytest.mark.parametrize(
    ("form", "pair", "said"),
    [
        ("plain", Preference((Message("system", "x"), Message("user", "y")), "a", "b"), "has 2 turns"),
        ("hh-rlhf", Preference((Message("system", "x"), Message("user", "y")), "a", "b"), "a system turn"),
        ("hh-rlhf", Preference((Message("user", "y\n\nAssistant: z"),), "a", "b"), "a turn holds"),
    ],
)
def test_what_a_format_cannot_hold_is_named(tmp_path: Path, form: str, pair: Preference, said: str) -> None:
    with pytest.raises(UserError, match=f"row 1 cannot be written as {form}: .*{said}"):
        write([pair], tmp_path / "a.jsonl", form)
    assert not list(tmp_path.iterdir())


def test_where_and_as_what_to_write_is_checked(tmp_path: Path) -> None:
    pair = Preference((Message("user", "y"),), "a", "b")
    with pytest.raises(UnknownName, match=r"no format to write preferences named .*Did you mean 'sharegpt'"):
        write([pair], tmp_path / "a.jsonl", "sharedgpt")
    with pytest.raises(UserError, match=r"its suffix must be one of \.jsonl, \.json, \.csv, \.parquet"):
        write([pair], tmp_path / "a.txt")
    with pytest.raises(UserError, match=r"its suffix must be one of"):  # and not a folder of this name
        write([pair], tmp_path / "a.gz")
    with pytest.raises(UserError, match="there is nothing to write"):
        write([], tmp_path / "a.jsonl")
    (tmp_path / "file").write_text("")
    with pytest.raises(Fault, match="cannot write"):
        write([pair], tmp_path / "file" / "a.jsonl")


def test_a_file_is_replaced_whole_or_stays_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    write([Preference((Message("user", "y"),), "a", "b")], path)
    before = path.read_bytes()
    with pytest.raises(UserError, match="cannot hold these rows"):
        write([Preference((Message("user", "y"),), "a", "b", float("nan"))], path)
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["a.jsonl"]


def test_what_is_written_is_what_trl_and_rlhflow_read(tmp_path: Path) -> None:
    pair = Preference((Message("user", "Why?"),), "Because.", "No.", 2.0)
    write([pair], tmp_path / "a.jsonl")
    (line,) = (tmp_path / "a.jsonl").read_text().splitlines()
    assert json.loads(line) == {
        "prompt": [{"role": "user", "content": "Why?"}],
        "chosen": [{"role": "assistant", "content": "Because."}],
        "rejected": [{"role": "assistant", "content": "No."}],
        "margin": 2.0,
    }
    write([Ranked(pair.prompt, ("a", "b"), (0.5, None), ("stop", "error"))], tmp_path / "b.json")
    ((_, row),) = raw_rows(tmp_path / "b.json")
    assert not isinstance(row, Exception)
    assert (recognise(row) or pytest.fail("not recognised")).name == "rlhflow"
    assert row["rewards"] == [0.5, None]
