"""`rlhf-bench data`: what training data are, in which layout, and whether they hold a benchmark's questions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from rlhf_bench.cli import lookup, options, show
from rlhf_bench.harness.errors import Fault, MissingData, UserError

if TYPE_CHECKING:
    from rlhf_bench.harness.contamination import Hit, Index
    from rlhf_bench.harness.progress import Track
    from rlhf_bench.harness.types import Benchmark, Sample
    from rlhf_bench.trainers.data import Rows

ALL = "all"
QUESTIONS = ("question", "instruction", "turns", "text", "prompt")
"""The columns that hold what a benchmark asks, without examples and instructions; the first that a row has counts."""

app = typer.Typer(
    help="Look at training data, filter them, write them in other layouts, find benchmarks in them.",
    no_args_is_help=True,
)


def _formats(incomplete: str) -> list[str]:
    from rlhf_bench.trainers.data import FORMATS

    return [each.name for each in FORMATS if each.name.startswith(incomplete)]


Source = Annotated[
    str, typer.Argument(metavar="FILE", help="JSON lines, JSON, CSV, parquet; a folder of datasets; hf:org/name:split.")
]
Format = Annotated[
    str | None,
    typer.Option("--format", help="The layout of the rows.", show_default="by columns", autocompletion=_formats),
]
As = Annotated[
    Literal["preferences", "conversations", "prompts", "ranked"] | None,
    typer.Option("--as", help="What to read the rows as.", show_default="what the first row is"),
]
OnBadRow = Annotated[
    Literal["fail", "skip"], typer.Option("--on-bad-row", help="Stop at a bad row, or skip and count.")
]


@app.command("show")
def show_data(
    source: Source,
    kind: As = None,
    form: Format = None,
    rows: Annotated[int, typer.Option("--rows", min=0, help="How many to show whole.")] = 1,
    json: options.Json = False,
) -> None:
    """What a file holds: its layout, how much of it can be used, what is wrong with the rest, and how long it is."""
    found_as, read = _read(source, kind, form, "skip")
    lengths = _lengths(read)
    if json:
        show.as_json(
            {
                "source": source,
                "as": found_as,
                "read": len(read),
                "formats": read.formats,
                "skipped": read.skipped,
                "fault": read.fault,
                "chars": lengths,
                "rows": [_plain(row) for row in read[:rows]],
            }
        )
        return
    layouts = ", ".join(f"{name} ({count})" for name, count in read.formats.items())
    show.say(f"{source}: {len(read)} {found_as}, format {layouts}")
    columns = ("characters", "least", "median", "most", "mean")
    cells = [(name, *(f"{each[part]:g}" for part in columns[1:])) for name, each in lengths.items()]
    show.table("lengths", columns, cells, right=columns[1:])
    _print_skipped(read)
    for number, row in zip(read.numbers[:rows], read[:rows], strict=True):
        show.say(f"row {number}:")
        for name, text in _parts(row):
            show.say(f"  {name}: {text}")


@app.command()
def convert(
    source: Source,
    out: Annotated[Path, typer.Argument(help="A new .jsonl, .json, .csv (.gz) or .parquet file, or a folder.")],
    kind: As = None,
    to: Annotated[str | None, typer.Option(help="The layout to write.", show_default="turns, as TRL has them")] = None,
    form: Format = None,
    on_bad_row: OnBadRow = "fail",
    json: options.Json = False,
) -> None:
    """Write data in another layout or kind of file: TRL's, RLHFlow's, ShareGPT, Alpaca, HH-RLHF."""
    from rlhf_bench.trainers.data import write

    new_file(out)
    found_as, read = _read(source, kind, form, on_bad_row)
    write(read, out, to)
    if json:
        show.as_json({"out": str(out), "as": found_as, "written": len(read), "skipped": read.skipped})
        return
    show.say(f"{out}: {len(read)} {found_as}")
    _print_skipped(read)


@app.command()
def contamination(
    source: Source,
    suite: Annotated[
        str, typer.Option("--suite", "-s", help="Suites, benchmarks, lm-eval tasks.", autocompletion=options.suites)
    ] = ALL,
    n: Annotated[str, typer.Option("--n", help="How many words in a row; several by commas.")] = "8,13",
    drop: Annotated[
        Path | None, typer.Option("--drop-contaminated", help="Write the rows without any hit to this new file.")
    ] = None,
    form: Format = None,
    on_bad_row: OnBadRow = "fail",
    most: Annotated[int, typer.Option("--show", min=0, help="How many hits to list.")] = 10,
    json: options.Json = False,
) -> None:
    """Training prompts that share n words in a row with a benchmark's questions, and the rows without them.

    Compared are lower-case words without punctuation. What a benchmark says in many items counts for nothing, and an
    item of fewer than n words matches only whole.
    """
    from rlhf_bench.harness.contamination import contaminated
    from rlhf_bench.trainers.data import read_prompts

    ns = _ns(n)
    if drop is not None:
        new_file(drop)
    read = read_prompts(source, form=form, on_bad_row=on_bad_row)
    track = show.bars()
    index, missing = benchmark_index(suite, ns, track)
    hits = contaminated([prompt_text(sample) for sample in read], index, track)
    written = None if drop is None else _write_clean(source, drop, read, hits)
    if json:
        _as_json(read, hits, index, missing, written)
        return
    _print(read, hits, index, missing, most)
    if drop is not None:
        show.say(
            f"{drop}: {written} rows, without {len({hit.prompt for hit in hits})} that share words with a benchmark"
        )


def prompt_text(sample: Sample) -> str:
    """What is asked, as text: the turns of the prompt, one after the other."""
    prompt = sample.prompt
    return prompt if isinstance(prompt, str) else "\n".join(turn.content for turn in prompt)


def benchmark_index(suite: str, ns: Sequence[int], track: Track) -> tuple[Index, list[str]]:
    """The index of the questions of these suites ("all": of every benchmark), and which benchmarks have no data here.

    It is made once and kept in the cache, by what the benchmarks' data are. Raises MissingData where none has its data.
    """
    from rlhf_bench.harness import codec
    from rlhf_bench.harness.contamination import COMMON, FORMAT, TEMPLATES, Index, build_index
    from rlhf_bench.harness.weights import cache_dir
    from rlhf_bench.suites import BENCHMARKS, data

    chosen = lookup.suite(",".join(BENCHMARKS) if suite == ALL else suite).benchmarks
    here = [each for each in chosen if all(data.find(need) is not None for need in each.needs)]
    missing = [each.name for each in chosen if each not in here]
    if not here:
        raise MissingData(f"no data for {', '.join(missing)}: run `rlhf-bench suites fetch {' '.join(missing)}`")
    texts = {each.name: questions(each) for each in here if not each.needs}
    known = {each.name: [each.version, data.digests(each.needs), texts.get(each.name)] for each in here}
    rules = [FORMAT, sorted(set(ns)), COMMON, TEMPLATES, QUESTIONS]
    path = cache_dir() / "contamination" / f"{codec.digest([known, rules])[:24]}.npz"
    index = Index.load(path)
    if index is None:
        with track("questions", len(here)) as advance:
            for each in here:
                texts[each.name] = texts[each.name] if each.name in texts else questions(each)
                advance(1)
        index = build_index({each.name: texts[each.name] for each in here}, ns)
        with suppress(Fault):  # it is made again next time
            index.save(path)
    return index, missing


def questions(benchmark: Benchmark) -> list[str]:
    """What each item of a benchmark asks, in its official order, without examples and instructions where it says so."""
    from rlhf_bench.harness.types import EvalProtocol

    return [_question(sample) for sample in benchmark.load(EvalProtocol("questions", shots={benchmark.name: 0}))]


def _question(sample: Sample) -> str:
    for column in QUESTIONS:
        asked = sample.row.get(column)
        if isinstance(asked, str):
            return asked
        if isinstance(asked, list) and all(isinstance(turn, str) for turn in asked):
            return "\n".join(asked)
    return prompt_text(sample)


def _ns(text: str) -> list[int]:
    from rlhf_bench.harness.contamination import SHORTEST

    parts = text.split(",")
    if not all(part.strip().isdecimal() and SHORTEST <= int(part) <= 100 for part in parts):
        raise UserError(f"--n {text}: give numbers of words from {SHORTEST} to 100, as in 8,13")
    return [int(part) for part in parts]


def new_file(path: Path) -> None:
    """Raise UserError where there is something already."""
    if path.exists():
        raise UserError(f"{path} is there already: choose another name")


def _read(source: str, kind: As, form: str | None, on_bad_row: Literal["fail", "skip"]) -> tuple[str, Rows[Any]]:
    """The rows, as what was asked for or else as what the first row gives."""
    from rlhf_bench.trainers import data
    from rlhf_bench.trainers.data.formats import format_named, recognise
    from rlhf_bench.trainers.data.sources import raw_rows

    if kind is None:
        rows = (row for _, row in raw_rows(source) if isinstance(row, Mapping))
        found = format_named(form) if form else recognise(next(rows, {}))
        kind = found.gives[0] if found else "prompts"
    readers: Mapping[str, Any] = {
        "preferences": data.read_preferences,
        "conversations": data.read_conversations,
        "prompts": data.read_prompts,
        "ranked": data.read_ranked,
    }
    return kind, readers[kind](source, form=form, on_bad_row=on_bad_row)


def _parts(row: Any) -> list[tuple[str, str]]:
    """A row as named texts."""
    from rlhf_bench.harness.types import Preference, Sample
    from rlhf_bench.trainers.data import Ranked

    turns = row if isinstance(row, tuple) else row.prompt
    said = [(turn.role, turn.content) for turn in turns]
    if isinstance(row, Preference):
        said += [("chosen", row.chosen), ("rejected", row.rejected), ("margin", f"{row.margin:g}")]
    if isinstance(row, Ranked):
        rewards = ("none" if reward is None else f"{reward:g}" for reward in row.rewards)
        said += [(f"reward {reward}", text) for reward, text in zip(rewards, row.responses, strict=True)]
    if isinstance(row, Sample) and row.reference:
        said.append(("reference", row.reference))
    return said


def _plain(row: Any) -> Any:
    from rlhf_bench.harness.codec import plain

    return [plain(turn) for turn in row] if isinstance(row, tuple) else plain(row)


def _lengths(read: Sequence[Any]) -> dict[str, dict[str, float]]:
    """Characters of each part, the prompt's turns together."""
    import statistics

    found: dict[str, list[int]] = {}
    for row in read:
        sums: dict[str, int] = {}
        for name, text in _parts(row):
            if name != "margin":
                sums[name.partition(" ")[0]] = sums.get(name.partition(" ")[0], 0) + len(text)
        for name, count in sums.items():
            found.setdefault(name, []).append(count)
    return {
        name: {
            "least": min(counts),
            "median": statistics.median(counts),
            "most": max(counts),
            "mean": round(statistics.fmean(counts), 1),
        }
        for name, counts in found.items()
    }


