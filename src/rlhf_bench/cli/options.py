"""Options that several commands share, and what the shell completes for them."""

from __future__ import annotations

from typing import Annotated, Any

import typer

Json = Annotated[bool, typer.Option("--json", help="JSON on stdout and nothing else.")]


Limit = Annotated[int | None, typer.Option("--limit", "-L", min=1, help="Only the first N samples of each.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:N.")]


def engines(incomplete: str) -> list[str]:
    """Engines that begin like this."""
    return [name for name in ("auto", "hf", "vllm") if name.startswith(incomplete)]


Engine = Annotated[
    str,
    typer.Option(
        help="Runs a local model: hf, vllm, or auto (vllm where it is installed and a GPU is there); "
        "vllm:tensor=2,data=4 spreads it.",
        autocompletion=engines,
    ),
]


def suites(incomplete: str) -> list[str]:
    """Suites and benchmarks that begin like this."""
    from rlhf_bench.suites import BENCHMARKS, SUITES

    return [name for name in (*SUITES, *BENCHMARKS) if name.startswith(incomplete)]


def protocols(incomplete: str) -> list[str]:
    """Protocols that begin like this."""
    from rlhf_bench.suites.protocols import PROTOCOLS

    return [name for name in PROTOCOLS if name.startswith(incomplete)]


def policies(incomplete: str) -> list[str]:
    """Packaged policies that begin like this."""
    from rlhf_bench.cli.gating import policy_names

    return [name for name in policy_names() if name.startswith(incomplete)]


def policy(otherwise: str, help: str = "A packaged policy or a YAML file.") -> Any:
    """--policy; `otherwise` says which is taken where none is named."""
    return typer.Option("--policy", help=help, show_default=otherwise, autocompletion=policies)


def presets(incomplete: str) -> list[str]:
    """Packaged training recipes that begin like this."""
    return _packaged("rlhf_bench.trainers", incomplete)


def loops(incomplete: str) -> list[str]:
    """Packaged loops that begin like this."""
    return _packaged("rlhf_bench.trainers.online", incomplete)


def _packaged(package: str, incomplete: str) -> list[str]:
    from importlib.resources import files

    folder = files(package) / "presets"
    names = sorted(each.name.removesuffix(".yaml") for each in folder.iterdir() if each.name.endswith(".yaml"))
    return [name for name in names if name.startswith(incomplete)]
