"""RTCSctpTransport with a data path of our own: plain calls, batches, and the pure machines.

    RTCDataChannel.send, send_many                    sctp_messages, "message" events
          |                                                   ^
    streams.Scheduler -> sender.Sender    receiver.Receiver -> reassembly.Reassembly
                              |   ^             |     ^
                              |   +--- SACK ----|-----+
                              v                 v
                     send_packets(list)   receive_packets(list)        (DTLS)

What is rare is still aiortc's: INIT, COOKIE-ECHO, HEARTBEAT, RE-CONFIG, SHUTDOWN, ABORT, the data
channel establishment protocol. Its handlers are coroutines that never wait for anything here, since
:meth:`FastSctpTransport._send_chunk` does not, so they are run to their end at once.
"""

import asyncio
import hmac
import logging
import os
import struct
from collections.abc import Coroutine
from dataclasses import dataclass
from typing import Any, Final, Protocol

from aiortc import RTCDataChannel, RTCDtlsTransport, RTCSctpTransport
from aiortc.rtcsctptransport import (
    CHUNK_TYPES,
    AbortChunk,
    Chunk,
    CookieEchoChunk,
    InitAckChunk,
    InitChunk,
    StreamAddOutgoingParam,
    StreamResetOutgoingParam,
    StreamResetResponseParam,
)
from google_crc32c import extend as crc32c

from socks_tunnel.peer.fast.budget import WindowBudget
from socks_tunnel.peer.fast.congestion import CongestionName
from socks_tunnel.peer.fast.controllers import controller
from socks_tunnel.peer.fast.pmtu import PathMtu
from socks_tunnel.peer.fast.receiver import Receiver
from socks_tunnel.peer.fast.sender import Sender
from socks_tunnel.peer.fast.streams import CONTROL, DATAGRAM, NORMAL, Message, OutboundStream
from socks_tunnel.peer.fast.wire import (
    ADDRESSING,
    CHECKSUM,
    CHUNK,
    DATA,
    DATA_CHUNK,
    DATA_HEADER,
    FORWARD_TSN,
    HEARTBEAT_ACK,
    I_DATA,
    I_DATA_CHUNK,
    I_DATA_HEADER,
    I_FORWARD_TSN,
    PACKET_HEADER,
    SACK,
    SACK_BATCH,
    SACK_BATCH_VALUE,
    SACK_BODY,
    SACK_HEADER,
    TSN_MASK,
    WORD,
    ZERO_CHECKSUM,
    checksum_of_header,
    heartbeat_probe,
)
from socks_tunnel.protocol.errors import RemoteProtocolError

_log = logging.getLogger(__name__)

RARE_CHUNKS_MAX: Final = 8
"""Chunks other than DATA, SACK and FORWARD-TSN that are read of one packet: each may be answered by
a packet, so a peer that bundles hundreds would be amplified."""

DCEP: Final = 50
STRING: Final = 51
BINARY: Final = 53
STRING_EMPTY: Final = 56
BINARY_EMPTY: Final = 57

CONTROL_LABEL: Final = "control"
"""Data channels of this label go before all others."""

PROTOCOL_VIOLATION: Final = 13
"""Error cause of an ABORT (RFC 9260 section 3.3.10.13)."""

DEFAULT_OVERHEAD: Final = 85
"""Bytes that IPv6, UDP and a DTLS 1.2 record with AES-GCM add to an SCTP packet."""

PROBE_MAGIC: Final = b"PMTU"
_PROBE = struct.Struct("!4sL4s")

BLACK_HOLE_TIMEOUTS: Final = 2
"""Time-outs in a row after which the path is suspected to drop large packets."""

_default_budget: Final = WindowBudget()


class SctpSink(Protocol):
    """What the association tells its owner; plain calls that must not raise."""

    def sctp_messages(self, batch: list[tuple[RTCDataChannel, bytes]]) -> None:
        """Takes the binary messages of one batch of packets, in the order of their arrival."""

    def sctp_drained(self, drained: list[tuple[RTCDataChannel, int]]) -> None:
        """Learns how many bytes of messages left the queue for good, sent or given up."""

    def sctp_failed(self, reason: str) -> None:
        """Learns that the association has ended, for another reason than a call of `stop`."""


