"""harness/annotate.py: KL and reward of a finished run, against plain transformers, and nothing asked twice."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch

from rlhf_bench.harness.annotate import annotate
from rlhf_bench.harness.checkpoint import checkpoint_digest
from rlhf_bench.harness.codec import digest
from rlhf_bench.harness.compare import compare
from rlhf_bench.harness.engines.hf import HFEngine
from rlhf_bench.harness.engines.scripted import scripted_engine
from rlhf_bench.harness.errors import Fault, UserError
from rlhf_bench.harness.judges.replay import scripted_judge
from rlhf_bench.harness.run import evaluate
from rlhf_bench.harness.signals import read_signal, unlike
from rlhf_bench.harness.store import Store
from rlhf_bench.harness.types import (
    Battle,
    Benchmark,
    Checkpoint,
    Completion,
    Estimate,
    EvalProtocol,
    Graded,
    Message,
    Record,
    Report,
    Request,
    Sample,
    Sampling,
    Score,
    Suite,
)

PROTOCOL = EvalProtocol("plain")
TOPICS = ["the sea", "a dog", "France", "a red car", "rain", "twelve", "bread", "ships", "a train", "yes or no"]


def load_chat(protocol: EvalProtocol) -> list[Sample]:
    """Thirty questions, each answered by a short sample at temperature 1."""
    return [
        Sample(
            f"chat/{i}",
            (
                Request(
                    f"chat/{i}",
                    (Message("system", "Be brief."), Message("user", f"{i}: about {TOPICS[i % 10]}?")),
                    Sampling(max_tokens=12, temperature=1.0, seed=i),
                ),
            ),
            "a reference answer",
        )
        for i in range(30)
    ]


def load_choices(protocol: EvalProtocol) -> list[Sample]:
    return [
        Sample(f"c/{i}", tuple(Request(f"c/{i}", f"{i} is", continuation=t, index=k) for k, t in enumerate("ab")), "a")
        for i in range(4)
    ]


def grade_chat(answered: Sequence[Graded], judge: Any) -> Iterator[Score]:
    yield from judge.prefer(
        [Battle(sample.id, (Message("user", "?"),), said[0].text, sample.reference) for sample, said in answered]
    )


def grade_choices(answered: Sequence[Graded], judge: Any) -> Iterator[Score]:
    yield from (Score(sample.id, 1.0) for sample, _ in answered)


CHAT = Benchmark("chat", "1", "win_rate", "continuous", 30, "", load_chat, grade_chat, judged=True)
CHOICES = Benchmark("choices", "1", "acc", "binary", 4, "", load_choices, grade_choices)


def engine_of(path: Path, name: str = "", **options: Any) -> HFEngine:
    """The checkpoint as an engine; under another `name` its answers are stored apart."""
    checkpoint = Checkpoint(str(path), checkpoint_digest(path) if not name else digest(name))
    return HFEngine(checkpoint, name=name or "policy", dtype="float32", device="cpu", **options)


@pytest.fixture(scope="module")
def perturbed(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model with noise on every weight."""
    from safetensors.torch import load_file, save_file

    path = tmp_path_factory.mktemp("perturbed") / "model"
    shutil.copytree(tiny_checkpoint, path)
    weights = load_file(path / "model.safetensors")
    noise = torch.Generator().manual_seed(1)
    moved = {name: each + 0.05 * torch.randn(each.shape, generator=noise) for name, each in weights.items()}
    save_file(moved, path / "model.safetensors", metadata={"format": "pt"})
    return path


@pytest.fixture(scope="module")
def answered(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Report]:
    """A store with the finished run of the tiny model, and the run's report."""
    path = tmp_path_factory.mktemp("answered") / "store.db"
    with Store(f"sqlite:///{path}") as store:
        report = evaluate(
            Suite("s", (CHAT, CHOICES)),
            engine_of(tiny_checkpoint),
            protocol=PROTOCOL,
            store=store,
            judge=scripted_judge("longer"),
            manifest_extra={"judged": ["chat"]},
        )
    return path, report


