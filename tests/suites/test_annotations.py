"""AlpacaEval's annotations become runs that compare and gate; what is no annotation becomes one line."""

from __future__ import annotations

import csv
import gzip
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rlhf_bench.harness.codec import sample_digest
from rlhf_bench.harness.compare import compare
from rlhf_bench.harness.errors import UnknownName, UserError
from rlhf_bench.harness.gate import RunData, gate, require_comparable
from rlhf_bench.harness.policy import Guard, Policy, Target
from rlhf_bench.harness.store import Store
from rlhf_bench.harness.types import Estimate, Report
from rlhf_bench.suites import alpaca_eval
from rlhf_bench.suites.annotations import read
from rlhf_bench.suites.judged import Choice, score

Rows = list[dict[str, Any]]
FULL = ("FuseChat-Llama-3.1-8B-Instruct", "gpt-3.5-turbo-1106", "text_davinci_003", "vicuna-7b-v1.5")


def row(number: int = 0, **fields: Any) -> dict[str, Any]:
    return {
        "instruction": f"instruction {number}",
        "dataset": "vicuna" if number % 2 else "koala",
        "output_1": "a baseline's answer",
        "generator_1": "gpt4_1106_preview",
        "output_2": "an answer" + "!" * number,
        "generator_2": "mine",
        "annotator": "weighted_alpaca_eval_gpt4_turbo",
        "preference": 1.25,
        **fields,
    }


Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def written(rows: Sequence[Mapping[str, Any]], name: str = "annotations.json") -> Path:
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(list(rows)))
        return path

    return written


