"""A client that speaks HTTP to the proxy's port: CONNECT, and requests in absolute form.

:class:`socks_tunnel.protocol.http_proxy.ProxyConnection` decides what to do, and this module owns
the sockets. A CONNECT becomes a flow on the client's own socket. A request in absolute form needs a
reader between client and origin, but a flow needs a socket. So the flow gets one end of a socket
pair, and this module reads and writes the other end::

    client <--TCP--> HttpSession <--pair--> flow <--tunnel--> origin

At most one read each way is buffered here: while one side does not take its bytes, the other side
is not read.
"""

from __future__ import annotations

import asyncio
import socket
from typing import TYPE_CHECKING, Final

from socks_tunnel.protocol.addresses import HostPort
from socks_tunnel.protocol.errors import RemoteProtocolError, Reply, reply_of
from socks_tunnel.protocol.http_proxy import (
    Event,
    ExchangeEnded,
    ForwardRequest,
    ProxyConnection,
    RequestRejected,
    ResponseBroken,
)
from socks_tunnel.protocol.socks5 import NEED_DATA, ConnectRequest, PasswordOffered
from socks_tunnel_workers.frontends.asking import SHORTAGE, Asker
from socks_tunnel_workers.frontends.identity import Client
from socks_tunnel_workers.frontends.logins import Login, Verdict
from socks_tunnel_workers.frontends.opening import Opening
from socks_tunnel_workers.frontends.origin import Origin, status_for
from socks_tunnel_workers.sockets import linger_close, reset

if TYPE_CHECKING:
    from socks_tunnel_workers.frontends.clients import Clients

HEAD_SECONDS: Final = 30.0
"""Seconds in which a client must have made its first request."""

KEEP_SECONDS: Final = 60.0
"""Seconds in which the next request must have come on a connection that is kept."""

AHEAD_MAX: Final = 65_536
"""Bytes of later requests that are read while an earlier one has no answer yet."""

_READ: Final = 65_536
"""Bytes read from a client's socket at a time."""


