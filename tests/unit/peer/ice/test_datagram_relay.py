"""A channel of a relay as a candidate."""

import asyncio
from collections.abc import Sequence
from typing import Any, Literal

from hypothesis import given
from hypothesis import strategies as st

from socks_tunnel.peer.ice.datagram_relay import (
    ANSWERED_PORT,
    OFFERED_PORT,
    ChannelTransport,
    channel_address,
    choose_channel,
    is_channel_address,
)
from socks_tunnel.protocol.addresses import parse_ip
from socks_tunnel.protocol.datagram_relay import RelayedReceiver


class Relay:
    """A relay that keeps what is sent."""

    server = "wss://meet.example/"
    family: Literal["ipv4", "ipv6"] = "ipv4"

    def __init__(self) -> None:
        self.sent: list[list[bytes]] = []
        self.closed = 0
        self.receiver: RelayedReceiver | None = None

    def open(self, channel: bytes, receiver: RelayedReceiver) -> "Relay":
        assert channel == b"channel1"
        self.receiver = receiver
        return self

    def send(self, datagrams: Sequence[bytes]) -> None:
        self.sent.append(list(datagrams))

    def close(self) -> None:
        self.closed += 1


class Protocol(asyncio.DatagramProtocol):
    def __init__(self) -> None:
        self.got: list[tuple[bytes, Any]] = []
        self.ends: list[Exception | None] = []
        self.transport: Any = None

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def datagram_received(self, data: bytes, addr: Any) -> None:
        self.got.append((data, addr))

    def connection_lost(self, exc: Exception | None) -> None:
        self.ends.append(exc)


def transport(port: int = OFFERED_PORT) -> tuple[ChannelTransport, Relay, Protocol, list[str]]:
    relay, protocol, problems = Relay(), Protocol(), list[str]()
    made = ChannelTransport(relay, b"channel1", port, protocol, problems.append)
    assert protocol.transport is made
    return made, relay, protocol, problems


@given(st.binary(min_size=8, max_size=8))
def test_an_address_names_the_channel_and_the_answer_has_the_same(channel: bytes) -> None:
    address = parse_ip(channel_address(channel))
    assert address is not None
    assert is_channel_address(address)
    other = parse_ip("192.0.2.1")
    assert other is not None
    assert choose_channel([other, address]) == (channel, ANSWERED_PORT)


def test_the_offer_chooses_a_channel_that_nobody_guesses() -> None:
    chosen = [choose_channel([]) for _ in range(20)]
    assert {port for _, port in filter(None, chosen)} == {OFFERED_PORT}
    assert len({name for name, _ in filter(None, chosen)}) == 20


def test_an_offer_without_a_channel_gets_none() -> None:
    address = parse_ip("2001:db8::1")
    assert address is not None
    assert choose_channel([address]) is None
    assert not is_channel_address(address)
    assert not is_channel_address(parse_ip("192.0.2.1"))
    assert not is_channel_address(None)


async def test_datagrams_of_one_turn_leave_together() -> None:
    made, relay, _, _ = transport()
    peer = channel_address(b"channel1"), ANSWERED_PORT
    made.sendto(b"one", peer)
    made.sendto(bytearray(b"two"), peer)
    assert relay.sent == []
    await asyncio.sleep(0)
    made.sendto(b"three", peer)
    await asyncio.sleep(0)
    assert relay.sent == [[b"one", b"two"], [b"three"]]


async def test_only_the_peer_can_be_sent_to() -> None:
    made, relay, _, _ = transport(ANSWERED_PORT)
    made.sendto(b"x", ("192.0.2.1", 1))
    made.sendto(b"x", (channel_address(b"channel2"), OFFERED_PORT))
    made.sendto(b"x", (channel_address(b"channel1"), ANSWERED_PORT))
    await asyncio.sleep(0)
    assert made.dropped == 3
    assert relay.sent == []


async def test_what_comes_is_the_peers() -> None:
    made, relay, protocol, _ = transport()
    assert relay.receiver is made
    made.relayed([b"one", b"two"])
    peer = channel_address(b"channel1"), ANSWERED_PORT
    assert protocol.got == [(b"one", peer), (b"two", peer)]
    assert made.get_extra_info("sockname") == (peer[0], OFFERED_PORT)
    assert made.get_extra_info("relay") is relay
    assert made.get_extra_info("socket", "none") == "none"


async def test_each_refusal_is_told_once() -> None:
    made, _, _, problems = transport()
    for why in ("it is full", "it is full", "it is off"):
        made.refused(why)
    assert problems == ["wss://meet.example/: it is full", "wss://meet.example/: it is off"]


async def test_after_its_end_nothing_goes_in_or_out() -> None:
    made, relay, protocol, _ = transport()
    peer = channel_address(b"channel1"), ANSWERED_PORT
    made.sendto(b"goodbye", peer)
    made.close()
    made.abort()
    made.sendto(b"late", peer)
    made.relayed([b"late"])
    assert made.is_closing()
    await asyncio.sleep(0)
    assert protocol.ends == [None]
    assert protocol.got == []
    assert relay.sent == [[b"goodbye"]]
    assert relay.closed == 1
