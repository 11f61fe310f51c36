"""UDP associations of a gateway with several peers: each datagram goes to a peer of its route.

::

                                      +-- leg: an association with peer A --> targets of A
    client <--> ClientSocket <--------+
                                      +-- leg: an association with peer B --> targets of B

One association of a client has up to :data:`LEGS_MAX` associations in the tunnel, its *legs*. The
first datagram that needs a leg opens it. A route keeps its leg as long as the leg works, also when
a better peer comes back, so that targets see the same sender. If the peer of a leg is lost, the
next datagram opens another leg. Replies come from all legs.
"""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict
from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

from socks_tunnel.protocol.addresses import HostPort
from socks_tunnel.protocol.errors import CloseReason, RemoteProtocolError
from socks_tunnel.protocol.messages import Message, UdpAssociateClosed, UdpAssociateOpened
from socks_tunnel.protocol.policy import Policy
from socks_tunnel.protocol.routes import Match, RouteTable
from socks_tunnel.protocol.socks5 import parse_udp_packet
from socks_tunnel_workers.relay.client_socket import ClientSocket
from socks_tunnel_workers.relay.local_policy import allowed_here
from socks_tunnel_workers.relay.udp import DESTINATIONS_MAX, Association, Backlog, Control
from socks_tunnel_workers.services import Counters, Settings
from socks_tunnel_workers.sockets import SockAddr

if TYPE_CHECKING:
    from socks_tunnel_workers.relay.session import WorkerSession

_log = logging.getLogger(__name__)

LEGS_MAX = 16
"""Legs that one association of a client may have. One more ends the oldest leg."""


class Ways(Protocol):
    """Knows the routes and their sessions; :class:`frontends.routing.Routing` is one."""

    def match(self, host: str, port: int | None) -> Match | None:
        """Returns the route of a destination."""

    def choose(self, route: int) -> WorkerSession | None:
        """Returns the session for a new flow of a route."""

    def better(self, route: int, session: WorkerSession) -> WorkerSession | None:
        """Returns a preferred session in place of one that is not preferred."""

    def count(self, route: int, session: WorkerSession) -> None:
        """Counts a new flow of a route."""

    def report_unrouted(self, destination: str, client: str, command: str) -> None:
        """Counts, logs and audits a destination that is in no route."""


class Leg(Association):
    """The association with one peer."""

    __slots__ = ("backlog", "client_socket", "owner")

    def __init__(self, session: WorkerSession, conn_id: int, owner: RoutedAssociation) -> None:
        super().__init__(session, conn_id, client=owner.client)
        self.owner = owner
        self.client_socket = owner.client_socket
        self.backlog = Backlog(session.memory)

    def send(self, packet: bytes, offset: int) -> None:
        """Sends a datagram of the client to the endpoint. `offset` is where its payload begins.

        Until the leg is open, the datagram waits or is dropped.
        """
        if not self.opened:
            if not self.backlog.put(packet):
                self.drop("opening")
            return
        session = self.session
        self.active = session.loop.time()
        self._up += len(packet) - offset
        session.counters.sent["udp"] += len(packet) - offset
        session.send_datagram(self.conn_id, b"", packet)

    def on_message(self, message: Message) -> None:
        """Takes the endpoint's answer, or its CLOSE."""
        match message:
            case UdpAssociateOpened():
                if self.opened and self.repeated:
                    return
                self.mark_opened()
                for packet in self.backlog.take():
                    self.send(packet, self.owner.offset_of(packet))
            case UdpAssociateClosed(reason=reason):
                self._close(reason)
            case _:
                raise self.unexpected(type(message).__name__)

    def on_datagram(self, packet: memoryview) -> None:
        """Passes a reply to the client."""
        size = self.client_socket.reply(packet, self.conn_id)
        if size is not None:
            self.came_back(size)
            self.owner.active = self.active

    def _close(self, reason: int) -> None:
        if not self.end(reason):
            return
        for _ in self.backlog.take():
            self.drop("opening")
        self.owner.leg_ended(self)


