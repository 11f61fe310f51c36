"""Tunnel messages: what two socks-tunnel hosts say over the data channels (docs/protocol.md).

This file is long because the wire is read best in one place.

Every message starts with the same seven bytes, all integers big-endian::

    +--------+------------+------------+----------------
    | TYPE:1 | RESERVED:2 | CONN_ID:4  |  body by TYPE
    +--------+------------+------------+----------------
     RESERVED is sent as zero and ignored on receipt. CONN_ID 0 means the link itself.
"""

import struct
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, ClassVar, Final, NamedTuple, TypeAlias

import msgpack

from socks_tunnel.protocol import bounded
from socks_tunnel.protocol.addresses import (
    NAME_MAX,
    Buffer,
    HostPort,
    address_length,
    decode_address,
    decode_name,
    encode_address,
    parse_ip,
)
from socks_tunnel.protocol.errors import CloseReason, RemoteProtocolError

HEADER = struct.Struct("!BHI")
"""TYPE, RESERVED, CONN_ID: 7 bytes."""

MESSAGE_MAX = 65_536
"""Longest message in bytes: the smallest max-message-size of a data channel (RFC 8841)."""

DATA_MAX = MESSAGE_MAX - HEADER.size
"""Longest DATA payload in bytes (65,529)."""

INITIAL_WINDOW = 262_144
"""Bytes that a peer may send on a new flow before any were consumed (HELLO `window`)."""

PROTOCOL_VERSION = 1
SUBPROTOCOL = "socks-tunnel/1"

SOFTWARE_MAX = bounded.CLIP
"""Bytes of HELLO's `software` that are kept: it goes into logs and to terminals."""

HELLO_BOUNDS: Final = bounded.Bounds(size=16_384)
"""What a HELLO may have, the keys that this version does not know included."""

RESUME_ROWS_MAX: Final = 2000
"""Rows that one RESUME of ours has at most: 2,000 of 29 bytes fit a message of 65,536 bytes."""

RESUME_BOUNDS: Final = bounded.Bounds(size=MESSAGE_MAX, entries=4096, items=16_384)
"""What one RESUME may have: room for 3,000 flows. A longer list takes several messages."""

ANSWERS_MAX = 64
"""Answers of one RESOLVED: with names of 255 bytes they still fit one message."""

_WINDOW = struct.Struct("!QQ")
_TTL = struct.Struct("!I")
_PORT = struct.Struct("!H")
_U64_MAX = (1 << 64) - 1


class MessageType(IntEnum):
    """TYPE of a tunnel message."""

    PING = 1
    PONG = 2
    HELLO = 10
    GOAWAY = 11
    RESUME = 12
    OPEN_CONNECTION = 14
    CLOSE_CONNECTION = 15
    CONNECTION_OPENED = 103
    SEND_EOF = 104
    DATA = 105
    WINDOW_UPDATE = 106
    UDP_ASSOCIATE = 201
    UDP_ASSOCIATE_OPENED = 202
    UDP_PACKET = 203
    UDP_ASSOCIATE_CLOSED = 204
    BIND = 211
    BIND_LISTENING = 212
    BIND_ACCEPTED = 213
    RESOLVE = 220
    RESOLVED = 221


LINK_TYPES = frozenset(
    {MessageType.PING, MessageType.PONG, MessageType.HELLO, MessageType.GOAWAY, MessageType.RESUME}
)
"""Types that belong to the link (channel `control`, CONN_ID 0); all others belong to a flow."""

FLOW_OPENERS = frozenset(
    {
        int(MessageType.OPEN_CONNECTION),
        int(MessageType.UDP_ASSOCIATE),
        int(MessageType.BIND),
        int(MessageType.RESOLVE),
    }
)
"""Types whose CONN_ID names a flow, or a question, that does not exist yet."""

FLOW_ENDERS = frozenset(
    {
        int(MessageType.CLOSE_CONNECTION),
        int(MessageType.UDP_ASSOCIATE_CLOSED),
        int(MessageType.RESOLVED),
    }
)
"""Types after which nothing more is said of their CONN_ID."""


