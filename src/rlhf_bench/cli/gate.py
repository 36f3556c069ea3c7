"""`rlhf-bench gate`: promote, reject or inconclusive."""

from __future__ import annotations

from dataclasses import dataclass
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated

import typer

from rlhf_bench.cli import files, options, show, tables, wiring
from rlhf_bench.harness.errors import UserError

if TYPE_CHECKING:
    from rlhf_bench.harness.policy import Policy
    from rlhf_bench.harness.store import Run, Store
    from rlhf_bench.harness.types import Verdict

EXIT_CODES = {"promote": 0, "reject": 1, "inconclusive": 3}


def gate(
    candidate: Annotated[
        str | None,
        typer.Argument(help="The new checkpoint's run: id, latest, a model's alias; or a result file of another tool."),
    ] = None,
    champion: Annotated[
        str, typer.Argument(help="The champion's run: id, champion, a model's alias; or a result file.")
    ] = "champion",
    policy: Annotated[
        str | None,
        typer.Option(
            "--policy",
            help="A packaged policy or a YAML file.",
            show_default="the packaged one about the candidate's benchmarks",
            autocompletion=options.policies,
        ),
    ] = None,
    target: Annotated[
        list[str] | None,
        typer.Option("--target", help="Instead of a policy: BENCHMARK[:METRIC][=GAIN] must improve; repeatable."),
    ] = None,
    guard: Annotated[
        list[str] | None,
        typer.Option("--guard", help="And BENCHMARK[:METRIC]=MARGIN must not lose that much (0.02 is two points)."),
    ] = None,
    alpha: Annotated[
        float, typer.Option(help="With --target and --guard: the error of a wrong promotion, one-sided.")
    ] = 0.05,
    anchor: Annotated[
        str | None,
        typer.Option(
            help="A fixed run that guards must hold against too.", show_default="the run of the first champion"
        ),
    ] = None,
    explain: Annotated[bool, typer.Option("--explain", help="Only say the policy in words.")] = False,
    schema: Annotated[bool, typer.Option("--schema", help="Only print the JSON schema of policy files.")] = False,
    json: options.Json = False,
    markdown: Annotated[bool, typer.Option("--markdown", help="As a GitHub table, for pull requests.")] = False,
) -> None:
    """Decide whether the candidate may become champion. Exit code: 0 promote, 1 reject, 3 inconclusive, 2 misuse.

    The verdict is stored with what it spent of the policy's alpha; `rlhf-bench promote` carries it out. Result files of
    other tools (lm-eval's samples, AlpacaEval's annotations) are gated as they are, and nothing is stored.
    """
    if schema:
        from rlhf_bench.harness.config import schema as printed
        from rlhf_bench.harness.policy import Policy as Rules

        return print(printed(Rules))
    if json and markdown:
        raise UserError("one of --json, --markdown")
    if candidate is None and not (explain and policy):
        raise UserError("name the candidate's run: rlhf-bench gate CANDIDATE [CHAMPION] (or --explain --policy P)")
    if policy is not None and (target or guard):
        raise UserError("either --policy or --target and --guard: they are two ways to say the same")
    if explain:
        return _explain(_Asked(candidate or "", champion, None, policy, tuple(target or ()), tuple(guard or ()), alpha))
    assert candidate is not None
    asked = _Asked(candidate, champion, anchor, policy, tuple(target or ()), tuple(guard or ()), alpha)
    loose = files.is_file(candidate) or files.is_file(champion)
    verdict, number = _of_files(asked) if loose else _of_runs(asked)
    if json:
        show.as_json(tables.verdict_as_json(verdict, number))
    elif markdown:
        tables.verdict_as_markdown(verdict, number)
    else:
        tables.verdict(verdict, number)
        if verdict.outcome == "promote" and number is not None:
            show.say(f"next: rlhf-bench promote --verdict {number}")
    raise typer.Exit(EXIT_CODES[verdict.outcome])


@dataclass(frozen=True, slots=True)
class _Asked:
    """The question as it was typed."""

    candidate: str
    champion: str
    anchor: str | None
    policy: str | None
    targets: tuple[str, ...]
    guards: tuple[str, ...]
    alpha: float

    def rules(self, run: Run) -> Policy:
        """The policy, named, given by options, or the packaged one about this run's benchmarks."""
        if self.targets or self.guards:
            return files.inline_policy(self.targets, self.guards, self.alpha, run.manifest["benchmarks"])
        return wiring.default_policy(run) if self.policy is None else wiring.policy(self.policy)


def _of_runs(asked: _Asked) -> tuple[Verdict, int | None]:
    """Runs of the store: decided by the ledger, and stored."""
    from rlhf_bench.harness.decide import decide

    with wiring.open_store() as store:
        new = wiring.find_run(store, asked.candidate)
        old = wiring.find_run(store, asked.champion, like=new)
        rules = asked.rules(new)
        fixed = anchor_run(store, asked.anchor, new, old) if rules.against_anchor else None
        data = [wiring.run_data(store, each.id) if each else None for each in (new, old, fixed)]
        assert data[0] and data[1]
        found = decide(store, rules, data[0], data[1], data[2])
    return found.verdict, found.id


def _of_files(asked: _Asked) -> tuple[Verdict, int | None]:
    """Result files: judged at the policy's alpha, and nothing is kept."""
    from rlhf_bench.harness.decide import judge
    from rlhf_bench.harness.store import Store

    names = [name for name in (asked.candidate, asked.champion, asked.anchor) if name is not None]
    for name in names:
        if not files.is_file(name):
            raise UserError(
                f"'{name}' is no file, and the other is: gate two files, or keep the file as a run first with "
                "`rlhf-bench runs import FILE`"
            )
    with TemporaryDirectory() as folder, Store(f"sqlite:///{folder}/files.db") as store:
        data = [wiring.run_data(store, files.load(name, store)) for name in names]
        rules = asked.rules(store.run(data[0].run_id))
        anchor = data[-1] if rules.against_anchor else None
        verdict, _ = judge(rules, data[0], data[1], anchor, alpha=rules.alpha)
    return verdict, None


def _explain(asked: _Asked) -> None:
    """The policy in words. Without one it is the candidate's run that says which."""
    from rlhf_bench.harness.words import explain

    if asked.policy is not None:
        rules = wiring.policy(asked.policy)
    else:
        with wiring.open_store() as store:
            rules = asked.rules(wiring.find_run(store, asked.candidate))
    for line in explain(rules):
        show.say(line)


def anchor_run(store: Store, name: str | None, new: Run, old: Run) -> Run:
    """The fixed run that guards hold against: the one named, else that of the first champion, so that small losses
    cannot add up; while there is none, the champion's. Raises UserError for one of the candidate itself."""
    if name is not None:
        found = wiring.find_run(store, name, like=new)
        if found.checkpoint == new.checkpoint:
            raise UserError(f"--anchor {name} is a run of the candidate itself: name one of a model that stays as it is")
        return found
    history = store.history()
    if not history:
        return old
    first = wiring.find_checkpoint(store, history[0].checkpoint)
    return wiring.last_run(store, first.digest, wiring.name_of(first, store), like=new)
