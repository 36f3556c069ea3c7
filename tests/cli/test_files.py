"""A path on the command line is a result file: gated as it is, kept where it is imported."""

from __future__ import annotations

import gzip
import json
import os
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from tests.cli.conftest import Call

from rlhf_bench.cli.files import inline_policy, is_file, load
from rlhf_bench.harness.errors import UnknownName, UserError
from rlhf_bench.harness.store import Store

N = 200


def annotations(path: Path, share: float, model: str = "mine", **fields: Any) -> Path:
    """AlpacaEval's annotations of N instructions, of which the model wins this share."""
    rows = [
        {
            "instruction": f"instruction {n}",
            "output_1": f"the baseline's {n}",
            "generator_1": "gpt4_1106_preview",
            "output_2": f"{model}'s {n}",
            "generator_2": model,
            "annotator": "weighted_alpaca_eval_gpt4_turbo",
            "preference": 2.0 if n < share * N else 1.0,
            **fields,
        }
        for n in range(N)
    ]
    path.write_text(json.dumps(rows))
    return path


def samples(folder: Path, right: Sequence[bool], task: str = "gsm8k") -> Path:
    """A samples file of lm-eval with a line for each document under each of its two filters."""
    folder.mkdir(exist_ok=True)
    lines = [
        {
            "doc_id": n,
            "doc": {"question": f"question {n}"},
            "target": str(n),
            "arguments": {"gen_args_0": {"arg_0": f"Q: {n}?\nA:", "arg_1": {"until": ["Q:"], "do_sample": False}}},
            "resps": [[f"answer {n}, {good}"]],
            "filtered_resps": [str(n)],
            "filter": name,
            "metrics": ["exact_match"],
            "exact_match": float(good),
        }
        for name in ("strict-match", "flexible-extract")
        for n, good in enumerate(right)
    ]
    path = folder / f"samples_{task}_2026-01-02T03-04-05.678.jsonl"
    path.write_text("\n".join(map(json.dumps, lines)))
    return path


def right(share: float, seed: int = 0) -> list[bool]:
    rng = random.Random(seed)
    return [rng.random() < share for _ in range(N)]


@pytest.mark.parametrize(
    ("text", "means"),
    [
        ("out/new", True),
        ("./champion", True),
        ("annotations.json", True),
        ("annotations.json:some/model", True),
        ("annotations.csv.gz:model", True),
        ("samples_gsm8k.jsonl", True),
        ("~/new.json", True),
        ("latest", False),
        ("latest~1", False),
        ("champion", False),
        ("9f86d081", False),
        ("my-model", False),
        ("model-v1.5", False),
        ("", False),
        ("a" * 5000, False),
        ("a\0b", False),
    ],
)
def test_what_names_a_file_and_what_a_run(text: str, means: bool) -> None:
    assert is_file(text) is means


def test_a_folder_named_like_a_run_is_one_of_files_only_with_results_in_it(home: Path) -> None:
    for name in ("plain", "out", "champion"):
        (home / name / "model").mkdir(parents=True)
    assert not is_file("plain")
    for name in ("out", "champion"):
        (home / name / "model" / "results_2026-01-01T00-00-00.json").write_text("{}")
    assert is_file("out")
    assert not is_file("champion")


@given(st.text(max_size=20))
@example("~nobody-of-this-name/a.json")
@example("~\0")
def test_no_name_breaks_the_question_what_it_means(text: str) -> None:
    assert is_file(text) in (True, False)


