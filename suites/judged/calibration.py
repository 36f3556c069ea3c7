"""A judge's verdicts beside gold ones, from files: annotations of alpaca_eval, or a table of the same columns.

A row is a pair of outputs: `instruction` (or `id`, or `index`), and where several models are in the file `generator_2`
(or `model`); `preference` in [1, 2] or null (1: output_1 is better; 1.5 or 0: neither). Further columns, all optional:
`preference_swapped`, the same judge's with the outputs shown the other way round, and of the same meaning; `first` (1
or 2), the output that was shown first, 1 where it is not said; `gold`, a preference, a list of several people's, or
columns gold_1, gold_2, …; `output_1` and `output_2`, or their lengths `len_1` and `len_2`; `repeat`, where a question
was asked more than once, one row each. Gold may be a file of its own: then it is that file's `preference`, or gold.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from rlhf_bench.harness.errors import UserError
from rlhf_bench.harness.judges.calibrate import Judged
from rlhf_bench.suites.judged.files import Row, read

Outputs = tuple[object, object]


def judged_items(files: Sequence[Path], gold: Path | None = None) -> list[Judged]:
    """The pairs in the files' order. Raises UserError for a broken row, one that stands twice, and no gold in common.

    Pairs of the two files are joined by instruction and model; where both hold the outputs these must be the same two,
    in either order.
    """
    found: dict[str, tuple[Judged, Outputs]] = {}
    for path in files:
        for row in read(path):
            item, shown = _item(row), _outputs(row)
            before = found.get(item.key)
            if before is not None and "repeat" not in row.fields:
                raise UserError(f"{row.path}, row {row.number}: the same pair again: say so in a column 'repeat'")
            found[item.key] = (_again(before[0], item) if before else item), shown
    if not found:
        raise UserError(f"no judgment in {', '.join(map(str, files))}")
    if gold is None:
        return [item for item, _ in found.values()]
    return _with_gold(found, gold)


def _with_gold(found: dict[str, tuple[Judged, Outputs]], path: Path) -> list[Judged]:
    joined = dict(found)
    matches = 0
    for row in read(path):
        item, shown = _item(row), _outputs(row)
        if item.key not in found:
            continue
        ours = found[item.key][1]
        values = item.golds or (() if item.judge is None else (item.judge,))
        if None not in (*ours, *shown) and ours != shown:
            if ours != shown[::-1]:
                raise UserError(f"{path}, row {row.number}: other outputs than the judge had for this instruction")
            values = tuple(1.0 - value for value in values)
        matches += 1
        before, outputs = joined[item.key]
        joined[item.key] = replace(before, golds=before.golds + values), outputs
    if not matches:
        raise UserError(f"{path} has no pair in common with the judge's: they are joined by instruction and model")
    return [item for item, _ in joined.values()]


def _item(row: Row) -> Judged:
    name = next((x for x in ("id", "instruction", "index", "question_id") if row.fields.get(x) not in (None, "")), "id")
    model = next((str(row.fields[x]) for x in ("generator_2", "model") if row.fields.get(x)), "")
    judge = _preference(row, "preference")
    first = row.number_in("first", 1, 2) if "first" in row.fields else None
    return Judged(
        key=f"{row.text(name)}\n{model}",
        judge=judge,
        swapped=_preference(row, "preference_swapped"),
        first=None if first is None else int(first),
        golds=_golds(row),
        longer=_longer(row),
        repeats=() if judge is None else (judge,),
    )


def _again(before: Judged, item: Judged) -> Judged:
    """A question that was asked again: the first verdict that is one stands."""
    judge = item.judge if before.judge is None else before.judge
    return replace(before, judge=judge, repeats=before.repeats + item.repeats, golds=before.golds or item.golds)


def _preference(row: Row, name: str) -> float | None:
    value = row.number_in(name, 1.0, 2.0, also=0.0)
    return None if value is None else 0.5 if value == 0 else value - 1.0


def _golds(row: Row) -> tuple[float, ...]:
    listed = row.fields.get("gold")
    if isinstance(listed, list):
        rows = [Row(row.path, row.number, {"gold": each}) for each in listed]
        values = [_preference(each, "gold") for each in rows]
    else:
        names = [name for name in row.fields if name == "gold" or name.startswith("gold_")]
        values = [_preference(row, name) for name in sorted(names)]
    return tuple(value for value in values if value is not None)


def _outputs(row: Row) -> Outputs:
    return row.fields.get("output_1"), row.fields.get("output_2")


def _longer(row: Row) -> float | None:
    """len(output 2) − len(output 1), where both are known."""
    first, second = _outputs(row)
    if isinstance(first, str) and isinstance(second, str):
        return float(len(second) - len(first))
    sizes = [row.number_in(name, 0, 1e9) for name in ("len_1", "len_2")]
    return None if sizes[0] is None or sizes[1] is None else sizes[1] - sizes[0]
