import pytest
from tests.cli.conftest import Call, Line

from rlhf_bench.cli import doctor

SECTIONS = {"versions", "devices", "disk", "hub", "data", "weights", "sandbox", "store", "environment"}


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


def test_every_section_is_there_and_says_what_to_do(call: Call) -> None:
    found = call("doctor", "--json").json
    assert set(found) == SECTIONS
    assert not any("failed" in section for section in found.values())
    assert "rlhf-bench models fetch" in found["weights"]["smollm2-135m-instruct"]
    assert "rlhf-bench suites fetch academic" in found["data"]["academic"]
    assert found["data"]["demo"] == "packaged"
    assert "rlhf-bench run" in found["store"]["holds"]


def test_looking_makes_no_store(call: Call) -> None:
    assert call("doctor", "--json").json["store"] == call("doctor", "--json").json["store"]


def test_the_store_and_the_champion_are_counted(call: Call, line: Line) -> None:
    found = call("doctor", "--json").json["store"]
    assert found["holds"] == "4 runs, 4 checkpoints, 0 verdicts"
    assert found["champion"].startswith("base ")


@pytest.mark.parametrize("args", [("doctor",), ("doctor", "--json")])
def test_no_secret_is_printed(call: Call, monkeypatch: pytest.MonkeyPatch, args: tuple[str, ...]) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_verysecret")
    monkeypatch.setenv("OPENAI_API_KEY", "sk-verysecret")
    monkeypatch.setenv("HF_ENDPOINT", "https://me:verysecret@hub.example")
    monkeypatch.setenv("RLHF_BENCH_STORE", "postgresql+psycopg://me:verysecret@nowhere.invalid/db?password=verysecret")
    done = call(*args)
    assert done.code == 0
    assert "verysecret" not in done.out + done.err
    assert "nowhere.invalid" in done.out


def test_a_look_that_fails_is_a_finding_and_not_a_failure(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> dict[str, str]:
        raise OSError("driver https://a:verysecret@b lost\nmore")

    monkeypatch.setitem(doctor.LOOKS, "devices", broken)
    done = call("doctor", "--json")
    assert done.code == 0
    assert done.json["devices"] == {"failed": "OSError: driver https://***@b lost"}
