"""The channels of a connection: which are allowed, and what each may carry. Sans-IO.

These are the rules of docs/protocol.md section 1 for all transports::

    label             delivery                          carries
    control           reliable, ordered                 PING, PONG, HELLO, GOAWAY, RESUME
    datagram          unordered, no retransmission      UDP_PACKET only
    lane-0 … lane-63  reliable, ordered                 everything else
"""

from collections.abc import Callable
from typing import Final, Literal

from socks_tunnel.peer.transport import TransportObserver
from socks_tunnel.protocol.messages import (
    HEADER,
    LINK_TYPES,
    MESSAGE_MAX,
    SUBPROTOCOL,
    MessageType,
    mix32,
)

CONTROL: Final = "control"
DATAGRAM: Final = "datagram"

LANES_MAX: Final = 64
"""Most lanes of one connection."""

LANES: Final = 32
"""Number of lanes that a gateway opens."""

LANE_LABELS: Final = frozenset(f"lane-{number}" for number in range(LANES_MAX))

LABEL_SHOWN_MAX: Final = 40
"""Characters of a peer's channel label or subprotocol that are shown in a log line."""

ChannelKind = Literal["control", "datagram", "lane"]

# Plain integers on the message path, because comparing an enum member costs several times more.
_UDP_PACKET: Final = int(MessageType.UDP_PACKET)
_CONTROL_TYPES: Final = frozenset(int(kind) for kind in LINK_TYPES)
_HEADER_SIZE: Final = HEADER.size


def kind_of(
    label: str,
    *,
    ordered: bool,
    max_retransmits: int | None,
    max_lifetime: int | None,
    subprotocol: str,
) -> ChannelKind | None:
    """Returns the kind of a channel with these parameters, or None if it is of no kind.

    `max_retransmits` and `max_lifetime` are None for a channel that is reliable.
    """
    if subprotocol != SUBPROTOCOL or max_lifetime is not None:
        return None
    if label == DATAGRAM:
        return "datagram" if not ordered and max_retransmits == 0 else None
    if not ordered or max_retransmits is not None:
        return None
    if label == CONTROL:
        return "control"
    return "lane" if label in LANE_LABELS else None


def refusal(label: str, subprotocol: str, *, ordered: bool, second: bool) -> str:
    """Returns the reason for which a channel of the peer ends the connection."""
    return (
        f"the peer opened {'a second' if second else 'an unsuitable'} channel "
        f"{label[:LABEL_SHOWN_MAX]!r} (subprotocol {subprotocol[:LABEL_SHOWN_MAX]!r}, "
        f"{'ordered' if ordered else 'unordered'})"
    )


def channel_for(kind: int) -> ChannelKind:
    """Returns the kind of channel on which a message of this TYPE is sent."""
    if kind == _UDP_PACKET:
        return "datagram"
    return "control" if kind in _CONTROL_TYPES else "lane"


def lane_of(message: bytes, lanes: int) -> int:
    """Returns the number of the lane for a flow message, if there are `lanes` lanes.

    CONN_IDs of one worker are equal modulo small numbers. After mixing they are spread evenly.
    """
    return mix32(int.from_bytes(message[3:7])) % lanes


class Inbox:
    """Checks the messages of one turn of the event loop, and passes them on in one batch.

    `defer` is the loop's `call_soon`, or None if the transport calls :meth:`flush` at the end of
    each turn itself. A transport calls the method of the channel on which a message came. Text
    messages are `str`. The transport calls :meth:`close` and :meth:`flush` at its end.
    """

    __slots__ = ("_control", "_defer", "_flows", "_observer", "_open", "waiting")

    def __init__(
        self, observer: TransportObserver, defer: Callable[[Callable[[], None]], object] | None
    ) -> None:
        self._observer = observer
        self._defer = defer
        self._control: list[bytes] = []
        self._flows: list[bytes] = []
        self.waiting = False
        """Whether :meth:`flush` has something to pass on."""
        self._open = True

    def from_lane(self, message: bytes | str) -> None:
        """Takes a message that came on a lane."""
        if isinstance(message, bytes) and _HEADER_SIZE <= len(message) <= MESSAGE_MAX:
            self._flows.append(message)
            if not self.waiting:
                self._schedule()
        else:
            self._odd(message)

    def from_datagram(self, message: bytes | str) -> None:
        """Takes a message that came on `datagram`."""
        if not isinstance(message, bytes) or not _HEADER_SIZE <= len(message) <= MESSAGE_MAX:
            self._odd(message)
        elif message[0] != _UDP_PACKET:
            self._complain("wrong-channel", f"sent a message of type {message[0]} on `{DATAGRAM}`")
        else:
            self._flows.append(message)
            if not self.waiting:
                self._schedule()

    def from_control(self, message: bytes | str) -> None:
        """Takes a message that came on `control`. The link checks its length."""
        if isinstance(message, bytes) and len(message) <= MESSAGE_MAX:
            self._control.append(message)
            if not self.waiting:
                self._schedule()
        else:
            self._odd(message)

    def flush(self) -> None:
        """Passes waiting messages on. An exception of the observer goes to the caller."""
        self.waiting = False
        if self._control and self._open:
            batch, self._control = self._control, []
            self._observer.transport_control(batch)
        # This is checked again, because a message on `control` may just have ended the connection.
        if self._flows and self._open:
            batch, self._flows = self._flows, []
            self._observer.transport_messages(batch)

    def close(self) -> None:
        """Forgets waiting messages, and passes on no more."""
        self._open = False
        self._control.clear()
        self._flows.clear()

    def _schedule(self) -> None:
        self.waiting = True
        if self._defer is not None:
            self._defer(self.flush)

    def _odd(self, message: bytes | str) -> None:
        if isinstance(message, str):
            self._complain("text-message", "sent a text message; all are binary")
        elif len(message) < _HEADER_SIZE:
            self._complain("short-message", "sent a message shorter than its header")
        else:
            self._complain("long-message", f"sent a message of {len(message)} bytes")

    def _complain(self, kind: str, what: str) -> None:
        if self._open:
            self._observer.transport_error(kind, what)
