"""What `iterate` shows: monitors and plans as tables and JSON, probes with no answer repeated."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tests.cli.conftest import N, finished

from rlhf_bench.cli import lookup, online, probing, show
from rlhf_bench.harness.checkpoint import checkpoint_digest
from rlhf_bench.harness.errors import UserError
from rlhf_bench.harness.progress import silent
from rlhf_bench.harness.store import Store
from rlhf_bench.harness.store import home as home_folder
from rlhf_bench.harness.types import Check, Checkpoint, Estimate, Message, Preference, Request, Sample, Verdict
from rlhf_bench.trainers.online.config import STAGES, LoopConfig
from rlhf_bench.trainers.online.probes import Probed


def verdict(outcome: Any, difference: float | None) -> Verdict:
    checks = (
        Check("maths", "guard", "acc", -0.5, -1, 1, 0.1, 0.5, "pass"),
        Check("chat", "target", "win_rate", difference, 0.0, 0.1, 0.0, 0.01, "pass"),
    )
    return Verdict(outcome, checks, (), "c" * 64, "d" * 64, "p", 0.05)


def rows(words: int) -> list[dict[str, Any]]:
    """Answers to thirty prompts: a longer one has the higher reward."""
    return [
        {
            "sample_id": str(i),
            "prompt": [{"role": "user", "content": "Why?"}],
            "responses": [
                " ".join(f"w{(i * 7 + k * 3) % 50}" for k in range(words + extra)) for extra in (0, 2, 4, i % 3)
            ],
            "finish_reasons": ["stop", "stop", "length", "stop"],
            "rewards": [0.0, 1.0, 2.0, 0.5],
        }
        for i in range(30)
    ]


PAIRS = [Preference((Message("user", "?"),), "good", "bad", 1.0 + 0.5 * (i % 2)) for i in range(30)]


@pytest.fixture
def iterations(store: Store) -> list[online.Monitored]:
    report = finished(store, "mine-1", "d" * 64, [0.5] * N, [1.0] * N)
    annotated = replace(
        report,
        estimates=(
            *report.estimates,
            Estimate("chat", "kl", 12.345, 11, 13, 0.5, N, 0),
            Estimate("chat", "reward_win", 0.62, 0.5, 0.7, 0.05, N, 0),
        ),
    )
    return [
        online.monitored("mine-1", verdict("promote", 0.051), annotated, rows(20), PAIRS),
        online.monitored("mine-2", verdict("inconclusive", None), report, rows(60), []),
    ]


def too_wide(out: str) -> list[str]:
    """The lines that do not fit where there is no terminal."""
    return [line for line in out.splitlines() if len(line) > show.PLAIN_WIDTH]


def lines(out: str, first: str) -> list[list[str]]:
    return [cells for line in out.splitlines() if (cells := line.split()) and cells[0] == first]


def test_the_monitors_are_a_row_an_iteration_and_fit_a_hundred_columns(
    iterations: list[online.Monitored], capsys: pytest.CaptureFixture[str]
) -> None:
    online.print_monitors(iterations)
    out = capsys.readouterr().out
    assert too_wide(out) == []
    ((*first,),) = lines(out, "mine-1")
    watch = iterations[0].watch
    assert first[1:5] == ["promote", "+0.051", f"{watch.reward.mean:.2f}", f"{watch.length.mean:.0f}"]
    assert first[-4:] == ["25.0%", "12.35", "+12.0", "1.25"]  # KL, gap in points, margin
    ((*second,),) = lines(out, "mine-2")
    assert second[1:3] == ["inconcl.", "–"] and second[-3:] == ["–", "–", "–"]
    assert "note: what mine-2 was trained on: answers are " in out and "longer than in the first" in out
    assert "what mine-1" not in out


def test_the_monitors_are_json_too(iterations: list[online.Monitored]) -> None:
    told = json.loads(json.dumps(online.monitors_as_json(iterations)))
    first, second = told["iterations"]
    assert first["kl"] == 12.345 and first["reward_gap"] == pytest.approx(12.0) and first["target"] == 0.051
    assert first["answers"]["pairs"] == 30 and second["answers"]["margin"]["mean"] is None
    assert [sentence.split(":")[0] for sentence in told["drift"]] == ["what mine-2 was trained on"] * len(told["drift"])


def test_nothing_to_show_is_an_empty_table(capsys: pytest.CaptureFixture[str]) -> None:
    online.print_monitors([])
    assert "monitors" in capsys.readouterr().out


def probe_row(name: str, response: str, reward: float | None = None, prompt: str = "Why [b]?[/b]") -> dict[str, Any]:
    turns = [{"role": "user", "content": prompt}]
    return {
        "sample_id": name,
        "prompt": turns,
        "response": response,
        "finish_reason": "stop",
        "tokens": 2,
        "reward": reward,
    }


def test_probes_stand_side_by_side_and_the_same_answer_once(capsys: pytest.CaptureFixture[str]) -> None:
    probed = [
        Probed("initial", [probe_row("fact", "because"), probe_row("code", "x = 1\ny = 2")]),
        Probed("mine-1", [probe_row("fact", "because", 0.5), probe_row("code", "x = [red]2[/red]\x1b[2J", 1.0)]),
        Probed("mine-2", [probe_row("fact", "so"), probe_row("new", "later", prompt="Later?")]),
    ]
    probing.print_probes(probed, Path("work/probes.html"))
    out = capsys.readouterr().out
    assert out.count("because") == 1 and "mine-1 (reward 0.50, 2 tokens, as before)" in out
    assert "══ fact: Why [b]?[/b]" in out and "══ new: Later?" in out
    assert "x = [red]2[/red]\\x1b[2J" in out and "\x1b" not in out
    assert "work/probes.html" in out


def config(**changes: Any) -> LoopConfig:
    given: dict[str, Any] = {
        "name": "mine",
        "model": "base",
        "prompts_per_iteration": 5,
        "iterations": 2,
        "answers": {"n": 4, "max_tokens": 64},
        "suite": "demo-chat",
        "limit": 6,
    }
    return LoopConfig.model_validate(given | changes)


def plan(store: Store, settings: LoopConfig, prompts: Sequence[Any] | None = None) -> Any:
    given = lookup.prompts("demo") if prompts is None else prompts
    return online.loop_plan(settings, store, home_folder(), prompts=given, track=silent)


def test_a_plan_counts_what_an_evaluation_asks_and_what_its_judge_costs(
    store: Store, tiny_checkpoint: Path, home: Path, mirror: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RLHF_BENCH_DATA", str(mirror))
    found = plan(store, config(model=str(tiny_checkpoint), judge="openai:gpt-4o-mini"))
    first, second = found.iterations
    assert (first.evaluations, second.evaluations) == (2, 1)
    assert (first.samples, second.samples) == (12, 6) and second.judge_calls == 6
    assert second.usd is not None and second.usd > 0 and found.total.usd == pytest.approx(3 * second.usd)
    assert found.parameters and found.disk.candidates > 2 * 4 * found.parameters
    assert found.total.hours_left > 0 and not any(rate.measured for rate in found.rates)
    assert not (home / "home" / "loops").exists() and store.runs() == [] and store.checkpoints() == []
    assert plan(store, config(judge="openai:no-such-model@http://localhost:1/v1")).total.usd is None
    free = plan(store, config())
    assert free.total.usd == 0.0 and free.total.judge_calls == 0
    assert free.total.hours_left is None  # the model is not here


def test_a_plan_knows_what_is_done(store: Store, tiny_checkpoint: Path) -> None:
    folder = home_folder() / "loops" / "mine" / "iteration-1"
    (folder / "candidate-abc").mkdir(parents=True)
    (folder / "candidate-abc" / "metrics.jsonl").write_text('{"tokens_per_s": 123.0}\n')
    for name in ("answers", "rewards", "pairs", "measured"):
        (folder / f"{name}-abc.jsonl").write_text(json.dumps({"responses": ["a b c"]}) + "\n")
    found = plan(store, config(model=str(tiny_checkpoint)))
    assert found.iterations[0].done == STAGES and found.iterations[0].hours_left == 0.0
    assert {rate.name: rate.per_s for rate in found.rates if rate.measured} == {"train": 123.0}
    assert found.iterations[1].answer_tokens < 20 * 64


def test_a_plan_as_a_table_fits_a_hundred_columns(
    store: Store, tiny_checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = plan(store, config(model=str(tiny_checkpoint), on_hold="stop"))
    online.print_plan(found)
    out = capsys.readouterr().out
    assert too_wide(out) == []
    assert "the plan of mine: nothing was started" in out
    ((*second,),) = [cells for cells in lines(out, "2") if len(cells) > 5]
    assert second[1:3] == ["5", "20"]
    ((*total,),) = [cells for cells in lines(out, "all") if len(cells) > 5]
    assert total[1:3] == ["10", "40"]
    assert "estimated" in out and "disk, at most: candidates" in out
    assert "note: it ends with the first iteration that is not promoted" in out
    told = json.loads(json.dumps(online.plan_as_json(found)))
    assert told["hours_left"] == pytest.approx(sum(told["plan"]["total"]["hours"].values()))
    assert told["disk_needed"] == sum(told["plan"]["disk"][name] for name in ("candidates", "training", "rows"))
    told = told["plan"]
    assert told["total"]["answers"] == 40 and set(told["iterations"][0]["hours"]) == set(STAGES)


def test_a_plan_of_the_papers_size_fits_too(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    many = [Sample(str(i), (Request(str(i), (Message("user", f"What is {i} + {i}?"),)),), "") for i in range(60_000)]
    large = config(prompts_per_iteration=20_000, iterations=3, answers={"n": 8})
    found = plan(store, large, many)
    small = replace(found.disk, candidates=3 * 16 * 10**9, training=10**11, rows=0, free=10**9)
    found = replace(found, disk=small)
    online.print_plan(found)
    out = capsys.readouterr().out
    assert too_wide(out) == []
    assert "336.0M" in out and "480k" in out  # 480,000 answers of 700 tokens
    assert "at most: 983.0M tokens of answers, 480k rewards, 60,000 pairs" in out
    assert "note: the disk does not suffice: 148.0 GB are needed, 1.0 GB are free" in out


def test_too_few_prompts_are_one_line(store: Store) -> None:
    with pytest.raises(UserError, match="2 iterations of 5 prompts need 10, 'demo' has 3"):
        plan(store, config(), lookup.prompts("demo")[:3])


def test_a_recipe_that_the_back_end_lacks_is_refused_by_the_plan_and_what_the_machine_lacks_is_a_note(
    store: Store, tiny_checkpoint: Path
) -> None:
    with pytest.raises(UserError, match="'simpo' is not one of TRL's"):
        plan(store, config(dpo={"loss": "simpo"}))
    with pytest.raises(UserError, match=r"retries\.0: the torch back end has no shard fsdp"):
        plan(store, config(on_hold="retry", retries=[{"backend": "torch", "dpo.shard": "fsdp"}]))
    elsewhere = config(model=str(tiny_checkpoint), dpo={"shard": "fsdp"})
    assert any(note.startswith("it does not train here: shard fsdp") for note in plan(store, elsewhere).notes)
    launched = elsewhere.model_copy(update={"launch": {"train": "torchrun --nproc-per-node 8"}})
    assert not any("does not train here" in note for note in plan(store, launched).notes)


def test_a_reward_model_that_reads_no_answers_is_refused_by_the_plan(
    store: Store, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    shutil.copytree(tiny_checkpoint, tmp_path / "reward")
    settings = config(reward=str(tmp_path / "reward"))
    assert plan(store, settings).total.rewards == 40
    (tmp_path / "reward" / "chat_template.jinja").write_text("{% for m in messages %}{{ m.role }}{% endfor %}")
    with pytest.raises(UserError, match="leaves an answer out"):
        plan(store, settings)


def test_a_policy_whose_template_refuses_the_prompts_is_refused_by_the_plan(
    store: Store, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    policy = shutil.copytree(tiny_checkpoint, tmp_path / "policy")
    (policy / "chat_template.jinja").write_text("{{ raise_exception('no users') }}")
    with pytest.raises(UserError, match=r"refuses prompts of user \(no users\)"):
        plan(store, config(model=str(policy)))


def test_a_name_that_means_nothing_is_a_note_of_the_plan(store: Store, tiny_checkpoint: Path) -> None:
    there = str(tiny_checkpoint)
    unknown = config(model="sft", reward="pm:nope", answers={"n": 4, "policies": ["initial", "hf:org/name"]})
    notes = [note for note in plan(store, unknown).notes if note.startswith("nothing here is called")]
    assert [note.split("'")[1] for note in notes] == ["sft", "nope"]
    for known in (config(model=there, reward=there), config(model=there), config(model=there, reward="openai:some")):
        assert not any(note.startswith("nothing here") for note in plan(store, known).notes)


def test_prompts_that_are_there_twice_are_told_and_not_counted(store: Store) -> None:
    few = lookup.prompts("demo")[:10]
    again = [replace(each, id=f"again-{each.id}") for each in few]
    found = plan(store, config(), [*few, *again])
    assert found.notes[0] == "left out: 10 × prompts that are there twice" and found.total.prompts == 10
    with pytest.raises(UserError, match="need 15, 'demo' has 10"):
        plan(store, config(iterations=3), [*few, *again])


def test_given_pairs_are_planned_without_answers(store: Store, tiny_checkpoint: Path) -> None:
    found = online.loop_plan(
        config(model=str(tiny_checkpoint), preferences="pairs.jsonl", answers={"max_tokens": 64}),
        store,
        home_folder(),
        preferences=[replace(pair, prompt=(Message("user", f"{i}?"),)) for i, pair in enumerate(PAIRS)]
        + [PAIRS[0]] * 2,
        track=silent,
    )
    assert found.notes[0] == "left out: 1 × pairs that are there twice"
    assert found.total.answers == 0 and found.total.pairs == 10 and found.total.trained_tokens > 0


def test_a_start_that_is_measured_is_not_measured_again(store: Store, tiny_checkpoint: Path) -> None:
    base = Checkpoint(str(tiny_checkpoint), checkpoint_digest(tiny_checkpoint))
    store.register(base, alias="base")
    report = finished(store, "base", base.digest, [0.5] * N, [1.0] * N)
    assert plan(store, config(model="base")).iterations[0].evaluations == 2
    store.start_run(
        replace(
            store.run(report.run_id),
            settings={"model": "base", "suite": "demo-chat", "limit": 6},
        )
    )
    assert plan(store, config(model="base")).iterations[0].evaluations == 1
    assert plan(store, config(model="base", limit=7)).iterations[0].evaluations == 2
    store.set_champion(base.digest, expect_generation=0, verdict_id=None, reason="first")
    assert plan(store, config(model="champion")).iterations[0].evaluations == 1
