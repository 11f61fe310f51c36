"""Static forwards: local ports that lead to one target each, for programs that know no proxy.

A TCP forward is a CONNECT without the SOCKS handshake. A UDP forward keeps one association for each
client address and port, with the idle time of any other. Its target passes the policies like any
other destination.
"""

from __future__ import annotations

import asyncio
import socket
from collections import OrderedDict
from typing import TYPE_CHECKING

from socks_tunnel.protocol.addresses import HostPort
from socks_tunnel.protocol.errors import CloseReason, RemoteProtocolError
from socks_tunnel.protocol.messages import (
    Message,
    OpenConnection,
    UdpAssociateClosed,
    UdpAssociateOpened,
)
from socks_tunnel.protocol.socks5 import parse_udp_packet, udp_header
from socks_tunnel_workers.relay.local_policy import allowed_here
from socks_tunnel_workers.relay.tcp import TcpRelay
from socks_tunnel_workers.relay.udp import (
    DATAGRAMS_PER_TURN,
    Association,
    SockAddr,
    make_room,
)
from socks_tunnel_workers.services import QuotaSlot
from socks_tunnel_workers.sockets import reset

if TYPE_CHECKING:
    from socks_tunnel_workers.frontends.clients import Clients
    from socks_tunnel_workers.relay.session import WorkerSession

OPENING_BYTES_MAX = 262_144
"""Bytes of a client's first datagrams that wait for the association to open: one round trip."""

CLIENTS_MAX = 4096
"""Client addresses that one UDP forward keeps associations for; the least recent one is ended."""


class TcpForwardSession:
    """A client of a TCP forward until its flow is open.

    There is no reply to give: the flow opens, or the connection is reset.
    """

    __slots__ = ("client", "clients", "relay", "sock", "target", "timer")

    def __init__(
        self, clients: Clients, sock: socket.socket, client: SockAddr, target: HostPort
    ) -> None:
        self.clients = clients
        self.sock: socket.socket | None = sock
        self.client = str(HostPort(str(client[0]), int(client[1])))
        self.target = target
        self.relay: TcpRelay | None = None
        self.timer: asyncio.TimerHandle | None = clients.loop.call_later(
            clients.settings.config.socks.connect_timeout, self._connect_timeout
        )
        clients.opening.add(self)
        session = clients.target
        if session is None:
            clients.wait(self)
        else:
            self.open_on(session)

    def open_on(self, session: WorkerSession) -> None:
        """Opens the flow on a session that transmits."""
        conn_id = session.allocate()
        relay = TcpRelay(
            session,
            conn_id,
            command="connect",
            client=self.client,
            destination=self.target,
            opener=self,
            opening=OpenConnection(conn_id, self.target.host, self.target.port).encode(),
            sock=self.sock,
        )
        policy = self.clients.settings.policies.default
        if policy is not None and not allowed_here(relay, policy, self.target):
            self.close()
            return
        try:
            session.admit(relay)
        except RemoteProtocolError as error:
            self.clients.report_flow_limit(session, error)
            self.close()
            return
        self.clients.opening.discard(self)  # it counts as a flow from here on
        self.relay = relay
        relay.ask()
        # No reply is awaited, so what the client says at once saves a round trip.
        relay.resume_reading()

    def opened(self, bound: HostPort) -> None:
        """Leave the socket to the flow."""
        del bound
        self.sock = None
        self.relay = None
        self._forget()

    def listening(self, bound: HostPort) -> None:
        """Never called: a forward does not BIND."""
        raise AssertionError(bound)

    def failed(self, reason: int) -> None:
        """Pass the failure on in the only way there is."""
        del reason
        self.relay = None
        self.close()

    def close(self) -> None:
        """Reset the client's connection."""
        if self.sock is not None:
            reset(self.sock)
            self.sock = None
        self._forget()

    def _connect_timeout(self) -> None:
        self.timer = None
        if self.relay is not None:
            self.relay.abort(CloseReason.TTL_EXPIRED)
        else:
            self.close()

    def _forget(self) -> None:
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None
        self.clients.stop_waiting(self)
        self.clients.opening.discard(self)


