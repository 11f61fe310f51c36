"""SOCKS5 (RFC 1928) with username/password authentication (RFC 1929), sans-IO: the server's side.

The client's side is in :mod:`socks_tunnel.protocol.socks5_client`.

What passes over the TCP connection, in this order::

    client                                              server
    05 NMETHODS METHODS...            ->
                                      <-                05 METHOD         (FF: none acceptable)
    01 ULEN UNAME PLEN PASSWD         ->                                  (METHOD 02 only)
                                      <-                01 STATUS         (00: accepted)
    05 CMD RSV ATYP DST.ADDR DST.PORT ->
                                      <-                05 REP RSV ATYP BND.ADDR BND.PORT
                                      <-                the same again    (BIND only)

Two commands are Tor's own (socks-extensions.txt): RESOLVE (F0) asks for the address of the name in
DST.ADDR, RESOLVE_PTR (F1) for the name of the address there. The answer is in BND.ADDR; the ports
mean nothing.

Theory of the state machine. A connection is in exactly one state; each state waits either for bytes
of the client or for a call of the shell, never for both::

    GREETING      bytes: method offer         -> PASSWORD | REQUEST | FAILED
    PASSWORD      bytes: name and password    -> VERDICT | FAILED
    VERDICT       accept_password()           -> REQUEST | FAILED
    REQUEST       bytes: the request          -> REPLY | FAILED
    REPLY         reply()                     -> SECOND_REPLY (BIND succeeded) | DONE
    SECOND_REPLY  reply()                     -> DONE

A server waits for the whole of a request before it refuses its command: to close while the rest
is still arriving would send a RST, and that can overtake the reply which says why.
"""

from dataclasses import dataclass, field
from enum import Enum, IntEnum, auto
from functools import lru_cache
from typing import Final, NamedTuple, TypeAlias

from socks_tunnel.protocol.addresses import (
    UNSPECIFIED,
    AddressType,
    Buffer,
    HostPort,
    address_length,
    decode_address,
    encode_address,
    parse_ip,
)
from socks_tunnel.protocol.errors import LocalProtocolError, RemoteProtocolError, Reply

VERSION = 0x05
PASSWORD_VERSION = 0x01
"""Version of the username/password subnegotiation (RFC 1929 section 2)."""

BUFFER_MAX = 1 << 20
"""Bytes that a connection may hold when more come in. The handshake itself is at most 1,032 bytes
(greeting 257, password 513, request 262); the rest is early data, which a shell stops reading."""

UDP_CACHE_ENTRIES = 4096
"""Addresses of UDP headers that are kept decoded; process-wide, the least recently used goes."""

_UDP_ADDRESS_OFFSET = 3
"""ATYP comes after RSV:2 and FRAG:1 (RFC 1928 section 7)."""


class Method(IntEnum):
    """Authentication methods (RFC 1928 section 3)."""

    NO_AUTHENTICATION = 0x00
    USERNAME_PASSWORD = 0x02
    NO_ACCEPTABLE = 0xFF


class Command(IntEnum):
    """CMD of a request (RFC 1928 section 4)."""

    CONNECT = 1
    BIND = 2
    UDP_ASSOCIATE = 3
    RESOLVE = 0xF0
    RESOLVE_PTR = 0xF1


class NeedData(Enum):
    """The type of :data:`NEED_DATA`."""

    NEED_DATA = auto()


NEED_DATA: Final = NeedData.NEED_DATA
"""Returned by `next_event` when nothing happens until more bytes come or the shell calls."""


# --- events -----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class GreetingReceived:
    """The client offered `methods`, a byte each; the answer is queued already."""

    methods: bytes


@dataclass(frozen=True, slots=True)
class PasswordOffered:
    """The client named itself (RFC 1929); the shell answers with `accept_password`."""

    username: str
    password: str = field(repr=False)  # a repr ends up in a log


@dataclass(frozen=True, slots=True)
class ConnectRequest:
    """CONNECT: the client wants a TCP connection to `destination`."""

    destination: HostPort


@dataclass(frozen=True, slots=True)
class BindRequest:
    """BIND: the client expects one TCP connection from `destination`."""

    destination: HostPort


@dataclass(frozen=True, slots=True)
class UdpAssociateRequest:
    """UDP ASSOCIATE: the client wants a UDP relay.

    `hint` is the address that it says it will send from, or None if it does not say (all zeros, or
    a name: clients put all sorts of things there).
    """

    hint: HostPort | None


