"""Which addresses of this machine become host candidates, and in which order.

Each candidate is paired with each of the peer's, and a check of a pair that does not work takes
time. So the addresses that probably lead to the peer come first, and their number is bounded.
"""

import ipaddress
import itertools
import socket
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from typing import Final, NamedTuple, TypeAlias

import ifaddr

from socks_tunnel.protocol.addresses import IPAddress

Network: TypeAlias = ipaddress.IPv4Network | ipaddress.IPv6Network

HOST_CANDIDATES_MAX: Final = 16
"""Most addresses of one host that become candidates."""

LOOPBACK_INTERFACE: Final = "lo"

_FAR: Final[tuple[IPAddress, ...]] = (
    ipaddress.IPv6Address("2001:503:ba3e::2:30"),
    ipaddress.IPv4Address("198.41.0.4"),
)
"""Addresses of a root name server, to which only a default route leads. Nothing is sent there."""


class LocalAddress(NamedTuple):
    """An address of this machine and the name of its interface."""

    interface: str
    address: IPAddress


def local_addresses() -> list[LocalAddress]:
    """Returns the addresses of this machine's interfaces, without link-local IPv6 ones.

    Those have no meaning without a zone index, which a candidate cannot carry.
    """
    found = []
    for adapter in ifaddr.get_adapters():
        for entry in adapter.ips:
            if isinstance(entry.ip, str):
                found.append(LocalAddress(adapter.name, ipaddress.IPv4Address(entry.ip)))
            else:
                text, _, scope = entry.ip
                if scope == 0:
                    found.append(LocalAddress(adapter.name, ipaddress.IPv6Address(text)))
    return found


def choose_addresses(rules: Iterable[str], present: Iterable[LocalAddress]) -> list[LocalAddress]:
    """Returns the addresses that may become host candidates, in the order of `present`, each once.

    An IPv4 loopback literal in `rules` counts as present: Linux answers on all of 127.0.0.0/8.
    """
    present = list(present)
    interfaces: set[str] = set()
    networks: list[Network] = []
    for rule in rules:
        try:
            network = ipaddress.ip_network(rule, strict=False)
        except ValueError:
            interfaces.add(rule)
            continue
        networks.append(network)
        if network.version == 4 and network.is_loopback and network.prefixlen == 32:
            present.append(LocalAddress(LOOPBACK_INTERFACE, network.network_address))
    if not interfaces and not networks:
        chosen = [entry for entry in present if not entry.address.is_loopback]
    else:
        chosen = [
            entry
            for entry in present
            if entry.interface in interfaces
            or any(
                entry.address in network and (network.is_loopback or not entry.address.is_loopback)
                for network in networks
            )
        ]
    unique: dict[IPAddress, LocalAddress] = {}
    for entry in chosen:
        unique.setdefault(entry.address, entry)
    return list(unique.values())


def source_address(destination: IPAddress) -> IPAddress | None:
    """Returns the source address of packets to `destination`; None without a route."""
    family = socket.AF_INET if destination.version == 4 else socket.AF_INET6
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect((str(destination), 9))  # sends nothing
            return ipaddress.ip_address(probe.getsockname()[0])
    except OSError:
        return None


def preferred_sources(peers: Iterable[IPAddress]) -> list[IPAddress]:
    """Returns the source addresses for `peers`, and then those of the default routes."""
    sources = (source_address(destination) for destination in (*peers, *_FAR))
    return list(dict.fromkeys(source for source in sources if source is not None))


def order_addresses(
    chosen: Sequence[LocalAddress],
    preferred: Iterable[IPAddress],
    limit: int = HOST_CANDIDATES_MAX,
) -> list[IPAddress]:
    """Returns at most `limit` addresses, the most promising first.

    First come those of `preferred`, in that order. The rest are taken from each interface in turn,
    so that hundreds of addresses on one do not hide another, and from IPv6 and IPv4 in turn
    (RFC 8421 section 4). Addresses on the loopback interface, where services have their virtual
    addresses, come last: packets from elsewhere need not reach them.
    """
    present = {entry.address for entry in chosen}
    first = [address for address in preferred if address in present]
    taken = set(first)
    queues: dict[tuple[bool, str, int], list[IPAddress]] = defaultdict(list)
    for interface, address in chosen:
        if address not in taken:
            key = (interface == LOOPBACK_INTERFACE, interface, -address.version)
            queues[key].append(address)
    real = [queue for key, queue in queues.items() if not key[0]]
    virtual = [queue for key, queue in queues.items() if key[0]]
    rest = itertools.chain(_by_turns(real), _by_turns(virtual))
    return list(itertools.islice(itertools.chain(first, rest), limit))


def _by_turns(queues: Sequence[list[IPAddress]]) -> Iterator[IPAddress]:
    """Yields the first of each queue, then the second of each. In each turn, IPv6 comes first."""
    for turn in itertools.zip_longest(*queues):
        yield from sorted((a for a in turn if a is not None), key=lambda a: -a.version)