@pytest.fixture
def here(mirror: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The mirror, as the project finds it."""
    monkeypatch.setenv("RLHF_BENCH_DATA", str(mirror))
    return mirror / "alpaca_eval"


@pytest.fixture
def bare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine without any data."""
    monkeypatch.delenv("RLHF_BENCH_DATA", raising=False)
    monkeypatch.setenv("RLHF_BENCH_CACHE", str(tmp_path / "no-data"))


def full(here: Path, model: str) -> Path:
    return next(here.glob(f"full/{model}.*"))


def estimate(report: Report, metric: str) -> Estimate:
    (found,) = [each for each in report.estimates if each.metric == metric]
    return found


@pytest.mark.parametrize("model", FULL)
def test_the_win_rates_of_an_official_file_are_those_that_are_scored_from_it(
    here: Path, store: Store, model: str
) -> None:
    report = read(full(here, model), store)
    (scored,) = score("alpaca_eval", [full(here, model)], Choice())
    for metric in ("win_rate", "lc_win_rate", "discrete_win_rate"):
        mean = estimate(report, metric).mean
        assert mean is not None
        assert 100 * mean == pytest.approx(scored.metrics[metric].value, abs=1e-9)
    assert (report.model, report.judge) == (model, "weighted_alpaca_eval_gpt4_turbo")
    assert estimate(report, "win_rate").graded == 805
    assert store.run(report.run_id).status == "complete"


def test_two_official_files_pair_by_instruction_and_differ_as_their_win_rates_do(here: Path, store: Store) -> None:
    new, old = (read(full(here, model), store) for model in FULL[:2])
    ours, theirs = store.records(new.run_id), store.records(old.run_id)
    found = compare(ours[::-1], theirs, benchmark="alpaca_eval", metric="win_rate", kind="continuous")
    assert (found.paired, found.unpaired) == (805, ())
    rates = [score("alpaca_eval", [full(here, m)], Choice())[0].metrics["win_rate"].value or 0.0 for m in FULL[:2]]
    assert 100 * found.difference == pytest.approx(rates[0] - rates[1], abs=1e-9)
    by_hand = [
        {r["instruction"]: float(r["preference"]) for r in json.loads(gzip.decompress(full(here, m).read_bytes()))}
        for m in FULL[:2]
    ]
    d = np.array([by_hand[0][each] - by_hand[1][each] for each in by_hand[0]])
    assert found.difference == pytest.approx(d.mean(), abs=1e-12)
    assert (found.gained, found.lost) == ((d > 0).sum(), (d < 0).sum())
    assert found.high - found.low == pytest.approx(2 * 1.963 * d.std(ddof=1) / 805**0.5, rel=1e-3)


def test_two_official_files_gate(here: Path, store: Store) -> None:
    strong, weak = (read(full(here, model), store).run_id for model in (FULL[0], FULL[2]))
    policy = Policy(
        name="p",
        ledger="none",
        against_anchor=False,
        targets=(Target(benchmark="alpaca_eval", metric="win_rate"),),
        guards=(Guard(benchmark="alpaca_eval", metric="lc_win_rate", margin=0.02),),
    )
    figures = {"alpaca_eval": alpaca_eval.BENCHMARK.figures}
    new, old = (RunData.load(store, each, figures) for each in (strong, weak))
    assert gate(policy, new, old).outcome == "promote"
    assert gate(policy, old, new).outcome == "reject"


def test_rows_of_lengths_pair_with_full_rows_and_have_the_same_win_rates_and_no_text(here: Path, store: Store) -> None:
    reduced = here / "annotations_reduced.csv.gz"
    short, long = read(reduced, store, model=FULL[1]), read(full(here, FULL[1]), store)
    ours, theirs = store.records(short.run_id), store.records(long.run_id)
    assert [each.digest for each in ours] == [each.digest for each in theirs]
    for metric in ("win_rate", "lc_win_rate"):
        one, other = estimate(short, metric), estimate(long, metric)
        assert (one.mean, one.se) == pytest.approx((other.mean, other.se), abs=1e-9)
    for record in ours:  # there is a length, and no answer that a sentinel could measure
        (answer,) = record.completions
        assert (answer.finish_reason, answer.text) == ("error", "") and "length" in answer.why
        assert record.score.value is not None and record.score.also["length_chars"] > 0


def test_without_data_rows_of_lengths_still_compare_and_say_why_they_have_no_lc_win_rate(
    mirror: Path, bare: None, store: Store
) -> None:
    reduced = mirror / "alpaca_eval/annotations_reduced.csv.gz"
    new, old = (read(reduced, store, model=model) for model in FULL[:2])
    records = [store.records(each.run_id) for each in (new, old)]
    found = compare(*records, benchmark="alpaca_eval", metric="win_rate", kind="continuous")
    assert found.paired == 805
    lc = estimate(new, "lc_win_rate")
    assert lc.mean is None and "suites fetch" in lc.why
    with pytest.raises(UserError):
        alpaca_eval.lc_win_rate(records[0], [each.score.value or 0.0 for each in records[0]])


def test_the_first_alpaca_evals_rows_name_no_baseline_and_compare_within_their_file(here: Path, store: Store) -> None:
    file = here / "alpaca_eval_1_annotations_reduced.csv.gz"
    with gzip.open(file, "rt") as lines:
        models = list(dict.fromkeys(each["model"] for each in csv.DictReader(lines)))[:2]
    runs = [RunData.load(store, read(file, store, model=model).run_id) for model in models]
    require_comparable(runs[0], runs[1], ["alpaca_eval"])
    assert "not named" in runs[0].benchmarks["alpaca_eval"]["version"]
    assert "the baseline is not named" in estimate(store.report(runs[0].run_id), "lc_win_rate").why


def test_a_record_holds_what_was_asked_answered_and_graded(write: Write, store: Store) -> None:
    report = read(write([row(0), row(1, preference=2)]), store)
    first, second = store.records(report.run_id)
    assert (first.sample.row["instruction"], first.sample.reference) == ("instruction 0", "a baseline's answer")
    assert (first.sample.row["generator"], first.sample.tags) == ("gpt4_1106_preview", {"stratum": "koala"})
    assert (second.completions[0].text, second.score.also) == ("an answer!", {"length_chars": 10.0})
    assert (first.score.value, second.score.value) == (0.25, 1.0)
    assert first.digest == sample_digest(first.sample)


@pytest.mark.parametrize(
    ("fields", "value", "why"),
    [
        ({"preference": None}, None, "no preference"),
        ({"preference": 0}, 0.5, ""),
        ({"preference": "1.75"}, 0.75, ""),
        ({"output_2": None}, None, "output_2 is null"),
        ({"output_1": None}, None, "output_1 is null"),
        ({"output_2": ""}, 0.25, ""),
    ],
)
def test_what_has_no_verdict_is_ungraded_and_not_zero(
    write: Write, store: Store, fields: dict[str, Any], value: float | None, why: str
) -> None:
    report = read(write([row(0, **fields), row(1)]), store)
    record = store.records(report.run_id)[0]
    assert record.score.value == value
    assert why in record.score.why and bool(record.score.why) == bool(why)
    assert estimate(report, "win_rate").ungraded == (value is None)


def test_the_same_rows_are_the_same_run_and_other_rows_another_state(write: Write, store: Store) -> None:
    rows = [row(0), row(1)]
    one = read(write(rows), store)
    assert read(write(rows), store).run_id == one.run_id
    assert read(write(rows[::-1]), store).checkpoint == one.checkpoint
    assert read(write([row(0, preference=1.3), row(1)]), store).checkpoint != one.checkpoint
    assert read(write([row(0, output_2="other"), row(1)]), store).checkpoint != one.checkpoint
    renamed = read(write(rows), store, name="ours")
    assert (renamed.model, renamed.checkpoint) == ("ours", one.checkpoint)


def test_the_digest_of_the_samples_is_that_of_instructions_and_baseline(write: Write, store: Store) -> None:
    def facts(rows: Rows) -> Any:
        return read(write(rows), store).manifest["benchmarks"]["alpaca_eval"]["digest"]

    one = facts([row(0), row(1)])
    assert facts([row(1, generator_2="yours", output_2="x", preference=2), row(0, generator_2="yours")]) == one
    assert facts([row(0), row(1, output_1="another")]) != one
    assert facts([row(0), row(2)]) != one


@pytest.mark.parametrize(
    ("fields", "field", "names"),
    [
        ({"annotator": "gpt-5"}, "judge", ("gpt-5", "weighted_alpaca_eval_gpt4_turbo")),
        ({"generator_1": "text_davinci_003"}, "version of 'alpaca_eval'", ("text_davinci_003", "gpt4_1106_preview")),
        ({"annotator": None}, "judge", ("not named in file", "weighted_alpaca_eval_gpt4_turbo")),
    ],
)
def test_files_by_another_judge_or_against_another_baseline_are_refused_by_name(
    write: Write, store: Store, fields: dict[str, Any], field: str, names: tuple[str, str]
) -> None:
    one = RunData.load(store, read(write([row(0)]), store).run_id)
    other = RunData.load(store, read(write([row(0, **fields)], "other.json"), store).run_id)
    with pytest.raises(UserError, match=field) as raised:
        require_comparable(other, one, ["alpaca_eval"])
    assert all(name in str(raised.value) for name in names)


def test_files_that_name_no_judge_do_not_compare_with_each_other(write: Write, store: Store) -> None:
    runs = [
        RunData.load(store, read(write([row(0, annotator=None, output_2=text)], f"{text}.json"), store).run_id)
        for text in ("a", "b")
    ]
    with pytest.raises(UserError, match="judge is not named in file"):
        require_comparable(runs[0], runs[1], ["alpaca_eval"])


def test_a_file_of_several_models_needs_a_name(write: Write, store: Store) -> None:
    path = write([row(0), row(0, generator_2="yours"), row(1)])
    with pytest.raises(UserError, match=r"2 models \(mine, yours\): name one, as in annotations.json:mine"):
        read(path, store)
    with pytest.raises(UnknownName, match="Did you mean 'yours'"):
        read(path, store, model="your")
    assert estimate(read(path, store, model="mine"), "win_rate").graded == 2
    assert estimate(read(path, store, model="yours"), "win_rate").graded == 1


@pytest.mark.parametrize(
    ("rows", "says"),
    [
        ([row(0), row(1, preference=2.5)], "row 2: field 'preference' is 2.5"),
        ([row(0), row(1, preference=float("nan"))], "row 2: field 'preference' is nan"),
        ([row(0), row(0)], "row 2: the instruction of row 1 again"),
        ([row(0), row(1, output_2=7)], "row 2: field 'output_2' is 7"),
        ([row(0), row(1, output_2="\ud800")], "row 2: text that is no Unicode"),
        ([row(0), row(1, instruction="\udfff")], "row 2: text that is no Unicode"),
        ([row(0, generator_2="\ud800")], "row 1: text that is no Unicode"),
        ([row(0, dataset=["a"])], "row 1: field 'dataset'"),
        ([row(0), row(1, annotator="other")], "mixes 2 judges (other, weighted_alpaca_eval_gpt4_turbo)"),
        ([row(0), row(1, generator_1="other")], "mixes 2 baselines (gpt4_1106_preview, other)"),
        ([{"instruction": "i", "output": "o", "generator": "g"}], "row 1: no field 'generator_2'"),
        ([[1]], "row 1: a list"),
        ([], "no annotation"),
    ],
)
def test_a_broken_row_is_one_line_that_names_it_and_nothing_is_kept(
    write: Write, store: Store, rows: Rows, says: str
) -> None:
    path = write(rows)
    with pytest.raises(UserError) as raised:
        read(path, store)
    assert says in str(raised.value) and str(path) in str(raised.value)
    assert len(str(raised.value).splitlines()) == 1
    assert store.runs() == []


def test_other_instructions_and_baselines_say_why_they_have_no_lc_win_rate(
    here: Path, write: Write, store: Store
) -> None:
    ours = read(write([row(number) for number in range(120)]), store)
    assert "not one of AlpacaEval's 805" in estimate(ours, "lc_win_rate").why
    theirs = read(write([row(number, generator_1="other") for number in range(120)], "other.json"), store)
    assert "the baseline is other" in estimate(theirs, "lc_win_rate").why


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    preferences=st.lists(st.none() | st.floats(1, 2) | st.just(0.0), min_size=1, max_size=8),
    texts=st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=5), min_size=8, max_size=8),
)
def test_whatever_the_rows_the_scores_are_the_preferences_less_one(
    write: Write, store: Store, preferences: list[float | None], texts: list[str]
) -> None:
    rows = [row(n, preference=p, output_2=texts[n]) for n, p in enumerate(preferences)]
    records = store.records(read(write(rows), store).run_id)
    wanted = [None if p is None else 0.5 if p == 0 else p - 1 for p in preferences]
    assert [each.score.value for each in records] == wanted
    assert [each.score.also["length_chars"] for each in records] == [
        len(text) for text, _ in zip(texts, rows, strict=False)
    ]
    again = [replace(each, digest=sample_digest(each.sample)) for each in records]
    assert again == records
