"""IPC between the supervisor and its children: frames, and the control messages in them.

One Unix stream per child carries frames back to back, all integers big-endian::

    +----------+--------+-----------+----------------------+
    | LENGTH:4 | KIND:1 | SESSION:2 |         BODY         |
    +----------+--------+-----------+----------------------+
     LENGTH counts KIND, SESSION and BODY (3 + the body's length).
     KIND 0: BODY is one tunnel message, untouched: TYPE at offset 7 of the frame, CONN_ID at 10.
     KIND 1: BODY is one control message: a msgpack list [OP, field, …] (see below).
     KIND 2: BODY is the next part of a control message that one frame does not hold; the message
             ends with the KIND 1 frame that follows the parts.

SESSION names a session inside this daemon; 0 means "no session" (control messages only). A flow
therefore outlives the link beneath it: links attach to sessions and leave them again.

Each control message is a dataclass below; OP and the order of the fields are its wire form. These
frames never leave the host, and may change with any release.

This file is long because each control message is a class of its own.
"""

import struct
from dataclasses import dataclass, fields
from enum import IntEnum
from types import GenericAlias, UnionType
from typing import Any, ClassVar, Final, TypeAlias, get_origin

import msgpack

from socks_tunnel.protocol import bounded
from socks_tunnel.protocol.addresses import Buffer
from socks_tunnel.protocol.errors import RemoteProtocolError

FRAME_HEADER: Final = struct.Struct("!IBH")
"""LENGTH, KIND, SESSION: 7 bytes."""

BODY_MAX: Final = 65_536 + 65_536
"""Longest BODY in bytes: the tunnel message limit and 64 KiB."""

CONTROL_MAX: Final = 16 * 1_048_576
"""Longest control message in bytes, parts together (a large configuration)."""

BUFFER_SIZE: Final = 4 * BODY_MAX
"""Bytes that one read of a stream takes at most."""

_PART_SIZE: Final = 65_536
_OVERHEAD: Final = FRAME_HEADER.size - 4


class FrameKind(IntEnum):
    """KIND of an IPC frame."""

    MESSAGE = 0
    CONTROL = 1
    PART = 2


# --- control messages -------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ChildHello:
    """Child to supervisor, first: who it is."""

    OP: ClassVar[str] = "hello"
    pid: int


@dataclass(frozen=True, slots=True)
class ChildReady:
    """Child to supervisor: it is configured and serves."""

    OP: ClassVar[str] = "ready"


@dataclass(frozen=True, slots=True)
class IpcPing:
    """Supervisor to child: answer from the loop that does the work."""

    OP: ClassVar[str] = "ping"
    number: int


@dataclass(frozen=True, slots=True)
class IpcPong:
    """Child to supervisor: the answer to the ping of that number."""

    OP: ClassVar[str] = "pong"
    number: int


@dataclass(frozen=True, slots=True)
class Shutdown:
    """Supervisor to child: close everything now and exit with status 0."""

    OP: ClassVar[str] = "shutdown"


@dataclass(frozen=True, slots=True)
class ReadyState:
    """Supervisor to exporter, once a second: None if the daemon is ready, else why it is not."""

    OP: ClassVar[str] = "state"
    reason: str | None


@dataclass(frozen=True, slots=True)
class Configure:
    """Supervisor to worker, after its hello. `count` is the number of workers.

    `listeners` has a list [descriptor, kind, target host or "", target port] for each inherited
    socket; kind is `socks`, `forward-tcp` or `forward-udp`.
    """

    OP: ClassVar[str] = "config"
    count: int
    config: dict[str, Any]
    listeners: list[list[Any]]


@dataclass(frozen=True, slots=True)
class Reload:
    """Supervisor to worker: another configuration is in force."""

    OP: ClassVar[str] = "reload"
    config: dict[str, Any]


@dataclass(frozen=True, slots=True)
class SessionOpened:
    """Supervisor to worker: there is a session with a peer. It has no link yet."""

    OP: ClassVar[str] = "session"
    peer: str


@dataclass(frozen=True, slots=True)
class Attach:
    """Supervisor to worker: a link carries the session from now on.

    The numbers are those of the peer's HELLO. `credit` is how many bytes may be transmitted at
    first. With `resume` flows are held until the last :class:`PeerRows` has come. The worker
    answers with :class:`Attached`; until then the supervisor drops what it transmits, since that
    was meant for an earlier link.
    """

    OP: ClassVar[str] = "attach"
    window: int
    max_data: int
    idle_udp: int
    features: list[str]
    credit: int
    resume: bool


