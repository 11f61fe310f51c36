"""SOCKS5, the server's side: what clients send, and what they get.

This file is long because each clause of RFC 1928 and RFC 1929 has a test.
"""

import pytest

from socks_tunnel.protocol.addresses import HostPort
from socks_tunnel.protocol.errors import LocalProtocolError, RemoteProtocolError, Reply
from socks_tunnel.protocol.socks5 import (
    BUFFER_MAX,
    NEED_DATA,
    BindRequest,
    ConnectRequest,
    Event,
    GreetingReceived,
    PasswordOffered,
    Request,
    ResolveRequest,
    ServerConnection,
    UdpAssociateRequest,
)

GREETING = "05 01 00"
CONNECT = "05 01 00 01 c0000207 0050"
LONGEST_NAME = ".".join(["a" * 63] * 4)


def events_of(connection: ServerConnection) -> list[Event]:
    events: list[Event] = []
    while (event := connection.next_event()) is not NEED_DATA:
        events.append(event)
    return events


def greeted() -> ServerConnection:
    connection = ServerConnection()
    connection.receive_data(bytes.fromhex(GREETING))
    assert events_of(connection) == [GreetingReceived(b"\0")]
    assert connection.data_to_send() == b"\x05\x00"
    return connection


def requested(request: str = CONNECT) -> ServerConnection:
    connection = greeted()
    connection.receive_data(bytes.fromhex(request))
    assert len(events_of(connection)) == 1
    assert connection.data_to_send() == b""
    return connection


def error_of(connection: ServerConnection) -> RemoteProtocolError:
    with pytest.raises(RemoteProtocolError) as caught:
        events_of(connection)
    with pytest.raises(RemoteProtocolError) as again:
        connection.next_event()
    assert again.value is caught.value
    return caught.value


# --- greeting ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("greeting", "methods"),
    [
        ("05 01 00", "00"),
        ("05 02 00 01", "00 01"),
        ("05 02 00 02", "00 02"),  # PySocks, Java
        ("05 03 00 01 02", "00 01 02"),  # curl
        ("05 03 02 01 00", "02 01 00"),
        ("05 ff" + "00" * 255, "00" * 255),
    ],
)
def test_chooses_no_authentication_among_several_methods(greeting: str, methods: str) -> None:
    connection = ServerConnection()

    connection.receive_data(bytes.fromhex(greeting))

    assert connection.next_event() == GreetingReceived(bytes.fromhex(methods))
    assert connection.next_event() is NEED_DATA
    assert connection.data_to_send() == b"\x05\x00"


@pytest.mark.parametrize("greeting", ["05 00", "05 01 02", "05 02 01 80", "05 01 ff"])
def test_answers_ff_where_no_method_is_acceptable(greeting: str) -> None:
    connection = ServerConnection()
    connection.receive_data(bytes.fromhex(greeting))

    assert error_of(connection).kind == "no-acceptable-method"
    assert connection.data_to_send() == b"\x05\xff"


def test_answers_ff_where_a_password_is_required_and_not_offered() -> None:
    connection = ServerConnection(require_password=True)
    connection.receive_data(bytes.fromhex("05 02 00 01"))

    assert error_of(connection).kind == "no-acceptable-method"
    assert connection.data_to_send() == b"\x05\xff"


def test_has_nothing_to_tell_before_anything_came() -> None:
    connection = ServerConnection()

    assert connection.next_event() is NEED_DATA
    assert connection.data_to_send() == b""


@pytest.mark.parametrize("first", [0x00, 0x04, 0x16, ord("G")])
def test_a_first_byte_other_than_5_ends_it_at_once_without_an_answer(first: int) -> None:
    connection = ServerConnection()
    connection.receive_data(bytes((first,)))

    assert error_of(connection).kind == "not-socks5"
    assert connection.data_to_send() == b""


def test_after_an_error_everything_more_is_dropped() -> None:
    connection = ServerConnection()
    connection.receive_data(b"GET / HTTP/1.1\r\n")
    error = error_of(connection)

    connection.receive_data(bytes.fromhex(GREETING + CONNECT))

    assert error_of(connection) is error
    assert connection.trailing_data() == b""
    with pytest.raises(LocalProtocolError):
        connection.reply(Reply.SUCCEEDED)


