from __future__ import annotations

from collections.abc import Sequence

import pytest

from rlhf_bench.harness.errors import UserError
from rlhf_bench.harness.store import Run
from rlhf_bench.harness.types import Record, Report, Request, Sample, Score
from rlhf_bench.leaderboards.ladder import candidates, climb
from rlhf_bench.leaderboards.measured import conditions

MANIFEST = {"benchmarks": {"maths": {"metric": "acc", "version": "1", "digest": "d"}}, "protocol_digest": "p"}


def run(name: str, finished: str | None, judge: str | None = None) -> Run:
    report = Report(name, name, name, "s", "paper", judge, (), MANIFEST) if finished else None
    return Run(name, name, name, "s", "paper", judge, name, MANIFEST, finished=finished, report=report)


def records(values: Sequence[float | None], cluster: int = 1) -> list[Record]:
    found = []
    for number, value in enumerate(values):
        name, group = str(number), f"c{number // cluster}"
        sample = Sample(name, (Request(name, "?"),), "", {"cluster": group})
        found.append(Record("maths", f"d{number}", sample, (), Score(name, value)))
    return found


def test_runs_climb_in_the_order_in_which_they_were_finished() -> None:
    runs = [run("late", "2026-02"), run("early", "2026-01"), run("half", None)]
    wanted = conditions(runs[0].report, "maths")  # type: ignore[arg-type]
    assert [each.id for each in candidates(runs, "maths", wanted)] == ["early", "late"]
    assert candidates(runs, "chat", wanted) == []
    assert candidates(runs, "maths", {**wanted, "shots": "8"}) == []


def test_the_rungs_say_what_was_published_and_since_when() -> None:
    submitted = [
        (run(name, "2026"), name.upper(), records(values))
        for name, values in (("a", [None, None]), ("b", [1.0, 0.0]), ("c", [1.0, 0.0]), ("d", [1.0, 1.0]))
    ]
    found = climb("maths", submitted, {})
    assert [(rung.published, rung.moved, rung.moved_at) for rung in found.rungs] == [
        (None, False, None),
        (0.5, True, 2),
        (0.5, False, 2),
        (0.5, False, 2),
    ]
    assert [(rung.step, rung.run, rung.model) for rung in found.rungs[1:3]] == [(2, "b", "B"), (3, "c", "C")]
    assert (found.metric, found.samples) == ("acc", 2)


def test_the_order_of_records_says_nothing() -> None:
    values = [1.0] * 20 + [0.0] * 10
    submitted = [(run("a", "1"), "A", records([0.0] * 30)), (run("b", "2"), "B", records(values)[::-1])]
    assert climb("maths", submitted, {}).rungs[1].published == 20 / 30


def test_repeats_of_a_question_are_one_item() -> None:
    base = [1.0] * 15 + [0.0] * 15
    new = [0.0] * 2 + [1.0] * 17 + [0.0] * 11
    for copies, cluster, moved in ((1, 1, False), (5, 5, False), (5, 1, True)):
        submitted = [
            (run(name, name), name, records([value for value in values for _ in range(copies)], cluster))
            for name, values in (("1", base), ("2", new))
        ]
        assert climb("maths", submitted, {}).rungs[1].moved is moved


def test_runs_of_different_samples_are_refused_and_so_is_none() -> None:
    submitted = [(run("a", "1"), "A", records([1.0, 0.0])), (run("b", "2"), "B", records([1.0]))]
    with pytest.raises(UserError, match="runs a and b are of different samples"):
        climb("maths", submitted, {})
    with pytest.raises(UserError, match="no finished run of 'maths' to climb"):
        climb("maths", [], {})
