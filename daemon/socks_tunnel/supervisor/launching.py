"""Starts children of the supervisor: by exec, or by a fork of the nursery.

Either way, the process is a child of this one, with the same command line, environment and
descriptors. See :mod:`socks_tunnel.nursery`.
"""

import asyncio
import os
import signal
import socket
import sys
from collections.abc import Mapping, Sequence
from typing import Final, Protocol

from socks_tunnel.nursery import FDS_PER_MESSAGE, ORDER_MAX, ROOM
from socks_tunnel.ops.process import KILL_TIMEOUT, adopt_orphans
from socks_tunnel.ops.tasks import spawn
from socks_tunnel.supervisor.environment import OWN_ENVIRONMENT

# -P: nothing is imported from the working directory.
# faulthandler: a child that hangs is aborted with SIGABRT, and then prints where it was.
PYTHON: Final = (sys.executable, "-P", "-X", "faulthandler", "-m")

PRELOADED: Final = (
    "uvloop",
    "socks_tunnel.ipc.descriptors",
    "socks_tunnel.ops.arguments",
    "socks_tunnel.ops.logging",
    "socks_tunnel.exporter.server",
    "socks_tunnel_workers.worker",
)
"""Modules that the nursery imports, once for all children."""

ANSWER_TIMEOUT: Final = 60.0
"""Seconds that the nursery has for an order. The first order also waits for the imports."""

END_TIMEOUT: Final = 5.0
"""Seconds that the nursery has to end after its socket was closed."""

REST: Final = 15.0
"""Seconds after its last order after which the nursery ends.

It holds 7 MiB that its children do not share any more, because each has written to its own copy.
This time is longer than the longest delay before a child is started again.
"""


class Process(Protocol):
    """A child of this process; :class:`asyncio.subprocess.Process` is one."""

    @property
    def pid(self) -> int:
        """Its process id."""

    @property
    def returncode(self) -> int | None:
        """Its exit status, negative for a signal; None while it runs."""

    def send_signal(self, signal: int) -> None:
        """Sends it a signal. Raises :class:`ProcessLookupError` if it has ended."""

    async def wait(self) -> int:
        """Waits for its end; returns its exit status."""


class Launcher(Protocol):
    """A way to start children."""

    async def start(
        self, command: Sequence[str], fds: Sequence[int], environment: Mapping[str, str]
    ) -> Process:
        """Starts `command`. The child inherits the descriptors `fds` under the same numbers.

        `environment` is added to this process's environment. Raises :class:`OSError`.
        """


class Exec:
    """Starts each child with exec, as a program of its own."""

    async def start(
        self, command: Sequence[str], fds: Sequence[int], environment: Mapping[str, str]
    ) -> Process:
        """As :meth:`Launcher.start`."""
        env = {k: v for k, v in os.environ.items() if k not in OWN_ENVIRONMENT}
        return await asyncio.create_subprocess_exec(
            *command,
            stdin=asyncio.subprocess.DEVNULL,
            env={**env, **environment},
            pass_fds=fds,
            # Not in the terminal's process group: Ctrl-C is for the supervisor, which then drains.
            start_new_session=True,
        )


