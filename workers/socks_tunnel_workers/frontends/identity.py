"""Who a client is: its name in tables and logs, and the account that its limits apply to."""

from __future__ import annotations

import socket
from ipaddress import IPv6Address
from typing import NamedTuple, TypeAlias

from socks_tunnel.protocol.addresses import HostPort, parse_ip
from socks_tunnel_workers.sockets import unix_peer

SockAddr: TypeAlias = tuple[str, int] | tuple[str, int, int, int]


class Client(NamedTuple):
    """A client's name and account.

    `name` is for people, and is unique among the open connections. `account` is for limits: it is
    the client's IP address, or on a Unix socket its user.
    """

    name: str
    account: str


def plain_ip(text: str) -> str:
    """Returns an address without IPv4-mapped form: `::ffff:192.0.2.1` becomes 192.0.2.1."""
    address = parse_ip(text)
    mapped = address.ipv4_mapped if isinstance(address, IPv6Address) else None
    return str(mapped) if mapped is not None else text


def identify(sock: socket.socket, address: object) -> Client:
    """Returns the client of an accepted connection. `address` is what accept(2) returned."""
    if isinstance(address, tuple):
        return identify_address(address)
    pid, uid = unix_peer(sock)
    return Client(f"unix:pid={pid},uid={uid}", f"unix:uid={uid}")


def identify_address(address: SockAddr) -> Client:
    """Returns the client with this IP address and port."""
    host = plain_ip(str(address[0]))
    return Client(str(HostPort(host, int(address[1]))), host)
