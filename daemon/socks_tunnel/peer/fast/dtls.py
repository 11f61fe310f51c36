"""DTLS in batches: the handshake is aiortc's, then the records go to OpenSSL directly.

aiortc hands each datagram through a queue, two coroutines and pyOpenSSL, and sends each record with
a system call. Here all that is not the handshake goes through a
:class:`~socks_tunnel.peer.fast.recordpath.RecordPath`.
"""

import asyncio
import logging
from collections.abc import Sequence
from typing import Any, Final

from aiortc import RTCCertificate, RTCIceTransport
from aiortc.rtcdtlstransport import DataReceiver, SRTPProtectionProfile, State
from aiortc.stats import RTCStatsReport, RTCTransportStats
from OpenSSL import SSL

from socks_tunnel.peer.fast.flights import Flight
from socks_tunnel.peer.fast.recordpath import DtlsCounters, RecordPath, SocketHandler
from socks_tunnel.peer.fast.records import DTLS_1_2, RECORD_OVERHEAD_MAX, Records
from socks_tunnel.peer.fast.udp import BatchedUdpTransport, take_over
from socks_tunnel.peer.ice.datagram_relay import is_channel_address
from socks_tunnel.peer.layered import CheckedDtlsTransport, Sha256Certificate
from socks_tunnel.protocol.addresses import parse_ip

_log = logging.getLogger(__name__)

IP_OVERHEAD: Final = {4: 20 + 8, 6: 40 + 8}
"""Bytes of the IP and UDP headers."""

TURN_OVERHEAD: Final = 4
"""Bytes of the ChannelData header (RFC 8656 section 12.4)."""


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
        self.fast = False
        """Whether the receiving side was taken over from aiortc."""
        self.probing_allowed = False
        """Whether packets leave with DF, so that their loss says something about the path's MTU."""
        self._event_loop = asyncio.get_running_loop()
        self._ice: Any = transport._connection  # noqa: SLF001
        self.path = RecordPath(self, self._ice._nominated)  # noqa: SLF001
        self._failure: Exception | None = None
        self._flight = Flight()
        self._repeating: asyncio.TimerHandle | None = None

    # --- state --------------------------------------------------------------------------------

    @property
    def counters(self) -> DtlsCounters:
        """What the records of this association did."""
        return self.path.counters

    @property
    def heard_at(self) -> float | None:
        """When the last authenticated packets came, by :func:`time.monotonic`."""
        return self.path.heard_at

    @property
    def udp(self) -> BatchedUdpTransport | None:
        """The socket that was taken over; None before, and while TURN carries the packets."""
        return self.path.udp

    @property
    def blocked(self) -> bool:
        """Whether packets wait because the socket takes nothing."""
        return self.path.blocked

    def _set_state(self, state: State) -> None:
        self.path.connected = state == State.CONNECTED
        super()._set_state(state)

    def _register_data_receiver(self, receiver: DataReceiver) -> None:
        super()._register_data_receiver(receiver)
        # An association of ours takes packets by its exchange; another one is a PacketReceiver too.
        above: Any = getattr(receiver, "exchange", receiver)
        self.path.receiver = above

    def _unregister_data_receiver(self, receiver: DataReceiver) -> None:
        super()._unregister_data_receiver(receiver)
        if self._data_receiver is None:
            self.path.receiver = None

    @property
    def packet_overhead(self) -> int:
        """Bytes that IP, UDP, TURN and DTLS add to a packet on the present path."""
        pair = self.path.pair or self._ice._nominated.get(1)  # noqa: SLF001
        version = 6 if pair is not None and ":" in pair.remote_addr[0] else 4
        turn = TURN_OVERHEAD if pair is not None and pair.local_candidate.type == "relay" else 0
        records = self.open_records().overhead if self.encrypted else RECORD_OVERHEAD_MAX
        if pair is not None and is_channel_address(parse_ip(pair.remote_addr[0])):
            return records  # TCP cuts what goes through it as the path wants
        return IP_OVERHEAD[version] + turn + records

    def open_records(self) -> Records:
        """Returns the record layer. Raises :class:`ConnectionError` before the handshake's end."""
        records = self.path.records
        if records is None:
            if self._ssl is None or not self.encrypted:
                raise ConnectionError("Cannot use DTLS records, not connected")
            records = self.path.records = Records(self._ssl)
        return records

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
        self.path.pair = None
        self.follow_pair()
        queue = self._ice._queue  # noqa: SLF001
        while not queue.empty():
            item = queue.get_nowait()
            if item is None:
                queue.put_nowait(None)
                break
            self._ice_data_received(*item)

    def follow_pair(self) -> None:
        """Adopts the candidate pair that ICE has nominated. Raises ConnectionError without one."""
        pair = self._ice._nominated.get(1)  # noqa: SLF001
        path = self.path
        if pair is path.pair and pair is not None:
            return
        if pair is None:
            raise ConnectionError("Cannot send encrypted data, not connected")
        path.pair = pair
        path.address = pair.remote_addr
        protocol = pair.protocol
        current = protocol.transport
        if isinstance(current, BatchedUdpTransport):
            path.udp = current
        elif self.fast:
            handler = SocketHandler(path, protocol)
            path.udp = take_over(protocol, current, handler, self._event_loop)
            if path.udp is not None:
                protocol.transport = path.udp
                path.sockets.append(path.udp)
        else:
            path.udp = None
        self.probing_allowed = path.udp is not None
        if self.fast and path.receiver is not None:
            path.receiver.path_changed()

    # --- receiving ----------------------------------------------------------------------------

    def _ice_data_received(self, data: bytes, component: int) -> None:
        """Takes a datagram that aioice received: through TURN, or on a socket of another pair."""
        if data and 19 < data[0] < 64:  # RFC 7983 section 7
            self.path.relayed(data)
        else:
            self._ice._queue.put_nowait((data, component))  # noqa: SLF001

    def closed_by_peer(self) -> None:
        """Ends the receive task as if the peer had closed, which it has."""
        _log.debug("the peer has closed the DTLS association")
        self._end(None)

    def failed(self, error: Exception) -> None:
        """Ends the receive task with the exception."""
        self.path.failed = True
        self._end(error)

    def _end(self, error: Exception | None) -> None:
        """Lets the receive task end: with `error`, or as when the peer has closed."""
        self._failure = self._failure or error
        self._ice._queue.put_nowait(None)  # noqa: SLF001

    # --- sending ------------------------------------------------------------------------------

    async def _send_data(self, data: bytes) -> None:
        self.path.send_packets((data,))

    def send_packets(self, packets: Sequence[bytes], *, fragment: bool = False) -> None:
        """Encrypts and sends whole SCTP packets; see :meth:`RecordPath.send_packets`."""
        self.path.send_packets(packets, fragment=fragment)

    def send_probe(self, packet: bytes) -> bool:
        """Sends one packet that is never fragmented; see :meth:`RecordPath.send_probe`."""
        return self.path.send_probe(packet)
