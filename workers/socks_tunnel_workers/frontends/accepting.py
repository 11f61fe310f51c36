"""Accepting clients on listening sockets that all workers share."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

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
        for _ in range(ACCEPTS_PER_TURN):
            try:
                sock, address = self._sock.accept()
            except (BlockingIOError, InterruptedError):
                return
            except OSError as error:
                if is_shortage(error):
                    # The queued connection would wake the loop again at once. A pause gives other
                    # connections time to close.
                    self.stop()
                    self._clients.report_resource(error)
                    self._pause = self._clients.loop.call_later(PAUSE_SECONDS, self._resume)
                    return
                # accept(2): "Linux accept() passes already-pending network errors on the new socket
                # as an error code from accept()." That connection is gone; the next one is not.
                continue
            if self._clients.full:
                self._clients.report_full()
                self._clients.counters.count("socks_rejected_total", "too-many")
                sock.close()
                continue
            self._take(sock, address)

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
