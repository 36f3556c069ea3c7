"""`rlhf-bench compare`: what people and programs are told of several runs."""

from __future__ import annotations

import csv
import html
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from tests.cli.conftest import Call, Line, N, finished, records, stopped

from rlhf_bench.harness.codec import digest, sample_digest
from rlhf_bench.harness.policy import load_policy
from rlhf_bench.harness.store import Run, Store
from rlhf_bench.harness.types import Completion, Message, Record, Report, Request, Sample, Score

HOSTILE = "</pre></details><script>x</script> @everyone #1 | ![x](http://x) *b* `c`\n\n# big"


def kept(store: Store, name: str, records: Sequence[Record], **facts: str) -> str:
    """A finished run of these records, whose benchmarks have the metric "acc" and are binary if not said otherwise."""
    benchmarks: dict[str, Any] = {}
    for each in records:
        facts = {"version": "1", "metric": "acc", "kind": "binary"} | facts
        benchmarks.setdefault(each.benchmark, {**facts, "samples": 0, "digest": "d"})["samples"] += 1
    manifest = {"protocol_digest": "p", "judge_identity": "j", "benchmarks": benchmarks, "judged": []}
    run = digest([name, [each.digest for each in records]])[:10]
    store.start_run(Run(run, name, digest(name), "s", "p", "J", digest(run), manifest))
    store.save_records(run, records)
    store.finish_run(run, Report(run, name, digest(name), "s", "p", "J", (), manifest))
    return run


def one(
    benchmark: str,
    number: int,
    value: float | None,
    *,
    stratum: str = "",
    also: Mapping[str, float] | None = None,
    answer: str = "42",
    cut: bool = False,
    why: str = "",
) -> Record:
    name = f"{benchmark}/{number}"
    tags = {"stratum": stratum} if stratum else {}
    sample = Sample(name, (Request(name, (Message("user", f"question {number}"),)),), "right", tags)
    completion = Completion(name, 0, answer, "length" if cut else "stop", 1)
    return Record(benchmark, sample_digest(sample), sample, (completion,), Score(name, value, why, also or {}))


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
    table = [each for each in lines if each.startswith("|")]
    assert table[0] == f"| benchmark | base | better ({line.better.run_id}) | worse ({line.worse.run_id}) |"
    assert [each.split(" | ")[0] for each in table[2:]] == ["| chat", "| maths"]
    assert all(each.count("|") == table[0].count("|") for each in table)
    assert "-0.500 ▼ [" in table[3]


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
    names = [each for each in records("chat", [0.0] * N) if int(each.sample.id.split("/")[1]) >= 10]
    named = ", ".join(each.sample.id for each in sorted(names, key=lambda each: each.digest)[:3]) + ", …"
    assert named in call("compare", "base", part.run_id).out
    assert named in call("compare", "base", part.run_id, "--markdown").out
    (chat, _) = csv.DictReader(call("compare", "base", part.run_id, "--csv").out.splitlines())
    assert (chat["paired"], chat["unpaired"], chat["unpaired ids"]) == ("10", str(N - 10), named)
    found = call("compare", "base", part.run_id, "--json").json
    assert set(found["comparisons"]["chat"][0]["unpaired"]) == {each.sample.id for each in names}
    assert len(found["notes"]) == 2
    assert "note: " not in call("compare", "base", "better").out


@pytest.mark.parametrize("against", ["base", "another"])
def test_of_a_run_that_was_stopped_early_it_is_said_what_the_gate_does_and_the_gate_does_it(
    call: Call, line: Line, policy: str, store: Store, against: str
) -> None:
    other = line.champion.run_id if against == "base" else line.alike.run_id
    part = stopped(store, line.worse, "f" * 64, other, load_policy(Path(policy)).digest)
    out = " ".join(call("compare", "base", part.run_id).out.split())
    gated = call("gate", part.run_id, line.champion.run_id, "--policy", policy)
    assert f"run {part.run_id} was stopped early (10 of {N} of chat, 10 of {N} of maths)" in out
    assert "the gate refuses such runs" not in out
    if against == "base":
        assert f"`rlhf-bench gate {part.run_id} {line.champion.run_id}` allows for that, by the policy" in out
        assert gated.code == 3
        assert "maths: lost 50.0 points on 10 pairs" in " ".join(gated.out.split())
    else:
        assert f"the gate allows for that against run {line.alike.run_id}, and refuses it against any other" in out
        assert gated.code == 2
        assert "for another policy or against another run" in gated.one_line


