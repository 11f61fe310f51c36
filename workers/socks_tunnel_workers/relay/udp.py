"""UDP associations (RFC 1928 section 7): the gateway's relay socket, the endpoint's sockets.

::

    client --SOCKS5 UDP packet--> gateway relay --UDP_PACKET--> endpoint socket --> target
    client <--SOCKS5 UDP packet-- gateway relay <--UDP_PACKET-- endpoint socket <-- sender

The packet crosses the tunnel as the client wrote it. The endpoint removes the header, and puts one
with the true sender before each reply.
"""

from __future__ import annotations

import socket
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any, ClassVar, Final, Protocol

from socks_tunnel.protocol import bounded
from socks_tunnel.protocol.addresses import HostPort
from socks_tunnel.protocol.errors import CloseReason, RemoteProtocolError
from socks_tunnel.protocol.flow import ROW_OPEN
from socks_tunnel.protocol.messages import (
    Message,
    MessageType,
    UdpAssociate,
    UdpAssociateClosed,
    UdpAssociateOpened,
)
from socks_tunnel.protocol.policy import Policy
from socks_tunnel.protocol.streams import POSITION_MAX
from socks_tunnel_workers.relay.client_socket import ClientSocket
from socks_tunnel_workers.relay.local_policy import allowed_here
from socks_tunnel_workers.relay.session import Flow, WorkerSession
from socks_tunnel_workers.services import Account
from socks_tunnel_workers.sockets import SockAddr, send_failure

DESTINATIONS_MAX = 1024
"""Destinations whose decision an association remembers. The oldest one is forgotten first."""

OPENING_BYTES_MAX: Final = 262_144
"""Bytes of a client's first datagrams that wait for one association to open."""

DRAIN_IDLE_MAX = 3.0
"""Seconds of silence after which an association ends while its worker drains. An association has no
end of its own, so a single answer of a name server would delay each drain until its timeout."""


class Relayed(Protocol):
    """A client's association with a bound relay."""

    @property
    def bound(self) -> HostPort:
        """The relay's concrete address, for the SOCKS reply."""

    def abort(self, reason: int, *, tell_peer: bool = True) -> None:
        """Ends it at once."""


class Control(Protocol):
    """The owner of the client's control connection, on which it asked for the association."""

    @property
    def client(self) -> str:
        """The client's name in tables and logs."""

    @property
    def connection(self) -> socket.socket:
        """The control connection."""

    @property
    def account(self) -> str:
        """The account that limits of the client apply to."""

    def associated(self, association: Relayed) -> None:
        """Tells the client the address of the relay, because the endpoint has answered."""

    def association_ended(self, reason: int, *, opened: bool) -> None:
        """Closes the control connection, because the association is over."""


