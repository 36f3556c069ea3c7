"""Each command that the documents show is one that there is, with its options and arguments."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.main import get_command

from rlhf_bench.cli import app

ROOT = Path(__file__).resolve().parents[2]
ABBREVIATED = ("train sft|rm|pm|dpo", "train dpo --config my.yaml --backend torch")
"""Beginnings of lines that show a form, not a command."""


def documented() -> Iterator[str]:
    """The commands in the indented blocks, without comments and what a shell makes of them."""
    for path in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))):
        for line in path.read_text().replace("\\\n", " ").splitlines():
            shown = re.match(r" {4}(?:[A-Z_]+=\S+ )*(?:\.venv/bin/)?rlhf-bench (.*)", line)
            for part in re.split(r"; ", re.sub(r"\s#.*", "", shown[1])) if shown else ():
                command = part.removeprefix("rlhf-bench ").strip()
                if not command.startswith(("echo ", *ABBREVIATED)):
                    yield command


def parsed(command: str) -> None:
    """Raises what the command line raises for words that it does not take; nothing is run."""
    group, words = get_command(app), shlex.split(command)
    context = None
    while True:
        context = group.make_context(group.name or "rlhf-bench", list(words), parent=context)
        if not hasattr(group, "commands"):
            return
        _, group, words = group.resolve_command(context, [*context._protected_args, *context.args])


@pytest.mark.parametrize("command", sorted(set(documented())))
def test_a_command_in_the_documents_parses(command: str) -> None:
    parsed(command)


@pytest.mark.parametrize("command", ["models export champion --out folder", "iterat my.yaml", "rollback"])
def test_a_command_that_is_not_there_does_not_parse(command: str) -> None:
    with pytest.raises(Exception, match=r"No such (option|command)|Missing (argument|parameter)"):
        parsed(command)
