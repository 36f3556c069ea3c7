"""Contamination: training prompts that share n words in a row with a benchmark's questions.

Texts are compared as words: Unicode NFKC, lower case, apostrophes dropped, split at everything that is no letter or
digit, so punctuation, symbols, line breaks and markup count for nothing; a Chinese or Japanese character is a word of
its own. Prompt and item share an n-gram where the same n words stand in a row in both. What does not count:

- an n-gram that stands in more than `common` items of the benchmark ("write a python function to check whether"): it is
  how that benchmark asks and not what it asks;
- an n-gram of an instruction template (`TEMPLATES`, or what the caller names);
- an n-gram of numbers and single letters alone ("1 2 3 4 5 6 7 8").

An item of fewer than n words matches only whole: all its words in a row, under the same rules; one of fewer than
`LINE` words only where they are a whole line of the prompt. The caller gives the items' own questions, without the
examples and the instructions around them.

Grams are looked up by a 64-bit hash and every find is compared word by word, so a collision is never a hit.
"""

from __future__ import annotations

import io
import itertools
import json
import os
import re
import unicodedata
import zipfile
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import filterfalse
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray

from rlhf_bench.harness.errors import Fault
from rlhf_bench.harness.progress import Track, silent

NS = (8, 13)
"""Tülu 3 removes overlaps of 8 words, GPT-3's authors of 13."""
COMMON = 5
"""In MMLU a text that several questions are about stands in up to six items, most in at most five."""
LINE = 8
SHORTEST = 5
"""The least n that can be asked for."""
FORMAT = 1
"""Of `Index.save`, and of the rules above: an index of another one is not read."""
TEMPLATES = (
    "Below is an instruction that describes a task. Write a response that appropriately completes the request.",
    "Below is an instruction that describes a task, paired with an input that provides further context. Write a "
    "response that appropriately completes the request.",
    "A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, detailed, "
    "and polite answers to the user's questions.",
    "You are a helpful, respectful and honest assistant. Always answer as helpfully as possible, while being safe.",
    "You are an AI assistant. User will you give you a task. Your goal is to complete the task as faithfully as you "
    "can. While performing the task think step-by-step and justify your steps.",
    "You are an AI assistant that follows instruction extremely well. Help as much as you can.",
    "You are a helpful assistant, who always provide explanation. Think like you are answering to a five year old.",
    "Let's think step by step. Please reason step by step, and put your final answer within boxed.",
)
"""Instructions that training sets put around their prompts: Alpaca, Vicuna, Llama 2, Orca, chain of thought."""

Ints: TypeAlias = NDArray[np.integer[Any]]
T = TypeVar("T")

_ASCII = {n: chr(n).lower() if chr(n).isalnum() else None if chr(n) == "'" else " " for n in range(128)}
"""The rules of `words` for ASCII, by character: three times as fast as a regular expression."""
_ASCII_SIGNS = frozenset(map(chr, _ASCII))
_ALONE = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
_ANY = re.compile(rf"[{_ALONE}]|[^\W_{_ALONE}]+")
_BASE = np.uint64(0x9E3779B97F4A7C15)
_CHUNK = 2048
_PARTS = ("hashes", "places", "items")


@dataclass(frozen=True, slots=True)
class Hit:
    """A prompt (by its position) that shares n words in a row with an item of a benchmark; `gram` is the first of them.

    Where the item has fewer than n words, `gram` is all of it.
    """

    prompt: int
    benchmark: str
    item: int
    n: int
    gram: str


@dataclass(frozen=True, slots=True)
class Overlap:
    """How many prompts and items of a benchmark share n words in a row; `size` is the number of its items."""

    benchmark: str
    n: int
    prompts: int
    items: int
    size: int


def words(text: str) -> list[str]:
    """The words that are compared."""
    if not text.isascii():
        text = unicodedata.normalize("NFKC", text).lower()
        for sign in filterfalse(str.isalnum, {*text} - _ASCII_SIGNS):
            text = text.replace(sign, "" if sign == "’" else " ")
        if not text.isascii():
            return _ANY.findall(text.replace("'", ""))
    return text.translate(_ASCII).split()


def _tells(word: str) -> bool:
    return len(word) > 1 and not word.isnumeric()


