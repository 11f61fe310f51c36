"""SOCKS4 and SOCKS4a, the server's side: what clients send, and what they get."""

import pytest

from socks_tunnel.protocol.addresses import NAME_MAX, HostPort
from socks_tunnel.protocol.errors import LocalProtocolError, RemoteProtocolError, Reply
from socks_tunnel.protocol.socks4 import USERID_MAX, ServerConnection
from socks_tunnel.protocol.socks5 import (
    NEED_DATA,
    BindRequest,
    ConnectRequest,
    Request,
    ResolveRequest,
)

CONNECT = bytes.fromhex("04 01 0050 c0000207 00")
GRANTED = bytes.fromhex("00 5a 0000 00000000")
REJECTED = bytes.fromhex("00 5b 0000 00000000")

# (name, hex of the request, event)
REQUESTS: list[tuple[str, str, Request]] = [
    ("no user id", "04 01 0050 c0000207 00", ConnectRequest(HostPort("192.0.2.7", 80))),
    ("a user id", "04 01 0050 c0000207 6a6f65 00", ConnectRequest(HostPort("192.0.2.7", 80))),
    ("a user id that is no text", "04 01 0050 c0000207 ff 00", ConnectRequest(HostPort("192.0.2.7", 80))),
    ("4a", "04 01 01bb 00000001 00 612e62 00", ConnectRequest(HostPort("a.b", 443))),
    ("4a with a user id", "04 01 01bb 000000ff 6a 00 412e42 00", ConnectRequest(HostPort("a.b", 443))),
    ("4a, an IPv6 literal", "04 01 01bb 00000001 00 3a3a31 00", ConnectRequest(HostPort("::1", 443))),
    ("0.0.0.0 is an address", "04 01 01bb 00000000 00", ConnectRequest(HostPort("0.0.0.0", 443))),
    ("BIND", "04 02 0014 c0000207 00", BindRequest(HostPort("192.0.2.7", 20))),
    ("Tor's RESOLVE", "04 f0 0000 00000001 00 612e62 00", ResolveRequest("a.b")),
]  # fmt: skip

LONG_USER_ID = "the user id has more than 255 bytes"
LONG_NAME = "the name has more than 255 bytes"

# Each row: what it is, the request, the kind of error and what it says.
REFUSED: list[tuple[str, bytes, str, str]] = [
    ("command 3", bytes.fromhex("04 03 0050 c0000207 00"), "command", "unknown command 0x03"),
    ("no name", bytes.fromhex("04 01 0050 00000001 00 00"), "bad-name", "bad host name: the host name is empty"),
    ("a name with a space", bytes.fromhex("04 01 0050 00000001 00 6120 00"), "bad-name",
     "bad host name: 'a ' has a character that no host name can have"),
    ("a long user id", CONNECT[:8] + b"u" * (USERID_MAX + 1), "bad-request", LONG_USER_ID),
    ("a long user id that ends", CONNECT[:8] + b"u" * (USERID_MAX + 1) + b"\0", "bad-request", LONG_USER_ID),
    ("a long name", CONNECT[:4] + b"\0\0\0\1\0" + b"n" * (NAME_MAX + 1), "bad-request", LONG_NAME),
    ("a long name that ends", CONNECT[:4] + b"\0\0\0\1\0" + b"n" * (NAME_MAX + 1) + b"\0", "bad-request", LONG_NAME),
]  # fmt: skip


def received(data: bytes, *, require_password: bool = False) -> ServerConnection:
    connection = ServerConnection(require_password=require_password)
    connection.receive_data(data)
    return connection


def error_of(connection: ServerConnection) -> RemoteProtocolError:
    with pytest.raises(RemoteProtocolError) as caught:
        connection.next_event()
    with pytest.raises(RemoteProtocolError) as again:
        connection.next_event()
    assert again.value is caught.value
    return caught.value


@pytest.mark.parametrize(("name", "wire", "event"), REQUESTS, ids=[row[0] for row in REQUESTS])
def test_reads_a_request_whole_and_byte_by_byte(name: str, wire: str, event: Request) -> None:
    raw = bytes.fromhex(wire)
    assert received(raw).next_event() == event
    connection = ServerConnection()
    for byte in raw[:-1]:
        connection.receive_data(bytes((byte,)))
        assert connection.next_event() is NEED_DATA
    connection.receive_data(raw[-1:] + b"early")
    assert connection.next_event() == event
    assert connection.trailing_data() == b"early"
    assert connection.trailing_data() == b""
    assert connection.next_event() is NEED_DATA
    assert connection.data_to_send() == b""


@pytest.mark.parametrize(
    ("name", "raw", "kind", "sentence"), REFUSED, ids=[row[0] for row in REFUSED]
)
def test_refuses_a_request(name: str, raw: bytes, kind: str, sentence: str) -> None:
    connection = received(raw)

    error = error_of(connection)
    assert (error.kind, str(error)) == (kind, sentence)
    assert connection.data_to_send() == REJECTED
    connection.receive_data(CONNECT)
    assert error_of(connection).kind == kind
    assert connection.data_to_send() == b""


