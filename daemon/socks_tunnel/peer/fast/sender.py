"""The sending half of an association's data path: packets out of messages. No I/O, no clock.

What may be sent now is the smallest of the congestion window, what recovery allows (proportional
rate reduction, RFC 6937), what the peer's receive window allows, and the pacer. What is sent is
decided in this order: chunks that the receiving half wants to send (SACK), FORWARD-TSN, what was
lost, then new fragments as the scheduler picks them. TSNs are given when a packet is made, so a
fragment always has the size of the packet that takes it.
"""

from typing import Final

from google_crc32c import extend as crc32c

from socks_tunnel.peer.fast.congestion import Acked, Controller
from socks_tunnel.peer.fast.outstanding import ABANDONED, Chunk
from socks_tunnel.peer.fast.rate import Burst
from socks_tunnel.peer.fast.recovery import OUTSTANDING_MAX, Recovery
from socks_tunnel.peer.fast.streams import Message, Scheduler
from socks_tunnel.peer.fast.wire import (
    CHECKSUM,
    DATA,
    DATA_CHUNK,
    DATA_HEADER,
    FIRST,
    I_DATA,
    I_DATA_CHUNK,
    I_DATA_HEADER,
    IMMEDIATE,
    LAST,
    PACKET_HEADER,
    PADDING,
    TSN_MASK,
    UNORDERED,
    checksum_of_header,
    forward_tsn,
)

BURST_PACKETS: Final = 64
"""Packets that are sent in one turn: what one UDP GSO call takes."""

PACE_QUANTUM: Final = 0.001
"""Seconds of the pacing rate that may be sent at a time, and at least PACE_PACKETS."""
PACE_PACKETS: Final = 10
PACE_LATE_MAX: Final = 0.004
"""Seconds by which a timer may be late without a loss of rate: so much is caught up."""

FRAGMENT_MIN: Final = 256
"""Bytes of a packet's rest below which no fragment of a longer message is put there."""

QUEUE_TIME_MIN: Final = 0.005
"""Seconds of the measured rate that may wait at least: the owner needs a turn to queue more."""
QUEUE_BYTES_MIN: Final = 65_536
QUEUE_BYTES_MAX: Final = 16_777_216
"""Bounds in bytes of what may wait in the queue above the packets; see :attr:`queue_limit`."""

HOLD_TIME: Final = 0.005
"""Seconds that one message may occupy the wire where messages cannot be interleaved."""
MESSAGE_LIMIT_MIN: Final = 2_048
MESSAGE_LIMIT_MAX: Final = 65_536
"""Bounds in bytes of the message size that :attr:`message_limit` asks for."""

IMMEDIATE_PACKETS: Final = 8
"""Packets of the window below which the last chunk of a message asks for a SACK at once (RFC 7053),
if more waits than the window lets go. A lone small message does not: its SACK comes with the
answer, or a few milliseconds later, and saves a packet and two wake-ups."""


