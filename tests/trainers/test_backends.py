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
from tests.trainers.conftest import dpo_recipe, preference_recipe, reward_recipe, sft_recipe, sums, talks

from rlhf_bench.harness.checkpoint import checkpoint_digest
from rlhf_bench.harness.errors import ChangedCheckpoint, Fault, UnknownName, UserError
from rlhf_bench.harness.types import Checkpoint, Conversation, Message, Preference
from rlhf_bench.trainers import backends
from rlhf_bench.trainers.backends import Backend, get_backend
from rlhf_bench.trainers.recipes import Needs


class Copies:
    """A back end that copies the start as the result and counts how often it was asked."""

    def __init__(self) -> None:
        self.calls = 0

    def fit_sft(self, recipe: Any, conversations: Any, base: Checkpoint, work: Path, track: Any) -> Any:
        return self.fit_dpo(recipe, conversations, base, base, work, track)

    def fit_reward(
        self, recipe: Any, preferences: Sequence[Preference], base: Checkpoint, work: Path, track: Any
    ) -> Any:
        return self.fit_dpo(recipe, preferences, base, base, work, track)

    fit_preference = fit_reward

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


@pytest.mark.parametrize(
    ("value", "said"),
    [("no_such_package:X", "cannot be imported"), ("tests.trainers.test_backends:NOT_THERE", "cannot be loaded")],
)
def test_a_back_end_that_does_not_load_is_one_line(
    monkeypatch: pytest.MonkeyPatch, tiny: Checkpoint, tmp_path: Path, value: str, said: str
) -> None:
    point = EntryPoint("mine", value, backends.GROUP)
    monkeypatch.setattr(backends, "entry_points", lambda group: [point] if group == backends.GROUP else [])
    with pytest.raises(UserError, match=f"the back end 'mine' {said}"):
        get_backend("mine").check(reward_recipe(), tiny)


def test_a_back_end_that_lacks_a_recipe_says_which_has_it(tiny: Checkpoint, tmp_path: Path) -> None:
    class Rewards:
        fit_reward = Copies.fit_reward

    only: Any = Rewards()
    with pytest.raises(UserError, match="the back end 'mine' has no fit_sft: use --backend trl"):
        Backend("mine", lambda: only).train_sft(sft_recipe(), talks(2), tiny, tmp_path / "out")


@pytest.mark.parametrize("what", ["sft", "preference"])
def test_every_recipe_leaves_a_checkpoint_that_says_what_made_it(
    backend: Backend, tiny: Checkpoint, tmp_path: Path, what: str
) -> None:
    if what == "sft":
        made = backend.train_sft(sft_recipe(), talks(3), tiny, tmp_path / "out")
    else:
        made = backend.train_preference(preference_recipe(), sums(0, 3), tiny, tmp_path / "out")
    assert made.parent == tiny.digest == made.recipe["base_digest"]
    assert (made.recipe["trainer"], made.recipe["seed"], made.recipe["pairs"]) == (what, 7, 3)


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


@pytest.mark.parametrize(("name", "change"), [("torch", {"shard": "fsdp"}), ("trl", {"loss": "simpo"})])
def test_what_was_refused_does_not_stand_in_the_way_of_what_is_asked_instead(
    tiny: Checkpoint, tmp_path: Path, name: str, change: dict[str, Any]
) -> None:
    with pytest.raises(UserError, match="use --backend"):
        get_backend(name).train_dpo(dpo_recipe(**change), sums(0, 4), tiny, tiny, tmp_path / "out")
    made = get_backend(name).train_dpo(dpo_recipe(), sums(0, 4), tiny, tiny, tmp_path / "out")
    assert made.recipe["loss"] == "sigmoid" and list(tmp_path.iterdir()) == [tmp_path / "out"]


