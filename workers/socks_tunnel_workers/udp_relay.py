"""UDP associations (RFC 1928 section 7): the gateway's relay socket, the endpoint's sockets.

::

    client --SOCKS5 UDP packet--> gateway relay --UDP_PACKET--> endpoint socket --> target
    client <--SOCKS5 UDP packet-- gateway relay <--UDP_PACKET-- endpoint socket <-- sender

The packet crosses the tunnel as the client wrote it; the endpoint cuts the header off, and puts one
with the true sender before what comes back.
"""

from __future__ import annotations

import errno
import socket
from collections import Counter, OrderedDict
from typing import TYPE_CHECKING, ClassVar, TypeAlias

from socks_tunnel.ops.tasks import spawn
from socks_tunnel.protocol.addresses import HostPort, IPAddress
from socks_tunnel.protocol.errors import CloseReason, RemoteProtocolError
from socks_tunnel.protocol.messages import (
    Message,
    UdpAssociateClosed,
    UdpAssociateOpened,
)
from socks_tunnel.protocol.policy import Policy
from socks_tunnel.protocol.socks5 import parse_udp_packet, udp_header
from socks_tunnel_workers.access import AccessDeniedError, decide, decide_literal
from socks_tunnel_workers.flow import Flow

if TYPE_CHECKING:
    from socks_tunnel_workers.link import WorkerLink
    from socks_tunnel_workers.socks_session import SocksSession

DATAGRAM_MAX = 65_507
"""Longest UDP payload over IPv4 in bytes (65,535 - 20 - 8)."""

DATAGRAMS_PER_TURN = 64
"""Datagrams read from one socket before others get their turn."""

DESTINATIONS_MAX = 1024
"""Destinations whose decision an association remembers; the least recent one is asked for again."""

PENDING_PER_NAME_MAX = 16
"""Datagrams that wait while the name of their destination is looked up."""

PENDING_NAMES_MAX = 64
"""Names that one association may have looked up at once."""

RESOLVE_SECONDS = 5.0
"""A datagram to a name that is not resolved by then is dropped: its sender has sent it again."""

IDLE_GRACE = 30.0
"""Seconds that the endpoint waits beyond the gateway's idle time: the gateway ends it first."""

DRAIN_IDLE_MAX = 3.0
"""Seconds of silence after which an association ends while its worker drains: datagrams have no end
of their own, and the answer of a name server would hold up every drain for its whole length."""

SOCKET_BUFFER = 1 << 20
"""Asked for as SO_RCVBUF and SO_SNDBUF in bytes, so that a burst is not lost to a busy loop."""

SockAddr: TypeAlias = tuple[str, int] | tuple[str, int, int, int]


def make_room(sock: socket.socket) -> None:
    """Make a UDP socket non-blocking, with room for bursts."""
    sock.setblocking(False)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SOCKET_BUFFER)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SOCKET_BUFFER)


def _udp_socket(family: int, address: tuple[str, int]) -> socket.socket:
    """Make a bound, non-blocking UDP socket with room for bursts. Raises :class:`OSError`."""
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


class Association(Flow):
    """What both sides of an association share: counters and the end."""

    __slots__ = ("_down", "_up", "opened")

    kind: ClassVar[str] = "udp"

    def __init__(self, link: WorkerLink, conn_id: int, *, client: str) -> None:
        super().__init__(link, conn_id, command="udp-associate", client=client)
        self.opened = False
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
        """Take the endpoint's answer. Raises :class:`RemoteProtocolError` if it comes twice."""
        if self.opened:
            raise RemoteProtocolError(
                "an answer to an open came twice", kind="opened-twice", conn_id=self.conn_id
            )
        self.opened = True

    def abort(self, reason: int, *, tell_peer: bool = True) -> None:
        """End it at once; on the gateway the control connection ends with it."""
        if tell_peer and not self.ended:
            self.link.close_flow(self.conn_id, reason, udp=True)
        self._close(reason)

    def _end_if_idle(self, now: float, limit: float) -> None:
        """End it after so many seconds without a datagram; sooner while the worker drains."""
        if self.ended:
            return
        draining = self.link.worker.draining
        if now - self.active > (min(limit, DRAIN_IDLE_MAX) if draining else limit):
            self.abort(CloseReason.SHUTTING_DOWN if draining else CloseReason.IDLE_TIMEOUT)

    def _close(self, reason: int) -> None:
        """Leave the table and close what is ours; harmless if that was done before."""
        raise NotImplementedError

    def drop(self, reason: str) -> None:
        """Count one datagram that goes nowhere."""
        self.link.worker.count_drop(reason)

    def _send_failed(self, error: OSError) -> None:
        """Count a datagram that the socket did not take, by why."""
        if isinstance(error, BlockingIOError):
            self.drop("socket-full")
        elif error.errno == errno.EMSGSIZE:
            self.drop("too-long")
        else:
            # ICMP said so of an earlier datagram, or there is no route: UDP has nobody to tell.
            self.drop("unreachable")