# --- username and password (RFC 1929) ---------------------------------------------------------

OFFER = "01 05 616c696365 06 736563726574"  # alice, secret


def asked_for_password() -> ServerConnection:
    connection = ServerConnection(require_password=True)
    connection.receive_data(bytes.fromhex("05 02 00 02"))
    assert events_of(connection) == [GreetingReceived(b"\0\2")]
    assert connection.data_to_send() == b"\x05\x02"
    return connection


def test_an_accepted_password_leads_to_the_request() -> None:
    connection = asked_for_password()
    connection.receive_data(bytes.fromhex(OFFER))
    assert events_of(connection) == [PasswordOffered("alice", "secret")]
    assert connection.data_to_send() == b""

    connection.accept_password(True)

    assert connection.data_to_send() == b"\x01\x00"
    connection.receive_data(bytes.fromhex(CONNECT))
    assert events_of(connection) == [ConnectRequest(HostPort("192.0.2.7", 80))]


def test_a_request_that_comes_with_the_password_waits_for_the_verdict() -> None:
    connection = ServerConnection(require_password=True)
    connection.receive_data(bytes.fromhex("05 01 02" + OFFER + CONNECT) + b"early")
    assert events_of(connection) == [GreetingReceived(b"\2"), PasswordOffered("alice", "secret")]
    assert connection.next_event() is NEED_DATA
    assert connection.trailing_data() == b""

    connection.accept_password(True)

    assert events_of(connection) == [ConnectRequest(HostPort("192.0.2.7", 80))]
    assert connection.trailing_data() == b"early"


def test_a_refused_password_ends_it() -> None:
    connection = asked_for_password()
    connection.receive_data(bytes.fromhex(OFFER + CONNECT))
    events_of(connection)

    connection.accept_password(False)

    assert connection.data_to_send() == b"\x01\x01"
    error = error_of(connection)
    assert (error.kind, str(error)) == ("authentication", "wrong user name or password")
    with pytest.raises(LocalProtocolError):
        connection.accept_password(True)


@pytest.mark.parametrize(
    ("offer", "sentence"),
    [
        ("05 01 00", "the subnegotiation has version 0x05, not RFC 1929's 0x01"),
        ("00 01 61 01 61", "the subnegotiation has version 0x00, not RFC 1929's 0x01"),
        ("01 02 61ff 01 61", "user name or password is not UTF-8"),
        ("01 01 61 02 61ff", "user name or password is not UTF-8"),
    ],
    ids=["version 5", "version 0", "name not UTF-8", "password not UTF-8"],
)
def test_a_malformed_password_message_is_refused(offer: str, sentence: str) -> None:
    connection = asked_for_password()
    connection.receive_data(bytes.fromhex(offer))

    error = error_of(connection)
    assert (error.kind, str(error)) == ("authentication", sentence)
    assert connection.data_to_send() == b"\x01\x01"


def test_a_password_may_come_byte_by_byte() -> None:
    connection = asked_for_password()
    raw = bytes.fromhex(OFFER)
    for byte in raw[:-1]:
        connection.receive_data(bytes((byte,)))
        assert connection.next_event() is NEED_DATA
    connection.receive_data(raw[-1:])

    assert connection.next_event() == PasswordOffered("alice", "secret")


@pytest.mark.parametrize(
    ("offer", "username", "password"),
    [
        ("01 00 00", "", ""),
        ("01 01 61 00", "a", ""),
        ("01 02 c3bc 03 e282ac", "ü", "€"),
        ("01 ff" + "61" * 255 + "ff" + "62" * 255, "a" * 255, "b" * 255),
    ],
)
def test_reads_names_and_passwords_of_any_length(offer: str, username: str, password: str) -> None:
    connection = asked_for_password()
    connection.receive_data(bytes.fromhex(offer))

    assert events_of(connection) == [PasswordOffered(username, password)]


