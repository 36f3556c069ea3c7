"""A disk that is full in the middle of a loop: one line, nothing half written, and with room it goes on."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import pytest
from tests.cli.conftest import Call
from tests.cli.loops import Loop, result
from tests.conftest import light
from tests.disks import empty, fill, small_disk

from rlhf_bench.cli import show
from rlhf_bench.harness.progress import Advance, Track
from rlhf_bench.harness.store import Store

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="a tmpfs is Linux's")

PLACES = (
    "champion.json.*tmp",
    "small/start.json.*tmp",
    "begun-0.json.*tmp",
    "progress of iteration 1 of 1: answers",  # the store
    "answers-*.jsonl.*tmp",
    "read answers-*.jsonl",  # the store: the places of the answers
    "rewards-*.jsonl.*tmp",
    "pairs-*.jsonl.*tmp",
    "reference-*.json.*tmp",
    "progress of iteration 1 of 1: train dpo",  # the log of its steps
    "model/config.json",
    "model/recipe.json.*tmp",
    "progress of iteration 1 of 1: measure: answers",  # the store
    "progress of iteration 1 of 1: measure: grades",  # the store
    "measured-*.jsonl.*tmp",
    "read measured-*.jsonl",  # the store: the verdict and its entry in the ledger
    "verdict-0.json.*tmp",
    "small/result.json.*tmp",
)
"""All that a loop writes, in its order: the disk is full when it comes there. `read` and `progress of` are what it
does just before it writes to the store."""


class Watch:
    """Fills a disk when a loop comes to the place that is next, and then waits for another one."""

    def __init__(self) -> None:
        self.disk: Path | None = None
        self.next = ""

    def come(self, place: str) -> None:
        if self.disk is not None and self.next and fnmatch(place, self.next):
            self.next = ""
            fill(self.disk)

    def opened(self, event: str, given: tuple[Any, ...]) -> None:
        """What Python tells of each file that it opens."""
        if event == "open" and self.next and isinstance(given[0], str) and isinstance(given[1], str):
            name = "/".join(Path(given[0]).parts[-2:])
            reads = given[1].startswith("r")
            for each in (name, name.partition("/")[2]):
                self.come(f"read {each}" if reads else each)

    def bars(self, note: object) -> Track:
        """Progress that is not shown."""

        @contextmanager
        def track(label: str, total: int) -> Iterator[Advance]:
            yield lambda count: self.come(f"progress of {label}") if count else None

        return track


WATCH = Watch()
sys.addaudithook(WATCH.opened)  # for good: a hook is never taken out; it looks at nothing unless a test says so


@pytest.fixture(autouse=True)
def quiet(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(show, "bars", WATCH.bars)
    with light():
        yield
    WATCH.disk, WATCH.next = None, ""


def test_a_disk_that_is_full_at_each_place_that_a_loop_writes_costs_one_line_and_nothing_else(
    call: Call, home: Path, talker: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    iterate = Loop(call, home, monkeypatch, talker)
    expected = result(iterate("whole"))
    with small_disk(home / "disk", "64m") as disk:
        WATCH.disk, there = disk, disk / "home"
        for place in PLACES:
            WATCH.next = place
            done = iterate("disk/home")
            assert not WATCH.next, f"it did not come to {place}"
            said = f"{place}: {done.err}"
            assert done.code == 4 and done.out == "", said
            assert re.fullmatch(r"error: .*(No space left on device|disk is full|whose disk has).*\n", done.err), said
            empty(disk)
            with Store(f"sqlite:///{there}/store.db") as store:
                assert [each.reason for each in store.history()] == ["start of loop small"], place
        assert result(iterate("disk/home")) == expected
        assert not list(there.rglob("*.tmp")) and not list(there.rglob("*.work"))
