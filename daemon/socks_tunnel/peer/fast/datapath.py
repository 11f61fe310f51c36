"""The data path of one association: packets in, packets and messages out. No I/O and no clock.

It joins the two halves, :class:`Receiver` and :class:`Sender`, with path MTU discovery, so that a
SACK travels with the DATA of the same turn. What is not data is handed to the owner, chunk by
chunk, in its place among the others.

What came is dealt with in two steps: :meth:`DataPath.receive` has the messages, and what SACKs say
waits for :meth:`DataPath.flush`, so that messages can be passed on before it.
"""

import struct
from collections.abc import Callable
from typing import Final

from google_crc32c import extend as crc32c

from socks_tunnel.peer.fast.budget import WindowBudget
from socks_tunnel.peer.fast.congestion import CongestionName
from socks_tunnel.peer.fast.controllers import controller
from socks_tunnel.peer.fast.pmtu import PathMtu
from socks_tunnel.peer.fast.receiver import Receiver
from socks_tunnel.peer.fast.sender import UNKNOWN, Sender
from socks_tunnel.peer.fast.wayback import stamp
from socks_tunnel.peer.fast.wire import (
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
    INIT,
    PACKET,
    PACKET_HEADER,
    SACK,
    SACK_BODY,
    SACK_HEADER,
    STAMP,
    STAMP_HEADER,
    WORD,
    ZERO_CHECKSUM,
    checksum_of_header,
    heartbeat_probe,
)
from socks_tunnel.protocol.errors import RemoteProtocolError

RARE_CHUNKS_MAX: Final = 8
"""Chunks other than DATA, SACK and FORWARD-TSN that are read of one packet: each may be answered by
a packet, so a peer that bundles hundreds would be amplified."""

BLACK_HOLE_TIMEOUTS: Final = 2
"""Time-outs in a row after which the path is suspected to drop large packets."""

WAITING_SACKS_MAX: Final = 64
"""SACKs that wait until the messages that came with them are passed on. A packet may have dozens;
those beyond this number have the ones before them dealt with at once."""

STAMPED_BYTES: Final = 1_000
"""Bytes of user data from which on their SACK is stamped. Less is no bulk, and needs no stamp."""

_PROBE_MAGIC: Final = b"PMTU"
_PROBE = struct.Struct("!4sL8s")

RareChunk = Callable[[int, int, bytes], None]


