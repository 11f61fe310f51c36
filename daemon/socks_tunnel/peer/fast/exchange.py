"""What an association exchanges with its neighbours: packets with DTLS, messages with its owner.

    send_many                                    sctp_messages, sctp_drained   (owner)
        |                                                  ^
    streams.Scheduler -> DataPath.flush    DataPath.receive -> reassembly
                              |                  ^
                              v                  |
                     send_packets(list)   receive_packets(list)                (DTLS)

An :class:`Exchange` drives a :class:`DataPath`, which has neither clock nor I/O. The exchange reads
the clock, sets the one timer, and decides when packets leave. All packets and messages pass here,
so this is a class of its own, and compiled. :class:`FastSctpTransport`, which has it, inherits from
a class of aiortc's and cannot be compiled (docs/adr/0045).
"""

import asyncio
import logging
from collections.abc import Callable, Container
from typing import Any, Final, Protocol

from aiortc import RTCDataChannel

from socks_tunnel.peer.fast.datapath import DataPath
from socks_tunnel.peer.fast.sink import SctpSink
from socks_tunnel.peer.fast.streams import Message, OutboundStream, rank_of
from socks_tunnel.protocol.errors import RemoteProtocolError
from socks_tunnel.protocol.lone import LONE_BYTES, Lone

_log = logging.getLogger(__name__)

STRING: Final = 51
BINARY: Final = 53
STRING_EMPTY: Final = 56
BINARY_EMPTY: Final = 57
"""Payload protocol identifiers (RFC 8831 section 8)."""

TIMER_MIN: Final = 0.001
"""Seconds until the timer fires at least; an event loop's timers are not finer."""


class Below(Protocol):
    """The DTLS transport below, or as much of one as sends packets."""

    @property
    def blocked(self) -> bool:
        """Whether packets wait because the socket takes nothing."""

    def send_packets(self, packets: list[bytes], *, fragment: bool = False) -> None:
        """Sends packets, with `fragment` without DF. Raises :class:`ConnectionError`."""

    def send_probe(self, packet: bytes) -> bool:
        """Sends a packet with DF; returns whether the interface's MTU allows it."""


class Association(Protocol):
    """What has an :class:`Exchange`, and deals with what is rare.

    The private names are aiortc's: fields that its handlers of rare chunks set, and whose class the
    guard compares with the one that was read.
    """

    _remote_max_message_size: int
    _remote_partial_reliability: bool
    _reconfig_deferred: Any
    _reconfig_queue: list[int]
    _reconfig_request: Any

    @property
    def probing_allowed(self) -> bool:
        """Whether the loss of a packet says something about the path's MTU."""

    @property
    def packet_overhead(self) -> int:
        """Bytes that IP, UDP, TURN and DTLS add to a packet on the present path."""

    def fail(self, reason: str) -> None:
        """Ends the association because of the peer."""

    def deliver_rare(self, stream: int, ppid: int, data: bytes) -> None:
        """Takes a message that is not binary, such as the opening of a channel."""

    def reset_deferred(self) -> None:
        """Resets the streams whose reset the peer has asked for, if all of them has come."""

    def request_resets(self) -> None:
        """Asks the peer for the reset of streams that were closed here."""


class Way:
    """The stream of a channel as sender, and how its messages are sent."""

    __slots__ = ("lifetime", "retransmits", "stream", "unordered")

    def __init__(self, stream: OutboundStream, channel: RTCDataChannel) -> None:
        self.stream = stream
        self.unordered = not channel.ordered
        self.retransmits = -1 if channel.maxRetransmits is None else channel.maxRetransmits
        """How often a fragment may be sent again; -1: until it arrives."""
        self.lifetime = (channel.maxPacketLifeTime or 0) / 1000
        """Seconds until a message is given up; 0: never. It takes the place of `retransmits`."""