def test_a_refusal_takes_nothing_from_a_training_that_had_begun(
    backend: Backend, copies: Copies, tiny: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stops(recipe: Any, preferences: Any, policy: Any, reference: Any, work: Path, track: Any) -> Any:
        (work / "step-1").touch()
        raise Fault("the power went")

    def refuses(*args: Any) -> Any:
        raise UserError("the GPU is gone")

    for does, error in ((stops, Fault), (refuses, UserError)):
        monkeypatch.setattr(copies, "fit_dpo", does)
        with pytest.raises(error):
            backend.train_dpo(dpo_recipe(), sums(0, 4), tiny, tiny, tmp_path / "out")
        assert (tmp_path / "out.work" / "step-1").exists()


@pytest.mark.parametrize(("before", "after"), [(0.0, 0.1), (0.1, 0.0)])
def test_an_option_that_was_switched_on_or_off_makes_it_another_model(
    backend: Backend, tiny: Checkpoint, tmp_path: Path, before: float, after: float
) -> None:
    """Off, it is left out of what a checkpoint was made by, so that those from before it existed stay known."""
    made = backend.train_dpo(dpo_recipe(nll_weight=before), sums(0, 4), tiny, tiny, tmp_path / "out")
    assert ("nll_weight" in made.recipe) == bool(before)
    with pytest.raises(UserError, match=r"another model \(nll_weight is"):
        backend.train_dpo(dpo_recipe(nll_weight=after), sums(0, 4), tiny, tiny, tmp_path / "out")


def test_what_changes_no_weights_does_not_make_it_another_model(
    backend: Backend, copies: Copies, tiny: Checkpoint, tmp_path: Path
) -> None:
    first = backend.train_dpo(dpo_recipe(), sums(0, 4), tiny, tiny, tmp_path / "out")
    needs = Needs(hours=1, memory_gb=1, machine="this one")
    again = dpo_recipe(keep=9, report_to=["wandb"], needs=needs)
    assert backend.train_dpo(again, sums(0, 4), tiny, tiny, tmp_path / "out") == first and copies.calls == 1


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


@pytest.mark.parametrize(
    ("talks", "says"),
    [
        ([], "there are no conversations"),
        ([(Message("user", "Hi"), Message("assistant", "Yes?")), (Message("user", "Hi"),)], "conversation 1: .*assist"),
        ([(Message("system", "Be brief."), Message("assistant", "Yes?"))], "conversation 0: there is no user turn"),
    ],
)
def test_conversations_that_teach_nothing_are_named_before_anything_is_loaded(
    backend: Backend, copies: Copies, tiny: Checkpoint, tmp_path: Path, talks: list[Conversation], says: str
) -> None:
    with pytest.raises(UserError, match=says):
        backend.train_sft(sft_recipe(), talks, tiny, tmp_path / "out")
    assert copies.calls == 0 and not list(tmp_path.iterdir())


def test_margins_that_tell_no_pair_from_another_are_refused(backend: Backend, tiny: Checkpoint, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="use_margin has nothing to go by: all 4 pairs have margin 1; give"):
        backend.train_reward(reward_recipe(use_margin=True), sums(0, 4), tiny, tmp_path / "out")
    pairs = [replace(pair, margin=float(place)) for place, pair in enumerate(sums(0, 4))]
    assert backend.train_reward(reward_recipe(use_margin=True), pairs, tiny, tmp_path / "out").recipe["use_margin"]


@pytest.mark.parametrize("what", ["sft", "reward", "preference", "dpo"])
def test_a_model_without_a_chat_template_is_refused_before_anything_is_loaded(
    backend: Backend, copies: Copies, tiny: Checkpoint, tmp_path: Path, what: str
) -> None:
    folder = tmp_path / "base"
    shutil.copytree(tiny.path, folder)
    (folder / "chat_template.jinja").unlink()
    base = Checkpoint(str(folder), checkpoint_digest(folder))
    with pytest.raises(UserError, match="has no chat template: use a chat model, or make it one by SFT") as caught:
        if what == "sft":
            backend.train_sft(sft_recipe(), talks(2), base, tmp_path / "out")
        elif what == "dpo":
            backend.train_dpo(dpo_recipe(), sums(0, 2), base, tiny, tmp_path / "out")
        elif what == "reward":
            backend.train_reward(reward_recipe(), sums(0, 2), base, tmp_path / "out")
        else:
            backend.train_preference(preference_recipe(), sums(0, 2), base, tmp_path / "out")
    assert "\n" not in str(caught.value) and copies.calls == 0


def test_a_process_that_is_not_the_first_trains_along_and_waits_for_the_result(
    backend: Backend, copies: Copies, tiny: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It takes no lock and writes no recipe; what the first process leaves is what both return."""
    made = backend.train_dpo(dpo_recipe(), sums(0, 4), tiny, tiny, tmp_path / "made")
    monkeypatch.setenv("RANK", "1")
    real = copies.fit_dpo

    def alongside(*args: Any) -> Mapping[str, int]:
        assert not (tmp_path / "out.work" / "lock").exists()
        shutil.copytree(made.path, tmp_path / "out")
        return {}

    monkeypatch.setattr(copies, "fit_dpo", alongside)
    joined = backend.train_dpo(dpo_recipe(), sums(0, 4), tiny, tiny, tmp_path / "out")
    assert (joined.digest, joined.recipe) == (made.digest, made.recipe)
    monkeypatch.setattr(copies, "fit_dpo", real)
    monkeypatch.setattr(backends, "WAIT_S", 0.0)
    with pytest.raises(Fault, match="all processes need the same folder, on shared storage"):
        backend.train_dpo(dpo_recipe(), sums(0, 4), tiny, tiny, tmp_path / "elsewhere")


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