class GatewayAssociation(Association):
    """The gateway's side: a relay socket on the local address of the client's SOCKS connection."""

    __slots__ = ("client_ip", "pinned", "policy", "session", "sock", "verdicts")

    def __init__(
        self, link: WorkerLink, conn_id: int, session: SocksSession, local_ip: str, client_ip: str
    ) -> None:
        super().__init__(link, conn_id, client=session.client)
        self.session = session
        self.client_ip = client_ip
        self.pinned: SockAddr | None = None
        self.policy: Policy | None = link.worker.policies.default
        self.verdicts: OrderedDict[HostPort, bool] = OrderedDict()
        family = socket.AF_INET6 if ":" in local_ip else socket.AF_INET
        self.sock = _udp_socket(family, (local_ip, 0))

    @property
    def bound(self) -> HostPort:
        """The relay's concrete address, for the SOCKS reply."""
        host, port = self.sock.getsockname()[:2]
        return HostPort(host, port)

    def on_message(self, message: Message) -> None:
        """Take the endpoint's answer, or the end."""
        match message:
            case UdpAssociateOpened():
                self.mark_opened()
                self.link.worker.loop.add_reader(self.sock, self._readable)
                self.session.associated(self)
            case UdpAssociateClosed(reason=reason):
                self._close(reason)
            case _:
                raise self.unexpected(type(message).__name__)

    def _readable(self) -> None:
        sock = self.sock
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
        # machine with several users an address alone proves little.
        if sender != self.pinned:
            if self.pinned is not None or sender[0] != self.client_ip:
                self.drop("foreign-source")
                return
            self.pinned = sender
        try:
            datagram = parse_udp_packet(packet)
        except RemoteProtocolError as error:
            self.drop(error.kind)
            return
        if datagram.frag:
            self.drop("fragment")
            return
        if self.policy is not None and not self._allowed(self.policy, datagram.destination):
            self.drop("policy")
            return
        if len(packet) > self.link.max_data:
            self.drop("too-long")
            return
        self.active = self.link.worker.loop.time()
        self._up += len(packet) - datagram.offset
        self.link.worker.sent["udp"] += len(packet) - datagram.offset
        self.link.send_datagram(self.conn_id, b"", packet)

    def _allowed(self, policy: Policy, destination: HostPort) -> bool:
        """Ask the gateway's own policy, once per destination; a name in doubt is the endpoint's."""
        known = self.verdicts.get(destination)
        if known is None:
            known = self.link.worker.allowed_early(self, policy, destination)
            self.verdicts[destination] = known
            if len(self.verdicts) > DESTINATIONS_MAX:
                self.verdicts.popitem(last=False)
        return known

    def on_datagram(self, packet: memoryview) -> None:
        """Pass a reply to the client, as the endpoint wrapped it."""
        if self.pinned is None:
            self.drop("no-client")
            return
        try:
            offset = parse_udp_packet(packet).offset
            self.sock.sendto(packet, self.pinned)
        except RemoteProtocolError as error:
            raise RemoteProtocolError(
                f"UDP_PACKET: {error}", kind="malformed-udp_packet", conn_id=self.conn_id
            ) from None
        except OSError as error:
            self._send_failed(error)
            return
        self.active = self.link.worker.loop.time()
        self._down += len(packet) - offset
        self.link.worker.received["udp"] += len(packet) - offset

    def sweep(self, now: float) -> None:
        """End an association that was silent for idle_udp seconds."""
        if self.opened:
            self._end_if_idle(now, self.link.worker.config.socks.idle_udp)

    def _close(self, reason: int) -> None:
        if not self.end(reason):
            return
        self.link.worker.loop.remove_reader(self.sock)
        self.sock.close()
        self.session.association_ended(reason, opened=self.opened)


