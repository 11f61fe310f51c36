"""One SOCKS5 client on the gateway, from its first byte to the flow that it asked for."""

from __future__ import annotations

import asyncio
import socket
from typing import TYPE_CHECKING

from socks_tunnel.protocol.addresses import UNSPECIFIED, HostPort
from socks_tunnel.protocol.errors import CloseReason, RemoteProtocolError, Reply, reply_of
from socks_tunnel.protocol.messages import Bind, OpenConnection, UdpAssociate
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
from socks_tunnel_workers.relay.tcp import TcpRelay
from socks_tunnel_workers.relay.udp import GatewayAssociation
from socks_tunnel_workers.sockets import linger_close, reset, unix_peer

if TYPE_CHECKING:
    from socks_tunnel_workers.relay.session import WorkerLink
    from socks_tunnel_workers.worker import Worker

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
        "command",
        "core",
        "relay",
        "request",
        "sock",
        "started",
        "timer",
        "worker",
    )

    def __init__(self, worker: Worker, sock: socket.socket, client: object) -> None:
        self.worker = worker
        self.sock: socket.socket | None = sock
        if isinstance(client, tuple):
            self.account = str(client[0])
            self.client = str(HostPort(self.account, int(client[1])))
        else:
            pid, uid = unix_peer(sock)
            self.account = f"unix:uid={uid}"
            self.client = f"unix:pid={pid},uid={uid}"
        self.core = ServerConnection(require_password=worker.passwords is not None)
        self.command = ""
        self.request: Request | None = None
        self.relay: TcpRelay | None = None
        self.association: GatewayAssociation | None = None
        self.started = worker.loop.time()
        self.timer: asyncio.TimerHandle | None = worker.loop.call_later(
            HANDSHAKE_SECONDS, self._handshake_timeout
        )
        worker.sessions.add(self)
        worker.loop.add_reader(sock, self._readable)

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
                self.worker.check_password(self, event.username, event.password)
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
        self.worker.loop.add_reader(self.sock, self._readable)
        self._advance()

    def _handshake_failed(self, error: RemoteProtocolError) -> None:
        self._count_rejected(error.kind)
        if error.kind in ("command", "address-type"):
            self.worker.count("requests_total", "unknown", error.reply.name.lower())
        self._flush()
        self._end()

    def _handshake_timeout(self) -> None:
        self.timer = None
        self._count_rejected("timeout")
        self.close()

    def _count_rejected(self, reason: str) -> None:
        self.worker.count("socks_rejected_total", reason)

    # --- the request ----------------------------------------------------------------------------

    def _requested(self, request: Request) -> None:
        """Check the gateway's own policy, then wait for a link if there is none."""
        self._stop_reading()
        self._set_timer(self.worker.config.socks.connect_timeout, self._connect_timeout)
        self.request = request
        self.command = _COMMANDS[type(request)]
        link = self.worker.best_link()
        if link is None:
            self.worker.wait_for_link(self)
        else:
            self.open_on(link)

    def open_on(self, link: WorkerLink) -> None:
        """Open the flow that the client asked for on a link that is up."""
        request = self.request
        assert self.sock is not None
        try:
            match request:
                case ConnectRequest(destination=destination):
                    self._open_tcp(
                        link, destination, OpenConnection(0, destination.host, destination.port)
                    )
                case BindRequest(destination=destination):
                    self._open_tcp(link, destination, Bind(0, destination))
                case UdpAssociateRequest():
                    self._open_udp(link)
        except RemoteProtocolError as error:
            # Our own limit, not the peer's fault: the table is full.
            self.worker.log_flow_limit(link, error)
            self._refuse(Reply.GENERAL_FAILURE)
        except OSError as error:
            self.worker.log_resource_error(error)
            self._refuse(Reply.GENERAL_FAILURE)

    def _open_tcp(
        self, link: WorkerLink, destination: HostPort, opening: OpenConnection | Bind
    ) -> None:
        conn_id = self.worker.allocate(link)
        relay = TcpRelay(
            link,
            conn_id,
            command=self.command,
            client=self.client,
            destination=destination,
            sock=self.sock,
            opener=self,
        )
        policy = self.worker.policies.default
        if policy is not None and not self.worker.allowed_early(relay, policy, destination):
            self._refuse(Reply.NOT_ALLOWED)
            return
        link.flows.add(conn_id, relay)
        self.worker.flow_started(relay)
        self.relay = relay
        if isinstance(opening, OpenConnection):
            link.send(OpenConnection(conn_id, opening.host, opening.port).encode())
        else:
            link.send(Bind(conn_id, opening.caller).encode())
        early = self.core.trailing_data()
        if early:
            relay.send_early(early)
        # What the client writes before its answer is early data too; its end is noticed here.
        relay.resume_reading()

    def _open_udp(self, link: WorkerLink) -> None:
        assert self.sock is not None
        if not self.worker.take_association_slot(self.account):
            self._refuse(Reply.GENERAL_FAILURE)
            return
        conn_id = self.worker.allocate(link)
        try:
            association = self._associate(link, conn_id)
        except OSError:
            self.worker.free_association_slot(self.account)
            raise
        link.flows.add(conn_id, association)
        self.worker.flow_started(association)
        self.association = association
        link.send(UdpAssociate(conn_id).encode())
        # RFC 1928 section 6: "A UDP association terminates when the TCP connection that the UDP
        # ASSOCIATE request arrived on terminates."
        self.worker.loop.add_reader(self.sock, self._watch_control)

    def _associate(self, link: WorkerLink, conn_id: int) -> GatewayAssociation:
        """Make the association with its relay. Raises :class:`OSError`."""
        assert self.sock is not None
        if self.sock.family != socket.AF_UNIX:
            return GatewayAssociation(link, conn_id, self, self.sock.getsockname()[0], self.account)
        # A client on a Unix socket is on this machine, and so is its relay. Who may connect to the
        # socket is the machine's decision, and loopback is open to all: a client that says which
        # port it will send from (RFC 1928 section 4) is believed, and nobody gets there first.
        association = GatewayAssociation(link, conn_id, self, LOOPBACK, LOOPBACK)
        assert isinstance(self.request, UdpAssociateRequest)
        hint = self.request.hint
        if hint is not None and hint.port and hint.host in {LOOPBACK, UNSPECIFIED.host}:
            association.pinned = LOOPBACK, hint.port
        return association

    def _connect_timeout(self) -> None:
        self.timer = None
        self.worker.stop_waiting(self)
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
        self.worker.metrics.connect_seconds.observe(self.worker.loop.time() - self.started)
        self._reply(Reply.SUCCEEDED, bound)
        self._cancel_timer()
        self.worker.sessions.discard(self)
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
        self.worker.metrics.connect_seconds.observe(self.worker.loop.time() - self.started)
        self._reply(Reply.SUCCEEDED, association.bound)

    def association_ended(self, reason: int, *, opened: bool) -> None:
        """The association is over; its control connection ends with it."""
        self.worker.free_association_slot(self.account)
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
        self.worker.count("requests_total", self.command, reply.name.lower())
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
            self.worker.loop.remove_reader(self.sock)
            if self.relay is not None:
                # The flow watches the same socket: it must not touch a descriptor that is gone.
                self.relay.detach()
            reset(self.sock)
            self.sock = None
        self._forget()

    def _end(self) -> None:
        if self.sock is not None:
            self._stop_reading()
            linger_close(self.worker.loop, self.sock)
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
        self.worker.stop_waiting(self)
        self.worker.sessions.discard(self)

    def _stop_reading(self) -> None:
        if self.sock is not None:
            self.worker.loop.remove_reader(self.sock)

    def _set_timer(self, seconds: float, callback: object) -> None:
        self._cancel_timer()
        assert callable(callback)
        self.timer = self.worker.loop.call_later(seconds, callback)

    def _cancel_timer(self) -> None:
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None
