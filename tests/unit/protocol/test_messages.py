"""The tunnel messages, byte for byte.

This file is long because each message and each way to spoil it stands here, as the codec does.
"""

from collections.abc import Callable

import msgpack
import pytest

from socks_tunnel.protocol.addresses import HostPort
from socks_tunnel.protocol.errors import CloseReason, RemoteProtocolError, Reply, reply_of
from socks_tunnel.protocol.messages import (
    ANSWERS_MAX,
    DATA_MAX,
    FLOW_ENDERS,
    FLOW_OPENERS,
    LINK_TYPES,
    MESSAGE_MAX,
    SOFTWARE_MAX,
    Answer,
    Bind,
    BindAccepted,
    BindListening,
    CloseConnection,
    ConnectionOpened,
    Data,
    Goaway,
    Hello,
    Message,
    MessageType,
    OpenConnection,
    Ping,
    Pong,
    Resolve,
    Resolved,
    ResolveKind,
    Resume,
    SendEof,
    UdpAssociate,
    UdpAssociateClosed,
    UdpAssociateOpened,
    UdpPacket,
    UnknownMessage,
    WindowUpdate,
    decode,
    message_header,
    message_key,
    mix32,
)

SESSION = bytes(range(16))
HELLO = Hello(
    version=1,
    software="socks-tunnel/0.1",
    session=SESSION,
    window=262_144,
    max_data=65_529,
    features=("bind", "udp"),
    idle_udp=300,
)

