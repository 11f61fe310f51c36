"""Pairs of peer connections, each on the fast path or unmodified aiortc, on loopback."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from typing import Any, Literal

from aiortc import (
    RTCConfiguration,
    RTCDataChannel,
    RTCPeerConnection,
    RTCSctpTransport,
    RTCSessionDescription,
)

from integration.link_pair import LOOPBACK, PATIENCE
from socks_tunnel.peer.fast.connection import FastPeerConnection
from socks_tunnel.peer.fast.dtls import FastDtlsTransport
from socks_tunnel.peer.fast.sctp import FastSctpTransport
from socks_tunnel.peer.ice import candidate_addresses
from socks_tunnel.peer.plain.fences import FencedPeerConnection

Kind = Literal["plain", "fenced", "fast-dtls", "fast"]


class StockSctp(RTCSctpTransport):
    """aiortc's own SCTP, fed in batches: what is new is beneath it."""

    def receive_packets(self, packets: list[bytes]) -> None:
        for packet in packets:
            handling = self._handle_data(packet)
            with contextlib.suppress(StopIteration):
                handling.send(None)  # nothing beneath it suspends
                raise AssertionError("aiortc's SCTP waits for something")

    def turn_ended(self) -> None:
        """aiortc has handed on each message by itself."""

    def path_mtu_exceeded(self, size: int) -> None:
        """Packets of aiortc's size fit everywhere."""

    def transport_writable(self) -> None:
        """aiortc does not stop for a full socket."""

    def path_changed(self) -> None:
        """aiortc's packets have one size."""


def connection(kind: Kind) -> RTCPeerConnection:
    configuration = RTCConfiguration(iceServers=[])
    if kind == "plain":
        return RTCPeerConnection(configuration)
    if kind == "fast":
        return FastPeerConnection(configuration, sctp=FastSctpTransport)
    if kind == "fenced":
        return FencedPeerConnection(configuration)
    return FastPeerConnection(configuration, sctp=StockSctp)


class Peer:
    """A peer connection with the messages that arrived on its one channel."""

    def __init__(self, kind: Kind) -> None:
        self.pc = connection(kind)
        self.channel: RTCDataChannel | None = None
        self.got: list[bytes] = []
        self._changed = asyncio.Event()
        self.pc.on("datachannel", self.adopt)
        self.pc.on("connectionstatechange", self._changed.set)

    def adopt(self, channel: RTCDataChannel) -> None:
        self.channel = channel
        channel.on("message", self._message)
        channel.on("open", self._changed.set)
        channel.on("close", self._changed.set)
        self._changed.set()

    def _message(self, message: bytes) -> None:
        self.got.append(message)
        self._changed.set()

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(PATIENCE):
            while not condition():
                self._changed.clear()
                await self._changed.wait()

    def is_open(self) -> bool:
        return self.channel is not None and self.channel.readyState == "open"

    async def messages(self, count: int) -> list[bytes]:
        """Waits until `count` messages have come, and returns all."""
        await self.until(lambda: len(self.got) >= count)
        return self.got

    async def closed(self) -> None:
        await self.until(lambda: self.pc.connectionState == "closed")

    def open(self) -> RTCDataChannel:
        assert self.channel is not None
        return self.channel

    @property
    def dtls(self) -> FastDtlsTransport:
        assert self.pc.sctp is not None
        transport = self.pc.sctp.transport
        assert isinstance(transport, FastDtlsTransport)
        return transport


async def introduce(offerer: Peer, answerer: Peer) -> None:
    """Connects two peers by a channel of the offerer's, and waits until both have it open."""
    offerer.adopt(offerer.pc.createDataChannel("bulk"))
    with candidate_addresses(LOOPBACK):
        await offerer.pc.setLocalDescription(await offerer.pc.createOffer())
        await answerer.pc.setRemoteDescription(
            RTCSessionDescription(offerer.pc.localDescription.sdp, "offer")
        )
        await answerer.pc.setLocalDescription(await answerer.pc.createAnswer())
    await offerer.pc.setRemoteDescription(
        RTCSessionDescription(answerer.pc.localDescription.sdp, "answer")
    )
    for peer in (offerer, answerer):
        await peer.until(peer.is_open)
        if isinstance(peer.pc, FastPeerConnection):
            async with asyncio.timeout(PATIENCE):
                while not peer.dtls.fast:  # after the last flight of the handshake
                    await asyncio.sleep(0)


@contextlib.asynccontextmanager
async def pair(offerer: Kind, answerer: Kind) -> AsyncIterator[tuple[Peer, Peer]]:
    """Two connected peers; both are closed at the end."""
    peers = Peer(offerer), Peer(answerer)
    try:
        await introduce(*peers)
        yield peers
    finally:
        for peer in peers:
            async with asyncio.timeout(PATIENCE):
                await peer.pc.close()


def receiver_task(peer: Peer) -> Any:
    assert peer.pc.sctp is not None
    return peer.pc.sctp.transport._task
