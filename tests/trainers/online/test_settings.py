"""What the loop's settings do, on a tiny model: each changes what it says it does, and nothing else."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tests.trainers.online.conftest import GIVEN, SETTINGS, SFT, files, rows
from tests.trainers.online.loop_driver import POLICY, samples

from rlhf_bench.harness.checkpoint import checkpoint_digest
from rlhf_bench.harness.engines.scripted import scripted_engine
from rlhf_bench.harness.errors import Fault, UnknownName, UserError
from rlhf_bench.harness.judges.llm import LLMJudge
from rlhf_bench.harness.judges.replay import scripted_judge
from rlhf_bench.harness.progress import silent
from rlhf_bench.harness.promote import promote_by_force
from rlhf_bench.harness.store import Store
from rlhf_bench.harness.types import (
    Battle,
    Checkpoint,
    Conversation,
    Message,
    Preference,
    Report,
    Request,
    Sample,
    Score,
)
from rlhf_bench.suites.judge_prompts import alpaca_eval_prompt
from rlhf_bench.trainers.online import (
    Iteration,
    Line,
    LoopConfig,
    Scoring,
    iterate,
    run_stage,
    set_aside,
)
from rlhf_bench.trainers.online.scoring import scored


def told(done: Sequence[Iteration]) -> list[Any]:
    """What two runs of a loop have in common, if they are the same; a verdict is known by its runs."""
    return [
        (each.number, each.attempt, each.candidate.digest, each.verdict_id, each.verdict.outcome, each.learned)
        for each in done
    ]


def test_pairs_that_are_given_take_the_place_of_answers_and_rewards(line: Callable[..., Line]) -> None:
    pairs = [Preference((Message("user", f"Say {i}."),), f"the sea {i}", f"gas {i}") for i in range(7)]
    offline = line(GIVEN, preferences=pairs, prompts=())
    done = list(iterate(offline))
    assert done[0].pairs == 3 and not done[0].rows
    assert {row["chosen"] for row in rows(files(offline, "pairs-*")[0])} < {pair.chosen for pair in pairs}
    assert not files(offline, "answers-*") and not files(offline, "rewards-*")


def test_there_is_no_stage_of_answers_where_pairs_are_given(line: Callable[..., Line]) -> None:
    pairs = [Preference((Message("user", "Say."),), "the sea", f"gas {i}") for i in range(3)]
    offline = line(GIVEN, preferences=pairs, prompts=())
    with pytest.raises(UserError, match="no stage 'score'"):
        list(iterate(offline, until="score"))
    with pytest.raises(UserError, match="no stage 'answers'"):
        set_aside(offline, "answers")
    assert offline.store.champion() is None


def test_best_of_n_is_tuned_on_the_best_answer_of_each_prompt(line: Callable[..., Line]) -> None:
    tuned = line(SFT)
    done = list(iterate(tuned))
    best = {row["response"] for row in rows(files(tuned, "pairs-*")[0])}
    for row in done[0].rows:
        whole = [
            (reward, answer)
            for reward, answer, why in zip(row["rewards"], row["responses"], row["finish_reasons"], strict=True)
            if why == "stop"
        ]
        assert not whole or max(whole)[1] in best
    assert json.loads((Path(done[0].candidate.path) / "recipe.json").read_text())["trainer"] == "sft"


def test_a_loop_that_follows_goes_on_from_a_candidate_that_was_not_promoted(line: Callable[..., Line]) -> None:
    followed = line({"on_hold": "follow", "iterations": 2})
    first, second = iterate(followed)
    assert first.verdict.outcome != "promote"
    assert second.policy.digest == first.candidate.digest
    assert second.champion.digest == first.champion.digest == followed.store.champion().checkpoint  # type: ignore[union-attr]


def test_a_loop_that_continues_goes_on_from_the_champion(line: Callable[..., Line]) -> None:
    first, second = iterate(line({"iterations": 2}))
    assert second.policy.digest == first.policy.digest


def test_a_retry_changes_what_it_says_and_takes_the_answers_that_are_there(line: Callable[..., Line]) -> None:
    retries = [{"dpo.beta": 0.5}, {"dpo.learning_rate": 2e-3, "fresh_prompts": True}]
    tried = line({"on_hold": "retry", "retries": retries, "iterations": 1})
    done = list(iterate(tried))
    assert [each.attempt for each in done] == [0, 1, 2]
    assert [dict(each.changed) for each in done] == [{}, *retries]
    made = [json.loads((Path(each.candidate.path) / "recipe.json").read_text()) for each in done]
    assert [each["beta"] for each in made] == [0.1, 0.5, 0.1]
    assert made[2]["learning_rate"] == 2e-3
    asked = [{row["sample_id"] for row in each.rows} for each in done]
    assert asked[0] == asked[1] and not asked[0] & asked[2]
    assert len(files(tried, "answers-*")) == 2
    aliases = tried.store.aliases()
    names = ("small-1", "small-1-retry-1", "small-1-retry-2")
    assert [aliases[name] for name in names] == [each.candidate.digest for each in done]
    assert told(done) == told(list(iterate(tried)))


def test_a_name_that_another_model_has_stays_its_own_and_one_that_was_set_aside_loses_it(
    line: Callable[..., Line], tiny_checkpoint: Path, tmp_path: Path
) -> None:
    said: list[str] = []
    small = line(say=said.append)
    other = Checkpoint(str(tiny_checkpoint), checkpoint_digest(tiny_checkpoint))
    small.store.register(other, alias="small-1")
    assert list(iterate(small, until="train")) == []
    assert small.store.aliases()["small-1"] == other.digest
    assert len(said) == 1 and said[0].startswith("another model is called small-1: this candidate goes by ")
    gone = Checkpoint(str(small.work.resolve() / "iteration-1" / "candidate-old"), "0" * 64)
    small.store.register(gone, alias="small-1")
    assert list(iterate(small, until="train")) == []
    (made,) = files(small, "candidate-*")
    assert small.store.aliases()["small-1"] == json.loads((made / "recipe.json").read_text())["digest"]
    assert len(said) == 1


def test_a_loop_ends_when_its_retries_are_used_up(line: Callable[..., Line]) -> None:
    done = list(iterate(line({"on_hold": "retry", "retries": [{"dpo.beta": 0.5}], "iterations": 2})))
    assert [(each.number, each.attempt) for each in done] == [(1, 0), (1, 1)]


def test_until_a_stage_makes_no_more_and_the_loop_goes_on_from_there(line: Callable[..., Line]) -> None:
    stepped = line()
    assert list(iterate(stepped, until="score")) == []
    assert files(stepped, "rewards-*") and not files(stepped, "pairs-*")
    assert list(iterate(stepped, until="train")) == []
    assert files(stepped, "candidate-*") and not files(stepped, "verdict-*")
    whole = list(iterate(stepped))
    assert len(whole) == 1
    assert told(list(iterate(stepped, until="score"))) == told(whole)  # decided before: it is given again


def test_what_is_set_aside_is_made_again_alike(line: Callable[..., Line]) -> None:
    again = line()
    before = list(iterate(again))
    aside = set_aside(again, "pair")
    assert {path.name.partition("-")[0] for path in aside} == {"pairs", "candidate", "measured", "verdict"}
    after = list(iterate(again))
    assert told(after) == told(before)


def test_nothing_is_set_aside_of_a_loop_that_has_not_begun(line: Callable[..., Line]) -> None:
    with pytest.raises(UserError, match="made nothing yet"):
        set_aside(line(), "pair")


def test_stages_in_other_processes_give_what_they_give_here(line: Callable[..., Line], tmp_path: Path) -> None:
    launched: list[str] = []
    every = dict.fromkeys(("answers", "score", "pair", "train", "measure"), "")

    def launch(stage: Any, number: int, attempt: int) -> None:
        launched.append(stage)
        run_stage(apart, stage, number, attempt)

    apart = line({"launch": every}, launch=launch)
    there = list(iterate(apart))
    assert launched == ["answers", "score", "pair", "train", "measure"]
    here = list(iterate(line({"name": "here"})))
    assert [each.candidate.digest for each in there] == [each.candidate.digest for each in here]
    assert told(list(iterate(apart))) == told(there)
    assert len(launched) == 5


def test_a_stage_that_its_process_did_not_make_is_a_fault(line: Callable[..., Line]) -> None:
    with pytest.raises(Fault, match="process of stage 'answers' left no"):
        list(iterate(line({"launch": {"answers": ""}}, launch=lambda *asked: None)))


def test_a_stage_of_an_iteration_that_has_not_begun_is_refused(line: Callable[..., Line]) -> None:
    with pytest.raises(UserError, match="has not begun iteration 1: "):
        run_stage(line(), "answers", 1, 0)
    begun = line()
    assert list(iterate(begun, until="answers")) == []
    with pytest.raises(UserError, match="has not begun iteration 1, retry 2: "):
        run_stage(begun, "answers", 1, 2)


def test_a_judge_that_compares_ranks_by_tournament(line: Callable[..., Line]) -> None:
    longest = Scoring("scripted:longer", "longer", compares=lambda: scripted_judge("longer"))
    ranked = line({"reward": "scripted:longer"}, scoring=lambda: longest)
    assert list(iterate(ranked, until="pair")) == []
    for row in rows(files(ranked, "rewards-*")[0]):
        whole = [
            (a, r)
            for a, r, w in zip(row["responses"], row["rewards"], row["finish_reasons"], strict=True)
            if w == "stop"
        ]
        if len({answer for answer, _ in whole}) > 1:
            assert max(whole, key=lambda each: each[1])[0] in [
                a for a, _ in whole if len(a) == max(len(b) for b, _ in whole)
            ]
            assert all(reward is not None for _, reward in whole)


def test_a_judge_that_fails_stops_the_loop_before_training_unless_it_may_be_partial(
    line: Callable[..., Line], mirror: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RLHF_BENCH_DATA", str(mirror))

    def failing(store: Store) -> Scoring:
        judge = LLMJudge(scripted_engine("fail"), store, alpaca_eval_prompt("weighted"))
        return Scoring("llm", "failing", compares=lambda: judge)

    broken = line({"reward": "llm:judge"})
    broken = replace(broken, scoring=lambda: failing(broken.store))
    with pytest.raises(Fault, match=r"failed on \d+ of \d+ comparisons"):
        list(iterate(broken))
    assert not files(broken, "rewards-*")
    partial = replace(broken, config=broken.config.model_copy(update={"partial": True}))
    with pytest.raises(Fault, match=r"failed on all \d prompts"):
        list(iterate(partial))
    assert not files(broken, "rewards-*")


def test_answers_come_in_equal_shares_from_a_mixture_of_policies(
    line: Callable[..., Line], tiny_checkpoint: Path
) -> None:
    mixed = line({"answers": SETTINGS["answers"] | {"policies": ["current", str(tiny_checkpoint)]}})
    assert list(iterate(mixed, until="answers")) == []
    alone = line({"name": "alone"})
    assert list(iterate(alone, until="answers")) == []
    for mixed_row, row in zip(rows(files(mixed, "answers-*")[0]), rows(files(alone, "answers-*")[0]), strict=True):
        assert mixed_row["responses"][:2] == row["responses"][:2]
        assert mixed_row["responses"][2:] != row["responses"][2:]


def test_contaminated_prompts_are_left_out_for_good(line: Callable[..., Line]) -> None:
    bad = {sample.id for sample in samples(12, 8)[:7]}
    cleaned = line(contaminated=lambda prompts: bad)
    done = list(iterate(cleaned))
    assert not bad & {row["sample_id"] for row in done[0].rows}
    assert told(list(iterate(replace(cleaned, contaminated=lambda prompts: ())))) == told(done)


def test_too_few_clean_prompts_are_an_error_before_anything_is_made(line: Callable[..., Line]) -> None:
    with pytest.raises(UserError, match="need 3, 'demo' has 2"):
        list(iterate(line(contaminated=lambda prompts: {sample.id for sample in prompts[2:]})))


def test_contaminated_prompts_are_kept_where_the_config_says_so(line: Callable[..., Line]) -> None:
    kept = line({"contaminated": "keep"}, contaminated=lambda prompts: {sample.id for sample in prompts})
    assert list(iterate(kept, until="answers")) == []


def test_contaminated_pairs_are_left_out_too(line: Callable[..., Line]) -> None:
    pairs = [Preference((Message("user", f"Say {i}."),), f"the sea {i}", f"gas {i}") for i in range(6)]
    clean = line(GIVEN, preferences=pairs, prompts=(), contaminated=lambda prompts: {"0", "2", "4"})
    done = list(iterate(clean))
    assert {pair.chosen for pair in done[0].learned.pairs} == {"the sea 1", "the sea 3", "the sea 5"}


def test_a_prompt_that_is_too_long_for_the_policy_is_counted_and_the_others_go_on(line: Callable[..., Line]) -> None:
    long = line(prompts=(*samples(2, 8), *_very_long(samples(1, 8))))
    done = list(iterate(long))
    assert done[0].dropped["answers to prompts that are too long"] == 4
    assert sorted({why for row in done[0].rows for why in row["finish_reasons"]} - {"length"}) == ["error", "stop"]


def _very_long(given: Sequence[Sample]) -> list[Sample]:
    request = Request("long", (Message("user", "the sea " * 600),))
    return [replace(each, id="long", requests=(request,)) for each in given]


class Constant:
    """A reward model that rates everything alike."""

    def rewards(self, items: Sequence[tuple[Conversation, str]]) -> list[float | None]:
        return [0.25] * len(items)


def test_rewards_that_are_all_equal_stop_the_loop_with_their_histogram(line: Callable[..., Line]) -> None:
    tied = line(scoring=lambda: Scoring("constant", "constant", rates=Constant))
    with pytest.raises(UserError, match=r"rewards all 0\.250"):
        list(iterate(tied))
    assert tied.store.champion() is not None and len(tied.store.history()) == 1


def test_a_candidate_that_is_not_finite_is_a_fault_and_the_champion_stays(line: Callable[..., Line]) -> None:
    recipe = SETTINGS["dpo"] | {"weight_decay": 1e300, "warmup": 0, "batch_size": 4}
    wild = line({"dpo": recipe}, policy=POLICY)
    with pytest.raises(Fault, match="not finite"):
        list(iterate(wild))
    champion = wild.store.champion()
    assert champion is not None and champion.generation == 1
    assert not [path for path in files(wild, "candidate-*") if not path.name.endswith(".work")]


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"on_hold": "retry"}, "go together"),
        ({"retries": [{"dpo.beta": 0.2}]}, "go together"),
        ({"on_hold": "retry", "retries": [{"dpo.bta": 0.2}]}, "no setting named 'dpo.bta'"),
        ({"on_hold": "retry", "retries": [{"dpo.beta": -1}]}, "greater than 0"),
        ({"on_hold": "retry", "retries": [{"policy": "lax"}]}, "cannot change policy"),
        ({"on_hold": "retry", "retries": [{"fresh_prompts": 3}]}, "true or false"),
        ({"on_hold": "retry", "retries": [{"reward": "other"}]}, "cannot change reward"),
        ({"on_hold": "retry", "retries": [{"prompts": "other"}]}, "cannot change prompts"),
        ({"on_hold": "retry", "retries": [{"prompts_per_iteration": 5}]}, "cannot change prompts_per_iteration"),
        ({"on_hold": "retry", "retries": [{"preferences": "a.jsonl"}]}, "cannot change preferences"),
        ({"on_hold": "retry", "retries": [{"contaminated": "keep"}]}, "cannot change contaminated"),
        ({"on_hold": "retry", "retries": [{"answers.engine": "vllm"}]}, "cannot change answers.engine"),
        ({"on_hold": "retry", "retries": [{"answers": {"engine": "vllm"}}]}, "cannot change answers"),
        ({"reward": "pm:model", "pairs": {"length_penalty": 0.001}}, "only ranks"),
        ({"method": "sft", "pairs": {"min_margin": 0.1}}, "best answer alone"),
        ({"preferences": "a.jsonl", "pairs": {"min_margin": 0.1}}, "pairs already"),
        ({"answers": {"n": 6, "policies": ["current", "initial"]}}, "2 temperatures × 2 policies"),
        ({"answers": {"temperatures": [1.0, -0.7]}}, "greater than or equal to 0"),
        ({"answers": {"temperatures": [0.0]}}, "at temperature 0 all answers to a prompt are the same"),
        ({"on_hold": "retry", "retries": [{"retries": [{"dpo.beta": 0.3}]}]}, "cannot change retries"),
        ({"reward": "openai:m"} | {"on_hold": "retry", "retries": [{"partial": True}]}, "cannot change partial"),
        ({"reward": "openai:m"} | {"on_hold": "retry", "retries": [{"patience_s": 5}]}, "cannot change patience_s"),
        ({"launch": {"train": "torchrun 'open"}}, "No closing quotation"),
        ({"launch": {"gate": ""}}, "launch"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        LoopConfig.model_validate({"name": "small"} | settings)


def test_a_name_that_means_nothing_is_found_before_anything_is_fixed(line: Callable[..., Line]) -> None:
    def unknown() -> Scoring:
        raise UnknownName("model", "rewrad", ["reward"])

    mistaken = line({"reward": "rewrad"}, scoring=unknown)
    for each in (
        mistaken,
        line({"answers": SETTINGS["answers"] | {"policies": ["current", "nobody"]}}),
        line({"on_hold": "retry", "retries": [{"backend": "trll"}]}),
    ):
        with pytest.raises(UnknownName):
            list(iterate(each))
        assert each.store.champion() is None and not (each.work / "start.json").exists()
    assert list(iterate(line(), until="answers")) == []  # the name of the loop is free, with other settings


@pytest.mark.parametrize("stage", [None, "answers"])
def test_a_loop_goes_on_only_with_the_data_the_reward_and_the_margins_that_it_began_with(
    line: Callable[..., Line], stage: Any
) -> None:
    begun = line()
    assert list(iterate(begun, until="answers")) == []
    made = files(begun, "*")
    for changed, said in (
        (line(prompts=samples(13, 8)[1:]), "another data of prompts"),
        (line(scoring=lambda: Scoring("reward", "other", rates=Constant)), "another model of reward"),
        (line({"dpo": SETTINGS["dpo"] | {"beta": 0.3}}), "another dpo"),
        (line(policy=POLICY), "another policy"),
    ):
        with pytest.raises(UserError, match=said):
            list(iterate(changed)) if stage is None else run_stage(changed, stage, 1, 0)
        with pytest.raises(UserError, match=said):
            set_aside(changed, "answers")
    assert files(begun, "*") == made


def test_two_loops_that_begin_at_once_from_one_model_share_their_champion(line: Callable[..., Line]) -> None:
    other = line({"name": "other"})

    def begin_other(asked: Sequence[Sample]) -> set[str]:  # called when all is checked, before the champion is set
        list(iterate(other, until="answers"))
        return set()

    late = line(contaminated=begin_other)
    assert list(iterate(late, until="answers")) == []
    assert late.store.history()[0].reason == "start of loop other" and len(late.store.history()) == 1
    assert files(late, "answers-*") and files(other, "answers-*")


def test_iterations_that_are_decided_are_not_taken_back(line: Callable[..., Line]) -> None:
    grown = line({"iterations": 2})
    assert len(list(iterate(line()))) == 1 and len(list(iterate(grown))) == 2
    result = (grown.work / "result.json").read_text()
    with pytest.raises(UserError, match="iterations is 1, and loop 'small' has decided iteration 2: it may only grow"):
        list(iterate(line()))
    assert (grown.work / "result.json").read_text() == result


def test_prompts_that_the_policys_template_refuses_fix_nothing(
    line: Callable[..., Line], talker: Path, tmp_path: Path
) -> None:
    policy = shutil.copytree(talker, tmp_path / "policy")
    template = policy / "chat_template.jinja"
    refuses = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}"
    template.write_text(refuses + template.read_text())
    begins = line({"model": str(policy)})
    asked = (Message("system", "Be brief."), Message("user", "Why?"))
    odd = replace(begins, prompts=[*begins.prompts, Sample("odd", (Request("odd", asked),), "")])
    with pytest.raises(UserError, match=r"refuses prompts of system, user \(no system\)"):
        list(iterate(odd))
    assert not (odd.work / "start.json").exists() and odd.store.champion() is None
    assert list(iterate(begins, until="answers")) == []


def test_what_was_measured_is_read_and_decided_once_though_this_machine_would_measure_otherwise(
    line: Callable[..., Line],
) -> None:
    begun = line()
    done = list(iterate(begun))

    def elsewhere(checkpoint: Checkpoint) -> Report:
        raise AssertionError(f"{checkpoint.digest} is measured again")

    assert told(list(iterate(replace(begun, measure=elsewhere)))) == told(done)
    assert len(begun.store.verdicts()) == 1


def test_nothing_is_set_aside_of_a_candidate_that_was_made_champion_by_force(line: Callable[..., Line]) -> None:
    forced = line()
    (done,) = iterate(forced)
    promote_by_force(forced.store, done.candidate.digest, "we like it")
    with pytest.raises(UserError, match="became champion"):
        set_aside(forced, "train")
    assert Path(done.candidate.path).is_dir()


def test_a_champion_that_somebody_moved_is_told_before_an_iteration_begins(
    line: Callable[..., Line], tiny_checkpoint: Path
) -> None:
    moved = line()
    assert list(iterate(moved, until="answers")) == []
    other = Checkpoint(str(tiny_checkpoint), checkpoint_digest(tiny_checkpoint))
    moved.store.register(other, alias="other")
    promote_by_force(moved.store, other.digest, "we like it")
    with pytest.raises(UserError, match="begin another loop"):
        list(iterate(moved))
    assert not files(moved, "rewards-*")


def test_a_training_that_its_process_did_not_make_is_a_fault(line: Callable[..., Line]) -> None:
    with pytest.raises(Fault, match="process of stage 'train' left no"):
        list(iterate(line({"launch": {"train": ""}}, launch=lambda *asked: None)))


class Moody:
    """A language model as judge, which prefers the shorter answer, and fails where "abc" is one of the two."""

    name = identity = "moody"
    manifest: Mapping[str, str] = {}

    def __init__(self, fails: bool) -> None:
        self.fails = fails

    def ask(self, requests: Any, read: Any) -> Iterator[Any]:
        return iter(())

    def prefer(self, battles: Sequence[Battle]) -> Iterator[Score]:
        for each in battles:
            failed = self.fails and "abc" in (each.answer, each.baseline)
            value = None if failed else float(len(each.answer) < len(each.baseline))
            yield Score(each.sample_id, value, "an outage" if failed else "")


def row(answers: Sequence[str]) -> dict[str, Any]:
    prompt = [{"role": "user", "content": "Say."}]
    return {"sample_id": "1", "prompt": prompt, "responses": [*answers], "finish_reasons": ["stop"] * len(answers)}


def test_a_ranking_in_which_the_judge_failed_is_used_once_and_not_kept(tmp_path: Path) -> None:
    def ranked(judge: Moody, partial: bool) -> list[float | None]:
        scoring = Scoring("llm:moody", "moody", compares=lambda: judge)
        asked = [row(["a", "ab", "abc"])]
        (found,) = scored(asked, scoring, store, silent, cut_may_lose=False, partial=partial)
        return list(found["rewards"])

    with Store(f"sqlite:///{tmp_path}/store.db") as store:
        assert ranked(Moody(fails=True), partial=True) == [1.0, 0.0, None]
        for fails in (False, True):  # the whole ranking is kept: nothing is left to fail
            assert ranked(Moody(fails), partial=False) == [2.0, 1.0, 0.0]


class Overflown:
    """A reward model whose numbers are not finite for the first answer."""

    def rewards(self, items: Sequence[tuple[Conversation, str]]) -> list[float | None]:
        return [float("nan"), *[0.5] * (len(items) - 1)]


def test_a_reward_that_is_not_finite_is_no_reward(tmp_path: Path) -> None:
    scoring = Scoring("overflown", "overflown", rates=Overflown)
    with Store(f"sqlite:///{tmp_path}/store.db") as store:
        (found,) = scored([row(["a", "b"])], scoring, store, silent, cut_may_lose=False, partial=False)
    assert found["rewards"] == [None, 0.5]


def test_a_file_of_the_loop_that_holds_something_else_is_named(line: Callable[..., Line]) -> None:
    done = line()
    expected = told(list(iterate(done)))
    spoilt = [
        *((pattern, row) for pattern in ("answers", "rewards", "measured") for row in ("5", "{}", "[1]", "{")),
        *(("pairs", row) for row in ("5", "{")),
        *(("../start", text) for text in ("", "[]", "{}")),
    ]
    for pattern, text in spoilt:
        (path,) = files(done, f"{pattern}*.json*")
        whole = path.read_bytes()
        path.write_text(text)
        with pytest.raises(Fault, match=f"{path.name} is not what "):
            list(iterate(done))
        path.write_bytes(whole)
    assert told(list(iterate(done))) == expected
    for name, again in (
        ("begun-0", lambda: run_stage(done, "pair", 1, 0)),
        ("verdict-0", lambda: set_aside(done, "measure")),
    ):
        (path,) = files(done, f"{name}.json")
        for text in ("", "[]", "{}"):
            path.write_text(text)
            with pytest.raises(Fault, match=rf"{name}\.json is not what the loop wrote: restore it, or remove it"):
                again()
