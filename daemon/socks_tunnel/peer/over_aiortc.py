"""The common part of transports over aiortc: their life cycle, and the calls to their owner.

A subclass moves the messages: it sends them, and puts received ones into the inbox. The connection
below is :class:`socks_tunnel.peer.plain.connection.Connection`.
"""

import asyncio
import logging
from collections.abc import Callable
from typing import Final

from aiortc import RTCConfiguration, RTCDataChannel, RTCPeerConnection

from socks_tunnel.ops.bugs import BugLog
from socks_tunnel.peer.channels import ChannelKind, Inbox, channel_for
from socks_tunnel.peer.ice import IceSettings, SelectedPath, candidates
from socks_tunnel.peer.plain.connection import Connection
from socks_tunnel.peer.transport import Role, TransportObserver, TransportState
from socks_tunnel.protocol.bounded import clip
from socks_tunnel.protocol.errors import LocalProtocolError
from socks_tunnel.protocol.messages import HEADER

_log = logging.getLogger(__name__)
_bugs = BugLog()

HEADER_SIZE: Final = HEADER.size


class AiortcTransport:
    """The part of :class:`socks_tunnel.peer.transport.Transport` that does not move messages.

    It is made on its event loop. `name` is for logs. Raises :class:`ValueError` for ICE
    servers that cannot be used.
    """

    def __init__(
        self,
        role: Role,
        ice: IceSettings,
        *,
        name: str,
        lanes: int,
        make: Callable[[RTCConfiguration], RTCPeerConnection],
    ) -> None:
        self.role: Role = role
        self.name = name
        self.buffered = 0
        self._connection = Connection(self, name=name, role=role, ice=ice, lanes=lanes, make=make)
        self._loop = asyncio.get_running_loop()
        self._observer: TransportObserver
        self._inbox: Inbox
        self._control: RTCDataChannel | None = None
        self._datagram: RTCDataChannel | None = None
        self._lanes: list[RTCDataChannel] = []
        self._lanes_frozen = False
        self._drained = 0
        self._reporting = False
        self._dropped = 0
        self._defer_inbox = True
        """Whether a callback of the loop passes messages on, and not the subclass."""

    # --- what it is ---------------------------------------------------------------------------

    @property
    def state(self) -> TransportState:
        """The state in its life cycle."""
        return self._connection.state

    @property
    def max_message(self) -> int:
        """Longest message in bytes that the peer takes."""
        return self._connection.max_message

    @property
    def path(self) -> SelectedPath | None:
        """The path in use."""
        return self._connection.path

    @property
    def candidates(self) -> tuple[list[str], list[str]]:
        """Our candidates and the peer's."""
        pc = self._connection.pc
        return ([], []) if pc is None else candidates(pc)

    @property
    def stage(self) -> str:
        """What the transport waits for while it is not up."""
        return self._connection.stage

    # --- setting up ---------------------------------------------------------------------------

    def attach(self, observer: TransportObserver) -> None:
        """Names the owner."""
        self._observer = observer
        self._inbox = Inbox(observer, self._soon if self._defer_inbox else None)

    async def create_offer(self) -> str:
        """Returns the offer."""
        return await self._connection.create_offer()

    async def accept_answer(self, sdp: str) -> None:
        """Takes the answer."""
        await self._connection.accept_answer(sdp)

    async def accept_offer(self, sdp: str) -> str:
        """Takes the offer and returns the answer."""
        return await self._connection.accept_offer(sdp)

    def connection_channel(self, kind: ChannelKind, channel: RTCDataChannel) -> None:
        """Takes a channel into use."""
        if kind == "control":
            self._control = channel
            channel.on("message", self._inbox.from_control)
        elif kind == "datagram":
            self._datagram = channel
            channel.on("message", self._inbox.from_datagram)
        else:
            # The number of lanes is fixed now, because a flow must never change its lane.
            if not self._lanes_frozen:
                self._lanes.append(channel)
            channel.on("message", self._inbox.from_lane)

    def connection_up(self) -> None:
        """The channels are open."""
        self._guarded(self._observer.transport_up)

    # --- messages -----------------------------------------------------------------------------

    def send_early(self, message: bytes) -> bool:
        """Returns False, because aiortc sends nothing on a channel that is not acknowledged."""
        del message
        return False

    def _check_sizes(self, messages: list[bytes], limit: int) -> None:
        """Raises LocalProtocolError for a message that would corrupt a stream or is too short."""
        for message in messages:
            size = len(message)
            if size < HEADER_SIZE:
                raise LocalProtocolError(f"a message of {size} bytes is shorter than its header")
            if size > limit and channel_for(message[0]) != "datagram":
                raise LocalProtocolError(
                    f"a message of {size} bytes is over the peer's limit of {limit}"
                )

    def _left(self, size: int) -> None:
        """Notes that bytes of flow messages have left or were dropped."""
        self._drained += size
        if not self._reporting:
            self._reporting = True
            self._loop.call_soon(self._report)

    def _report(self) -> None:
        self._reporting = False
        drained, self._drained = self._drained, 0
        if drained and self.state == "up":
            self.buffered -= drained
            self._guarded(lambda: self._observer.transport_writable(drained))

    # --- the end ------------------------------------------------------------------------------

    def connection_error(self, kind: str, what: str) -> None:
        """Passes on an error of the peer."""
        self._guarded(lambda: self._observer.transport_error(kind, what))

    def connection_lost(self, reason: str) -> None:
        """Ends, after all earlier messages are delivered."""
        self._guarded(self._inbox.flush)
        self._end(reason)

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
        self._connection.end(linger=linger)
        self._observer.transport_down(reason)

    def _soon(self, callback: Callable[[], None]) -> object:
        return self._loop.call_soon(self._guarded, callback)

    def _guarded(self, call: Callable[[], None]) -> None:
        """Makes a call to the owner. An exception in it ends only this transport."""
        try:
            call()
        except Exception as error:  # noqa: BLE001 - the border: an exception ends only the link of this peer
            _bugs.tell(_log, f"link {self.name}: a bug in dealing with its peer ends it", error)
            self._end(
                f"dealing with the peer hit a bug here ({type(error).__name__}: {clip(error)})"
            )
