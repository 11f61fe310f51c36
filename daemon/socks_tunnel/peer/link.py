"""A link: the conversation of :mod:`socks_tunnel.protocol.link` over one transport.

This is a thin shell. It feeds messages of the transport to the state machine, tells the owner what
has happened, sends what the state machine has to say, and sets the one timer again. Bytes of flows
pass through in batches that are not examined here.

Every end goes through :meth:`Link._end`. It tells the owner once, and begins the close of the
transport, which is bounded in time.
"""

import asyncio
import logging
import time
from collections.abc import Callable
from operator import itemgetter
from typing import Final, Literal, Protocol

from socks_tunnel.ops.bugs import BugLog
from socks_tunnel.peer.transport import LINGER, Role, Transport
from socks_tunnel.protocol.bounded import clip
from socks_tunnel.protocol.errors import LocalProtocolError
from socks_tunnel.protocol.keepalive import Timing
from socks_tunnel.protocol.link import (
    CONNECT_TIMEOUT,
    DEFAULT_TIMING,
    GoawayReceived,
    LinkEstablished,
    LinkEvent,
    LinkFailed,
    LinkProtocol,
    LinkSuspected,
    LinkTrusted,
    NotConnected,
    PeerErred,
    ResumeReceived,
    RttMeasured,
    UnknownReceived,
    VersionRefused,
)
from socks_tunnel.protocol.messages import LINK_TYPES, PROTOCOL_VERSION, Hello, Resume

_log = logging.getLogger(__name__)
_bugs = BugLog()

LinkState = Literal["new", "connecting", "up", "down"]
EndedBy = Literal["owner", "transport", "silence", "protocol", "bug"]
"""What ended a link: its owner, its transport, a silent peer, a peer that broke the protocol, or a
fault of this program."""

_FIRST_BYTE: Final = itemgetter(0)


class Timer(Protocol):
    """A call that is scheduled for later."""

    def cancel(self) -> object:
        """Cancels the call."""


class Clock(Protocol):
    """The clock of a link: that of the event loop, or of a test."""

    def time(self) -> float:
        """Returns the time in seconds. It never goes back, and has a resolution of microseconds."""

    def call_at(self, when: float, callback: Callable[[], object], /) -> Timer:
        """Makes a call at that time, or at once if it has passed."""


class LoopClock:
    """The event loop's timers with the system's time: uvloop's time has only milliseconds."""

    def __init__(self) -> None:
        self.time = time.monotonic
        self._loop = asyncio.get_running_loop()

    def call_at(self, when: float, callback: Callable[[], object]) -> Timer:
        """Makes a call at that time of :func:`time.monotonic`."""
        return self._loop.call_later(max(0.0, when - self.time()), callback)


class LinkObserver(Protocol):
    """What a link tells its owner: plain calls on the event loop.

    An exception in one of them is logged, and ends only this link.
    """

    def link_up(self) -> None:
        """The channels are open and both HELLOs are done."""

    def link_messages(self, messages: list[bytes]) -> None:
        """Flow messages of one turn, 7 to 65,536 bytes each. It may keep them. Only while up."""

    def link_drained(self, drained: int) -> None:
        """`drained` more bytes of what :meth:`Link.send_many` took have left, or were dropped."""

    def link_resume(self, resume: Resume) -> None:
        """The peer reports the state of its flows. Only if both HELLOs have `resume`."""

    def link_goaway(self, reason: int) -> None:
        """The peer wants no new flows on this link. Called at most once."""

    def link_suspected(self, seconds: float) -> None:
        """The peer has not answered for so many seconds. The link goes on."""

    def link_trusted(self) -> None:
        """A link that was suspected hears its peer again."""

    def link_down(self, reason: str) -> None:
        """The link has ended. Called exactly once, whether it was up or not."""


