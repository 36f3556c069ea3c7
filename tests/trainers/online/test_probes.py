"""Probes: answered once by each model, kept by content, and shown on a page that no answer can get out of."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlhf_bench.harness.checkpoint import checkpoint_digest
from rlhf_bench.harness.engines.hf import HFEngine
from rlhf_bench.harness.engines.scripted import scripted_engine
from rlhf_bench.harness.errors import Fault, UserError
from rlhf_bench.harness.models import open_engine
from rlhf_bench.harness.refusals import refuses
from rlhf_bench.harness.store import Store
from rlhf_bench.harness.types import Conversation, Message, Request
from rlhf_bench.trainers.online.probes import (
    MAX_TOKENS,
    MOST,
    Probed,
    Scorer,
    page,
    probe,
    read_probes,
    write_page,
)

ECHO = scripted_engine("echo")


def lengths(items: Sequence[tuple[Conversation, str]]) -> list[float | None]:
    return [float(len(answer)) if answer else None for _, answer in items]


LENGTH = Scorer("length", lengths)


def row(response: str, name: str = "fact", prompt: str = "Why?", reward: float | None = 1.5) -> dict[str, Any]:
    turns = [{"role": "user", "content": prompt}]
    said = {"response": response, "finish_reason": "stop", "tokens": 3, "reward": reward}
    return {"sample_id": name, "prompt": turns, **said}


def test_the_packaged_probes_are_ten_greedy_requests_of_different_kinds() -> None:
    probes = read_probes()
    assert len(probes) == len({each.id for each in probes}) == 10
    for each in probes:
        (request,) = each.requests
        assert request.sampling.temperature == 0 and request.sampling.max_tokens == MAX_TOKENS
        assert isinstance(request.prompt, tuple) and [turn.role for turn in request.prompt] == ["user"]
        assert not refuses(request.prompt[0].content)


def test_they_are_in_no_benchmark_or_training_prompt_of_the_demo() -> None:
    from rlhf_bench.suites.demo import instructions, training_prompts

    def grams(text: str) -> set[tuple[str, ...]]:
        words = text.lower().split()
        return {tuple(words[at : at + 8]) for at in range(len(words) - 7)}

    others = [*training_prompts(), *instructions("chat", "demo-chat", "")]
    taken = set().union(*(grams(each.prompt[-1].content) for each in others))  # type: ignore[union-attr]
    for each in read_probes():
        assert not grams(each.prompt[-1].content) & taken  # type: ignore[union-attr]


def test_a_file_of_the_users_own_is_read(tmp_path: Path) -> None:
    path = tmp_path / "mine.jsonl"
    path.write_text('{"prompt": "Why?"}\n{"prompt": [{"role": "system", "content": "Be brief."}, '
                    '{"role": "user", "content": "How?"}]}\n')  # fmt: skip
    probes = read_probes(str(path))
    assert [each.id for each in probes] == ["1", "2"]
    assert probes[1].prompt == (Message("system", "Be brief."), Message("user", "How?"))
    path.write_text('{"prompt": "Why?"}\n' * (MOST + 1))
    with pytest.raises(UserError, match=f"at most {MOST}"):
        read_probes(str(path))
    with pytest.raises(UserError):
        read_probes(str(tmp_path / "nothing.jsonl"))


def test_answers_and_rewards_are_written_once_and_read_back(
    tiny_checkpoint: Path, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    probes = [replace(each, requests=(replace(each.requests[0], sampling=SHORT),)) for each in read_probes()]
    asked = []

    def rewards(items: Sequence[tuple[Conversation, str]]) -> list[float | None]:
        asked.append(len(items))
        return lengths(items)

    engine = open_engine(str(tiny_checkpoint), store)
    first = probe("initial", probes, engine, tmp_path, store, scorer=Scorer("length", rewards))
    assert [each["sample_id"] for each in first.rows] == [each.id for each in probes]
    assert all(each["reward"] == (len(each["response"]) or None) for each in first.rows)
    assert asked == [10]
    (path,) = tmp_path.glob("initial-*.jsonl")
    assert [json.loads(line) for line in path.read_text().splitlines()] == first.rows

    def refuse(self: HFEngine, requests: Sequence[Request]) -> Any:
        raise AssertionError("a model is asked again")

    monkeypatch.setattr(HFEngine, "generate", refuse)
    assert probe("initial", probes, engine, tmp_path, store, scorer=Scorer("length", rewards)) == first
    assert asked == [10]
    again = probe("other", probes, engine, tmp_path, store)  # the store has the answers
    assert [each["response"] for each in again.rows] == [each["response"] for each in first.rows]
    assert all(each["reward"] is None for each in again.rows)
    assert engine.checkpoint == checkpoint_digest(tiny_checkpoint)


SHORT = replace(read_probes()[0].requests[0].sampling, max_tokens=6)


def test_other_prompts_weights_or_rewards_make_other_files(store: Store, tmp_path: Path) -> None:
    probes = read_probes()
    probe("a", probes, ECHO, tmp_path, store)
    probe("a", probes[:5], ECHO, tmp_path, store)
    probe("a", probes, scripted_engine("empty"), tmp_path, store)
    probe("a", probes, ECHO, tmp_path, store, scorer=LENGTH)
    probe("a", probes, ECHO, tmp_path, store, scorer=LENGTH)
    assert len(list(tmp_path.glob("a-*.jsonl"))) == 4


def test_a_model_that_is_called_by_its_folder_is_written_inside_ours(store: Store, tmp_path: Path) -> None:
    for name in ("/etc/models/a", "../../b", "..", "c d"):
        probe(name, read_probes(), ECHO, tmp_path / "probes", store)
    assert len(list((tmp_path / "probes").iterdir())) == 4
    assert [each.name for each in tmp_path.iterdir() if each.suffix == ".jsonl"] == []


def test_what_cannot_be_answered_is_shown_and_asked_again(store: Store, tmp_path: Path) -> None:
    found = probe("broken", read_probes(), scripted_engine("fail"), tmp_path, store, scorer=LENGTH)
    assert {each["finish_reason"] for each in found.rows} == {"error"}
    assert all("fails on every request" in each["response"] and each["reward"] is None for each in found.rows)
    assert not list(tmp_path.glob("*.jsonl"))


@pytest.mark.parametrize("text", ["", "{}\n", "[]\n", '{"sample_id": 1}\n', "\x00", '{"sample_id": "a"', "[" * 5000])
def test_a_file_that_is_not_ours_is_a_fault(store: Store, tmp_path: Path, text: str) -> None:
    probe("a", read_probes(), ECHO, tmp_path, store)
    (path,) = tmp_path.glob("*.jsonl")
    path.write_text(text)
    with pytest.raises(Fault, match="remove it"):
        probe("a", read_probes(), ECHO, tmp_path, store)


class Seen(HTMLParser):
    """The tags, attributes and text of a page."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[str] = []
        self.text: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [name for name, _ in attrs]

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def seen(text: str) -> Seen:
    parser = Seen()
    parser.feed(text)
    parser.close()
    return parser


