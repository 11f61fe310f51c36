"""UDP associations (RFC 1928 section 7): the gateway's relay socket, the endpoint's sockets.

::

    client --SOCKS5 UDP packet--> gateway relay --UDP_PACKET--> endpoint socket --> target
    client <--SOCKS5 UDP packet-- gateway relay <--UDP_PACKET-- endpoint socket <-- sender

The packet crosses the tunnel as the client wrote it; the endpoint cuts the header off, and puts one
with the true sender before what comes back.
"""

from __future__ import annotations

import errno
import secrets
import socket
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Final, Protocol, TypeAlias

from socks_tunnel.protocol import bounded
from socks_tunnel.protocol.addresses import AddressType, HostPort
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
from socks_tunnel.protocol.socks5 import parse_udp_packet
from socks_tunnel.protocol.streams import POSITION_MAX
from socks_tunnel_workers.relay.flow import Flow
from socks_tunnel_workers.relay.local_policy import allowed_here

if TYPE_CHECKING:
    from socks_tunnel_workers.relay.session import WorkerSession

DATAGRAM_MAX = 65_507
"""Longest UDP payload over IPv4 in bytes (65,535 - 20 - 8)."""

DATAGRAMS_PER_TURN = 64
"""Datagrams read from one socket before others get their turn."""

DESTINATIONS_MAX = 1024
"""Destinations whose decision an association remembers; the least recent one is asked for again."""

DRAIN_IDLE_MAX = 3.0
"""Seconds of silence after which an association ends while its worker drains: datagrams have no end
of their own, and the answer of a name server would hold up every drain for its whole length."""

SOCKET_BUFFER = 1 << 20
"""Asked for as SO_RCVBUF and SO_SNDBUF in bytes, so that a burst is not lost to a busy loop."""

_MAPPED: Final = bytes(10) + b"\xff\xff"
"""What precedes an IPv4 address in an IPv4-mapped IPv6 address (RFC 4291 section 2.5.5.2)."""

_NO_FRAGMENT: Final = b"\0\0\0"
"""RSV and FRAG of a datagram that is no fragment."""

SockAddr: TypeAlias = tuple[str, int] | tuple[str, int, int, int]


def make_room(sock: socket.socket) -> None:
    """Makes a UDP socket non-blocking, with room for bursts."""
    sock.setblocking(False)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SOCKET_BUFFER)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SOCKET_BUFFER)


def udp_socket(family: int, address: SockAddr) -> socket.socket:
    """Returns a bound, non-blocking UDP socket with room for bursts. Raises :class:`OSError`."""
    sock = socket.socket(family, socket.SOCK_DGRAM)
    try:
        make_room(sock)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.bind(address)
    except OSError:
        sock.close()
        raise
    return sock


def _bound(
    family: int, ports: tuple[int, int] | None, address: Callable[[int], SockAddr]
) -> socket.socket:
    """Returns a UDP socket on a free port of a range, tried from anywhere. Raises OSError."""
    if ports is None:
        return udp_socket(family, address(0))
    first, last = ports
    count = last - first + 1
    start = secrets.randbelow(count)
    for step in range(count):
        try:
            return udp_socket(family, address(first + (start + step) % count))
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise
    raise OSError(errno.EADDRINUSE, f"all UDP ports of socks.udp_ports are in use: {first}-{last}")


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

    def associated(self, association: GatewayAssociation) -> None:
        """The endpoint has answered: tells the client where the relay is."""

    def association_ended(self, reason: int, *, opened: bool) -> None:
        """The association is over; the control connection ends with it."""


class Association(Flow):
    """What both sides of an association share: counters and the end."""

    __slots__ = ("_down", "_up", "opened", "repeated")

    kind: ClassVar[str] = "udp"
    session: WorkerSession

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
        if isinstance(error, BlockingIOError):
            self.drop("socket-full")
        elif error.errno == errno.EMSGSIZE:
            self.drop("too-long")
        else:
            # ICMP said so of an earlier datagram, or there is no route: UDP has nobody to tell.
            self.drop("unreachable")