class Association(Flow):
    """The counters and the end of an association, for both sides."""

    __slots__ = ("_down", "_up", "opened", "repeated")

    kind: ClassVar[str] = "udp"

    def __init__(self, session: WorkerSession, conn_id: int, *, client: str) -> None:
        super().__init__(session, conn_id, command="udp-associate", client=client)
        self.opened = False
        self.repeated = False
        """Whether UDP_ASSOCIATE was sent again, so that a second answer is no error."""
        self._up = 0
        self._down = 0

    @property
    def up(self) -> int:
        """Payload bytes from the client that were sent on, without SOCKS headers."""
        return self._up

    @property
    def down(self) -> int:
        """Payload bytes for the client that were sent on, without SOCKS headers."""
        return self._down

    def came_back(self, size: int) -> None:
        """Counts a datagram of `size` payload bytes that was sent to the client."""
        self.active = self.session.loop.time()
        self._down += size
        self.session.counters.received["udp"] += size

    @property
    def state(self) -> str:
        """Either "open", or "opening" while the endpoint has not answered."""
        return "open" if self.opened else "opening"

    def mark_opened(self) -> None:
        """Notes the endpoint's answer. Raises :class:`RemoteProtocolError` if it comes twice."""
        if self.opened and not self.repeated:
            raise RemoteProtocolError(
                "an answer to an open came twice", kind="opened-twice", conn_id=self.conn_id
            )
        self.opened = True

    def export(self) -> dict[str, Any]:
        """Returns the values that all associations have, for a hand-over to the next program."""
        return {
            "conn_id": self.conn_id,
            "started": self.started,
            "active": self.active,
            "repeated": self.repeated,
            "up": self._up,
            "down": self._down,
        }

    def restore(self, fields: Mapping[str, Any]) -> None:
        """Takes what :meth:`export` returned. The association is open then. Raises Malformed."""
        self.started = bounded.number(fields, "started")
        self.active = bounded.number(fields, "active")
        self.repeated = bounded.boolean(fields, "repeated")
        self._up = bounded.integer(fields, "up", 0, POSITION_MAX)
        self._down = bounded.integer(fields, "down", 0, POSITION_MAX)
        self.opened = True

    def ask(self) -> None:
        """Sends UDP_ASSOCIATE to the endpoint."""
        self.session.send(UdpAssociate(self.conn_id).encode())

    def row(self) -> tuple[int, int, int, int]:
        """Returns the row of RESUME, without positions: an association has no stream."""
        return self.conn_id, 0, 0, ROW_OPEN if self.opened else 0

    def on_resumed(self, received: int, limit: int, flags: int) -> None:
        """Asks again if the answer may have been lost. Datagrams sent without a link are lost."""
        del received, limit, flags
        self.active = self.session.loop.time()  # without a link, silence does not count
        if not self.opened:
            self.on_missing()

    def on_missing(self) -> bool:
        """Asks again if the association was not opened yet, because the peer does not know it."""
        if self.opened:
            return False
        self.repeated = True
        self.ask()
        return True

    def abort(self, reason: int, *, tell_peer: bool = True) -> None:
        """Ends the association at once. On the gateway the control connection ends with it."""
        if tell_peer and not self.ended:
            self.session.core.close(self.conn_id, reason, kind=MessageType.UDP_ASSOCIATE)
        self._close(reason)

    def _end_if_idle(self, now: float, limit: float) -> None:
        """Ends the association after `limit` seconds without a datagram; sooner in a drain."""
        if self.ended or not self.session.core.attached:
            return  # without a link, the association ends with its session
        draining = self.session.draining
        if now - self.active > (min(limit, DRAIN_IDLE_MAX) if draining else limit):
            self.abort(CloseReason.SHUTTING_DOWN if draining else CloseReason.IDLE_TIMEOUT)

    def sweep(self, now: float) -> None:
        """Ends the association after `idle_udp` seconds of silence, or without an answer.

        That is a gateway's rule. An endpoint's associations have another one.
        """
        socks = self.session.settings.config.socks
        self._end_if_idle(now, socks.idle_udp if self.opened else socks.connect_timeout)

    def _close(self, reason: int) -> None:
        """Leaves the table and closes the sockets; harmless if that was done before."""
        raise NotImplementedError

    def drop(self, reason: str) -> None:
        """Counts one dropped datagram by its reason."""
        self.session.counters.drop(reason)

    def _send_failed(self, error: OSError) -> None:
        """Counts a datagram that the socket did not take, by the reason."""
        self.drop(send_failure(error))