class RoutedAssociation:
    """One association of a client. Its creator binds the relay, :attr:`client_socket`.

    `admit` takes a leg into its session. It raises :class:`RemoteProtocolError` if a limit is
    reached.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        settings: Settings,
        counters: Counters,
        ways: Ways,
        control: Control,
        admit: Callable[[Leg], None],
    ) -> None:
        self.loop = loop
        self.client = control.client
        self.client_socket = ClientSocket(counters.drop)
        self.opened = False
        self.ended = False
        self.draining = False
        self.active = loop.time()
        self.legs: OrderedDict[int, Leg] = OrderedDict()
        """The legs by the number of their session, the oldest first."""
        self._settings = settings
        self._counters = counters
        self._ways = ways
        self._control = control
        self._admit = admit
        self._by_route: dict[int, Leg] = {}
        self._decided: OrderedDict[HostPort, tuple[int, bool] | None] = OrderedDict()
        self._policy: Policy | None = None
        self._table: RouteTable | None = None

    @property
    def bound(self) -> HostPort:
        """The relay's concrete address, for the SOCKS reply."""
        return self.client_socket.bound

    @property
    def control(self) -> Control:
        """The owner of the client's control connection."""
        return self._control

    def start(self) -> None:
        """Takes datagrams from now on, and tells the client the relay's address."""
        self.watch()
        self._control.associated(self)

    def watch(self) -> None:
        """Takes datagrams from now on. The client knows the relay's address already."""
        sock = self.client_socket.sock
        assert sock is not None
        self.loop.add_reader(sock, self._readable)
        self.opened = True

    def adopt(self, leg: Leg) -> None:
        """Takes a leg of the previous program, which is in its session already."""
        self.legs[leg.session.number] = leg

    # --- client -> endpoints --------------------------------------------------------------------

    def _readable(self) -> None:
        try:
            self.client_socket.receive(self._from_client)
        except Exception:  # noqa: BLE001 - the border: a bug costs one association
            _log.exception("the UDP association of client %s met a bug: closing it", self.client)
            self._counters.count("protocol_errors_total", "bug")
            self.close()

    def _from_client(self, packet: bytes, sender: SockAddr) -> bool:
        """Sends a datagram on its way, or drops it; returns whether another one may be read."""
        client = self.client_socket
        datagram = client.parse(packet, sender)
        if datagram is None:
            return True
        if self.draining:
            self._counters.drop("draining")
            return True
        destination = datagram.destination
        leg = self._leg(destination)
        if leg is None:
            return True
        if len(packet) > leg.session.terms.max_data:
            leg.drop("too-long")
            return True
        client.goes_on(packet, sender)
        self.active = self.loop.time()
        leg.send(packet, datagram.offset)
        return not self.ended

    @staticmethod
    def offset_of(packet: bytes) -> int:
        """Returns where the payload begins of a packet that was parsed before."""
        return parse_udp_packet(packet).offset

    def _leg(self, destination: HostPort) -> Leg | None:
        """Returns the leg for a destination; None if the datagram is dropped."""
        self._look_at_settings()
        if destination in self._decided:
            route = self._decided[destination]
        else:
            match = self._ways.match(*destination)
            route = None if match is None else (match.number, True)
        if route is None:
            if destination not in self._decided:
                self._ways.report_unrouted(str(destination), self.client, "udp-associate")
                self._decide(destination, None)
            self._counters.drop("no-route")
            return None
        number, allowed = route
        leg = self._by_route.get(number)
        session = None if leg is None or leg.ended else leg.session
        if session is None:
            session = self._ways.choose(number)
        else:
            session = self._ways.better(number, session) or session
        if session is None:
            self._counters.drop("no-link")
            return None
        if destination not in self._decided:
            allowed = self._allowed(destination, session)
            self._decide(destination, (number, allowed))
        if not allowed:
            self._counters.drop("policy")
            return None
        if leg is None or leg.ended or leg.session is not session:
            leg = self.legs.get(session.number) or self._open(number, session)
            if leg is not None:
                self._by_route[number] = leg
        return leg

    def _look_at_settings(self) -> None:
        """Forgets all decisions if a reload has changed the policy or the routes."""
        settings = self._settings
        if settings.policies.default is not self._policy or settings.routes is not self._table:
            self._policy, self._table = settings.policies.default, settings.routes
            self._decided.clear()
            self._by_route.clear()

    def _decide(self, destination: HostPort, decision: tuple[int, bool] | None) -> None:
        self._decided[destination] = decision
        if len(self._decided) > DESTINATIONS_MAX:
            self._decided.popitem(last=False)

    def _allowed(self, destination: HostPort, session: WorkerSession) -> bool:
        """Returns whether the gateway's own policy lets a datagram go on (see allowed_here)."""
        leg = self.legs.get(session.number)
        return self._policy is None or allowed_here(
            self._counters,
            self._policy,
            destination,
            peer=session.peer,
            conn_id=0 if leg is None else leg.conn_id,
            command="udp-associate",
        )

    def _open(self, route: int, session: WorkerSession) -> Leg | None:
        """Returns a new leg, or None if a limit is reached."""
        leg = Leg(session, session.allocate(), self)
        try:
            self._admit(leg)
        except RemoteProtocolError:
            self._counters.drop("too-many")
            return None
        self.legs[session.number] = leg
        if len(self.legs) > LEGS_MAX:
            next(iter(self.legs.values())).abort(CloseReason.RESOURCE_LIMIT)
        self._ways.count(route, session)
        leg.ask()
        return leg

    # --- the end --------------------------------------------------------------------------------

    def leg_ended(self, leg: Leg) -> None:
        """Forgets a leg that has ended. The next datagram that needs one opens another."""
        if self.legs.get(leg.session.number) is leg:
            del self.legs[leg.session.number]
        self._by_route = {
            number: each for number, each in self._by_route.items() if each is not leg
        }
        if self.draining and not self.legs:
            self.abort(CloseReason.SHUTTING_DOWN)

    def sweep(self, now: float) -> None:
        """Ends the association after `idle_udp` seconds of silence, if it has no leg."""
        if not self.legs and now - self.active > self._settings.config.socks.idle_udp:
            self.abort(CloseReason.IDLE_TIMEOUT)

    def drain(self) -> None:
        """Takes no more datagrams of the client. The association ends with its last leg."""
        self.draining = True
        if not self.legs:
            self.abort(CloseReason.SHUTTING_DOWN)

    def close(self) -> None:
        """Ends the association because of a bug."""
        self.abort(CloseReason.GENERAL_FAILURE)

    def abort(self, reason: int, *, tell_peer: bool = True) -> None:
        """Ends the association at once, with all legs and its control connection."""
        if self.ended:
            return
        self.ended = True
        self.draining = False
        for leg in list(self.legs.values()):
            leg.abort(reason, tell_peer=tell_peer)
        self.client_socket.close(self.loop)
        self._control.association_ended(reason, opened=self.opened)
