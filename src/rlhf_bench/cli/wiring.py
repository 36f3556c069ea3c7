"""Names on the command line to the things they mean: the one place where the command line meets the libraries."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlhf_bench.harness.errors import UnknownName, UserError

if TYPE_CHECKING:
    from rlhf_bench.harness.claims import RunData
    from rlhf_bench.harness.engines import Engine
    from rlhf_bench.harness.engines.pace import Limits
    from rlhf_bench.harness.judges import Judge
    from rlhf_bench.harness.policy import Policy
    from rlhf_bench.harness.prices import Budget
    from rlhf_bench.harness.progress import Track
    from rlhf_bench.harness.sequential import Stopping
    from rlhf_bench.harness.store import Run, Store
    from rlhf_bench.harness.types import Checkpoint, Estimate, EvalProtocol, Report, Sample, Suite
    from rlhf_bench.trainers.online import LoopConfig, Scoring

DEMO = "demo"
DEMO_JUDGE = "demo-reward"
WEIGHTED = "weighted"
DEFAULT_MODEL = "smollm2-135m-instruct"
POLICIES = Path(__file__).parent / "policies"


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
    judge_spec: str = DEMO_JUDGE
    judge_prompt: str = WEIGHTED
    limit: int | None = None
    engine: str = "auto"
    dtype: str = "auto"
    device: str = "auto"
    concurrency: int | None = None
    budget: str | None = None
    against: str | None = None
    policy: str | None = None
    sequential: str | None = None


def open_store() -> Store:
    """The store that RLHF_BENCH_STORE or RLHF_BENCH_HOME names."""
    from rlhf_bench.harness.store import Store, default_store_url

    return Store(default_store_url())


def suite(names: str, include_path: Sequence[str] = ()) -> Suite:
    """The suites, benchmarks and lm-eval tasks of a comma-separated list. Raises UserError."""
    from rlhf_bench import suites

    folders = [Path(folder) for folder in include_path]
    for folder in folders:
        if not folder.is_dir():
            raise UserError(f"--include-path {folder} is no folder: give one that holds lm-eval task files (YAML)")
    return suites.suite(names, folders)


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


def lasting(spec: str) -> str:
    """The name of a model or judge, with the file in it named so that it is found from any folder."""
    kind, colon, file = spec.partition(":")
    return f"{kind}:{Path(file).expanduser().absolute()}" if kind in ("outputs", "replay") and colon else spec


def default_model(store: Store) -> str:
    """The champion, or the model that is built in while there is none."""
    return DEFAULT_MODEL if store.champion() is None else "champion"


def reward_checkpoint(spec: str, store: Store, track: Track) -> Checkpoint:
    """The reward model of this name; the demo's own is trained at its first use."""
    from rlhf_bench.harness.models import resolve
    from rlhf_bench.harness.store import home

    if spec != DEMO_JUDGE:
        return resolve(spec, store, track)
    from rlhf_bench.trainers.reward import demo_reward

    return demo_reward(store, prompts(DEMO), home(), track)