class GatewayAssociation(Association):
    """The gateway's side if there are no routes: one flow carries the datagrams for all targets.

    Its relay socket is on the local address of the client's SOCKS connection. It is bound after the
    association has been admitted.
    """

    __slots__ = ("client_socket", "control", "policy", "verdicts")

    def __init__(self, session: WorkerSession, conn_id: int, control: Control) -> None:
        super().__init__(session, conn_id, client=control.client)
        self.control = control
        self.client_socket = ClientSocket(self.drop)
        self.policy: Policy | None = None
        self.verdicts: OrderedDict[HostPort, bool] = OrderedDict()

    @property
    def bound(self) -> HostPort:
        """The relay's concrete address, for the SOCKS reply."""
        return self.client_socket.bound

    def on_message(self, message: Message) -> None:
        """Takes the endpoint's answer, or its CLOSE."""
        match message:
            case UdpAssociateOpened():
                if self.opened and self.repeated:
                    return
                self.mark_opened()
                self.watch()
                self.control.associated(self)
            case UdpAssociateClosed(reason=reason):
                self._close(reason)
            case _:
                raise self.unexpected(type(message).__name__)

    # --- client -> endpoint ---------------------------------------------------------------------

    def watch(self) -> None:
        """Reads the relay socket from now on."""
        session, sock = self.session, self.client_socket.sock
        assert sock is not None, "it is bound before the endpoint is asked"
        session.loop.add_reader(sock, session.core.guard, self, self._readable)

    def _readable(self) -> None:
        self.client_socket.receive(self._from_client)

    def _from_client(self, packet: bytes, sender: SockAddr) -> bool:
        """Sends a datagram on its way, or drops it; returns whether another one may be read."""
        client = self.client_socket
        datagram = client.parse(packet, sender)
        if datagram is None:
            return True
        if not self._allowed(datagram.destination):
            self.drop("policy")
            return True
        session = self.session
        if len(packet) > session.terms.max_data:
            self.drop("too-long")
            return True
        client.goes_on(packet, sender)
        self.active = session.loop.time()
        self._up += len(packet) - datagram.offset
        session.counters.sent["udp"] += len(packet) - datagram.offset
        session.send_datagram(self.conn_id, b"", packet)
        return not self.ended

    def _allowed(self, destination: HostPort) -> bool:
        """Returns whether the gateway's policy lets a datagram go on (see allowed_here).

        The policy is asked once for each destination.
        """
        session = self.session
        policy = session.settings.policies.default
        if policy is not self.policy:  # a reload: earlier decisions do not hold any more
            self.policy = policy
            self.verdicts.clear()
        if policy is None:
            return True
        known = self.verdicts.get(destination)
        if known is None:
            known = allowed_here(
                session.counters,
                policy,
                destination,
                peer=session.peer,
                conn_id=self.conn_id,
                command=self.command,
            )
            self.verdicts[destination] = known
            if len(self.verdicts) > DESTINATIONS_MAX:
                self.verdicts.popitem(last=False)
        return known

    # --- endpoint -> client ---------------------------------------------------------------------

    def on_datagram(self, packet: memoryview) -> None:
        """Passes a reply to the client."""
        size = self.client_socket.reply(packet, self.conn_id)
        if size is not None:
            self.came_back(size)

    def sweep(self, now: float) -> None:
        """Ends the association after `idle_udp` seconds of silence."""
        if self.opened:
            self._end_if_idle(now, self.session.settings.config.socks.idle_udp)

    def _close(self, reason: int) -> None:
        if not self.end(reason):
            return
        self.client_socket.close(self.session.loop)
        self.control.association_ended(reason, opened=self.opened)


class Backlog:
    """The client's first datagrams, which wait one round trip for their association to open.

    The endpoint would drop a datagram that comes before the association is open.
    """

    __slots__ = ("_charge", "_memory", "_waiting")

    def __init__(self, memory: Account) -> None:
        self._memory = memory
        self._charge = memory.charge()
        self._waiting: list[bytes] = []

    def put(self, data: bytes) -> bool:
        """Keeps a datagram; returns False at the limit, or if the worker's memory is short."""
        held = self._charge.used + len(data)
        if held > OPENING_BYTES_MAX or self._memory.over:
            return False
        self._waiting.append(data)
        self._charge.set(held)
        return True

    def take(self) -> list[bytes]:
        """Returns the datagrams that wait, and forgets them."""
        waiting, self._waiting = self._waiting, []
        self._charge.end()
        return waiting