hostile = st.one_of(
    st.text(max_size=40),
    st.sampled_from(
        ["<script>alert(1)</script>", "</td></table><img src=x onerror=alert(1)>", "&lt;", "\ud800", "a\x00b",
         "\u202egnp.exe", "' onmouseover='x", "<!--", "]]>", "</style><script>", "<plaintext>"]
    ),
)  # fmt: skip


@given(hostile, hostile, hostile, hostile)
def test_no_text_gets_out_of_its_cell(answer: str, prompt: str, name: str, title: str) -> None:
    found = page(title, [Probed(name, [row(answer, name, prompt)]), Probed("other", [row("fine", name, prompt)])])
    calm = page("t", [Probed("n", [row("a", "n", "p")]), Probed("other", [row("fine", "n", "p")])])
    assert seen(found).tags == seen(calm).tags or answer == "fine"
    assert seen(found).attributes == seen(calm).attributes or answer == "fine"
    found.encode()
    assert "\u202e" not in found and "\x00" not in found


def test_the_page_loads_nothing_and_sets_the_answers_side_by_side(tmp_path: Path) -> None:
    probed = [
        Probed("initial", [row("because", reward=None), row("x = 1", "code", "Write.")]),
        Probed("chat-1", [row("because"), row("x = <b>2</b>", "code", "Write.")]),
        Probed("chat-2", [row("new", "new", "Later?")]),
    ]
    path = write_page(tmp_path, "chat", probed)
    text = path.read_text(encoding="utf-8")
    assert path.name == "probes.html"
    assert "default-src 'none'" in text and "script" not in text.replace("default-src", "")
    assert "src=" not in text and "href" not in text and "url(" not in text
    assert "x = &lt;b&gt;2&lt;/b&gt;" in text
    words = [part.strip() for part in seen(text).text if part.strip()]
    start = words.index("fact")
    assert words[start : start + 5] == ["fact", "Why?", "3 tokens", "because", "reward 1.50, 3 tokens, as before"]
    assert words[start + 5] == "not asked"
    assert words.count("not asked") == 4
