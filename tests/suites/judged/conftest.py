"""What the tests of scored files share."""

from __future__ import annotations

import csv
import gzip
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture
def here(mirror: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The mirror, as the project finds it."""
    monkeypatch.setenv("RLHF_BENCH_DATA", str(mirror))
    return mirror


@pytest.fixture(scope="session")
def leaderboard(mirror: Path) -> Mapping[str, Mapping[str, str]]:
    """AlpacaEval 2's published figures, by model."""
    with (mirror / "alpaca_eval/published/weighted_alpaca_eval_gpt4_turbo_leaderboard.csv").open() as file:
        return {row[""]: row for row in csv.DictReader(file)}


@pytest.fixture
def written(tmp_path: Path) -> Callable[..., Path]:
    """Write rows as JSON lines (or as a list, by the name) and say where."""

    def write(rows: Sequence[Any], name: str = "judgments.jsonl") -> Path:
        path = tmp_path / name
        plain = name.removesuffix(".gz")
        text = json.dumps(list(rows)) if plain.endswith(".json") else "\n".join(json.dumps(row) for row in rows)
        path.write_bytes(gzip.compress(text.encode()) if name.endswith(".gz") else text.encode())
        return path

    return write
