"""RTCSctpTransport with a data path of our own: plain calls, batches, and the pure machines.

Packets and messages pass an :class:`~socks_tunnel.peer.fast.exchange.Exchange`, which is compiled
where this class cannot be (docs/adr/0045).

What is rare is still aiortc's: INIT, COOKIE-ECHO, HEARTBEAT, RE-CONFIG, SHUTDOWN, ABORT, the data
channel establishment protocol. Its handlers are coroutines that never wait for anything here, since
:meth:`FastSctpTransport._send_chunk` does not, so they are run to their end at once.
"""

import logging
import os
import struct
import time
from collections.abc import Callable
from typing import Any, Final

from aiortc import RTCDataChannel, RTCDtlsTransport, RTCSctpTransport
from aiortc.rtcsctptransport import CHUNK_TYPES, Chunk
from google_crc32c import extend as crc32c

from socks_tunnel.peer.fast.association import FastAssociation, run_now
from socks_tunnel.peer.fast.budget import WindowBudget
from socks_tunnel.peer.fast.congestion import CongestionName
from socks_tunnel.peer.fast.datapath import DataPath
from socks_tunnel.peer.fast.dtls import FastDtlsTransport
from socks_tunnel.peer.fast.exchange import BINARY, Below, Exchange
from socks_tunnel.peer.fast.sink import SctpSink, SctpSnapshot
from socks_tunnel.peer.fast.wire import (
    ADDRESSING,
    CHECKSUM,
    PARAMETERS_AT,
    checksum_of_header,
    parameters_are_sound,
)
from socks_tunnel.protocol.errors import LocalProtocolError

_log = logging.getLogger(__name__)

DEFAULT_OVERHEAD: Final = 85
"""Bytes that IPv6, UDP and a DTLS 1.2 record with AES-GCM add to an SCTP packet."""

_default_budget: Final = WindowBudget()


class _OneByOne:
    """An unmodified RTCDtlsTransport below: each packet is sent by itself."""

    blocked = False

    def __init__(self, transport: RTCDtlsTransport) -> None:
        self._transport = transport

    def send_packets(self, packets: list[bytes], *, fragment: bool = False) -> None:
        """Sends packets. They have no DF, whatever `fragment` says."""
        del fragment
        for packet in packets:
            run_now(self._transport._send_data(packet))  # noqa: SLF001 - as aiortc's own does

    def send_probe(self, packet: bytes) -> bool:
        """Raises :class:`ConnectionError`: without DF, a probe says nothing."""
        raise ConnectionError(f"a probe of {len(packet)} bytes would leave without DF")


def _below(transport: RTCDtlsTransport) -> Below:
    """Returns what takes the packets of an association on `transport`."""
    if isinstance(transport, FastDtlsTransport):
        return transport.path
    other: Any = transport
    return other if hasattr(other, "send_packets") else _OneByOne(transport)


