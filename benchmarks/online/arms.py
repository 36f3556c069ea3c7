"""Every arm of the comparison, from the same SFT policy and the same labels, each a loop of the project's own.

    demonstrations ─► SFT π0 ─► two answers a prompt ─► labels drawn from gold ─┬─► reward model ─► online, best-of-n
                                                                              └─► offline DPO

Each arm has a folder, a store and a line of champions of its own. All of it is kept by what went into it, so a killed
comparison goes on where it was.
"""

from __future__ import annotations

import json
import random
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any, Literal, get_args

from pydantic import Field

from online import world
from online.models import untrained
from rlhf_bench.harness.annotate import annotate
from rlhf_bench.harness.codec import digest, plain
from rlhf_bench.harness.config import Config
from rlhf_bench.harness.engines.hf import HFEngine
from rlhf_bench.harness.engines.stored import stored_or_asked
from rlhf_bench.harness.files import write
from rlhf_bench.harness.judges.reward import RewardModel
from rlhf_bench.harness.policy import Guard, Ledger, Policy, Target
from rlhf_bench.harness.run import evaluate
from rlhf_bench.harness.signals import KL
from rlhf_bench.harness.store import Store
from rlhf_bench.harness.types import (
    Benchmark,
    Checkpoint,
    Conversation,
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
from rlhf_bench.trainers.backends import get_backend
from rlhf_bench.trainers.online import (
    AnswersConfig,
    Iteration,
    Line,
    LoopConfig,
    PairsConfig,
    iterate,
    reward_scoring,
)
from rlhf_bench.trainers.recipes import DPORecipe, RewardRecipe, SFTRecipe

BACKEND = "torch"
SHARED: dict[str, Any] = {
    "max_length": 128, "dtype": "float32", "gradient_checkpointing": False, "save_every": 100_000, "seed": 0,
}  # fmt: skip
PROTOCOL = EvalProtocol("sampled")
Arm = Literal["online", "offline", "best-of-n", "gated", "concise"]
ARMS: tuple[Arm, ...] = get_args(Arm)
"""`online` follows every candidate (no gate), `gated` only those that the gate promotes; `concise` is `online` with a
length penalty."""


class Setting(Config):
    """Sizes and recipes of a comparison; the defaults are the report's.

    π0 is shown `demonstrations`, several to each of `demonstrated` prompts. `labels` is the number of prompts with two
    answers and one label, `sharpness` that of the Bradley-Terry labels, `prompts` those of an iteration, `penalty` λ, a
    character, of the concise arm. That arm has `few` iterations, and best-of-n as many answers as they have.
    """

    width: int = 64
    layers: int = 3
    demonstrations: int = Field(12_000, ge=1)
    demonstrated: int = Field(3_000, ge=1)
    labels: int = Field(400, ge=1)
    sharpness: float = Field(12.0, gt=0)
    iterations: int = Field(6, ge=1)
    few: int = Field(3, ge=1)
    prompts: int = Field(400, ge=1)
    n: int = Field(8, ge=2)
    penalty: float = Field(0.01, ge=0)
    validation: int = Field(500, ge=1)
    test: int = Field(500, ge=1)
    max_tokens: int = Field(48, ge=1)
    sft: SFTRecipe = SFTRecipe(**SHARED, epochs=5, batch_size=64, micro_batch=64, learning_rate=4e-3, packing=False)
    best: SFTRecipe = SFTRecipe(**SHARED, epochs=2, batch_size=64, micro_batch=64, learning_rate=1e-3, packing=False)
    reward: RewardRecipe = RewardRecipe(**SHARED, epochs=5, batch_size=32, micro_batch=32, learning_rate=3e-3)
    dpo: DPORecipe = DPORecipe(**SHARED, epochs=2, batch_size=32, micro_batch=32, learning_rate=3e-4)


@dataclass(frozen=True, slots=True)
class Ready:
    """What the arms of a seed share. No prompt is in two of the lists; `labelled` is all that gold tells training."""

    setting: Setting
    seed: int
    home: Path
    sft: Checkpoint
    reward: Checkpoint
    labelled: Sequence[Preference]
    online: Sequence[str]
    validation: Sequence[str]
    test: Sequence[str]
    facts: Mapping[str, float]


def supervised(setting: Setting, home: Path) -> tuple[Checkpoint, list[str], float]:
    """π0, the prompts that it was shown, and the mean gold reward of the demonstrations."""
    home = home / f"π0-{digest([setting.width, setting.layers, setting.demonstrations, plain(setting.sft)])[:8]}"
    home.mkdir(parents=True, exist_ok=True)
    (shown,), draw = world.prompts("demonstrations", [setting.demonstrated]), random.Random("demonstrations")
    asked = (shown * -(-setting.demonstrations // len(shown)))[: setting.demonstrations]
    said = [world.demonstration(prompt, draw) for prompt in asked]
    talks = [(*conversation(prompt), Message("assistant", text)) for prompt, text in zip(asked, said, strict=True)]
    base = untrained(home / "base", setting.sft.seed, setting.width, setting.layers)
    sft = get_backend(BACKEND).train_sft(setting.sft, talks, base, home / "sft")
    return sft, shown, fmean(map(world.gold, asked, said))


def prepare(setting: Setting, seed: int, home: Path) -> Ready:
    """The labels and the reward model of a seed, made or read again."""
    sft, shown, shown_gold = supervised(setting, home)
    home = home / f"seed-{seed}-{digest(plain(setting))[:8]}"
    home.mkdir(parents=True, exist_ok=True)
    sizes = [setting.labels, setting.iterations * setting.prompts, setting.validation, setting.test]
    asked, online, validation, test = world.prompts(f"seed {seed}", sizes, shown)
    with Store(f"sqlite:///{home}/store.db") as store:
        labelled, agreement = labels(setting, seed, asked, sft, store)
        recipe = setting.reward.model_copy(update={"seed": seed})
        reward = get_backend(BACKEND).train_reward(recipe, labelled, sft, home / "reward")
        accuracy = held_out_accuracy(setting, seed, validation, sft, reward, store)
    facts = {"labels": len(labelled), "labels_agree": agreement, "reward_accuracy": accuracy}
    facts["demonstrations_gold"] = shown_gold
    return Ready(setting, seed, home, sft, reward, labelled, online, validation, test, facts)


def conversation(prompt: str) -> Conversation:
    """The prompt as a user's turn."""
    return (Message("user", prompt),)


def twice(setting: Setting, seed: int, prompts: Sequence[str], model: Checkpoint, store: Store) -> dict[str, list[str]]:
    """Two answers of the model to each prompt, at temperature 1, where both ended by themselves and differ."""
    asked = [sample(setting, f"twice {seed}", prompt, index) for prompt in prompts for index in range(2)]
    answers: dict[str, list[str]] = {prompt: [] for prompt in prompts}
    engine = HFEngine(model, name="policy")
    said = dict(stored_or_asked([each.requests[0] for each in asked], engine, store))
    for each in asked:
        completion = said[each.requests[0]]
        if completion.finish_reason == "stop":
            answers[each.reference].append(completion.text)
    return {prompt: two for prompt, two in answers.items() if len(set(two)) == 2}


def labels(
    setting: Setting, seed: int, prompts: Sequence[str], model: Checkpoint, store: Store
) -> tuple[list[Preference], float]:
    """Pairs of π0's answers, ordered by a draw from gold; and how often the draw is as gold says, where it differs."""
    draw, pairs, agree = random.Random(f"labels {seed}"), [], []
    for prompt, (first, second) in twice(setting, seed, prompts, model, store).items():
        values = world.gold(prompt, first), world.gold(prompt, second)
        is_first = world.prefers_first(draw, *values, setting.sharpness)
        pairs.append(Preference(conversation(prompt), *((first, second) if is_first else (second, first))))
        if values[0] != values[1]:
            agree.append(is_first == (values[0] > values[1]))
    return pairs, fmean(agree)


def held_out_accuracy(
    setting: Setting, seed: int, prompts: Sequence[str], model: Checkpoint, reward: Checkpoint, store: Store
) -> float:
    """How often the reward model orders two answers of π0 to prompts that it was not trained on as gold does."""
    two = twice(setting, seed, prompts, model, store)
    values = iter(rewards(reward, [(prompt, answer) for prompt, both in two.items() for answer in both]))
    right = []
    for prompt, (first, second) in two.items():
        apart, gold = next(values) - next(values), world.gold(prompt, first) - world.gold(prompt, second)
        if gold:
            right.append((apart > 0) == (gold > 0))
    return fmean(right)


def rewards(model: Checkpoint, answers: Sequence[tuple[str, str]]) -> list[float]:
    """The proxy reward of each (prompt, answer)."""
    found = RewardModel(model, name="reward").rewards([(conversation(prompt), text) for prompt, text in answers])
    return [value for value in found if value is not None]


def sample(setting: Setting, name: str, prompt: str, index: int = 0) -> Sample:
    """A prompt to be answered at temperature 1, with a seed of its own."""
    seed = int(digest([name, prompt, index])[:8], 16)
    sampling = Sampling(max_tokens=setting.max_tokens, temperature=1.0, seed=seed)
    name = prompt.replace(" ", "-")
    return Sample(name, (Request(name, conversation(prompt), sampling, index=index),), prompt)


def suite(name: str, setting: Setting, seed: int, prompts: Sequence[str]) -> Suite:
    """One benchmark whose grade is the gold reward, and beside it whether the answer ended by itself."""
    samples = [sample(setting, f"{name} {seed}", prompt) for prompt in prompts]
    about = "answers at temperature 1, graded by the gold reward"
    benchmark = Benchmark(
        name, "1", "gold", "continuous", len(samples), about, lambda protocol: samples, graded_by_gold
    )
    return Suite(name, (benchmark,))


def graded_by_gold(answered: Sequence[Graded], judge: Any) -> Iterator[Score]:
    """The gold reward of each answer."""
    for each, (completion, *_) in answered:
        ended = float(completion.finish_reason == "stop")
        yield Score(each.id, world.gold(each.reference, completion.text), also={"ended": ended})


def gate_policy(setting: Setting) -> Policy:
    """Gold must be shown to rise, and answers must still end; all iterations share alpha."""
    return Policy(
        name="gold",
        ledger=Ledger(planned=setting.iterations),
        targets=(Target(benchmark="validation", metric="gold"),),
        guards=(Guard(benchmark="validation", metric="ended", margin=0.05),),
    )


def loop_of(arm: Arm, ready: Ready) -> LoopConfig:
    """The settings of an arm's loop."""
    setting = ready.setting
    once = arm in ("offline", "best-of-n")
    size = {"offline": len(ready.labelled), "best-of-n": setting.few * setting.prompts}.get(arm, setting.prompts)
    seed = {"seed": ready.seed}
    recipe = (
        {"sft": setting.best.model_copy(update=seed)}
        if arm == "best-of-n"
        else {"dpo": setting.dpo.model_copy(update=seed)}
    )
    answers = {"max_tokens": setting.max_tokens, "engine": "hf"} | ({} if arm == "offline" else {"n": setting.n})
    return LoopConfig(
        name=arm,
        model="sft",
        method="sft" if arm == "best-of-n" else "dpo",
        preferences="the labels" if arm == "offline" else None,
        prompts_per_iteration=size,
        iterations=1 if once else setting.few if arm == "concise" else setting.iterations,
        answers=AnswersConfig(**answers),
        pairs=PairsConfig(length_penalty=setting.penalty if arm == "concise" else 0.0),
        **recipe,
        backend=BACKEND,
        on_hold="continue" if arm == "gated" else "follow",
        seed=ready.seed,
    )


def run_arm(arm: Arm, ready: Ready) -> dict[str, Any]:
    """What the arm found, as JSON: a row for π0 and each candidate, and which checkpoint it ships."""
    path, began = ready.home / f"{arm}.json", time.perf_counter()
    if path.exists():
        kept: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return kept
    setting, home = ready.setting, ready.home / arm
    borrow(ready.home / "online" / "loops" / "online", home / "loops" / arm)
    with Store(f"sqlite:///{home}/store.db") as store:
        store.register(ready.sft, alias="sft")
        config = loop_of(arm, ready)
        line = Line(
            config,
            store,
            gate_policy(setting),
            scoring=lambda: reward_scoring(ready.reward, "reward"),
            measure=partial(measured, suite("validation", setting, ready.seed, ready.validation), store),
            home=home,
            prompts=[sample(setting, "online", prompt) for prompt in ready.online],
            preferences=ready.labelled,
        )
        rows = [tested(ready, ready.sft, store)]
        for done in iterate(line):
            rows.append({**about(done), **tested(ready, done.candidate, store)})
            say(ready.seed, arm, rows[-1])
        champion = store.champion()
        assert champion is not None
        shipped = champion.checkpoint if arm == "gated" else rows[-1]["checkpoint"]
    found = {"arm": arm, "seed": ready.seed, "shipped": shipped, "rows": rows, "seconds": time.perf_counter() - began}
    write(path, json.dumps(found))
    return found


def borrow(there: Path, here: Path) -> None:
    """Copy what stages another arm made: each is named by the digest of all that went into it, so that one of the same
    name is what this arm would make, and the others are not looked at."""
    here.mkdir(parents=True, exist_ok=True)
    if there == here or not there.is_dir():
        return
    made = ("answers-*", "rewards-*", "pairs-*", "candidate-*")
    for path in (path for pattern in made for path in there.glob(f"iteration-*/{pattern}")):
        copy = here / path.relative_to(there)
        if copy.exists() or path.name.endswith(".work"):
            continue
        draft = copy.with_name(copy.name + ".draft")
        copy.parent.mkdir(exist_ok=True)
        if path.is_dir():
            shutil.copytree(path, draft, dirs_exist_ok=True)
        else:
            shutil.copy(path, draft)
        draft.replace(copy)


def measured(asked: Suite, store: Store, checkpoint: Checkpoint) -> Report:
    """The checkpoint's run on a suite."""
    return evaluate(asked, HFEngine(checkpoint, name=checkpoint.digest[:12]), protocol=PROTOCOL, store=store)


def about(done: Iteration) -> dict[str, Any]:
    """What the loop says of an iteration."""
    return {
        "iteration": done.number,
        "from": done.policy.digest,
        "pairs": done.pairs,
        "dropped": dict(done.dropped),
        "outcome": done.verdict.outcome,
        "champion": done.champion.digest,
        "validation": [report.estimates[0].mean for report in (done.champion_report, done.candidate_report)],
    }


def tested(ready: Ready, checkpoint: Checkpoint, store: Store) -> dict[str, Any]:
    """The checkpoint on the test prompts: gold of each, and the means of all else."""
    report = measured(suite("test", ready.setting, ready.seed, ready.test), store, checkpoint)
    if checkpoint.digest != ready.sft.digest:
        policy, reference = (HFEngine(each, name=each.digest[:12]) for each in (checkpoint, ready.sft))
        report = annotate(report.run_id, store, policy=policy, reference=reference)
    records = store.records(report.run_id)
    said = {record.sample.reference: record.completions[0].text for record in records}
    readings = [asdict(world.read(prompt, text)) for prompt, text in said.items()]
    return {
        "checkpoint": checkpoint.digest,
        "gold": {record.sample.reference: record.score.value for record in records},
        "proxy": fmean(rewards(ready.reward, list(said.items()))),
        "words": fmean(len(text.split()) for text in said.values()),
        "characters": fmean(map(len, said.values())),
        "kl": fmean(record.score.also.get(KL, 0.0) for record in records),
        "reading": {key: fmean(each[key] for each in readings) for key in readings[0]},
        "example": list(next(iter(said.items()))),
    }


def say(seed: int, arm: Arm, row: Mapping[str, Any]) -> None:
    """One line of progress."""
    print(
        f"seed {seed} {arm:>9} {row['iteration']}: gold {fmean(row['gold'].values()):.3f} proxy {row['proxy']:+.2f} "
        f"words {row['words']:.1f} kl {row['kl']:.1f} {row['outcome']}",
        flush=True,
    )