def message_header(kind: int, conn_id: int) -> bytes:
    """Returns the seven bytes that start a message."""
    return HEADER.pack(kind, 0, conn_id)


def message_key(message: Buffer) -> tuple[int, int]:
    """Returns (TYPE, CONN_ID) of a message without looking at its body.

    Raises :class:`RemoteProtocolError` if it is shorter than a header.
    """
    if len(message) < HEADER.size:
        raise RemoteProtocolError(
            f"a message of {len(message)} bytes is shorter than its header", kind="short-message"
        )
    kind, _, conn_id = HEADER.unpack_from(message)
    return kind, conn_id


def mix32(value: int) -> int:
    """Mix the bits of a 32-bit number (the finalizer of MurmurHash3).

    Ids that one worker hands out are equal modulo small numbers; after this they spread evenly
    over lanes and workers.
    """
    value &= 0xFFFFFFFF
    value ^= value >> 16
    value = (value * 0x85EBCA6B) & 0xFFFFFFFF
    value ^= value >> 13
    value = (value * 0xC2B2AE35) & 0xFFFFFFFF
    return value ^ (value >> 16)


def _short(name: str, conn_id: int) -> RemoteProtocolError:
    return RemoteProtocolError(
        f"{name} is shorter than its layout", kind=f"malformed-{name.lower()}", conn_id=conn_id
    )


def _trailing(name: str, conn_id: int) -> RemoteProtocolError:
    return RemoteProtocolError(
        f"{name} has bytes after its end", kind=f"malformed-{name.lower()}", conn_id=conn_id
    )


# --- messages of the link ---------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Ping:
    """PING: `[OPAQUE:8]`, to be echoed."""

    TYPE: ClassVar[MessageType] = MessageType.PING
    opaque: bytes

    def encode(self) -> bytes:
        """Returns the whole message."""
        return message_header(self.TYPE, 0) + self.opaque


@dataclass(frozen=True, slots=True)
class Pong:
    """PONG: `[OPAQUE:8]` of the PING that it answers."""

    TYPE: ClassVar[MessageType] = MessageType.PONG
    opaque: bytes

    def encode(self) -> bytes:
        """Returns the whole message."""
        return message_header(self.TYPE, 0) + self.opaque


@dataclass(frozen=True, slots=True)
class Hello:
    """HELLO: a msgpack map, the first message each way on `control`.

    `window` is the sender's initial per-flow window in bytes, `max_data` the largest DATA payload
    that it accepts, `idle_udp` in seconds, `session` 16 bytes chosen by the gateway. Of a HELLO
    with another `version` than :data:`PROTOCOL_VERSION` only `version` and `software` are decoded.
    """

    TYPE: ClassVar[MessageType] = MessageType.HELLO
    version: int
    software: str
    session: bytes
    window: int
    max_data: int
    features: tuple[str, ...] = ()
    idle_udp: int = 300

    def encode(self) -> bytes:
        """Returns the whole message."""
        fields = {
            "version": self.version,
            "software": self.software,
            "session": self.session,
            "window": self.window,
            "max_data": self.max_data,
            "features": list(self.features),
            "idle_udp": self.idle_udp,
        }
        return message_header(self.TYPE, 0) + bytes(msgpack.packb(fields))


@dataclass(frozen=True, slots=True)
class Goaway:
    """GOAWAY: `[REASON:1]`; open nothing new on this link, flows may finish."""

    TYPE: ClassVar[MessageType] = MessageType.GOAWAY
    reason: int

    def encode(self) -> bytes:
        """Returns the whole message."""
        return message_header(self.TYPE, 0) + bytes((self.reason,))


