"""`rlhf-bench run`: evaluate a model on suites."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rlhf_bench.cli import dry, gating, lookup, measuring, options, scorers, show, tables
from rlhf_bench.harness.errors import LostRace, UserError

if TYPE_CHECKING:
    from rlhf_bench.harness.policy import Policy
    from rlhf_bench.harness.store import Run, Store
    from rlhf_bench.harness.types import Report, Verdict

TRIES = 5

Suites = Annotated[
    str | None,
    typer.Option(
        "--suite",
        "-s",
        help="Suites or benchmarks, comma-separated.",
        show_default="demo, unless there are --tasks",
        autocompletion=options.suites,
    ),
]
Tasks = Annotated[str | None, typer.Option("--tasks", "-t", help="lm-eval tasks, groups or tags, comma-separated.")]
IncludePath = Annotated[
    list[str] | None, typer.Option("--include-path", help="A folder with lm-eval tasks of your own; repeatable.")
]
Model = Annotated[
    str | None,
    typer.Option(
        "--model",
        "-m",
        help="Alias, folder, champion, hf:org/name[@revision], openai:MODEL[@URL], outputs:FILE or scripted:NAME.",
        show_default="the champion, or smollm2-135m-instruct while there is none",
    ),
]
JudgeName = Annotated[
    str,
    typer.Option(
        help="Who judges chat answers: openai:MODEL[@URL], llm:MODEL (a local one), replay:FILE, scripted:RULE, "
        "pm:MODEL (a preference model), or a reward model."
    ),
]
JudgePrompt = Annotated[
    str,
    typer.Option(help="How AlpacaEval's judge is asked: weighted, or by a function call, fn or cot (openai:)."),
]
Concurrency = Annotated[int | None, typer.Option(min=1, help="Calls of an API in flight at once.", show_default="64")]
Budget = Annotated[
    str | None,
    typer.Option(help="Most that calls of an API may cost, such as 5usd; then the run stops and can be resumed."),
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Only show what would be asked: calls, tokens and cost.")]
Protocol = Annotated[
    str, typer.Option(help="paper (the shots of its Table 6) or lm-eval.", autocompletion=options.protocols)
]
NumFewshot = Annotated[
    int | None,
    typer.Option("--num-fewshot", "-f", min=0, help="Examples before each question.", show_default="the protocol's"),
]
ApplyChatTemplate = Annotated[
    bool | None,
    typer.Option(
        "--apply-chat-template/--no-apply-chat-template",
        help="Ask lm-eval's tasks as a conversation.",
        show_default="the protocol's",
    ),
]
FewshotAsMultiturn = Annotated[
    bool | None,
    typer.Option(
        "--fewshot-as-multiturn/--no-fewshot-as-multiturn",
        help="Examples as earlier turns of it.",
        show_default="the protocol's",
    ),
]
SystemInstruction = Annotated[
    str | None, typer.Option("--system-instruction", help="The system prompt of lm-eval's tasks.")
]
Repeats = Annotated[
    int | None,
    typer.Option(min=1, help="Answers to each question; those to one question count as one.", show_default="1"),
]
Temperature = Annotated[
    float | None, typer.Option(help="Of every answer.", show_default="each benchmark's own, mostly 0")
]
SampleSeed = Annotated[
    int | None, typer.Option("--sample-seed", min=0, help="Another one gives other answers.", show_default="0")
]
Against = Annotated[
    str | None,
    typer.Option(help="Compare with this run afterwards: id, champion or a model's alias.", show_default="none"),
]
Sequential = Annotated[
    bool,
    typer.Option("--sequential", help="Stop as soon as the gate against that run is decided, and save the rest."),
]
Peek = Annotated[
    bool,
    typer.Option("--peek", help="With --sequential: look often and without end, by an e-process, not five times."),
]
PolicyName = Annotated[
    str | None,
    options.policy(
        "the packaged one about these benchmarks", "With --sequential: the gate's policy, packaged or a YAML file."
    ),
]
Dtype = Annotated[str, typer.Option(help="auto: float32 on a CPU, bfloat16 on a GPU.")]


def run(
    suite: Suites = None,
    tasks: Tasks = None,
    include_path: IncludePath = None,
    model: Model = None,
    limit: options.Limit = None,
    judge: JudgeName = lookup.DEMO_JUDGE,
    judge_prompt: JudgePrompt = scorers.WEIGHTED,
    concurrency: Concurrency = None,
    budget: Budget = None,
    dry_run: DryRun = False,
    protocol: Protocol = "paper",
    num_fewshot: NumFewshot = None,
    apply_chat_template: ApplyChatTemplate = None,
    fewshot_as_multiturn: FewshotAsMultiturn = None,
    system_instruction: SystemInstruction = None,
    repeats: Repeats = None,
    temperature: Temperature = None,
    sample_seed: SampleSeed = None,
    against: Against = None,
    sequential: Sequential = False,
    peek: Peek = False,
    policy: PolicyName = None,
    engine: options.Engine = "auto",
    dtype: Dtype = "auto",
    device: options.Device = "auto",
    json: options.Json = False,
) -> None:
    """Evaluate a model on suites: a score with its interval for each benchmark.

    Finished samples are kept: a run that was stopped goes on with the same command, and nothing is answered twice.
    """
    _check_stopping(sequential, against, peek, policy)
    names = [given for given in (suite, tasks) if given is not None]
    asked = measuring.Asked(
        suite=",".join(names) if names else lookup.DEMO,
        include_path=tuple(str(Path(folder).absolute()) for folder in include_path or ()),
        protocol=protocol,
        num_fewshot=num_fewshot,
        apply_chat_template=apply_chat_template,
        fewshot_as_multiturn=fewshot_as_multiturn,
        system_instruction=system_instruction,
        repeats=repeats,
        temperature=temperature,
        sample_seed=sample_seed,
        judge_spec=lookup.lasting(judge),
        judge_prompt=judge_prompt,
        limit=limit,
        engine=engine,
        dtype=dtype,
        device=device,
        concurrency=concurrency,
        budget=budget,
        against=against,
        policy=policy,
        sequential=("e_process" if peek else "obrien_fleming") if sequential else None,
    )
    with lookup.open_store() as store:
        model = lookup.default_model(store) if model is None else lookup.lasting(model)
        (_plan if dry_run else _evaluate)(model, asked, store, json)


def _check_stopping(sequential: bool, against: str | None, peek: bool, policy: str | None) -> None:
    if (peek or policy is not None) and not sequential:
        raise UserError("--peek and --policy say how --sequential stops: add it, or leave them out")
    if sequential and against is None:
        raise UserError("--sequential needs the run that the gate compares with: add --against champion")


def _plan(model: str, asked: measuring.Asked, store: Store, json: bool) -> None:
    planned = dry.planned(model, asked, store, show.bars())
    return show.as_json(planned) if json else tables.planned(planned)


def _evaluate(model: str, asked: measuring.Asked, store: Store, json: bool) -> None:
    against = None if asked.against is None else lookup.find_run(store, asked.against, whole=True).id
    if asked.sequential:
        report, decided = _until_decided(model, asked, store, str(against))
    else:
        report, decided = measuring.measure(model, asked, store, show.bars()), None
    if json:
        return show.as_json({"report": report, **decided.told} if decided else report)
    print_run(store, report, against)
    if decided:
        decided.show()


@dataclass(frozen=True, slots=True)
class _Decided:
    """The verdict that a run was stopped for; it is a decision as the gate's are, with its entry in the ledger."""

    verdict: Verdict
    number: int | None

    @property
    def told(self) -> dict[str, object]:
        return {"gate": tables.verdict_as_json(self.verdict, self.number)}

    def show(self) -> None:
        tables.verdict(self.verdict, self.number)
        if self.verdict.outcome == "promote":
            show.say(f"next: rlhf-bench promote --verdict {self.number}")