# (name, hex, message): must decode to the message, and the message must encode to the bytes.
# The seven messages of the original specification come first.
GOLDEN: list[tuple[str, str, Message]] = [
    (
        "OPEN_CONNECTION by name",  # the original's example, with the length that HOST measures
        "0e 0000 12345678 00000000 0f 7777772e6578616d706c652e636f6d 01bb",
        OpenConnection(0x12345678, "www.example.com", 443),
    ),
    (
        "OPEN_CONNECTION to an IPv4 literal",
        "0e 0000 00000001 00000000 09 3139322e302e322e37 0050",
        OpenConnection(1, "192.0.2.7", 80),
    ),
    (
        "OPEN_CONNECTION to an IPv6 literal, without brackets",
        "0e 0000 00000002 00000000 0b 323030313a6462383a3a37 0016",
        OpenConnection(2, "2001:db8::7", 22),
    ),
    (
        "OPEN_CONNECTION to a name of one byte",
        "0e 0000 00000003 00000000 01 61 ffff",
        OpenConnection(3, "a", 65535),
    ),
    ("CLOSE_CONNECTION", "0f 0000 12345678", CloseConnection(0x12345678)),
    (
        "CLOSE_CONNECTION, connection refused",
        "0f 0000 12345678 05",
        CloseConnection(0x12345678, CloseReason.CONNECTION_REFUSED),
    ),
    (
        "CLOSE_CONNECTION, reset",
        "0f 0000 ffffffff 10",
        CloseConnection(0xFFFFFFFF, CloseReason.RESET),
    ),
    ("SEND_EOF", "68 0000 12345678", SendEof(0x12345678)),
    ("UDP_ASSOCIATE", "c9 0000 0000abcd", UdpAssociate(0xABCD)),
    ("UDP_ASSOCIATE_OPENED", "ca 0000 0000abcd", UdpAssociateOpened(0xABCD)),
    (
        "UDP_ASSOCIATE_OPENED with the socket's address",
        "ca 0000 0000abcd 01 c0000201 d431",
        UdpAssociateOpened(0xABCD, HostPort("192.0.2.1", 54321)),
    ),
    (
        "UDP_PACKET to IPv4",
        "cb 0000 0000abcd 0000 00 01 08080808 0035 68656c6c6f",
        UdpPacket(0xABCD, bytes.fromhex("0000 00 01 08080808 0035 68656c6c6f")),
    ),
    (
        "UDP_PACKET to a name, no data",
        "cb 0000 0000abcd 0000 00 03 0161 0035",
        UdpPacket(0xABCD, bytes.fromhex("0000 00 03 0161 0035")),
    ),
    ("UDP_ASSOCIATE_CLOSED", "cc 0000 0000abcd", UdpAssociateClosed(0xABCD)),
    (
        "UDP_ASSOCIATE_CLOSED, idle",
        "cc 0000 0000abcd 11",
        UdpAssociateClosed(0xABCD, CloseReason.IDLE_TIMEOUT),
    ),
    # What the original leaves open.
    ("PING", "01 0000 00000000 0123456789abcdef", Ping(bytes.fromhex("0123456789abcdef"))),
    ("PONG", "02 0000 00000000 0123456789abcdef", Pong(bytes.fromhex("0123456789abcdef"))),
    (
        "HELLO",
        (
            "0a 0000 00000000 87"
            " a7 76657273696f6e 01"
            " a8 736f667477617265 b0 736f636b732d74756e6e656c2f302e31"
            " a7 73657373696f6e c410 000102030405060708090a0b0c0d0e0f"
            " a6 77696e646f77 ce 00040000"
            " a8 6d61785f64617461 cd fff9"
            " a8 6665617475726573 92 a4 62696e64 a3 756470"
            " a8 69646c655f756470 cd 012c"
        ),
        HELLO,
    ),
    ("GOAWAY", "0b 0000 00000000 12", Goaway(CloseReason.SHUTTING_DOWN)),
    (
        "RESUME",
        "0c 0000 00000000 82 a5 666c6f7773 91 94 01020300 a4 6c617374 c3",
        Resume(((1, 2, 3, 0),), last=True),
    ),
    (
        "CONNECTION_OPENED, IPv4",
        "67 0000 00000007 01 0a4d0102 9c40",
        ConnectionOpened(7, HostPort("10.77.1.2", 40000)),
    ),
    (
        "CONNECTION_OPENED, IPv6",
        "67 0000 00000007 04 20010db8000000000000000000000001 9c40",
        ConnectionOpened(7, HostPort("2001:db8::1", 40000)),
    ),
    ("DATA of one byte", "69 0000 00000007 00", Data(7, b"\0")),
    ("DATA", "69 0000 00000007 474554202f", Data(7, b"GET /")),
    (
        "WINDOW_UPDATE",
        "6a 0000 00000007 0000000100000000 0000000100040000",
        WindowUpdate(7, 1 << 32, (1 << 32) + 262_144),
    ),
    (
        "WINDOW_UPDATE, closed window, highest count",
        "6a 0000 00000007 ffffffffffffffff ffffffffffffffff",
        WindowUpdate(7, (1 << 64) - 1, (1 << 64) - 1),
    ),
    ("BIND", "d3 0000 00000009 01 c6336401 0000", Bind(9, HostPort("198.51.100.1", 0))),
    (
        "BIND, caller named",
        "d3 0000 00000009 03 08 6674702e636f7270 0014",
        Bind(9, HostPort("ftp.corp", 20)),
    ),
    (
        "BIND_LISTENING",
        "d4 0000 00000009 01 0a4d0102 9c40",
        BindListening(9, HostPort("10.77.1.2", 40000)),
    ),
    (
        "BIND_ACCEPTED",
        "d5 0000 00000009 04 20010db8000000000000000000000001 0014",
        BindAccepted(9, HostPort("2001:db8::1", 20)),
    ),
    (
        "RESOLVE, the addresses of a name",
        "dc 0000 0000000a 00 04 642e6172",
        Resolve(10, ResolveKind.ADDRESSES, "d.ar"),
    ),
    (
        "RESOLVE, the name of an address",
        "dc 0000 0000000a 01 08 31302e302e302e31",
        Resolve(10, ResolveKind.NAME, "10.0.0.1"),
    ),
    (
        "RESOLVED, one of each",
        (
            "dd 0000 0000000a 00 03 0000003c 01 0a000001"
            " 00000000 04 20010db8000000000000000000000001 ffffffff 03 01 61"
        ),
        Resolved(
            10, 0, (Answer(60, "10.0.0.1"), Answer(0, "2001:db8::1"), Answer(0xFFFFFFFF, "a"))
        ),
    ),
    ("RESOLVED, refused", "dd 0000 0000000a 02 00", Resolved(10, CloseReason.NOT_ALLOWED)),
]

# Other bytes for the same thing: decoded, never encoded.
LENIENT: list[tuple[str, str, Message]] = [
    ("RESERVED of the header is ignored", "68 dead 12345678", SendEof(0x12345678)),
    (
        "RESERVED of OPEN_CONNECTION is ignored",
        "0e 0000 00000003 deadbeef 01 61 ffff",
        OpenConnection(3, "a", 65535),
    ),
    ("an orderly close that says so", "0f 0000 12345678 00", CloseConnection(0x12345678)),
    ("the same of UDP", "cc 0000 0000abcd 00", UdpAssociateClosed(0xABCD)),
    (
        "upper case and a final dot",
        "0e 0000 00000003 00000000 05 412e42432e 0050",
        OpenConnection(3, "a.bc", 80),
    ),
    (
        "a reason of a later version",
        "0f 0000 00000003 7f",
        CloseConnection(3, 0x7F),
    ),
    ("an unknown type", "63 0000 00000003 010203", UnknownMessage(99, 3)),
    ("an unknown type of nothing but a header", "ff 0000 00000000", UnknownMessage(255, 0)),
]

