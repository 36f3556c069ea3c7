from pathlib import Path

import pytest
from tests.cli.conftest import Call, Line, checkpoint

from rlhf_bench.harness.checkpoint import checkpoint_digest
from rlhf_bench.harness.store import Store


def test_models_are_listed_with_parents_and_the_champion(call: Call, line: Line) -> None:
    found = call("models", "--json").json
    assert [each["names"] for each in found] == [["base"], ["better"], ["worse"], ["alike"]]
    assert [each["champion"] for each in found] == [True, False, False, False]
    assert found[1]["parent"] == found[0]["digest"]
    out = call("models").out
    assert "base ★ champion" in out
    assert "rlhf-bench models fetch smollm2-135m-instruct" in out


def test_lineage_goes_back_to_the_first(call: Call, line: Line, store: Store, home: Path) -> None:
    store.register(checkpoint(home / "weights", "third", line.better.checkpoint), alias="third")
    assert [each["names"] for each in call("models", "show", "third", "--json").json] == [
        ["third"],
        ["better"],
        ["base"],
    ]
    assert call("models", "show", "champion").out.count(line.champion.checkpoint) == 1


def test_a_folder_is_registered_under_its_digest(call: Call, home: Path, store: Store) -> None:
    made = checkpoint(home / "weights", "mine")
    found = call("models", "register", made.path, "--alias", "mine", "--json").json
    assert found["digest"] == made.digest
    known = store.alias("mine")
    assert known is not None and known.path == made.path


@pytest.mark.parametrize(
    "alias", ["champion", "latest", "smollm2-135m-instruct", "demo-reward", "latest~1", "a/b", "hf:x", "a b", ""]
)
def test_a_name_that_means_something_else_is_no_alias(call: Call, home: Path, alias: str) -> None:
    made = checkpoint(home / "weights", "mine")
    done = call("models", "register", made.path, "--alias", alias)
    assert done.code == 2
    assert "alias" in done.one_line


def test_a_folder_without_weights_is_refused(call: Call, home: Path) -> None:
    (home / "empty").mkdir()
    done = call("models", "register", "empty", "--alias", "mine")
    assert done.code == 2
    assert done.one_line.startswith("error: ")


def test_changed_files_are_found(call: Call, line: Line, home: Path) -> None:
    assert call("models", "verify").out.count("unchanged") == 4
    (home / "weights" / "worse" / "config.json").write_text("{}")
    assert call("models", "verify", "base").code == 0
    done = call("models", "verify")
    assert done.code == 2
    assert "worse" in done.err


def test_every_changed_model_is_named_and_not_only_the_first(call: Call, line: Line, home: Path) -> None:
    for name in ("better", "worse"):
        (home / "weights" / name / "config.json").write_text("{}")
    done = call("models", "verify", "--json")
    assert done.code == 2
    assert ["wrong" if each["wrong"] else "right" for each in done.json] == ["right", "wrong", "wrong", "right"]
    assert len(done.err.splitlines()) == 2


def test_an_unknown_model_names_the_nearest(call: Call, line: Line) -> None:
    done = call("models", "show", "bettr")
    assert done.code == 2
    assert "Did you mean 'better'" in done.one_line


def test_a_model_is_exported_as_a_folder_that_is_the_same_checkpoint(call: Call, line: Line, home: Path) -> None:
    found = call("models", "export", "better", "out", "--json").json
    assert found == {"digest": line.better.checkpoint, "format": "hf", "path": str(home / "out")}
    assert checkpoint_digest(home / "out") == line.better.checkpoint
    done = call("models", "export", "champion", "out")
    assert done.code == 2 and "is there already" in done.one_line


def test_a_registered_model_is_found_by_its_folder(call: Call, line: Line, home: Path, store: Store) -> None:
    """As a training without `--alias` leaves it."""
    newer = checkpoint(home / "weights", "newer", line.better.checkpoint)
    store.register(newer)
    assert call("models", "show", newer.path, "--json").json[0]["digest"] == newer.digest
    assert call("models", "export", "weights/newer", str(home / "copy"), "--json").json["digest"] == newer.digest
    unknown = call("models", "export", str(home), str(home / "other"))
    assert unknown.code == 2 and "no registered model named" in unknown.one_line


def test_a_model_whose_files_changed_is_not_exported(call: Call, line: Line, home: Path) -> None:
    (home / "weights" / "worse" / "config.json").write_text("{}")
    done = call("models", "export", "worse", "out")
    assert done.code == 2 and "was registered as" in done.one_line and not (home / "out").exists()


def test_gguf_needs_llama_cpps_converter_and_takes_it_where_it_is_named(
    call: Call, line: Line, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(home))
    done = call("models", "export", "better", "better.gguf", "--format", "gguf")
    assert done.code == 2 and "convert_hf_to_gguf.py" in done.one_line and "llama.cpp" in done.one_line
    (home / "converter.py").write_text("import sys; open(sys.argv[3], 'wb').write(b'GGUF and more')")
    monkeypatch.setenv("RLHF_BENCH_GGUF_CONVERTER", str(home / "converter.py"))
    assert str(home / "better.gguf") in call("models", "export", "better", "better.gguf", "--format", "gguf").out
    assert (home / "better.gguf").read_bytes() == b"GGUF and more"


def test_pushing_needs_a_token_of_the_environment(
    call: Call, line: Line, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (home / "hub").mkdir()
    (home / "hub" / "token").write_text("hf_ofsomebodyelse")
    monkeypatch.setenv("HF_HOME", str(home / "hub"))
    done = call("models", "push", "better", "org/name")
    assert done.code == 2 and "set HF_TOKEN" in done.one_line
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    done = call("models", "push", "better", "nobody")
    assert done.code == 2 and "write org/name" in done.one_line and "hf_" not in done.err
