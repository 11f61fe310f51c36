"""What the kernel does for a process: when it kills it, how many descriptors it gives it."""

import ctypes
import logging
import os
import resource
import signal
import sys
from pathlib import Path
from typing import Final, NoReturn

_log = logging.getLogger(__name__)

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36

OOM_SCORE_RAISE: Final = 500
"""Thousandths of the memory that are added to a child's own use when the kernel looks for a process
to kill (oom_score_adj in proc(5)). The memory may be that of a control group: with much less than
this, in a group of 128 MiB, a supervisor of 80 MiB is chosen before a worker of 50 MiB."""


KILL_TIMEOUT: Final = 5.0
"""Seconds to wait for the end of another process after SIGKILL.

A process that waits for a disk does not react to it before the disk has answered."""


def die_with_parent(expected_parent: int | None = None) -> None:
    """Makes the kernel kill this process, with SIGKILL, when the process that started it ends.

    It covers cases that end-of-file on the IPC stream does not: an event loop that is stuck, or
    that has not begun. The kernel does not report a parent that ended before this call. Pass its
    process id as `expected_parent` to notice that. Raises :class:`OSError`, and :class:`SystemExit`
    with status 1 if the parent is gone.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"prctl(PR_SET_PDEATHSIG): {os.strerror(number)}")
    if expected_parent is not None and os.getppid() != expected_parent:
        raise SystemExit(1)


def adopt_orphans() -> None:
    """Makes this process the parent of its descendants whose own parent ends.

    Raises :class:`OSError`.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"prctl(PR_SET_CHILD_SUBREAPER): {os.strerror(number)}")


def die_before_parent() -> None:
    """Makes the kernel choose this process before its parent when memory runs out.

    A worker costs its own flows, the exporter a scrape; the supervisor costs everything. Where the
    kernel refuses, that is logged, and nothing else changes.
    """
    score = Path("/proc/self/oom_score_adj")
    try:
        score.write_text(str(min(1000, int(score.read_text()) + OOM_SCORE_RAISE)))
    except OSError as error:
        _log.debug("%s cannot be raised: %s", score, error)


def come_up_within(seconds: int) -> None:
    """Lets the kernel end this process with SIGALRM after so many seconds.

    The alarm survives execve(2). So it also bounds the start of a program that replaces this one,
    which calls :func:`has_come_up` in time, or ends.
    """
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.alarm(seconds)


def has_come_up() -> None:
    """Stops what :func:`come_up_within` began."""
    signal.alarm(0)


def raise_descriptor_limit() -> int:
    """Raises the soft limit of file descriptors to the hard one; returns what holds now.

    Children inherit it. The soft limit is 1,024 on most systems for the sake of programs that use
    select(2), which this one does not. Where the kernel refuses, that is logged, and nothing else
    changes.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        except (OSError, ValueError) as error:
            _log.debug("the limit of file descriptors stays at %d: %s", soft, error)
        else:
            soft = hard
    return sys.maxsize if soft == resource.RLIM_INFINITY else soft


def give_back_freed() -> None:
    """Returns freed memory to the kernel, such as memory that imports needed only briefly.

    Does nothing where libc is not glibc (malloc_trim(3)).
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def leave(status: int) -> NoReturn:
    """Ends the process at once, after flushing what was printed.

    No thread is waited for. A thread of an executor or of libuv that asks a silent name server
    would delay the end by 25 seconds.
    """
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError):  # its reader has gone, or it is closed
            continue
    os._exit(status)
