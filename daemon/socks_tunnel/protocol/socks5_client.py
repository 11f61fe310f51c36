"""SOCKS5 (RFC 1928, RFC 1929), sans-IO: the client's side, for our own tools and tests.

Theory of the state machine::

    METHOD        bytes: the server's choice        -> STATUS | REPLY | FAILED
    STATUS        bytes: was the password good      -> REPLY | FAILED
    REPLY         bytes: the reply                  -> SECOND_REPLY (BIND) | DONE | FAILED
    SECOND_REPLY  bytes: the reply                  -> DONE | FAILED
"""

from dataclasses import dataclass
from enum import Enum, auto

from socks_tunnel.protocol.addresses import (
    UNSPECIFIED,
    HostPort,
    address_length,
    decode_address,
    encode_address,
)
from socks_tunnel.protocol.errors import RemoteProtocolError, Reply
from socks_tunnel.protocol.socks5 import (
    NEED_DATA,
    PASSWORD_VERSION,
    VERSION,
    BindRequest,
    Command,
    Connection,
    ConnectRequest,
    Method,
    NeedData,
    Request,
    ResolveRequest,
    UdpAssociateRequest,
)


@dataclass(frozen=True, slots=True)
class ReplyReceived:
    """The server's reply: `reply` is REP (see :class:`Reply`), `bound` BND.ADDR and BND.PORT."""

    reply: int
    bound: HostPort


class _ClientState(Enum):
    METHOD = auto()
    STATUS = auto()
    REPLY = auto()
    SECOND_REPLY = auto()
    DONE = auto()


class ClientConnection(Connection):
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
        """Returns the reply (of BIND: both, in turn), or NEED_DATA.

        Raises :class:`RemoteProtocolError`, again at each later call; its `kind` is one of
        `not-socks5`, `no-acceptable-method`, `authentication`, `address-type`, `bad-name`. A reply
        that reports a failure is an event, not an error.
        """
        if self._error is not None:
            raise self._error
        # The method and the status are no events: at most two steps lead to a reply.
        if self._state is _ClientState.METHOD:
            self._read_method()
        if self._state is _ClientState.STATUS:
            self._read_status()
        if self._state in {_ClientState.REPLY, _ClientState.SECOND_REPLY}:
            return self._read_reply()
        return NEED_DATA

    def trailing_data(self) -> bytes:
        """Returns the bytes that came after the last reply, once; empty before it."""
        return self._take_all() if self._state is _ClientState.DONE else b""

    def _check_version(self, expected: int) -> None:
        if self._received and self._received[0] != expected:
            raise self._fail(
                RemoteProtocolError(
                    f"the server answers with version 0x{self._received[0]:02x},"
                    f" not 0x{expected:02x}",
                    kind="not-socks5",
                )
            )

    def _read_method(self) -> None:
        self._check_version(VERSION)
        if len(self._received) < 2:
            return
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

    def _read_status(self) -> None:
        self._check_version(PASSWORD_VERSION)
        if len(self._received) < 2:
            return
        if self._take(2)[1] != 0:
            raise self._fail(
                RemoteProtocolError("the server refused the password", kind="authentication")
            )
        self._to_send += self._request
        self._state = _ClientState.REPLY

    def _read_reply(self) -> ReplyReceived | NeedData:
        self._check_version(VERSION)
        if len(self._received) < 4:
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
    match request:
        case UdpAssociateRequest(hint=hint):
            command, address = Command.UDP_ASSOCIATE, hint or UNSPECIFIED
        case ResolveRequest(host=host, reverse=reverse):
            command = Command.RESOLVE_PTR if reverse else Command.RESOLVE
            address = HostPort(host, 0)
        case ConnectRequest(destination=address):
            command = Command.CONNECT
        case _:
            command, address = Command.BIND, request.destination
    return bytes((VERSION, command, 0)) + encode_address(address)


def _encode_password(username: str, password: str) -> bytes:
    name, secret = username.encode(), password.encode()
    if len(name) > 255 or len(secret) > 255:
        raise ValueError("user name and password must not be longer than 255 bytes each")
    return b"".join((bytes((PASSWORD_VERSION, len(name))), name, bytes((len(secret),)), secret))
