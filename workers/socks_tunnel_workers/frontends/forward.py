"""Static forwards: local ports that lead to one target each, for programs that know no proxy.

A TCP forward is a CONNECT without the SOCKS handshake. A UDP forward has one association for each
client address and port, with the same idle time as any association. The policies decide about the
target of a forward as about any other destination.
"""

from __future__ import annotations

import socket
from collections import OrderedDict
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from socks_tunnel.protocol import bounded
from socks_tunnel.protocol.addresses import HostPort
from socks_tunnel.protocol.errors import CloseReason, RemoteProtocolError
from socks_tunnel.protocol.messages import (
    Message,
    UdpAssociateClosed,
    UdpAssociateOpened,
)
from socks_tunnel.protocol.socks5 import ConnectRequest, udp_header
from socks_tunnel_workers.frontends.asking import Asker
from socks_tunnel_workers.frontends.identity import identify_address
from socks_tunnel_workers.frontends.opening import Opening
from socks_tunnel_workers.relay.client_socket import parse_from_peer
from socks_tunnel_workers.relay.local_policy import allowed_here
from socks_tunnel_workers.relay.udp import Association, Backlog
from socks_tunnel_workers.services import QuotaSlot
from socks_tunnel_workers.sockets import DATAGRAMS_PER_TURN, SockAddr, prepare_datagrams, reset

if TYPE_CHECKING:
    from socks_tunnel_workers.frontends.clients import Clients
    from socks_tunnel_workers.relay.session import WorkerSession

CLIENTS_MAX = 4096
"""Associations of one UDP forward. One more ends the least recently used one."""


class TcpForwardSession(Asker):
    """A client of a TCP forward until its flow is open.

    The client gets no reply: the flow opens, or the connection is reset. What the client sends at
    once travels with the request and saves a round trip.
    """

    __slots__ = ("_clients", "_opening", "_sock")

    def __init__(
        self, clients: Clients, sock: socket.socket, address: SockAddr, target: HostPort
    ) -> None:
        self._clients = clients
        self._sock: socket.socket | None = sock
        clients.opening.add(self)
        who = identify_address(address)
        self._opening = Opening(clients, self, ConnectRequest(target), who, sock)
        self._opening.start()

    def opened(self, bound: HostPort) -> bool:
        """Leaves the socket to the flow."""
        del bound
        self._sock = None
        self._clients.opening.discard(self)
        return True

    def failed(self, reason: int, sentence: str) -> None:
        """Resets the client's connection, which is the only way to report a failure."""
        del reason, sentence
        self._reset()

    def close(self) -> None:
        """Resets the client's connection and cancels its request."""
        self._opening.cancel()
        self._reset()

    def _reset(self) -> None:
        if self._sock is not None:
            reset(self._sock)
            self._sock = None
        self._clients.opening.discard(self)


