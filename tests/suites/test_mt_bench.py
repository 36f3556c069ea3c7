"""MT-Bench: FastChat's questions, prompts and ratings."""

from __future__ import annotations

import gzip
import json
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tests.suites.talk import Talks, judge, told

from rlhf_bench.harness.errors import UserError
from rlhf_bench.harness.run import evaluate
from rlhf_bench.harness.store import Store
from rlhf_bench.harness.types import Battle, Completion, EvalProtocol, Message, Sample, Sampling, Score, Suite
from rlhf_bench.suites import protocol
from rlhf_bench.suites.judged import Choice, score
from rlhf_bench.suites.mt_bench import BENCHMARK, JUDGED, questions

SUITE = Suite("mt_bench", (BENCHMARK,))


@pytest.fixture(scope="module", autouse=True)
def samples(mirror: Path) -> Iterator[list[Sample]]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RLHF_BENCH_DATA", str(mirror))
        yield list(BENCHMARK.load(protocol("paper")))


def answer(request: Any) -> str:
    return f"answer {request.index + 1} to {request.sample_id}"


def by_turn(request: Any) -> str:
    """6 for a first turn, 9 for a second."""
    return f"Explained. Rating: [[{9 if request.index else 6}]]"


def run(store: Store, answers: Talks, judges: Talks, limit: int | None = 16) -> dict[str, Any]:
    report = evaluate(SUITE, answers, protocol=protocol("paper"), store=store, judge=judge(judges, store), limit=limit)
    return {each.metric: each for each in report.estimates} | {"report": report}


def test_ten_questions_of_each_category_are_asked_at_fastchats_temperatures(samples: list[Sample]) -> None:
    assert set(Counter(sample.tags["stratum"] for sample in samples).values()) == {10}
    found = {sample.tags["stratum"]: sample.requests[0].sampling for sample in samples}
    assert {name: sampling.temperature for name, sampling in found.items()} == {
        "writing": 0.7,
        "roleplay": 0.7,
        "reasoning": 0.0,
        "math": 0.0,
        "coding": 0.0,
        "extraction": 0.0,
        "stem": 0.1,
        "humanities": 0.1,
    }
    assert {sampling.max_tokens for sampling in found.values()} == {1024}
    assert {s.tags["stratum"] for s in samples if s.reference} == {"math", "reasoning", "coding"}


def test_the_second_turn_follows_the_answer_to_the_first_and_nothing_follows_it(samples: list[Sample]) -> None:
    sample = BENCHMARK.load(EvalProtocol("mine", system_prompt="Be brief."))[0]
    first = Completion(sample.id, 0, "Aloha.", "stop", 1)
    assert BENCHMARK.follow is not None
    (second,) = BENCHMARK.follow(sample, (first,))
    assert second.prompt == (
        Message("system", "Be brief."),
        Message("user", sample.row["turns"][0]),
        Message("assistant", "Aloha."),
        Message("user", sample.row["turns"][1]),
    )
    assert (second.index, second.sampling) == (1, sample.requests[0].sampling)
    assert BENCHMARK.follow(sample, (first, replace(first, index=1))) == ()


def answers_in(prompt: str, turn: int) -> list[str]:
    """The model's answers as a published prompt shows them."""
    if turn == 1:
        found = re.search(r"\[The Start of Assistant's Answer\]\n(.*)\n\[The End of Assistant's Answer\]", prompt, re.S)
    else:
        talk = prompt[prompt.index("<|The Start of Assistant A's Conversation with User|>") :]
        shape = r"### Assistant A:\n(.*)\n\n### User:\n.*?\n\n### Assistant A:\n(.*)\n\n<\|The End of Assistant A's"
        found = re.search(shape, talk, re.S)
    assert found
    return list(found.groups())


@pytest.mark.parametrize("name", ["medusa", "medusa_mistral", "orpo"])
def test_the_judges_prompts_are_the_published_ones(samples: list[Sample], mirror: Path, name: str) -> None:
    lines = gzip.decompress((mirror / f"mt_bench/judgments/{name}.gpt-4_single.jsonl.gz").read_bytes()).splitlines()
    rows = [json.loads(line) for line in lines]
    by_id = {sample.row["question_id"]: sample for sample in samples}
    prompts = {
        row["name"]: row for row in map(json.loads, (mirror / "mt_bench/judge_prompts.jsonl").read_text().splitlines())
    }
    for row in rows:
        asked = questions(by_id[row["question_id"]], answers_in(row["user_prompt"], row["turn"]), row["turn"])
        assert told(asked) == row["user_prompt"]
        assert asked.prompt[0] == Message("system", prompts[row["judge"][1]]["system_prompt"])
        assert asked.sampling == JUDGED == Sampling(2048, 0.0)
    assert len(rows) >= 480


def test_what_stands_in_an_answer_is_never_a_place_in_the_prompt(samples: list[Sample]) -> None:
    asked = told(questions(samples[0], ["{question_2} {answer_2}", "{answer_1} {ref_answer_1}"], 2))
    assert "\n{question_2} {answer_2}\n" in asked
    assert "\n{answer_1} {ref_answer_1}\n" in asked