def test_a_base_that_was_stopped_early_is_refused_by_the_gate_as_compare_says(
    call: Call, line: Line, policy: str, store: Store
) -> None:
    part = stopped(store, line.champion)
    out = " ".join(call("compare", part.run_id, "better").out.split())
    assert f"run {part.run_id} was stopped early: the gate holds nothing against it" in out
    done = call("gate", "better", part.run_id, "--policy", policy)
    assert (done.code, "so nothing can be held against it" in done.one_line) == (2, True)
    found = call("gate", "better", "champion", "--policy", policy, "--json").json
    assert found["runs"]["champion"] == line.champion.run_id  # the whole one, though it is older


def test_what_is_shown_is_marked_and_explained(call: Call, line: Line) -> None:
    marks = {("better", "chat"): "▲", ("worse", "maths"): "▼", ("better", "maths"): "·", ("alike", "chat"): "·"}
    shown = {"▲": "better", "▼": "worse", "·": "neither"}
    for (name, benchmark), mark in marks.items():
        done = call("compare", "base", name)
        (row,) = [each for each in done.out.splitlines() if each.startswith(f"  {benchmark}")]
        assert f" {mark} " in row
        assert "▲ better, ▼ worse: shown at 95%" in done.out
        found = call("compare", "base", name, "--json").json
        assert found["comparisons"][benchmark][0]["shown"] == shown[mark]
        assert found["legend"][0] in done.out


def test_the_base_may_be_named_with_to(call: Call, line: Line) -> None:
    found = call("compare", "better", "worse", "--to", "champion", "--json").json
    assert (found["base"], found["runs"]) == (line.champion.run_id, [line.better.run_id, line.worse.run_id])
    found = call("compare", "base", "better", "worse", "--to", "worse", "--json").json
    assert (found["base"], found["runs"]) == (line.worse.run_id, [line.champion.run_id, line.better.run_id])
    assert call("compare", "better", "--to", "base").code == 0


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["better"], "'better' alone compares with nothing: rlhf-bench compare BASE RUN..., or --to BASE"),
        (["base", "champion"], "'base' and 'champion' are the same run"),
        (["base", "better", "better"], "'better' and 'better' are the same run"),
        (["base", "--to", "champion"], "'champion' is the base, and nothing is left to compare with it"),
        (["base", "better", "--metric", "win"], "Did you mean 'win_rate'?"),
        (["base", "better", "--lower-is-better", "acurracy"], "Did you mean 'accuracy'?"),
        (["base", "better", "--by-stratum"], "no sample of chat, maths says which part of it it belongs to"),
    ],
)
def test_what_cannot_be_compared_is_one_line(call: Call, line: Line, args: list[str], says: str) -> None:
    done = call("compare", *args)
    assert done.code == 2
    assert says in done.one_line


def test_further_metrics_stand_under_the_benchmarks_own(call: Call, store: Store) -> None:
    runs = [
        kept(store, f"m{bias}", [
            one("maths", i, float(i % 2), also={"strict": float(i % 4 > bias), "length_chars": 100.0 + bias * i})
            for i in range(N)
        ])
        for bias in (2, 1)
    ]  # fmt: skip
    assert "strict" not in call("compare", *runs).out
    done = call("compare", *runs, "--metric", "strict")
    assert [each.split()[0] for each in done.out.splitlines() if each.startswith(("  maths", "    strict"))] == [
        "maths",
        "strict",
    ]
    found = call("compare", *runs, "--metric", "all", "--json").json
    assert set(found["metrics"]["maths"]) == {"strict", "length_chars"}
    (strict,), (length,) = found["metrics"]["maths"]["strict"], found["metrics"]["maths"]["length_chars"]
    assert (strict["difference"], strict["shown"], strict["method"]) == (0.25, "better", "tango, mcnemar mid-p")
    assert length["difference"] == pytest.approx(-(N - 1) / 2) and length["low"] < -10 and length["shown"] == "lower"
    assert "-19.5 ↓" in call("compare", *runs, "-m", "all").out
    rows = list(csv.DictReader(call("compare", *runs, "--metric", "all", "--csv").out.splitlines()))
    assert [row["metric"] for row in rows] == ["acc", "length_chars", "strict"]
    assert "| ↳ length_chars | 139.0 | 119.5 | -19.5 |" in call("compare", *runs, "-m", "all", "--markdown").out