# (name, hex, kind, CONN_ID that the error names)
MALFORMED: list[tuple[str, str, str, int]] = [
    ("nothing", "", "short-message", 0),
    ("half a header", "0e 0000 123456", "short-message", 0),
    # OPEN_CONNECTION
    ("OPEN_CONNECTION, nothing", "0e 0000 00000001", "malformed-open_connection", 1),
    ("OPEN_CONNECTION, no length", "0e 0000 00000001 00000000", "malformed-open_connection", 1),
    (
        "OPEN_CONNECTION, host cut short",
        "0e 0000 00000001 00000000 0f 7777772e",
        "malformed-open_connection",
        1,
    ),
    (
        "OPEN_CONNECTION, port cut short",
        "0e 0000 00000001 00000000 01 61 00",
        "malformed-open_connection",
        1,
    ),
    (
        "OPEN_CONNECTION, the original's printed example (0x11 for 15 bytes)",
        "0e 0000 12345678 00000000 11 7777772e6578616d706c652e636f6d 01bb",
        "malformed-open_connection",
        0x12345678,
    ),
    (
        "OPEN_CONNECTION, length too small",
        "0e 0000 00000001 00000000 01 6162 0050",
        "malformed-open_connection",
        1,
    ),
    (
        "OPEN_CONNECTION, trailing byte",
        "0e 0000 00000001 00000000 01 61 0050 00",
        "malformed-open_connection",
        1,
    ),
    (
        "OPEN_CONNECTION, empty host",
        "0e 0000 00000001 00000000 00 0050",
        "malformed-open_connection",
        1,
    ),
    (
        "OPEN_CONNECTION, not UTF-8",
        "0e 0000 00000001 00000000 02 61ff 0050",
        "malformed-open_connection",
        1,
    ),
    (
        "OPEN_CONNECTION, a NUL inside",
        "0e 0000 00000001 00000000 03 610062 0050",
        "malformed-open_connection",
        1,
    ),
    (
        "OPEN_CONNECTION, an empty label",
        "0e 0000 00000001 00000000 04 612e2e62 0050",
        "malformed-open_connection",
        1,
    ),
    # the other six of the original
    ("CLOSE_CONNECTION, trailing", "0f 0000 00000001 0500", "malformed-close_connection", 1),
    ("SEND_EOF, trailing", "68 0000 00000001 00", "malformed-send_eof", 1),
    ("UDP_ASSOCIATE, trailing", "c9 0000 00000001 00", "malformed-udp_associate", 1),
    (
        "UDP_ASSOCIATE_OPENED, address cut short",
        "ca 0000 00000001 01 c00002",
        "malformed-udp_associate_opened",
        1,
    ),
    (
        "UDP_ASSOCIATE_OPENED, unknown address type",
        "ca 0000 00000001 02 c0000201 d431",
        "malformed-udp_associate_opened",
        1,
    ),
    (
        "UDP_ASSOCIATE_OPENED, trailing",
        "ca 0000 00000001 01 c0000201 d431 00",
        "malformed-udp_associate_opened",
        1,
    ),
    (
        "UDP_ASSOCIATE_CLOSED, trailing",
        "cc 0000 00000001 1100",
        "malformed-udp_associate_closed",
        1,
    ),
    # the messages of the link
    ("PING, short", "01 0000 00000000 01234567", "malformed-ping", 0),
    ("PING, trailing", "01 0000 00000000 0123456789abcdef00", "malformed-ping", 0),
    ("PONG, short", "02 0000 00000000", "malformed-pong", 0),
    ("PONG, trailing", "02 0000 00000000 0123456789abcdef00", "malformed-pong", 0),
    ("GOAWAY, short", "0b 0000 00000000", "malformed-goaway", 0),
    ("GOAWAY, trailing", "0b 0000 00000000 1200", "malformed-goaway", 0),
    ("HELLO, nothing", "0a 0000 00000000", "malformed-hello", 0),
    ("HELLO, a list", "0a 0000 00000000 90", "malformed-hello", 0),
    ("HELLO, cut short", "0a 0000 00000000 81 a7 7665", "malformed-hello", 0),
    ("HELLO, empty map", "0a 0000 00000000 80", "malformed-hello", 0),
    ("HELLO, trailing", "0a 0000 00000000 80 80", "malformed-hello", 0),
    ("HELLO, invalid msgpack", "0a 0000 00000000 c1", "malformed-hello", 0),
    ("HELLO, a number for a key", "0a 0000 00000000 81 01 01", "malformed-hello", 0),
    ("RESUME, nothing", "0c 0000 00000000", "malformed-resume", 0),
    ("RESUME, a number", "0c 0000 00000000 07", "malformed-resume", 0),
    ("RESUME, flows a number", "0c 0000 00000000 81 a5 666c6f7773 01", "malformed-resume", 0),
    ("RESUME, last a number", "0c 0000 00000000 81 a4 6c617374 01", "malformed-resume", 0),
    *(
        (f"RESUME, row {row}", f"0c 0000 00000000 81 a5 666c6f7773 91 {row}", "malformed-resume", 0)
        for row in (
            "01",  # no list
            "93 010203",  # three numbers
            "95 0102030000",  # five
            "94 010203c3",  # a truth value
            "94 00020300",  # CONN_ID 0
            "94 cf0000000100000000 020300",  # a CONN_ID over 32 bits
            "94 01ff0300",  # negative
            "94 0102ff00",
            "94 010203ff",
        )
    ),
    # the messages of a flow
    ("CONNECTION_OPENED, nothing", "67 0000 00000007", "malformed-connection_opened", 7),
    (
        "CONNECTION_OPENED, address cut short",
        "67 0000 00000007 04 2001",
        "malformed-connection_opened",
        7,
    ),
    (
        "CONNECTION_OPENED, unknown address type",
        "67 0000 00000007 00 0a4d0102 9c40",
        "malformed-connection_opened",
        7,
    ),
    (
        "CONNECTION_OPENED, trailing",
        "67 0000 00000007 01 0a4d0102 9c40 00",
        "malformed-connection_opened",
        7,
    ),
    ("DATA of nothing", "69 0000 00000007", "malformed-data", 7),
    (
        "WINDOW_UPDATE, short",
        "6a 0000 00000007 0000000000000001 00000000000000",
        "malformed-window_update",
        7,
    ),
    (
        "WINDOW_UPDATE, trailing",
        "6a 0000 00000007 0000000000000001 0000000000000002 00",
        "malformed-window_update",
        7,
    ),
    (
        "WINDOW_UPDATE, CONSUMED beyond LIMIT",
        "6a 0000 00000007 0000000000000002 0000000000000001",
        "malformed-window_update",
        7,
    ),
    ("BIND, nothing", "d3 0000 00000009", "malformed-bind", 9),
    ("BIND, trailing", "d3 0000 00000009 01 c6336401 0000 00", "malformed-bind", 9),
    ("BIND, empty name", "d3 0000 00000009 03 00 0014", "malformed-bind", 9),
    ("BIND_LISTENING, nothing", "d4 0000 00000009", "malformed-bind_listening", 9),
    ("BIND_ACCEPTED, short", "d5 0000 00000009 01 0a4d", "malformed-bind_accepted", 9),
    ("RESOLVE, nothing", "dc 0000 00000009", "malformed-resolve", 9),
    ("RESOLVE, no host", "dc 0000 00000009 00 00", "malformed-resolve", 9),
    ("RESOLVE, cut", "dc 0000 00000009 00 02 61", "malformed-resolve", 9),
    ("RESOLVE, trailing", "dc 0000 00000009 00 01 61 00", "malformed-resolve", 9),
    ("RESOLVE, another KIND", "dc 0000 00000009 02 01 61", "malformed-resolve", 9),
    ("RESOLVE, the name of a name", "dc 0000 00000009 01 01 61", "malformed-resolve", 9),
    ("RESOLVED, nothing", "dd 0000 00000009 00", "malformed-resolved", 9),
    ("RESOLVED, cut in TTL", "dd 0000 00000009 00 01 000000", "malformed-resolved", 9),
    ("RESOLVED, no ATYP", "dd 0000 00000009 00 01 00000000", "malformed-resolved", 9),
    ("RESOLVED, cut in ADDR", "dd 0000 00000009 00 01 00000000 01 0a0000", "malformed-resolved", 9),
    ("RESOLVED, odd ATYP", "dd 0000 00000009 00 01 00000000 02 0a000001", "malformed-resolved", 9),
    ("RESOLVED, odd name", "dd 0000 00000009 00 01 00000000 03 01 20", "malformed-resolved", 9),
    ("RESOLVED, trailing", "dd 0000 00000009 00 00 00", "malformed-resolved", 9),
    ("RESOLVED, 65 answers", "dd 0000 00000009 00 41", "malformed-resolved", 9),
]


