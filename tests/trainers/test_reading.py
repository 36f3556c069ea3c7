"""trainers/chat/reading.py: a reward model that would score something else than the answers is named in one line.

So is a policy whose chat template refuses the prompts.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.conftest import CHATML
from tests.trainers.conftest import reward_recipe, sums

from rlhf_bench.harness.checkpoint import checkpoint_digest
from rlhf_bench.harness.errors import UserError
from rlhf_bench.harness.types import Checkpoint, Conversation, Message
from rlhf_bench.trainers.backends import get_backend
from rlhf_bench.trainers.chat.reading import check_asks, check_reads

USER, SYSTEM = Message("user", "Why?"), Message("system", "Be brief.")
TALK = (USER, Message("assistant", "So."), USER)
OTHER = (
    "{{ bos_token }}{% for message in messages %}[{{ message['role'] }}] {{ message['content'] | trim }}<|endoftext|>"
    "{% endfor %}{% if add_generation_prompt %}[assistant] {% endif %}"
)
Made = Callable[..., Checkpoint]


@pytest.fixture
def made(tiny_checkpoint: Path, tmp_path: Path) -> Made:
    """The tiny model with another chat template, and other settings in its configuration."""

    def make(template: str = CHATML, **config: Any) -> Checkpoint:
        folder = tmp_path / "made"
        shutil.copytree(tiny_checkpoint, folder)
        (folder / "chat_template.jinja").write_text(template)
        said = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(said | config))
        return Checkpoint(str(folder), checkpoint_digest(folder))

    return make


@pytest.mark.parametrize("template", [CHATML, OTHER])
def test_a_template_of_its_own_is_no_fault(made: Made, template: str) -> None:
    check_reads(made(template), [(USER,), (SYSTEM, USER), TALK])


@pytest.mark.parametrize(
    ("template", "prompts", "said"),
    [
        (CHATML.replace("messages %}", "messages if message['role'] != 'assistant' %}"), [], "leaves an answer out"),
        (CHATML.replace("message['content']", "message['content'] | upper"), [], "leaves an answer out or changes it"),
        (CHATML.replace("message['content']", "message['content'][:9]"), [], "leaves an answer out or changes it"),
        (OTHER.replace("bos_token }}", "bos_token }}{{ bos_token }}"), [], r"writes '<\|im_start\|>' twice"),
        (
            "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system role') }}{% endif %}" + CHATML,
            [(USER,), (SYSTEM, USER)],
            r"refuses prompts of system, user \(no system role\)",
        ),
        (
            CHATML.replace("messages %}", "messages if message['role'] != 'system' %}"),
            [(SYSTEM, USER)],
            "leaves a turn of the system out of system, user",
        ),
        (CHATML.replace("in messages", "in messages[-2:]"), [TALK], "prompt differently once it is answered"),
        (CHATML.replace("{% if add_generation_prompt %}", "{% if false %}"), [], "does not add the assistant's header"),
    ],
    ids=range(8),
)
def test_a_template_that_does_not_give_the_answers_whole_is_one_line(
    made: Made, template: str, prompts: list[Conversation], said: str
) -> None:
    model = made(template)
    with pytest.raises(UserError, match=said) as error:
        check_reads(model, prompts)
    assert model.path in str(error.value) and "\n" not in str(error.value)


def test_what_a_template_does_to_system_turns_matters_where_there_are_some(made: Made) -> None:
    drops = CHATML.replace("messages %}", "messages if message['role'] != 'system' %}")
    check_reads(made(drops), [(USER,), TALK])


def test_a_tokenizer_that_is_not_the_models_is_told(made: Made) -> None:
    with pytest.raises(UserError, match=r"has a token \d+, and its model knows 300: it is another model's"):
        check_reads(made(vocab_size=300))


def test_a_template_that_was_changed_since_the_training_is_told(tiny: Checkpoint, tmp_path: Path) -> None:
    trained = get_backend("torch").train_reward(reward_recipe(), sums(0, 4), tiny, tmp_path / "out")
    check_reads(trained)
    (Path(trained.path) / "chat_template.jinja").write_text(OTHER)
    with pytest.raises(UserError, match="was trained with another chat template than its folder now holds"):
        check_reads(trained)


@pytest.mark.parametrize("text", ["", "[]", '{"template": 3}', '{"trainer": "somebody\'s"}'])
def test_a_record_that_is_not_ours_says_nothing(made: Made, text: str) -> None:
    model = made()
    (Path(model.path) / "recipe.json").write_text(text)
    check_reads(model)


def test_a_policy_whose_template_refuses_an_order_of_roles_is_told(made: Made) -> None:
    policy = made("{% if messages[0]['role'] == 'system' %}{{ raise_exception('no\nsystem') }}{% endif %}" + CHATML)
    check_asks(policy, [(USER,), TALK])
    with pytest.raises(UserError, match=r"refuses prompts of system, user \(no system\): take them out") as told:
        check_asks(policy, [(USER,), TALK, (SYSTEM, USER)])
    assert "\n" not in str(told.value)
