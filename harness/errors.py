"""The exceptions.

What a user can mend is one branch, what the world did is the other.

    RlhfBenchError
    ├── UserError              the caller can mend it: one line that says what was given and what to do; exit code 2
    │   ├── UnknownName        a suite, benchmark, model, run or key that does not exist, with the nearest that does
    │   ├── MissingData        data or weights that are not here, with the command that gets them
    │   ├── ChangedCheckpoint  a registered checkpoint whose files are no longer what was registered
    │   └── Busy               another process of the user's is doing the same
    └── Fault                  the world failed (disk, engine, judge, sandbox): nothing was scored; exit code 4
        ├── Outage             an endpoint that does not answer now: to wait is worth it, and what it said is kept
        ├── CorruptRow         a stored row that does not parse: it is never used as an answer
        └── LostRace           another process moved the champion, or spent the alpha, first
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class RlhfBenchError(Exception):
    """The root: everything this project raises on purpose."""

    exit_code = 4


class UserError(RlhfBenchError):
    """A mistake in what was asked; the message is one line and says what to do."""

    exit_code = 2


class UnknownName(UserError):
    """A name that is not in `known`; the message offers the nearest one."""

    def __init__(self, what: str, name: str, known: Iterable[str], hint: str = "") -> None:
        names = sorted(known)
        near = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
        if near:
            tail = f" Did you mean '{near[0]}'?"
        elif names:
            shown = ", ".join(names[:8]) + (", …" if len(names) > 8 else "")
            tail = f" Known: {shown}."
        else:
            tail = ""
        super().__init__(f"no {what} named '{name}'.{tail}{' ' + hint if hint else ''}")


class MissingData(UserError):
    """Data or weights that are not on this machine; the message holds the command that gets them."""


class ChangedCheckpoint(UserError):
    """The files of a registered checkpoint changed since it was registered."""


class Busy(UserError):
    """Another process is doing the same in the same folder."""


class Fault(RlhfBenchError):
    """Something outside failed. Never a score, never a promotion."""


class Outage(Fault):
    """An endpoint that does not answer now, and may later."""


class CorruptRow(Fault):
    """A stored row that cannot be read back."""


class LostRace(Fault):
    """Another process moved the champion since the verdict was reached, or took the level that this one needs."""
