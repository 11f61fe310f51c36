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
import logging
import os
import struct
import time
from collections.abc import Callable
from typing import Final

from aiortc import RTCDataChannel, RTCDtlsTransport, RTCSctpTransport
from aiortc.rtcsctptransport import CHUNK_TYPES, Chunk
from google_crc32c import extend as crc32c

from socks_tunnel.peer.fast.association import FastAssociation, run_now
from socks_tunnel.peer.fast.budget import WindowBudget
from socks_tunnel.peer.fast.congestion import CongestionName
from socks_tunnel.peer.fast.datapath import DataPath
from socks_tunnel.peer.fast.sink import SctpSink, SctpSnapshot
from socks_tunnel.peer.fast.streams import Message
from socks_tunnel.peer.fast.wire import (
    ADDRESSING,
    CHECKSUM,
    PARAMETERS_AT,
    checksum_of_header,
    parameters_are_sound,
)
from socks_tunnel.protocol.errors import LocalProtocolError, RemoteProtocolError
from socks_tunnel.protocol.lone import LONE_BYTES, Lone

_log = logging.getLogger(__name__)

STRING: Final = 51
BINARY: Final = 53
STRING_EMPTY: Final = 56
BINARY_EMPTY: Final = 57
"""Payload protocol identifiers (RFC 8831 section 8)."""

DEFAULT_OVERHEAD: Final = 85
"""Bytes that IPv6, UDP and a DTLS 1.2 record with AES-GCM add to an SCTP packet."""

TIMER_MIN: Final = 0.001
"""Seconds until the timer fires at least; an event loop's timers are not finer."""

