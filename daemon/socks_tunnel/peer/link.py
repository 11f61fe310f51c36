"""A link: one peer connection between a gateway and an endpoint, with its channels and HELLOs.

States, all transitions of which are in :class:`Link`::

    new --create_offer/accept_offer--> connecting --both HELLOs--> up
     |                                     |                        |
     +------------- close() or any failure, once -------------------+--> down

Every end, whoever caused it, goes through `Link._down`: it tells the observer, once, and starts the
teardown of the peer connection, which is bounded in time.

The gateway opens all channels and, when all are open, sends HELLO; the endpoint answers with its
own. So at the gateway the link is up only after the endpoint has read the gateway's HELLO, and no
flow message can overtake it.
"""

import asyncio
import logging
import re
import struct
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Final, Literal, Protocol

from aiortc import (
    InvalidStateError,
    RTCConfiguration,
    RTCDataChannel,
    RTCPeerConnection,
    RTCSessionDescription,
)

from socks_tunnel.ops.tasks import spawn
from socks_tunnel.peer import aiortc_private
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
from socks_tunnel.protocol.errors import LocalProtocolError, RemoteProtocolError
from socks_tunnel.protocol.messages import (
    HEADER,
    LINK_TYPES,
    MESSAGE_MAX,
    PROTOCOL_VERSION,
    SUBPROTOCOL,
    Goaway,
    Hello,
    MessageType,
    Ping,
    Pong,
    Resume,
    UnknownMessage,
    decode,
    mix32,
)

_log = logging.getLogger(__name__)

Role = Literal["gateway", "endpoint"]
State = Literal["new", "connecting", "up", "down"]

CONTROL: Final = "control"
DATAGRAM: Final = "datagram"
LANES_MAX: Final = 64
LANE_LABELS: Final = frozenset(f"lane-{number}" for number in range(LANES_MAX))

EARLY_MESSAGES_MAX: Final = 256
"""Flow messages that may arrive before the peer's HELLO: none if the peer is one of ours, as many
as a burst of opening messages from one that does not wait for our HELLO."""

CONTROL_BUFFER_MAX: Final = 65_536
"""Bytes that may wait in `control` before a PING is left unanswered (the peer reads nothing)."""

REASSEMBLY_MAX: Final = 64 * 1024 * 1024
"""Bytes of unfinished or out-of-order messages that a peer may make us hold, beyond the 1 MiB
window that SCTP offers. A sender like aiortc knows no other limit than its congestion window."""

CLOSE_TIMEOUT: Final = 5.0
"""Seconds until a close of the peer connection that hangs is cut short."""

LINGER: Final = 1.0
"""Seconds that :meth:`Link.close` waits for what was sent to be acknowledged."""

_PATH_LOST: Final = "the path to the peer is lost (ICE consent expired)"
_MAX_MESSAGE_SIZE = re.compile(r"(?m)^a=max-message-size:[0-9]+")
_MICROSECONDS = struct.Struct("!Q")

# Plain integers for the message path: a comparison with an enum member costs several of these.
_UDP_PACKET: Final = int(MessageType.UDP_PACKET)
_HEADER_SIZE: Final = HEADER.size


class LinkError(Exception):
    """The link cannot be set up; the text is a sentence for the log."""


class LinkObserver(Protocol):
    """What a :class:`Link` tells its owner: plain calls on the event loop that must not raise."""

    def link_up(self, link: "Link") -> None:
        """Learn that the channels are open and both HELLOs are done."""

    def link_message(self, link: "Link", message: bytes) -> None:
        """Take a flow message, 7 to 65,536 bytes, to keep if it likes. Only while up."""

    def link_drained(self, link: "Link", drained: int) -> None:
        """Learn that `drained` more bytes of what :meth:`Link.send` took left for the SCTP queue.

        In the order in which they were sent, and only of messages given to :meth:`Link.send`.
        """

    def link_goaway(self, link: "Link", reason: int) -> None:
        """Learn that the peer wants nothing new to be opened on this link."""

    def link_down(self, link: "Link", reason: str) -> None:
        """Learn that the link has ended; called exactly once, whether it was up or not."""


