"""Which addresses become ICE host candidates, and which STUN and TURN servers are asked.

aioice offers every address of the machine but loopback. Here each connection has its own rule: the
connection gathers inside :func:`candidate_addresses`, and the replacement of aioice's address list
reads the rule from a context variable, which the tasks that gather inherit.
"""

import ipaddress
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeAlias

import aioice.ice
import ifaddr
from aiortc import RTCIceServer
from aiortc.rtcicetransport import connection_kwargs

from socks_tunnel.peer import aiortc_private
from socks_tunnel.protocol.addresses import IPAddress

Network: TypeAlias = ipaddress.IPv4Network | ipaddress.IPv6Network


@dataclass(frozen=True, slots=True)
class IceSettings:
    """Servers to ask for candidates, and the addresses that candidates may have.

    `servers`: mappings with `urls` (text or a list of it: `stun:host:port`, `turn:host:port`), and
    for TURN `username` and `credential`. An empty list asks nobody: there is no default server.

    `addresses`: names of interfaces, addresses, or ranges such as `10.0.0.0/8`. If it is not empty,
    only addresses that one of them covers become candidates. A loopback address becomes one only if
    it is covered by an entry that is itself loopback: `127.0.0.1`, `127.0.0.0/8`, `::1`, `lo`.
    """

    servers: Sequence[Mapping[str, Any]] = field(default_factory=tuple)
    addresses: Sequence[str] = field(default_factory=tuple)


class LocalAddress(NamedTuple):
    """An address of this machine and the name of its interface."""

    interface: str
    address: IPAddress


def rtc_servers(settings: IceSettings) -> list[RTCIceServer]:
    """Give aiortc's form of the servers. Raises :class:`ValueError` with a sentence."""
    servers = []
    for entry in settings.servers:
        unknown = entry.keys() - {"urls", "username", "credential"}
        if unknown or not entry.get("urls"):
            what = f"has the unknown key {min(unknown)!r}" if unknown else "has no urls"
            raise ValueError(f"an ICE server {what}")
        urls = entry["urls"]
        servers.append(
            RTCIceServer(
                urls=urls if isinstance(urls, str) else list(urls),
                username=entry.get("username"),
                credential=entry.get("credential"),
            )
        )
        try:
            connection_kwargs(servers[-1:])
        except ValueError as error:
            raise ValueError(f"the ICE server {urls!r} cannot be used: {error}") from None
    return servers


def local_addresses() -> list[LocalAddress]:
    """List the addresses of this machine's interfaces, without link-local IPv6 ones.

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


def choose_addresses(rules: Iterable[str], present: Iterable[LocalAddress]) -> list[IPAddress]:
    """Give the addresses that may become host candidates, in the order of `present`, each once.

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
            present.append(LocalAddress("lo", network.network_address))
    if not interfaces and not networks:
        chosen = [entry.address for entry in present if not entry.address.is_loopback]
    else:
        chosen = [
            entry.address
            for entry in present
            if entry.interface in interfaces
            or any(
                entry.address in network and (network.is_loopback or not entry.address.is_loopback)
                for network in networks
            )
        ]
    return list(dict.fromkeys(chosen))


_rules: ContextVar[Sequence[str] | None] = ContextVar("ice_addresses", default=None)
_aioice_host_addresses = aioice.ice.get_host_addresses


@contextmanager
def candidate_addresses(settings: IceSettings) -> Iterator[None]:
    """Let connections that gather inside this block follow `settings.addresses`."""
    token = _rules.set(tuple(settings.addresses))
    try:
        yield
    finally:
        _rules.reset(token)


def _host_addresses(use_ipv4: bool, use_ipv6: bool) -> list[str]:
    rules = _rules.get()
    if rules is None:  # a connection that is not ours: aioice's own choice
        return _aioice_host_addresses(use_ipv4=use_ipv4, use_ipv6=use_ipv6)
    return [
        str(address)
        for address in choose_addresses(rules, local_addresses())
        if (use_ipv4 if address.version == 4 else use_ipv6)
    ]


aiortc_private.install(_host_addresses)
