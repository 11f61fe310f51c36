"""A connection of the HTTP front end to an origin server: a flow behind a socket pair."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING, Final, Protocol

from socks_tunnel.protocol.addresses import HostPort
from socks_tunnel.protocol.errors import CloseReason
from socks_tunnel.protocol.http_proxy import status_of
from socks_tunnel.protocol.socks5 import ConnectRequest
from socks_tunnel_workers.frontends.asking import Asker
from socks_tunnel_workers.frontends.identity import Client
from socks_tunnel_workers.frontends.opening import Opening

if TYPE_CHECKING:
    from socks_tunnel_workers.frontends.clients import Clients

_READ: Final = 65_536
"""Bytes read from the socket pair at a time."""


class Requester(Protocol):
    """The client's side, which sends requests to the origin."""

    who: Client

    def origin_opened(self, origin: Origin) -> None:
        """Called when the origin is connected."""

    def origin_failed(self, origin: Origin, reason: int, sentence: str) -> None:
        """Called when the origin cannot be connected. `reason` is a close reason."""

    def from_origin(self, data: bytes) -> None:
        """Called with the bytes that the origin has sent."""

    def origin_ended(self, origin: Origin, *, clean: bool) -> None:
        """Called at the end of the connection. `clean` means an end of file and not a reset."""

    def transmit(self) -> None:
        """Called when the flow has taken all bytes, so that there is room for more."""

    def close(self) -> None:
        """Closes the client's connection without a response."""


class Origin(Asker):
    """The connection to one origin: our end of a socket pair, and the opening of the other end.

    Raises :class:`OSError` if no socket pair can be made.
    """

    __slots__ = (
        "_clients",
        "_ours",
        "_pending",
        "_reading",
        "_session",
        "_theirs",
        "_writing",
        "destination",
        "opening",
    )

    def __init__(self, clients: Clients, session: Requester, destination: HostPort) -> None:
        self._clients = clients
        self._session = session
        self.destination = destination
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        theirs.setblocking(False)
        self._ours: socket.socket | None = ours
        self._theirs: socket.socket | None = theirs
        self._pending = bytearray()
        self._reading = self._writing = False
        self.opening = Opening(
            clients,
            self,
            ConnectRequest(destination),
            session.who,
            theirs,
            own_connection=False,
        )

    @property
    def blocked(self) -> bool:
        """Whether bytes wait for the flow to take them."""
        return bool(self._pending)

    def write(self, data: bytes) -> None:
        """Sends bytes to the origin. What the flow does not take at once waits here."""
        self._pending += data
        self._flush()

    def _flush(self) -> None:
        if self._ours is None:
            return
        try:
            while self._pending:
                del self._pending[: self._ours.send(self._pending)]
        except (BlockingIOError, InterruptedError):
            if not self._writing:
                self._writing = True
                clients = self._clients
                clients.loop.add_writer(self._ours, clients.guard, self._session, self._writable)
            return
        except OSError:
            # The flow has ended. The reader finds the end, after the bytes that came before it.
            self._pending.clear()
        if self._writing:
            self._writing = False
            self._clients.loop.remove_writer(self._ours)

    def _writable(self) -> None:
        self._flush()
        if not self._pending:
            self._session.transmit()

    def read(self, *, wanted: bool) -> None:
        """Begins to read, or stops until the next call."""
        if self._ours is None or wanted is self._reading:
            return
        self._reading = wanted
        if wanted:
            clients = self._clients
            clients.loop.add_reader(self._ours, clients.guard, self._session, self._readable)
        else:
            self._clients.loop.remove_reader(self._ours)

    def _readable(self) -> None:
        assert self._ours is not None
        try:
            data = self._ours.recv(_READ)
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            data = b""
        if data:
            self._session.from_origin(data)
            return
        relay = self.opening.relay
        # A socket pair cannot carry a reset, so the flow says whether this is an end of file.
        clean = relay is not None and relay.core.receive.eof
        self._close_ours()
        self._session.origin_ended(self, clean=clean)

    def close(self, *, abort: bool = True) -> None:
        """Ends the connection. With `abort` the origin sees a reset."""
        self._close_ours()
        relay = self.opening.relay
        if abort and relay is not None and not relay.ended:
            relay.abort(CloseReason.RESET)
        self.opening.cancel()
        self._close_theirs()

    def _close_ours(self) -> None:
        self.read(wanted=False)
        if self._ours is not None:
            if self._writing:
                self._writing = False
                self._clients.loop.remove_writer(self._ours)
            self._ours.close()
            self._ours = None

    def _close_theirs(self) -> None:
        if self._theirs is not None:
            self._theirs.close()
            self._theirs = None

    # --- answers (Asker) ------------------------------------------------------------------------

    def opened(self, bound: HostPort) -> bool:
        """Leaves the other end of the pair to the flow."""
        del bound
        self._theirs = None
        self._session.origin_opened(self)
        return True

    def failed(self, reason: int, sentence: str) -> None:
        """Closes the pair, and tells the client's side why."""
        self._close_ours()
        self._close_theirs()
        self._session.origin_failed(self, reason, sentence)


def status_for(opening: Opening, reason: int) -> int:
    """Returns the HTTP status for a failed request: 503 if there was no endpoint to ask."""
    return status_of(reason) if opening.asked or reason != CloseReason.GENERAL_FAILURE else 503