class GatewayAssociation(Association):
    """The gateway's side: a relay socket on the local address of the client's SOCKS connection.

    The socket is made by :meth:`bind`, after the association has been admitted.
    """

    __slots__ = (
        "client_ip",
        "control",
        "mapped",
        "pinned",
        "policy",
        "sock",
        "told",
        "verdicts",
    )

    def __init__(self, session: WorkerSession, conn_id: int, control: Control) -> None:
        super().__init__(session, conn_id, client=control.client)
        self.control = control
        self.sock: socket.socket | None = None
        self.client_ip = ""
        self.told = ""
        self.pinned: SockAddr | None = None
        self.policy: Policy | None = None
        self.verdicts: OrderedDict[HostPort, bool] = OrderedDict()
        self.mapped: OrderedDict[bytes, None] = OrderedDict()
        """IPv4 addresses that the client wrote as IPv6 (`::ffff:192.0.2.1`)."""

    def bind(
        self,
        host: str,
        scope: int = 0,
        *,
        client_ip: str,
        ports: tuple[int, int] | None = None,
        told: str = "",
    ) -> None:
        """Binds the relay to an address of this machine. Raises :class:`OSError`.

        `client_ip` is where the client's datagrams come from, `scope` the zone of a link-local
        address. `ports` is the range to choose from (None: any free port), and `told` the address
        that the client is told in place of `host`, where something translates addresses between.
        """
        if ":" in host:
            self.sock = _bound(socket.AF_INET6, ports, lambda port: (host, port, 0, scope))
        else:
            self.sock = _bound(socket.AF_INET, ports, lambda port: (host, port))
        self.client_ip = client_ip
        self.told = told

    @property
    def bound(self) -> HostPort:
        """The relay's concrete address, for the SOCKS reply."""
        assert self.sock is not None
        host, port = self.sock.getsockname()[:2]
        return HostPort(self.told or str(host).partition("%")[0], port)

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
        assert self.sock is not None
        session = self.session
        session.loop.add_reader(self.sock, session.core.guard, self, self._readable)

    def _readable(self) -> None:
        sock = self.sock
        assert sock is not None
        for _ in range(DATAGRAMS_PER_TURN):
            try:
                packet, sender = sock.recvfrom(65_536)
            except (BlockingIOError, InterruptedError):
                return
            except OSError:
                # A pending ICMP error of an earlier send: nothing was received, nothing is lost.
                return
            self._from_client(packet, sender)
            if self.ended:
                return

    def _from_client(self, packet: bytes, sender: SockAddr) -> None:
        # RFC 1928 section 7: "It MUST drop any datagrams arriving from any source IP address other
        # than the one recorded for the particular association." The port is pinned as well: on a
        # machine with several users an address alone proves little. Only a datagram that goes on
        # pins: whatever else finds the port first must not lock the client out.
        pinned = self.pinned
        if sender != pinned and (pinned is not None or sender[0] != self.client_ip):
            self.drop("foreign-source")
            return
        try:
            datagram = parse_udp_packet(packet)
        except RemoteProtocolError as error:
            self.drop(error.kind)
            return
        if datagram.frag:
            self.drop("fragment")
            return
        if not self._allowed(datagram.destination):
            self.drop("policy")
            return
        if len(packet) > self.session.terms.max_data:
            self.drop("too-long")
            return
        if pinned is None:
            self.pinned = sender
        if packet[3] == AddressType.IPV6:
            self._note_mapped(packet)
        elif self.mapped and packet[3] == AddressType.IPV4:
            self.mapped.pop(packet[4:8], None)  # the form that was asked last is answered
        self.active = self.session.loop.time()
        self._up += len(packet) - datagram.offset
        self.session.counters.sent["udp"] += len(packet) - datagram.offset
        self.session.send_datagram(self.conn_id, b"", packet)

    def _note_mapped(self, packet: bytes) -> None:
        if packet[4:16] == _MAPPED:
            self.mapped[packet[16:20]] = None
            if len(self.mapped) > DESTINATIONS_MAX:
                self.mapped.popitem(last=False)

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
        """Passes a reply to the client, with the header that the endpoint has put before it."""
        if self.pinned is None or self.sock is None:
            self.drop("no-client")
            return
        try:
            offset = parse_udp_packet(packet).offset
        except RemoteProtocolError as error:
            raise RemoteProtocolError(
                f"UDP_PACKET: {error}", kind="malformed-udp_packet", conn_id=self.conn_id
            ) from None
        try:
            if packet[0] | packet[1] | packet[2] or self.mapped:
                self.sock.sendmsg(self._cleaned(packet), [], 0, self.pinned)
            else:
                self.sock.sendto(packet, self.pinned)
        except OSError as error:
            self._send_failed(error)
            return
        self.active = self.session.loop.time()
        self._down += len(packet) - offset
        self.session.counters.received["udp"] += len(packet) - offset

    def _cleaned(self, packet: memoryview) -> list[bytes | memoryview]:
        """Returns the packet with RSV and FRAG zero, and the sender in the form that was asked."""
        if packet[3] == AddressType.IPV4 and bytes(packet[4:8]) in self.mapped:
            return [_NO_FRAGMENT, bytes((AddressType.IPV6,)), _MAPPED, packet[4:]]
        return [_NO_FRAGMENT, packet[3:]]

    def sweep(self, now: float) -> None:
        """Ends an association that was silent for idle_udp seconds."""
        if self.opened:
            self._end_if_idle(now, self.session.settings.config.socks.idle_udp)

    def _close(self, reason: int) -> None:
        if not self.end(reason):
            return
        if self.sock is not None:
            self.session.loop.remove_reader(self.sock)
            self.sock.close()
        self.control.association_ended(reason, opened=self.opened)
