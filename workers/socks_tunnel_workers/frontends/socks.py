"""One SOCKS5 client on the gateway, from its first byte to the flow that it asked for."""

from __future__ import annotations

import asyncio
import socket
from typing import TYPE_CHECKING

from socks_tunnel.protocol.addresses import UNSPECIFIED, HostPort
from socks_tunnel.protocol.errors import CloseReason, RemoteProtocolError, Reply, reply_of
from socks_tunnel.protocol.messages import Bind, OpenConnection
from socks_tunnel.protocol.socks5 import (
    NEED_DATA,
    BindRequest,
    ConnectRequest,
    GreetingReceived,
    PasswordOffered,
    Request,
    ServerConnection,
    UdpAssociateRequest,
)
from socks_tunnel_workers.relay.local_policy import allowed_here
from socks_tunnel_workers.relay.tcp import TcpRelay
from socks_tunnel_workers.relay.udp import GatewayAssociation
from socks_tunnel_workers.services import QuotaSlot
from socks_tunnel_workers.sockets import linger_close, reset, unix_peer

if TYPE_CHECKING:
    from socks_tunnel_workers.frontends.clients import Clients
    from socks_tunnel_workers.relay.session import WorkerSession

HANDSHAKE_SECONDS = 30.0
"""Time in which a client must have made its request."""

LOOPBACK = "127.0.0.1"
"""Where the UDP relays of clients on Unix sockets are."""

_READ = 4096

_COMMANDS = {
    ConnectRequest: "connect",
    BindRequest: "bind",
    UdpAssociateRequest: "udp-associate",
}