class Nursery:
    """Starts each child by a fork of the nursery, a process that has imported what children need.

    The nursery is started for the first child. It ends `rest` seconds after the last child was
    started, and is started again for the next one.
    """

    def __init__(self, preloaded: Sequence[str] = PRELOADED, *, rest: float = REST) -> None:
        self._preloaded = preloaded
        self._rest = rest
        self._resting: asyncio.TimerHandle | None = None
        self._process: Process | None = None
        self._socket: socket.socket | None = None
        self._orders = asyncio.Lock()
        self._closed = False

    @property
    def pid(self) -> int | None:
        """The process id of the nursery; None if it does not run."""
        return None if self._process is None else self._process.pid

    async def start(
        self, command: Sequence[str], fds: Sequence[int], environment: Mapping[str, str]
    ) -> Process:
        """As :meth:`Launcher.start`. `command` has to run a Python module (:data:`PYTHON`)."""
        async with self._orders:
            if self._closed:
                raise OSError("the instance is ending, and starts no child any more")
            self._stay()
            try:
                async with asyncio.timeout(ANSWER_TIMEOUT):
                    answer = await self._order(command, fds, environment)
            except BaseException as error:
                # The nursery is ended, because a late answer would count for the next order.
                ending = await self._end(END_TIMEOUT if isinstance(error, ConnectionError) else 0)
                if isinstance(error, OSError):
                    raise OSError(f"the nursery {ending} ({error})") from None
                raise
            self._resting = asyncio.get_running_loop().call_later(self._rest, self._begin_rest)
        number = int(answer)
        if number < 0:
            raise OSError(-number, os.strerror(-number))
        return Forked(number)

    async def _order(
        self, command: Sequence[str], fds: Sequence[int], environment: Mapping[str, str]
    ) -> bytes:
        """Gives an order and returns the answer. Raises :class:`OSError`."""
        variables = [f"{name}={value}" for name, value in environment.items()]
        parts = [",".join(map(str, fds)), str(len(variables)), *variables, *command]
        order = "\0".join(parts).encode("utf-8", "surrogateescape")
        if len(order) > ORDER_MAX:
            raise OSError(
                f"a command line with its environment has {len(order)} bytes, "
                f"more than the {ORDER_MAX} that the nursery takes"
            )
        if self._socket is not None:
            try:
                return await _ask(self._socket, order, fds)
            except (BrokenPipeError, ConnectionResetError):
                # The nursery has ended, and nobody has read the order. A child that it had just
                # forked may have kept its end of the socket open a moment longer.
                await self._end()
        self._socket = await self._boot()
        return await _ask(self._socket, order, fds)

    async def close(self) -> None:
        """Ends the nursery. Its children go on, and :meth:`start` raises OSError from now on."""
        self._closed = True
        self._stay()
        if self._process is not None and self._process.returncode is None:
            self._process.send_signal(signal.SIGKILL)
        async with self._orders:
            await self._end()

    def _stay(self) -> None:
        if self._resting is not None:
            self._resting.cancel()
            self._resting = None

    def _begin_rest(self) -> None:
        self._resting = None
        spawn("the nursery rests", self._end_unasked())

    async def _end_unasked(self) -> None:
        """Ends the process, unless an order has come meanwhile."""
        async with self._orders:
            if self._resting is None:
                await self._end(END_TIMEOUT)

    async def _boot(self) -> socket.socket:
        adopt_orphans()
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            command = (*PYTHON, "socks_tunnel.nursery", str(theirs.fileno()), "-" * ROOM)
            try:
                self._process = await Exec().start(command, (theirs.fileno(),), {})
            except BaseException:
                ours.close()
                raise
        if self._closed:  # by a call of close() meanwhile
            ours.close()
            raise OSError("the instance is ending, and starts no child any more")
        ours.setblocking(False)
        ours.send(",".join(self._preloaded).encode())
        return ours

    async def _end(self, grace: float = 0) -> str:
        """Ends the nursery if there is one; kills it if it still runs after `grace` seconds.

        Returns how it ended, as the end of a sentence.
        """
        process, self._process = self._process, None
        sock, self._socket = self._socket, None
        if sock is not None:
            sock.close()
        if process is None:
            return "did not start"
        ended = spawn("the nursery ends", process.wait())
        await asyncio.wait([ended], timeout=grace)
        if process.returncode is None:
            process.send_signal(signal.SIGKILL)
            await asyncio.wait([ended], timeout=KILL_TIMEOUT)
        status = process.returncode
        if status is None:
            return f"(PID {process.pid}) did not end within {KILL_TIMEOUT:.0f} s after SIGKILL"
        return f"ended with status {status}" if status >= 0 else f"was killed by signal {-status}"


async def _ask(sock: socket.socket, order: bytes, fds: Sequence[int]) -> bytes:
    """Gives an order to a nursery and returns the answer.

    Raises :class:`BrokenPipeError` or :class:`ConnectionResetError` if the nursery has ended
    without reading all of the order, and another :class:`OSError` if it ended without an answer.
    """
    sock.send(order)  # never waits: the nursery has read the last order before it answered
    for start in range(0, len(fds), FDS_PER_MESSAGE):
        socket.send_fds(sock, [b"\0"], list(fds[start : start + FDS_PER_MESSAGE]))
    answer = await asyncio.get_running_loop().sock_recv(sock, 64)
    if not answer:
        raise ConnectionAbortedError("it has closed its socket")
    return answer


class Forked:
    """A child that this process has not started itself, but may wait for (pidfd_open(2))."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.returncode: int | None = None
        self._loop = asyncio.get_running_loop()
        self._ended: asyncio.Future[int] = self._loop.create_future()
        self._fd = os.pidfd_open(pid)
        self._loop.add_reader(self._fd, self._reap)

    def _reap(self) -> None:
        self._loop.remove_reader(self._fd)
        os.close(self._fd)
        _, status = os.waitpid(self.pid, 0)
        self.returncode = os.waitstatus_to_exitcode(status)
        self._ended.set_result(self.returncode)

    def send_signal(self, signal: int) -> None:
        """Sends it a signal. Raises :class:`ProcessLookupError` if it has ended."""
        if self.returncode is not None:
            raise ProcessLookupError(self.pid)
        os.kill(self.pid, signal)

    async def wait(self) -> int:
        """Waits for its end; returns its exit status."""
        return await asyncio.shield(self._ended)