def test_each_kind_of_file_is_told_by_its_content(home: Path, store: Store) -> None:
    rows = json.loads(annotations(home / "a.json", 0.5).read_text())
    (home / "b.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (home / "c.json.gz").write_bytes(gzip.compress((home / "a.json").read_bytes(), mtime=0))
    cells = [rows[0].keys(), *(each.values() for each in rows)]
    (home / "d.csv").write_text("\n".join(",".join(str(cell).replace(",", ";") for cell in each) for each in cells))
    (home / "e").write_text((home / "a.json").read_text())
    runs = [load(str(home / name), store) for name in ("a.json", "b.jsonl", "c.json.gz", "d.csv", "e")]
    assert len(set(runs)) == 1
    of_lm_eval = store.run(load(str(samples(home / "s", right(0.5))), store))
    assert list(of_lm_eval.manifest["benchmarks"]) == ["gsm8k"]


def test_a_model_of_several_is_picked_after_a_colon(home: Path, store: Store) -> None:
    both = json.loads(annotations(home / "a.json", 0.5).read_text())
    both += json.loads(annotations(home / "b.json", 0.6, "org/other:v1").read_text())
    (home / "both.json").write_text(json.dumps(both))
    assert store.run(load(f"{home}/both.json:org/other:v1", store)).model == "org/other:v1"
    with pytest.raises(UserError, match="holds 2 models"):
        load(f"{home}/both.json", store)
    with pytest.raises(UnknownName, match="Did you mean 'mine'"):
        load(f"{home}/both.json:min", store)
    with pytest.raises(UserError, match="of lm-eval and holds one model"):
        load(f"{samples(home / 's', right(0.5))}:x", store)


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("nothing.json", None, "there is no"),
        ("nothing.json:model", None, "nothing.json: give"),
        ("a.json", b"", "is empty, and no result file"),
        ("samples_a.jsonl", b" \n\n", "is empty"),
        ("samples_a.jsonl", gzip.compress(b'{"doc_id": 1, "resps": []}', mtime=0), "is compressed: lm-eval's files"),
        ("samples_a.jsonl.gz", gzip.compress(b'{"doc": 1}', mtime=0), "unpack it first"),
        ("samples_a.jsonl", b"null", "line 1: input should be a valid dictionary"),
        (os.fsdecode(b"samples_\xff.jsonl"), b"{}", "a name that is no Unicode"),
        ("a.json", b"{", "no result file"),
        ("a.json", b'{"score": 1}', "no result file"),
        ("a.txt", b"hello", "no result file"),
        ("a.bin", bytes(range(256)), "no result file"),
        ("a.json.gz", b"\x1f\x8b broken", "cannot be read"),
        ("a.json", b"[" * 100_000, "not JSON"),
        ("a.json", b'{"a":' * 100_000, "no result file"),
        ("a.json", b'[{"instruction": "i", "output": "o"}]', "no field 'generator_2'"),
        ("results_x.json", b'{"score": 1}', "results: field required"),
        ("a.json", b'{"results": 1}', "results: "),
        ("a.jsonl", b'{"doc_id": 1, "resps": []}', "does not say its task"),
        ("samples_a.jsonl", b'{"doc": 1}', "line 1: doc_id"),
        ("a.csv", b"a,b\n1,2\n", "row 1: no field"),
        ("a" * 5000 + ".json", None, "there is no"),
    ],
)
def test_what_is_no_result_file_is_one_line(
    home: Path, store: Store, name: str, content: bytes | None, says: str
) -> None:
    if content is not None:
        (home / name).write_bytes(content)
    with pytest.raises(UserError) as raised:
        load(f"./{name}", store)
    assert says in str(raised.value)
    assert len(str(raised.value).splitlines()) == 1
    assert "instance of" not in str(raised.value)
    assert store.runs() == []


@pytest.mark.parametrize("name", ["pipe.json", "samples_pipe.jsonl", "pipe.csv"])
def test_a_pipe_is_refused_and_not_waited_for(home: Path, store: Store, name: str) -> None:
    os.mkfifo(home / name)
    with pytest.raises(UserError, match="is a pipe or a device"):
        load(f"./{name}", store)


FACTS = {
    "alpaca_eval": {"metric": "win_rate"},
    "gsm8k": {"metric": "exact_match,flexible-extract"},
    "odd:name": {"metric": "acc"},
}


