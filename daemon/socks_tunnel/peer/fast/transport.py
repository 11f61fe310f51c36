"""The transport over the fast path: its messages go to our own SCTP, a list for each channel."""

from typing import Final

from aiortc import RTCConfiguration, RTCDataChannel, RTCDtlsTransport, RTCPeerConnection

from socks_tunnel.peer.aiortc_private import ice_connection
from socks_tunnel.peer.channels import LANE_LABELS, LANES, channel_for, lane_of
from socks_tunnel.peer.fast.congestion import CongestionName
from socks_tunnel.peer.fast.connection import FastPeerConnection
from socks_tunnel.peer.fast.dtls import FastDtlsTransport
from socks_tunnel.peer.fast.sctp import FastSctpTransport
from socks_tunnel.peer.fast.stall import Stall
from socks_tunnel.peer.ice import IceSettings, drops
from socks_tunnel.peer.ice.connection import IceConnection
from socks_tunnel.peer.over_aiortc import HEADER_SIZE, AiortcTransport
from socks_tunnel.peer.transport import QUEUE_LIMIT, Role, TransportStats

UDP_OVERHEAD: Final = 28
"""Bytes of the IPv4 and UDP headers, which an MTU of UDP payloads does not count."""


class FastTransport(AiortcTransport):
    """Fulfils :class:`socks_tunnel.peer.transport.Transport`. Made on the loop that it lives on.

    `name` is for logs, `congestion` names the controller of the sending side. Raises
    :class:`ValueError` for ICE servers that cannot be used.
    """

    def __init__(
        self,
        role: Role,
        ice: IceSettings,
        *,
        name: str,
        lanes: int = LANES,
        congestion: CongestionName = "cubic",
    ) -> None:
        super().__init__(role, ice, name=name, lanes=lanes, make=self._make)
        self._defer_inbox = False  # sctp_turn_ended hands on
        self._congestion: CongestionName = congestion
        self._sctp: FastSctpTransport | None = None
        self._stall = Stall()
        self._silent = 0.0

    def _make(self, configuration: RTCConfiguration) -> RTCPeerConnection:
        return FastPeerConnection(configuration, sctp=self._make_sctp)

    def _make_sctp(self, dtls: RTCDtlsTransport) -> FastSctpTransport:
        self._sctp = FastSctpTransport(dtls, congestion=self._congestion)
        self._sctp.attach(self)
        self._sctp.exchange.shared_labels = LANE_LABELS
        self._stall = self._sctp.path.sender.recovery.stall
        return self._sctp

    @property
    def _dtls(self) -> FastDtlsTransport | None:
        dtls = None if self._sctp is None else self._sctp.transport
        return dtls if isinstance(dtls, FastDtlsTransport) else None

    @property
    def heard_at(self) -> float | None:
        """When the last authenticated packet came, by :func:`time.monotonic`."""
        return None if self._dtls is None else self._dtls.heard_at

    @property
    def seen_at(self) -> float | None:
        """When the peer has last answered a check of consent, by :func:`time.monotonic`."""
        pc = self._connection.pc
        ice = None if pc is None else ice_connection(pc)
        return ice.seen_at if isinstance(ice, IceConnection) else None

    @property
    def queue_limit(self) -> int:
        """Bytes that are worth having in it: about what the path holds."""
        return QUEUE_LIMIT if self._sctp is None else self._sctp.queue_limit

    @property
    def stats(self) -> TransportStats:
        """Figures of this moment."""
        sctp, dtls = self._sctp, self._dtls
        if sctp is None or dtls is None:
            return TransportStats()
        figures, records = sctp.snapshot(), dtls.counters
        return TransportStats(
            rtt=figures.rtt or None,
            rtt_min=figures.rtt_min or None,
            rtt_variation=figures.rtt_variation or None,
            cwnd=figures.cwnd,
            outstanding=figures.outstanding,
            queued=figures.queued,
            delivery_rate=figures.delivery_rate or None,
            retransmissions=figures.retransmissions,
            timeouts=figures.timeouts,
            sacks_received=figures.sacks_received,
            sacks_sent=figures.sacks_sent,
            packets_sent=records.sent_records,
            packets_received=records.received_records,
            bytes_sent=records.sent_bytes,
            bytes_received=records.received_bytes,
            datagrams_dropped=self._dropped,
            dropped={
                "unauthentic": records.refused_records,
                "backlog": records.dropped_packets,
                "window": figures.dropped,
                **drops(self._connection.pc),
            },
            mtu=figures.packet_size + dtls.packet_overhead - UDP_OVERHEAD,
        )

    # --- sending ------------------------------------------------------------------------------

    def send_early(self, message: bytes) -> bool:
        """Sends a message on `control` behind the opening of the channels."""
        if self.state != "connecting" or self._sctp is None or self._control is None:
            return False
        self._sctp.send_after_openings(self._control, message)
        return True

    def send_many(self, messages: list[bytes]) -> None:
        """Takes messages for the channels of their types."""
        if self.state == "down" or self._sctp is None:
            return
        limit = self.max_message
        sizes = list(map(len, messages))
        if sizes and (min(sizes) < HEADER_SIZE or max(sizes) > limit):
            self._check_sizes(messages, limit)
        batches: dict[RTCDataChannel | None, list[bytes]] = {}
        up = self.state == "up"
        taken = 0
        for message, size in zip(messages, sizes, strict=True):
            kind = channel_for(message[0])
            channel: RTCDataChannel | None
            if kind == "control":
                channel = self._control
            elif not up:
                continue
            else:
                taken += size
                if kind == "lane":
                    self._lanes_frozen = True
                    channel = self._lanes[lane_of(message, len(self._lanes))]
                elif size > limit:
                    self._dropped += 1
                    self._left(size)
                    continue
                else:
                    channel = self._datagram
            batches.setdefault(channel, []).append(message)
        self.buffered += taken
        for channel, batch in batches.items():
            if channel is not None and channel.readyState == "open":
                self._sctp.send_many(channel, batch)
            elif channel is not self._control:
                # The peer has closed the channel this very moment, and the connection ends.
                self._left(sum(map(len, batch)))

    # --- what SCTP tells ----------------------------------------------------------------------

    def sctp_messages(self, batch: list[tuple[RTCDataChannel, bytes]]) -> None:
        """Takes messages that came; the owner gets those of this turn of the loop together."""
        inbox = self._inbox
        control, datagram = self._control, self._datagram
        from_lane = inbox.from_lane
        for channel, message in batch:
            if channel is control:
                inbox.from_control(message)
            elif channel is datagram:
                inbox.from_datagram(message)
            else:
                from_lane(message)

    def sctp_drained(self, drained: list[tuple[RTCDataChannel, int]]) -> None:
        """Learns what has left the queues of channels; the owner is told when the turn ends."""
        control = self._control
        for channel, size in drained:
            if channel is not control:
                self._drained += size

    def sctp_turn_ended(self) -> None:
        """Hands on at once what came and what has left: SCTP calls from no call of the owner's."""
        if self._inbox.waiting:
            self._guarded(self._inbox.flush)
        if self._drained:
            self._report()
        if self._stall.silent != self._silent and self.state == "up":
            self._tell_stall()

    def _tell_stall(self) -> None:
        """Tells the owner that what is sent is not answered any more, or is again."""
        silent = self._silent = self._stall.silent
        if silent:
            self._guarded(lambda: self._observer.transport_stalled(silent))
        else:
            self._guarded(self._observer.transport_answered)

    def sctp_failed(self, reason: str) -> None:
        """Ends the transport."""
        if self.state != "down":
            self.connection_error("sctp", "")
            self.connection_lost(reason)