@dataclass(frozen=True, slots=True)
class Resume:
    """RESUME: a msgpack map `{"flows": [[conn_id, received, limit, flags], …], "last": bool}`.

    What the numbers mean is said in docs/protocol.md section 6. A list that is too long for one
    message (:data:`RESUME_ROWS_MAX`) takes several; the last of them has `last`.
    """

    TYPE: ClassVar[MessageType] = MessageType.RESUME
    rows: tuple[tuple[int, int, int, int], ...] = ()
    last: bool = True

    def encode(self) -> bytes:
        """Returns the whole message."""
        fields: dict[str, object] = {"flows": [list(row) for row in self.rows]}
        if self.last:
            fields["last"] = True
        return message_header(self.TYPE, 0) + bytes(msgpack.packb(fields))


# --- messages of a TCP flow -------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class OpenConnection:
    """OPEN_CONNECTION: `[RESERVED:4] [HOST_LEN:1] [HOST] [PORT:2]`.

    `host` is canonical (see :func:`socks_tunnel.protocol.addresses.canonical_host`).
    """

    TYPE: ClassVar[MessageType] = MessageType.OPEN_CONNECTION
    conn_id: int
    host: str
    port: int

    def encode(self) -> bytes:
        """Returns the whole message."""
        host = self.host.encode("ascii")
        if not 1 <= len(host) <= NAME_MAX:
            raise ValueError(f"a host of {len(host)} bytes does not fit OPEN_CONNECTION")
        return b"".join(
            (
                message_header(self.TYPE, self.conn_id),
                b"\0\0\0\0",
                bytes((len(host),)),
                host,
                _PORT.pack(self.port),
            )
        )


@dataclass(frozen=True, slots=True)
class CloseConnection:
    """CLOSE_CONNECTION: nothing, or `[REASON:1]`; absent is the same as 0x00, an orderly close."""

    TYPE: ClassVar[MessageType] = MessageType.CLOSE_CONNECTION
    conn_id: int
    reason: int = CloseReason.ORDERLY

    def encode(self) -> bytes:
        """Returns the whole message; an orderly close is the original's form, without REASON."""
        header = message_header(self.TYPE, self.conn_id)
        return header + bytes((self.reason,)) if self.reason else header


@dataclass(frozen=True, slots=True)
class ConnectionOpened:
    """CONNECTION_OPENED: `[ATYP] [ADDR] [PORT:2]` of the endpoint's socket (SOCKS5 BND)."""

    TYPE: ClassVar[MessageType] = MessageType.CONNECTION_OPENED
    conn_id: int
    bound: HostPort

    def encode(self) -> bytes:
        """Returns the whole message."""
        return message_header(self.TYPE, self.conn_id) + encode_address(self.bound)


@dataclass(frozen=True, slots=True)
class SendEof:
    """SEND_EOF: no more DATA from this side (TCP FIN); the other direction lives on."""

    TYPE: ClassVar[MessageType] = MessageType.SEND_EOF
    conn_id: int

    def encode(self) -> bytes:
        """Returns the whole message."""
        return message_header(self.TYPE, self.conn_id)


@dataclass(frozen=True, slots=True)
class Data:
    """DATA: 1 to 65,529 stream bytes. `data` may be a view into the decoded message."""

    TYPE: ClassVar[MessageType] = MessageType.DATA
    conn_id: int
    data: Buffer

    def encode(self) -> bytes:
        """Returns the whole message."""
        return message_header(self.TYPE, self.conn_id) + self.data


@dataclass(frozen=True, slots=True)
class WindowUpdate:
    """WINDOW_UPDATE: `[CONSUMED:8] [LIMIT:8]`, counted in stream bytes from the flow's start."""

    TYPE: ClassVar[MessageType] = MessageType.WINDOW_UPDATE
    conn_id: int
    consumed: int
    limit: int

    def encode(self) -> bytes:
        """Returns the whole message."""
        return message_header(self.TYPE, self.conn_id) + _WINDOW.pack(self.consumed, self.limit)


# --- messages of a UDP association ------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class UdpAssociate:
    """UDP_ASSOCIATE: open an association."""

    TYPE: ClassVar[MessageType] = MessageType.UDP_ASSOCIATE
    conn_id: int

    def encode(self) -> bytes:
        """Returns the whole message."""
        return message_header(self.TYPE, self.conn_id)