@dataclass(frozen=True, slots=True)
class ResolveRequest:
    """RESOLVE or RESOLVE_PTR: the client wants the address of a name, or the name of an address.

    `host` is what it asks about; for a RESOLVE it may be an IP literal, whose address is itself.
    """

    host: str
    reverse: bool = False


Request: TypeAlias = ConnectRequest | BindRequest | UdpAssociateRequest | ResolveRequest
Event: TypeAlias = GreetingReceived | PasswordOffered | Request

_COMMANDS: Final = frozenset(Command)
_COMMAND_NAMES: Final = {
    Command.CONNECT: "connect",
    Command.BIND: "bind",
    Command.UDP_ASSOCIATE: "udp-associate",
    Command.RESOLVE: "resolve",
    Command.RESOLVE_PTR: "resolve",
}


# --- what both roles share --------------------------------------------------------------------


class Connection:
    """Bytes in, bytes out, and an error that stays."""

    def __init__(self) -> None:
        self._received = bytearray()
        self._to_send = bytearray()
        self._error: RemoteProtocolError | None = None

    def receive_data(self, data: Buffer) -> None:
        """Store what the socket gave; then call `next_event` until it returns NEED_DATA.

        After a protocol error everything more is dropped. Raises :class:`LocalProtocolError` if
        :data:`BUFFER_MAX` bytes are waiting already: the shell did not stop reading.
        """
        if self._error is not None:
            return
        if len(self._received) >= BUFFER_MAX:
            raise LocalProtocolError(
                f"{len(self._received)} bytes are waiting; stop reading until they are taken"
            )
        self._received += data

    def data_to_send(self) -> bytes:
        """Returns the bytes to send now, each of them once; empty if there are none."""
        data = bytes(self._to_send)
        self._to_send.clear()
        return data

    @property
    def buffered(self) -> int:
        """How many bytes have come that were not taken yet."""
        return len(self._received)

    def _take(self, count: int) -> bytes:
        data = bytes(self._received[:count])
        del self._received[:count]
        return data

    def _take_all(self) -> bytes:
        return self._take(len(self._received))

    def _fail(self, error: RemoteProtocolError, answer: bytes = b"") -> RemoteProtocolError:
        """Keeps `error` for each later `next_event`, queues the answer owed; returns the error."""
        self._error = error
        self._received.clear()
        self._to_send += answer
        return error


def encode_reply(reply: int, bound: HostPort) -> bytes:
    """Returns `05 REP RSV ATYP BND.ADDR BND.PORT` (RFC 1928 section 6)."""
    return bytes((VERSION, reply, 0)) + encode_address(bound)


# --- server role ------------------------------------------------------------------------------


class _ServerState(Enum):
    GREETING = auto()
    PASSWORD = auto()
    VERDICT = auto()
    REQUEST = auto()
    REPLY = auto()
    SECOND_REPLY = auto()
    DONE = auto()