@pytest.fixture
def run(answered: tuple[Path, Report], tmp_path: Path) -> Iterator[tuple[Store, Report]]:
    """A copy of that store, to write to."""
    shutil.copy(answered[0], tmp_path / "copy.db")
    with Store(f"sqlite:///{tmp_path}/copy.db") as store:
        yield store, answered[1]


def kls(store: Store, report: Report) -> list[float]:
    return [record.score.also["kl"] for record in store.records(report.run_id, "chat")]


def row(report: Report, metric: str) -> Estimate:
    (found,) = [each for each in report.estimates if each.metric == metric]
    return found


# KL


def test_a_model_is_0_from_itself(run: tuple[Store, Report], tiny_checkpoint: Path) -> None:
    store, report = run
    found = annotate(
        report.run_id,
        store,
        policy=engine_of(tiny_checkpoint),
        reference=engine_of(tiny_checkpoint, "the same weights, asked apart"),
    )
    assert kls(store, report) == pytest.approx([0.0] * 30, abs=1e-4)
    assert row(found, "kl").mean == pytest.approx(0.0, abs=1e-4)


def test_a_moved_model_is_positively_far_and_its_kl_is_that_of_plain_transformers(
    run: tuple[Store, Report], tiny_checkpoint: Path, perturbed: Path
) -> None:
    store, report = run
    found = annotate(report.run_id, store, policy=engine_of(tiny_checkpoint), reference=engine_of(perturbed, "moved"))
    records = store.records(report.run_id, "chat")
    expected = [by_hand(tiny_checkpoint, each) - by_hand(perturbed, each) for each in records]
    assert kls(store, report) == pytest.approx(expected, abs=2e-3)
    estimate = row(found, "kl")
    assert estimate.mean == pytest.approx(sum(expected) / 30, abs=2e-3)
    assert estimate.low is not None and estimate.low > 0
    assert estimate.high is not None and estimate.high > 1  # not cut at the end of a score's scale


