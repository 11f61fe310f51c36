"""What a link says for itself: HELLO, PING, GOAWAY and RESUME. Sans-IO, and without a clock.

A link is one connection between a gateway and an endpoint. All of its own messages travel on the
channel `control` (docs/protocol.md sections 1, 3 and 5). States, all transitions of which are in
:class:`LinkProtocol`::

                      both HELLOs, and all channels open
    connecting ------------------------------------------------> established
        |                                                             |
        +--- no HELLO in time, a first message that is no HELLO,      +--- nothing heard for
        |    another version, another session                         |    `dead_after` seconds
        v                                                             v
      failed <--------------------------------------------------------+

The gateway sends HELLO right behind the opening of the channels if its transport can do that, else
as soon as all channels are open, and the endpoint answers it with its own. So a gateway is
established only after the endpoint has read its HELLO, and no flow message of the gateway can
overtake it. An endpoint that has read an early HELLO may be established before its gateway, which
still waits for a channel to be acknowledged. What it says then is kept until both are.

When it asks for signs of life and what it makes of their absence: protocol/keepalive.py.

The shell (`peer/link.py`) feeds, drains events, transmits and re-arms its timer after each call.
"""

from collections import Counter, deque
from dataclasses import dataclass, replace
from typing import Final, Literal, TypeAlias

from socks_tunnel.protocol.bounded import clip
from socks_tunnel.protocol.errors import LocalProtocolError, RemoteProtocolError
from socks_tunnel.protocol.keepalive import PONGS_PER_SECOND, Keepalive, Timing
from socks_tunnel.protocol.messages import (
    PROTOCOL_VERSION,
    Goaway,
    Hello,
    Ping,
    Pong,
    Resume,
    UnknownMessage,
    decode,
)

LinkRole = Literal["gateway", "endpoint"]
LinkState = Literal["connecting", "established", "failed"]

CONNECT_TIMEOUT: Final = 30.0
"""Seconds until a link that does not come up is given up."""

EARLY_MESSAGES_MAX: Final = 256
"""Flow messages that may arrive before the peer's HELLO: none if the peer is one of ours, as many
as a burst of opening messages from one that does not wait for our HELLO."""

EARLY_BYTES_MAX: Final = 1_048_576
"""Bytes of those messages."""

EARLY_RESUMES_MAX: Final = 64
"""RESUMEs that are kept until the link is established, which is a round trip later at most unless a
packet was lost: 128,000 rows of one of ours."""

DEFAULT_TIMING: Final = Timing()


# --- events -----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class LinkEstablished:
    """Both HELLOs are done and all channels are open: flow messages may be sent."""

    hello: Hello
    """The peer's. At an endpoint its `session` is the gateway's choice."""


@dataclass(frozen=True, slots=True)
class GoawayReceived:
    """The peer wants nothing new to be opened on this link. Told once; `reason` is 0 to 255."""

    reason: int


@dataclass(frozen=True, slots=True)
class ResumeReceived:
    """The peer says where its flows stand. Only if both HELLOs have the feature `resume`."""

    resume: Resume


@dataclass(frozen=True, slots=True)
class RttMeasured:
    """A PONG answered a PING of ours after `seconds`."""

    seconds: float


@dataclass(frozen=True, slots=True)
class LinkSuspected:
    """Something was sent `seconds` ago, and the peer has not answered it. Told once a time."""

    seconds: float


@dataclass(frozen=True, slots=True)
class LinkTrusted:
    """The peer of a suspected link has given a sign again."""


@dataclass(frozen=True, slots=True)
class PeerErred:
    """The peer broke the protocol; the message was dropped, and the link lives on.

    `kind` is a constant name for the metric. `what` completes the sentence "the peer …", and is
    empty if the end of the link, which follows, says it. `first` says whether this is the first
    error of its kind on this link.
    """

    kind: str
    what: str
    first: bool


@dataclass(frozen=True, slots=True)
class UnknownReceived:
    """A message of an unknown type came on `control`, and is ignored."""


