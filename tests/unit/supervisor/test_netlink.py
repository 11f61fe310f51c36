"""What the kernel tells of addresses and routes, and what of it is a change."""

import ipaddress
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from socks_tunnel.supervisor.netlink import (
    KNOWN_MAX,
    NAMED_MAX,
    NetlinkDecoder,
    joined,
    only_addresses,
)

NEW_ADDRESS, DEL_ADDRESS, NEW_ROUTE, DEL_ROUTE, DONE, ERROR = 20, 21, 24, 25, 3, 2


def message(kind: int, body: bytes = b"") -> bytes:
    whole = struct.pack("=IHHII", 16 + len(body), kind, 0, 1, 0) + body
    return whole + bytes(-len(whole) % 4)


def attribute(kind: int, payload: bytes) -> bytes:
    return struct.pack("=HH", 4 + len(payload), kind) + payload + bytes(-len(payload) % 4)


def address(
    text: str, *, kind: int = NEW_ADDRESS, flags: int = 0, scope: int = 0, index: int = 2
) -> bytes:
    raw = ipaddress.ip_address(text).packed
    family = 2 if len(raw) == 4 else 10
    body = struct.pack("=BBBBI", family, 24, flags, scope, index)
    # IFA_LABEL first: a name whose length is no multiple of four has padding behind it.
    return message(kind, body + attribute(3, b"gw0\0x") + attribute(1, raw))


def route(
    gateway: str,
    *,
    kind: int = NEW_ROUTE,
    bits: int = 0,
    table: int = 254,
    of: int = 1,
    flags: int = 0,
) -> bytes:
    body = struct.pack("=BBBBBBBBI", 2, bits, 0, 0, table, 3, 0, of, flags)
    raw = ipaddress.ip_address(gateway).packed
    return message(kind, body + attribute(5, raw) + attribute(4, struct.pack("=I", 2)))


def settled(*before: bytes) -> NetlinkDecoder:
    """A decoder that has read both lists; the addresses and routes are on them."""
    decoder = NetlinkDecoder()
    asked = [decoder.request()]
    assert decoder.request() is None
    for datagram in before:
        assert decoder.receive(datagram) == []
    decoder.receive(message(DONE, bytes(4)))
    asked.append(decoder.request())
    decoder.receive(message(DONE, bytes(4)))
    assert decoder.request() is None
    assert decoder.settled
    assert [struct.unpack_from("=IH", question or b"") for question in asked] == [
        (20, 22),
        (20, 26),
    ]
    return decoder


def test_a_new_address_and_one_that_is_gone_are_changes() -> None:
    decoder = settled(address("10.77.0.1"))
    assert decoder.receive(address("10.77.0.7")) == ["its host has a new address, 10.77.0.7"]
    assert decoder.receive(address("10.77.0.1", kind=DEL_ADDRESS)) == [
        "its host has lost its address, 10.77.0.1"
    ]
    assert decoder.receive(address("fd77::1")) == ["its host has a new address, fd77::1"]


def test_the_local_end_counts_on_a_line_between_two() -> None:
    body = struct.pack("=BBBBI", 2, 32, 0, 0, 3)
    raw = [ipaddress.ip_address(text).packed for text in ("10.0.0.2", "10.0.0.1")]
    datagram = message(NEW_ADDRESS, body + attribute(1, raw[0]) + attribute(2, raw[1]))
    assert settled().receive(datagram) == ["its host has a new address, 10.0.0.1"]


def test_what_the_kernel_repeats_is_no_change() -> None:
    """An IPv6 address whose lifetime a router has prolonged is told again."""
    decoder = settled(address("fd77::1"))
    for _ in range(3):
        assert decoder.receive(address("fd77::1")) == []
    assert decoder.receive(address("10.9.9.9", kind=DEL_ADDRESS)) == []


def test_an_address_that_no_peer_can_be_reached_from_is_none() -> None:
    decoder = settled()
    assert decoder.receive(address("fe80::1", scope=253)) == []
    assert decoder.receive(address("127.0.0.2", scope=254)) == []
    # RFC 4862 section 5.4: until its uniqueness is verified it is tentative.
    assert decoder.receive(address("fd77::1", flags=0x40)) == []
    assert len(decoder.receive(address("fd77::1"))) == 1


