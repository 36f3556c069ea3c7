"""`rlhf-bench run --repeats`, and what goes on with such a run."""

from __future__ import annotations

import pytest
from tests.cli.conftest import Call

from rlhf_bench.harness.store import Store

SAMPLED = ("-s", "demo-arithmetic,demo-four-way", "-m", "scripted:oracle", "-L", "3", "--temperature", "0.7")


def test_questions_are_answered_so_often_and_choices_once(call: Call, store: Store) -> None:
    report = call("run", *SAMPLED, "--repeats", "4", "--sample-seed", "9", "--json").json
    assert report["protocol"] == "paper+repeats=4+temperature=0.7+sample-seed=9"
    graded = {each["benchmark"]: (each["mean"], each["graded"]) for each in report["estimates"]}
    assert graded == {"demo-arithmetic": (1.0, 12), "demo-four-way": (1.0, 3)}
    settings = store.run("latest").settings
    assert (settings["repeats"], settings["temperature"], settings["sample_seed"]) == (4, 0.7, 9)
    again = call("runs", "resume", report["run_id"], "--json").json
    assert (again["run_id"], again["estimates"]) == (report["run_id"], report["estimates"])


def test_a_sampling_seed_or_a_number_of_repeats_is_another_run(call: Call) -> None:
    runs = {
        call("run", *SAMPLED, *more, "--json").json["run_id"]
        for more in ((), ("--repeats", "2"), ("--repeats", "3"), ("--sample-seed", "1"))
    }
    assert len(runs) == 4


def test_one_answer_and_the_first_seed_are_what_is_asked_without_the_options(call: Call) -> None:
    plain, said = (
        call("run", *SAMPLED, *more, "--json").json for more in ((), ("--repeats", "1", "--sample-seed", "0"))
    )
    assert (plain["run_id"], plain["protocol"]) == (said["run_id"], "paper+temperature=0.7")


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (["--repeats", "3"], "'demo-arithmetic' is decoded greedily, so 3 answers to a question would be the same one"),
        (["--repeats", "0"], "greater than or equal to 1"),
        (["--temperature", "0"], "a temperature of 0: give one above 0"),
        (["--sample-seed", "-1"], "greater than or equal to 0"),
    ],
)
def test_what_cannot_be_asked_is_one_line_and_no_run(call: Call, store: Store, more: list[str], says: str) -> None:
    done = call("run", "-s", "demo-arithmetic", "-m", "scripted:oracle", "-L", "2", *more)
    assert done.code == 2
    assert says in done.one_line
    assert store.runs() == []


def test_a_dry_run_counts_every_answer(call: Call) -> None:
    planned = call("run", *SAMPLED, "--repeats", "4", "--dry-run", "--json").json
    assert planned["answers"]["calls"] == 3 * 4 + 3 * 4  # four answers each; four choices each, once


def test_files_that_hold_one_answer_to_a_question_are_not_written(call: Call) -> None:
    run = call("run", *SAMPLED, "--repeats", "2", "--json").json["run_id"]
    done = call("runs", "export", run, "--format", "lm-eval", "--output", "out")
    assert done.code == 2
    assert "2 answers to each question, and lm-eval's files hold one" in done.one_line
