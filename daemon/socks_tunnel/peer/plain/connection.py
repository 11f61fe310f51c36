"""One aiortc peer connection from the first SDP to the end of its sockets, without its messages.

It has the common parts of all transports over aiortc: offer and answer with all candidates, the
channels, the reason of a failure in a sentence, and a close that is bounded in time. The transport
above it is its owner, moves the messages, and keeps the rules of
:mod:`socks_tunnel.peer.transport`.

::

    new --create_offer / accept_offer--> connecting --all channels open--> up
     |                                       |                             |
     +------- connection_lost() to the owner, who calls end() -------------+--> down
"""

import asyncio
import logging
import re
import time
from collections.abc import Callable
from typing import Final, Protocol

from aiortc import RTCConfiguration, RTCDataChannel, RTCPeerConnection, RTCSessionDescription

from socks_tunnel.ops.bugs import BugLog
from socks_tunnel.ops.tasks import spawn
from socks_tunnel.peer import aiortc_private
from socks_tunnel.peer.channels import (
    CONTROL,
    DATAGRAM,
    LABEL_SHOWN_MAX,
    LANES,
    LANES_MAX,
    ChannelKind,
    kind_of,
    refusal,
)
from socks_tunnel.peer.ice import (
    IceSettings,
    SelectedPath,
    candidate_addresses,
    path_lost,
    rtc_servers,
    selected_path,
    why_no_candidates,
    why_no_path,
)
from socks_tunnel.peer.plain.fences import plain_connection
from socks_tunnel.peer.sdp import SdpFacts, check_sdp
from socks_tunnel.peer.transport import CLOSE_TIMEOUT, Role, TransportError, TransportState
from socks_tunnel.protocol.bounded import clip
from socks_tunnel.protocol.errors import LocalProtocolError, RemoteProtocolError
from socks_tunnel.protocol.messages import MESSAGE_MAX, SUBPROTOCOL

_log = logging.getLogger(__name__)
_bugs = BugLog()

PATH_LOST: Final = "the path to the peer is lost (ICE consent expired)"

ACKNOWLEDGE_POLL: Final = 0.01
"""Seconds between two checks whether everything is acknowledged, as aiortc has no callback."""

_CLOSED_MEANWHILE: Final = "the link was closed while it was set up"
_MAX_MESSAGE_SIZE = re.compile(r"(?m)^a=max-message-size:[0-9]+")


class ConnectionOwner(Protocol):
    """The calls of a :class:`Connection` to its transport."""

    def connection_channel(self, kind: ChannelKind, channel: RTCDataChannel) -> None:
        """A channel is available: one that we opened, or a suitable one of the peer.

        From now on the owner receives its messages. At an endpoint, the first lanes come before
        :meth:`connection_up`, and further ones may come at any time.
        """

    def connection_up(self) -> None:
        """All channels are open (gateway), or one of each kind is there (endpoint)."""

    def connection_error(self, kind: str, what: str) -> None:
        """The peer broke a rule; see :meth:`TransportObserver.transport_error`."""

    def connection_lost(self, reason: str) -> None:
        """The connection cannot go on. The owner calls :meth:`Connection.end`. Called once."""