@dataclass(frozen=True, slots=True)
class VersionRefused:
    """The peer speaks another version; :class:`LinkFailed` follows."""

    version: int
    software: str
    """Bounded and printable."""


@dataclass(frozen=True, slots=True)
class NotConnected:
    """The link is not established `seconds` after it began; it has failed."""

    seconds: float


@dataclass(frozen=True, slots=True)
class LinkFailed:
    """The link has to end. `linger`: what was sent last is still to arrive."""

    reason: str
    linger: bool = False


LinkEvent: TypeAlias = (
    LinkEstablished
    | GoawayReceived
    | ResumeReceived
    | RttMeasured
    | LinkSuspected
    | LinkTrusted
    | PeerErred
    | UnknownReceived
    | VersionRefused
    | NotConnected
    | LinkFailed
)


# --- the state machine ------------------------------------------------------------------------


class LinkProtocol:
    """The state of one link. `now` is in seconds of any clock that never goes back.

    `hello` is what we say of ourselves. An endpoint sends it with the session of the gateway.

    After each call of a method with `now`, the owner takes all of :meth:`next_event`, sends
    :meth:`messages_to_send`, and calls :meth:`handle_timeout` no later than :meth:`next_timeout`.

    This class has many methods because each thing that may happen to a link is one.
    """

    def __init__(
        self,
        role: LinkRole,
        hello: Hello,
        now: float,
        *,
        connect_timeout: float = CONNECT_TIMEOUT,
        timing: Timing = DEFAULT_TIMING,
    ) -> None:
        self.role = role
        self.state: LinkState = "connecting"
        self.hello = hello
        self.remote_hello: Hello | None = None
        self.errors: Counter[str] = Counter()
        """Protocol errors of the peer's by kind."""

        self._connect_timeout = connect_timeout
        self._events: deque[LinkEvent] = deque()
        self._outgoing: list[bytes] = []
        self._early: list[bytes] = []
        self._early_bytes = 0
        self._early_resumes: list[Resume] = []
        self._greeted = False
        self._channels_open = False
        self._gone_away = False
        self._connect_due = now + connect_timeout
        # Only a gateway can do something about a doubt: it dials another link.
        self.keepalive = Keepalive(now, timing, asks=role == "gateway")
        """The signs of life: round trip, and whether the peer is suspected."""

    # --- what happens -------------------------------------------------------------------------

    def restart_connecting(self, now: float) -> None:
        """The set-up has got a step further: `connect_timeout` counts from here."""
        if self.state == "connecting":
            self._connect_due = now + self._connect_timeout

    def hello_sent(self) -> None:
        """The transport sends HELLO behind the opening of the channels (gateway only)."""
        self._greeted = True

    def channels_opened(self, now: float) -> None:
        """All channels are open; a gateway says HELLO, unless it has said so before."""
        if self._channels_open or self.state == "failed":
            return
        self._channels_open = True
        if self.role == "gateway" and not self._greeted:
            self._outgoing.append(self.hello.encode())
        self._establish_if_ready(now)

    def receive_message(self, message: bytes, now: float) -> None:
        """Takes a message that came on `control`, of whatever content."""
        if self.state == "failed":
            return
        self.heard(now)
        try:
            decoded = decode(message)
        except RemoteProtocolError as error:
            text = clip(error)
            if self.remote_hello is None:
                self.peer_error(error.kind, "")
                self._fail(f"the peer's first message is no HELLO: {text}")
            else:
                self.peer_error(error.kind, f"sent a bad message on `control`: {text}")
            return
        if self.remote_hello is None and not isinstance(decoded, Hello):
            self.peer_error("before-hello", "")
            self._fail(f"the peer's first message is no HELLO but has type {message[0]}")
            return
        match decoded:
            case Ping():
                self._ping_arrived(decoded, now)
            case Pong():
                self._pong_arrived(decoded, now)
            case Hello():
                self._hello_arrived(decoded, now)
            case Goaway():
                self._goaway_arrived(decoded)
            case Resume():
                self._resume_arrived(decoded)
            case UnknownMessage():
                self._events.append(UnknownReceived())
            case _:
                self.peer_error(
                    "wrong-channel", f"sent a message of type {message[0]} on `control`"
                )

    def receive_flow_messages(self, messages: list[bytes], now: float) -> list[bytes]:
        """Takes what came on the other channels, and returns what is to be dealt with now.

        That is the same list on a link that is established. Before, they are kept, and
        :meth:`take_early` has them afterwards; too many of them end the link.
        """
        self.heard(now)
        if self.state == "established":
            return messages
        if self.state == "connecting":
            self._early += messages
            self._early_bytes += sum(map(len, messages))
            if len(self._early) > EARLY_MESSAGES_MAX or self._early_bytes > EARLY_BYTES_MAX:
                self.peer_error("before-hello", "")
                self._fail(
                    f"the peer sent over {EARLY_MESSAGES_MAX} messages before HELLO"
                    if len(self._early) > EARLY_MESSAGES_MAX
                    else f"the peer sent over {EARLY_BYTES_MAX} bytes before HELLO"
                )
        return []

    def take_early(self) -> list[bytes]:
        """Returns the flow messages that came before :class:`LinkEstablished`, once."""
        early, self._early = self._early, []
        return early

    def seen(self, at: float) -> None:
        """Takes the moment at which the peer has last answered a check of the path."""
        self.keepalive.seen(at)

    def heard(self, at: float) -> None:
        """The peer has given a sign of life, now or a moment ago: a packet of its transport."""
        if self.keepalive.heard(at):
            self._events.append(LinkTrusted())

    def stalled(self, seconds: float) -> None:
        """For so long the transport's packets have not been answered."""
        if self.state == "established" and self.keepalive.stalled():
            self._events.append(LinkSuspected(seconds))

    def answered(self, now: float) -> None:
        """The transport's packets are answered again."""
        if self.keepalive.path_answers(now):
            self._events.append(LinkTrusted())

    def sent(self, now: float) -> bool:
        """Flow messages were sent. Returns whether :meth:`next_timeout` may be sooner now."""
        return self.state == "established" and self.keepalive.sent(now)

    def peer_error(self, kind: str, what: str) -> None:
        """Counts an error of the peer's, which its transport may have found as well.

        `kind` is one of our constant names, `what` is bounded; empty if the end of the link,
        which follows, says it.
        """
        self.errors[kind] += 1
        self._events.append(PeerErred(kind, what, self.errors[kind] == 1))

    # --- what is asked for --------------------------------------------------------------------

    @property
    def resumable(self) -> bool:
        """Whether both sides have the feature `resume`."""
        remote = self.remote_hello
        return (
            remote is not None and "resume" in remote.features and "resume" in self.hello.features
        )

    def goaway(self, reason: int) -> None:
        """Asks the peer to open nothing new on this link. Before it is established: nothing."""
        if self.state == "established":
            self._outgoing.append(Goaway(reason).encode())

    def ask(self, now: float) -> None:
        """Asks the peer for an answer at once. Before the link is established: nothing."""
        if self.state == "established":
            self._outgoing.append(Ping(self.keepalive.ping(now)).encode())

    def resume(self, resume: Resume) -> None:
        """Tells the peer where our flows stand. Raises :class:`LocalProtocolError` if not agreed.

        A link that has failed meanwhile takes it and sends nothing.
        """
        if self.state == "failed":
            return
        if self.state != "established" or not self.resumable:
            raise LocalProtocolError("RESUME on a link on which it was not agreed upon")
        self._outgoing.append(resume.encode())

    def fail(self) -> None:
        """The link has ended for another reason: nothing comes and goes any more."""
        self.state = "failed"
        self._early.clear()
        self._early_resumes.clear()
        self._outgoing.clear()
        self._events.clear()

    @property
    def pending(self) -> bool:
        """Whether there are events or messages to be taken."""
        return bool(self._events or self._outgoing)

    # --- what comes of it ---------------------------------------------------------------------

    def next_event(self) -> LinkEvent | None:
        """Returns the next thing that has happened, in order; None if there is no more."""
        return self._events.popleft() if self._events else None

    def messages_to_send(self) -> list[bytes]:
        """Returns what is to be sent on `control` now, once."""
        outgoing, self._outgoing = self._outgoing, []
        return outgoing

    def next_timeout(self) -> float | None:
        """Returns when :meth:`handle_timeout` is to be called; None: never again."""
        if self.state == "failed":
            return None
        return self._connect_due if self.state == "connecting" else self.keepalive.next_due()

    def handle_timeout(self, now: float) -> None:
        """Does what is due. May be called early, then nothing happens, and late."""
        if self.state == "connecting":
            if now >= self._connect_due:
                self.state = "failed"
                self._events.append(NotConnected(self._connect_timeout))
            return
        if self.state == "failed":
            return
        verdict = self.keepalive.check(now)
        if verdict.dead is not None:
            self._fail(f"nothing was heard from the peer for {verdict.dead:.0f} s")
            return
        if verdict.ping is not None:
            self._outgoing.append(Ping(verdict.ping).encode())
        if verdict.suspected is not None:
            self._events.append(LinkSuspected(verdict.suspected))

    # --- helpers ------------------------------------------------------------------------------

    def _ping_arrived(self, ping: Ping, now: float) -> None:
        if self.keepalive.may_answer(now):
            self._outgoing.append(Pong(ping.opaque).encode())
        else:
            self.peer_error("ping-flood", f"sent over {PONGS_PER_SECOND} PINGs a second")

    def _pong_arrived(self, pong: Pong, now: float) -> None:
        suspected = self.keepalive.suspected
        rtt = self.keepalive.answered(pong.opaque, now)
        if suspected and not self.keepalive.suspected:
            self._events.append(LinkTrusted())
        if rtt is not None:
            self._events.append(RttMeasured(rtt))

    def _hello_arrived(self, hello: Hello, now: float) -> None:
        if self.remote_hello is not None:
            self.peer_error("second-hello", "sent HELLO twice")
            return
        fits = hello.version == PROTOCOL_VERSION
        if self.role == "endpoint":
            if fits:
                self.hello = replace(self.hello, session=hello.session)
            # Also before a refusal: the other side's operator is to see both versions.
            self._outgoing.append(self.hello.encode())
        if not fits:
            self.peer_error("version", "")
            software = clip(hello.software)
            self._events.append(VersionRefused(hello.version, software))
            self._fail(
                f"the peer speaks protocol version {hello.version}, we speak {PROTOCOL_VERSION}",
                linger=True,
            )
            return
        if self.role == "gateway" and hello.session != self.hello.session:
            self.peer_error("session", "")
            self._fail("the peer's HELLO names another session than ours")
            return
        self.remote_hello = hello
        self._establish_if_ready(now)

    def _goaway_arrived(self, goaway: Goaway) -> None:
        if self._gone_away:
            self.peer_error("second-goaway", "sent GOAWAY twice")
            return
        self._gone_away = True
        self._events.append(GoawayReceived(goaway.reason))

    def _resume_arrived(self, resume: Resume) -> None:
        if not self.resumable:
            self.peer_error("unexpected-resume", "sent RESUME, which was not agreed upon")
        elif self.state == "established":
            self._events.append(ResumeReceived(resume))
        elif len(self._early_resumes) < EARLY_RESUMES_MAX:
            self._early_resumes.append(resume)
        else:
            self.peer_error("unexpected-resume", "")
            self._fail(
                f"the peer sent over {EARLY_RESUMES_MAX} RESUMEs before all channels were open"
            )

    def _establish_if_ready(self, now: float) -> None:
        if self.state != "connecting" or self.remote_hello is None or not self._channels_open:
            return
        self.state = "established"
        self._events.append(LinkEstablished(self.remote_hello))
        self._events += map(ResumeReceived, self._early_resumes)
        self._early_resumes.clear()
        self.keepalive.heard(now)
        self._outgoing.append(Ping(self.keepalive.ping(now)).encode())

    def _fail(self, reason: str, *, linger: bool = False) -> None:
        self.state = "failed"
        self._early.clear()
        self._early_resumes.clear()
        self._events.append(LinkFailed(reason, linger))