class Link:
    """One peer connection. Made on the event loop that it lives on.

    `name` is for logs; `hello` is what we say of ourselves (an endpoint sends it with the session
    that the gateway chose). `lanes` counts the gateway's; an endpoint takes what is opened.

    `connect_timeout`, `ping_interval` and `dead_after` are in seconds. The callbacks are for
    metrics: `on_protocol_error` gets the kind of each protocol error of the peer's, `on_unknown`
    is called for each message of an unknown type on `control`, `on_rtt` gets each measured round
    trip in seconds.

    Raises :class:`ValueError` for ICE servers that cannot be used.
    """

    def __init__(
        self,
        observer: LinkObserver,
        *,
        name: str,
        role: Role,
        hello: Hello,
        ice: IceSettings,
        lanes: int = 8,
        connect_timeout: float = 30.0,
        ping_interval: float = 5.0,
        dead_after: float = 15.0,
        on_protocol_error: Callable[[str], None] | None = None,
        on_unknown: Callable[[], None] | None = None,
        on_rtt: Callable[[float], None] | None = None,
    ) -> None:
        if not 1 <= lanes <= LANES_MAX:
            raise LocalProtocolError(f"a link has 1 to {LANES_MAX} lanes, not {lanes}")
        self.name = name
        self.role: Role = role
        self.state: State = "new"
        self.remote_hello: Hello | None = None
        self.rtt: float | None = None
        """Last measured round trip in seconds, None before the first."""
        self.max_message = MESSAGE_MAX
        """Longest message in bytes that :meth:`send` takes; final once the peer's SDP was read."""
        self.buffered = 0
        """Bytes given to :meth:`send` that have not left for the SCTP queue."""
        self.protocol_errors: Counter[str] = Counter()
        """Protocol errors of the peer's by kind."""
        self.unknown_messages = 0

        self._observer = observer
        self._hello = hello
        self._ice = ice
        self._lane_count = lanes
        self._connect_timeout = connect_timeout
        self._ping_interval = ping_interval
        self._dead_after = dead_after
        self._on_protocol_error = on_protocol_error
        self._on_unknown = on_unknown
        self._on_rtt = on_rtt

        self._loop = asyncio.get_running_loop()
        self._now = self._loop.time
        self._configuration = RTCConfiguration(iceServers=rtc_servers(ice))
        self._pc: RTCPeerConnection | None = None
        self._remote_sdp: SdpFacts | None = None
        self._channels: dict[str, RTCDataChannel] = {}
        self._control: RTCDataChannel | None = None
        self._datagram: RTCDataChannel | None = None
        self._lanes: list[RTCDataChannel] = []
        self._early: list[bytes] = []
        self._connect_timer: asyncio.TimerHandle | None = None
        self._keepalive_timer: asyncio.TimerHandle | None = None
        self._keepalive_due = 0.0
        self._heard_at = self._pinged_at = self._now()
        self._epoch = time.monotonic()
        self._receiver: asyncio.Task[None] | None = None
        self._teardown_task: asyncio.Task[None] | None = None
        self._gathering: asyncio.Task[None] | None = None

    def __repr__(self) -> str:
        return f"<Link {self.name} ({self.role}) {self.state}>"

    @property
    def path(self) -> str | None:
        """The addresses in use, as text for an operator; None while there is no path."""
        path = self.selected_path
        return None if path is None else str(path)

    @property
    def selected_path(self) -> SelectedPath | None:
        """The path in use: its kind, its family and its addresses; None while there is none."""
        return None if self._pc is None else selected_path(self._pc)

    # --- setting up ---------------------------------------------------------------------------

    async def create_offer(self) -> str:
        """Open the channels and give the offer: whole SDP with all candidates. Gateway only.

        From here on the link ends by itself if it is not up within `connect_timeout`. Raises
        :class:`LinkError` if no offer can be made or the link was closed meanwhile; the link is
        down then.
        """
        pc = self._start("gateway")
        self._open(pc, CONTROL)
        self._open(pc, DATAGRAM, ordered=False, max_retransmits=0)
        for number in range(self._lane_count):
            self._open(pc, f"lane-{number}")
        return await self._describe_local(pc, "offer")

    async def accept_answer(self, sdp: str) -> None:
        """Take the endpoint's answer; the connection is then made in the background.

        Raises :class:`LinkError` if the answer cannot be used; the link is down then.
        """
        pc = self._pc
        if pc is None or self.role != "gateway" or self._remote_sdp is not None:
            raise LocalProtocolError("an answer is taken once, after create_offer")
        await self._describe_remote(pc, sdp, "answer")
        self._restart_connect_timer()

    async def accept_offer(self, sdp: str) -> str:
        """Take the gateway's offer and give the answer. Endpoint only, as :meth:`create_offer`."""
        pc = self._start("endpoint")
        await self._describe_remote(pc, sdp, "offer")
        return await self._describe_local(pc, "answer")

    def _start(self, role: Role) -> RTCPeerConnection:
        if self.role != role or self._pc is not None:
            raise LocalProtocolError(f"{self!r} cannot be started as {role}")
        if self.state == "down":
            raise LinkError("the link is closed")
        self.state = "connecting"
        pc = self._pc = plain_connection(self._configuration)
        pc.on("connectionstatechange", self._connection_changed)
        pc.on("datachannel", self._channel_arrived)
        self._restart_connect_timer()
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
        self._adopt(channel)

    async def _describe_local(self, pc: RTCPeerConnection, kind: str) -> str:
        # A task that goes on when its caller is cancelled: aioice loses a socket that it is just
        # making. Not spawn: what it fails with is told in one sentence here.
        gathering = self._loop.create_task(self._gather(pc, kind), name=f"gather {self.name}")
        gathering.add_done_callback(_retrieve)
        self._gathering = gathering
        try:
            await asyncio.shield(gathering)
        except Exception as error:
            raise self._unusable(f"no {kind} can be made: {error!r}") from error
        self._still_connecting()
        sdp: str = pc.localDescription.sdp
        if "a=candidate:" not in sdp:
            raise self._unusable(why_no_candidates(pc, self._ice))
        # aiortc offers to take 256 KiB; a message of this protocol never has more than 64 KiB.
        return _MAX_MESSAGE_SIZE.sub(f"a=max-message-size:{MESSAGE_MAX}", sdp)

    async def _gather(self, pc: RTCPeerConnection, kind: str) -> None:
        try:
            with candidate_addresses(self._ice):
                description = await (pc.createOffer() if kind == "offer" else pc.createAnswer())
                await pc.setLocalDescription(description)
        finally:
            if self._ended():  # the teardown may have been over before these sockets were made
                aiortc_private.abort_sockets(pc)

    async def _describe_remote(self, pc: RTCPeerConnection, sdp: str, kind: str) -> None:
        try:
            self._remote_sdp = check_sdp(sdp)
        except RemoteProtocolError as error:
            self._count(error.kind)
            raise self._unusable(str(error)) from error
        self.max_message = self._remote_sdp.max_message_size
        try:
            await pc.setRemoteDescription(RTCSessionDescription(sdp=sdp, type=kind))
        except Exception as error:
            # aiortc has no error of its own for SDP that it does not take: any exception is that.
            self._count("sdp")
            raise self._unusable(f"the peer's SDP cannot be used: {error!r}") from error
        self._still_connecting()

    def _unusable(self, reason: str) -> LinkError:
        self._down(reason)
        return LinkError(reason)

    def _ended(self) -> bool:
        return self.state == "down"

    def _still_connecting(self) -> None:
        if self._ended():
            raise LinkError("the link was closed while it was set up")

    def _restart_connect_timer(self) -> None:
        if self._connect_timer is not None:
            self._connect_timer.cancel()
        if self.state == "connecting":
            self._connect_timer = self._loop.call_later(
                self._connect_timeout, self._connect_timed_out
            )

    # --- channels -----------------------------------------------------------------------------

    def _adopt(self, channel: RTCDataChannel) -> None:
        """Take a channel of a known label into use."""
        label = channel.label
        self._channels[label] = channel
        channel.on("close", self._channel_closed)
        if label == CONTROL:
            self._control = channel
            channel.on("message", self._control_message)
            return
        aiortc_private.watch_buffered(channel, self._buffered_changed)
        if label == DATAGRAM:
            self._datagram = channel
            channel.on("message", self._datagram_message)
        else:
            if self.state == "connecting":
                # Lanes that come later are only received on: a flow must never change its lane.
                self._lanes.append(channel)
            channel.on("message", self._lane_message)

    def _channel_arrived(self, channel: RTCDataChannel) -> None:
        """Take or refuse a channel that the peer opened."""
        if self.state == "down":
            return
        label = channel.label
        if self.role == "gateway":
            self._count("channel")
            self._down(f"the peer opened a channel, {label[:40]!r}; only a gateway does that")
            return
        if label == DATAGRAM:
            fits = not channel.ordered and channel.maxRetransmits == 0
        elif label == CONTROL or label in LANE_LABELS:
            fits = channel.ordered and channel.maxRetransmits is None
        else:
            fits = False
        fits = fits and channel.maxPacketLifeTime is None and channel.protocol == SUBPROTOCOL
        if not fits or label in self._channels:
            self._count("channel")
            what = "a second" if fits else "an unsuitable"
            self._down(
                f"the peer opened {what} channel {label[:40]!r} (subprotocol "
                f"{channel.protocol[:40]!r}, {'ordered' if channel.ordered else 'unordered'})"
            )
            return
        self._adopt(channel)
        self._go_up_if_ready()

    def _channel_opened(self) -> None:
        """Greet the endpoint once it has acknowledged all channels (gateway only)."""
        if self.state == "connecting" and all(
            channel.readyState == "open" for channel in self._channels.values()
        ):
            self._send_control(self._hello.encode())

    def _channel_closed(self) -> None:
        self._lost()

    def _go_up_if_ready(self) -> None:
        if (
            self.state != "connecting"
            or self.remote_hello is None
            or self._datagram is None
            or not self._lanes
        ):
            return
        self.state = "up"
        if self._connect_timer is not None:
            self._connect_timer.cancel()
        self._heard_at = self._now()
        self._ping()
        self._arm_keepalive()
        self._observer.link_up(self)
        early, self._early = self._early, []
        for message in early:
            if self.state == "up":
                self._observer.link_message(self, message)

    # --- messages in --------------------------------------------------------------------------

    def _lane_message(self, message: bytes | str) -> None:
        self._heard_at = self._now()
        if (
            isinstance(message, bytes)
            and _HEADER_SIZE <= len(message) <= MESSAGE_MAX
            and self.state == "up"
        ):
            self._observer.link_message(self, message)
        else:
            self._odd_message(message)

    def _datagram_message(self, message: bytes | str) -> None:
        self._heard_at = self._now()
        if (
            isinstance(message, bytes)
            and _HEADER_SIZE <= len(message) <= MESSAGE_MAX
            and message[0] == _UDP_PACKET
            and self.state == "up"
        ):
            self._observer.link_message(self, message)
        else:
            self._odd_message(message, datagram=True)

    def _odd_message(self, message: bytes | str, *, datagram: bool = False) -> None:
        """Deal with a message that is malformed, or came before HELLO or after the end."""
        if self.state == "down":
            return
        if isinstance(message, str):
            self._protocol_error("text-message", "sent a text message; all are binary")
        elif len(message) < _HEADER_SIZE:
            self._protocol_error("short-message", "sent a message shorter than its header")
        elif len(message) > MESSAGE_MAX:
            self._protocol_error("long-message", f"sent a message of {len(message)} bytes")
        elif datagram and message[0] != _UDP_PACKET:
            self._protocol_error(
                "wrong-channel", f"sent a message of type {message[0]} on `datagram`"
            )
        elif len(self._early) < EARLY_MESSAGES_MAX:
            self._early.append(message)
        else:
            self._count("before-hello")
            self._down(f"the peer sent over {EARLY_MESSAGES_MAX} messages before HELLO")

    def _control_message(self, raw: bytes | str) -> None:
        self._heard_at = self._now()
        if self.state == "down":
            return
        if isinstance(raw, str) or len(raw) > MESSAGE_MAX:
            self._odd_message(raw)
            return
        try:
            message = decode(raw)
        except RemoteProtocolError as error:
            self._protocol_error(error.kind, f"sent a bad message on `control`: {error}")
            if self.remote_hello is None:
                self._down(f"the peer's first message is no HELLO: {error}")
            return
        if self.remote_hello is None and not isinstance(message, Hello):
            self._count("before-hello")
            self._down(f"the peer's first message is no HELLO but has type {raw[0]}")
            return
        match message:
            case Ping(opaque):
                control = self._control
                if control is not None and control.bufferedAmount < CONTROL_BUFFER_MAX:
                    self._send_control(Pong(opaque).encode())
            case Pong(opaque):
                self._pong(opaque)
            case Hello():
                self._hello_arrived(message)
            case Goaway(reason):
                self._observer.link_goaway(self, reason)
            case Resume():
                self._protocol_error("unexpected-resume", "sent RESUME, which was not agreed upon")
            case UnknownMessage():
                self.unknown_messages += 1
                if self._on_unknown is not None:
                    self._on_unknown()
            case _:
                self._protocol_error(
                    "wrong-channel", f"sent a message of type {raw[0]} on `control`"
                )

    def _hello_arrived(self, hello: Hello) -> None:
        if self.remote_hello is not None:
            self._protocol_error("second-hello", "sent HELLO twice")
            return
        fits = hello.version == PROTOCOL_VERSION
        if self.role == "endpoint":
            # Also before a refusal: the other side's operator is to see both versions.
            answer = replace(self._hello, session=hello.session) if fits else self._hello
            self._send_control(answer.encode())
        if not fits:
            _log.error(
                "link %s: the peer (%s) speaks protocol version %d, we speak %d; upgrade one side",
                self.name,
                "".join(filter(str.isprintable, hello.software)) or "unnamed",
                hello.version,
                PROTOCOL_VERSION,
            )
            self._count("version")
            self._down(
                f"the peer speaks protocol version {hello.version}, we speak {PROTOCOL_VERSION}",
                linger=LINGER,
            )
            return
        if self.role == "gateway" and hello.session != self._hello.session:
            self._count("session")
            self._down("the peer's HELLO names another session than ours")
            return
        self.remote_hello = hello
        self._go_up_if_ready()

    def _protocol_error(self, kind: str, what: str) -> None:
        if kind not in self.protocol_errors:
            _log.warning(
                "link %s: the peer %s; further errors of this kind are only counted",
                self.name,
                what,
            )
        self._count(kind)

    def _count(self, kind: str) -> None:
        self.protocol_errors[kind] += 1
        if self._on_protocol_error is not None:
            self._on_protocol_error(kind)

    # --- messages out -------------------------------------------------------------------------

    def send(self, message: bytes) -> bool:
        """Send a flow message: UDP_PACKET on `datagram`, all else on the lane of its CONN_ID.

        Gives False, and drops it, if the link is not up or if a UDP_PACKET is longer than the peer
        takes. Raises :class:`LocalProtocolError` for what is no flow message or, unless it is a
        UDP_PACKET, is longer than :attr:`max_message`: dropping that would corrupt a stream.
        """
        if self.state != "up":
            return False
        length = len(message)
        kind = message[0]
        if length < _HEADER_SIZE or kind in LINK_TYPES:
            raise LocalProtocolError(f"not a flow message: type {kind}, {length} bytes")
        if kind == _UDP_PACKET:
            if length > self.max_message:
                return False
            channel = self._datagram
            assert channel is not None  # the link is up
        else:
            if length > self.max_message:
                raise LocalProtocolError(
                    f"a message of {length} bytes is over the peer's limit of {self.max_message}"
                )
            lanes = self._lanes
            channel = lanes[mix32(int.from_bytes(message[3:7])) % len(lanes)]
        try:
            channel.send(message)
        except InvalidStateError:  # the peer closed the channel this very moment
            return False
        return True

    def goaway(self, reason: int) -> None:
        """Ask the peer to open nothing new on this link; nothing happens if it is not up."""
        if self.state == "up":
            self._send_control(Goaway(reason).encode())

    def _send_control(self, message: bytes) -> None:
        if self._control is not None and self._control.readyState == "open":
            self._control.send(message)

    def _buffered_changed(self, amount: int) -> None:
        if self.state == "up":
            self.buffered += amount
            if amount < 0:
                self._observer.link_drained(self, -amount)

    # --- keepalive ----------------------------------------------------------------------------

    def _ping(self) -> None:
        """Send a PING whose opaque bytes are when it was sent, so that nothing is remembered."""
        self._pinged_at = self._now()
        # Not the loop's clock: uvloop's counts milliseconds.
        elapsed = time.monotonic() - self._epoch
        self._send_control(Ping(_MICROSECONDS.pack(int(elapsed * 1e6))).encode())

    def _pong(self, opaque: bytes) -> None:
        (sent,) = _MICROSECONDS.unpack(opaque)
        rtt = time.monotonic() - self._epoch - sent / 1e6
        if 0 <= rtt <= self._dead_after:  # else it is no echo of ours
            self.rtt = rtt
            if self._on_rtt is not None:
                self._on_rtt(rtt)

    def _arm_keepalive(self) -> None:
        self._keepalive_due = min(
            self._heard_at + self._dead_after,
            max(self._heard_at, self._pinged_at) + self._ping_interval,
        )
        self._keepalive_timer = self._loop.call_at(self._keepalive_due, self._keep_alive)

    def _keep_alive(self) -> None:
        if self.state != "up" or self._pc is None:
            return
        if aiortc_private.reassembly_bytes(self._pc) > REASSEMBLY_MAX:
            self._count("reassembly")
            self._down("the peer sends far beyond the receive window without finishing messages")
            return
        now = self._now()
        if now - self._keepalive_due > self._ping_interval / 2:
            # This process was stopped or starved: what came meanwhile waits in the sockets, so the
            # silence says nothing about the peer. One more PING decides.
            self._heard_at = max(self._heard_at, now - self._dead_after + self._ping_interval)
        silence = now - self._heard_at
        if silence >= self._dead_after:
            self._down(f"nothing was heard from the peer for {silence:.0f} s")
            return
        if silence >= self._ping_interval or now - self._pinged_at >= 6 * self._ping_interval:
            self._ping()
        self._arm_keepalive()

    # --- ending -------------------------------------------------------------------------------

    async def close(self, reason: str) -> None:
        """End the link for `reason` and wait until its sockets are closed; always bounded.

        What was sent before has up to :data:`LINGER` seconds to arrive.
        """
        self._down(reason, linger=LINGER if self.state == "up" else 0.0)
        if self._teardown_task is not None:
            await asyncio.shield(self._teardown_task)

    def _down(self, reason: str, *, linger: float = 0.0) -> None:
        if self.state == "down":
            return
        self.state = "down"
        self.buffered = 0
        self._early.clear()
        for timer in (self._connect_timer, self._keepalive_timer):
            if timer is not None:
                timer.cancel()
        if self._pc is not None:
            self._teardown_task = spawn(
                f"close of link {self.name}", self._teardown(self._pc, linger)
            )
        self._observer.link_down(self, reason)

    async def _teardown(self, pc: RTCPeerConnection, linger: float) -> None:
        deadline = self._now() + linger
        while self._now() < deadline and aiortc_private.has_unsent(pc):  # noqa: ASYNC110 - see below
            await asyncio.sleep(0.01)  # aiortc tells nobody when the last of it is acknowledged
        # Not wait_for: it would cancel a future inside aiortc that its own close task sets.
        closing = spawn(f"close of peer connection {self.name}", self._close_pc(pc))
        done, _ = await asyncio.wait([closing], timeout=CLOSE_TIMEOUT)
        if not done:
            _log.warning(
                "link %s: its peer connection did not close within %.0f s; dropping its sockets",
                self.name,
                CLOSE_TIMEOUT,
            )
            closing.cancel()
            aiortc_private.abort_sockets(pc)

    async def _close_pc(self, pc: RTCPeerConnection) -> None:
        try:
            await pc.close()
        except Exception as error:  # noqa: BLE001 - aiortc's close is no place to fail for anyone
            _log.debug("link %s: closing its peer connection: %r", self.name, error)
            aiortc_private.abort_sockets(pc)

    def _connection_changed(self) -> None:
        pc = self._pc
        if pc is None or self.state == "down":
            return
        match pc.connectionState:
            case "connected":
                # aiortc starts the task that reads datagrams right after it calls us.
                self._loop.call_soon(self._watch_receiver, pc)
            case "failed":
                self._down(self._why_failed(pc))
            case "closed":
                self._lost()

    def _why_failed(self, pc: RTCPeerConnection) -> str:
        if pc.iceConnectionState == "failed":
            if self.state == "up":
                return _PATH_LOST
            return f"no path to the peer works ({why_no_path(pc)})"
        return aiortc_private.dtls_failure(
            pc, self._remote_sdp.fingerprints if self._remote_sdp else []
        )

    def _watch_receiver(self, pc: RTCPeerConnection) -> None:
        task = aiortc_private.receive_task(pc)
        if task is not None and self._receiver is None:
            self._receiver = task
            task.add_done_callback(self._receiver_ended)

    def _receiver_ended(self, task: "asyncio.Task[None]") -> None:
        if not task.cancelled():
            self._lost()

    def _lost(self) -> None:
        """End the link that was ended by the peer, by ICE, or by an error in receiving."""
        if self.state == "down":
            return
        reason = "the peer closed the connection"
        task = self._receiver
        error = task.exception() if task and task.done() and not task.cancelled() else None
        if isinstance(error, RemoteProtocolError):
            self._count(error.kind)
            reason = str(error)
        elif error is not None:
            self._count("aiortc")
            reason = f"the peer sent what aiortc cannot take ({error!r})"
            if not aiortc_private.is_library_error(error):
                _log.error("link %s: a bug in handling a message", self.name, exc_info=error)
                reason = f"a message of the peer's hit a bug here ({error!r})"
        elif self._pc is not None and (lost := path_lost(self._pc)):
            reason = lost
        elif self._pc is not None and aiortc_private.path_is_closed(self._pc):
            reason = _PATH_LOST
        self._down(reason)

    def _connect_timed_out(self) -> None:
        pc = self._pc
        if self._remote_sdp is None:
            stage = "no answer came"
        elif pc is None or pc.iceConnectionState != "completed":
            tried = "" if pc is None else f" ({why_no_path(pc)})"
            stage = f"no ICE candidate pair has answered{tried}"
        elif pc.connectionState != "connected":
            stage = "the DTLS handshake is not done"
        elif not all(channel.readyState == "open" for channel in self._channels.values()):
            stage = "the data channels are not open"
        else:
            stage = "the peer has sent no HELLO"
        self._down(f"not connected within {self._connect_timeout:g} s: {stage}")


def _retrieve(task: "asyncio.Task[None]") -> None:
    """Take a failure note of, for the case that whoever waited for the task was cancelled."""
    if not task.cancelled():
        task.exception()
