"""The order in which the addresses of a name are tried: destination address selection, RFC 6724.

These are the rules that can make a difference here, in the order of section 6::

    rule 1  avoid destinations that no route leads to
    rule 5  prefer destinations whose label is that of the source address
    rule 6  prefer the higher precedence in the policy table

Otherwise the order of the name servers stays (rule 10), so that round robin works.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Sequence
from ipaddress import IPv6Network, ip_address
from typing import Final, TypeAlias

from socks_tunnel.protocol.addresses import IPAddress
from socks_tunnel_workers.sockets import DISCARD_PORT, is_shortage

SourceOf: TypeAlias = Callable[[IPAddress], IPAddress | None]
"""Returns the source address of packets to a destination, or None if no route leads there."""

# RFC 6724 section 2.1, the default policy table: prefix, precedence, label. IPv4 is ::ffff:0:0/96.
_TABLE: Final = tuple(
    sorted(
        (
            (IPv6Network("::1/128"), 50, 0),
            (IPv6Network("::/0"), 40, 1),
            (IPv6Network("::ffff:0:0/96"), 35, 4),
            (IPv6Network("2002::/16"), 30, 2),
            (IPv6Network("2001::/32"), 5, 5),
            (IPv6Network("fc00::/7"), 3, 13),
            (IPv6Network("::/96"), 1, 3),
            (IPv6Network("fec0::/10"), 1, 11),
            (IPv6Network("3ffe::/16"), 1, 12),
        ),
        key=lambda row: -row[0].prefixlen,
    )
)

_IPV4: Final = int(IPv6Network("::ffff:0:0/96").network_address)

SORTED_MAX: Final = 32
"""Addresses of one name that are sorted. Further ones follow in their own order."""


def _policy(address: IPAddress) -> tuple[int, int]:
    """Returns the precedence and the label of an address in the policy table."""
    value = int(address) | _IPV4 if address.version == 4 else int(address)
    for network, precedence, label in _TABLE:
        if value >> (128 - network.prefixlen) == int(network.network_address) >> (
            128 - network.prefixlen
        ):
            return precedence, label
    raise AssertionError("unreachable: ::/0 has every address")


def sort(addresses: Sequence[IPAddress], source_of: SourceOf) -> list[IPAddress]:
    """Returns the addresses in the order in which they should be tried, without duplicates."""
    unique = list(dict.fromkeys(addresses))
    head, tail = unique[:SORTED_MAX], unique[SORTED_MAX:]
    if len(head) < 2:
        return unique

    def key(destination: IPAddress) -> tuple[bool, bool, int]:
        source = source_of(destination)
        precedence, label = _policy(destination)
        if source is None:
            return True, True, -precedence
        return False, _policy(source)[1] != label, -precedence

    return [*sorted(head, key=key), *tail]


def source_address(destination: IPAddress) -> IPAddress | None:
    """Returns the local address from which `destination` is reached, or None without a route.

    It connects a UDP socket, which asks the routing table and sends nothing. If this host has no
    descriptor for a socket, it returns `destination` itself. So the address counts as reachable,
    and the shortage is reported when the address is dialled.
    """
    family = socket.AF_INET if destination.version == 4 else socket.AF_INET6
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect((str(destination), DISCARD_PORT))
            return ip_address(probe.getsockname()[0].partition("%")[0])
    except OSError as error:
        return destination if is_shortage(error) else None
