"""UDP associations (RFC 1928 section 7): the gateway's relay socket, the endpoint's sockets.

::

    client --SOCKS5 UDP packet--> gateway relay --UDP_PACKET--> endpoint socket --> target
    client <--SOCKS5 UDP packet-- gateway relay <--UDP_PACKET-- endpoint socket <-- sender

The packet crosses the tunnel as the client wrote it; the endpoint cuts the header off, and puts one
with the true sender before what comes back.
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

DATAGRAM_MAX = 65_507
"""Longest UDP payload over IPv4 in bytes (65,535 - 20 - 8)."""

DESTINATIONS_MAX = 1024
"""Destinations whose decision an association remembers; the least recent one is asked for again."""

OPENING_BYTES_MAX: Final = 262_144
"""Bytes of a client's first datagrams that wait for one association to open."""

DRAIN_IDLE_MAX = 3.0
"""Seconds of silence after which an association ends while its worker drains: datagrams have no end
of their own, and the answer of a name server would hold up every drain for its whole length."""


class Relayed(Protocol):
    """An association of a client whose relay is bound."""

    @property
    def bound(self) -> HostPort:
        """The relay's concrete address, for the SOCKS reply."""

    def abort(self, reason: int, *, tell_peer: bool = True) -> None:
        """Ends it at once."""


class Control(Protocol):
    """Who holds the client's control connection, on which it asked for the association."""

    @property
    def client(self) -> str:
        """The client's name in tables and logs."""

    @property
    def connection(self) -> socket.socket:
        """The control connection."""

    @property
    def account(self) -> str:
        """What the client's associations are counted under."""

    def associated(self, association: Relayed) -> None:
        """The endpoint has answered: tells the client where the relay is."""

    def association_ended(self, reason: int, *, opened: bool) -> None:
        """The association is over; the control connection ends with it."""


class Association(Flow):
    """What both sides of an association share: counters and the end."""

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
        """Payload bytes that the client sent, without SOCKS headers, and that went on."""
        return self._up

    @property
    def down(self) -> int:
        """Payload bytes that came back for the client and went on."""
        return self._down

    def came_back(self, size: int) -> None:
        """Counts a datagram of so many bytes that went on to the client."""
        self.active = self.session.loop.time()
        self._down += size
        self.session.counters.received["udp"] += size

    @property
    def state(self) -> str:
        """Open, or waiting for the endpoint."""
        return "open" if self.opened else "opening"

    def mark_opened(self) -> None:
        """Notes the endpoint's answer. Raises :class:`RemoteProtocolError` if it comes twice."""
        if self.opened and not self.repeated:
            raise RemoteProtocolError(
                "an answer to an open came twice", kind="opened-twice", conn_id=self.conn_id
            )
        self.opened = True

    def export(self) -> dict[str, Any]:
        """Returns what all associations have in common, for a hand-over to another program."""
        return {
            "conn_id": self.conn_id,
            "started": self.started,
            "active": self.active,
            "repeated": self.repeated,
            "up": self._up,
            "down": self._down,
        }

    def restore(self, fields: Mapping[str, Any]) -> None:
        """Takes what :meth:`export` returned; the association is open. Raises Malformed."""
        self.started = bounded.number(fields, "started")
        self.active = bounded.number(fields, "active")
        self.repeated = bounded.boolean(fields, "repeated")
        self._up = bounded.integer(fields, "up", 0, POSITION_MAX)
        self._down = bounded.integer(fields, "down", 0, POSITION_MAX)
        self.opened = True

    def ask(self) -> None:
        """Asks the endpoint for the association."""
        self.session.send(UdpAssociate(self.conn_id).encode())

    def row(self) -> tuple[int, int, int, int]:
        """Returns the row of RESUME: an association has no stream."""
        return self.conn_id, 0, 0, ROW_OPEN if self.opened else 0

    def on_resumed(self, received: int, limit: int, flags: int) -> None:
        """Asks again if the answer may have been lost. Datagrams of the gap are gone."""
        del received, limit, flags
        self.active = self.session.loop.time()  # nobody could say anything meanwhile
        if not self.opened:
            self.on_missing()

    def on_missing(self) -> bool:
        """The peer does not know the association: asks again, if it was not opened yet."""
        if self.opened:
            return False
        self.repeated = True
        self.ask()
        return True

    def abort(self, reason: int, *, tell_peer: bool = True) -> None:
        """Ends it at once; on the gateway the control connection ends with it."""
        if tell_peer and not self.ended:
            self.session.core.close(self.conn_id, reason, kind=MessageType.UDP_ASSOCIATE)
        self._close(reason)

    def _end_if_idle(self, now: float, limit: float) -> None:
        """Ends it after so many seconds without a datagram; sooner while the worker drains."""
        if self.ended or not self.session.core.attached:
            return  # without a link, the session's own time decides
        draining = self.session.draining
        if now - self.active > (min(limit, DRAIN_IDLE_MAX) if draining else limit):
            self.abort(CloseReason.SHUTTING_DOWN if draining else CloseReason.IDLE_TIMEOUT)

    def _close(self, reason: int) -> None:
        """Leaves the table and closes what is ours; harmless if that was done before."""
        raise NotImplementedError

    def drop(self, reason: str) -> None:
        """Counts one datagram that goes nowhere."""
        self.session.counters.drop(reason)

    def _send_failed(self, error: OSError) -> None:
        """Counts a datagram that the socket did not take, by why."""
        self.drop(send_failure(error))


class GatewayAssociation(Association):
    """The gateway's side where all destinations are reached in the same way: one flow for all.

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
        """Takes the endpoint's answer, or the end."""
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
        """Reads the relay from now on."""
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
        """Asks the gateway's own policy, once for each destination; a name in doubt may go on."""
        session = self.session
        policy = session.settings.policies.default
        if policy is not self.policy:  # a reload: what was decided before counts no more
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
        """Ends an association that was silent for idle_udp seconds."""
        if self.opened:
            self._end_if_idle(now, self.session.settings.config.socks.idle_udp)

    def _close(self, reason: int) -> None:
        if not self.end(reason):
            return
        self.client_socket.close(self.session.loop)
        self.control.association_ended(reason, opened=self.opened)


class Backlog:
    """The client's first datagrams, which wait for their association to open: one round trip.

    The endpoint would drop a datagram that it does not expect yet.
    """

    __slots__ = ("_charge", "_memory", "_waiting")

    def __init__(self, memory: Account) -> None:
        self._memory = memory
        self._charge = memory.charge()
        self._waiting: list[bytes] = []

    def put(self, data: bytes) -> bool:
        """Keeps a datagram; returns False if there is no room for it."""
        held = self._charge.used + len(data)
        if held > OPENING_BYTES_MAX or self._memory.over:
            return False
        self._waiting.append(data)
        self._charge.set(held)
        return True

    def take(self) -> list[bytes]:
        """Returns all that waits, and forgets it."""
        waiting, self._waiting = self._waiting, []
        self._charge.end()
        return waiting
