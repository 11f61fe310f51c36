"""Which addresses become candidates, and in which order."""

from ipaddress import ip_address

import pytest

from socks_tunnel.peer.ice.addresses import (
    HOST_CANDIDATES_MAX,
    LocalAddress,
    choose_addresses,
    order_addresses,
)

MACHINE = [
    LocalAddress("lo", ip_address("127.0.0.1")),
    LocalAddress("eth0", ip_address("10.77.0.1")),
    LocalAddress("eth0", ip_address("2001:db8::1")),
    LocalAddress("wg0", ip_address("10.99.0.1")),
    LocalAddress("lo", ip_address("::1")),
]


def texts(addresses: list[LocalAddress]) -> list[str]:
    return [str(entry.address) for entry in addresses]


def many(interface: str, network: str, count: int) -> list[LocalAddress]:
    return [LocalAddress(interface, ip_address(f"{network}{i}")) for i in range(1, count + 1)]


@pytest.mark.parametrize(
    ("rules", "chosen"),
    [
        ([], ["10.77.0.1", "2001:db8::1", "10.99.0.1"]),
        (["eth0"], ["10.77.0.1", "2001:db8::1"]),
        (["10.99.0.1"], ["10.99.0.1"]),
        (["10.0.0.0/8"], ["10.77.0.1", "10.99.0.1"]),
        (["10.77.0.99/24"], ["10.77.0.1"]),
        (["2001:db8::/32", "wg0"], ["2001:db8::1", "10.99.0.1"]),
        (["eth0", "10.77.0.1"], ["10.77.0.1", "2001:db8::1"]),
        (["203.0.113.1"], []),
        (["eth7"], []),
        # Loopback only where a rule is itself loopback.
        (["0.0.0.0/0"], ["10.77.0.1", "10.99.0.1"]),
        (["::/0"], ["2001:db8::1"]),
        (["127.0.0.1"], ["127.0.0.1"]),
        (["127.0.0.0/8"], ["127.0.0.1"]),
        (["::1"], ["::1"]),
        (["lo"], ["127.0.0.1", "::1"]),
        (["127.0.0.1", "eth0"], ["127.0.0.1", "10.77.0.1", "2001:db8::1"]),
        (["127.0.0.2"], ["127.0.0.2"]),
    ],
)
def test_chosen_addresses(rules: list[str], chosen: list[str]) -> None:
    assert texts(choose_addresses(rules, MACHINE)) == chosen


def test_a_loopback_literal_needs_no_interface() -> None:
    assert texts(choose_addresses(["127.0.0.1"], [])) == ["127.0.0.1"]
    assert choose_addresses(["::1"], []) == []


def ordered(
    chosen: list[LocalAddress], *preferred: str, limit: int = HOST_CANDIDATES_MAX
) -> list[str]:
    return [str(a) for a in order_addresses(chosen, map(ip_address, preferred), limit)]


def test_what_leads_to_the_peer_comes_first() -> None:
    chosen = [*many("eth0", "10.1.0.", 100), *many("lo", "10.96.0.", 100)]
    found = ordered(chosen, "10.96.0.77", "10.1.0.99")
    assert found[:3] == ["10.96.0.77", "10.1.0.99", "10.1.0.1"]
    assert len(found) == HOST_CANDIDATES_MAX
    assert len(set(found)) == HOST_CANDIDATES_MAX


def test_what_is_not_chosen_is_not_preferred() -> None:
    assert ordered(many("eth0", "10.1.0.", 2), "10.9.9.9") == ["10.1.0.1", "10.1.0.2"]


def test_no_interface_hides_another() -> None:
    chosen = [*many("eth0", "10.1.0.", 100), *many("wg0", "10.9.0.", 1)]
    assert ordered(chosen)[:3] == ["10.1.0.1", "10.9.0.1", "10.1.0.2"]


def test_families_take_turns() -> None:
    """RFC 8421 section 4: neither family waits for all addresses of the other."""
    chosen = [*many("eth0", "10.1.0.", 3), *many("eth0", "2001:db8::", 3)]
    assert ordered(chosen) == [
        *("2001:db8::1", "10.1.0.1", "2001:db8::2", "10.1.0.2", "2001:db8::3", "10.1.0.3")
    ]


def test_virtual_addresses_come_last() -> None:
    chosen = [*many("lo", "10.96.0.", 40), *many("eth0", "10.1.0.", 2)]
    assert ordered(chosen)[:3] == ["10.1.0.1", "10.1.0.2", "10.96.0.1"]
    assert ordered(chosen, limit=1) == ["10.1.0.1"]
