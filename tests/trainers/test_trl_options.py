"""trainers/trl: every option of a recipe does what it says, or is refused in one line."""

from __future__ import annotations

import importlib.util
import json
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.trainers.conftest import dpo_recipe, preference_recipe, reward_recipe, sft_recipe, sums, talks
from tests.trainers.oracles import answer_logps, metrics, weights
from transformers import TrainerState

from rlhf_bench.harness.errors import Fault, UserError
from rlhf_bench.harness.judges.reward import RewardModel
from rlhf_bench.harness.progress import Advance
from rlhf_bench.harness.types import Checkpoint, Preference
from rlhf_bench.trainers import losses
from rlhf_bench.trainers.backends import get_backend
from rlhf_bench.trainers.recipes import LoRA, Training
from rlhf_bench.trainers.trl.options import sharding
from rlhf_bench.trainers.trl.run import Watch
from rlhf_bench.trainers.trl.steps import Order

TRL = get_backend("trl")
MARGINS = (0.5, 2.0, 1.0, 0.0)


@pytest.fixture(scope="module")
def moved(tiny: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    """A policy that is not its reference."""
    out = tmp_path_factory.mktemp("moved") / "out"
    return TRL.train_dpo(dpo_recipe(), sums(0, 8), tiny, tiny, out)


@pytest.fixture(scope="module")
def reward(tiny: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    out = tmp_path_factory.mktemp("reward") / "out"
    return TRL.train_reward(reward_recipe(learning_rate=1e-4), sums(0, 8), tiny, out)


@pytest.mark.parametrize(
    "options",
    [
        {"loss": "sigmoid", "label_smoothing": 0.2},
        {"loss": "ipo"},
        {"loss": "sigmoid", "nll_weight": 0.4},
    ],
    ids=lambda options: "-".join(map(str, options.values())),
)
def test_a_dpo_loss_is_what_its_formula_says(
    tiny: Checkpoint, moved: Checkpoint, tmp_path: Path, options: dict[str, Any]
) -> None:
    pairs = [*sums(40, 3), Preference(sums(9, 1)[0].prompt, "yes", "no it is a poem about the sea")]
    recipe = dpo_recipe(**options)
    trained = TRL.train_dpo(recipe, pairs, moved, tiny, tmp_path / "out")
    policy, reference = (_answers(*answer_logps(each, pairs)) for each in (moved, tiny))
    first, rewards = metrics(trained)[0], losses.implicit_rewards(recipe, policy, reference)
    assert first["loss"] == pytest.approx(float(losses.dpo_loss(recipe, policy, reference).mean()), abs=1e-4)
    assert first["rewards/chosen"] == pytest.approx(float(rewards.chosen_B.mean()), abs=1e-3)
    assert first["rewards/rejected"] == pytest.approx(float(rewards.rejected_B.mean()), abs=1e-3)
    assert first["margin"] == pytest.approx(first["rewards/chosen"] - first["rewards/rejected"], abs=1e-4)
    assert first["accuracy"] == pytest.approx(float((rewards.chosen_B > rewards.rejected_B).float().mean()))


def _answers(logps: torch.Tensor, tokens: torch.Tensor) -> losses.Answers:
    return losses.Answers(logps[:, 0], logps[:, 1], tokens[:, 0], tokens[:, 1])


def test_simpo_is_refused_with_the_back_end_that_has_it(tiny: Checkpoint, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="'simpo' is not one of TRL's: use --backend torch"):
        TRL.train_dpo(dpo_recipe(loss="simpo"), sums(0, 4), tiny, tiny, tmp_path / "out")


@pytest.mark.parametrize(
    "options",
    [{"label_smoothing": 0.2}, {"centring": 0.1}, {"use_margin": True}, {"use_margin": True, "label_smoothing": 0.1}],
    ids=lambda options: "-".join(options),
)
def test_a_reward_loss_is_what_its_formula_says(reward: Checkpoint, tmp_path: Path, options: dict[str, Any]) -> None:
    pairs = [
        Preference(pair.prompt, pair.chosen, pair.rejected, margin)
        for pair, margin in zip(sums(50, 4), MARGINS, strict=True)
    ]
    first = metrics(TRL.train_reward(reward_recipe(**options), pairs, reward, tmp_path / "out"))[0]
    model = RewardModel(reward, name="tiny")
    chosen, rejected = (
        torch.tensor(model.rewards([(pair.prompt, answer) for pair, answer in zip(pairs, answers, strict=True)]))
        for answers in ([pair.chosen for pair in pairs], [pair.rejected for pair in pairs])
    )
    expected = losses.bradley_terry(
        chosen,
        rejected,
        torch.tensor(MARGINS) if options.get("use_margin") else None,
        smoothing=options.get("label_smoothing", 0.0),
        centring=options.get("centring", 0.0),
    )
    assert first["loss"] == pytest.approx(float(expected.mean()), abs=1e-4)
    assert first["margin"] == pytest.approx(float((chosen - rejected).mean()), abs=1e-4)
    assert first["confidence"] == pytest.approx(float((chosen - rejected).abs().sigmoid().mean()), abs=1e-4)


def test_the_correlation_of_reward_and_length_is_pearsons(reward: Checkpoint, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    from rlhf_bench.harness.judges.reward import encode

    pairs = [Preference(pair.prompt, "yes" * n, "no no") for n, pair in enumerate(sums(0, 4), start=1)]
    first = metrics(TRL.train_reward(reward_recipe(), pairs, reward, tmp_path / "out"))[0]
    model, tokenizer = RewardModel(reward, name="tiny"), AutoTokenizer.from_pretrained(reward.path)
    items = [(pair.prompt, answer) for pair in pairs for answer in (pair.chosen, pair.rejected)]
    values = torch.tensor([model.rewards(items), [sum(map(len, encode(tokenizer, *item))) for item in items]])
    assert first["length_correlation"] == pytest.approx(float(torch.corrcoef(values.double())[0, 1]), abs=1e-3)


TRAIN: dict[str, Callable[..., Checkpoint]] = {
    "sft": lambda start, out, **changes: TRL.train_sft(sft_recipe(**changes), talks(7), start, out),
    "packed": lambda start, out, **changes: TRL.train_sft(
        sft_recipe(packing=True, max_length=90, **changes), talks(11), start, out
    ),
    "reward": lambda start, out, **changes: TRL.train_reward(reward_recipe(**changes), sums(0, 7), start, out),
    "preference": lambda start, out, **changes: TRL.train_preference(
        preference_recipe(**changes), sums(0, 7), start, out
    ),
    "dpo": lambda start, out, **changes: TRL.train_dpo(
        dpo_recipe(nll_weight=0.1, **changes), sums(0, 7), start, start, out
    ),
}
KEYS = {
    "sft": set[str](),
    "packed": set[str](),
    "reward": {"accuracy", "margin"},
    "preference": {"accuracy"},
    "dpo": {"logps/chosen", "logps/rejected", "rewards/chosen", "rewards/rejected", "margin", "accuracy"},
}


@pytest.mark.parametrize("what", TRAIN)
def test_a_step_is_the_same_whatever_fits_into_memory_at_once(tiny: Checkpoint, tmp_path: Path, what: str) -> None:
    """Seven rows in steps of four: the last micro-batch and the last step are short."""
    one, four = (
        metrics(TRAIN[what](tiny, tmp_path / str(size), micro_batch=size, weight_decay=0.1)) for size in (1, 4)
    )
    assert [step["step"] for step in one] == list(range(1, len(one) + 1)) and len(one) > 1
    assert [step["epoch"] for step in one] == [step["step"] / len(one) for step in one]
    for step, other in zip(one, four, strict=True):
        assert {"step", "epoch", "loss", "lr", "grad_norm"} | KEYS[what] <= step.keys() == other.keys()
        for key, value in step.items():
            assert other[key] == pytest.approx(value, rel=1e-4, abs=1e-5), key


@given(rows=st.integers(1, 40), seed=st.integers(0, 99), micro=st.integers(1, 4), among=st.integers(1, 4))
def test_every_row_is_seen_once_an_epoch_by_one_process(rows: int, seed: int, micro: int, among: int) -> None:
    for epoch in range(2):
        order = Order(rows, seed, micro * among, partial(int, epoch))
        seen = list(order)
        assert len(seen) == len(order) and len(seen) % (micro * among) == 0
        fillers = len(seen) - rows
        assert seen[rows:] == [rows] * fillers and fillers < micro * among
        stated = torch.randperm(rows, generator=torch.Generator().manual_seed(seed + epoch)).tolist()
        assert seen[:rows] == stated


def test_adapters_on_weights_in_bfloat16_are_merged_in_float32(tiny: Checkpoint, tmp_path: Path) -> None:
    """Frozen weights come out bit by bit as they went in; the trained ones are near those of a run in float32."""
    half, full = (
        TRL.train_dpo(dpo_recipe(lora=LoRA(rank=2, layers=1), dtype=dtype), sums(0, 16), tiny, tiny, tmp_path / dtype)
        for dtype in ("bfloat16", "float32")
    )
    start, one, other = weights(tiny), weights(half), weights(full)
    for name, before in start.items():
        assert one[name].dtype == before.dtype
        if torch.equal(other[name], before):
            assert torch.equal(one[name], before), name
        else:
            assert 0 < (one[name] - before).norm() < 2 * (other[name] - before).norm(), name
            assert torch.cosine_similarity((one[name] - before).flatten(), (other[name] - before).flatten(), 0) > 0.8


def test_dropout_of_adapters_acts(tiny: Checkpoint, tmp_path: Path) -> None:
    still, dropped = (
        TRL.train_reward(reward_recipe(lora=LoRA(rank=2, dropout=dropout)), sums(0, 8), tiny, tmp_path / str(dropout))
        for dropout in (0.0, 0.5)
    )
    assert metrics(still)[1]["loss"] != pytest.approx(metrics(dropped)[1]["loss"], rel=1e-6)


def test_as_many_checkpoints_are_kept_as_the_recipe_says(tiny: Checkpoint, tmp_path: Path) -> None:
    with pytest.raises(_Stop):
        TRL.train_reward(reward_recipe(save_every=1, keep=3), sums(0, 28), tiny, tmp_path / "out", _stops_at(24))
    kept = sorted(path.name for path in (tmp_path / "out.work" / "steps").glob("checkpoint-*"))
    assert kept == ["checkpoint-3", "checkpoint-4", "checkpoint-5"]


class _Stop(Exception): ...


def _stops_at(rows: int) -> Any:
    @contextmanager
    def track(label: str, total: int) -> Iterator[Advance]:
        seen = 0

        def advance(count: int) -> None:
            nonlocal seen
            seen += count
            if seen >= rows:
                raise _Stop

        yield advance

    return track


@pytest.mark.parametrize(
    ("after", "says", "good"),
    [([9.0] * 20, "the loss ran away, from 1 to 5", 14), ([math.nan], "the loss became nan", 24)],
)
def test_a_run_that_goes_wrong_names_the_last_checkpoint_from_before(
    tmp_path: Path, after: list[float], says: str, good: int
) -> None:
    """Good for 25 steps, with a checkpoint every second one; half a checkpoint is never named."""
    for step in range(2, 45, 2) if len(after) > 1 else range(2, 26, 2):
        (tmp_path / "steps" / f"checkpoint-{step}").mkdir(parents=True)
        (tmp_path / "steps" / f"checkpoint-{step}" / "complete.json").write_text("{}")
    (tmp_path / "steps" / "checkpoint-9").mkdir()
    watch = Watch(sft_recipe(), 400, 1, tmp_path, lambda count: None)
    state = TrainerState(global_step=0)
    watch.on_train_begin(None, state, None)
    with pytest.raises(Fault) as caught:
        for loss in [1.0] * 25 + after:
            state.global_step += 1
            state.log_history.append({"step": state.global_step, "loss": loss, "grad_norm": 1.0})
            watch.on_log(None, state, None, state.log_history[-1])
    message = str(caught.value)
    assert says in message and "lower learning_rate (now 0.001)" in message
    assert message.endswith(f"the last good checkpoint is {tmp_path / 'steps'}/checkpoint-{good}")
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == state.global_step - 1


@pytest.mark.skipif(torch.cuda.is_available(), reason="says what a machine without a GPU is told")
def test_weights_in_few_bits_need_a_gpu(tiny: Checkpoint, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"lora\.bits 4 needs a GPU and there is none here: set lora\.bits=null"):
        TRL.train_dpo(dpo_recipe(lora=LoRA(bits=4)), sums(0, 4), tiny, tiny, tmp_path / "out")


@pytest.mark.parametrize("tracker", ["tensorboard", "wandb", "mlflow", "trackio"])
def test_a_tracker_that_is_not_installed_is_named(tiny: Checkpoint, tmp_path: Path, tracker: str) -> None:
    if importlib.util.find_spec(tracker):
        pytest.skip(f"{tracker} is installed here")
    with pytest.raises(UserError, match=f"report_to {tracker} needs the package {tracker}: pip install {tracker}"):
        TRL.train_reward(reward_recipe(report_to=[tracker]), sums(0, 4), tiny, tmp_path / "out")


def test_a_batch_that_the_processes_cannot_share_is_refused(
    tiny: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "3")
    with pytest.raises(UserError, match="batch_size 4 is not a multiple of micro_batch 2 × 3 processes"):
        TRL.train_reward(reward_recipe(), sums(0, 4), tiny, tmp_path / "out")


def test_weights_in_few_bits_are_not_sharded(tiny: Checkpoint, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"shard zero3 and lora\.bits 4 do not go together: set one of them null"):
        TRL.train_reward(reward_recipe(shard="zero3", lora=LoRA(bits=4)), sums(0, 4), tiny, tmp_path / "out")


@pytest.mark.parametrize("shard", ["fsdp", "zero2", "zero3"])
def test_one_process_cannot_shard(shard: Any) -> None:
    with pytest.raises(UserError, match=f"shard {shard} shares the model among several processes and this is one"):
        sharding(Training(shard=shard), 1)


@pytest.mark.skipif(torch.cuda.is_available(), reason="says what a machine without a GPU is told")
def test_nothing_is_sharded_without_gpus(tiny: Checkpoint, tmp_path: Path) -> None:
    """accelerate would take no notice of it."""
    with pytest.raises(UserError, match="shard fsdp needs GPUs and there is none here: set shard=null"):
        TRL.train_reward(reward_recipe(shard="fsdp"), sums(0, 4), tiny, tmp_path / "out")


def test_fsdp_is_said_as_transformers_reads_it(tmp_path: Path) -> None:
    from trl import SFTConfig

    config = SFTConfig(str(tmp_path), use_cpu=True, bf16=False, **sharding(Training(shard="fsdp"), 8))
    assert config.fsdp_plugin_args["fsdp_version"] == 2
    assert config.fsdp_plugin_args["auto_wrap_policy"] == "TRANSFORMER_BASED_WRAP"
    assert config.fsdp_plugin_args["reshard_after_forward"] is True


@pytest.mark.parametrize(("shard", "stage"), [("zero2", 2), ("zero3", 3)])
def test_deepspeed_gets_its_stage_and_leaves_the_rest_to_the_recipe(
    monkeypatch: pytest.MonkeyPatch, shard: Any, stage: int
) -> None:
    recipe = Training(shard=shard)
    if importlib.util.find_spec("deepspeed") is None:
        with pytest.raises(UserError, match=f"shard {shard} needs DeepSpeed: pip install deepspeed, or set shard=fsdp"):
            sharding(recipe, 8)
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: name)
    config = json.loads(json.dumps(sharding(recipe, 8)["deepspeed"]))
    assert config["zero_optimization"]["stage"] == stage and config["bf16"] == {"enabled": True}
    assert config["train_micro_batch_size_per_gpu"] == config["gradient_accumulation_steps"] == "auto"
