from rlhf_bench.harness.types import Estimate, Report
from rlhf_bench.leaderboards.measured import conditions, rows
from rlhf_bench.leaderboards.ranking import differences


def report(
    judge: str = "J", judge_identity: str = "aaaaaaaa", digest: str = "111111111", dtype: str = "float32"
) -> Report:
    estimates = tuple(
        Estimate(name, metric, 0.5, 0.4, 0.6, 0.05, 10, 0)
        for name, metric in (("chat", "win_rate"), ("maths", "acc_norm"), ("maths", "acc"))
    )
    facts = {"version": "1", "samples": 10, "digest": digest}
    manifest = {
        "protocol": {"shots": {"maths": 8}},
        "protocol_digest": "pppppppp",
        "judge_identity": judge_identity,
        "engine": {"dtype": dtype},
        "benchmarks": {"chat": facts | {"metric": "win_rate"}, "maths": facts | {"metric": "acc_norm"}},
        "judged": ["chat"],
    }
    return Report("r1", "m", "c" * 64, "s", "paper", judge, estimates, manifest)


def test_a_benchmark_is_one_row_in_its_own_metric() -> None:
    found = rows(report(), "named", ("parent",))
    assert [(row.benchmark, row.metric) for row in found] == [("chat", "win_rate"), ("maths", "acc_norm")]
    assert all((row.model, row.lineage, row.source) == ("named", ("parent",), "run r1") for row in found)


def test_only_judged_benchmarks_depend_on_the_judge() -> None:
    one, other = report("J"), report("K", "bbbbbbbb")
    assert differences(conditions(other, "chat"), conditions(one, "chat")) == ("judge K (bbbbbb), here J (aaaaaa)",)
    assert conditions(other, "maths") == conditions(one, "maths")


def test_a_judge_trained_anew_under_the_same_name_is_another() -> None:
    one, other = report(judge_identity="aaaaaaaa"), report(judge_identity="bbbbbbbb")
    assert differences(conditions(other, "chat"), conditions(one, "chat")) == ("judge J (bbbbbb), here J (aaaaaa)",)


def test_other_questions_of_the_same_number_and_other_precision_are_told_apart() -> None:
    found = differences(
        conditions(report(digest="222222222", dtype="bfloat16"), "maths"), conditions(report(), "maths")
    )
    assert found == ("questions 222222, here 111111", "precision bfloat16, here float32")