def test_options_make_a_policy_with_each_benchmarks_own_metric() -> None:
    found = inline_policy(
        ["alpaca_eval", "odd:name=0.01"],
        ["gsm8k=0.02", "gsm8k:exact_match,strict-match=3e-2", "alpaca_eval:lc_win_rate=0.01"],
        0.1,
        FACTS,
    )
    assert [(t.benchmark, t.metric, t.min_effect) for t in found.targets] == [
        ("alpaca_eval", "win_rate", 0.0),
        ("odd:name", "acc", 0.01),
    ]
    assert [(g.benchmark, g.metric, g.margin) for g in found.guards] == [
        ("gsm8k", "exact_match,flexible-extract", 0.02),
        ("gsm8k", "exact_match,strict-match", 0.03),
        ("alpaca_eval", "lc_win_rate", 0.01),
    ]
    assert (found.alpha, found.ledger, found.require) == (0.1, None, "all")


@pytest.mark.parametrize(
    ("targets", "guards", "alpha", "says"),
    [
        (["alpaca_eval"], [], 0.05, "no --guard"),
        ([], ["gsm8k=0.02"], 0.05, "no --target"),
        (["alpaca_eval"], ["gsm8k=2"], 0.05, "did you mean 0.02?"),
        (["alpaca_eval"], ["gsm8k=2%"], 0.05, "did you mean 0.02?"),
        (["alpaca_eval"], ["gsm8k=2.5 %"], 0.05, "did you mean 0.025?"),
        (["alpaca_eval=1"], ["gsm8k=0.02"], 0.05, "did you mean 0.01?"),
        (["alpaca_eval"], ["gsm8k"], 0.05, "--guard gsm8k=0.02"),
        (["alpaca_eval"], ["gsm8k="], 0.05, "'' is no fraction"),
        (["alpaca_eval"], ["gsm8k=much"], 0.05, "'much' is no fraction"),
        (["alpaca_eval"], ["gsm8k=nan"], 0.05, "--guard gsm8k=nan: margin"),
        (["alpaca_eval"], ["gsm8k=0"], 0.05, "it must be greater than 0"),
        (["alpaca_eval"], ["gsm8k=-0.02"], 0.05, "it must be greater than 0"),
        (["alpaca_eva"], ["gsm8k=0.02"], 0.05, "Did you mean 'alpaca_eval'?"),
        (["alpaca_eval"], ["gsm9k=0.02"], 0.05, "Did you mean 'gsm8k'?"),
        (["alpaca_eval"], ["gsm8k=0.02", "gsm8k=0.03"], 0.05, "is a guard 2 times"),
        (["gsm8k"], ["gsm8k=0.02"], 0.05, "these --target and --guard: exact_match,flexible-extract of 'gsm8k' is a"),
        (["alpaca_eval"], ["gsm8k=0.02"], 0.6, "--alpha 0.6"),
        (["alpaca_eval"], ["gsm8k=0.02"], 0.0, "--alpha 0"),
        ([""], ["gsm8k=0.02"], 0.05, "no benchmark"),
    ],
)
def test_an_option_that_is_wrong_is_one_line(targets: list[str], guards: list[str], alpha: float, says: str) -> None:
    with pytest.raises(UserError) as raised:
        inline_policy(targets, guards, alpha, FACTS)
    assert says in str(raised.value)
    assert len(str(raised.value).splitlines()) == 1


def test_annotations_are_imported_as_a_run_that_is_listed(home: Path, call: Call) -> None:
    path = annotations(home / "a.json", 0.5)
    found = call("runs", "import", str(path), "--name", "mine-2", "--json").json[0]
    assert (found["model"], found["judge"]) == ("mine-2", "weighted_alpaca_eval_gpt4_turbo")
    assert call("runs", "--json").json[0]["id"] == found["run_id"]
    assert "win_rate" in call("runs", "show", "latest").out


ALPACA = ("--target", "alpaca_eval", "--guard", "alpaca_eval:discrete_win_rate=0.05")
GSM8K = ("--target", "gsm8k", "--guard", "gsm8k:exact_match,strict-match=0.05")


def two_annotations(home: Path, share: float) -> tuple[str, str]:
    return str(annotations(home / "new.json", share)), str(annotations(home / "old.json", 0.5))


def two_samples(home: Path, share: float) -> tuple[str, str]:
    old = right(0.5)
    more = [good if share < 0.5 else True for good in old] if share != 0.5 else old
    new = [good and (share >= 0.5 or n % 2 == 0) for n, good in enumerate(more)]
    if share == 0.5:
        new[new.index(False)] = True
    return str(samples(home / "new", new)), str(samples(home / "old", old))