class UdpForward:
    """One UDP forward: its socket, and an association for each client that spoke lately."""

    def __init__(self, clients: Clients, sock: socket.socket, target: HostPort) -> None:
        self.clients = clients
        self.sock = sock
        self.target = target
        self.header = udp_header(target)
        self.associations: OrderedDict[SockAddr, ForwardAssociation] = OrderedDict()
        self._watching = False
        make_room(sock)

    def start(self) -> None:
        """Take datagrams from now on."""
        if not self._watching:
            self._watching = True
            self.clients.loop.add_reader(self.sock, self._readable)

    def stop(self) -> None:
        """Take none from new clients or old ones."""
        if self._watching:
            self._watching = False
            self.clients.loop.remove_reader(self.sock)

    def _readable(self) -> None:
        for _ in range(DATAGRAMS_PER_TURN):
            try:
                data, client = self.sock.recvfrom(65_536)
            except (BlockingIOError, InterruptedError):
                return
            except OSError:
                # A pending ICMP error of an earlier send: nothing was received, nothing is lost.
                return
            self._from_client(data, client)

    def _from_client(self, data: bytes, client: SockAddr) -> None:
        association = self.associations.get(client)
        if association is None:
            association = self._associate(client)
            if association is None:
                return
        else:
            self.associations.move_to_end(client)
        association.from_client(data)

    def _associate(self, client: SockAddr) -> ForwardAssociation | None:
        clients = self.clients
        session = clients.target
        if session is None:
            clients.counters.drop("no-link")
            return None
        slot = None if clients.full else clients.take_association(str(client[0]))
        if slot is None:
            clients.counters.drop("too-many")
            return None
        association = ForwardAssociation(session, session.allocate(), self, client, slot)
        policy = clients.settings.policies.default
        if policy is not None and not allowed_here(association, policy, self.target):
            slot.end()
            clients.counters.drop("policy")
            return None
        try:
            session.admit(association)
        except RemoteProtocolError as error:
            slot.end()
            clients.report_flow_limit(session, error)
            clients.counters.drop("too-many")
            return None
        self.associations[client] = association
        if len(self.associations) > CLIENTS_MAX:
            next(iter(self.associations.values())).abort(CloseReason.RESOURCE_LIMIT)
        association.ask()
        return association


class ForwardAssociation(Association):
    """The association of one client of a UDP forward."""

    __slots__ = ("address", "forward", "slot", "waiting", "waiting_bytes")

    def __init__(
        self,
        session: WorkerSession,
        conn_id: int,
        forward: UdpForward,
        address: SockAddr,
        slot: QuotaSlot,
    ) -> None:
        super().__init__(session, conn_id, client=str(HostPort(str(address[0]), int(address[1]))))
        self.destination = forward.target
        self.forward = forward
        self.slot = slot
        self.address = address
        self.waiting: list[bytes] = []
        self.waiting_bytes = 0

    def from_client(self, data: bytes) -> None:
        """Send a datagram of the client's on its way."""
        if not self.opened:
            # One round trip; a datagram that the endpoint does not expect yet would be lost there.
            if self.waiting_bytes + len(data) <= OPENING_BYTES_MAX:
                self.waiting.append(data)
                self.waiting_bytes += len(data)
            else:
                self.drop("opening")
            return
        if len(self.forward.header) + len(data) > self.session.terms.max_data:
            self.drop("too-long")
            return
        self.active = self.session.loop.time()
        self._up += len(data)
        self.session.counters.sent["udp"] += len(data)
        self.session.send_datagram(self.conn_id, self.forward.header, data)

    def on_message(self, message: Message) -> None:
        """Take the endpoint's answer, or the end."""
        match message:
            case UdpAssociateOpened():
                self.mark_opened()
                waiting, self.waiting = self.waiting, []
                for data in waiting:
                    self.from_client(data)
            case UdpAssociateClosed(reason=reason):
                self._close(reason)
            case _:
                raise self.unexpected(type(message).__name__)

    def on_datagram(self, packet: memoryview) -> None:
        """Pass a reply to the client, without its SOCKS header: the client knows no proxy."""
        offset = parse_udp_packet(packet).offset
        try:
            self.forward.sock.sendto(packet[offset:], self.address)
        except OSError as error:
            self._send_failed(error)
            return
        self.active = self.session.loop.time()
        self._down += len(packet) - offset
        self.session.counters.received["udp"] += len(packet) - offset

    def sweep(self, now: float) -> None:
        """End an association that was silent for idle_udp seconds, or never answered."""
        socks = self.session.settings.config.socks
        self._end_if_idle(now, socks.idle_udp if self.opened else socks.connect_timeout)

    def _close(self, reason: int) -> None:
        if not self.end(reason):
            return
        for _ in self.waiting:
            self.drop("opening")
        self.waiting.clear()
        del self.forward.associations[self.address]
        self.slot.end()
