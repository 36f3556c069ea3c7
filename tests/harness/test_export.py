"""harness/export.py: what is written is what was registered, whole or not at all; the hub gets just that."""

from __future__ import annotations

import os
import resource
import shutil
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock
from tests.stub_hub import Hub, serving

from rlhf_bench.harness import export
from rlhf_bench.harness.checkpoint import checkpoint_digest
from rlhf_bench.harness.errors import ChangedCheckpoint, Fault, MissingData, UserError
from rlhf_bench.harness.export import CONVERTER, CONVERTER_VARIABLE, export_folder, export_gguf, push
from rlhf_bench.harness.types import Checkpoint

TOKEN = "hf_secretsecretsecret"
WRITES = """
import sys
from pathlib import Path
folder, _, out, _, kind = sys.argv[1:]
assert (Path(folder) / "config.json").is_file() and kind == "auto"
Path(out).write_bytes(b"GGUF" + b"0" * 100)
"""


@pytest.fixture
def made(tiny_checkpoint: Path, tmp_path: Path) -> Checkpoint:
    """A checkpoint as a trainer leaves it, with files beside that are no part of it."""
    path = Path(shutil.copytree(tiny_checkpoint, tmp_path / "made"))
    (path / "recipe.json").write_text('{"trainer": "dpo"}')
    (path / "metrics.jsonl").write_text('{"loss": 0.5}\n')
    (path / "optimizer.pt").write_bytes(b"state")
    (path / "notes.txt").write_text("the password is swordfish")
    return Checkpoint(str(path), checkpoint_digest(path), parent="0" * 64)


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    (tmp_path / "outside").mkdir()
    return tmp_path / "outside"


