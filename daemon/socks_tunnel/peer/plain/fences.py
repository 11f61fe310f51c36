"""aiortc's own DTLS and SCTP, with two fences: each packet is looked at first, and no turn is long.

aiortc handles what waits in its queue without ever letting go of the event loop, as long as
something waits. So the link of a peer that floods would hold up everybody's.
"""

import asyncio
import time
from typing import Final

from aiortc import (
    RTCCertificate,
    RTCConfiguration,
    RTCDtlsTransport,
    RTCIceTransport,
    RTCPeerConnection,
    RTCSctpTransport,
)
from aiortc.rtcsctptransport import ForwardTsnChunk, InitChunk, parse_packet

from socks_tunnel.peer.fast import guard
from socks_tunnel.peer.layered import LayeredPeerConnection
from socks_tunnel.peer.plain.bounds import Association, admit

TURN_SECONDS: Final = 0.002
"""Seconds that one link may handle packets before the event loop's other callbacks have a turn."""


class Turn:
    """How long a link has had the event loop without a break."""

    def __init__(self) -> None:
        self._started = time.perf_counter()
        self._resting = False

    def rest(self) -> None:
        """Learns that the link is about to wait for a packet."""
        self._resting = True

    def begin(self) -> None:
        """Learns that there is a packet to handle."""
        if self._resting:
            self._resting = False
            self._started = time.perf_counter()

    async def breathe(self) -> None:
        """Lets the event loop's other callbacks run, if this link's time is over."""
        if time.perf_counter() - self._started > TURN_SECONDS:
            await asyncio.sleep(0)
            self._started = time.perf_counter()


class FencedDtlsTransport(RTCDtlsTransport):
    """aiortc's DTLS transport, which lets others have a turn between two datagrams."""

    def __init__(self, transport: RTCIceTransport, certificates: list[RTCCertificate]) -> None:
        super().__init__(transport, certificates)
        self.turn = Turn()
        self._datagrams = transport._connection._queue  # noqa: SLF001

    async def _recv_next(self) -> None:
        if self._datagrams.empty():
            self.turn.rest()
        else:
            await self.turn.breathe()
        await super()._recv_next()


class FencedSctpTransport(RTCSctpTransport):
    """aiortc's SCTP transport, which handles only packets that are worth it, and in short turns."""

    def __init__(self, transport: RTCDtlsTransport) -> None:
        super().__init__(transport)
        self.dropped_packets = 0
        """Packets dropped because too much was waiting for what is missing."""
        self._turn = transport.turn if isinstance(transport, FencedDtlsTransport) else Turn()

    async def _handle_data(self, data: bytes) -> None:
        """Handles one packet as aiortc does, after a look at it, and with a breath between chunks.

        Raises :class:`RemoteProtocolError` for what no honest peer sends.
        """
        self._turn.begin()
        if not admit(data, self._association()):
            self.dropped_packets += 1
            return
        try:
            _, _, tag, chunks = parse_packet(data)
        except ValueError:  # aiortc's word for a packet that RFC 9260 says to discard
            return
        initial = any(isinstance(chunk, InitChunk) for chunk in chunks)
        if initial and len(chunks) != 1:
            return  # RFC 9260 section 3.3.2: INIT is never bundled
        if tag != (0 if initial else self._local_verification_tag):  # RFC 9260 section 8.5
            return
        for chunk in chunks:
            await self._receive_chunk(chunk)
            await self._turn.breathe()
        if self._sack_needed:
            await self._send_sack()

    async def _receive_forward_tsn_chunk(self, chunk: ForwardTsnChunk) -> None:
        # Some peers name a stream once for each message that they gave up; the last one counts,
        # and for each that is named aiortc goes through all that waits.
        chunk.streams = list(dict(chunk.streams).items())
        await super()._receive_forward_tsn_chunk(chunk)

    def _association(self) -> Association:
        return Association(
            last_received=self._last_received_tsn,
            last_sent=(self._local_tsn - 1) & 0xFFFFFFFF,
            misordered=len(self._sack_misordered),
            fragments=sum(len(s.reassembly) for s in self._inbound_streams.values()),
        )


class FencedPeerConnection(LayeredPeerConnection):
    """An :class:`RTCPeerConnection` of aiortc's own transports behind their fences."""

    def __init__(self, configuration: RTCConfiguration) -> None:
        super().__init__(configuration, sctp=FencedSctpTransport, dtls=FencedDtlsTransport)


def fenced_drops(pc: RTCPeerConnection | None) -> int:
    """Returns how many packets the fences of a connection have dropped."""
    sctp = None if pc is None else pc.sctp
    return sctp.dropped_packets if isinstance(sctp, FencedSctpTransport) else 0


def plain_connection(configuration: RTCConfiguration) -> RTCPeerConnection:
    """Returns a peer connection of aiortc's, fenced if aiortc is as it was read."""
    if guard.FENCES_FIT:
        return FencedPeerConnection(configuration)
    return RTCPeerConnection(configuration)