class Connection:
    """One peer connection. It is made on its event loop.

    `name` is for logs. `lanes` is the number of lanes of a gateway; an endpoint accepts those that
    are opened. `make` makes aiortc's peer connection, or one of a derived class.

    Raises :class:`ValueError` for ICE servers that cannot be used.
    """

    def __init__(
        self,
        owner: ConnectionOwner,
        *,
        name: str,
        role: Role,
        ice: IceSettings,
        lanes: int = LANES,
        make: Callable[[RTCConfiguration], RTCPeerConnection] = plain_connection,
    ) -> None:
        if not 1 <= lanes <= LANES_MAX:
            raise LocalProtocolError(f"a link has 1 to {LANES_MAX} lanes, not {lanes}")
        self.name = name
        self.role: Role = role
        self.state: TransportState = "new"
        self.pc: RTCPeerConnection | None = None
        self.remote: SdpFacts | None = None
        """The facts from the peer's SDP, once it was read."""
        self._owner = owner
        self._ice = ice
        self._lanes = lanes
        self._make = make
        self._loop = asyncio.get_running_loop()
        self._configuration = RTCConfiguration(iceServers=rtc_servers(ice))
        self._channels: dict[str, RTCDataChannel] = {}
        self._kinds: set[ChannelKind] = set()
        self._receiver: asyncio.Task[None] | None = None
        self._gathering: asyncio.Task[None] | None = None
        self._teardown_task: asyncio.Task[None] | None = None

    @property
    def max_message(self) -> int:
        """Longest message in bytes that the peer takes; 65,536 until its SDP was read."""
        return MESSAGE_MAX if self.remote is None else self.remote.max_message_size

    @property
    def path(self) -> SelectedPath | None:
        """The path in use; None while there is none."""
        return None if self.pc is None else selected_path(self.pc)

    @property
    def stage(self) -> str:
        """What a connection that is not up waits for; see :attr:`Transport.stage`."""
        pc = self.pc
        if self.remote is None:
            return "no answer came"
        if pc is None or pc.iceConnectionState != "completed":
            tried = "" if pc is None else f" ({why_no_path(pc)})"
            return f"no ICE candidate pair has answered{tried}"
        if pc.connectionState != "connected":
            return "the DTLS handshake is not done"
        return "the data channels are not open"

    # --- offer and answer -----------------------------------------------------------------------

    async def create_offer(self) -> str:
        """Opens the channels and returns the offer; see :meth:`Transport.create_offer`."""
        pc = self._start("gateway")
        self._open(pc, CONTROL)
        self._open(pc, DATAGRAM, ordered=False, max_retransmits=0)
        for number in range(self._lanes):
            self._open(pc, f"lane-{number}")
        return await self._describe_local(pc, "offer")

    async def accept_answer(self, sdp: str) -> None:
        """Takes the endpoint's answer; see :meth:`Transport.accept_answer`."""
        pc = self.pc
        if pc is None or self.role != "gateway" or self.remote is not None:
            raise LocalProtocolError("an answer is taken once, after create_offer")
        await self._describe_remote(pc, sdp, "answer")

    async def accept_offer(self, sdp: str) -> str:
        """Takes the gateway's offer, returns the answer; see :meth:`Transport.accept_offer`."""
        pc = self._start("endpoint")
        await self._describe_remote(pc, sdp, "offer")
        return await self._describe_local(pc, "answer")

    def _start(self, role: Role) -> RTCPeerConnection:
        if self.role != role or self.pc is not None:
            raise LocalProtocolError(f"a link that is {self.state} cannot be started as {role}")
        if self.state == "down":
            raise TransportError("the link is closed")
        self.state = "connecting"
        pc = self.pc = self._make(self._configuration)
        pc.on("connectionstatechange", self._connection_changed)
        pc.on("datachannel", self._channel_arrived)
        return pc

    def _open(
        self,
        pc: RTCPeerConnection,
        label: str,
        *,
        ordered: bool = True,
        max_retransmits: int | None = None,
    ) -> None:
        channel = pc.createDataChannel(
            label, ordered=ordered, maxRetransmits=max_retransmits, protocol=SUBPROTOCOL
        )
        channel.on("open", self._channel_opened)
        kind: ChannelKind = (
            "control" if label == CONTROL else "datagram" if label == DATAGRAM else "lane"
        )
        self._adopt(kind, channel)

    async def _describe_local(self, pc: RTCPeerConnection, kind: str) -> str:
        # It is a task that goes on when its caller is cancelled, because aioice would lose a socket
        # that it is just making. Not spawn: its failure becomes one sentence here.
        gathering = self._loop.create_task(self._gather(pc, kind), name=f"gather {self.name}")
        gathering.add_done_callback(_retrieve)
        self._gathering = gathering
        try:
            await asyncio.shield(gathering)
        except Exception as error:
            raise self._unusable(f"no {kind} can be made: {_said(error)}") from error
        if self._ended():
            raise TransportError(_CLOSED_MEANWHILE)
        sdp: str = pc.localDescription.sdp
        if "a=candidate:" not in sdp:
            raise self._unusable(why_no_candidates(pc, self._ice))
        # aiortc offers to receive 256 KiB. A message of this protocol has at most 64 KiB.
        return _MAX_MESSAGE_SIZE.sub(f"a=max-message-size:{MESSAGE_MAX}", sdp)

    async def _gather(self, pc: RTCPeerConnection, kind: str) -> None:
        try:
            with candidate_addresses(self._ice):
                description = await (pc.createOffer() if kind == "offer" else pc.createAnswer())
                await pc.setLocalDescription(description)
        finally:
            if self._ended():  # the teardown may have ended before these sockets were made
                aiortc_private.abort_sockets(pc)

    async def _describe_remote(self, pc: RTCPeerConnection, sdp: str, kind: str) -> None:
        try:
            self.remote = check_sdp(sdp)
        except RemoteProtocolError as error:
            self._owner.connection_error(error.kind, "")
            raise self._unusable(str(error)) from error
        try:
            await pc.setRemoteDescription(RTCSessionDescription(sdp=sdp, type=kind))
        except Exception as error:
            # aiortc has no error class for SDP that it does not accept, so any exception means
            # that.
            self._owner.connection_error("sdp", "")
            raise self._unusable(f"the peer's SDP cannot be used: {_said(error)}") from error
        if self._ended():
            raise TransportError(_CLOSED_MEANWHILE)

    def _unusable(self, reason: str) -> TransportError:
        self._lose(reason)
        return TransportError(reason)

    def _ended(self) -> bool:
        return self.state == "down"

    # --- channels -------------------------------------------------------------------------------

    def _adopt(self, kind: ChannelKind, channel: RTCDataChannel) -> None:
        self._channels[channel.label] = channel
        self._kinds.add(kind)
        channel.on("close", self._end_came)
        self._owner.connection_channel(kind, channel)

    def _channel_arrived(self, channel: RTCDataChannel) -> None:
        """Takes or refuses a channel that the peer opened."""
        if self.state == "down":
            return
        label = channel.label
        if self.role == "gateway":
            self._owner.connection_error("channel", "")
            self._lose(
                f"the peer opened a channel, {label[:LABEL_SHOWN_MAX]!r}; only a gateway does that"
            )
            return
        kind = kind_of(
            label,
            ordered=channel.ordered,
            max_retransmits=channel.maxRetransmits,
            max_lifetime=channel.maxPacketLifeTime,
            subprotocol=channel.protocol,
        )
        if kind is None or label in self._channels:
            self._owner.connection_error("channel", "")
            self._lose(
                refusal(
                    label, channel.protocol, ordered=channel.ordered, second=label in self._channels
                )
            )
            return
        self._adopt(kind, channel)
        if self.state == "connecting" and self._kinds == {"control", "datagram", "lane"}:
            self._go_up()

    def _channel_opened(self) -> None:
        """Becomes up once the endpoint has acknowledged all channels (gateway only)."""
        if self.state == "connecting" and all(
            channel.readyState == "open" for channel in self._channels.values()
        ):
            self._go_up()

    def _go_up(self) -> None:
        self.state = "up"
        self._owner.connection_up()

    # --- the end --------------------------------------------------------------------------------

    def end(self, *, linger: float = 0.0) -> None:
        """Begins the teardown, once. What was sent has `linger` seconds to be acknowledged."""
        if self.state == "down":
            return
        self.state = "down"
        if self.pc is not None:
            self._teardown_task = spawn(
                f"close of link {self.name}", _close_in_order(self.pc, self.name, linger)
            )

    async def closed(self) -> None:
        """Waits until the teardown is over. The teardown goes on if the caller is cancelled."""
        if self._teardown_task is not None:
            await asyncio.shield(self._teardown_task)

    def _lose(self, reason: str) -> None:
        if self.state != "down":
            self._owner.connection_lost(reason)

    # --- what ends it ---------------------------------------------------------------------------

    def _connection_changed(self) -> None:
        pc = self.pc
        if pc is None or self.state == "down":
            return
        match pc.connectionState:
            case "connected":
                # aiortc starts the task that reads datagrams right after it calls us.
                self._loop.call_soon(self._watch_receiver, pc)
            case "failed":
                self._lose(self._why_failed(pc))
            case "closed":
                self._end_came()

    def _why_failed(self, pc: RTCPeerConnection) -> str:
        if pc.iceConnectionState == "failed":
            if self.state == "up":
                return PATH_LOST
            return f"no path to the peer works ({why_no_path(pc)})"
        return aiortc_private.dtls_failure(pc, self.remote.fingerprints if self.remote else [])

    def _watch_receiver(self, pc: RTCPeerConnection) -> None:
        task = aiortc_private.receive_task(pc)
        if task is not None and self._receiver is None:
            self._receiver = task
            task.add_done_callback(lambda task: None if task.cancelled() else self._end_came())

    def _end_came(self) -> None:
        """The peer, ICE, or an error in receiving has ended the connection."""
        if self.state == "down":
            return
        reason = "the peer closed the connection"
        task = self._receiver
        error = task.exception() if task and task.done() and not task.cancelled() else None
        if isinstance(error, RemoteProtocolError):
            self._owner.connection_error(error.kind, "")
            reason = str(error)
        elif error is not None:
            if aiortc_private.is_library_error(error):
                self._owner.connection_error("aiortc", "")
                reason = f"the peer sent what aiortc cannot take ({_said(error)})"
            else:
                _bugs.tell(_log, f"link {self.name}: a bug in handling a packet ends it", error)
                self._owner.connection_error("internal-error", "")
                reason = f"a message of the peer's hit a bug here ({_said(error)})"
        elif self.pc is not None and (lost := path_lost(self.pc)):
            reason = lost
        elif self.pc is not None and aiortc_private.path_is_closed(self.pc):
            reason = PATH_LOST
        self._lose(reason)