@dataclass(frozen=True, slots=True)
class UdpAssociateOpened:
    """UDP_ASSOCIATE_OPENED: nothing, or `[ATYP] [ADDR] [PORT:2]` of the endpoint's socket."""

    TYPE: ClassVar[MessageType] = MessageType.UDP_ASSOCIATE_OPENED
    conn_id: int
    bound: HostPort | None = None

    def encode(self) -> bytes:
        """Returns the whole message."""
        header = message_header(self.TYPE, self.conn_id)
        return header if self.bound is None else header + encode_address(self.bound)


@dataclass(frozen=True, slots=True)
class UdpPacket:
    """UDP_PACKET: a whole SOCKS5 UDP packet, `[RSV:2] [FRAG:1] [ATYP:1] [ADDR] [PORT:2] [DATA]`.

    The packet is not parsed here: see :func:`socks_tunnel.protocol.socks5.parse_udp_packet`.
    """

    TYPE: ClassVar[MessageType] = MessageType.UDP_PACKET
    conn_id: int
    packet: Buffer

    def encode(self) -> bytes:
        """Returns the whole message."""
        return message_header(self.TYPE, self.conn_id) + self.packet


@dataclass(frozen=True, slots=True)
class UdpAssociateClosed:
    """UDP_ASSOCIATE_CLOSED: nothing, or `[REASON:1]`."""

    TYPE: ClassVar[MessageType] = MessageType.UDP_ASSOCIATE_CLOSED
    conn_id: int
    reason: int = CloseReason.ORDERLY

    def encode(self) -> bytes:
        """Returns the whole message."""
        header = message_header(self.TYPE, self.conn_id)
        return header + bytes((self.reason,)) if self.reason else header


# --- messages of a BIND -----------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Bind:
    """BIND: `[ATYP] [ADDR] [PORT:2]` of the expected caller."""

    TYPE: ClassVar[MessageType] = MessageType.BIND
    conn_id: int
    caller: HostPort

    def encode(self) -> bytes:
        """Returns the whole message."""
        return message_header(self.TYPE, self.conn_id) + encode_address(self.caller)


@dataclass(frozen=True, slots=True)
class BindListening:
    """BIND_LISTENING: `[ATYP] [ADDR] [PORT:2]` of the listening socket (first SOCKS5 reply)."""

    TYPE: ClassVar[MessageType] = MessageType.BIND_LISTENING
    conn_id: int
    bound: HostPort

    def encode(self) -> bytes:
        """Returns the whole message."""
        return message_header(self.TYPE, self.conn_id) + encode_address(self.bound)


@dataclass(frozen=True, slots=True)
class BindAccepted:
    """BIND_ACCEPTED: `[ATYP] [ADDR] [PORT:2]` of the caller (second SOCKS5 reply)."""

    TYPE: ClassVar[MessageType] = MessageType.BIND_ACCEPTED
    conn_id: int
    caller: HostPort

    def encode(self) -> bytes:
        """Returns the whole message."""
        return message_header(self.TYPE, self.conn_id) + encode_address(self.caller)


# --- questions about names ----------------------------------------------------------------------


class ResolveKind(IntEnum):
    """KIND of RESOLVE."""

    ADDRESSES = 0
    """The addresses of a name."""
    NAME = 1
    """The name of an address."""


@dataclass(frozen=True, slots=True)
class Resolve:
    """RESOLVE: `[KIND:1] [HOST_LEN:1] [HOST]`; CONN_ID names the question.

    `host` is canonical: a name, or for :attr:`ResolveKind.NAME` an IP literal without brackets.
    """

    TYPE: ClassVar[MessageType] = MessageType.RESOLVE
    conn_id: int
    kind: ResolveKind
    host: str

    def encode(self) -> bytes:
        """Returns the whole message."""
        host = self.host.encode("ascii")
        if not 1 <= len(host) <= NAME_MAX:
            raise ValueError(f"a host of {len(host)} bytes does not fit RESOLVE")
        return message_header(self.TYPE, self.conn_id) + bytes((self.kind, len(host))) + host


