import os
import signal
import subprocess
import sys

import pytest
import typer
from tests.cli.conftest import Call

import rlhf_bench.cli as cli
from rlhf_bench import __version__
from rlhf_bench.harness.errors import Fault, UserError

HEAVY = ("torch", "transformers", "trl", "datasets", "lm_eval", "sqlalchemy", "numpy", "scipy", "yaml", "filelock")


def imported_by(*args: str) -> set[str]:
    program = (
        "import sys; from rlhf_bench.cli import main; code = main(sys.argv[1:]); "
        f"print(*sorted({set(HEAVY) | {'pydantic', 'rich'}!r} & set(sys.modules)), file=sys.stderr); sys.exit(code)"
    )
    done = subprocess.run([sys.executable, "-c", program, *args], capture_output=True, text=True, check=True)
    return set(done.stderr.split())


def test_help_imports_nothing_heavy() -> None:
    assert imported_by("--help") == set()


@pytest.mark.parametrize("args", [("suites",), ("suites", "--json"), ("run", "--help"), ("--version",)])
def test_listing_suites_and_help_import_no_heavy_library(args: tuple[str, ...]) -> None:
    assert imported_by(*args).isdisjoint(HEAVY)


def test_no_command_is_a_request_for_help(call: Call) -> None:
    done = call()
    assert done.code == 0
    for name in (
        "run",
        "compare",
        "gate",
        "promote",
        "iterate",
        "train",
        "suites",
        "models",
        "leaderboard",
        "runs",
        "doctor",
    ):
        assert f"\n  {name} " in done.out


def test_the_version_is_the_packages(call: Call) -> None:
    assert call("--version").out == f"rlhf-bench {__version__}\n"


def test_a_group_without_a_command_shows_its_commands(call: Call) -> None:
    done = call("train")
    assert done.code == 2
    assert "dpo" in done.err


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["rum"], "'run'"),
        (["run", "--limt", "3"], "--limit"),
        (["run", "--limit", "x"], "--limit"),
        (["run", "--limit", "0"], "--limit"),
        (["compare", "a"], "RUN..."),
        (["run", "--suite", "acedemic"], "Did you mean 'academic'"),
        (["run", "--suite", ","], "suite"),
        (["run", "--protocol", "papr"], "Did you mean 'paper'"),
        (["suites", "show", "gsm8"], "Did you mean 'gsm8k'"),
        (["suites", "fetch", "gsm8"], "Did you mean 'gsm8k'"),
        (["runs", "show", "latest"], "rlhf-bench run"),
        (["leaderboard", "--with", "table2"], "Did you mean 'table-2'"),
        (["leaderboard", "gsm"], "gsm"),
        (["models", "show", "smol"], "smol"),
        (["promote"], "--verdict"),
        (["promote", "--verdict", "7"], "7"),
        (["gate", "a", "b"], "rlhf-bench run"),
    ],
)
def test_bad_input_is_one_line_that_helps_and_exit_code_2(call: Call, args: list[str], says: str) -> None:
    done = call(*args)
    assert done.code == 2
    assert says in done.one_line
    assert done.one_line.startswith("error: ")
    assert done.out == ""


def failing(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    def fail(*args: object, **kwargs: object) -> None:
        raise error

    monkeypatch.setattr(cli.runs.lookup, "open_store", fail)


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (UserError("no [b]such[/b]\nthing"), 2, "error: no [b]such[/b] thing"),
        (Fault("disk full"), 4, "error: disk full"),
        (
            ZeroDivisionError("division"),
            4,
            "error: unexpected ZeroDivisionError: division (RLHF_BENCH_DEBUG=1 shows the traceback)",
        ),
        (ValueError("postgresql://me:secret@host/db"), 4, None),
        (SystemExit(1), 4, None),
        (KeyboardInterrupt(), 130, "interrupted; what is finished is kept: the same command goes on"),
        (EOFError("truncated"), 4, "error: unexpected EOFError: truncated (RLHF_BENCH_DEBUG=1 shows the traceback)"),
    ],
)
def test_a_failure_is_one_line_and_never_looks_like_a_verdict(
    call: Call, monkeypatch: pytest.MonkeyPatch, error: BaseException, code: int, line: str | None
) -> None:
    failing(monkeypatch, error)
    done = call("runs")
    assert done.code == code
    lines = [each for each in done.err.splitlines() if each]
    assert len(lines) <= 1
    assert line is None or lines == [line]
    assert "secret" not in done.err
    assert "Traceback" not in done.err


def test_a_closed_pipe_is_not_a_rejection(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    leaving = SystemExit(1)
    leaving.__context__ = BrokenPipeError()
    failing(monkeypatch, leaving)
    assert call("runs").code == 141


def hears_ctrl_c() -> None:
    """A shell starts what runs in the background deaf to it, and all that starts from there."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def test_ctrl_c_says_that_the_same_command_goes_on() -> None:
    program = (
        "import sys, time; import rlhf_bench.cli as cli\n"
        "def wait(): print('waiting', flush=True); time.sleep(60)\n"
        "cli.runs.lookup.open_store = wait\n"
        "sys.argv[1:] = ['runs']; cli.entry()"
    )
    pipe = subprocess.PIPE
    with subprocess.Popen(
        [sys.executable, "-c", program], stdout=pipe, stderr=pipe, text=True, preexec_fn=hears_ctrl_c
    ) as process:
        assert process.stdout is not None and process.stdout.readline() == "waiting\n"
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=30)
    assert process.returncode == 130
    assert err == "interrupted; what is finished is kept: the same command goes on\n"


def test_debug_shows_the_traceback_and_keeps_the_exit_code(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    failing(monkeypatch, ZeroDivisionError("division"))
    monkeypatch.setenv("RLHF_BENCH_DEBUG", "1")
    done = call("runs")
    assert done.code == 4
    assert "Traceback" in done.err and "ZeroDivisionError: division" in done.err


def test_a_commands_own_exit_code_is_kept(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    failing(monkeypatch, typer.Exit(3))
    assert call("runs").code == 3


def test_the_shell_can_complete_suites() -> None:
    environment = {
        "_RLHF_BENCH_COMPLETE": "complete_bash",
        "COMP_WORDS": "rlhf-bench run --suite ac",
        "COMP_CWORD": "3",
    }
    program = "from rlhf_bench.cli import entry; entry()"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, env={**os.environ, **environment}, check=False
    )
    assert done.stdout.split() == ["academic"]