class ServerConnection(Connection):
    """The server's side of one SOCKS5 connection.

    Feed it with `receive_data`, take events with `next_event` until that returns NEED_DATA, and
    send what `data_to_send` returns, after each of these steps. When `next_event` raises, send what
    is owed and close.
    """

    def __init__(self, *, require_password: bool = False) -> None:
        super().__init__()
        self._method = Method.USERNAME_PASSWORD if require_password else Method.NO_AUTHENTICATION
        self._state = _ServerState.GREETING
        self._command: Command | None = None

    def next_event(self) -> Event | NeedData:
        """Returns the next event, or NEED_DATA.

        Raises :class:`RemoteProtocolError`, again at each later call; its `kind` is one of
        `not-socks5`, `no-acceptable-method`, `authentication`, `bad-request`, `command`,
        `address-type`, `bad-name`. The answer that the client is owed is then in `data_to_send`:
        nothing at all for `not-socks5`, whose sender would not understand it.
        """
        if self._error is not None:
            raise self._error
        match self._state:
            case _ServerState.GREETING:
                return self._greeting()
            case _ServerState.PASSWORD:
                return self._password()
            case _ServerState.REQUEST:
                return self._request()
            case _:
                return NEED_DATA

    @property
    def command_name(self) -> str:
        """What the request asks for, in a word for metrics; `unknown` before it is read."""
        return "unknown" if self._command is None else _COMMAND_NAMES[self._command]

    def accept_password(self, ok: bool) -> None:
        """Answers PasswordOffered. After a refusal `next_event` raises, kind `authentication`.

        Raises :class:`LocalProtocolError` if no password is waiting for an answer.
        """
        if self._state is not _ServerState.VERDICT or self._error is not None:
            raise LocalProtocolError("no password is waiting for an answer")
        if ok:
            self._to_send += bytes((PASSWORD_VERSION, 0))
            self._state = _ServerState.REQUEST
        else:
            self._refuse_password("wrong user name or password")

    def reply(self, reply: Reply, bound: HostPort = UNSPECIFIED) -> None:
        """Queue the reply to the request; after a success of BIND, the second one too.

        `bound` is BND.ADDR and BND.PORT of a success. A name there goes out as 0.0.0.0:0: RFC 1928
        allows it, but hardly a client reads it. Only the answer to RESOLVE_PTR is a name. A failure
        is always 10 bytes, with 0.0.0.0:0.

        Raises :class:`LocalProtocolError` if no reply is due.
        """
        if self._state not in {_ServerState.REPLY, _ServerState.SECOND_REPLY}:
            raise LocalProtocolError("no reply is due")
        named = self._command is not Command.RESOLVE_PTR and parse_ip(bound.host) is None
        if reply != Reply.SUCCEEDED or named:
            bound = UNSPECIFIED
        self._to_send += encode_reply(reply, bound)
        first_of_two = (
            self._command is Command.BIND
            and self._state is _ServerState.REPLY
            and reply == Reply.SUCCEEDED
        )
        self._state = _ServerState.SECOND_REPLY if first_of_two else _ServerState.DONE

    def trailing_data(self) -> bytes:
        """Returns the bytes that came after the request (early data), once; empty before it."""
        if self._state in {_ServerState.REPLY, _ServerState.SECOND_REPLY, _ServerState.DONE}:
            return self._take_all()
        return b""

    def _greeting(self) -> Event | NeedData:
        buffer = self._received
        if not buffer:
            return NEED_DATA
        if buffer[0] != VERSION:
            raise self._fail(
                RemoteProtocolError(
                    f"the first byte is 0x{buffer[0]:02x}, not SOCKS version 5", kind="not-socks5"
                )
            )
        if len(buffer) < 2 or len(buffer) < 2 + buffer[1]:
            return NEED_DATA
        methods = self._take(2 + buffer[1])[2:]
        if self._method not in methods:
            # RFC 1928 section 3: "If the selected METHOD is X'FF', none of the methods listed by
            # the client are acceptable, and the client MUST close the connection."
            raise self._fail(
                RemoteProtocolError(
                    f"the client does not offer method 0x{self._method:02x}",
                    kind="no-acceptable-method",
                ),
                bytes((VERSION, Method.NO_ACCEPTABLE)),
            )
        self._to_send += bytes((VERSION, self._method))
        self._state = (
            _ServerState.PASSWORD
            if self._method is Method.USERNAME_PASSWORD
            else _ServerState.REQUEST
        )
        return GreetingReceived(methods)

    def _password(self) -> Event | NeedData:
        buffer = self._received
        if not buffer:
            return NEED_DATA
        if buffer[0] != PASSWORD_VERSION:
            raise self._refuse_password(
                f"the subnegotiation has version 0x{buffer[0]:02x}, not RFC 1929's 0x01"
            )
        if len(buffer) < 2:
            return NEED_DATA
        name_end = 2 + buffer[1]
        if len(buffer) <= name_end or len(buffer) < name_end + 1 + buffer[name_end]:
            return NEED_DATA
        raw = self._take(name_end + 1 + buffer[name_end])
        try:
            event = PasswordOffered(raw[2:name_end].decode(), raw[name_end + 1 :].decode())
        except UnicodeDecodeError:
            raise self._refuse_password("user name or password is not UTF-8") from None
        self._state = _ServerState.VERDICT
        return event

    def _refuse_password(self, sentence: str) -> RemoteProtocolError:
        # RFC 1929 section 2: "If the server returns a `failure' (STATUS value other than X'00')
        # status, it MUST close the connection."
        return self._fail(
            RemoteProtocolError(sentence, kind="authentication"), bytes((PASSWORD_VERSION, 1))
        )

    def _request(self) -> Event | NeedData:
        buffer = self._received
        if not buffer:
            return NEED_DATA
        if buffer[0] != VERSION:
            raise self._refuse(
                RemoteProtocolError(
                    f"the request has version 0x{buffer[0]:02x}, not 0x05", kind="bad-request"
                )
            )
        if len(buffer) < 4:
            return NEED_DATA
        code = buffer[1]
        known = code in _COMMANDS
        try:
            length = address_length(buffer, 3)
        except RemoteProtocolError as error:
            raise self._refuse(error if known else _unknown_command(code)) from None
        if length is None or len(buffer) < 3 + length:
            return NEED_DATA
        raw = self._take(3 + length)
        if not known:
            raise self._refuse(_unknown_command(code))
        self._command = Command(code)
        try:
            event = _decode_request(self._command, raw)
        except RemoteProtocolError as error:
            raise self._refuse(error) from None
        self._state = _ServerState.REPLY
        return event

    def _refuse(self, error: RemoteProtocolError) -> RemoteProtocolError:
        return self._fail(error, encode_reply(error.reply, UNSPECIFIED))