class Answer(NamedTuple):
    """One answer of RESOLVED: canonical `host`, and for how many seconds it may be kept."""

    ttl: int
    host: str


@dataclass(frozen=True, slots=True)
class Resolved:
    """RESOLVED: `[REASON:1] [COUNT:1]`, then COUNT times `[TTL:4] [ATYP:1] [ADDR or name]`.

    It answers the RESOLVE with the same CONN_ID, and ends it. ADDR is as in RFC 1928 section 5, but
    no PORT follows. REASON 0x00 says that the question was answered, perhaps by no answer at all.
    """

    TYPE: ClassVar[MessageType] = MessageType.RESOLVED
    conn_id: int
    reason: int = CloseReason.ORDERLY
    answers: tuple[Answer, ...] = ()

    def encode(self) -> bytes:
        """Returns the whole message. Raises :class:`ValueError` beyond :data:`ANSWERS_MAX`."""
        if len(self.answers) > ANSWERS_MAX:
            raise ValueError(f"{len(self.answers)} answers do not fit RESOLVED")
        parts = [message_header(self.TYPE, self.conn_id), bytes((self.reason, len(self.answers)))]
        for ttl, host in self.answers:
            parts += (_TTL.pack(ttl), encode_address(HostPort(host, 0))[: -_PORT.size])
        return b"".join(parts)


@dataclass(frozen=True, slots=True)
class UnknownMessage:
    """A message of a TYPE that this version does not know: counted and ignored."""

    kind: int
    conn_id: int


Message: TypeAlias = (
    Ping
    | Pong
    | Hello
    | Goaway
    | Resume
    | OpenConnection
    | CloseConnection
    | ConnectionOpened
    | SendEof
    | Data
    | WindowUpdate
    | UdpAssociate
    | UdpAssociateOpened
    | UdpPacket
    | UdpAssociateClosed
    | Bind
    | BindListening
    | BindAccepted
    | Resolve
    | Resolved
    | UnknownMessage
)


def decode(message: Buffer) -> Message:
    """Decodes one whole message.

    DATA and UDP_PACKET keep a view into `message` (no copy). Raises :class:`RemoteProtocolError`,
    with the CONN_ID where one could be read, for a message that does not fit its layout. Bytes
    after the end of a fixed layout are malformed too: "a message whose lengths do not add up".
    """
    kind, conn_id = message_key(message)
    body = memoryview(message)[HEADER.size :]
    match kind:
        case MessageType.DATA:
            if not 1 <= len(body) <= DATA_MAX:
                raise RemoteProtocolError(
                    f"DATA has {len(body)} bytes, not 1 to {DATA_MAX}",
                    kind="malformed-data",
                    conn_id=conn_id,
                )
            return Data(conn_id, body)
        case MessageType.WINDOW_UPDATE:
            _exact(body, _WINDOW.size, "WINDOW_UPDATE", conn_id)
            consumed, limit = _WINDOW.unpack(body)
            if consumed > limit:
                raise RemoteProtocolError(
                    f"WINDOW_UPDATE has CONSUMED {consumed} beyond LIMIT {limit}",
                    kind="malformed-window_update",
                    conn_id=conn_id,
                )
            return WindowUpdate(conn_id, consumed, limit)
        case MessageType.UDP_PACKET:
            return UdpPacket(conn_id, body)
        case MessageType.OPEN_CONNECTION:
            return _decode_open(body, conn_id)
        case MessageType.CLOSE_CONNECTION:
            return CloseConnection(conn_id, _reason(body, "CLOSE_CONNECTION", conn_id))
        case MessageType.CONNECTION_OPENED:
            return ConnectionOpened(conn_id, _address(body, "CONNECTION_OPENED", conn_id))
        case MessageType.SEND_EOF:
            _exact(body, 0, "SEND_EOF", conn_id)
            return SendEof(conn_id)
        case MessageType.UDP_ASSOCIATE:
            _exact(body, 0, "UDP_ASSOCIATE", conn_id)
            return UdpAssociate(conn_id)
        case MessageType.UDP_ASSOCIATE_OPENED:
            bound = _address(body, "UDP_ASSOCIATE_OPENED", conn_id) if body else None
            return UdpAssociateOpened(conn_id, bound)
        case MessageType.UDP_ASSOCIATE_CLOSED:
            return UdpAssociateClosed(conn_id, _reason(body, "UDP_ASSOCIATE_CLOSED", conn_id))
        case MessageType.BIND:
            return Bind(conn_id, _address(body, "BIND", conn_id))
        case MessageType.BIND_LISTENING:
            return BindListening(conn_id, _address(body, "BIND_LISTENING", conn_id))
        case MessageType.BIND_ACCEPTED:
            return BindAccepted(conn_id, _address(body, "BIND_ACCEPTED", conn_id))
        case MessageType.RESOLVE:
            return _decode_resolve(body, conn_id)
        case MessageType.RESOLVED:
            return _decode_resolved(body, conn_id)
        case MessageType.PING:
            _exact(body, 8, "PING", conn_id)
            return Ping(bytes(body))
        case MessageType.PONG:
            _exact(body, 8, "PONG", conn_id)
            return Pong(bytes(body))
        case MessageType.GOAWAY:
            _exact(body, 1, "GOAWAY", conn_id)
            return Goaway(body[0])
        case MessageType.HELLO:
            return _decode_hello(body)
        case MessageType.RESUME:
            return _decode_resume(body)
        case _:
            return UnknownMessage(kind, conn_id)