class UdpForward:
    """One UDP forward: its socket, and an association for each recent client."""

    def __init__(self, clients: Clients, sock: socket.socket, target: HostPort) -> None:
        self.clients = clients
        self.sock = sock
        self.target = target
        self.header = udp_header(target)
        self.associations: OrderedDict[SockAddr, ForwardAssociation] = OrderedDict()
        self._watching = False
        prepare_datagrams(sock)

    def start(self) -> None:
        """Takes datagrams from now on."""
        if not self._watching:
            self._watching = True
            self.clients.loop.add_reader(self.sock, self._readable)

    def stop(self) -> None:
        """Takes no more datagrams, neither from new clients nor from known ones."""
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
                # This is a pending ICMP error of an earlier datagram. No datagram is lost.
                return
            try:
                self._from_client(data, client)
            except Exception as error:  # noqa: BLE001 - a bug costs this datagram
                self.clients.counters.drop("bug")
                self.clients.bug(error, "a datagram of a UDP forward is dropped")

    def _from_client(self, data: bytes, client: SockAddr) -> None:
        association = self.associations.get(client)
        if association is None:
            association = self._associate(client)
            if association is None:
                return
        else:
            self.associations.move_to_end(client)
        association.session.core.guard(association, association.from_client, data)

    def _associate(self, client: SockAddr) -> ForwardAssociation | None:
        """Returns an association for a new client, or None if its datagram is dropped."""
        clients = self.clients
        way = clients.routing.match(self.target.host, self.target.port)
        if way is None:
            clients.routing.report_unrouted(str(self.target), str(client), "udp-associate")
            clients.counters.drop("no-route")
            return None
        session = clients.routing.choose(way.number)
        if session is None:
            clients.counters.drop("no-link")
            return None
        conn_id = session.allocate()
        if not self.allowed(session, conn_id):
            clients.counters.drop("policy")
            return None
        who = identify_address(client)
        slot = None if clients.full else clients.take_association(who.account)
        if slot is None:
            clients.counters.drop("too-many")
            return None
        association = ForwardAssociation(session, conn_id, self, client, who.name, slot)
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
        clients.routing.count(way.number, session)
        association.ask()
        return association

    def take_over(
        self,
        session: WorkerSession,
        conn_id: int,
        address: SockAddr,
        client: str,
        fields: Mapping[str, Any],
    ) -> ForwardAssociation:
        """Returns an association of the previous program, which goes on here.

        Raises Malformed if `fields` do not describe one, or if the client is at its limit.
        """
        slot = self.clients.take_association(identify_address(address).account)
        if slot is None:
            raise bounded.Malformed(
                f"the client {client} has as many associations as limits.associations_per_client "
                "allows"
            )
        association = ForwardAssociation(session, conn_id, self, address, client, slot)
        try:
            association.restore(fields)
            session.readmit(association)
        except BaseException:
            slot.end()
            raise
        self.associations[address] = association
        return association

    def allowed(self, session: WorkerSession, conn_id: int) -> bool:
        """Returns whether the gateway's policy in force allows the target. Counts and audits it."""
        policy = session.settings.policies.default
        return policy is None or allowed_here(
            session.counters,
            policy,
            self.target,
            peer=session.peer,
            conn_id=conn_id,
            command="udp-associate",
        )


class ForwardAssociation(Association):
    """The association of one client of a UDP forward."""

    __slots__ = ("address", "allowed", "backlog", "forward", "policy", "slot")

    def __init__(
        self,
        session: WorkerSession,
        conn_id: int,
        forward: UdpForward,
        address: SockAddr,
        client: str,
        slot: QuotaSlot,
    ) -> None:
        super().__init__(session, conn_id, client=client)
        self.policy = session.settings.policies.default
        self.allowed = True
        self.destination = forward.target
        self.forward = forward
        self.slot = slot
        self.address = address
        self.backlog = Backlog(session.memory)

    def from_client(self, data: bytes) -> None:
        """Sends a datagram of the client to the endpoint, or drops and counts it."""
        if not self._still_allowed():
            self.drop("policy")
            return
        if not self.opened:
            if not self.backlog.put(data):
                self.drop("opening")
            return
        if len(self.forward.header) + len(data) > self.session.terms.max_data:
            self.drop("too-long")
            return
        self.active = self.session.loop.time()
        self._up += len(data)
        self.session.counters.sent["udp"] += len(data)
        self.session.send_datagram(self.conn_id, self.forward.header, data)

    def _still_allowed(self) -> bool:
        """Returns whether the gateway's policy allows the target. It is asked after each reload."""
        policy = self.session.settings.policies.default
        if policy is not self.policy:
            self.policy = policy
            self.allowed = self.forward.allowed(self.session, self.conn_id)
        return self.allowed

    def on_message(self, message: Message) -> None:
        """Takes the endpoint's answer, or the end."""
        match message:
            case UdpAssociateOpened():
                self.mark_opened()
                for data in self.backlog.take():
                    self.from_client(data)
            case UdpAssociateClosed(reason=reason):
                self._close(reason)
            case _:
                raise self.unexpected(type(message).__name__)

    def on_datagram(self, packet: memoryview) -> None:
        """Passes a reply to the client without its SOCKS header, which the client would not know.

        Raises :class:`RemoteProtocolError` for a packet without a right header.
        """
        offset = parse_from_peer(packet, self.conn_id).offset
        try:
            self.forward.sock.sendto(packet[offset:], self.address)
        except OSError as error:
            self._send_failed(error)
            return
        self.came_back(len(packet) - offset)

    def _close(self, reason: int) -> None:
        if not self.end(reason):
            return
        for _ in self.backlog.take():
            self.drop("opening")
        del self.forward.associations[self.address]
        self.slot.end()
