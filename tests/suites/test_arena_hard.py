"""Arena-Hard v0.1: the official prompts, two games, and the score of their closed form."""

from __future__ import annotations

import gzip
import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.suites.talk import Talks, judge, told

from rlhf_bench.harness.errors import UserError
from rlhf_bench.harness.run import evaluate
from rlhf_bench.harness.stats import mean_interval
from rlhf_bench.harness.store import Store
from rlhf_bench.harness.types import Battle, Completion, Message, Record, Request, Sample, Sampling, Score, Suite
from rlhf_bench.suites import protocol
from rlhf_bench.suites.arena_hard import BENCHMARK, games
from rlhf_bench.suites.judged import Choice, score

SUITE = Suite("arena_hard", (BENCHMARK,))


@pytest.fixture(scope="module", autouse=True)
def samples(mirror: Path) -> Iterator[list[Sample]]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RLHF_BENCH_DATA", str(mirror))
        yield list(BENCHMARK.load(protocol("paper")))


def run(store: Store, judges: Talks, limit: int = 40) -> dict[str, Any]:
    report = evaluate(
        SUITE, Talks(mine), protocol=protocol("paper"), store=store, judge=judge(judges, store), limit=limit
    )
    return {each.metric: each for each in report.estimates} | {"report": report}


def mine(request: Request) -> str:
    return f"answer to {request.sample_id}"


def test_the_baseline_answers_the_same_prompts(samples: list[Sample], mirror: Path) -> None:
    lines = gzip.decompress((mirror / "arena_hard/v0.1/model_answer/gpt-4-0314.jsonl.gz").read_bytes()).splitlines()
    answers = {row["messages"][0]["content"]: row["messages"][1]["content"]["answer"] for row in map(json.loads, lines)}
    assert {sample.prompt[-1].content: sample.reference for sample in samples} == answers  # type: ignore[union-attr]
    assert {sample.requests[0].sampling for sample in samples} == {Sampling(4096, 0.0)}


def test_the_judges_prompts_are_the_published_ones_in_both_games(samples: list[Sample], mirror: Path) -> None:
    name = "bagel-8b-v1.0.judge_DeepSeek-R1-Distill-Llama-70B.jsonl.gz"
    rows = list(map(json.loads, gzip.decompress((mirror / "arena_hard/judgments" / name).read_bytes()).splitlines()))
    by_id = {sample.id.partition("/")[2]: sample for sample in samples}
    shape = r"<\|The Start of Assistant B's Answer\|>\n(.*)\n<\|The End of Assistant B's Answer\|>$"
    for row in rows:
        answer = re.search(shape, row["games"][0]["user_prompt"], re.S)
        assert answer
        asked = games(by_id[row["question_id"]], answer[1])
        assert [told(request) for request in asked] == [game["user_prompt"] for game in row["games"]]
    assert len(rows) == 181


def test_the_judges_settings_are_those_of_v01(samples: list[Sample]) -> None:
    first, second = games(samples[0], "mine {answer_1}")
    assert first.sampling == second.sampling == Sampling(2048, 0.0)
    system = first.prompt[0]
    assert isinstance(system, Message) and system.role == "system"
    assert system.content.startswith("Please act as an impartial judge") and "[[A>>B]]" in system.content
    assert told(second).index("mine {answer_1}") < told(second).index(samples[0].reference)


def verdicts(request: Request) -> str:
    """Different ones from prompt to prompt, and not the same in both games."""
    labels = "A>>B", "A>B", "A=B", "B>A", "B>>A"
    place = int(request.sample_id.rpartition("/")[2][:6], 16)
    return f"My final verdict is: [[{labels[(place + 2 * request.index) % 5]}]]"


def test_the_score_is_the_one_of_the_same_verdicts_in_the_official_file(store: Store, tmp_path: Path) -> None:
    found = run(store, Talks(verdicts))
    rows = []
    for record in store.records(found["report"].run_id):
        name = record.sample.id
        labels = [verdicts(Request(name, "", index=index))[-8:].strip("[] :") for index in (0, 1)]
        said = [{"score": label.split()[-1].strip("[]")} for label in labels]
        rows.append({"question_id": name, "model": "m", "judge": "j", "games": said})
    path = tmp_path / "judgments.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    (official,) = score("arena_hard", [path], Choice())
    wanted = official.metrics["score"]
    ours = [100 * getattr(found["score"], name) for name in ("mean", "low", "high", "se")]
    assert ours == pytest.approx([wanted.value, wanted.low, wanted.high, wanted.se])
    assert official.metrics["score_published"].value == pytest.approx(ours[0], abs=0.01)
    assert found["score"].graded == 40 and official.graded == 80


@pytest.mark.parametrize(
    ("first", "second", "value", "weight", "agree"),
    [
        ("B>>A", "A>B", 1.0, 4.0, 1.0),
        ("A>>B", "A>B", 0.25, 4.0, 0.0),
        ("A=B", "A=B", 0.5, 2.0, 1.0),
        ("A>>B", "B>>A", 0.0, 6.0, 1.0),
    ],
)
def test_a_strong_verdict_counts_three_times_within_its_prompt(
    store: Store, samples: list[Sample], first: str, second: str, value: float, weight: float, agree: float
) -> None:
    judges = Talks(lambda request: f"[[{(first, second)[request.index]}]]")
    graded = [(samples[0], (Completion(samples[0].id, 0, "mine", "length", 1),))]
    (found,) = BENCHMARK.grade(graded, judge(judges, store))
    assert found.value == value
    assert found.also == {"verdict_weight": weight, "agree": agree, "length_chars": 4.0, "truncated": 1.0}


