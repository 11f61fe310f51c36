"""SOCKS5, the client's side."""

import pytest

from socks_tunnel.protocol.addresses import UNSPECIFIED, HostPort
from socks_tunnel.protocol.errors import RemoteProtocolError, Reply
from socks_tunnel.protocol.socks5 import (
    NEED_DATA,
    BindRequest,
    ConnectRequest,
    Request,
    ResolveRequest,
    UdpAssociateRequest,
)
from socks_tunnel.protocol.socks5_client import ClientConnection, ReplyReceived

TARGET = ConnectRequest(HostPort("example.com", 443))
SUCCESS = "05 00 00 01 0a4d0102 9c40"
BOUND = HostPort("10.77.1.2", 40000)


def requested(request: Request = TARGET) -> ClientConnection:
    connection = ClientConnection(request)
    assert connection.data_to_send() == b"\x05\x01\x00"
    connection.receive_data(b"\x05\x00")
    assert connection.next_event() is NEED_DATA
    return connection


def error_of(connection: ClientConnection) -> RemoteProtocolError:
    with pytest.raises(RemoteProtocolError) as caught:
        connection.next_event()
    with pytest.raises(RemoteProtocolError) as again:
        connection.next_event()
    assert again.value is caught.value
    return caught.value


@pytest.mark.parametrize(
    ("request_", "wire"),
    [
        (TARGET, "05 01 00 03 0b 6578616d706c652e636f6d 01bb"),
        (ConnectRequest(HostPort("192.0.2.7", 80)), "05 01 00 01 c0000207 0050"),
        (
            ConnectRequest(HostPort("2001:db8::7", 80)),
            "05 01 00 04 20010db8000000000000000000000007 0050",
        ),
        (BindRequest(HostPort("192.0.2.7", 20)), "05 02 00 01 c0000207 0014"),
        (UdpAssociateRequest(None), "05 03 00 01 00000000 0000"),
        (UdpAssociateRequest(HostPort("127.0.0.1", 8080)), "05 03 00 01 7f000001 1f90"),
    ],
)
def test_sends_its_request_once_a_method_is_chosen(request_: Request, wire: str) -> None:
    connection = requested(request_)

    assert connection.data_to_send().hex() == bytes.fromhex(wire).hex()
    assert connection.data_to_send() == b""


@pytest.mark.parametrize("step", [1, 1000], ids=["bytes", "whole"])
def test_gives_the_reply_and_keeps_what_follows(step: int) -> None:
    connection = requested()
    raw = bytes.fromhex(SUCCESS) + b"220 hello"
    events = []
    for start in range(0, len(raw), step):
        connection.receive_data(raw[start : start + step])
        if (event := connection.next_event()) is not NEED_DATA:
            events.append(event)

        elif not events:
            assert connection.trailing_data() == b"", "the reply is not taken for what follows it"

    assert events == [ReplyReceived(Reply.SUCCEEDED, BOUND)]
    assert connection.next_event() is NEED_DATA
    assert connection.trailing_data() == b"220 hello"
    assert connection.trailing_data() == b""


@pytest.mark.parametrize(
    ("wire", "event"),
    [
        ("05 05 00 01 00000000 0000", ReplyReceived(Reply.CONNECTION_REFUSED, UNSPECIFIED)),
        ("05 5a 00 01 00000000 0000", ReplyReceived(0x5A, UNSPECIFIED)),
        ("05 00 00 03 01 61 0050", ReplyReceived(Reply.SUCCEEDED, HostPort("a", 80))),
        (
            "05 00 00 04 20010db8000000000000000000000001 9c40",
            ReplyReceived(Reply.SUCCEEDED, HostPort("2001:db8::1", 40000)),
        ),
    ],
)
def test_a_reply_is_an_event_whatever_it_says(wire: str, event: ReplyReceived) -> None:
    connection = requested()
    connection.receive_data(bytes.fromhex(wire))

    assert connection.next_event() == event


def test_bind_gives_both_replies() -> None:
    connection = requested(BindRequest(HostPort("192.0.2.7", 20)))
    connection.receive_data(bytes.fromhex(SUCCESS))
    assert connection.next_event() == ReplyReceived(0, BOUND)
    assert connection.trailing_data() == b""
    connection.receive_data(bytes.fromhex("05 00 00 01 c0000207 0014") + b"data")

    assert connection.next_event() == ReplyReceived(0, HostPort("192.0.2.7", 20))
    assert connection.trailing_data() == b"data"


def test_bind_gives_one_reply_if_that_is_a_failure() -> None:
    connection = requested(BindRequest(HostPort("192.0.2.7", 20)))
    connection.receive_data(bytes.fromhex("05 02 00 01 00000000 0000 05"))

    assert connection.next_event() == ReplyReceived(Reply.NOT_ALLOWED, UNSPECIFIED)
    assert connection.next_event() is NEED_DATA
    assert connection.trailing_data() == b"\x05"


# --- username and password --------------------------------------------------------------------


def test_offers_a_password_and_sends_it_when_asked() -> None:
    connection = ClientConnection(TARGET, username="alice", password="ü")
    assert connection.data_to_send() == b"\x05\x02\x00\x02"
    connection.receive_data(b"\x05\x02")
    assert connection.next_event() is NEED_DATA
    assert connection.data_to_send() == b"\x01\x05alice\x02\xc3\xbc"
    connection.receive_data(b"\x01\x00")
    assert connection.next_event() is NEED_DATA

    assert connection.data_to_send().startswith(b"\x05\x01\x00\x03")


