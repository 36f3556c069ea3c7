"""`rlhf-bench iterate`: the online loop of the paper, gated."""

from __future__ import annotations

import functools
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from rlhf_bench.cli import gating, lookup, looped, measuring, options, probing, scorers, show
from rlhf_bench.cli import online as shown
from rlhf_bench.harness.errors import Busy, Fault, MissingData, UnknownName, UserError

if TYPE_CHECKING:
    from rlhf_bench.harness.policy import Policy
    from rlhf_bench.harness.progress import Track
    from rlhf_bench.harness.store import Store
    from rlhf_bench.harness.types import Checkpoint, Report, Sample, Suite
    from rlhf_bench.trainers.online import Iteration, Line, LoopConfig, Scoring
    from rlhf_bench.trainers.online.planned import LoopPlan
    from rlhf_bench.trainers.online.probes import Probed

Stage = Literal["answers", "score", "pair", "train", "measure"]


def _schema(wanted: bool) -> None:
    if wanted:
        from rlhf_bench.harness.config import schema
        from rlhf_bench.trainers.online import LoopConfig

        print(schema(LoopConfig))
        raise typer.Exit


def iterate(
    config: Annotated[
        str,
        typer.Argument(
            help="The loop's YAML (examples/demo.yaml is one), or a packaged loop.", autocompletion=options.loops
        ),
    ],
    set_: Annotated[list[str] | None, typer.Option("--set", help="key=value over the config; repeatable.")] = None,
    until: Annotated[Stage | None, typer.Option(help="End after this stage of the iteration that is next.")] = None,
    from_: Annotated[
        Stage | None, typer.Option("--from", help="Make this stage and later ones of the latest iteration again.")
    ] = None,
    only: Annotated[
        Stage | None, typer.Option(help="One stage of an iteration that has begun, here: what `launch` runs.")
    ] = None,
    iteration: Annotated[int | None, typer.Option(min=1, help="The iteration, with --only.", show_default="1")] = None,
    attempt: Annotated[
        int | None, typer.Option(min=0, help="Which retry of it, with --only.", show_default="0, the first try")
    ] = None,
    schema: Annotated[
        bool,
        typer.Option(
            "--schema", callback=_schema, is_eager=True, help="Show the config's JSON schema, for editors, and exit."
        ),
    ] = False,
    plan: Annotated[
        bool, typer.Option("--plan", help="Say what it will do: tokens, hours, cost, disk. Nothing is started.")
    ] = False,
    probes: Annotated[
        bool, typer.Option("--probes", help="At the end, the probes' answers of every candidate side by side.")
    ] = False,
    json: options.Json = False,
) -> None:
    """Answer, rank, train, evaluate and gate, iteration by iteration; only a promote verdict moves the champion.

    Killed or interrupted anywhere, the same command goes on; finished, it prints the result again.
    """
    from rlhf_bench.trainers import online
    from rlhf_bench.trainers.online.ahead import Ahead

    if only is None and (iteration is not None or attempt is not None):
        raise UserError("--iteration and --attempt say of what --only makes a stage: give --only STAGE, or neither")
    _go_together({"--only": only, "--plan": plan}, {"--until": until, "--from": from_, "--probes": probes})
    _go_together({"--only": only}, {"--json": json})
    for ends in ({"--until": until}, {"--json": json}):
        _go_together(ends, {"--probes": probes})
    settings, path = online.loop_config(config, set_ or [])
    _go_together({"'probes: null' in the config": settings.probes is None}, {"--probes": probes})
    with lookup.open_store() as store:
        ahead = Ahead(settings.iterations, lambda: _planned(line))
        track = ahead.watched(show.bars(lambda: shown.time_left(ahead)))
        line = _line(settings, path, [config, *(f"--set={each}" for each in set_ or [])], store, track, plan=plan)
        if plan:
            _plan(line, json)
        elif only is not None:
            online.run_stage(line, only, iteration or 1, attempt or 0)
        else:
            for made in [] if from_ is None else online.set_aside(line, from_):
                show.complain(f"set aside: {made}")
            _go(replace(line, doing=ahead.doing), until, probes, json)


def _planned(line: Line) -> LoopPlan | None:
    """The plan, if one can be made here: what is wrong is said where the loop comes to it."""
    found = None
    with line.track("plan", 1) as advance:
        with suppress(Exception):
            found = _plan_of(line)
        advance(1)
    return found


def _plan_of(line: Line) -> LoopPlan:
    return shown.loop_plan(
        line.config, line.store, line.home, prompts=line.prompts, preferences=line.preferences, track=line.track
    )


def _go_together(instead: Mapping[str, object], whole: Mapping[str, object]) -> None:
    """Raise UserError where something is given beside one of `instead`, which takes the place of a whole run."""
    given = [name for name, value in instead.items() if value]
    if given and (others := given[1:] + [name for name, value in whole.items() if value]):
        raise UserError(f"{others[0]} has no effect with {given[0]}: leave one of them out")


