"""trainers/plain: the torch back end does what its recipes say, and goes on where it was stopped."""

from __future__ import annotations

import json
import math
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from tests.trainers.conftest import dpo_recipe, preference_recipe, reward_recipe, sft_recipe, sums, talks
from tests.trainers.oracles import answer_logps, metrics, opened, token_logps, weights

from rlhf_bench.harness.checkpoint import checkpoint_digest
from rlhf_bench.harness.errors import Fault, UserError
from rlhf_bench.harness.judges.reward import RewardModel
from rlhf_bench.harness.progress import Advance
from rlhf_bench.harness.types import Checkpoint, Message, Preference
from rlhf_bench.trainers.backends import get_backend
from rlhf_bench.trainers.data import encode_conversation
from rlhf_bench.trainers.plain import logps as chunked
from rlhf_bench.trainers.plain import steps
from rlhf_bench.trainers.plain.journal import Journal
from rlhf_bench.trainers.plain.models import load_policy
from rlhf_bench.trainers.recipes import DPORecipe, LoRA, RewardRecipe

TORCH = get_backend("torch")
KILLED = Path(__file__).with_name("plain_driver.py")
Train = Callable[..., Checkpoint]


def trainer(kind: str, tiny: Checkpoint, **changes: Any) -> Train:
    """A run of a few steps on 12 rows, two epochs, a checkpoint at every step."""
    changes = {"epochs": 2, "save_every": 1, **changes}
    if kind == "sft":
        return lambda *rest: TORCH.train_sft(sft_recipe(**changes), talks(12), tiny, *rest)
    if kind == "reward":
        return lambda *rest: TORCH.train_reward(reward_recipe(**changes), sums(0, 12), tiny, *rest)
    if kind == "preference":
        return lambda *rest: TORCH.train_preference(preference_recipe(**changes), sums(0, 12), tiny, *rest)
    return lambda *rest: TORCH.train_dpo(dpo_recipe(**changes), sums(0, 12), tiny, tiny, *rest)


class Stop(Exception):
    """What ends a run in the middle."""


def stops_after(count: int) -> Any:
    """Progress that ends the run once so many rows were trained on."""

    @contextmanager
    def track(label: str, total: int) -> Iterator[Advance]:
        left = count if label.startswith("train") else math.inf

        def advance(done: int) -> None:
            nonlocal left
            left -= done
            if left <= 0:
                raise Stop

        yield advance

    return track


