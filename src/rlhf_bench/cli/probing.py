"""The probes of a loop: the same few prompts to every candidate, on a page and in the terminal. They decide nothing."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlhf_bench.cli import lookup, show
from rlhf_bench.harness.errors import RlhfBenchError

if TYPE_CHECKING:
    from rlhf_bench.trainers.online import Iteration, Line
    from rlhf_bench.trainers.online.probes import Probed


def probed(line: Line, done: Sequence[Iteration]) -> list[Probed]:
    """What the first policy and each candidate answer to the probes, kept in the loop's folder with a page of them.

    Probes decide nothing, so whatever fails here is a line on stderr, and is tried again after the next iteration.
    """
    from rlhf_bench.harness.models import open_engine
    from rlhf_bench.trainers.online.line import begun
    from rlhf_bench.trainers.online.probes import probe, read_probes, scorer_of, write_page
    from rlhf_bench.trainers.online.scoring import freed

    config, store = line.config, line.store
    if config.probes is None:
        return []
    models = {each.digest: each for each in (done[0].policy, *(each.candidate for each in done))}
    found = []
    with _noted("the probes"):
        prompts = read_probes(config.probes, config.answers.max_tokens)
        scorer = scorer_of(line.scoring()) if config.preferences is None else None
        options: Any = {"engine": begun(line)["engine"], "dtype": config.answers.dtype}
        for each in models.values():
            name, folder = lookup.name_of(each, store), line.work / "probes"
            with (
                _noted(f"the probes of {name}"),
                freed(open_engine(each.path, store, track=line.track, **options)) as engine,
            ):
                found.append(probe(name, prompts, engine, folder, store, scorer=scorer, track=line.track))
        if found:
            write_page(line.work, config.name, found)
    return found


def print_probes(probed: Sequence[Probed], page: Path | None = None) -> None:
    """Each probe's prompt with the answers of all models below it, one that did not change named and not repeated."""
    for line in probe_table(probed):
        show.say(line)
    if page is not None:
        show.say(f"\nside by side in a browser: {page}")


def probe_table(probed: Sequence[Probed]) -> list[str]:
    """The lines of `print_probes`."""
    from rlhf_bench.cli.side_by_side import indented
    from rlhf_bench.trainers.online.probes import about, asked

    lines: list[str] = []
    answers = [(each.name, {asked(row): row for row in each.rows}) for each in probed]
    for key, first in {asked(row): row for each in reversed(probed) for row in each.rows}.items():
        lines.append(f"\n══ {first['sample_id']}: {indented(first['prompt'][-1]['content'])}")
        before = None
        for name, rows in answers:
            row = rows.get(key)
            if row is not None:
                same = before is not None and row["response"] == before
                lines.append(
                    f"{name} ({about(row, same=same)})" + ("" if same else f"\n{' ' * 11}{indented(row['response'])}")
                )
                before = row["response"]
    return lines


@contextmanager
def _noted(what: str) -> Iterator[None]:
    """Whatever fails within is a line on stderr."""
    try:
        yield
    except Exception as error:  # models and their files raise whatever they like
        kind = "" if isinstance(error, RlhfBenchError) else f"{type(error).__name__}: "
        show.complain(f"note: {what} failed ({kind}{error}): they decide nothing, so it goes on")