def _exact(body: memoryview, size: int, name: str, conn_id: int) -> None:
    if len(body) < size:
        raise _short(name, conn_id)
    if len(body) > size:
        raise _trailing(name, conn_id)


def _reason(body: memoryview, name: str, conn_id: int) -> int:
    if len(body) > 1:
        raise _trailing(name, conn_id)
    return body[0] if body else CloseReason.ORDERLY


def _address(body: memoryview, name: str, conn_id: int) -> HostPort:
    try:
        address, end = decode_address(body)
    except RemoteProtocolError as error:
        raise RemoteProtocolError(
            f"{name}: {error}", kind=f"malformed-{name.lower()}", conn_id=conn_id
        ) from None
    if end != len(body):
        raise _trailing(name, conn_id)
    return address


def _decode_open(body: memoryview, conn_id: int) -> OpenConnection:
    name = "OPEN_CONNECTION"
    if len(body) < 5:
        raise _short(name, conn_id)
    _exact(body, 5 + body[4] + 2, name, conn_id)
    try:
        host = decode_name(body[5:-2])
    except RemoteProtocolError as error:
        raise RemoteProtocolError(
            f"{name}: {error}", kind="malformed-open_connection", conn_id=conn_id
        ) from None
    (port,) = _PORT.unpack_from(body, len(body) - 2)
    return OpenConnection(conn_id, host, port)


def _decode_resolve(body: memoryview, conn_id: int) -> Resolve:
    name = "RESOLVE"
    if len(body) < 2:
        raise _short(name, conn_id)
    _exact(body, 2 + body[1], name, conn_id)
    try:
        kind = ResolveKind(body[0])
        host = decode_name(body[2:])
    except (ValueError, RemoteProtocolError) as error:
        raise RemoteProtocolError(
            f"{name}: {error}", kind="malformed-resolve", conn_id=conn_id
        ) from None
    if kind is ResolveKind.NAME and parse_ip(host) is None:
        raise RemoteProtocolError(
            f"{name} asks for the name of {host!r}, which is no address",
            kind="malformed-resolve",
            conn_id=conn_id,
        )
    return Resolve(conn_id, kind, host)