def test_a_game_without_one_verdict_leaves_its_prompt_ungraded(store: Store, samples: list[Sample]) -> None:
    both = Talks(lambda request: "[[A>B]] or [[B>A]]" if request.index else "[[A>B]]")
    graded = [(sample, (Completion(sample.id, 0, "mine", "stop", 1),)) for sample in samples[:1]]
    graded.append((samples[1], (Completion(samples[1].id, 0, "", "error", 0, why="out of memory"),)))
    found = {each.sample_id: each for each in BENCHMARK.grade(graded, judge(both, store))}
    assert found[samples[1].id] == Score(samples[1].id, None, "out of memory")
    said = found[samples[0].id]
    assert said.value is None and said.why.startswith("game 2: no verdict in the judge's reply '[[A>B]] or")


def test_without_verdicts_for_half_of_the_prompts_there_is_no_score(store: Store) -> None:
    found = run(store, Talks(lambda request: "I cannot say."), limit=3)
    assert found["score"].mean is None
    assert found["score"].why == "score: 0 of 3 samples are graded; it needs half"


def test_a_stopped_judge_is_asked_only_for_the_rest(store: Store) -> None:
    with pytest.raises(KeyboardInterrupt):
        run(store, Talks(verdicts, most=30))
    judges = Talks(verdicts)
    assert run(store, judges)["score"].graded == 40
    assert len(judges.asked) == 50


class Compares:
    name = "reward"
    identity = "reward"

    def prefer(self, battles: Sequence[Battle]) -> Iterator[Score]:
        yield from (Score(battle.sample_id, 0.75) for battle in battles)


def test_with_a_judge_that_only_compares_the_win_rate_is_its_and_there_is_no_score(store: Store) -> None:
    report = evaluate(SUITE, Talks(mine), protocol=protocol("paper"), store=store, judge=Compares(), limit=10)
    found = {each.metric: each for each in report.estimates}
    assert found["win_rate"].mean == 0.75
    assert set(found) == {"win_rate", "length_chars", "truncated"}
    assert "judge_manifest" not in report.manifest


Verdicts = st.lists(st.tuples(st.floats(0, 1), st.sampled_from([2.0, 4.0, 6.0])), min_size=2, max_size=40)


def weighed(rows: Sequence[tuple[float | None, float | None]]) -> list[Record]:
    also = [{} if weight is None else {"verdict_weight": weight} for _, weight in rows]
    return [
        Record(
            "arena_hard", str(i), Sample(str(i), (Request(str(i), "?"),), ""), (), Score(str(i), value, also=also[i])
        )
        for i, (value, _) in enumerate(rows)
    ]


@settings(max_examples=60)
@given(Verdicts)
def test_the_linearised_score_has_the_mean_and_the_error_of_the_ratio(rows: list[tuple[float, float]]) -> None:
    values, weights = (np.array(column) for column in zip(*rows, strict=True))
    found = np.array(BENCHMARK.figures["score"](weighed(rows), list(values)))
    wanted = mean_interval(values * weights, weights, lowest=0.0)
    assert found.mean() == pytest.approx(wanted.mean)
    assert found.std(ddof=1) / len(rows) ** 0.5 == pytest.approx(wanted.se, abs=1e-9)


def test_the_error_of_a_difference_of_scores_is_that_of_prompts_drawn_again() -> None:
    rng = np.random.default_rng(0)
    weights = rng.choice([2.0, 4.0, 6.0], (2, 300))
    values = np.clip(0.2 * weights - 0.4 + rng.normal(0.4, 0.2, 300) + rng.normal(0, 0.1, (2, 300)), 0, 1)
    a, b = (
        np.array(BENCHMARK.figures["score"](weighed(list(zip(v, w, strict=True))), list(v)))
        for v, w in zip(values, weights, strict=True)
    )
    picks = rng.integers(0, 300, (2000, 300))
    drawn = [(v * w)[picks].sum(1) / w[picks].sum(1) for v, w in zip(values, weights, strict=True)]
    assert (a - b).std(ddof=1) / 300**0.5 == pytest.approx((drawn[0] - drawn[1]).std(ddof=1), rel=0.06)


def test_a_prompt_without_verdicts_weighs_as_two_strong_ones() -> None:
    records = weighed([(1.0, 2.0), (None, None)])
    assert np.mean(BENCHMARK.figures["score"](records, [1.0, 0.0])) == pytest.approx(2 / 8)


def test_a_judge_that_only_compared_has_no_score_to_compare() -> None:
    with pytest.raises(UserError, match="gave no verdicts to weigh; win_rate is what there is"):
        BENCHMARK.figures["score"](weighed([(0.75, None)]), [0.75])