class EndpointAssociation(Association):
    """The endpoint's side: one socket per address family for all destinations.

    So the mapping is endpoint-independent (RFC 4787 REQ-1): every target sees the same source port,
    as SIP, RTP and STUN need it. What is let back in depends on `udp_filtering`.
    """

    __slots__ = ("contacted", "filtering", "pending", "policy", "routes", "sockets")

    def __init__(self, link: WorkerLink, conn_id: int, policy: Policy) -> None:
        super().__init__(link, conn_id, client=link.peer)
        self.opened = True
        self.policy = policy
        self.filtering = link.worker.config.udp_filtering
        self.sockets: dict[int, socket.socket] = {}
        self.routes: OrderedDict[HostPort, SockAddr | None] = OrderedDict()
        self.contacted: Counter[tuple[str, int]] = Counter()  # by the routes that lead there
        self.pending: dict[HostPort, list[bytes]] = {}
        self._socket(socket.AF_INET)

    @property
    def bound(self) -> HostPort:
        """The address of the IPv4 socket."""
        host, port = self.sockets[socket.AF_INET].getsockname()
        return HostPort(host, port)

    def _socket(self, family: int) -> socket.socket:
        sock = self.sockets.get(family)
        if sock is None:
            sock = _udp_socket(family, ("0.0.0.0" if family == socket.AF_INET else "::", 0))  # noqa: S104 - it talks to any target; replies are filtered
            self.sockets[family] = sock
            self.link.worker.loop.add_reader(sock, self._readable, sock)
        return sock

    # --- client -> target -----------------------------------------------------------------------

    def on_datagram(self, packet: memoryview) -> None:
        """Send a datagram to its target, once the policy has allowed that destination."""
        self.active = self.link.worker.loop.time()
        try:
            frag, destination, offset = parse_udp_packet(packet)
        except RemoteProtocolError as error:
            raise RemoteProtocolError(
                f"UDP_PACKET: {error}", kind="malformed-udp_packet", conn_id=self.conn_id
            ) from None
        if frag:
            self.drop("fragment")
            return
        try:
            target = self.routes[destination]
        except KeyError:
            self._new_destination(destination, bytes(packet[offset:]))
            return
        self.routes.move_to_end(destination)
        if target is None:
            self.drop("policy")
            return
        self._send(target, packet[offset:])

    def _send(self, target: SockAddr, data: bytes | memoryview) -> None:
        try:
            self._socket(socket.AF_INET if len(target) == 2 else socket.AF_INET6).sendto(
                data, target
            )
        except OSError as error:
            self._send_failed(error)
            return
        self._up += len(data)
        self.link.worker.received["udp"] += len(data)

    def _new_destination(self, destination: HostPort, data: bytes) -> None:
        """Decide on a destination that is new to this association; a name has to be looked up."""
        waiting = self.pending.get(destination)
        if waiting is not None:
            if len(waiting) < PENDING_PER_NAME_MAX:
                waiting.append(data)
            else:
                self.drop("resolving")
            return
        try:
            addresses = decide_literal(self, self.policy, destination)
        except AccessDeniedError:
            self._remember(destination, None)
            self.drop("policy")
            return
        if addresses is not None:
            self._send(self._route(destination, addresses[0]), data)
        elif len(self.pending) >= PENDING_NAMES_MAX:
            self.drop("resolving")
        else:
            self.pending[destination] = [data]
            spawn(f"udp {self.conn_id} resolve", self._resolve(destination))

    async def _resolve(self, destination: HostPort) -> None:
        try:
            addresses = await decide(self, self.policy, destination, seconds=RESOLVE_SECONDS)
        except AccessDeniedError:
            addresses = []
        waiting = self.pending.pop(destination)
        if self.ended:
            return
        if not addresses:
            self._remember(destination, None)
            for _ in waiting:
                self.drop("policy")
            return
        target = self._route(destination, addresses[0])
        for data in waiting:
            self._send(target, data)

    def _route(self, destination: HostPort, address: IPAddress) -> SockAddr:
        port = destination.port
        target: SockAddr = (
            (str(address), port) if address.version == 4 else (str(address), port, 0, 0)
        )
        self._remember(destination, target)
        return target

    def _remember(self, destination: HostPort, target: SockAddr | None) -> None:
        self.routes[destination] = target
        if target is not None:
            self.contacted[self._filter_key(target[0], target[1])] += 1
        if len(self.routes) > DESTINATIONS_MAX:
            _, forgotten = self.routes.popitem(last=False)
            if forgotten is not None:
                key = self._filter_key(forgotten[0], forgotten[1])
                self.contacted[key] -= 1
                if not self.contacted[key]:
                    del self.contacted[key]

    def _filter_key(self, host: str, port: int) -> tuple[str, int]:
        """Give what a sender is known by: RFC 4787 section 5, by `udp_filtering`."""
        return (host, port if self.filtering == "address-and-port-dependent" else 0)

    # --- target -> client -----------------------------------------------------------------------

    def _readable(self, sock: socket.socket) -> None:
        filtering = self.filtering
        for _ in range(DATAGRAMS_PER_TURN):
            try:
                data, sender = sock.recvfrom(65_536)
            except (BlockingIOError, InterruptedError):
                return
            except OSError:
                # A pending ICMP error of an earlier send: nothing was received, nothing is lost.
                return
            host, port = sender[0], sender[1]
            # RFC 4787 REQ-8: filtering decides which senders may answer through the mapping.
            if (
                filtering != "endpoint-independent"
                and self._filter_key(host, port) not in self.contacted
            ):
                self.drop("filtered")
                continue
            header = udp_header(HostPort(host, port))
            if len(header) + len(data) > self.link.max_data:
                self.drop("too-long")
                continue
            self.active = self.link.worker.loop.time()
            self._down += len(data)
            self.link.worker.sent["udp"] += len(data)
            self.link.send_datagram(self.conn_id, header, data)

    # --- end ------------------------------------------------------------------------------------

    def on_message(self, message: Message) -> None:
        """Take the end."""
        if not isinstance(message, UdpAssociateClosed):
            raise self.unexpected(type(message).__name__)
        self._close(message.reason)

    def sweep(self, now: float) -> None:
        """End an association that the gateway seems to have forgotten."""
        self._end_if_idle(now, self.link.idle_udp + IDLE_GRACE)

    def _close(self, reason: int) -> None:
        if not self.end(reason):
            return
        for sock in self.sockets.values():
            self.link.worker.loop.remove_reader(sock)
            sock.close()
