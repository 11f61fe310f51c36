"""aiortc's own DTLS and SCTP with two fences: each packet is checked first, and turns are short.

As long as packets wait in its queue, aiortc handles them without ever yielding to the event loop.
So the link of a peer that floods would hold up all other links.
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
from OpenSSL import SSL

from socks_tunnel.peer.fast import guard
from socks_tunnel.peer.fast.records import PLAINTEXT_MAX, RecordError
from socks_tunnel.peer.layered import CheckedDtlsTransport, LayeredPeerConnection
from socks_tunnel.peer.plain.bounds import Association, admit

TURN_SECONDS: Final = 0.002
"""Seconds for which one link may handle packets before other callbacks of the event loop run."""


class Turn:
    """Measures how long a link has used the event loop without a break."""

    def __init__(self) -> None:
        self._started = time.perf_counter()
        self._resting = False

    def rest(self) -> None:
        """Notes that the link is about to wait for a packet."""
        self._resting = True

    def begin(self) -> None:
        """Notes that there is a packet to handle."""
        if self._resting:
            self._resting = False
            self._started = time.perf_counter()

    async def breathe(self) -> None:
        """Lets other callbacks of the event loop run if this link's time is over."""
        if time.perf_counter() - self._started > TURN_SECONDS:
            await asyncio.sleep(0)
            self._started = time.perf_counter()


class FencedDtlsTransport(CheckedDtlsTransport):
    """aiortc's DTLS transport, which lets other callbacks run between two datagrams."""

    def __init__(self, transport: RTCIceTransport, certificates: list[RTCCertificate]) -> None:
        super().__init__(transport, certificates)
        self.turn = Turn()
        self._failure: RecordError | None = None
        self._datagrams = transport._connection._queue  # noqa: SLF001

    async def _recv_next(self) -> None:
        if self._datagrams.empty():
            self.turn.rest()
        else:
            await self.turn.breathe()
        try:
            await super()._recv_next()
        except ConnectionError:
            if self._failure is not None:
                raise self._failure from None
            raise
        await self._read_rest()

    async def _send_data(self, data: bytes) -> None:
        """Sends a packet. Ends the link if OpenSSL takes no more, because of what the peer sent.

        aiortc's SCTP would raise OpenSSL's error out of its timers, and out of its own end.
        """
        try:
            await super()._send_data(data)
        except SSL.Error:
            if self._failure is None:
                self._failure = RecordError()
                self._datagrams.put_nowait(None)  # as aioice does at the end of its sockets

    async def _read_rest(self) -> None:
        """Reads the other records of a datagram (RFC 6347 section 4.1.1).

        aiortc reads one of each datagram. The others would wait in OpenSSL, in the place of later
        ones, and the memory of ever more of them has no bound.
        """
        connection = self._ssl
        while connection is not None and self.encrypted:
            try:
                data = connection.recv(PLAINTEXT_MAX)
            except SSL.ZeroReturnError:
                raise ConnectionError from None  # as aiortc does: the peer has ended it
            except SSL.WantReadError:
                return  # nothing is left
            except SSL.Error:
                raise RecordError from None  # nothing would ever be read again
            if data and self._data_receiver is not None:
                await self._data_receiver._handle_data(data)  # noqa: SLF001 - as aiortc does


class FencedSctpTransport(RTCSctpTransport):
    """aiortc's SCTP transport, which handles only admitted packets, and in short turns."""

    def __init__(self, transport: RTCDtlsTransport) -> None:
        super().__init__(transport)
        self.dropped_packets = 0
        """Packets dropped because too many chunks were waiting for missing ones."""
        self._turn = transport.turn if isinstance(transport, FencedDtlsTransport) else Turn()

    async def _handle_data(self, data: bytes) -> None:
        """Handles one packet as aiortc does, after a check, and with breaks between chunks.

        Raises :class:`RemoteProtocolError` for a packet that no honest peer sends.
        """
        self._turn.begin()
        if not admit(data, self._association()):
            self.dropped_packets += 1
            return
        try:
            _, _, tag, chunks = parse_packet(data)
        except ValueError:  # aiortc's exception for a packet that RFC 9260 says to discard
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
        # Some peers name a stream once for each message that they gave up, and the last entry
        # counts. For each entry, aiortc goes through all waiting messages.
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
    """Returns a peer connection of aiortc, with fences if aiortc's source is as expected."""
    if guard.FENCES_FIT:
        return FencedPeerConnection(configuration)
    return RTCPeerConnection(configuration)
