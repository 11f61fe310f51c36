"""Packets out of messages: how the sender's chunks are cut, numbered and joined. No I/O, no clock.

What may be sent, and when, is the business of :mod:`socks_tunnel.peer.fast.sender`. TSNs are given
when a packet is made, so a fragment always has the size of the packet that takes it.
"""

from collections.abc import Callable
from typing import Final

from google_crc32c import extend as crc32c

from socks_tunnel.peer.fast.congestion import Controller
from socks_tunnel.peer.fast.outstanding import ABANDONED, Chunk
from socks_tunnel.peer.fast.rate import Burst
from socks_tunnel.peer.fast.recovery import Recovery
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
    ZERO_CHECKSUM,
    checksum_of_header,
)

FRAGMENT_MIN: Final = 64
"""Bytes of a packet's rest below which no fragment of a longer message is put there. Messages of
64 KiB leave rests of 244 bytes at an MTU of 1500, and a packet that is not full ends a segmented
send."""

IMMEDIATE_PACKETS: Final = 8
"""Packets of the window below which the last chunk of a message asks for a SACK at once (RFC 7053),
if more waits than the window lets go. A lone small message does not: its SACK comes with the
answer, or a few milliseconds later, and saves a packet and two wake-ups."""


class Packing:
    """The packets of one association as sender.

    `packet_size` is the size in bytes of the largest SCTP packet. Packets come out complete, with
    addressing and checksum, once :meth:`set_addressing` was called.
    """

    def __init__(self, initial_tsn: int, controller: Controller, packet_size: int) -> None:
        self.recovery = Recovery(initial_tsn)
        self.scheduler = Scheduler()
        self.controller = controller
        self.packet_size = packet_size
        self.interleaved = False
        self.checksums = True
        """Whether packets have a CRC32c; without, the peer accepts zero in its place (RFC 9653)."""
        self._header = b""
        self._bare_header = b""
        self._crc_start = 0
        self.packets_sent = 0
        self.bytes_sent = 0

    def set_addressing(self, header: bytes) -> None:
        """Sets source port, destination port and verification tag, 8 bytes as on the wire."""
        self._header = header
        self._bare_header = header + ZERO_CHECKSUM
        self._crc_start = checksum_of_header(header)

    def packet(self, chunks: bytes) -> bytes:
        """Returns a packet with the given chunks, the last of which is padded."""
        if self.checksums:
            return b"".join((self._header, CHECKSUM.pack(crc32c(self._crc_start, chunks)), chunks))
        return self._bare_header + chunks

    def count(self, packet: bytes) -> bytes:
        """Counts a packet that is sent; returns it."""
        self.packets_sent += 1
        self.bytes_sent += len(packet)
        return packet

    def finish(self, parts: list[bytes], packets: list[bytes]) -> None:
        """Makes a packet of the pieces of chunks in `parts`, which is empty then, and counts it."""
        if self.checksums:
            packet = self.packet(b"".join(parts))
        else:
            parts.insert(0, self._bare_header)
            packet = b"".join(parts)
        parts.clear()
        self.packets_sent += 1
        self.bytes_sent += len(packet)
        packets.append(packet)

    def put(self, chunk: Chunk, parts: list[bytes]) -> None:
        """Appends the pieces of a chunk: header, user data, padding."""
        message, flags, length, position = chunk.message, chunk.flags, chunk.length, chunk.position
        tsn, stream, number = chunk.tsn & TSN_MASK, message.stream.stream_id, message.number
        if self.interleaved:
            size, mid = I_DATA_HEADER + length, number & TSN_MASK
            word = chunk.fragment if position else message.ppid
            head = I_DATA_CHUNK.pack(I_DATA, flags, size, tsn, stream, 0, mid, word)
        else:
            size, ssn = DATA_HEADER + length, number & 0xFFFF
            head = DATA_CHUNK.pack(DATA, flags, size, tsn, stream, ssn, message.ppid)
        parts.append(head)
        parts.append(message.data[position : position + length])
        if length & 3:
            parts.append(PADDING[length & 3])

    def retransmit(
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
                self.finish(parts, packets)
                room = full
            recovery.resent(chunk, burst)
            self.put(chunk, parts)
            room -= chunk.size
            allowance -= chunk.size
        return room

    def fill(
        self,
        now: float,
        burst: Burst,
        allowance: int,
        packets: list[bytes],
        parts: list[bytes],
        room: int,
        pick: Callable[[], Message | None],
        *,
        split: bool = False,
    ) -> int:
        """Puts fragments of the messages that `pick` returns into packets.

        The packet begun in `parts` is filled first, and the last one is left there. Returns the
        room that is left in it. With `split`, a message is cut for the rest of a packet also if it
        fits a packet of its own.
        """
        recovery = self.recovery
        scheduler = self.scheduler
        interleaved = self.interleaved
        header = I_DATA_HEADER if interleaved else DATA_HEADER
        full = self.packet_size - PACKET_HEADER
        whole = (full - header) & ~3
        last_flags = LAST
        window = self.controller.window
        if (
            window <= IMMEDIATE_PACKETS * self.packet_size
            and recovery.flight + scheduler.queued + self.packet_size > window
        ):
            last_flags |= IMMEDIATE
        tsn, order = recovery.next_tsn, recovery.next_order
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
                if space < FRAGMENT_MIN or (size <= whole and not split):
                    # Not split for the rest of a packet: it fits the next one, or nearly nothing
                    # would go here.
                    if parts:
                        self.finish(parts, packets)
                    room = full
                    size = min(size, whole)
                else:
                    size = space
            flags = last_flags if position + size == message.size else 0
            if message.unordered:
                flags |= UNORDERED
            if not position:
                flags |= FIRST
                message.first_tsn = tsn
                self._number(message)
            message.last_tsn = tsn
            taken = header + size + (-size & 3)
            chunk = Chunk(
                tsn, taken, message, order, burst, flags, message.fragments, position, size
            )
            self.put(chunk, parts)
            recovery.sent(chunk)
            scheduler.sent(message, size)
            tsn += 1
            order += 1
            allowance -= taken
            room -= taken
        return room

    def fill_rest(
        self, now: float, burst: Burst, packets: list[bytes], parts: list[bytes], room: int
    ) -> int:
        """Puts fragments into the rest of the packet begun in `parts`, and begins no other one."""
        header = I_DATA_HEADER if self.interleaved else DATA_HEADER
        # As long as this is more than 0, there is room for a chunk of FRAGMENT_MIN.
        allowance = room - header - FRAGMENT_MIN
        return self.fill(
            now, burst, allowance, packets, parts, room, self.scheduler.pick, split=True
        )

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
        chunk = Chunk(recovery.next_tsn, 0, message, recovery.next_order, burst)
        chunk.state = ABANDONED
        message.last_tsn = chunk.tsn
        recovery.sent(chunk)
        recovery.abandon(message, now)
