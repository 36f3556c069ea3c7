import csv

import pytest
from tests.cli.conftest import Call, Line, N, finished

from rlhf_bench.harness.store import Store


def test_a_comparison_shows_difference_interval_p_and_flips(call: Call, line: Line) -> None:
    done = call("compare", line.champion.run_id, line.worse.run_id)
    assert done.code == 0
    (row,) = [each for each in done.out.splitlines() if each.startswith("  maths")]
    assert "−" in done.out and "●" in row
    assert "-0.500" in row
    assert row.split()[-3:] == ["+0", f"−{N // 2}", "0"]
    assert max(map(len, done.out.splitlines())) <= 100


def test_json_holds_every_comparison_and_nothing_else(call: Call, line: Line) -> None:
    found = call("compare", "base", "better", "worse", "--json").json
    assert found["runs"] == [line.better.run_id, line.worse.run_id]
    assert [each["difference"] for each in found["comparisons"]["maths"]] == [0.0, -0.5]
    assert set(found["comparisons"]) == {"chat", "maths"}


def test_several_runs_are_columns(call: Call, line: Line) -> None:
    done = call("compare", "base", "better", "worse")
    assert line.better.run_id in done.out and line.worse.run_id in done.out
    assert done.out.count("ungr. 0") == 4


def test_csv_and_markdown_hold_the_same_rows(call: Call, line: Line) -> None:
    rows = list(csv.DictReader(call("compare", "base", "better", "worse", "--csv").out.splitlines()))
    assert [(row["benchmark"], row["run"]) for row in rows] == [
        (name, run) for name in ("chat", "maths") for run in (line.better.run_id, line.worse.run_id)
    ]
    assert float(rows[3]["difference"]) == -0.5
    lines = call("compare", "base", "better", "worse", "--markdown").out.splitlines()
    assert len(lines) == 2 + len(rows)
    assert all(each.count("|") == lines[0].count("|") for each in lines)


def test_two_formats_at_once_are_refused(call: Call, line: Line) -> None:
    assert call("compare", "base", "better", "--json", "--csv").code == 2


def test_flips_print_both_answers_with_their_markup_as_text(call: Call, line: Line) -> None:
    done = call("compare", "base", "worse", "--benchmark", "maths", "--flips", "2")
    assert done.out.count("══ lost") == 2
    assert done.out.count("══ gained") == 0
    assert "[b]?[/b]" in done.out
    assert "an answer" in done.out


def test_flips_show_gains_and_losses(call: Call, line: Line) -> None:
    found = call("compare", "base", "alike", "-b", "chat", "--flips", "1", "--json").json["flips"][0]["chat"]
    differences = [new["score"]["value"] - old["score"]["value"] for new, old in found]
    assert [difference > 0 for difference in differences] == [False, True]


@pytest.mark.parametrize(("changed", "field"), [({"judge": "K"}, "judge"), ({"shots": 8}, "shots")])
def test_runs_made_otherwise_are_refused_by_the_field(
    call: Call, line: Line, store: Store, changed: dict[str, object], field: str
) -> None:
    other = finished(store, "other", "f" * 64, [0.5] * N, [1.0] * N, **changed)  # type: ignore[arg-type]
    done = call("compare", line.champion.run_id, other.run_id)
    assert done.code == 2
    assert field in done.one_line


def test_ungraded_samples_are_counted_and_not_scored(call: Call, line: Line, store: Store) -> None:
    other = finished(store, "gaps", "e" * 64, [None, *[0.9] * (N - 1)], [1.0] * N)
    found = call("compare", "base", other.run_id, "--json").json["comparisons"]["chat"][0]
    assert (found["ungraded"], found["paired"]) == (1, N - 1)


def test_an_unknown_benchmark_names_the_nearest(call: Call, line: Line) -> None:
    done = call("compare", "base", "better", "-b", "math")
    assert done.code == 2
    assert "Did you mean 'maths'" in done.one_line


def test_samples_that_only_one_run_has_are_not_left_out_in_silence(call: Call, line: Line, store: Store) -> None:
    part = finished(store, "part", "f" * 64, [0.5] * 10, [1.0] * 10)
    for args in (("base", part.run_id), ("base", part.run_id, "better")):
        out = call("compare", *args).out
        assert out.count("note: ") == 2
        assert f"only 10 samples are in both runs; {N - 10} are in one and left out" in out
    (chat, _) = csv.DictReader(call("compare", "base", part.run_id, "--csv").out.splitlines())
    assert (chat["paired"], chat["unpaired"]) == ("10", str(N - 10))
    assert "note: " not in call("compare", "base", "better").out
