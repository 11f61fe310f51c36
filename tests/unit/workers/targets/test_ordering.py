"""Destination address selection: RFC 6724, with its own examples where they apply."""

from __future__ import annotations

from ipaddress import ip_address

import pytest

from socks_tunnel.protocol.addresses import IPAddress
from socks_tunnel_workers.targets.ordering import SORTED_MAX, sort


def ordered(addresses: list[str], sources: dict[str, str | None]) -> list[str]:
    def source_of(destination: IPAddress) -> IPAddress | None:
        source = sources.get(str(destination))
        return None if source is None else ip_address(source)

    return [str(a) for a in sort([ip_address(a) for a in addresses], source_of)]


@pytest.mark.parametrize(
    ("addresses", "sources", "expected"),
    [
        # Both families work: IPv6 first (rule 6).
        (
            ["198.51.100.121", "2001:db8:1::1"],
            {"2001:db8:1::1": "2001:db8:1::2", "198.51.100.121": "198.51.100.1"},
            ["2001:db8:1::1", "198.51.100.121"],
        ),
        # No route to IPv6 (rule 1).
        (
            ["2001:db8:1::1", "198.51.100.121"],
            {"198.51.100.121": "198.51.100.1"},
            ["198.51.100.121", "2001:db8:1::1"],
        ),
        # RFC 6724 section 10.2: the source's label does not match for 6to4 (rule 5).
        (
            ["2002:c633:6401::1", "198.51.100.121"],
            {"2002:c633:6401::1": "2001:db8:1::2", "198.51.100.121": "198.51.100.1"},
            ["198.51.100.121", "2002:c633:6401::1"],
        ),
        # Unique local addresses: only from one of our own, and even then behind IPv4 (rule 6).
        (
            ["fd00::1", "198.51.100.121", "2001:db8:1::1"],
            {
                "fd00::1": "fd00::2",
                "198.51.100.121": "198.51.100.1",
                "2001:db8:1::1": "2001:db8:1::2",
            },
            ["2001:db8:1::1", "198.51.100.121", "fd00::1"],
        ),
        # Everything else: the server's order, once each (rule 10).
        (
            ["198.51.100.3", "198.51.100.1", "198.51.100.2", "198.51.100.1"],
            {f"198.51.100.{n}": "198.51.100.9" for n in (1, 2, 3)},
            ["198.51.100.3", "198.51.100.1", "198.51.100.2"],
        ),
        ([], {}, []),
    ],
)
def test_order(addresses: list[str], sources: dict[str, str | None], expected: list[str]) -> None:
    assert ordered(addresses, sources) == expected


def test_routes_are_looked_at_for_a_bounded_number_of_addresses() -> None:
    asked: list[IPAddress] = []

    def source_of(destination: IPAddress) -> IPAddress | None:
        asked.append(destination)
        return destination

    addresses: list[IPAddress] = [ip_address(f"198.51.100.{n}") for n in range(200)]
    assert sort(addresses, source_of) == addresses
    assert len(asked) == SORTED_MAX