@dataclass(frozen=True)
class Table:
    """The grams of one length: by hash, in order, where in the index's stream each stands, and in which item."""

    hashes: NDArray[np.uint64]
    places: Ints
    items: Ints

    @cached_property
    def _filter(self) -> tuple[NDArray[np.bool_], np.uint64]:
        bits = min(24, max(8, len(self.hashes).bit_length() + 4))
        seen, shift = np.zeros(1 << bits, dtype=np.bool_), np.uint64(64 - bits)
        seen[self.hashes >> shift] = True
        return seen, shift

    def entries(self, hashes: NDArray[np.uint64], allowed: NDArray[np.bool_]) -> tuple[Ints, Ints]:
        """Which of the hashes (by position, where allowed) are those of which entries."""
        seen, shift = self._filter
        at = np.flatnonzero(seen[hashes >> shift] & allowed)
        first = np.searchsorted(self.hashes, hashes[at], side="left")
        count = np.searchsorted(self.hashes, hashes[at], side="right") - first
        within = np.arange(count.sum()) - np.repeat(np.cumsum(count) - count, count)
        return np.repeat(at, count), np.repeat(first, count) + within


@dataclass(frozen=True)
class Index:
    """The benchmarks' questions, ready to be found in prompts. `sizes` are their numbers of items, by name.

    `stream` holds the word ids of all items, each followed by a 0; item i begins at `starts[i]`. `tables` are by length
    of gram; `lines` has the items that are too short to be sought inside a line of a prompt, by their words.
    """

    ns: tuple[int, ...]
    sizes: Mapping[str, int]
    vocabulary: Mapping[str, int]
    stream: Ints
    starts: Ints
    tables: Mapping[int, Table]
    lines: Mapping[str, Sequence[int]]

    @cached_property
    def lengths(self) -> Ints:
        """The number of words of each item."""
        return np.diff(np.append(self.starts, len(self.stream))) - 1

    @cached_property
    def codes(self) -> NDArray[np.uint64]:
        """A random 64-bit number for each word id."""
        return _codes(len(self.vocabulary) + 1)

    @cached_property
    def names(self) -> Sequence[tuple[str, int]]:
        """The benchmark of each item, and its position there."""
        return [(name, number) for name, size in self.sizes.items() for number in range(size)]

    @cached_property
    def words(self) -> Sequence[str]:
        """The word of each id."""
        return ["", *self.vocabulary]

    def save(self, path: Path) -> None:
        """Write the index to a file, whole or not at all."""
        arrays = {"stream": self.stream, "starts": self.starts}
        for length, table in self.tables.items():
            arrays |= {f"{length}/{part}": getattr(table, part) for part in _PARTS}
        meta = {"ns": self.ns, "sizes": dict(self.sizes), "words": self.words[1:], "lines": dict(self.lines)}
        arrays["meta"] = np.frombuffer(json.dumps([FORMAT, meta]).encode(), dtype=np.uint8)
        buffer = io.BytesIO()
        np.savez(buffer, allow_pickle=False, **arrays)
        draft = path.with_name(f"{path.name}.{os.getpid()}.tmp")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            draft.write_bytes(buffer.getvalue())
            draft.replace(path)
        except OSError as error:
            raise Fault(f"cannot write {path}: {error.strerror}") from error

    @staticmethod
    def load(path: Path) -> Index | None:
        """The index that `save` wrote; None where there is none, or one that this version does not read."""
        try:
            with path.open("rb") as opened, np.load(opened, allow_pickle=False) as file:
                version, meta = json.loads(file["meta"].tobytes())
                if version != FORMAT:
                    return None
                lengths = sorted({int(name.partition("/")[0]) for name in file.files if "/" in name})
                vocabulary = {word: number for number, word in enumerate(meta["words"], start=1)}
                tables = {length: Table(*(file[f"{length}/{part}"] for part in _PARTS)) for length in lengths}
                return Index(
                    tuple(meta["ns"]),
                    meta["sizes"],
                    vocabulary,
                    file["stream"],
                    file["starts"],
                    tables,
                    meta["lines"],
                )
        except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile):
            return None


