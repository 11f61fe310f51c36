"""Watches a client that waits for its answer: its early data, and whether it leaves."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from typing import Final, Protocol

from socks_tunnel_workers.services import Account, Charge

EARLY_MAX: Final = 32_768
"""Bytes of early data that are read from one client. More stay in its socket until the answer."""

PROBE_SECONDS: Final = 1.0
"""Seconds between two looks at a client whose socket is not read. SO_ERROR shows a reset without
reading."""


class Watcher(Protocol):
    """Who is told of what the client does."""

    def said(self, data: bytes) -> None:
        """Called with early data of the client."""

    def ended_its_side(self) -> None:
        """Called at the client's end of file."""

    def left(self) -> None:
        """Called when the client has reset its connection."""


class ClientWatch:
    """Reads the socket of one client until :meth:`stop`.

    With `keep`, data is kept in `early` (up to :data:`EARLY_MAX` bytes, charged to `memory`), and
    the watcher is told. Without it, data is thrown away. An end of file is told once; from then on
    the watch only looks for a reset. `guard` calls the handlers of the socket and the timer.
    """

    __slots__ = (
        "_charge",
        "_guard",
        "_keep",
        "_loop",
        "_memory",
        "_probing",
        "_reading",
        "_sock",
        "_watcher",
        "early",
        "eof",
    )

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        memory: Account,
        sock: socket.socket,
        watcher: Watcher,
        *,
        early: bytes,
        keep: bool,
        guard: Callable[[Callable[[], None]], None] | None = None,
    ) -> None:
        self._loop = loop
        self._memory = memory
        self._sock = sock
        self._watcher = watcher
        self._keep = keep
        self._guard = guard or _unguarded
        self._charge: Charge | None = memory.charge(len(early)) if early else None
        self._reading = False
        self._probing: asyncio.TimerHandle | None = None
        self.early = bytearray(early)
        self.eof = False

    def start(self) -> None:
        """Reads from now on."""
        if not self._reading:
            self._reading = True
            self._loop.add_reader(self._sock, self._guard, self._readable)

    def stop(self) -> None:
        """Stops reading. `early` stays. Harmless if that was done before."""
        self._stop_reading()
        self.hand_over()

    def hand_over(self) -> None:
        """Leaves the socket to the flow, whose reader takes the place of this one."""
        self._reading = False
        if self._probing is not None:
            self._probing.cancel()
            self._probing = None
        if self._charge is not None:
            self._charge.end()

    @property
    def _room(self) -> int:
        if not self._keep:
            return EARLY_MAX
        return 0 if self._memory.over else EARLY_MAX - len(self.early)

    def _readable(self) -> None:
        room = self._room
        if room <= 0:
            self._probe_later()
            return
        try:
            data = self._sock.recv(room)
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            self._watcher.left()
            return
        if not data:
            self.eof = True
            self._probe_later()
            self._watcher.ended_its_side()
        elif self._keep:
            self.early += data
            if self._charge is None:
                self._charge = self._memory.charge()
            self._charge.set(len(self.early))
            self._watcher.said(data)

    def _stop_reading(self) -> None:
        if self._reading:
            self._reading = False
            self._loop.remove_reader(self._sock)

    def _probe_later(self) -> None:
        """Stops reading, because there is no room or nothing to come. Looks for a reset instead."""
        self._stop_reading()
        self._probing = self._loop.call_later(PROBE_SECONDS, self._guard, self._probe)

    def _probe(self) -> None:
        self._probing = None
        if self._sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
            self._watcher.left()
        elif not self.eof and self._room > 0:
            self.start()
        else:
            self._probe_later()


def _unguarded(handler: Callable[[], None]) -> None:
    handler()