class TestLearns:
    """Each recipe, by what it is for."""

    def test_sft_makes_the_assistants_turns_more_probable(self, tiny: Checkpoint, tmp_path: Path) -> None:
        trained = trainer("sft", tiny, epochs=6)(tmp_path / "out")
        losses = [line["loss"] for line in metrics(trained)]
        assert losses[-1] < losses[0] / 3

    def test_the_first_sft_loss_is_the_mean_over_the_assistants_tokens(self, tiny: Checkpoint, tmp_path: Path) -> None:
        trained = TORCH.train_sft(sft_recipe(batch_size=8), talks(5), tiny, tmp_path / "out")
        tokenizer, model = opened(tiny)
        losses: list[float] = []
        for ids, mask in (encode_conversation(tokenizer, talk) for talk in talks(5)):
            each = zip(token_logps(model, ids).tolist(), mask[1:], strict=True)
            losses += [-logp for logp, learned in each if learned]
        assert metrics(trained)[0]["loss"] == pytest.approx(sum(losses) / len(losses), rel=1e-5)

    @pytest.mark.parametrize("kind", ["sft", "preference"])
    def test_packing_changes_which_rows_there_are_and_not_what_a_step_learns(
        self, tiny: Checkpoint, tmp_path: Path, kind: str
    ) -> None:
        """All of the data in one step: the same loss and the same gradient."""
        one_step = {"batch_size": 12, "micro_batch": 12, "epochs": 1}
        apart = trainer(kind, tiny, **one_step)(tmp_path / "apart")
        together = trainer(kind, tiny, packing=True, **one_step)(tmp_path / "together")
        assert together.recipe["rows"] < 12
        for one, other in zip(metrics(apart), metrics(together), strict=True):
            assert one == pytest.approx(other, rel=1e-4)

    def test_a_reward_model_separates_held_out_pairs_and_is_read_as_it_was_trained(
        self, tiny: Checkpoint, tmp_path: Path
    ) -> None:
        trained = TORCH.train_reward(reward_recipe(epochs=3), sums(0, 24), tiny, tmp_path / "out")
        model, held_out = RewardModel(trained, name="tiny"), sums(100, 8)
        chosen = model.rewards([(pair.prompt, pair.chosen) for pair in held_out])
        rejected = model.rewards([(pair.prompt, pair.rejected) for pair in held_out])
        pairs = [(c, r) for c, r in zip(chosen, rejected, strict=True) if c is not None and r is not None]
        assert sum(c > r for c, r in pairs) >= 7
        again = TORCH.train_reward(reward_recipe(batch_size=8, epochs=1), held_out, trained, tmp_path / "again")
        first = metrics(again)[0]
        assert first["loss"] == pytest.approx(sum(math.log1p(math.exp(r - c)) for c, r in pairs) / 8, rel=1e-4)
        assert first["margin"] == pytest.approx(sum(c - r for c, r in pairs) / 8, rel=1e-4)
        config = json.loads((Path(trained.path) / "config.json").read_text())
        assert config["pad_token_id"] != config["eos_token_id"]

    def test_a_preference_model_learns_its_letters_whichever_answer_is_a(
        self, tiny: Checkpoint, tmp_path: Path
    ) -> None:
        lines = metrics(trainer("preference", tiny, epochs=8)(tmp_path / "out"))
        assert lines[-1]["loss"] < 0.5 < lines[0]["loss"]
        assert sum(line["accuracy"] for line in lines[-6:]) / 6 > 0.8

    def test_dpo_raises_the_margin_over_the_reference_it_was_given(self, tiny: Checkpoint, tmp_path: Path) -> None:
        first = trainer("dpo", tiny)(tmp_path / "first")
        lines = metrics(first)
        assert lines[0]["loss"] == pytest.approx(math.log(2), abs=1e-6)
        assert lines[-1]["loss"] < 0.5 and lines[-1]["accuracy"] == 1.0
        second = TORCH.train_dpo(dpo_recipe(epochs=1), sums(0, 4), first, tiny, tmp_path / "second")
        assert metrics(second)[0]["loss"] < 0.5

    def test_every_loss_of_dpo_runs_and_simpo_needs_no_reference(self, tiny: Checkpoint, tmp_path: Path) -> None:
        for loss in DPORecipe.model_fields["loss"].annotation.__args__:  # type: ignore[union-attr]
            seen: list[str] = []

            @contextmanager
            def track(label: str, total: int, seen: list[str] = seen) -> Iterator[Advance]:
                seen.append(label)
                yield lambda count: None

            recipe = dpo_recipe(loss=loss, epochs=1, nll_weight=0.1)
            trained = TORCH.train_dpo(recipe, sums(0, 4), tiny, tiny, tmp_path / loss, track)
            assert math.isfinite(metrics(trained)[0]["loss"])
            assert ("reference log-probabilities" in seen) == (loss != "simpo")