def build_index(
    texts: Mapping[str, Sequence[str]],
    ns: Collection[int] = NS,
    *,
    common: int = COMMON,
    templates: Sequence[str] = TEMPLATES,
) -> Index:
    """The index of the questions of each benchmark, in their order. Raises ValueError for an n below SHORTEST."""
    if not ns or min(ns) < SHORTEST:
        raise ValueError(f"n is {min(ns, default=0)}: fewer than {SHORTEST} words in a row say nothing")
    split = [words(text) for text in (*itertools.chain.from_iterable(texts.values()), *templates)]
    vocabulary: dict[str, int] = {}
    for word in itertools.chain.from_iterable(split):
        vocabulary.setdefault(word, len(vocabulary) + 1)
    stream = np.fromiter((vocabulary.get(word, 0) for text in split for word in (*text, "")), dtype=np.int32)
    lengths = np.array([len(text) for text in split], dtype=np.int64)
    benchmark_of = np.repeat(np.arange(len(texts) + 1), [*map(len, texts.values()), len(templates)])
    telling = np.array([False, *map(_tells, vocabulary)])
    rules = _Rules(frozenset(ns), common, len(texts), benchmark_of, lengths, np.cumsum(telling[stream]))
    items = len(split) - len(templates)
    return Index(
        ns=tuple(sorted(set(ns))),
        sizes={name: len(each) for name, each in texts.items()},
        vocabulary=vocabulary,
        stream=stream[: int(lengths[:items].sum()) + items],
        starts=(np.cumsum(lengths + 1) - lengths - 1)[:items],
        tables=dict(_tables(stream, rules, _codes(len(vocabulary) + 1))),
        lines=_lines(split[:items], rules),
    )


def contaminated(prompts: Sequence[str], index: Index, track: Track = silent) -> list[Hit]:
    """What the prompts share with the index: one hit for each prompt, item and n, in that order."""
    found: list[Hit] = []
    with track("contamination", len(prompts)) as advance:
        for first in range(0, len(prompts), _CHUNK):
            chunk = prompts[first : first + _CHUNK]
            for prompt, item, n, gram in sorted(_found(chunk, index)):
                found.append(Hit(first + prompt, *index.names[item], n, gram))
            advance(len(chunk))
    return found


def drop_contaminated(rows: Sequence[T], hits: Iterable[Hit]) -> list[T]:
    """The rows whose prompts have no hit; `rows` are in the order of the prompts."""
    dropped = {hit.prompt for hit in hits}
    return [row for number, row in enumerate(rows) if number not in dropped]


def overlaps(hits: Iterable[Hit], index: Index) -> list[Overlap]:
    """The counts for each benchmark of the index and each n, zeros included."""
    prompts: defaultdict[tuple[str, int], set[int]] = defaultdict(set)
    items: defaultdict[tuple[str, int], set[int]] = defaultdict(set)
    for hit in hits:
        prompts[hit.benchmark, hit.n].add(hit.prompt)
        items[hit.benchmark, hit.n].add(hit.item)
    return [
        Overlap(name, n, len(prompts[name, n]), len(items[name, n]), size)
        for name, size in index.sizes.items()
        for n in index.ns
    ]


@dataclass(frozen=True)
class _Rules:
    """What decides which grams count. `benchmark_of` and `lengths` are by item; templates are the last benchmark.

    `telling` counts, up to and with each place of the stream, the words that are neither numbers nor single letters.
    """

    ns: frozenset[int]
    common: int
    templates: int
    benchmark_of: Ints
    lengths: Ints
    telling: Ints

    def counting(self, gram: Ints, item: Ints, place: Ints, length: int) -> NDArray[np.bool_]:
        """Which of these distinct (gram, item) pairs count, each with the first place of the gram in the item."""
        benchmark = self.benchmark_of[item]
        _, pair, items = np.unique(gram * (self.templates + 1) + benchmark, return_inverse=True, return_counts=True)
        template = np.isin(gram, gram[benchmark == self.templates])
        told = self.telling[place + length - 1] > np.where(place > 0, self.telling[place - 1], 0)
        sought = (length in self.ns) | ((self.lengths[item] == length) & (length >= LINE))
        counts: NDArray[np.bool_] = sought & ~template & told & (items[pair] <= self.common)
        return counts


