"""The command line: parse, wire, print. Nothing heavy is imported before a command needs it."""

from __future__ import annotations

import os
import sys
import traceback
from typing import Annotated

import typer

from rlhf_bench import __version__
from rlhf_bench.cli import (
    board,
    compare,
    data,
    doctor,
    filtering,
    gate,
    history,
    iterate,
    judge,
    models,
    parity,
    plan,
    promote,
    run,
    runs,
    score,
    suites,
    train,
)
from rlhf_bench.cli.show import complain
from rlhf_bench.harness.errors import RlhfBenchError

BROKEN_PIPE, INTERRUPTED, FAULT, USAGE = 141, 130, 4, 2

app = typer.Typer(
    name="rlhf-bench",
    help="Evaluation at the centre of RLHF: is the new checkpoint really better, and did it lose anything?",
    rich_markup_mode=None,  # its help costs a quarter of a second at every --help
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("run")(run.run)
app.command("score")(score.score)
app.add_typer(judge.app, name="judge")
app.command("compare")(compare.compare)
app.command("parity")(parity.parity)
app.command("plan")(plan.plan)
app.command("gate")(gate.gate)
app.command("promote")(promote.promote)
app.command("rollback")(history.rollback)
app.command("history")(history.history)
app.command("iterate")(iterate.iterate)
app.add_typer(train.app, name="train")
data.app.command("filter")(filtering.filter_pairs)
app.add_typer(data.app, name="data")
app.add_typer(suites.app, name="suites")
app.add_typer(models.app, name="models")
app.add_typer(runs.app, name="runs")
app.command("leaderboard")(board.leaderboard)
app.command("doctor")(doctor.doctor)


def _version(wanted: bool) -> None:
    if wanted:
        print(f"rlhf-bench {__version__}")
        raise typer.Exit


@app.callback(invoke_without_command=True)
def _root(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    if context.invoked_subcommand is None:
        print(context.get_help())


def entry() -> None:
    """What the console script calls: exits with the code of `main`.

    Waiting threads sleep instead of spinning: on a busy machine spinning ones made generation 3 to 12 times slower.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # read when torch is imported, which is later
    sys.exit(main())


def main(args: list[str] | None = None) -> int:
    """Run one command line and return its exit code.

    0 done · 1 the gate rejects · 2 a mistake in what was asked · 3 the gate cannot decide · 4 something failed ·
    130 interrupted · 141 nobody reads on. A mistake or a failure is one line on stderr; RLHF_BENCH_DEBUG=1 shows
    the traceback above it.
    """
    try:
        code = app(args, prog_name="rlhf-bench", standalone_mode=False)
    except Exception as error:
        if os.environ.get("RLHF_BENCH_DEBUG"):
            traceback.print_exc()
        return _explain(error)
    except KeyboardInterrupt:
        code = INTERRUPTED
    except SystemExit as error:
        if isinstance(error.__context__, BrokenPipeError):
            return BROKEN_PIPE
        complain(f"error: a library ended the process ({error.code})")
        return FAULT
    if code == INTERRUPTED:
        complain("interrupted; what is finished is kept: the same command goes on")
    return code if isinstance(code, int) else 0


def _explain(error: Exception) -> int:
    if isinstance(error, RlhfBenchError):
        complain(f"error: {error}")
        return error.exit_code
    if isinstance(error, typer.TyperException):
        return _explain_usage(error)
    cause = error.__cause__ if isinstance(error, typer.Abort) and error.__cause__ else error
    complain(f"error: unexpected {type(cause).__name__}: {cause} (RLHF_BENCH_DEBUG=1 shows the traceback)")
    return FAULT


def _explain_usage(error: typer.TyperException) -> int:
    if type(error).__name__ == "NoArgsIsHelpError":
        print(error.format_message(), file=sys.stderr)
        return USAGE
    context = getattr(error, "ctx", None)
    where = f" (see {context.command_path} --help)" if context else ""
    complain(f"error: {error.format_message()}{where}")
    return USAGE