def _plan(line: Line, json: bool) -> None:
    found = _plan_of(line)
    if json:
        show.as_json(shown.plan_as_json(found))
    else:
        shown.print_plan(found)


def _go(line: Line, until: Stage | None, probes: bool, json: bool) -> None:
    """Run the loop, and tell whoever wants to know of each decision, of what stopped it, and of its end."""
    from rlhf_bench.trainers.online import iterate, notify

    config, store, began = line.config, line.store, datetime.now(UTC).isoformat()
    done: list[Iteration] = []
    monitored: list[shown.Monitored] = []
    probed: list[Probed] = []
    news = False

    def tell(event: notify.Event) -> None:
        for failed in notify.notify(config.notify, event):
            show.complain(failed)

    try:
        for each in iterate(line, until=until):
            monitored.append(shown.seen(each, lookup.name_of(each.candidate, store)))
            done.append(replace(each, rows=()))
            if not json:
                looped.print_iteration(each, config, store)
            probed = probing.probed(line, done)
            if store.verdict(each.verdict_id).created >= began:  # else it was told before
                news = True
                names = lookup.name_of(each.candidate, store), lookup.name_of(each.champion, store)
                place = each.number, config.iterations
                tell(notify.decided(config.name, *place, each.verdict, *names, attempt=each.attempt))
    except Busy:  # what is running goes on
        raise
    except BaseException as error:
        tell(notify.stopped(config.name, error))
        raise
    if news and until is None:
        champion = lookup.name_of(lookup.find_checkpoint(store, "champion"), store)
        promoted = sum(each.verdict.outcome == "promote" for each in done)
        tell(notify.finished(config.name, len(done), promoted, champion))
    if json:
        show.as_json({"iterations": [_plain(each) for each in done], "monitors": shown.monitors_as_json(monitored)})
    elif until is not None and not _over(config, done):
        show.say(f"ended after stage '{until}'; what it made: {line.work}")
    else:
        if config.preferences is None:
            shown.print_monitors(monitored)
        if probes:
            probing.print_probes(probed)
        looped.print_end(done, config, store)
        page = line.work / "probes.html"
        if probed and page.exists():
            show.say(f"the same questions to every candidate, side by side: {page}")


def _over(config: LoopConfig, done: Sequence[Iteration]) -> bool:
    """Whether a loop that has decided these iterations has come to its end."""
    if not done:
        return False
    last = done[-1]
    if last.verdict.outcome != "promote" and config.on_hold in ("stop", "retry"):
        return last.attempt == len(config.retries)
    return last.number == config.iterations


def _checked(plan: LoopConfig, path: Path, store: Store, track: Track, keyless: bool) -> tuple[LoopConfig, Policy]:
    """The settings, with the path of the probes' file, and the gate's policy. Raises UserError for what means nothing.

    With `keyless`, no key of a judge's endpoint is needed.
    """
    from rlhf_bench import suites
    from rlhf_bench.harness.models import engine_here
    from rlhf_bench.trainers.online import monitors, notify
    from rlhf_bench.trainers.online.probes import PACKAGED, read_probes

    engine_here(plan.answers.engine)
    chosen = lookup.suite(plan.suite)
    suites.protocol(plan.protocol)
    _check_launch(plan)
    policy = gating.policy(plan.policy, beside=path)
    _require_asked(policy, chosen)
    monitors.check_sentinels(policy, chosen)
    _warn_of_ledger(plan, policy)
    notify.check(plan.notify)
    if plan.probes not in (None, PACKAGED):
        plan = plan.model_copy(update={"probes": str(lookup.sought(plan.probes, path))})
        read_probes(str(plan.probes))
    if plan.judge != lookup.DEMO_JUDGE:
        if not any(each.judged for each in chosen.benchmarks):
            raise UserError(f"judge has no effect, since nothing in suite '{plan.suite}' is judged: leave it out")
        unasked = keyless and plan.judge.startswith("openai:")
        scorers.judge(plan.judge, store, track, around=(lambda engine: engine) if unasked else None)
    return plan, policy