def _print_skipped(read: Rows[Any]) -> None:
    for reason, count in read.skipped.items():
        show.say(f"left out: {count} × {reason}")
    if read.fault:
        show.say(f"the first: {read.fault}")


def _write_clean(source: str, out: Path, read: Rows[Sample], hits: Sequence[Hit]) -> int:
    """Write the rows whose prompts have no hit as they were, with all their columns; gives how many."""
    from rlhf_bench.harness.contamination import drop_contaminated
    from rlhf_bench.trainers.data.sources import raw_rows
    from rlhf_bench.trainers.data.write import write_rows

    kept = set(drop_contaminated(read.numbers, hits))
    if not kept:
        raise UserError(f"every prompt of {source} shares words with a benchmark: nothing is left to write")
    rows = [row for number, (_, row) in enumerate(raw_rows(source), 1) if number in kept and isinstance(row, Mapping)]
    write_rows(rows, out)
    return len(rows)


def _as_json(
    read: Rows[Sample], hits: Sequence[Hit], index: Index, missing: Sequence[str], written: int | None
) -> None:
    from rlhf_bench.harness.contamination import overlaps

    show.as_json(
        {
            "prompts": len(read),
            "contaminated": len({hit.prompt for hit in hits}),
            "skipped": read.skipped,
            "written": written,
            "missing": missing,
            "overlaps": overlaps(hits, index),
            "hits": [
                {
                    "row": read.numbers[hit.prompt],
                    "benchmark": hit.benchmark,
                    "item": hit.item,
                    "n": hit.n,
                    "shared": hit.gram,
                }
                for hit in hits
            ],
        }
    )


