"""The messages of the transport over unmodified aiortc. The connection is in connection.py.

All channels of one aiortc connection share one queue, and messages leave it in the order in which
they were sent. aiortc knows neither the round trip of a message nor the peer's window, so
:attr:`PlainTransport.queue_limit` is a constant.
"""

import time

from aiortc import InvalidStateError, RTCDataChannel

from socks_tunnel.peer import aiortc_private
from socks_tunnel.peer.channels import LANES, ChannelKind, channel_for, lane_of
from socks_tunnel.peer.ice import IceSettings, drops
from socks_tunnel.peer.over_aiortc import HEADER_SIZE, AiortcTransport
from socks_tunnel.peer.plain.fences import fenced_drops, plain_connection
from socks_tunnel.peer.transport import QUEUE_LIMIT, REASSEMBLY_MAX, Role, TransportStats


class PlainTransport(AiortcTransport):
    """Implements :class:`socks_tunnel.peer.transport.Transport`. It is made on its event loop.

    `name` is for logs. Raises :class:`ValueError` for ICE servers that cannot be used.
    """

    def __init__(self, role: Role, ice: IceSettings, *, name: str, lanes: int = LANES) -> None:
        super().__init__(role, ice, name=name, lanes=lanes, make=plain_connection)
        self.heard_at: float | None = None
        self.seen_at: float | None = None
        self._watching = False
        self._packets = 0

    @property
    def queue_limit(self) -> int:
        """A useful number of buffered bytes: a constant, because aiortc measures nothing."""
        return QUEUE_LIMIT

    @property
    def stats(self) -> TransportStats:
        """The present figures."""
        pc = self._connection.pc
        sctp = None if pc is None else aiortc_private.sctp_figures(pc)
        return TransportStats(
            rtt=None if sctp is None else sctp.rtt,
            cwnd=None if sctp is None else sctp.cwnd,
            outstanding=None if sctp is None else sctp.outstanding,
            queued=self.buffered,
            packets_received=self._packets,
            datagrams_dropped=self._dropped,
            dropped={"window": fenced_drops(pc), **drops(pc)},
        )

    # --- sending ------------------------------------------------------------------------------

    def send_many(self, messages: list[bytes]) -> None:
        """Takes messages for the channels of their types."""
        if self.state == "down":
            return
        limit = self.max_message
        sizes = list(map(len, messages))
        if sizes and (min(sizes) < HEADER_SIZE or max(sizes) > limit):
            self._check_sizes(messages, limit)
        for message, size in zip(messages, sizes, strict=True):
            kind = channel_for(message[0])
            if kind == "control":
                channel = self._control
            else:
                if self.state != "up":
                    continue
                self.buffered += size
                if kind == "lane":
                    self._lanes_frozen = True
                    channel = self._lanes[lane_of(message, len(self._lanes))]
                elif size > limit:
                    self._dropped += 1
                    self._left(size)
                    continue
                else:
                    channel = self._datagram
            if channel is None or channel.readyState != "open":
                # The channel is not open yet, or the peer has just closed it.
                if kind != "control":
                    self._left(size)
                continue
            try:
                channel.send(message)
            except InvalidStateError:
                if kind != "control":
                    self._left(size)

    def _buffered_changed(self, amount: int) -> None:
        """Notes how many bytes have entered or left the queue of a channel."""
        if amount < 0:
            self._left(-amount)

    # --- what the connection tells --------------------------------------------------------------

    def connection_channel(self, kind: ChannelKind, channel: RTCDataChannel) -> None:
        """Takes a channel into use."""
        pc = self._connection.pc
        if not self._watching and pc is not None:
            self._watching = True
            aiortc_private.watch_packets(pc, self._packet_came)
        super().connection_channel(kind, channel)
        if kind != "control":
            aiortc_private.watch_buffered(channel, self._buffered_changed)

    def _packet_came(self) -> None:
        self._packets += 1
        self.heard_at = time.monotonic()
        pc = self._connection.pc
        if pc is not None and aiortc_private.reassembly_bytes(pc) > REASSEMBLY_MAX:
            self.connection_error("reassembly", "")
            self.connection_lost(
                "the peer sends far beyond the receive window without finishing messages"
            )