@dataclass(frozen=True, slots=True)
class Attached:
    """Worker to supervisor: the session is attached; `rows` are its part of our RESUME."""

    OP: ClassVar[str] = "attached"
    rows: list[list[int]]
    last: bool


@dataclass(frozen=True, slots=True)
class PeerRows:
    """Supervisor to worker: rows of the peer's RESUME for its flows. `last`: there are no more."""

    OP: ClassVar[str] = "rows"
    rows: list[list[int]]
    last: bool


@dataclass(frozen=True, slots=True)
class Detach:
    """Supervisor to worker: the link is gone, the session stays."""

    OP: ClassVar[str] = "detach"
    reason: str


@dataclass(frozen=True, slots=True)
class SessionEnded:
    """Supervisor to worker: the session is over, and so are its flows."""

    OP: ClassVar[str] = "session-end"
    reason: str


@dataclass(frozen=True, slots=True)
class NewFlows:
    """Supervisor to worker: the sessions that new flows of ours may go to.

    For each route of the configuration, in its order, two lists of sessions: those that are
    preferred, and others that are used if none of these can transmit. See
    :class:`socks_tunnel.protocol.routes.Candidates`.

    `beside` has for each route lists [session, number]: how many flows are added to those that the
    worker has with that session, where the peer with the fewest is looked for.
    """

    OP: ClassVar[str] = "new-flows"
    targets: list[list[list[int]]]
    beside: list[list[list[float]]]


@dataclass(frozen=True, slots=True)
class DialFailed:
    """Worker to supervisor: the peer of the session did not reach a target of the route.

    `reason` is that of the CLOSE, one of :data:`socks_tunnel.protocol.failover.UNREACHED`.
    """

    OP: ClassVar[str] = "dial-failed"
    route: str
    host: str
    reason: int


@dataclass(frozen=True, slots=True)
class DialsDone:
    """Worker to supervisor: through these peers targets of these routes were reached.

    `rows` has lists [route, session].
    """

    OP: ClassVar[str] = "dials-done"
    rows: list[list[Any]]


@dataclass(frozen=True, slots=True)
class Probe:
    """Supervisor to worker: find out whether the peer of the session reaches a target."""

    OP: ClassVar[str] = "probe"
    number: int
    host: str
    port: int


@dataclass(frozen=True, slots=True)
class Probed:
    """Worker to supervisor: how the probe of that number ended; `reason` 0: it was reached."""

    OP: ClassVar[str] = "probed"
    number: int
    reason: int


@dataclass(frozen=True, slots=True)
class Credit:
    """Supervisor to worker: so many more bytes may be transmitted, or fewer if it is below zero.

    `chunk` is the longest DATA payload in bytes that suits the rate of the link, `round_trip` the
    link's round trip in microseconds (0: not measured yet).
    """

    OP: ClassVar[str] = "credit"
    count: int
    chunk: int
    round_trip: int


@dataclass(frozen=True, slots=True)
class Demand:
    """Worker to supervisor: so many flows of the session have something to transmit.

    Credit is shared by it. It is told after a :class:`Credit`, when it has changed or is some time
    old.
    """

    OP: ClassVar[str] = "demand"
    flows: int


@dataclass(frozen=True, slots=True)
class Drain:
    """Supervisor to worker: accept nothing new, and say when the last flow has ended."""

    OP: ClassVar[str] = "drain"


@dataclass(frozen=True, slots=True)
class Drained:
    """Worker to supervisor: no flow is left."""

    OP: ClassVar[str] = "drained"


@dataclass(frozen=True, slots=True)
class Settle:
    """Supervisor to worker: take no new clients, and say when those that wait are served.

    What they wait for has `seconds`.
    """

    OP: ClassVar[str] = "settle"
    seconds: float


@dataclass(frozen=True, slots=True)
class Settled:
    """Worker to supervisor: so many clients still wait for something; they would lose it."""

    OP: ClassVar[str] = "settled"
    waiting: int


@dataclass(frozen=True, slots=True)
class HandOver:
    """Supervisor to worker: go on as the program that is installed now.

    It is the last frame of the old supervisor: the next one comes from the new one.
    """

    OP: ClassVar[str] = "hand-over"


@dataclass(frozen=True, slots=True)
class HandedOver:
    """Worker to supervisor: the state has been written, with so many flows.

    It is the last frame of the old worker: the next one is the hello of the new one.
    """

    OP: ClassVar[str] = "handed-over"
    flows: int


