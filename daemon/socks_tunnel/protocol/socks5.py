"""SOCKS5 (RFC 1928) with username/password authentication (RFC 1929), sans-IO, both roles.

What passes over the TCP connection, in this order::

    client                                              server
    05 NMETHODS METHODS...            ->
                                      <-                05 METHOD         (FF: none acceptable)
    01 ULEN UNAME PLEN PASSWD         ->                                  (METHOD 02 only)
                                      <-                01 STATUS         (00: accepted)
    05 CMD RSV ATYP DST.ADDR DST.PORT ->
                                      <-                05 REP RSV ATYP BND.ADDR BND.PORT
                                      <-                the same again    (BIND only)

Theory of both state machines. A connection is in exactly one state; each state waits either for
bytes of the peer or for a call of the shell, never for both:

    ServerConnection                              ClientConnection
    GREETING  bytes: method offer                 METHOD    bytes: the server's choice
      -> PASSWORD | REQUEST | FAILED                -> STATUS | REPLY | FAILED
    PASSWORD  bytes: name and password            STATUS    bytes: was the password good
      -> VERDICT | FAILED                           -> REPLY | FAILED
    VERDICT   accept_password()                   REPLY     bytes: the reply
      -> REQUEST | FAILED                           -> SECOND_REPLY (BIND) | DONE | FAILED
    REQUEST   bytes: the request                  SECOND_REPLY  bytes: the reply
      -> REPLY | FAILED                             -> DONE | FAILED
    REPLY     reply()
      -> SECOND_REPLY (BIND succeeded) | DONE
    SECOND_REPLY  reply()  -> DONE

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


class NeedData(Enum):
    """The type of :data:`NEED_DATA`."""

    NEED_DATA = auto()


NEED_DATA: Final = NeedData.NEED_DATA
"""Given by `next_event` when there is nothing to tell until more bytes come or the shell calls."""


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
class ReplyReceived:
    """The server's reply: `reply` is REP (see :class:`Reply`), `bound` BND.ADDR and BND.PORT."""

    reply: int
    bound: HostPort


Request: TypeAlias = ConnectRequest | BindRequest | UdpAssociateRequest
Event: TypeAlias = GreetingReceived | PasswordOffered | Request

_COMMANDS: Final = frozenset(Command)
_COMMAND_OF: Final[dict[type[Request], Command]] = {
    ConnectRequest: Command.CONNECT,
    BindRequest: Command.BIND,
    UdpAssociateRequest: Command.UDP_ASSOCIATE,
}


# --- what both roles share --------------------------------------------------------------------