def ids(table: list[tuple[str, str, Message]]) -> list[str]:
    return [row[0] for row in table]


@pytest.mark.parametrize(("name", "wire", "message"), GOLDEN, ids=ids(GOLDEN))
def test_encodes_to_the_golden_bytes(name: str, wire: str, message: Message) -> None:
    assert not isinstance(message, UnknownMessage)
    assert message.encode().hex() == bytes.fromhex(wire).hex()


@pytest.mark.parametrize("buffer", [bytes, bytearray, lambda raw: memoryview(bytearray(raw))])
@pytest.mark.parametrize(("name", "wire", "message"), GOLDEN + LENIENT, ids=ids(GOLDEN + LENIENT))
def test_decodes_the_golden_bytes(
    name: str, wire: str, message: Message, buffer: Callable[[bytes], bytes]
) -> None:
    assert decode(buffer(bytes.fromhex(wire))) == message


def test_every_type_has_a_golden_vector() -> None:
    types = {bytes.fromhex(wire)[0] for _, wire, _ in GOLDEN}

    assert types == set(MessageType)


@pytest.mark.parametrize(
    ("name", "wire", "kind", "conn_id"), MALFORMED, ids=[row[0] for row in MALFORMED]
)
def test_refuses_what_does_not_fit_its_layout(
    name: str, wire: str, kind: str, conn_id: int
) -> None:
    with pytest.raises(RemoteProtocolError) as caught:
        decode(bytes.fromhex(wire))

    assert caught.value.kind == kind
    assert caught.value.conn_id == conn_id


