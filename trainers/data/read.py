"""Data in any of the layouts to what is trained on: a bad row is named with its fault, or left out and counted."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Literal, TypeAlias, TypeVar

from rlhf_bench.harness.errors import UserError
from rlhf_bench.harness.types import Conversation, Preference, Request, Sample
from rlhf_bench.trainers.data import turns as parse
from rlhf_bench.trainers.data.formats import Dialogue, Format, Item, Kind, Labelled, Ranked, format_named, recognise
from rlhf_bench.trainers.data.pairs import labelled_pairs, ranked_pairs
from rlhf_bench.trainers.data.sources import Row, raw_rows
from rlhf_bench.trainers.data.turns import BadRow

OnBadRow: TypeAlias = Literal["fail", "skip"]
T = TypeVar("T")
NEEDS: Mapping[Kind, tuple[str, str]] = {
    "preferences": ("preferences", "prompt, chosen and rejected"),
    "conversations": ("conversations", "messages, or prompt and completion"),
    "prompts": ("prompts", "prompt or messages"),
    "ranked": ("ranked answers", "prompt, responses and rewards"),
}
"""What each kind is called, and the columns that give it."""


class Rows(list[T]):
    """What was read, in file order.

    `numbers` holds the row that each came from, from 1. `skipped` counts what was left out, by reason, and `formats`
    the rows that were read, by format; `fault` says what is wrong with the first row that was skipped.
    """

    def __init__(
        self,
        items: Iterable[T],
        numbers: Sequence[int],
        skipped: Mapping[str, int],
        formats: Mapping[str, int],
        fault: str = "",
    ) -> None:
        super().__init__(items)
        self.numbers = numbers
        self.skipped = skipped
        self.formats = formats
        self.fault = fault


def read_preferences(source: str | Path, *, form: str | None = None, on_bad_row: OnBadRow = "fail") -> Rows[Preference]:
    """The pairs of a file, a folder or a data set of the hub (see `sources`).

    Ranked answers give each pair of unequal rewards, and labelled ones each good answer with each bad one to the same
    prompt; what gives no pair is counted in `skipped`. The format of each row is recognised by its columns unless
    `form` names it. Raises MissingData, UserError for the first bad row (with "skip" those are left out and counted),
    and UserError where nothing is left.
    """
    labelled: list[tuple[int, Labelled]] = []

    def pairs(number: int, item: Item, left_out: Counter[str]) -> list[Preference]:
        if isinstance(item, Ranked):
            made, dropped = ranked_pairs(item)
            left_out.update(dropped)
            return made
        if isinstance(item, Labelled):
            labelled.append((number, item))
        return [item] if isinstance(item, Preference) else []

    rows = _read(source, "preferences", form, on_bad_row, pairs)
    made, alone = labelled_pairs(labelled)
    rows = Rows(
        [*rows, *(pair for _, pair in made)],
        [*rows.numbers, *(number for number, _ in made)],
        Counter(rows.skipped) + Counter(alone),
        rows.formats,
        rows.fault,
    )
    return _some(rows, source, "preferences")


def read_conversations(
    source: str | Path, *, form: str | None = None, on_bad_row: OnBadRow = "fail"
) -> Rows[Conversation]:
    """Conversations whose last turn is the assistant's, to learn its turns of.

    Of a pair it is the one with the chosen answer; of labelled answers the good ones take part and the bad ones are
    counted in `skipped`. Otherwise as `read_preferences`.
    """

    def conversations(number: int, item: Item, left_out: Counter[str]) -> list[Conversation]:
        if isinstance(item, Preference):
            return [(*item.prompt, parse.assistant(item.chosen))]
        if isinstance(item, Labelled):
            left_out["answers with a bad label"] += not item.good
            return [(*item.prompt, parse.assistant(item.answer))] if item.good else []
        return [parse.answered(item.turns, item.name)] if isinstance(item, Dialogue) else []

    return _some(_read(source, "conversations", form, on_bad_row, conversations), source, "conversations")


def read_prompts(source: str | Path, *, form: str | None = None, on_bad_row: OnBadRow = "fail") -> Rows[Sample]:
    """Prompts, as samples that are numbered by row from 0, with the answer of the data as reference if there is one.

    Of a conversation that ends with the assistant's turn it is what came before. Otherwise as `read_preferences`.
    """

    def prompts(number: int, item: Item, left_out: Counter[str]) -> list[Sample]:
        said, reference = _prompt(item)
        return [Sample(str(number - 1), (Request(str(number - 1), said),), reference)]

    return _some(_read(source, "prompts", form, on_bad_row, prompts), source, "prompts")


def read_ranked(source: str | Path, *, form: str | None = None, on_bad_row: OnBadRow = "fail") -> Rows[Ranked]:
    """Prompts with several answers and their rewards. Otherwise as `read_preferences`."""

    def ranked(number: int, item: Item, left_out: Counter[str]) -> list[Ranked]:
        return [item] if isinstance(item, Ranked) else []

    return _some(_read(source, "ranked", form, on_bad_row, ranked), source, "ranked")


def _prompt(item: Item) -> tuple[Conversation, str]:
    if isinstance(item, Preference):
        return item.prompt, item.chosen
    if isinstance(item, Labelled):
        return item.prompt, item.answer if item.good else ""
    if isinstance(item, Ranked):
        return item.prompt, ""
    if item.turns[-1].role == "assistant":
        said = parse.answered(item.turns, item.name)
        return said[:-1], said[-1].content
    return parse.prompt(item.turns, item.name), item.reference


def _read(
    source: str | Path,
    kind: Kind,
    form: str | None,
    on_bad_row: OnBadRow,
    make: Callable[[int, Item, Counter[str]], list[T]],
) -> Rows[T]:
    named = None if form is None else format_named(form)
    if named is not None and kind not in named.gives:
        raise UserError(f"format '{named.name}' gives {', '.join(named.gives)}, and {NEEDS[kind][0]} are wanted")
    usual = named
    items: list[T] = []
    numbers: list[int] = []
    skipped, formats, first = Counter[str](), Counter[str](), ""
    for number, (where, row) in enumerate(raw_rows(source), start=1):
        try:
            if isinstance(row, BadRow):
                raise row
            usual = found = named or _format(row, kind, usual)
            made = make(number, _parsed(found, row), skipped)
        except BadRow as fault:
            if on_bad_row == "fail":
                raise UserError(f"{where}: {fault}") from None
            skipped[fault.reason] += 1
            first = first or f"{where}: {fault}"
            continue
        formats[found.name] += 1
        items += made
        numbers += [number] * len(made)
    return Rows(items, numbers, skipped, formats, first)


def _format(row: Row, kind: Kind, usual: Format | None) -> Format:
    """What the row is recognised as, else what the row before was. Raises BadRow if it is the first and nothing."""
    found = recognise(row, kind) or usual
    if found is None:
        columns = ", ".join(row) or "none"
        called, needs = NEEDS[kind]
        raise BadRow("missing column", f"its columns ({columns}) do not give {called}: give {needs}")
    return found


def _parsed(found: Format, row: Row) -> Item:
    if (missing := found.missing(row)) is not None:
        raise BadRow("missing column", f"{missing} is missing")
    return found.parse(row)


def _some(rows: Rows[T], source: str | Path, kind: Kind) -> Rows[T]:
    if not rows:
        reasons = ", ".join(f"{count} {reason}" for reason, count in rows.skipped.items() if count)
        why = f"{reasons} ({rows.fault})" if rows.fault else reasons or "it holds no rows"
        raise UserError(f"{source} gives no {NEEDS[kind][0]}: {why}")
    return rows