class DataPath:
    """See the top of this file.

    `secret` are 8 bytes that the peer cannot guess; they mark answers to probes of ours. `rare` is
    called with type, flags and value of each chunk that is not handled here.
    """

    __slots__ = (
        "_clock_offset",
        "_congestion",
        "_inbound_bare",
        "_inbound_crc",
        "_inbound_header",
        "_local_tag",
        "_rare",
        "_secret",
        "_waiting_sacks",
        "closed",
        "established",
        "malformed",
        "packets_received",
        "pmtu",
        "receiver",
        "sacks",
        "sender",
        "stamps",
        "takes_zero_checksums",
    )

    def __init__(
        self,
        *,
        local_tag: int,
        initial_tsn: int,
        overhead: int,
        congestion: CongestionName,
        budget: WindowBudget,
        secret: bytes,
        rare: RareChunk,
    ) -> None:
        self.pmtu = PathMtu(overhead)
        size = self.pmtu.packet_size
        self.receiver = Receiver(budget)
        self.sender = Sender(initial_tsn, controller(congestion, size), size)
        self.established = False
        """Whether data may be sent, and SACKs are listened to."""
        self.closed = False
        """Whether the association is over: nothing is taken any more."""
        self._congestion: CongestionName = congestion
        self.sacks: list[bytes] = []
        """Packets with SACKs that became due within a batch; :meth:`flush` returns them."""
        self.malformed = 0
        """Packets and chunks of the peer's that could not be read."""
        self.packets_received = 0
        # The fields of SACKs, when they came, and for how long they have waited on the way back.
        self._waiting_sacks: list[
            tuple[int, int, tuple[int, ...], tuple[int, ...], float, float]
        ] = []
        self.stamps = False
        """Whether the peer understands stamps of SACKs for bulk."""
        self._clock_offset = int(WORD.unpack_from(secret)[0])
        self._local_tag = local_tag
        self._secret = secret
        self._rare = rare
        self._inbound_header = b""
        self._inbound_bare = b""
        self._inbound_crc = 0
        self.takes_zero_checksums = False
        """Whether we have told the peer that packets may have zero in place of a CRC32c."""

    def set_addressing(self, inbound: bytes, outbound: bytes) -> None:
        """Sets the first 8 bytes of the peer's packets and of ours, ports and tag."""
        self._inbound_header = inbound
        self._inbound_bare = inbound + ZERO_CHECKSUM
        self._inbound_crc = checksum_of_header(inbound)
        self.sender.set_addressing(outbound)

    def set_extensions(
        self,
        *,
        interleaved: bool,
        partial_reliability: bool,
        batch_sacks: bool,
        stamps: bool,
        zero_checksums: bool,
    ) -> None:
        """Sets what both sides have announced in INIT and INIT ACK."""
        self.sender.interleaved = self.sender.scheduler.interleaved = interleaved
        self.receiver.interleaved = interleaved
        self.sender.partial_reliability = partial_reliability
        self.receiver.batch_sacks = batch_sacks
        self.stamps = stamps
        self.sender.checksums = not zero_checksums

    # --- in ---------------------------------------------------------------------------------------

    def receive(self, packets: list[bytes], now: float) -> bool:
        """Takes a batch of packets; returns whether a SACK is due for it.

        Complete messages are in `receiver.reassembly.ready` then; SACKs wait for
        :meth:`flush`. Raises :class:`RemoteProtocolError` if the association has to end
        because of them.
        """
        receiver = self.receiver
        bare = self._inbound_bare if self.takes_zero_checksums else b""
        for packet in packets:
            if self.closed:
                return False
            size = len(packet) - PACKET_HEADER
            if size < 4 or not (packet[:PACKET_HEADER] == bare or self._is_good(packet)):
                self.malformed += 1
                continue
            self.packets_received += 1
            if packet[PACKET_HEADER] == I_DATA and size > I_DATA_HEADER:
                # Nearly all packets are one I-DATA chunk.
                _, flags, length, tsn, stream, _, mid, word = I_DATA_CHUNK.unpack_from(
                    packet, PACKET_HEADER
                )
                if I_DATA_HEADER < length <= size < length + 4 and receiver.cumulative >= 0:
                    piece = packet[PACKET_HEADER + I_DATA_HEADER : PACKET_HEADER + length]
                    receiver.interleaved_data(tsn, flags, stream, mid, word, piece)
                    if receiver.packet_done():
                        self._sack_now()
                    continue
            self._receive_chunks(packet[PACKET_HEADER:], size, now)
        return receiver.batch_done(now, self.sender.recovery.trip.smoothed or None)

    def _receive_chunks(self, body: bytes, size: int, now: float) -> None:
        """Takes the chunks of a packet that was found good."""
        receiver = self.receiver
        position = 0
        rare = 0
        has_data = False
        waited = UNKNOWN
        while position + 4 <= size:
            kind, flags, length = CHUNK.unpack_from(body, position)
            end = position + length
            if length < 4 or end > size:
                self.malformed += 1
                break
            if kind == I_DATA:
                # RFC 9260 section 3.3.10.9: DATA without user data is answered by an ABORT.
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
                self._receive_sack(body, position, length, now, waited)
            elif kind == STAMP:
                if length == STAMP_HEADER:
                    word = int(WORD.unpack_from(body, position + 4)[0])
                    waited = self.sender.way_back.stamped(word, now)
            elif kind in (FORWARD_TSN, I_FORWARD_TSN):
                if length >= 8 and receiver.cumulative >= 0:
                    receiver.forward(body[position + 4 : end], interleaved=kind == I_FORWARD_TSN)
            elif kind == HEARTBEAT_ACK:
                self._receive_heartbeat_ack(body[position + 4 : end], now)
            else:
                rare += 1
                if rare > RARE_CHUNKS_MAX:
                    self.malformed += 1
                    break
                self._acknowledge()  # what is rare may depend on it
                self._rare(kind, flags, body[position + 4 : end])
                if self.closed:
                    return
            position = end + (-length & 3)
        if has_data and receiver.packet_done():
            self._sack_now()

    def _sack_now(self) -> None:
        self.sacks.append(self.sender.packet(self.receiver.sack(self._sack_room)))

    def _is_good(self, packet: bytes) -> bool:
        """Returns whether checksum and tag of a packet are right (RFC 9260 section 8.5)."""
        addressing, checksum = PACKET.unpack_from(packet)
        body = packet[PACKET_HEADER:]
        if addressing == self._inbound_header:
            return bool(checksum == crc32c(self._inbound_crc, body))
        if checksum != crc32c(checksum_of_header(addressing), body):
            return False
        tag = WORD.unpack_from(packet, 4)[0]
        if body[0] == INIT:
            # RFC 9260 section 4.3: INIT is alone in its packet, and its tag is 0.
            length = CHUNK.unpack_from(body, 0)[2]
            return bool(tag == 0 and length + (-length & 3) >= len(body))
        return bool(tag == self._local_tag)

    def _receive_sack(
        self, body: bytes, position: int, length: int, now: float, waited: float
    ) -> None:
        if not self.established:
            return
        if length < SACK_HEADER:
            self.malformed += 1
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
        if len(self._waiting_sacks) >= WAITING_SACKS_MAX:
            self._acknowledge()
        self._waiting_sacks.append((cumulative, window, blocks, tsns, now, waited))

    def _acknowledge(self) -> None:
        """Has the sender learn what the SACKs say that were received, each as of its time."""
        received, self._waiting_sacks = self._waiting_sacks, []
        for cumulative, window, blocks, tsns, now, waited in received:
            self.sender.receive_sack(cumulative, window, blocks, tsns, now, waited)

    # --- out --------------------------------------------------------------------------------------

    @property
    def _sack_room(self) -> int:
        return self.sender.packet_size - PACKET_HEADER - STAMP_HEADER

    def flush(self, now: float, *, due: bool, blocked: bool) -> list[bytes]:
        """Returns the packets to send now.

        A SACK is among them if one is `due`, or if one is owed and can travel with DATA. With
        `blocked` there is no DATA. Raises :class:`RemoteProtocolError` if the association has to
        end because of the SACKs that were received.
        """
        if self._waiting_sacks:
            self._acknowledge()
        sender, receiver = self.sender, self.receiver
        packets, self.sacks = self.sacks, []
        blocked = blocked or not self.established
        first = b""
        if due or (receiver.owes_sack and not blocked and sender.scheduler.queued):
            stamped = self.stamps and receiver.unacknowledged >= STAMPED_BYTES
            first = receiver.sack(self._sack_room)
            if stamped:
                first = stamp(now, self._clock_offset) + first
        if not blocked:
            packets += sender.transmit(now, first)
        elif first:
            packets.append(sender.packet(first))
        return packets

    @property
    def wake_at(self) -> float:
        """When :meth:`timer` has something to do; 0 if never."""
        wake = self.receiver.sack_at
        if self.established:
            for at in (self.sender.wake_at, self.pmtu.wake_at):
                if at and (not wake or at < wake):
                    wake = at
        return wake

    def timer(self, now: float) -> tuple[list[bytes], bool]:
        """Does what is due by now; returns packets to send at once, and whether a SACK is due.

        Raises :class:`RemoteProtocolError` if the peer does not answer any more.
        """
        due = 0.0 < self.receiver.sack_at <= now
        packets: list[bytes] = []
        if self.established:
            sender = self.sender
            if 0.0 < sender.wake_at <= now:
                packets = sender.timer(now)
                if sender.recovery.timeouts >= BLACK_HOLE_TIMEOUTS and self.pmtu.black_hole(now):
                    self.packet_size_changed()
        return packets, due

    def close(self) -> None:
        """Ends the path, and gives its memory back."""
        self.closed = True
        self.established = False
        self._waiting_sacks.clear()
        self.receiver.close()

    # --- path MTU ---------------------------------------------------------------------------------

    def probe(self, now: float) -> bytes:
        """Returns a path MTU probe to be sent now, or nothing."""
        size = self.pmtu.probe(now, self.sender.recovery.trip.smoothed) if self.established else 0
        if not size:
            return b""
        info = _PROBE.pack(_PROBE_MAGIC, size, self._secret)
        return self.sender.packet(heartbeat_probe(info, size))

    def _receive_heartbeat_ack(self, body: bytes, now: float) -> None:
        if len(body) < 4 + _PROBE.size:
            return
        magic, size, secret = _PROBE.unpack_from(body, 4)
        if magic == _PROBE_MAGIC and secret == self._secret and self.pmtu.acknowledged(size, now):
            self.packet_size_changed()

    def new_path(self, overhead: int) -> None:
        """Starts anew with what depends on the path: packet size, round trip, congestion."""
        self.pmtu.restart(overhead)
        self.sender.new_path(controller(self._congestion, self.pmtu.packet_size))
        self.packet_size_changed()

    def packet_size_changed(self) -> None:
        """Has the sender use the packet size that path MTU discovery has found."""
        size = self.pmtu.packet_size
        self.sender.packet_size = size
        self.sender.controller.set_packet_size(size)
