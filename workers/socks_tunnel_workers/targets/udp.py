"""The endpoint's side of UDP associations: sockets toward the targets.

It cuts the SOCKS header off what comes through the tunnel, and puts one with the true sender before
what comes back.
"""

from __future__ import annotations

import socket
from collections import Counter, OrderedDict
from typing import TYPE_CHECKING

from socks_tunnel.ops.tasks import spawn
from socks_tunnel.protocol.addresses import HostPort, IPAddress
from socks_tunnel.protocol.errors import RemoteProtocolError
from socks_tunnel.protocol.messages import Message, UdpAssociateClosed
from socks_tunnel.protocol.policy import Policy
from socks_tunnel.protocol.socks5 import parse_udp_packet, udp_header
from socks_tunnel_workers.relay.udp import (
    DATAGRAMS_PER_TURN,
    DESTINATIONS_MAX,
    Association,
    SockAddr,
    udp_socket,
)
from socks_tunnel_workers.targets.access import AccessDeniedError, decide, decide_literal

if TYPE_CHECKING:
    from socks_tunnel_workers.relay.session import WorkerLink

PENDING_PER_NAME_MAX = 16
"""Datagrams that wait while the name of their destination is looked up."""

PENDING_NAMES_MAX = 64
"""Names that one association may have looked up at once."""

RESOLVE_SECONDS = 5.0
"""A datagram to a name that is not resolved by then is dropped: its sender has sent it again."""

IDLE_GRACE = 30.0
"""Seconds that the endpoint waits beyond the gateway's idle time: the gateway ends it first."""


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
            sock = udp_socket(family, ("0.0.0.0" if family == socket.AF_INET else "::", 0))  # noqa: S104 - it talks to any target; replies are filtered
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