def _unknown_command(code: int) -> RemoteProtocolError:
    return RemoteProtocolError(
        f"unknown command 0x{code:02x}", kind="command", reply=Reply.COMMAND_NOT_SUPPORTED
    )


def _decode_request(command: Command, raw: bytes) -> Request:
    if command is Command.UDP_ASSOCIATE:
        return UdpAssociateRequest(_decode_hint(raw))
    destination, _ = decode_address(raw, 3)
    if command is Command.RESOLVE:
        return ResolveRequest(destination.host)
    if command is Command.RESOLVE_PTR:
        if parse_ip(destination.host) is None:
            raise RemoteProtocolError(
                f"RESOLVE_PTR asks for the name of {destination.host!r}, which is no address",
                kind="address-type",
                reply=Reply.ADDRESS_TYPE_NOT_SUPPORTED,
            )
        return ResolveRequest(destination.host, reverse=True)
    return ConnectRequest(destination) if command is Command.CONNECT else BindRequest(destination)


def _decode_hint(raw: bytes) -> HostPort | None:
    """Returns DST of UDP ASSOCIATE where it says anything.

    RFC 1928 section 4: "If the client is not in possession of the information at the time of the
    UDP ASSOCIATE, the client MUST use a port number and address of all zeros." What clients really
    send instead of that are names: "0", an empty one, their own host name.
    """
    if raw[3] == AddressType.DOMAIN:
        try:
            hint, _ = decode_address(raw, 3)
        except RemoteProtocolError:  # junk in a field that is only a hint is no error
            return None
    else:
        hint, _ = decode_address(raw, 3)
    address = parse_ip(hint.host)
    if address is None or (address.is_unspecified and hint.port == 0):
        return None
    return hint


# --- UDP --------------------------------------------------------------------------------------
#
#   +-------+--------+--------+----------+----------+----------+     RFC 1928 section 7, both ways:
#   | RSV:2 | FRAG:1 | ATYP:1 | DST.ADDR | DST.PORT |   DATA   |     the destination on the way out,
#   +-------+--------+--------+----------+----------+----------+     the sender on the way back


class UdpDatagram(NamedTuple):
    """What the header of a SOCKS5 UDP packet says; the data starts at `offset` of the packet.

    RFC 1928 section 7: "An implementation that does not support fragmentation MUST drop any
    datagram whose FRAG field is other than X'00'." The caller drops it, for it also counts it.
    """

    frag: int
    destination: HostPort
    offset: int


def parse_udp_packet(packet: Buffer) -> UdpDatagram:
    """Returns what the header of a whole SOCKS5 UDP packet says; the data is not looked at.

    Raises :class:`RemoteProtocolError`: kind `udp-header` (cut short), `address-type`, `bad-name`.
    """
    length = address_length(packet, _UDP_ADDRESS_OFFSET)
    if length is None or len(packet) < _UDP_ADDRESS_OFFSET + length:
        raise RemoteProtocolError("the UDP header is cut short", kind="udp-header")
    end = _UDP_ADDRESS_OFFSET + length
    return UdpDatagram(packet[2], _decoded(bytes(packet[_UDP_ADDRESS_OFFSET:end])), end)


def udp_header(source: HostPort) -> bytes:
    """Returns the header, with FRAG 0, that goes before the data of a datagram of `source`."""
    return b"\0\0\0" + encode_address(source)


@lru_cache(UDP_CACHE_ENTRIES)
def _decoded(raw: bytes) -> HostPort:
    return decode_address(raw)[0]
