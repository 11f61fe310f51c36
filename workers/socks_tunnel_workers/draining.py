"""Decides when a worker has drained: what it waits for, and for how long.

::

    a flow, and bytes that its socket has not taken   as long as it takes
    an HTTP request that is being answered            as long as it takes
    a handshake, or a request that is incomplete      HANDSHAKE_SECONDS from the start of the drain
    an HTTP connection between two requests           not at all: it is closed

The supervisor limits the whole drain to `drain_timeout`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Final

from socks_tunnel_workers.frontends.clients import Clients
from socks_tunnel_workers.relay.session import WorkerSession

HANDSHAKE_SECONDS: Final = 1.0
"""Seconds from the start of a drain in which clients accepted before may make their request.

A client that says nothing must not delay a restart for longer.
"""

STEP: Final = 0.02
"""Seconds between two looks at the clients. Polling is needed because no event reports the end of a
handshake."""


class Draining:
    """The drain of one worker. `tell` is called once, when nothing is left to wait for."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        sessions: Mapping[int, WorkerSession],
        tell: Callable[[], None],
    ) -> None:
        self.begun = False
        self._loop = loop
        self._sessions = sessions
        self._tell = tell
        self._clients: Clients | None = None
        self._handshakes_until = 0.0
        self._over = False

    def begin(self, clients: Clients | None) -> None:
        """Waits from now on. `clients` is None in a worker that has no configuration yet."""
        if not self.begun:
            self.begun = True
            self._clients = clients
            self._handshakes_until = self._loop.time() + HANDSHAKE_SECONDS
            self._look()

    def end(self) -> None:
        """Waits for nothing more: the worker closes everything."""
        self.begun = self._over = True

    def check(self) -> None:
        """Tells that the worker has drained, if it has. Called when a flow has ended."""
        if self.begun and not self._over and not self._waits():
            self._over = True
            self._tell()

    def _look(self) -> None:
        clients = self._clients
        if clients is not None and not self._over:
            clients.close_idle()
        self.check()
        if clients is not None and clients.opening and not self._over:
            self._loop.call_later(STEP, self._look)

    def _waits(self) -> bool:
        # To its user, a flow is over only when the local socket has taken all of its bytes.
        if any(len(session.flows) or session.lingering for session in self._sessions.values()):
            return True
        if self._clients is None or not self._clients.opening:
            return False
        return self._loop.time() < self._handshakes_until or any(
            client.answering for client in self._clients.opening
        )
