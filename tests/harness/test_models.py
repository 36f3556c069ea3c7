import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from rlhf_bench.harness import models
from rlhf_bench.harness.checkpoint import checkpoint_digest
from rlhf_bench.harness.errors import ChangedCheckpoint, MissingData, UnknownName, UserError
from rlhf_bench.harness.models import open_engine, resolve
from rlhf_bench.harness.progress import Track
from rlhf_bench.harness.store import Store
from rlhf_bench.harness.types import Checkpoint


@pytest.fixture
def copy(tiny_checkpoint: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_checkpoint, tmp_path / "copy"))


def change(path: Path) -> None:
    (path / "chat_template.jinja").write_text("{{ messages }}")


def test_a_folder_is_registered_by_its_digest(tiny_checkpoint: Path, store: Store) -> None:
    found = resolve(str(tiny_checkpoint), store)
    assert found == Checkpoint(str(tiny_checkpoint), checkpoint_digest(tiny_checkpoint))
    assert store.checkpoint(found.digest) == found
    assert resolve(found.digest[:10], store) == found


def test_an_alias_finds_its_checkpoint_with_its_lineage(tiny_checkpoint: Path, store: Store) -> None:
    child = Checkpoint(str(tiny_checkpoint), checkpoint_digest(tiny_checkpoint), parent="p" * 64, recipe={"lr": 1.0})
    store.register(child, alias="mine")
    assert resolve("mine", store) == child
    assert resolve(str(tiny_checkpoint), store) == child


@pytest.mark.parametrize("spec", [lambda path: "mine", str], ids=["alias", "folder"])
def test_a_changed_checkpoint_is_refused(copy: Path, store: Store, spec: Callable[[Path], str]) -> None:
    store.register(Checkpoint(str(copy), checkpoint_digest(copy)), alias="mine")
    change(copy)
    with pytest.raises(ChangedCheckpoint, match="rlhf-bench models register"):
        resolve(spec(copy), store)


def test_a_changed_folder_that_is_registered_anew_is_accepted(copy: Path, store: Store) -> None:
    old = resolve(str(copy), store)
    change(copy)
    store.register(Checkpoint(str(copy), checkpoint_digest(copy)), alias="new")
    assert resolve(str(copy), store).digest == resolve("new", store).digest != old.digest


def test_the_champion_is_whom_the_store_names(tiny_checkpoint: Path, store: Store) -> None:
    with pytest.raises(UserError, match="rlhf-bench promote"):
        resolve("champion", store)
    known = resolve(str(tiny_checkpoint), store)
    store.set_champion(known.digest, expect_generation=0, verdict_id=None, reason="first")
    assert resolve("champion", store) == known


def test_a_built_in_model_is_fetched_and_registered_at_its_first_use(
    tiny_checkpoint: Path, tmp_path: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    fetched = []

    def fetch(track: Track) -> Path:
        fetched.append(tmp_path / f"cache{len(fetched)}")
        return Path(shutil.copytree(tiny_checkpoint, fetched[-1]))

    monkeypatch.setattr(models, "BUILTIN", {"small": fetch})
    first = resolve("small", store)
    assert store.alias("small") == first
    assert resolve("small", store) == first
    assert len(fetched) == 1
    shutil.rmtree(fetched[0])
    assert resolve("small", store) == Checkpoint(str(fetched[1]), first.digest)


def test_an_unknown_name_names_the_nearest(store: Store) -> None:
    with pytest.raises(UnknownName, match="Did you mean 'smollm2-135m-instruct'"):
        resolve("smollm2-135-instruct", store)


@pytest.mark.parametrize("spec", ["hf:org/name", "hf:org/name@main", "hf:nonsense", "./no/such/folder"])
def test_what_is_not_here_is_one_line(spec: str, store: Store) -> None:
    with pytest.raises(MissingData) as caught:
        resolve(spec, store)
    assert "\n" not in str(caught.value)


def test_an_engine_opens_by_any_name(tiny_checkpoint: Path, store: Store) -> None:
    engine = open_engine(str(tiny_checkpoint), store)
    assert engine.checkpoint == checkpoint_digest(tiny_checkpoint)
    assert open_engine("scripted:echo", store).checkpoint == "scripted:echo"
    oracle = open_engine("scripted:oracle", store, references=lambda: {"s": "7"})
    assert oracle.identity != open_engine("scripted:oracle", store, references=lambda: {"s": "8"}).identity


def test_no_name_is_no_model(store: Store, tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tiny_checkpoint)
    with pytest.raises(UserError, match="empty"):
        resolve("", store)


@pytest.mark.parametrize("device", ["cuda:99", "cud", "gpu"])
def test_a_device_that_is_not_here_is_one_line(tiny_checkpoint: Path, store: Store, device: str) -> None:
    with pytest.raises(UnknownName, match="no device here named"):
        open_engine(str(tiny_checkpoint), store, device=device)