@pytest.mark.parametrize(("share", "code", "word"), [(0.7, 0, "promote"), (0.3, 1, "reject"), (0.5, 3, "inconclusive")])
@pytest.mark.parametrize(
    ("two", "policy"), [(two_annotations, ALPACA), (two_samples, GSM8K)], ids=["alpaca", "lm-eval"]
)
def test_two_result_files_gate_in_one_line_and_nothing_is_kept(
    home: Path,
    call: Call,
    two: Callable[[Path, float], tuple[str, str]],
    policy: tuple[str, ...],
    share: float,
    code: int,
    word: str,
) -> None:
    new, old = two(home, share)
    if share == 0.5 and two is two_annotations:
        rows = json.loads(Path(new).read_text())
        rows[-1]["preference"] = 1.5
        Path(new).write_text(json.dumps(rows))
    before = sorted(path for path in home.rglob("*"))
    done = call("gate", new, old, *policy, "--json")
    assert (done.code, done.json["verdict"]) == (code, word)
    assert done.json["id"] is None
    assert sorted(path for path in home.rglob("*")) == before


def test_a_file_against_itself_or_against_a_run_is_refused_in_one_line(home: Path, call: Call) -> None:
    new, _ = two_annotations(home, 0.6)
    same = call("gate", new, new, *ALPACA)
    assert same.code == 2 and "is the champion" in same.one_line
    mixed = call("gate", new, "latest", *ALPACA)
    assert mixed.code == 2 and "runs import" in mixed.one_line


def test_files_of_other_judges_and_tasks_are_refused_in_one_line(home: Path, call: Call) -> None:
    new, old = two_annotations(home, 0.6)
    annotations(Path(old), 0.5, annotator="other")
    done = call("gate", new, old, *ALPACA)
    assert done.code == 2
    assert "judge is weighted_alpaca_eval_gpt4_turbo in the one and other in the other" in done.one_line
    lone = str(samples(home / "s", right(0.5)))
    assert call("gate", new, lone, *ALPACA).code == 2


