"""Contamination: hits are exactly what a slow definition says; templates, collisions and short items are no hits."""

from __future__ import annotations

import itertools
import unicodedata
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from rlhf_bench.harness import contamination
from rlhf_bench.harness.contamination import (
    COMMON,
    LINE,
    NS,
    Index,
    Overlap,
    build_index,
    contaminated,
    drop_contaminated,
    overlaps,
    words,
)

QUESTION = "Natalia sold clips to 48 of her friends in April, and then she sold half as many clips in May. How many?"
TEMPLATE = "Write a python function to check whether the given"


def slow_words(text: str) -> list[str]:
    """The definition, character by character."""
    lowered = unicodedata.normalize("NFKC", text).lower().replace("'", "").replace("’", "")
    found = "".join(" " if not each.isalnum() else f" {each} " if alone(each) else each for each in lowered)
    return found.split()


def alone(sign: str) -> bool:
    ranges = ("\u3040\u30ff", "\u3400\u4dbf", "\u4e00\u9fff", "\uf900\ufaff")
    return any(first <= sign <= last for first, last in ranges)


def has(text: Sequence[str], gram: Sequence[str]) -> bool:
    return any(list(text[at : at + len(gram)]) == list(gram) for at in range(len(text) - len(gram) + 1))


def slow(
    prompts: Sequence[str], texts: Mapping[str, Sequence[str]], ns: Sequence[int], common: int, templates: Sequence[str]
) -> set[tuple[int, str, int, int]]:
    """(prompt, benchmark, item, n) by the definition: every gram of every item against every prompt."""
    found = set()
    ignored = [slow_words(text) for text in templates]
    for name, items in texts.items():
        split = [slow_words(item) for item in items]

        def counts(gram: Sequence[str], split: Sequence[Sequence[str]] = split) -> bool:
            usual = sum(has(other, gram) for other in split) > common
            telling = any(len(word) > 1 and not word.isnumeric() for word in gram)
            return telling and not usual and not any(has(text, gram) for text in ignored)

        for (at, prompt), (item, said), n in itertools.product(enumerate(prompts), enumerate(split), ns):
            asked, lines = slow_words(prompt), [slow_words(line) for line in prompt.splitlines()]
            if len(said) >= n:
                grams = [said[i : i + n] for i in range(len(said) - n + 1)]
                hit = any(has(asked, gram) and counts(gram) for gram in grams)
            elif len(said) >= LINE:
                hit = has(asked, said) and counts(said)
            else:
                same = sum(other == said for other in split) <= common
                telling = any(len(word) > 1 and not word.isnumeric() for word in said)
                hit = said in lines and same and telling
            if hit:
                found.add((at, name, item, n))
    return found


WORD = st.sampled_from(["aa", "bb", "cc", "d", "7", "Ａa", "it's", "中", "don’t", "…", "\n"])
TEXT = st.lists(WORD, max_size=14).map(" ".join)
BORROWED = st.lists(st.tuples(st.sampled_from(range(8)), st.integers(0, 9), st.integers(1, 12)), max_size=3)


@st.composite
def cases(draw: st.DrawFn) -> tuple[list[str], dict[str, list[str]], list[str]]:
    """Benchmarks over few words, and prompts that hold stretches of their items."""
    texts = {name: draw(st.lists(TEXT, max_size=6)) for name in ("first", "second")}
    items = [item.split(" ") for each in texts.values() for item in each] or [["aa"]]
    prompts = []
    for _ in range(draw(st.integers(1, 3))):
        parts = [draw(TEXT)]
        for item, start, length in draw(BORROWED):
            parts.append(" ".join(items[item % len(items)][start : start + length]))
            parts.append(draw(st.sampled_from(["\n", " ", "zz"])))
        prompts.append(draw(st.sampled_from(["", "\n"])) + "".join(parts))
    return prompts, texts, draw(st.lists(TEXT, max_size=1))