def test_a_password_is_not_in_the_repr_of_its_event() -> None:
    assert "secret" not in repr(PasswordOffered("alice", "secret"))


def test_a_verdict_that_nobody_asked_for_is_our_own_mistake() -> None:
    with pytest.raises(LocalProtocolError, match=r"^no password is waiting for an answer$"):
        greeted().accept_password(True)


# --- requests ---------------------------------------------------------------------------------

REQUESTS: list[tuple[str, str, Request]] = [
    ("CONNECT, IPv4", CONNECT, ConnectRequest(HostPort("192.0.2.7", 80))),
    (
        "CONNECT, IPv6",
        "05 01 00 04 20010db8000000000000000000000007 01bb",
        ConnectRequest(HostPort("2001:db8::7", 443)),
    ),
    (
        "CONNECT, name",
        "05 01 00 03 0b 6578616d706c652e636f6d 01bb",
        ConnectRequest(HostPort("example.com", 443)),
    ),
    ("CONNECT, name of 1 byte", "05 01 00 03 01 61 0050", ConnectRequest(HostPort("a", 80))),
    (
        "CONNECT, name of 255 bytes",
        "05 01 00 03 ff" + LONGEST_NAME.encode().hex() + "0050",
        ConnectRequest(HostPort(LONGEST_NAME, 80)),
    ),
    (
        "CONNECT, upper case",
        "05 01 00 03 0b 4558414d504c452e434f4d 01bb",
        ConnectRequest(HostPort("example.com", 443)),
    ),
    (
        "CONNECT, trailing dot",
        "05 01 00 03 0c 6578616d706c652e636f6d2e 01bb",
        ConnectRequest(HostPort("example.com", 443)),
    ),
    (
        "CONNECT, IPv4 literal as a name",
        "05 01 00 03 09 3139322e302e322e37 0050",
        ConnectRequest(HostPort("192.0.2.7", 80)),
    ),
    (
        "CONNECT, IPv6 literal as a name",
        "05 01 00 03 0b 323030313a6462383a3a37 0050",
        ConnectRequest(HostPort("2001:db8::7", 80)),
    ),
    (
        "CONNECT, IPv6 literal in brackets as a name",
        "05 01 00 03 0d 5b323030313a6462383a3a375d 0050",
        ConnectRequest(HostPort("2001:db8::7", 80)),
    ),
    (
        "CONNECT, RSV is ignored",
        "05 01 ff 01 c0000207 0050",
        ConnectRequest(HostPort("192.0.2.7", 80)),
    ),
    ("BIND", "05 02 00 01 c0000207 0014", BindRequest(HostPort("192.0.2.7", 20))),
    ("BIND, name", "05 02 00 03 01 61 0000", BindRequest(HostPort("a", 0))),
    (
        "UDP ASSOCIATE, all zeros",
        "05 03 00 01 00000000 0000",
        UdpAssociateRequest(None),
    ),
    (
        "UDP ASSOCIATE, all zeros in IPv6",
        "05 03 00 04 00000000000000000000000000000000 0000",
        UdpAssociateRequest(None),
    ),
    (
        "UDP ASSOCIATE, only a port",
        "05 03 00 01 00000000 1f90",
        UdpAssociateRequest(HostPort("0.0.0.0", 8080)),
    ),
    (
        "UDP ASSOCIATE, an address",
        "05 03 00 01 7f000001 1f90",
        UdpAssociateRequest(HostPort("127.0.0.1", 8080)),
    ),
    (
        "UDP ASSOCIATE, a literal as a name",
        "05 03 00 03 09 3132372e302e302e31 1f90",
        UdpAssociateRequest(HostPort("127.0.0.1", 8080)),
    ),
    ("UDP ASSOCIATE, PySocks' 0", "05 03 00 03 01 30 0000", UdpAssociateRequest(None)),
    ("UDP ASSOCIATE, empty name", "05 03 00 03 00 0000", UdpAssociateRequest(None)),
    ("UDP ASSOCIATE, junk", "05 03 00 03 03 ff0020 1f90", UdpAssociateRequest(None)),
    ("UDP ASSOCIATE, a name", "05 03 00 03 01 61 1f90", UdpAssociateRequest(None)),
]