def _until_decided(model: str, asked: measuring.Asked, store: Store, against: str) -> tuple[Report, _Decided]:
    """Measure and decide; where another gate took the level that the run was stopped at meanwhile, go on at what is
    left. Raises LostRace where that happens again and again."""
    for _ in range(TRIES):
        report = measuring.measure(model, asked, store, show.bars())
        try:
            return report, _decided(store, report.run_id, against, asked.policy)
        except LostRace as lost:
            show.complain(f"another decision came first, so the run goes on: {lost}")
    raise LostRace("other processes keep deciding on the same samples: run this again when they are done")


def _decided(store: Store, run_id: str, against: str, policy: str | None) -> _Decided:
    from rlhf_bench.cli.question import question

    def rules(run: Run) -> Policy:
        return gating.default_policy(store.run(against)) if policy is None else gating.policy(policy)

    with question(run_id, against, None, rules, store) as asked:
        return _Decided(*asked.decided())


def print_run(store: Store, report: Report, against: str | None = None) -> None:
    """The table of a finished run, where its records lie, and what to type next."""
    from rlhf_bench.harness.store import default_store_url

    tables.report(report)
    tables.costs(report)
    tables.stopped(report)
    show.say(f"run {report.run_id} in {show.redact(default_store_url())}")
    if against is not None:
        return show.say(f"next: rlhf-bench compare {against} {report.run_id}")
    earlier = [
        each.id
        for each in store.runs()
        if each.id != report.run_id
        and each.status == "complete"
        and (each.suite, each.protocol) == (report.suite, report.protocol)
    ]
    if earlier:
        show.say(f"next: rlhf-bench compare {earlier[0]} {report.run_id}")
    else:
        show.say(f"next: rlhf-bench runs show {report.run_id} --samples 3")
