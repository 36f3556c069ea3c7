"""How a run is asked and measured: by `run`, again by `runs resume`, and by the loop."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from rlhf_bench.cli import lookup, question, scorers
from rlhf_bench.harness.errors import UserError

if TYPE_CHECKING:
    from rlhf_bench.harness.engines import Engine
    from rlhf_bench.harness.engines.pace import Limits
    from rlhf_bench.harness.prices import Budget
    from rlhf_bench.harness.progress import Track
    from rlhf_bench.harness.store import Run, Store
    from rlhf_bench.harness.types import EvalProtocol, Report, Suite
    from rlhf_bench.trainers.online import LoopConfig


@dataclass(frozen=True, slots=True)
class Asked:
    """What a run asks and how, as `rlhf-bench run` takes it; kept with the run, which it starts again.

    With `sequential`, the kind of a design, it ends as soon as `policy` is decided against the run `against`.

    `suite` names suites, benchmarks and lm-eval tasks; `include_path` holds folders of task files of the user's own.
    The fields that are None leave to the protocol what it says. `engine` is kept as it was decided, never as "auto", so
    that a run goes on with the engine that it began with.
    """

    suite: str
    include_path: tuple[str, ...] = ()
    protocol: str = "paper"
    num_fewshot: int | None = None
    apply_chat_template: bool | None = None
    fewshot_as_multiturn: bool | None = None
    system_instruction: str | None = None
    repeats: int | None = None
    temperature: float | None = None
    sample_seed: int | None = None
    judge_spec: str = lookup.DEMO_JUDGE
    judge_prompt: str = scorers.WEIGHTED
    limit: int | None = None
    engine: str = "auto"
    dtype: str = "auto"
    device: str = "auto"
    concurrency: int | None = None
    budget: str | None = None
    against: str | None = None
    policy: str | None = None
    sequential: str | None = None


def asked_of(asked: Asked) -> tuple[Suite, EvalProtocol]:
    """What is asked, and how."""
    chosen = lookup.suite(asked.suite, asked.include_path)
    return chosen, protocol(asked, chosen)


def protocol(asked: Asked, chosen: Suite) -> EvalProtocol:
    """The named protocol, or one derived from it where the run is asked otherwise. Raises UnknownName."""
    from rlhf_bench import suites
    from rlhf_bench.suites.protocols import derive

    return derive(
        suites.protocol(asked.protocol),
        shots=asked.num_fewshot,
        chat_template=asked.apply_chat_template,
        fewshot_as_multiturn=asked.fewshot_as_multiturn,
        system_prompt=asked.system_instruction,
        repeats=asked.repeats,
        temperature=asked.temperature,
        sampling_seed=asked.sample_seed,
        benchmarks=[each.name for each in chosen.benchmarks],
    )


def bounds(asked: Asked) -> tuple[Limits | None, Budget | None]:
    """How fast an API is asked, and for how much. Raises UserError for a budget that is no amount."""
    from rlhf_bench.harness.engines.pace import Limits
    from rlhf_bench.harness.prices import Budget, dollars

    limits = None if asked.concurrency is None else Limits(concurrency=asked.concurrency)
    return limits, None if asked.budget is None else Budget(dollars(asked.budget))


def asked_before(run: Run) -> Asked:
    """How this run was asked; by the hf engine where it is from before there was another."""
    settings = {"engine": "hf"} | {name: value for name, value in run.settings.items() if name != "model"}
    return Asked(**settings | {"include_path": tuple(settings.get("include_path", ()))})


def loop_asked(config: LoopConfig) -> Asked:
    """How a loop evaluates."""
    return Asked(
        config.suite,
        protocol=config.protocol,
        judge_spec=config.judge,
        limit=config.limit,
        engine=config.answers.engine,
        dtype=config.answers.dtype,
    )


def measure(model: str, asked: Asked, store: Store, track: Track, *, partial: bool = True) -> Report:
    """Evaluate `model`. What can be wrong is found before a judge is trained or a model is loaded.

    Unless `partial`, raises Outage where a language model as judge failed on something that it may say the next time.
    """
    from rlhf_bench.harness.models import engine_here
    from rlhf_bench.harness.run import evaluate
    from rlhf_bench.suites import data

    limits, budget = bounds(asked)
    chosen, regime = asked_of(asked)
    until = None if asked.sequential is None else question.stopping(asked, store)
    asked = replace(asked, engine=engine_here(asked.engine, asked.device))
    engine = engine_of(model, asked, store, track, limits=limits, budget=budget)
    needs = list(dict.fromkeys(need for each in chosen.benchmarks for need in each.needs))
    data.fetch(needs, track)
    judged = [each.name for each in chosen.benchmarks if each.judged]
    options: Any = {"limits": limits, "budget": budget, "prompt": asked.judge_prompt, "partial": partial}
    with closing(engine):
        return evaluate(
            chosen,
            engine,
            protocol=regime,
            store=store,
            judge=scorers.judge(asked.judge_spec, store, track, **options) if judged else None,
            limit=asked.limit,
            settings={"model": _named(model, store)} | asdict(asked),
            manifest_extra={"data": data.digests(needs), "judged": judged},
            until=until,
            track=track,
        )


def measure_again(run: Run, store: Store, track: Track) -> Report:
    """Go on with a run, with the settings that it was started with, on the checkpoint that it was started on."""
    if not run.settings:
        raise UserError(f"run {run.id} was not started by `rlhf-bench run`: start it again where it was started")
    model, registered = run.settings["model"], store.checkpoint(run.checkpoint)
    if registered is not None and not model.startswith(("scripted:", "openai:", "outputs:")):
        model = lookup.name_of(registered, store)
    return measure(model, asked_before(run), store, track)


def engine_of(model: str, asked: Asked, store: Store, track: Track, **limits: Any) -> Engine:
    """The engine that answers. `limits` are open_engine's options for an API."""
    from rlhf_bench.harness.models import open_engine

    def references() -> dict[str, str]:
        from rlhf_bench.harness.repeats import sampled

        chosen, regime = asked_of(asked)
        return {
            sample.id: sample.reference
            for each in chosen.benchmarks
            for sample in sampled(each.load(regime), regime, each.name)
        }

    return open_engine(
        _named(model, store),
        store,
        engine=asked.engine,
        dtype=asked.dtype,
        device=asked.device,
        references=references,
        track=track,
        **limits,
    )


@contextmanager
def closing(engine: Engine) -> Iterator[None]:
    """Gives the engine's memory back afterwards, where it holds any."""
    from rlhf_bench.harness.engines import Closes

    try:
        yield
    finally:
        if isinstance(engine, Closes):
            engine.close()


def _named(model: str, store: Store) -> str:
    """The model, where it is called the champion by the name that it keeps."""
    champion = store.champion()
    if model == "champion" and champion is not None:
        return lookup.name_of(lookup.find_checkpoint(store, champion.checkpoint), store)
    return model