class TestGoesOn:
    """A run that was stopped ends in the weights and metrics of one that was left alone, bit by bit."""

    @pytest.mark.parametrize("kind", ["sft", "reward", "preference", "dpo"])
    def test_stopped_anywhere(self, tiny: Checkpoint, tmp_path: Path, kind: str) -> None:
        train = trainer(kind, tiny, save_every=2, lora=LoRA(rank=2, dropout=0.1), warmup=0.2)
        whole = train(tmp_path / "whole")
        count = random.SystemRandom().randint(1, 23)
        with pytest.raises(Stop):
            train(tmp_path / "out", stops_after(count))
        resumed = train(tmp_path / "out")
        assert resumed.digest == whole.digest, count
        assert metrics(resumed) == metrics(whole), count

    def test_killed(self, tiny: Checkpoint, tmp_path: Path) -> None:
        """A real SIGKILL at a random step of full fine-tuning."""
        step = random.SystemRandom().randint(3, 26)
        out = tmp_path / "killed"
        child = subprocess.Popen(
            [sys.executable, str(KILLED), tiny.path, str(out), str(torch.get_num_threads())], stderr=subprocess.PIPE
        )
        log = tmp_path / "killed.work" / "metrics.jsonl"
        while child.poll() is None and not (log.exists() and len(log.read_bytes().splitlines()) >= step):
            time.sleep(0.001)
        child.kill()
        _, errors = child.communicate()
        assert child.returncode == -signal.SIGKILL, (step, errors.decode()[-2000:])
        assert not out.exists() and list((tmp_path / "killed.work" / "steps").glob("*.safetensors"))
        changes: dict[str, Any] = {"epochs": 4, "save_every": 2}
        whole = TORCH.train_dpo(dpo_recipe(**changes), sums(0, 30), tiny, tiny, tmp_path / "whole")
        resumed = TORCH.train_dpo(dpo_recipe(**changes), sums(0, 30), tiny, tiny, out)
        assert resumed.digest == whole.digest, step
        assert metrics(resumed) == metrics(whole)

    def test_a_checkpoint_that_is_cut_is_passed_over(self, tiny: Checkpoint, tmp_path: Path) -> None:
        train = trainer("dpo", tiny)
        whole = train(tmp_path / "whole")
        with pytest.raises(Stop):
            train(tmp_path / "out", stops_after(20))
        saved = tmp_path / "out.work" / "steps"
        assert {path.name for path in saved.iterdir()} == {"3.safetensors", "4.safetensors"}, "the last two are kept"
        latest = saved / "4.safetensors"
        latest.write_bytes(latest.read_bytes()[:5000])
        resumed = train(tmp_path / "out")
        assert resumed.digest == whole.digest and metrics(resumed) == metrics(whole)

    def test_a_disk_that_is_full_leaves_the_earlier_checkpoint(self, tiny: Checkpoint, tmp_path: Path) -> None:
        """Files of this process may not grow past 1 MB from the second step on."""
        train = trainer("dpo", tiny, save_every=2)
        whole = train(tmp_path / "whole")
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)

        @contextmanager
        def track(label: str, total: int) -> Iterator[Advance]:
            left = 12 if label.startswith("train") else math.inf

            def advance(done: int) -> None:
                nonlocal left
                left -= done
                if left <= 0:
                    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, hard))

            yield advance

        try:
            with pytest.raises(Fault, match=r"cannot write .*/4\.safetensors: .*run it again to go on"):
                train(tmp_path / "out", track)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert [path.name for path in (tmp_path / "out.work" / "steps").iterdir()] == ["2.safetensors"]
        assert train(tmp_path / "out").digest == whole.digest

    def test_the_reference_is_computed_once(self, tiny: Checkpoint, tmp_path: Path) -> None:
        train = trainer("dpo", tiny)
        with pytest.raises(Stop):
            train(tmp_path / "out", stops_after(8))
        seen: dict[str, list[int]] = {}

        @contextmanager
        def track(label: str, total: int) -> Iterator[Advance]:
            seen[label] = [total, 0]

            def advance(count: int) -> None:
                seen[label][1] += count

            yield advance

        train(tmp_path / "out", track)
        assert seen == {"train dpo": [24, 24]}


