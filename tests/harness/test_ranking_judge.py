"""AlpacaEval's fn and cot judges: a forced function call whose arguments rank the two outputs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from rlhf_bench.harness.codec import dumps
from rlhf_bench.harness.engines.openai import OpenAIEngine, payload_of
from rlhf_bench.harness.engines.pace import Limits
from rlhf_bench.harness.engines.replayed import ReplayedEngine
from rlhf_bench.harness.errors import MissingData, UnknownName, UserError
from rlhf_bench.harness.judges.llm import LLMJudge, PairPrompt, ranking_prompt
from rlhf_bench.harness.judges.readers import is_switched, ranking
from rlhf_bench.harness.models import open_engine
from rlhf_bench.harness.store import Store
from rlhf_bench.harness.types import Battle, Message, Request, Sampling
from rlhf_bench.suites.judge_prompts import alpaca_eval_prompt

CHOICE = {"type": "function", "function": {"name": "rank"}}
FUNCTION = json.dumps({"tools": [{"type": "function", "function": {"name": "rank"}}], "tool_choice": CHOICE})
PROMPT = PairPrompt(
    "p", (Message("user", "{instruction}|{output_1}|{output_2}"),), Sampling(100, function=FUNCTION), "m", "M"
)
REQUEST = Request("s", (Message("user", "hi"),), Sampling(function=FUNCTION))
M1 = '{"ordered_models": [{"model": "m", "rank": 1}, {"model": "M", "rank": 2}]}'
CASES = [
    (M1, 1.0),
    ('{"concise_explanation": "x", "ordered_models": [{"model": "M", "rank": 1}, {"model": "m", "rank": 2}]}', 0.0),
    (f"so ```json\n{M1}``` that", 1.0),
    (f"[{M1}]", 1.0),
    ('{"ordered_models": [{"model": "m", "rank": 2.0}, {"model": "m", "rank": 1}]}', 0.0),
    (json.dumps({"ordered_models": "[{'model': 'm', 'rank': 1}]"}), 1.0),
    ('{"ordered_models": [{"model": "m", "rank": 3}]}', None),
    ('{"ordered_models": [{"model": "m", "rank": "1"}]}', None),
    ('{"ordered_models": [{"model": "M", "rank": 1}]}', None),
    ('{"ordered_models": [{"rank": 1}]}', None),
    ('{"ordered_models": ["m", "M"]}', None),
    ('{"ordered_models": []}', None),
    ('{"ordered_models": "(("}', None),
    ('{"ordered_models": [{"model": "m", "ra', None),
    ("{}", None),
    ("7", None),
    ("", None),
]


def battles(*texts: str) -> list[Battle]:
    return [Battle(f"b/{text}", (Message("user", text),), "yes", "no") for text in texts]


@pytest.mark.parametrize(("text", "value"), CASES)
def test_a_rank_of_one_or_two_is_a_preference_and_all_else_none(text: str, value: float | None) -> None:
    assert ranking(text) == (None if value is None else (value, 1.0))


def test_the_function_is_sent_as_tools_and_old_digests_hold() -> None:
    body = payload_of("m", REQUEST, reasons=False)
    assert body["tool_choice"] == CHOICE and body["tools"][0]["function"]["name"] == "rank"
    assert "tools" not in payload_of("m", Request("s", (Message("user", "hi"),)), reasons=False)
    assert "function" not in dumps(Sampling()) and "function" in dumps(REQUEST.sampling)


def test_a_ranking_comes_back_through_a_real_endpoint(stub: Any, store: Store) -> None:
    asked = battles(*(f"rank {number}" for number in range(12)))
    scores = list(LLMJudge(OpenAIEngine("stub", stub.url), store, PROMPT).prefer(asked))
    expected = {f"b/rank {n}": 1.0 if is_switched(f"rank {n}") else 0.0 for n in range(12)}
    assert {score.sample_id: score.value for score in scores} == expected
    assert set(expected.values()) == {0.0, 1.0} and all(not score.also for score in scores)


def test_a_reply_without_the_call_is_asked_for_again_and_then_no_verdict(stub: Any, store: Store) -> None:
    judge = LLMJudge(OpenAIEngine("stub", stub.url, limits=Limits(backoff_s=0.01, deadline_s=2.5)), store, PROMPT)
    passing, lasting = judge.prefer(battles("fault:no_call:1 ")), judge.prefer(battles("fault:no_call "))
    assert [score.value for score in passing] in ([0.0], [1.0])
    (score,) = lasting
    assert score.value is None and score.why == "unparseable: the message calls no function"


def test_engines_that_cannot_call_a_function_say_so(tiny_checkpoint: Path, store: Store) -> None:
    rows = [{"instruction": "hi", "output": "x", "generator": "g"}]
    for engine in (open_engine(str(tiny_checkpoint), store), ReplayedEngine("file", rows)):
        (completion,) = engine.generate([REQUEST])
        assert completion.finish_reason == "error" and "function" in completion.why


def test_a_configuration_with_other_parsers_is_refused() -> None:
    with pytest.raises(UserError, match="ranks by a function call"):
        ranking_prompt("p", "p: {completions_kwargs: {}, completion_parser_kwargs: {}}", "")


def test_a_judge_prompt_that_is_not_here_or_does_not_exist_is_one_line(
    mirror: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    monkeypatch.setenv("RLHF_BENCH_DATA", str(mirror))
    with pytest.raises(MissingData, match=r"'fn' is not here as published: pip install alpaca-eval==0\.6\.6$"):
        alpaca_eval_prompt("fn")
    with pytest.raises(UnknownName, match="cot, fn, weighted"):
        alpaca_eval_prompt("zzz")


@pytest.mark.parametrize(("name", "tokens"), [("fn", 100), ("cot", 300)])
def test_prompt_function_and_parser_are_those_of_the_alpaca_eval_package(name: str, tokens: int) -> None:
    official = pytest.importorskip("alpaca_eval", reason="the official package is not installed")
    import pandas as pd
    import yaml
    from alpaca_eval import utils  # type: ignore[import-not-found]
    from alpaca_eval.completion_parsers import pipeline_meta_parser  # type: ignore[import-not-found]

    prompt = alpaca_eval_prompt(name)
    folder = Path(official.__file__).parent / "evaluators_configs" / prompt.name
    config = yaml.safe_load((folder / "configs.yaml").read_text())[prompt.name]
    asked = config["completions_kwargs"]
    assert json.loads(prompt.sampling.function) == {key: asked[key] for key in ("tools", "tool_choice")}
    assert (prompt.sampling.max_tokens, prompt.sampling.temperature) == (tokens, 0.0)
    table = pd.DataFrame([{"instruction": "ask {x} é", "output_1": "base", "output_2": "new"}])
    (text,), _ = utils.make_prompts(table, (folder / "alpaca_eval_fn.txt").read_text())
    ours = prompt.filled("ask {x} é", "base", "new")
    assert [{"role": each.role, "content": each.content} for each in ours] == utils.prompt_to_chatml(text)
    for reply, _value in CASES:
        try:
            (theirs,) = pipeline_meta_parser(reply, **config["completion_parser_kwargs"])
        except (ValueError, KeyError, TypeError):
            theirs = None
        found = ranking(reply)
        assert (2.0 - found[0] if found else None) == (theirs if theirs in (1, 2) else None), reply
