"""The interface between a link and whatever carries its messages to the other host.

A transport moves whole tunnel messages and knows the three kinds of channel that they use
(docs/protocol.md section 1). It knows nothing of HELLO, PING or flows: that is the link above it.

::

    Link (peer/link.py)          offers, answers, send_many, close
      |          ^
      v          |               up, control, messages, writable, error, down
    Transport -- plain/  unmodified aiortc
              -- fast/   our own datagram path, DTLS records and SCTP engine
              -- tests/support/memory_transport.py  in memory, with loss, cuts and a virtual clock

States of every transport, all in one direction::

    new --create_offer / accept_offer--> connecting --all channels open--> up
     |                                       |                             |
     +------------ close() or any failure, exactly once -------------------+--> down

Rules that hold for every implementation:

* One event loop (or one virtual clock) owns a transport. Nothing here is safe from other threads.
* Callbacks are plain calls. They are never made from inside :meth:`Transport.send_many`, so that
  an owner may send from anywhere, also from a callback.
* Batches cross the border: at most one `transport_control`, one `transport_messages` and one
  `transport_writable` for each turn of the event loop, in this order.
* What arrived before the end is delivered before `transport_down`. After `transport_down`, and
  after the call of :meth:`Transport.close`, nothing is delivered any more.
* A `bytes` object belongs to nobody after it has been handed over: the transport may keep a
  reference to what it was given until it is acknowledged, the owner may keep what it was handed.
  The *lists* belong to whoever made the call: the callee keeps neither of them after it returns,
  except that the owner may keep the list of a callback, which the transport never uses again.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal, Protocol

if TYPE_CHECKING:  # the imports below import aiortc, which not every transport needs
    from socks_tunnel.peer.ice import SelectedPath

Role = Literal["gateway", "endpoint"]
TransportState = Literal["new", "connecting", "up", "down"]

LINGER: Final = 1.0
"""Seconds that an orderly close waits for what was sent to be acknowledged."""

CLOSE_TIMEOUT: Final = 5.0
"""Seconds, after the linger, until a close that hangs is cut short and the sockets are dropped."""

QUEUE_LIMIT: Final = 131_072
"""The `queue_limit` in bytes of a transport that does not measure its path."""

REASSEMBLY_MAX: Final = 64 * 1024 * 1024
"""Bytes of unfinished or out-of-order messages that a peer may make a transport hold, beyond the
receive window that was offered to it. A sender like aiortc's has only its congestion window as a
limit."""


class TransportError(Exception):
    """The connection cannot be set up; the text is a sentence for the log."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TransportStats:
    """Figures of a transport about its path at one time. None: this transport does not know.

    Counters run from the start of the connection and only grow.
    """

    rtt: float | None = None
    """Smoothed round trip of the transport itself, in seconds."""
    rtt_min: float | None = None
    """Smallest recent round trip in seconds, which is that of the path without queues."""
    rtt_variation: float | None = None
    """Variation of the round trip in seconds (RTTVAR of RFC 9260 section 6.3.1)."""
    cwnd: int | None = None
    """Congestion window in bytes."""
    outstanding: int | None = None
    """Bytes that were sent and are not acknowledged yet."""
    queued: int | None = None
    """Bytes of messages that the transport has accepted and not put into a packet yet."""
    delivery_rate: float | None = None
    """Measured rate at which the peer acknowledges, in bytes per second."""
    retransmissions: int | None = None
    """Chunks (fragments of messages) that were sent again."""
    timeouts: int | None = None
    """Retransmission timers that expired."""
    sacks_received: int | None = None
    sacks_sent: int | None = None
    packets_sent: int | None = None
    packets_received: int | None = None
    """Packets of the peer that were authenticated (DTLS records)."""
    bytes_sent: int | None = None
    """Bytes of those packets, without UDP and IP headers."""
    bytes_received: int | None = None
    datagrams_dropped: int | None = None
    """UDP_PACKETs that :meth:`Transport.send_many` took and that were not sent: they were longer
    than the peer takes or, on transports with a queue of their own, too old."""
    dropped: Mapping[str, int] | None = None
    """Other drops by their reason, one of :data:`socks_tunnel.ops.labels.TRANSPORT_DROPS`. Reasons
    that this transport does not count are missing."""
    mtu: int | None = None
    """Largest UDP payload in bytes that is known to reach the peer."""


class TransportObserver(Protocol):
    """What a transport tells its one owner.

    The owner guards itself: an exception that leaves one of these methods is a bug of ours, which
    a transport answers by ending itself (`transport_down`) after it has logged the traceback.
    """

    def transport_up(self) -> None:
        """All channels are open, and :meth:`Transport.send_many` takes every kind of message.

        An endpoint's transport is up when the peer has opened `control`, `datagram` and at least
        one lane. Messages may arrive before this call.
        """

    def transport_control(self, messages: list[bytes]) -> None:
        """These came on `control` in this turn, in order.

        Each is 0 to 65,536 bytes long, and nothing else is checked. From the first call on,
        :meth:`Transport.send_many` takes messages for `control`, also if the transport is not up.
        """

    def transport_messages(self, messages: list[bytes]) -> None:
        """These came on lanes and on `datagram` in this turn: flow messages.

        Each is 7 to 65,536 bytes long, and what came on `datagram` is UDP_PACKET. The messages of
        one channel are in their order. Nothing else is checked: a lane may bring any TYPE.
        """

    def transport_writable(self, drained: int) -> None:
        """`drained` more bytes, at least one, of what :meth:`Transport.send_many` took have left.

        "Left" means for the queue of SCTP or for good: messages that were dropped are counted as
        well, so that the sum of all calls grows to the sum of what was given. Messages for
        `control` do not count. Bytes leave in about the order in which they were given; a
        transport that sends datagrams first may report those out of turn.
        """

    def transport_error(self, kind: str, what: str) -> None:
        """The peer broke a rule of the channels; the message was dropped.

        `kind` is a constant name for the metric, `what` completes the sentence "the peer …" and
        is bounded; it is empty if the end, which follows, says it. May be called for each such
        message: whoever logs it limits that.
        """

    def transport_stalled(self, seconds: float) -> None:
        """The peer's transport has acknowledged nothing that was sent for so many seconds.

        The transport keeps trying. Transports that cannot detect this never call it.
        """

    def transport_answered(self) -> None:
        """The peer's transport answers again, after :meth:`transport_stalled`."""

    def transport_down(self, reason: str) -> None:
        """The transport has ended; called exactly once, also if it never was up.

        `reason` is a sentence for the log; what it has of the peer is bounded. A call of
        :meth:`Transport.close` also leads here, before it returns.
        """


