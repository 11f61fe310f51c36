"""Who a client is: its name in tables and logs, and what its shares are counted under."""

from __future__ import annotations

import socket
from ipaddress import IPv6Address
from typing import NamedTuple, TypeAlias

from socks_tunnel.protocol.addresses import HostPort, parse_ip
from socks_tunnel_workers.sockets import unix_peer

SockAddr: TypeAlias = tuple[str, int] | tuple[str, int, int, int]


class Client(NamedTuple):
    """A client as people and limits know it.

    `name` is unique among the connections of now; `account` is its address, or on a Unix socket its
    user: what one of them uses up is not missing to another.
    """

    name: str
    account: str


def plain_ip(text: str) -> str:
    """Returns an address as it is on the wire: `::ffff:192.0.2.1` is 192.0.2.1 there."""
    address = parse_ip(text)
    mapped = address.ipv4_mapped if isinstance(address, IPv6Address) else None
    return str(mapped) if mapped is not None else text


def identify(sock: socket.socket, address: object) -> Client:
    """Returns who is at the other end of an accepted connection; `address` is what accept gave."""
    if isinstance(address, tuple):
        return identify_address(address)
    pid, uid = unix_peer(sock)
    return Client(f"unix:pid={pid},uid={uid}", f"unix:uid={uid}")


def identify_address(address: SockAddr) -> Client:
    """Returns who sends from this IP address and port."""
    host = plain_ip(str(address[0]))
    return Client(str(HostPort(host, int(address[1]))), host)