class Sender:
    """One association as sender.

    `packet_size` is the size in bytes of the largest SCTP packet. Packets come out complete, with
    addressing and checksum, once :meth:`set_addressing` was called.
    """

    def __init__(self, initial_tsn: int, controller: Controller, packet_size: int) -> None:
        self.recovery = Recovery(initial_tsn)
        self.scheduler = Scheduler()
        self.controller = controller
        self.packet_size = packet_size
        self.interleaved = False
        self.partial_reliability = False
        self.peer_window = 0
        """a_rwnd of the last SACK, or of the peer's INIT."""
        self.more = False
        """Whether the last transmission ended only because enough had been sent for one turn."""
        self.pace_until = 0.0
        """When the pacer lets the next packets go; 0 if it does not hold anything back."""
        self.rate = 0.0
        """Bytes a second that the peer has acknowledged lately; 0 if unknown."""
        self._pace_at = 0.0
        self._prr_delivered = 0
        self._prr_out = 0
        self._prr_flight = 0
        self._acked = Acked()
        self._header = b""
        self._crc_start = 0
        self.packets_sent = 0
        self.bytes_sent = 0
        self.sacks_received = 0

    def set_addressing(self, header: bytes) -> None:
        """Sets source port, destination port and verification tag, 8 bytes as on the wire."""
        self._header = header
        self._crc_start = checksum_of_header(header)

    def packet(self, chunks: bytes) -> bytes:
        """Returns a packet with the given chunks, the last of which is padded."""
        return b"".join((self._header, CHECKSUM.pack(crc32c(self._crc_start, chunks)), chunks))

    # --- limits for whoever fills the queue -------------------------------------------------------

    @property
    def queue_limit(self) -> int:
        """Bytes that should wait in the queue at most: about one bandwidth-delay product.

        The round trip is that without the path's queues. With less, the link may run dry before
        the owner fills it again; with more, messages wait here for nothing.
        """
        limit = self.controller.window
        if self.rate:
            limit = min(limit, int(self.rate * max(self.recovery.trip.minimum, QUEUE_TIME_MIN)))
        return min(max(limit, QUEUE_BYTES_MIN), QUEUE_BYTES_MAX)

    @property
    def message_limit(self) -> int:
        """Bytes of the largest message that holds nobody up for long (:data:`HOLD_TIME`)."""
        if self.interleaved or not self.rate:
            return MESSAGE_LIMIT_MAX
        return min(max(int(self.rate * HOLD_TIME), MESSAGE_LIMIT_MIN), MESSAGE_LIMIT_MAX)

    # --- SACKs ----------------------------------------------------------------------------------

    def receive_sack(
        self,
        cumulative: int,
        window: int,
        blocks: tuple[int, ...],
        duplicates: tuple[int, ...],
        now: float,
    ) -> None:
        """Takes a SACK; the fields are those of the chunk (RFC 9260 section 3.3.4)."""
        recovery = self.recovery
        flight = recovery.flight
        if not recovery.sack(cumulative, blocks, duplicates, now):
            return
        self.sacks_received += 1
        self.peer_window = window
        if not window:
            # RFC 9260 section 6.1 A: a peer that answers probes of its closed window is alive.
            recovery.timeouts = 0
        acked = recovery.acked_bytes
        if recovery.undone:
            self.controller.undo()
        if recovery.detect(now):
            self._enter_recovery(now, flight)
        if not acked and not recovery.losses:
            return
        event = self._acked
        event.now = now
        event.acked = acked
        event.lost = recovery.lost_bytes
        event.flight = flight
        event.in_recovery = recovery.episode and self._prr_flight > 0
        event.rtt = recovery.rtt_sample
        event.srtt = recovery.trip.smoothed
        event.min_rtt = recovery.trip.minimum
        event.rate = recovery.delivery.rate
        event.app_limited = recovery.delivery.limited
        event.round_start = recovery.delivery.round_start
        self.controller.acknowledged(event)
        if recovery.delivery.rate and (
            recovery.delivery.rate > self.rate or not recovery.delivery.limited
        ):
            self.rate += (recovery.delivery.rate - self.rate) / (8 if self.rate else 1)
        self._prr_delivered += acked

    def _enter_recovery(self, now: float, flight: int) -> None:
        self._prr_flight = max(flight, 1)
        self._prr_delivered = 0
        self._prr_out = 0
        self.controller.congestion(now, flight)

    def _window(self) -> int:
        """Returns how many bytes may be in flight now."""
        recovery = self.recovery
        window = self.controller.window
        if recovery.episode and self._prr_flight and self.controller.conserves:
            # RFC 6937 section 3.1, with the slow start reduction bound.
            flight = recovery.flight
            if flight > window:
                quota = self._prr_delivered * window // self._prr_flight - self._prr_out
            else:
                quota = self._prr_delivered - self._prr_out + self.packet_size
                quota = min(quota, window - flight)
            if not self._prr_out:
                quota = max(quota, self.packet_size)
            window = flight + max(quota, 0)
        return window

    # --- timers -----------------------------------------------------------------------------------

    @property
    def wake_at(self) -> float:
        """When :meth:`timer` has something to do; 0 if never."""
        recovery = self.recovery
        due = 0.0
        for at in (recovery.reorder_at, recovery.probe_at, recovery.rto_at, recovery.forwarding.at):
            if at and (not due or at < due):
                due = at
        if self.pace_until and (not due or self.pace_until < due):
            due = self.pace_until
        return due

    def timer(self, now: float) -> list[bytes]:
        """Does what is due. Returns a probe for the tail, to be sent whatever the window says."""
        recovery = self.recovery
        if self.pace_until and now >= self.pace_until:
            self.pace_until = 0.0
        if recovery.rto_at and now >= recovery.rto_at:
            flight = recovery.flight
            if flight and self.peer_window:
                self.controller.timeout(now, flight)
            self._prr_flight = 0
            recovery.timeout(now)
            return []
        if recovery.reorder_at and now >= recovery.reorder_at:
            flight = recovery.flight
            if recovery.detect(now):
                self._enter_recovery(now, flight)
        if recovery.probe_at and now >= recovery.probe_at:
            return self._probe(now)
        return []

    def _probe(self, now: float) -> list[bytes]:
        """Sends a tail loss probe (RFC 8985 section 7.3): something new, or the youngest again."""
        recovery = self.recovery
        chunk = recovery.last_in_flight()
        if chunk is None:
            recovery.probe_at = 0.0
            return []
        burst = recovery.burst(now)
        recovery.resent(chunk, burst)
        recovery.probed(now)
        return [self._count(self.packet(chunk.body))]

    def _count(self, packet: bytes) -> bytes:
        self.packets_sent += 1
        self.bytes_sent += len(packet)
        return packet

    # --- packets ----------------------------------------------------------------------------------

    def transmit(self, now: float, first: bytes = b"") -> list[bytes]:
        """Returns the packets that may be sent now, at most BURST_PACKETS and one.

        `first` are chunks that go into the first packet in any case (a SACK). If `more` is true
        then, call it again in the next turn; `wake_at` covers what the pacer holds back.
        """
        recovery = self.recovery
        packets: list[bytes] = []
        parts: list[bytes] = [first] if first else []
        room = self.packet_size - PACKET_HEADER - len(first)
        if 0.0 < recovery.forwarding.at <= now:
            entries = recovery.forward(now)
            chunk = forward_tsn(recovery.forwarding.point, entries, interleaved=self.interleaved)
            if len(chunk) > room:
                packets.append(self._count(self.packet(first)))
                parts = []
                room = self.packet_size - PACKET_HEADER
            parts.append(chunk)
            room -= len(chunk)
        allowance = self._allowance(now)
        flight = recovery.flight
        if allowance > 0 and (self.scheduler.queued or recovery.lost):
            burst = recovery.burst(now)
            if recovery.lost:
                room = self._retransmit(burst, allowance, packets, parts, room)
            allowance -= recovery.flight - flight
            if allowance > 0 and self.scheduler.queued and not recovery.lost:
                self._fill(now, burst, allowance, packets, parts, room)
                parts = []
        if parts:
            packets.append(self._count(self.packet(b"".join(parts))))
        sent = recovery.flight - flight
        if sent > 0:
            self._prr_out += sent
            recovery.transmitted(now)
            rate = self.controller.pacing_rate
            if rate:
                self._pace_at = max(self._pace_at, now - PACE_LATE_MAX) + sent / rate
        return packets

    def settle(self) -> None:
        """Ends a turn, after the owner had its chance to queue more.

        If nothing waits although more might be in flight, then it is the owner who has too little
        to send, not the path: what is measured of what is in flight now says little of the path.
        """
        recovery = self.recovery
        if not self.scheduler.queued and not recovery.lost:
            self.more = False
            if recovery.flight < self.controller.window:
                recovery.delivery.limited_until = recovery.delivery.delivered + max(
                    recovery.flight, 1
                )

    def _allowance(self, now: float) -> int:
        """Returns how many bytes may be added to what is in flight now."""
        recovery = self.recovery
        flight = recovery.flight
        self.more = False
        self.pace_until = 0.0
        if not self.scheduler.queued and not recovery.lost:
            return 0
        allowance = self._window() - flight
        # What is sent may be a packet more than is allowed here, but never more than fits the peer.
        fits = self.peer_window - flight - self.packet_size + 1
        if fits < allowance:
            allowance = fits
            # RFC 9260 section 6.1 A: with a closed window one chunk may be in flight, as a probe.
            if allowance <= 0 and not flight:
                return 1
        if allowance <= 0 or len(recovery) >= OUTSTANDING_MAX:
            return 0
        rate = self.controller.pacing_rate
        if rate:
            if now < self._pace_at and flight:
                self.pace_until = self._pace_at
                return 0
            late = min(max(now - self._pace_at, 0.0), PACE_LATE_MAX)
            quantum = max(rate * PACE_QUANTUM, PACE_PACKETS * self.packet_size) + late * rate
            if quantum < allowance:
                self.more = True
                allowance = int(quantum)
        burst = BURST_PACKETS * (self.packet_size - PACKET_HEADER)
        if allowance > burst:
            self.more = True
            return burst
        return allowance

    def _retransmit(
        self, burst: Burst, allowance: int, packets: list[bytes], parts: list[bytes], room: int
    ) -> int:
        """Puts lost chunks into packets; returns the room left in the one that is begun."""
        recovery = self.recovery
        full = self.packet_size - PACKET_HEADER
        while allowance > 0:
            chunk = recovery.next_lost()
            if chunk is None:
                break
            if chunk.size > room and parts:
                packets.append(self._count(self.packet(b"".join(parts))))
                parts.clear()
                room = full
            recovery.resent(chunk, burst)
            parts.append(chunk.body)
            room -= chunk.size
            allowance -= chunk.size
        return room

    def _fill(
        self,
        now: float,
        burst: Burst,
        allowance: int,
        packets: list[bytes],
        parts: list[bytes],
        room: int,
    ) -> None:
        """Puts fragments of waiting messages into packets, the one begun in `parts` included."""
        recovery = self.recovery
        scheduler = self.scheduler
        interleaved = self.interleaved
        header = I_DATA_HEADER if interleaved else DATA_HEADER
        full = self.packet_size - PACKET_HEADER
        whole = (full - header) & ~3
        head, crc_start = self._header, self._crc_start
        join, crc, checksum = b"".join, crc32c, CHECKSUM.pack
        pick, moved, sent = scheduler.pick, scheduler.sent, recovery.sent
        last_flags = LAST
        window = self.controller.window
        if (
            window <= IMMEDIATE_PACKETS * self.packet_size
            and recovery.flight + scheduler.queued + self.packet_size > window
        ):
            last_flags |= IMMEDIATE
        tsn, order = recovery.next_tsn, recovery.next_order
        end_of_bytes = self.bytes_sent
        before = len(packets)
        while allowance > 0:
            message = pick()
            if message is None:
                break
            if message.abandoned or 0.0 < message.expiry < now:
                self._expire(message, now, burst)
                tsn, order = recovery.next_tsn, recovery.next_order
                continue
            position = message.position
            size = message.size - position
            space = (room - header) & ~3
            if size > space:
                if space < FRAGMENT_MIN or size <= whole:
                    # Not split for the rest of a packet: it fits the next one, or nearly nothing
                    # would go here.
                    if parts:
                        body = parts[0] if len(parts) == 1 else join(parts)
                        packets.append(join((head, checksum(crc(crc_start, body)), body)))
                        end_of_bytes += PACKET_HEADER + len(body)
                        parts.clear()
                    room = full
                    size = min(size, whole)
                else:
                    size = space
            end = position + size
            flags = last_flags if end == message.size else 0
            if message.unordered:
                flags |= UNORDERED
            if not position:
                flags |= FIRST
                message.first_tsn = tsn
                self._number(message)
            message.last_tsn = tsn
            stream_id = message.stream.stream_id
            if interleaved:
                chunk_head = I_DATA_CHUNK.pack(
                    I_DATA,
                    flags,
                    I_DATA_HEADER + size,
                    tsn & TSN_MASK,
                    stream_id,
                    0,
                    message.number & TSN_MASK,
                    message.fragments if position else message.ppid,
                )
            else:
                chunk_head = DATA_CHUNK.pack(
                    DATA,
                    flags,
                    DATA_HEADER + size,
                    tsn & TSN_MASK,
                    stream_id,
                    message.number & 0xFFFF,
                    message.ppid,
                )
            body = chunk_head + message.data[position:end]
            if size & 3:
                body += PADDING[size & 3]
            sent(Chunk(tsn, body, message, order, burst))
            moved(message, size)
            tsn += 1
            order += 1
            parts.append(body)
            size = len(body)
            allowance -= size
            room -= size
        if parts:
            body = join(parts)
            packets.append(join((head, checksum(crc(crc_start, body)), body)))
            end_of_bytes += PACKET_HEADER + len(body)
        self.packets_sent += len(packets) - before
        self.bytes_sent = end_of_bytes

    def _number(self, message: Message) -> None:
        stream = message.stream
        if not self.interleaved:
            if message.unordered:
                message.number = 0
            else:
                message.number = stream.next_ssn
                stream.next_ssn += 1
        elif message.unordered:
            message.number = stream.next_unordered
            stream.next_unordered += 1
        else:
            message.number = stream.next_mid
            stream.next_mid += 1

    def _expire(self, message: Message, now: float, burst: Burst) -> None:
        """Gives a message up whose time is over before it was sent wholly (RFC 3758 3.5 A3).

        If some of it was sent, a TSN is used up for what was not, so that a FORWARD-TSN tells the
        peer, which could not know otherwise that the rest will never come.
        """
        recovery = self.recovery
        self.scheduler.drop(message)
        if message.first_tsn < 0:
            return
        chunk = Chunk(recovery.next_tsn, b"", message, recovery.next_order, burst)
        chunk.state = ABANDONED
        message.last_tsn = chunk.tsn
        recovery.sent(chunk)
        recovery.abandon(message, now)