async def _close_in_order(pc: RTCPeerConnection, name: str, linger: float) -> None:
    """Closes a connection, after up to `linger` seconds until sent data is acknowledged.

    A close that hangs is cut short after :data:`CLOSE_TIMEOUT` seconds, and its sockets are
    dropped. `name` is for logs.
    """
    deadline = time.monotonic() + linger
    while time.monotonic() < deadline and aiortc_private.has_unsent(pc):  # noqa: ASYNC110 - see above
        await asyncio.sleep(ACKNOWLEDGE_POLL)
    # Not wait_for: it would cancel a future inside aiortc that its own close task sets.
    closing = spawn(f"close of peer connection {name}", _close(pc, name))
    done, _ = await asyncio.wait([closing], timeout=CLOSE_TIMEOUT)
    if not done:
        _log.warning(
            "link %s: its peer connection did not close within %.0f s; dropping its sockets",
            name,
            CLOSE_TIMEOUT,
        )
        closing.cancel()
        aiortc_private.abort_sockets(pc)


async def _close(pc: RTCPeerConnection, name: str) -> None:
    try:
        await pc.close()
    except Exception as error:  # noqa: BLE001 - a failure of aiortc's close must not affect others
        _log.debug("link %s: closing its peer connection: %r", name, error)
        aiortc_private.abort_sockets(pc)


def _said(error: BaseException) -> str:
    """Returns an exception in bounded form: `KeyError: 'candidates'`."""
    return f"{type(error).__name__}: {clip(error)}"


def _retrieve(task: "asyncio.Task[None]") -> None:
    """Retrieves the exception of a task, in case its waiter was cancelled."""
    if not task.cancelled():
        task.exception()