def by_hand(path: Path, record: Record) -> float:
    """The log-probability of the answer's tokens and the header's line break, from one forward pass."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(path)
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
    turns = [{"role": turn.role, "content": turn.content} for turn in record.sample.prompt]  # type: ignore[union-attr]
    head = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    assert head.endswith("assistant\n")
    before = tokenizer(head.removesuffix("\n"), add_special_tokens=False)["input_ids"]
    whole = tokenizer(head + record.completions[0].text, add_special_tokens=False)["input_ids"]
    assert whole[: len(before)] == before and tokenizer.decode(whole[len(before) :])[0] == "\n"
    with torch.no_grad():
        logprobs = model(torch.tensor([whole])).logits[0].double().log_softmax(-1)
    return sum(float(logprobs[at - 1, whole[at]]) for at in range(len(before), len(whole)))


def test_scored_are_the_answers_own_tokens_after_the_headers_line_break_and_no_end_of_turn(
    tiny_checkpoint: Path,
) -> None:
    engine = engine_of(tiny_checkpoint)
    prompt = (Message("user", "The sea?"),)
    (generated,) = engine.generate([Request("a", prompt, Sampling(max_tokens=9))])
    text = "The sea is wide, the sea is blue."
    (scored,) = engine.generate([Request("a", prompt, continuation=text)])
    tokenizer = engine._coder.tokenizer
    assert scored.tokens == 1 + len(tokenizer(text, add_special_tokens=False)["input_ids"])
    assert generated.tokens == 9


def test_the_kl_does_not_depend_on_what_is_asked_beside_it(
    answered: tuple[Path, Report], tmp_path: Path, tiny_checkpoint: Path, perturbed: Path
) -> None:
    found = []
    for stretch in (512, 32):
        shutil.copy(answered[0], tmp_path / f"{stretch}.db")
        with Store(f"sqlite:///{tmp_path}/{stretch}.db") as store:
            engines = engine_of(tiny_checkpoint), engine_of(perturbed, "moved")
            for each in engines:
                each._stretch_tokens = stretch
            annotate(answered[1].run_id, store, policy=engines[0], reference=engines[1])
            found.append(kls(store, answered[1]))
    assert found[0] == pytest.approx(found[1], abs=1e-4)


class Told:
    """An engine that gives each continuation the log-probability that a rule says, and fails where it says text."""

    manifest: ClassVar[dict[str, str]] = {}

    def __init__(self, name: str, rule: Callable[[Request], float | str], checkpoint: str = "scripted:echo") -> None:
        self.name, self.rule, self.checkpoint = name, rule, checkpoint
        self.identity = digest(["told", name])
        self.asked: list[Request] = []

    def generate(self, requests: Sequence[Request]) -> Iterator[Completion]:
        for request in requests:
            self.asked.append(request)
            said = self.rule(request)
            if isinstance(said, str):
                yield Completion(request.sample_id, request.index, "", "error", 0, why=said)
            else:
                yield Completion(request.sample_id, request.index, request.continuation or "", "stop", 1, logprob=said)


def echoed(store: Store) -> Report:
    """A run of scripted:echo, whose answers are the questions."""
    judge = scripted_judge("longer")
    return evaluate(Suite("s", (CHAT,)), scripted_engine("echo"), protocol=PROTOCOL, store=store, judge=judge)


def test_the_very_prompt_and_answer_are_scored(store: Store) -> None:
    report = echoed(store)
    policy, reference = Told("p", lambda _: -1.0), Told("r", lambda _: -3.5)
    annotate(report.run_id, store, policy=policy, reference=reference)
    assert kls(store, report) == [2.5] * 30
    for record, request in zip(store.records(report.run_id), policy.asked, strict=True):
        assert request.prompt == record.sample.prompt
        assert request.continuation == record.completions[0].text
    assert policy.asked == reference.asked


def test_stopped_anywhere_it_goes_on_and_nothing_is_asked_twice(store: Store) -> None:
    report = echoed(store)
    policy = Told("p", lambda request: float(-len(request.sample_id)))

    def breaks(request: Request) -> float:
        if len(reference.asked) == 11:
            raise KeyboardInterrupt
        return -9.0

    reference = Told("r", breaks)
    with pytest.raises(KeyboardInterrupt):
        annotate(report.run_id, store, policy=policy, reference=reference)
    assert all("kl" not in record.score.also for record in store.records(report.run_id))
    reference.rule = lambda _: -9.0
    for _ in range(2):
        annotate(report.run_id, store, policy=policy, reference=reference)
    assert len(policy.asked) == 30
    assert len(reference.asked) == 30 + 1  # the one in whose middle it was stopped
    assert kls(store, report) == [9.0 - len(record.sample.id) for record in store.records(report.run_id)]


def test_an_answer_that_an_engine_cannot_score_has_no_kl_and_is_counted(store: Store) -> None:
    report = echoed(store)
    reference = Told("r", lambda request: "too long" if request.sample_id == "chat/3" else -2.0)
    found = annotate(report.run_id, store, policy=Told("p", lambda _: -1.0), reference=reference)
    records = store.records(report.run_id)
    assert [record.sample.id for record in records if "kl" not in record.score.also] == ["chat/3"]
    estimate = row(found, "kl")
    assert (estimate.mean, estimate.graded, estimate.ungraded) == (1.0, 29, 1)
    assert estimate.why == "1 of 30 without kl (1 × too long)"
    assert (estimate.low, estimate.high) == (None, None)  # no spread, and no scale to bound it by
    sentinel = read_signal("kl", records, [])
    assert sentinel.value is None and "1 of 30" in sentinel.why


def test_where_most_have_no_kl_there_is_no_estimate_and_where_none_has_one_an_error(store: Store) -> None:
    report = echoed(store)
    some = Told("r", lambda request: -2.0 if request.sample_id < "chat/2" else "too long")
    assert row(annotate(report.run_id, store, policy=Told("p", lambda _: -1.0), reference=some), "kl").mean is None
    none = Told("q", lambda _: "cannot score a given continuation")
    with pytest.raises(UserError, match="gets no kl from q: cannot score"):
        annotate(report.run_id, store, policy=Told("p", lambda _: -1.0), reference=none)


def test_an_empty_answer_has_no_tokens_to_differ_in(store: Store) -> None:
    report = evaluate(
        Suite("s", (CHAT,)), scripted_engine("empty"), protocol=PROTOCOL, store=store, judge=scripted_judge("tie")
    )
    policy = Told("p", lambda _: -1.0, "scripted:empty")
    annotate(report.run_id, store, policy=policy, reference=Told("r", lambda _: -3.0))
    assert kls(store, report) == [0.0] * 30 and policy.asked == []


def test_later_turns_are_scored_after_what_was_said_before(store: Store) -> None:
    def follow(sample: Sample, said: tuple[Completion, ...]) -> tuple[Request, ...]:
        if len(said) >= 2:
            return ()
        turns = (*sample.prompt, Message("assistant", said[0].text), Message("user", "And then?"))
        return (replace(sample.requests[0], prompt=turns, index=1),)  # type: ignore[arg-type]

    def grade(answered: Sequence[Graded], judge: Any) -> Iterator[Score]:
        yield from (Score(sample.id, 0.5) for sample, _ in answered)

    turns = replace(CHAT, grade=grade, follow=follow, judged=False)
    report = evaluate(Suite("s", (turns,)), scripted_engine("echo"), protocol=PROTOCOL, store=store)
    engines = Told("p", lambda request: -1.0 - request.index), Told("r", lambda request: -4.0)
    with pytest.raises(UserError, match="later turns"):
        annotate(report.run_id, store, policy=engines[0], reference=engines[1])
    annotate(report.run_id, store, policy=engines[0], reference=engines[1], follow={"chat": follow})
    assert kls(store, report) == [(3.0 + 2.0) / 2] * 30
    second = next(request for request in engines[0].asked if request.index == 1)
    assert [turn.role for turn in second.prompt] == ["system", "user", "assistant", "user"]  # type: ignore[union-attr]
    assert second.continuation == "And then?"


# The training reward


class Likes:
    """A reward that prefers every answer with the same probability, and counts what it was asked."""

    def __init__(self, name: str, value: float | None) -> None:
        self.name, self.value, self.identity = name, value, digest(["likes", name])
        self.asked: list[Battle] = []

    def prefer(self, battles: Sequence[Battle]) -> Iterator[Score]:
        for battle in battles:
            self.asked.append(battle)
            yield Score(battle.sample_id, self.value, "" if self.value is not None else "no verdict")


def test_the_reward_judges_the_answer_against_the_reference_without_the_system_prompt(store: Store) -> None:
    report = echoed(store)
    reward = Likes("rm", 0.75)
    found = annotate(report.run_id, store, reward=reward)
    records = store.records(report.run_id)
    assert [record.score.also["reward_win"] for record in records] == [0.75] * 30
    for record, battle in zip(records, reward.asked, strict=True):
        assert (battle.answer, battle.baseline) == (record.completions[0].text, "a reference answer")
        assert [turn.role for turn in battle.prompt] == ["user"]
    estimate = row(found, "reward_win")
    assert estimate.mean == 0.75 and estimate.low is not None and 0 <= estimate.low < 0.75
    assert found.manifest["annotations"] == {"reward_win": {"by": "rm", "identity": reward.identity}}
    annotate(report.run_id, store, reward=reward)
    assert len(reward.asked) == 30


def test_a_reward_models_win_is_the_sigmoid_of_two_rewards(
    run: tuple[Store, Report], tiny_checkpoint: Path, tmp_path: Path
) -> None:
    from transformers import AutoModelForSequenceClassification

    from rlhf_bench.harness.judges.reward import RewardModel, quiet

    path = tmp_path / "reward"
    shutil.copytree(tiny_checkpoint, path)
    with quiet(), torch.random.fork_rng():
        torch.manual_seed(3)
        AutoModelForSequenceClassification.from_pretrained(tiny_checkpoint, num_labels=1).save_pretrained(path)
    model = RewardModel(Checkpoint(str(path), checkpoint_digest(path)), name="rm", device="cpu")
    store, report = run
    annotate(report.run_id, store, reward=model)
    for record in store.records(report.run_id, "chat")[:5]:
        prompt = (record.sample.prompt[1],)
        ours, theirs = model.rewards([(prompt, record.completions[0].text), (prompt, "a reference answer")])  # type: ignore[list-item]
        assert ours is not None and theirs is not None
        assert record.score.also["reward_win"] == pytest.approx(1 / (1 + math.exp(theirs - ours)), abs=1e-4)
        assert "reward" not in record.score.also  # in a run that a reward model judged that is the judge's


@pytest.mark.parametrize(("value", "error"), [(None, UserError), (1.5, Fault)])
def test_a_reward_without_a_probability_is_no_figure(store: Store, value: float | None, error: type[Exception]) -> None:
    report = echoed(store)
    with pytest.raises(error):
        annotate(report.run_id, store, reward=Likes("rm", value))
    assert all("reward_win" not in record.score.also for record in store.records(report.run_id))


def test_only_judged_benchmarks_are_scored_by_the_reward(run: tuple[Store, Report]) -> None:
    store, report = run
    reward = Likes("rm", 0.5)
    found = annotate(report.run_id, store, reward=reward)
    assert {battle.sample_id.partition("/")[0] for battle in reward.asked} == {"chat"}
    assert {each.benchmark for each in found.estimates if each.metric == "reward_win"} == {"chat"}
    manifest = {**report.manifest, "judged": []}
    store.finish_run(report.run_id, replace(report, manifest=manifest))
    with pytest.raises(UserError, match="no single answer with a reference"):
        annotate(report.run_id, store, reward=reward)


# What is stored


def test_records_and_report_keep_all_else_and_a_new_reference_replaces_the_old(run: tuple[Store, Report]) -> None:
    store, report = run
    before = store.records(report.run_id)
    policy = Told("p", lambda _: -1.0, report.checkpoint)
    annotate(report.run_id, store, policy=policy, reference=Told("r", lambda _: -2.0), reward=Likes("rm", 0.5))
    found = annotate(report.run_id, store, policy=policy, reference=Told("q", lambda _: -5.0))
    assert found == store.report(report.run_id)
    assert kls(store, report) == [4.0] * 30
    after = store.records(report.run_id)
    stripped = [replace(r, score=replace(r.score, also={})) for r in after]
    assert stripped == [replace(r, score=replace(r.score, also={})) for r in before]
    assert after[-1] == before[-1]  # nothing was generated for it
    assert [each for each in found.estimates if each.metric not in ("kl", "reward_win")] == list(report.estimates)
    assert [each.metric for each in found.estimates if each.benchmark == "chat"][-2:] == ["reward_win", "kl"]
    assert found.manifest["annotations"]["kl"]["by"] == "q"
    assert found.manifest["annotations"]["reward_win"]["by"] == "rm"
    assert unlike("reward_gap", found.manifest, found.manifest) == ""


def test_a_kl_beyond_1_disturbs_no_comparison_of_the_score(run: tuple[Store, Report]) -> None:
    store, report = run
    before = store.records(report.run_id, "chat")
    policy = Told("p", lambda _: -1.0, report.checkpoint)
    annotate(report.run_id, store, policy=policy, reference=Told("r", lambda _: -90.0))
    after = store.records(report.run_id, "chat")
    compared = [
        compare(records, before, benchmark="chat", metric="win_rate", kind="continuous") for records in (after, before)
    ]
    assert compared[0] == compared[1]


def test_what_cannot_be_asked_is_one_line(run: tuple[Store, Report], tiny_checkpoint: Path) -> None:
    store, report = run
    policy, reference = Told("p", lambda _: -1.0, report.checkpoint), Told("r", lambda _: -2.0)
    with pytest.raises(UserError, match="nothing to measure with"):
        annotate(report.run_id, store, policy=policy)
    with pytest.raises(UserError, match="its own model"):
        annotate(report.run_id, store, policy=Told("p", lambda _: -1.0, "another"), reference=reference)
    with pytest.raises(UserError, match="its own model"):
        annotate(report.run_id, store, reference=reference)
    bare = evaluate(Suite("s", (CHOICES,)), scripted_engine("echo"), protocol=PROTOCOL, store=store)
    with pytest.raises(UserError, match="no generated answers"):
        annotate(bare.run_id, store, reward=Likes("rm", 0.5))
