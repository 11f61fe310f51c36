"""The path of DTLS records between a UDP socket and an association, in batches.

    send_packets(list)                            receive_packets(list)        (SCTP)
            |                                               ^
     records.Records, a record each                 records.Records
            v                                               |
     udp.send_segments(joined)                    datagrams_received(joined)   (UDP)

A batch of datagrams from one socket goes to OpenSSL, and its contents to SCTP, in one turn of the
event loop, in plain calls; the other way likewise. What is rare (the handshake, the choice of a
path, the end) is the business of :class:`socks_tunnel.peer.fast.dtls.FastDtlsTransport`, which has
a :class:`RecordPath`. That class inherits from one of aiortc's and cannot be compiled; this one is
(docs/adr/0045).
"""

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol

from socks_tunnel.peer.fast.records import (
    APPLICATION_DATA,
    RECORD_HEADER,
    RecordError,
    Records,
    count_single_records,
    cut,
    run_length,
)
from socks_tunnel.peer.fast.udp import Address, BatchedUdpTransport

PACKETS_MAX: Final = 64
"""SCTP packets handed up in one call, which one SACK answers."""

CALL_SECONDS: Final = 0.001
"""Seconds that a call of the packets' receiver may take. It gets half as many packets after a call
that took longer, and twice as many, up to :data:`PACKETS_MAX`, after one that took a quarter."""

TURN_SECONDS: Final = 0.002
"""Seconds of handing up in one turn of the event loop. The rest waits for the next turn, and the
socket is not read meanwhile: a link whose packets are dear costs the others at most this."""

RELAYED_PACKETS_MAX = 4096
"""Packets that wait to be handed up. No socket that was taken over is read while packets wait, so
only those that come another way can be more; they are dropped and counted. (A test makes it small,
so it is not Final, which would be compiled in.)"""


class PacketReceiver(Protocol):
    """The SCTP association above: plain calls on the event loop."""

    def receive_packets(self, packets: list[bytes]) -> None:
        """Takes 1 to :data:`PACKETS_MAX` decrypted packets; nothing about them was checked."""

    def turn_ended(self) -> None:
        """Learns that no more packets are handed up in this turn of the event loop."""

    def path_mtu_exceeded(self, size: int) -> None:
        """Learns that a packet of `size` bytes is too long for this machine's interface."""

    def transport_writable(self) -> None:
        """Learns that :attr:`RecordPath.blocked` is over."""

    def path_changed(self) -> None:
        """Learns that another ICE candidate pair carries the packets from now on."""


class PathOwner(Protocol):
    """What has a :class:`RecordPath`, and knows of the handshake and of the candidate pairs."""

    def follow_pair(self) -> None:
        """Adopts the nominated pair, into the path's fields. Raises :class:`ConnectionError`."""

    def open_records(self) -> Records:
        """Returns the record layer. Raises :class:`ConnectionError` before the handshake's end."""

    def closed_by_peer(self) -> None:
        """Learns that the peer has sent close_notify."""

    def failed(self, error: Exception) -> None:
        """Learns of an exception that ends the transport: of the receiver's, or of the records."""


@dataclass(slots=True)
class DtlsCounters:
    """What one association's records did."""

    sent_records: int = 0
    sent_bytes: int = 0
    received_records: int = 0
    received_bytes: int = 0
    odd_datagrams: int = 0
    """Datagrams that were not exactly one record of application data: alerts, repeated handshake
    records, and whatever strangers send."""
    refused_records: int = 0
    """Records in well-formed datagrams that OpenSSL did not take: forged, repeated or too old."""
    dropped_packets: int = 0
    """Decrypted packets dropped because :data:`RELAYED_PACKETS_MAX` waited."""
    deferred_turns: int = 0
    """Turns that ended with packets left because :data:`TURN_SECONDS` were over."""


