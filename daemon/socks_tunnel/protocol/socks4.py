"""SOCKS4 and SOCKS4a, sans-IO: the server's side.

What passes over the TCP connection (SOCKS.txt and SOCKS4A.TXT by Ying-Da Lee)::

    client                                                     server
    04 CD DSTPORT:2 DSTIP:4 USERID 00 [NAME 00]    ->
                                                   <-          00 CD DSTPORT:2 DSTIP:4
                                                   <-          the same again    (BIND only)

NAME follows only where DSTIP is 0.0.0.x with x other than 0: "a SOCKS4A client should set the first
three bytes of DSTIP to NULL and the last byte to a non-zero value". Command F0 is Tor's RESOLVE
(socks-extensions.txt): the answer to it is in DSTIP.

USERID is what the client says of itself, without any proof. It is read and thrown away; a listener
that has users lets nobody in by this protocol.

Theory of the state machine, as in :mod:`socks_tunnel.protocol.socks5`::

    REQUEST       bytes: the request    -> REPLY | FAILED
    REPLY         reply()               -> SECOND_REPLY (BIND succeeded) | DONE
    SECOND_REPLY  reply()               -> DONE
"""

from enum import Enum, IntEnum, auto
from typing import Final

from socks_tunnel.protocol.addresses import (
    NAME_MAX,
    UNSPECIFIED,
    HostPort,
    decode_name,
    parse_ip,
)
from socks_tunnel.protocol.errors import LocalProtocolError, RemoteProtocolError, Reply
from socks_tunnel.protocol.socks5 import (
    NEED_DATA,
    BindRequest,
    Connection,
    ConnectRequest,
    NeedData,
    Request,
    ResolveRequest,
)

VERSION = 0x04

USERID_MAX: Final = 255
"""Longest USERID in bytes; the protocol itself sets no limit."""

_FIXED: Final = 8
"""VN, CD, DSTPORT and DSTIP."""


class Command(IntEnum):
    """CD of a request."""

    CONNECT = 1
    BIND = 2
    RESOLVE = 0xF0


class Code(IntEnum):
    """CD of a reply. Two more codes speak of identd, which nobody asks here."""

    GRANTED = 90
    REJECTED = 91


class _State(Enum):
    REQUEST = auto()
    REPLY = auto()
    SECOND_REPLY = auto()
    DONE = auto()


class ServerConnection(Connection):
    """The server's side of one SOCKS4 connection, used as that of SOCKS5 is."""

    def __init__(self, *, require_password: bool = False) -> None:
        super().__init__()
        self._require_password = require_password
        self._state = _State.REQUEST
        self._command: Command | None = None

    def next_event(self) -> Request | NeedData:
        """Returns the request, or NEED_DATA.

        Raises :class:`RemoteProtocolError`, again at each later call; its `kind` is one of
        `not-socks4`, `authentication`, `bad-request`, `command`, `bad-name`. The answer that the
        client is owed is then in `data_to_send`.
        """
        if self._error is not None:
            raise self._error
        if self._state is not _State.REQUEST or not self._received:
            return NEED_DATA
        if self._received[0] != VERSION:
            raise self._fail(
                RemoteProtocolError(
                    f"the first byte is 0x{self._received[0]:02x}, not SOCKS version 4",
                    kind="not-socks4",
                )
            )
        return self._request()

    @property
    def command_name(self) -> str:
        """What the request asks for, in a word for metrics; `unknown` before it is read."""
        return "unknown" if self._command is None else self._command.name.lower()

    def reply(self, reply: Reply, bound: HostPort = UNSPECIFIED) -> None:
        """Queue the reply to the request; after a success of BIND, the second one too.

        An address that is not IPv4 has no place in the reply: it goes out as 0.0.0.0:0, except that
        a RESOLVE without an IPv4 address is refused. Raises :class:`LocalProtocolError` if no reply
        is due.
        """
        if self._state not in {_State.REPLY, _State.SECOND_REPLY}:
            raise LocalProtocolError("no reply is due")
        granted = reply == Reply.SUCCEEDED
        address = parse_ip(bound.host)
        if address is None or address.version != 4:
            granted = granted and self._command is not Command.RESOLVE
            bound = UNSPECIFIED
        self._to_send += _encode_reply(Code.GRANTED if granted else Code.REJECTED, bound)
        first_of_two = granted and self._command is Command.BIND and self._state is _State.REPLY
        self._state = _State.SECOND_REPLY if first_of_two else _State.DONE

    def trailing_data(self) -> bytes:
        """Returns the bytes that came after the request (early data), once; empty before it."""
        return b"" if self._state is _State.REQUEST else self._take_all()

    def _request(self) -> Request | NeedData:
        buffer = self._received
        if len(buffer) < _FIXED:
            return NEED_DATA
        end = self._end_of_text(_FIXED, USERID_MAX, "user id")
        if end is None:
            return NEED_DATA
        name: bytes | None = None
        if buffer[4:7] == b"\0\0\0" and buffer[7] != 0:
            start, end = end, self._end_of_text(end, NAME_MAX, "name")
            if end is None:
                return NEED_DATA
            name = bytes(buffer[start : end - 1])
        raw = self._take(end)
        if self._require_password:
            raise self._refuse(
                RemoteProtocolError(
                    "this listener wants a password, which SOCKS4 cannot carry",
                    kind="authentication",
                    reply=Reply.NOT_ALLOWED,
                )
            )
        try:
            self._command = Command(raw[1])
        except ValueError:
            raise self._refuse(
                RemoteProtocolError(
                    f"unknown command 0x{raw[1]:02x}",
                    kind="command",
                    reply=Reply.COMMAND_NOT_SUPPORTED,
                )
            ) from None
        try:
            host = ".".join(map(str, raw[4:8])) if name is None else decode_name(name)
        except RemoteProtocolError as error:
            raise self._refuse(error) from None
        self._state = _State.REPLY
        destination = HostPort(host, int.from_bytes(raw[2:4]))
        if self._command is Command.CONNECT:
            return ConnectRequest(destination)
        if self._command is Command.BIND:
            return BindRequest(destination)
        return ResolveRequest(host)

    def _end_of_text(self, start: int, longest: int, what: str) -> int | None:
        """Returns the offset after the NUL that ends the text at `start`; None if it is to come."""
        end = self._received.find(0, start, start + longest + 1)
        if end >= 0:
            return end + 1
        if len(self._received) - start > longest:
            raise self._refuse(
                RemoteProtocolError(f"the {what} has more than {longest} bytes", kind="bad-request")
            )
        return None

    def _refuse(self, error: RemoteProtocolError) -> RemoteProtocolError:
        return self._fail(error, _encode_reply(Code.REJECTED, UNSPECIFIED))


def _encode_reply(code: Code, bound: HostPort) -> bytes:
    """Returns `00 CD DSTPORT DSTIP`; `bound` is IPv4."""
    address = bytes(map(int, bound.host.split(".")))
    return bytes((0, code)) + bound.port.to_bytes(2) + address
