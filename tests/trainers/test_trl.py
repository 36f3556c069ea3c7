"""trainers/trl: reward models and DPO; what holds of every recipe; a killed run ends in the same weights."""

from __future__ import annotations

import json
import math
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.trainers.conftest import dpo_recipe, reward_recipe, sums
from tests.trainers.oracles import answer_logps, metrics, weights
from tests.trainers.trl_driver import train

from rlhf_bench.harness.checkpoint import chat_template_digest, checkpoint_digest
from rlhf_bench.harness.errors import Fault, UserError
from rlhf_bench.harness.judges.reward import RewardModel
from rlhf_bench.harness.progress import Advance
from rlhf_bench.harness.types import Checkpoint, Message, Preference
from rlhf_bench.trainers.backends import get_backend
from rlhf_bench.trainers.recipes import LoRA
from rlhf_bench.trainers.trl.run import last_complete

TRL = get_backend("trl")
KILLED = Path(__file__).with_name("trl_driver.py")


@pytest.fixture(scope="module")
def reward(tiny: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    out = tmp_path_factory.mktemp("reward") / "out"
    return TRL.train_reward(reward_recipe(epochs=3), sums(0, 24), tiny, out)


@pytest.fixture(scope="module")
def dpo(tiny: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    out = tmp_path_factory.mktemp("dpo") / "out"
    return TRL.train_dpo(dpo_recipe(epochs=2), sums(0, 16), tiny, tiny, out)


def test_reward_training_lowers_the_loss_and_separates_held_out_pairs(reward: Checkpoint) -> None:
    losses = [step["loss"] for step in metrics(reward)]
    assert sum(losses[-6:]) < sum(losses[:6]) / 2
    model, held_out = RewardModel(reward, name="tiny"), sums(100, 20)
    chosen = model.rewards([(pair.prompt, pair.chosen) for pair in held_out])
    rejected = model.rewards([(pair.prompt, pair.rejected) for pair in held_out])
    assert sum(c > r for c, r in zip(chosen, rejected, strict=True) if c is not None and r is not None) >= 18


def test_the_first_reward_loss_is_bradley_terrys(reward: Checkpoint, tmp_path: Path) -> None:
    pairs = sums(50, 8)
    again = TRL.train_reward(reward_recipe(batch_size=8), pairs, reward, tmp_path / "out")
    model = RewardModel(reward, name="tiny")
    rewards = torch.tensor([[model.rewards([(p.prompt, a)])[0] for a in (p.chosen, p.rejected)] for p in pairs])
    expected = -torch.nn.functional.logsigmoid(rewards[:, 0] - rewards[:, 1]).mean()
    assert metrics(again)[0]["loss"] == pytest.approx(float(expected), rel=1e-4)
    assert metrics(again)[0]["margin"] == pytest.approx(float((rewards[:, 0] - rewards[:, 1]).mean()), rel=1e-4)


def test_the_reward_head_pads_with_a_token_that_ends_no_conversation(reward: Checkpoint, tiny: Checkpoint) -> None:
    config = json.loads((Path(reward.path) / "config.json").read_text())
    start = json.loads((Path(tiny.path) / "config.json").read_text())
    assert start["pad_token_id"] == start["eos_token_id"] != config["pad_token_id"]
    assert config["vocab_size"] == start["vocab_size"]
    assert config["use_cache"] is True


def test_the_first_dpo_loss_is_log_2_where_the_policy_is_its_own_reference(dpo: Checkpoint) -> None:
    assert metrics(dpo)[0]["loss"] == pytest.approx(math.log(2), abs=1e-6)


def test_dpo_lowers_the_loss_and_raises_the_margin_over_the_reference(dpo: Checkpoint, tiny: Checkpoint) -> None:
    steps = metrics(dpo)
    assert steps[-1]["loss"] < 0.5 < steps[0]["loss"]
    before, after = (answer_logps(each, sums(100, 4))[0] for each in (tiny, dpo))
    assert ((after[:, 0] - after[:, 1]) > (before[:, 0] - before[:, 1])).all()
    assert {"step", "loss", "lr", "margin", "accuracy"} <= steps[0].keys()


@pytest.mark.parametrize("lora", [None, LoRA(rank=2)])
def test_dpo_measures_against_the_reference_it_was_given(
    dpo: Checkpoint, tiny: Checkpoint, tmp_path: Path, lora: LoRA | None
) -> None:
    """Rafailov et al., eq. 7, by plain torch; not the policy's own start, which would give log 2."""
    pairs = sums(40, 4)
    trained = TRL.train_dpo(dpo_recipe(lora=lora), pairs, dpo, tiny, tmp_path / "out")
    (policy, _), (reference, _) = answer_logps(dpo, pairs), answer_logps(tiny, pairs)
    ratios = policy - reference
    expected = -torch.nn.functional.logsigmoid(0.1 * (ratios[:, 0] - ratios[:, 1])).mean()
    first = metrics(trained)[0]
    assert first["loss"] == pytest.approx(float(expected), abs=1e-4) != pytest.approx(math.log(2), abs=1e-2)
    assert first["logps/chosen"] == pytest.approx(float(policy[:, 0].mean()), abs=1e-3)
    assert first["logps/rejected"] == pytest.approx(float(policy[:, 1].mean()), abs=1e-3)


def test_adapters_are_merged_into_a_folder_like_the_policys(tiny: Checkpoint, tmp_path: Path) -> None:
    trained = TRL.train_dpo(dpo_recipe(lora=LoRA(rank=4, layers=1)), sums(0, 8), tiny, tiny, tmp_path / "out")
    before, after = weights(tiny), weights(trained)
    assert before.keys() == after.keys()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed and all(".layers.1." in name for name in changed)
    ours = {"metrics.jsonl", "recipe.json"}
    assert {file.name for file in Path(trained.path).iterdir()} - ours == {f.name for f in Path(tiny.path).iterdir()}
    assert chat_template_digest(Path(trained.path)) == chat_template_digest(Path(tiny.path))
    assert (Path(trained.path) / "config.json").read_text() == (Path(tiny.path) / "config.json").read_text()


def test_a_seed_fixes_the_weights_and_another_gives_others(tiny: Checkpoint, tmp_path: Path) -> None:
    digests = [
        TRL.train_reward(reward_recipe(seed=seed), sums(0, 8), tiny, tmp_path / str(number)).digest
        for number, seed in enumerate([1, 1, 2])
    ]
    assert digests[0] == digests[1] != digests[2]


def test_longer_pairs_are_left_out_and_counted(tiny: Checkpoint, tmp_path: Path) -> None:
    long = Preference((Message("user", "Say it again."),), "yes " * 300, "no")
    trained = TRL.train_dpo(dpo_recipe(), [*sums(0, 4), long], tiny, tiny, tmp_path / "out")
    assert (trained.recipe["pairs"], trained.recipe["over_length"]) == (4, 1)
    with pytest.raises(UserError, match="all 1 pairs are longer than 200 tokens"):
        TRL.train_reward(reward_recipe(), [long], tiny, tmp_path / "none")


@pytest.mark.parametrize("what", ["reward", "dpo"])
def test_a_loss_that_is_not_finite_stops_the_run_and_makes_no_checkpoint(
    tiny: Checkpoint, tmp_path: Path, what: str
) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(tiny.path, broken)
    poisoned = load_file(broken / "model.safetensors")
    poisoned["model.norm.weight"][0] = math.nan
    save_file(poisoned, broken / "model.safetensors", metadata={"format": "pt"})
    start = Checkpoint(str(broken), checkpoint_digest(broken))
    with pytest.raises(Fault, match="the loss became nan at step 1: lower learning_rate"):
        if what == "dpo":
            TRL.train_dpo(dpo_recipe(), sums(0, 4), start, tiny, tmp_path / "out")
        else:
            TRL.train_reward(reward_recipe(), sums(0, 4), start, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_reference_with_another_vocabulary_is_refused(tiny: Checkpoint, tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(tiny.path, other)
    text = (other / "tokenizer.json").read_text(encoding="utf-8")
    (other / "tokenizer.json").write_text(text.replace("<|endoftext|>", "<|begin|>"), encoding="utf-8")
    with pytest.raises(UserError, match="another vocabulary"):
        TRL.train_dpo(
            dpo_recipe(), sums(0, 4), tiny, Checkpoint(str(other), checkpoint_digest(other)), tmp_path / "out"
        )


def test_training_says_nothing_but_its_progress_and_calls_no_one(
    tiny: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    import trl.trainer.base_trainer

    called = []
    monkeypatch.setattr(trl.trainer.base_trainer, "send_telemetry", lambda **kwargs: called.append(kwargs))
    shown: dict[str, list[int]] = {}

    @contextmanager
    def track(label: str, total: int) -> Iterator[Advance]:
        shown[label] = [total, 0]

        def advance(count: int) -> None:
            shown[label][1] += count

        yield advance

    TRL.train_dpo(dpo_recipe(epochs=2), sums(0, 7), tiny, tiny, tmp_path / "dpo", track)
    TRL.train_reward(reward_recipe(), sums(0, 7), tiny, tmp_path / "reward", track)
    assert shown == {"reference log-probabilities": [7, 7], "train dpo": [14, 14], "train reward": [7, 7]}
    captured = capfd.readouterr()
    assert (captured.out, captured.err, called) == ("", "", [])


@pytest.mark.parametrize(
    "what",
    ["dpo", *(pytest.param(each, marks=pytest.mark.slow) for each in ("sft", "reward-lora", "preference"))],
)
def test_a_run_killed_at_a_random_step_ends_in_the_same_weights(tiny: Checkpoint, tmp_path: Path, what: str) -> None:
    """A real SIGKILL, then the same call again: bitwise the weights and metrics of a run that was left alone."""
    whole = train(what, tiny, tmp_path / "whole")
    step = random.SystemRandom().randint(4, 18)
    out = tmp_path / "killed"
    child = subprocess.Popen(
        [sys.executable, str(KILLED), what, tiny.path, str(out), str(torch.get_num_threads())],
        stderr=subprocess.PIPE,
    )
    log = tmp_path / "killed.work" / "metrics.jsonl"
    while child.poll() is None and not (log.exists() and len(log.read_bytes().splitlines()) >= step):
        time.sleep(0.002)
    child.kill()
    _, errors = child.communicate()
    assert child.returncode == -signal.SIGKILL, (step, errors.decode()[-2000:])
    assert not out.exists() and last_complete(tmp_path / "killed.work" / "steps") is not None
    resumed = train(what, tiny, out)
    assert resumed.digest == whole.digest, step
    assert metrics(resumed) == metrics(whole)
    assert resumed.recipe == whole.recipe


def test_a_half_written_checkpoint_is_passed_over(tiny: Checkpoint, tmp_path: Path) -> None:
    recipe = reward_recipe(epochs=2, save_every=2, lora=LoRA(rank=2, dropout=0.1))
    whole = TRL.train_reward(recipe, sums(0, 12), tiny, tmp_path / "whole")

    class Stop(Exception): ...

    @contextmanager
    def stops(label: str, total: int) -> Iterator[Advance]:
        seen = 0

        def advance(count: int) -> None:
            nonlocal seen
            seen += count
            if seen >= 20:
                raise Stop

        yield advance

    with pytest.raises(Stop):
        TRL.train_reward(recipe, sums(0, 12), tiny, tmp_path / "out", stops)
    steps = tmp_path / "out.work" / "steps"
    latest = last_complete(steps)
    assert latest is not None and latest.name == "checkpoint-4"
    optimizer = latest / "optimizer.pt"
    optimizer.write_bytes(optimizer.read_bytes()[:1000])
    (steps / "checkpoint-6").mkdir()
    earlier = last_complete(steps)
    assert earlier is not None and earlier.name == "checkpoint-2"
    resumed = TRL.train_reward(recipe, sums(0, 12), tiny, tmp_path / "out")
    assert resumed.digest == whole.digest and metrics(resumed) == metrics(whole)


@pytest.mark.slow
def test_bfloat16_training_resumes_and_follows_float32(tiny: Checkpoint, tmp_path: Path) -> None:
    full = TRL.train_dpo(dpo_recipe(epochs=2), sums(0, 16), tiny, tiny, tmp_path / "float32")
    half = TRL.train_dpo(
        dpo_recipe(epochs=2, dtype="bfloat16", gradient_checkpointing=True), sums(0, 16), tiny, tiny, tmp_path / "bf16"
    )
    for one, other in zip(metrics(full), metrics(half), strict=True):
        assert one["loss"] == pytest.approx(other["loss"], abs=0.1)
