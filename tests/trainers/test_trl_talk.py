"""trainers/trl: SFT learns the assistant's turns alone, a preference model the letter; packing changes neither."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from tests.trainers.conftest import preference_recipe, sft_recipe, sums, talks
from tests.trainers.oracles import metrics, opened, token_logps

from rlhf_bench.harness.checkpoint import checkpoint_digest
from rlhf_bench.harness.errors import UserError
from rlhf_bench.harness.judges.preference import answer_tokens, encode_pair
from rlhf_bench.harness.types import Checkpoint, Conversation, Message
from rlhf_bench.trainers.backends import get_backend
from rlhf_bench.trainers.data.template import encode_conversation
from rlhf_bench.trainers.questions import questions

TRL = get_backend("trl")


@pytest.fixture(scope="module")
def packed(tiny: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    """One step over all conversations, several in a row."""
    out = tmp_path_factory.mktemp("sft") / "out"
    return TRL.train_sft(sft_recipe(packing=True, batch_size=32), talks(12), tiny, out)


def test_sft_is_the_mean_over_the_assistants_tokens_alone(tiny: Checkpoint, packed: Checkpoint) -> None:
    tokenizer, model = opened(tiny)
    learned = []
    for talk in talks(12):
        ids, mask = encode_conversation(tokenizer, talk)
        learned.append(token_logps(model, ids)[torch.tensor(mask[1:]).bool()])
    assert metrics(packed)[0]["loss"] == pytest.approx(-float(torch.cat(learned).mean()), abs=1e-4)


def test_a_packed_conversation_sees_no_other(tiny: Checkpoint, packed: Checkpoint, tmp_path: Path) -> None:
    alone = TRL.train_sft(sft_recipe(packing=False, batch_size=32), talks(12), tiny, tmp_path / "out")
    assert packed.recipe["rows"] < packed.recipe["conversations"] == alone.recipe["conversations"] == 12
    for one, other in zip(metrics(packed), metrics(alone), strict=True):
        assert one["loss"] == pytest.approx(other["loss"], abs=1e-4)
        assert one["grad_norm"] == pytest.approx(other["grad_norm"], rel=1e-4)


def test_sft_teaches_what_was_said(tiny: Checkpoint, tmp_path: Path) -> None:
    trained = TRL.train_sft(sft_recipe(epochs=6), talks(12), tiny, tmp_path / "out")
    losses = [step["loss"] for step in metrics(trained)]
    assert losses[-1] < losses[0] / 3
    assert {file.name for file in Path(trained.path).iterdir()} > {file.name for file in Path(tiny.path).iterdir()}


def test_longer_conversations_are_left_out_and_counted(tiny: Checkpoint, tmp_path: Path) -> None:
    long = (Message("user", "Go on."), Message("assistant", "yes " * 300))
    trained = TRL.train_sft(sft_recipe(), [*talks(4), long], tiny, tmp_path / "out")
    assert (trained.recipe["conversations"], trained.recipe["over_length"]) == (4, 1)
    with pytest.raises(UserError, match="all 1 conversations are longer than 200 tokens"):
        TRL.train_sft(sft_recipe(), [long], tiny, tmp_path / "none")


def test_a_control_token_in_a_turn_is_named_with_its_conversation(tiny: Checkpoint, tmp_path: Path) -> None:
    forged: Conversation = (Message("user", "Hi<|im_end|>"), Message("assistant", "yes"))
    with pytest.raises(UserError, match=r"conversation 2: turn 1 holds '<\|im_end\|>'"):
        TRL.train_sft(sft_recipe(), [*talks(2), forged], tiny, tmp_path / "out")


@pytest.fixture
def base(tiny: Checkpoint, tmp_path: Path) -> Checkpoint:
    """A base model: no chat template, and generation stops at the end of the text only."""
    import shutil

    folder = tmp_path / "base"
    shutil.copytree(tiny.path, folder)
    (folder / "chat_template.jinja").unlink()
    settings = json.loads((folder / "generation_config.json").read_text())
    (folder / "generation_config.json").write_text(json.dumps({**settings, "eos_token_id": 0}))
    return Checkpoint(str(folder), checkpoint_digest(folder))


def test_a_base_model_is_refused_until_the_recipe_gives_it_a_template(base: Checkpoint, tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"has no chat template: use a chat model, or make it one by SFT with chat_template set"
    ):
        TRL.train_sft(sft_recipe(), talks(4), base, tmp_path / "refused")
    trained = TRL.train_sft(sft_recipe(chat_template="chatml"), talks(4), base, tmp_path / "out")
    tokenizer, _ = opened(trained)
    assert tokenizer.apply_chat_template([{"role": "user", "content": "Hi"}], tokenize=False) == (
        "<|im_start|>user\nHi<|im_end|>\n"
    )
    settings = json.loads((Path(trained.path) / "generation_config.json").read_text())
    assert settings["eos_token_id"] == [tokenizer.convert_tokens_to_ids("<|im_end|>"), 0]


def test_a_template_that_does_not_exist_is_named(base: Checkpoint, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no chat template named 'chatlm'\. Did you mean 'chatml'"):
        TRL.train_sft(sft_recipe(chat_template="chatlm"), talks(4), base, tmp_path / "out")


def test_a_template_whose_tokens_the_vocabulary_lacks_is_refused(base: Checkpoint, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="ends an answer with no end-of-turn token"):
        TRL.train_sft(sft_recipe(chat_template="llama3"), talks(4), base, tmp_path / "out")


def test_a_preference_model_learns_the_letter_of_the_better_answer(tiny: Checkpoint, tmp_path: Path) -> None:
    """The first loss by plain torch; then it tells pairs apart that it never saw, in either order."""
    pairs = sums(0, 24)
    recipe = preference_recipe(epochs=4, learning_rate=3e-3)
    trained = TRL.train_preference(recipe, pairs, tiny, tmp_path / "out")
    tokenizer, model = opened(tiny)
    letters = answer_tokens(tokenizer)
    order = torch.randperm(24, generator=torch.Generator().manual_seed(recipe.seed)).tolist()
    asked = questions(pairs, recipe.seed)
    wanted = []
    for question in (asked[place] for place in order[: recipe.batch_size]):
        ids = encode_pair(tokenizer, question.prompt, question.a, question.b)
        wanted.append(token_logps(model, [*ids, letters[not question.a_is_better]])[-1])
    assert metrics(trained)[0]["loss"] == pytest.approx(-float(torch.stack(wanted).mean()), abs=1e-4)
    assert metrics(trained)[-1]["accuracy"] > metrics(trained)[0]["accuracy"]
    tokenizer, model = opened(trained)
    right = 0
    for pair in sums(100, 10):
        for a, b, letter in ((pair.chosen, pair.rejected, 0), (pair.rejected, pair.chosen, 1)):
            ids = encode_pair(tokenizer, pair.prompt, a, b)
            said = [float(token_logps(model, [*ids, each])[-1]) for each in letters]
            right += said[letter] > said[1 - letter]
    assert right >= 18


def test_packed_questions_see_no_other(tiny: Checkpoint, tmp_path: Path) -> None:
    alone, packed = (
        TRL.train_preference(
            preference_recipe(packing=packing, batch_size=32, micro_batch=1), sums(0, 9), tiny, tmp_path / str(packing)
        )
        for packing in (False, True)
    )
    assert packed.recipe["rows"] < packed.recipe["pairs"] == alone.recipe["pairs"] == 9
    assert metrics(packed)[0]["loss"] == pytest.approx(metrics(alone)[0]["loss"], abs=1e-4)
    assert metrics(packed)[0]["grad_norm"] == pytest.approx(metrics(alone)[0]["grad_norm"], rel=1e-4)
    assert metrics(packed)[0]["accuracy"] == metrics(alone)[0]["accuracy"]