def _decode_resolved(body: memoryview, conn_id: int) -> Resolved:
    name = "RESOLVED"
    if len(body) < 2:
        raise _short(name, conn_id)
    reason, count = body[0], body[1]
    if count > ANSWERS_MAX:
        raise RemoteProtocolError(
            f"{name} has {count} answers; at most {ANSWERS_MAX} fit",
            kind="malformed-resolved",
            conn_id=conn_id,
        )
    answers: list[Answer] = []
    at = 2
    for _ in range(count):
        if len(body) < at + _TTL.size:
            raise _short(name, conn_id)
        (ttl,) = _TTL.unpack_from(body, at)
        at += _TTL.size
        host, at = _answer_host(body, at, conn_id)
        answers.append(Answer(ttl, host))
    if at != len(body):
        raise _trailing(name, conn_id)
    return Resolved(conn_id, reason, tuple(answers))


def _answer_host(body: memoryview, at: int, conn_id: int) -> tuple[str, int]:
    """Decodes ATYP and ADDR at `at`: an address field of RFC 1928 section 5 without its PORT."""
    try:
        length = address_length(body, at)
    except RemoteProtocolError as error:
        raise RemoteProtocolError(
            f"RESOLVED: {error}", kind="malformed-resolved", conn_id=conn_id
        ) from None
    if length is None or len(body) < at + length - _PORT.size:
        raise _short("RESOLVED", conn_id)
    end = at + length - _PORT.size
    whole = memoryview(bytes(body[at:end]) + bytes(_PORT.size))
    return _address(whole, "RESOLVED", conn_id).host, end


def _map(body: memoryview, name: str, bounds: bounded.Bounds) -> dict[str, Any]:
    try:
        return bounded.unpack_map(body, bounds)
    except bounded.Malformed as error:
        raise RemoteProtocolError(
            f"{name} is malformed: {error}", kind=f"malformed-{name.lower()}"
        ) from None


def _decode_resume(body: memoryview) -> Resume:
    fields = _map(body, "RESUME", RESUME_BOUNDS)
    listed, last = fields.get("flows", []), fields.get("last", False)
    if not isinstance(listed, list) or not isinstance(last, bool):
        raise RemoteProtocolError("RESUME has no usable flows or last", kind="malformed-resume")
    rows = []
    for row in listed:
        if not isinstance(row, list) or len(row) != 4 or not all(type(n) is int for n in row):
            raise RemoteProtocolError("RESUME has a row of another form", kind="malformed-resume")
        conn_id, received, limit, flags = row
        if not (0 < conn_id <= 0xFFFFFFFF and min(received, limit, flags) >= 0):
            raise RemoteProtocolError("RESUME has a number out of range", kind="malformed-resume")
        rows.append((conn_id, received, limit, flags))
    return Resume(tuple(rows), last)


def _decode_hello(body: memoryview) -> Hello:
    fields = _map(body, "HELLO", HELLO_BOUNDS)
    try:
        version = bounded.integer(fields, "version", 0, _U64_MAX)
        if version != PROTOCOL_VERSION:
            # The link ends with a log line that names both versions; what else such a HELLO has to
            # hold is not ours to say.
            software = fields.get("software", "")
            software = bounded.clip(software, SOFTWARE_MAX) if isinstance(software, str) else ""
            return Hello(version=version, software=software, session=b"", window=0, max_data=0)
        return Hello(
            version=version,
            software=bounded.clip(bounded.text(fields, "software", ""), SOFTWARE_MAX),
            session=bounded.binary(fields, "session", 16),
            window=bounded.integer(fields, "window", 1, _U64_MAX, INITIAL_WINDOW),
            max_data=bounded.integer(fields, "max_data", 1, _U64_MAX, DATA_MAX),
            features=bounded.texts(fields, "features"),
            idle_udp=bounded.integer(fields, "idle_udp", 0, _U64_MAX, 300),
        )
    except bounded.Malformed as error:
        raise RemoteProtocolError(f"HELLO: {error}", kind="malformed-hello") from None
