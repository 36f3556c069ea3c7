from pathlib import Path

import pytest
from tests.cli.conftest import Call

from rlhf_bench.harness.store import Store


@pytest.fixture(autouse=True)
def data(mirror: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RLHF_BENCH_DATA", str(mirror))


def test_the_oracle_is_right_on_real_questions(call: Call, store: Store) -> None:
    done = call("run", "--suite", "arc_challenge", "--model", "scripted:oracle", "--limit", "4", "--json")
    assert done.code == 0
    assert done.json["estimates"][0]["mean"] == 1.0
    assert done.json["manifest"]["limit"] == 4
    assert set(done.json["manifest"]["data"]) == {"arc_challenge/test", "arc_challenge/train"}
    assert store.run("latest").id == done.json["run_id"]


def test_a_run_ends_with_where_its_records_lie_and_what_to_type(call: Call) -> None:
    first = call("run", "-s", "arc_challenge", "-m", "scripted:oracle", "-L", "3")
    assert "next: rlhf-bench runs show" in first.out
    second = call("run", "-s", "arc_challenge", "-m", "scripted:echo", "-L", "3")
    command = second.out.rpartition("next: rlhf-bench ")[2].split()
    assert command[0] == "compare"
    done = call(*command)
    assert done.code == 0
    assert "scripted:echo" in done.out
    assert "answers: 12/12" in second.err


def test_a_finished_run_is_resumed_to_the_same_report(call: Call) -> None:
    first = call(
        "run", "-s", "arc_challenge", "-m", "scripted:oracle", "-L", "2", "--protocol", "lm-eval", "--json"
    ).json
    again = call("runs", "resume", first["run_id"], "--json").json
    assert again["estimates"] == first["estimates"]
    assert again["run_id"] == first["run_id"]


def test_the_flags_that_decide_a_run_decide_its_id(call: Call) -> None:
    runs = {
        call("run", "-s", "arc_challenge", "-m", "scripted:oracle", "--json", *more).json["run_id"]
        for more in (["-L", "2"], ["-L", "3"], ["-L", "2", "--protocol", "lm-eval"])
    }
    assert len(runs) == 3


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["-m", "scripted:orakle"], "oracle"),
        (["-m", "smollm2-135m-instuct"], "Did you mean 'smollm2-135m-instruct'"),
        (["-m", "champion"], "rlhf-bench promote"),
        (["-m", "scripted:echo", "--protocol", "papr"], "Did you mean 'paper'"),
        (["-m", "scripted:echo", "--suite", "alpaca_eval", "--judge", "demo-rewrad"], "demo-rewrad"),
    ],
)
def test_a_mistake_is_found_before_anything_is_run(call: Call, store: Store, args: list[str], says: str) -> None:
    done = call("run", "--suite", "arc_challenge", "-L", "1", *args)
    assert done.code == 2
    assert says in done.one_line
    assert store.runs() == []


def test_an_empty_model_is_not_taken_for_the_default(call: Call, store: Store) -> None:
    done = call("run", "-s", "arc_challenge", "-m", "", "-L", "2")
    assert done.code == 2
    assert "empty" in done.one_line
    assert not store.runs()


STOP = """
name: stop
ledger: none
targets: [{benchmark: demo-arithmetic, metric: exact_match}]
guards: [{benchmark: demo-four-way, metric: acc_norm, margin: 0.1}]
"""


def test_a_run_stops_once_the_gate_against_the_champion_is_decided(call: Call, home: Path) -> None:
    (home / "stop.yaml").write_text(STOP)
    suite = ("--suite", "demo-arithmetic,demo-four-way")
    old = call("run", *suite, "--model", "scripted:empty", "--json").json["run_id"]
    done = call("run", *suite, "-m", "scripted:oracle", "--against", old, "--sequential", "--policy", "stop.yaml")
    assert done.code == 0
    assert "ended after" in done.out and "were never asked or judged" in done.out
    found = call("runs", "show", "latest", "--json").json["report"]["manifest"]["sequential"]
    assert found["against"] == old
    assert any(asked < there for asked, there in found["asked"].values())
    assert "verdict 1: PROMOTE" in done.out  # a decision as the gate's are, and booked as they are
    gated = call("gate", "latest", old, "--policy", "stop.yaml", "--json").json
    assert (gated["id"], gated["verdict"], gated["alpha_spent"]) == (1, "promote", 0.05)


@pytest.mark.parametrize(
    ("suite", "model", "changed", "says"),
    [
        ("demo-arithmetic", "oracle", ("", ""), "no benchmark in this run named 'demo-four-way'"),
        ("demo-arithmetic,demo-four-way", "empty", ("", ""), "the candidate is the champion"),
        ("demo-arithmetic,demo-four-way", "oracle", ("acc_norm", "acc_nor"), "Did you mean 'acc_norm'?"),
        ("demo-arithmetic,demo-four-way", "oracle", ("demo-four-way", "gsm8k"), "Policy 'stop' asks for it."),
        ("demo-arithmetic,demo-four-way", "oracle", ("acc_norm", "acc_norm, strata: [a]"), "no stratum of"),
    ],
)
def test_a_sequential_run_that_could_never_be_decided_is_refused_before_anything_is_asked(
    call: Call, home: Path, store: Store, suite: str, model: str, changed: tuple[str, str], says: str
) -> None:
    (home / "stop.yaml").write_text(STOP.replace(*changed))
    whole = ("--suite", "demo-arithmetic,demo-four-way")
    old = call("run", *whole, "-m", "scripted:empty", "-L", "20", "--json").json["run_id"]
    command = ("run", "--suite", suite, "-m", f"scripted:{model}", "-L", "20", "--against", old, "--sequential")
    done = call(*command, "--policy", "stop.yaml")
    assert done.code == 2
    assert says in done.one_line  # no answers were counted above it
    assert [run.id for run in store.runs()] == [old]
    assert store.verdicts() == []


def test_the_same_sequential_command_again_is_the_same_run_and_spends_nothing(call: Call, home: Path) -> None:
    (home / "stop.yaml").write_text(STOP.replace("ledger: none", "ledger: open"))
    suite = ("--suite", "demo-arithmetic,demo-four-way")
    old = call("run", *suite, "--model", "scripted:empty", "--json").json["run_id"]
    command = ("run", *suite, "-m", "scripted:oracle", "--against", old, "--sequential", "--policy", "stop.yaml")
    first, again = (call(*command, "--json").json for _ in range(2))
    assert first["report"]["run_id"] == again["report"]["run_id"]
    assert first["gate"] == again["gate"]
    assert first["gate"]["decision"] == 1


def test_a_run_that_is_compared_afterwards_says_how(call: Call) -> None:
    old = call("run", "-s", "demo-arithmetic", "--model", "scripted:empty", "--json").json["run_id"]
    done = call("run", "-s", "demo-arithmetic", "--model", "scripted:oracle", "--against", old)
    assert f"next: rlhf-bench compare {old} " in done.out


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (("--sequential",), "add --against champion"),
        (("--peek", "--against", "latest"), "say how --sequential stops"),
        (("--against", "nobody"), "no run named 'nobody'"),
    ],
)
def test_a_run_that_cannot_stop_is_refused_before_any_work(call: Call, args: tuple[str, ...], says: str) -> None:
    done = call("run", "-s", "demo-arithmetic", "--model", "scripted:empty", *args)
    assert done.code == 2
    assert says in done.one_line