def test_the_longest_texts_fit() -> None:
    name = b".".join([b"a" * 63] * 4)
    raw = CONNECT[:4] + b"\0\0\0\1" + b"u" * USERID_MAX + b"\0" + name + b"\0"

    assert received(raw).next_event() == ConnectRequest(HostPort(name.decode(), 80))
    connection = ServerConnection()
    for byte in raw[:-1]:
        connection.receive_data(bytes((byte,)))
        assert connection.next_event() is NEED_DATA
    connection.receive_data(raw[-1:])
    assert connection.next_event() == ConnectRequest(HostPort(name.decode(), 80))


def test_an_unknown_command_is_one_that_is_not_supported() -> None:
    assert error_of(received(b"\x04\x03" + CONNECT[2:])).reply is Reply.COMMAND_NOT_SUPPORTED


def test_without_a_request_there_is_nothing_to_read_and_nothing_behind_it() -> None:
    connection = ServerConnection()
    assert connection.next_event() is NEED_DATA
    connection.receive_data(CONNECT[:-1])
    assert connection.trailing_data() == b""
    connection.receive_data(CONNECT[-1:])
    assert connection.next_event() == ConnectRequest(HostPort("192.0.2.7", 80))


def test_early_data_is_never_a_request() -> None:
    connection = received(CONNECT + b"GET / HTTP/1.0")
    assert connection.next_event() == ConnectRequest(HostPort("192.0.2.7", 80))
    assert connection.next_event() is NEED_DATA
    assert connection.trailing_data() == b"GET / HTTP/1.0"


def test_nobody_gets_in_where_a_password_is_wanted() -> None:
    connection = received(CONNECT, require_password=True)

    error = error_of(connection)
    assert (error.kind, error.reply) == ("authentication", Reply.NOT_ALLOWED)
    assert str(error) == "this listener wants a password, which SOCKS4 cannot carry"
    assert connection.data_to_send() == REJECTED


@pytest.mark.parametrize(
    ("request_", "word"), [(CONNECT, "connect"), (b"\x04\xf0" + CONNECT[2:], "resolve")]
)
def test_the_command_has_a_word(request_: bytes, word: str) -> None:
    connection = ServerConnection()
    assert connection.command_name == "unknown"
    connection.receive_data(request_)
    connection.next_event()
    assert connection.command_name == word


def test_another_version_gets_no_answer() -> None:
    connection = received(b"\x05\x01\x00")

    error = error_of(connection)
    assert error.kind == "not-socks4"
    assert str(error) == "the first byte is 0x05, not SOCKS version 4"
    assert connection.data_to_send() == b""


@pytest.mark.parametrize(
    ("reply", "bound", "answer"),
    [
        (Reply.SUCCEEDED, HostPort("192.0.2.9", 4000), "00 5a 0fa0 c0000209"),
        (Reply.SUCCEEDED, HostPort("2001:db8::1", 4000), "00 5a 0000 00000000"),
        (Reply.CONNECTION_REFUSED, HostPort("192.0.2.9", 4000), "00 5b 0fa0 c0000209"),
        (Reply.CONNECTION_REFUSED, HostPort("2001:db8::1", 4000), "00 5b 0000 00000000"),
        (Reply.CONNECTION_REFUSED, HostPort("a.example", 4000), "00 5b 0000 00000000"),
    ],
)
def test_replies(reply: Reply, bound: HostPort, answer: str) -> None:
    connection = received(CONNECT)
    connection.next_event()

    connection.reply(reply, bound)

    assert connection.data_to_send() == bytes.fromhex(answer)
    with pytest.raises(LocalProtocolError, match=r"^no reply is due$"):
        connection.reply(reply)


def test_a_bind_has_two_replies_and_one_if_it_fails() -> None:
    connection = received(bytes.fromhex("04 02 0014 c0000207 00"))
    connection.next_event()

    connection.reply(Reply.SUCCEEDED)
    connection.reply(Reply.SUCCEEDED)

    assert connection.data_to_send() == GRANTED * 2
    with pytest.raises(LocalProtocolError):
        connection.reply(Reply.SUCCEEDED)


def test_a_name_without_an_ipv4_address_cannot_be_answered() -> None:
    connection = received(bytes.fromhex("04 f0 0000 00000001 00 612e62 00"))
    connection.next_event()

    connection.reply(Reply.SUCCEEDED, HostPort("2001:db8::1", 0))

    assert connection.data_to_send() == REJECTED


def test_no_reply_before_the_request() -> None:
    with pytest.raises(LocalProtocolError):
        ServerConnection().reply(Reply.SUCCEEDED)