@pytest.mark.parametrize(("name", "wire", "request_"), REQUESTS, ids=[row[0] for row in REQUESTS])
@pytest.mark.parametrize("step", [1, 2, 1000], ids=["bytes", "pairs", "whole"])
def test_reads_a_request(name: str, wire: str, request_: Request, step: int) -> None:
    connection = ServerConnection()
    raw = bytes.fromhex(GREETING + wire)
    events = []
    for start in range(0, len(raw), step):
        connection.receive_data(raw[start : start + step])
        events += events_of(connection)

    assert events == [GreetingReceived(b"\0"), request_]
    assert connection.data_to_send() == b"\x05\x00"
    assert connection.trailing_data() == b""


REFUSED: list[tuple[str, str, str, Reply]] = [
    ("version 4", "04 01 00 01 c0000207 0050", "bad-request", Reply.GENERAL_FAILURE),
    ("command 0", "05 00 00 01 c0000207 0050", "command", Reply.COMMAND_NOT_SUPPORTED),
    ("command 4", "05 04 00 01 c0000207 0050", "command", Reply.COMMAND_NOT_SUPPORTED),
    (
        "RESOLVE_PTR of a name",
        "05 f1 00 03 01 61 0000",
        "address-type",
        Reply.ADDRESS_TYPE_NOT_SUPPORTED,
    ),
    ("command 4 about no name", "05 04 00 03 00 0000", "command", Reply.COMMAND_NOT_SUPPORTED),
    ("command and type unknown", "05 04 00 09", "command", Reply.COMMAND_NOT_SUPPORTED),
    ("address type 0", "05 01 00 00", "address-type", Reply.ADDRESS_TYPE_NOT_SUPPORTED),
    ("address type 2", "05 01 00 02", "address-type", Reply.ADDRESS_TYPE_NOT_SUPPORTED),
    ("UDP, address type 9", "05 03 00 09", "address-type", Reply.ADDRESS_TYPE_NOT_SUPPORTED),
    ("CONNECT, empty name", "05 01 00 03 00 0050", "bad-name", Reply.GENERAL_FAILURE),
    ("CONNECT, not UTF-8", "05 01 00 03 01 ff 0050", "bad-name", Reply.GENERAL_FAILURE),
    ("CONNECT, a URL", "05 01 00 03 08 687474703a2f2f61 0050", "bad-name", Reply.GENERAL_FAILURE),
    ("CONNECT, empty label", "05 01 00 03 04 612e2e62 0050", "bad-name", Reply.GENERAL_FAILURE),
    ("BIND, empty name", "05 02 00 03 00 0050", "bad-name", Reply.GENERAL_FAILURE),
]


@pytest.mark.parametrize(
    ("name", "wire", "kind", "reply"), REFUSED, ids=[row[0] for row in REFUSED]
)
@pytest.mark.parametrize("step", [1, 1000], ids=["bytes", "whole"])
def test_refuses_a_request_with_its_code_and_ten_bytes(
    name: str, wire: str, kind: str, reply: Reply, step: int
) -> None:
    connection = greeted()
    raw = bytes.fromhex(wire)
    for byte in raw[:-1] if step == 1 else b"":
        connection.receive_data(bytes((byte,)))
        if raw[0] == 5:
            assert connection.next_event() is NEED_DATA
    connection.receive_data(raw[-1:] if step == 1 else raw)

    error = error_of(connection)

    assert (error.kind, error.reply) == (kind, reply)
    assert connection.data_to_send().hex() == f"05{reply:02x}000100000000" + "0000"