class SocksSession:
    """A client's connection until it becomes a flow; for UDP, as long as the association lives.

    `client` is its name in tables and logs, `account` what its associations are counted under: its
    address, or on a Unix socket its user.

    Everything it does is a reaction: to the socket, to a timer, to the worker (a link came up), to
    the flow that it opened (see :class:`socks_tunnel_workers.relay.tcp.Opener`).
    """

    __slots__ = (
        "account",
        "association",
        "client",
        "clients",
        "command",
        "core",
        "relay",
        "request",
        "slot",
        "sock",
        "started",
        "timer",
    )

    def __init__(self, clients: Clients, sock: socket.socket, client: object) -> None:
        self.clients = clients
        self.sock: socket.socket | None = sock
        if isinstance(client, tuple):
            self.account = str(client[0])
            self.client = str(HostPort(self.account, int(client[1])))
        else:
            pid, uid = unix_peer(sock)
            self.account = f"unix:uid={uid}"
            self.client = f"unix:pid={pid},uid={uid}"
        self.core = ServerConnection(require_password=clients.settings.passwords is not None)
        self.command = ""
        self.request: Request | None = None
        self.relay: TcpRelay | None = None
        self.association: GatewayAssociation | None = None
        self.slot: QuotaSlot | None = None
        self.started = clients.loop.time()
        self.timer: asyncio.TimerHandle | None = clients.loop.call_later(
            HANDSHAKE_SECONDS, self._handshake_timeout
        )
        clients.opening.add(self)
        clients.loop.add_reader(sock, self._readable)

    # --- handshake ------------------------------------------------------------------------------

    def _readable(self) -> None:
        assert self.sock is not None
        try:
            data = self.sock.recv(_READ)
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            self.close()
            return
        if not data:
            self._count_rejected("incomplete")
            self.close()
            return
        self.core.receive_data(data)
        self._advance()

    def _advance(self) -> None:
        core = self.core
        while True:
            try:
                event = core.next_event()
            except RemoteProtocolError as error:
                self._handshake_failed(error)
                return
            self._flush()
            if self.sock is None:
                return
            if event is NEED_DATA:
                return
            if isinstance(event, PasswordOffered):
                self._stop_reading()
                self.clients.check_password(self, event.username, event.password)
                return
            if isinstance(event, ConnectRequest | BindRequest | UdpAssociateRequest):
                self._requested(event)
                return
            assert isinstance(event, GreetingReceived)

    def password_checked(self, *, ok: bool) -> None:
        """Go on after the worker has compared the password (in a thread: hashing is slow)."""
        if self.sock is None:
            return
        self.core.accept_password(ok)
        self.clients.loop.add_reader(self.sock, self._readable)
        self._advance()

    def _handshake_failed(self, error: RemoteProtocolError) -> None:
        self._count_rejected(error.kind)
        if error.kind in ("command", "address-type"):
            self.clients.counters.count("requests_total", "unknown", error.reply.name.lower())
        self._flush()
        self._end()

    def _handshake_timeout(self) -> None:
        self.timer = None
        self._count_rejected("timeout")
        self.close()

    def _count_rejected(self, reason: str) -> None:
        self.clients.counters.count("socks_rejected_total", reason)

    # --- the request ----------------------------------------------------------------------------

    def _requested(self, request: Request) -> None:
        """Check the gateway's own policy, then wait for a link if there is none."""
        self._stop_reading()
        self._set_timer(self.clients.settings.config.socks.connect_timeout, self._connect_timeout)
        self.request = request
        self.command = _COMMANDS[type(request)]
        session = self.clients.target
        if session is None:
            self.clients.wait(self)
        else:
            self.open_on(session)

    def open_on(self, session: WorkerSession) -> None:
        """Open the flow that the client asked for on a link that is up."""
        request = self.request
        assert self.sock is not None
        try:
            match request:
                case ConnectRequest(destination=destination):
                    self._open_tcp(
                        session, destination, OpenConnection(0, destination.host, destination.port)
                    )
                case BindRequest(destination=destination):
                    self._open_tcp(session, destination, Bind(0, destination))
                case UdpAssociateRequest():
                    self._open_udp(session)
        except RemoteProtocolError as error:
            # Our own limit, not the peer's fault: the table is full.
            self.clients.report_flow_limit(session, error)
            self._refuse(Reply.GENERAL_FAILURE)
        except OSError as error:
            self.clients.report_resource(error)
            self._refuse(Reply.GENERAL_FAILURE)

    def _open_tcp(
        self, session: WorkerSession, destination: HostPort, opening: OpenConnection | Bind
    ) -> None:
        conn_id = session.allocate()
        if isinstance(opening, OpenConnection):
            message = OpenConnection(conn_id, opening.host, opening.port).encode()
        else:
            message = Bind(conn_id, opening.caller).encode()
        relay = TcpRelay(
            session,
            conn_id,
            command=self.command,
            client=self.client,
            destination=destination,
            opener=self,
            opening=message,
            sock=self.sock,
        )
        policy = self.clients.settings.policies.default
        if policy is not None and not allowed_here(relay, policy, destination):
            self._refuse(Reply.NOT_ALLOWED)
            return
        session.admit(relay)
        self.clients.opening.discard(self)  # it counts as a flow from here on
        self.relay = relay
        relay.ask()
        early = self.core.trailing_data()
        if early:
            relay.write_early(early)
        # What the client writes before its answer is early data too; its end is noticed here.
        relay.resume_reading()

    def _open_udp(self, session: WorkerSession) -> None:
        assert self.sock is not None
        slot = self.clients.take_association(self.account)
        if slot is None:
            self._refuse(Reply.GENERAL_FAILURE)
            return
        conn_id = session.allocate()
        try:
            association = self._associate(session, conn_id)
        except OSError:
            slot.end()
            raise
        self.slot = slot
        session.admit(association)
        self.clients.opening.discard(self)  # it counts as a flow from here on
        self.association = association
        association.ask()
        # RFC 1928 section 6: "A UDP association terminates when the TCP connection that the UDP
        # ASSOCIATE request arrived on terminates."
        self.clients.loop.add_reader(self.sock, self._watch_control)

    def _associate(self, session: WorkerSession, conn_id: int) -> GatewayAssociation:
        """Make the association with its relay. Raises :class:`OSError`."""
        assert self.sock is not None
        if self.sock.family != socket.AF_UNIX:
            return GatewayAssociation(
                session, conn_id, self, self.sock.getsockname()[0], self.account
            )
        # A client on a Unix socket is on this machine, and so is its relay. Who may connect to the
        # socket is the machine's decision, and loopback is open to all: a client that says which
        # port it will send from (RFC 1928 section 4) is believed, and nobody gets there first.
        association = GatewayAssociation(session, conn_id, self, LOOPBACK, LOOPBACK)
        assert isinstance(self.request, UdpAssociateRequest)
        hint = self.request.hint
        if hint is not None and hint.port and hint.host in {LOOPBACK, UNSPECIFIED.host}:
            association.pinned = LOOPBACK, hint.port
        return association

    def _connect_timeout(self) -> None:
        self.timer = None
        self.clients.stop_waiting(self)
        if self.relay is not None:
            self.relay.abort(CloseReason.TTL_EXPIRED)
        elif self.association is not None:
            self.association.abort(CloseReason.TTL_EXPIRED)
        else:
            self._refuse(Reply.GENERAL_FAILURE)

    # --- answers of the flow (Opener) -----------------------------------------------------------

    def opened(self, bound: HostPort) -> None:
        """The endpoint has really connected: only now the client is told so."""
        relay = self.relay
        assert relay is not None
        self.clients.metrics.connect_seconds.observe(self.clients.loop.time() - self.started)
        self._reply(Reply.SUCCEEDED, bound)
        self._cancel_timer()
        self.clients.opening.discard(self)
        self.relay = None
        if self.sock is None:  # the client was gone when the reply was written
            relay.abort(CloseReason.RESET)
        self.sock = None  # the relay's from here on

    def listening(self, bound: HostPort) -> None:
        """The first reply of a BIND: where the endpoint listens. The caller may take its time."""
        self._cancel_timer()
        self._reply(Reply.SUCCEEDED, bound)
        if self.sock is None and self.relay is not None:
            self.relay.abort(CloseReason.RESET)

    def failed(self, reason: int) -> None:
        """The flow was closed before it was opened: hand the reason on as a SOCKS reply."""
        self.relay = None
        self._refuse(reply_of(reason))

    def associated(self, association: GatewayAssociation) -> None:
        """The endpoint has its sockets: give the client the relay's concrete address."""
        self._cancel_timer()
        self.clients.metrics.connect_seconds.observe(self.clients.loop.time() - self.started)
        self._reply(Reply.SUCCEEDED, association.bound)

    def association_ended(self, reason: int, *, opened: bool) -> None:
        """The association is over; its control connection ends with it."""
        if self.slot is not None:
            self.slot.end()
        self.association = None
        if self.sock is None:
            return
        if opened:
            self.close()
        else:
            self._refuse(reply_of(reason))

    def _watch_control(self) -> None:
        """Wait for the end of an association's control connection; nothing else is said on it."""
        assert self.sock is not None
        try:
            data = self.sock.recv(_READ)
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            data = b""
        if data:
            return
        association = self.association
        self.close()
        if association is not None:
            association.abort(CloseReason.ORDERLY)

    # --- replies and the end --------------------------------------------------------------------

    def _reply(self, reply: Reply, bound: HostPort = UNSPECIFIED) -> None:
        self.clients.counters.count("requests_total", self.command, reply.name.lower())
        self.core.reply(reply, bound)
        self._flush()

    def _refuse(self, reply: Reply) -> None:
        """Tell the client that its request failed, and close once it has the reply."""
        if self.sock is not None:
            self._reply(reply)
        self._end()

    def _flush(self) -> None:
        """Send what the core owes the client.

        A handshake's answers are a few bytes: a client whose socket does not take them never reads.
        """
        data = self.core.data_to_send()
        if not data or self.sock is None:
            return
        try:
            sent = self.sock.send(data)
        except OSError:
            sent = -1
        if sent != len(data):
            self._discard_socket()

    def _discard_socket(self) -> None:
        if self.sock is not None:
            self.clients.loop.remove_reader(self.sock)
            if self.relay is not None:
                # The flow watches the same socket: it must not touch a descriptor that is gone.
                self.relay.detach()
            reset(self.sock)
            self.sock = None
        self._forget()

    def _end(self) -> None:
        if self.sock is not None:
            self._stop_reading()
            linger_close(self.clients.loop, self.sock)
            self.sock = None
        self._forget()

    def close(self) -> None:
        """Close without a word."""
        if self.sock is not None:
            self._stop_reading()
            self.sock.close()
            self.sock = None
        self._forget()

    def _forget(self) -> None:
        self._cancel_timer()
        self.clients.stop_waiting(self)
        self.clients.opening.discard(self)

    def _stop_reading(self) -> None:
        if self.sock is not None:
            self.clients.loop.remove_reader(self.sock)

    def _set_timer(self, seconds: float, callback: object) -> None:
        self._cancel_timer()
        assert callable(callback)
        self.timer = self.clients.loop.call_later(seconds, callback)

    def _cancel_timer(self) -> None:
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None