def _line(settings: LoopConfig, path: Path, called: Sequence[str], store: Store, track: Track, *, plan: bool) -> Line:
    """What the loop works with. What the config names wrongly is found here, before any long work."""
    from rlhf_bench import suites
    from rlhf_bench.harness.store import home
    from rlhf_bench.trainers.data import read_preferences
    from rlhf_bench.trainers.online import Line, facts, monitors
    from rlhf_bench.trainers.online.line import begun
    from rlhf_bench.trainers.preferences import conversation

    config, policy = _checked(settings, path, store, track, keyless=plan)
    asked, chosen = measuring.loop_asked(config), lookup.suite(config.suite)
    asks_gap = config.preferences is None and any(each.signal == "reward_gap" for each in policy.sentinels)
    pool = lookup.prompts(config.prompts, beside=path) if config.preferences is None else ()

    def measure(checkpoint: Checkpoint) -> Report:
        settled = replace(asked, engine=begun(line)["engine"])  # what auto meant when the loop began
        return measuring.measure(lookup.name_of(checkpoint, store), settled, store, track, partial=config.partial)

    @functools.cache
    def scoring() -> Scoring:
        return scorers.scoring(config.reward, store, track, map(conversation, pool))

    def signals(report: Report, checkpoint: Checkpoint, initial: Checkpoint) -> Report:
        judge = None
        if asks_gap and scoring().rates is not None:
            judge = monitors.training_reward(scorers.reward_checkpoint(config.reward, store, track), config.reward)
        follow = {each.name: each.follow for each in chosen.benchmarks if each.follow is not None}
        return monitors.annotate_for(policy, report, checkpoint, initial, judge, store, follow=follow, track=track)

    def launch(stage: str, iteration: int, attempt: int) -> None:
        where = ["--only", stage, "--iteration", str(iteration), "--attempt", str(attempt)]
        _run([*shlex.split(config.launch[stage]), _program(), "iterate", *called, *where], stage)  # type: ignore[index]

    line = Line(
        config=config,
        store=store,
        policy=policy,
        scoring=scoring,
        measure=measure,
        home=home(),
        prompts=pool,
        preferences=read_preferences(lookup.sought(config.preferences, path)) if config.preferences is not None else (),
        contaminated=functools.partial(_contaminated, track=track),
        signals=signals,
        launch=launch,
        say=show.complain,
        figures=suites.figures(each.name for each in chosen.benchmarks),
        track=facts.pacing(track, home() / "loops" / config.name),
    )
    return line


def _warn_of_ledger(plan: LoopConfig, policy: Policy) -> None:
    """Say where the policy plans for fewer decisions than the loop may come to."""
    most = plan.iterations * (1 + len(plan.retries))
    planned = None if policy.ledger is None else policy.ledger.planned
    if planned is not None and planned < most:
        show.complain(
            f"policy '{policy.name}' plans {planned} decisions on these samples, the loop may come to {most}: the "
            "later ones find no alpha left (ledger: {planned: N} or open)"
        )


def _contaminated(prompts: Sequence[Sample], track: Track) -> set[str]:
    """The prompts that share words with a question of any benchmark whose data are here."""
    from rlhf_bench.cli.data import ALL, benchmark_index, prompt_text
    from rlhf_bench.harness.contamination import contaminated

    if not prompts:
        return set()
    try:
        index, missing = benchmark_index(ALL, (8, 13), track)
    except MissingData as error:
        show.complain(f"prompts are not compared with benchmarks: {error}")
        return set()
    found = {prompts[hit.prompt].id for hit in contaminated([prompt_text(each) for each in prompts], index, track)}
    if found:
        show.complain(f"{len(found)} of {len(prompts)} prompts share 8 words in a row with a benchmark: left out")
    if missing:
        show.complain(f"prompts are not compared with {', '.join(missing)}, for want of their data")
    return found


def _path() -> str:
    """Where commands are sought: beside this Python first, where torchrun and accelerate of its environment lie."""
    return os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])


def _check_launch(plan: LoopConfig) -> None:
    """Raise UserError for a command of `launch` that is not here."""
    for stage, command in plan.launch.items():
        words = shlex.split(command)
        if words and shutil.which(words[0], path=_path()) is None:
            raise UserError(f"launch.{stage}: there is no command '{words[0]}' here")


def _program() -> str:
    """This command, as a file that torchrun and other launchers take."""
    beside = Path(sys.executable).with_name("rlhf-bench")
    found = str(beside) if beside.exists() else shutil.which("rlhf-bench")
    if found is None:
        raise UserError("`launch` runs the command rlhf-bench, which is not on the PATH: install the package")
    return found


def _run(command: Sequence[str], stage: str) -> None:
    """Raises Fault where the stage's process fails; what it said is on stderr already."""
    try:
        code = subprocess.run(command, check=False, stdout=sys.stderr, env=os.environ | {"PATH": _path()}).returncode
    except OSError as error:
        raise UserError(f"launch.{stage}: cannot start {command[0]}: {error.strerror}") from None
    if code:
        raise Fault(f"the process of stage '{stage}' ended with {code}: see above; run it again to go on")


def _require_asked(policy: Policy, suite: Suite) -> None:
    """Raise UnknownName for the first rule of the policy about a benchmark that the suite does not ask."""
    names = [each.name for each in suite.benchmarks]
    for name in policy.benchmarks:
        if name not in names:
            raise UnknownName(f"benchmark in suite '{suite.name}'", name, names, f"Policy '{policy.name}' asks for it.")


def _plain(done: Iteration) -> dict[str, Any]:
    from rlhf_bench.harness.codec import plain

    row: dict[str, Any] = {key: value for key, value in plain(done).items() if key not in ("rows", "learned")}
    return row | {"pairs": done.pairs, "dropped": dict(done.dropped)}