class _Connection:
    """Bytes in, bytes out, and an error that stays."""

    def __init__(self) -> None:
        self._received = bytearray()
        self._to_send = bytearray()
        self._error: RemoteProtocolError | None = None

    def receive_data(self, data: Buffer) -> None:
        """Store what the socket gave; then call `next_event` until it gives NEED_DATA.

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
        """Give the bytes that are to be sent now, once; empty if there are none."""
        data = bytes(self._to_send)
        self._to_send.clear()
        return data

    def _take(self, count: int) -> bytes:
        data = bytes(self._received[:count])
        del self._received[:count]
        return data

    def _take_all(self) -> bytes:
        return self._take(len(self._received))

    def _fail(self, error: RemoteProtocolError, answer: bytes = b"") -> RemoteProtocolError:
        """Keep `error` for each later `next_event`, queue the answer owed, and give it to raise."""
        self._error = error
        self._received.clear()
        self._to_send += answer
        return error


def _encode_reply(reply: int, bound: HostPort) -> bytes:
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


class ServerConnection(_Connection):
    """The server's side of one SOCKS5 connection.

    Feed it with `receive_data`, take events with `next_event` until that gives NEED_DATA, and
    send what `data_to_send` gives, after each of these steps. When `next_event` raises, send what
    is owed and close.
    """

    def __init__(self, *, require_password: bool = False) -> None:
        super().__init__()
        self._method = Method.USERNAME_PASSWORD if require_password else Method.NO_AUTHENTICATION
        self._state = _ServerState.GREETING
        self._command = Command.CONNECT

    def next_event(self) -> Event | NeedData:
        """Give the next event, or NEED_DATA.

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

    def accept_password(self, ok: bool) -> None:
        """Answer PasswordOffered. After a refusal `next_event` raises, kind `authentication`.

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
        allows it, but hardly a client reads it. A failure is always 10 bytes, with 0.0.0.0:0.

        Raises :class:`LocalProtocolError` if no reply is due.
        """
        if self._state not in {_ServerState.REPLY, _ServerState.SECOND_REPLY}:
            raise LocalProtocolError("no reply is due")
        if reply != Reply.SUCCEEDED or parse_ip(bound.host) is None:
            bound = UNSPECIFIED
        self._to_send += _encode_reply(reply, bound)
        first_of_two = (
            self._command is Command.BIND
            and self._state is _ServerState.REPLY
            and reply == Reply.SUCCEEDED
        )
        self._state = _ServerState.SECOND_REPLY if first_of_two else _ServerState.DONE

    def trailing_data(self) -> bytes:
        """Give the bytes that came after the request (early data), once; empty before it."""
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
        command = Command(code)
        try:
            event = _decode_request(command, raw)
        except RemoteProtocolError as error:
            raise self._refuse(error) from None
        self._command = command
        self._state = _ServerState.REPLY
        return event

    def _refuse(self, error: RemoteProtocolError) -> RemoteProtocolError:
        return self._fail(error, _encode_reply(error.reply, UNSPECIFIED))


def _unknown_command(code: int) -> RemoteProtocolError:
    return RemoteProtocolError(
        f"unknown command 0x{code:02x}", kind="command", reply=Reply.COMMAND_NOT_SUPPORTED
    )


def _decode_request(command: Command, raw: bytes) -> Request:
    if command is Command.UDP_ASSOCIATE:
        return UdpAssociateRequest(_decode_hint(raw))
    destination, _ = decode_address(raw, 3)
    return ConnectRequest(destination) if command is Command.CONNECT else BindRequest(destination)