def _tables(stream: Ints, rules: _Rules, codes: NDArray[np.uint64]) -> Iterator[tuple[int, Table]]:
    """The grams that count, by length. A gram is numbered by the gram before its last word, and that word: exactly."""
    item_of = np.repeat(np.arange(len(rules.lengths)), rules.lengths + 1)
    room = _room(stream)
    places = np.flatnonzero(stream)
    gram = stream[places].astype(np.int64)
    for length in range(2, max(rules.ns) + 1):
        fits = room[places] >= length
        places, gram = places[fits], gram[fits]
        _, gram = np.unique(gram * len(codes) + stream[places + length - 1], return_inverse=True)
        if length < min(LINE, *rules.ns):
            continue
        pairs, first = np.unique(gram * len(rules.lengths) + item_of[places], return_index=True)
        counts = rules.counting(*np.divmod(pairs, len(rules.lengths)), places[first], length)
        kept = places[first][counts]
        hashes = _hashes(codes[stream[kept[:, None] + np.arange(length)]])
        order = np.argsort(hashes, kind="stable")
        yield length, Table(hashes[order], kept[order], item_of[kept[order]])


def _lines(split: Sequence[Sequence[str]], rules: _Rules) -> dict[str, list[int]]:
    """The items of fewer than LINE words, by their words; not those that a benchmark has more than `common` times."""
    found: defaultdict[tuple[int, str], list[int]] = defaultdict(list)
    for item, text in enumerate(split):
        if 0 < len(text) < LINE and any(map(_tells, text)):
            found[int(rules.benchmark_of[item]), " ".join(text)].append(item)
    lines: defaultdict[str, list[int]] = defaultdict(list)
    for (_, line), items in found.items():
        if len(items) <= rules.common:
            lines[line] += items
    return dict(lines)


def _found(chunk: Sequence[str], index: Index) -> Iterator[tuple[int, int, int, str]]:
    """(prompt, item, n, gram) of these prompts, each (prompt, item, n) once."""
    grams: dict[tuple[int, int, int], str] = {}
    split: list[list[str]] = []
    for prompt, text in enumerate(chunk):
        lines = [words(line) for line in text.splitlines()]
        for line in (" ".join(line) for line in lines if len(line) < LINE):
            for item in index.lines.get(line, ()):
                grams |= {(prompt, item, n): line for n in index.ns if n > index.lengths[item]}
        split.append([*itertools.chain.from_iterable(lines), ""])
    ids = map(index.vocabulary.get, itertools.chain.from_iterable(split), itertools.repeat(0))
    stream, ends = np.fromiter(ids, dtype=np.int32), np.cumsum([len(each) for each in split])
    for length, at, entry in _matches(stream, index):
        table, count = index.tables[length], len(index.starts)
        pairs, first = np.unique(np.searchsorted(ends, at, "right") * count + table.items[entry], return_index=True)
        for pair, place in zip(pairs.tolist(), table.places[entry[first]].tolist(), strict=True):
            prompt, item = divmod(pair, count)
            gram = " ".join(index.words[each] for each in index.stream[place : place + length])
            whole = LINE <= length == index.lengths[item]
            grams |= {(prompt, item, n): gram for n in index.ns if n == length or (n > length and whole)}
    yield from ((*key, gram) for key, gram in grams.items())


def _matches(stream: Ints, index: Index) -> Iterator[tuple[int, Ints, Ints]]:
    """By length of gram: places of the stream, and the entries of the table whose words stand there."""
    room = _room(stream)
    codes = index.codes[stream]
    hashes = codes.copy()
    for length in range(2, min(max(index.ns), len(stream)) + 1):
        hashes = hashes[:-1] * _BASE + codes[length - 1 :]
        if length in index.tables:
            table = index.tables[length]
            at, entry = table.entries(hashes, room[: len(hashes)] >= length)
            window = np.arange(length)
            there = index.stream[table.places[entry][:, None] + window]
            same = (stream[at[:, None] + window] == there).all(axis=1)
            yield length, at[same], entry[same]


def _room(stream: Ints) -> Ints:
    """The number of words from each place to the next 0, with which the stream ends."""
    ends = np.flatnonzero(stream == 0)
    return np.repeat(ends, np.diff(ends, prepend=-1)) - np.arange(len(stream))


def _hashes(codes: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The hash of each row of word codes: a polynomial modulo 2^64, as it also rolls along a prompt."""
    hashes = np.zeros(len(codes), dtype=np.uint64)
    for column in codes.T:
        hashes = hashes * _BASE + column
    return hashes


def _codes(count: int) -> NDArray[np.uint64]:
    """A number for each word id that looks random and never changes (Vigna's splitmix64), as an index is kept."""
    mixed = np.arange(1, count + 1, dtype=np.uint64) * _BASE
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        mixed = (mixed ^ (mixed >> np.uint64(shift))) * np.uint64(factor)
    return mixed ^ (mixed >> np.uint64(31))
