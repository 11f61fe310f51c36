"""DTLS in batches: the handshake is aiortc's, then the records go to OpenSSL directly.

aiortc hands each datagram through a queue, two coroutines and pyOpenSSL, and sends each record with
a system call. Here a batch of datagrams from one socket goes to OpenSSL, and its contents to SCTP,
in one turn of the event loop, in plain calls; the other way likewise.
"""

import asyncio
import logging
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol, cast

from aiortc import RTCCertificate, RTCIceTransport
from aiortc.rtcdtlstransport import SRTPProtectionProfile, State
from aiortc.stats import RTCStatsReport, RTCTransportStats
from OpenSSL import SSL

from socks_tunnel.peer.fast.flights import Flight
from socks_tunnel.peer.fast.records import (
    APPLICATION_DATA,
    DTLS_1_2,
    RECORD_HEADER,
    RECORD_OVERHEAD_MAX,
    RecordError,
    Records,
    count_single_records,
    cut,
    run_length,
)
from socks_tunnel.peer.fast.udp import Address, BatchedUdpTransport, take_over
from socks_tunnel.peer.ice.datagram_relay import is_channel_address
from socks_tunnel.peer.layered import CheckedDtlsTransport, Sha256Certificate
from socks_tunnel.protocol.addresses import parse_ip

_log = logging.getLogger(__name__)

PACKETS_MAX: Final = 64
"""SCTP packets handed up in one call, which one SACK answers."""

CALL_SECONDS: Final = 0.001
"""Seconds that a call of the packets' receiver may take. It gets half as many packets after a call
that took longer, and twice as many, up to :data:`PACKETS_MAX`, after one that took a quarter."""

TURN_SECONDS: Final = 0.002
"""Seconds of handing up in one turn of the event loop. The rest waits for the next turn, and the
socket is not read meanwhile: a link whose packets are dear costs the others at most this."""

RELAYED_PACKETS_MAX: Final = 4096
"""Packets that wait to be handed up. No socket that was taken over is read while packets wait, so
only those that come another way can be more; they are dropped and counted."""

IP_OVERHEAD: Final = {4: 20 + 8, 6: 40 + 8}
"""Bytes of the IP and UDP headers."""

TURN_OVERHEAD: Final = 4
"""Bytes of the ChannelData header (RFC 8656 section 12.4)."""


class PacketReceiver(Protocol):
    """The SCTP association above: plain calls on the event loop."""

    def receive_packets(self, packets: list[bytes]) -> None:
        """Takes 1 to :data:`PACKETS_MAX` decrypted packets; nothing about them was checked."""

    def turn_ended(self) -> None:
        """Learns that no more packets are handed up in this turn of the event loop."""

    def path_mtu_exceeded(self, size: int) -> None:
        """Learns that a packet of `size` bytes is too long for this machine's interface."""

    def transport_writable(self) -> None:
        """Learns that :attr:`FastDtlsTransport.blocked` is over."""

    def path_changed(self) -> None:
        """Learns that another ICE candidate pair carries the packets from now on."""


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


class PinnedCertificate(Sha256Certificate):
    """A certificate whose contexts negotiate DTLS 1.2 and nothing newer.

    DTLS 1.3 (RFC 9147) has another record header, which the joined records here do not have.
    """

    def _create_ssl_context(self, srtp_profiles: list[SRTPProtectionProfile]) -> SSL.Context:
        context = super()._create_ssl_context(srtp_profiles)
        context.set_max_proto_version(DTLS_1_2)
        return context


