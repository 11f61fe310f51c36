"""What a child asks of the kernel for its parent's sake: not to outlive it, to die in its stead."""

import ctypes
import logging
import os
import signal
from pathlib import Path
from typing import Final

_log = logging.getLogger(__name__)

_PR_SET_PDEATHSIG = 1

OOM_SCORE_RAISE: Final = 500
"""How much more of the memory, in thousandths, a child seems to use than it does when the kernel
looks for a process to kill (oom_score_adj in proc(5)). The memory may be that of a control group:
with much less than this, in a group of 128 MiB, a supervisor of 80 MiB is chosen before a worker
of 50 MiB."""


def die_with_parent(expected_parent: int | None = None) -> None:
    """Have the kernel kill this process, with SIGKILL, when the process that started it ends.

    It covers what end-of-file on the IPC stream does not: a loop that is stuck, or no loop yet.
    A parent that ended before this call cannot be waited for any more; give its process id as
    `expected_parent` to notice that. Raises :class:`OSError`, and :class:`SystemExit` with status
    1 if the parent is gone.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"prctl(PR_SET_PDEATHSIG): {os.strerror(number)}")
    if expected_parent is not None and os.getppid() != expected_parent:
        raise SystemExit(1)


def die_before_parent() -> None:
    """Have the kernel choose this process before its parent when memory runs out.

    A worker costs its own flows, the exporter a scrape; the supervisor costs everything. Where the
    kernel refuses, that is logged, and nothing else changes.
    """
    score = Path("/proc/self/oom_score_adj")
    try:
        score.write_text(str(min(1000, int(score.read_text()) + OOM_SCORE_RAISE)))
    except OSError as error:
        _log.debug("%s cannot be raised: %s", score, error)
