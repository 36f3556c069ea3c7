"""Monitors: figures of made-up answers against scipy and by hand, what drift says, and sentinels on tiny models."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import spearmanr

from rlhf_bench.harness.checkpoint import checkpoint_digest
from rlhf_bench.harness.codec import dumps, loads
from rlhf_bench.harness.engines.hf import HFEngine
from rlhf_bench.harness.errors import Fault, UserError
from rlhf_bench.harness.judges.replay import scripted_judge
from rlhf_bench.harness.models import open_engine
from rlhf_bench.harness.policy import Guard, Policy, Sentinel, Target
from rlhf_bench.harness.progress import silent
from rlhf_bench.harness.run import evaluate
from rlhf_bench.harness.store import Store
from rlhf_bench.harness.types import (
    Battle,
    Benchmark,
    Checkpoint,
    EvalProtocol,
    Graded,
    Message,
    Preference,
    Report,
    Request,
    Sample,
    Sampling,
    Score,
    Suite,
)
from rlhf_bench.trainers.online.config import STAGES
from rlhf_bench.trainers.online.monitors import (
    WORD_PAIRS,
    Figure,
    Late,
    Watch,
    annotate_for,
    check_sentinels,
    drift,
    training_reward,
    watch,
)
from rlhf_bench.trainers.online.probes import probe, read_probes, scorer_of, write_page

REFUSAL = "I'm sorry, but I cannot help with that."
WORDS = [f"w{number}" for number in range(4000)]


def row(
    responses: Sequence[str], rewards: Sequence[float | None] | None = None, finish: Sequence[str] | None = None
) -> dict[str, Any]:
    return {
        "sample_id": "p",
        "prompt": [{"role": "user", "content": "Why?"}],
        "responses": list(responses),
        "finish_reasons": list(finish or ["stop"] * len(responses)),
        "rewards": list(rewards) if rewards is not None else [0.0] * len(responses),
    }


def talk(prompts: int, words: int, seed: int = 0, vocabulary: int = 4000) -> list[dict[str, Any]]:
    """Rows of four random answers each."""
    draw = random.Random(seed)
    return [
        row(
            [" ".join(draw.choices(WORDS[:vocabulary], k=words + draw.randint(-5, 5))) for _ in range(4)],
            [draw.gauss(0, 1) for _ in range(4)],
        )
        for _ in range(prompts)
    ]


def pair(chosen: str, rejected: str, margin: float) -> Preference:
    return Preference((Message("user", "Why?"),), chosen, rejected, margin)


rows_ = st.lists(
    st.lists(
        st.tuples(
            st.text(max_size=30),
            st.one_of(st.none(), st.floats(-5, 5), st.just(float("nan"))),
            st.sampled_from(("stop", "length", "error")),
        ),
        min_size=1,
        max_size=5,
    ).map(lambda answers: row(*zip(*answers, strict=True))),
    max_size=6,
)


@given(rows_)
def test_any_rows_give_a_watch_that_reads_back_from_json(rows: list[dict[str, Any]]) -> None:
    found = watch(rows, [])
    assert loads(Watch, dumps(found)) == found
    assert found.answers + found.failed == sum(len(each["responses"]) for each in rows)
    for share in (found.truncated, found.refused, found.alike):
        assert share.mean is None or 0 <= share.mean <= 1
    assert found.length_reward.mean is None or -1.000001 <= found.length_reward.mean <= 1.000001
    assert drift([found, found]) == []


@given(rows_, st.randoms())
def test_the_order_of_prompts_does_not_matter(rows: list[dict[str, Any]], shuffle: random.Random) -> None:
    other = list(rows)
    shuffle.shuffle(other)
    one, two = watch(rows, []), watch(other, [])
    for name in ("length", "reward", "length_reward", "truncated", "refused", "alike"):
        assert getattr(one, name).mean == pytest.approx(getattr(two, name).mean, abs=1e-9)


@given(st.lists(st.tuples(st.integers(0, 40), st.floats(-5, 5)), min_size=3, max_size=8))
def test_length_and_reward_correlate_as_scipy_says(answers: list[tuple[int, float]]) -> None:
    found = watch([row(["x" * length for length, _ in answers], [reward for _, reward in answers])], [])
    lengths, rewards = zip(*answers, strict=True)
    if len(set(lengths)) < 2 or len(set(rewards)) < 2:
        assert found.length_reward.mean is None
    else:
        assert found.length_reward.mean == pytest.approx(spearmanr(lengths, rewards).statistic, abs=1e-9)


def test_a_reward_that_is_length_correlates_within_prompts_whatever_lies_between_them() -> None:
    # between prompts the longer answers have the lower rewards: only what is compared within a prompt trains
    rows = [
        row(["a" * (10 * p + k) for k in range(4)], [k - 100.0 * p for k in range(4)])  # type: ignore[list-item]
        for p in range(6)
    ]
    found = watch(rows, [])
    assert found.length_reward.mean == pytest.approx(1.0)
    assert found.length_reward.prompts == 6


def test_failed_answers_count_for_nothing() -> None:
    whole = watch([row(["one two", "three"], [1.0, 2.0])], [])
    other = watch(
        [row(["one two", "a failure of many words", "three"], [1.0, None, 2.0], ["stop", "error", "stop"])], []
    )
    assert other == replace(whole, failed=1)


def test_each_figure_by_hand() -> None:
    rows = [
        row(["one two three", REFUSAL], [1.0, 3.0], ["length", "stop"]),
        row(["one two three", "one two three"], [2.0, float("nan")]),
    ]
    found = watch(rows, [pair("abcd", "ab", 1.0), pair("ab", "abc", 3.0)])
    assert (found.prompts, found.answers, found.failed, found.pairs) == (2, 4, 0, 2)
    assert found.words.mean == pytest.approx(((3 + 8) / 2 + 3) / 2)
    assert found.reward == Figure(2.0, 0.0, 2) and found.reward_sd == pytest.approx((2 / 3) ** 0.5)
    assert found.truncated.mean == 0.25 and found.refused.mean == 0.25
    assert found.alike.mean == 0.5  # nothing in common, and the same
    assert found.distinct is None  # too little text
    assert found.margin.mean == 2.0 and found.quartiles == (1.5, 2.0, 2.5)
    assert found.chosen_longer.mean == 0.5


def test_distinct_words_do_not_fall_because_there_is_more_text() -> None:
    small, large = (watch(talk(prompts, 40), []).distinct for prompts in (20, 200))
    assert small is not None and large is not None
    assert abs(small - large) < 0.01
    poor = watch(talk(20, 40, vocabulary=20), []).distinct
    assert poor is not None and poor < 0.5 * small
    assert watch(talk(1, WORD_PAIRS // 10), []).distinct is None


def test_without_rewards_or_rows_there_are_no_figures() -> None:
    empty = watch([], [])
    assert empty.length == empty.reward == empty.margin == Figure()
    assert empty.distinct is None and empty.quartiles is None
    unscored = {name: value for name, value in row(["a", "b"]).items() if name != "rewards"}
    assert watch([unscored], []).reward == Figure()
    assert drift([empty, watch(talk(20, 40), [])]) == []


def said(change: Any, pairs: Sequence[Preference] = (), after: Sequence[Preference] = ()) -> list[str]:
    """What drift says where every row of a calm iteration is changed."""
    calm = talk(40, 40)
    return drift(
        [watch(calm, pairs), watch(talk(40, 40, seed=1), pairs), watch([change(each) for each in calm], after)]
    )


def test_a_calm_iteration_moves_nothing() -> None:
    pairs = [pair("a", "b", 1.0 + 0.1 * (k % 3)) for k in range(40)]
    assert said(lambda each: each, pairs, pairs) == []


def longer(each: dict[str, Any]) -> dict[str, Any]:
    return each | {"responses": [f"{text} {text} more" for text in each["responses"]]}


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (longer, "longer than in the first"),
        (
            lambda each: longer(each) | {"rewards": [value + 3 for value in each["rewards"]]},
            "and the reward rose by 3.00 with them",
        ),
        (lambda each: each | {"finish_reasons": ["stop", "length"] * 2}, "more answers are cut at their limit"),
        (lambda each: each | {"responses": [REFUSAL, *each["responses"][1:]]}, "more answers are refusals"),
        (lambda each: each | {"rewards": [float(len(text)) for text in each["responses"]]}, "follows length"),
        (lambda each: each | {"responses": [each["responses"][0]] * 4}, "are more alike than in the first (1.00"),
        (lambda each: each | {"responses": [" ".join(["so it is"] * 14)] * 4}, "fewer distinct word pairs"),
    ],
)
def test_drift_names_what_moved(change: Any, expected: str) -> None:
    assert any(expected in sentence for sentence in said(change))


def test_a_margin_that_collapses_is_told() -> None:
    before, after = ([pair("a", "b", size + 0.1 * (k % 3)) for k in range(40)] for size in (2.0, 0.5))
    assert said(lambda each: each, before, after) == ["the pairs' margin fell to 0.60, from 2.10 in the first"]


def test_a_change_within_chance_is_not_told() -> None:
    # two prompts: 0% and 25% of the answers cut differ by more than the threshold and by less than two errors
    rows = [row(["a b", "c d"]), row(["e f", "g h"])]
    cut = [row(["a b", "c d"], finish=["length", "stop"]), rows[1]]
    assert drift([watch(rows, []), watch(cut, [])]) == []


CHAT_PROTOCOL = EvalProtocol("plain")


def load_chat(protocol: EvalProtocol) -> list[Sample]:
    return [
        Sample(
            f"chat/{i}",
            (Request(f"chat/{i}", (Message("user", f"{i}: why?"),), Sampling(max_tokens=8, temperature=1.0, seed=i)),),
            "a reference answer",
        )
        for i in range(6)
    ]


def grade_chat(answered: Sequence[Graded], judge: Any) -> Iterator[Score]:
    yield from judge.prefer(
        [Battle(sample.id, (Message("user", "?"),), said[0].text, sample.reference) for sample, said in answered]
    )


CHAT = Benchmark("chat", "1", "win_rate", "continuous", 6, "", load_chat, grade_chat, judged=True)


def policy(*signals: Any) -> Policy:
    return Policy(
        name="p",
        targets=(Target(benchmark="chat", metric="win_rate"),),
        guards=(Guard(benchmark="maths", metric="acc", margin=0.1),),
        sentinels=tuple(Sentinel(signal=signal, benchmark="chat", limit=0.5) for signal in signals),
    )


@pytest.fixture(scope="module")
def models(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Checkpoint, Checkpoint]:
    """The tiny model, and one with noise on every weight."""
    from safetensors.torch import load_file, save_file

    path = tmp_path_factory.mktemp("other") / "model"
    shutil.copytree(tiny_checkpoint, path)
    noise = torch.Generator().manual_seed(1)
    moved = {
        name: each + 0.05 * torch.randn(each.shape, generator=noise)
        for name, each in load_file(path / "model.safetensors").items()
    }
    save_file(moved, path / "model.safetensors", metadata={"format": "pt"})
    return Checkpoint(str(tiny_checkpoint), checkpoint_digest(tiny_checkpoint)), Checkpoint(
        str(path), checkpoint_digest(path)
    )


def measured(model: Checkpoint, store: Store, dtype: str = "float32") -> Report:
    return evaluate(
        Suite("s", (CHAT,)),
        open_engine(model.path, store, dtype=dtype),
        protocol=CHAT_PROTOCOL,
        store=store,
        judge=scripted_judge("longer"),
        manifest_extra={"judged": ["chat"]},
    )


def metrics(report: Report) -> set[str]:
    return {each.metric for each in report.estimates}


def test_a_run_gets_what_the_sentinels_ask_for_and_no_more(models: tuple[Checkpoint, Checkpoint], store: Store) -> None:
    initial, candidate = models
    report = measured(candidate, store)
    tie = scripted_judge("tie")
    assert annotate_for(policy("length"), report, candidate, initial, tie, store) is report
    found = annotate_for(policy("kl"), report, candidate, initial, tie, store)
    assert metrics(found) == {"win_rate", "kl"}
    report = measured(candidate, store)  # writes the records anew
    assert metrics(report) == {"win_rate"}
    found = annotate_for(policy("kl", "reward_gap"), report, candidate, initial, tie, store)
    assert metrics(found) == {"win_rate", "kl", "reward_win"}
    assert found.manifest["annotations"]["kl"]["by"] == initial.path
    assert annotate_for(policy("reward_gap"), report, candidate, initial, None, store) is report


def test_annotated_again_no_model_is_asked(
    models: tuple[Checkpoint, Checkpoint], store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    initial, candidate = models
    loaded = []

    def load() -> Any:
        loaded.append(1)
        return scripted_judge("tie")

    late = Late("tie", scripted_judge("tie").identity, load)
    rules = policy("kl", "reward_gap")
    first = annotate_for(rules, measured(candidate, store), candidate, initial, late, store)
    assert len(loaded) == 1

    def refuse(self: HFEngine, requests: Sequence[Request]) -> Any:
        assert not requests, "a model is asked again"
        return iter(())

    monkeypatch.setattr(HFEngine, "generate", refuse)
    again = annotate_for(rules, measured(candidate, store), candidate, initial, late, store)
    assert again.estimates == first.estimates
    assert len(loaded) == 1


def test_the_initial_policy_is_at_no_distance_from_itself(models: tuple[Checkpoint, Checkpoint], store: Store) -> None:
    initial, _ = models
    found = annotate_for(policy("kl"), measured(initial, store), initial, initial, None, store)
    (kl,) = [each.mean for each in found.estimates if each.metric == "kl"]
    assert kl == 0.0


def test_both_models_are_asked_in_the_precision_that_the_run_was_answered_in(
    models: tuple[Checkpoint, Checkpoint], store: Store
) -> None:
    initial, candidate = models
    report = measured(candidate, store, dtype="bfloat16")
    about = annotate_for(policy("kl"), report, candidate, initial, None, store).manifest["annotations"]["kl"]
    assert about["policy"] == open_engine(candidate.path, store, dtype="bfloat16").identity
    assert about["identity"] == open_engine(initial.path, store, dtype="bfloat16").identity


def test_a_run_of_another_model_is_refused(models: tuple[Checkpoint, Checkpoint], store: Store) -> None:
    initial, candidate = models
    with pytest.raises(UserError, match="needs its own model"):
        annotate_for(policy("kl"), measured(initial, store), candidate, initial, None, store)


def test_the_training_reward_is_the_reward_model_that_it_is_announced_as(
    tiny_checkpoint: Path, store: Store, tmp_path: Path
) -> None:
    from transformers import AutoTokenizer, LlamaForSequenceClassification

    path = tmp_path / "reward"
    LlamaForSequenceClassification.from_pretrained(tiny_checkpoint, num_labels=1).save_pretrained(path)
    AutoTokenizer.from_pretrained(tiny_checkpoint).save_pretrained(path)
    judge = training_reward(Checkpoint(str(path), checkpoint_digest(path)), "reward")
    (score,) = judge.prefer([Battle("a", (Message("user", "?"),), "yes", "yes")])
    assert score.value == pytest.approx(0.5, abs=1e-5)


def test_a_gap_on_what_no_judge_compares_is_refused_before_the_loop_starts() -> None:
    maths = Benchmark("maths", "1", "acc", "binary", 1, "", load_chat, grade_chat)
    rules = policy("kl", "reward_gap")
    check_sentinels(rules, Suite("s", (CHAT, maths)))
    with pytest.raises(UserError, match="'maths' is not judged"):
        wrong = Sentinel(signal="reward_gap", benchmark="maths", limit=0.1)
        check_sentinels(rules.model_copy(update={"sentinels": (wrong,)}), Suite("s", (CHAT, maths)))


def test_a_judge_that_is_another_than_announced_is_a_fault() -> None:
    late = Late("tie", "0" * 64, lambda: scripted_judge("tie"))
    with pytest.raises(Fault, match="was announced as"):
        list(late.prefer([Battle("a", (Message("user", "?"),), "x", "y")]))


def test_a_watch_is_plain_json() -> None:
    told = json.loads(dumps(watch(talk(20, 40), [pair("a", "bb", 1.0)])))
    assert told["length"].keys() == {"mean", "se", "prompts"}
    assert told["quartiles"] == [1.0, 1.0, 1.0]


def load_talk(protocol: EvalProtocol) -> list[Sample]:
    return [
        Sample(
            f"talk/{i}",
            (Request(f"talk/{i}", (Message("user", f"Tell me about the sea-{i}."),), Sampling(max_tokens=16)),),
            "sea train gas",
        )
        for i in range(12)
    ]


def grade_vowels(answered: Sequence[Graded], judge: Any) -> Iterator[Score]:
    for sample, said in answered:
        yield Score(sample.id, sum(letter in "aeiou" for letter in said[0].text) / max(1, len(said[0].text)))


def grade_short(answered: Sequence[Graded], judge: Any) -> Iterator[Score]:
    yield from (Score(sample.id, float(said[0].finish_reason == "stop")) for sample, said in answered)


def test_a_real_iteration_is_watched_its_sentinels_measured_and_its_candidate_probed(
    talker: Path, reward: Path, store: Store, tmp_path: Path
) -> None:
    from rlhf_bench.trainers.online import Line, LoopConfig, iterate, reward_scoring
    from rlhf_bench.trainers.online.facts import answer_tokens, measured_rates, pacing, stages_done

    suite = Suite(
        "small",
        (
            Benchmark("vowels", "1", "share", "continuous", 12, "", load_talk, grade_vowels),
            Benchmark("short", "1", "acc", "binary", 12, "", load_talk, grade_short),
        ),
    )
    rules = Policy(
        name="small",
        targets=(Target(benchmark="vowels", metric="share"),),
        guards=(Guard(benchmark="short", metric="acc", margin=0.3),),
        sentinels=tuple(Sentinel(signal=each, benchmark="vowels", limit=0.9) for each in ("kl", "reward_gap")),
    )
    config = LoopConfig.model_validate(
        {
            "name": "watched", "model": "start", "iterations": 1, "prompts_per_iteration": 6, "backend": "torch",
            "answers": {"n": 4, "max_tokens": 60},
            "dpo": {"epochs": 1, "batch_size": 2, "micro_batch": 1, "learning_rate": 1e-2, "dtype": "float32"},
        }
    )  # fmt: skip
    start = Checkpoint(str(talker), checkpoint_digest(talker))
    scorer = Checkpoint(str(reward), checkpoint_digest(reward))
    scoring = reward_scoring(scorer, "reward")
    store.register(start, alias="start")

    def measure(checkpoint: Checkpoint) -> Report:
        engine = open_engine(checkpoint.path, store)
        report = evaluate(suite, engine, protocol=CHAT_PROTOCOL, store=store)
        return annotate_for(rules, report, checkpoint, start, training_reward(scorer, "reward"), store)

    prompts = [
        Sample(f"p/{i}", (Request(f"p/{i}", (Message("user", f"Tell me about the gas-{i}."),)),), "") for i in range(6)
    ]
    line = Line(config, store, rules, lambda: scoring, measure, tmp_path, prompts)
    (done,) = iterate(replace(line, track=pacing(silent, line.work)))

    sentinels = {each.metric: each.difference for each in done.verdict.checks if each.role == "sentinel"}
    assert sentinels.keys() == {"kl", "reward_gap"} and None not in sentinels.values()
    found = watch(done.rows, done.learned.pairs)
    assert (found.prompts, found.answers, found.pairs) == (6, 24, done.pairs)
    assert found.reward.prompts == 6 and found.margin.mean is not None and found.margin.mean > 0
    assert stages_done(line.work) == {1: frozenset(STAGES)}
    assert measured_rates(line.work)["train"].measured
    assert answer_tokens(line.work, len) == pytest.approx(found.length.mean)

    by = scorer_of(scoring)
    probed = [
        probe(name, read_probes()[:3], open_engine(model.path, store), line.work / "probes", store, scorer=by)
        for name, model in (("initial", start), ("watched-1", done.candidate))
    ]
    assert [each["sample_id"] for each in probed[0].rows] == [each["sample_id"] for each in probed[1].rows]
    assert all(each["reward"] is not None for one in probed for each in one.rows)
    assert "watched-1" in write_page(line.work, "watched", probed).read_text(encoding="utf-8")