@pytest.mark.parametrize(
    ("wire", "sentence"),
    [
        ("04 01", "the first byte is 0x04, not SOCKS version 5"),
        ("05 01 02", "the client does not offer method 0x00"),
        (GREETING + "04 01", "the request has version 0x04, not 0x05"),
        (GREETING + "05 04 00 01 c0000207 0050", "unknown command 0x04"),
        (GREETING + "05 04 00 09", "unknown command 0x04"),
        (
            GREETING + "05 f1 00 03 01 61 0000",
            "RESOLVE_PTR asks for the name of 'a', which is no address",
        ),
    ],
)
def test_the_error_says_what_the_client_did(wire: str, sentence: str) -> None:
    connection = ServerConnection()
    connection.receive_data(bytes.fromhex(wire))

    assert str(error_of(connection)) == sentence


def test_a_refused_command_is_read_to_its_end_first() -> None:
    connection = greeted()

    connection.receive_data(bytes.fromhex("05 04 00 03 05 6162"))

    assert connection.next_event() is NEED_DATA
    assert connection.data_to_send() == b""


# --- early data -------------------------------------------------------------------------------


def test_bytes_after_a_pipelined_request_are_early_data() -> None:
    connection = ServerConnection()
    connection.receive_data(bytes.fromhex(GREETING + CONNECT) + b"GET / HTTP/1.1\r\n")

    assert events_of(connection) == [
        GreetingReceived(b"\0"),
        ConnectRequest(HostPort("192.0.2.7", 80)),
    ]
    assert connection.data_to_send() == b"\x05\x00"
    assert connection.trailing_data() == b"GET / HTTP/1.1\r\n"
    assert connection.trailing_data() == b""


def test_early_data_may_come_before_and_after_the_reply() -> None:
    connection = requested()
    connection.receive_data(b"one ")
    connection.receive_data(b"two ")
    connection.reply(Reply.SUCCEEDED)
    connection.receive_data(b"three")

    assert connection.trailing_data() == b"one two three"


def test_a_single_read_of_any_length_is_kept() -> None:
    connection = ServerConnection()
    early = bytes(BUFFER_MAX * 2)

    connection.receive_data(bytes.fromhex(GREETING + CONNECT) + early)

    assert len(events_of(connection)) == 2
    assert connection.trailing_data() == early


def test_a_shell_that_does_not_stop_reading_is_told() -> None:
    connection = requested()
    chunk = bytes(BUFFER_MAX // 4)
    for _ in range(4):
        connection.receive_data(chunk)

    with pytest.raises(
        LocalProtocolError, match=rf"^{BUFFER_MAX} bytes are waiting; stop reading until they are"
    ):
        connection.receive_data(b"x")

    assert len(connection.trailing_data()) == BUFFER_MAX
    connection.receive_data(b"x")
    assert connection.trailing_data() == b"x"


# --- replies ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("request_", "word"),
    [
        (CONNECT, "connect"),
        ("05 02 00 01 c0000207 0014", "bind"),
        ("05 03 00 01 00000000 0000", "udp-associate"),
        ("05 f0 00 03 01 61 0000", "resolve"),
        ("05 f1 00 01 c0000207 0000", "resolve"),
    ],
)
def test_the_command_has_a_word(request_: str, word: str) -> None:
    assert greeted().command_name == "unknown"
    assert requested(request_).command_name == word


def test_what_was_not_taken_is_counted() -> None:
    connection = greeted()
    connection.receive_data(b"\x05\x01")
    assert events_of(connection) == []
    assert connection.buffered == 2


def test_no_reply_leaves_before_the_shell_gives_one() -> None:
    connection = requested()

    assert connection.next_event() is NEED_DATA
    assert connection.data_to_send() == b""


@pytest.mark.parametrize(
    ("bound", "wire"),
    [
        (HostPort("10.77.1.2", 40000), "05 00 00 01 0a4d0102 9c40"),
        (HostPort("2001:db8::1", 40000), "05 00 00 04 20010db8000000000000000000000001 9c40"),
        (HostPort("a.name", 40000), "05 00 00 01 00000000 0000"),
    ],
)
def test_success_carries_the_bound_address_as_atyp_1_or_4(bound: HostPort, wire: str) -> None:
    connection = requested()

    connection.reply(Reply.SUCCEEDED, bound)

    assert connection.data_to_send().hex() == bytes.fromhex(wire).hex()
    assert connection.data_to_send() == b""