class Exchange:
    """See the top of this file. `channels` are those of the association, by stream.

    This class has many methods because it has both the callbacks of DTLS and the methods for the
    owner, and one timer and one clock for both.
    """

    def __init__(
        self,
        path: DataPath,
        association: Association,
        below: Below,
        channels: dict[int, RTCDataChannel],
        clock: Callable[[], float],
    ) -> None:
        self.path = path
        self.sink: SctpSink | None = None
        self.shared_labels: Container[str] = ()
        """Labels of channels whose messages belong to flows (:class:`OutboundStream`)."""
        self.timer: asyncio.TimerHandle | None = None
        self._association = association
        self._below = below
        self._channels = channels
        self._clock = clock
        self._loop = asyncio.get_running_loop()
        self._ways: dict[RTCDataChannel, Way] = {}
        self._timer_at = 0.0
        self._next_flush: asyncio.Handle | None = None
        self._receiving = False
        self._lone = Lone()

    # --- streams ----------------------------------------------------------------------------------

    def way(self, channel: RTCDataChannel) -> Way:
        """Returns the way of a channel, which is made when it is first used.

        Raises :class:`ValueError` if the channel has no stream yet.
        """
        way = self._ways.get(channel)
        if way is None:
            stream = channel.id
            if stream is None:
                raise ValueError("the channel has no stream yet")
            self.forget(stream)  # of a channel that was closed
            rank = rank_of(channel.label, channel.ordered, channel.maxRetransmits)
            shared = channel.label in self.shared_labels
            sender = OutboundStream(stream, rank, channel, shared=shared)
            way = self._ways[channel] = Way(sender, channel)
        return way

    def waits(self, stream_id: int) -> bool:
        """Returns whether something is queued for a stream."""
        return any(
            way.stream.stream_id == stream_id and way.stream.first is not None
            for way in self._ways.values()
        )

    def forget(self, stream_id: int) -> None:
        """Forgets the ways on a stream that was reset: the next channel there begins anew.

        What was queued on them after the reset had been asked for would get numbers of the old
        stream, so it is dropped.
        """
        for channel, way in list(self._ways.items()):
            if way.stream.stream_id == stream_id:
                self.path.sender.scheduler.discard(way.stream)
                del self._ways[channel]

    # --- for the owner ----------------------------------------------------------------------------

    def send_many(self, channel: RTCDataChannel, messages: list[bytes]) -> None:
        """Queues binary messages, and has them sent at the end of this turn of the event loop.

        A small message that comes alone is sent at once; the owner learns later that it has left.
        Raises ValueError, and takes none, if one is longer than the peer takes or the channel has
        no stream yet.
        """
        limit = self._association._remote_max_message_size  # noqa: SLF001 - see Association
        total = 0
        for message in messages:
            size = len(message)
            total += size or 1
            if limit and size > limit:
                raise ValueError(f"a message of {size} bytes; the peer takes {limit}")
        way = self.way(channel)
        now = self._clock()
        for message in messages:
            self._queue(way, BINARY if message else BINARY_EMPTY, message or b"\0", now)
        scheduler = self.path.sender.scheduler
        if total <= LONE_BYTES and scheduler.queued == total:
            self._send_alone(now)
        channel._addBufferedAmount(total)  # noqa: SLF001 - as aiortc's own transport does
        self.flush_soon()

    def send_text(self, channel: RTCDataChannel, text: str) -> None:
        """Queues a text message. Raises as :meth:`send_many` does."""
        payload = text.encode() or b"\0"
        limit = self._association._remote_max_message_size  # noqa: SLF001 - see Association
        if limit and len(payload) > limit:
            raise ValueError(f"a message of {len(payload)} bytes; the peer takes {limit}")
        self._queue(self.way(channel), STRING if text else STRING_EMPTY, payload, self._clock())
        channel._addBufferedAmount(len(payload))  # noqa: SLF001 - as aiortc's own transport does
        self.flush_soon()

    def _queue(self, way: Way, ppid: int, data: bytes, now: float) -> None:
        retransmits = -1
        expiry = 0.0
        if self._association._remote_partial_reliability:  # noqa: SLF001 - see Association
            if way.lifetime:
                expiry = now + way.lifetime
            else:
                retransmits = way.retransmits
        self.path.sender.scheduler.push(
            Message(
                way.stream,
                ppid,
                data,
                unordered=way.unordered,
                retransmits=retransmits,
                expiry=expiry,
                counted=True,
            )
        )

    def send_uncounted(self, channel: RTCDataChannel, ppid: int, data: bytes) -> None:
        """Queues a message that always arrives and whose leaving nobody is told of."""
        self.path.sender.scheduler.push(Message(self.way(channel).stream, ppid, data))

    def _send_alone(self, now: float) -> None:
        """Sends what is queued, unless it is one of many. All else is left to the turn's end."""
        if not self._lone.comes(now) or self._receiving:
            return  # in the latter case it is sent when what came is dealt with
        packets = self.path.flush(now, due=False, blocked=self._below.blocked)
        if packets:
            self._send_all(packets)

    # --- what DTLS calls --------------------------------------------------------------------------

    def receive_packets(self, packets: list[bytes]) -> None:
        """Takes the decrypted packets of one batch; answers and delivers before it returns."""
        path = self.path
        if path.closed:
            return
        now = self._clock()
        try:
            due = path.receive(packets, now)
        except RemoteProtocolError as error:
            self.deliver()
            self._association.fail(str(error))
            return
        self._receiving = True
        try:
            self.deliver()
            if len(packets) == 1:
                # What came alone is passed on before SACKs and timers are seen to: the process that
                # it is for works on it meanwhile.
                self.turn_ended()
        finally:
            self._receiving = False
        if not path.closed:
            if self._association._reconfig_deferred is not None:  # noqa: SLF001 - see Association
                self._association.reset_deferred()
            self._flush(now, due)

    def turn_ended(self) -> None:
        """Learns that no more packets come in this turn of the event loop."""
        if self.sink is not None:
            self.sink.sctp_turn_ended()

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
        self.path.new_path(self._association.packet_overhead)
        self.start_probing()

    # --- in ---------------------------------------------------------------------------------------

    def deliver(self) -> None:
        """Hands on what is complete."""
        reassembly = self.path.receiver.reassembly
        ready = reassembly.ready
        if not ready:
            return
        reassembly.ready = []
        channels = self._channels
        sink = self.sink
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
                self._association.deliver_rare(stream, ppid, data)
        if batch and sink is not None:
            sink.sctp_messages(batch)

    # --- out --------------------------------------------------------------------------------------

    def send_packets(self, packets: list[bytes], *, fragment: bool = False) -> None:
        """Hands packets to DTLS; they are lost if it is not connected any more."""
        try:
            if fragment:
                self._below.send_packets(packets, fragment=True)
            else:
                self._below.send_packets(packets)
        except ConnectionError as error:
            _log.debug("%d SCTP packets are not sent: %s", len(packets), error)

    def flush_soon(self) -> None:
        """Sends what may be sent at the end of this turn of the event loop."""
        if self._next_flush is None:
            self._next_flush = self._loop.call_soon(self._flush_turn)

    def _flush_turn(self) -> None:
        self._next_flush = None
        self._flush(self._clock(), due=False)
        self.turn_ended()

    def _flush(self, now: float, due: bool) -> None:
        """Sends what may be sent, tells the owner what has left the queue, sets the timer."""
        path = self.path
        try:
            packets = path.flush(now, due=due, blocked=self._below.blocked)
        except RemoteProtocolError as error:
            self._association.fail(str(error))
            return
        if packets:
            self._send_all(packets)
        sender = path.sender
        if sender.scheduler.drained:
            self._report_drained()
        sender.settle()
        if sender.more and path.established:
            self.flush_soon()
        association = self._association
        if association._reconfig_queue and not association._reconfig_request:  # noqa: SLF001 - see Association
            association.request_resets()
        self.arm(now)

    def _send_all(self, packets: list[bytes]) -> None:
        limit = self.path.sender.packet_size
        if len(packets[0]) > limit or len(packets[-1]) > limit:
            # Cut for a larger path MTU than there is now; a chunk cannot be cut again
            # (RFC 9260 section 7.3), so IP has to.
            self.send_packets([p for p in packets if len(p) > limit], fragment=True)
            packets = [p for p in packets if len(p) <= limit]
        if packets:
            self.send_packets(packets)

    def _report_drained(self) -> None:
        scheduler = self.path.sender.scheduler
        drained, scheduler.drained = scheduler.drained, []
        report: list[tuple[RTCDataChannel, int]] = []
        for stream in drained:
            channel: RTCDataChannel = stream.owner
            report.append((channel, stream.drained))
            channel._addBufferedAmount(-stream.drained)  # noqa: SLF001 - as aiortc's transport does
            stream.drained = 0
        if self.sink is not None:
            self.sink.sctp_drained(report)

    # --- timer ------------------------------------------------------------------------------------

    def arm(self, now: float) -> None:
        """Sets the one timer. A timer that is too early is left: it sets itself again."""
        path = self.path
        # While the socket takes nothing, DTLS calls when it does; until then, time changes nothing.
        wake = path.receiver.sack_at if self._below.blocked else path.wake_at
        if not wake or path.closed:
            return
        if self.timer is not None:
            if self._timer_at <= wake:
                return
            self.timer.cancel()
        self._timer_at = max(wake, now + TIMER_MIN)
        self.timer = self._loop.call_later(self._timer_at - now, self._timer_fired)

    def _timer_fired(self) -> None:
        self.timer = None
        if self.path.closed:
            return
        now = self._clock()
        try:
            packets, due = self.path.timer(now)
        except RemoteProtocolError as error:
            self._association.fail(str(error))
            return
        if packets:
            self._send_all(packets)
        probe = self.path.probe(now)
        if probe:
            self._send_probe(probe, now)
        self._flush(now, due)
        self.turn_ended()

    def start_probing(self) -> None:
        """Begins to look for the path's MTU, if that can be done."""
        if self._association.probing_allowed:
            now = self._clock()
            self.path.pmtu.start(now)
            self.arm(now)

    def _send_probe(self, packet: bytes, now: float) -> None:
        try:
            sent = self._below.send_probe(packet)
        except ConnectionError as error:
            _log.debug("a path MTU probe is not sent: %s", error)
            return
        if not sent:
            self.path.pmtu.exceeded(len(packet), now)

    # --- the end ----------------------------------------------------------------------------------

    def release(self) -> None:
        """Drops what the data path holds: the association is over."""
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None
        if self._next_flush is not None:
            self._next_flush.cancel()
            self._next_flush = None
        self.path.close()
        for way in self._ways.values():
            self.path.sender.scheduler.discard(way.stream)
        self._ways.clear()
