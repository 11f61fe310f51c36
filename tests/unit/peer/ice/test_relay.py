"""The TURN client: framing over streams, channels, limits; with a transport made of a list."""

import asyncio
import itertools
import struct
from collections.abc import Callable
from typing import Any

import pytest
from aioice import stun
from hypothesis import given
from hypothesis import strategies as st

from socks_tunnel.peer.ice import relay
from socks_tunnel.peer.ice.relay import (
    STREAM_BUFFER_MAX,
    RelayError,
    RelayTransport,
    StreamClient,
    UdpClient,
)
from socks_tunnel.peer.ice.settings import IceServer
from socks_tunnel.protocol.ice_urls import parse_ice_url

LOGIN = IceServer(parse_ice_url("turn:192.0.2.1"), "alice", "secret")
PEER = ("198.51.100.7", 4000)


class Wire:
    """A transport that notes what is written."""

    def __init__(self, waiting: int = 0) -> None:
        self.sent: list[bytes] = []
        self.waiting = waiting
        self.closed = self.aborted = False
        self.closings = 0

    def write(self, data: bytes) -> None:
        self.sent.append(data)

    def sendto(self, data: bytes) -> None:
        self.sent.append(data)

    def get_write_buffer_size(self) -> int:
        return self.waiting

    def is_closing(self) -> bool:
        return self.closed

    def close(self) -> None:
        self.closed = True
        self.closings += 1

    def abort(self) -> None:
        self.closed = self.aborted = True


class Receiver(asyncio.DatagramProtocol):
    def __init__(self) -> None:
        self.got: list[tuple[bytes, tuple[str, int]]] = []
        self.lost: list[Exception | None] = []

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        self.got.append((data, addr))

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost.append(exc)


def channel_data(channel: int, data: bytes) -> bytes:
    return struct.pack("!HH", channel, len(data)) + data


def client_of(kind: Callable[..., Any], wire: Wire) -> Any:
    client = kind(("192.0.2.1", 3478), LOGIN)
    client.connection_made(wire)
    client.channel_to_peer[0x4000] = PEER
    client.peer_to_channel[PEER] = 0x4000
    return client


# --- allocations that do not last ---------------------------------------------------------------


async def looked_at(client: Any, lifetimes: list[int]) -> list[int]:
    """Returns after how many requests a client gives its allocation up, by what it is granted."""

    async def answer(request: stun.Message) -> tuple[stun.Message, tuple[str, int]]:
        asked.append(1)
        response = stun.Message(request.message_method, stun.Class.RESPONSE)
        response.attributes["LIFETIME"] = lifetimes[len(asked)]
        response.attributes["XOR-MAPPED-ADDRESS"] = PEER
        response.attributes["XOR-RELAYED-ADDRESS"] = PEER
        return response, PEER

    asked: list[int] = []
    client.request_with_retry = answer
    await client.refresh(lifetimes[0])
    return asked


