"""`rlhf-bench gate`: promote, reject or inconclusive."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated

import typer

from rlhf_bench.cli import files, gating, lookup, options, show, tables
from rlhf_bench.cli.question import question
from rlhf_bench.harness.errors import UserError

if TYPE_CHECKING:
    from rlhf_bench.harness.policy import Policy
    from rlhf_bench.harness.store import Run

EXIT_CODES = {"promote": 0, "reject": 1, "inconclusive": 3}

Candidate = Annotated[
    str | None,
    typer.Argument(help="The new checkpoint's run: id, latest, a model's alias; or a result file of another tool."),
]
Champion = Annotated[str, typer.Argument(help="The champion's run: id, champion, a model's alias; or a result file.")]
PolicyName = Annotated[str | None, options.policy("the packaged one about the candidate's benchmarks")]
Targets = Annotated[
    list[str] | None,
    typer.Option("--target", help="Instead of a policy: BENCHMARK[:METRIC][=GAIN] must improve; repeatable."),
]
Guards = Annotated[
    list[str] | None,
    typer.Option("--guard", help="And BENCHMARK[:METRIC]=MARGIN must not lose that much (0.02 is two points)."),
]
Alpha = Annotated[
    float | None,
    typer.Option(help="With --target and --guard: the error of a wrong promotion, one-sided.", show_default="0.05"),
]
Anchor = Annotated[
    str | None,
    typer.Option(help="A fixed run that guards must hold against too.", show_default="the run of the first champion"),
]
Explain = Annotated[bool, typer.Option("--explain", help="Only say the policy in words.")]
Schema = Annotated[bool, typer.Option("--schema", help="Only print the JSON schema of policy files.")]
Markdown = Annotated[bool, typer.Option("--markdown", help="As a GitHub table, for pull requests.")]


def gate(
    candidate: Candidate = None,
    champion: Champion = "champion",
    policy: PolicyName = None,
    target: Targets = None,
    guard: Guards = None,
    alpha: Alpha = None,
    anchor: Anchor = None,
    explain: Explain = False,
    schema: Schema = False,
    json: options.Json = False,
    markdown: Markdown = False,
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
    if alpha is not None and not (target or guard):
        raise UserError("--alpha goes with --target and --guard: a policy has its own (its key 'alpha')")
    if policy is not None and (target or guard):
        raise UserError("either --policy or --target and --guard: they are two ways to say the same")

    from rlhf_bench.harness.claims import HIGHER
    from rlhf_bench.harness.policy import Ledger

    def rules(run: Run) -> Policy:
        if target or guard:
            facts, higher = run.manifest["benchmarks"], run.manifest.get(HIGHER, {})
            typed = files.inline_policy(target or (), guard or (), 0.05 if alpha is None else alpha, facts, higher)
            return typed if files.is_file(str(candidate)) else typed.model_copy(update={"ledger": Ledger()})
        return gating.default_policy(run) if policy is None else gating.policy(policy)

    if explain:
        return _explain(candidate, policy, rules)
    assert candidate is not None
    with question(candidate, champion, anchor, rules) as asked:
        verdict, number = asked.decided()
    if json:
        show.as_json(tables.verdict_as_json(verdict, number))
    elif markdown:
        tables.verdict_as_markdown(verdict, number)
    else:
        tables.verdict(verdict, number)
        if verdict.outcome == "promote" and number is not None:
            show.say(f"next: rlhf-bench promote --verdict {number}")
    raise typer.Exit(EXIT_CODES[verdict.outcome])


def _explain(candidate: str | None, policy: str | None, rules: Callable[[Run], Policy]) -> None:
    """The policy in words. Without one it is the candidate's run that says which."""
    from rlhf_bench.harness.words import explain

    if policy is not None:
        chosen = gating.policy(policy)
    else:
        with lookup.open_store() as store:
            chosen = rules(lookup.find_run(store, str(candidate)))
    for line in explain(chosen):
        show.say(line)
