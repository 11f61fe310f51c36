"""Figures of a process from the kernel: processor time, memory, file descriptors.

Each process reads its own figures, so that none needs a permission to inspect another one. Only the
nursery has no metrics of its own, so the supervisor reads its figures. They are read when metrics
are written, in the thread that writes them.
"""

import os
import resource
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final

_STATM: Final = Path("/proc/self/statm")
_DESCRIPTORS: Final = Path("/proc/self/fd")
_PAGE: Final = os.sysconf("SC_PAGE_SIZE")
_TICKS: Final = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True)
class ProcessFigures:
    """Figures of one process: seconds, bytes and numbers."""

    cpu_seconds: float
    resident_bytes: int
    open_descriptors: int
    descriptor_limit: int


def figures_of(pid: int) -> ProcessFigures:
    """Returns the figures of a child. Raises :class:`OSError`, also if it has ended."""
    directory = Path(f"/proc/{pid}")
    # The name of the program, in parentheses, may hold anything (proc_pid_stat(5)).
    fields = (directory / "stat").read_text().rpartition(")")[2].split()
    user, system = int(fields[11]), int(fields[12])
    limit, _ = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    return ProcessFigures(
        cpu_seconds=(user + system) / _TICKS,
        resident_bytes=int((directory / "statm").read_text().split()[1]) * _PAGE,
        open_descriptors=len(os.listdir(directory / "fd")),  # noqa: PTH208 - only names are needed
        descriptor_limit=limit,
    )


def process_figures() -> ProcessFigures:
    """Returns the figures of this process. Raises :class:`OSError` where there is no /proc."""
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return ProcessFigures(
        cpu_seconds=time.process_time(),
        resident_bytes=int(_STATM.read_text().split()[1]) * _PAGE,
        open_descriptors=_open_descriptors(),
        descriptor_limit=limit,
    )


def _open_descriptors() -> int:
    # Since Linux 6.2 the size of the directory is the number of its entries; before, it is 0.
    size = _DESCRIPTORS.stat().st_size
    return size or len(os.listdir(_DESCRIPTORS)) - 1  # without the descriptor of the listing itself  # noqa: PTH208