@pytest.mark.parametrize(
    ("granted", "requests"), [([0], 0), ([59], 0), ([600, 0], 1), ([600, 60, 1, 600], 2)]
)
async def test_an_allocation_without_time_is_not_asked_for_again_and_again(
    granted: list[int], requests: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server that grants 0 s was asked 4,000 times a second."""
    paused: list[float] = []

    async def pause(seconds: float) -> None:
        paused.append(seconds)

    monkeypatch.setattr(asyncio, "sleep", pause)
    wire = Wire()
    assert len(await looked_at(client_of(UdpClient, wire), granted)) == requests
    assert wire.closed
    assert paused == [seconds * 5 / 6 for seconds in granted[:requests]]


async def test_a_server_that_grants_no_time_gives_no_allocation() -> None:
    client = client_of(UdpClient, Wire())

    async def answer(request: stun.Message) -> tuple[stun.Message, tuple[str, int]]:
        response = stun.Message(request.message_method, stun.Class.RESPONSE)
        response.attributes["LIFETIME"] = 0
        response.attributes["XOR-MAPPED-ADDRESS"] = PEER
        response.attributes["XOR-RELAYED-ADDRESS"] = PEER
        return response, PEER

    client.request_with_retry = answer
    with pytest.raises(RelayError, match="it grants an allocation for 0 s only"):
        await client.allocate(4)


# --- streams ----------------------------------------------------------------------------------


@given(
    payloads=st.lists(st.binary(max_size=40), max_size=6),
    cuts=st.lists(st.integers(0, 300), max_size=6),
)
def test_a_stream_is_cut_into_messages_however_it_comes(
    payloads: list[bytes], cuts: list[int]
) -> None:
    client, receiver = client_of(StreamClient, Wire()), Receiver()
    client.receiver = receiver
    request = bytes(stun.Message(stun.Method.BINDING, stun.Class.INDICATION))
    stream = b"".join(
        request + channel_data(0x4000, data) + bytes(-len(data) % 4) for data in payloads
    )
    edges = sorted({0, len(stream), *(min(cut, len(stream)) for cut in cuts)})
    for start, end in itertools.pairwise(edges):
        client.data_received(stream[start:end])
    assert receiver.got == [(data, PEER) for data in payloads]


def test_a_stream_that_is_not_turn_is_dropped() -> None:
    wire = Wire()
    client_of(StreamClient, wire).data_received(b"\x80\x00\x00\x00 and so on")
    assert wire.aborted


@pytest.mark.parametrize("kind", [StreamClient, UdpClient])
def test_nothing_is_sent_once_the_connection_to_the_server_has_ended(
    kind: Callable[..., Any],
) -> None:
    """uvloop's transports raise RuntimeError then, out of a timer of the transaction."""

    class Closed(Wire):
        def get_write_buffer_size(self) -> int:
            raise RuntimeError("unable to perform operation; the handler is closed")

        def sendto(self, data: bytes) -> None:
            raise RuntimeError("unable to perform operation; the handler is closed")

    wire = Closed()
    client = client_of(kind, wire)
    wire.close()
    client.send_stun(stun.Message(stun.Method.ALLOCATE, stun.Class.REQUEST), client.server)
    client.send_channel(0x4000, b"a datagram")
    assert client.dropped == 2
    assert wire.sent == []


def test_streams_are_padded() -> None:
    wire = Wire()
    client_of(StreamClient, wire).send_channel(0x4000, b"12345")
    assert wire.sent == [channel_data(0x4000, b"12345") + b"\0\0\0"]


def test_a_stream_that_is_full_drops() -> None:
    wire = Wire(STREAM_BUFFER_MAX)
    client = client_of(StreamClient, wire)
    client.send_channel(0x4000, b"taken")
    wire.waiting += 1
    client.send_channel(0x4000, b"dropped")
    assert len(wire.sent) == 1
    assert client.dropped == 1


@given(st.binary(max_size=64))
def test_no_bytes_of_a_server_raise(data: bytes) -> None:
    for kind in (UdpClient, StreamClient):
        client = client_of(kind, Wire())
        client.receiver = Receiver()
        client.datagram_received(data, ("192.0.2.1", 3478))
        assert client.heard


# --- channels ---------------------------------------------------------------------------------


class Relay:
    """A relayed transport whose server answers a binding when the test says so."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.wire = Wire()
        self.client = UdpClient(("192.0.2.1", 3478), LOGIN)
        self.client.connection_made(self.wire)  # type: ignore[arg-type] # as much of one as is used
        self.client.relayed_address = ("203.0.113.9", 50_000)
        self.client.mapped_address = ("198.51.100.2", 40_000)
        self.bindings: list[tuple[int, tuple[str, int]]] = []
        self.answer: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        monkeypatch.setattr(self.client, "channel_bind", self._bind)
        self.receiver = Receiver()
        self.transport = RelayTransport(self.client, self.receiver)

    async def _bind(self, number: int, addr: tuple[str, int]) -> None:
        self.bindings.append((number, addr))
        await self.answer

    async def settle(self) -> None:
        for _ in range(4):
            await asyncio.sleep(0)


@pytest.fixture
async def turn(monkeypatch: pytest.MonkeyPatch) -> Relay:
    return Relay(monkeypatch)


async def test_what_the_transport_says_of_itself(turn: Relay) -> None:
    assert turn.transport.get_extra_info("sockname") == ("203.0.113.9", 50_000)
    assert turn.transport.get_extra_info("related_address") == ("198.51.100.2", 40_000)
    assert turn.transport.get_extra_info("socket") is None


@pytest.mark.parametrize(
    ("code", "sentence"),
    [
        (401, "refuses the user name 'alice' or the credential"),
        (440, "relays no addresses of this family"),
        (486, "too many allocations"),
        (508, "no relayed address left"),
        (500, "refuses an allocation"),
    ],
)
def test_refusals(code: int, sentence: str) -> None:
    response = stun.Message(stun.Method.ALLOCATE, stun.Class.ERROR)
    response.attributes["ERROR-CODE"] = (code, "words of the server's")
    text = relay._refusal(stun.TransactionFailed(response), LOGIN)
    assert sentence in text
    assert str(code) in text
    assert "secret" not in text
    assert relay._refusal(stun.TransactionTimeout(), LOGIN) == "it does not answer"