def test_of_a_metric_that_should_fall_a_fall_is_better(call: Call, store: Store) -> None:
    runs = [
        kept(store, f"m{bias}", [one("maths", i, 1.0, also={"toxic": float(i % 4 > bias)}) for i in range(N)])
        for bias in (1, 2)
    ]
    for args, shown, gained in (((), "worse", 0), (("--lower-is-better", "toxic"), "better", N // 4)):
        found = call("compare", *runs, "--metric", "toxic", *args, "--json").json
        (cell,) = found["metrics"]["maths"]["toxic"]
        assert (cell["difference"], cell["shown"], cell["gained"]) == (-0.25, shown, gained)
    assert "lower is better: toxic" in call("compare", *runs, "--metric", "toxic", "--lower-is-better", "toxic").out


def test_cut_answers_and_divergence_should_fall_without_being_told(call: Call, store: Store) -> None:
    runs = [
        kept(store, f"m{bias}", [
            one("maths", i, 1.0, also={"truncated": float(i % 4 > bias), "kl": 3.0 * (i % 5) / bias}) for i in range(N)
        ])
        for bias in (1, 2)
    ]  # fmt: skip
    found = call("compare", *runs, "--metric", "all", "--json").json["metrics"]["maths"]
    assert [found[name][0]["shown"] for name in ("truncated", "kl")] == ["better", "better"]
    assert found["kl"][0]["difference"] == -3.0


def in_strata(store: Store, name: str, gains: Sequence[int], size: int = 30) -> str:
    found = [
        one("exam", size * subject + place, float(place < gain), stratum=f"subject_{subject}")
        for subject, gain in enumerate(gains)
        for place in range(size)
    ]
    return kept(store, name, found)


def test_strata_are_rows_marked_by_holm_and_the_legend_says_so(call: Call, store: Store) -> None:
    base, new = in_strata(store, "base", [0] * 20), in_strata(store, "new", [6, 14, *[0] * 18])
    assert "subject_1" not in call("compare", base, new).out
    done = call("compare", base, new, "--by-stratum")
    rows = {each.split()[0]: each for each in done.out.splitlines() if each.startswith("    subject")}
    assert len(rows) == 20
    assert "+0.467 ▲" in rows["subject_1"] and "+0.200 ·" in rows["subject_0"]
    assert "strata: marked by Holm; else about 1 of 20 that did not change would be marked" in done.out
    found = call("compare", base, new, "--by-stratum", "--json").json["strata"]["exam"]
    assert found["subject_0"][0]["p_adjusted"] == pytest.approx(19 * 2 * found["subject_0"][0]["p"])
    assert found["subject_0"][0]["low"] > 0
    rows_csv = list(csv.DictReader(call("compare", base, new, "--by-stratum", "--csv").out.splitlines()))
    assert [row["stratum"] for row in rows_csv[:2]] == ["", "subject_0"]
    (macro,) = call("compare", base, new, "-m", "acc,macro", "--json").json["metrics"]["exam"]["acc,macro"]
    assert macro["difference"] == pytest.approx(20 / 600) and macro["shown"] == "better"
    assert "| ↳ subject_1 |" in call("compare", base, new, "--by-stratum", "--markdown").out


def test_answers_that_were_cut_are_counted_where_there_are_any(call: Call, line: Line, store: Store) -> None:
    runs = [kept(store, f"cut{count}", [one("maths", i, 1.0, cut=i < count) for i in range(N)]) for count in (1, 5, 0)]
    two, three = call("compare", *runs[:2]).out, call("compare", *runs).out
    assert "1→5" in two and "cut: samples with an answer cut" in two
    assert "cut 1→5" in three and "cut 1→0" in three
    assert "cut" not in call("compare", "base", "better").out
    assert call("compare", *runs[:2], "--json").json["comparisons"]["maths"][0]["cut"] == {"base": 1, "new": 5}
    assert "| 1→5 |" in call("compare", *runs[:2], "--markdown").out


def test_a_benchmark_that_a_run_lacks_is_an_empty_cell_and_said(call: Call, store: Store) -> None:
    both = [one("maths", i, 1.0) for i in range(N)] + [one("code", i, 1.0) for i in range(N)]
    base = kept(store, "base", both)
    some = kept(store, "some", both[:N])
    more = kept(store, "more", [*both, one("extra", 0, 1.0)])
    found = call("compare", base, some, more, "--json").json
    assert found["comparisons"]["code"][0] is None and found["comparisons"]["code"][1]["paired"] == N
    notes = [f"run {some} has no code", f"run {base} has no extra: what run {more} has of it is left out"]
    assert found["notes"] == notes
    for form in ((), ("--markdown",)):
        out = call("compare", base, some, more, *form).out
        assert all(f"note: {note}" in out for note in notes)
        assert re.search(r"code +\W* ?1\.000 \W*–", out)


def test_many_runs_are_tables_below_each_other_and_stay_readable(call: Call, store: Store) -> None:
    rights = [in_strata(store, f"iteration-{number}-of-a-loop", [5 + number, 9]) for number in range(7)]
    out = call("compare", *rights, "--by-stratum").out
    assert all(run in out for run in rights)
    assert out.count("benchmark") == 2
    assert max(map(len, out.splitlines())) <= 100


def test_a_long_stratum_leaves_the_table_readable(call: Call, store: Store) -> None:
    names = ("high_school_government_and_politics", "virology")
    runs = [
        kept(store, model, [
            one("mmlu", i, float(i % 3 < right), stratum=names[i % 2], cut=i == 0) for i in range(2000)
        ])
        for model, right in (("base", 1), ("new", 2))
    ]  # fmt: skip
    out = call("compare", *runs, "--by-stratum").out
    assert max(map(len, out.splitlines())) <= 100
    assert "    high_school_government_" in out and "+333 −0" in out and "1→1" in out


@pytest.fixture
def graded(store: Store) -> list[str]:
    """A base and a run whose answers are made to break out of a comment; the kind is continuous."""
    return [
        kept(store, name, [
            one("maths", i, values[i], answer=f"{HOSTILE} {name} {i}", why=f"why {HOSTILE}") for i in range(4)
        ], kind="continuous")
        for name, values in (("base*|x", [1.0, 0.9, 0.2, 0.5]), ("new", [0.7, 0.0, 0.4, 0.5]))
    ]  # fmt: skip


def test_flips_come_with_both_answers_and_why_the_greatest_loss_first(call: Call, graded: list[str]) -> None:
    out = call("compare", *graded, "--flips", "5").out
    assert re.findall(r"══ (\w+ maths/\d: \S+ → \S+)", out) == [
        "lost maths/1: 0.900 → 0.000",
        "lost maths/0: 1.000 → 0.700",
        "gained maths/2: 0.200 → 0.400",
    ]
    lines = out[out.index("lost maths/1") :].splitlines()
    starts = [each for each in lines if each.startswith(("asked:", "reference:", "base:", "new:"))][:4]
    assert [each[11:16] for each in starts] == ["quest", "right", "0.900", "0.000"]
    assert "(why </pre>" in starts[2] and "base*|x 1" in out and "new 1" in out
    assert "lost maths/0" not in call("compare", *graded, "--flips", "1").out
    found = call("compare", *graded, "--flips", "1", "--json").json["flips"][0]["maths"]
    assert [(new["sample"]["id"], new["score"]["value"], old["score"]["value"]) for new, old in found] == [
        ("maths/1", 0.0, 0.9),
        ("maths/2", 0.4, 0.2),
    ]


def test_in_markdown_what_a_model_says_is_text_and_nothing_else(call: Call, graded: list[str]) -> None:
    out = call("compare", *graded, "--flips", "5", "--markdown").out
    assert out.startswith("**new (") and "base&#42;&#124;x" in out.splitlines()[0]
    assert "<details><summary>maths: 2 lost and 1 gained by" in out
    blocks = re.findall(r"^<pre>\n(.*?)\n</pre>$", out, re.S | re.M)
    assert len(blocks) == 3
    for block in blocks:
        assert "<" not in block and "&lt;/pre&gt;" in block
        assert HOSTILE in html.unescape(block)
    rest = re.sub(r"^<pre>.*?^</pre>$", "", out, flags=re.S | re.M)
    assert set(re.findall(r"<[^>]*>", rest)) <= {
        "<details>",
        "<summary>",
        "</summary>",
        "</details>",
        "<sub>",
        "</sub>",
    }
    assert "@" not in rest and rest.count("<details>") == rest.count("</details>") == 1


def test_a_comment_that_github_would_refuse_is_cut_and_says_how_much(call: Call, store: Store) -> None:
    runs = [
        kept(store, name, [one("maths", i, right, answer="& " * 5000) for i in range(60)])
        for name, right in (("base", 1.0), ("new", 0.0))
    ]
    out = call("compare", *runs, "--flips", "60", "--markdown").out
    assert len(out) < 65_536
    assert re.search(r"\d+ more do not fit into a comment", out)
    assert "… (8505 more characters)" in html.unescape(out)
    assert out.count("<details>") == out.count("</details>") == 1


def test_a_run_that_is_not_finished_compares_with_nothing(call: Call, line: Line, store: Store) -> None:
    manifest = store.run(line.better.run_id).manifest
    store.start_run(Run("abcdef0123", "half", "h" * 64, "test", "paper", "J", "k" * 64, manifest))
    done = call("compare", "base", "abcdef0123")
    assert (done.code, "not finished" in done.one_line) == (2, True)


def test_published_annotations_compare_length_controlled_with_no_store_at_all(
    call: Call, mirror: Path, monkeypatch: pytest.MonkeyPatch, home: Path
) -> None:
    """The difference is that of the published leaderboard; SE and interval are of the paired difference."""
    monkeypatch.setenv("RLHF_BENCH_DATA", str(mirror))
    files = [
        str(mirror / "alpaca_eval/full" / f"{name}.annotations.json.gz")
        for name in ("gpt-3.5-turbo-1106", "FuseChat-Llama-3.1-8B-Instruct")
    ]
    found = call("compare", *files, "--json").json
    with (mirror / "alpaca_eval/published/weighted_alpaca_eval_gpt4_turbo_leaderboard.csv").open() as board:
        published = {row[""]: float(row["length_controlled_winrate"] or "nan") for row in csv.DictReader(board)}
    (cell,) = found["metrics"]["alpaca_eval"]["lc_win_rate"]
    assert 100 * cell["champion"] == pytest.approx(published["gpt-3.5-turbo-1106"], abs=0.15)
    assert 1.2 < 100 * (cell["high"] - cell["low"]) / 3.92 < 2.0
    assert (cell["method"], cell["shown"]) == ("paired t, 805 items, sign flips, linearised", "better")
    out = call("compare", *files, "--by-stratum").out
    assert re.search(r"^    lc_win_rate +0\.19\d ", out, re.M) and "    koala " in out
    assert max(map(len, out.splitlines())) <= 100
    assert not (home / "home").exists()


def test_where_there_is_no_length_controlled_rate_a_note_says_why_and_the_rest_is_shown(
    call: Call, store: Store
) -> None:
    runs = [
        kept(store, name, [one("alpaca_eval", i, 0.5) for i in range(50)], kind="continuous")
        for name in ("base", "new")
    ]
    done = call("compare", *runs)
    assert done.code == 0
    assert "note: alpaca_eval: lc_win_rate needs at least 100 graded samples, and there are 50" in done.out
    asked = call("compare", *runs, "--metric", "lc_win_rate")
    assert (asked.code, asked.one_line) == (
        2,
        "error: lc_win_rate needs at least 100 graded samples, and there are 50",
    )
