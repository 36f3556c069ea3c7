"""The system-call filters of the sandbox, assembled by hand: a deny list for all, one more for the candidate.

Denied calls fail with EPERM, `clone` with a namespace flag too, `clone3` (whose flags a filter cannot read) and calls
newer than this list with ENOSYS, so that libc falls back to older ones. Calls of another architecture, x32 included,
kill the process. The candidate may signal and limit itself alone.

Source: linux/seccomp.h, linux/filter.h, linux/audit.h; numbers from asm/unistd_64.h (x86_64) and asm-generic (aarch64).
"""

from __future__ import annotations

import platform
import struct
from typing import TypeAlias

from rlhf_bench.harness.sandbox.confine import SELF

NUMBERS: dict[str, tuple[int | None, int | None]] = {
    "acct": (163, 89),
    "add_key": (248, 217),
    "bpf": (321, 280),
    "chmod": (90, None),
    "chown": (92, None),
    "chroot": (161, 51),
    "delete_module": (176, 106),
    "fanotify_init": (300, 262),
    "fchmod": (91, 52),
    "fchmodat": (268, 53),
    "fchown": (93, 55),
    "fchownat": (260, 54),
    "finit_module": (313, 273),
    "fremovexattr": (199, 16),
    "fsconfig": (431, 431),
    "fsetxattr": (190, 7),
    "fsmount": (432, 432),
    "fsopen": (430, 430),
    "fspick": (433, 433),
    "futimesat": (261, None),
    "init_module": (175, 105),
    "inotify_init": (253, None),
    "inotify_init1": (294, 26),
    "io_setup": (206, 0),
    "io_uring_enter": (426, 426),
    "io_uring_register": (427, 427),
    "io_uring_setup": (425, 425),
    "ioprio_set": (251, 30),
    "kcmp": (312, 272),
    "kexec_file_load": (320, 294),
    "kexec_load": (246, 104),
    "keyctl": (250, 219),
    "lchown": (94, None),
    "lremovexattr": (198, 15),
    "lsetxattr": (189, 6),
    "memfd_create": (319, 279),
    "memfd_secret": (447, 447),
    "migrate_pages": (256, 238),
    "mount": (165, 40),
    "mount_setattr": (442, 442),
    "move_mount": (429, 429),
    "move_pages": (279, 239),
    "mq_open": (240, 180),
    "msgget": (68, 186),
    "name_to_handle_at": (303, 264),
    "open_by_handle_at": (304, 265),
    "open_tree": (428, 428),
    "perf_event_open": (298, 241),
    "personality": (135, 92),
    "pidfd_getfd": (438, 438),
    "pidfd_send_signal": (424, 424),
    "pivot_root": (155, 41),
    "process_madvise": (440, 440),
    "process_mrelease": (448, 448),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "ptrace": (101, 117),
    "quotactl": (179, 60),
    "reboot": (169, 142),
    "removexattr": (197, 14),
    "request_key": (249, 218),
    "sched_setaffinity": (203, 122),
    "sched_setattr": (314, 274),
    "sched_setparam": (142, 118),
    "sched_setscheduler": (144, 119),
    "semget": (64, 190),
    "setns": (308, 268),
    "setpriority": (141, 140),
    "setxattr": (188, 5),
    "shmget": (29, 194),
    "socket": (41, 198),
    "socketpair": (53, 199),
    "swapoff": (168, 225),
    "swapon": (167, 224),
    "syslog": (103, 116),
    "umount2": (166, 39),
    "unshare": (272, 97),
    "userfaultfd": (323, 282),
    "utime": (132, None),
    "utimensat": (280, 88),
    "utimes": (235, None),
}
"""Denied system calls: name -> number on (x86_64, aarch64), None where there is no such call."""
SIGNALS = {
    "kill": (62, 129),
    "rt_sigqueueinfo": (129, 138),
    "rt_tgsigqueueinfo": (297, 240),
    "tgkill": (234, 131),
    "tkill": (200, 130),
}
"""Calls whose first argument may, in the candidate, only be its own process id."""
PRLIMIT, PRCTL, FCNTL = (302, 261), (157, 167), (72, 25)
NEWER = 450
"""The first number that is too new to be known here; the same on both processors."""

