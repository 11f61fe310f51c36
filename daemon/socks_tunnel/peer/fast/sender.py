"""The sending half of an association's data path: packets out of messages. No I/O, no clock.

What may be sent now is the smallest of the congestion window, what recovery allows (proportional
rate reduction, RFC 9937), what the peer's receive window allows, and the pacer. What is sent is
decided in this order: chunks that the receiving half wants to send (SACK), FORWARD-TSN, control
messages and datagrams, what was lost, then new fragments as the scheduler picks them. TSNs are
given when a packet is made, so a fragment always has the size of the packet that takes it.

Control messages and datagrams wait neither for the pacer nor for the congestion window; see
:mod:`socks_tunnel.peer.fast.urgent`.
"""

from collections.abc import Callable
from typing import Final

from google_crc32c import extend as crc32c

from socks_tunnel.peer.fast.congestion import Acked, Controller
from socks_tunnel.peer.fast.limits import message_limit, queue_limit
from socks_tunnel.peer.fast.outstanding import ABANDONED, Chunk
from socks_tunnel.peer.fast.pacer import Pacer
from socks_tunnel.peer.fast.rate import Burst
from socks_tunnel.peer.fast.recovery import OUTSTANDING_MAX, Recovery
from socks_tunnel.peer.fast.reduction import Reduction
from socks_tunnel.peer.fast.streams import Message, Scheduler
from socks_tunnel.peer.fast.urgent import URGENT_PACKETS, UrgentWindow
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

FRAGMENT_MIN: Final = 256
"""Bytes of a packet's rest below which no fragment of a longer message is put there."""

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
        self.pacer = Pacer()
        self.rate = 0.0
        """Bytes a second that the peer has acknowledged lately; 0 if unknown."""
        self._reduction = Reduction()
        self._urgent = UrgentWindow()
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
        """Bytes that should wait in the queue at most: about one bandwidth-delay product."""
        return queue_limit(self.controller.window, self.rate, self.recovery.trip.minimum)

    @property
    def message_limit(self) -> int:
        """Bytes of the largest message that holds nobody up for long."""
        return message_limit(0.0 if self.interleaved else self.rate)

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
        event.in_recovery = recovery.episode and self._reduction.active
        event.paced = self.pacer.until > 0
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
        self._reduce(acked, safe=recovery.moved and not recovery.losses)

    def _enter_recovery(self, now: float, flight: int) -> None:
        self._reduction.begin(flight)
        self.controller.congestion(now, flight)

    def _reduce(self, acked: int, *, safe: bool) -> None:
        """Computes what may be sent in an episode after a SACK, or after losses were found."""
        reduction, recovery = self._reduction, self.recovery
        reduction.active = reduction.active and recovery.episode
        if reduction.active:
            window, packet = self.controller.window, self.packet_size
            reduction.delivered(
                acked, flight=recovery.flight, window=window, packet=packet, safe=safe
            )

    # --- timers -----------------------------------------------------------------------------------

    @property
    def wake_at(self) -> float:
        """When :meth:`timer` has something to do; 0 if never."""
        recovery = self.recovery
        due = self.pacer.until
        probe_at, forward_at = recovery.probing.at, recovery.forwarding.at
        for at in (recovery.reorder_at, probe_at, recovery.rto_at, forward_at):
            if at and (not due or at < due):
                due = at
        return due

    def timer(self, now: float) -> list[bytes]:
        """Does what is due. Returns a probe, to be sent whatever the window says."""
        recovery = self.recovery
        if now >= self.pacer.until:
            self.pacer.until = 0.0
        if recovery.rto_at and now >= recovery.rto_at:
            flight = recovery.flight
            if flight and self.peer_window:
                self.controller.timeout(now, flight)
            self._reduction.end()
            recovery.timeout(now)
            return []
        if recovery.reorder_at and now >= recovery.reorder_at:
            flight = recovery.flight
            if recovery.detect(now):
                self._enter_recovery(now, flight)
            if recovery.losses:
                self._reduce(0, safe=False)
        if recovery.probing.at and now >= recovery.probing.at:
            if self.peer_window:
                return self._probe(now)
            recovery.probing.at = 0.0  # a closed window is probed by the time-out
        return []

    def _probe(self, now: float) -> list[bytes]:
        """Breaks the silence by a chunk that was sent before, or else by a FORWARD-TSN."""
        recovery = self.recovery
        chunk = recovery.probe()
        if chunk is None:
            if recovery.flight > URGENT_PACKETS * self.packet_size:
                # More than anybody may send unasked was lost, or its SACKs were.
                self.controller.congestion(now, recovery.flight)
            recovery.give_up(now)
            recovery.probed(now)
            return []
        recovery.resent(chunk, recovery.burst(now))
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
        urgent = self.scheduler.urgent
        if urgent or (allowance > 0 and (self.scheduler.queued or recovery.lost)):
            burst = recovery.burst(now)
            if urgent:
                room = self._send_urgent(now, burst, allowance, packets, parts, room)
            allowance -= recovery.flight - flight
            if allowance > 0 and recovery.lost:
                before = recovery.flight
                room = self._retransmit(burst, allowance, packets, parts, room)
                allowance -= recovery.flight - before
            if allowance > 0 and self.scheduler.queued and not recovery.lost:
                self._fill(now, burst, allowance, packets, parts, room, self.scheduler.pick)
        if parts:
            packets.append(self._count(self.packet(b"".join(parts))))
        sent = recovery.flight - flight
        if sent > 0:
            self._reduction.sent(sent)
            recovery.transmitted(now)
            rate = self.controller.pacing_rate
            if rate:
                self.pacer.sent(now, rate, sent)
        return packets

    def _send_urgent(
        self,
        now: float,
        burst: Burst,
        allowance: int,
        packets: list[bytes],
        parts: list[bytes],
        room: int,
    ) -> int:
        """Puts control messages and datagrams into packets; returns the room left in the last."""
        recovery = self.recovery
        first, flight = recovery.next_tsn, recovery.flight
        # As in _allowance: never more than fits the peer.
        fits = self.peer_window - flight - self.packet_size + 1
        own = min(self._urgent.room(self.packet_size), fits)
        limit = max(allowance, own if len(recovery) < OUTSTANDING_MAX else 0)
        if limit > 0:
            pick = self.scheduler.pick_urgent
            room = self._fill(now, burst, limit, packets, parts, room, pick)
            if recovery.flight - flight > allowance:
                self._urgent.sent(recovery.since(first))
        return room

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
        self.pacer.until = 0.0
        if not self.scheduler.queued and not recovery.lost:
            return 0
        if self._reduction.active and recovery.episode and self.controller.conserves:
            allowance = self._reduction.quota
        else:
            allowance = self.controller.window - flight
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
            quantum = self.pacer.quantum(now, rate, self.packet_size, idle=not flight)
            if not quantum:
                return 0
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
        pick: Callable[[], Message | None],
    ) -> int:
        """Puts fragments of the messages that `pick` returns into packets.

        The packet begun in `parts` is filled first, and the last one is left there. Returns the
        room that is left in it.
        """
        recovery = self.recovery
        scheduler = self.scheduler
        interleaved = self.interleaved
        header = I_DATA_HEADER if interleaved else DATA_HEADER
        full = self.packet_size - PACKET_HEADER
        whole = (full - header) & ~3
        head, crc_start = self._header, self._crc_start
        join, crc, checksum = b"".join, crc32c, CHECKSUM.pack
        moved, sent = scheduler.sent, recovery.sent
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
        self.packets_sent += len(packets) - before
        self.bytes_sent = end_of_bytes
        return room

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