def scoring(spec: str, store: Store, track: Track) -> Scoring:
    """Who says which of a prompt's answers are better: a reward model, or what compares two (pm:, openai:, llm:)."""
    from rlhf_bench.harness.codec import digest
    from rlhf_bench.harness.judges.reward import require_head
    from rlhf_bench.harness.models import resolve
    from rlhf_bench.trainers.chat import check_talks
    from rlhf_bench.trainers.online import Scoring, reward_scoring
    from rlhf_bench.trainers.online.config import TOURNAMENTS

    kind, colon, name = spec.partition(":")
    if not colon or kind not in TOURNAMENTS:
        model = reward_checkpoint(spec, store, track)
        check_talks(model)
        require_head(model.path)
        return reward_scoring(model, spec)
    known = digest([kind, resolve(name, store, track).digest]) if kind in ("pm", "llm") else digest([spec])
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
) -> Judge:
    """The judge of this name: `openai:MODEL[@URL]`, `llm:MODEL` (a local model), `replay:FILE`, `scripted:RULE`,
    `pm:MODEL` (a preference model), or a reward model. The first two are asked as AlpacaEval asks its judge; `limits`,
    `budget` and another `prompt` than the weighted one are for the first.
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

        return replay(Path(name).expanduser())
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
            around(engine) if around else engine, store, alpaca_eval_prompt(prompt), scores=local, track=track
        )
    if around is not None:
        from rlhf_bench.harness.dry import DryJudge

        return DryJudge(spec)
    if kind == "pm":
        from rlhf_bench.harness.judges.preference import PreferenceModel
        from rlhf_bench.harness.models import resolve

        return PreferenceModel(resolve(name, models or store, track), name=spec)
    from rlhf_bench.harness.judges.reward import RewardModel

    return RewardModel(reward_checkpoint(spec, store, track), name=spec)


def measure(model: str, asked: Asked, store: Store, track: Track) -> Report:
    """Evaluate `model`. What can be wrong is found before a judge is trained or a model is loaded."""
    from rlhf_bench.harness.models import engine_here
    from rlhf_bench.harness.run import evaluate
    from rlhf_bench.suites import data

    limits, budget = bounds(asked)
    chosen, regime = asked_of(asked)
    asked = replace(asked, engine=engine_here(asked.engine, asked.device))
    engine = engine_of(model, asked, store, track, limits=limits, budget=budget)
    needs = list(dict.fromkeys(need for each in chosen.benchmarks for need in each.needs))
    data.fetch(needs, track)
    judged = [each.name for each in chosen.benchmarks if each.judged]
    with closing(engine):
        return evaluate(
            chosen,
            engine,
            protocol=regime,
            store=store,
            judge=judge(asked.judge_spec, store, track, limits=limits, budget=budget, prompt=asked.judge_prompt)
            if judged
            else None,
            limit=asked.limit,
            settings={"model": _named(model, store)} | asdict(asked),
            manifest_extra={"data": data.digests(needs), "judged": judged},
            until=None if asked.sequential is None else stopping(asked, store),
            track=track,
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


def stopping(asked: Asked, store: Store) -> Stopping:
    """What ends a run early: the gate that it is for, at the level that the ledger leaves. Raises UserError."""
    from rlhf_bench.cli.question import anchor_run
    from rlhf_bench.harness.decide import LEAST, items_of, next_level
    from rlhf_bench.harness.sequential import Stopping
    from rlhf_bench.harness.stats.sequential import Design

    against = find_run(store, asked.against or "champion")
    rules = default_policy(against) if asked.policy is None else policy(asked.policy)
    champion = run_data(store, against.id)
    anchor = run_data(store, anchor_run(store, None, against, against).id) if rules.against_anchor else None
    _, alpha = next_level(rules, [each.spent for each in store.decisions(items_of(rules, champion))])
    if alpha < LEAST:
        raise UserError(f"the alpha of policy '{rules.name}' is spent on these samples, so that no run can be decided")
    kind: Any = asked.sequential
    return Stopping(rules, champion, anchor, Design(kind, alpha=alpha), champion.figures)


def asked_of(asked: Asked) -> tuple[Suite, EvalProtocol]:
    """What is asked, and how."""
    chosen = suite(asked.suite, asked.include_path)
    return chosen, protocol(asked, chosen)


def bounds(asked: Asked) -> tuple[Limits | None, Budget | None]:
    """How fast an API is asked, and for how much. Raises UserError for a budget that is no amount."""
    from rlhf_bench.harness.engines.pace import Limits
    from rlhf_bench.harness.prices import Budget, dollars

    limits = None if asked.concurrency is None else Limits(concurrency=asked.concurrency)
    return limits, None if asked.budget is None else Budget(dollars(asked.budget))


def _named(model: str, store: Store) -> str:
    """The model, where it is called the champion by the name that it keeps."""
    champion = store.champion()
    if model == "champion" and champion is not None:
        return name_of(find_checkpoint(store, champion.checkpoint), store)
    return model


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


def measure_again(run: Run, store: Store, track: Track) -> Report:
    """Go on with a run, with the settings that it was started with, on the checkpoint that it was started on."""
    if not run.settings:
        raise UserError(f"run {run.id} was not started by `rlhf-bench run`: start it again where it was started")
    model, registered = run.settings["model"], store.checkpoint(run.checkpoint)
    if registered is not None and not model.startswith(("scripted:", "openai:", "outputs:")):
        model = name_of(registered, store)
    return measure(model, asked_before(run), store, track)


def asked_before(run: Run) -> Asked:
    """How this run was asked; by the hf engine where it is from before there was another."""
    settings = {"engine": "hf"} | {name: value for name, value in run.settings.items() if name != "model"}
    return Asked(**settings | {"include_path": tuple(settings.get("include_path", ()))})


def strata(store: Store, report: Report, benchmarks: Iterable[str]) -> dict[str, list[tuple[str, Estimate]]]:
    """By benchmark the scores of its parts. Raises UserError where none of the benchmarks has parts."""
    from rlhf_bench.harness.run import strata_of
    from rlhf_bench.suites.imported import recorded

    facts = report.manifest["benchmarks"]
    found = {name: strata_of(recorded(name, facts[name]), store.records(report.run_id, name)) for name in benchmarks}
    if not any(found.values()):
        raise UserError(f"no sample of {', '.join(found)} in run {report.run_id} says which part of it it belongs to")
    return {name: parts for name, parts in found.items() if parts}


def export(store: Store, run: Run, folder: Path, form: str = "lm-eval") -> tuple[list[Path], list[str]]:
    """Write the run as files of this form; gives them, and the benchmarks that have no place in it.

    Raises UserError where the run cannot be asked for its definitions again, or has nothing of lm-eval's.
    """
    from rlhf_bench.harness import codec
    from rlhf_bench.suites import chat_export
    from rlhf_bench.suites.lm_eval_export import write

    if (repeats := (run.manifest.get("protocol") or {}).get("repeats", 1)) > 1:
        raise UserError(f"run {run.id} has {repeats} answers to each question, and {form}'s files hold one")
    if form in chat_export.FORMATS:
        return chat_export.export(form, run, store.records(run.id), folder)
    report = store.report(run.id)
    if not run.settings:
        raise UserError(f"run {run.id} was not made by `rlhf-bench run`, so its tasks cannot be looked up again")
    asked, records = asked_before(run), store.records(run.id)
    chosen = suite(asked.suite, asked.include_path)
    regime = protocol(asked, chosen)
    if codec.digest(regime) != report.manifest["protocol_digest"]:
        raise UserError(f"protocol '{asked.protocol}' is no longer what run {run.id} was asked by: run it again")
    theirs = {record.benchmark for record in records if "task" in record.sample.tags}
    ours = [each.name for each in chosen.benchmarks if each.name not in theirs]
    if not theirs:
        raise UserError(f"run {run.id} has nothing of lm-eval's: it has no task for {', '.join(ours)}")
    paths = write(run, records, [each for each in chosen.benchmarks if each.name in theirs], regime, folder)
    return paths, ours


def find_run(store: Store, text: str, like: Run | None = None) -> Run:
    """The last finished run of a model ("champion", an alias), or else the run with this id or prefix, or "latest".

    Of a model's runs one that was made as `like` was is preferred. A name comes first: an alias such as "c2" may also
    be how some run's id begins.
    """
    champion = store.champion()
    if text == "champion" and champion is None and "champion" not in store.aliases():
        raise UserError("there is no champion yet: `rlhf-bench promote --first MODEL` or `rlhf-bench iterate` sets one")
    digest = champion.checkpoint if text == "champion" and champion else store.aliases().get(text)
    return store.run(text) if digest is None else last_run(store, digest, text, like)


def last_run(store: Store, digest: str, name: str, like: Run | None = None) -> Run:
    """The last finished run of this checkpoint, one made as `like` was if there is one. Raises UserError for none."""
    found = [each for each in store.runs() if each.checkpoint == digest and each.status == "complete"]
    if not found:
        suite_option = f" --suite {like.suite}" if like else ""
        raise UserError(f"'{name}' has no finished run: `rlhf-bench run --model {name}{suite_option}` makes one")
    return next((each for each in found if like and _conditions(each) == _conditions(like)), found[0])


def _conditions(run: Run) -> list[object]:
    names = ("protocol_digest", "judge_identity", "benchmarks")
    engine = run.manifest.get("engine", {})
    return [*(run.manifest.get(name) for name in names), engine.get("engine"), engine.get("dtype")]


def run_data(store: Store, run_id: str) -> RunData:
    """A finished run as the gate reads it, with the figures of its benchmarks that are no means."""
    from rlhf_bench import suites
    from rlhf_bench.harness.claims import RunData
    from rlhf_bench.harness.compare import macro_average

    facts = store.run(run_id).manifest.get("benchmarks", {})
    own = suites.figures(facts)
    figures = {name: {f"{facts[name]['metric']},macro": macro_average, **own.get(name, {})} for name in facts}
    return RunData.load(store, run_id, figures)


def find_checkpoint(store: Store, name: str) -> Checkpoint:
    """A registered checkpoint: "champion", an alias, the beginning of a digest, or its folder. Raises UnknownName."""
    champion = store.champion()
    if name == "champion" and champion is not None:
        name = champion.checkpoint
    found = store.alias(name) or store.checkpoint(name)
    if found is None:
        folder = str(Path(name).resolve())
        found = next((each for each, _ in reversed(store.checkpoints()) if each.path == folder), None)
    if found is None:
        raise UnknownName("registered model", name, store.aliases(), "`rlhf-bench models` lists them.")
    return found


def name_of(checkpoint: Checkpoint, store: Store) -> str:
    """What a checkpoint is called here: its first alias, else its folder; `resolve` finds it by either."""
    return next(
        (name for name, known in sorted(store.aliases().items()) if known == checkpoint.digest), checkpoint.path
    )


def checked_alias(name: str | None) -> str | None:
    """The name, if a model may be called so. Raises UserError where it means something else already."""
    from rlhf_bench.harness.weights import BUILTIN

    taken = {"champion", "latest", DEMO_JUDGE, *BUILTIN}
    if name is not None and (not name or any(sign in name for sign in ":/\\~ ") or name in taken):
        raise UserError(f"'{name}' cannot be an alias: no colon, slash, tilde or space, and no built-in name")
    return name


def lineage(store: Store, checkpoint: Checkpoint) -> list[Checkpoint]:
    """The checkpoint and its parents, back to the first one that is registered."""
    chain = [checkpoint]
    while (parent := chain[-1].parent) and parent not in {each.digest for each in chain}:
        found = store.checkpoint(parent)
        if found is None:
            break
        chain.append(found)
    return chain


def prompts(name: str, beside: Path | None = None) -> Sequence[Sample]:
    """The packaged training prompts ("demo"), or those of a JSON file, sought beside the file `beside` first."""
    if name == DEMO:
        from rlhf_bench.suites.demo import training_prompts

        return training_prompts()
    from rlhf_bench.trainers.data import read_prompts

    return read_prompts(sought(name, beside))


def data_names(names: Iterable[str]) -> list[str]:
    """The pinned files of these suites, benchmarks or files; of all suites where none is named."""
    from rlhf_bench import suites
    from rlhf_bench.suites.pins import PINS

    wanted = list(names) or list(suites.SUITES)
    found = ([name] if name in PINS else [n for each in suite(name).benchmarks for n in each.needs] for name in wanted)
    return list(dict.fromkeys(need for needs in found for need in needs))


def policy_names() -> list[str]:
    """The packaged policies."""
    return sorted(path.stem for path in POLICIES.glob("*.yaml"))


def default_policy(run: Run) -> Policy:
    """The packaged policy that asks most of what this run has. Raises UserError where none fits."""
    found = [policy(name) for name in policy_names()]
    wanted = {each.name: set(each.benchmarks) for each in found}
    fitting = [each for each in found if wanted[each.name] <= run.manifest["benchmarks"].keys()]
    if not fitting:
        names = ", ".join(run.manifest["benchmarks"])
        raise UserError(f"no packaged policy is about {names}: name one with --policy FILE ({', '.join(wanted)} exist)")
    return max(fitting, key=lambda each: len(wanted[each.name]))


def policy(spec: str, beside: Path | None = None) -> Policy:
    """The packaged policy of this name, or the one in this YAML file, sought beside `beside` first."""
    from rlhf_bench.harness.policy import load_policy

    if spec in policy_names():
        return load_policy(POLICIES / f"{spec}.yaml")
    path = sought(spec, beside)
    if path.suffix not in (".yaml", ".yml") and not path.exists():
        raise UnknownName("policy", spec, policy_names(), "A path to a YAML file works too.")
    return load_policy(path)


def sought(name: str, beside: Path | None) -> Path:
    near = beside.parent / name if beside else None
    return near if near is not None and near.exists() else Path(name)
