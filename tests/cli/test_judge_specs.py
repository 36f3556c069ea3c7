"""The judges by the names that the command line gives them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from rlhf_bench.cli import lookup, scorers
from rlhf_bench.harness.errors import UnknownName, UserError
from rlhf_bench.harness.judges.llm import LLMJudge
from rlhf_bench.harness.progress import silent
from rlhf_bench.harness.store import Store
from rlhf_bench.harness.types import Battle, Message

BATTLE = Battle("s", (Message("user", "Say hello"),), "hello", "hi")


def test_a_replayed_file_is_a_judge(tmp_path: Path, store: Store) -> None:
    row = {"instruction": "Say hello", "output_1": "hi", "output_2": "hello", "preference": 1.75}
    (tmp_path / "annotations.json").write_text(json.dumps([row]))
    judge = scorers.judge(f"replay:{tmp_path}/annotations.json", store, silent)
    assert [score.value for score in judge.prefer([BATTLE])] == [0.75]


def test_an_endpoint_is_a_judge_with_alpaca_evals_prompt(
    mirror: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RLHF_BENCH_DATA", str(mirror))
    judge = scorers.judge("openai:m@http://localhost:1/v1", store, silent)
    assert isinstance(judge, LLMJudge)
    (request,) = judge.requests([BATTLE])
    assert (request.sampling.max_tokens, request.sampling.logprobs, request.continuation) == (1, 5, None)
    assert judge.manifest["published_with"] == "gpt-4-1106-preview"
    other = scorers.judge("openai:n@http://localhost:1/v1", store, silent)
    assert judge.identity != other.identity


def test_a_local_chat_model_judges_by_the_probability_of_both_names(
    mirror: Path, tiny_checkpoint: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RLHF_BENCH_DATA", str(mirror))
    judge = scorers.judge(f"llm:{tiny_checkpoint}", store, silent)
    (score,) = judge.prefer([BATTLE])
    assert score.value is None and "512" in score.why, (
        "AlpacaEval's prompt does not fit the tiny model, and that is said"
    )


def test_a_judge_that_does_not_exist_is_one_line(store: Store, tmp_path: Path) -> None:
    with pytest.raises(UnknownName, match="Known: fail, first, longer, tie"):
        scorers.judge("scripted:zzz", store, silent)
    with pytest.raises(UserError, match="cannot be read as annotations"):
        scorers.judge(f"replay:{tmp_path}/none.json", store, silent)


@pytest.mark.parametrize("spec", ["llm:somewhere", "scripted:tie", lookup.DEMO_JUDGE])
def test_a_judge_that_calls_no_function_is_not_asked_for_one(spec: str, store: Store) -> None:
    with pytest.raises(UserError, match=r"--judge-prompt cot .* needs --judge openai:MODEL"):
        scorers.judge(spec, store, silent, prompt="cot")


def test_the_judge_prompt_is_part_of_the_judges_identity(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    from rlhf_bench.harness.judges.llm import PairPrompt
    from rlhf_bench.harness.types import Sampling

    messages = (Message("user", "{instruction}{output_1}{output_2}"),)
    monkeypatch.setattr(
        "rlhf_bench.suites.judge_prompts.alpaca_eval_prompt",
        lambda name: PairPrompt(name, messages, Sampling(), "m", "M"),
    )
    spec = "openai:m@http://localhost:1/v1"
    judges = [scorers.judge(spec, store, silent, prompt=name) for name in ("weighted", "fn", "cot")]
    assert len({judge.identity for judge in judges}) == 3


@pytest.mark.parametrize("kind", ["", "pm:"])
def test_a_loops_reward_that_cannot_read_answers_is_one_line_before_it_is_loaded(
    kind: str, tiny_checkpoint: Path, store: Store, tmp_path: Path
) -> None:
    folder = tmp_path / "reward"
    shutil.copytree(tiny_checkpoint, folder)
    if not kind:
        said = json.loads((folder / "config.json").read_text())
        head = {"architectures": ["LlamaForSequenceClassification"], "id2label": {"0": "r"}}
        (folder / "config.json").write_text(json.dumps(said | head))
    assert scorers.scoring(f"{kind}{folder}", store, silent, [(Message("user", "Why?"),)]).name == f"{kind}{folder}"
    silenced = tmp_path / "silenced"
    shutil.copytree(folder, silenced)
    (silenced / "chat_template.jinja").write_text("{% for m in messages %}{{ m.role }}<|im_end|>{% endfor %}")
    with pytest.raises(UserError, match="leaves an answer out or changes it"):
        scorers.scoring(f"{kind}{silenced}", store, silent)