class FastSctpTransport(FastAssociation):
    """An association whose data path is ours.

    It may be used wherever an RTCSctpTransport is. `transport` should have `send_packets` and the
    rest of :class:`~socks_tunnel.peer.fast.dtls.FastDtlsTransport`; with an unmodified
    RTCDtlsTransport packets go one by one, and the path MTU is not probed. `budget` is shared by
    the associations of a process; `clock` returns seconds.

    This class has many methods because it overrides most of what aiortc's one does.
    """

    def __init__(
        self,
        transport: RTCDtlsTransport,
        port: int = 5000,
        *,
        congestion: CongestionName = "cubic",
        budget: WindowBudget = _default_budget,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__(transport, port)
        self.path = DataPath(
            local_tag=self._local_verification_tag,
            initial_tsn=self._local_tsn,
            overhead=self.packet_overhead,
            congestion=congestion,
            budget=budget,
            secret=os.urandom(8),
            rare=self._receive_rare,
        )
        # Not the event loop's clock: uvloop's moves in steps of a millisecond.
        self.exchange = Exchange(self.path, self, _below(transport), self._data_channels, clock)
        self._stopping = False

    # --- for the owner --------------------------------------------------------------------------

    def attach(self, sink: SctpSink) -> None:
        """Names the owner; binary messages go there, no longer to the channels' events."""
        self.exchange.sink = sink

    @property
    def queue_limit(self) -> int:
        """Bytes that should wait in the queue at most: about one bandwidth-delay product."""
        return self.path.sender.queue_limit

    @property
    def queued_bytes(self) -> int:
        """Bytes of messages that wait in the queue."""
        return self.path.sender.scheduler.queued

    @property
    def message_limit(self) -> int:
        """Bytes that a message should have at most, so that it does not hold others up."""
        return self.path.sender.message_limit

    @property
    def has_unsent(self) -> bool:
        """Whether something that was sent is not acknowledged by the peer yet."""
        return self.state == "connected" and (
            self.path.sender.scheduler.queued > 0
            or len(self.path.sender.recovery) > 0
            or bool(self._data_channel_queue)
        )

    def snapshot(self) -> SctpSnapshot:
        """Returns the figures of this moment."""
        return SctpSnapshot.of(self.path)

    def send_many(self, channel: RTCDataChannel, messages: list[bytes]) -> None:
        """Queues binary messages; see :meth:`Exchange.send_many`."""
        self.exchange.send_many(channel, messages)

    # --- what DTLS calls --------------------------------------------------------------------------

    def receive_packets(self, packets: list[bytes]) -> None:
        """Takes the decrypted packets of one batch; answers and delivers before it returns."""
        self.exchange.receive_packets(packets)

    async def _handle_data(self, data: bytes) -> None:
        self.exchange.receive_packets([data])
        self.exchange.turn_ended()

    def turn_ended(self) -> None:
        """Learns that no more packets come in this turn of the event loop."""
        self.exchange.turn_ended()

    def transport_writable(self) -> None:
        """Learns that DTLS takes packets again."""
        self.exchange.transport_writable()

    def path_mtu_exceeded(self, size: int) -> None:
        """Learns that this host refuses packets of `size` bytes without fragmentation."""
        self.exchange.path_mtu_exceeded(size)

    def path_changed(self) -> None:
        """Learns that the packets take another path: its MTU is not known."""
        self.exchange.path_changed()

    # --- what is rare -----------------------------------------------------------------------------

    @property
    def probing_allowed(self) -> bool:
        """Whether the loss of a packet says something about the path's MTU."""
        return getattr(self.transport, "probing_allowed", False)

    @property
    def packet_overhead(self) -> int:
        """Bytes that IP, UDP, TURN and DTLS add to a packet on the present path."""
        return getattr(self.transport, "packet_overhead", DEFAULT_OVERHEAD)

    def _receive_rare(self, kind: int, flags: int, body: bytes) -> None:
        """Has aiortc take a chunk; what it cannot read is counted and does no harm."""
        chunk_class = CHUNK_TYPES.get(kind)
        if chunk_class is None or self.state == "closed":
            return
        offset = PARAMETERS_AT.get(kind)
        if offset is not None and not parameters_are_sound(body, offset):
            self.path.malformed += 1
            return
        self.exchange.deliver()
        try:
            run_now(self._receive_chunk(chunk_class(flags=flags, body=body)))
        except (struct.error, ValueError, AssertionError, KeyError, AttributeError) as error:
            self.path.malformed += 1
            _log.debug("a chunk of type %d cannot be taken: %r", kind, error)

    def deliver_rare(self, stream: int, ppid: int, data: bytes) -> None:
        """Has aiortc take a message that is not binary."""
        try:
            run_now(self._data_channel_receive(stream, ppid, data))
        except (struct.error, ValueError, AssertionError) as error:
            self.path.malformed += 1
            _log.debug("a message with payload protocol %d cannot be taken: %r", ppid, error)

    def reset_deferred(self) -> None:
        """Resets the streams whose reset the peer has asked for, if all of them has come."""
        run_now(self._reset_deferred_streams())

    def request_resets(self) -> None:
        """Asks the peer for the reset of streams that were closed here."""
        run_now(self._transmit_reconfig())

    async def _send_chunk(self, chunk: Chunk) -> None:
        header = ADDRESSING.pack(self._local_port, self._remote_port, self._remote_verification_tag)
        body = bytes(chunk)
        checksum = CHECKSUM.pack(crc32c(checksum_of_header(header), body))
        self.exchange.send_packets([header + checksum + body])

    # --- association ------------------------------------------------------------------------------

    def _set_state(self, state: "RTCSctpTransport.State") -> None:
        before = self._association_state
        super()._set_state(state)
        self.path.established = state == self.State.ESTABLISHED
        if state == self.State.ESTABLISHED and before != state:
            self.exchange.start_probing()
            self.exchange.flush_soon()
        elif state == self.State.CLOSED:
            self.exchange.release()

    async def stop(self) -> None:
        """Ends the association with an ABORT."""
        self._stopping = True
        await super().stop()

    def _ended(self, reason: str) -> None:
        sink = self.exchange.sink
        if sink is not None and not self._stopping:
            self._stopping = True
            sink.sctp_failed(reason)

    # --- data channels --------------------------------------------------------------------------

    def _data_channel_send(self, channel: RTCDataChannel, data: bytes | str) -> None:
        if isinstance(data, bytes):
            self.exchange.send_many(channel, [data])
        else:
            self.exchange.send_text(channel, data)

    def send_after_openings(self, channel: RTCDataChannel, message: bytes) -> None:
        """Queues a binary message behind the opening of the channels that there are.

        On an ordered channel it may be sent before the peer has acknowledged that (RFC 8832
        section 6: "all data messages sent before the DATA_CHANNEL_ACK MUST be ordered").
        """
        if not channel.ordered:
            raise LocalProtocolError(
                "an unordered message would overtake the opening of its channel"
            )
        self._data_channel_queue.append((channel, BINARY, message))

    async def _data_channel_flush(self) -> None:
        """Takes what aiortc queues, which is the opening of channels and its answers."""
        if self._association_state != self.State.ESTABLISHED:
            return
        while self._data_channel_queue:
            channel, ppid, data = self._data_channel_queue.popleft()
            if channel.id is None:
                stream_id = self._data_channel_id
                assert stream_id is not None
                while stream_id in self._data_channels:
                    stream_id += 2
                self._data_channels[stream_id] = channel
                channel._setId(stream_id)  # noqa: SLF001 - as aiortc's own transport does
            self.exchange.send_uncounted(channel, ppid, data)
        self.exchange.flush_soon()

    async def _transmit(self) -> None:
        self.exchange.flush_soon()