class Transport(Protocol):
    """One connection to one peer, from its first SDP to the end of its sockets."""

    @property
    def role(self) -> Role:
        """The role: a gateway makes the offer and opens the channels."""

    @property
    def state(self) -> TransportState:
        """The state in its life cycle."""

    @property
    def max_message(self) -> int:
        """Longest message in bytes that the peer takes, at most 65,536.

        Final once the peer's SDP was read; 65,536 before.
        """

    @property
    def buffered(self) -> int:
        """Bytes that :meth:`send_many` took and `transport_writable` has not reported yet."""

    @property
    def queue_limit(self) -> int:
        """Bytes that are worth having in :attr:`buffered` at a time, at least 65,536.

        It is about one bandwidth-delay product if the transport measures that. With less, the path
        would be idle. More would only make a keystroke wait behind a download. It may change at any
        time.
        """

    @property
    def heard_at(self) -> float | None:
        """When the last packet of the peer's came that was authenticated; None before the first.

        In seconds of :func:`time.monotonic` (in tests, of their clock). It is also a sign of life
        while no whole message arrives, as during a long upload. It is read at each check for
        silence.
        """

    @property
    def seen_at(self) -> float | None:
        """When the peer has last answered a check of the path itself; None if there are none.

        On the same clock as :attr:`heard_at`. The answer was authenticated. It says nothing about
        data that was sent over the path.
        """

    @property
    def path(self) -> "SelectedPath | None":
        """The path in use, whose `str()` is for an operator; None while there is none."""

    @property
    def candidates(self) -> tuple[list[str], list[str]]:
        """Our candidates and the peer's as texts for an operator; none before they are known."""

    @property
    def stage(self) -> str:
        """What a connection that is not up yet waits for, for the message of its time-out.

        It ends the sentence "not connected within 30 s: …", for example "no answer came".
        """

    @property
    def stats(self) -> TransportStats:
        """The present figures. They are computed for each call, so do not ask for each message."""

    def attach(self, observer: TransportObserver) -> None:
        """Names the owner. Called once, before anything else."""

    async def create_offer(self) -> str:
        """Returns the offer of a gateway: the whole SDP with all candidates.

        Raises :class:`TransportError` if no offer can be made or the transport was closed
        meanwhile; it is down then, and the owner was told. A caller that is cancelled loses no
        socket; it has to close the transport.
        """

    async def accept_answer(self, sdp: str) -> None:
        """Takes the endpoint's answer, once. The connection is then made in the background.

        Raises :class:`TransportError` as :meth:`create_offer` does.
        """

    async def accept_offer(self, sdp: str) -> str:
        """Takes the gateway's offer and returns the answer of an endpoint: the whole SDP.

        The connection is then made in the background. Raises :class:`TransportError` as
        :meth:`create_offer` does.
        """

    def send_many(self, messages: list[bytes]) -> None:
        """Takes messages and picks the channel of each by its TYPE.

        PING, PONG, HELLO, GOAWAY and RESUME go on `control`, UDP_PACKET goes on `datagram`, and
        all else goes on the lane of its CONN_ID: lane `mix32(CONN_ID) % lanes`, of the lanes that
        were open when the first message for a lane was sent, so that a flow never changes its
        lane. Owners call it once a turn with all that they have. The queue behind it has no
        bound: the owner keeps to what `transport_writable` gives back.

        A UDP_PACKET longer than :attr:`max_message` is dropped, counted in `datagrams_dropped`
        and reported by `transport_writable`. Before the transport is up, messages for channels
        that are not open yet are dropped; once it is down, all are; neither is reported.

        Raises :class:`~socks_tunnel.protocol.errors.LocalProtocolError`, and takes nothing of the
        batch, if a message other than UDP_PACKET is longer than :attr:`max_message` (dropping it
        would corrupt a stream) or if any is shorter than a header.
        """

    def send_early(self, message: bytes) -> bool:
        """Sends a message on `control` right behind the opening of all channels.

        That is a round trip before the channels are acknowledged (RFC 8832 section 6). Called once,
        by a gateway, between offer and answer. Returns False, and takes nothing, if the transport
        cannot do that.
        """

    def close(self, reason: str, *, linger: float = 0.0) -> None:
        """Begins the end of the transport, once. `transport_down` is called from inside it.

        What was sent before has up to `linger` seconds to be acknowledged. Never raises.
        """

    async def wait_closed(self) -> None:
        """Waits until the sockets are closed, after the end has begun.

        Bounded: it returns within `linger` + :data:`CLOSE_TIMEOUT` seconds, whatever hangs. The
        close itself goes on if its caller is cancelled.
        """