@given(cases(), st.sampled_from([(5,), (8,), (5, 7), (8, 9), NS]), st.integers(1, 3))
@settings(max_examples=150, deadline=None)
@example((["a\nWho are you? b", "Who are you?"], {"first": ["who ARE you"], "second": []}, []), (8, 13), 1)
@example((["aa aa aa aa aa aa"], {"first": ["aa aa aa aa aa"], "second": []}, []), (5, 8), 1)
def test_hits_are_what_the_definition_says(
    case: tuple[list[str], dict[str, list[str]], list[str]], ns: tuple[int, ...], common: int
) -> None:
    prompts, texts, templates = case
    hits = contaminated(prompts, build_index(texts, ns, common=common, templates=templates))
    keys = [(hit.prompt, hit.benchmark, hit.item, hit.n) for hit in hits]
    assert set(keys) == slow(prompts, texts, ns, common, templates)
    assert len(keys) == len(set(keys))
    for hit in hits:
        gram, item = hit.gram.split(), slow_words(texts[hit.benchmark][hit.item])
        assert has(slow_words(prompts[hit.prompt]), gram) and has(item, gram)
        assert len(gram) == min(hit.n, len(item))


@given(cases())
@settings(max_examples=40, deadline=None)
def test_a_hash_collision_is_never_a_hit(case: tuple[list[str], dict[str, list[str]], list[str]]) -> None:
    prompts, texts, templates = case
    kept = contamination._codes
    contamination._codes = lambda count: np.zeros(count, dtype=np.uint64)  # every gram collides with every other
    try:
        hits = contaminated(prompts, build_index(texts, (5, 8), common=1, templates=templates))
    finally:
        contamination._codes = kept
    found = {(hit.prompt, hit.benchmark, hit.item, hit.n) for hit in hits}
    assert found == slow(prompts, texts, (5, 8), 1, templates)


@given(st.text(max_size=30) | TEXT)
@example("\u3040ア・ア")
def test_words_are_letters_and_digits_in_lower_case_after_nfkc(text: str) -> None:
    assert words(text) == slow_words(text)


def test_case_punctuation_line_breaks_and_width_change_nothing() -> None:
    index = build_index({"gsm8k": [QUESTION]})
    changed = f"Q:\n\n**{QUESTION.upper().replace(',', ';').replace(' ', '   ')}** ok"
    wide = "".join(chr(ord(sign) + 0xFEE0) if sign.isalpha() else sign for sign in QUESTION)
    for prompt in (changed, wide, QUESTION.replace(" ", "\n")):
        assert {(hit.item, hit.n) for hit in contaminated([prompt], index)} == {(0, 8), (0, 13)}
    assert contaminated([QUESTION.replace("clips", "pins").replace("April", "June")], index) == []


def test_the_matching_gram_is_the_first_of_the_prompt() -> None:
    index = build_index({"b": [QUESTION]}, (8,))
    (hit,) = contaminated(["Tell me: in April, and then she sold half as many clips in May"], index)
    assert hit.gram == "in april and then she sold half as"


def test_how_a_benchmark_asks_is_not_what_it_asks() -> None:
    items = [f"{TEMPLATE} number {word} is a value of its own sort." for word in ("one", "two", "six", "ten", "odd")]
    prompt = f"{TEMPLATE} string is empty."
    assert len(contaminated([prompt], build_index({"mbpp": items[:COMMON]}))) == COMMON
    usual = [*items, f"{TEMPLATE} list is sorted in the order of its last element."]
    index = build_index({"mbpp": usual})
    assert contaminated([prompt], index) == []
    assert {(hit.item, hit.n) for hit in contaminated([usual[-1]], index)} == {(5, 8), (5, 13)}


def test_the_templates_of_training_sets_are_no_hits_wherever_they_stand() -> None:
    asked = f"{contamination.TEMPLATES[0]} {QUESTION}"
    index = build_index({"b": [asked]})
    assert contaminated([f"{contamination.TEMPLATES[0]} Name three rivers of Spain."], index) == []
    assert {hit.n for hit in contaminated([asked], index)} == {8, 13}


def test_numbers_and_single_letters_alone_are_no_hits() -> None:
    index = build_index({"humaneval": [">>> f([1, 2, 3, 4, 5, 6, 7, 8, 9]) a b c d e f g h"]})
    assert contaminated(["Add 1, 2, 3, 4, 5, 6, 7, 8, 9.", "a b c d e f g h"], index) == []