def _print(read: Rows[Sample], hits: Sequence[Hit], index: Index, missing: Sequence[str], most: int) -> None:
    from rlhf_bench.harness.contamination import overlaps

    counted = {(each.benchmark, each.n): each for each in overlaps(hits, index)}
    columns = ("benchmark", "items", *(f"{what} {n}" for n in index.ns for what in ("prompts", "items")))
    rows = [
        (name, size, *(count for n in index.ns for count in (counted[name, n].prompts, counted[name, n].items)))
        for name, size in index.sizes.items()
    ]
    show.table(
        "prompts and items that share n words in a row, or all of an item that has fewer",
        columns,
        rows,
        right=columns[1:],
    )
    for n in index.ns:
        found = len({hit.prompt for hit in hits if hit.n == n})
        show.say(f"{found} of {len(read)} prompts share {n} words in a row with a benchmark ({found / len(read):.2%})")
    longest = {(hit.prompt, hit.benchmark, hit.item): hit for hit in sorted(hits, key=lambda hit: hit.n)}
    listed = sorted(longest.values(), key=lambda hit: (hit.prompt, -hit.n))
    if listed[:most]:
        cells = [(read.numbers[h.prompt], h.benchmark, h.item, h.n, h.gram) for h in listed[:most]]
        show.table("the first hits", ("row", "benchmark", "item", "n", "shared"), cells, right=("row", "item", "n"))
    if len(listed) > most:
        show.say(f"and {len(listed) - most} more: --show {len(listed)}, or --json")
    _print_skipped(read)
    if missing:
        show.say(f"not compared, for want of data: {', '.join(missing)} (rlhf-bench suites fetch {' '.join(missing)})")
