"""trainers/backends.py: found by name, one writer per folder, nothing trained twice, nothing half-written."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock
from tests.trainers.conftest import dpo_recipe, reward_recipe, sums

from rlhf_bench.harness.checkpoint import checkpoint_digest
from rlhf_bench.harness.errors import ChangedCheckpoint, Fault, UnknownName, UserError
from rlhf_bench.harness.types import Checkpoint, Message, Preference
from rlhf_bench.trainers import backends
from rlhf_bench.trainers.backends import Backend, get_backend


class Copies:
    """A back end that copies the start as the result and counts how often it was asked."""

    def __init__(self) -> None:
        self.calls = 0

    def fit_reward(
        self, recipe: Any, preferences: Sequence[Preference], base: Checkpoint, work: Path, track: Any
    ) -> Any:
        return self.fit_dpo(recipe, preferences, base, base, work, track)

    def fit_dpo(
        self, recipe: Any, preferences: Sequence[Preference], policy: Checkpoint, reference: Any, work: Path, track: Any
    ) -> Mapping[str, int]:
        self.calls += 1
        shutil.copytree(policy.path, work / "model", dirs_exist_ok=True)
        return {"pairs": len(preferences), "over_length": 0}


INSTALLED = Copies()


@pytest.fixture
def copies() -> Copies:
    return Copies()


@pytest.fixture
def backend(copies: Copies) -> Backend:
    return Backend("copies", lambda: copies)


def test_an_unknown_back_end_names_the_nearest() -> None:
    with pytest.raises(UnknownName, match=r"no training back end named 'tlr'. Did you mean 'trl'"):
        get_backend("tlr")


def test_a_back_end_of_another_package_is_found_by_its_entry_point(
    monkeypatch: pytest.MonkeyPatch, tiny: Checkpoint, tmp_path: Path
) -> None:
    point = EntryPoint("mine", "tests.trainers.test_backends:INSTALLED", backends.GROUP)
    monkeypatch.setattr(backends, "entry_points", lambda group: [point] if group == backends.GROUP else [])
    made = get_backend("mine").train_reward(reward_recipe(), sums(0, 4), tiny, tmp_path / "out")
    assert made.recipe["backend"] == "mine" and made.recipe["pairs"] == 4


def test_what_is_there_is_returned_and_not_trained_again(
    backend: Backend, copies: Copies, tiny: Checkpoint, tmp_path: Path
) -> None:
    first = backend.train_dpo(dpo_recipe(), sums(0, 4), tiny, tiny, tmp_path / "out")
    again = backend.train_dpo(dpo_recipe(), sums(0, 4), tiny, tiny, tmp_path / "out")
    assert first == again and copies.calls == 1
    assert first.path == str(tmp_path / "out") and first.digest == checkpoint_digest(tmp_path / "out")
    assert list(tmp_path.iterdir()) == [tmp_path / "out"]


def test_a_checkpoint_says_from_what_it_was_made(backend: Backend, tiny: Checkpoint, tmp_path: Path) -> None:
    made = backend.train_dpo(dpo_recipe(beta=0.3), sums(0, 4), tiny, tiny, tmp_path / "out")
    assert made.parent == tiny.digest
    assert made.recipe["beta"] == 0.3 and made.recipe["reference"] == tiny.digest and made.recipe["pairs"] == 4
    other = backend.train_dpo(dpo_recipe(beta=0.3), sums(9, 4), tiny, tiny, tmp_path / "other")
    assert other.recipe["preferences"] != made.recipe["preferences"]


def test_another_recipe_never_goes_on_from_an_unfinished_training(
    backend: Backend, copies: Copies, tiny: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stops(*args: Any) -> Any:
        raise Fault("the power went")

    monkeypatch.setattr(copies, "fit_dpo", stops)
    with pytest.raises(Fault):
        backend.train_dpo(dpo_recipe(), sums(0, 4), tiny, tiny, tmp_path / "out")
    with pytest.raises(UserError, match=r"beta is 0\.1 there, 0\.2 now") as caught:
        backend.train_dpo(dpo_recipe(beta=0.2), sums(0, 4), tiny, tiny, tmp_path / "out")
    assert "\n" not in str(caught.value) and not (tmp_path / "out").exists()


def test_a_folder_that_holds_something_else_is_left_alone(backend: Backend, tiny: Checkpoint, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("years of work")
    with pytest.raises(UserError, match="choose another output folder"):
        backend.train_dpo(dpo_recipe(), sums(0, 4), tiny, tiny, tmp_path / "out")
    assert (tmp_path / "out" / "thesis.txt").read_text() == "years of work"


def test_two_processes_do_not_train_into_one_folder(backend: Backend, tiny: Checkpoint, tmp_path: Path) -> None:
    work = tmp_path / "out.work"
    work.mkdir()
    with FileLock(work / "lock"), pytest.raises(UserError, match="another process is training"):
        backend.train_dpo(dpo_recipe(), sums(0, 4), tiny, tiny, tmp_path / "out")


def test_a_full_disk_is_a_fault_and_leaves_no_checkpoint(
    backend: Backend, copies: Copies, tiny: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*args: Any) -> Any:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(copies, "fit_dpo", full)
    with pytest.raises(Fault, match="No space left on device"):
        backend.train_dpo(dpo_recipe(), sums(0, 4), tiny, tiny, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("pairs", "says"),
    [
        ([], "there are no preferences"),
        ([*sums(0, 1), replace(sums(1, 1)[0], rejected=sums(1, 1)[0].chosen)], "preference 1: chosen and rejected"),
        ([Preference((Message("system", "Be brief."),), "a", "b")], "preference 0: the prompt has no user turn"),
    ],
)
def test_pairs_that_teach_nothing_are_named_before_anything_is_loaded(
    backend: Backend, copies: Copies, tiny: Checkpoint, tmp_path: Path, pairs: list[Preference], says: str
) -> None:
    with pytest.raises(UserError, match=says):
        backend.train_reward(reward_recipe(), pairs, tiny, tmp_path / "out")
    assert copies.calls == 0 and not list(tmp_path.iterdir())


def test_a_policy_whose_files_changed_is_refused(backend: Backend, tiny: Checkpoint, tmp_path: Path) -> None:
    with pytest.raises(ChangedCheckpoint):
        backend.train_dpo(dpo_recipe(), sums(0, 4), replace(tiny, digest="0" * 64), tiny, tmp_path / "out")


def test_a_result_whose_files_changed_is_not_taken_for_what_was_trained(
    backend: Backend, tiny: Checkpoint, tmp_path: Path
) -> None:
    made = backend.train_dpo(dpo_recipe(), sums(0, 4), tiny, tiny, tmp_path / "out")
    assert "digest" not in made.recipe
    weights = tmp_path / "out" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    with pytest.raises(ChangedCheckpoint):
        backend.train_dpo(dpo_recipe(), sums(0, 4), tiny, tiny, tmp_path / "out")


def test_a_folder_that_cannot_be_made_is_a_fault(backend: Backend, tiny: Checkpoint, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(Fault, match="cannot make"):
        backend.train_dpo(dpo_recipe(), sums(0, 4), tiny, tiny, tmp_path / "file" / "out")
