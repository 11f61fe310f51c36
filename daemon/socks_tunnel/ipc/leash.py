"""A child that must not outlive its parent asks the kernel to see to that (prctl(2))."""

import ctypes
import os
import signal

_PR_SET_PDEATHSIG = 1


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