def test_default_routes_count_and_others_do_not() -> None:
    decoder = settled(route("10.77.0.2"))
    assert decoder.receive(route("10.77.0.2")) == []
    assert decoder.receive(route("10.77.0.3")) == ["its host has a new default route"]
    assert decoder.receive(route("10.77.0.2", kind=DEL_ROUTE)) == [
        "its host has lost its default route"
    ]
    for other in (
        route("10.77.0.9", bits=8),
        route("10.77.0.9", table=255),
        route("10.77.0.9", of=2),
        route("10.77.0.9", flags=0x200),
    ):
        assert decoder.receive(other) == []


def test_several_messages_of_one_datagram() -> None:
    decoder = settled()
    both = address("10.0.0.1") + address("10.0.0.2")
    assert len(decoder.receive(both)) == 2


def test_lost_notifications_are_a_change_and_both_lists_are_read_again() -> None:
    decoder = settled(address("10.77.0.1"))
    assert decoder.lost() == ["its host's addresses or routes have changed"]
    assert decoder.request() is not None
    assert decoder.receive(address("10.77.0.1") + message(DONE)) == []
    assert decoder.request() is not None
    decoder.receive(message(ERROR, bytes(4)))
    assert decoder.settled
    assert decoder.receive(address("10.77.0.1")) == []


def test_what_is_remembered_is_bounded() -> None:
    decoder = settled()
    start = int(ipaddress.ip_address("fd00::"))
    for number in range(KNOWN_MAX + 100):
        decoder.receive(address(str(ipaddress.ip_address(start + number))))
    assert len(decoder._known) == KNOWN_MAX
    beyond = address(str(ipaddress.ip_address(start + KNOWN_MAX + 50)))
    assert len(decoder.receive(beyond)) == 1


@pytest.mark.parametrize("cut", range(1, 48))
def test_a_datagram_that_is_cut_is_left_alone(cut: int) -> None:
    datagram = address("10.0.0.1")
    settled().receive(datagram[:-cut])


@given(st.binary(max_size=300))
def test_any_bytes(datagram: bytes) -> None:
    NetlinkDecoder().receive(datagram)
    decoder = settled()
    decoder.receive(datagram)
    decoder.receive(struct.pack("=IHHII", 16 + len(datagram), NEW_ADDRESS, 0, 1, 0) + datagram)
    decoder.receive(struct.pack("=IHHII", 16 + len(datagram), NEW_ROUTE, 0, 1, 0) + datagram)


def test_a_change_of_addresses_is_told_from_one_of_routes() -> None:
    decoder = settled(address("10.0.0.1"), route("10.0.0.2"))
    changes = [
        *decoder.receive(address("10.0.0.7")),
        *decoder.receive(address("10.0.0.1", kind=DEL_ADDRESS)),
        *decoder.receive(route("10.0.0.2", kind=DEL_ROUTE)),
        *decoder.receive(route("10.0.0.3")),
    ]
    assert [only_addresses(change) for change in changes] == [True, True, False, False]
    assert [only_addresses(change) for change in decoder.lost()] == [False]


def test_changes_that_are_told_together_are_all_named() -> None:
    addresses = ["its host has lost its address, 10.0.0.1", "its host has a new address, 10.0.0.7"]
    assert joined(addresses) == "; ".join(addresses)
    assert joined([addresses[0], *addresses]) == "; ".join(addresses)
    assert only_addresses(joined(addresses))
    route = "its host has a new default route"
    assert joined([*addresses, route]) == "; ".join([route, *addresses])
    assert not only_addresses(joined([*addresses, route]))


def test_only_some_of_very_many_changes_are_named() -> None:
    changes = [f"its host has a new address, 10.0.0.{n}" for n in range(NAMED_MAX + 3)]
    assert joined(changes) == "; ".join([*changes[:NAMED_MAX], "and 3 more changes"])
    assert joined(changes[: NAMED_MAX + 1]).endswith("; and one more change")
