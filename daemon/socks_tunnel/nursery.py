"""`python -m socks_tunnel.nursery`: a process from which the supervisor's children are forked.

It imports once what all children need, and then waits for orders. A child that is forked from it
shares the memory of those imports with its siblings until it writes to it, and starts without
importing anything: four megabytes and some milliseconds instead of 19 MiB and half a second.

The nursery has one socket (SOCK_SEQPACKET) to the supervisor. The first message names the modules
to import, separated by commas. Each order is one message with parts that are separated by NUL, and
further messages with a NUL and up to :data:`FDS_PER_MESSAGE` descriptors each::

    descriptors   the numbers that the child has them under, separated by commas
    count         of the variables that follow
    NAME=VALUE    what the child's environment has besides that of the nursery
    arguments     the command line of the child: [..., "-m", MODULE, argument, ...]

The answer is the process id of the child, or the negative number of an error. The child belongs to
the supervisor, not to the nursery: the process between them ends at once, and the supervisor has
asked the kernel for its orphans (PR_SET_CHILD_SUBREAPER in prctl(2)). So a nursery may end without
harm to its children; the supervisor starts another when it needs one.
"""

import ctypes
import fcntl
import gc
import os
import runpy
import select
import signal
import socket
import sys
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Final

from socks_tunnel.ops.process import die_with_parent, give_back_freed

ADOPTION_TIMEOUT_MS: Final = 60_000
"""Milliseconds that the process between has to end: as long as a supervisor waits for an answer."""

ORDER_MAX: Final = 65_536
"""Longest order in bytes."""

FDS_PER_MESSAGE: Final = 128
"""The kernel carries up to 253 (SCM_MAX_FD)."""

ROOM: Final = 1024
"""Bytes of the nursery's command line that make room for that of a child, which is as long as the
number of its listening sockets makes it; what does not fit is cut off."""


@dataclass(frozen=True, slots=True)
class Order:
    """What a child is to be: its command line, and what it has."""

    arguments: list[str]
    environment: list[str]
    numbers: list[int]
    descriptors: list[int]
    """As they came; `numbers` says where the child has them."""

    def obey(self) -> None:
        """Makes this process what was ordered, up to the point where its module is run."""
        os.setsid()  # Ctrl-C in the terminal is for the supervisor, which then drains
        # Out of the way at first: one may have come under a number that another is to get.
        above = max([2, *self.numbers]) + 1
        moved = [fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, above) for fd in self.descriptors]
        for fd in self.descriptors:
            os.close(fd)
        for fd, number in zip(moved, self.numbers, strict=True):
            os.dup2(fd, number, inheritable=False)
            os.close(fd)
        for each in self.environment:
            name, _, value = each.partition("=")
            os.environ[name] = value
        _show(self.arguments)
        sys.orig_argv = list(self.arguments)
        sys.argv = self.arguments[self.arguments.index("-m") + 1 :]


def main() -> None:
    """Serves orders until the supervisor closes the socket; in a child, runs its module."""
    die_with_parent()
    _show(sys.orig_argv[:-1])  # without what only makes room
    # As its children do: the supervisor decides when they end.
    for number in (
        signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2
    ):  # fmt: skip
        signal.signal(number, signal.SIG_IGN)
    with socket.socket(fileno=int(sys.argv[1])) as asker:
        for name in asker.recv(ORDER_MAX).decode().split(","):
            import_module(name)
        # What lives as long as the process is not looked at by the collector: it would write to it.
        gc.collect()
        gc.freeze()
        give_back_freed()
        order = serve(asker, os.getppid())
    if order is not None:
        order.obey()
        runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)


def serve(asker: socket.socket, supervisor: int) -> Order | None:
    """Forks a child for each order; returns in a child with its order, or None at the end."""
    while (order := receive(asker)) is not None:
        reading, writing = os.pipe()
        between = os.fork()
        if not between:
            between = os.getpid()
            os.close(reading)
            try:
                child = os.fork()
            except OSError as error:
                child = -(error.errno or 1)
            if child:
                os.write(writing, b"%d" % child)
                os._exit(0)
            os.close(writing)
            await_adoption(between, supervisor)
            return order
        os.close(writing)
        for fd in order.descriptors:
            os.close(fd)
        with open(reading, "rb") as pipe:  # noqa: PTH123 - a descriptor
            answer = pipe.read()
        # Once it is gone the child is the supervisor's: who knows its number may wait for it.
        os.waitpid(between, 0)
        asker.send(answer)
    return None


def receive(asker: socket.socket) -> Order | None:
    """Waits for an order; returns None if the supervisor has closed the socket."""
    parts = asker.recv(ORDER_MAX).decode("utf-8", "surrogateescape").split("\0")
    if parts == [""]:
        return None
    numbers = [int(number) for number in parts[0].split(",")]
    descriptors: list[int] = []
    while len(descriptors) < len(numbers):
        data, some, _, _ = socket.recv_fds(asker, 1, FDS_PER_MESSAGE)
        if not data:
            return None
        descriptors += some
    count = int(parts[1])
    return Order(parts[2 + count :], parts[2 : 2 + count], numbers, descriptors)


def await_adoption(between: int, supervisor: int) -> None:
    """Waits until the process that has forked this one is gone, and the supervisor its parent.

    Before that, to die with the parent (PR_SET_PDEATHSIG) would be to die at once. Raises
    :class:`SystemExit` if the supervisor is gone too, or that process does not end.
    """
    if os.getppid() == between:
        try:
            fd = os.pidfd_open(between)
        except ProcessLookupError:
            fd = -1  # it has been waited for, after it had lost its children
        if fd >= 0:
            poll = select.poll()
            poll.register(fd, select.POLLIN)
            ended = poll.poll(ADOPTION_TIMEOUT_MS)
            os.close(fd)
            if not ended:
                raise SystemExit(1)  # the supervisor has given up waiting for an answer
    if os.getppid() != supervisor:
        raise SystemExit(1)


def _show(arguments: list[str]) -> None:
    """Writes a command line over that of this process, where ps(1) reads it."""
    fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
    start, end = int(fields[45]), int(fields[46])  # arg_start and arg_end of proc_pid_stat(5)
    if end > start > 0:
        text = b"".join(os.fsencode(each) + b"\0" for each in arguments)[: end - start - 1]
        ctypes.memmove(start, text.ljust(end - start, b"\0"), end - start)


if __name__ == "__main__":
    main()