class TestRefuses:
    """What cannot be done is said in one line, before any weights are loaded where that is possible."""

    @pytest.mark.parametrize(
        ("changes", "said"),
        [
            ({"shard": "zero2"}, "no shard zero2"),
            ({"report_to": ("wandb",)}, "no report_to wandb"),
            ({"lora": LoRA(bits=4)}, "no lora.bits 4"),
        ],
    )
    def test_options_of_the_other_back_end(
        self, tiny: Checkpoint, tmp_path: Path, changes: dict[str, Any], said: str
    ) -> None:
        with pytest.raises(UserError, match=f"the torch back end has {said}: use --backend trl"):
            trainer("dpo", tiny, **changes)(tmp_path / "out")

    def test_several_processes(self, tiny: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("WORLD_SIZE", "2")
        with pytest.raises(UserError, match="no several processes: use --backend trl"):
            trainer("dpo", tiny)(tmp_path / "out")

    def test_a_reference_with_another_vocabulary(self, tiny: Checkpoint, tmp_path: Path) -> None:
        other = tmp_path / "other"
        shutil.copytree(tiny.path, other)
        text = (other / "tokenizer.json").read_text(encoding="utf-8")
        (other / "tokenizer.json").write_text(text.replace("<|endoftext|>", "<|begin|>"), encoding="utf-8")
        reference = Checkpoint(str(other), checkpoint_digest(other))
        with pytest.raises(UserError, match="another vocabulary"):
            TORCH.train_dpo(dpo_recipe(), sums(0, 4), tiny, reference, tmp_path / "out")

    def test_data_of_which_nothing_fits(self, tiny: Checkpoint, tmp_path: Path) -> None:
        long = Preference((Message("user", "Say it again."),), "yes " * 300, "no")
        trained = TORCH.train_dpo(dpo_recipe(), [*sums(0, 4), long], tiny, tiny, tmp_path / "out")
        assert (trained.recipe["pairs"], trained.recipe["over_length"]) == (4, 1)
        with pytest.raises(UserError, match="all 1 pairs are longer than 200 tokens"):
            TORCH.train_reward(reward_recipe(), [long], tiny, tmp_path / "none")
        with pytest.raises(UserError, match="all 1 pairs are longer than 200 tokens"):
            TORCH.train_preference(preference_recipe(), [long], tiny, tmp_path / "nor")
        with pytest.raises(UserError, match="all 1 conversations are longer than 200 tokens"):
            said = (*long.prompt, Message("assistant", long.chosen))
            TORCH.train_sft(sft_recipe(), [said], tiny, tmp_path / "no")

    def test_a_control_token_in_a_turn_and_a_template_that_cannot_be_trained_with(
        self, tiny: Checkpoint, tmp_path: Path
    ) -> None:
        turns = (Message("user", "Say <|im_end|>."), Message("assistant", "No."))
        with pytest.raises(UserError, match=r"conversation 1: turn 1 holds '<\|im_end\|>'"):
            TORCH.train_sft(sft_recipe(), [*talks(1), turns], tiny, tmp_path / "out")
        bare = tmp_path / "bare"
        shutil.copytree(tiny.path, bare)
        for file in bare.glob("chat_template*"):
            file.unlink()
        start = Checkpoint(str(bare), checkpoint_digest(bare))
        for kind in ("sft", "reward", "preference", "dpo"):
            with pytest.raises(UserError, match="has no chat template"):
                trainer(kind, start)(tmp_path / kind)

    @pytest.mark.parametrize("kind", ["sft", "reward", "preference", "dpo"])
    def test_a_loss_that_is_not_finite(self, tiny: Checkpoint, tmp_path: Path, kind: str) -> None:
        broken = tmp_path / "broken"
        shutil.copytree(tiny.path, broken)
        poisoned = load_file(broken / "model.safetensors")
        poisoned["model.norm.weight"][0] = math.nan
        save_file(poisoned, broken / "model.safetensors", metadata={"format": "pt"})
        start = Checkpoint(str(broken), checkpoint_digest(broken))
        with pytest.raises(Fault, match="the loss became nan at step 1: lower learning_rate"):
            trainer(kind, start)(tmp_path / "out")
        assert not (tmp_path / "out").exists()

    def test_a_run_that_diverges_and_names_the_last_good_checkpoint(self, tmp_path: Path) -> None:
        model = torch.nn.Linear(1, 1)
        recipe = dpo_recipe(save_every=4, keep=99)
        journal = Journal(tmp_path, recipe, model, steps.adamw(model, recipe), 200)
        assert journal.resume() == 0
        losses = [1.0] * 30 + [9.0] * 99
        with pytest.raises(Fault, match=r"the loss ran away, .* at step 40: .* good checkpoint is .*steps/20.safe"):
            for step, loss in enumerate(losses, start=1):
                journal.write(step, {"loss": loss, "grad_norm": 1.0}, 1)


class TestLeaves:
    """What the recipes are made of, each against an independent source."""

    @settings(deadline=None, max_examples=30)
    @given(st.data())
    def test_log_probabilities_in_chunks_are_those_of_the_whole_with_their_gradients(self, data: st.DataObject) -> None:
        tokens, width, vocabulary = (data.draw(st.integers(1, 9)) for _ in range(3))
        torch.manual_seed(data.draw(st.integers(0, 999)))
        head = torch.nn.Linear(width, vocabulary, bias=data.draw(st.booleans()), dtype=torch.float64)
        head.weight.requires_grad_(data.draw(st.booleans()))
        states = torch.randn(tokens, width, dtype=torch.float64, requires_grad=True)
        targets, upstream = torch.randint(vocabulary, (tokens,)), torch.randn(tokens, dtype=torch.float64)
        wanted = [each for each in (states, head.weight, head.bias) if each is not None and each.requires_grad]
        expected = head(states).log_softmax(-1).gather(1, targets[:, None])[:, 0]
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(chunked, "CHUNK_LOGITS", data.draw(st.integers(1, 30)))
            found = chunked.token_logps(states, head, targets)
            grads = torch.autograd.grad(found, wanted, upstream)
        torch.testing.assert_close(found, expected)
        torch.testing.assert_close(grads, torch.autograd.grad(expected, wanted, upstream))

    @given(st.integers(1, 40), st.integers(1, 3), st.integers(1, 9), st.integers(0, 5))
    def test_the_order_of_the_data_is_that_of_accelerates_sampler(
        self, rows: int, epochs: int, batch: int, seed: int
    ) -> None:
        from accelerate.data_loader import SeedableRandomSampler

        recipe = RewardRecipe(epochs=epochs, batch_size=batch, micro_batch=1, seed=seed)
        sampler = SeedableRandomSampler(range(rows), data_seed=seed)
        expected = []
        for epoch in range(epochs):
            sampler.set_epoch(epoch)
            order = list(sampler)
            expected += [order[first : first + batch] for first in range(0, rows, batch)]
        assert steps.batches(rows, recipe) == expected

    @settings(deadline=None, max_examples=40)
    @given(st.sampled_from(["cosine", "linear", "constant_with_warmup"]), st.floats(0, 0.9), st.integers(1, 40))
    def test_the_learning_rate_is_that_of_transformers(self, schedule: str, warmup: float, total: int) -> None:
        from transformers import get_scheduler

        recipe = RewardRecipe.model_validate({"schedule": schedule, "warmup": warmup, "learning_rate": 0.1})
        optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1)
        scheduler = get_scheduler(schedule, optimizer, min(math.ceil(total * warmup), total - 1), total)
        for step in range(total):
            assert steps.learning_rate(recipe, step, total) == pytest.approx(scheduler.get_last_lr()[0], abs=1e-12)
            optimizer.step()
            scheduler.step()

    def test_weight_decay_spares_what_transformers_spares(self, tiny: Checkpoint) -> None:
        from transformers import Trainer

        model = load_policy(tiny, dpo_recipe()).whole
        decayed = {id(weight) for weight in steps.adamw(model, dpo_recipe(weight_decay=0.1)).param_groups[0]["params"]}
        names = {name for name, weight in model.named_parameters() if id(weight) in decayed}
        known = {name for name, _ in model.named_parameters()}
        assert names == known & set(Trainer.get_decay_parameter_names(None, model))  # type: ignore[arg-type]

    @pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
    def test_adapters_are_merged_into_a_folder_like_the_policys(
        self, tiny: Checkpoint, tmp_path: Path, dtype: str
    ) -> None:
        """Into the weights as they are stored, even where they were rounded to train."""
        trained = trainer("dpo", tiny, lora=LoRA(rank=4, layers=1), dtype=dtype)(tmp_path / "out")
        before, after = weights(tiny), weights(trained)
        changed = {name for name in before if not torch.equal(before[name], after[name])}
        assert changed and all(".layers.1." in name for name in changed)
        ours = {"metrics.jsonl", "recipe.json"}
        files = {file.name for file in Path(trained.path).iterdir()} - ours
        assert files == {file.name for file in Path(tiny.path).iterdir()}
        assert (Path(trained.path) / "config.json").read_text() == (Path(tiny.path) / "config.json").read_text()

    def test_checkpointed_gradients_are_the_same_and_bfloat16_follows(self, tiny: Checkpoint, tmp_path: Path) -> None:
        plain, spared, half = (
            metrics(trainer("dpo", tiny, **changes)(tmp_path / str(number)))
            for number, changes in enumerate([{}, {"gradient_checkpointing": True}, {"dtype": "bfloat16"}])
        )
        for one, other, rough in zip(plain, spared, half, strict=True):
            assert one == pytest.approx(other, rel=1e-4)
            assert one["loss"] == pytest.approx(rough["loss"], abs=0.1)

    def test_training_prints_nothing(self, tiny: Checkpoint, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
        for kind in ("sft", "reward", "preference", "dpo"):
            trainer(kind, tiny)(tmp_path / kind)
        assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("kind", ["capped", "windowed"])
def test_models_of_another_make_get_the_same_numbers_another_way(
    tiny: Checkpoint, tmp_path: Path, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Logits that are capped after the head (Gemma 2), and a window that no shared row can keep (Mistral)."""
    from transformers import Gemma2Config, Gemma2ForCausalLM, MistralConfig, MistralForCausalLM

    sizes: dict[str, Any] = {
        "vocab_size": json.loads((Path(tiny.path) / "config.json").read_text())["vocab_size"],
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        "initializer_range": 0.3,
    }
    torch.manual_seed(0)
    if kind == "capped":
        capped = Gemma2Config(**sizes, head_dim=8, sliding_window=512, final_logit_softcapping=2.0)
        model: Any = Gemma2ForCausalLM(capped)
    else:
        model = MistralForCausalLM(MistralConfig(**sizes, sliding_window=12))
    path = tmp_path / "other"
    shutil.copytree(tiny.path, path)
    model.save_pretrained(path)
    start = Checkpoint(str(path), checkpoint_digest(path))
    trained = TORCH.train_dpo(dpo_recipe(epochs=1), sums(3, 1), start, start, tmp_path / "out")
    first, (expected, _) = metrics(trained)[0], answer_logps(start, sums(3, 1))
    assert [first["logps/chosen"], first["logps/rejected"]] == pytest.approx(expected[0].tolist(), abs=1e-3)
    assert trained.recipe["shared_prompt"] == (kind == "capped")
    assert [record.getMessage().split(" ", 1)[1][:23] for record in caplog.records] == (
        [] if kind == "capped" else ["computes a prompt once "]
    )