@dataclass(frozen=True, slots=True)
class Ask:
    """Supervisor to worker: a question for an operator. Exporter to supervisor: for its page.

    `what` is `status` or `connections`, of the exporter `overview`. With `limit` (not negative)
    only so many flows are wanted, those that have the most of what `by` says.
    """

    OP: ClassVar[str] = "ask"
    number: int
    what: str
    limit: int
    by: str


@dataclass(frozen=True, slots=True)
class Answer:
    """The way back: rows that answer the question of that number; `more` will follow."""

    OP: ClassVar[str] = "answer"
    number: int
    rows: list[dict[str, Any]]
    more: bool


@dataclass(frozen=True, slots=True)
class Kill:
    """Supervisor to worker: an operator ends the flow of that CONN_ID with that peer.

    The answer is an :class:`Answer` with the row of each flow that this has ended.
    """

    OP: ClassVar[str] = "kill"
    number: int
    peer: str
    conn_id: int


Control: TypeAlias = (
    ChildHello
    | ChildReady
    | IpcPing
    | IpcPong
    | Shutdown
    | ReadyState
    | Configure
    | Reload
    | SessionOpened
    | Attach
    | Attached
    | PeerRows
    | Detach
    | SessionEnded
    | NewFlows
    | DialFailed
    | DialsDone
    | Probe
    | Probed
    | Credit
    | Demand
    | Drain
    | Drained
    | Settle
    | Settled
    | HandOver
    | HandedOver
    | Ask
    | Answer
    | Kill
)

_CLASSES: Final[dict[str, type[Any]]] = {kind.OP: kind for kind in Control.__args__}


def _types(annotation: object) -> tuple[type, ...]:
    """Returns the classes that a decoded value of a field may have."""
    if isinstance(annotation, UnionType):
        return tuple(kind for part in annotation.__args__ for kind in _types(part))
    origin = get_origin(annotation) if isinstance(annotation, GenericAlias) else annotation
    assert isinstance(origin, type)
    return (origin,)


_FIELDS: Final[dict[str, tuple[tuple[str, tuple[type, ...]], ...]]] = {
    op: tuple((field.name, _types(field.type)) for field in fields(kind))
    for op, kind in _CLASSES.items()
}


def encode_control(session: int, message: Control) -> bytes:
    """Returns the frame of a control message, or its frames if one does not hold it.

    Raises :class:`ValueError` if it is over :data:`CONTROL_MAX`.
    """
    values = [message.OP, *(getattr(message, name) for name, _ in _FIELDS[message.OP])]
    body: bytes = msgpack.packb(values)
    if len(body) <= BODY_MAX:
        return FRAME_HEADER.pack(len(body) + _OVERHEAD, FrameKind.CONTROL, session) + body
    if len(body) > CONTROL_MAX:
        raise ValueError(f"a control message of {len(body)} bytes is over the limit {CONTROL_MAX}")
    frames = []
    for start in range(0, len(body), _PART_SIZE):
        part = body[start : start + _PART_SIZE]
        last = start + _PART_SIZE >= len(body)
        kind = FrameKind.CONTROL if last else FrameKind.PART
        frames += [FRAME_HEADER.pack(len(part) + _OVERHEAD, kind, session), part]
    return b"".join(frames)


def decode_control(body: Buffer) -> Control:
    """Decodes a whole control message. Raises :class:`RemoteProtocolError`."""
    try:
        values = bounded.unpack_own(body)
    except bounded.Malformed as error:
        raise RemoteProtocolError(f"bad control message: {error}", kind="ipc-control") from None
    if not isinstance(values, list) or not values or not isinstance(values[0], str):
        raise RemoteProtocolError("a control message is no list with an OP", kind="ipc-control")
    op = values[0]
    expected = _FIELDS.get(op)
    if expected is None:
        raise RemoteProtocolError(f"unknown control '{bounded.clip(op)}'", kind="ipc-control")
    if len(values) != len(expected) + 1:
        raise RemoteProtocolError(
            f"control '{op}' has {len(values) - 1} fields, not {len(expected)}", kind="ipc-control"
        )
    for value, (name, kinds) in zip(values[1:], expected, strict=True):
        if type(value) not in kinds:
            raise RemoteProtocolError(
                f"control '{op}' has a {type(value).__name__} as {name}", kind="ipc-control"
            )
    message: Control = _CLASSES[op](*values[1:])
    return message
