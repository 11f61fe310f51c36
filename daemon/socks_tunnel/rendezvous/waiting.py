"""A connection to the service before its client has proved a key."""

import asyncio
import socket
from typing import Any

from socks_tunnel.rendezvous.limits import Ticket


class Waiting:
    """A connection that has not proved a key: its ticket, and how to end it."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.ticket: Ticket | None = None
        self.handler: Any = None
        self.opening: asyncio.Task[None] | None = None
        self.deadline: asyncio.TimerHandle | None = None

    def abort(self) -> None:
        """Ends it at once, in every state."""
        if self.opening is not None:
            self.opening.cancel()  # which closes everything that it has opened so far
        elif self.handler is not None and self.handler.transport is not None:
            self.handler.transport.abort()