def test_published_replies_score_as_published(
    samples: list[Sample], mirror: Path, store: Store, tmp_path: Path
) -> None:
    path = mirror / "mt_bench/judgments/orpo.gpt-4_single.jsonl.gz"
    model = "mistral-orpo-capybara"
    rows = [row for row in map(json.loads, gzip.decompress(path.read_bytes()).splitlines()) if row["model"] == model]
    said = {(f"mt_bench/{row['question_id']}", row["turn"] - 1): row for row in rows}
    one_each = tmp_path / "one_each.jsonl"
    one_each.write_text("\n".join(json.dumps(row) for row in said.values()))
    (official,) = score("mt_bench", [one_each], Choice())
    answers = Talks(lambda r: answers_in(said[r.sample_id, r.index]["user_prompt"], r.index + 1)[-1])
    found = run(store, answers, Talks(lambda r: said[r.sample_id, r.index]["judgment"]), limit=None)
    assert len(said) == 160 and official.ungraded == 0
    for metric, name in (("rating", "score"), ("turn_1", "score_turn_1"), ("turn_2", "score_turn_2")):
        times = 1 if metric == "rating" else 10
        expected = official.metrics[name]
        assert times * found[metric].mean == pytest.approx(expected.value)
        assert times * found[metric].se == pytest.approx(expected.se)
    assert found["rating"].graded == 80


def test_a_whole_run_rates_both_turns_with_the_first_answer_in_the_conversation(store: Store) -> None:
    answers, judges = Talks(answer), Talks(by_turn)
    found = run(store, answers, judges)
    assert (found["score"].mean, found["rating"].mean) == (pytest.approx(0.75), pytest.approx(7.5))
    assert (found["turn_1"].mean, found["turn_2"].mean) == (0.6, 0.9)
    assert (found["rating"].low, found["rating"].high) == (10 * found["score"].low, 10 * found["score"].high)
    assert found["score,macro"].mean == pytest.approx(0.75)
    assert len(answers.asked) == len(judges.asked) == 32
    second = next(request for request in judges.asked if request.index == 1)
    assert f"answer 1 to {second.sample_id}" in told(second) and f"answer 2 to {second.sample_id}" in told(second)
    manifest = found["report"].manifest["judge_manifest"]
    assert (manifest["engine"], manifest["cost_usd"]) == ("talks", "0.25")


def test_a_judge_that_was_stopped_is_asked_only_for_the_rest(store: Store) -> None:
    with pytest.raises(KeyboardInterrupt):
        run(store, Talks(answer), Talks(by_turn, most=11))
    answers, judges = Talks(answer), Talks(by_turn)
    found = run(store, answers, judges)
    assert (len(answers.asked), len(judges.asked)) == (0, 21)
    assert found["score"].graded == 16


def test_a_turn_without_a_rating_leaves_its_question_ungraded_and_says_why(store: Store, samples: list[Sample]) -> None:
    def moody(request: Any) -> str | None:
        if request.sample_id == "mt_bench/81" and request.index == 1:
            return "I would rather not say."
        return "[[99]]" if request.sample_id == "mt_bench/91" and request.index == 0 else by_turn(request)

    def silent(request: Any) -> str | None:
        return None if request.sample_id == "mt_bench/101" and request.index == 1 else answer(request)

    judges = Talks(moody)
    found = run(store, Talks(silent), judges, limit=80)
    scores = {r.sample.id: r.score for r in store.records(found["report"].run_id)}
    assert (scores["mt_bench/81"].value, scores["mt_bench/81"].also) == (None, {"turn_1": 0.6})
    assert scores["mt_bench/81"].why.startswith("turn 2: no verdict in the judge's reply 'I would rather")
    assert scores["mt_bench/91"].why.startswith("turn 1: no verdict in the judge's reply '[[99]]'")
    assert scores["mt_bench/101"] == Score("mt_bench/101", None, "no answer: out of memory")
    assert (found["rating"].graded, found["rating"].ungraded) == (77, 3)
    assert len([r for r in judges.asked if r.sample_id == "mt_bench/81" and r.index == 1]) == 3


class Compares:
    name = "reward"
    identity = "reward"

    def prefer(self, battles: Sequence[Battle]) -> Iterator[Score]:
        yield from (Score(battle.sample_id, 1.0) for battle in battles)


def test_a_judge_that_only_compares_is_refused_before_an_answer_is_generated(store: Store) -> None:
    answers = Talks(answer)
    with pytest.raises(UserError, match=r"'mt_bench' asks its judge for ratings, which 'reward' cannot give.*--judge"):
        evaluate(SUITE, answers, protocol=protocol("paper"), store=store, judge=Compares(), limit=1)
    assert answers.asked == []


def test_graded_alone_it_needs_a_judge_that_can_be_asked(samples: list[Sample]) -> None:
    with pytest.raises(UserError, match="--judge openai:MODEL"):
        list(BENCHMARK.grade([], Compares()))
