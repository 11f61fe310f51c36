"""Accepting clients on listening sockets that all workers share."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

from socks_tunnel.protocol.lone import Lone
from socks_tunnel_workers.sockets import is_shortage, prepare_listening

if TYPE_CHECKING:
    from socks_tunnel_workers.frontends.clients import Clients

ACCEPTS_PER_TURN: Final = 16
"""Connections accepted in one turn of the event loop, so that the other workers get their share of
a burst."""

PAUSE_SECONDS: Final = 0.5
"""Seconds for which nothing is accepted after the system had no descriptor or memory for a
connection."""


class Listener:
    """One inherited listening TCP or Unix socket. `serve` is called for each accepted client.

    All workers share the socket. So another worker accepts a connection that this one does not
    accept, for instance while this one is restarted.
    """

    def __init__(
        self, clients: Clients, sock: socket.socket, serve: Callable[[socket.socket, Any], object]
    ) -> None:
        self._clients = clients
        self._serve = serve
        self._sock = sock
        self._watching = False
        self._pause: asyncio.TimerHandle | None = None
        self._lone = Lone()
        prepare_listening(sock)

    def start(self) -> None:
        """Accepts from now on."""
        if not self._watching:
            self._watching = True
            self._clients.loop.add_reader(self._sock, self._acceptable)

    def stop(self) -> None:
        """Stops accepting. Queued connections stay for the other workers."""
        if self._pause is not None:
            self._pause.cancel()
            self._pause = None
        if self._watching:
            self._watching = False
            self._clients.loop.remove_reader(self._sock)

    def _acceptable(self) -> None:
        # Whether another client waits is known only by a system call that fails if none does, and
        # takes 15 to 20 µs. For one that comes alone it is saved; the event loop calls again if
        # there is another one after all. In a burst, clients are taken together, because what their
        # flows say then shares messages and wake-ups.
        alone = self._lone.comes(time.monotonic())
        for _ in range(1 if alone else ACCEPTS_PER_TURN):
            if not self._accept():
                return

    def _accept(self) -> bool:
        """Takes a client; returns whether to ask for another one."""
        try:
            sock, address = self._sock.accept()
        except (BlockingIOError, InterruptedError):
            return False
        except OSError as error:
            if is_shortage(error):
                # The queued connection would wake the loop again at once. A pause gives other
                # connections time to close.
                self.stop()
                self._clients.report_resource(error)
                self._pause = self._clients.loop.call_later(PAUSE_SECONDS, self._resume)
                return False
            # accept(2): "Linux accept() passes already-pending network errors on the new socket
            # as an error code from accept()." That connection is gone; the next one is not.
            return True
        if self._clients.full:
            self._clients.report_full()
            self._clients.counters.count("socks_rejected_total", "too-many")
            sock.close()
            return True
        self._take(sock, address)
        return True

    def _take(self, sock: socket.socket, address: Any) -> None:
        try:
            sock.setblocking(False)
            self._serve(sock, address)
        except OSError:  # the client has reset the connection since it was accepted
            sock.close()
        except Exception as error:  # noqa: BLE001 - a bug that one client meets must not cost the others
            self._clients.bug(error, "a client is not served")
            sock.close()

    def _resume(self) -> None:
        self._pause = None
        self.start()