def test_a_short_item_matches_only_whole() -> None:
    texts = {"b": ["Why is the sky blue?", "Which planet has the most moons of all planets?"]}
    index = build_index(texts)
    prompts = [
        "### Instruction:\nwhy is the sky blue\n\n### Response:",
        "Why is the sky blue, and the sea too?",
        "Say which planet has the most moons of all planets, please.",
        "Which planet has the most moons?",
    ]
    found = {(hit.prompt, hit.item, hit.n) for hit in contaminated(prompts, index)}
    assert found == {(0, 0, 8), (0, 0, 13), (2, 1, 8), (2, 1, 13)}


def test_what_is_dropped_is_what_was_hit_and_the_counts_add_up() -> None:
    prompts = [QUESTION, "Name three rivers of Spain.", f"Solve: {QUESTION}", QUESTION[:45] + " friends in all."]
    index = build_index({"gsm8k": [QUESTION, "Something else is asked here."], "empty": []})
    hits = contaminated(prompts, index)
    assert drop_contaminated(prompts, hits) == [prompts[1]]
    assert drop_contaminated(prompts, [hit for hit in hits if hit.n == 13]) == [prompts[1], prompts[3]]
    assert overlaps(hits, index) == [
        Overlap("gsm8k", 8, 3, 1, 2),
        Overlap("gsm8k", 13, 2, 1, 2),
        Overlap("empty", 8, 0, 0, 0),
        Overlap("empty", 13, 0, 0, 0),
    ]


def test_many_prompts_are_searched_in_chunks_and_counted_as_they_go() -> None:
    seen: list[int] = []

    class Track:
        def __call__(self, label: str, total: int) -> Track:
            seen.append(-total)
            return self

        def __enter__(self) -> object:
            return seen.append

        def __exit__(self, *_: object) -> None:
            return None

    prompts = ["nothing of note"] * 5000 + [QUESTION]
    hits = contaminated(prompts, build_index({"b": [QUESTION]}), Track())  # type: ignore[arg-type]
    assert {hit.prompt for hit in hits} == {5000}
    assert seen[0] == -5001 and sum(seen[1:]) == 5001


@pytest.mark.parametrize("ns", [(), (4,), (13, 2)])
def test_grams_of_few_words_are_refused(ns: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="fewer than 5 words in a row say nothing"):
        build_index({"b": [QUESTION]}, ns)


def test_an_index_is_kept_and_one_that_is_broken_or_of_another_version_is_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "deep" / "index.npz"
    index = build_index({"gsm8k": [QUESTION, "Who are you?"], "空": ["天空为什么是蓝色的呢你说"]})
    assert Index.load(path) is None
    index.save(path)
    kept = Index.load(path)
    prompts = [QUESTION, "who are you", "请问天空为什么是蓝色的呢你说"]
    assert kept is not None
    assert contaminated(prompts, kept) == contaminated(prompts, index) != []
    assert kept.sizes == index.sizes and kept.ns == index.ns
    whole = path.read_bytes()
    for broken in (whole[:-40], b"", b"not an index", whole.replace(b"meta", b"mete")):
        path.write_bytes(broken)
        assert Index.load(path) is None
    path.write_bytes(whole)
    monkeypatch.setattr(contamination, "FORMAT", 0)
    assert Index.load(path) is None


def test_koalas_prompts_are_alpaca_evals(mirror: Path) -> None:
    """AlpacaEval took 156 instructions from Koala's test prompts; the seed tasks of self-instruct are in none."""
    import gzip
    import json

    def rows(name: str) -> list[dict[str, str]]:
        text = (mirror / name).read_bytes()
        return [json.loads(line) for line in (gzip.decompress(text) if name.endswith("gz") else text).splitlines()]

    evaluated = rows("alpaca_eval/instructions.jsonl")
    index = build_index({"alpaca_eval": [row["instruction"] for row in evaluated]})
    koala = [row["prompt"] for row in rows("training/koala_test_prompts.jsonl")]
    hits = contaminated(koala, index)
    exact = {place for place, prompt in enumerate(koala) if prompt in {row["instruction"] for row in evaluated}}
    assert len(exact) == 144  # the others differ in spaces and line breaks
    assert exact <= {hit.prompt for hit in hits}
    assert {hit.item for hit in hits} == {n for n, row in enumerate(evaluated) if row["dataset"] == "koala"}
    assert len({hit.prompt for hit in hits}) == 156
    assert contaminated([row["instruction"] for row in rows("training/self_instruct_seed_tasks.jsonl")], index) == []
