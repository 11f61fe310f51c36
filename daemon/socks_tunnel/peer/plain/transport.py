"""The transport over unmodified aiortc: its messages. The connection below it: connection.py.

All channels of one aiortc connection share one queue, and messages leave it in the order in which
they were sent. aiortc knows neither the round trip of a message nor the peer's window, so that
:attr:`PlainTransport.queue_limit` is a constant.
"""

import asyncio
import logging
import time
from collections.abc import Callable
from typing import Final

from aiortc import InvalidStateError, RTCDataChannel

from socks_tunnel.ops.bugs import BugLog
from socks_tunnel.peer import aiortc_private
from socks_tunnel.peer.channels import LANES, ChannelKind, Inbox, channel_for, lane_of
from socks_tunnel.peer.ice import IceSettings, SelectedPath
from socks_tunnel.peer.plain.connection import Connection
from socks_tunnel.peer.transport import (
    QUEUE_LIMIT,
    REASSEMBLY_MAX,
    Role,
    TransportObserver,
    TransportState,
    TransportStats,
)
from socks_tunnel.protocol.bounded import clip
from socks_tunnel.protocol.errors import LocalProtocolError
from socks_tunnel.protocol.messages import HEADER

_log = logging.getLogger(__name__)
_bugs = BugLog()

REASSEMBLY_PERIOD: Final = 1.0
"""Seconds between two looks at how much a peer makes us hold of unfinished messages."""

_HEADER_SIZE: Final = HEADER.size