@dataclass(frozen=True, slots=True)
class SctpSnapshot:
    """Figures of one association. Times in seconds, sizes in bytes, rates in bytes a second."""

    rtt: float
    rtt_min: float
    cwnd: int
    outstanding: int
    queued: int
    delivery_rate: float
    packet_size: int
    retransmissions: int
    spurious: int
    timeouts: int
    packets_sent: int
    sacks_sent: int
    sacks_received: int
    receive_window: int
    held: int
    """Bytes of unfinished or waiting messages that the peer makes us hold."""
    duplicates: int
    dropped: int
    """Chunks of the peer's that were not taken: they overstepped a limit."""
    malformed: int
    interleaved: bool
    batch_sacks: bool


class FastSctpTransport(RTCSctpTransport):
    """An association whose data path is ours.

    It may be used wherever an RTCSctpTransport is. `transport` should have `send_packets` and the
    rest of :class:`~socks_tunnel.peer.fast.dtls.FastDtlsTransport`; with an unmodified
    RTCDtlsTransport packets go one by one, and the path MTU is not probed. `budget` is shared by
    the associations of a process.

    The class has more than 25 methods because it overrides most of what aiortc's one does.
    """

    def __init__(
        self,
        transport: RTCDtlsTransport,
        port: int = 5000,
        *,
        congestion: CongestionName = "cubic",
        budget: WindowBudget = _default_budget,
    ) -> None:
        super().__init__(transport, port)
        self._event_loop = asyncio.get_running_loop()
        self._pmtu = PathMtu(getattr(transport, "packet_overhead", DEFAULT_OVERHEAD))
        size = self._pmtu.packet_size
        self._receiver = Receiver(budget)
        self._sender = Sender(self._local_tsn, controller(congestion, size), size)
        self._congestion: CongestionName = congestion
        self._sink: SctpSink | None = None
        self._out_streams: dict[int, OutboundStream] = {}
        self._inbound_header = b""
        self._inbound_crc = 0
        self._peer_identity: tuple[int, int] | None = None
        self._peer_window = 0
        self._peer_batches = False
        self._restart: InitChunk | None = None
        self._stopping = False
        self._flush_handle: asyncio.Handle | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = 0.0
        self.malformed = 0
        """Packets and chunks of the peer's that could not be read."""
        self.packets_received = 0

    # --- for the owner --------------------------------------------------------------------------

    def attach(self, sink: SctpSink) -> None:
        """Names the owner; binary messages go there, no longer to the channels' events."""
        self._sink = sink

    @property
    def queue_limit(self) -> int:
        """Bytes that should wait in the queue at most: about one bandwidth-delay product."""
        return self._sender.queue_limit

    @property
    def queued_bytes(self) -> int:
        """Bytes of messages that wait in the queue."""
        return self._sender.scheduler.queued

    @property
    def message_limit(self) -> int:
        """Bytes that a message should have at most, so that it does not hold others up."""
        return self._sender.message_limit

    @property
    def has_unsent(self) -> bool:
        """Whether something that was sent is not acknowledged by the peer yet."""
        return self.state == "connected" and (
            self._sender.scheduler.queued > 0
            or len(self._sender.recovery) > 0
            or bool(self._data_channel_queue)
        )

    def snapshot(self) -> SctpSnapshot:
        """Returns the figures of this moment."""
        sender, receiver = self._sender, self._receiver
        recovery = sender.recovery
        return SctpSnapshot(
            rtt=recovery.srtt,
            rtt_min=recovery.min_rtt,
            cwnd=sender.controller.window,
            outstanding=recovery.flight,
            queued=sender.scheduler.queued,
            delivery_rate=sender.rate,
            packet_size=sender.packet_size,
            retransmissions=recovery.retransmissions,
            spurious=recovery.spurious,
            timeouts=recovery.timeouts_total,
            packets_sent=sender.packets_sent,
            sacks_sent=receiver.sacks_sent,
            sacks_received=sender.sacks_received,
            receive_window=receiver.window,
            held=receiver.reassembly.held,
            duplicates=receiver.duplicates,
            dropped=receiver.chunks_dropped,
            malformed=self.malformed,
            interleaved=sender.interleaved,
            batch_sacks=receiver.batch_sacks,
        )

    def send_many(self, channel: RTCDataChannel, messages: list[bytes]) -> None:
        """Queues binary messages, and has them sent at the end of this turn of the event loop.

        Raises ValueError, and takes none, if one is longer than the peer takes or the channel has
        no stream yet.
        """
        limit = self._remote_max_message_size
        total = 0
        for message in messages:
            size = len(message)
            total += size or 1
            if limit and size > limit:
                raise ValueError(f"a message of {size} bytes; the peer takes {limit}")
        stream = self._stream_of(channel)
        retransmits, expiry = self._reliability(channel)
        unordered = not channel.ordered
        push = self._sender.scheduler.push
        for message in messages:
            push(
                Message(
                    stream,
                    BINARY if message else BINARY_EMPTY,
                    message or b"\0",
                    unordered=unordered,
                    retransmits=retransmits,
                    expiry=expiry,
                    counted=len(message) or 1,
                )
            )
        channel._addBufferedAmount(total)  # noqa: SLF001 - as aiortc's own transport does
        self._flush_soon()

    def flush(self) -> None:
        """Sends now what may be sent."""
        if self._flush_handle is not None:
            self._flush_handle.cancel()
            self._flush_handle = None
        self._flush(self._event_loop.time(), due=False)

    # --- what DTLS calls ------------------------------------------------------------------------

    def receive_packets(self, packets: list[bytes]) -> None:
        """Takes the decrypted packets of one batch; answers and delivers before it returns."""
        if self.state == "closed":
            return
        now = self._event_loop.time()
        try:
            for packet in packets:
                self._receive_packet(packet, now)
            self._deliver()
            due = self._receiver.batch_done(now, self._sender.recovery.srtt or None)
        except RemoteProtocolError as error:
            self._fail(str(error))
            return
        if self.state != "closed":
            if self._reconfig_deferred is not None:
                _run(self._reset_deferred_streams())
            self._flush(now, due=due)

    async def _handle_data(self, data: bytes) -> None:
        self.receive_packets([data])

    def transport_writable(self) -> None:
        """Learns that DTLS takes packets again."""
        self._flush(self._event_loop.time(), due=False)

    def path_mtu_exceeded(self, size: int) -> None:
        """Learns that this host refuses packets of `size` bytes without fragmentation."""
        if self._pmtu.exceeded(size, self._event_loop.time()):
            self._packet_size_changed()

    def path_changed(self) -> None:
        """Learns that the packets take another path: its MTU is not known."""
        now = self._event_loop.time()
        self._pmtu.restart(getattr(self.transport, "packet_overhead", DEFAULT_OVERHEAD))
        self._packet_size_changed()
        self._start_probing(now)

    # --- packets in -----------------------------------------------------------------------------

    def _receive_packet(self, packet: bytes, now: float) -> None:
        """Checks a packet and takes its chunks."""
        size = len(packet)
        if size < PACKET_HEADER + 4:
            self.malformed += 1
            return
        body = packet[PACKET_HEADER:]
        checksum = CHECKSUM.unpack_from(packet, 8)[0]
        if packet[:8] == self._inbound_header:
            good = checksum == crc32c(self._inbound_crc, body)
        else:
            good = self._check_addressing(packet, body, checksum)
        if not good:
            self.malformed += 1
            return
        self.packets_received += 1
        size -= PACKET_HEADER
        receiver = self._receiver
        position = 0
        rare = 0
        has_data = False
        while position + 4 <= size:
            kind, flags, length = CHUNK.unpack_from(body, position)
            end = position + length
            if length < 4 or end > size:
                self.malformed += 1
                break
            if kind == I_DATA:
                if length <= I_DATA_HEADER:
                    raise RemoteProtocolError("the peer sent I-DATA without user data", kind="sctp")
                if receiver.cumulative >= 0:
                    _, _, _, tsn, stream, _, mid, word = I_DATA_CHUNK.unpack_from(body, position)
                    has_data = True
                    receiver.interleaved_data(
                        tsn, flags, stream, mid, word, body[position + I_DATA_HEADER : end]
                    )
            elif kind == DATA:
                if length <= DATA_HEADER:
                    raise RemoteProtocolError("the peer sent DATA without user data", kind="sctp")
                if receiver.cumulative >= 0:
                    _, _, _, tsn, stream, ssn, ppid = DATA_CHUNK.unpack_from(body, position)
                    has_data = True
                    receiver.data(tsn, flags, stream, ssn, ppid, body[position + DATA_HEADER : end])
            elif kind == SACK:
                self._receive_sack(body, position, length, now)
            elif kind in (FORWARD_TSN, I_FORWARD_TSN):
                if length >= 8 and receiver.cumulative >= 0:
                    receiver.forward(body[position + 4 : end], interleaved=kind == I_FORWARD_TSN)
            else:
                rare += 1
                if rare > RARE_CHUNKS_MAX:
                    self.malformed += 1
                    break
                self._receive_rare(kind, flags, body[position + 4 : end], now)
            position = end + (-length & 3)
        if has_data and receiver.packet_done():
            self._send_packet(
                self._sender.packet(receiver.sack(self._sender.packet_size - PACKET_HEADER))
            )

    def _check_addressing(self, packet: bytes, body: bytes, checksum: int) -> bool:
        """Checks a packet whose first 8 bytes are not those of all others (RFC 9260 8.5)."""
        if checksum != crc32c(crc32c(0, packet[:8] + ZERO_CHECKSUM), body):
            return False
        tag = WORD.unpack_from(packet, 4)[0]
        if body[0] == InitChunk.type:
            # RFC 9260 section 4.3: INIT is alone in its packet, and its tag is 0.
            length = CHUNK.unpack_from(body, 0)[2]
            return bool(tag == 0 and length + (-length & 3) >= len(body))
        return bool(tag == self._local_verification_tag)

    def _receive_sack(self, body: bytes, position: int, length: int, now: float) -> None:
        if length < SACK_HEADER or self._association_state != self.State.ESTABLISHED:
            return
        cumulative, window, gaps, duplicates = SACK_BODY.unpack_from(body, position + 4)
        if SACK_HEADER + 4 * (gaps + duplicates) > length:
            self.malformed += 1
            return
        position += SACK_HEADER
        blocks: tuple[int, ...] = ()
        if gaps:
            blocks = struct.unpack_from(f"!{2 * gaps}H", body, position)
        tsns: tuple[int, ...] = ()
        if duplicates:
            tsns = struct.unpack_from(f"!{duplicates}L", body, position + 4 * gaps)
        self._sender.receive_sack(cumulative, window, blocks, tsns, now)

    def _receive_rare(self, kind: int, flags: int, body: bytes, now: float) -> None:
        """Has aiortc take a chunk; what it cannot read is counted and does no harm."""
        if kind == HEARTBEAT_ACK:
            self._receive_heartbeat_ack(body, now)
            return
        chunk_class = CHUNK_TYPES.get(kind)
        if chunk_class is None:
            return
        self._deliver()
        try:
            _run(self._receive_chunk(chunk_class(flags=flags, body=body)))
        except (struct.error, ValueError, AssertionError, KeyError, AttributeError) as error:
            self.malformed += 1
            _log.debug("a chunk of type %d cannot be taken: %r", kind, error)

    def _receive_heartbeat_ack(self, body: bytes, now: float) -> None:
        if len(body) < 4 + _PROBE.size:
            return
        magic, size, token = _PROBE.unpack_from(body, 4)
        if magic != PROBE_MAGIC or token != self._hmac_key[:4]:
            return
        if self._pmtu.acknowledged(size, now):
            self._packet_size_changed()

    def _deliver(self) -> None:
        """Hands on what is complete."""
        reassembly = self._receiver.reassembly
        ready = reassembly.ready
        if not ready:
            return
        reassembly.ready = []
        channels = self._data_channels
        sink = self._sink
        batch: list[tuple[RTCDataChannel, bytes]] = []
        for stream, ppid, data in ready:
            channel = channels.get(stream)
            if sink is not None and channel is not None and ppid == BINARY:
                batch.append((channel, data))
                continue
            if batch and sink is not None:
                sink.sctp_messages(batch)
                batch = []
            if sink is not None and channel is not None and ppid == BINARY_EMPTY:
                batch.append((channel, b""))
            elif ppid == BINARY:
                if channel is not None:
                    channel.emit("message", data)
            else:
                self._deliver_rare(stream, ppid, data)
        if batch and sink is not None:
            sink.sctp_messages(batch)

    def _deliver_rare(self, stream: int, ppid: int, data: bytes) -> None:
        try:
            _run(self._data_channel_receive(stream, ppid, data))
        except (struct.error, ValueError, AssertionError) as error:
            self.malformed += 1
            _log.debug("a message with payload protocol %d cannot be taken: %r", ppid, error)

    # --- packets out ----------------------------------------------------------------------------

    def _send_packet(self, packet: bytes) -> None:
        self._send_packets([packet])

    def _send_packets(self, packets: list[bytes], *, fragment: bool = False) -> None:
        """Hands packets to DTLS; they are lost if it is not connected any more."""
        transport = self.transport
        send = getattr(transport, "send_packets", None)
        try:
            if send is None:
                for packet in packets:
                    _run(transport._send_data(packet))  # noqa: SLF001 - as aiortc's transport does
            elif fragment:
                send(packets, fragment=True)
            else:
                send(packets)
        except ConnectionError as error:
            _log.debug("%d SCTP packets are not sent: %s", len(packets), error)

    async def _send_chunk(self, chunk: Chunk) -> None:
        header = ADDRESSING.pack(self._local_port, self._remote_port, self._remote_verification_tag)
        body = bytes(chunk)
        checksum = CHECKSUM.pack(crc32c(checksum_of_header(header), body))
        self._send_packet(header + checksum + body)

    def _flush_soon(self) -> None:
        if self._flush_handle is None:
            self._flush_handle = self._event_loop.call_soon(self._flush_turn)

    def _flush_turn(self) -> None:
        self._flush_handle = None
        self._flush(self._event_loop.time(), due=False)

    def _flush(self, now: float, *, due: bool) -> None:
        """Sends a SACK if one is due or can travel along, and what else may be sent."""
        sender, receiver = self._sender, self._receiver
        established = self._association_state == self.State.ESTABLISHED
        blocked = not established or getattr(self.transport, "blocked", False)
        first = b""
        if due or (receiver.owes_sack and not blocked and sender.scheduler.queued):
            first = receiver.sack(sender.packet_size - PACKET_HEADER)
        if blocked:
            if first:
                self._send_packet(sender.packet(first))
        else:
            packets = sender.transmit(now, first)
            if packets:
                self._send_all(packets)
            if sender.scheduler.drained:
                self._report_drained()
            sender.settle()
            if sender.more:
                self._flush_soon()
            if self._reconfig_queue and not self._reconfig_request:
                _run(self._transmit_reconfig())
        self._arm(now)

    def _send_all(self, packets: list[bytes]) -> None:
        limit = self._sender.packet_size
        if len(packets[0]) > limit or len(packets[-1]) > limit:
            # Cut for a larger path MTU than there is now; a chunk cannot be cut again
            # (RFC 9260 section 7.3), so IP has to.
            self._send_packets([p for p in packets if len(p) > limit], fragment=True)
            packets = [p for p in packets if len(p) <= limit]
        if packets:
            self._send_packets(packets)

    def _report_drained(self) -> None:
        drained = self._sender.scheduler.drained
        self._sender.scheduler.drained = []
        report: list[tuple[RTCDataChannel, int]] = []
        for stream in drained:
            channel: RTCDataChannel = stream.owner
            report.append((channel, stream.drained))
            channel._addBufferedAmount(-stream.drained)  # noqa: SLF001 - as aiortc's transport does
            stream.drained = 0
        if self._sink is not None:
            self._sink.sctp_drained(report)

    # --- timer ----------------------------------------------------------------------------------

    def _arm(self, now: float) -> None:
        """Sets the one timer. A timer that is too early is left: it sets itself again."""
        if self.state == "closed":
            return
        wake = self._sender.wake_at
        for at in (self._receiver.sack_at, self._pmtu.wake_at):
            if at and (not wake or at < wake):
                wake = at
        if not wake:
            return
        if self._timer is not None:
            if self._timer_at <= wake:
                return
            self._timer.cancel()
        self._timer_at = max(wake, now)
        self._timer = self._event_loop.call_at(self._timer_at, self._timer_fired)

    def _timer_fired(self) -> None:
        self._timer = None
        if self.state == "closed":
            return
        now = self._event_loop.time()
        sender = self._sender
        due = bool(self._receiver.sack_at) and now >= self._receiver.sack_at
        if self._association_state == self.State.ESTABLISHED:
            wake = sender.wake_at
            if wake and now >= wake:
                try:
                    probe = sender.timer(now)
                except RemoteProtocolError as error:
                    self._fail(str(error))
                    return
                if probe:
                    self._send_all(probe)
                if sender.recovery.timeouts >= BLACK_HOLE_TIMEOUTS and self._pmtu.black_hole(now):
                    self._packet_size_changed()
            size = self._pmtu.probe(now, sender.recovery.srtt)
            if size:
                self._send_probe(size)
        self._flush(now, due=due)

    # --- path MTU -------------------------------------------------------------------------------

    def _start_probing(self, now: float) -> None:
        if getattr(self.transport, "probing_allowed", False):
            self._pmtu.start(now)
            self._arm(now)

    def _send_probe(self, size: int) -> None:
        info = _PROBE.pack(PROBE_MAGIC, size, self._hmac_key[:4])
        packet = self._sender.packet(heartbeat_probe(info, size))
        try:
            sent = self.transport.send_probe(packet)  # type: ignore[attr-defined] # checked by probing_allowed
        except ConnectionError as error:
            _log.debug("a path MTU probe is not sent: %s", error)
            return
        if not sent:
            self._pmtu.exceeded(size, self._event_loop.time())

    def _packet_size_changed(self) -> None:
        size = self._pmtu.packet_size
        self._sender.packet_size = size
        self._sender.controller.set_packet_size(size)

    # --- association: what differs from aiortc --------------------------------------------------

    def _set_extensions(self, params: list[tuple[int, bytes]]) -> None:
        """Announces I-DATA and I-FORWARD-TSN (RFC 8260 section 2.2.1), and batch SACKs."""
        super()._set_extensions(params)
        kind, extensions = params[-1]
        params[-1] = (kind, extensions + bytes((I_DATA, I_FORWARD_TSN)))
        params.append((SACK_BATCH, SACK_BATCH_VALUE))

    def _get_extensions(self, params: list[tuple[int, bytes]]) -> None:
        self._remote_extensions = []
        self._remote_partial_reliability = False
        super()._get_extensions(params)
        self._peer_batches = any(kind == SACK_BATCH for kind, _ in params)

    async def _receive_chunk(self, chunk: Chunk) -> None:
        if isinstance(chunk, InitChunk):
            await self._receive_init(chunk)
            return
        if isinstance(chunk, CookieEchoChunk) and self._restart is not None:
            cookie = chunk.body
            if hmac.new(self._hmac_key, cookie[:4], "sha1").digest() == cookie[4:]:
                self._end_for_restart(self._restart)
                return
        state = self._association_state
        await super()._receive_chunk(chunk)
        if isinstance(chunk, InitAckChunk) and state == self.State.COOKIE_WAIT:
            self._meet_peer(chunk)
        if self._association_state == self.State.CLOSED != state:
            self._ended("the peer ended the association")

    async def _receive_init(self, chunk: InitChunk) -> None:
        """Answers an INIT; the association changes only where RFC 9260 section 5.2 has it so."""
        identity = (chunk.initiate_tag, chunk.initial_tsn)
        known = self._peer_identity
        if known is None or (
            identity != known and self._association_state != self.State.ESTABLISHED
        ):
            await super()._receive_chunk(chunk)
            self._meet_peer(chunk)
            return
        # Section 5.2.1 and 5.2.2: a repeated INIT, or one of a peer that has restarted, is answered
        # and changes nothing before its cookie comes back.
        kept = (
            self._remote_verification_tag,
            self._last_received_tsn,
            self._reconfig_response_seq,
            self._remote_extensions,
            self._remote_partial_reliability,
            self._peer_batches,
            self._inbound_streams_count,
            self._outbound_streams_count,
        )
        if identity != known and (
            self._restart is None
            or (self._restart.initiate_tag, self._restart.initial_tsn) != identity
        ):
            self._restart = chunk
            self._hmac_key = os.urandom(16)  # cookies of the first association count no more
        await super()._receive_chunk(chunk)
        (
            self._remote_verification_tag,
            self._last_received_tsn,
            self._reconfig_response_seq,
            self._remote_extensions,
            self._remote_partial_reliability,
            self._peer_batches,
            self._inbound_streams_count,
            self._outbound_streams_count,
        ) = kept

    def _meet_peer(self, chunk: InitChunk | InitAckChunk) -> None:
        """Starts the data path with what the peer said in its INIT or INIT ACK."""
        identity = (chunk.initiate_tag, chunk.initial_tsn)
        sender, receiver = self._sender, self._receiver
        if identity != self._peer_identity:
            self._peer_identity = identity
            receiver.start(chunk.initial_tsn)
        sender.peer_window = chunk.advertised_rwnd
        sender.set_addressing(
            ADDRESSING.pack(self._local_port, self._remote_port, chunk.initiate_tag)
        )
        self._inbound_header = ADDRESSING.pack(
            self._remote_port, self._local_port, self._local_verification_tag
        )
        self._inbound_crc = checksum_of_header(self._inbound_header)
        sender.interleaved = I_DATA in self._remote_extensions
        sender.scheduler.interleaved = receiver.interleaved = sender.interleaved
        sender.partial_reliability = self._remote_partial_reliability
        receiver.batch_sacks = self._peer_batches

    def _end_for_restart(self, chunk: InitChunk) -> None:
        """Ends the association, because the peer has restarted it (RFC 9260 section 5.2.4.1 A).

        The peer has forgotten its streams and what it had received. A data channel promises that
        nothing is lost in silence, so it cannot go on; whoever uses it starts anew.
        """
        self._restart = None
        self._remote_verification_tag = chunk.initiate_tag
        self._fail("the peer's SCTP has restarted, and what was under way is lost")

    def _set_state(self, state: "RTCSctpTransport.State") -> None:
        before = self._association_state
        super()._set_state(state)
        if state == self.State.ESTABLISHED and before != state:
            self._start_probing(self._event_loop.time())
            self._flush_soon()
        elif state == self.State.CLOSED:
            self._release()

    def _release(self) -> None:
        """Drops what the data path holds: the association is over."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._flush_handle is not None:
            self._flush_handle.cancel()
            self._flush_handle = None
        self._receiver.close()
        for stream in self._out_streams.values():
            self._sender.scheduler.discard(stream)
        self._out_streams.clear()

    async def stop(self) -> None:
        """Ends the association with an ABORT."""
        self._stopping = True
        await super().stop()

    def _fail(self, reason: str) -> None:
        """Ends the association because of the peer; tells it and the owner why."""
        chunk = AbortChunk()
        chunk.params.append((PROTOCOL_VIOLATION, reason.encode()))
        _run(self._send_chunk(chunk))
        self._set_state(self.State.CLOSED)
        self._ended(reason)

    def _ended(self, reason: str) -> None:
        if self._sink is not None and not self._stopping:
            self._stopping = True
            self._sink.sctp_failed(reason)

    # --- data channels --------------------------------------------------------------------------

    def _stream_of(self, channel: RTCDataChannel) -> OutboundStream:
        """Returns the stream of a channel, which is made when it is first used."""
        stream_id = channel.id
        if stream_id is None:
            raise ValueError("the channel has no stream yet")
        stream = self._out_streams.get(stream_id)
        if stream is None or stream.owner is not channel:
            if channel.label == CONTROL_LABEL:
                rank = CONTROL
            elif not channel.ordered and channel.maxRetransmits == 0:
                rank = DATAGRAM
            else:
                rank = NORMAL
            stream = self._out_streams[stream_id] = OutboundStream(stream_id, rank, channel)
        return stream

    def _reliability(self, channel: RTCDataChannel) -> tuple[int, float]:
        """Returns how often a fragment may be sent again, and until when; -1 and 0 for ever."""
        if not self._remote_partial_reliability:
            return -1, 0.0
        if channel.maxPacketLifeTime:
            return -1, self._event_loop.time() + channel.maxPacketLifeTime / 1000
        return -1 if channel.maxRetransmits is None else channel.maxRetransmits, 0.0

    def _data_channel_send(self, channel: RTCDataChannel, data: bytes | str) -> None:
        if isinstance(data, bytes):
            self.send_many(channel, [data])
            return
        payload = data.encode() or b"\0"
        limit = self._remote_max_message_size
        if limit and len(payload) > limit:
            raise ValueError(f"a message of {len(payload)} bytes; the peer takes {limit}")
        retransmits, expiry = self._reliability(channel)
        channel._addBufferedAmount(len(payload))  # noqa: SLF001 - as aiortc's own transport does
        self._sender.scheduler.push(
            Message(
                self._stream_of(channel),
                STRING if data else STRING_EMPTY,
                payload,
                unordered=not channel.ordered,
                retransmits=retransmits,
                expiry=expiry,
                counted=len(payload),
            )
        )
        self._flush_soon()

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
            self._sender.scheduler.push(Message(self._stream_of(channel), ppid, data))
        self._flush_soon()

    async def _transmit(self) -> None:
        self._flush_soon()

    async def _transmit_reconfig(self) -> None:
        """Asks for the reset of streams, once all that was queued for them is sent."""
        for stream_id in self._reconfig_queue:
            stream = self._out_streams.get(stream_id)
            if stream is not None and stream.queue:
                return
        recovery = self._sender.recovery
        self._local_tsn = recovery.next_tsn & TSN_MASK
        self._rto = max(recovery.rto, 1.0)
        await super()._transmit_reconfig()

    async def _receive_reconfig_param(
        self,
        param: StreamAddOutgoingParam | StreamResetOutgoingParam | StreamResetResponseParam,
    ) -> None:
        request = self._reconfig_request
        await super()._receive_reconfig_param(param)
        if request is not None and self._reconfig_request is not request:
            for stream_id in request.streams:
                self._out_streams.pop(stream_id, None)

    async def _reset_deferred_streams(self) -> None:
        request = self._reconfig_deferred
        self._last_received_tsn = self._receiver.cumulative & TSN_MASK
        await super()._reset_deferred_streams()
        if request is not None and self._reconfig_deferred is None:
            for stream_id in request.streams:
                self._receiver.reassembly.reset(stream_id)


def _run(coroutine: Coroutine[Any, Any, Any]) -> None:
    """Runs a coroutine that never waits to its end."""
    try:
        coroutine.send(None)
    except StopIteration:
        return
    coroutine.close()
    raise RuntimeError(f"{coroutine!r} waits for something")
