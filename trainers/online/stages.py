"""The stages of an iteration. Each writes one file or folder named by the digest of its inputs, and is not done twice.

    answers-KEY.jsonl    {sample_id, prompt, responses, finish_reasons}
    rewards-KEY.jsonl    the same with `rewards`, None where an answer has none
    pairs-KEY.jsonl      preferences, or for best-of-n conversations
    candidate-KEY/       the checkpoint

Inside a stage answers, rewards, rankings and training steps are kept as they finish, so that a killed one goes on.
"""

from __future__ import annotations

import json
import math
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from textwrap import shorten
from typing import Any, TypeVar

from rlhf_bench.harness.codec import digest, plain
from rlhf_bench.harness.engines import outgrown
from rlhf_bench.harness.engines.stored import stored_or_asked
from rlhf_bench.harness.errors import Fault, Outage, UserError
from rlhf_bench.harness.files import write
from rlhf_bench.harness.models import open_engine
from rlhf_bench.harness.progress import Track, silent
from rlhf_bench.harness.store import Store
from rlhf_bench.harness.types import Checkpoint, Completion, Message, Preference, Request, Sample, Sampling
from rlhf_bench.trainers.backends import get_backend
from rlhf_bench.trainers.chat import tokenizer_at
from rlhf_bench.trainers.online.config import LoopConfig, Stage
from rlhf_bench.trainers.online.pool import readable
from rlhf_bench.trainers.online.scoring import Row, Scoring, freed, scored, turns
from rlhf_bench.trainers.preferences import conversation, select_best, select_pairs

T = TypeVar("T")
BARS = "▁▂▃▄▅▆▇█"
FILES: Mapping[Stage, str] = {
    "answers": "answers",
    "score": "rewards",
    "pair": "pairs",
    "train": "candidate",
    "measure": "measured",
}
"""How the names of what a stage makes begin."""
FIELDS: Mapping[Stage, set[str]] = {
    "answers": {"sample_id", "prompt", "responses", "finish_reasons"},
    "score": {"prompt", "responses", "finish_reasons", "rewards"},
    "measure": {"checkpoint", "run"},
}
"""What a row of a stage holds at least."""
FIRST_WAIT_S, LONGEST_WAIT_S = 1.0, 60.0
"""How long an endpoint that does not answer is left alone; each time twice as long."""


@dataclass(frozen=True, slots=True)
class Task:
    """What an iteration works on: its number, prompts (or given pairs), policies and settings, and where it writes.

    `name` is what its candidate is called, `policy` what it improves, `reference` what DPO holds it to, `explore` who
    answers, by `engine`; `config` is the loop's as a retry may have changed it. `elsewhere` does a stage in another
    process, if the settings say so, and says whether. A stage that is not there yet is made within `doing`.
    """

    number: int
    name: str
    config: LoopConfig
    policy: Checkpoint
    reference: Checkpoint
    explore: Sequence[Checkpoint]
    prompts: Sequence[Sample]
    given: Sequence[Preference]
    engine: str
    folder: Path
    elsewhere: Callable[[Stage], bool] = lambda stage: False
    doing: Callable[[Stage], AbstractContextManager[None]] = lambda stage: nullcontext()


@dataclass(frozen=True, slots=True)
class Learned:
    """What is trained on: pairs, or for best-of-n the pair's best answer alone. `dropped` counts the rest by reason."""

    pairs: Sequence[Preference]
    best: Sequence[Row]
    dropped: Mapping[str, int]

    def __len__(self) -> int:
        return len(self.pairs) or len(self.best)