class Link:
    """One link. It owns its transport, which nobody has attached to yet.

    `name` is for logs. `hello` describes this side (an endpoint sends it with the session that the
    gateway chose). `connect_timeout` is in seconds. The callbacks are for metrics:
    `on_protocol_error` gets the kind of each protocol error of the peer, `on_unknown` is called
    for each message of an unknown type on `control`, `on_rtt` gets each round trip in seconds.

    This class has many methods because it has both the callbacks of a transport and the methods for
    an owner.
    """

    def __init__(
        self,
        observer: LinkObserver,
        transport: Transport,
        *,
        name: str,
        hello: Hello,
        clock: Clock | None = None,
        connect_timeout: float = CONNECT_TIMEOUT,
        timing: Timing = DEFAULT_TIMING,
        on_protocol_error: Callable[[str], None] | None = None,
        on_unknown: Callable[[], None] | None = None,
        on_rtt: Callable[[float], None] | None = None,
    ) -> None:
        self.name = name
        self.role: Role = transport.role
        self.state: LinkState = "new"
        self.ended_by: EndedBy = "owner"
        """The cause of the end, once the link is down."""
        self.transport = transport
        """The transport, with path, stats and buffered bytes. The link controls its life."""
        self._observer = observer
        self._clock: Clock = LoopClock() if clock is None else clock
        self.protocol = LinkProtocol(
            transport.role,
            hello,
            self._clock.time(),
            connect_timeout=connect_timeout,
            timing=timing,
        )
        """The state of the conversation, to read: HELLOs, round trip, errors, whether RESUME is
        agreed."""
        self._on_protocol_error = on_protocol_error
        self._on_unknown = on_unknown
        self._on_rtt = on_rtt
        self._timer: Timer | None = None
        self._timer_due = 0.0
        transport.attach(self)

    @property
    def max_message(self) -> int:
        """Longest message in bytes that :meth:`send_many` takes; final once the link is up."""
        return self.transport.max_message

    # --- setting up ---------------------------------------------------------------------------

    @property
    def rtt(self) -> float | None:
        """Last measured round trip in seconds, None before the first."""
        return self.protocol.keepalive.rtt

    async def create_offer(self) -> str:
        """Returns the offer of a gateway: whole SDP with all candidates.

        From now on, the link ends by itself if it is not up within `connect_timeout`. Raises
        :class:`~socks_tunnel.peer.transport.TransportError` if no offer can be made or the link
        was closed meanwhile; the link is down then.
        """
        self._begin()
        offer = await self.transport.create_offer()
        if self.transport.send_early(self.protocol.hello.encode()):
            self.protocol.hello_sent()
        return offer

    async def accept_answer(self, sdp: str) -> None:
        """Takes the endpoint's answer. The connection is then made in the background.

        Raises as :meth:`create_offer`.
        """
        await self.transport.accept_answer(sdp)
        self.protocol.restart_connecting(self._clock.time())
        self._arm()

    async def accept_offer(self, sdp: str) -> str:
        """Takes the gateway's offer and returns the answer. Raises as :meth:`create_offer`."""
        self._begin()
        return await self.transport.accept_offer(sdp)

    def _begin(self) -> None:
        if self.state == "new":
            self.state = "connecting"
            self.protocol.restart_connecting(self._clock.time())
            self._arm()

    # --- sending ------------------------------------------------------------------------------

    def send_many(self, messages: list[bytes]) -> None:
        """Sends flow messages. The list stays the caller's.

        On a link that is not up they are dropped, and `link_drained` does not count them. Raises
        :class:`LocalProtocolError`, and sends nothing of the batch, for what is no flow message
        and for what the peer cannot take (:meth:`Transport.send_many`).
        """
        if self.state != "up":
            return
        if not (all(messages) and LINK_TYPES.isdisjoint(map(_FIRST_BYTE, messages))):
            raise LocalProtocolError("not a flow message")
        self.transport.send_many(messages)
        if self.protocol.sent(self._clock.time()):
            self._arm()

    def send_resume(self, resume: Resume) -> None:
        """Tells the peer the state of our flows. Raises :class:`LocalProtocolError` if not agreed.

        A link that has ended meanwhile sends nothing.
        """
        self.protocol.resume(resume)
        self._pump()

    def goaway(self, reason: int) -> None:
        """Asks the peer to open no new flows on this link. Does nothing if the link is not up."""
        self.protocol.goaway(reason)
        self._pump()

    def ask(self) -> None:
        """Sends a PING now. If it is not answered soon, the link is suspected."""
        self.protocol.ask(self._clock.time())
        self._pump()

    # --- what the transport tells ---------------------------------------------------------------

    def transport_up(self) -> None:
        """The channels are open."""
        try:
            self.protocol.channels_opened(self._clock.time())
            self._pump()
        except Exception as error:  # noqa: BLE001 - the border: any exception ends only this link
            self._bug(error)

    def transport_control(self, messages: list[bytes]) -> None:
        """Takes messages that came on `control`."""
        now = self._clock.time()
        try:
            for message in messages:
                self.protocol.receive_message(message, now)
            self._pump()
        except Exception as error:  # noqa: BLE001 - as above
            self._bug(error)

    def transport_messages(self, messages: list[bytes]) -> None:
        """Passes on messages that came on the other channels."""
        try:
            batch = self.protocol.receive_flow_messages(messages, self._clock.time())
            if batch:
                self._observer.link_messages(batch)
            if self.protocol.pending:
                self._pump()
        except Exception as error:  # noqa: BLE001 - as above
            self._bug(error)

    def transport_writable(self, drained: int) -> None:
        """Passes on the number of bytes that have left."""
        try:
            if self.state == "up":
                self._observer.link_drained(drained)
        except Exception as error:  # noqa: BLE001 - as above
            self._bug(error)

    def transport_error(self, kind: str, what: str) -> None:
        """Counts an error that the transport has found."""
        try:
            self.protocol.peer_error(kind, what)
            self._pump()
        except Exception as error:  # noqa: BLE001 - as above
            self._bug(error)

    def transport_stalled(self, seconds: float) -> None:
        """Suspects the link sooner than an unanswered PING would."""
        self.protocol.stalled(seconds)
        self._pump()

    def transport_answered(self) -> None:
        """Ends that suspicion."""
        self.protocol.answered(self._clock.time())
        self._pump()

    def transport_down(self, reason: str) -> None:
        """Ends the link, because its transport has ended."""
        self._end(reason, by="transport")

    # --- the shell ------------------------------------------------------------------------------

    def _pump(self) -> None:
        """Sends messages of the state machine, reports its events, and sets the timer."""
        protocol = self.protocol
        while protocol.pending:
            outgoing = protocol.messages_to_send()
            if outgoing:
                self.transport.send_many(outgoing)
            event = protocol.next_event()
            if event is not None:
                self._tell(event)
        self._arm()

    def _tell(self, event: LinkEvent) -> None:
        match event:
            case LinkEstablished():
                self._go_up()
            case GoawayReceived(reason):
                self._observer.link_goaway(reason)
            case ResumeReceived(resume):
                self._observer.link_resume(resume)
            case RttMeasured(seconds):
                if self._on_rtt is not None:
                    self._on_rtt(seconds)
            case LinkSuspected(seconds):
                self._observer.link_suspected(seconds)
            case LinkTrusted():
                self._observer.link_trusted()
            case PeerErred():
                self._peer_erred(event)
            case UnknownReceived():
                if self._on_unknown is not None:
                    self._on_unknown()
            case VersionRefused(version, software):
                _log.error(
                    "link %s: the peer (%s) speaks protocol version %d, we speak %d; "
                    "upgrade one side",
                    self.name,
                    software or "unnamed",
                    version,
                    PROTOCOL_VERSION,
                )
            case NotConnected(seconds):
                up = self.transport.state == "up"
                stage = "the peer has sent no HELLO" if up else self.transport.stage
                self._end(f"not connected within {seconds:g} s: {stage}", by="silence")
            case LinkFailed(reason, linger):
                # Once both HELLOs are there, the time ends it only for silence.
                by: EndedBy = "silence" if self.state == "up" else "protocol"
                self._end(reason, by=by, linger=LINGER if linger else 0.0)

    def _go_up(self) -> None:
        self.state = "up"
        self._observer.link_up()
        early = self.protocol.take_early()
        if early:  # none, if the owner has just closed the link
            self._observer.link_messages(early)

    def _peer_erred(self, error: PeerErred) -> None:
        if error.first and error.what:
            _log.warning(
                "link %s: the peer %s; further errors of this kind are only counted",
                self.name,
                error.what,
            )
        if self._on_protocol_error is not None:
            self._on_protocol_error(error.kind)

    def _arm(self) -> None:
        """Sets the timer, unless one is already set that is early enough."""
        due = None if self.state in {"new", "down"} else self.protocol.next_timeout()
        if due is None or (self._timer is not None and self._timer_due <= due):
            return
        if self._timer is not None:
            self._timer.cancel()
        self._timer_due = due
        self._timer = self._clock.call_at(due, self._time_is_up)

    def _time_is_up(self) -> None:
        self._timer = None
        if self.state == "down":
            return
        try:
            heard_at = self.transport.heard_at
            if heard_at is not None:
                self.protocol.heard(heard_at)
            seen_at = self.transport.seen_at
            if seen_at is not None:
                self.protocol.seen(seen_at)
            self.protocol.handle_timeout(self._clock.time())
            self._pump()
        except Exception as error:  # noqa: BLE001 - as above
            self._bug(error)

    # --- the end --------------------------------------------------------------------------------

    async def close(self, reason: str) -> None:
        """Ends the link for `reason` and waits until its sockets are closed; always bounded.

        What was sent before has up to :data:`~socks_tunnel.peer.transport.LINGER` seconds to
        arrive.
        """
        self._end(reason, linger=LINGER if self.state == "up" else 0.0)
        await self.transport.wait_closed()

    def _end(self, reason: str, *, by: EndedBy = "owner", linger: float = 0.0) -> None:
        if self.state == "down":
            return
        self.state = "down"
        self.ended_by = by
        self.protocol.fail()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        try:
            self.transport.close(reason, linger=linger)
        finally:  # the owner waits for the end
            self._observer.link_down(reason)

    def _bug(self, error: Exception) -> None:
        """Ends this link after a bug in handling a message, here or in the owner."""
        if self.state == "down":
            _log.debug("link %s: after its end: %r", self.name, error)
            return
        _bugs.tell(_log, f"link {self.name}: a bug in dealing with its peer ends it", error)
        if self._on_protocol_error is not None:
            self._on_protocol_error("internal-error")
        self._end(
            f"a message of the peer's hit a bug here ({type(error).__name__}: {clip(error)})",
            by="bug",
        )
