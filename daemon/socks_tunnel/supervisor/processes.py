"""The process table: each slot holds one child process and keeps it running.

These are the states of a slot. All transitions are in :class:`Slot`::

    starting --ready--> running
       |                   |
       +-----ends----------+--> waiting (back-off) --> starting
       |                   |
       +-----stop()--------+--> stopped

Each child has one end of a socketpair. When this process dies, for whatever reason, the children
read end-of-file and end too. The launcher starts the processes.
"""

import asyncio
import logging
import os
import signal
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

from socks_tunnel.ipc.descriptors import send_descriptors
from socks_tunnel.ipc.stream import Channel, connect
from socks_tunnel.ops.bugs import BugLog
from socks_tunnel.ops.process import KILL_TIMEOUT
from socks_tunnel.ops.tasks import spawn
from socks_tunnel.protocol.bounded import clip
from socks_tunnel.protocol.errors import RemoteProtocolError
from socks_tunnel.protocol.ipc import (
    ChildHello,
    ChildReady,
    Control,
    HandedOver,
    HandOver,
    IpcPing,
    IpcPong,
    Shutdown,
)
from socks_tunnel.supervisor.backoff import Backoff
from socks_tunnel.supervisor.launching import Exec, Forked, Launcher, Process
from socks_tunnel.supervisor.problems import EXIT_CONFIG

_log = logging.getLogger(__name__)
_bugs = BugLog()

TICK: Final = 2.0
"""Seconds between two calls of :meth:`Slot.tick`, each of which sends a ping."""

UNANSWERED_MAX: Final = 10
"""Pings in a row without an answer after which a child is killed. Pings are counted and not
seconds, so that a pause of this process does not kill its children."""

UNANSWERED_RECENT: Final = 4
"""Unanswered pings up to which a child counts as responsive, for the watchdog."""

BOOT_TICKS: Final = 30
"""Ticks that a child has to become ready."""

BOOT_ATTEMPTS: Final = 3
"""Deaths in a row after which a child that was never ready counts as unable to start."""

LIVED_LONG: Final = 30.0
"""Seconds of life after which a child's death does not lengthen the back-off."""

CHANNEL_GRACE: Final = 5.0
"""Seconds that a child may live on after it closed its IPC stream."""

SlotState = Literal["starting", "running", "waiting", "stopped"]


@dataclass(frozen=True, slots=True)
class HandedChild:
    """A child whose program was replaced: its process id, and the supervisor's end of its stream.

    The child waits for the descriptors that :meth:`Slot.inherited_fds` returns, and then sends its
    hello.
    """

    pid: int
    fd: int


