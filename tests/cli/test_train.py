"""`train`: mistakes cost one line before any long work starts; first comes what it will do, last where it lies."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from tests.cli.conftest import Call

from rlhf_bench.cli import live, show
from rlhf_bench.harness.checkpoint import checkpoint_digest
from rlhf_bench.harness.config import schema
from rlhf_bench.trainers.recipes import KINDS

PAIR = {"prompt": "Why?", "chosen": "Because.", "rejected": "No."}
TALK = {"messages": [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": "Because."}]}
NAMES = {"sft": "sft", "rm": "reward", "pm": "preference", "dpo": "dpo"}


def written(path: Path, *rows: Any) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.fixture
def pairs(home: Path) -> str:
    return written(home / "pairs.jsonl", PAIR, PAIR | {"prompt": "How?"}, PAIR | {"prompt": "When?"})


@pytest.fixture
def talks(home: Path) -> str:
    return written(home / "talks.jsonl", TALK, TALK, TALK)


@pytest.fixture
def short(home: Path) -> Path:
    """A recipe that any command takes and that ends soon."""
    path = home / "short.yaml"
    path.write_text(
        "batch_size: 2\nmicro_batch: 1\nmax_length: 100\nlearning_rate: 1e-3\ndtype: float32\n"
        "gradient_checkpointing: false\nneeds: {hours: 0.5, memory_gb: 3, machine: a small one}\n"
    )
    return path


def asked(what: str, data: str, model: Path, *rest: str) -> list[str]:
    return ["train", what, "--data", data, "--out", "out", "--model", str(model), *rest]


def test_an_unknown_preset_names_the_nearest(call: Call, pairs: str) -> None:
    done = call("train", "rm", "--data", pairs, "--out", "out", "--preset", "demo-rewards")
    assert done.code == 2
    assert "Did you mean 'demo-reward'?" in done.one_line


def test_an_unknown_key_names_the_nearest(call: Call, pairs: str) -> None:
    done = call("train", "dpo", "--data", pairs, "--out", "out", "--preset", "demo-dpo", "--set", "bta=0.2")
    assert done.code == 2
    assert "Did you mean 'beta'?" in done.one_line


def test_a_value_out_of_range_says_what_is_allowed(call: Call, pairs: str) -> None:
    done = call("train", "dpo", "--data", pairs, "--out", "out", "--preset", "demo-dpo", "--set", "beta=-1")
    assert done.code == 2
    assert "beta" in done.one_line
    assert "greater than 0" in done.one_line


def test_settings_that_do_not_go_together_are_named_and_not_the_preset_alone(call: Call, pairs: str) -> None:
    order = ["train", "dpo", "--data", pairs, "--out", "out", "--preset", "demo-dpo"]
    done = call(*order, "--set", "batch_size=5", "--set", "micro_batch=2")
    assert done.code == 2
    assert "demo-dpo.yaml with batch_size=5, micro_batch=2: batch_size 5 is not a multiple" in done.one_line
    other = call(*order, "--set", "report_to=[tensorbord]")
    assert other.code == 2 and other.one_line.startswith("error: override 'report_to=[tensorbord]': key 'report_to.0'")


@pytest.mark.parametrize("what", NAMES)
def test_a_missing_data_file_is_named(call: Call, what: str) -> None:
    done = call("train", what, "--data", "none.jsonl", "--out", "out", "--preset", f"demo-{NAMES[what]}")
    assert done.code == 2
    assert "none.jsonl" in done.one_line


def test_an_unknown_back_end_says_where_others_come_from(call: Call, pairs: str) -> None:
    done = call("train", "rm", "--data", pairs, "--out", "out", "--preset", "demo-reward", "--backend", "jax")
    assert done.code == 2
    assert "rlhf_bench.trainers" in done.one_line


@pytest.mark.parametrize("alias", ["champion", "latest", "demo-reward", "smollm2-135m-instruct", "scripted:x", ""])
def test_a_name_that_means_something_else_is_refused_before_training(call: Call, pairs: str, alias: str) -> None:
    done = call("train", "rm", "--data", pairs, "--out", "out", "--preset", "demo-reward", "--alias", alias)
    assert done.code == 2
    assert "alias" in done.one_line


@pytest.mark.parametrize("what", NAMES)
def test_the_schema_of_a_recipe_is_shown_without_anything_else(call: Call, what: str) -> None:
    done = call("train", what, "--schema")
    assert done.code == 0 and done.err == ""
    assert done.out.strip() == schema(KINDS[NAMES[what]])


def test_data_that_hold_nothing_are_refused(call: Call, home: Path) -> None:
    done = call("train", "dpo", "--data", written(home / "empty.jsonl"), "--out", "out", "--preset", "demo-dpo")
    assert done.code == 2
    assert "empty.jsonl" in done.one_line


def test_a_bad_row_is_named_or_skipped_and_counted(call: Call, home: Path, tiny_checkpoint: Path, short: Path) -> None:
    data = written(home / "mixed.jsonl", PAIR, PAIR | {"rejected": "Because."}, {"prompt": "Why?", "chosen": "x"})
    order = asked("dpo", data, tiny_checkpoint, "--config", str(short), "--dry-run")
    done = call(*order)
    assert done.code == 2 and "row 2" in done.one_line
    skipped = call(*order, "--on-bad-row", "skip")
    assert skipped.code == 0
    assert skipped.out.startswith("data: 1 pairs (1 ") and "left out)" in skipped.out.splitlines()[0]


def test_a_control_token_in_a_turn_is_named_or_skipped_and_counted(
    call: Call, home: Path, tiny_checkpoint: Path, short: Path
) -> None:
    forged = {"messages": [{"role": "user", "content": "Hi<|im_end|>"}, TALK["messages"][1]]}
    order = asked(
        "sft", written(home / "talks.jsonl", TALK, forged), tiny_checkpoint, "--config", str(short), "--dry-run"
    )
    done = call(*order)
    assert done.code == 2 and "talks.jsonl row 2: turn 1 holds '<|im_end|>'" in done.one_line
    skipped = call(*order, "--on-bad-row", "skip")
    assert skipped.code == 0 and skipped.out.startswith("data: 1 conversations (1 control token in a turn left out)")


@pytest.mark.parametrize("what", ["rm", "pm", "dpo"])
@pytest.mark.parametrize(
    ("change", "where"),
    [
        ({"prompt": "Hi<|im_end|>"}, "turn 1"),
        ({"chosen": "Yes<|im_end|>"}, "chosen"),
        ({"rejected": "<|im_start|>"}, "rejected"),
    ],
)
def test_a_control_token_in_a_pair_is_named_or_skipped_and_counted(
    call: Call, home: Path, tiny_checkpoint: Path, short: Path, what: str, change: dict[str, str], where: str
) -> None:
    data = written(home / "pairs.jsonl", PAIR, PAIR | change)
    order = asked(what, data, tiny_checkpoint, "--config", str(short), "--set", "max_length=200", "--dry-run")
    done = call(*order)
    assert done.code == 2 and f"pairs.jsonl row 2: {where} holds '<|im_" in done.one_line
    skipped = call(*order, "--on-bad-row", "skip")
    assert skipped.code == 0 and skipped.out.startswith("data: 1 pairs (1 control token in a turn left out)")


def test_the_row_of_a_control_token_is_that_of_the_file_though_a_row_gives_several_pairs(
    call: Call, home: Path, tiny_checkpoint: Path, short: Path
) -> None:
    ranked = {"prompt": "Why?", "responses": ["a", "b", "c"], "rewards": [1, 2, 3]}
    data = written(home / "ranked.jsonl", ranked, ranked, ranked | {"prompt": "Hi<|im_end|>"})
    done = call(*asked("dpo", data, tiny_checkpoint, "--config", str(short), "--dry-run"))
    assert done.code == 2 and "ranked.jsonl row 3: turn 1 holds" in done.one_line


def test_a_template_of_another_vocabulary_is_named_though_a_preset_gave_it(
    call: Call, tiny_checkpoint: Path, talks: str
) -> None:
    done = call(*asked("sft", talks, tiny_checkpoint, "--dry-run"))
    assert done.code == 2
    assert "chat_template llama3 does not suit" in done.one_line and "null for its own" in done.one_line


@pytest.mark.parametrize(
    ("what", "setting", "said"),
    [("rm", "use_margin=true", "use_margin has nothing to go by"), ("dpo", "seed=1", "is no language model")],
)
def test_a_dry_run_refuses_what_the_training_would(
    call: Call, home: Path, tiny_checkpoint: Path, short: Path, pairs: str, what: str, setting: str, said: str
) -> None:
    start = tiny_checkpoint
    if what == "dpo":
        start = home / "scorer"
        shutil.copytree(tiny_checkpoint, start)
        config = json.loads((start / "config.json").read_text())
        (start / "config.json").write_text(json.dumps(config | {"architectures": ["LlamaForSequenceClassification"]}))
    done = call(*asked(what, pairs, start, "--config", str(short), "--set", setting, "--dry-run"))
    assert done.code == 2 and said in done.one_line


@pytest.mark.parametrize(
    ("file", "text", "said"),
    [
        ("config.json", b"[]", "config.json in"),
        ("config.json", b"{", "config.json in"),
        ("config.json", b'{"model_type": "unheard-of"}', "the model in"),
        ("tokenizer.json", b"{", "the tokenizer in"),
        ("tokenizer_config.json", b"{", "cannot be read"),
        ("chat_template.jinja", b"\xff\xfe", "the chat template in"),
        ("chat_template.jinja", b"{% for x in %}", "refuses a conversation"),
        ("chat_template.jinja", b"{{ raise_exception('no') }}", "refuses a conversation"),
    ],
)
def test_a_model_with_a_broken_file_is_one_line_that_says_which(
    call: Call, home: Path, tiny_checkpoint: Path, short: Path, pairs: str, file: str, text: bytes, said: str
) -> None:
    shutil.copytree(tiny_checkpoint, home / "broken")
    if file == "tokenizer_config.json":
        (home / "broken" / "chat_template.jinja").unlink()
    (home / "broken" / file).write_bytes(text)
    done = call(*asked("dpo", pairs, home / "broken", "--config", str(short), "--dry-run"))
    assert done.code == 2 and said in done.one_line


def test_code_that_a_model_brings_is_neither_run_nor_asked_about(
    call: Call, home: Path, tiny_checkpoint: Path, short: Path, pairs: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    hostile = home / "hostile"
    shutil.copytree(tiny_checkpoint, hostile)
    config = json.loads((hostile / "config.json").read_text())
    code = {"auto_map": {"AutoConfig": "own.Own"}, "model_type": "own"}
    (hostile / "config.json").write_text(json.dumps(config | code))
    (hostile / "own.py").write_text(f"open({str(home / 'ran')!r}, 'w')\n")
    monkeypatch.setattr("sys.stdin", io.StringIO("y\n" * 50))
    done = call(*asked("dpo", pairs, hostile, "--config", str(short), "--dry-run"))
    assert done.code == 2 and "needs code of its own, which is never run" in done.one_line
    assert not (home / "ran").exists()


def test_a_training_that_changed_nothing_is_a_failure_and_no_model_of_its_own(
    call: Call, home: Path, tiny_checkpoint: Path, short: Path, talks: str
) -> None:
    settings = ["--backend", "torch", "--set", "learning_rate=1e-60"]
    done = call(*asked("sft", talks, tiny_checkpoint, "--config", str(short), *settings))
    assert done.code == 4
    assert "holds the very weights that it began from" in done.err.splitlines()[-1]
    assert [each["parent"] for each in call("models", "--json").json] == [None]


@pytest.mark.parametrize("what", NAMES)
def test_a_model_without_a_chat_template_is_refused(
    call: Call, home: Path, tiny_checkpoint: Path, short: Path, pairs: str, talks: str, what: str
) -> None:
    shutil.copytree(tiny_checkpoint, home / "base")
    (home / "base" / "chat_template.jinja").unlink()
    done = call(*asked(what, talks if what == "sft" else pairs, home / "base", "--config", str(short)))
    assert done.code == 2
    assert "has no chat template" in done.one_line and "chat_template" in done.one_line


def test_a_dry_run_says_what_would_be_trained_and_leaves_nothing(
    call: Call, home: Path, tiny_checkpoint: Path, short: Path, pairs: str
) -> None:
    long = written(home / "long.jsonl", PAIR, PAIR | {"chosen": "yes " * 200})
    done = call(*asked("rm", long, tiny_checkpoint, "--config", str(short), "--dry-run"))
    first, second, third = done.out.splitlines()
    assert first == "data: 1 pairs (1 over 100 tokens left out)"
    assert second.startswith("training: 1 steps of 2, ") and second.endswith(" tokens")
    assert third == "needs: 30m00s and 3 GB on a small one (estimated for the preset's own data)"
    as_json = call(*asked("rm", pairs, tiny_checkpoint, "--config", str(short), "--dry-run", "--json"))
    assert (as_json.json["plan"]["steps"], as_json.json["plan"]["rows"], as_json.json["plan"]["exact"]) == (2, 3, True)
    assert not (home / "out").exists() and not (home / "out.work").exists()


def test_sft_from_the_command_line_ends_with_where_it_lies_and_what_to_do_next(
    call: Call, home: Path, tiny_checkpoint: Path, short: Path, talks: str
) -> None:
    done = call(*asked("sft", talks, tiny_checkpoint, "--config", str(short), "--set", "packing=false", "--alias", "s"))
    assert done.code == 0, done.err
    lines = done.out.splitlines()
    assert lines[0] == "data: 3 conversations"
    assert lines[-3] == f"{checkpoint_digest(home / 'out')[:12]} in {home / 'out'}"
    assert lines[-2].startswith("loss ") and "over 2 steps" in lines[-2]
    assert lines[-1] == "next: rlhf-bench run --model s"
    assert "train sft: 3/3" in done.err and "tokens/s" in done.err
    again = call(*asked("sft", talks, tiny_checkpoint, "--config", str(short), "--set", "packing=true"))
    assert again.code == 2
    assert "holds another model (packing is False there, True now)" in again.one_line


def test_a_trained_judge_is_named_as_the_judge_that_it_is(
    call: Call, home: Path, tiny_checkpoint: Path, short: Path, pairs: str
) -> None:
    done = call(*asked("pm", pairs, tiny_checkpoint, "--config", str(short), "--set", "max_length=200"))
    assert done.code == 0, done.err
    assert done.out.splitlines()[-1] == f"next: rlhf-bench run --suite chat --judge pm:{home / 'out'}"
    assert "accuracy" in done.out.splitlines()[-2]


def test_the_note_of_a_run_is_its_last_whole_line(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    said = live.note(path)
    assert said() == ""
    step = {"loss": 0.512345, "margin": 1.0311, "accuracy": 0.75, "lr": 4.2e-5, "tokens_per_s": 512.4, "step": 1}
    path.write_text(json.dumps(step) + "\n")
    assert said() == "loss 0.512, margin 1.03, accuracy 0.75, lr 4.2e-05, 512 tokens/s"
    with path.open("a") as file:
        file.write(json.dumps(step | {"loss": 0.25}) + "\n" + json.dumps(step)[:20])
    assert said().startswith("loss 0.25,")


def test_a_terminal_shows_the_last_step_beside_the_bar() -> None:
    written = io.StringIO()
    terminal = Console(file=written, force_terminal=True, width=140)
    with show._live(terminal, lambda: "loss 0.512, 80 tokens/s")("train dpo", 10) as advance:
        advance(10)
    assert "train dpo" in written.getvalue() and "loss 0.512, 80 tokens/s" in written.getvalue()


def test_the_course_of_a_run_is_from_its_first_tenth_to_its_last(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(json.dumps({"loss": 2.0 - n / 20, "step": n + 1}) + "\n" for n in range(20)))
    assert live.course(path) == "loss 1.975 to 1.075 over 20 steps"
