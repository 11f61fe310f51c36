"""A bulk transfer over the simulated path, measured in virtual time."""

import asyncio
from dataclasses import dataclass
from typing import Any

from aiortc import RTCDataChannel, RTCSctpTransport
from aiortc.rtcdatachannel import RTCDataChannelParameters

from socks_tunnel.peer.fast.sctp import FastSctpTransport
from support.sctp_network import FakeDtls, Path, dtls_pair


async def started(*transports: Any) -> None:
    """Starts the transports and waits until all are connected."""
    await asyncio.gather(*[t.start(RTCSctpTransport.getCapabilities(), 5000) for t in transports])
    while any(t.state != "connected" for t in transports):
        await asyncio.sleep(0.005)


def channel(transport: Any, label: str = "lane-0", **options: Any) -> RTCDataChannel:
    """Opens a data channel."""
    return RTCDataChannel(transport, RTCDataChannelParameters(label=label, **options))


async def opened(*channels: RTCDataChannel) -> None:
    """Waits until the channels are open."""
    while any(one.readyState != "open" for one in channels):
        await asyncio.sleep(0.005)


def fast(dtls: FakeDtls, **options: Any) -> Any:
    """Returns a transport of ours on the virtual clock."""
    clock = asyncio.get_running_loop().time
    return FastSctpTransport(dtls, clock=clock, **options)  # type: ignore[arg-type]


class Sink:
    """Counts what arrives, and keeps the queue of a sender filled while `filling`."""

    def __init__(self, transport: FastSctpTransport) -> None:
        self.transport = transport
        self.received = 0
        self.messages: list[tuple[str, bytes]] = []
        self.keep = False
        self.failed: list[str] = []
        self.filling: RTCDataChannel | None = None
        self.piece = bytes(16_384)
        transport.attach(self)

    def sctp_messages(self, batch: list[tuple[RTCDataChannel, bytes]]) -> None:
        for one, message in batch:
            self.received += len(message)
            if self.keep:
                self.messages.append((one.label, message))

    def sctp_drained(self, drained: list[tuple[RTCDataChannel, int]]) -> None:
        self.fill()

    def sctp_turn_ended(self) -> None:
        """Everything was counted when it came."""

    def sctp_failed(self, reason: str) -> None:
        self.failed.append(reason)

    def fill(self) -> None:
        """Queues as much as the transport says that it should hold."""
        if self.filling is not None:
            room = self.transport.queue_limit - self.transport.queued_bytes
            if room > 0:
                count = room // len(self.piece) + 1
                self.transport.send_many(self.filling, [self.piece] * count)


@dataclass
class Result:
    """Bytes a second at the receiver while it was measured, and the transports."""

    rate: float
    sender: FastSctpTransport
    receiver: FastSctpTransport


async def bulk(
    there: Path, back: Path, *, congestion: Any = "cubic", warm: float = 0.0, seconds: float = 4.0
) -> Result:
    """Sends as much as possible for a while; what comes after `warm` seconds is measured."""
    dtls: tuple[FakeDtls, FakeDtls] = dtls_pair(there, back, probing=True)
    a = fast(dtls[0], congestion=congestion)
    b = fast(dtls[1], congestion=congestion)
    left, right = Sink(a), Sink(b)
    await started(a, b)
    one = channel(a)
    await opened(one)
    left.filling = one
    left.fill()
    await asyncio.sleep(warm)
    before = right.received
    await asyncio.sleep(seconds)
    result = Result((right.received - before) / seconds, a, b)
    left.filling = None
    assert not left.failed + right.failed
    await a.stop()
    await b.stop()
    return result