class Slot:
    """A place in the process table. Subclasses say what is run and what its frames mean.

    `name` is for logs ("worker 1"). `restarts` counts how often the process was started again.
    `boot_attempts` is how often it may die before it was ever ready (None: without limit), and the
    delays before restarts grow from `first_delay` to `longest_delay` seconds. `launcher` starts
    the process, by default with exec. A child has to speak the IPC framing: it sends `hello` with
    its pid, later `ready`, and `pong` to each `ping`.

    This class has many methods because subclasses have one for each step of a child's life.
    """

    def __init__(
        self,
        name: str,
        *,
        first_delay: float = 0.2,
        longest_delay: float = 10.0,
        boot_attempts: int | None = BOOT_ATTEMPTS,
        launcher: Launcher | None = None,
    ) -> None:
        self.name = name
        self.state: SlotState = "starting"
        self.pid: int | None = None
        self._last_pid: int | None = None
        self.restarts = 0
        self.channel: Channel | None = None
        self.was_ready = asyncio.Event()
        """Set for good once the child was ready for the first time."""
        self.ended: asyncio.Task[None] | None = None
        """The task that keeps the process running; done once the slot is stopped."""
        self._backoff = Backoff(first_delay, longest_delay)
        self._boot_attempts = boot_attempts
        self._boot_failures = 0
        self._launcher = launcher or Exec()
        self._process: Process | None = None
        self._handed: HandedChild | None = None
        self._handing: asyncio.Future[int] | None = None
        self._stopping = asyncio.Event()
        self._boot_ticks = 0
        self._pings_sent = 0
        self._unanswered = 0
        self._condemned = False
        self._pong = asyncio.Event()
        self._killed_by_us = False
        self._retired = False

    # --- for subclasses -----------------------------------------------------------------------

    def command(self, ipc_fd: int) -> Sequence[str]:
        """Returns the command line; `ipc_fd` is the child's end of the stream."""
        raise NotImplementedError

    def environment(self) -> dict[str, str]:
        """Returns variables that are added to the child's environment."""
        return {}

    def inherited_fds(self) -> Sequence[int]:
        """Returns further file descriptors, which the child inherits under the same numbers."""
        return ()

    def on_hello(self) -> None:
        """Called when the child has connected. It is not ready yet."""

    def on_ready(self) -> None:
        """Called when the child is ready: :attr:`channel` takes messages."""

    def on_lost(self) -> None:
        """Called when a child that had sent its hello has ended; once for each hello."""

    def on_unbootable(self, reason: str, status: int | None) -> None:
        """Called when a child that was never ready is given up. `status` is its exit status."""

    def on_restart(self) -> None:
        """Called before the child is started again."""

    def on_control(self, session: int, message: Control) -> None:
        """Takes a control message that the slot itself does not handle."""
        del session
        raise RemoteProtocolError(f"a child must not send '{message.OP}'", kind="ipc-control")

    def on_messages(self, session: int, messages: list[memoryview]) -> None:
        """Takes tunnel messages, which are valid only during the call."""
        del session, messages
        raise RemoteProtocolError("this child must not send tunnel messages", kind="ipc-message")

    def on_bug(self, session: int, message: Control | None, error: Exception) -> None:
        """Called when the handler of a message met a bug, to end what the message was for.

        By default this raises `error`, which ends the child, so that it is started again: without
        the message its state is not known.
        """
        del session, message
        raise error

    # --- life ---------------------------------------------------------------------------------

    def start(self, handed: HandedChild | None = None) -> None:
        """Keeps the process running until :meth:`stop` or :meth:`kill`; `handed` is the first."""
        self._handed = handed
        self.ended = spawn(f"keep {self.name} running", self._keep())

    @property
    def running(self) -> bool:
        """Whether the child is ready and its stream is open."""
        return self.state == "running"

    @property
    def responsive(self) -> bool:
        """Whether the child has answered lately; also true while it is not ready."""
        return not self.running or self._unanswered <= UNANSWERED_RECENT

    async def stop(self, timeout: float) -> None:  # noqa: ASYNC109 - the kill after it is part of it
        """Tells the child to shut down; kills it if it still runs after `timeout` seconds."""
        self._stopping.set()
        if self.ended is None:
            return
        if self.channel is not None:
            self.channel.send_control(0, Shutdown())
        else:
            self._signal(signal.SIGKILL)
        done, _ = await asyncio.wait([self.ended], timeout=timeout)
        if not done:
            _log.warning(
                "%s did not shut down within %.0f s; killing it (SIGKILL)", self.name, timeout
            )
            self._signal(signal.SIGKILL)
            done, _ = await asyncio.wait([self.ended], timeout=KILL_TIMEOUT)
            if not done:
                _log.error(
                    "%s (PID %s) did not end within %.0f s after SIGKILL; it may still run",
                    self.name,
                    self.pid,
                    KILL_TIMEOUT,
                )

    def retire(self) -> None:
        """Starts no further process in this slot. A child that is ready goes on."""
        self._retired = True
        if not self.running:
            self.kill()

    async def hand_over(self, timeout: float) -> tuple[HandedChild, int] | None:  # noqa: ASYNC109 - the kill after it is part of it
        """Lets the child replace its program; returns the child and the number of its flows.

        Returns None if the child is not ready or does not answer within `timeout` seconds: then it
        is killed. After this nothing may be sent to the child, and this slot starts no other.
        """
        self._retired = True
        channel = self.channel
        if channel is None or not self.running or self.pid is None:
            self.kill()
            return None
        self._handing = asyncio.get_running_loop().create_future()
        channel.send_control(0, HandOver())
        channel.fall_silent()
        try:
            async with asyncio.timeout(timeout):
                flows = await self._handing
        except (TimeoutError, ConnectionError):
            _log.error("%s did not hand its flows over; killing it, which ends them", self.name)
            self.kill()
            return None
        os.set_inheritable(channel.descriptor, True)
        return HandedChild(self.pid, channel.descriptor), flows

    def kill(self) -> None:
        """Kills the child for good (SIGKILL); :attr:`ended` is done soon after."""
        self._stopping.set()
        self._signal(signal.SIGKILL)

    async def acknowledged(self, timeout: float) -> bool:  # noqa: ASYNC109 - giving up is an answer
        """Waits until the child has handled all that was sent to it so far.

        Returns False if it did not within `timeout` seconds, or if it is not ready.
        """
        channel = self.channel
        if channel is None or not self.running:
            return False
        self._ping()
        awaited = self._pings_sent
        try:
            async with asyncio.timeout(timeout):
                while self.channel is channel and self._pings_sent - self._unanswered < awaited:
                    self._pong.clear()
                    await self._pong.wait()
        except TimeoutError:
            return False
        return self.channel is channel

    def tick(self) -> None:
        """Pings the child, and aborts one that hangs. Called each :data:`TICK` seconds."""
        if self._process is None or self._stopping.is_set():
            return
        if self._condemned:
            _log.error("%s survived SIGABRT; killing it (SIGKILL)", self.name)
            self._signal(signal.SIGKILL)
        elif self.state == "starting":
            self._boot_ticks += 1
            if self._boot_ticks >= BOOT_TICKS:
                self._condemn(f"was not ready within {BOOT_TICKS * TICK:.0f} s")
        elif self.running:
            if self._unanswered >= UNANSWERED_MAX:
                self._condemn(f"has not answered for {UNANSWERED_MAX * TICK:.0f} s")
            else:
                self._ping()

    def _ping(self) -> None:
        assert self.channel is not None
        self._pings_sent += 1
        self._unanswered += 1
        self.channel.send_control(0, IpcPing(self._pings_sent))

    def _condemn(self, why: str) -> None:
        self._condemned = True
        _log.error("%s %s; aborting it (SIGABRT)", self.name, why)
        self._signal(signal.SIGABRT)

    def _signal(self, number: signal.Signals) -> None:
        if self._process is not None and self._process.returncode is None:
            self._killed_by_us = True
            try:
                self._process.send_signal(number)
            except ProcessLookupError:
                return  # it has ended, which the event loop has not noticed yet

    async def _keep(self) -> None:
        loop = asyncio.get_running_loop()
        while not self._stopping.is_set():
            began = loop.time()
            self.state = "starting"
            status: int | None = None
            try:
                status = await self._run_once()
                ending = describe_exit(status, killed_by_us=self._killed_by_us)
            except OSError as error:
                ending = f"cannot be started: {error}"
            except Exception as error:  # noqa: BLE001 - logged, and no reason to give the child up
                _bugs.tell(_log, f"{self.name} cannot be kept running because of a bug", error)
                ending = f"met a bug of the supervisor: {clip(error)}"
            if self._stopping.is_set():
                _log.debug("%s %s", self.name, ending)
                break
            # The kernel's log names a process that it has killed by its PID.
            pid = "" if status is None else f"; it had PID {self._last_pid}"
            if self._retired:
                _log.error("%s %s%s; this program does not start it again", self.name, ending, pid)
                break
            if not self.was_ready.is_set() and self._boot_attempts is not None:
                self._boot_failures += 1
                if status == EXIT_CONFIG or self._boot_failures >= self._boot_attempts:
                    self.on_unbootable(f"{self.name} {ending} before it was ready", status)
                    break
            if loop.time() - began >= LIVED_LONG:
                self._backoff.reset()
            delay = self._backoff.next()
            _log.error("%s %s%s; restarting in %.1f s", self.name, ending, pid, delay)
            self.state = "waiting"
            try:
                async with asyncio.timeout(delay):
                    await self._stopping.wait()
            except TimeoutError:
                self.restarts += 1
                self.on_restart()
        self.state = "stopped"

    async def _run_once(self) -> int:
        """Runs the process once; returns its exit status, negative for a signal."""
        self._boot_ticks = self._pings_sent = self._unanswered = 0
        self._condemned = self._killed_by_us = False
        handed, self._handed = self._handed, None
        process, ours = await self._spawn() if handed is None else self._adopt(handed)
        self._process = process
        self.pid = self._last_pid = process.pid
        exited = spawn(f"{self.name} exits", process.wait())
        try:
            channel = await connect(ours, lambda: _SlotChannel(self))
            if self._stopping.is_set():  # stop() or kill() was called while there was no process
                self._signal(signal.SIGKILL)
            closed = channel.closed
            either: list[asyncio.Future[Any]] = [exited, closed]
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
            if not exited.done():
                await asyncio.wait([exited], timeout=CHANNEL_GRACE)
            if not exited.done():
                _log.error("%s closed its stream but lives on; killing it (SIGKILL)", self.name)
                self._signal(signal.SIGKILL)
            status = await exited
            if not closed.done():
                # Its last frames may still be read. Only a grandchild could keep the stream open.
                await asyncio.wait([closed], timeout=1.0)
            channel.abort()
            await closed
        finally:
            self._signal(signal.SIGKILL)
            self._process = None
            self.pid = None
        return status

    async def _spawn(self) -> tuple[Process, socket.socket]:
        """Starts the process; returns it with the supervisor's end of its stream."""
        ours, theirs = socket.socketpair()
        try:
            with theirs:
                process = await self._launcher.start(
                    self.command(theirs.fileno()),
                    (theirs.fileno(), *self.inherited_fds()),
                    self.environment(),
                )
        except BaseException:
            ours.close()
            raise
        return process, ours

    def _adopt(self, handed: HandedChild) -> tuple[Process, socket.socket]:
        """Takes over a child of the previous program; returns it as :meth:`_spawn` does."""
        ours = socket.socket(fileno=handed.fd)
        try:
            ours.set_inheritable(False)
            process = Forked(handed.pid)
            send_descriptors(ours, self.inherited_fds())
        except BaseException:
            ours.close()
            raise
        return process, ours

    # --- frames -------------------------------------------------------------------------------

    def frame(self, channel: Channel, session: int, message: Control) -> None:
        """Takes a control message of the child."""
        if self.channel is None:
            if not isinstance(message, ChildHello) or message.pid != self.pid:
                raise RemoteProtocolError(
                    f"the first frame is '{message.OP}', and not the hello of PID {self.pid}",
                    kind="ipc-control",
                )
            self.channel = channel
            self.on_hello()
        elif isinstance(message, IpcPong):
            if not 0 < message.number <= self._pings_sent:
                raise RemoteProtocolError("a pong to a ping that was not sent", kind="ipc-control")
            self._unanswered = min(self._unanswered, self._pings_sent - message.number)
            self._pong.set()
        elif isinstance(message, HandedOver) and self._handing is not None:
            # The next frame comes from the child's new program, for the new supervisor.
            channel.leave(lambda: self._handed_over(message.flows))
        elif isinstance(message, ChildReady) and self.state == "starting":
            self.state = "running"
            if self.restarts:
                _log.info("%s is running again (PID %d)", self.name, self.pid)
            self.was_ready.set()
            self.on_ready()
        else:
            self.on_control(session, message)

    def _handed_over(self, flows: int) -> None:
        if self._handing is not None and not self._handing.done():
            self._handing.set_result(flows)

    def closed(self, error: Exception | None) -> None:
        """Called when the stream of the child has ended; `error` is None for an end of file."""
        if self._handing is not None and not self._handing.done():
            self._handing.set_exception(ConnectionError(f"{self.name} ended"))
        if isinstance(error, RemoteProtocolError):
            _log.error("%s broke the IPC protocol (%s); killing it (SIGKILL)", self.name, error)
            self._signal(signal.SIGKILL)
        elif error is not None:
            _log.debug("the IPC stream of %s ended: %r", self.name, error)
        self._pong.set()
        if self.channel is not None:
            self.channel = None
            if self.running:
                self.state = "starting"  # so that nothing is sent to it any more
            self.on_lost()


class _SlotChannel(Channel):
    """The supervisor's end of one child's stream."""

    def __init__(self, slot: Slot) -> None:
        super().__init__()
        self._slot = slot
        self.closed: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def on_messages(self, session: int, messages: list[memoryview]) -> None:
        self._slot.on_messages(session, messages)

    def on_control(self, session: int, message: Control) -> None:
        self._slot.frame(self, session, message)

    def on_bug(self, session: int, message: Control | None, error: Exception) -> None:
        self._slot.on_bug(session, message, error)

    def on_closed(self, error: Exception | None) -> None:
        try:
            self._slot.closed(error)
        finally:
            self.closed.set_result(None)


def describe_exit(status: int, *, killed_by_us: bool = False) -> str:
    """Returns in words how a process ended. `status` is negative for a signal, as in `subprocess`.

    `killed_by_us` says that this program has sent a signal.
    """
    if status >= 0:
        return f"exited with status {status}"
    try:
        name = signal.Signals(-status).name
    except ValueError:
        name = f"signal {-status}"
    if status == -signal.SIGKILL and not killed_by_us:
        return f"was killed by {name} (by the kernel for want of memory, or by hand)"
    return f"was killed by {name}"