class RecordPath:
    """See the top of this file. `nominated` has the candidate pair in use, of component 1 (aioice).

    The owner sets :attr:`connected`, :attr:`receiver`, and in :meth:`PathOwner.follow_pair` the
    fields of the pair.
    """

    def __init__(self, owner: PathOwner, nominated: dict[int, Any]) -> None:
        self.counters = DtlsCounters()
        self.connected = False
        """Whether the handshake is over and nobody has closed."""
        self.receiver: PacketReceiver | None = None
        self.failed = False
        """Whether an exception has ended the transport; the receiver gets nothing more."""
        self.heard_at: float | None = None
        """When the last authenticated packets came, by :func:`time.monotonic`."""
        self.pair: Any = None
        self.address: Address = ()
        self.udp: BatchedUdpTransport | None = None
        """The socket that was taken over; None before, and while TURN carries the packets."""
        self.sockets: list[BatchedUdpTransport] = []
        """All that were taken over: the present one, and those of paths that were left."""
        self.records: Records | None = None
        self.pending: list[bytes] = []
        self.batch = PACKETS_MAX
        self._owner = owner
        self._nominated = nominated
        self._loop = asyncio.get_running_loop()
        self._resumption: asyncio.Handle | None = None

    @property
    def blocked(self) -> bool:
        """Whether packets wait because the socket takes nothing."""
        udp = self.udp
        return udp is not None and udp.blocked

    def _open(self) -> Records:
        records = self.records
        return self._owner.open_records() if records is None else records

    # --- receiving ----------------------------------------------------------------------------

    def datagrams_received(
        self, buffer: bytearray, size: int, segment: int, address: Address, protocol: Any
    ) -> None:
        """Takes datagrams from the socket of `protocol`; see :class:`DatagramReceiver`."""
        count = count_single_records(buffer, size, segment)
        if count:
            self._read_joined(buffer, size, segment, count)
            return
        for start in range(0, size, segment):
            datagram = bytes(buffer[start : min(start + segment, size)])
            if 19 < datagram[0] < 64:  # RFC 7983 section 7
                self.read_datagram(datagram)
            else:
                protocol.datagram_received(datagram, address)

    def _read_joined(self, data: bytes | bytearray, size: int, segment: int, records: int) -> None:
        """Decrypts datagrams that are one record each. After the end they count for nothing."""
        if not self.connected:
            return
        counters = self.counters
        taken = self._open().read_joined(data, size, segment, self.pending)
        counters.received_bytes += size
        counters.received_records += taken
        if taken != records:
            counters.refused_records += records - taken
            self._end_if_closed()

    def read_datagram(self, datagram: bytes) -> None:
        """Decrypts one datagram, of which nothing is known but that its first byte means DTLS."""
        if not self.connected:
            return
        size = len(datagram)
        if count_single_records(datagram, size, size):
            self._read_joined(datagram, size, size, 1)
            return
        counters = self.counters
        counters.odd_datagrams += 1
        counters.received_bytes += size
        records = self._open()
        counters.received_records += records.read_datagram(datagram, self.pending)
        for record in cut(records.written()):  # an alert, or our last flight again
            self._send_segments(record, len(record))
        self._end_if_closed()

    def _end_if_closed(self) -> None:
        records = self._open()
        if records.failure is not None:
            self._owner.failed(records.failure)
        elif records.closed:
            self._owner.closed_by_peer()

    def relayed(self, datagram: bytes) -> None:
        """Takes a datagram of DTLS that came through TURN, or on a socket of another pair."""
        if len(self.pending) >= RELAYED_PACKETS_MAX:
            self.counters.dropped_packets += 1
            return
        self.read_datagram(datagram)
        if self.pending and self._resumption is None:
            self._resumption = self._loop.call_soon(self.hand_up)

    def turn_ended(self) -> None:
        """Hands up what this turn brought."""
        if self._resumption is None:
            self.hand_up()

    def hand_up(self) -> None:
        """Gives decrypted packets to the receiver, for a bounded time in this turn."""
        self._resumption = None
        pending = self.pending
        if pending:
            self.heard_at = time.monotonic()
        start = now = time.perf_counter()
        handed = False
        while pending:
            receiver = self.receiver
            if receiver is None or self.failed:
                pending.clear()
                break
            if now - start > TURN_SECONDS:
                self.counters.deferred_turns += 1
                self._resumption = self._loop.call_soon(self.hand_up)
                break
            batch = self.batch
            packets = pending[:batch]
            del pending[:batch]
            handed = True
            try:
                receiver.receive_packets(packets)
            except Exception as error:  # noqa: BLE001 - the receive task ends with it
                self._owner.failed(error)
            before, now = now, time.perf_counter()
            if now - before > CALL_SECONDS:
                self.batch = max(1, batch // 2)
            elif now - before < CALL_SECONDS / 4:
                self.batch = min(PACKETS_MAX, batch * 2)
        if handed and self.receiver is not None and not self.failed:
            self.receiver.turn_ended()
        for udp in self.sockets:
            if pending:
                udp.pause_reading()
            else:
                udp.resume_reading()

    # --- what the socket tells ----------------------------------------------------------------

    def packet_too_big(self, size: int) -> None:
        """Tells the association above that a datagram of `size` bytes did not fit the interface."""
        if self.receiver is not None:
            self.receiver.path_mtu_exceeded(size - self._open().overhead)

    def send_resumed(self) -> None:
        """Tells the association above that the socket takes packets again."""
        if self.receiver is not None:
            self.receiver.transport_writable()

    # --- sending ------------------------------------------------------------------------------

    def send_packets(self, packets: Sequence[bytes], *, fragment: bool = False) -> None:
        """Encrypts and sends whole SCTP packets, in their order.

        Neighbours of one size share a system call. With `fragment` they leave without DF, as
        packets do that were cut for a path that has become narrower. Raises
        :class:`ConnectionError` if DTLS is not connected or ICE has no path.
        """
        records = self._check_connected()
        total = len(packets)
        if total == 1:
            self._send_run(self._encrypt(records, packets), 1, fragment)
            return
        start = 0
        while start < total:
            count = run_length(packets, start, records.overhead) if total - start > 1 else 1
            run = packets[start : start + count]
            self._send_run(self._encrypt(records, run), count, fragment)
            start += count

    def send_probe(self, packet: bytes) -> bool:
        """Sends one packet that is never fragmented (RFC 8899 section 4.1).

        Returns whether the interface's MTU allows it. Raises as :meth:`send_packets` does.
        """
        records = self._check_connected()
        written = self._encrypt(records, (packet,))
        if self.udp is not None:
            return self.udp.send_probe(written, self.address)
        self._send_segments(written, len(written))
        return True

    def _check_connected(self) -> Records:
        if not self.connected:
            raise ConnectionError("Cannot send encrypted data, not connected")
        pair = self._nominated.get(1)
        if pair is None or pair is not self.pair:
            self._owner.follow_pair()
        return self._open()

    def _encrypt(self, records: Records, packets: Sequence[bytes]) -> memoryview:
        try:
            written = records.write(packets)
        except RecordError as error:
            self._owner.failed(error)
            raise ConnectionError("OpenSSL takes no more records for this association") from None
        counters = self.counters
        counters.sent_records += len(packets)
        counters.sent_bytes += len(written)
        return written

    def _send_run(self, records: memoryview, count: int, fragment: bool) -> None:
        """Sends `count` records, all as long as the first but the last."""
        size = len(records)
        segment = RECORD_HEADER + (int(records[11]) << 8 | int(records[12]))
        if fragment and self.udp is not None:
            for start in range(0, size, segment):
                self.udp.send_fragmentable(records[start : start + segment], self.address)
        elif records[0] == APPLICATION_DATA and (count - 1) * segment < size <= count * segment:
            self._send_segments(records, segment)
        else:  # an answer of OpenSSL's own is among them
            for record in cut(records):
                self._send_segments(record, len(record))

    def _send_segments(self, records: memoryview, segment: int) -> None:
        if self.udp is not None:
            self.udp.send_segments(records, segment, self.address)
            return
        transport = self.pair.protocol.transport
        for start in range(0, len(records), segment):
            transport.sendto(bytes(records[start : start + segment]), self.address)


class SocketHandler:
    """Binds one taken-over socket to its aioice protocol, which gets the STUN messages."""

    def __init__(self, path: RecordPath, protocol: Any) -> None:
        self._path = path
        self._protocol = protocol

    def datagrams_received(
        self, buffer: bytearray, size: int, segment: int, address: Address
    ) -> None:
        """Takes datagrams of this socket; see :class:`DatagramReceiver`."""
        self._path.datagrams_received(buffer, size, segment, address, self._protocol)

    def turn_ended(self) -> None:
        """Has the path hand up what this turn brought."""
        self._path.turn_ended()

    def packet_too_big(self, size: int) -> None:
        """Passes on that a datagram did not fit the interface."""
        self._path.packet_too_big(size)

    def send_resumed(self) -> None:
        """Passes on that the socket takes datagrams again."""
        self._path.send_resumed()