@pytest.mark.parametrize("length", range(15))
def test_open_connection_cut_anywhere_is_malformed(length: int) -> None:
    whole = OpenConnection(1, "a", 80).encode()
    assert len(whole) == 15

    with pytest.raises(RemoteProtocolError):
        decode(whole[:length])


def test_longest_host_fits() -> None:
    host = ".".join(["a" * 63] * 4)
    assert len(host) == 255
    message = OpenConnection(1, host, 80)

    assert decode(message.encode()) == message


def test_as_many_answers_as_may_be_fit_one_message() -> None:
    longest = ".".join(("a" * 63, "b" * 63, "c" * 63, "d" * 61))
    answers = (Answer(1, longest),) * ANSWERS_MAX

    assert len(Resolved(1, 0, answers).encode()) <= MESSAGE_MAX
    with pytest.raises(ValueError, match="do not fit"):
        Resolved(1, 0, (*answers, answers[0])).encode()


@pytest.mark.parametrize("host", ["", "a" * 256])
def test_a_host_that_does_not_fit_a_question_is_our_own_mistake(host: str) -> None:
    with pytest.raises(ValueError, match="does not fit"):
        Resolve(1, ResolveKind.ADDRESSES, host).encode()


def test_longest_data_fills_the_smallest_data_channel_message() -> None:
    message = Data(1, bytes(DATA_MAX))

    assert len(message.encode()) == MESSAGE_MAX == 65_536
    assert decode(message.encode()) == message


def test_data_over_the_limit_is_refused() -> None:
    with pytest.raises(RemoteProtocolError) as caught:
        decode(Data(1, bytes(DATA_MAX + 1)).encode())

    assert caught.value.kind == "malformed-data"
    assert "65530" in str(caught.value)


def test_data_and_udp_packets_are_not_copied() -> None:
    buffer = bytearray(Data(1, b"abc").encode())

    message = decode(buffer)

    assert isinstance(message, Data)
    buffer[-1] = ord("d")
    assert bytes(message.data) == b"abd"


@pytest.mark.parametrize("host", ["", "a" * 256])
def test_a_host_that_does_not_fit_is_our_own_mistake(host: str) -> None:
    with pytest.raises(ValueError, match="does not fit"):
        OpenConnection(1, host, 80).encode()


# --- HELLO ------------------------------------------------------------------------------------