@contextmanager
def no_file_beyond(size: int) -> Iterator[None]:
    """Writing on beyond `size` bytes fails, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


class TestFolder:
    """As transformers reads it."""

    def test_it_is_the_same_checkpoint_with_how_it_was_made_and_nothing_else(
        self, made: Checkpoint, tiny_checkpoint: Path, outside: Path
    ) -> None:
        out = export_folder(made, outside / "model")
        assert checkpoint_digest(out) == made.digest
        names = {file.name for file in out.iterdir()}
        assert names == {file.name for file in tiny_checkpoint.iterdir()} | {"recipe.json", "metrics.jsonl"}
        assert [file.name for file in outside.iterdir()] == ["model"]

    def test_what_is_there_is_left_alone(self, made: Checkpoint, outside: Path) -> None:
        (outside / "model").mkdir()
        (outside / "model" / "thesis.txt").write_text("years of work")
        with pytest.raises(UserError, match="is there already: choose another name"):
            export_folder(made, outside / "model")
        assert [file.name for file in (outside / "model").iterdir()] == ["thesis.txt"]

    def test_files_that_changed_are_not_passed_on(self, made: Checkpoint, outside: Path) -> None:
        with pytest.raises(ChangedCheckpoint):
            export_folder(replace(made, digest="0" * 64), outside / "model")
        with pytest.raises(MissingData):
            export_folder(replace(made, path=str(outside / "none")), outside / "model")
        assert not list(outside.iterdir())

    def test_files_that_change_meanwhile_are_found_out(
        self, made: Checkpoint, outside: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def trained_on(checkpoint: Checkpoint) -> None:
            weights = Path(checkpoint.path) / "model.safetensors"
            weights.write_bytes(weights.read_bytes()[:-1] + b"x")

        monkeypatch.setattr(export, "verify", trained_on)  # verified just before
        with pytest.raises(Fault, match="changed while it was copied"):
            export_folder(made, outside / "model")
        assert not list(outside.iterdir())

    def test_a_full_disk_leaves_nothing_and_says_so(self, made: Checkpoint, outside: Path) -> None:
        with no_file_beyond(100_000), pytest.raises(Fault, match=r"cannot write .*model: File too large") as caught:
            export_folder(made, outside / "model")
        assert "\n" not in str(caught.value) and not list(outside.iterdir())
        assert checkpoint_digest(export_folder(made, outside / "model")) == made.digest

    def test_what_a_killed_export_left_is_cleared_away(self, made: Checkpoint, outside: Path) -> None:
        half = outside / "model.part" / "model"
        half.mkdir(parents=True)
        (half / "model.safetensors").write_bytes(b"half")
        (half / "adapter_model.safetensors").write_bytes(b"of another")
        assert checkpoint_digest(export_folder(made, outside / "model")) == made.digest
        assert [file.name for file in outside.iterdir()] == ["model"]

    def test_two_processes_do_not_write_one_folder(self, made: Checkpoint, outside: Path) -> None:
        (outside / "model.part").mkdir()
        with (
            FileLock(outside / "model.part" / "lock"),
            pytest.raises(UserError, match="another process is exporting"),
        ):
            export_folder(made, outside / "model")
        assert (outside / "model.part").is_dir(), "the other one's work stays"


class TestGGUF:
    """By llama.cpp's converter, here a stand-in of the same arguments."""

    @pytest.fixture
    def converter(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        folder = tmp_path / "bin"
        folder.mkdir()
        (folder / CONVERTER).write_text(WRITES)
        monkeypatch.setenv(CONVERTER_VARIABLE, str(folder / CONVERTER))
        return folder / CONVERTER

    def test_the_file_is_whole_or_not_there(self, made: Checkpoint, outside: Path, converter: Path) -> None:
        out = export_gguf(made, outside / "model.gguf")
        assert out.read_bytes().startswith(b"GGUF")
        assert [file.name for file in outside.iterdir()] == ["model.gguf"]

    def test_the_converter_is_found_on_the_path(
        self, made: Checkpoint, outside: Path, converter: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        converter.write_text(f"#!/usr/bin/env no-such-python\nimport safetensors\n{WRITES}")
        converter.chmod(converter.stat().st_mode | stat.S_IXUSR)
        monkeypatch.delenv(CONVERTER_VARIABLE)
        monkeypatch.setenv("PATH", f"{converter.parent}{os.pathsep}{os.environ['PATH']}")
        assert export_gguf(made, outside / "model.gguf").is_file(), "by this Python, which has safetensors"

    def test_a_program_of_another_kind_is_run_as_it_is(
        self, made: Checkpoint, outside: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        program = tmp_path / "converter"
        program.write_text('#!/bin/sh\nprintf GGUF > "$3"\n')
        program.chmod(program.stat().st_mode | stat.S_IXUSR)
        monkeypatch.setenv(CONVERTER_VARIABLE, str(program))
        assert export_gguf(made, outside / "model.gguf").read_bytes() == b"GGUF"

    def test_where_there_is_none_one_line_says_what_to_do(
        self, made: Checkpoint, outside: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("PATH", str(outside))
        monkeypatch.delenv(CONVERTER_VARIABLE, raising=False)
        with pytest.raises(UserError, match=rf"no {CONVERTER} here: .* name it in {CONVERTER_VARIABLE}") as caught:
            export_gguf(made, outside / "model.gguf")
        assert "\n" not in str(caught.value)
        monkeypatch.setenv(CONVERTER_VARIABLE, str(outside / "none.py"))
        with pytest.raises(UserError, match="which is no file"):
            export_gguf(made, outside / "model.gguf")

    @pytest.mark.parametrize(
        ("script", "said"),
        [
            ("raise SystemExit('first\\nModel LlamaForTokens is not supported')", "LlamaForTokens is not supported"),
            ("import sys; open(sys.argv[3], 'wb').write(b'GG'); sys.exit(3)", "exit 3"),
            ("import sys; open(sys.argv[3], 'wb').write(b'half')", "wrote no GGUF file"),
            ("", "wrote no GGUF file"),
        ],
    )
    def test_a_converter_that_fails_is_one_line_and_leaves_nothing(
        self, made: Checkpoint, outside: Path, converter: Path, script: str, said: str
    ) -> None:
        converter.write_text(script)
        with pytest.raises(Fault, match=said) as caught:
            export_gguf(made, outside / "model.gguf")
        assert "\n" not in str(caught.value) and not list(outside.iterdir())


def pushed(made: Checkpoint, hub: Hub, *options: str, token: str = TOKEN) -> subprocess.CompletedProcess[str]:
    """`push` in a process of its own: the client reads whether it is offline as it is imported."""
    program = (
        "import sys; from rlhf_bench.harness.export import push; from rlhf_bench.harness.types import Checkpoint\n"
        "from rlhf_bench.harness.errors import RlhfBenchError\n"
        "path, digest, public = sys.argv[1:]\n"
        "try: print(push(Checkpoint(path, digest), 'org/name', public=public == 'public'))\n"
        "except RlhfBenchError as error: sys.exit(f'{type(error).__name__}: {error}')\n"
    )
    home = Path(made.path).parent / "hub-home"
    env = os.environ | {"HF_ENDPOINT": hub.url, "HF_TOKEN": token, "HF_HUB_OFFLINE": "0", "HF_HOME": str(home)}
    command = [sys.executable, "-c", program, made.path, made.digest, *(options or ("private",))]
    return subprocess.run(command, env=env, capture_output=True, text=True)


class TestPush:
    """Through huggingface_hub's own client, to a hub on this machine."""

    def test_the_repository_is_private_and_is_the_checkpoint(self, made: Checkpoint, tmp_path: Path) -> None:
        with serving(Hub(TOKEN)) as hub:
            done = pushed(made, hub)
            assert (done.returncode, done.stderr) == (0, "")
            assert done.stdout.strip() == f"{hub.url}/org/name/commit/{'b' * 40}"
        assert hub.private and hub.files is not None and hub.tokens - {""} == {TOKEN} and made.digest in hub.message
        for name, content in hub.files.items():
            (tmp_path / "there" / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / "there" / name).write_bytes(content)
        assert checkpoint_digest(tmp_path / "there") == made.digest
        assert {"recipe.json", "metrics.jsonl"} < hub.files.keys()
        assert not {"notes.txt", "optimizer.pt"} & hub.files.keys()

    def test_weights_of_an_earlier_model_go_and_a_card_stays(self, made: Checkpoint) -> None:
        earlier = {
            "model-00001-of-00002.safetensors": b"old",
            "README.md": b"a card",
            "logs/model.safetensors": b"no part of the model",
        }
        with serving(Hub(TOKEN, files=dict(earlier))) as hub:
            done = pushed(made, hub)
        assert done.returncode == 0 and hub.files is not None
        assert "model-00001-of-00002.safetensors" not in hub.files
        assert hub.files["README.md"] == b"a card" and "logs/model.safetensors" in hub.files

    def test_a_public_repository_is_left_alone_unless_that_is_asked_for(self, made: Checkpoint) -> None:
        with serving(Hub(TOKEN, files={}, private=False)) as hub:
            done = pushed(made, hub)
            assert "UserError: org/name is public, so nothing was pushed: say --public" in done.stderr
            assert hub.files == {}
            assert pushed(made, hub, "public").returncode == 0 and hub.files

    @pytest.mark.parametrize(
        ("fails", "said"), [(0, "UserError: the hub refuses"), (403, "UserError: the hub refuses")]
    )
    def test_a_token_that_may_not_write_is_refused_and_never_shown(
        self, made: Checkpoint, fails: int, said: str
    ) -> None:
        with serving(Hub(TOKEN, fails=fails)) as hub:
            done = pushed(made, hub, token=TOKEN if fails else "hf_anotherone")
        assert said in done.stderr and len(done.stderr.splitlines()) == 1
        assert "hf_" not in done.stderr + done.stdout

    def test_a_hub_that_is_not_there_is_a_fault(self, made: Checkpoint) -> None:
        with serving(Hub(TOKEN)) as hub:
            pass
        done = pushed(made, hub)
        assert done.stderr.startswith("Fault: org/name was not pushed") and len(done.stderr.splitlines()) == 1

    def test_without_a_token_nothing_is_asked(self, made: Checkpoint, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv("HF_TOKEN", raising=False)
        with pytest.raises(UserError, match="set HF_TOKEN"):
            push(made, "org/name")

    @pytest.mark.parametrize("name", ["name", "org/name/more", "org/", "a b/c", "https://hub/org/name", "org/--x.git."])
    def test_a_name_that_is_no_repository_is_refused(
        self, made: Checkpoint, monkeypatch: pytest.MonkeyPatch, name: str
    ) -> None:
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        with pytest.raises(UserError, match="is no repository of the hub"):
            push(made, name)

    def test_offline_nothing_is_pushed(self, made: Checkpoint, monkeypatch: pytest.MonkeyPatch) -> None:
        """The tests' own process is offline."""
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        with pytest.raises(UserError, match="HF_HUB_OFFLINE is set"):
            push(made, "org/name")

    def test_files_that_changed_are_not_pushed(self, made: Checkpoint, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        with pytest.raises(ChangedCheckpoint):
            push(replace(made, digest="0" * 64), "org/name")


def test_a_pattern_of_the_digest_is_about_its_own_folder() -> None:
    decides: Any = export._decides
    assert [decides(name) for name in ("model.safetensors", "additional_chat_templates/x.jinja", "tokenizer.json")]
    assert not any(decides(name) for name in ("README.md", "logs/model.safetensors", "a/config.json"))
