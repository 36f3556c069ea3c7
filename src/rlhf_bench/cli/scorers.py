"""Who judges: the names of reward models, preference models, language models, and replays to judges and scorers."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from rlhf_bench.cli import lookup
from rlhf_bench.harness.errors import UserError
from rlhf_bench.harness.files import user_path

if TYPE_CHECKING:
    from rlhf_bench.harness.engines import Engine
    from rlhf_bench.harness.engines.pace import Limits
    from rlhf_bench.harness.judges import Judge
    from rlhf_bench.harness.prices import Budget
    from rlhf_bench.harness.progress import Track
    from rlhf_bench.harness.store import Store
    from rlhf_bench.harness.types import Checkpoint, Conversation
    from rlhf_bench.trainers.online import Scoring

WEIGHTED = "weighted"


def reward_checkpoint(spec: str, store: Store, track: Track) -> Checkpoint:
    """The reward model of this name; the demo's own is trained at its first use."""
    from rlhf_bench.harness.models import resolve
    from rlhf_bench.harness.store import home

    if spec != lookup.DEMO_JUDGE:
        return resolve(spec, store, track)
    from rlhf_bench.trainers.reward import demo_reward

    return demo_reward(store, lookup.prompts(lookup.DEMO), home(), track)


def scoring(spec: str, store: Store, track: Track, prompts: Iterable[Conversation] = ()) -> Scoring:
    """Who says which of a prompt's answers are better: a reward model, or what compares two (pm:, openai:, llm:).

    Raises UserError where a reward model or a preference model cannot read such prompts with their answers.
    """
    from rlhf_bench.harness.codec import digest
    from rlhf_bench.harness.judges.reward import require_head
    from rlhf_bench.harness.models import resolve
    from rlhf_bench.trainers.chat import check_talks, tokenizer_at
    from rlhf_bench.trainers.chat.reading import check_reads
    from rlhf_bench.trainers.online import Scoring, reward_scoring
    from rlhf_bench.trainers.online.config import TOURNAMENTS

    kind, colon, name = spec.partition(":")
    if not colon or kind not in TOURNAMENTS:
        model = reward_checkpoint(spec, store, track)
        check_talks(model)
        require_head(model.path)
        check_reads(model, prompts)
        return reward_scoring(model, spec)
    known = digest([spec])
    if kind in ("pm", "llm"):
        model = resolve(name, store, track)
        check_talks(model)
        known = digest([kind, model.digest])
        if kind == "pm":  # it reads a prompt with two answers as one turn of the user's
            from rlhf_bench.harness.judges.preference import answer_tokens

            check_reads(model)
            answer_tokens(tokenizer_at(Path(model.path)))
    return Scoring(spec, known, compares=lambda: judge(spec, store, track))


def judge(
    spec: str,
    store: Store,
    track: Track,
    *,
    limits: Limits | None = None,
    budget: Budget | None = None,
    around: Callable[[Engine], Engine] | None = None,
    models: Store | None = None,
    prompt: str = WEIGHTED,
    partial: bool = True,
) -> Judge:
    """The judge of this name: `openai:MODEL[@URL]`, `llm:MODEL` (a local model), `replay:FILE`, `scripted:RULE`,
    `pm:MODEL` (a preference model), or a reward model. The first two are asked as AlpacaEval asks its judge; `limits`,
    `budget` and another `prompt` than the weighted one are for the first. Unless `partial`, they raise Outage where
    some judgments may come the next time.
    With `around`, for a dry run, their engine is what it makes of it, and no model that scores is loaded. Local models
    are looked up in `models`, by default `store`, where judgments are kept."""
    kind, _, name = spec.partition(":")
    if prompt != WEIGHTED and kind != "openai":
        raise UserError(f"--judge-prompt {prompt} is asked by a function call, so it needs --judge openai:MODEL[@URL]")
    if kind == "scripted":
        from rlhf_bench.harness.judges.replay import scripted_judge

        return scripted_judge(name)
    if kind == "replay":
        from rlhf_bench.harness.judges.replay import replay

        return replay(user_path(name))
    if kind in ("openai", "llm"):
        from rlhf_bench.harness.judges.llm import LLMJudge
        from rlhf_bench.harness.models import open_engine
        from rlhf_bench.suites.judge_prompts import alpaca_eval_prompt

        local, keyless = kind == "llm", around is not None
        spec = name if local else spec
        among = models or store
        engine = open_engine(  # a local judge's answers are log-likelihoods: hf's to compute
            spec, among, engine="hf", limits=limits, budget=budget, keyless=keyless, track=track
        )
        return LLMJudge(
            around(engine) if around else engine,
            store,
            alpaca_eval_prompt(prompt),
            scores=local,
            partial=partial,
            track=track,
        )
    if around is not None:
        from rlhf_bench.harness.dry import DryJudge

        return DryJudge(spec)
    from rlhf_bench.trainers.chat import tokenizer_at

    if kind == "pm":
        from rlhf_bench.harness.judges.preference import PreferenceModel
        from rlhf_bench.harness.models import resolve

        model = resolve(name, models or store, track)
        tokenizer_at(Path(model.path))  # says in one line what cannot be read
        return PreferenceModel(model, name=spec)
    from rlhf_bench.harness.judges.reward import RewardModel

    model = reward_checkpoint(spec, store, track)
    tokenizer_at(Path(model.path))
    return RewardModel(model, name=spec)
