import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from rlhf_bench.harness.checkpoint import chat_template_digest, checkpoint_digest, verify
from rlhf_bench.harness.errors import ChangedCheckpoint, MissingData, UserError
from rlhf_bench.harness.types import Checkpoint


@pytest.fixture
def copy(tiny_checkpoint: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_checkpoint, tmp_path / "copy"))


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def test_a_copy_is_the_same_checkpoint(tiny_checkpoint: Path, copy: Path) -> None:
    assert checkpoint_digest(copy) == checkpoint_digest(tiny_checkpoint)


@pytest.mark.parametrize(
    "change",
    [
        lambda path: flip(path / "model.safetensors"),
        lambda path: (path / "chat_template.jinja").write_text("{{ messages }}"),
        lambda path: (path / "config.json").write_text((path / "config.json").read_text() + " "),
        lambda path: (path / "tokenizer.json").write_text((path / "tokenizer.json").read_text() + " "),
        lambda path: (path / "generation_config.json").unlink(),
        lambda path: (path / "adapter_model.safetensors").write_bytes(b"adapter"),
    ],
)
def test_what_decides_answers_changes_the_digest(copy: Path, change: Callable[[Path], object]) -> None:
    before = checkpoint_digest(copy)
    change(copy)
    assert checkpoint_digest(copy) != before


def test_notes_and_training_state_do_not_change_the_digest(copy: Path) -> None:
    before = checkpoint_digest(copy)
    (copy / "README.md").write_text("now with a card")
    (copy / "source.json").write_text("{}")
    (copy / "optimizer.pt").write_bytes(b"state")
    (copy / "checkpoint-10").mkdir()
    shutil.copy(copy / "model.safetensors", copy / "checkpoint-10")
    assert checkpoint_digest(copy) == before


def test_a_moved_file_is_not_the_same_weights(copy: Path) -> None:
    before = checkpoint_digest(copy)
    (copy / "model.safetensors").rename(copy / "other.safetensors")
    assert checkpoint_digest(copy) != before


def test_a_folder_without_config_is_no_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no config\.json"):
        checkpoint_digest(tmp_path)


def test_pickled_weights_are_refused(copy: Path) -> None:
    (copy / "model.safetensors").rename(copy / "pytorch_model.bin")
    with pytest.raises(UserError, match="pickled weights"):
        checkpoint_digest(copy)


def test_a_changed_checkpoint_is_refused(copy: Path) -> None:
    registered = Checkpoint(str(copy), checkpoint_digest(copy))
    verify(registered)
    flip(copy / "model.safetensors")
    with pytest.raises(ChangedCheckpoint, match=registered.digest[:10]):
        verify(registered)


def test_a_checkpoint_that_is_gone_is_missing(tmp_path: Path) -> None:
    with pytest.raises(MissingData, match="gone"):
        verify(Checkpoint(str(tmp_path / "gone"), "0" * 64))


def test_the_chat_template_is_the_same_in_either_file(copy: Path) -> None:
    before = chat_template_digest(copy)
    template = (copy / "chat_template.jinja").read_text()
    (copy / "chat_template.jinja").unlink()
    assert chat_template_digest(copy) == ""
    config = json.loads((copy / "tokenizer_config.json").read_text())
    (copy / "tokenizer_config.json").write_text(json.dumps(config | {"chat_template": template}))
    assert chat_template_digest(copy) == before