class PlainTransport:
    """Fulfils :class:`socks_tunnel.peer.transport.Transport`. Made on the loop that it lives on.

    `name` is for logs. Raises :class:`ValueError` for ICE servers that cannot be used.
    """

    def __init__(self, role: Role, ice: IceSettings, *, name: str, lanes: int = LANES) -> None:
        self.role: Role = role
        self.name = name
        self.buffered = 0
        self.heard_at: float | None = None
        self._connection = Connection(self, name=name, role=role, ice=ice, lanes=lanes)
        self._loop = asyncio.get_running_loop()
        self._observer: TransportObserver
        self._inbox: Inbox
        self._control: RTCDataChannel | None = None
        self._datagram: RTCDataChannel | None = None
        self._lanes: list[RTCDataChannel] = []
        self._lanes_frozen = False
        self._watching = False
        self._drained = 0
        self._reporting = False
        self._dropped = 0
        self._packets = 0
        self._check_timer: asyncio.TimerHandle | None = None

    # --- what it is ---------------------------------------------------------------------------

    @property
    def state(self) -> TransportState:
        """Where it is in its life."""
        return self._connection.state

    @property
    def max_message(self) -> int:
        """Longest message in bytes that the peer takes."""
        return self._connection.max_message

    @property
    def queue_limit(self) -> int:
        """Bytes that are worth having in it: a constant, as aiortc measures nothing."""
        return QUEUE_LIMIT

    @property
    def path(self) -> SelectedPath | None:
        """The path in use."""
        return self._connection.path

    @property
    def stage(self) -> str:
        """What it waits for while it is not up."""
        return self._connection.stage

    @property
    def stats(self) -> TransportStats:
        """Figures of this moment."""
        pc = self._connection.pc
        sctp = None if pc is None else aiortc_private.sctp_figures(pc)
        return TransportStats(
            rtt=None if sctp is None else sctp.rtt,
            cwnd=None if sctp is None else sctp.cwnd,
            outstanding=None if sctp is None else sctp.outstanding,
            queued=self.buffered,
            packets_received=self._packets,
            datagrams_dropped=self._dropped,
        )

    # --- setting up ---------------------------------------------------------------------------

    def attach(self, observer: TransportObserver) -> None:
        """Names the owner."""
        self._observer = observer
        self._inbox = Inbox(observer, self._soon)

    async def create_offer(self) -> str:
        """Returns the offer."""
        return await self._connection.create_offer()

    async def accept_answer(self, sdp: str) -> None:
        """Takes the answer."""
        await self._connection.accept_answer(sdp)

    async def accept_offer(self, sdp: str) -> str:
        """Takes the offer and returns the answer."""
        return await self._connection.accept_offer(sdp)

    # --- sending ------------------------------------------------------------------------------

    def send_many(self, messages: list[bytes]) -> None:
        """Takes messages for the channels of their types."""
        if self.state == "down":
            return
        limit = self.max_message
        sizes = list(map(len, messages))
        if sizes and (min(sizes) < _HEADER_SIZE or max(sizes) > limit):
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
                # Before the channel is open; or the peer has closed it this very moment.
                if kind != "control":
                    self._left(size)
                continue
            try:
                channel.send(message)
            except InvalidStateError:
                if kind != "control":
                    self._left(size)

    def _check_sizes(self, messages: list[bytes], limit: int) -> None:
        for message in messages:
            size = len(message)
            if size < _HEADER_SIZE:
                raise LocalProtocolError(f"a message of {size} bytes is shorter than its header")
            if size > limit and channel_for(message[0]) != "datagram":
                raise LocalProtocolError(
                    f"a message of {size} bytes is over the peer's limit of {limit}"
                )

    def _buffered_changed(self, amount: int) -> None:
        """Says what has come into or left the queue of a channel."""
        if amount < 0:
            self._left(-amount)

    def _left(self, size: int) -> None:
        self._drained += size
        if not self._reporting:
            self._reporting = True
            self._loop.call_soon(self._report)

    def _report(self) -> None:
        self._reporting = False
        drained, self._drained = self._drained, 0
        if self.state == "up":
            self.buffered -= drained
            self._guarded(lambda: self._observer.transport_writable(drained))

    # --- what the connection tells --------------------------------------------------------------

    def connection_channel(self, kind: ChannelKind, channel: RTCDataChannel) -> None:
        """Takes a channel into use."""
        pc = self._connection.pc
        if not self._watching and pc is not None:
            self._watching = True
            aiortc_private.watch_packets(pc, self._packet_came)
        if kind == "control":
            self._control = channel
            channel.on("message", self._inbox.from_control)
            return
        aiortc_private.watch_buffered(channel, self._buffered_changed)
        if kind == "datagram":
            self._datagram = channel
            channel.on("message", self._inbox.from_datagram)
        else:
            if not self._lanes_frozen:  # a flow must never change its lane
                self._lanes.append(channel)
            channel.on("message", self._inbox.from_lane)

    def _packet_came(self) -> None:
        self._packets += 1
        self.heard_at = time.monotonic()

    def connection_up(self) -> None:
        """The channels are open."""
        self._check_timer = self._loop.call_later(REASSEMBLY_PERIOD, self._check_reassembly)
        self._guarded(self._observer.transport_up)

    def connection_error(self, kind: str, what: str) -> None:
        """Hands on an error of the peer's."""
        self._guarded(lambda: self._observer.transport_error(kind, what))

    def connection_lost(self, reason: str) -> None:
        """Ends, after what has come before is delivered."""
        self._guarded(self._inbox.flush)
        self._end(reason)

    # --- the end --------------------------------------------------------------------------------

    def close(self, reason: str, *, linger: float = 0.0) -> None:
        """Ends the transport because its owner wants it."""
        self._end(reason, linger=linger)

    async def wait_closed(self) -> None:
        """Waits until the sockets are closed."""
        await self._connection.closed()

    def _end(self, reason: str, *, linger: float = 0.0) -> None:
        if self.state == "down":
            return
        self._inbox.close()
        self.buffered = 0
        if self._check_timer is not None:
            self._check_timer.cancel()
        self._connection.end(linger=linger)
        self._observer.transport_down(reason)

    def _soon(self, callback: Callable[[], None]) -> object:
        return self._loop.call_soon(self._guarded, callback)

    def _guarded(self, call: Callable[[], None]) -> None:
        """Makes a call to the owner; whatever it raises ends this transport and nothing else."""
        try:
            call()
        except Exception as error:  # noqa: BLE001 - the border: one peer costs its own link
            _bugs.tell(_log, f"link {self.name}: a bug in dealing with its peer ends it", error)
            self._end(
                f"dealing with the peer hit a bug here ({type(error).__name__}: {clip(error)})"
            )

    def _check_reassembly(self) -> None:
        pc = self._connection.pc
        if pc is not None and aiortc_private.reassembly_bytes(pc) > REASSEMBLY_MAX:
            self.connection_error("reassembly", "")
            self.connection_lost(
                "the peer sends far beyond the receive window without finishing messages"
            )
        if self.state == "up":
            self._check_timer = self._loop.call_later(REASSEMBLY_PERIOD, self._check_reassembly)