class FastDtlsTransport(CheckedDtlsTransport):
    """An :class:`RTCDtlsTransport` whose application data goes in batches.

    The handshake is aiortc's. When it is over, and nothing of it can need to be repeated, the UDP
    socket of the nominated pair is taken over and aiortc's receive task only waits for the end.
    What comes on other sockets of the connection, or through TURN, is taken datagram by datagram.

    An exception out of the receiver ends the transport, as in aiortc: its receive task ends.
    This class has many methods because it overrides those of aiortc's that touch the data path.
    """

    authentic = True
    """Whether each packet that is handed up is as the peer sent it, so that SCTP need not check."""

    def __init__(self, transport: RTCIceTransport, certificates: list[RTCCertificate]) -> None:
        super().__init__(transport, certificates)
        self.counters = DtlsCounters()
        self.fast = False
        """Whether the receiving side was taken over from aiortc."""
        self.heard_at: float | None = None
        """When the last authenticated packets came, by :func:`time.monotonic`."""
        self.probing_allowed = False
        """Whether packets leave with DF, so that their loss says something about the path's MTU."""
        self._event_loop = asyncio.get_running_loop()
        self._ice: Any = transport._connection  # noqa: SLF001
        self._udp: BatchedUdpTransport | None = None
        self._taken_over: list[BatchedUdpTransport] = []  # the present one, and those of paths left
        self._pair: Any = None
        self._address: Address = ()
        self._records: Records | None = None
        self._pending: deque[bytes] = deque()
        self._resumption: asyncio.Handle | None = None
        self._batch = PACKETS_MAX
        self._failure: Exception | None = None
        self._flight = Flight()
        self._repeating: asyncio.TimerHandle | None = None

    # --- state --------------------------------------------------------------------------------

    @property
    def _receiver(self) -> PacketReceiver | None:
        return cast("PacketReceiver | None", self._data_receiver)

    @property
    def udp(self) -> BatchedUdpTransport | None:
        """The socket that was taken over; None before, and while TURN carries the packets."""
        return self._udp

    @property
    def blocked(self) -> bool:
        """Whether packets wait because the socket takes nothing."""
        return self._udp is not None and self._udp.blocked

    @property
    def packet_overhead(self) -> int:
        """Bytes that IP, UDP, TURN and DTLS add to a packet on the present path."""
        pair = self._pair or self._ice._nominated.get(1)  # noqa: SLF001
        version = 6 if pair is not None and ":" in pair.remote_addr[0] else 4
        turn = TURN_OVERHEAD if pair is not None and pair.local_candidate.type == "relay" else 0
        records = self._openssl().overhead if self.encrypted else RECORD_OVERHEAD_MAX
        if pair is not None and is_channel_address(parse_ip(pair.remote_addr[0])):
            return records  # TCP cuts what goes through it as the path wants
        return IP_OVERHEAD[version] + turn + records

    def _openssl(self) -> Records:
        """Returns the record layer. Raises :class:`ConnectionError` before the handshake's end."""
        if self._records is None:
            if self._ssl is None or not self.encrypted:
                raise ConnectionError("Cannot use DTLS records, not connected")
            self._records = Records(self._ssl)
        return self._records

    def _get_stats(self) -> RTCStatsReport:
        report = super()._get_stats()
        stats = report[self._stats_id]
        assert isinstance(stats, RTCTransportStats)
        counters = self.counters
        stats.packetsSent += counters.sent_records
        stats.bytesSent += counters.sent_bytes
        stats.packetsReceived += counters.received_records
        stats.bytesReceived += counters.received_bytes
        return report

    # --- the handshake ------------------------------------------------------------------------

    async def _write_ssl(self) -> None:
        """Sends what OpenSSL has written, as aiortc does, and remembers it as part of a flight."""
        connection = self._ssl
        try:
            data = b"" if connection is None else connection.bio_read(1500)
        except SSL.Error:
            return  # nothing is there
        if not data:
            return
        await self.transport._send(data)  # noqa: SLF001 - as aiortc does
        private = vars(self)
        private["_RTCDtlsTransport__tx_bytes"] += len(data)
        private["_RTCDtlsTransport__tx_packets"] += 1
        if self._state == State.CONNECTING:
            self._flight.wrote(data, self._event_loop.time())
            self._arm_flight()

    def _arm_flight(self) -> None:
        if self._repeating is None and self._flight.due:
            delay = max(0.0, self._flight.due - self._event_loop.time())
            self._repeating = self._event_loop.call_later(delay, self._repeat_flight)

    def _repeat_flight(self) -> None:
        """Sends the last flight again while nothing shows that the peer has got it."""
        self._repeating = None
        pair = self._ice._nominated.get(1)  # noqa: SLF001
        last = self._state == State.CONNECTED and self._role == "server"
        done = self.counters.received_records > 0  # data has come: so is the peer's handshake
        if done or pair is None or not (self._state == State.CONNECTING or last):
            self._flight.over()
            return
        try:
            for datagram in self._flight.repeat(self._event_loop.time()):
                pair.protocol.transport.sendto(datagram, pair.remote_addr)
        except (OSError, RuntimeError) as error:
            _log.debug("a flight of the handshake cannot be repeated: %r", error)
        self._arm_flight()

    # --- from aiortc's path to this one -------------------------------------------------------

    async def _recv_next(self) -> None:
        self._flight.turn()
        if self._state == State.CONNECTED and self._data_receiver is not None and not self.fast:
            self._take_over_if_settled()
        if self.fast:
            try:
                # Only SRTP, which there is none of here, and the end come through aioice's queue.
                await self.transport._recv()  # noqa: SLF001
            except ConnectionError:
                if self._failure is not None:
                    raise self._failure from None
                raise
            return
        await super()._recv_next()

    def _take_over_if_settled(self) -> None:
        """Takes the receiving side over once no flight of the handshake can need to be repeated."""
        connection = self._ssl
        if connection is None or connection.DTLSv1_get_timeout() is not None:
            return
        if connection.get_protocol_version() != DTLS_1_2:
            return  # aiortc goes on as it does for itself; the pinned certificate forbids this
        self.fast = True
        # An attribute of this one connection: whatever aioice receives for it comes here.
        self._ice.data_received = self._ice_data_received
        self._pair = None
        self._follow_pair()
        queue = self._ice._queue  # noqa: SLF001
        while not queue.empty():
            item = queue.get_nowait()
            if item is None:
                queue.put_nowait(None)
                break
            self._ice_data_received(*item)

    def _follow_pair(self) -> None:
        """Adopts the candidate pair that ICE has nominated. Raises ConnectionError without one."""
        pair = self._ice._nominated.get(1)  # noqa: SLF001
        if pair is self._pair and pair is not None:
            return
        if pair is None:
            raise ConnectionError("Cannot send encrypted data, not connected")
        self._pair = pair
        self._address = pair.remote_addr
        protocol = pair.protocol
        current = protocol.transport
        if isinstance(current, BatchedUdpTransport):
            self._udp = current
        elif self.fast:
            self._udp = take_over(protocol, current, _Socket(self, protocol), self._event_loop)
            if self._udp is not None:
                protocol.transport = self._udp
                self._taken_over.append(self._udp)
        else:
            self._udp = None
        self.probing_allowed = self._udp is not None
        if self.fast and self._receiver is not None:
            self._receiver.path_changed()

    # --- receiving ----------------------------------------------------------------------------

    def datagrams_received(
        self, buffer: bytearray, size: int, segment: int, address: Address, protocol: Any
    ) -> None:
        """Takes datagrams from the socket of `protocol`; see :class:`DatagramReceiver`."""
        if count := count_single_records(buffer, size, segment):
            self._read_joined(buffer, size, segment, count)
            return
        for start in range(0, size, segment):
            datagram = bytes(buffer[start : min(start + segment, size)])
            if 19 < datagram[0] < 64:  # RFC 7983 section 7
                self._read_datagram(datagram)
            else:
                protocol.datagram_received(datagram, address)

    def _read_joined(self, data: bytes | bytearray, size: int, segment: int, records: int) -> None:
        """Decrypts datagrams that are one record each."""
        counters = self.counters
        taken = self._openssl().read_joined(data, size, segment, self._pending)
        counters.received_bytes += size
        counters.received_records += taken
        if taken != records:
            counters.refused_records += records - taken
            self._end_if_closed()

    def _read_datagram(self, datagram: bytes) -> None:
        """Decrypts one datagram, of which nothing is known but that its first byte means DTLS."""
        if self._state != State.CONNECTED:
            return
        size = len(datagram)
        if count_single_records(datagram, size, size):
            self._read_joined(datagram, size, size, 1)
            return
        counters = self.counters
        counters.odd_datagrams += 1
        counters.received_bytes += size
        records = self._openssl()
        counters.received_records += records.read_datagram(datagram, self._pending)
        for record in cut(records.written()):  # an alert, or our last flight again
            self._send_segments(record, len(record))
        self._end_if_closed()

    def _end_if_closed(self) -> None:
        if self._openssl().closed:
            _log.debug("the peer has closed the DTLS association")
            self._end(None)

    def _ice_data_received(self, data: bytes, component: int) -> None:
        """Takes a datagram that aioice received: through TURN, or on a socket of another pair."""
        if not data or not 19 < data[0] < 64:
            self._ice._queue.put_nowait((data, component))  # noqa: SLF001
            return
        if len(self._pending) >= RELAYED_PACKETS_MAX:
            self.counters.dropped_packets += 1
            return
        self._read_datagram(data)
        if self._pending and self._resumption is None:
            self._resumption = self._event_loop.call_soon(self._hand_up)

    def turn_ended(self) -> None:
        """Hands up what this turn brought."""
        if self._resumption is None:
            self._hand_up()

    def _hand_up(self) -> None:
        """Gives decrypted packets to the receiver, for a bounded time in this turn."""
        self._resumption = None
        pending = self._pending
        if pending:
            self.heard_at = time.monotonic()
        clock = time.perf_counter
        start = now = clock()
        handed = False
        while pending:
            receiver = self._receiver
            if receiver is None or self._failure is not None:
                pending.clear()
                break
            if now - start > TURN_SECONDS:
                self.counters.deferred_turns += 1
                self._resumption = self._event_loop.call_soon(self._hand_up)
                break
            if len(pending) <= self._batch:
                packets = list(pending)
                pending.clear()
            else:
                packets = [pending.popleft() for _ in range(self._batch)]
            handed = True
            try:
                receiver.receive_packets(packets)
            except Exception as error:  # noqa: BLE001 - the receive task ends with it
                self._end(error)
            before, now = now, clock()
            if now - before > CALL_SECONDS:
                self._batch = max(1, self._batch // 2)
            elif now - before < CALL_SECONDS / 4:
                self._batch = min(PACKETS_MAX, self._batch * 2)
        if handed and self._receiver is not None:
            self._receiver.turn_ended()
        for udp in self._taken_over:
            (udp.pause_reading if pending else udp.resume_reading)()

    def _end(self, error: Exception | None) -> None:
        """Lets the receive task end: with `error`, or as when the peer has closed."""
        self._failure = self._failure or error
        self._ice._queue.put_nowait(None)  # noqa: SLF001

    def packet_too_big(self, size: int) -> None:
        """Tells the association above that a datagram of `size` bytes did not fit the interface."""
        if self._receiver is not None:
            self._receiver.path_mtu_exceeded(size - self._openssl().overhead)

    def send_resumed(self) -> None:
        """Tells the association above that the socket takes packets again."""
        if self._receiver is not None:
            self._receiver.transport_writable()

    # --- sending ------------------------------------------------------------------------------

    async def _send_data(self, data: bytes) -> None:
        self.send_packets((data,))

    def send_packets(self, packets: Sequence[bytes], *, fragment: bool = False) -> None:
        """Encrypts and sends whole SCTP packets, in their order.

        Neighbours of one size share a system call. With `fragment` they leave without DF: they were
        cut for a wider path. Raises :class:`ConnectionError` without DTLS or a path of ICE.
        """
        records = self._check_connected()
        start = 0
        while start < len(packets):
            left = len(packets) - start
            count = run_length(packets, start, records.overhead) if left > 1 else 1
            run = packets[start : start + count]
            self._send_run(self._encrypt(records, run), count, fragment)
            start += count

    def send_probe(self, packet: bytes) -> bool:
        """Sends one packet that is never fragmented (RFC 8899 section 4.1).

        Returns whether the interface's MTU allows it. Raises as :meth:`send_packets` does.
        """
        records = self._check_connected()
        written = self._encrypt(records, (packet,))
        if self._udp is not None:
            return self._udp.send_probe(written, self._address)
        self._send_segments(written, len(written))
        return True

    def _check_connected(self) -> Records:
        if self._state != State.CONNECTED:
            raise ConnectionError("Cannot send encrypted data, not connected")
        self._follow_pair()
        return self._openssl()

    def _encrypt(self, records: Records, packets: Sequence[bytes]) -> memoryview:
        try:
            written = records.write(packets)
        except RecordError as error:
            self._end(error)
            raise ConnectionError("OpenSSL takes no more records for this association") from None
        self.counters.sent_records += len(packets)
        self.counters.sent_bytes += len(written)
        return written

    def _send_run(self, records: memoryview, count: int, fragment: bool) -> None:
        """Sends `count` records, all as long as the first but the last."""
        segment = RECORD_HEADER + int.from_bytes(records[11:13])
        if fragment and self._udp is not None:
            for start in range(0, len(records), segment):
                self._udp.send_fragmentable(records[start : start + segment], self._address)
        elif (
            records[0] == APPLICATION_DATA
            and (count - 1) * segment < len(records) <= count * segment
        ):
            self._send_segments(records, segment)
        else:  # an answer of OpenSSL's own is among them
            for record in cut(records):
                self._send_segments(record, len(record))

    def _send_segments(self, records: memoryview, segment: int) -> None:
        if self._udp is not None:
            self._udp.send_segments(records, segment, self._address)
            return
        transport = self._pair.protocol.transport
        for start in range(0, len(records), segment):
            transport.sendto(bytes(records[start : start + segment]), self._address)


class _Socket:
    """Binds one taken-over socket to its aioice protocol, which gets the STUN messages."""

    def __init__(self, owner: FastDtlsTransport, protocol: Any) -> None:
        self._owner = owner
        self._protocol = protocol
        self.turn_ended = owner.turn_ended
        self.packet_too_big = owner.packet_too_big
        self.send_resumed = owner.send_resumed

    def datagrams_received(
        self, buffer: bytearray, size: int, segment: int, address: Address
    ) -> None:
        """Takes datagrams of this socket; see :class:`DatagramReceiver`."""
        self._owner.datagrams_received(buffer, size, segment, address, self._protocol)