def test_ungraded_rows_never_promote(home: Path, call: Call) -> None:
    new, old = two_annotations(home, 0.9)
    rows = json.loads(Path(new).read_text())
    for each in rows[: N // 10]:
        each["preference"] = None
    Path(new).write_text(json.dumps(rows))
    done = call("gate", new, old, *ALPACA, "--json")
    assert (done.code, done.json["verdict"]) == (3, "inconclusive")
    assert "20 of 200 pairs are ungraded" in done.json["reasons"][0]


def folder_of(home: Path, name: str, biased: Sequence[float], accuracy: Sequence[float], **more: Any) -> str:
    """lm-eval's output of a task with two metrics, of which less of the first is better."""
    folder = home / name
    folder.mkdir()
    lines = [
        {
            "doc_id": n,
            "doc": {},
            "target": "t",
            "arguments": [[f"Q {n}", " a"]],
            "resps": [[["-1.0", "True"]]],
            "bias": bias,
            "acc": acc,
        }
        for n, (bias, acc) in enumerate(zip(biased, accuracy, strict=True))
    ]
    (folder / "samples_pairs_2026.jsonl").write_text("\n".join(map(json.dumps, lines)))
    found = {"results": {"pairs": {"bias,none": 0.5, "acc,none": 0.5}}, "model_name": name, **more}
    (folder / "results_2026.json").write_text(json.dumps(found))
    return f"./{name}"


SAID = {"higher_is_better": {"pairs": {"bias": False, "acc": True}}}


def test_what_a_file_says_is_better_when_lower_is_never_promoted_for_rising(home: Path, call: Call) -> None:
    less, more, same = [0.0] * 150 + [1.0] * 50, [0.0] * 50 + [1.0] * 150, [1.0, 0.0] * 100
    fair, biased = (folder_of(home, name, bias, same, **SAID) for name, bias in (("fair", less), ("biased", more)))
    options = ("--target", "pairs:bias", "--guard", "pairs=0.1")
    assert call("gate", fair, biased, *options, "--json").json["verdict"] == "promote"
    assert call("gate", biased, fair, *options, "--json").json["verdict"] == "reject"
    (home / "p.yaml").write_text(
        "name: p\ntargets: [{benchmark: pairs, metric: bias}]\nguards: [{benchmark: pairs, metric: acc, margin: 0.1}]\n"
    )
    done = call("gate", biased, fair, "--policy", "p.yaml")
    assert done.code == 2
    assert done.one_line.endswith(
        "that less bias of 'pairs' is better, and policy 'p' the contrary: write `direction: lower`"
    )
    cell = call("compare", biased, fair, "-m", "bias", "--json").json["metrics"]["pairs"]["bias"][0]
    assert (cell["shown"], cell["direction"]) == ("better", "lower")


def test_the_score_is_a_metric_that_is_better_when_higher_where_there_is_one(home: Path, store: Store) -> None:
    values = [1.0, 0.0] * 10
    for name, said, metric in (("told", SAID, "acc"), ("untold", {}, "bias")):
        run = store.run(load(folder_of(home, name, values, values, **said), store))
        assert run.manifest["benchmarks"]["pairs"]["metric"] == metric


def test_values_that_are_all_whole_in_one_file_compare_with_others(home: Path, call: Call) -> None:
    half = [0.5] * 4 + [1.0, 0.0] * 98
    whole, broken = (
        folder_of(home, name, v, [1.0] * 200) for name, v in (("w", [1.0] * 190 + [0.0] * 10), ("b", half))
    )
    for new, old in ((whole, broken), (broken, whole)):
        done = call("gate", new, old, "--target", "pairs", "--guard", "pairs:acc=0.1", "--json")
        assert done.json["verdict"] == ("promote" if new == whole else "reject")
        (cell,) = call("compare", old, new, "--json").json["comparisons"]["pairs"]
        assert (cell["kind"], cell["shown"]) == ("continuous", "better" if new == whole else "worse")


def test_an_anchor_that_changes_nothing_is_refused(home: Path, call: Call) -> None:
    new, old = (str(annotations(home / f"{name}.json", share, name)) for name, share in (("new", 0.6), ("old", 0.3)))
    options = ("--target", "alpaca_eval", "--guard", "alpaca_eval:discrete_win_rate=0.05")
    assert call("gate", new, old, *options, "--anchor", old).code == 0
    own = call("gate", new, old, *options, "--anchor", new)
    assert (own.code, "holds the candidate's own results" in own.one_line) == (2, True)
    (home / "p.yaml").write_text(
        "name: p\nagainst_anchor: false\ntargets: [{benchmark: alpaca_eval, metric: win_rate}]\n"
        "guards: [{benchmark: alpaca_eval, metric: discrete_win_rate, margin: 0.05}]\n"
    )
    ignored = call("gate", new, old, "--policy", "p.yaml", "--anchor", old)
    assert (ignored.code, "against_anchor: false" in ignored.one_line) == (2, True)


def test_a_metric_that_is_no_mean_and_does_not_vary_is_stored_as_undecided(home: Path, call: Call) -> None:
    for name in ("new", "old"):
        path = annotations(home / f"{name}.json", 0.5, name)
        assert call("runs", "import", str(path), "--name", name).code == 0
    done = call(
        "gate", "latest", "latest~1", "--target", "alpaca_eval", "--guard", "alpaca_eval:discrete_win_rate=0.05"
    )
    assert done.code == 3
    again = call(
        "gate",
        "latest",
        "latest~1",
        "--target",
        "alpaca_eval",
        "--guard",
        "alpaca_eval:discrete_win_rate=0.05",
        "--json",
    ).json
    guard = again["checks"][1]
    assert (again["id"], guard["low"], guard["high"], guard["outcome"]) == (1, None, None, "undecided")
    assert "on 200 pairs (no interval: too little varies among them), margin 5" in guard["reason"]
    assert guard["reason"].endswith("more samples are needed, and these do not tell how many")