_ARCHITECTURES = {"x86_64": (0, 0xC000003E, 56, 435), "aarch64": (1, 0xC00000B7, 220, 435)}
"""By machine: the column in NUMBERS, the audit architecture, the numbers of clone and clone3."""
_NEW_NAMESPACE = 0x7E020080  # NEWNS | NEWCGROUP | NEWUTS | NEWIPC | NEWUSER | NEWPID | NEWNET | NEWTIME
_X32 = 0x40000000
_ALLOW, _KILL, _ERRNO = 0x7FFF0000, 0x80000000, 0x00050000
_EPERM, _ENOSYS = 1, 38
_LOAD, _EQUAL, _AT_LEAST, _ANY_BIT, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_SET_PDEATHSIG = 1
_F_SETOWN, _F_SETSIG, _F_SETOWN_EX = 8, 10, 15
_NR_AT, _ARCH_AT, _FIRST_AT, _SECOND_AT = 0, 4, 16, 24


def program(machine: str | None = None) -> bytes | None:
    """The filter of all in the sandbox for `machine` (this one if None); None where no numbers are known."""
    known = _ARCHITECTURES.get(machine or platform.machine())
    if known is None:
        return None
    column, audit, clone, clone3 = known
    lines = [
        *_head(audit),
        (_AT_LEAST, 0, 1, _X32),
        (_RETURN, 0, 0, _KILL),
        (_AT_LEAST, 1, 0, NEWER),
        (_EQUAL, 0, 1, clone3),
        (_RETURN, 0, 0, _ERRNO | _ENOSYS),
        (_EQUAL, 0, 4, clone),
        (_LOAD, 0, 0, _FIRST_AT),
        (_ANY_BIT, 0, 1, _NEW_NAMESPACE),
        (_RETURN, 0, 0, _ERRNO | _EPERM),
        (_RETURN, 0, 0, _ALLOW),
    ]
    denied = sorted(number for numbers in NUMBERS.values() if (number := numbers[column]) is not None)
    lines += [(_EQUAL, len(denied) - index, 0, number) for index, number in enumerate(denied)]
    lines += [(_RETURN, 0, 0, _ALLOW), (_RETURN, 0, 0, _ERRNO | _EPERM)]
    return _assemble(lines)


def candidate_program(machine: str | None = None) -> bytes | None:
    """The candidate's further filter, with SELF for its process id; None where no numbers are known.

    It denies what reaches another process of the same user: signals, also those that a pipe sends for its owner
    (F_SETOWN), limits, and escape from the death signal of its parent.
    """
    known = _ARCHITECTURES.get(machine or platform.machine())
    if known is None:
        return None
    column, audit, _, _ = known
    lines = _head(audit)
    for numbers in SIGNALS.values():
        lines += _only(numbers[column], _FIRST_AT, [SELF])
    lines += _only(PRLIMIT[column], _FIRST_AT, [0, SELF])
    lines += _never(PRCTL[column], _FIRST_AT, [_SET_PDEATHSIG])
    lines += _never(FCNTL[column], _SECOND_AT, [_F_SETOWN, _F_SETSIG, _F_SETOWN_EX])
    return _assemble([*lines, (_RETURN, 0, 0, _ALLOW)])


_Line: TypeAlias = tuple[int, int, int, int]


def _head(audit: int) -> list[_Line]:
    return [
        (_LOAD, 0, 0, _ARCH_AT),
        (_EQUAL, 1, 0, audit),
        (_RETURN, 0, 0, _KILL),
        (_LOAD, 0, 0, _NR_AT),
    ]


def _only(number: int, argument_at: int, values: list[int]) -> list[_Line]:
    return _if_argument(number, argument_at, values, _ALLOW, _ERRNO | _EPERM)


def _never(number: int, argument_at: int, values: list[int]) -> list[_Line]:
    return _if_argument(number, argument_at, values, _ERRNO | _EPERM, _ALLOW)


def _if_argument(number: int, argument_at: int, values: list[int], then: int, otherwise: int) -> list[_Line]:
    """Of the call `number` decides by the lower half of one argument, as the kernel reads an int."""
    count = len(values)
    return [
        (_EQUAL, 0, count + 3, number),
        (_LOAD, 0, 0, argument_at),
        *((_EQUAL, count - index, 0, value) for index, value in enumerate(values)),
        (_RETURN, 0, 0, otherwise),
        (_RETURN, 0, 0, then),
    ]


def _assemble(lines: list[_Line]) -> bytes:
    return b"".join(struct.pack("=HBBI", *line) for line in lines)