_default_budget: Final = WindowBudget()


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
        # Not the event loop's clock: uvloop's moves in steps of a millisecond.
        self._clock = clock
        self._event_loop = asyncio.get_running_loop()
        self.path = DataPath(
            local_tag=self._local_verification_tag,
            initial_tsn=self._local_tsn,
            overhead=getattr(transport, "packet_overhead", DEFAULT_OVERHEAD),
            congestion=congestion,
            budget=budget,
            secret=os.urandom(8),
            rare=self._receive_rare,
        )
        self._sink: SctpSink | None = None
        self._stopping = False
        self._flush_handle: asyncio.Handle | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = 0.0
        self._receiving = False
        self._lone = Lone()

    # --- for the owner --------------------------------------------------------------------------

    def attach(self, sink: SctpSink) -> None:
        """Names the owner; binary messages go there, no longer to the channels' events."""
        self._sink = sink

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
        """Queues binary messages, and has them sent at the end of this turn of the event loop.

        A small message that comes alone is sent at once; the owner learns later that it has left.
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
        now = self._clock()
        retransmits, expiry = self._reliability(channel, now)
        unordered = not channel.ordered
        push = self.path.sender.scheduler.push
        for message in messages:
            push(
                Message(
                    stream,
                    BINARY if message else BINARY_EMPTY,
                    message or b"\0",
                    unordered=unordered,
                    retransmits=retransmits,
                    expiry=expiry,
                    counted=True,
                )
            )
        if total <= LONE_BYTES and self.path.sender.scheduler.queued == total:
            self._send_alone(now)
        channel._addBufferedAmount(total)  # noqa: SLF001 - as aiortc's own transport does
        self._flush_soon()

    def _send_alone(self, now: float) -> None:
        """Sends what is queued, unless it is one of many. All else is left to the turn's end."""
        if not self._lone.comes(now) or self._receiving:
            return  # in the latter case it is sent when what came is dealt with
        packets = self.path.flush(now, due=False, blocked=self._blocked)
        if packets:
            self._send_all(packets)

    @property
    def _blocked(self) -> bool:
        return getattr(self.transport, "blocked", False)

    # --- what DTLS calls --------------------------------------------------------------------------

    def receive_packets(self, packets: list[bytes]) -> None:
        """Takes the decrypted packets of one batch; answers and delivers before it returns."""
        if self.state == "closed":
            return
        now = self._clock()
        try:
            due = self.path.receive(packets, now)
        except RemoteProtocolError as error:
            self._deliver()
            self._fail(str(error))
            return
        self._receiving = True
        try:
            self._deliver()
            if len(packets) == 1:
                # What came alone is passed on before SACKs and timers are seen to: the process that
                # it is for works on it meanwhile.
                self.turn_ended()
        finally:
            self._receiving = False
        if self.state != "closed":
            if self._reconfig_deferred is not None:
                run_now(self._reset_deferred_streams())
            self._flush(now, due=due)

    async def _handle_data(self, data: bytes) -> None:
        self.receive_packets([data])
        self.turn_ended()

    def turn_ended(self) -> None:
        """Learns that no more packets come in this turn of the event loop."""
        if self._sink is not None:
            self._sink.sctp_turn_ended()

    def transport_writable(self) -> None:
        """Learns that DTLS takes packets again."""
        self._flush(self._clock(), due=False)
        self.turn_ended()

    def path_mtu_exceeded(self, size: int) -> None:
        """Learns that this host refuses packets of `size` bytes without fragmentation."""
        if self.path.pmtu.exceeded(size, self._clock()):
            self.path.packet_size_changed()

    def path_changed(self) -> None:
        """Learns that the packets take another path: its MTU is not known."""
        self.path.new_path(getattr(self.transport, "packet_overhead", DEFAULT_OVERHEAD))
        self._start_probing()

    # --- in ---------------------------------------------------------------------------------------

    def _receive_rare(self, kind: int, flags: int, body: bytes) -> None:
        """Has aiortc take a chunk; what it cannot read is counted and does no harm."""
        chunk_class = CHUNK_TYPES.get(kind)
        if chunk_class is None or self.state == "closed":
            return
        offset = PARAMETERS_AT.get(kind)
        if offset is not None and not parameters_are_sound(body, offset):
            self.path.malformed += 1
            return
        self._deliver()
        try:
            run_now(self._receive_chunk(chunk_class(flags=flags, body=body)))
        except (struct.error, ValueError, AssertionError, KeyError, AttributeError) as error:
            self.path.malformed += 1
            _log.debug("a chunk of type %d cannot be taken: %r", kind, error)

    def _deliver(self) -> None:
        """Hands on what is complete."""
        reassembly = self.path.receiver.reassembly
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
            run_now(self._data_channel_receive(stream, ppid, data))
        except (struct.error, ValueError, AssertionError) as error:
            self.path.malformed += 1
            _log.debug("a message with payload protocol %d cannot be taken: %r", ppid, error)

    # --- out --------------------------------------------------------------------------------------

    def _send_packets(self, packets: list[bytes], *, fragment: bool = False) -> None:
        """Hands packets to DTLS; they are lost if it is not connected any more."""
        transport = self.transport
        send = getattr(transport, "send_packets", None)
        try:
            if send is None:
                for packet in packets:
                    run_now(transport._send_data(packet))  # noqa: SLF001 - as aiortc's own does
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
        self._send_packets([header + checksum + body])

    def _flush_soon(self) -> None:
        if self._flush_handle is None:
            self._flush_handle = self._event_loop.call_soon(self._flush_turn)

    def _flush_turn(self) -> None:
        self._flush_handle = None
        self._flush(self._clock(), due=False)
        self.turn_ended()

    def _flush(self, now: float, *, due: bool) -> None:
        """Sends what may be sent, tells the owner what has left the queue, sets the timer."""
        path = self.path
        try:
            packets = path.flush(now, due=due, blocked=self._blocked)
        except RemoteProtocolError as error:
            self._fail(str(error))
            return
        if packets:
            self._send_all(packets)
        sender = path.sender
        if sender.scheduler.drained:
            self._report_drained()
        sender.settle()
        if sender.more and path.established:
            self._flush_soon()
        if self._reconfig_queue and not self._reconfig_request:
            run_now(self._transmit_reconfig())
        self._arm(now)

    def _send_all(self, packets: list[bytes]) -> None:
        limit = self.path.sender.packet_size
        if len(packets[0]) > limit or len(packets[-1]) > limit:
            # Cut for a larger path MTU than there is now; a chunk cannot be cut again
            # (RFC 9260 section 7.3), so IP has to.
            self._send_packets([p for p in packets if len(p) > limit], fragment=True)
            packets = [p for p in packets if len(p) <= limit]
        if packets:
            self._send_packets(packets)

    def _report_drained(self) -> None:
        drained = self.path.sender.scheduler.drained
        self.path.sender.scheduler.drained = []
        report: list[tuple[RTCDataChannel, int]] = []
        for stream in drained:
            channel: RTCDataChannel = stream.owner
            report.append((channel, stream.drained))
            channel._addBufferedAmount(-stream.drained)  # noqa: SLF001 - as aiortc's transport does
            stream.drained = 0
        if self._sink is not None:
            self._sink.sctp_drained(report)

    # --- timer ------------------------------------------------------------------------------------

    def _arm(self, now: float) -> None:
        """Sets the one timer. A timer that is too early is left: it sets itself again."""
        # While the socket takes nothing, DTLS calls when it does; until then, time changes nothing.
        wake = self.path.receiver.sack_at if self._blocked else self.path.wake_at
        if not wake or self.state == "closed":
            return
        if self._timer is not None:
            if self._timer_at <= wake:
                return
            self._timer.cancel()
        self._timer_at = max(wake, now + TIMER_MIN)
        self._timer = self._event_loop.call_later(self._timer_at - now, self._timer_fired)

    def _timer_fired(self) -> None:
        self._timer = None
        if self.state == "closed":
            return
        now = self._clock()
        try:
            packets, due = self.path.timer(now)
        except RemoteProtocolError as error:
            self._fail(str(error))
            return
        if packets:
            self._send_all(packets)
        probe = self.path.probe(now)
        if probe:
            self._send_probe(probe, now)
        self._flush(now, due=due)
        self.turn_ended()

    def _start_probing(self) -> None:
        if getattr(self.transport, "probing_allowed", False):
            now = self._clock()
            self.path.pmtu.start(now)
            self._arm(now)

    def _send_probe(self, packet: bytes, now: float) -> None:
        try:
            sent = self.transport.send_probe(packet)  # type: ignore[attr-defined] # see _start_probing
        except ConnectionError as error:
            _log.debug("a path MTU probe is not sent: %s", error)
            return
        if not sent:
            self.path.pmtu.exceeded(len(packet), now)

    # --- association ------------------------------------------------------------------------------

    def _set_state(self, state: "RTCSctpTransport.State") -> None:
        before = self._association_state
        super()._set_state(state)
        self.path.established = state == self.State.ESTABLISHED
        if state == self.State.ESTABLISHED and before != state:
            self._start_probing()
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
        self.path.close()
        for stream in self._out_streams.values():
            self.path.sender.scheduler.discard(stream)
        self._out_streams.clear()

    async def stop(self) -> None:
        """Ends the association with an ABORT."""
        self._stopping = True
        await super().stop()

    def _ended(self, reason: str) -> None:
        if self._sink is not None and not self._stopping:
            self._stopping = True
            self._sink.sctp_failed(reason)

    # --- data channels --------------------------------------------------------------------------

    def _data_channel_send(self, channel: RTCDataChannel, data: bytes | str) -> None:
        if isinstance(data, bytes):
            self.send_many(channel, [data])
            return
        payload = data.encode() or b"\0"
        limit = self._remote_max_message_size
        if limit and len(payload) > limit:
            raise ValueError(f"a message of {len(payload)} bytes; the peer takes {limit}")
        retransmits, expiry = self._reliability(channel, self._clock())
        channel._addBufferedAmount(len(payload))  # noqa: SLF001 - as aiortc's own transport does
        self.path.sender.scheduler.push(
            Message(
                self._stream_of(channel),
                STRING if data else STRING_EMPTY,
                payload,
                unordered=not channel.ordered,
                retransmits=retransmits,
                expiry=expiry,
                counted=True,
            )
        )
        self._flush_soon()

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
            self.path.sender.scheduler.push(Message(self._stream_of(channel), ppid, data))
        self._flush_soon()

    async def _transmit(self) -> None:
        self._flush_soon()