def _decode_hint(raw: bytes) -> HostPort | None:
    """Give DST of UDP ASSOCIATE where it says anything.

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


# --- client role ------------------------------------------------------------------------------


class _ClientState(Enum):
    METHOD = auto()
    STATUS = auto()
    REPLY = auto()
    SECOND_REPLY = auto()
    DONE = auto()


class ClientConnection(_Connection):
    """The client's side of one SOCKS5 connection that makes one request.

    Used as :class:`ServerConnection` is; `data_to_send` has the greeting from the start. With a
    user name it offers both methods, so that a server that wants no password is as good.
    """

    def __init__(
        self, request: Request, *, username: str | None = None, password: str | None = None
    ) -> None:
        super().__init__()
        self._request = _encode_request(request)
        self._is_bind = isinstance(request, BindRequest)
        self._credentials: bytes | None = None
        methods = [Method.NO_AUTHENTICATION]
        if username is not None:
            self._credentials = _encode_password(username, password or "")
            methods.append(Method.USERNAME_PASSWORD)
        self._methods = bytes(methods)
        self._to_send += bytes((VERSION, len(methods))) + self._methods
        self._state = _ClientState.METHOD

    def next_event(self) -> ReplyReceived | NeedData:
        """Give the reply (of BIND: both, in turn), or NEED_DATA.

        Raises :class:`RemoteProtocolError`, again at each later call; its `kind` is one of
        `not-socks5`, `no-acceptable-method`, `authentication`, `address-type`, `bad-name`. A reply
        that reports a failure is an event, not an error.
        """
        if self._error is not None:
            raise self._error
        # The method and the status are no events: at most two steps lead to a reply.
        if self._state is _ClientState.METHOD and not self._read_method():
            return NEED_DATA
        if self._state is _ClientState.STATUS and not self._read_status():
            return NEED_DATA
        if self._state in {_ClientState.REPLY, _ClientState.SECOND_REPLY}:
            return self._read_reply()
        return NEED_DATA

    def trailing_data(self) -> bytes:
        """Give the bytes that came after the last reply, once; empty before it."""
        return self._take_all() if self._state is _ClientState.DONE else b""

    def _check_version(self, expected: int) -> bool:
        if not self._received:
            return False
        if self._received[0] != expected:
            raise self._fail(
                RemoteProtocolError(
                    f"the server answers with version 0x{self._received[0]:02x},"
                    f" not 0x{expected:02x}",
                    kind="not-socks5",
                )
            )
        return True

    def _read_method(self) -> bool:
        if not self._check_version(VERSION) or len(self._received) < 2:
            return False
        method = self._take(2)[1]
        if method not in self._methods:
            raise self._fail(
                RemoteProtocolError(
                    f"the server chose method 0x{method:02x}, which was not offered",
                    kind="no-acceptable-method",
                )
            )
        if method == Method.USERNAME_PASSWORD and self._credentials is not None:
            self._to_send += self._credentials
            self._state = _ClientState.STATUS
        else:
            self._to_send += self._request
            self._state = _ClientState.REPLY
        return True

    def _read_status(self) -> bool:
        if not self._check_version(PASSWORD_VERSION) or len(self._received) < 2:
            return False
        if self._take(2)[1] != 0:
            raise self._fail(
                RemoteProtocolError("the server refused the password", kind="authentication")
            )
        self._to_send += self._request
        self._state = _ClientState.REPLY
        return True

    def _read_reply(self) -> ReplyReceived | NeedData:
        if not self._check_version(VERSION) or len(self._received) < 4:
            return NEED_DATA
        try:
            length = address_length(self._received, 3)
            if length is None or len(self._received) < 3 + length:
                return NEED_DATA
            bound, _ = decode_address(self._received, 3)
        except RemoteProtocolError as error:
            raise self._fail(error) from None
        code = self._take(3 + length)[1]
        first_of_two = (
            self._is_bind and self._state is _ClientState.REPLY and code == Reply.SUCCEEDED
        )
        self._state = _ClientState.SECOND_REPLY if first_of_two else _ClientState.DONE
        return ReplyReceived(code, bound)


def _encode_request(request: Request) -> bytes:
    if isinstance(request, UdpAssociateRequest):
        address = UNSPECIFIED if request.hint is None else request.hint
    else:
        address = request.destination
    return bytes((VERSION, _COMMAND_OF[type(request)], 0)) + encode_address(address)


def _encode_password(username: str, password: str) -> bytes:
    name, secret = username.encode(), password.encode()
    if len(name) > 255 or len(secret) > 255:
        raise ValueError("user name and password must not be longer than 255 bytes each")
    return b"".join((bytes((PASSWORD_VERSION, len(name))), name, bytes((len(secret),)), secret))


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
    """Read the header of a whole SOCKS5 UDP packet; the data is neither copied nor looked at.

    Raises :class:`RemoteProtocolError`: kind `udp-header` (cut short), `address-type`, `bad-name`.
    """
    length = address_length(packet, _UDP_ADDRESS_OFFSET)
    if length is None or len(packet) < _UDP_ADDRESS_OFFSET + length:
        raise RemoteProtocolError("the UDP header is cut short", kind="udp-header")
    end = _UDP_ADDRESS_OFFSET + length
    return UdpDatagram(packet[2], _decoded(bytes(packet[_UDP_ADDRESS_OFFSET:end])), end)


def udp_header(source: HostPort) -> bytes:
    """Give the header, with FRAG 0, that goes before the data of a datagram from or to `source`."""
    return b"\0\0\0" + encode_address(source)


@lru_cache(UDP_CACHE_ENTRIES)
def _decoded(raw: bytes) -> HostPort:
    return decode_address(raw)[0]
