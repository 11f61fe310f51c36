"""The socket that a SOCKS5 client sends its datagrams to (RFC 1928 section 7).

It knows the client's address, and the form in which the client writes addresses. It knows nothing
of the tunnel: its owner takes the datagrams.
"""

from __future__ import annotations

import asyncio
import errno
import secrets
import socket
from collections import OrderedDict
from collections.abc import Callable
from typing import Final

from socks_tunnel.protocol.addresses import AddressType, HostPort
from socks_tunnel.protocol.errors import RemoteProtocolError
from socks_tunnel.protocol.socks5 import UdpDatagram, parse_udp_packet
from socks_tunnel_workers.sockets import (
    DATAGRAMS_PER_TURN,
    SockAddr,
    send_failure,
    udp_socket,
)

MAPPED_MAX: Final = 1024
"""IPv4 addresses that are remembered as written in IPv6. The least recently used is forgotten."""

_MAPPED: Final = bytes(10) + b"\xff\xff"
"""The 12 bytes before the IPv4 address in a mapped IPv6 address (RFC 4291 section 2.5.5.2)."""

_NO_FRAGMENT: Final = b"\0\0\0"
"""RSV and FRAG of a datagram that is not a fragment."""


def _bound(
    family: int, ports: tuple[int, int] | None, address: Callable[[int], SockAddr]
) -> socket.socket:
    """Returns a UDP socket on a free port of a range, or on any free port without a range.

    The search begins at a random port of the range. Raises :class:`OSError`.
    """
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


def parse_from_peer(packet: memoryview, conn_id: int) -> UdpDatagram:
    """Returns the parts of a UDP_PACKET of the peer, which has a SOCKS5 UDP header.

    Raises :class:`RemoteProtocolError` of the kind `malformed-udp_packet` if the header is wrong.
    """
    try:
        return parse_udp_packet(packet)
    except RemoteProtocolError as error:
        raise RemoteProtocolError(
            f"UDP_PACKET: {error}", kind="malformed-udp_packet", conn_id=conn_id
        ) from None


class ClientSocket:
    """The relay's socket of one association, made by :meth:`bind`. `drop` counts a datagram."""

    __slots__ = ("_drop", "client_ip", "mapped", "pinned", "sock", "told")

    def __init__(self, drop: Callable[[str], None]) -> None:
        self._drop = drop
        self.sock: socket.socket | None = None
        self.client_ip = ""
        self.told = ""
        self.pinned: SockAddr | None = None
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

        `client_ip` is the only address that datagrams are taken from, and `scope` the zone of a
        link-local address. `ports` is the range to choose from, first and last included (None: any
        free port). `told` is the address that the client is told in place of `host`, for clients
        behind address translation.
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

    def close(self, loop: asyncio.AbstractEventLoop) -> None:
        """Closes the socket, if there is one."""
        if self.sock is not None:
            loop.remove_reader(self.sock)
            self.sock.close()
            self.sock = None

    # --- from the client ------------------------------------------------------------------------

    def receive(self, take: Callable[[bytes, SockAddr], bool]) -> None:
        """Reads up to :data:`DATAGRAMS_PER_TURN` datagrams; stops if `take` returns False.

        `take` is called with each datagram and its sender.
        """
        sock = self.sock
        assert sock is not None
        for _ in range(DATAGRAMS_PER_TURN):
            try:
                packet, sender = sock.recvfrom(65_536)
            except (BlockingIOError, InterruptedError):
                return
            except OSError:
                # This is a pending ICMP error of an earlier datagram. No datagram is lost.
                return
            if not take(packet, sender):
                return

    def parse(self, packet: bytes, sender: SockAddr) -> UdpDatagram | None:
        """Returns the parts of a datagram; None if it is dropped and counted.

        Dropped are datagrams from another sender than the client, fragments, and those that cannot
        be parsed.
        """
        # RFC 1928 section 7: "It MUST drop any datagrams arriving from any source IP address other
        # than the one recorded for the particular association." The port is pinned as well, because
        # several users of a machine share its address. Only a datagram that goes on pins the
        # sender. So a stray datagram that comes first does not lock the client out.
        pinned = self.pinned
        if sender != pinned and (pinned is not None or sender[0] != self.client_ip):
            self._drop("foreign-source")
            return None
        try:
            datagram = parse_udp_packet(packet)
        except RemoteProtocolError as error:
            self._drop(error.kind)
            return None
        if datagram.frag:
            self._drop("fragment")
            return None
        return datagram

    def goes_on(self, packet: bytes, sender: SockAddr) -> None:
        """Notes the sender and the address form of a datagram that goes on, as the client's."""
        if self.pinned is None:
            self.pinned = sender
        if packet[3] == AddressType.IPV6:
            self._note_mapped(packet)
        elif self.mapped and packet[3] == AddressType.IPV4:
            self.mapped.pop(packet[4:8], None)  # replies have the form that was used last

    def _note_mapped(self, packet: bytes) -> None:
        if packet[4:16] == _MAPPED:
            self.mapped[packet[16:20]] = None
            if len(self.mapped) > MAPPED_MAX:
                self.mapped.popitem(last=False)

    # --- to the client --------------------------------------------------------------------------

    def reply(self, packet: memoryview, conn_id: int) -> int | None:
        """Passes a reply to the client, with the header that the endpoint has put before it.

        Returns how many bytes of payload went on; None if the reply was dropped. Raises
        :class:`RemoteProtocolError` if the header is wrong.
        """
        if self.pinned is None or self.sock is None:
            self._drop("no-client")
            return None
        offset = parse_from_peer(packet, conn_id).offset
        try:
            if packet[0] | packet[1] | packet[2] or self.mapped:
                self.sock.sendmsg(self._cleaned(packet), [], 0, self.pinned)
            else:
                self.sock.sendto(packet, self.pinned)
        except OSError as error:
            self._drop(send_failure(error))
            return None
        return len(packet) - offset

    def _cleaned(self, packet: memoryview) -> list[bytes | memoryview]:
        """Returns the packet with RSV and FRAG zero, and the sender in the client's form."""
        if packet[3] == AddressType.IPV4 and bytes(packet[4:8]) in self.mapped:
            return [_NO_FRAGMENT, bytes((AddressType.IPV6,)), _MAPPED, packet[4:]]
        return [_NO_FRAGMENT, packet[3:]]