def answers_stage(task: Task, store: Store, track: Track) -> list[Row]:
    """n answers to each prompt, an equal share by each of `explore`.

    Those to a prompt that a policy's context does not hold are "error" and take no part; any other failure is a Fault.
    """
    answers = task.config.answers
    asked = [request for sample in task.prompts for request in answer_requests(sample, task.config, task.number)]
    share = answers.n // len(task.explore)
    who = [each.digest for each in task.explore]
    key = digest([who, [plain(request) for request in asked], task.engine, answers.dtype])
    options: Any = {"engine": task.engine, "dtype": answers.dtype}

    def make() -> list[Row]:
        known: dict[tuple[str, int], Completion] = {}
        with track("answers", len(asked)) as advance:
            for place, policy in enumerate(task.explore):
                theirs = [request for request in asked if request.index // share == place]
                with freed(open_engine(policy.path, store, track=track, **options)) as engine:
                    for request, completion in stored_or_asked(theirs, engine, store):
                        if completion.finish_reason == "error" and not outgrown(completion):
                            raise Fault(f"the policy could not answer '{request.sample_id}': {completion.why}")
                        known[request.sample_id, request.index] = completion
                        advance(1)
        return [_answered(sample, [known[sample.id, i] for i in range(answers.n)]) for sample in task.prompts]

    return stage(task, "answers", key, make, track)


def answer_requests(sample: Sample, config: LoopConfig, number: int) -> list[Request]:
    """The n requests of one prompt; each has a seed of its own, so that an answer does not hang on its batch."""
    answers = config.answers
    share = answers.n // len(answers.policies) // len(answers.temperatures)
    return [
        Request(
            sample.id,
            sample.prompt,
            Sampling(
                max_tokens=answers.max_tokens,
                temperature=answers.temperatures[index // share % len(answers.temperatures)],
                top_p=answers.top_p,
                seed=int(digest([config.seed, number, sample.id, index])[:8], 16),
            ),
            index=index,
        )
        for index in range(answers.n)
    ]


def _answered(sample: Sample, completions: Sequence[Completion]) -> Row:
    return {
        "sample_id": sample.id,
        "prompt": [plain(turn) for turn in conversation(sample)],
        "responses": [completion.text for completion in completions],
        "finish_reasons": [completion.finish_reason for completion in completions],
    }


def rewards_stage(task: Task, rows: list[Row], scoring: Scoring, store: Store, track: Track) -> list[Row]:
    """The rows with the reward of every answer."""
    cut_may_lose = task.config.pairs.cut_may_lose
    key = digest([rows, scoring.identity, cut_may_lose if scoring.compares else None])
    partial = task.config.partial

    def make() -> list[Row]:
        return scored(rows, scoring, store, track, cut_may_lose=cut_may_lose, partial=partial)

    return stage(task, "score", key, make, track)


def pairs_stage(task: Task, rows: list[Row]) -> Learned:
    """Best against worst, or the best alone. Raises UserError with the rewards' histogram where nothing comes of it."""
    config = task.config
    fit, unread = readable(rows, tokenizer_at(Path(task.policy.path))) if rows else ([], {})
    if config.preferences is not None:
        learned = Learned(task.given, (), {})
    elif config.method == "sft":
        best, dropped = select_best(fit, config.pairs.length_penalty)
        learned = Learned((), best, {**unread, **dropped})
    else:
        pairs, dropped = select_pairs(fit, **config.pairs.model_dump())
        learned = Learned(pairs, (), {**unread, **dropped})
    if not len(learned):
        reasons = ", ".join(f"{count} {reason}" for reason, count in learned.dropped.items()) or "no prompts"
        raise UserError(
            f"no prompt gave a pair ({reasons}; rewards {histogram(rows)}): raise answers.n or answers.max_tokens, or "
            "look at the reward model"
        )
    made = [*map(plain, learned.pairs), *learned.best]
    stage(task, "pair", digest([rows, made, plain(config.pairs), config.method]), lambda: made)
    return learned


def histogram(rows: Sequence[Row], bins: int = 8) -> str:
    """How the rewards lie, as a line: least, counts as bars, most."""
    rewards = sorted(value for row in rows for value in row["rewards"] if value is not None)
    if not rewards:
        return "none given"
    low, high = rewards[0], rewards[-1]
    if low == high:
        return f"all {low:.3f}"
    counts = Counter(min(bins - 1, int((value - low) / (high - low) * bins)) for value in rewards)
    most = max(counts.values())
    bars = "".join(BARS[round(counts[place] / most * (len(BARS) - 1))] for place in range(bins))
    return f"{low:.3f} {bars} {high:.3f}"


def train_stage(task: Task, learned: Learned, track: Track) -> Checkpoint:
    """The candidate, from what was learned; its folder is named by policy, reference, recipe and data.

    Raises Fault where its weights are those that it began from.
    """
    config, backend = task.config, get_backend(task.config.backend)
    made = [*map(plain, learned.pairs), *learned.best]
    recipe = config.dpo if config.method == "dpo" else config.sft
    against = task.reference.digest if config.method == "dpo" else config.method
    out = task.folder / f"candidate-{digest([task.policy.digest, against, plain(recipe), made, config.backend])[:12]}"
    with nullcontext() if out.exists() else task.doing("train"):
        if not out.exists() and task.elsewhere("train") and not out.exists():
            raise Fault(f"the process of stage 'train' left no {out}: it needs the same settings and storage")
        if config.method == "dpo":
            candidate = backend.train_dpo(config.dpo, learned.pairs, task.policy, task.reference, out, track)
        else:
            talks = [
                (*turns(row), Message("assistant", row["response"]))
                for row in [*learned.best, *map(_chosen, learned.pairs)]
            ]
            candidate = backend.train_sft(config.sft, talks, task.policy, out, track)
    if candidate.digest == task.policy.digest:
        raise Fault(f"training left the weights as they were ({out}): raise {config.method}.learning_rate, or epochs")
    return candidate


def _chosen(pair: Preference) -> Row:
    return {"prompt": [plain(turn) for turn in pair.prompt], "response": pair.chosen}


def stage(task: Task, name: Stage, key: str, make: Callable[[], Iterable[Any]], track: Track = silent) -> list[Any]:
    """The rows of a stage: read if this key was made before, else made and written in one rename."""
    path = task.folder / f"{FILES[name]}-{key[:12]}.jsonl"
    if not path.exists():
        with task.doing(name):
            if not task.elsewhere(name):
                made = _patiently(make, task.config.patience_s, track)
                write(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in made))
    try:
        with path.open(encoding="utf-8") as file:
            rows = [json.loads(line) for line in file]
    except FileNotFoundError:
        raise Fault(f"the process of stage '{name}' left no {path}: it needs the same settings and storage") from None
    except ValueError:
        rows = [None]
    if not all(isinstance(row, dict) and row.keys() >= FIELDS.get(name, set()) for row in rows):
        raise Fault(f"{path} is not what stage '{name}' wrote: remove it, to have it made again")
    return rows


def _patiently(make: Callable[[], Iterable[T]], patience_s: float, track: Track) -> list[T]:
    """What `make` gives; it is called again while an endpoint does not answer. Raises Outage once patience is spent."""
    wait_s = FIRST_WAIT_S
    while True:
        try:
            return list(make())
        except Outage as error:
            if patience_s <= 0:
                raise
            wait_s = min(wait_s, patience_s)
            parts = math.ceil(wait_s)
            with track(f"waiting ({shorten(str(error), 80, placeholder='…')})", parts) as advance:
                for _ in range(parts):
                    time.sleep(wait_s / parts)
                    advance(1)
            patience_s, wait_s = patience_s - wait_s, min(2 * wait_s, LONGEST_WAIT_S)