def test_every_answer_may_come_byte_by_byte() -> None:
    connection = ClientConnection(TARGET, username="alice", password="secret")
    sent = connection.data_to_send()
    events = []
    for byte in b"\x05\x02\x01\x00" + bytes.fromhex(SUCCESS):
        assert connection.next_event() is NEED_DATA
        connection.receive_data(bytes((byte,)))
        events.append(connection.next_event())
        sent += connection.data_to_send()

    assert events[:-1] == [NEED_DATA] * 13
    assert events[-1] == ReplyReceived(Reply.SUCCEEDED, BOUND)
    assert sent == (
        b"\x05\x02\x00\x02\x01\x05alice\x06secret\x05\x01\x00\x03\x0bexample.com\x01\xbb"
    )


def test_every_answer_may_come_at_once() -> None:
    connection = ClientConnection(TARGET, username="alice", password="secret")
    connection.receive_data(b"\x05\x02\x01\x00" + bytes.fromhex(SUCCESS) + b"data")
    assert connection.next_event() == ReplyReceived(Reply.SUCCEEDED, BOUND)
    assert connection.trailing_data() == b"data"


def test_a_user_without_a_password_has_the_empty_one() -> None:
    connection = ClientConnection(TARGET, username="alice")
    assert connection.data_to_send() == b"\x05\x02\x00\x02"
    connection.receive_data(b"\x05\x02")
    assert connection.next_event() is NEED_DATA
    assert connection.data_to_send() == b"\x01\x05alice\x00"


def test_the_longest_name_and_password_fit() -> None:
    connection = ClientConnection(TARGET, username="n" * 255, password="p" * 255)
    assert connection.data_to_send() == b"\x05\x02\x00\x02"
    connection.receive_data(b"\x05\x02")
    assert connection.next_event() is NEED_DATA
    assert connection.data_to_send() == b"\x01\xff" + b"n" * 255 + b"\xff" + b"p" * 255


def test_sends_no_password_to_a_server_that_wants_none() -> None:
    connection = ClientConnection(TARGET, username="alice", password="secret")
    connection.data_to_send()
    connection.receive_data(b"\x05\x00")
    assert connection.next_event() is NEED_DATA

    assert connection.data_to_send().startswith(b"\x05\x01\x00\x03")


def test_a_refused_password_is_an_error() -> None:
    connection = ClientConnection(TARGET, username="alice", password="secret")
    connection.receive_data(b"\x05\x02\x01\x01")

    error = error_of(connection)
    assert (error.kind, str(error)) == ("authentication", "the server refused the password")


@pytest.mark.parametrize(("username", "password"), [("a" * 256, ""), ("", "a" * 256)])
def test_a_name_or_password_that_does_not_fit_is_refused(username: str, password: str) -> None:
    with pytest.raises(
        ValueError, match=r"^user name and password must not be longer than 255 bytes each$"
    ):
        ClientConnection(TARGET, username=username, password=password)


# --- servers that break the protocol ----------------------------------------------------------


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        ("04", "not-socks5"),
        ("48545450", "not-socks5"),
        ("05 ff", "no-acceptable-method"),
        ("05 02", "no-acceptable-method"),
        ("05 00 04", "not-socks5"),
        ("05 00 05 00 00 02", "address-type"),
        ("05 00 05 00 00 03 00 0000", "bad-name"),
    ],
)
def test_an_answer_that_breaks_the_protocol_is_an_error(answer: str, kind: str) -> None:
    connection = ClientConnection(TARGET)
    connection.receive_data(bytes.fromhex(answer))

    assert error_of(connection).kind == kind
    connection.receive_data(b"more")
    assert connection.trailing_data() == b""


@pytest.mark.parametrize(
    ("answer", "sentence"),
    [
        ("04", "the server answers with version 0x04, not 0x05"),
        ("05 ff", "the server chose method 0xff, which was not offered"),
        ("05 00 06", "the server answers with version 0x06, not 0x05"),
    ],
)
def test_the_error_says_what_the_server_did(answer: str, sentence: str) -> None:
    connection = ClientConnection(TARGET)
    connection.receive_data(bytes.fromhex(answer))

    assert str(error_of(connection)) == sentence


def test_a_status_of_another_version_is_an_error() -> None:
    connection = ClientConnection(TARGET, username="a", password="b")
    connection.receive_data(b"\x05\x02\x05\x00")

    error = error_of(connection)
    assert error.kind == "not-socks5"
    assert str(error) == "the server answers with version 0x05, not 0x01"


@pytest.mark.parametrize(
    ("request_", "wire"),
    [
        (ResolveRequest("a.b", reverse=False), b"\x05\xf0\0\x03\x03a.b\0\0"),
        (ResolveRequest("192.0.2.1", reverse=True), b"\x05\xf1\0\x01\xc0\0\x02\x01\0\0"),
        (BindRequest(HostPort("192.0.2.1", 7)), b"\x05\x02\0\x01\xc0\0\x02\x01\0\x07"),
    ],
)
def test_requests_besides_connect(request_: Request, wire: bytes) -> None:
    client = ClientConnection(request_)
    assert client.data_to_send() == b"\x05\x01\0"
    client.receive_data(b"\x05\0")
    assert client.next_event() is NEED_DATA
    assert client.data_to_send() == wire
