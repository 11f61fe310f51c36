"""Quick checks of what an instance needs from its host, at each start and by `diagnose`."""

import ctypes
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Final

from socks_tunnel.ops.findings import Finding
from socks_tunnel.protocol.policies import PolicySet

SOCKET_BUFFER: Final = 4 * 1_048_576
"""Buffer in bytes that the socket of a link asks for, in each direction."""

SPACE_MIN: Final = 16 * 1_048_576
"""Free bytes below which a file system is said to be nearly full."""

PROBE_SIZE: Final = 65_536
"""Bytes that are written to test whether a directory can be written to."""

_TIME_ERROR: Final = 5  # STA_UNSYNC of adjtimex(2): the clock is not synchronized


def descriptors(limit: int, wanted: int, flows: int, *, chosen: bool) -> Iterator[Finding]:
    """Checks the limit of file descriptors. The default number of flows is not guaranteed."""
    if limit >= wanted:
        yield Finding("ok", "descriptors", f"a process may have {limit}.")
        return
    yield Finding(
        "warning" if chosen else "note",
        "descriptors",
        f"a process may have {limit} file descriptors: limits.flows_per_worker = {flows} needs up "
        f"to {wanted}.",
        "Raise LimitNOFILE= or the hard limit (ulimit -Hn).",
    )


def socket_buffers(proc: Path = Path("/proc/sys/net/core")) -> Iterator[Finding]:
    """Checks how much a socket may buffer. In a network namespace this may not be visible."""
    for name in ("rmem_max", "wmem_max"):
        try:
            value = int((proc / name).read_text())
        except (OSError, ValueError):
            yield Finding("note", f"net.core.{name}", "it cannot be seen from here.")
            continue
        if value >= SOCKET_BUFFER:
            yield Finding("ok", f"net.core.{name}", f"it is {value}.")
        else:
            yield Finding(
                "note",
                f"net.core.{name}",
                f"it is {value}, so that bursts are lost on fast links; {SOCKET_BUFFER} is wanted.",
                f"sysctl -w net.core.{name}={SOCKET_BUFFER} (the package does that).",
            )


def clock(state: Callable[[], int | None] | None = None) -> Iterator[Finding]:
    """Checks whether the kernel counts the clock as synchronized. A sandbox may hide that."""
    found = (state or _clock_state)()
    if found is None:
        yield Finding("note", "clock", "whether it is synchronized cannot be seen from here.")
    elif found == _TIME_ERROR:
        yield Finding(
            "note",
            "clock",
            "no time service keeps it (adjtimex).",
            "Run one (systemd-timesyncd, chrony): signalling fails when the clocks of the two "
            "hosts are a minute apart.",
        )
    else:
        yield Finding("ok", "clock", "a time service keeps it.")


def _clock_state() -> int | None:
    buffer = ctypes.create_string_buffer(512)  # struct timex has 208 bytes; modes = 0 only reads
    state: int = ctypes.CDLL(None, use_errno=True).adjtimex(buffer)
    return None if state < 0 else state


def space(directories: Iterable[tuple[str, Path]]) -> Iterator[Finding]:
    """Checks that files can be written to directories. `directories` maps purposes to paths."""
    for what, directory in directories:
        try:
            with tempfile.TemporaryFile(dir=directory) as probe:
                probe.write(b"\0" * PROBE_SIZE)
                probe.flush()
            status = os.statvfs(directory)
        except OSError as error:
            yield Finding(
                "problem",
                "disk",
                f"nothing can be written to {directory} ({what}): {error.strerror}.",
                "Free some space, or look at the mount and the owner of the directory.",
            )
            continue
        free = status.f_bavail * status.f_frsize
        if free < SPACE_MIN:
            yield Finding(
                "warning",
                "disk",
                f"only {free >> 10} KiB are free in {directory} ({what}).",
                "Free some space.",
            )
        else:
            yield Finding("ok", "disk", f"{directory} ({what}) has {free >> 20} MiB free.")


def policy(role: str, policies: PolicySet, peers: Iterable[str]) -> Iterator[Finding]:
    """Checks that each peer may reach something."""
    names = list(peers)
    denied = []
    for name in names:
        rules = policies.for_peer(name)
        if rules is not None and rules.allows_nothing:
            denied.append(name)
    if not denied:
        yield Finding("ok", "policy", "each peer may reach something.")
        return
    who = "every peer" if len(denied) == len(names) else ", ".join(denied[:10])
    yield Finding(
        "problem",
        "policy",
        f"it denies {who} everything: a destination needs a rule in allowed_hosts and one in "
        "allowed_ports.",
        f"Write rules into [policy] of this {role}; `socks-tunnel policy test` explains them.",
    )
