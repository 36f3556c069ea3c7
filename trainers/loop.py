"""The online loop: the paper's Algorithm 2 and its last line, "output the best policy by a validation set".

    prompts ─► answers ─► rewards ─► pairs ─► DPO ─► candidate ─► measure ─► gate ─► promote, or keep the champion

Paper: "RLHF Workflow: From Reward Modeling to Online RLHF" (arXiv 2405.07863), Algorithm 2. An equal share of the n
answers is sampled at each temperature; best against worst by the reward model become a pair; DPO trains on this
iteration's pairs from the current champion, with the initial policy as reference. The paper's code moved the reference
to the previous iterate; `reference: previous` does that.
Left out: the offline data D_off of iteration 1 (the authors trained without it too).

Every stage writes one file or folder named by the digest of its inputs, so the same inputs are never worked on twice;
inside a stage, answers, rewards, grades and training steps are kept as they finish. A killed loop therefore goes on
where it was, to the same result.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator

from rlhf_bench.harness.checkpoint import verify
from rlhf_bench.harness.claims import NO_FIGURES, Figures, RunData
from rlhf_bench.harness.codec import digest, plain, request_key
from rlhf_bench.harness.config import Config
from rlhf_bench.harness.decide import decide
from rlhf_bench.harness.errors import Fault, UserError
from rlhf_bench.harness.files import only_one, write
from rlhf_bench.harness.judges.reward import RewardModel
from rlhf_bench.harness.models import open_engine, resolve
from rlhf_bench.harness.policy import Policy
from rlhf_bench.harness.progress import Track, silent
from rlhf_bench.harness.promote import promote
from rlhf_bench.harness.store import Store
from rlhf_bench.harness.types import (
    Checkpoint,
    Completion,
    Message,
    Preference,
    Report,
    Request,
    Sample,
    Sampling,
    Verdict,
)
from rlhf_bench.trainers.backends import get_backend
from rlhf_bench.trainers.preferences import conversation, select_pairs
from rlhf_bench.trainers.recipes import DPORecipe


class AnswersConfig(Config):
    """How the policy answers: n answers a prompt, an equal share at each temperature (paper: 8, at 1.0 and 0.7)."""

    n: int = Field(8, ge=2)
    temperatures: tuple[float, ...] = Field((1.0, 0.7), min_length=1)
    top_p: float = Field(1.0, gt=0, le=1)
    max_tokens: int = Field(2048, ge=1)
    dtype: str = "auto"

    @model_validator(mode="after")
    def _shares_are_equal(self) -> AnswersConfig:
        if self.n % len(self.temperatures):
            raise ValueError(f"n is {self.n}: it must be a multiple of the {len(self.temperatures)} temperatures")
        return self


class PairsConfig(Config):
    """How answers become pairs: `length_penalty` λ in r − λ·characters (paper's concise variant: 0.001).

    Answers cut at the token limit take no part; with `cut_may_lose` one may be the rejected answer, never the chosen.
    """

    length_penalty: float = Field(0.0, ge=0)
    min_margin: float = Field(0.0, ge=0)
    cut_may_lose: bool = False


class LoopConfig(Config):
    """One online run. The defaults are the paper's (three iterations of 20,000 prompts)."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    model: str = "champion"
    reward: str = "demo-reward"
    prompts: str = "demo"
    prompts_per_iteration: int = Field(20_000, ge=1)
    iterations: int = Field(3, ge=1)
    answers: AnswersConfig = AnswersConfig()
    pairs: PairsConfig = PairsConfig()
    dpo: DPORecipe = DPORecipe()
    reference: Literal["initial", "previous"] = "initial"
    backend: str = "trl"
    suite: str = "demo"
    protocol: str = "paper"
    judge: str = "demo-reward"
    limit: int | None = Field(None, ge=1)
    policy: str = "demo"
    on_hold: Literal["stop", "continue"] = "continue"
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Iteration:
    """What one iteration did. `dropped` counts the answers and prompts that took no part, by reason."""

    number: int
    champion: Checkpoint
    candidate: Checkpoint
    pairs: int
    dropped: Mapping[str, int]
    champion_report: Report
    candidate_report: Report
    verdict: Verdict
    verdict_id: int
    folder: str


@dataclass(frozen=True, slots=True)
class _Line:
    """What all iterations of one loop share."""

    config: LoopConfig
    store: Store
    policy: Policy
    start: Checkpoint
    reward: Checkpoint
    measure: Callable[[Checkpoint], Report]
    work: Path
    track: Track
    figures: Figures

    def read(self, report: Report) -> RunData:
        """The run of a report, as the gate reads it."""
        return RunData.load(self.store, report.run_id, self.figures)


def iterate(
    config: LoopConfig,
    *,
    store: Store,
    prompts: Sequence[Sample],
    reward: Callable[[], Checkpoint],
    measure: Callable[[Checkpoint], Report],
    policy: Policy,
    home: Path,
    track: Track = silent,
    figures: Figures = NO_FIGURES,
) -> Iterator[Iteration]:
    """Yield each iteration as it is decided; the champion of the store is moved only by a promote verdict.

    `prompts` are the pool, `reward` gives the reward model's checkpoint, `measure` evaluates a checkpoint on the
    policy's suites; `figures` are those metrics of them that are no means. The iterations share the policy's alpha as
    its ledger says. Raises UserError where the config contradicts
    what is there, before any long work, and Fault where a stage fails.
    """
    get_backend(config.backend)
    work = home / "loops" / config.name
    with only_one(work, "running this loop"):
        batches = _batches(prompts, config)
        start = _begin(work, config, policy, store, track)
        line = _Line(config, store, policy, start, reward(), measure, work, track, figures)
        champion = start
        for number, batch in enumerate(batches, start=1):
            iteration = _iteration(line, number, batch, champion)
            yield iteration
            if iteration.verdict.outcome == "promote":
                champion = iteration.candidate
            elif config.on_hold == "stop":
                return


def _iteration(line: _Line, number: int, batch: Sequence[Sample], champion: Checkpoint) -> Iteration:
    config, store, track = line.config, line.store, line.track
    folder = line.work / f"iteration-{number}"
    reference = line.start if config.reference == "initial" else champion
    rows = answers_stage(folder, batch, champion, config, number, store, track)
    scored = rewards_stage(folder, rows, line.reward, store, track)
    pairs, dropped = pairs_stage(folder, scored, config.pairs)
    candidate = train_stage(folder, pairs, champion, reference, config, track)
    alias = f"{config.name}-{number}"
    free = store.aliases().get(alias) in (None, candidate.digest)
    store.register(candidate, alias=alias if free else None)
    before, after, initial = line.measure(champion), line.measure(candidate), line.measure(_anchor(line))
    decided = decide(store, line.policy, *(line.read(report) for report in (after, before, initial)))
    if decided.verdict.outcome == "promote" and decided.id not in {each.verdict_id for each in store.history()}:
        promote(store, decided.id)
    return Iteration(
        number, champion, candidate, len(pairs), dropped, before, after, decided.verdict, decided.id, str(folder)
    )


def _anchor(line: _Line) -> Checkpoint:
    """What guards hold against beside the champion: the first champion that there was."""
    first = line.store.checkpoint(line.store.history()[0].checkpoint)
    return line.start if first is None else first


def answers_stage(
    folder: Path,
    batch: Sequence[Sample],
    policy: Checkpoint,
    config: LoopConfig,
    number: int,
    store: Store,
    track: Track,
) -> list[dict[str, Any]]:
    """n answers to each prompt. Rows: {sample_id, prompt, responses, finish_reasons}."""
    requests = [request for sample in batch for request in answer_requests(sample, config, number)]
    key = digest([policy.digest, [plain(request) for request in requests], config.answers.dtype])

    def make() -> list[dict[str, Any]]:
        engine = open_engine(policy.path, store, dtype=config.answers.dtype, track=track)
        keys = {(r.sample_id, r.index): request_key(engine.identity, r) for r in requests}
        known = store.completions(keys.values())
        missing = [r for r in requests if keys[r.sample_id, r.index] not in known]
        with track(f"iteration {number}: answers", len(requests)) as advance:
            advance(len(requests) - len(missing))
            for completion in engine.generate(missing):
                if completion.finish_reason == "error":
                    raise Fault(f"the policy could not answer '{completion.sample_id}': {completion.why}")
                known_key = keys[completion.sample_id, completion.index]
                known[known_key] = completion
                store.save_completions({known_key: completion})
                advance(1)
        return [_answered(sample, [known[keys[sample.id, i]] for i in range(config.answers.n)]) for sample in batch]

    return _stage(folder, "answers", key, make)


def answer_requests(sample: Sample, config: LoopConfig, number: int) -> list[Request]:
    """The n requests of one prompt; each has a seed of its own, so that an answer does not hang on its batch."""
    answers = config.answers
    share = answers.n // len(answers.temperatures)
    return [
        Request(
            sample.id,
            sample.prompt,
            Sampling(
                max_tokens=answers.max_tokens,
                temperature=answers.temperatures[index // share],
                top_p=answers.top_p,
                seed=int(digest([config.seed, number, sample.id, index])[:8], 16),
            ),
            index=index,
        )
        for index in range(answers.n)
    ]


def _answered(sample: Sample, completions: Sequence[Completion]) -> dict[str, Any]:
    return {
        "sample_id": sample.id,
        "prompt": [{"role": turn.role, "content": turn.content} for turn in conversation(sample)],
        "responses": [completion.text for completion in completions],
        "finish_reasons": [completion.finish_reason for completion in completions],
    }


def rewards_stage(
    folder: Path, rows: list[dict[str, Any]], reward: Checkpoint, store: Store, track: Track
) -> list[dict[str, Any]]:
    """The reward of every answer. Rows: those of the answers with `rewards`, None where one could not be scored."""

    def make() -> list[dict[str, Any]]:
        model = RewardModel(reward, name="reward")
        items = [(_turns(row), response) for row in rows for response in row["responses"]]
        keys = [digest([model.identity, plain(prompt), response]) for prompt, response in items]
        known = store.rewards(keys)
        missing = sorted({key: i for i, key in enumerate(keys) if key not in known}.values())
        with track("rewards", len(items)) as advance:
            advance(len(items) - len(missing))
            for first in range(0, len(missing), 32):
                chunk = missing[first : first + 32]
                values = model.rewards([items[i] for i in chunk])
                found = {keys[i]: value for i, value in zip(chunk, values, strict=True) if value is not None}
                store.save_rewards(found)
                known.update(found)
                advance(len(chunk))
        values_left = iter(known.get(key) for key in keys)
        return [row | {"rewards": [next(values_left) for _ in row["responses"]]} for row in rows]

    return _stage(folder, "rewards", digest([rows, reward.digest]), make)


def pairs_stage(
    folder: Path, rows: list[dict[str, Any]], config: PairsConfig
) -> tuple[list[Preference], Mapping[str, int]]:
    """Best against worst. Raises UserError with the rewards' range where no prompt gives a pair."""
    pairs, dropped = select_pairs(rows, **config.model_dump())
    if not pairs:
        rewards = [value for row in rows for value in row["rewards"] if value is not None]
        span = f"{min(rewards):.3f} to {max(rewards):.3f}" if rewards else "none given"
        reasons = ", ".join(f"{count} {reason}" for reason, count in dropped.items()) or "no prompts"
        raise UserError(f"no prompt gave a pair ({reasons}; rewards {span}): raise answers.n or answers.max_tokens")
    _stage(folder, "pairs", digest([rows, plain(config)]), lambda: [plain(pair) for pair in pairs])
    return pairs, dropped


def train_stage(
    folder: Path,
    pairs: Sequence[Preference],
    policy: Checkpoint,
    reference: Checkpoint,
    config: LoopConfig,
    track: Track,
) -> Checkpoint:
    """DPO on the pairs; the candidate's folder is named by policy, reference, recipe and pairs."""
    key = digest([policy.digest, reference.digest, plain(config.dpo), [plain(pair) for pair in pairs], config.backend])
    out = folder / f"candidate-{key[:12]}"
    candidate = get_backend(config.backend).train_dpo(config.dpo, pairs, policy, reference, out, track)
    if candidate.digest == policy.digest:
        raise Fault(f"training left the weights as they were ({out}): raise dpo.learning_rate, or dpo.epochs")
    return candidate


def _turns(row: Mapping[str, Any]) -> tuple[Message, ...]:
    return tuple(Message(turn["role"], turn["content"]) for turn in row["prompt"])


def _batches(prompts: Sequence[Sample], config: LoopConfig) -> list[Sequence[Sample]]:
    """Disjoint batches of prompts, one an iteration, in an order that the seed fixes."""
    need = config.iterations * config.prompts_per_iteration
    if need > len(prompts):
        raise UserError(
            f"{config.iterations} iterations of {config.prompts_per_iteration} prompts need {need}, "
            f"'{config.prompts}' has {len(prompts)}: lower prompts_per_iteration or iterations"
        )
    for sample in prompts:
        if not any(turn.role == "user" for turn in conversation(sample)):
            raise UserError(f"prompt '{sample.id}' has no user turn")
    order = random.Random(config.seed).sample(list(prompts), len(prompts))  # all: more iterations move no prompt
    size = config.prompts_per_iteration
    return [order[i * size : (i + 1) * size] for i in range(config.iterations)]


def _begin(work: Path, config: LoopConfig, policy: Policy, store: Store, track: Track) -> Checkpoint:
    """The policy this loop starts from, fixed with its settings at the first start.

    A resumed loop replays the same line; margins cannot be changed after a verdict was seen. Only the number of
    iterations may grow. Raises UserError where something else differs, or where the start is not the champion.
    """
    marker = work / "start.json"
    settings = config.model_dump(mode="json", exclude_defaults=True, exclude={"iterations"})
    fixed = {**settings, "policy digest": policy.digest}
    if marker.exists():
        begun = json.loads(marker.read_text(encoding="utf-8"))
        before = begun["settings"]
        changed = sorted(key for key in fixed.keys() | before.keys() if fixed.get(key) != before.get(key))
        if changed:
            raise UserError(
                f"loop '{config.name}' was begun with another {', '.join(changed)}: give the changed loop another name"
            )
        start = store.checkpoint(begun["digest"])
        if start is None:
            raise UserError(f"loop '{config.name}' began from {begun['digest'][:12]}, which this store does not have")
        verify(start)
        return start
    start = resolve(config.model, store, track)
    champion = store.champion()
    if champion is None:
        store.set_champion(start.digest, expect_generation=0, verdict_id=None, reason=f"start of loop {config.name}")
    elif champion.checkpoint != start.digest:
        raise UserError(
            f"the champion is {champion.checkpoint[:12]}, the config's model is {start.digest[:12]}: "
            f"set 'model: champion', or another RLHF_BENCH_HOME for a separate line"
        )
    write(marker, json.dumps({"digest": start.digest, "settings": fixed}))
    return start


def _stage(folder: Path, name: str, key: str, make: Callable[[], Iterable[Any]]) -> list[Any]:
    """The rows of a stage: read if this key was made before, else made and written in one rename."""
    path = folder / f"{name}-{key[:12]}.jsonl"
    if not path.exists():
        write(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in make()))
    with path.open(encoding="utf-8") as file:
        return [json.loads(line) for line in file]