@pytest.mark.parametrize("reply", [r for r in Reply if r is not Reply.SUCCEEDED])
def test_a_failure_is_ten_bytes_whatever_is_bound(reply: Reply) -> None:
    connection = requested()

    connection.reply(reply, HostPort("2001:db8::1", 40000))

    assert connection.data_to_send().hex() == f"05{reply:02x}000100000000" + "0000"


@pytest.mark.parametrize("wire", [CONNECT, "05 03 00 01 00000000 0000"])
def test_connect_and_udp_associate_have_one_reply(wire: str) -> None:
    connection = requested(wire)
    connection.reply(Reply.SUCCEEDED)

    with pytest.raises(LocalProtocolError, match=r"^no reply is due$"):
        connection.reply(Reply.SUCCEEDED)


def test_bind_has_a_second_reply_after_a_success() -> None:
    connection = requested("05 02 00 01 c0000207 0014")

    connection.reply(Reply.SUCCEEDED, HostPort("10.77.1.2", 40000))
    connection.reply(Reply.SUCCEEDED, HostPort("192.0.2.7", 20))

    assert connection.data_to_send().hex(" ") == (
        "05 00 00 01 0a 4d 01 02 9c 40 05 00 00 01 c0 00 02 07 00 14"
    )
    with pytest.raises(LocalProtocolError, match=r"^no reply is due$"):
        connection.reply(Reply.SUCCEEDED)


def test_bind_has_no_second_reply_after_a_failure() -> None:
    connection = requested("05 02 00 01 c0000207 0014")
    connection.reply(Reply.NOT_ALLOWED)

    with pytest.raises(LocalProtocolError, match=r"^no reply is due$"):
        connection.reply(Reply.SUCCEEDED)


def test_a_reply_to_no_request_is_our_own_mistake() -> None:
    with pytest.raises(LocalProtocolError, match=r"^no reply is due$"):
        greeted().reply(Reply.SUCCEEDED)


# --- Tor's RESOLVE and RESOLVE_PTR --------------------------------------------------------------


@pytest.mark.parametrize(
    ("request_bytes", "event"),
    [
        ("05 f0 00 03 01 61 0000", ResolveRequest("a")),
        ("05 f0 00 01 c0000207 0050", ResolveRequest("192.0.2.7")),
        ("05 f1 00 01 c0000207 0000", ResolveRequest("192.0.2.7", reverse=True)),
        ("05 f1 00 03 09 3139322e302e322e37 0000", ResolveRequest("192.0.2.7", reverse=True)),
    ],
)
def test_reads_a_question_about_a_name(request_bytes: str, event: ResolveRequest) -> None:
    connection = greeted()
    connection.receive_data(bytes.fromhex(request_bytes))

    assert events_of(connection) == [event]


@pytest.mark.parametrize(
    ("request_bytes", "host", "answer"),
    [
        ("05 f0 00 03 01 61 0000", "192.0.2.7", "05 00 00 01 c0000207 0000"),
        ("05 f0 00 03 01 61 0000", "a.b", "05 00 00 01 00000000 0000"),
        ("05 f1 00 01 c0000207 0000", "a.b", "05 00 00 03 03 612e62 0000"),
    ],
    ids=["an address", "a name in place of an address", "a name"],
)
def test_answers_a_question_about_a_name(request_bytes: str, host: str, answer: str) -> None:
    connection = greeted()
    connection.receive_data(bytes.fromhex(request_bytes))
    events_of(connection)

    connection.reply(Reply.SUCCEEDED, HostPort(host, 0))

    assert connection.data_to_send() == bytes.fromhex(answer)


def test_an_unanswered_question_is_ten_bytes() -> None:
    connection = greeted()
    connection.receive_data(bytes.fromhex("05 f1 00 01 c0000207 0000"))
    events_of(connection)

    connection.reply(Reply.HOST_UNREACHABLE, HostPort("a.b", 0))

    assert connection.data_to_send() == bytes.fromhex("05 04 00 01 00000000 0000")