def hello_with(**changed: object) -> bytes:
    fields: dict[str, object] = {
        "version": 1,
        "software": "x",
        "session": SESSION,
        "window": 1000,
        "max_data": 1000,
        "features": [],
        "idle_udp": 1,
    }
    fields.update(changed)
    packed = msgpack.packb({k: v for k, v in fields.items() if v is not None})
    return message_header(MessageType.HELLO, 0) + bytes(packed)


def test_hello_ignores_unknown_keys() -> None:
    assert decode(hello_with(colour="green")) == decode(hello_with())


def test_hello_needs_only_version_and_session() -> None:
    message = message_header(MessageType.HELLO, 0) + msgpack.packb(
        {"version": 1, "session": SESSION}
    )

    assert decode(message) == Hello(1, "", SESSION, 262_144, DATA_MAX, (), 300)


def test_hello_software_is_kept_short() -> None:
    hello = decode(hello_with(software="x" * 1000))

    assert isinstance(hello, Hello)
    assert hello.software == "x" * (SOFTWARE_MAX - 3) + "…"
    assert len(hello.software.encode()) == SOFTWARE_MAX


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("version", None),
        ("version", "1"),
        ("version", -1),
        ("version", True),
        ("session", None),
        ("session", b"short"),
        ("session", "0123456789abcdef"),
        ("software", 7),
        ("window", 0),
        ("window", -1),
        ("window", "many"),
        ("window", 1.5),
        ("max_data", 0),
        ("max_data", True),
        ("features", "udp"),
        ("features", [1]),
        ("idle_udp", -1),
        ("idle_udp", [300]),
    ],
)
def test_hello_names_the_key_that_is_unusable(key: str, value: object) -> None:
    with pytest.raises(RemoteProtocolError, match=key) as caught:
        decode(hello_with(**{key: value}))

    assert caught.value.kind == "malformed-hello"


@pytest.mark.parametrize("version", [0, 2, 65_536, (1 << 64) - 1])
def test_hello_of_another_version_tells_its_version(version: int) -> None:
    hello = decode(hello_with(version=version, session="text now", window=None, software="new/2"))

    assert isinstance(hello, Hello)
    assert (hello.version, hello.software) == (version, "new/2")


@pytest.mark.parametrize("version", [1, 2])
def test_hello_software_moves_no_cursor(version: int) -> None:
    hello = decode(hello_with(version=version, software="a\x1b[2J\nb\x9b\u202e büro"))
    assert isinstance(hello, Hello)
    assert hello.software == "a\ufffd[2J\ufffdb\ufffd\ufffd büro"


def test_hello_of_another_version_may_have_anything_for_software() -> None:
    hello = decode(hello_with(version=2, software=[2, 0]))

    assert isinstance(hello, Hello)
    assert (hello.version, hello.software) == (2, "")


# --- keys, headers, spreading -----------------------------------------------------------------


def test_message_key_reads_only_the_header() -> None:
    assert message_key(b"\x0e\xff\xff\x00\x00\x01\x00") == (14, 256)
    assert message_key(memoryview(b"\x69\0\0\0\0\0\x07payload")) == (105, 7)


def test_link_types_are_those_without_a_flow() -> None:
    assert sorted(LINK_TYPES) == [1, 2, 10, 11, 12]


def test_each_kind_of_flow_has_an_opener_and_an_ender() -> None:
    assert {14, 201, 211, 220} == FLOW_OPENERS
    assert {15, 204, 221} == FLOW_ENDERS


@pytest.mark.parametrize("stride", [1, 2, 3, 4, 8, 64, 256, 65_536])
@pytest.mark.parametrize("bins", [2, 3, 4, 8, 64])
def test_mix32_spreads_ids_that_are_a_stride_apart(stride: int, bins: int) -> None:
    counts = [0] * bins
    for i in range(bins * 500):
        counts[mix32(i * stride) % bins] += 1

    assert min(counts) > 500 * 0.8
    assert max(counts) < 500 * 1.2


def test_mix32_loses_nothing() -> None:
    assert len({mix32(i) for i in range(100_000)}) == 100_000
    assert mix32(1 << 32) == mix32(0)


# --- reasons ----------------------------------------------------------------------------------


@pytest.mark.parametrize("reason", range(1, 9))
def test_a_reason_below_nine_is_the_socks_reply(reason: int) -> None:
    assert reply_of(reason) is Reply(reason)


@pytest.mark.parametrize("reason", [0, 9, 0x0F, *range(0x10, 0x18), 0xFF])
def test_any_other_reason_is_a_general_failure(reason: int) -> None:
    assert reply_of(reason) is Reply.GENERAL_FAILURE
