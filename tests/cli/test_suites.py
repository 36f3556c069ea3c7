from pathlib import Path

import pytest
from tests.cli.conftest import Call

from rlhf_bench.suites import SUITES


def test_every_suite_is_listed(call: Call) -> None:
    found = call("suites", "--json").json
    assert {name: tuple(each["benchmarks"]) for name, each in found.items()} == {
        name: each.benchmarks for name, each in SUITES.items()
    }
    assert all(name in call("suites").out for name in SUITES)


@pytest.mark.parametrize("name", [*SUITES, "gsm8k", "gsm8k,alpaca_eval"])
def test_a_suite_shows_version_metric_size_and_where_its_data_come_from(call: Call, name: str) -> None:
    found = call("suites", "show", name, "--json").json
    out = call("suites", "show", name).out
    for each in found["benchmarks"]:
        assert each["samples"] > 0 and each["metric"] and each["version"]
        assert str(each["samples"]) in out
        for pin in each["data"]:
            assert len(pin["sha256"]) == 64 and pin["licence"]
            assert pin["source"] in out


def test_data_are_fetched_from_the_mirror_and_verified(
    call: Call, mirror: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RLHF_BENCH_DATA", str(mirror))
    done = call("suites", "fetch", "gsm8k", "--json")
    assert done.code == 0
    assert all(Path(path).is_file() for path in done.json)
    assert len(done.json) == 2


def test_missing_data_name_the_command_that_gets_them(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    done = call("suites", "fetch", "gsm8k")
    assert done.code == 2
    assert "rlhf-bench suites fetch gsm8k" in done.err
    assert "RLHF_BENCH_DATA" in done.err
