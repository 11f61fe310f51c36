"""One attempt to connect to one address, without a task. Most flows are opened in this way.

A task, its time-out and its future would cost a connection more than its system calls. Names and
several addresses are dialled by :mod:`socks_tunnel_workers.targets.dialer`.
"""

from __future__ import annotations

import asyncio
import errno
import os
import socket
from collections.abc import Callable
from typing import Protocol

from socks_tunnel.protocol.addresses import IPAddress
from socks_tunnel.protocol.errors import Reply
from socks_tunnel_workers.sockets import Liveness, PlainSocket, prepare_dialled
from socks_tunnel_workers.targets.dialer import DialError, explained, failure


class Owner(Protocol):
    """The flow that wants the connection."""

    def take(self, sock: socket.socket) -> None:
        """Watches the connected socket for reading; it is the owner's from here on."""

    def connected(self) -> None:
        """Called after :meth:`take`: the connection is up."""

    def not_connected(self, error: DialError) -> None:
        """Called if there is no connection, with the reason."""


class Attempt:
    """Connects to `address` within `seconds`, from :meth:`start` on.

    The owner is told the outcome exactly once, perhaps before :meth:`start` returns, and not after
    :meth:`cancel`. `guard` calls the handlers of the socket and the timer.
    The owner has to turn keepalive on (:func:`~socks_tunnel_workers.sockets.keep_alive`).
    """

    __slots__ = ("_address", "_guard", "_loop", "_owner", "_port", "_seconds", "_sock", "_timer")

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        owner: Owner,
        guard: Callable[[Callable[[], None]], None],
        address: IPAddress,
        port: int,
        *,
        seconds: float,
    ) -> None:
        self._loop = loop
        self._owner = owner
        self._guard = guard
        self._address = address
        self._port = port
        self._seconds = seconds
        self._sock: socket.socket | None = None
        self._timer: asyncio.TimerHandle | None = None

    def start(self, liveness: Liveness) -> None:
        """Begins to connect. `liveness` is set on the socket."""
        address = self._address
        family = socket.AF_INET if address.version == 4 else socket.AF_INET6
        try:
            self._sock = sock = PlainSocket(family, socket.SOCK_STREAM)
            prepare_dialled(sock, liveness)
            code = sock.connect_ex((str(address), self._port))
        except OSError as error:
            self._fail(error)
            return
        if code == errno.EINPROGRESS:
            self._timer = self._loop.call_later(self._seconds, self._guard, self._timed_out)
            self._loop.add_writer(sock, self._guard, self._writable)
        elif code:
            self._fail(self._error(code))
        else:
            self._sock = None
            self._owner.take(sock)
            self._owner.connected()

    def cancel(self) -> None:
        """Closes the socket without telling the owner. Harmless if the attempt is over."""
        timer, self._timer = self._timer, None
        if timer is not None:
            timer.cancel()
        sock, self._sock = self._sock, None
        if sock is not None:
            self._loop.remove_writer(sock)
            sock.close()

    def _writable(self) -> None:
        sock, timer = self._sock, self._timer
        assert sock is not None
        assert timer is not None
        code = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if code:
            self._fail(self._error(code))
            return
        timer.cancel()
        self._sock = self._timer = None
        # In this order the event loop always watches the descriptor for something. Otherwise it
        # would have to remove the descriptor from epoll and to add it again.
        self._owner.take(sock)
        self._loop.remove_writer(sock)
        self._owner.connected()

    def _error(self, code: int) -> OSError:
        return OSError(code, f"{os.strerror(code)} ({self._address} port {self._port})")

    def _fail(self, error: OSError) -> None:
        self.cancel()
        self._owner.not_connected(failure([explained(error, self._address)]))

    def _timed_out(self) -> None:
        self.cancel()
        self._owner.not_connected(
            DialError(f"no answer within {self._seconds:g} s", Reply.TTL_EXPIRED)
        )