class HttpSession(Asker):
    """One client connection, for as many requests as it makes.

    `data` is what was read from `sock` so far, and `started` the time of the loop at which the
    client was accepted. The session ends when the connection ends or becomes a flow.

    This class has many methods because each event of client, origin and login has its own.
    """

    __slots__ = (
        "_advancing",
        "_ahead",
        "_broken",
        "_clients",
        "_closing",
        "_core",
        "_eof",
        "_held",
        "_login",
        "_opening",
        "_origin",
        "_reading",
        "_sent",
        "_sock",
        "_started",
        "_timer",
        "_to_client",
        "_writing",
        "who",
    )

    def __init__(
        self,
        clients: Clients,
        sock: socket.socket,
        who: Client,
        data: bytes,
        *,
        started: float,
    ) -> None:
        self._clients = clients
        self._sock: socket.socket | None = sock
        self.who = who
        self._core = ProxyConnection(require_password=clients.settings.passwords is not None)
        self._started = started
        self._origin: Origin | None = None
        self._opening: Opening | None = None
        self._login: Login | None = None
        self._to_client = bytearray()
        self._reading = self._writing = False
        self._advancing = self._closing = self._broken = self._eof = False
        self._held: ConnectRequest | None = None
        self._sent = False
        self._ahead = 0
        self._timer: asyncio.TimerHandle | None = None
        clients.opening.add(self)
        self._set_timer(HEAD_SECONDS)
        clients.guard(self, self._take, data)

    @property
    def idle(self) -> bool:
        """Whether the client has no request under way."""
        waits = self._opening is not None or self._held is not None
        return self._core.idle and not waits and not self._to_client

    @property
    def answering(self) -> bool:
        """Whether bytes of a response wait for the client, also if their flow is over."""
        return bool(self._to_client)

    # --- the client -----------------------------------------------------------------------------

    def _readable(self) -> None:
        data = self._received(_READ)
        if data is None:
            return
        if self._core.request_whole:
            self._ahead += len(data)
        self._take(data)

    def _take(self, data: bytes) -> None:
        self._core.receive_data(data)
        self._advance()

    def _ended_its_side(self) -> None:
        """Closes the connection, unless the client waits for the answer to a whole request."""
        self._eof = True
        if not self._core.request_whole:
            if not self._core.idle:
                self._count_rejected("incomplete")
            self.close()
            return
        self._core.receive_data(b"")
        self._advance()

    def _advance(self) -> None:
        """Handles the events of the core until it needs more data; then sends and reads."""
        if self._advancing:
            return  # an event's handler got its answer at once: the loop below handles it
        self._advancing = True
        try:
            while (event := self._core.next_event()) is not NEED_DATA:
                self._handle(event)
                if self._sock is None:
                    return
        except RemoteProtocolError as error:
            self._count_rejected(error.kind)
            self._closing = True
            self._drop_origin(abort=True)
        finally:
            self._advancing = False
        self.transmit()

    def _handle(self, event: Event) -> None:
        match event:
            case PasswordOffered(username=username, password=password):
                self._set_timer(None)
                login = self._clients.logins.check(
                    self.who, username, password, self._password_checked
                )
                if login.answer is not None:
                    self._login = login
            case ConnectRequest():
                self._connect(event)
            case ForwardRequest(destination=destination, reused=reused):
                self._set_timer(None)
                if not reused:
                    self._drop_origin()
                    self._open_origin(destination)
            case RequestRejected(kind=kind):
                self._count_rejected(kind)
            case ExchangeEnded(keep_client=keep_client, keep_origin=keep_origin, cut=cut):
                if not keep_origin:
                    self._drop_origin(abort=cut)
                self._ahead = 0
                if keep_client:
                    self._set_timer(KEEP_SECONDS)
                else:
                    self._closing = True
            case ResponseBroken():
                self._drop_origin(abort=True)
                self._closing = self._broken = True

    def _password_checked(self, verdict: Verdict) -> None:
        self._login = None
        if self._sock is None:
            return
        if verdict is Verdict.BUSY:
            self._count_rejected("login-busy")
            self._core.refuse(503, "too many logins wait to be checked")
        else:
            self._core.accept_password(verdict is Verdict.RIGHT)
        self._advance()

    # --- CONNECT (Asker) ------------------------------------------------------------------------

    def _connect(self, request: ConnectRequest) -> None:
        """Opens the tunnel, once the answers to earlier requests have left.

        RFC 9112 section 9.3.2: "A server […] MUST send the corresponding responses in the same
        order that the requests were received." When the flow takes the socket over, nothing may
        wait here, and the socket must be able to take one line more.
        """
        assert self._sock is not None
        self._drop_origin()
        self._stop_reading()
        if self._sent or self._to_client:
            self._held = request
            self._set_timer(KEEP_SECONDS)  # the client has to read
        else:
            self._open_tunnel(request)

    def _has_room(self) -> None:
        """Opens the tunnel that has waited for the socket to become writable."""
        assert self._sock is not None
        self._writing = False
        self._clients.loop.remove_writer(self._sock)
        request, self._held = self._held, None
        if request is not None:
            self._open_tunnel(request)

    def _open_tunnel(self, request: ConnectRequest) -> None:
        assert self._sock is not None
        self._set_timer(None)
        self._opening = Opening(
            self._clients,
            self,
            request,
            self.who,
            self._sock,
            early=self._core.trailing_data(),
            started=self._started,
        )
        self._opening.start()

    def opened(self, bound: HostPort) -> bool:
        """Answers the CONNECT. From here on the socket is the flow's."""
        del bound  # HTTP has no place for it
        self._count_request("connect", Reply.SUCCEEDED)
        self._core.tunnel_opened()
        data = bytes(self._to_client) + self._core.data_to_send()
        sock, self._sock = self._sock, None
        assert sock is not None
        if self._writing:
            self._writing = False
            self._clients.loop.remove_writer(sock)
        self._forget()
        try:
            # These are a few bytes. A client whose socket does not take them does not read.
            alive = sock.send(data) == len(data)
        except OSError:
            alive = False
        if not alive:
            self._clients.loop.remove_reader(sock)
            reset(sock)
        return alive

    def failed(self, reason: int, sentence: str) -> None:
        """Answers a CONNECT that has failed."""
        opening, self._opening = self._opening, None
        assert opening is not None
        self._count_request("connect", reply_of(reason))
        self._core.refuse(status_for(opening, reason), sentence, close=opening.early_taken)
        self._advance()

    # --- absolute form --------------------------------------------------------------------------

    def _open_origin(self, destination: HostPort) -> None:
        try:
            self._origin = Origin(self._clients, self, destination)
        except OSError as error:  # no descriptor for the socket pair
            self._clients.report_resource(error)
            self._count_request("http", Reply.GENERAL_FAILURE)
            self._core.refuse(503, SHORTAGE)
            return
        self._origin.opening.start()

    def origin_opened(self, origin: Origin) -> None:
        """Counts the request, because the origin is connected."""
        del origin
        self._count_request("http", Reply.SUCCEEDED)

    def origin_failed(self, origin: Origin, reason: int, sentence: str) -> None:
        """Tells the client why the origin cannot be connected."""
        if origin is self._origin:
            self._origin = None
            self._count_request("http", reply_of(reason))
            self._core.refuse(status_for(origin.opening, reason), sentence)
            self._advance()

    def from_origin(self, data: bytes) -> None:
        """Takes bytes of the origin's response."""
        if not self._core.receive_from_origin(data):
            self._drop_origin(abort=True)
        self._advance()

    def origin_ended(self, origin: Origin, *, clean: bool) -> None:
        """Ends the response, or asks the origin again on a new connection.

        The latter happens if a kept connection ended before anything of the response came.
        """
        self._origin = None
        if self._core.origin_ended(clean=clean):
            self._open_origin(origin.destination)
        self._advance()

    def _drop_origin(self, *, abort: bool = False) -> None:
        origin, self._origin = self._origin, None
        if origin is not None:
            origin.close(abort=abort)

    # --- sending, and when to read ----------------------------------------------------------------

    def transmit(self) -> None:
        """Sends what waits both ways, and reads each side for which the other has room."""
        if self._sock is None:
            return
        origin = self._origin
        to_origin = self._core.data_to_origin()
        if origin is not None and to_origin:
            origin.write(to_origin)
        self._to_client += self._core.data_to_send()
        if not self._flush():
            return
        blocked = bool(self._to_client)
        if self._closing and not blocked:
            self._end()
            return
        if self._held is not None and not blocked:
            self._writing = True
            self._clients.loop.add_writer(self._sock, self._clients.guard, self, self._has_room)
            return
        if origin is not None:
            origin.read(wanted=not blocked and not self._closing)
        stalled = origin is not None and origin.blocked
        # While a password is checked, nothing more of the request is read.
        waits = self._login is not None and not (self._core.request_whole and not self._ahead)
        wanted = not (
            self._eof or self._closing or stalled or waits
            or self._opening is not None or self._held is not None or self._ahead > AHEAD_MAX
        )  # fmt: skip
        if wanted and not self._reading:
            self._reading = True
            self._clients.loop.add_reader(self._sock, self._clients.guard, self, self._readable)
        elif not wanted:
            self._stop_reading()

    def _flush(self) -> bool:
        """Sends to the client what its socket takes; returns False if the client is gone."""
        assert self._sock is not None
        loop = self._clients.loop
        try:
            while self._to_client:
                del self._to_client[: self._sock.send(self._to_client)]
                self._sent = True
        except (BlockingIOError, InterruptedError):
            if not self._writing:
                self._writing = True
                loop.add_writer(self._sock, self._clients.guard, self, self.transmit)
            return True
        except OSError:
            self.close()
            return False
        if self._writing:
            self._writing = False
            loop.remove_writer(self._sock)
        return True

    def _stop_reading(self) -> None:
        if self._reading and self._sock is not None:
            self._reading = False
            self._clients.loop.remove_reader(self._sock)

    # --- the end --------------------------------------------------------------------------------

    def _end(self) -> None:
        """Closes the connection. A response that was cut short ends with a reset.

        So the client cannot take it for a whole response. Else the last bytes arrive.
        """
        sock = self._release()
        if sock is not None:
            if self._broken:
                reset(sock)
            else:
                linger_close(self._clients.loop, sock)

    def close(self) -> None:
        """Closes without a response, and cancels the client's request."""
        sock = self._release()
        if self._opening is not None:
            self._opening.cancel()
        if sock is not None:
            sock.close()

    def _release(self) -> socket.socket | None:
        """Stops everything that uses the socket; returns it, or None if it was given away."""
        self._stop_reading()
        sock, self._sock = self._sock, None
        if sock is not None and self._writing:
            self._writing = False
            self._clients.loop.remove_writer(sock)
        # Between two exchanges nothing is cut short, so the origin sees an orderly end.
        self._drop_origin(abort=not self._core.idle)
        self._forget()
        return sock

    def _forget(self) -> None:
        self._set_timer(None)
        login, self._login = self._login, None
        if login is not None:
            login.end()
        self._clients.opening.discard(self)

    def _set_timer(self, seconds: float | None) -> None:
        """Sets how many seconds the client has for its next step; None means no limit."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if seconds is not None:
            guard = self._clients.guard
            self._timer = self._clients.loop.call_later(seconds, guard, self, self._timed_out)

    def _timed_out(self) -> None:
        self._timer = None
        if not self._core.idle:
            self._count_rejected("timeout")
        self.close()

    def _count_rejected(self, reason: str) -> None:
        self._clients.counters.count("socks_rejected_total", reason)

    def _count_request(self, command: str, reply: Reply) -> None:
        self._clients.counters.count("requests_total", command, reply.name.lower())
