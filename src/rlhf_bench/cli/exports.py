"""A run as the files of other tools."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from rlhf_bench.cli import lookup, measuring
from rlhf_bench.harness.errors import UserError

if TYPE_CHECKING:
    from rlhf_bench.harness.store import Run, Store


def export(store: Store, run: Run, folder: Path, form: str = "lm-eval") -> tuple[list[Path], list[str]]:
    """Write the run as files of this form; gives them, and the benchmarks that have no place in it.

    Raises UserError where the run cannot be asked for its definitions again, or has nothing of lm-eval's.
    """
    from rlhf_bench.harness import codec
    from rlhf_bench.suites import chat_export
    from rlhf_bench.suites.lm_eval_export import write

    if (repeats := (run.manifest.get("protocol") or {}).get("repeats", 1)) > 1:
        raise UserError(f"run {run.id} has {repeats} answers to each question, and {form}'s files hold one")
    if form in chat_export.FORMATS:
        return chat_export.export(form, run, store.records(run.id), folder)
    report = store.report(run.id)
    if not run.settings:
        raise UserError(f"run {run.id} was not made by `rlhf-bench run`, so its tasks cannot be looked up again")
    asked, records = measuring.asked_before(run), store.records(run.id)
    chosen = lookup.suite(asked.suite, asked.include_path)
    regime = measuring.protocol(asked, chosen)
    if codec.digest(regime) != report.manifest["protocol_digest"]:
        raise UserError(f"protocol '{asked.protocol}' is no longer what run {run.id} was asked by: run it again")
    theirs = {record.benchmark for record in records if "task" in record.sample.tags}
    ours = [each.name for each in chosen.benchmarks if each.name not in theirs]
    if not theirs:
        raise UserError(f"run {run.id} has nothing of lm-eval's: it has no task for {', '.join(ours)}")
    paths = write(run, records, [each for each in chosen.benchmarks if each.name in theirs], regime, folder)
    return paths, ours
